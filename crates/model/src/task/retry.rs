//! How often and how far apart a task is tried.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Duration;

/// How the wait grows from one failed try to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Backoff {
    /// It doubles with each failure.
    #[default]
    Exponential,
    /// It stays the same.
    Fixed,
}

/// How often and how far apart a task is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RetryPolicy {
    /// Claims that may end in failure or in a lost lease before the task is dead; at least 1.
    #[schemars(range(min = 1))]
    pub max_attempts: u32,
    /// How the wait grows.
    pub kind: Backoff,
    /// The wait after the first failure.
    pub backoff: Duration,
    /// The longest wait.
    pub max_backoff: Duration,
    /// How much of each wait is left to chance, in per cent: with 100 it is anything between
    /// nothing and the whole wait. Keeps many tasks that failed together from coming back
    /// together.
    #[schemars(range(max = 100))]
    pub jitter: u8,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: 25,
            kind: Backoff::Exponential,
            backoff: Duration::from_millis(500),
            max_backoff: Duration::from_secs(300),
            jitter: 20,
        }
    }
}

impl RetryPolicy {
    /// The longest wait before the try that follows failure number `attempt` (1 is the first).
    #[must_use]
    pub fn delay_after(&self, attempt: u32) -> Duration {
        let doublings = match self.kind {
            Backoff::Exponential => attempt.saturating_sub(1).min(32),
            Backoff::Fixed => 0,
        };
        let millis = self.backoff.as_millis().saturating_mul(1_u64 << doublings);
        Duration::from_millis(millis.min(self.max_backoff.as_millis()))
    }

    /// The wait itself. `chance` is at random from 0 up to 1; outside of that it is taken for
    /// the nearer of the two.
    #[must_use]
    pub fn delay_with(&self, attempt: u32, chance: f64) -> Duration {
        let taken = f64::from(self.jitter.min(100)) / 100.0 * chance.clamp(0.0, 1.0);
        Duration(self.delay_after(attempt).0.mul_f64(1.0 - taken))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> RetryPolicy {
        RetryPolicy {
            max_attempts: 5,
            backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(1),
            jitter: 0,
            ..RetryPolicy::default()
        }
    }

    fn waits(policy: &RetryPolicy) -> Vec<u64> {
        (1..=6).map(|n| policy.delay_after(n).as_millis()).collect()
    }

    #[test]
    fn backoff_doubles_up_to_its_limit_and_never_overflows() {
        assert_eq!(waits(&policy()), [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(policy().delay_after(u32::MAX).as_millis(), 1000);
    }

    #[test]
    fn a_fixed_backoff_stays_the_same() {
        let fixed = RetryPolicy { kind: Backoff::Fixed, ..policy() };
        assert_eq!(waits(&fixed), [100; 6]);
    }

    #[test]
    fn jitter_takes_up_to_its_share() {
        let half = RetryPolicy { jitter: 50, ..policy() };
        let with = |chance| half.delay_with(1, chance).as_millis();
        assert_eq!([with(0.0), with(0.5), with(1.0), with(7.0)], [100, 75, 50, 50]);
    }
}
