//! Damage on disk, which nobody notices until somebody reads it.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use resurgam_model::{Scenario, Timestamp};

use super::run::{Drill, Struck};
use crate::status::Status;
use crate::{Error, Result};

/// PostgreSQL's table of functions: large, and written when a database is made and hardly ever after.
/// What is damaged in a page that is still to be written would be mended by that.
const COLD: &str = "1255";
const PAGE: u64 = 8192;
/// Which page, and how much of it.
const NUMBER: u64 = 3;
const DAMAGE: usize = 64;

impl Drill<'_> {
    /// Damages a page of the primary's data, and takes a backup, which reads every page.
    pub(super) async fn database_corruption(&mut self, status: &Status) -> Result<Struck> {
        let primary = status.postgres.as_ref().and_then(|postgres| postgres.primary.clone());
        let primary = primary.ok_or_else(|| {
            Error::Drill(
                "this deployment runs no PostgreSQL of its own that has a primary".to_owned(),
            )
        })?;
        self.back_up().await?;
        let data = self.subject.state_dir().join("postgres").join(primary.as_str()).join("data");
        let file = cold_file(&data)?;
        self.say(&format!("damaging a page of {primary}"));
        let since = Timestamp::now();
        damage(&file)?;
        let at = Timestamp::now();
        self.say("taking a backup, which reads every page");
        if self.subject.command(&["backup", "run"]).await.is_ok() {
            return Err(Error::Drill("a backup was taken of damaged data".to_owned()));
        }
        let incident = self.recovery(Scenario::DatabaseCorruption, since).await?;
        Ok(Struck { at, incident, ..Struck::default() })
    }
}

/// A file of the newest database that is not written to.
fn cold_file(data: &Path) -> Result<PathBuf> {
    let base = data.join("base");
    let newest = fs::read_dir(&base)
        .map_err(Error::path("cannot read", &base))?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .max();
    let newest = newest.ok_or_else(|| Error::Drill("the primary has no database".to_owned()))?;
    Ok(base.join(newest.to_string()).join(COLD))
}

fn damage(file: &Path) -> Result<()> {
    let open = fs::File::options().read(true).write(true).open(file);
    let open = open.map_err(Error::path("cannot open", file))?;
    let at = NUMBER * PAGE + PAGE / 2;
    let mut bytes = [0; DAMAGE];
    open.read_exact_at(&mut bytes, at)
        .and_then(|()| open.write_all_at(&bytes.map(|byte| !byte), at))
        .and_then(|()| open.sync_all())
        .map_err(Error::path("cannot damage", file))
}
