//! What of a database's log is in a vault, and how far one comes with it. Pure decisions.

use std::collections::{BTreeMap, BTreeSet};

use resurgam_model::database::Lsn;

use super::segment::{Lineage, Segment, Size};
use crate::manifest::LogRange;

/// The files of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Whole segments.
    pub whole: BTreeSet<Segment>,
    /// Segments of which only pieces are there: from which byte to before which.
    pub pieces: BTreeMap<Segment, BTreeMap<u64, u64>>,
    /// Timelines whose history is there.
    pub histories: BTreeSet<u32>,
}

/// What a vault has of a database: its log, and the base backups that need log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Has {
    /// The log.
    pub contents: Contents,
    /// What the base backups need, the newest first.
    pub bases: Vec<LogRange>,
}

impl Has {
    /// The first segment that is missing after the newest base backup on these timelines, or after
    /// the end of the log if there is none; none if there is no log either.
    #[must_use]
    pub fn wants(&self, lineage: &Lineage, size: Size) -> Option<u64> {
        let base = self.bases.iter().find(|base| lineage.has(base.timeline, base.end));
        let Some(base) = base else { return self.contents.next(lineage, size) };
        let mut number = size.number(base.start);
        while self.contents.whole.contains(&lineage.owner(number, size)) {
            number += 1;
        }
        Some(number)
    }
}

/// The log from a position on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Whole segments, in order.
    pub whole: Vec<Segment>,
    /// The one after them, of which so many bytes are there.
    pub last: Option<(Segment, u64)>,
    /// Up to where it reaches.
    pub end: Lsn,
    /// What is missing so that later segments, which are there, are of no use.
    pub gap: Option<Segment>,
}

impl Contents {
    /// The newest timeline.
    #[must_use]
    pub fn newest_timeline(&self) -> u32 {
        let segments = self.whole.iter().chain(self.pieces.keys());
        let timelines = segments.map(|segment| segment.timeline);
        timelines.chain(self.histories.iter().copied()).max().unwrap_or(1)
    }

    /// The number after the last whole segment of these timelines; none if there is no such.
    #[must_use]
    pub fn next(&self, lineage: &Lineage, size: Size) -> Option<u64> {
        let last = self.whole.iter().rev().find(|s| lineage.owner(s.number, size) == **s);
        last.map(|segment| segment.number + 1)
    }

    /// How many bytes of a segment are there without a gap, counted from its beginning.
    #[must_use]
    pub fn reaches(&self, segment: Segment) -> u64 {
        let mut reached = 0;
        for (from, to) in self.pieces.get(&segment).into_iter().flatten() {
            if *from > reached {
                break;
            }
            reached = reached.max(*to);
        }
        reached
    }

    /// The log from a position on, as far as it goes without a gap.
    #[must_use]
    pub fn chain(&self, lineage: &Lineage, size: Size, from: Lsn) -> Chain {
        let mut whole = Vec::new();
        let mut number = size.number(from);
        while self.whole.contains(&lineage.owner(number, size)) {
            whole.push(lineage.owner(number, size));
            number += 1;
        }
        let next = lineage.owner(number, size);
        let reached = self.reaches(next);
        let later = |segment: &Segment| {
            segment.number > number && lineage.owner(segment.number, size) == *segment
        };
        let gap = self.whole.iter().chain(self.pieces.keys()).any(later);
        Chain {
            whole,
            last: (reached > 0).then_some((next, reached)),
            end: Lsn(size.start(number).0 + reached),
            gap: gap.then_some(next),
        }
    }

