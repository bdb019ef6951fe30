//! Workers over a store, without HTTP in between.

use std::sync::Arc;

use resurgam_client::worker::{Job, handler, result};
use resurgam_model::Duration;
use resurgam_model::agent::HeartbeatTerms;
use resurgam_model::task::TaskState;
use resurgam_platform::Direct;
use resurgam_store::SharedStore;
use resurgam_testing::ScratchPostgres;

use crate::flaky::Flaky;
use crate::harness::*;
use crate::workers::Gate;

/// A queue that does not look for tasks by itself: only what it is told of wakes it.
fn deaf(store: &SharedStore) -> Direct {
    let never = Duration::from_secs(3600);
    Direct::with_recheck(Arc::clone(store), HeartbeatTerms::default(), never)
}

/// A database of its own, as two processes see it.
async fn postgres() -> [SharedStore; 2] {
    let server = ScratchPostgres::shared().unwrap();
    let database = server.create_database().await.unwrap();
    [(); 2].map(|()| {
        let settings = resurgam_store::postgres::Settings {
            url: server.url(&database),
            max_pool_size: 4,
            application_name: "test".to_owned(),
            timeout: std::time::Duration::from_secs(10),
        };
        resurgam_store::open(&resurgam_store::Settings::Postgres(settings)).unwrap()
    })
}

/// Waits until the agent is known, which it is before it claims.
async fn known(store: &SharedStore, id: &str) {
    until("registered", || async { store.agent(&agent(id)).await.unwrap().is_some() }).await;
}

async fn completed(store: &SharedStore, text: &str) {
    let id = store.submit(&[task("length", text)]).await.unwrap()[0].id;
    until("completed", || async {
        let task = store.task(id).await.unwrap().unwrap();
        let done = task.state == TaskState::Completed;
        assert!(!done || task.result.unwrap().json() == text.len().to_string());
        done
    })
    .await;
}

fn lengths() -> resurgam_client::worker::Worker {
    let length = handler(|job: Job| async move { result(&job.payload().text().len()) });
    worker("w").on(capability("length"), length)
}

#[tokio::test]
async fn a_task_handed_in_by_this_process_wakes_the_worker() {
    let dir = tempfile::tempdir().unwrap();
    let store = sqlite(dir.path());
    store.migrate().await.unwrap();
    let worker = Worker::over(deaf(&store), lengths());
    known(&store, "w").await;
    for text in ["a", "bb", "ccc"] {
        completed(&store, text).await;
    }
    worker.stop().await;
    assert_eq!(store.agent(&agent("w")).await.unwrap(), None);
}

#[tokio::test]
async fn a_task_handed_in_by_another_process_wakes_the_worker() {
    let [here, elsewhere] = postgres().await;
    let worker = Worker::over(deaf(&here), lengths());
    elsewhere.migrate().await.unwrap();
    known(&elsewhere, "w").await;
    for text in ["a", "bb", "ccc"] {
        completed(&elsewhere, text).await;
    }
    worker.stop().await;
}

#[tokio::test]
async fn results_outlast_an_outage_of_the_database() {
    let dir = tempfile::tempdir().unwrap();
    let store = sqlite(dir.path());
    store.migrate().await.unwrap();
    let flaky = Flaky::new(Arc::clone(&store), true);
    let gate = Gate::closed();
    let shared: SharedStore = flaky.clone();
    let direct = Direct::new(shared, HeartbeatTerms::default());
    let _worker = Worker::over(direct, worker("w").on(capability("x"), gate.clone()));
    let submitted = store.submit(&[task("x", "1"), task("x", "2")]).await.unwrap();
    flaky.set_away(false);
    gate.running(2).await;
    flaky.set_away(true);
    gate.open();
    gate.running(0).await;
    flaky.set_away(false);
    for submitted in submitted {
        until("completed", || async {
            let task = store.task(submitted.id).await.unwrap().unwrap();
            assert_eq!(task.attempts, 1, "the work was done twice");
            task.state == TaskState::Completed
        })
        .await;
    }
}

#[tokio::test]
async fn a_result_that_is_too_large_is_the_end_here_too() {
    let dir = tempfile::tempdir().unwrap();
    let store = sqlite(dir.path());
    store.migrate().await.unwrap();
    let large = handler(|_: Job| async { result(&"x".repeat(1024 * 1024)) });
    let _worker = Worker::over(deaf(&store), worker("w").on(capability("x"), large));
    let id = store.submit(&[task("x", "")]).await.unwrap()[0].id;
    until("dead", || async {
        let task = store.task(id).await.unwrap().unwrap();
        task.state == TaskState::Dead && task.error.unwrap().starts_with("the result was refused")
    })
    .await;
}
