//! The log of a database in a vault, and the key to it.

use std::collections::BTreeSet;
use std::time::SystemTime;

use age::x25519;
use resurgam_model::Timestamp;
use resurgam_model::database::Lsn;
use rustic_core::repofile::SnapshotFile;
use rustic_core::{BackupOptions, OpenStatus, PathList, Repository, SnapshotOptions};
use serde::Serialize;

use super::{Backup, Proof, Vault};
use crate::log::replay::size_of;
use crate::log::segment::{Segment, Size};
use crate::log::store::{AsOf, LogStore, folder, systems};
use crate::manifest::LogRange;
use crate::{Error, Result};

/// The label of the snapshot with the key: a file as `age-keygen` writes it.
const KEY_LABEL: &str = "resurgam-log-key";
/// Where in that snapshot it lies.
const KEY_PATH: &str = "/log.key";

/// The log of a database in a vault.
#[derive(Clone, Debug, Serialize)]
pub struct LogReport {
    /// The vault.
    pub vault: String,
    /// The database, by its system identifier.
    pub system: String,
    /// The newest timeline.
    pub timeline: u32,
    /// Segments of all timelines, also those of which only a part is there.
    pub segments: usize,
    /// What they take in the vault.
    pub bytes: u64,
    /// Up to when it is whole.
    pub as_of: Option<AsOf>,
    /// It comes, and the newest backup cannot be brought further by it.
    pub broken: bool,
}

/// From where on the log of a database is needed: to bring it to any moment after `since`, one
/// needs the backups since then and the one before. The newest that is good and the newest that is
/// verified can be brought to the end in any case. Older backups are whole without it: each has the
/// log in it that it needs.
fn log_from(kept: &[Backup], system: &str, since: Timestamp) -> Option<Lsn> {
    let mut ours: Vec<_> = kept
        .iter()
        .filter_map(|backup| Some((backup, backup.manifest.log.as_ref()?)))
        .filter(|(_, range)| range.system == system)
        .collect();
    ours.sort_by_key(|(backup, _)| std::cmp::Reverse(backup.taken_at));
    let within = ours.iter().filter(|(backup, _)| backup.taken_at >= since);
    let before = ours.iter().find(|(backup, _)| backup.taken_at < since);
    let good = ours.iter().find(|(backup, _)| !matches!(backup.proof, Proof::Bad(_)));
    let verified = ours.iter().find(|(backup, _)| matches!(backup.proof, Proof::Verified(_)));
    within.chain(before).chain(good).chain(verified).map(|(_, range)| range.start).min()
}

impl Vault {
    /// The log of a database, by its system identifier. The first call makes the key.
    ///
    /// # Errors
    /// When the vault cannot be read or, the first time, not be written.
    pub fn log(&self, system: &str, size: Size) -> Result<LogStore> {
        let repository = self.repository()?;
        let mut keys = self.log_keys(&repository)?;
        if keys.is_empty() {
            let _lock = self.lock()?;
            // Somebody else may have made it meanwhile.
            keys = self.log_keys(&repository)?;
            if keys.is_empty() {
                keys = vec![self.new_log_key(repository)?];
            }
        }
        let files = self.place.files(&format!("{}/{system}", folder(&self.deployment)));
        Ok(LogStore::new(&self.name, files, keys, size))
    }

    /// The system identifiers of the databases whose log is there.
    ///
    /// # Errors
    /// When the vault cannot be read.
    pub fn logs(&self) -> Result<Vec<String>> {
        systems(&self.place, &self.deployment)
    }

    /// What can be said of each log that is there; that which came last is the last.
    ///
    /// # Errors
    /// When the vault cannot be read.
    pub fn log_reports(&self) -> Result<Vec<LogReport>> {
        let backups = self.backups()?;
        let mut reports = Vec::new();
        for system in self.logs()? {
            let (store, as_of) = self.any_log(&system)?;
            let contents = store.contents()?;
            let segments: BTreeSet<_> =
                contents.whole.iter().chain(contents.pieces.keys()).collect();
            reports.push(LogReport {
                vault: self.name.clone(),
                timeline: contents.newest_timeline(),
                segments: segments.len(),
                bytes: store.bytes()?,
                as_of,
                broken: false,
                system,
            });
        }
        // Only the one that comes can be of no use: the others came to their end.
        let at = |report: &LogReport| report.as_of.map(|as_of| as_of.at);
        reports.sort_by_key(at);
        if let Some(last) = reports.last_mut() {
            last.broken = self.log_is_broken(&backups)?;
        }
        Ok(reports)
    }

