//! What people order: cancel, requeue, limits, schedules; and waiting for the end of a task.

use std::time::{Duration as StdDuration, Instant};

use resurgam_client::wire::{TaskFilter, TaskOrder};
use resurgam_model::limit::Limit;
use resurgam_model::schedule::NewSchedule;
use resurgam_model::task::{Change, Completion, LeaseRef, Outcome, TaskQuery, TaskState};
use resurgam_model::{Duration, Payload, ScheduleName, TaskId};

use crate::harness::*;

const WAIT: Duration = Duration::from_secs(30);

fn these(tasks: &[TaskId]) -> TaskOrder {
    TaskOrder { tasks: tasks.to_vec(), ..TaskOrder::default() }
}

#[tokio::test]
async fn tasks_are_taken_back_and_brought_back() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::whole(&dir).await;
    let client = &server.client;
    let life = register(client, "w", "x").await;
    let held = client.submit(&task("x", "held")).await.unwrap().id;
    let lease = client.claim(&claim("w", life, "x"), WAIT).await.unwrap().remove(0);
    let waits = client.submit(&task("x", "waits")).await.unwrap().id;
    let nobody = TaskId::new();
    let order = TaskOrder { reason: Some("not now".to_owned()), ..these(&[held, waits, nobody]) };
    let changes: Vec<_> =
        client.cancel(&order).await.unwrap().tasks.iter().map(|t| (t.task, t.change)).collect();
    assert_eq!(
        changes,
        [(held, Change::Changed), (waits, Change::Changed), (nobody, Change::Unknown)]
    );
    let found = client.task(held).await.unwrap().unwrap();
    assert_eq!((found.state, found.error.as_deref()), (TaskState::Cancelled, Some("not now")));
    // Its holder learns of it at its next word.
    let done = Completion {
        lease: LeaseRef { task: held, token: lease.token },
        result: Payload::from_text("late"),
    };
    assert_eq!(client.complete(&[done]).await.unwrap(), [Outcome::Stale]);
    let again = client.cancel(&these(&[held])).await.unwrap();
    assert_eq!(again.tasks[0].change, Change::Unchanged);

    let back = client.requeue(&these(&[held])).await.unwrap();
    assert_eq!(back.tasks[0].change, Change::Changed);
    let all = TaskFilter {
        capability: Some(capability("x")),
        state: Some(TaskState::Cancelled),
        ..TaskFilter::default()
    };
    let by_filter = TaskOrder { filter: Some(all), ..TaskOrder::default() };
    let back = client.requeue(&by_filter).await.unwrap();
    assert_eq!((back.tasks[0].task, back.tasks.len(), back.more), (waits, 1, false));
    let leases = client.claim(&claim("w", life, "x"), WAIT).await.unwrap();
    assert_eq!((leases[0].task, leases[0].attempt), (held, 1));
    assert!(leases[0].token > lease.token);

    let refused = client.requeue(&order).await.unwrap_err().to_string();
    assert!(refused.contains("requeueing needs none"), "{refused}");
    let everything = TaskOrder { filter: Some(TaskFilter::default()), ..TaskOrder::default() };
    let refused = client.cancel(&everything).await.unwrap_err().to_string();
    assert!(refused.contains("name at least one"), "{refused}");
    let dead = TaskFilter { state: Some(TaskState::Dead), ..TaskFilter::default() };
    let dead = TaskOrder { filter: Some(dead), ..TaskOrder::default() };
    let refused = client.cancel(&dead).await.unwrap_err().to_string();
    assert!(refused.contains("filter.state is dead"), "{refused}");
}

