//! Workers that die, lose a lease, or leave.

use std::sync::Arc;

use async_trait::async_trait;
use resurgam_client::worker::{Handler, HandlerError, Job, Sha256};
use resurgam_model::agent::AgentState;
use resurgam_model::task::{Fallback, TaskState};
use resurgam_model::{Duration, Payload};
use resurgam_store::LeasesOf;
use tokio::sync::watch;

use crate::harness::*;

/// Work that takes until the gate is opened, and tells how much of it there is.
pub(crate) struct Gate {
    open: watch::Sender<bool>,
    running: watch::Sender<usize>,
    dropped: watch::Sender<usize>,
}

impl Gate {
    pub(crate) fn closed() -> Arc<Self> {
        Arc::new(Self {
            open: watch::Sender::new(false),
            running: watch::Sender::new(0),
            dropped: watch::Sender::new(0),
        })
    }

    pub(crate) fn open(&self) {
        self.open.send_replace(true);
    }

    /// Waits until so many run.
    pub(crate) async fn running(&self, count: usize) {
        reaches_count(&self.running, count).await;
    }

    /// Waits until so many were dropped before their end.
    async fn dropped(&self, count: usize) {
        reaches_count(&self.dropped, count).await;
    }
}

async fn reaches_count(sender: &watch::Sender<usize>, count: usize) {
    let mut receiver = sender.subscribe();
    let wait = receiver.wait_for(|is| *is == count);
    tokio::time::timeout(std::time::Duration::from_secs(30), wait).await.unwrap().unwrap();
}

struct Running<'a> {
    gate: &'a Gate,
    finished: bool,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.gate.running.send_modify(|running| *running -= 1);
        self.gate.dropped.send_modify(|dropped| *dropped += usize::from(!self.finished));
    }
}

#[async_trait]
impl Handler for Gate {
    async fn handle(&self, job: Job) -> Result<Payload, HandlerError> {
        self.running.send_modify(|running| *running += 1);
        let mut running = Running { gate: self, finished: false };
        self.open.subscribe().wait_for(|open| *open).await.unwrap();
        running.finished = true;
        Ok(job.payload().clone())
    }
}

#[tokio::test]
async fn the_tasks_of_a_killed_worker_go_to_another() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings(SERVER);
    settings.heartbeat = terms(100, 600);
    let server = Server::ready(settings, sqlite(dir.path())).await;
    let gate = Gate::closed();
    let victim = Worker::start(&server, worker("victim").on(capability("sha256"), gate.clone()));
    let batch: Vec<_> = (0..3).map(|n| task("sha256", &n.to_string())).collect();
    let submitted = server.client.submit_batch(&batch).await.unwrap();
    gate.running(3).await;
    victim.kill().await;
    gate.running(0).await;

    // Its leases would last a minute: it is the missing heartbeat that returns them.
    let _heir = Worker::start(&server, worker("heir").on(capability("sha256"), Sha256));
    for submitted in submitted {
        let task = reaches(&server.client, submitted.id, TaskState::Completed).await;
        assert_eq!((task.attempts, &task.held_by), (2, &Some(agent("heir"))), "{task:?}");
    }
}

#[tokio::test]
async fn a_new_life_takes_the_tasks_of_the_old_one_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::whole(&dir).await;
    let gate = Gate::closed();
    let old = Worker::start(&server, worker("w").on(capability("x"), gate.clone()));
    let id = server.client.submit(&task("x", "same")).await.unwrap().id;
    gate.running(1).await;
    old.kill().await;
    gate.open();
    let _new = Worker::start(&server, worker("w").on(capability("x"), gate));
    let task = reaches(&server.client, id, TaskState::Completed).await;
    assert_eq!(task.attempts, 2);
}

#[tokio::test]
async fn work_whose_lease_was_lost_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::whole(&dir).await;
    let gate = Gate::closed();
    let only = worker("w").on(capability("x"), gate.clone());
    // It cannot claim the task again before it has dropped it.
    let only = only.lease(Duration::from_secs(1)).concurrency(1);
    let _worker = Worker::start(&server, only);
    let id = server.client.submit(&task("x", "done")).await.unwrap().id;
    gate.running(1).await;
    let life = server.client.agent(&agent("w")).await.unwrap().unwrap().instance;
    let store = sqlite(dir.path());
    let returned = store.return_leases(&agent("w"), LeasesOf::Life(life)).await.unwrap();
    assert_eq!(returned, 1);
    gate.dropped(1).await;
    gate.open();
    let task = reaches(&server.client, id, TaskState::Completed).await;
    assert_eq!((task.attempts, task.result.unwrap().text().as_ref()), (2, "done"));
}

