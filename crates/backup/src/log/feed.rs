//! What was received of a log and is not yet in every vault.
//!
//! Whole segments lie in a folder, the spool, until each vault has them; the one that is just being
//! written is in memory, for it can be received again. A vault that is away for long does not fill
//! the disk: beyond [`MOST`] the oldest segments go, and that vault begins anew with a later base
//! backup.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use resurgam_model::Timestamp;
use resurgam_model::database::Lsn;
use tokio::sync::watch;

use super::contents::Contents;
use super::segment::{Lineage, Segment, Size};
use super::store::AsOf;
use crate::take::make;
use crate::{Error, Result};

/// So many bytes may wait for a vault that is away: as much as a standby may hold back.
pub(super) const MOST: u64 = 4 << 30;

/// The next thing to do for a vault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Job {
    /// Store a timeline's history.
    History(u32, Vec<u8>),
    /// Store a whole segment of the spool. `gap` says that it is not the one that comes next.
    Whole { segment: Segment, gap: bool },
    /// Store what is new of the segment that is being written. With it the vault is whole as of then.
    Piece { segment: Segment, from: u64, bytes: Vec<u8>, gap: bool, as_of: Option<AsOf> },
    /// The vault has everything. It was so at that time.
    Nothing(Option<AsOf>),
}

#[derive(Debug)]
pub(super) struct Feed {
    spool: PathBuf,
    size: Size,
    state: Mutex<State>,
    news: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    lineage: Option<Lineage>,
    histories: BTreeMap<u32, Vec<u8>>,
    spooled: BTreeSet<Segment>,
    current: Option<(Segment, Vec<u8>)>,
    /// When all that the server had flushed was here.
    whole_at: Option<Timestamp>,
}

impl State {
    fn end(&self, size: Size) -> Option<Lsn> {
        let (segment, bytes) = self.current.as_ref()?;
        Some(Lsn(size.start(segment.number).0 + bytes.len() as u64))
    }
}

impl Feed {
    /// With the whole segments that an earlier process left in the spool.
    pub(super) fn open(spool: PathBuf, size: Size) -> Result<Self> {
        make(&spool, 0o700)?;
        let mut state = State::default();
        for entry in fs::read_dir(&spool).map_err(Error::path("cannot read", &spool))? {
            let entry = entry.map_err(Error::path("cannot read", &spool))?;
            match entry.file_name().to_str().and_then(|name| size.parse(name)) {
                Some(segment) => {
                    state.spooled.insert(segment);
                }
                // Half a segment, from a crash.
                None => fs::remove_file(entry.path())
                    .map_err(Error::path("cannot remove", entry.path()))?,
            }
        }
        Ok(Self { spool, size, state: Mutex::new(state), news: watch::Sender::new(()) })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(super) fn size(&self) -> Size {
        self.size
    }

    pub(super) fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }

    pub(super) fn path(&self, segment: Segment) -> PathBuf {
        self.spool.join(self.size.file_name(segment))
    }

    /// How the log has come about, from now on.
    pub(super) fn set_lineage(&self, lineage: Lineage, histories: BTreeMap<u32, Vec<u8>>) {
        let mut state = self.state();
        state.lineage = Some(lineage);
        state.histories = histories;
        state.whole_at = None;
    }

    /// From which segment on the log is to be received: the first that a vault still wants and the
    /// spool does not have. `wants` is what each vault wants next, `gone` what the server has not
    /// any more, `written` what the server writes now.
    pub(super) fn first_wanted(&self, wants: &[u64], gone: u64, written: u64) -> u64 {
        let state = self.state();
        let Some(lineage) = &state.lineage else { return written };
        let spooled = |number| state.spooled.contains(&lineage.owner(number, self.size));
        let after_spool = |mut number| {
            while spooled(number) {
                number += 1;
            }
            number
        };
        let own = state.spooled.iter().rev().find(|s| lineage.owner(s.number, self.size) == **s);
        wants
            .iter()
            .copied()
            .chain(own.map(|segment| segment.number))
            .map(after_spool)
            .filter(|number| *number > gone && *number <= written)
            .min()
            .unwrap_or(written)
    }

    /// A segment begins to come.
    pub(super) fn begin(&self, segment: Segment) {
        self.state().current = Some((segment, Vec::new()));
    }

    /// So many bytes are missing until the segment is whole.
    pub(super) fn room(&self) -> usize {
        let have = self.state().current.as_ref().map_or(0, |(_, bytes)| bytes.len());
        usize::try_from(self.size.bytes()).unwrap_or(usize::MAX) - have
    }

