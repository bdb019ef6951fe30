//! How many tasks of a limited kind may begin. Pure: both adapters ask here.

use std::collections::HashMap;

use resurgam_model::Timestamp;
use resurgam_model::limit::{Bucket, Limit};

/// How a capability with a limit stands.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    /// Tasks under a lease, by key; those without one under an empty key.
    pub(crate) running: HashMap<String, u32>,
    /// Its token bucket.
    pub(crate) bucket: Bucket,
    /// The token buckets of its keys, and when each had its last turn.
    pub(crate) keys: HashMap<String, (Bucket, Timestamp)>,
}

/// How many tasks may begin now, all keys together.
pub(crate) fn total(limit: &Limit, usage: &Usage, now: Timestamp, wanted: u32) -> u32 {
    let running = usage.running.values().fold(0_u32, |sum, count| sum.saturating_add(*count));
    let places = limit.max_running.map_or(u32::MAX, |max| max.saturating_sub(running));
    let tokens = limit.rate.map_or(u32::MAX, |rate| usage.bucket.whole(rate, now));
    wanted.min(places).min(tokens)
}

/// How many tasks of each key that waits may begin now. Keys whose last turn is longest ago come
/// first; who may begin none is left out. The empty key stands for tasks without one, which are
/// not limited per key.
pub(crate) fn by_key(
    limit: &Limit,
    usage: &Usage,
    waiting: Vec<String>,
    now: Timestamp,
    wanted: u32,
) -> Vec<(String, u32)> {
    let allowance = |key: &str| {
        if key.is_empty() {
            return wanted;
        }
        let running = usage.running.get(key).copied().unwrap_or_default();
        let places = limit.max_running_per_key.map_or(u32::MAX, |max| max.saturating_sub(running));
        let bucket = usage.keys.get(key).map(|(bucket, _)| *bucket).unwrap_or_default();
        let tokens = limit.rate_per_key.map_or(u32::MAX, |rate| bucket.whole(rate, now));
        wanted.min(places).min(tokens)
    };
    let mut allowed: Vec<_> = waiting
        .into_iter()
        .map(|key| (usage.keys.get(&key).map(|(_, turn)| *turn), allowance(&key), key))
        .filter(|(_, allowance, _)| *allowance > 0)
        .collect();
    allowed.sort_by(|(a, _, x), (b, _, y)| (a, x).cmp(&(b, y)));
    allowed.into_iter().map(|(_, allowance, key)| (key, allowance)).collect()
}

#[cfg(test)]
mod tests {
    use resurgam_model::Duration;
    use resurgam_model::limit::Rate;

    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(millis).unwrap()
    }

    #[test]
    fn the_tightest_limit_holds() {
        let usage = Usage { running: [("a".to_owned(), 3)].into(), ..Usage::default() };
        let rate = Rate { count: 2, per: Duration::from_secs(1) };
        let limit = Limit { max_running: Some(8), rate: Some(rate), ..Limit::default() };
        assert_eq!(total(&limit, &usage, at(0), 100), 2);
        assert_eq!(total(&Limit { rate: None, ..limit }, &usage, at(0), 100), 5);
        assert_eq!(total(&limit, &usage, at(0), 1), 1);
    }

    #[test]
    fn who_waited_longest_comes_first_and_who_has_enough_not_at_all() {
        let mut usage = Usage { running: [("full".to_owned(), 2)].into(), ..Usage::default() };
        usage.keys.insert("late".to_owned(), (Bucket::default(), at(9)));
        usage.keys.insert("early".to_owned(), (Bucket::default(), at(5)));
        let limit = Limit { max_running_per_key: Some(2), ..Limit::default() };
        let waiting = ["full", "late", "new", "", "early"].map(str::to_owned).to_vec();
        let allowed = by_key(&limit, &usage, waiting, at(10), 7);
        let expected = [("", 7), ("new", 2), ("early", 2), ("late", 2)];
        assert_eq!(allowed, expected.map(|(key, count)| (key.to_owned(), count)));
    }
}
