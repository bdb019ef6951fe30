//! Limits on how much of a kind of work is under way at once, and how fast it is begun.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Duration;

/// So many in so long. A token bucket: after a pause up to `count` may begin at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// How many tasks may begin, at least 1.
    #[schemars(range(min = 1))]
    pub count: u32,
    /// In how long, at least a millisecond.
    pub per: Duration,
}

/// What holds for the tasks of one capability. What is not given is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limit {
    /// Tasks under a lease at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_running: Option<u32>,
    /// Tasks of the same key under a lease at once. Tasks without a key are not counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_running_per_key: Option<u32>,
    /// How fast tasks begin.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// How fast tasks of the same key begin.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_per_key: Option<Rate>,
    /// Keys take turns, so that one with very many tasks does not hold up the others. Always so
    /// where something is limited per key. Tasks without a key are one key together.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub fair: bool,
}

impl Limit {
    /// Whether tasks have to be chosen key by key.
    #[must_use]
    pub fn by_key(&self) -> bool {
        self.fair || self.max_running_per_key.is_some() || self.rate_per_key.is_some()
    }

    /// What makes no sense in it, if anything.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        if *self == Self::default() {
            return Some("a limit must limit something: give max_running, max_running_per_key, rate, rate_per_key or fair".to_owned());
        }
        for (name, max) in
            [("max_running", self.max_running), ("max_running_per_key", self.max_running_per_key)]
        {
            if max == Some(0) {
                return Some(format!("{name} must be at least 1"));
            }
        }
        for (name, rate) in [("rate", self.rate), ("rate_per_key", self.rate_per_key)] {
            if rate.is_some_and(|rate| rate.count == 0 || rate.per < Duration::from_millis(1)) {
                return Some(format!(
                    "{name} needs a count of at least 1 and a `per` of at least 1ms"
                ));
            }
        }
        None
    }
}

/// How full a token bucket is. A new one is full.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bucket {
    /// How much was in it, and when; `None` for a full one.
    pub level: Option<(f64, Timestamp)>,
}

impl Bucket {
    /// Tokens in it now, at most the rate's count. A clock that went back adds nothing.
    #[must_use]
    pub fn tokens(&self, rate: Rate, now: Timestamp) -> f64 {
        let full = f64::from(rate.count);
        let Some((level, at)) = self.level else { return full };
        let passed = now.duration_since(at).as_secs_f64().max(0.0);
        let added = full * passed / rate.per.0.as_secs_f64().max(0.001);
        (level.max(0.0) + added).min(full)
    }

    /// Whole tokens in it now.
    #[must_use]
    pub fn whole(&self, rate: Rate, now: Timestamp) -> u32 {
        // A hair's breadth is added against sums such as 0.1 + 0.2.
        let tokens = (self.tokens(rate, now) + 1e-9).floor();
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to count")]
        {
            tokens as u32
        }
    }

    /// The bucket after so many were taken.
    #[must_use]
    pub fn taken(&self, rate: Rate, now: Timestamp, taken: u32) -> Self {
        Self { level: Some((self.tokens(rate, now) - f64::from(taken), now)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(millis).unwrap()
    }

    #[test]
    fn a_bucket_lets_through_its_burst_and_then_its_rate() {
        let rate = Rate { count: 10, per: Duration::from_secs(1) };
        let mut bucket = Bucket::default();
        assert_eq!(bucket.whole(rate, at(0)), 10);
        bucket = bucket.taken(rate, at(0), 10);
        assert_eq!(bucket.whole(rate, at(99)), 0);
        assert_eq!(bucket.whole(rate, at(100)), 1);
        assert_eq!(bucket.whole(rate, at(60_000)), 10);
        // A clock that goes back neither adds nor takes.
        bucket = bucket.taken(rate, at(500), 2);
        assert_eq!(bucket.whole(rate, at(0)), 3);
    }

    #[test]
    fn no_sequence_of_takings_exceeds_burst_plus_rate() {
        let rate = Rate { count: 5, per: Duration::from_millis(500) };
        let mut bucket = Bucket::default();
        let mut begun = 0;
        for millis in (0..10_000).step_by(7) {
            let may = bucket.whole(rate, at(millis)).min(3);
            begun += may;
            bucket = bucket.taken(rate, at(millis), may);
        }
        assert!((100..=105).contains(&begun), "{begun}");
    }

    #[test]
    fn limits_that_limit_nothing_or_everything_are_refused() {
        assert!(Limit::default().problem().is_some());
        assert!(Limit { max_running: Some(0), ..Limit::default() }.problem().is_some());
        let never = Rate { count: 0, per: Duration::from_secs(1) };
        assert!(Limit { rate: Some(never), ..Limit::default() }.problem().is_some());
        assert!(Limit { fair: true, ..Limit::default() }.problem().is_none());
    }
}
