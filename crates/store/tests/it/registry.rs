//! The contract of the registry.

use std::collections::BTreeMap;

use resurgam_model::agent::{
    AgentCursor, AgentOrder, AgentQuery, AgentState, Heartbeat, HeartbeatTerms, OwnState,
};
use resurgam_model::task::{Failure, Outcome, RetryPolicy, TaskState};
use resurgam_model::{Duration, InstanceId, Timestamp};
use resurgam_store::{Error, Expired, FAILING_AFTER, FAILING_FOR, LeasesOf, Order, Registered};

use crate::fixture::{
    Fixture, HOUR, NOTHING, agent, capability, claimed, completion, lease_ref, register,
    registration, task, wanted,
};

crate::on_both! {
    an_agent_keeps_what_it_said_of_itself
    a_new_life_returns_the_leases_of_the_earlier_ones
    many_register_at_once
    heartbeats_say_who_must_register_again
    the_silent_are_declared_gone_and_come_back
    leaving_in_order_returns_the_leases
    agents_are_listed_by_name
    agents_are_found_by_what_they_can_do_and_by_their_labels
    the_one_with_the_most_free_places_comes_first
    who_drains_or_is_unhealthy_is_given_no_tasks
    whose_tries_keep_failing_is_given_no_tasks_for_a_while
    what_a_life_said_of_itself_ends_with_it
    everybody_is_judged_by_their_own_terms_and_by_what_could_be_seen
    who_is_gone_for_long_is_forgotten
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
    assert_eq!((found.capacity, found.running, found.free), (u32::MAX, 0, u32::MAX));
    assert_eq!(found.version.as_deref(), Some("1.2"));

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

async fn many_register_at_once(store: Fixture) {
    store.submit(&[task("x"), task("x"), task("x")]).await.unwrap();
    let (old, other) = (register(&store, "a").await, register(&store, "b").await);
    assert_eq!(store.claim(&wanted("a", old, 2, HOUR)).await.unwrap().len(), 2);
    assert_eq!(store.claim(&wanted("b", other, 1, HOUR)).await.unwrap().len(), 1);

    let (new, newest) = (InstanceId::new(), InstanceId::new());
    let mut changed = registration("c", newest);
    changed.capabilities = vec![capability("y"), capability("y"), capability("odd.b_c-1")];
    changed.labels = BTreeMap::from([("zone".to_owned(), "it's \"odd\"".to_owned())]);
    let all = [
        registration("c", new),
        registration("b", other),
        registration("a", new),
        changed.clone(),
        registration("a", newest),
    ];
    let all = all.map(|registration| (registration, HeartbeatTerms::default()));
    let returned = store.register_all(&all).await.unwrap();
    let returned: Vec<_> = returned.iter().map(|answer| answer.leases_returned).collect();
    assert_eq!(returned, [0, 0, 2, 0, 0]);
    // Of two the later one counts.
    for (name, life, running) in [("a", newest, 0), ("b", other, 1), ("c", newest, 0)] {
        let found = store.agent(&agent(name)).await.unwrap().unwrap();
        assert_eq!((found.instance, found.running), (life, running), "{name}");
    }
    let found = store.agent(&agent("c")).await.unwrap().unwrap();
    assert_eq!(found.labels, changed.labels);
    let can =
        |what: &str| AgentQuery { capability: Some(capability(what)), ..AgentQuery::default() };
    assert_eq!(names(&store, can("x")).await, "a b");
    assert_eq!(names(&store, can("y")).await, "c");
    assert_eq!(names(&store, can("odd.b_c-1")).await, "c");
    let odd = AgentQuery { labels: changed.labels, ..AgentQuery::default() };
    assert_eq!(names(&store, odd).await, "c");
    assert_eq!(store.claim(&wanted("a", newest, 9, HOUR)).await.unwrap().len(), 2);
    assert!(store.register_all(&[]).await.unwrap().is_empty());
}

async fn heartbeats_say_who_must_register_again(store: Fixture) {
    let old = register(&store, "a").await;
    let new = register(&store, "a").await;
    let other = register(&store, "b").await;
    let before = store.agent(&agent("b")).await.unwrap().unwrap().seen_at;
    let beats = [("b", other), ("nobody", other), ("a", old), ("a", new), ("b", other)]
        .map(|(name, life)| beat(name, life));
    let known = store.heartbeat(&beats).await.unwrap();
    assert_eq!(known, [true, false, false, true, true]);
    assert!(store.agent(&agent("b")).await.unwrap().unwrap().seen_at > before);
    assert!(store.heartbeat(&[]).await.unwrap().is_empty());
}

async fn the_silent_are_declared_gone_and_come_back(store: Fixture) {
    let lease = claimed(&store, task("x"), HOUR).await;
    let w = register(&store, "w").await;
    let holder = store.agent(&agent("holder")).await.unwrap().unwrap().instance;
    assert_eq!(store.expire(HOUR, HOUR, 9).await.unwrap(), Expired::default());
    for (name, life) in [("holder", holder), ("w", w)] {
        store.register_under(&registration(name, life), &AT_ONCE).await.unwrap();
    }
    let expired = store.expire(HOUR, HOUR, 9).await.unwrap();
    assert_eq!(expired.gone, [agent("holder"), agent("w")]);
    assert_eq!(store.expire(HOUR, HOUR, 9).await.unwrap(), Expired::default());
    assert_eq!(store.agent(&agent("w")).await.unwrap().unwrap().state, AgentState::Gone);
    assert_eq!(store.task(lease.task).await.unwrap().unwrap().state, TaskState::Ready);
    assert_eq!(store.heartbeat(&[beat("w", w)]).await.unwrap(), [false]);
    assert!(store.claim(&wanted("w", w, 1, HOUR)).await.is_err());
    store.register(&registration("w", w)).await.unwrap();
    assert_eq!(store.heartbeat(&[beat("w", w)]).await.unwrap(), [true]);
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
    let mut query = AgentQuery { limit: 2, ..AgentQuery::default() };
    assert_eq!(pages(&store, &mut query).await, ["B a", "a-1 a1", "b"]);
}

/// The names on each page.
async fn pages(store: &Fixture, query: &mut AgentQuery) -> Vec<String> {
    let mut pages = Vec::new();
    loop {
        let page = store.agents(query).await.unwrap();
        let names: Vec<_> = page.agents.iter().map(|agent| agent.id.as_str()).collect();
        if !names.is_empty() {
            pages.push(names.join(" "));
        }
        match page.next {
            // What is handed out must be what is taken.
            Some(next) => {
                query.after = Some(AgentCursor::parse(&next.to_string(), query.sort).unwrap());
            }
            None => return pages,
        }
    }
}

async fn names(store: &Fixture, query: AgentQuery) -> String {
    pages(store, &mut AgentQuery { limit: 2, ..query }).await.join(" ")
}

fn beat(name: &str, life: InstanceId) -> Heartbeat {
    Heartbeat::new(agent(name), life)
}

fn says(name: &str, life: InstanceId, state: OwnState) -> Heartbeat {
    Heartbeat { state: Some(state), reason: Some("so it is".to_owned()), ..beat(name, life) }
}

async fn state(store: &Fixture, name: &str) -> AgentState {
    store.agent(&agent(name)).await.unwrap().unwrap().state
}

async fn agents_are_found_by_what_they_can_do_and_by_their_labels(store: Fixture) {
    for (name, can, zone) in
        [("1", "x", "a"), ("2", "y", "a"), ("3", "x", "b"), ("4", "x", "a"), ("5", "", "a")]
    {
        let mut registration = registration(name, InstanceId::new());
        registration.capabilities =
            can.chars().flat_map(|c| [capability(&c.to_string()), capability("all")]).collect();
        registration.labels.insert("zone".to_owned(), zone.to_owned());
        registration.labels.insert("team".to_owned(), format!("team {name}"));
        store.register(&registration).await.unwrap();
    }
    let zone = |zone: &str| BTreeMap::from([("zone".to_owned(), zone.to_owned())]);
    let everybody = AgentQuery::default();
    let x = AgentQuery { capability: Some(capability("x")), ..everybody.clone() };
    assert_eq!(names(&store, everybody.clone()).await, "1 2 3 4 5");
    assert_eq!(names(&store, x.clone()).await, "1 3 4");
    assert_eq!(names(&store, AgentQuery { labels: zone("a"), ..x.clone() }).await, "1 4");
    assert_eq!(
        names(&store, AgentQuery { labels: zone("a"), ..everybody.clone() }).await,
        "1 2 4 5"
    );
    assert_eq!(names(&store, AgentQuery { labels: zone("c"), ..x.clone() }).await, "");
    let mut both = zone("a");
    both.insert("team".to_owned(), "team 4".to_owned());
    assert_eq!(names(&store, AgentQuery { labels: both, ..everybody.clone() }).await, "4");

    // What it said of itself before counts no more.
    let mut changed = registration("1", InstanceId::new());
    changed.capabilities = vec![capability("y")];
    store.register(&changed).await.unwrap();
    assert_eq!(names(&store, x.clone()).await, "3 4");
    let y = AgentQuery { capability: Some(capability("y")), ..everybody };
    assert_eq!(names(&store, y).await, "1 2");
    let four = store.agent(&agent("4")).await.unwrap().unwrap().instance;
    store.deregister(&agent("4"), four).await.unwrap();
    assert_eq!(names(&store, AgentQuery { labels: zone("a"), ..x }).await, "");
}

async fn the_one_with_the_most_free_places_comes_first(store: Fixture) {
    let mut lives = BTreeMap::new();
    for (name, capacity) in [("a", 3), ("b", 5), ("c", 4), ("d", 4), ("e", 1)] {
        let mut registration = registration(name, InstanceId::new());
        registration.capacity = capacity;
        store.register(&registration).await.unwrap();
        lives.insert(name, registration.instance);
    }
    let by_load = AgentQuery {
        capability: Some(capability("x")),
        sort: AgentOrder::Load,
        ..AgentQuery::default()
    };
    assert_eq!(names(&store, by_load.clone()).await, "b c d a e");
    let says = |name: &str, load| Heartbeat { load: Some(load), ..beat(name, lives[name]) };
    store.heartbeat(&[says("b", 4), says("d", 2), says("e", 7)]).await.unwrap();
    assert_eq!(names(&store, by_load.clone()).await, "c a d b e");
    let of = |state| AgentQuery { state: Some(state), ..by_load.clone() };
    assert_eq!(names(&store, of(AgentState::Available)).await, "c a d b");
    assert_eq!(names(&store, of(AgentState::Busy)).await, "e");
    let busy = AgentQuery { state: Some(AgentState::Busy), ..AgentQuery::default() };
    assert_eq!(names(&store, busy).await, "e");
    assert_eq!(state(&store, "e").await, AgentState::Busy);

    // Leases count as well, once they were counted.
    store.submit(&[task("x"), task("x"), task("x")]).await.unwrap();
    store.claim(&wanted("c", lives["c"], 3, HOUR)).await.unwrap();
    assert_eq!(store.count_held(100).await.unwrap(), 1);
    assert_eq!(store.count_held(100).await.unwrap(), 0);
    assert_eq!(names(&store, by_load.clone()).await, "a d b c e");
    assert_eq!(store.agent(&agent("c")).await.unwrap().unwrap().free, 1);
    store.return_leases(&agent("c"), LeasesOf::Life(lives["c"])).await.unwrap();
    assert_eq!(store.count_held(100).await.unwrap(), 1);
    assert_eq!(names(&store, by_load.clone()).await, "c a d b e");

    store.heartbeat(&[says_state(&lives, "c"), beat("a", lives["a"])]).await.unwrap();
    assert_eq!(names(&store, by_load.clone()).await, "a d b e");
    assert_eq!(names(&store, of(AgentState::Draining)).await, "c");
}

fn says_state(lives: &BTreeMap<&str, InstanceId>, name: &str) -> Heartbeat {
    says(name, lives[name], OwnState::Draining)
}

async fn who_drains_or_is_unhealthy_is_given_no_tasks(store: Fixture) {
    store.submit(&[task("x"), task("x"), task("x")]).await.unwrap();
    let w = register(&store, "w").await;
    let claim = wanted("w", w, 1, HOUR);
    let refused = |expected| {
        let (store, claim) = (&store, &claim);
        async move {
            match store.claim(claim).await.unwrap_err() {
                Error::NoTasks { agent, state } => {
                    assert_eq!((agent, state), (claim.agent.clone(), expected));
                }
                other => panic!("{other}"),
            }
        }
    };
    let held = store.claim(&claim).await.unwrap().remove(0);
    for said in [OwnState::Draining, OwnState::Unhealthy] {
        assert_eq!(store.heartbeat(&[says("w", w, said)]).await.unwrap(), [true]);
        let found = store.agent(&agent("w")).await.unwrap().unwrap();
        assert_eq!(found.reason.as_deref(), Some("so it is"));
        refused(found.state).await;
        // A plain heartbeat takes nothing back.
        assert_eq!(store.heartbeat(&[beat("w", w)]).await.unwrap(), [true]);
        refused(found.state).await;
        store.heartbeat(&[says("w", w, OwnState::Available)]).await.unwrap();
        assert_eq!(state(&store, "w").await, AgentState::Available);
    }
    store.claim(&claim).await.unwrap();

    // An operator's order outlasts lives, and what it has it may finish.
    let order = Order::Drain(Some("a new disk".to_owned()));
    let drained = store.order(&agent("w"), &order).await.unwrap().unwrap();
    assert_eq!(drained.state, AgentState::Draining);
    assert_eq!(drained.reason.as_deref(), Some("a new disk"));
    store.heartbeat(&[says("w", w, OwnState::Available)]).await.unwrap();
    refused(AgentState::Draining).await;
    let done = store.complete(&[completion(lease_ref(&held))]).await.unwrap();
    assert_eq!(done, [Outcome::Accepted]);
    store.register(&registration("w", w)).await.unwrap();
    refused(AgentState::Draining).await;
    let resumed = store.order(&agent("w"), &Order::Resume).await.unwrap().unwrap();
    assert_eq!((resumed.state, resumed.reason), (AgentState::Available, None));
    store.claim(&claim).await.unwrap();
    assert_eq!(store.order(&agent("nobody"), &Order::Resume).await.unwrap(), None);
}

/// Claims a task, and fails it.
async fn fails(store: &Fixture, life: InstanceId, retry: bool) {
    let mut later = task("x");
    later.retry = RetryPolicy { backoff: HOUR, max_backoff: HOUR, max_attempts: 2, ..later.retry };
    store.submit(&[later]).await.unwrap();
    let lease = store.claim(&wanted("w", life, 1, HOUR)).await.unwrap().remove(0);
    let failure =
        Failure { lease: lease_ref(&lease), error: "it does not work here".to_owned(), retry };
    // Said twice, it counts once.
    for _ in 0..2 {
        assert_eq!(store.fail(std::slice::from_ref(&failure)).await.unwrap(), [Outcome::Accepted]);
    }
}

async fn whose_tries_keep_failing_is_given_no_tasks_for_a_while(store: Fixture) {
    let life = register(&store, "w").await;
    // One that it has before all that, and that will succeed.
    store.submit(&[task("x")]).await.unwrap();
    let good = store.claim(&wanted("w", life, 1, HOUR)).await.unwrap().remove(0);
    // A task that fails again and again is one.
    let mut stubborn = task("x");
    stubborn.retry = RetryPolicy { backoff: NOTHING, max_attempts: 30, ..stubborn.retry };
    store.submit(&[stubborn]).await.unwrap();
    for _ in 0..20 {
        store.promote(9).await.unwrap();
        let lease = store.claim(&wanted("w", life, 1, HOUR)).await.unwrap().remove(0);
        let failure = Failure { lease: lease_ref(&lease), error: "again".to_owned(), retry: true };
        store.fail(&[failure]).await.unwrap();
    }
    store.promote(9).await.unwrap();
    let stubborn = store.claim(&wanted("w", life, 1, HOUR)).await.unwrap().remove(0);
    // What cannot be done anywhere says nothing of who tried.
    for _ in 0..FAILING_AFTER {
        fails(&store, life, false).await;
    }
    for _ in 0..FAILING_AFTER - 2 {
        fails(&store, life, true).await;
    }
    assert_eq!(state(&store, "w").await, AgentState::Available);
    fails(&store, life, true).await;
    let found = store.agent(&agent("w")).await.unwrap().unwrap();
    assert_eq!((found.state, found.free), (AgentState::Unhealthy, 0));
    assert_eq!(found.reason.as_deref(), Some("10 tasks failed one after the other"));
    let refused = store.claim(&wanted("w", life, 1, HOUR)).await.unwrap_err();
    assert!(matches!(refused, Error::NoTasks { state: AgentState::Unhealthy, .. }), "{refused:?}");
    let free = AgentQuery {
        capability: Some(capability("x")),
        sort: AgentOrder::Load,
        ..AgentQuery::default()
    };
    assert_eq!(names(&store, free.clone()).await, "");
    // That it says it is well changes nothing.
    store.heartbeat(&[says("w", life, OwnState::Available)]).await.unwrap();
    assert_eq!(state(&store, "w").await, AgentState::Unhealthy);

    // After a while it is tried again, and one more is enough.
    assert!(store.forgive(NOTHING).await.unwrap().is_empty());
    assert_eq!(store.forgive(FAILING_FOR).await.unwrap(), [agent("w")]);
    assert_eq!(names(&store, free.clone()).await, "w");
    fails(&store, life, true).await;
    assert_eq!(state(&store, "w").await, AgentState::Unhealthy);

    // Something that it still has succeeds.
    store.complete(&[completion(lease_ref(&good))]).await.unwrap();
    let found = store.agent(&agent("w")).await.unwrap().unwrap();
    assert_eq!((found.state, found.reason), (AgentState::Available, None));
    assert_eq!(names(&store, free).await, "w");
    for _ in 0..FAILING_AFTER - 1 {
        fails(&store, life, true).await;
    }
    assert_eq!(state(&store, "w").await, AgentState::Available);
    fails(&store, life, true).await;
    assert_eq!(state(&store, "w").await, AgentState::Unhealthy);
    store.cancel(&[stubborn.task], "enough").await.unwrap();
    // A new life begins anew, and so does one that an operator resumes.
    let next = register(&store, "w").await;
    assert_eq!(state(&store, "w").await, AgentState::Available);
    for _ in 0..FAILING_AFTER {
        fails(&store, next, true).await;
    }
    assert_eq!(state(&store, "w").await, AgentState::Unhealthy);
    store.order(&agent("w"), &Order::Resume).await.unwrap();
    assert_eq!(state(&store, "w").await, AgentState::Available);
    fails(&store, next, true).await;
    assert_eq!(state(&store, "w").await, AgentState::Available);
}

async fn what_a_life_said_of_itself_ends_with_it(store: Fixture) {
    let w = register(&store, "w").await;
    store.heartbeat(&[says("w", w, OwnState::Unhealthy)]).await.unwrap();
    store.register(&registration("w", w)).await.unwrap();
    assert_eq!(state(&store, "w").await, AgentState::Unhealthy);
    register(&store, "w").await;
    let found = store.agent(&agent("w")).await.unwrap().unwrap();
    assert_eq!((found.state, found.reason), (AgentState::Available, None));
}

async fn everybody_is_judged_by_their_own_terms_and_by_what_could_be_seen(store: Fixture) {
    let long = HeartbeatTerms { every: HOUR, expire_after: HOUR };
    for (name, terms) in [("long", long), ("short", AT_ONCE)] {
        store.register_under(&registration(name, InstanceId::new()), &terms).await.unwrap();
    }
    assert_eq!(store.agent(&agent("long")).await.unwrap().unwrap().heartbeat, long);
    assert_eq!(store.expire(HOUR, HOUR, 9).await.unwrap().gone, [agent("short")]);

    // One that is late, as far as is known, by a registry that has only just begun to watch.
    let terms = HeartbeatTerms { every: NOTHING, expire_after: Duration::from_millis(1) };
    let late = registration("late", InstanceId::new());
    store.register_under(&late, &terms).await.unwrap();
    let overdue = || async {
        store.agent(&late.id).await.unwrap().unwrap().seen_at.as_millisecond() + 2
            < Timestamp::now().as_millisecond()
    };
    while !overdue().await {}
    let spared = store.expire(NOTHING, HOUR, 9).await.unwrap();
    assert_eq!((spared.gone.len(), spared.seen), (0, 1));
    while store.expire(HOUR, HOUR, 9).await.unwrap().gone.is_empty() {}
    assert_eq!(state(&store, "late").await, AgentState::Gone);
    assert_eq!(state(&store, "long").await, AgentState::Available);
}

async fn who_is_gone_for_long_is_forgotten(store: Fixture) {
    store.register_under(&registration("w", InstanceId::new()), &AT_ONCE).await.unwrap();
    store.register_under(&registration("v", InstanceId::new()), &AT_ONCE).await.unwrap();
    assert_eq!(store.expire(HOUR, NOTHING, 1).await.unwrap().gone.len(), 1);
    let mut removed = 0;
    while removed < 2 {
        removed += store.expire(HOUR, NOTHING, 1).await.unwrap().removed;
    }
    let x = AgentQuery { capability: Some(capability("x")), ..AgentQuery::default() };
    assert_eq!(names(&store, AgentQuery::default()).await, "");
    assert_eq!(names(&store, x).await, "");
}
