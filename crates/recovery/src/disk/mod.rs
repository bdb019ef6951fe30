//! The disk with the state folder, when it fills: noticed before it is full, and relieved of what can be had
//! again.

mod reclaim;
mod runbook;

use std::path::PathBuf;
use std::time::Duration;

use resurgam_model::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub use runbook::OUTLINE;
pub(crate) use runbook::{Disk, steps};

/// How often to look.
const LOOK: Duration = Duration::from_secs(1);
/// A disk that does not say so soon how full it is, is not known.
const ANSWER: Duration = Duration::from_secs(2);
/// It is low when it was so in so many looks: something large may only have been passing through.
const LOOKS: u32 = 2;

/// Megabytes, as disks are sold and as the plan counts them.
const MEGABYTE: u64 = 1_000_000;

/// How a disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// Bytes that may still be written.
    pub free: u64,
    /// Bytes that it has in all.
    pub total: u64,
    /// So many are to be free.
    pub wanted: u64,
    /// Since when fewer are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low_since: Option<Timestamp>,
}

impl Space {
    /// Of the file system that a folder is on; `min_free_mb` is the plan's.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn of(dir: &std::path::Path, min_free_mb: u64) -> std::io::Result<Self> {
        let found = rustix::fs::statvfs(dir)?;
        Ok(Self {
            free: found.f_bavail.saturating_mul(found.f_frsize),
            total: found.f_blocks.saturating_mul(found.f_frsize),
            wanted: min_free_mb.saturating_mul(MEGABYTE),
            low_since: None,
        })
    }

    /// Whether fewer bytes are free than there should be.
    #[must_use]
    pub fn is_low(&self) -> bool {
        self.free < self.wanted
    }
}

/// In words, in megabytes.
#[must_use]
pub fn account(space: &Space) -> String {
    let mb = |bytes: u64| bytes / MEGABYTE;
    format!(
        "{} MB of {} MB are free on the disk, and {} MB should be",
        mb(space.free),
        mb(space.total),
        mb(space.wanted)
    )
}

/// Looks until it is dropped. A disk that cannot be asked is not known.
pub(crate) async fn watch(dir: PathBuf, min_free_mb: u64, seen: watch::Sender<Option<Space>>) {
    let mut low = 0;
    let mut since = None;
    loop {
        // A file system that is away may hold up whoever asks it.
        let asked = dir.clone();
        let asking = tokio::task::spawn_blocking(move || Space::of(&asked, min_free_mb));
        let answer = tokio::time::timeout(ANSWER, asking).await;
        let space = answer.ok().and_then(Result::ok).and_then(Result::ok);
        match &space {
            Some(space) if space.is_low() => {
                low += 1;
                since = since.or_else(|| Some(Timestamp::now()));
            }
            _ => (low, since) = (0, None),
        }
        let low_since = since.filter(|_| low >= LOOKS);
        seen.send_replace(space.map(|space| Space { low_since, ..space }));
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_of_a_folder_is_asked() {
        let here = Space::of(std::path::Path::new("/"), 0).unwrap();
        assert!(here.total >= here.free && here.total > 0, "{here:?}");
        assert!(!here.is_low(), "nothing is wanted");
        let never = Space::of(std::path::Path::new("/"), u64::MAX).unwrap();
        assert!(never.is_low());
        assert!(Space::of(std::path::Path::new("/nowhere/at/all"), 1).is_err());
    }
}