    /// Bytes came. They must be those that come next. With the last ones of a segment it goes into
    /// the spool.
    pub(super) fn append(&self, mut start: Lsn, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let filled = {
                let mut state = self.state();
                let end = state.end(self.size);
                let (Some((segment, have)), true) = (&mut state.current, end == Some(start)) else {
                    return Err(Error::Unusable(format!(
                        "the log does not come in order: {start} instead of {end:?}"
                    )));
                };
                let room = usize::try_from(self.size.bytes()).unwrap_or(usize::MAX) - have.len();
                let (now, later) = bytes.split_at(room.min(bytes.len()));
                have.extend_from_slice(now);
                bytes = later;
                start.0 += now.len() as u64;
                (now.len() == room).then(|| (*segment, std::mem::take(have)))
            };
            if let Some((segment, whole)) = filled {
                self.store(segment, &whole)?;
                let mut state = self.state();
                state.spooled.insert(segment);
                let next = Segment { number: segment.number + 1, ..segment };
                state.current = Some((next, Vec::new()));
            }
        }
        self.news.send_replace(());
        Ok(())
    }

    fn store(&self, segment: Segment, bytes: &[u8]) -> Result<()> {
        let path = self.path(segment);
        let temporary = path.with_extension("new");
        let write = || {
            let mut file = File::create(&temporary)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)
        };
        write().map_err(|error| {
            let _ = fs::remove_file(&temporary);
            Error::path("cannot write", &path)(error)
        })
    }

    /// Where the next bytes begin.
    pub(super) fn end(&self) -> Option<Lsn> {
        self.state().end(self.size)
    }

    /// The server has flushed this much, and no more.
    pub(super) fn flushed(&self, at: Lsn, now: Timestamp) {
        let mut state = self.state();
        if state.end(self.size).is_some_and(|end| end >= at) {
            state.whole_at = Some(now);
        }
    }

    /// What a vault that has this wants next; none if it has nothing of this log.
    pub(super) fn wanted(&self, contents: &Contents) -> Option<u64> {
        contents.next(self.state().lineage.as_ref()?, self.size)
    }

    /// What is to be done next for a vault that has this.
    pub(super) fn job(&self, contents: &Contents) -> Job {
        let state = self.state();
        let Some(lineage) = &state.lineage else { return Job::Nothing(None) };
        let missing = state.histories.iter().find(|(t, _)| !contents.histories.contains(t));
        if let Some((timeline, history)) = missing {
            return Job::History(*timeline, history.clone());
        }
        let current = state.current.as_ref().map(|(segment, _)| *segment);
        let available = state.spooled.iter().copied().chain(current);
        let ours = available.filter(|s| lineage.owner(s.number, self.size) == *s);
        let next = contents.next(lineage, self.size);
        let Some(segment) = ours.filter(|s| next.is_none_or(|next| s.number >= next)).min() else {
            return Job::Nothing(None);
        };
        let gap = next.is_some_and(|next| segment.number > next);
        if state.spooled.contains(&segment) {
            return Job::Whole { segment, gap };
        }
        let from = contents.reaches(segment);
        let bytes = state.current.as_ref().map_or(&[][..], |(_, bytes)| bytes);
        let new = bytes.get(usize::try_from(from).unwrap_or(usize::MAX)..).unwrap_or_default();
        // All that the server had flushed at that time is here, so it will be there.
        let here = bytes.len() as u64;
        let as_of = state.whole_at.filter(|_| here >= from).map(|at| AsOf {
            at,
            end: Lsn(self.size.start(segment.number).0 + here),
            timeline: segment.timeline,
            segment_bytes: self.size.bytes(),
        });
        if !new.is_empty() {
            return Job::Piece { segment, from, bytes: new.to_vec(), gap, as_of };
        }
        Job::Nothing(as_of)
    }

    /// Removes from the spool what no vault wants any more, and what is too much. `wants` is what
    /// each vault wants next, 0 if it has nothing or that is not known.
    pub(super) fn sweep(&self, wants: &[u64], most: u64) -> Result<()> {
        let mut state = self.state();
        let least = wants.iter().copied().min().unwrap_or(u64::MAX);
        let count = usize::try_from(most / self.size.bytes()).unwrap_or(usize::MAX).max(1);
        let mut gone: Vec<_> = state.spooled.iter().filter(|s| s.number < least).copied().collect();
        let left = state.spooled.len() - gone.len();
        let too_much = state.spooled.iter().filter(|s| s.number >= least);
        gone.extend(too_much.take(left.saturating_sub(count)).copied());
        for segment in gone {
            remove(&self.path(segment))?;
            state.spooled.remove(&segment);
        }
        Ok(())
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::path("cannot remove", path)(error))
        }
        _ => Ok(()),
    }
}
