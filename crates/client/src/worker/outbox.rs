//! What became of tasks, until the platform has taken note of it.
//!
//! Batches form by themselves: what ends while requests are under way goes into the next one.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use resurgam_model::Duration;
use resurgam_model::task::{Completion, Failure, LeaseRef, Outcome};
use tokio::sync::{Notify, watch};

use super::queue::{Queue, within};
use super::{CALL_TIMEOUT, Shared};
use crate::chain;

/// The most reports in one request, and the most bytes of results.
const BATCH: usize = 1000;
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// The most reports that may wait before no further work is begun.
const MOST: usize = 4096;
/// So many requests may be under way at once.
pub(super) const DELIVERERS: usize = 2;
/// The longest reason in bytes.
const MAX_REASON: usize = 8 * 1024;

/// What became of a task.
#[derive(Clone, Debug)]
pub(super) enum Report {
    Completed(Completion),
    Failed(Failure),
}

impl Report {
    pub(super) fn failed(lease: LeaseRef, mut reason: String, retry: bool) -> Self {
        if reason.len() > MAX_REASON {
            let end = (0..=MAX_REASON).rev().find(|at| reason.is_char_boundary(*at));
            reason.truncate(end.unwrap_or(0));
            reason.push('…');
        }
        Self::Failed(Failure { lease, error: reason, retry })
    }

    fn lease(&self) -> LeaseRef {
        match self {
            Self::Completed(completion) => completion.lease,
            Self::Failed(failure) => failure.lease,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Completed(completion) => completion.result.len(),
            Self::Failed(failure) => failure.error.len(),
        }
    }
}

/// Reports that were not accepted yet, oldest first.
pub(super) struct Outbox {
    reports: Mutex<VecDeque<Report>>,
    /// There is something to be sent.
    filled: Notify,
    /// How much there is, what is being sent included.
    load: watch::Sender<Load>,
    /// The most bytes of results that may wait before no further work is begun.
    most_bytes: usize,
}

#[derive(Clone, Copy, Default)]
struct Load {
    reports: usize,
    bytes: usize,
}

impl Outbox {
    pub(super) fn new(most_bytes: usize) -> Self {
        let load = watch::Sender::new(Load::default());
        Self { reports: Mutex::default(), filled: Notify::new(), load, most_bytes }
    }

    fn reports(&self) -> MutexGuard<'_, VecDeque<Report>> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, report: Report) {
        let bytes = report.bytes();
        self.reports().push_back(report);
        self.load.send_modify(|load| {
            load.reports += 1;
            load.bytes += bytes;
        });
        self.filled.notify_one();
    }

    /// The leases of the reports that wait to be sent.
    pub(super) fn leases(&self) -> Vec<LeaseRef> {
        self.reports().iter().map(Report::lease).collect()
    }

    fn takes_more(&self, load: Load) -> bool {
        load.reports < MOST && load.bytes < self.most_bytes
    }

    /// Whether further work may be begun.
    pub(super) fn has_room(&self) -> bool {
        self.takes_more(*self.load.borrow())
    }

    /// Waits until further work may be begun.
    pub(super) async fn room(&self) {
        // The sender is in `self`, so that it cannot be gone.
        let _ = self.load.subscribe().wait_for(|load| self.takes_more(*load)).await;
    }

    /// Waits until none is left, but not longer than `patience`.
    pub(super) async fn emptied(&self, patience: Duration) {
        let mut load = self.load.subscribe();
        let empty = load.wait_for(|load| load.reports == 0);
        if tokio::time::timeout(patience.0, empty).await.is_err() {
            let left = self.load.borrow().reports;
            tracing::warn!(left, "some reports were not accepted; their tasks will be redone");
        }
    }

    /// The oldest reports that go into one request.
    fn take(&self) -> Vec<Report> {
        let mut reports = self.reports();
        let mut bytes = 0_usize;
        let mut batch = Vec::new();
        while let Some(next) = reports.front() {
            bytes = bytes.saturating_add(next.bytes());
            if !batch.is_empty() && (batch.len() >= BATCH || bytes > BATCH_BYTES) {
                break;
            }
            batch.extend(reports.pop_front());
        }
        batch
    }

    fn done(&self, reports: usize, bytes: usize) {
        self.load.send_modify(|load| {
            load.reports = load.reports.saturating_sub(reports);
            load.bytes = load.bytes.saturating_sub(bytes);
        });
    }
}

/// Sends reports as they come; runs until dropped.
pub(super) async fn deliver(shared: Arc<Shared>) {
    let (queue, outbox) = (&*shared.queue, &shared.outbox);
    loop {
        let batch = outbox.take();
        if batch.is_empty() {
            outbox.filled.notified().await;
            continue;
        }
        let (taken, bytes) = (batch.len(), batch.iter().map(Report::bytes).sum());
        let (mut completions, mut failures) = (Vec::new(), Vec::new());
        for report in batch {
            match report {
                Report::Completed(completion) => completions.push(completion),
                Report::Failed(failure) => failures.push(failure),
            }
        }
        complete(queue, completions, &mut failures).await;
        fail(queue, failures).await;
        outbox.done(taken, bytes);
    }
}

