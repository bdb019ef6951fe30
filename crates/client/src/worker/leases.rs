//! The leases that a worker holds, and their extension.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration as StdDuration;

use resurgam_model::task::{Lease, LeaseRef, Outcome, Token};
use resurgam_model::{Duration, TaskId};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::MissedTickBehavior;

use super::job::{Cancelled, Note};
use super::queue::within;
use super::{CALL_TIMEOUT, Shared};
use crate::chain;

/// The most leases in one extension.
const BATCH: usize = 1000;

/// The tasks that are here: those that are worked on, and those that wait for a place.
#[derive(Default)]
pub(super) struct Table(Mutex<HashMap<TaskId, Held>>);

struct Held {
    token: Token,
    cancel: watch::Sender<Option<Cancelled>>,
    note: Note,
    /// None while it waits.
    work: Option<AbortHandle>,
}

impl Held {
    fn lost(self) {
        self.cancel.send_replace(Some(Cancelled::LeaseLost));
        if let Some(work) = self.work {
            work.abort();
        }
    }
}

impl Table {
    fn held(&self) -> MutexGuard<'_, HashMap<TaskId, Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a task that was claimed. Being given one again means that its earlier lease
    /// was lost. False for one that is here already under this very lease.
    pub(super) fn claimed(&self, lease: &Lease) -> bool {
        let mut held = self.held();
        if held.get(&lease.task).is_some_and(|held| held.token >= lease.token) {
            return false;
        }
        let cancel = watch::Sender::new(None);
        let new = Held { token: lease.token, cancel, note: Note::default(), work: None };
        if let Some(old) = held.insert(lease.task, new) {
            old.lost();
        }
        true
    }

    /// Begins the work, unless the lease was lost since.
    pub(super) fn begin(
        &self,
        lease: LeaseRef,
        spawn: impl FnOnce(watch::Receiver<Option<Cancelled>>, Note) -> AbortHandle,
    ) -> bool {
        let mut held = self.held();
        match held.get_mut(&lease.task) {
            Some(held) if held.token == lease.token => {
                held.work = Some(spawn(held.cancel.subscribe(), held.note.clone()));
                true
            }
            _ => false,
        }
    }

    /// The task is over, or was dropped.
    pub(super) fn ended(&self, lease: LeaseRef) {
        let mut held = self.held();
        if held.get(&lease.task).is_some_and(|held| held.token == lease.token) {
            held.remove(&lease.task);
        }
    }

    /// Drops the task: its lease was lost.
    fn lost(&self, lease: LeaseRef) {
        let mut held = self.held();
        if held.get(&lease.task).is_some_and(|held| held.token == lease.token)
            && let Some(held) = held.remove(&lease.task)
        {
            held.lost();
        }
    }

    /// Tells all handlers that the worker is to end.
    pub(super) fn announce_shutdown(&self) {
        for held in self.held().values() {
            held.cancel.send_replace(Some(Cancelled::Shutdown));
        }
    }

    pub(super) fn clear(&self) {
        self.held().clear();
    }

    fn leases(&self) -> Vec<LeaseRef> {
        let held = self.held();
        held.iter().map(|(task, held)| LeaseRef { task: *task, token: held.token }).collect()
    }

    /// What handlers have said of how far they are, and nobody was told yet.
    fn notes(&self) -> Vec<(LeaseRef, String)> {
        let held = self.held();
        let note = |(task, held): (&TaskId, &Held)| {
            Some((LeaseRef { task: *task, token: held.token }, held.note.take()?))
        };
        held.iter().filter_map(note).collect()
    }
}

/// Extends the leases of what is here or still to be reported, and drops what was lost; runs
/// until dropped.
pub(super) async fn extend(shared: Arc<Shared>) {
    let lease = shared.settings.lease;
    let every = lease.0 / 3;
    // After a failure sooner, so that an outage shorter than a lease costs none.
    let retry = (lease.0 / 12).clamp(StdDuration::from_millis(10), StdDuration::from_millis(500));
    let bound = Duration(every).min(CALL_TIMEOUT);
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let mut leases = shared.table.leases();
        leases.extend(shared.outbox.leases());
        for part in leases.chunks(BATCH) {
            let call = shared.queue.extend(part, lease);
            match within(&*shared.queue, bound, call).await {
                Ok(outcomes) => lost(&shared, part, &outcomes),
                Err(error) => {
                    log(&error);
                    ticks.reset_after(retry);
                }
            }
        }
        // A note that cannot be told is lost: it is for people, and the next one says more.
        for (held, note) in shared.table.notes() {
            let call = shared.queue.extend_with_note(std::slice::from_ref(&held), lease, &note);
            if let Err(error) = within(&*shared.queue, bound, call).await {
                log(&error);
                break;
            }
        }
    }
}

fn lost(shared: &Shared, leases: &[LeaseRef], outcomes: &[Outcome]) {
    for (lease, outcome) in leases.iter().zip(outcomes) {
        if *outcome != Outcome::Accepted {
            shared.table.lost(*lease);
        }
    }
}

fn log(error: &crate::Error) {
    if error.is_transient() {
        tracing::debug!(reason = chain(error), "leases could not be extended; trying again");
    } else {
        tracing::warn!(reason = chain(error), "leases were not extended");
    }
}

#[cfg(test)]
mod tests {
    use resurgam_model::{Capability, Payload, Timestamp};

    use super::*;

    fn lease(task: TaskId, token: i64) -> Lease {
        Lease {
            task,
            token: Token(token),
            capability: Capability::new("x").unwrap(),
            payload: Payload::default(),
            attempt: 1,
            until: Timestamp::now(),
            timeout_at: None,
        }
    }

    fn name(lease: &Lease) -> LeaseRef {
        LeaseRef { task: lease.task, token: lease.token }
    }

    #[tokio::test]
    async fn only_the_newest_lease_of_a_task_counts() {
        let table = Table::default();
        let task = TaskId::new();
        let (old, new) = (lease(task, 1), lease(task, 2));
        assert!(table.claimed(&old));
        assert!(!table.claimed(&old), "the same lease, told again");
        let (work, mut told) = (tokio::spawn(std::future::pending::<()>()), None);
        assert!(table.begin(name(&old), |cancelled, _| {
            told = Some(cancelled);
            work.abort_handle()
        }));
        assert!(table.claimed(&new));
        assert!(!table.claimed(&old), "a late word");
        assert_eq!(*told.unwrap().borrow(), Some(Cancelled::LeaseLost));
        assert!(work.await.unwrap_err().is_cancelled());
        // The end of the old work does not touch the new.
        table.ended(name(&old));
        table.lost(name(&old));
        assert_eq!(table.leases(), [name(&new)]);
        table.lost(name(&new));
        assert!(!table.begin(name(&new), |_, _| panic!("its lease was lost")));
    }
}
