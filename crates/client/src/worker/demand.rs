//! How many tasks a worker wants.
//!
//! It wants as many as it can work on at once, and those that it expects to begin within the time
//! that it is allowed to look ahead: by then the next ones would not be here yet. How many these
//! are follows from how long tasks take. Long tasks are never taken before there is a place for
//! them, and however short they are, [`MAX_AHEAD`] is the most.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration as StdDuration;

use tokio::sync::Notify;

/// The most tasks in one claim.
pub(super) const MAX_CLAIM: usize = 256;
/// The most tasks that are claimed before there is a place for them.
pub(super) const MAX_AHEAD: usize = 512;
/// How much the last task counts in the mean time of tasks.
const WEIGHT: f64 = 0.1;

/// What is wanted and what is there.
pub(super) struct Demand {
    places: usize,
    ahead: StdDuration,
    counts: Mutex<Counts>,
    changed: Notify,
}

struct Counts {
    /// Tasks that are here, and those that are being asked for.
    held: usize,
    /// The mean time of a task in seconds, once there was one.
    mean: Option<f64>,
    /// The last claim got all that it asked for: there is likely more.
    more: bool,
}

impl Demand {
    pub(super) fn new(places: usize, ahead: StdDuration) -> Self {
        let counts = Counts { held: 0, mean: None, more: false };
        Self { places, ahead, counts: Mutex::new(counts), changed: Notify::new() }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until tasks are wanted, and notes that they are being asked for. Who is only to
    /// help waits also until there is likely more than the others ask for.
    pub(super) async fn ask(&self, helper: bool) -> Asked<'_> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(count) = self.take(helper) {
                return Asked { demand: self, left: count };
            }
            changed.await;
        }
    }

    fn take(&self, helper: bool) -> Option<usize> {
        let mut counts = self.counts();
        if helper && !counts.more {
            return None;
        }
        let ahead = counts.mean.map_or(0, |mean| ahead(self.places, self.ahead, mean));
        let free = (self.places + ahead).saturating_sub(counts.held);
        // Half of what is kept in store is fetched at once, rather than one by one.
        if free < (ahead / 2).max(1) {
            return None;
        }
        let count = free.min(MAX_CLAIM);
        counts.held += count;
        Some(count)
    }

    /// A task is here no more.
    pub(super) fn gone(&self) {
        self.give_back(1);
    }

    /// How long a task took.
    pub(super) fn took(&self, time: StdDuration) {
        let time = time.as_secs_f64();
        let mut counts = self.counts();
        counts.mean = Some(counts.mean.map_or(time, |mean| mean + WEIGHT * (time - mean)));
    }

    fn give_back(&self, count: usize) {
        let mut counts = self.counts();
        counts.held = counts.held.saturating_sub(count);
        drop(counts);
        if count > 0 {
            self.changed.notify_waiters();
        }
    }
}

/// So many tasks are begun within a time, when each takes `mean` seconds.
fn ahead(places: usize, time: StdDuration, mean: f64) -> usize {
    let begun = places as f64 * time.as_secs_f64() / mean.max(1e-9);
    // Rounds down, and a float too large becomes the largest number.
    (begun as usize).min(MAX_AHEAD)
}

/// Tasks that are being asked for; those that did not come are not, once this is dropped.
pub(super) struct Asked<'a> {
    demand: &'a Demand,
    left: usize,
}

impl Asked<'_> {
    /// How many.
    pub(super) fn count(&self) -> u32 {
        u32::try_from(self.left).unwrap_or(1)
    }

    /// So many came; each is counted until [`Demand::gone`].
    pub(super) fn came(mut self, count: usize) {
        let mut counts = self.demand.counts();
        counts.more = count >= self.left;
        // More than were asked for are counted all the same.
        counts.held += count.saturating_sub(self.left);
        self.left = self.left.saturating_sub(count);
        if counts.more {
            self.demand.changed.notify_waiters();
        }
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.demand.give_back(self.left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: StdDuration = StdDuration::from_millis(1);

    /// What is asked for, if anything.
    fn asks(demand: &Demand) -> Option<usize> {
        demand.take(false)
    }

    #[test]
    fn long_tasks_are_not_taken_before_there_is_a_place() {
        let demand = Demand::new(4, 50 * MS);
        assert_eq!(asks(&demand), Some(4));
        assert_eq!(asks(&demand), None);
        demand.took(10_000 * MS);
        assert_eq!(asks(&demand), None);
        demand.gone();
        assert_eq!((asks(&demand), asks(&demand)), (Some(1), None));
    }

    #[test]
    fn short_tasks_are_taken_ahead_as_many_as_begin_within_the_time() {
        let demand = Demand::new(4, 50 * MS);
        assert_eq!(asks(&demand), Some(4));
        demand.took(10 * MS);
        assert_eq!((asks(&demand), asks(&demand)), (Some(20), None));
        // Not again one by one.
        (0..9).for_each(|_| demand.gone());
        assert_eq!(asks(&demand), None);
        demand.gone();
        assert_eq!(asks(&demand), Some(10));
        // However short they are.
        (0..200).for_each(|_| demand.took(StdDuration::ZERO));
        assert_eq!((asks(&demand), asks(&demand)), (Some(MAX_CLAIM), None));
        let held = 24 + MAX_CLAIM;
        (0..held - (4 + MAX_AHEAD - MAX_CLAIM)).for_each(|_| demand.gone());
        assert_eq!((asks(&demand), asks(&demand)), (Some(MAX_CLAIM), None));
    }

    #[test]
    fn who_does_not_look_ahead_never_does() {
        let demand = Demand::new(2, StdDuration::ZERO);
        demand.took(StdDuration::ZERO);
        assert_eq!((asks(&demand), asks(&demand)), (Some(2), None));
    }

    #[tokio::test]
    async fn what_did_not_come_is_asked_for_again_and_helpers_wait_for_plenty() {
        let demand = Demand::new(4, StdDuration::ZERO);
        drop(demand.ask(false).await);
        let asked = demand.ask(false).await;
        assert_eq!(asked.count(), 4);
        asked.came(3);
        assert_eq!(demand.take(true), None);
        let asked = demand.ask(false).await;
        assert_eq!(asked.count(), 1);
        asked.came(1);
        demand.gone();
        demand.gone();
        assert_eq!(demand.ask(true).await.count(), 2);
    }
}