/// A result that the platform refuses, for instance because it is too large, is a failure that
/// repeating the work would not mend.
async fn complete(queue: &dyn Queue, all: Vec<Completion>, failures: &mut Vec<Failure>) {
    let leases = |completion: &Completion| completion.lease;
    for (completion, error) in
        send(&all, leases, |part| within(queue, CALL_TIMEOUT, queue.complete(part))).await
    {
        let reason = format!("the result was refused: {error}");
        if let Report::Failed(failure) = Report::failed(completion.lease, reason, false) {
            failures.push(failure);
        }
    }
}

async fn fail(queue: &dyn Queue, all: Vec<Failure>) {
    let leases = |failure: &Failure| failure.lease;
    for (failure, error) in
        send(&all, leases, |part| within(queue, CALL_TIMEOUT, queue.fail(part))).await
    {
        tracing::error!(task = %failure.lease.task, %error, "a failure could not be reported");
    }
}

/// Sends all, as often as it takes, and gives back those that were refused for good. One that is
/// refused must not take the others with it, so a batch that is refused is sent one by one.
async fn send<'a, T, F>(
    all: &'a [T],
    lease: impl Fn(&T) -> LeaseRef,
    call: impl Fn(&'a [T]) -> F,
) -> Vec<(&'a T, crate::Error)>
where
    F: Future<Output = crate::Result<Vec<Outcome>>>,
{
    let mut refused = Vec::new();
    let mut parts = VecDeque::from([all]);
    while let Some(part) = parts.pop_front() {
        let [first, rest @ ..] = part else { continue };
        match persistently(part, &call).await {
            Ok(outcomes) => {
                for (item, outcome) in part.iter().zip(outcomes) {
                    if outcome != Outcome::Accepted {
                        let task = lease(item).task;
                        tracing::warn!(%task, ?outcome, "came too late: somebody else has the task");
                    }
                }
            }
            Err(error) if rest.is_empty() => refused.push((first, error)),
            Err(_) => parts.extend(part.chunks(1)),
        }
    }
    refused
}

async fn persistently<'a, T, F>(
    part: &'a [T],
    call: &impl Fn(&'a [T]) -> F,
) -> crate::Result<Vec<Outcome>>
where
    F: Future<Output = crate::Result<Vec<Outcome>>>,
{
    let mut backoff = Shared::patience().start();
    let mut away = false;
    loop {
        match call(part).await {
            Err(error) if error.is_transient() => {
                if !away {
                    let count = part.len();
                    tracing::warn!(reason = chain(&error), count, "reports have to wait");
                    away = true;
                }
                tokio::time::sleep(backoff.next_delay().unwrap_or(CALL_TIMEOUT.0)).await;
            }
            result => {
                if away {
                    tracing::info!(count = part.len(), "waiting reports were delivered");
                }
                return result;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use resurgam_model::task::Token;
    use resurgam_model::{Payload, TaskId};

    use super::*;

    fn completion(bytes: usize) -> Completion {
        let lease = LeaseRef { task: TaskId::new(), token: Token(1) };
        Completion { lease, result: Payload::from_text(&"x".repeat(bytes)) }
    }

    #[test]
    fn batches_are_bounded_by_count_and_by_size() {
        let outbox = Outbox::new(usize::MAX);
        (0..1044).for_each(|_| outbox.push(Report::Completed(completion(1))));
        assert_eq!(outbox.take().len(), 1000);
        assert_eq!(outbox.take().len(), 44);
        (0..3).for_each(|_| outbox.push(Report::Completed(completion(3 * 1024 * 1024))));
        assert_eq!(outbox.take().len(), 1);
    }

    #[test]
    fn there_is_room_until_too_much_waits_for_an_answer() {
        let outbox = Outbox::new(100);
        outbox.push(Report::Completed(completion(90)));
        assert!(outbox.has_room());
        outbox.push(Report::Completed(completion(90)));
        let batch = outbox.take();
        assert!(!outbox.has_room(), "what is being sent counts, too");
        outbox.done(1, batch[0].bytes());
        assert!(outbox.has_room());
        (0..MOST).for_each(|_| outbox.push(Report::Completed(completion(0))));
        assert!(!outbox.has_room());
    }

    #[test]
    fn long_reasons_are_cut_between_characters() {
        let lease = LeaseRef { task: TaskId::new(), token: Token(1) };
        let Report::Failed(failure) = Report::failed(lease, "ä".repeat(10_000), true) else {
            panic!("no failure");
        };
        assert!(failure.error.len() <= MAX_REASON + '…'.len_utf8());
    }

    #[tokio::test]
    async fn what_is_refused_does_not_take_the_rest_with_it() {
        let all = [completion(1), completion(9), completion(1)];
        let refused = send(
            &all,
            |completion| completion.lease,
            |part| async move {
                if part.iter().any(|completion| completion.result.len() > 5) {
                    return Err(crate::Error::Unsendable("too large".to_owned()));
                }
                Ok(vec![Outcome::Accepted; part.len()])
            },
        )
        .await;
        let refused: Vec<_> = refused.into_iter().map(|(completion, _)| completion).collect();
        assert_eq!(refused, [&all[1]]);
    }
}