    /// A log whose segments may be of any size.
    fn any_log(&self, system: &str) -> Result<(LogStore, Option<AsOf>)> {
        let store = self.log(system, Size::default())?;
        let as_of = store.as_of()?;
        match as_of.and_then(|as_of| Size::new(as_of.segment_bytes)) {
            Some(size) if size != store.size() => Ok((self.log(system, size)?, as_of)),
            _ => Ok((store, as_of)),
        }
    }

    /// What the base backups of a database need of its log, the newest first.
    ///
    /// # Errors
    /// When the vault cannot be read.
    pub(crate) fn bases_of(&self, system: &str) -> Result<Vec<LogRange>> {
        let good = |backup: &Backup| !matches!(backup.proof, Proof::Bad(_));
        let backups = self.backups()?.into_iter().filter(good);
        let ranges = backups.filter_map(|backup| backup.manifest.log);
        Ok(ranges.filter(|range| range.system == system).collect())
    }

    /// Changes when a backup comes or goes.
    pub(crate) fn snapshots_changed_at(&self) -> Option<SystemTime> {
        self.place.changed_at()
    }

    /// Whether the log that comes is of no use to the newest of these backups, so that another one
    /// is needed: it has a gap, or is that of another database. Not so while none has come at all.
    ///
    /// # Errors
    /// When the vault cannot be read.
    pub fn log_is_broken(&self, backups: &[Backup]) -> Result<bool> {
        let good = |backup: &&Backup| !matches!(backup.proof, Proof::Bad(_));
        let Some(newest) = backups.iter().find(good) else { return Ok(false) };
        let mut latest = None;
        for system in self.logs()? {
            let at = self.any_log(&system)?.1.map(|as_of| as_of.at);
            latest = latest.max(Some((at, system)));
        }
        match (&newest.manifest.log, latest) {
            (_, None) => Ok(false),
            // The log that comes is that of another database.
            (Some(range), Some((_, system))) if range.system == system => {
                Ok(self.log(&range.system, size_of(range)?)?.way(range, None)?.is_broken())
            }
            _ => Ok(true),
        }
    }

    /// The segments of logs that are not needed to bring one of these backups, which are kept, to a
    /// moment after `since`: see [`log_from`]. Logs that ended before the oldest of them are not needed
    /// either. All of it stays when nothing is kept.
    ///
    /// # Errors
    /// When the vault cannot be read.
    pub fn unneeded_log(
        &self,
        kept: &[Backup],
        since: Timestamp,
    ) -> Result<Vec<(LogStore, Vec<Segment>)>> {
        let Some(oldest) = kept.iter().map(|backup| backup.taken_at).min() else {
            return Ok(Vec::new());
        };
        let mut unneeded = Vec::new();
        for system in self.logs()? {
            let (store, as_of) = self.any_log(&system)?;
            let first = log_from(kept, &system, since).map(|at| store.size().number(at));
            let before = match first {
                Some(first) => first,
                None if as_of.is_some_and(|as_of| as_of.at < oldest) => u64::MAX,
                // It is new, and its first backup may be under way.
                None => continue,
            };
            let segments = store.contents()?.before(before);
            if !segments.is_empty() {
                unneeded.push((store, segments));
            }
        }
        Ok(unneeded)
    }

