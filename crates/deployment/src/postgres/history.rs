//! Whether a server's data is part of another server's history.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use resurgam_model::database::Lsn;

/// How much of the log is compared.
const COMPARED: u64 = 8192;

/// How many timelines beyond the one that the server knows of are looked at. It learns of one
/// only with a checkpoint, and may have been killed before.
const UNKNOWN_TIMELINES: u32 = 3;

/// How the data at hand relates to a primary's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kinship {
    /// As far as is known the primary went on from here: streaming can be tried.
    Fits,
    /// It holds something that the primary never had.
    Diverged,
    /// As before, on a timeline that has the same number as one of the primary's and is another.
    /// PostgreSQL takes the two for one: neither streaming nor rewinding would notice.
    Namesake,
}

/// A primary's history.
#[derive(Clone, Debug)]
pub(super) struct Lineage {
    /// Its timeline.
    pub(super) timeline: u32,
    /// What it has reached.
    pub(super) position: Lsn,
    /// Its history file: a line for each earlier timeline, with the position at which it was
    /// left.
    pub(super) history: String,
}

impl Lineage {
    /// Up to where it has been on a timeline; none if it never was.
    fn end_of(&self, timeline: u32) -> Option<Lsn> {
        if timeline == self.timeline {
            return Some(self.position);
        }
        self.history.lines().find_map(|line| {
            let mut words = line.split_whitespace();
            let number: u32 = words.next()?.parse().ok()?;
            let at: Lsn = words.next()?.parse().ok()?;
            (number == timeline).then_some(at)
        })
    }
}

/// Compares by name. `timeline` and `position` are what the data at hand has reached.
pub(super) fn compare(timeline: u32, position: Lsn, primary: &Lineage) -> Kinship {
    match primary.end_of(timeline) {
        Some(end) if position <= end => Kinship::Fits,
        // A standby never has more than its primary.
        Some(_) if timeline == primary.timeline => Kinship::Namesake,
        _ => Kinship::Diverged,
    }
}

/// A piece of a file of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) file: String,
    pub(super) offset: u64,
    pub(super) length: u64,
    /// It ends where the data at hand does, not before.
    pub(super) reaches_position: bool,
}

/// What must be equal if timelines of the same number are the same: for each, the last that
/// both have by name.
pub(super) fn pieces(timeline: u32, position: Lsn, primary: &Lineage, size: u64) -> Vec<Piece> {
    let newest = timeline.saturating_add(UNKNOWN_TIMELINES).min(primary.timeline);
    (timeline..=newest)
        .filter_map(|timeline| Some((timeline, primary.end_of(timeline)?)))
        .filter_map(|(timeline, end)| {
            let last = end.min(position).0.checked_sub(1)?;
            let segment = last.checked_div(size)?;
            let inside = last % size + 1;
            let length = inside.min(COMPARED);
            // The name counts segments in groups of 4 GiB.
            let group = 0x1_0000_0000_u64.checked_div(size)?;
            let file = format!(
                "{timeline:08X}{:08X}{:08X}",
                segment.checked_div(group)?,
                segment.checked_rem(group)?
            );
            let reaches_position = position <= end;
            Some(Piece { file, offset: inside - length, length, reaches_position })
        })
        .collect()
}

/// Reads a piece; none if there is no such.
pub(super) fn read(file: &Path, piece: &Piece) -> Option<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(piece.length).ok()?];
    File::open(file).ok()?.read_exact_at(&mut bytes, piece.offset).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lsn(text: &str) -> Lsn {
        text.parse().unwrap()
    }

    fn primary() -> Lineage {
        let history = "1\t0/3000148\tno recovery target specified\n\n2\t0/5000000\treason\n";
        Lineage { timeline: 3, position: lsn("1/2000010"), history: history.to_owned() }
    }

    #[test]
    fn data_fits_up_to_the_point_where_its_timeline_was_left() {
        let cases = [
            (3, "0/9000000", Kinship::Fits),
            (3, "1/2000010", Kinship::Fits),
            (3, "1/2000011", Kinship::Namesake),
            (2, "0/5000000", Kinship::Fits),
            (2, "0/5000001", Kinship::Diverged),
            (1, "0/3000000", Kinship::Fits),
            (1, "0/4000000", Kinship::Diverged),
            (7, "0/1000000", Kinship::Diverged),
        ];
        for (timeline, position, expected) in cases {
            let found = compare(timeline, lsn(position), &primary());
            assert_eq!(found, expected, "{timeline} {position}");
        }
    }

    #[test]
    fn the_log_is_compared_before_the_point_where_the_two_may_part() {
        const SIZE: u64 = 16 * 1024 * 1024;
        let piece = |file: &str, offset, length, reaches_position| {
            let file = file.to_owned();
            Piece { file, offset, length, reaches_position }
        };
        assert_eq!(
            pieces(1, lsn("0/4000000"), &primary(), SIZE),
            [
                piece("000000010000000000000003", 0, 0x148, false),
                // The end of a segment is not the beginning of the next.
                piece("000000020000000000000003", SIZE - 8192, 8192, true),
                piece("000000030000000000000003", SIZE - 8192, 8192, true),
            ]
        );
        assert_eq!(
            pieces(3, lsn("1/3000000"), &primary(), SIZE),
            [piece("000000030000000100000002", 0, 0x10, false)]
        );
        assert_eq!(pieces(7, lsn("1/3000000"), &primary(), SIZE), []);
        assert_eq!(pieces(1, lsn("0/0"), &primary(), SIZE), []);
    }
}
