//! Which standby becomes primary, and what that would lose.

use std::time::{Duration, Instant};

use resurgam_model::ComponentName;
use resurgam_model::database::Lsn;
use serde::{Deserialize, Serialize};

/// A standby that could be promoted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub name: ComponentName,
    /// Its timeline.
    pub timeline: u32,
    /// What it has on disk.
    pub received: Lsn,
}

/// The decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// Who.
    pub name: ComponentName,
    /// It is known that nothing acknowledged is missing.
    pub complete: bool,
    /// What may be missing, in time; none when that is not known.
    pub loss_ms: Option<u64>,
    /// What may be missing, in bytes of write-ahead log; none when that is not known.
    pub loss_bytes: Option<u64>,
}

/// Chooses the most advanced candidate: the latest timeline, then the furthest position; the
/// standby recorded as complete wins a tie.
///
/// `samples` are positions of the lost primary over time, `fault` is when its loss was first
/// suspected. All candidates descend from the same primary, so whoever is at least as far
/// as the complete standby is complete as well.
#[must_use]
pub fn choose(
    candidates: &[Candidate],
    complete: Option<&ComponentName>,
    samples: &[(Instant, Lsn)],
    fault: Instant,
) -> Option<Choice> {
    let best = candidates.iter().max_by_key(|candidate| {
        (candidate.timeline, candidate.received, Some(&candidate.name) == complete)
    })?;
    let reference = complete.and_then(|name| candidates.iter().find(|c| c.name == *name));
    if reference.is_some() {
        let name = best.name.clone();
        return Some(Choice { name, complete: true, loss_ms: Some(0), loss_bytes: Some(0) });
    }
    let last = samples.last().map(|(_, position)| *position);
    let loss_bytes = last.map(|last| last.bytes_ahead_of(best.received));
    // It was seen to accept writes up to its last position, whatever made people suspect it before.
    let fault = samples.last().map_or(fault, |(at, _)| fault.max(*at));
    // The latest moment at which the primary had nothing that the candidate lacks.
    let safe = samples.iter().rev().find(|(_, position)| *position <= best.received);
    let loss = safe.map(|(at, _)| fault.saturating_duration_since(*at));
    Some(Choice {
        name: best.name.clone(),
        complete: false,
        loss_ms: loss.map(as_millis),
        loss_bytes,
    })
}

fn as_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(name: &str, timeline: u32, received: u64) -> Candidate {
        Candidate { name: ComponentName::new(name).unwrap(), timeline, received: Lsn(received) }
    }

    #[test]
    fn the_most_advanced_wins_and_a_later_timeline_beats_a_longer_one() {
        let now = Instant::now();
        let candidates = [candidate("a", 1, 900), candidate("b", 2, 500), candidate("c", 2, 400)];
        let choice = choose(&candidates, None, &[], now).unwrap();
        assert_eq!(choice.name.as_str(), "b");
        assert_eq!((choice.complete, choice.loss_ms), (false, None), "unknown is not zero");
        assert_eq!(choose(&[], None, &[], now), None);
    }

    #[test]
    fn whoever_is_as_far_as_the_complete_one_loses_nothing() {
        let now = Instant::now();
        let complete = ComponentName::new("b").unwrap();
        let candidates = [candidate("a", 1, 900), candidate("b", 1, 500)];
        let choice = choose(&candidates, Some(&complete), &[], now).unwrap();
        assert_eq!((choice.name.as_str(), choice.complete), ("a", true));
        let without = choose(&candidates[..1], Some(&complete), &[], now).unwrap();
        assert!(!without.complete, "the complete one is not there to compare with");
    }

    #[test]
    fn the_loss_is_counted_from_the_last_moment_at_which_nothing_was_missing() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let samples = [(at(0), Lsn(100)), (at(100), Lsn(200)), (at(200), Lsn(300))];
        let choice = choose(&[candidate("a", 1, 250)], None, &samples, at(250)).unwrap();
        assert_eq!((choice.loss_ms, choice.loss_bytes), (Some(150), Some(50)));
        let revived = choose(&[candidate("a", 1, 250)], None, &samples, at(50)).unwrap();
        assert_eq!(revived.loss_ms, Some(100), "it wrote on after the first sign");
        let far_behind = choose(&[candidate("a", 1, 50)], None, &samples, at(250)).unwrap();
        assert_eq!(far_behind.loss_ms, None);
    }
}
