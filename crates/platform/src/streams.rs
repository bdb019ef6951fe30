//! Which leases went out on streams, so that a stream learns when one of them is over.
//!
//! Only what ends by way of this process is noticed here, and at once. What ends elsewhere, or
//! runs out, a stream finds out by itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use resurgam_model::TaskId;
use resurgam_model::task::LeaseRef;
use tokio::sync::Notify;

/// All leases that are out on streams of this process.
#[derive(Default)]
pub(crate) struct Streams(Mutex<HashMap<TaskId, Arc<Ended>>>);

/// Those leases of one stream that are over.
#[derive(Default)]
pub(crate) struct Ended {
    leases: Mutex<Vec<LeaseRef>>,
    notify: Notify,
}

impl Streams {
    fn out(&self) -> MutexGuard<'_, HashMap<TaskId, Arc<Ended>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A lease on the task goes out on a stream. An earlier one is that stream's no more.
    pub(crate) fn goes_out(&self, task: TaskId, ended: &Arc<Ended>) {
        self.out().insert(task, Arc::clone(ended));
    }

    /// Something was said that ends these leases.
    pub(crate) fn ended(&self, leases: impl Iterator<Item = LeaseRef>) {
        let mut out = self.out();
        if out.is_empty() {
            return;
        }
        for lease in leases {
            if let Some(ended) = out.remove(&lease.task) {
                ended.leases.lock().unwrap_or_else(PoisonError::into_inner).push(lease);
                ended.notify.notify_one();
            }
        }
    }

    /// The stream does not want to know of these tasks any more.
    pub(crate) fn forget(&self, tasks: impl Iterator<Item = TaskId>, ended: &Arc<Ended>) {
        let mut out = self.out();
        for task in tasks {
            if out.get(&task).is_some_and(|theirs| Arc::ptr_eq(theirs, ended)) {
                out.remove(&task);
            }
        }
    }
}

impl Ended {
    /// What has ended since it was last asked.
    pub(crate) fn take(&self) -> Vec<LeaseRef> {
        std::mem::take(&mut *self.leases.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until something has ended. Remembers what ended before.
    pub(crate) async fn some(&self) {
        self.notify.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use resurgam_model::task::Token;

    use super::*;

    #[test]
    fn each_stream_learns_of_its_own() {
        let streams = Streams::default();
        let (one, two) = (Arc::<Ended>::default(), Arc::<Ended>::default());
        let leases = [1, 2, 3].map(|token| LeaseRef { task: TaskId::new(), token: Token(token) });
        streams.goes_out(leases[0].task, &one);
        streams.goes_out(leases[1].task, &two);
        // Given away anew after it was lost.
        streams.goes_out(leases[2].task, &one);
        streams.goes_out(leases[2].task, &two);
        streams.forget([leases[2].task].into_iter(), &one);
        streams.ended(leases.into_iter());
        assert_eq!((one.take(), two.take()), (vec![leases[0]], vec![leases[1], leases[2]]));
        streams.ended(leases.into_iter());
        assert!(one.take().is_empty() && two.take().is_empty() && streams.out().is_empty());
    }
}