    /// The segments that nothing needs which begins at this number or later. Those of all
    /// timelines: what is older than the oldest backup leads nowhere.
    #[must_use]
    pub fn before(&self, number: u64) -> Vec<Segment> {
        let all: BTreeSet<_> = self.whole.iter().chain(self.pieces.keys()).copied().collect();
        all.into_iter().filter(|segment| segment.number < number).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn segment(timeline: u32, number: u64) -> Segment {
        Segment { number, timeline }
    }

    fn of(whole: &[(u32, u64)], pieces: &[(u32, u64, u64, u64)]) -> Contents {
        let mut contents = Contents {
            whole: whole.iter().map(|(t, n)| segment(*t, *n)).collect(),
            ..Contents::default()
        };
        for (timeline, number, from, to) in pieces {
            contents.pieces.entry(segment(*timeline, *number)).or_default().insert(*from, *to);
        }
        contents
    }

    #[test]
    fn a_log_reaches_up_to_its_first_gap_and_says_so() {
        let size = Size::default();
        let lineage = Lineage::parse(1, "").unwrap();
        let from = Lsn((3 << 24) + 40);
        let log = of(&[(1, 2), (1, 3), (1, 4)], &[(1, 5, 0, 100), (1, 5, 100, 240)]);
        let chain = log.chain(&lineage, size, from);
        assert_eq!(chain.whole, [segment(1, 3), segment(1, 4)]);
        assert_eq!((chain.last, chain.gap), (Some((segment(1, 5), 240)), None));
        assert_eq!(chain.end, Lsn((5 << 24) + 240));
        let log = of(&[(1, 3), (1, 5)], &[]);
        let chain = log.chain(&lineage, size, from);
        assert_eq!((chain.end, chain.gap), (Lsn(4 << 24), Some(segment(1, 4))));
        let log = of(&[(1, 3)], &[(1, 4, 0, 7), (1, 4, 9, 20)]);
        assert_eq!(log.chain(&lineage, size, from).end, Lsn((4 << 24) + 7), "a piece is missing");
        assert_eq!(of(&[], &[]).chain(&lineage, size, from).whole, []);
    }

    #[test]
    fn after_a_promotion_the_log_goes_on_with_the_segment_in_which_it_happened() {
        let size = Size::default();
        let lineage = Lineage::parse(2, "1\t0/5000100\tno recovery target specified").unwrap();
        // The old primary had gone on alone.
        let log = of(&[(1, 3), (1, 4), (1, 5), (1, 6)], &[(2, 5, 0, 300)]);
        assert_eq!(log.next(&lineage, size), Some(5));
        let chain = log.chain(&lineage, size, Lsn(3 << 24));
        assert_eq!(chain.whole, [segment(1, 3), segment(1, 4)]);
        assert_eq!((chain.last, chain.gap), (Some((segment(2, 5), 300)), None));
        let old = Lineage::parse(1, "").unwrap();
        assert_eq!(log.chain(&old, size, Lsn(3 << 24)).end, Lsn(7 << 24), "by the old timeline");
        assert_eq!(log.newest_timeline(), 2);
        assert_eq!(log.before(5), [segment(1, 3), segment(1, 4)]);
    }

    proptest! {
        /// Whatever is lost of a log: what is called a chain has no hole.
        #[test]
        fn a_chain_has_no_hole(
            whole in proptest::collection::btree_set((1u32..4, 0u64..12), 0..30),
            ends in (0u64..6, 0u64..6), from in 0u64..12,
        ) {
            let size = Size::default();
            let text = format!("1 {}\n2 {}", Lsn(ends.0 << 24), Lsn((ends.0 + ends.1) << 24));
            let lineage = Lineage::parse(3, &text).unwrap();
            let log = of(&whole.into_iter().collect::<Vec<_>>(), &[]);
            let chain = log.chain(&lineage, size, Lsn(from << 24));
            for (n, found) in chain.whole.iter().enumerate() {
                prop_assert_eq!(*found, lineage.owner(from + n as u64, size));
                prop_assert!(log.whole.contains(found));
            }
            let after = lineage.owner(from + chain.whole.len() as u64, size);
            prop_assert!(!log.whole.contains(&after));
            prop_assert_eq!(chain.end, size.start(after.number));
        }
    }
}
