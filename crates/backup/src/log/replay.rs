//! Brings a restored base backup to a later moment, by the log of a vault.

use std::fs;
use std::path::Path;

use resurgam_deployment::postgres::data::{give, give_all};
use resurgam_deployment::postgres::secrets::SUPERUSER;
use resurgam_deployment::postgres::{Programs, Secrets};
use resurgam_model::Timestamp;
use resurgam_model::database::Lsn;
use rustix::process::Signal;
use serde::Serialize;

use super::contents::Chain;
use super::segment::{Lineage, Size};
use super::store::LogStore;
use crate::manifest::LogRange;
use crate::server::Server;
use crate::take::{clear, make};
use crate::{Error, Result};

/// So many numbers of timelines are left out: other vaults, which are away, may have log of timelines
/// that this one has never heard of. Two of one number would be taken for one.
const AHEAD: u32 = 64;
/// The log may end within a record, which is no damage. Records are smaller than this.
const RECORD: u64 = 1 << 20;

/// Up to where the log is replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Only until the copy is whole: the moment at which the backup was complete.
    Backup,
    /// To the end of the log.
    End,
    /// All that was committed before this moment, and nothing after it.
    Time(Timestamp),
}

/// Where a replay ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reached {
    /// When the last transaction was committed that is in it; none if there was none in the log.
    pub last_commit: Option<Timestamp>,
    /// The position.
    pub at: Lsn,
    /// The timeline that begins there.
    pub timeline: u32,
}

/// Whether a log goes on from a base backup.
#[derive(Clone, Debug)]
pub enum Onward {
    /// It does.
    Way(Way),
    /// It has not come so far.
    NotYet,
    /// It never will: it went on from somewhere else, or what lies between is missing.
    Elsewhere,
}

impl Onward {
    /// The way, if there is one.
    #[must_use]
    pub fn way(self) -> Option<Way> {
        match self {
            Self::Way(way) => Some(way),
            Self::NotYet | Self::Elsewhere => None,
        }
    }

    /// Another base backup is needed: the log that comes is of no use to this one.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        match self {
            Self::Way(way) => way.chain.gap.is_some(),
            Self::NotYet => false,
            Self::Elsewhere => true,
        }
    }
}

/// A log that goes on from a base backup.
#[derive(Clone, Debug)]
pub struct Way {
    /// Its timelines.
    pub lineage: Lineage,
    /// Its segments.
    pub chain: Chain,
}

impl LogStore {
    /// The log from a base backup on, along a timeline; the newest one if none is named.
    ///
    /// # Errors
    /// When the vault cannot be read.
    pub fn way(&self, from: &LogRange, timeline: Option<u32>) -> Result<Onward> {
        let contents = self.contents()?;
        let timeline = timeline.unwrap_or_else(|| contents.newest_timeline());
        if timeline > 1 && !contents.histories.contains(&timeline) {
            return Ok(Onward::NotYet);
        }
        let lineage = self.lineage(timeline)?;
        if !lineage.has(from.timeline, from.end) {
            return Ok(Onward::Elsewhere);
        }
        let chain = contents.chain(&lineage, self.size(), from.start);
        match chain.end >= from.end {
            true => Ok(Onward::Way(Way { lineage, chain })),
            false if chain.gap.is_some() => Ok(Onward::Elsewhere),
            false => Ok(Onward::NotYet),
        }
    }

    /// Writes the log into a folder, in files as PostgreSQL has them, and a history for each timeline
    /// after the one that is followed, up to [`AHEAD`] after the newest: PostgreSQL gives its next
    /// timeline the first number for which there is no history, and only looks whether there is one.
    fn fetch(&self, way: Option<&Way>, timeline: u32, into: &Path) -> Result<()> {
        let write = |name: &str, bytes: &[u8]| {
            let path = into.join(name);
            fs::write(&path, bytes).map_err(Error::path("cannot write", path))
        };
        let contents = self.contents()?;
        for timeline in &contents.histories {
            write(&format!("{timeline:08X}.history"), &self.history(*timeline)?)?;
        }
        let newest = contents.newest_timeline().max(timeline);
        for taken in timeline + 1..=newest.saturating_add(AHEAD) {
            if !contents.histories.contains(&taken) {
                write(&format!("{taken:08X}.history"), b"# This number is taken.\n")?;
            }
        }
        let Some(Way { chain, .. }) = way else { return Ok(()) };
        for segment in &chain.whole {
            write(&self.size().file_name(*segment), &self.get(*segment, None)?)?;
        }
        if let Some((segment, reached)) = chain.last {
            write(&self.size().file_name(segment), &self.get(segment, Some(reached))?)?;
        }
        Ok(())
    }
}

