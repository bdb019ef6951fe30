//! What was sent, what came, and when.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// A message that took longer was held up.
const SLOW: Duration = Duration::from_secs(1);

/// The books of one load.
#[derive(Default)]
pub struct Books {
    sent: HashMap<u64, Instant>,
    /// Of each receiver, in its order.
    came: Vec<Vec<(u64, Instant)>>,
}

impl Books {
    pub fn new(agents: usize) -> Self {
        Self { sent: HashMap::new(), came: vec![Vec::new(); agents] }
    }

    pub fn sent(&mut self, number: u64, at: Instant) {
        self.sent.insert(number, at);
    }

    pub fn came(&mut self, to: usize, number: u64, at: Instant) {
        self.came[to].push((number, at));
    }

    /// How many have not come, as far as the numbers tell.
    pub fn lacks(&self) -> usize {
        self.sent.len().saturating_sub(self.came.iter().map(Vec::len).sum())
    }

    /// What is wrong: nothing may be.
    pub fn balance(&self) -> Value {
        let mut times: HashMap<u64, u64> = HashMap::new();
        let mut disorder = 0;
        for came in &self.came {
            let mut greatest = None;
            for (number, _) in came {
                *times.entry(*number).or_default() += 1;
                disorder += u64::from(greatest.is_some_and(|greatest| *number < greatest));
                greatest = greatest.max(Some(*number));
            }
        }
        let lost = self.sent.keys().filter(|number| !times.contains_key(number)).count();
        json!({
            "sent": self.sent.len(), "lost": lost,
            "doubled": times.values().map(|times| times - 1).sum::<u64>(),
            "out_of_order": disorder,
        })
    }

    fn pairs(&self) -> impl Iterator<Item = (Instant, Instant)> {
        self.came.iter().flatten().filter_map(|(number, at)| Some((*self.sent.get(number)?, *at)))
    }

    /// Milliseconds from the sender's call to the receiver.
    pub fn latencies(&self) -> Value {
        let mut all: Vec<_> =
            self.pairs().map(|(sent, came)| (came - sent).as_secs_f64() * 1e3).collect();
        all.sort_by(f64::total_cmp);
        let part = |part: f64| all.get((all.len() as f64 * part) as usize).copied();
        json!({"count": all.len(), "p50": part(0.5), "p99": part(0.99), "p999": part(0.999), "max": all.last()})
    }

    /// What a receiver noticed of something that happened at `from` and was over at `to`.
    pub fn disturbance(&self, from: Instant, to: Instant) -> Value {
        let mut arrivals: Vec<_> =
            self.pairs().map(|(_, came)| came).filter(|came| (from..to).contains(came)).collect();
        arrivals.extend([from, to]);
        arrivals.sort();
        let silence = arrivals.windows(2).map(|two| two[1] - two[0]).max().unwrap_or_default();
        let after = |when: Instant| (when - from).as_secs_f64();
        let first = self.pairs().filter(|(sent, _)| *sent >= from).map(|(_, came)| came).min();
        let during = || self.pairs().filter(|(sent, _)| (from..to).contains(sent));
        let slowest = during().map(|(sent, came)| came - sent).max().unwrap_or_default();
        let held_up = during().filter(|(sent, came)| *came - *sent > SLOW);
        json!({
            "longest_silence_seconds": silence.as_secs_f64(),
            "first_sent_after_came_seconds": first.map(after),
            "slowest_seconds": slowest.as_secs_f64(),
            "nothing_held_up_any_more_seconds": held_up.map(|(_, came)| after(came)).fold(0.0, f64::max),
        })
    }
}
