//! How many workers a pool needs: a rule, and the patience that keeps it from flapping.

use std::collections::VecDeque;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Duration;

/// What the tasks of a pool ask for, and what is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Demand {
    /// Tasks that were handed in lately, per second.
    pub rate: f64,
    /// How long a task takes in the mean, in seconds; none when none has ended lately.
    pub seconds_per_task: Option<f64>,
    /// Tasks that could be claimed now.
    pub queue: u64,
    /// Tasks under a lease.
    pub running: u64,
    /// Agents that take such tasks.
    pub workers: u64,
    /// How many places such an agent has, in the mean.
    pub concurrency: f64,
}

/// How long a task is taken to last while none has ended.
const UNKNOWN_SECONDS: f64 = 1.0;

/// How many workers the demand needs, and why.
///
/// `rate × seconds per task` places are taken all the time by what comes in. What waits already
/// needs `queue × seconds per task ÷ drain_within` more, so that it is gone within that time.
/// What runs now holds its places for a while yet, so that there are never fewer than those.
#[must_use]
pub fn required(demand: &Demand, concurrency: u32, drain_within: Duration) -> (u64, String) {
    let seconds = demand.seconds_per_task.unwrap_or(UNKNOWN_SECONDS).max(0.0);
    let incoming = demand.rate.max(0.0) * seconds;
    let backlog = count(demand.queue) * seconds / drain_within.0.as_secs_f64().max(0.001);
    let places = (incoming + backlog).max(if demand.queue > 0 { 1.0 } else { 0.0 });
    let places = places.max(count(demand.running.min(places_of(demand))));
    let each = f64::from(concurrency.max(1));
    let workers = whole((places / each - 1e-9).ceil());
    let reason = format!(
        "{:.2} tasks/s × {seconds:.3} s + {} waiting × {seconds:.3} s ÷ {drain_within}, {} running, \
         ÷ {each} at once",
        demand.rate, demand.queue, demand.running
    );
    (workers, reason)
}

/// The places that running tasks can take; more are held only by leases of the lost.
fn places_of(demand: &Demand) -> u64 {
    whole(count(demand.workers) * demand.concurrency.max(1.0))
}

#[allow(clippy::cast_precision_loss, reason = "numbers of tasks are far below 2^52")]
fn count(number: u64) -> f64 {
    number as f64
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "such casts are cut to the nearest number that there is"
)]
fn whole(number: f64) -> u64 {
    number as u64
}

/// The size of a pool over time: up at once, down only to what was never exceeded for a while.
#[derive(Clone, Debug)]
pub struct Sizing {
    min: u16,
    max: u16,
    down_after: Duration,
    /// The wishes of the last while, with the time of each; those that a later and larger one
    /// makes meaningless are left out.
    wishes: VecDeque<(std::time::Duration, u16)>,
    began: Option<std::time::Duration>,
}

impl Sizing {
    /// A pool between these bounds, which shrinks after so long.
    #[must_use]
    pub fn new(min: u16, max: u16, down_after: Duration) -> Self {
        Self { min, max: max.max(min), down_after, wishes: VecDeque::new(), began: None }
    }

