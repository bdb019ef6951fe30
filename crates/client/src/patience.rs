//! How long, and how often, a call is repeated.

use std::time::{Duration as StdDuration, Instant};

use resurgam_model::Duration;

/// How long a caller goes on trying. The waits between the tries are chosen at random between
/// nothing and a bound that doubles from `first` to `max` ("full jitter"), so that many callers
/// do not come back all at once when a server does. `Retry-After` is not followed: it counts in
/// whole seconds, and recovery is faster than that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Give up after so long; none for never.
    pub total: Option<Duration>,
    /// Bound of the first wait.
    pub first: Duration,
    /// Bound of the longest wait.
    pub max: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            total: Some(Duration::from_secs(60)),
            first: Duration::from_millis(50),
            max: Duration::from_secs(1),
        }
    }
}

impl Patience {
    /// Never gives up.
    #[must_use]
    pub fn endless() -> Self {
        Self { total: None, ..Self::default() }
    }

    /// Begins to wait.
    #[must_use]
    pub fn start(&self) -> Backoff {
        let until = self.total.and_then(|total| Instant::now().checked_add(total.0));
        Backoff { bound: self.first.0.min(self.max.0), max: self.max.0, until }
    }
}

/// The waits of one caller.
#[derive(Clone, Debug)]
pub struct Backoff {
    bound: StdDuration,
    max: StdDuration,
    until: Option<Instant>,
}

impl Backoff {
    /// How long to wait now; none when patience is at its end.
    pub fn next_delay(&mut self) -> Option<StdDuration> {
        let delay = jitter(self.bound);
        self.bound = self.bound.saturating_mul(2).min(self.max);
        let Some(until) = self.until else { return Some(delay) };
        let left = until.saturating_duration_since(Instant::now());
        // The last try is made when time is up, not earlier.
        if left.is_zero() { None } else { Some(delay.min(left)) }
    }
}

/// A random length of time from nothing up to `bound`.
fn jitter(bound: StdDuration) -> StdDuration {
    // The lower half of a version 4 UUID is random but for its two highest bits.
    let (_, random) = uuid::Uuid::new_v4().as_u64_pair();
    let share = (random & 0xFFFF_FFFF) as f64 / f64::from(u32::MAX);
    bound.mul_f64(share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_random_and_their_bound_doubles_up_to_the_longest() {
        let patience = Patience {
            total: None,
            first: Duration::from_millis(10),
            max: Duration::from_millis(80),
        };
        for (tries, bound) in [(1, 10), (2, 20), (3, 40), (4, 80), (9, 80)] {
            let longest = (0..200)
                .filter_map(|_| {
                    let mut backoff = patience.start();
                    (0..tries).filter_map(|_| backoff.next_delay()).last()
                })
                .max()
                .unwrap();
            assert!(longest <= StdDuration::from_millis(bound), "{longest:?}");
            assert!(longest > StdDuration::from_millis(bound / 2), "{longest:?}");
        }
    }

    #[test]
    fn patience_ends() {
        let total = Some(Duration::from_millis(0));
        assert_eq!(Patience { total, ..Patience::default() }.start().next_delay(), None);
    }
}
