//! Heartbeats of many requests in one operation of the store.
//!
//! Fifty thousand agents that show themselves every ten seconds are five thousand requests a
//! second, and most of what a database needs for one is the same for all that come with it. So
//! what comes within a short while is recorded together, and each request is answered after it
//! was: an answer still means that the sign of life counts, for whatever process judges it.
//!
//! # Why the last sign of life is not kept in memory instead
//! It would save nearly all writes, and be safe with one registry: who restarts gives everybody
//! the whole time again. But there may be several, and an agent may send its heartbeats now to
//! one and now to another. What only one of them knows would let the other declare a living agent
//! gone. So the store stays the one place where it stands, and batches make that cheap: a plain
//! heartbeat changes one column that no index is on.
//!
//! # Crash behaviour
//! A heartbeat that was not answered may or may not have been recorded; the next one is due soon.

use std::sync::Arc;
use std::time::Duration;

use resurgam_model::agent::Heartbeat;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::api::App;
use crate::problem::Problem;

/// Batches follow each other no sooner than this, so that one that comes alone is recorded at once.
const WINDOW: Duration = Duration::from_millis(5);
/// The same while many come: then what each costs counts for more than a few milliseconds.
const WINDOW_OF_MANY: Duration = Duration::from_millis(25);
/// So many in a batch are many.
const MANY: usize = 16;
/// So many heartbeats are recorded together at most; a request more may be on top.
const BATCH: usize = 2000;
/// So many requests may queue up before further ones have to wait at the door.
const QUEUE: usize = 4096;

type Answer = Result<Vec<bool>, Problem>;

/// A request that waits for its answer.
pub(crate) struct Pending {
    beats: Vec<Heartbeat>,
    answer: oneshot::Sender<Answer>,
}

/// The way to [`run`].
#[derive(Debug)]
pub(crate) struct Heartbeats(mpsc::Sender<Pending>);

impl Heartbeats {
    pub(crate) fn new() -> (Self, mpsc::Receiver<Pending>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self(sender), receiver)
    }

    /// Records signs of life, and answers once they count.
    pub(crate) async fn record(&self, app: &App, beats: Vec<Heartbeat>) -> Answer {
        let (answer, answered) = oneshot::channel();
        match self.0.send(Pending { beats, answer }).await {
            Ok(()) => match answered.await {
                Ok(answer) => answer,
                Err(_) => Err(Problem::unavailable("the process is about to end; try again")),
            },
            // The process is about to end, and still answers what has begun.
            Err(mpsc::error::SendError(pending)) => write(app, &pending.beats).await,
        }
    }
}

/// Runs until dropped.
pub(crate) async fn run(app: Arc<App>, mut queue: mpsc::Receiver<Pending>) {
    let mut next_at = Instant::now();
    while let Some(first) = queue.recv().await {
        let mut count = first.beats.len();
        let mut batch = vec![first];
        while count < BATCH
            && let Ok(Some(next)) = timeout_at(next_at, queue.recv()).await
        {
            count += next.beats.len();
            batch.push(next);
        }
        let mut beats = Vec::with_capacity(count);
        let mut waiting = Vec::with_capacity(batch.len());
        for Pending { beats: own, answer } in batch {
            waiting.push((own.len(), answer));
            beats.extend(own);
        }
        next_at = Instant::now() + if count < MANY { WINDOW } else { WINDOW_OF_MANY };
        let result = write(&app, &beats).await;
        let mut known = result.as_deref().unwrap_or_default().iter().copied();
        for (count, answer) in waiting {
            let own = match &result {
                Ok(_) => Ok(known.by_ref().take(count).collect()),
                Err(problem) => Err(problem.clone()),
            };
            // Nobody waits any more when the caller has gone away: that is its affair.
            let _ = answer.send(own);
        }
    }
}

async fn write(app: &App, beats: &[Heartbeat]) -> Answer {
    Ok(app.store.heartbeat(beats).await?)
}