#[tokio::test]
async fn a_worker_that_is_to_end_finishes_what_it_has_begun() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::whole(&dir).await;
    let gate = Gate::closed();
    let worker = Worker::start(&server, worker("w").on(capability("x"), gate.clone()));
    let id = server.client.submit(&task("x", "done")).await.unwrap().id;
    gate.running(1).await;
    let stopping = tokio::spawn(worker.stop());
    // It says so at once, and keeps showing itself meanwhile.
    until("the worker drains", async || {
        let found = server.client.agent(&agent("w")).await.unwrap().unwrap();
        found.state == AgentState::Draining && found.running == 1
    })
    .await;
    let later = server.client.submit(&task("x", "later")).await.unwrap().id;
    gate.open();
    stopping.await.unwrap();
    let done = server.client.task(id).await.unwrap().unwrap();
    assert_eq!((done.state, done.attempts), (TaskState::Completed, 1));
    assert_eq!(server.client.agent(&agent("w")).await.unwrap(), None);
    // Handed in around the end: done, or waiting for somebody else, but held by nobody.
    let later = server.client.task(later).await.unwrap().unwrap();
    assert_ne!(later.state, TaskState::Running, "{later:?}");
}

/// Says how far it is, and goes on when it may.
struct Chatty(Arc<Gate>);

#[async_trait]
impl Handler for Chatty {
    async fn handle(&self, job: Job) -> Result<Payload, HandlerError> {
        job.note("page 3\nof 7");
        self.0.handle(job).await
    }
}

#[tokio::test]
async fn a_worker_gets_what_is_to_be_done_near_it_and_says_how_far_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::whole(&dir).await;
    let gate = Gate::closed();
    let near = worker("near").on(capability("x"), Chatty(gate.clone()));
    let near = near.at("zone", "a").unwrap().lease(Duration::from_secs(1));
    let _near = Worker::start(&server, near);
    until("registered", async || server.client.agent(&agent("near")).await.unwrap().is_some())
        .await;
    let found = server.client.agent(&agent("near")).await.unwrap().unwrap();
    assert_eq!(found.labels["zone"], "a");
    let id = server.client.submit(&task("x/zone:a", "")).await.unwrap().id;
    gate.running(1).await;
    until("the note is told", async || {
        server.client.task(id).await.unwrap().unwrap().note.as_deref() == Some("page 3of 7")
    })
    .await;
    // Nobody is near: after a while anybody may.
    let mut elsewhere = task("x/zone:b", "");
    elsewhere.fallback =
        Some(Fallback { capability: capability("x"), after: Duration::from_millis(50) });
    let elsewhere = server.client.submit(&elsewhere).await.unwrap().id;
    gate.running(2).await;
    gate.open();
    for id in [id, elsewhere] {
        reaches(&server.client, id, TaskState::Completed).await;
    }
    let mut silly = task("x", "");
    silly.fallback = Some(Fallback { capability: capability("x"), after: Duration::from_secs(1) });
    let refused = server.client.submit(&silly).await.unwrap_err().to_string();
    assert!(refused.contains("fallback.capability is the task's own"), "{refused}");
}

#[tokio::test]
async fn what_does_not_end_within_the_grace_goes_back() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::whole(&dir).await;
    let gate = Gate::closed();
    let hasty = worker("w").on(capability("x"), gate.clone()).grace(Duration::from_millis(50));
    let worker = Worker::start(&server, hasty);
    let id = server.client.submit(&task("x", "")).await.unwrap().id;
    gate.running(1).await;
    worker.stop().await;
    gate.running(0).await;
    reaches(&server.client, id, TaskState::Ready).await;
}

/// Panics on the first try, and gives a lot on the others.
struct Clumsy;

#[async_trait]
impl Handler for Clumsy {
    async fn handle(&self, job: Job) -> Result<Payload, HandlerError> {
        assert!(job.attempt() > 1, "this panic is part of the test");
        Ok(Payload::from_text(&"x".repeat(5000)))
    }
}

#[tokio::test]
async fn a_panic_is_a_failure_and_a_result_that_is_refused_is_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings(SERVER);
    settings.limits = resurgam_platform::serve::Limits::with_payload(1000);
    let server = Server::ready(settings, sqlite(dir.path())).await;
    let _worker = Worker::start(&server, worker("w").on(capability("x"), Clumsy));
    let mut new = task("x", "");
    new.retry.backoff = Duration::from_millis(1);
    let id = server.client.submit(&new).await.unwrap().id;
    let dead = reaches(&server.client, id, TaskState::Dead).await;
    assert_eq!(dead.attempts, 2);
    let error = dead.error.unwrap();
    assert!(error.starts_with("the result was refused: completions[0].result has 5002"), "{error}");
}
