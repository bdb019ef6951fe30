//! Segments of PostgreSQL's write-ahead log, and the timelines on which they lie.

use std::fmt;

use resurgam_model::database::Lsn;

/// A segment: which part of the log, as written on which timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Segment {
    /// Counted from the beginning of the log, across timelines.
    pub number: u64,
    /// The timeline.
    pub timeline: u32,
}

/// How large the segments of a server are. PostgreSQL allows powers of two from 1 MiB to 1 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(u64);

impl Default for Size {
    /// That of a server which was not told otherwise.
    fn default() -> Self {
        Self(16 << 20)
    }
}

impl Size {
    /// None if no server has such segments.
    #[must_use]
    pub fn new(bytes: u64) -> Option<Self> {
        let fits = bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes);
        fits.then_some(Self(bytes))
    }

    /// In bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// The number of the segment in which a position lies.
    #[must_use]
    pub fn number(self, at: Lsn) -> u64 {
        at.0 >> self.0.trailing_zeros()
    }

    /// Where a segment begins.
    #[must_use]
    pub fn start(self, number: u64) -> Lsn {
        Lsn(number.saturating_mul(self.0))
    }

    /// How far into its segment a position lies.
    #[must_use]
    pub fn offset(self, at: Lsn) -> u64 {
        at.0 & (self.0 - 1)
    }

    /// So many segments have the same middle part of their names.
    fn group(self) -> u64 {
        1 << (32 - self.0.trailing_zeros())
    }

    /// The name of PostgreSQL's file.
    #[must_use]
    pub fn file_name(self, segment: Segment) -> String {
        let Segment { timeline, number } = segment;
        let group = self.group();
        format!("{timeline:08X}{:08X}{:08X}", number / group, number % group)
    }

    /// The segment of that name.
    #[must_use]
    pub fn parse(self, name: &str) -> Option<Segment> {
        let hex = |range| {
            let digits: &str = name.get(range)?;
            let plain = |byte: u8| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte);
            if !digits.bytes().all(plain) {
                return None;
            }
            u32::from_str_radix(digits, 16).ok()
        };
        if name.len() != 24 {
            return None;
        }
        let (timeline, high, low) = (hex(0..8)?, hex(8..16)?, hex(16..24)?);
        let number = u64::from(high) * self.group() + u64::from(low);
        (timeline > 0 && u64::from(low) < self.group()).then_some(Segment { number, timeline })
    }
}

/// How a timeline came about: it and those before it, the oldest first, each with the position at
/// which it begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lineage(Vec<(u32, Lsn)>);

impl Lineage {
    /// From the content of the timeline's history file; the first timeline has none.
    ///
    /// # Errors
    /// What in it cannot be understood.
    pub fn parse(timeline: u32, history: &str) -> Result<Self, String> {
        let mut begins = Lsn(0);
        let mut all = Vec::new();
        for line in history.lines() {
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split_whitespace();
            let Some(first) = words.next() else { continue };
            let no = || format!("the history of timeline {timeline} has the line {line:?}");
            let number: u32 = first.parse().map_err(|_| no())?;
            let end: Lsn = words.next().and_then(|word| word.parse().ok()).ok_or_else(no)?;
            let rises = all.last().is_none_or(|(last, _)| *last < number) && number < timeline;
            if !rises || end < begins {
                return Err(no());
            }
            all.push((number, begins));
            begins = end;
        }
        all.push((timeline, begins));
        Ok(Self(all))
    }

    /// The newest timeline of it.
    #[must_use]
    pub fn timeline(&self) -> u32 {
        self.0.last().map_or(0, |(timeline, _)| *timeline)
    }

    /// The timeline whose file holds a segment: the newest that had begun by its end. A timeline
    /// that begins within a segment has a copy of what was in it before.
    #[must_use]
    pub fn owner(&self, number: u64, size: Size) -> Segment {
        let begun = |&&(_, begins): &&(u32, Lsn)| size.number(begins) <= number;
        let timeline = self.0.iter().rev().find(begun).map_or(0, |(timeline, _)| *timeline);
        Segment { number, timeline }
    }

    /// Whether this was written on one of these timelines: a position on a timeline, which it had
    /// reached before the next one began.
    #[must_use]
    pub fn has(&self, timeline: u32, at: Lsn) -> bool {
        let Some(place) = self.0.iter().position(|(number, _)| *number == timeline) else {
            return false;
        };
        self.0.get(place + 1).is_none_or(|(_, end)| at <= *end)
    }
}

impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (timeline, begins)) in self.0.iter().enumerate() {
            match n {
                0 => write!(f, "timeline {timeline}")?,
                _ => write!(f, ", from {begins} on {timeline}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_timeline_has_a_copy_of_the_segment_in_which_it_begins() {
        let size = Size::default();
        let text = "1\t0/5000028\tno recovery target specified\n\n3\t1/2000000\tbefore 2026\n";
        let lineage = Lineage::parse(4, text).unwrap();
        let owner = |number| lineage.owner(number, size).timeline;
        assert_eq!((owner(0), owner(4), owner(5)), (1, 1, 3));
        assert_eq!((owner(0x101), owner(0x102), owner(0x999)), (3, 4, 4));
        let lsn = |text: &str| text.parse::<Lsn>().unwrap();
        assert!(lineage.has(1, lsn("0/5000028")) && !lineage.has(1, lsn("0/5000030")));
        assert!(!lineage.has(2, lsn("0/1000000")), "an abandoned branch");
        assert!(lineage.has(4, lsn("9/0")));
        assert_eq!(lineage.to_string(), "timeline 1, from 0/5000028 on 3, from 1/2000000 on 4");
        for bad in ["x", "1", "1 2", "5 0/1", "2 0/9\n1 0/10", "1 0/9\n2 0/8"] {
            assert!(Lineage::parse(4, bad).is_err(), "{bad}");
        }
        assert_eq!(Lineage::parse(1, "").unwrap().owner(7, size).timeline, 1);
    }

    #[test]
    fn only_names_of_segments_are_taken_for_such() {
        let size = Size::default();
        let name = "0000000200000001000000FF";
        let segment = Segment { timeline: 2, number: 0x1FF };
        assert_eq!(size.parse(name), Some(segment));
        assert_eq!(size.file_name(segment), name);
        for bad in [
            "",
            "0000000200000001000000ff",
            "000000020000000100000100",
            "00000000000000010000000F",
            "+00000020000000100000001",
            "000000020000000100000001.partial",
            "00000002.history",
            "00000002000000010000000é",
        ] {
            assert_eq!(size.parse(bad), None, "{bad}");
        }
        assert!(Size::new(3 << 20).is_none() && Size::new(1 << 19).is_none());
    }

    proptest! {
        #[test]
        fn names_and_positions_round_trip(
            timeline in 1u32.., at in any::<u64>(), shift in 20u32..=30,
        ) {
            let size = Size::new(1 << shift).unwrap();
            let number = size.number(Lsn(at));
            let segment = Segment { number, timeline };
            prop_assert_eq!(size.parse(&size.file_name(segment)), Some(segment));
            prop_assert_eq!(size.start(number).0 + size.offset(Lsn(at)), at);
        }
    }
}
