//! Fills the disk, as a log does that nobody looks after.

use std::fs::File;
use std::path::{Path, PathBuf};

use resurgam_model::{Scenario, Timestamp};
use rustix::fs::{FallocateFlags, fallocate};

use super::run::{Drill, Struck};
use crate::disk::Space;
use crate::{Error, Result};

/// So much less is free than the plan wants.
const BELOW: u64 = 1_000_000_000;
/// More than this a drill does not take.
const MOST: u64 = 4_000_000_000;

/// What fills the disk. It is gone when this is dropped, whoever has removed it.
struct Ballast(PathBuf);

impl Drop for Ballast {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// How much has to be written below a folder until less is free than the plan wants.
///
/// # Errors
/// When the plan does not look, or that would be too much for a drill.
pub fn needed(state: &Path, min_free_mb: u64) -> Result<u64> {
    if min_free_mb == 0 {
        return Err(Error::Drill(
            "the plan does not look at the disk; set disk.min_free_mb".to_owned(),
        ));
    }
    let space =
        Space::of(state, min_free_mb).map_err(Error::path("cannot ask the disk of", state))?;
    let bytes = (space.free + BELOW).saturating_sub(space.wanted);
    if bytes > MOST || bytes >= space.free {
        return Err(Error::Drill(format!(
            "{} MB would have to be filled, which is too much for a drill; drill without --plan, or raise disk.min_free_mb",
            bytes / 1_000_000
        )));
    }
    Ok(bytes)
}

impl Drill<'_> {
    /// Writes an old log that leaves less free than the plan wants.
    pub(super) async fn disk_filling(&mut self) -> Result<Struck> {
        let state = self.subject.state_dir().to_owned();
        let bytes = needed(&state, self.subject.plan().disk.min_free_mb)?;
        let ballast = Ballast(state.join("logs/ballast.log.1"));
        self.say(&format!("filling the disk with {} MB", bytes / 1_000_000));
        let since = Timestamp::now();
        let file = File::create(&ballast.0).map_err(Error::path("cannot write", &ballast.0))?;
        fallocate(&file, FallocateFlags::empty(), 0, bytes)
            .map_err(|error| Error::path("cannot fill", &ballast.0)(error.into()))?;
        drop(file);
        let at = Timestamp::now();
        let incident = self.recovery(Scenario::DiskFilling, since).await?;
        if ballast.0.exists() {
            return Err(Error::Drill(format!("{} was not removed", ballast.0.display())));
        }
        Ok(Struck { at, incident, ..Struck::default() })
    }
}
