//! The contract of the registry.

use resurgam_model::InstanceId;
use resurgam_model::agent::{AgentState, HeartbeatTerms};
use resurgam_model::task::TaskState;
use resurgam_store::Registered;

use crate::fixture::{
    Fixture, HOUR, NOTHING, agent, claimed, register, registration, task, wanted,
};

crate::on_both! {
    an_agent_keeps_what_it_said_of_itself
    a_new_life_returns_the_leases_of_the_earlier_ones
    heartbeats_say_who_must_register_again
    the_silent_are_declared_gone_and_come_back
    leaving_in_order_returns_the_leases
    agents_are_listed_by_name
}

const AT_ONCE: HeartbeatTerms = HeartbeatTerms { every: NOTHING, expire_after: NOTHING };

async fn an_agent_keeps_what_it_said_of_itself(store: Fixture) {
    let mut said = registration("w", InstanceId::new());
    said.capacity = u32::MAX;
    store.register(&said).await.unwrap();
    let found = store.agent(&said.id).await.unwrap().unwrap();
    assert_eq!((&found.id, found.instance), (&said.id, said.instance));
    assert_eq!(found.state, AgentState::Available);
    assert_eq!((&found.capabilities, &found.labels), (&said.capabilities, &said.labels));
    assert_eq!((found.capacity, found.running), (u32::MAX, 0));

    // The same life again refreshes what it said, and stays the same life.
    said.labels.clear();
    store.register(&said).await.unwrap();
    let again = store.agent(&said.id).await.unwrap().unwrap();
    assert!(again.labels.is_empty());
    assert_eq!(again.registered_at, found.registered_at);
    assert!(again.seen_at > found.seen_at);

    said.instance = InstanceId::new();
    store.register(&said).await.unwrap();
    let next = store.agent(&said.id).await.unwrap().unwrap();
    assert!(next.registered_at > found.registered_at);
    assert_eq!(store.agent(&agent("nobody")).await.unwrap(), None);
}

async fn a_new_life_returns_the_leases_of_the_earlier_ones(store: Fixture) {
    let mut mortal = task("x");
    mortal.retry.max_attempts = 1;
    mortal.reply_to = Some(agent("boss"));
    store.submit(&[task("x"), mortal, task("x")]).await.unwrap();
    let first = InstanceId::new();
    store.register(&registration("w", first)).await.unwrap();
    let leases = store.claim(&wanted("w", first, 2, HOUR)).await.unwrap();
    assert_eq!(store.agent(&agent("w")).await.unwrap().unwrap().running, 2);
    let same = store.register(&registration("w", first)).await.unwrap();
    assert_eq!(same, Registered { leases_returned: 0 });
    let next = store.register(&registration("w", InstanceId::new())).await.unwrap();
    assert_eq!(next, Registered { leases_returned: 2 });
    let states = [store.task(leases[0].task).await, store.task(leases[1].task).await];
    let states = states.map(|found| found.unwrap().unwrap().state);
    assert_eq!(states, [TaskState::Ready, TaskState::Dead]);
    assert_eq!(store.receive(&agent("boss"), None, 9).await.unwrap().len(), 1);
    assert_eq!(store.agent(&agent("w")).await.unwrap().unwrap().running, 0);
}

async fn heartbeats_say_who_must_register_again(store: Fixture) {
    let old = register(&store, "a").await;
    let new = register(&store, "a").await;
    let other = register(&store, "b").await;
    let before = store.agent(&agent("b")).await.unwrap().unwrap().seen_at;
    let beats = [
        (agent("b"), other),
        (agent("nobody"), other),
        (agent("a"), old),
        (agent("a"), new),
        (agent("b"), other),
    ];
    let known = store.heartbeat(&beats).await.unwrap();
    assert_eq!(known, [true, false, false, true, true]);
    assert!(store.agent(&agent("b")).await.unwrap().unwrap().seen_at > before);
    assert!(store.heartbeat(&[]).await.unwrap().is_empty());
}

async fn the_silent_are_declared_gone_and_come_back(store: Fixture) {
    let lease = claimed(&store, task("x"), HOUR).await;
    let w = register(&store, "w").await;
    assert!(store.expire(&HeartbeatTerms::default()).await.unwrap().is_empty());
    assert_eq!(store.expire(&AT_ONCE).await.unwrap(), [agent("holder"), agent("w")]);
    assert!(store.expire(&AT_ONCE).await.unwrap().is_empty());
    assert_eq!(store.agent(&agent("w")).await.unwrap().unwrap().state, AgentState::Gone);
    assert_eq!(store.task(lease.task).await.unwrap().unwrap().state, TaskState::Ready);
    assert_eq!(store.heartbeat(&[(agent("w"), w)]).await.unwrap(), [false]);
    assert!(store.claim(&wanted("w", w, 1, HOUR)).await.is_err());
    store.register(&registration("w", w)).await.unwrap();
    assert_eq!(store.heartbeat(&[(agent("w"), w)]).await.unwrap(), [true]);
    assert_eq!(store.claim(&wanted("w", w, 1, HOUR)).await.unwrap().len(), 1);
}

async fn leaving_in_order_returns_the_leases(store: Fixture) {
    store.submit(&[task("x")]).await.unwrap();
    let w = register(&store, "w").await;
    let lease = store.claim(&wanted("w", w, 1, HOUR)).await.unwrap().remove(0);
    store.deregister(&agent("w"), InstanceId::new()).await.unwrap();
    store.deregister(&agent("nobody"), w).await.unwrap();
    assert_eq!(store.task(lease.task).await.unwrap().unwrap().state, TaskState::Running);
    for _ in 0..2 {
        store.deregister(&agent("w"), w).await.unwrap();
        assert_eq!(store.agent(&agent("w")).await.unwrap(), None);
    }
    assert_eq!(store.task(lease.task).await.unwrap().unwrap().state, TaskState::Ready);
}

async fn agents_are_listed_by_name(store: Fixture) {
    for name in ["b", "a", "B", "a-1", "a1"] {
        register(&store, name).await;
    }
    let agents = store.agents().await.unwrap();
    let names: Vec<_> = agents.iter().map(|a| a.id.as_str()).collect();
    assert_eq!(names, ["B", "a", "a-1", "a1", "b"]);
}
