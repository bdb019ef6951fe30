//! Callers that wait in this process until something they want may have come.
//!
//! Nothing here is a promise: a wake-up can be lost when a caller leaves, and other processes
//! put things into the store without anybody here noticing. So someone calls
//! [`Waiting::recheck`] from time to time, which wakes one caller of each kind; a caller that
//! finds more than it can take wakes the next. Thus a thousand idle callers cost the store no
//! more than one.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The callers, those with the most room in front, and of those the ones that came first.
pub(crate) struct Waiting<K>(Mutex<Inner<K>>);

struct Inner<K> {
    next_id: u64,
    callers: BTreeMap<Rank, Caller<K>>,
}

/// How much a caller can take, and its number in the order of coming.
type Rank = (Reverse<u32>, u64);

struct Caller<K> {
    wants: Arc<[K]>,
    notify: Arc<Notify>,
}

impl<K> Default for Waiting<K> {
    fn default() -> Self {
        Self(Mutex::new(Inner { next_id: 0, callers: BTreeMap::new() }))
    }
}

impl<K: Eq + Hash + Clone> Waiting<K> {
    fn inner(&self) -> MutexGuard<'_, Inner<K>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins the callers. To be done before looking whether there is something, so that nothing
    /// that comes in between is missed. Who has more room is woken first.
    pub(crate) fn join(&self, wants: &[K], room: u32) -> Place<'_, K> {
        let notify = Arc::new(Notify::new());
        let mut inner = self.inner();
        let rank = (Reverse(room), inner.next_id);
        inner.next_id += 1;
        let caller = Caller { wants: wants.into(), notify: Arc::clone(&notify) };
        inner.callers.insert(rank, caller);
        Place { waiting: self, rank, notify }
    }

    /// Wakes up to `count` callers that want `what`.
    pub(crate) fn wake(&self, what: &K, count: usize) {
        self.wake_where(count, |caller| caller.wants.contains(what));
    }

    /// Whether nobody waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.inner().callers.is_empty()
    }

    /// Wakes everybody.
    pub(crate) fn wake_all(&self) {
        self.wake_where(usize::MAX, |_| true);
    }

    /// Wakes one caller of each kind.
    pub(crate) fn recheck(&self) {
        let mut seen = HashSet::new();
        self.wake_where(usize::MAX, |caller| seen.insert(Arc::clone(&caller.wants)));
    }

    /// A woken caller leaves: it joins again at the end if it found nothing.
    fn wake_where(&self, count: usize, mut which: impl FnMut(&Caller<K>) -> bool) {
        let mut left = count;
        self.inner().callers.retain(|_, caller| {
            if left == 0 || !which(caller) {
                return true;
            }
            left -= 1;
            caller.notify.notify_one();
            false
        });
    }
}

/// A caller's place; leaving it gives it up.
pub(crate) struct Place<'a, K: Eq + Hash + Clone> {
    waiting: &'a Waiting<K>,
    rank: Rank,
    notify: Arc<Notify>,
}

impl<K: Eq + Hash + Clone> Place<'_, K> {
    /// Waits until woken. Remembers one wake-up that came before.
    pub(crate) async fn woken(&self) {
        self.notify.notified().await;
    }
}

impl<K: Eq + Hash + Clone> Drop for Place<'_, K> {
    fn drop(&mut self) {
        self.waiting.inner().callers.remove(&self.rank);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    fn is_awake(place: &Place<'_, &str>) -> bool {
        pin!(place.woken()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn as_many_as_were_meant_wake_first_come_first_served() {
        let waiting = Waiting::default();
        let places =
            [waiting.join(&["a"], 1), waiting.join(&["b"], 1), waiting.join(&["b", "a"], 1)];
        waiting.wake(&"a", 1);
        assert_eq!(places.each_ref().map(is_awake), [true, false, false]);
        waiting.wake(&"a", 5);
        assert_eq!(places.each_ref().map(is_awake), [false, false, true]);
    }

    #[test]
    fn who_has_the_most_room_wakes_first_and_the_longest_waiting_of_those() {
        let waiting = Waiting::default();
        let places = [1, 4, 2, 4].map(|room| waiting.join(&["a"], room));
        let mut order = Vec::new();
        for _ in 0..4 {
            waiting.wake(&"a", 1);
            let woken = places.each_ref().map(is_awake);
            order.push(woken.iter().position(|woken| *woken).unwrap());
        }
        assert_eq!(order, [1, 3, 2, 0]);
    }

    #[test]
    fn a_recheck_wakes_one_of_each_kind_and_the_next_one_the_next() {
        let waiting = Waiting::default();
        let places = [waiting.join(&["a"], 1), waiting.join(&["a"], 1), waiting.join(&["b"], 1)];
        waiting.recheck();
        assert_eq!(places.each_ref().map(is_awake), [true, false, true]);
        waiting.recheck();
        assert_eq!(places.each_ref().map(is_awake), [false, true, false]);
    }

    #[test]
    fn who_leaves_takes_no_wake_up() {
        let waiting = Waiting::default();
        drop(waiting.join(&["a"], 1));
        let place = waiting.join(&["a"], 1);
        waiting.wake(&"a", 1);
        assert!(is_awake(&place));
    }
}
