//! Tasks for agents that are near, and what holders say of how far they are.

use resurgam_model::agent::{AgentQuery, AgentState, Heartbeat};
use resurgam_model::limit::Limit;
use resurgam_model::task::{Fallback, LeaseRef, NewTask, Outcome, RetryPolicy, TaskState, Token};
use resurgam_model::{Duration, TaskId};

use crate::fixture::{
    Fixture, HOUR, NOTHING, agent, capability, failure, lease_ref, register, task, wanted,
};

crate::on_both! {
    what_nobody_near_begins_falls_to_others
    what_falls_keeps_to_the_limits_there
    what_falls_has_its_fallback_again_when_it_is_requeued_before
    a_note_shows_as_long_as_the_lease_holds
    the_busy_are_listed
}

fn near(after: Duration) -> NewTask {
    let fallback = Fallback { capability: capability("x"), after };
    NewTask { fallback: Some(fallback), ..task("x/zone:a") }
}

async fn what_nobody_near_begins_falls_to_others(store: Fixture) {
    let soon = Duration::from_millis(1);
    let submitted = store.submit(&[near(HOUR), near(soon), task("x"), near(soon)]).await.unwrap();
    let far = register(&store, "far").await;
    let state = async |n: usize| store.task(submitted[n].id).await.unwrap().unwrap();
    assert_eq!(state(0).await.fallback, near(HOUR).fallback);
    // One is begun in time by somebody near.
    let mut here = wanted("far", far, 1, HOUR);
    here.capabilities = vec![capability("x/zone:a")];
    let lease = store.claim(&here).await.unwrap().remove(0);
    assert_eq!(lease.task, submitted[0].id);
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    let mut fallen = 0;
    while fallen < 2 {
        fallen += store.promote(1).await.unwrap().promoted;
    }
    assert_eq!(store.promote(9).await.unwrap().next, None);
    let leases = store.claim(&wanted("far", far, 9, HOUR)).await.unwrap();
    // By age, as if they had always been there.
    let tasks: Vec<TaskId> = leases.iter().map(|lease| lease.task).collect();
    assert_eq!(tasks, [submitted[1].id, submitted[2].id, submitted[3].id]);
    assert!(leases.iter().all(|lease| lease.capability == capability("x")));
    assert_eq!(state(1).await.fallback, None);
    assert_eq!(state(0).await.capability, capability("x/zone:a"));
    // One that waits says when it is due.
    store.submit(&[near(HOUR)]).await.unwrap();
    let next = store.promote(9).await.unwrap().next.unwrap();
    assert!(next > resurgam_model::Timestamp::now());
}

async fn what_falls_keeps_to_the_limits_there(store: Fixture) {
    let limit = Limit { max_running: Some(1), fair: true, ..Limit::default() };
    store.set_limit(&capability("x"), &limit).await.unwrap();
    store.submit(&[near(NOTHING), near(NOTHING)]).await.unwrap();
    assert_eq!(store.promote(9).await.unwrap().promoted, 2);
    let w = register(&store, "w").await;
    assert_eq!(store.claim(&wanted("w", w, 9, HOUR)).await.unwrap().len(), 1);
    assert!(store.claim(&wanted("w", w, 9, HOUR)).await.unwrap().is_empty());
}

async fn what_falls_has_its_fallback_again_when_it_is_requeued_before(store: Fixture) {
    let id = store.submit(&[near(HOUR)]).await.unwrap()[0].id;
    store.cancel(&[id], "not now").await.unwrap();
    assert_eq!(store.task(id).await.unwrap().unwrap().fallback, near(HOUR).fallback);
    store.requeue(&[id]).await.unwrap();
    let again = store.task(id).await.unwrap().unwrap();
    assert_eq!((again.state, &again.fallback), (TaskState::Ready, &near(HOUR).fallback));
    assert!(store.promote(9).await.unwrap().next.is_some());
}

async fn a_note_shows_as_long_as_the_lease_holds(store: Fixture) {
    let mut new = task("x");
    new.retry = RetryPolicy { backoff: NOTHING, ..new.retry };
    let id = store.submit(&[new]).await.unwrap()[0].id;
    let w = register(&store, "w").await;
    let first = lease_ref(&store.claim(&wanted("w", w, 1, HOUR)).await.unwrap()[0]);
    let note = async || store.task(id).await.unwrap().unwrap().note;
    assert_eq!(note().await, None);
    let nobody = LeaseRef { task: TaskId::new(), token: Token(1) };
    let late = LeaseRef { token: Token(0), ..first };
    let said = store.note(&[first, nobody, late], "half of it").await.unwrap();
    assert_eq!(said, [Outcome::Accepted, Outcome::Unknown, Outcome::Stale]);
    assert_eq!(note().await.as_deref(), Some("half of it"));
    // The next holder begins anew.
    store.fail(&[failure(first, true)]).await.unwrap();
    store.promote(9).await.unwrap();
    assert_eq!(note().await, None);
    let second = lease_ref(&store.claim(&wanted("w", w, 1, HOUR)).await.unwrap()[0]);
    assert_eq!(store.note(&[first], "late").await.unwrap(), [Outcome::Stale]);
    assert_eq!(store.note(&[second], "more").await.unwrap(), [Outcome::Accepted]);
    assert_eq!(note().await.as_deref(), Some("more"));
    store.cancel(&[id], "enough").await.unwrap();
    assert_eq!(note().await, None);
    assert_eq!(store.note(&[second], "late").await.unwrap(), [Outcome::Stale]);
}

async fn the_busy_are_listed(store: Fixture) {
    for name in ["a", "b", "c"] {
        let life = register(&store, name).await;
        let load = (name != "b").then_some(99);
        store.heartbeat(&[Heartbeat { load, ..Heartbeat::new(agent(name), life) }]).await.unwrap();
    }
    let busy = AgentQuery { state: Some(AgentState::Busy), limit: 1, ..AgentQuery::default() };
    let first = store.agents(&busy).await.unwrap();
    assert_eq!(first.agents[0].id, agent("a"));
    let second = store.agents(&AgentQuery { after: first.next, ..busy }).await.unwrap();
    assert_eq!(second.agents[0].id, agent("c"));
}