    /// The size from now on, given the time since any one moment, how many are required and how
    /// many there are.
    pub fn decide(&mut self, now: std::time::Duration, required: u64, present: u16) -> u16 {
        let wish = u16::try_from(required).unwrap_or(u16::MAX).clamp(self.min, self.max);
        let began = *self.began.get_or_insert(now);
        let since = now.saturating_sub(self.down_after.0);
        while self.wishes.front().is_some_and(|(at, _)| *at < since) {
            self.wishes.pop_front();
        }
        while self.wishes.back().is_some_and(|(_, old)| *old <= wish) {
            self.wishes.pop_back();
        }
        self.wishes.push_back((now, wish));
        let highest = self.wishes.front().map_or(wish, |(_, wish)| *wish);
        // Before it has been watched for long enough nobody knows what was never exceeded.
        let known = now.saturating_sub(began) >= self.down_after.0;
        let least = if known { highest } else { highest.max(present) };
        least.clamp(self.min, self.max)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration as Span;

    use proptest::prelude::*;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn demand(rate: f64, seconds: f64, queue: u64) -> Demand {
        Demand { rate, seconds_per_task: Some(seconds), queue, ..Demand::default() }
    }

    #[test]
    fn it_is_rate_times_duration_by_concurrency_and_what_the_backlog_needs() {
        assert_eq!(required(&demand(10.0, 2.0, 0), 4, MINUTE).0, 5);
        assert_eq!(required(&demand(10.0, 2.1, 0), 4, MINUTE).0, 6);
        assert_eq!(required(&demand(10.0, 2.0, 120), 4, MINUTE).0, 6);
        assert_eq!(required(&demand(0.0, 0.001, 1), 4, MINUTE).0, 1);
        assert_eq!(required(&Demand::default(), 4, MINUTE).0, 0);
        let unknown = Demand { queue: 600, ..Demand::default() };
        assert_eq!(required(&unknown, 1, MINUTE).0, 10);
        let busy = Demand { running: 9, workers: 3, concurrency: 4.0, ..Demand::default() };
        assert_eq!(required(&busy, 4, MINUTE).0, 3);
        // Leases of workers that are lost ask for nothing.
        assert_eq!(required(&Demand { workers: 1, ..busy }, 4, MINUTE).0, 1);
    }

    #[test]
    fn it_grows_at_once_and_shrinks_after_a_while() {
        let mut sizing = Sizing::new(1, 8, Duration::from_secs(10));
        let mut at =
            |second, required, present| sizing.decide(Span::from_secs(second), required, present);
        assert_eq!(at(0, 1, 3), 3);
        assert_eq!(at(1, 5, 3), 5);
        assert_eq!(at(2, 99, 5), 8);
        assert_eq!(at(3, 0, 8), 8);
        assert_eq!(at(9, 4, 8), 8);
        assert_eq!(at(12, 0, 8), 8);
        assert_eq!(at(13, 0, 8), 4);
        assert_eq!(at(19, 0, 4), 4);
        assert_eq!(at(20, 0, 4), 1);
    }

    proptest! {
        #[test]
        fn more_demand_never_needs_fewer(
            rate in 0.0..1e6, seconds in 0.0..1e4, queue in 0_u64..1_000_000, more in 0.0..1e3,
            concurrency in 1_u32..1000,
        ) {
            let base = required(&demand(rate, seconds, queue), concurrency, MINUTE).0;
            prop_assert!(required(&demand(rate + more, seconds, queue), concurrency, MINUTE).0 >= base);
            prop_assert!(required(&demand(rate, seconds + more, queue), concurrency, MINUTE).0 >= base);
            prop_assert!(required(&demand(rate, seconds, queue + 1), concurrency, MINUTE).0 >= base);
            prop_assert!(required(&demand(rate, seconds, queue), concurrency + 1, MINUTE).0 <= base);
            // What it names is enough for what comes in.
            let places = count(base) * f64::from(concurrency);
            prop_assert!(places + 1e-3 >= rate * seconds);
        }

        #[test]
        fn it_stays_within_bounds_meets_the_need_and_never_flaps(
            needs in prop::collection::vec(0_u64..40, 1..200), min in 1_u16..5, more in 0_u16..20,
        ) {
            let max = min + more;
            let mut sizing = Sizing::new(min, max, Duration::from_secs(10));
            let mut present = min;
            let mut last_wish = Vec::new();
            for (second, need) in needs.into_iter().enumerate() {
                let now = Span::from_secs(second as u64);
                let next = sizing.decide(now, need, present);
                let wish = u16::try_from(need).unwrap().clamp(min, max);
                prop_assert!((min..=max).contains(&next));
                prop_assert!(next >= wish, "less than needed");
                last_wish.push(wish);
                let window = last_wish.iter().rev().take(11).copied().max().unwrap();
                prop_assert!(next <= window.max(present), "grew without need");
                prop_assert!(next >= window, "shrank below what was needed within the time");
                present = next;
            }
        }
    }
}