/// Brings the restored base backup in `data` to a moment, and leaves it at rest, on a timeline of its
/// own. Everything else that is needed lies in `dir` meanwhile. `way` is not needed for
/// [`Target::Backup`].
///
/// # Errors
/// [`Error::Unreached`] when the log ends before that moment; [`Error::Damaged`] when the log is.
pub async fn replay(
    programs: &Programs,
    data: &Path,
    dir: &Path,
    (store, way, target): (&LogStore, Option<&Way>, Target),
    backup: &LogRange,
    secrets: &Secrets,
) -> Result<Reached> {
    let user = programs.user.as_ref();
    let archive = dir.join("log");
    clear(&archive)?;
    make(&archive, 0o711)?;
    let (followed, word) = match (target, way) {
        (Target::Backup, _) | (_, None) => (backup.timeline, "current".to_owned()),
        (_, Some(way)) => (way.lineage.timeline(), way.lineage.timeline().to_string()),
    };
    {
        let (store, way, archive) = (store.clone(), way.cloned(), archive.clone());
        tokio::task::spawn_blocking(move || store.fetch(way.as_ref(), followed, &archive))
            .await
            .map_err(|error| Error::Unusable(error.to_string()))??;
    }
    give_all(&archive, user)?;
    for signal in ["standby.signal", "recovery.signal"] {
        let _ = fs::remove_file(data.join(signal));
    }
    let signal = data.join("recovery.signal");
    fs::write(&signal, "").map_err(Error::path("cannot write", &signal))?;
    give(&signal, 0o600, user)?;
    let mut settings = vec![
        format!("restore_command={}", copy_command(&archive)),
        format!("recovery_target_timeline={word}"),
        "recovery_target_action=promote".to_owned(),
        // Nobody is let in before it is done; so it needs none of the primary's limits.
        "hot_standby=off".to_owned(),
        "autovacuum=off".to_owned(),
        // What was written is on disk before it takes the place of anything: by one sync of all.
        "fsync=off".to_owned(),
    ];
    match target {
        Target::Backup => settings.push("recovery_target=immediate".to_owned()),
        Target::End => {}
        Target::Time(at) => {
            settings
                .push(format!("recovery_target_time={}", at.strftime("%Y-%m-%d %H:%M:%S%.6f+00")));
            settings.push("recovery_target_inclusive=off".to_owned());
        }
    }
    let server = Server::start(programs, data, dir, &settings).await?;
    let replayed = look(&server, secrets).await;
    server.stop(Signal::INT).await;
    let reached = replayed.map_err(|error| explained(error, &server.log(), target))?;
    let short = way.map_or(0, |way| way.chain.end.bytes_ahead_of(reached.at));
    if target == Target::End && short > RECORD {
        return Err(Error::Damaged {
            what: "the log in the vault".to_owned(),
            how: format!(
                "PostgreSQL finds its end at {}, {short} bytes before it; --at restores a moment before that, and --backup the backup alone",
                reached.at
            ),
        });
    }
    clear(&archive)?;
    Ok(reached)
}

async fn look(server: &Server, secrets: &Secrets) -> Result<Reached> {
    let client = server.connect(SUPERUSER, &secrets.superuser, "postgres").await?;
    let row = client
        .query_one(
            "SELECT (extract(epoch FROM pg_last_xact_replay_timestamp()) * 1000000)::bigint,
                    pg_current_wal_lsn()::text,
                    ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int,
                    pg_catalog.pg_is_in_recovery()",
            &[],
        )
        .await
        .map_err(|source| Error::Postgres { action: "say where it is", source })?;
    let (commit, at, timeline): (Option<i64>, String, i32) = (row.get(0), row.get(1), row.get(2));
    if row.get::<_, bool>(3) {
        return Err(Error::Unusable("the restored database is still replaying its log".to_owned()));
    }
    // So that it is at rest, and what was written is in its files.
    client
        .batch_execute("CHECKPOINT")
        .await
        .map_err(|source| Error::Postgres { action: "be written down", source })?;
    Ok(Reached {
        last_commit: commit.and_then(|micros| Timestamp::from_microsecond(micros).ok()),
        at: at.parse().unwrap_or_default(),
        timeline: timeline.unsigned_abs(),
    })
}

/// Why the server ended, by what it said.
fn explained(error: Error, log: &str, target: Target) -> Error {
    let Error::Program { output, .. } = &error else { return error };
    if let (Target::Time(wanted), true) =
        (target, log.contains("recovery ended before configured recovery target was reached"))
    {
        let last = log.lines().rev().find_map(|line| {
            line.split_once("last completed transaction was at log time ")
                .map(|(_, at)| at.to_owned())
        });
        return Error::Unreached { wanted, last };
    }
    let broken =
        ["could not locate required checkpoint record", "WAL ends before end of online backup"];
    if broken.iter().any(|text| log.contains(text)) {
        return Error::Damaged { what: "the log in the vault".to_owned(), how: output.clone() };
    }
    error
}

/// What PostgreSQL runs to get a file: by a shell, in which the folder's name must mean itself.
fn copy_command(archive: &Path) -> String {
    let quoted = archive.display().to_string().replace('\'', r"'\''").replace('%', "%%");
    format!("cp '{quoted}'/%f %p")
}

/// How large the segments are of which a backup needs some.
///
/// # Errors
/// When no server has such segments.
pub fn size_of(range: &LogRange) -> Result<Size> {
    Size::new(range.segment_bytes).ok_or_else(|| Error::Damaged {
        what: "the backup's word of its log".to_owned(),
        how: format!("no server has segments of {} bytes", range.segment_bytes),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folders_name_means_itself_to_the_shell() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("it's 100%f $HOME");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("00000002.history"), "so").unwrap();
        let command = copy_command(&folder).replace("%f", "00000002.history");
        // What PostgreSQL does with a doubled sign.
        let command = command.replace("100%00000002.history", "100%f").replace("%%", "%");
        let to = dir.path().join("got");
        let command = command.replace("%p", &to.display().to_string());
        let status = std::process::Command::new("sh").args(["-c", &command]).status().unwrap();
        assert!(status.success(), "{command}");
        assert_eq!(fs::read_to_string(to).unwrap(), "so");
    }
}
