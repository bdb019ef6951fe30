//! What many requests ask for in one operation of the store: heartbeats, registrations.
//!
//! Fifty thousand agents that show themselves every ten seconds are five thousand requests a
//! second, and after an outage all of them register at once. Most of what a database needs for one
//! is the same for all that come with it. So what comes within a short while is recorded together,
//! and each request is answered after it was: an answer still means that the sign of life counts,
//! for whatever process judges it.
//!
//! # Why the last sign of life is not kept in memory instead
//! It would save nearly all writes, and be safe with one registry: who restarts gives everybody
//! the whole time again. But there may be several, and an agent may send its heartbeats now to
//! one and now to another. What only one of them knows would let the other declare a living agent
//! gone. So the store stays the one place where it stands, and batches make that cheap: a plain
//! heartbeat changes one column that no index is on.
//!
//! # Crash behaviour
//! What was not answered may or may not have been recorded; the next heartbeat is due soon, and a
//! registration may be repeated.

use std::sync::Arc;
use std::time::Duration;

use resurgam_model::agent::{Heartbeat, HeartbeatTerms, Registration};
use resurgam_store::Registered;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::api::App;
use crate::problem::Problem;

/// So many in a batch are many.
const MANY: usize = 16;
/// So many are recorded together at most; a request more may be on top.
const BATCH: usize = 2000;
/// So many requests may queue up before further ones have to wait at the door.
const QUEUE: usize = 4096;

/// What is gathered.
pub(crate) trait Item: Sized + Send + Sync + 'static {
    /// What is answered to each.
    type Answer: Send + 'static;
    /// Batches follow each other no sooner than this: one that comes alone is recorded at once.
    const WINDOW: Duration;
    /// The same while many come.
    const WINDOW_OF_MANY: Duration;

    /// Records them, all or none, and answers for each, in order.
    fn record(
        app: &App,
        items: &[Self],
    ) -> impl Future<Output = Result<Vec<Self::Answer>, Problem>> + Send;
}

impl Item for Heartbeat {
    type Answer = bool;
    const WINDOW: Duration = Duration::from_millis(5);
    // They come without end: what each costs counts for more than a few milliseconds.
    const WINDOW_OF_MANY: Duration = Duration::from_millis(25);

    async fn record(app: &App, items: &[Self]) -> Result<Vec<bool>, Problem> {
        Ok(app.store.heartbeat(items).await?)
    }
}

impl Item for (Registration, HeartbeatTerms) {
    type Answer = Registered;
    // Whoever registers waits for it: what comes while one batch is recorded is the next.
    const WINDOW: Duration = Duration::ZERO;
    const WINDOW_OF_MANY: Duration = Duration::ZERO;

    async fn record(app: &App, items: &[Self]) -> Result<Vec<Registered>, Problem> {
        Ok(app.store.register_all(items).await?)
    }
}

/// A request that waits for its answer.
pub(crate) struct Pending<I: Item> {
    items: Vec<I>,
    answer: oneshot::Sender<Result<Vec<I::Answer>, Problem>>,
}

/// The way to [`run`].
#[derive(Debug)]
pub(crate) struct Gather<I: Item>(mpsc::Sender<Pending<I>>);

impl<I: Item> Gather<I> {
    pub(crate) fn new() -> (Self, mpsc::Receiver<Pending<I>>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self(sender), receiver)
    }

    /// Records these, and answers once they count.
    pub(crate) async fn record(&self, app: &App, items: Vec<I>) -> Result<Vec<I::Answer>, Problem> {
        let (answer, answered) = oneshot::channel();
        match self.0.send(Pending { items, answer }).await {
            Ok(()) => match answered.await {
                Ok(answer) => answer,
                Err(_) => Err(Problem::unavailable("the process is about to end; try again")),
            },
            // The process is about to end, and still answers what has begun.
            Err(mpsc::error::SendError(pending)) => I::record(app, &pending.items).await,
        }
    }
}

/// Runs until dropped.
pub(crate) async fn run<I: Item>(app: Arc<App>, mut queue: mpsc::Receiver<Pending<I>>) {
    let mut next_at = Instant::now();
    while let Some(first) = queue.recv().await {
        let mut count = first.items.len();
        let mut batch = vec![first];
        while count < BATCH
            && let Ok(Some(next)) = timeout_at(next_at, queue.recv()).await
        {
            count += next.items.len();
            batch.push(next);
        }
        let mut items = Vec::with_capacity(count);
        let mut waiting = Vec::with_capacity(batch.len());
        for Pending { items: own, answer } in batch {
            waiting.push((own.len(), answer));
            items.extend(own);
        }
        next_at = Instant::now() + if count < MANY { I::WINDOW } else { I::WINDOW_OF_MANY };
        let (mut answers, problem) = match I::record(&app, &items).await {
            Ok(answers) => (answers.into_iter(), None),
            Err(problem) => (Vec::new().into_iter(), Some(problem)),
        };
        for (count, answer) in waiting {
            let own = match &problem {
                None => Ok(answers.by_ref().take(count).collect()),
                Some(problem) => Err(problem.clone()),
            };
            // Nobody waits any more when the caller has gone away: that is its affair.
            let _ = answer.send(own);
        }
    }
}
