//! The books of a drill: what was acknowledged, and what came of it.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use resurgam_model::{MessageId, TaskId, Timestamp};

/// A task that the platform said it has.
#[derive(Clone, Debug)]
struct Entry {
    /// When it was handed in.
    sent: Timestamp,
    /// When it was acknowledged.
    acknowledged: Timestamp,
    /// The result that it must have.
    expected: String,
    /// The messages that announced its end. More than one means that it took effect more than
    /// once: the message is written in the transaction that completes the task. The same
    /// message delivered twice is one.
    effects: BTreeSet<MessageId>,
    /// A result that was not the expected one.
    wrong: Option<String>,
}

/// The books. Shared by all agents of a drill.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: Mutex<HashMap<TaskId, Entry>>,
    /// Effects of tasks whose acknowledgement never arrived, or has not yet.
    early: Mutex<HashMap<TaskId, BTreeSet<MessageId>>>,
}

/// What the books say about a stretch of time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    /// Tasks acknowledged.
    pub acknowledged: u64,
    /// Those that have not taken effect, with the time of their acknowledgement.
    pub open: Vec<(TaskId, Timestamp)>,
    /// Tasks that took effect more than once.
    pub duplicated: u64,
    /// Results that were wrong.
    pub wrong: Vec<String>,
}

impl Ledger {
    fn entries(&self) -> std::sync::MutexGuard<'_, HashMap<TaskId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A task was acknowledged.
    pub fn acknowledged(&self, id: TaskId, sent: Timestamp, expected: String) {
        let acknowledged = Timestamp::now();
        let mut early = self.early.lock().unwrap_or_else(PoisonError::into_inner);
        let effects = early.remove(&id).unwrap_or_default();
        self.entries().insert(id, Entry { sent, acknowledged, expected, effects, wrong: None });
    }

    /// A message said that a task was completed with this result.
    pub fn took_effect(&self, id: TaskId, message: MessageId, result: &str) {
        let mut early = self.early.lock().unwrap_or_else(PoisonError::into_inner);
        match self.entries().get_mut(&id) {
            Some(entry) => {
                entry.effects.insert(message);
                if entry.expected != result {
                    entry.wrong = Some(format!("task {id}: {result:?} is not the hash"));
                }
            }
            None => {
                early.entry(id).or_default().insert(message);
            }
        }
    }

    /// The first acknowledgement of a task that was handed in at or after this moment.
    #[must_use]
    pub fn first_acknowledged_after(&self, moment: Timestamp) -> Option<Timestamp> {
        self.entries()
            .values()
            .filter(|entry| entry.sent >= moment)
            .map(|entry| entry.acknowledged)
            .min()
    }

    /// The tasks that were acknowledged from `from` to `to`.
    #[must_use]
    pub fn acknowledged_within(&self, from: Timestamp, to: Timestamp) -> Vec<(TaskId, Timestamp)> {
        let entries = self.entries();
        let these = entries.iter().map(|(id, entry)| (*id, entry.acknowledged));
        these.filter(|(_, at)| (from..=to).contains(at)).collect()
    }

    /// The longest time between `from` and `to` in which no task was acknowledged.
    #[must_use]
    pub fn longest_silence(&self, from: Timestamp, to: Timestamp) -> Duration {
        let within = self.acknowledged_within(from, to);
        let mut moments: Vec<_> = within.into_iter().map(|(_, at)| at).collect();
        moments.extend([from, to]);
        moments.sort();
        let gaps = moments.windows(2).filter_map(|two| match two {
            [before, after] => Duration::try_from(after.duration_since(*before)).ok(),
            _ => None,
        });
        gaps.max().unwrap_or_default()
    }

    /// The balance over what was acknowledged from `from` on.
    #[must_use]
    pub fn balance(&self, from: Timestamp) -> Balance {
        let mut balance = Balance::default();
        for (id, entry) in self.entries().iter() {
            if entry.acknowledged < from {
                continue;
            }
            balance.acknowledged += 1;
            balance.duplicated += u64::from(entry.effects.len() > 1);
            if entry.effects.is_empty() {
                balance.open.push((*id, entry.acknowledged));
            }
            balance.wrong.extend(entry.wrong.clone());
        }
        balance
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redelivery_is_no_second_effect_but_a_second_message_is() {
        let ledger = Ledger::default();
        let (task, other) = (TaskId::new(), TaskId::new());
        let start = Timestamp::now();
        let (first, second) = (MessageId::new(), MessageId::new());
        // The message may overtake the acknowledgement.
        ledger.took_effect(task, first, "x");
        ledger.acknowledged(task, start, "x".to_owned());
        ledger.took_effect(task, first, "x");
        ledger.acknowledged(other, start, "y".to_owned());
        let balance = ledger.balance(start);
        assert_eq!((balance.acknowledged, balance.duplicated, balance.open.len()), (2, 0, 1));
        ledger.took_effect(task, second, "x");
        ledger.took_effect(other, MessageId::new(), "wrong");
        let balance = ledger.balance(start);
        assert_eq!((balance.duplicated, balance.open.len(), balance.wrong.len()), (1, 0, 1));
    }
}