    /// The oldest first, so that all who write agree on one.
    fn log_keys(&self, repository: &Repository<OpenStatus>) -> Result<Vec<x25519::Identity>> {
        let mut snapshots: Vec<SnapshotFile> = self.snapshots(repository)?;
        snapshots.retain(|s| s.label == KEY_LABEL && s.hostname == self.deployment);
        if snapshots.is_empty() {
            return Ok(Vec::new());
        }
        snapshots.sort_by(|a, b| a.time.cmp(&b.time));
        let read = self.told("be read");
        let repository = self.repository()?.to_indexed().map_err(&read)?;
        let mut keys = Vec::new();
        for snapshot in snapshots {
            let mut text = Vec::new();
            repository
                .node_from_snapshot_and_path(&snapshot, KEY_PATH)
                .and_then(|node| repository.dump(&node, &mut text))
                .map_err(&read)?;
            let text = String::from_utf8_lossy(&text);
            let key = text.lines().find(|line| line.starts_with("AGE-SECRET-KEY-"));
            let key = key.and_then(|line| line.trim().parse().ok());
            keys.push(key.ok_or_else(|| Error::Damaged {
                what: format!("the key to the log in the vault {}", self.name),
                how: "it is no key of age".to_owned(),
            })?);
        }
        Ok(keys)
    }

    fn new_log_key(&self, repository: Repository<OpenStatus>) -> Result<x25519::Identity> {
        use age::secrecy::ExposeSecret as _;

        let key = x25519::Identity::generate();
        let dir =
            tempfile::tempdir().map_err(Error::path("cannot create", std::env::temp_dir()))?;
        let file = dir.path().join("log.key");
        let text =
            format!("# public key: {}\n{}\n", key.to_public(), key.to_string().expose_secret());
        std::fs::write(&file, text).map_err(Error::path("cannot write", &file))?;
        let write = self.told("be written");
        let mut options = SnapshotOptions::default();
        options.label = Some(KEY_LABEL.to_owned());
        options.host = Some(self.deployment.clone());
        let snapshot = options.to_snapshot().map_err(&write)?;
        let mut how = BackupOptions::default();
        how.as_path = Some(KEY_PATH.into());
        let source = PathList::from_string(&file.display().to_string()).map_err(&write)?;
        let repository = repository.to_indexed_ids().map_err(&write)?;
        repository.backup(&how, &source, snapshot).map_err(&write)?;
        // The library passes over what it cannot read; nothing may be written with a key that is lost.
        match self.log_keys(&self.repository()?)?.into_iter().next() {
            Some(stored) if stored.to_public() == key.to_public() => Ok(stored),
            _ => Err(self.failed("be written")("the key to the log was not stored".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Manifest;

    fn backup(day: i64, proof: Proof) -> Backup {
        let taken_at = Timestamp::from_second(day * 86_400).unwrap();
        let log = Some(LogRange {
            system: "7".to_owned(),
            timeline: 1,
            start: Lsn(day.unsigned_abs() * 1000),
            end: Lsn(day.unsigned_abs() * 1000 + 9),
            segment_bytes: 16 << 20,
        });
        let manifest = Manifest { log, ..Manifest::default() };
        Backup { proof, manifest, ..Backup::of(&day.to_string(), taken_at) }
    }

    #[test]
    fn old_backups_stay_without_the_log_between_them() {
        let since = Timestamp::from_second(100 * 86_400).unwrap();
        let verified = || Proof::Verified(since);
        let from = |kept: &[Backup]| log_from(kept, "7", since).map(|at| at.0 / 1000);
        assert_eq!(from(&[]), None);
        assert_eq!(log_from(&[backup(5, verified())], "8", since), None);
        let kept = [10, 40, 98, 101, 102].map(|day| backup(day, verified()));
        assert_eq!(from(&kept), Some(98), "from there any moment since then is reached");
        let kept = [backup(10, verified()), backup(101, Proof::None)];
        assert_eq!(from(&kept), Some(10), "the one before is the only way to the first day");
        let bad = Proof::Bad("so".to_owned());
        let kept = [backup(10, verified()), backup(40, Proof::None), backup(99, bad)];
        assert_eq!(from(&kept), Some(10), "the newest verified one can be brought to the end");
        assert_eq!(from(&[backup(3, verified())]), Some(3));
    }
}
