//! The way of a task.

use std::time::{Duration as StdDuration, Instant};

use resurgam_client::worker::Sha256;
use resurgam_model::task::{Completion, Failure, LeaseRef, Outcome, TaskQuery, TaskState};
use resurgam_model::{Duration, Payload};

use crate::harness::*;

const WAIT: Duration = Duration::from_secs(30);

#[tokio::test]
async fn from_its_handing_in_to_its_result() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::whole(&dir).await;
    let client = &server.client;
    let mut new = task("sha256", "abc");
    new.idempotency_key = Some("once".to_owned());
    let first = client.submit(&new).await.unwrap();
    let again = client.submit(&new).await.unwrap();
    assert!(first.created && !again.created);
    assert_eq!(first.id, again.id);
    let pending = client.pending().await.unwrap();
    assert_eq!((pending.ready, pending.running), (1, 0));
    assert_eq!(pending.capabilities[&capability("sha256")].ready, 1);

    let worker = Worker::start(&server, worker("w/1").on(capability("sha256"), Sha256));
    let done = reaches(client, first.id, TaskState::Completed).await;
    assert_eq!(
        done.result.unwrap().text(),
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
    assert_eq!(done.attempts, 1);

    let batch: Vec<_> = (0..50).map(|n| task("sha256", &n.to_string())).collect();
    for submitted in client.submit_batch(&batch).await.unwrap() {
        reaches(client, submitted.id, TaskState::Completed).await;
    }
    let query = TaskQuery {
        state: Some(TaskState::Completed),
        after: Some(first.id),
        ..TaskQuery::default()
    };
    assert_eq!(client.tasks(&query).await.unwrap().len(), 50);
    let workers = client.workers().await.unwrap();
    assert_eq!(workers.iter().map(|w| w.id.as_str()).collect::<Vec<_>>(), ["w/1"]);
    assert_eq!(client.agent(&agent("w/1")).await.unwrap().unwrap().capacity, 4);
    worker.stop().await;
    assert_eq!(client.agent(&agent("w/1")).await.unwrap(), None);
    server.stop().await;
}

#[tokio::test]
async fn a_claim_that_waits_wakes_up_when_a_task_comes() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings(SERVER);
    // Only the waking inside the process can be fast.
    settings.recheck = Duration::from_secs(3600);
    let server = Server::ready(settings, sqlite(dir.path())).await;
    let instance = register(&server.client, "w", "x").await;
    let client = server.client.clone();
    let waiting = tokio::spawn(async move { client.claim(&claim("w", instance, "x"), WAIT).await });
    let start = Instant::now();
    // Some come before it waits, some while it does: neither must be missed.
    let submitted = server.client.submit(&task("x", "")).await.unwrap();
    let leases = waiting.await.unwrap().unwrap();
    assert_eq!(leases[0].task, submitted.id);
    assert!(start.elapsed() < StdDuration::from_secs(10), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_claim_that_waits_sees_what_another_process_took_in() {
    let dir = tempfile::tempdir().unwrap();
    let one = Server::whole(&dir).await;
    let other = Server::whole(&dir).await;
    let instance = register(&one.client, "w", "x").await;
    let client = one.client.clone();
    let waiting = tokio::spawn(async move { client.claim(&claim("w", instance, "x"), WAIT).await });
    let start = Instant::now();
    let submitted = other.client.submit(&task("x", "")).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap()[0].task, submitted.id);
    assert!(start.elapsed() < StdDuration::from_secs(10), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_server_that_ends_answers_who_waits() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::whole(&dir).await;
    let instance = register(&server.client, "w", "x").await;
    let claim = claim("w", instance, "x");
    let client = server.client.clone();
    let (asked, answered) = (claim.clone(), client.clone());
    let waiting = tokio::spawn(async move { answered.claim(&asked, WAIT).await });
    // The claim is under way once its connection has been used.
    until("known", || async { client.agent(&claim.agent).await.unwrap().is_some() }).await;
    let start = Instant::now();
    server.stop().await;
    assert!(start.elapsed() < StdDuration::from_secs(6), "{:?}", start.elapsed());
    match waiting.await.unwrap() {
        Ok(leases) => assert!(leases.is_empty()),
        // It may not have got as far as to wait.
        Err(error) => assert!(error.is_transient(), "{error}"),
    }
}

#[tokio::test]
async fn a_worker_that_comes_too_late_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::whole(&dir).await;
    let client = &server.client;
    let id = client.submit(&task("x", "")).await.unwrap().id;
    let late = register(client, "late", "x").await;
    let mut short = claim("late", late, "x");
    short.lease = Duration::from_millis(100);
    let old = client.claim(&short, WAIT).await.unwrap().remove(0);
    let next = register(client, "next", "x").await;
    let new = client.claim(&claim("next", next, "x"), WAIT).await.unwrap().remove(0);
    assert_eq!((new.task, new.attempt), (id, 2));
    assert!(new.token > old.token);

    let old = LeaseRef { task: id, token: old.token };
    let new = LeaseRef { task: id, token: new.token };
    let result = |text| Payload::from_text(text);
    let too_late = Completion { lease: old, result: result("late") };
    let failure = Failure { lease: old, error: "late".to_owned(), retry: false };
    assert_eq!(client.complete(&[too_late]).await.unwrap(), [Outcome::Stale]);
    assert_eq!(client.fail(&[failure]).await.unwrap(), [Outcome::Stale]);
    let extended = client.extend(&[old, new], Duration::from_secs(60)).await.unwrap();
    assert_eq!(extended, [Outcome::Stale, Outcome::Accepted]);
    let done = Completion { lease: new, result: result("done") };
    for _ in 0..2 {
        let outcomes = client.complete(std::slice::from_ref(&done)).await.unwrap();
        assert_eq!(outcomes, [Outcome::Accepted]);
    }
    let task = reaches(client, id, TaskState::Completed).await;
    assert_eq!(task.result.unwrap().text(), "done");
}
