//! Whether a server's data is part of another server's history.

use resurgam_model::database::Lsn;

/// How the data at hand relates to a primary's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kinship {
    /// As far as is known the primary went on from here: streaming can be tried.
    Fits,
    /// It holds something that the primary never had.
    Diverged,
}

/// Compares.
///
/// `timeline` and `position` are what the data at hand has reached. `history` is the primary's
/// history file: a line for each earlier timeline, with the position at which it was left.
pub(super) fn compare(
    timeline: u32,
    position: Lsn,
    primary_timeline: u32,
    history: &str,
) -> Kinship {
    if timeline == primary_timeline {
        return Kinship::Fits;
    }
    let left_at = history.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let number: u32 = words.next()?.parse().ok()?;
        let at: Lsn = words.next()?.parse().ok()?;
        (number == timeline).then_some(at)
    });
    match left_at {
        Some(at) if position <= at => Kinship::Fits,
        _ => Kinship::Diverged,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_fits_up_to_the_point_where_its_timeline_was_left() {
        let history = "1\t0/3000148\tno recovery target specified\n\n2\t0/5000000\treason\n";
        let lsn = |text: &str| text.parse().unwrap();
        let cases = [
            (3, "0/9000000", Kinship::Fits),
            (2, "0/5000000", Kinship::Fits),
            (2, "0/5000001", Kinship::Diverged),
            (1, "0/3000000", Kinship::Fits),
            (1, "0/4000000", Kinship::Diverged),
            (7, "0/1000000", Kinship::Diverged),
        ];
        for (timeline, position, expected) in cases {
            assert_eq!(compare(timeline, lsn(position), 3, history), expected, "{timeline}");
        }
    }
}
