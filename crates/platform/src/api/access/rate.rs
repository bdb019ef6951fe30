//! How many requests one caller may make.
//!
//! The generic cell rate algorithm: of each caller one moment is kept, the one up to which its
//! requests are paid for. It may lie ahead of now by as much as the burst allows.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::access::Rate;

/// Callers that are remembered. Who was silent long enough to have its whole burst again is
/// forgotten first.
const MOST: usize = 100_000;

/// Limits callers of a kind.
#[derive(Debug)]
pub(super) struct Limiter<K> {
    /// One request costs so much time.
    cost: Duration,
    /// So far ahead of now may be paid.
    ahead: Duration,
    start: Instant,
    paid: Mutex<HashMap<K, Duration>>,
}

impl<K: Hash + Eq> Limiter<K> {
    pub(super) fn new(rate: Rate) -> Self {
        let cost = Duration::from_secs(1) / rate.per_second.max(1);
        Self {
            cost,
            ahead: cost.saturating_mul(rate.burst.max(1)),
            start: Instant::now(),
            paid: Mutex::default(),
        }
    }

    /// Counts a request. An error says after how long the caller may try again.
    pub(super) fn take(&self, caller: K) -> Result<(), Duration> {
        let now = self.start.elapsed();
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        let before = paid.get(&caller).copied().unwrap_or_default();
        let after = pay(before, now, self.cost, self.ahead)?;
        if paid.len() >= MOST && !paid.contains_key(&caller) {
            paid.retain(|_, until| *until > now);
            if paid.len() >= MOST {
                // A hundred thousand at once is not one caller too many but an attack.
                return Err(self.cost.max(Duration::from_secs(1)));
            }
        }
        paid.insert(caller, after);
        Ok(())
    }

    /// Whether the caller has used up what it may; counts nothing.
    pub(super) fn is_spent(&self, caller: &K) -> Result<(), Duration> {
        let now = self.start.elapsed();
        let paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        let before = paid.get(caller).copied().unwrap_or_default();
        pay(before, now, self.cost, self.ahead).map(|_| ())
    }
}

/// Up to when it is paid after one more request, or how long to wait for that.
fn pay(
    paid: Duration,
    now: Duration,
    cost: Duration,
    ahead: Duration,
) -> Result<Duration, Duration> {
    let after = paid.max(now).saturating_add(cost);
    match after.saturating_sub(now).checked_sub(ahead) {
        Some(over) if !over.is_zero() => Err(over),
        _ => Ok(after),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_burst_is_allowed_and_then_the_rate() {
        let (cost, ahead) = (Duration::from_millis(100), Duration::from_millis(300));
        let mut paid = Duration::ZERO;
        let now = Duration::from_secs(9);
        for _ in 0..3 {
            paid = pay(paid, now, cost, ahead).unwrap();
        }
        assert_eq!(pay(paid, now, cost, ahead), Err(cost));
        assert!(pay(paid, now + cost, cost, ahead).is_ok());
        assert!(pay(paid, now + cost / 2, cost, ahead).is_err());
    }

    #[test]
    fn callers_do_not_share() {
        let limiter = Limiter::new(Rate { per_second: 1, burst: 2 });
        assert!(limiter.take("a").is_ok() && limiter.take("a").is_ok());
        assert!(limiter.take("a").is_err() && limiter.is_spent(&"a").is_err());
        assert!(limiter.is_spent(&"b").is_ok() && limiter.take("b").is_ok());
    }

    proptest! {
        /// Over any stretch of time no more than the rate and one burst, and whoever waits as
        /// long as it was told is let in.
        #[test]
        fn never_more_than_rate_and_burst(
            gaps in prop::collection::vec(0_u64..400, 1..200),
            per_second in 1_u32..50,
            burst in 1_u32..20,
        ) {
            let cost = Duration::from_secs(1) / per_second;
            let ahead = cost * burst;
            let (mut now, mut paid, mut taken) = (Duration::ZERO, Duration::ZERO, 0_u32);
            for gap in gaps {
                now += Duration::from_millis(gap);
                match pay(paid, now, cost, ahead) {
                    Ok(after) => {
                        paid = after;
                        taken += 1;
                    }
                    Err(wait) => prop_assert!(pay(paid, now + wait, cost, ahead).is_ok()),
                }
                let most = now.as_secs_f64() * f64::from(per_second) + f64::from(burst);
                prop_assert!(f64::from(taken) <= most + 0.001, "{taken} of {most}");
            }
        }
    }
}
