//! The drills of a deployment, read again when there are new ones.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use resurgam_model::report::DrillReport;

use crate::drill::history;

/// What was read, of a file as it was then.
type Read = (Option<(SystemTime, u64)>, Vec<DrillReport>);

/// The drills so far.
#[derive(Debug)]
pub(crate) struct Measurements {
    state_dir: PathBuf,
    read: Mutex<Read>,
}

impl Measurements {
    pub(crate) fn new(state_dir: &Path) -> Self {
        Self { state_dir: state_dir.to_owned(), read: Mutex::default() }
    }

    /// Those that can be read, the oldest first.
    pub(crate) fn with<T>(&self, see: impl FnOnce(&[DrillReport]) -> T) -> T {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let metadata = std::fs::metadata(history::file(&self.state_dir)).ok();
        let stamp = metadata.and_then(|file| Some((file.modified().ok()?, file.len())));
        if read.0 != stamp {
            let reports = history::read(&self.state_dir).unwrap_or_default().reports;
            *read = (stamp, reports);
        }
        see(&read.1)
    }
}
