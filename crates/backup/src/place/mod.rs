//! Where a vault lies: in a folder, or in a part of a bucket of an object store.
//!
//! Both hold the same files under the same names, so that a vault can be copied from one to the other,
//! and read there by the `restic` program. All calls block.

mod backend;
mod bucket;
mod credentials;
mod files;
mod http;
mod lock;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use resurgam_model::plan;
use rustic_backend::BackendOptions;
use rustic_core::{RepositoryBackends, RusticResult};

use self::backend::BucketBackend;
use self::bucket::Bucket;
pub(crate) use self::files::Files;
pub(crate) use self::lock::Lock;
use crate::{Error, Result};

/// The file that makes a place a vault.
const CONFIG: &str = "config";
/// A bucket is asked so often whether anything changed: each question costs money.
const SELDOM: Duration = Duration::from_secs(30);

/// Where a vault lies.
#[derive(Clone, Debug)]
pub struct Place(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Folder(PathBuf),
    Bucket(Bucket),
}

impl Place {
    /// In a folder.
    #[must_use]
    pub fn folder(path: impl Into<PathBuf>) -> Self {
        Self(Kind::Folder(path.into()))
    }

    /// Where the plan says; `base` is the plan file's folder.
    ///
    /// # Errors
    /// When credentials are missing or wrong. Whether the place can be reached is not asked.
    pub fn of_plan(vault: &plan::Vault, base: &Path) -> Result<Self> {
        let kind = match &vault.url {
            Some(url) => Kind::Bucket(Bucket::of_plan(vault, url, base)?),
            None => Kind::Folder(base.join(vault.path.as_deref().unwrap_or(Path::new("")))),
        };
        Ok(Self(kind))
    }

    /// The folder, if it is one.
    #[must_use]
    pub fn as_folder(&self) -> Option<&Path> {
        match &self.0 {
            Kind::Folder(path) => Some(path),
            Kind::Bucket(_) => None,
        }
    }

    /// Whether there is a vault.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub fn has_vault(&self) -> Result<bool> {
        match &self.0 {
            Kind::Folder(path) => Ok(path.join(CONFIG).is_file()),
            Kind::Bucket(bucket) => bucket.exists(CONFIG),
        }
    }

    /// Makes the folder in which a vault is to be made. A bucket has to be there.
    pub(crate) fn prepare(&self) -> Result<()> {
        match &self.0 {
            Kind::Folder(path) => {
                std::fs::create_dir_all(path).map_err(Error::path("cannot create", path))
            }
            Kind::Bucket(_) => Ok(()),
        }
    }

    /// The repository in it, for the library.
    pub(crate) fn backends(&self) -> RusticResult<RepositoryBackends> {
        match &self.0 {
            Kind::Folder(path) => {
                BackendOptions::default().repository(path.display().to_string()).to_backends()
            }
            Kind::Bucket(bucket) => {
                Ok(RepositoryBackends::new(Arc::new(BucketBackend(bucket.clone())), None))
            }
        }
    }

    /// The files below a folder of it.
    pub(crate) fn files(&self, below: &str) -> Files {
        Files::new(self.clone(), below)
    }

    /// Keeps others from writing to the vault or removing from it, until it is dropped; waits a while
    /// for whoever does so now. The library has no locks of its own.
    pub(crate) fn lock(&self, vault: &str) -> Result<Lock> {
        Lock::take(self, vault)
    }

    /// Changes when a backup comes or goes; of a bucket, every now and then.
    pub(crate) fn changed_at(&self) -> Option<SystemTime> {
        match &self.0 {
            Kind::Folder(path) => {
                std::fs::metadata(path.join("snapshots")).and_then(|meta| meta.modified()).ok()
            }
            Kind::Bucket(_) => {
                let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?;
                let times = since.as_secs() / SELDOM.as_secs();
                Some(SystemTime::UNIX_EPOCH + SELDOM.saturating_mul(u32::try_from(times).ok()?))
            }
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Folder(path) => path.display().fmt(f),
            Kind::Bucket(bucket) => bucket.fmt(f),
        }
    }
}
