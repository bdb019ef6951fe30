//! The passwords of an owned PostgreSQL. Made once, kept in a file that only we can read.

use std::fmt;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Error, Result};

/// The superuser.
pub const SUPERUSER: &str = "postgres";
/// Who streams.
pub const REPLICATOR: &str = "replicator";
/// Who asks whether the database can be written to.
pub const PROBER: &str = "resurgam_probe";

/// The passwords. Their debug output shows none.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Secrets {
    /// Of [`SUPERUSER`].
    pub superuser: String,
    /// Of [`REPLICATOR`].
    pub replicator: String,
    /// Of [`PROBER`].
    pub prober: String,
    /// Of the platform's user, which has the name of the database.
    pub platform: String,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets(***)")
    }
}

impl Secrets {
    /// Reads them, or makes new ones.
    ///
    /// # Errors
    /// When the file cannot be read or written, or holds something else.
    pub fn load_or_create(path: &Path) -> Result<Self> {
        match Self::load(path) {
            Err(Error::Path { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            other => return other,
        }
        let new = || Uuid::new_v4().simple().to_string();
        let secrets = Self { superuser: new(), replicator: new(), prober: new(), platform: new() };
        let json = serde_json::to_vec(&secrets)
            .map_err(|error| Error::State(format!("cannot write the passwords: {error}")))?;
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(Error::path("cannot create", dir))?;
        }
        write_private(path, &json)?;
        Ok(secrets)
    }

    /// Reads them.
    ///
    /// # Errors
    /// When the file cannot be read, or holds something else.
    pub fn load(path: &Path) -> Result<Self> {
        let json = std::fs::read(path).map_err(Error::path("cannot read", path))?;
        serde_json::from_slice(&json).map_err(|error| {
            Error::State(format!("{} does not hold the passwords: {error}", path.display()))
        })
    }
}

/// Writes a file that nobody else can read: complete or not at all.
pub(super) fn write_private(path: &Path, content: &[u8]) -> Result<()> {
    let temporary: PathBuf = path.with_extension("new");
    let write = || {
        let mut options = std::fs::OpenOptions::new();
        let mut file =
            options.create(true).write(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write().map_err(Error::path("cannot write", path))
}
