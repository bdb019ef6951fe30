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

use super::contents::Has;
use super::segment::{Lineage, Segment, Size};
use super::store::AsOf;
use crate::take::make;
use crate::{Error, Result};

/// So many bytes may wait for a vault that is away: as much as a standby may hold back.
pub(super) const MOST: u64 = 4 << 30;

/// So many pieces of a segment are made into one.
const MANY: usize = 100;

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

    /// What a vault that has this wants next; none if it wants nothing in particular.
    pub(super) fn wanted(&self, has: &Has) -> Option<u64> {
        has.wants(self.state().lineage.as_ref()?, self.size)
    }

    /// Whether a segment is wanted that comes before what is coming now, and is not in the spool.
    pub(super) fn must_go_back(&self, wants: &[u64], gone: u64) -> bool {
        let Some((current, _)) = self.state().current.as_ref().map(|(s, b)| (*s, b.len())) else {
            return false;
        };
        self.first_wanted(wants, gone, current.number) < current.number
    }

    /// What is to be done next for a vault that has this.
    pub(super) fn job(&self, has: &Has) -> Job {
        let contents = &has.contents;
        let state = self.state();
        let Some(lineage) = &state.lineage else { return Job::Nothing(None) };
        let missing = state.histories.iter().find(|(t, _)| !contents.histories.contains(t));
        if let Some((timeline, history)) = missing {
            return Job::History(*timeline, history.clone());
        }
        let current = state.current.as_ref().map(|(segment, _)| *segment);
        let available = state.spooled.iter().copied().chain(current);
        let ours = available.filter(|s| lineage.owner(s.number, self.size) == *s);
        let wants = has.wants(lineage, self.size);
        let wanted = |s: &Segment| {
            wants.is_none_or(|wants| s.number >= wants) && !contents.whole.contains(s)
        };
        let Some(segment) = ours.filter(wanted).min() else { return Job::Nothing(None) };
        let gap = wants.is_some_and(|wants| segment.number > wants);
        if state.spooled.contains(&segment) {
            return Job::Whole { segment, gap };
        }
        // In a quiet time there are thousands of small pieces in a segment; now and then they become
        // one again.
        let many = contents.pieces.get(&segment).is_some_and(|pieces| pieces.len() >= MANY);
        let reached = contents.reaches(segment);
        let from = if many { 0 } else { reached };
        let bytes = state.current.as_ref().map_or(&[][..], |(_, bytes)| bytes);
        let new = bytes.get(usize::try_from(from).unwrap_or(usize::MAX)..).unwrap_or_default();
        // All that the server had flushed at that time is here, so it will be there.
        let here = bytes.len() as u64;
        let as_of = state.whole_at.filter(|_| here >= reached && !gap).map(|at| AsOf {
            at,
            end: Lsn(self.size.start(segment.number).0 + here),
            timeline: segment.timeline,
            segment_bytes: self.size.bytes(),
        });
        if here > reached {
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

#[cfg(test)]
mod tests {
    use super::super::contents::Contents;
    use super::*;
    use crate::manifest::LogRange;

    const SIZE: u64 = 1 << 20;

    fn feed(dir: &Path) -> Feed {
        let feed = Feed::open(dir.join("spool"), Size::new(SIZE).unwrap()).unwrap();
        feed.set_lineage(Lineage::parse(1, "").unwrap(), BTreeMap::new());
        feed
    }

    fn segment(number: u64) -> Segment {
        Segment { number, timeline: 1 }
    }

    fn has(whole: &[Segment]) -> Has {
        let whole = whole.iter().copied().collect();
        Has { contents: Contents { whole, ..Contents::default() }, bases: Vec::new() }
    }

    fn bytes(count: u64) -> Vec<u8> {
        vec![7; usize::try_from(count).unwrap()]
    }

    #[test]
    fn a_vault_gets_pieces_then_whole_segments_and_never_the_same_twice() {
        let dir = tempfile::tempdir().unwrap();
        let feed = feed(dir.path());
        let mut has = Has::default();
        assert_eq!(feed.job(&has), Job::Nothing(None));
        feed.begin(segment(3));
        feed.append(Lsn(3 * SIZE), &bytes(100)).unwrap();
        let now = Timestamp::now();
        feed.flushed(Lsn(3 * SIZE + 101), now);
        let Job::Piece { segment: of, from: 0, bytes: new, gap: false, as_of: None } =
            feed.job(&has)
        else {
            panic!("{:?}", feed.job(&has))
        };
        assert_eq!((of, new.len()), (segment(3), 100), "and it is not all that was flushed");
        has.contents.pieces.entry(segment(3)).or_default().insert(0, 100);
        assert_eq!(feed.job(&has), Job::Nothing(None));
        feed.flushed(Lsn(3 * SIZE + 100), now);
        let Job::Nothing(Some(as_of)) = feed.job(&has) else { panic!("{:?}", feed.job(&has)) };
        assert_eq!((as_of.at, as_of.end), (now, Lsn(3 * SIZE + 100)));

        assert!(feed.append(Lsn(3 * SIZE + 90), &bytes(5)).is_err(), "not what comes next");
        feed.append(Lsn(3 * SIZE + 100), &bytes(2 * SIZE)).unwrap();
        assert_eq!(feed.job(&has), Job::Whole { segment: segment(3), gap: false });
        has.contents.whole.insert(segment(3));
        assert_eq!(feed.job(&has), Job::Whole { segment: segment(4), gap: false });
        has.contents.whole.insert(segment(4));
        let Job::Piece { from: 0, bytes: rest, .. } = feed.job(&has) else { panic!() };
        assert_eq!(rest.len(), 100);
        let pieces = has.contents.pieces.entry(segment(5)).or_default();
        pieces.extend((0..100).map(|at| (at, at + 1)));
        assert!(matches!(feed.job(&has), Job::Nothing(Some(_))), "there is nothing new");
        feed.append(Lsn(5 * SIZE + 100), &bytes(1)).unwrap();
        let Job::Piece { from: 0, bytes: rest, .. } = feed.job(&has) else { panic!() };
        assert_eq!(rest.len(), 101, "all in one");
        assert_eq!(fs::read(feed.path(segment(4))).unwrap().len() as u64, SIZE);
    }

    #[test]
    fn what_a_vault_has_not_stays_until_it_is_too_much_and_then_there_is_a_gap() {
        let dir = tempfile::tempdir().unwrap();
        let feed = feed(dir.path());
        feed.begin(segment(1));
        feed.append(Lsn(SIZE), &bytes(4 * SIZE)).unwrap();
        let behind = has(&[segment(0)]);
        feed.sweep(&[5, 1], MOST).unwrap();
        assert_eq!(feed.job(&behind), Job::Whole { segment: segment(1), gap: false });
        feed.sweep(&[5, 3], MOST).unwrap();
        assert!(!feed.path(segment(2)).exists() && feed.path(segment(3)).exists());
        assert_eq!(feed.job(&behind), Job::Whole { segment: segment(3), gap: true });
        feed.sweep(&[0], SIZE).unwrap();
        assert!(!feed.path(segment(3)).exists() && feed.path(segment(4)).exists());

        // What another process finds: whole segments, and nothing that was begun.
        fs::write(dir.path().join("spool/000000010000000000000009.new"), "half").unwrap();
        drop(feed);
        let feed = self::feed(dir.path());
        assert!(!dir.path().join("spool/000000010000000000000009.new").exists());
        assert_eq!(feed.first_wanted(&[4], 0, 9), 5, "the spool has the fourth");
        assert_eq!(feed.first_wanted(&[2], 0, 9), 2);
        assert_eq!(feed.first_wanted(&[2], 2, 9), 5, "the second is gone from the server");
        assert_eq!(feed.first_wanted(&[0, 0], 0, 3), 3, "nobody wants anything in particular");
    }

    #[test]
    fn what_an_old_primary_wrote_alone_is_not_shipped_after_a_failover() {
        let dir = tempfile::tempdir().unwrap();
        let feed = feed(dir.path());
        feed.begin(segment(1));
        feed.append(Lsn(SIZE), &bytes(3 * SIZE + 50)).unwrap();
        let text = format!("1 {}", Lsn(2 * SIZE + 9));
        let histories = BTreeMap::from([(2, text.clone().into_bytes())]);
        feed.set_lineage(Lineage::parse(2, &text).unwrap(), histories);
        let mut has = has(&[segment(1)]);
        assert_eq!(feed.job(&has), Job::History(2, text.into_bytes()));
        has.contents.histories.insert(2);
        assert_eq!(feed.job(&has), Job::Nothing(None), "the new one's is still to come");
        assert_eq!(feed.first_wanted(&[2], 0, 4), 2);
        let new = Segment { number: 2, timeline: 2 };
        feed.begin(new);
        feed.append(Lsn(2 * SIZE), &bytes(SIZE)).unwrap();
        assert_eq!(feed.job(&has), Job::Whole { segment: new, gap: false });
    }

    #[test]
    fn what_a_base_backup_needs_is_fetched_also_when_the_log_began_later() {
        let dir = tempfile::tempdir().unwrap();
        let feed = feed(dir.path());
        feed.begin(segment(7));
        feed.append(Lsn(7 * SIZE), &bytes(60)).unwrap();
        feed.flushed(Lsn(7 * SIZE), Timestamp::now());
        let mut has = has(&[]);
        has.contents.pieces.entry(segment(7)).or_default().insert(0, 60);
        assert!(matches!(feed.job(&has), Job::Nothing(Some(_))), "there is nothing before it");
        has.bases.push(LogRange {
            system: "1".to_owned(),
            timeline: 1,
            start: Lsn(5 * SIZE + 40),
            end: Lsn(5 * SIZE + 400),
            segment_bytes: SIZE,
        });
        assert_eq!(feed.job(&has), Job::Nothing(None), "now there is a gap");
        assert_eq!(feed.wanted(&has), Some(5));
        assert!(feed.must_go_back(&[5], 0) && !feed.must_go_back(&[5], 5));
        feed.begin(segment(5));
        feed.append(Lsn(5 * SIZE), &bytes(2 * SIZE + 60)).unwrap();
        assert_eq!(feed.job(&has), Job::Whole { segment: segment(5), gap: false });
        has.contents.whole.insert(segment(5));
        assert_eq!(feed.job(&has), Job::Whole { segment: segment(6), gap: false });
        has.contents.whole.insert(segment(6));
        assert!(matches!(feed.job(&has), Job::Nothing(Some(_))));
        assert!(!feed.must_go_back(&[7], 0));
    }
}