#[tokio::test]
async fn limits_hold_as_soon_as_they_are_set_and_as_long() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::whole(&dir).await;
    let client = &server.client;
    let life = register(client, "w", "x").await;
    let batch: Vec<_> = (0..3).map(|n| task("x", &n.to_string())).collect();
    client.submit_batch(&batch).await.unwrap();
    let limit = Limit { max_running: Some(1), ..Limit::default() };
    assert_eq!(client.set_limit(&capability("x"), &limit).await.unwrap(), limit);
    let all = client.limits().await.unwrap();
    assert_eq!((&all[0].capability, &all[0].limit, all.len()), (&capability("x"), &limit, 1));
    let many = resurgam_model::task::Claim { max: 9, ..claim("w", life, "x") };
    let first = client.claim(&many, Duration::default()).await.unwrap();
    assert_eq!(first.len(), 1);
    assert!(client.claim(&many, Duration::default()).await.unwrap().is_empty());
    // The next one begins when that one is over, without anybody asking.
    let (waiting, asked) = (client.clone(), many.clone());
    let waiting = tokio::spawn(async move { waiting.claim(&asked, WAIT).await });
    let lease = LeaseRef { task: first[0].task, token: first[0].token };
    let done = Completion { lease, result: Payload::from_text("done") };
    client.complete(&[done]).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().len(), 1);
    assert!(client.remove_limit(&capability("x")).await.unwrap());
    assert!(!client.remove_limit(&capability("x")).await.unwrap());
    assert_eq!(client.claim(&many, WAIT).await.unwrap().len(), 1);
    let nothing = Limit { max_running: Some(0), ..Limit::default() };
    assert!(client.set_limit(&capability("x"), &nothing).await.is_err());
}

#[tokio::test]
async fn schedules_hand_in_their_task_until_they_are_taken_away() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::whole(&dir).await;
    let client = &server.client;
    let name: ScheduleName = "every-second".parse().unwrap();
    let new: NewSchedule = serde_json::from_value(serde_json::json!({
        "cron": "* * * * * *", "task": {"capability": "x", "payload": 7}
    }))
    .unwrap();
    assert_eq!(client.schedule(&name).await.unwrap(), None);
    let made = client.put_schedule(&name, &new).await.unwrap();
    assert_eq!(made.name, name);
    assert_eq!(client.schedules().await.unwrap().len(), 1);
    until("fired", async || client.schedule(&name).await.unwrap().unwrap().last_task.is_some())
        .await;
    let query = TaskQuery { capability: Some(capability("x")), ..TaskQuery::default() };
    let fired = client.tasks(&query).await.unwrap();
    assert_eq!(fired[0].payload.json(), "7");
    // At rest it stays, and hands in nothing.
    let paused = NewSchedule { paused: true, ..new.clone() };
    let resting = client.put_schedule(&name, &paused).await.unwrap();
    assert_eq!(resting.next_at, None);
    assert!(client.remove_schedule(&name).await.unwrap());
    assert!(!client.remove_schedule(&name).await.unwrap());
    assert!(client.schedules().await.unwrap().is_empty());
    let keyed = NewSchedule {
        task: resurgam_model::task::NewTask {
            idempotency_key: Some("once".to_owned()),
            ..new.task.clone()
        },
        ..new
    };
    assert!(client.put_schedule(&name, &keyed).await.is_err());
}

#[tokio::test]
async fn who_waits_for_a_task_is_answered_when_it_is_over_or_the_time_is() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::whole(&dir).await;
    let client = &server.client;
    let id = client.submit(&task("x", "")).await.unwrap().id;
    let begun = Instant::now();
    let soon = client.wait_for(id, Duration::from_millis(200)).await.unwrap().unwrap();
    assert_eq!(soon.state, TaskState::Ready);
    assert!(begun.elapsed() >= StdDuration::from_millis(200));
    let waiting = client.clone();
    let waiting = tokio::spawn(async move { waiting.wait_for(id, WAIT).await });
    let life = register(client, "w", "x").await;
    let lease = client.claim(&claim("w", life, "x"), WAIT).await.unwrap().remove(0);
    let lease = LeaseRef { task: id, token: lease.token };
    let done = Completion { lease, result: Payload::from_text("done") };
    let begun = Instant::now();
    client.complete(&[done]).await.unwrap();
    let over = waiting.await.unwrap().unwrap().unwrap();
    assert_eq!((over.state, over.result.unwrap().text().as_ref()), (TaskState::Completed, "done"));
    assert!(begun.elapsed() < StdDuration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(client.wait_for(TaskId::new(), WAIT).await.unwrap(), None);
    // That it is cancelled is an end as well.
    let other = client.submit(&task("x", "")).await.unwrap().id;
    let waiting = client.clone();
    let waiting = tokio::spawn(async move { waiting.wait_for(other, WAIT).await });
    client.cancel(&these(&[other])).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().unwrap().state, TaskState::Cancelled);
}
