//! Many at once.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use resurgam_model::message::NewMessage;
use resurgam_model::task::{Completion, Outcome};
use resurgam_model::{MessageId, Payload, TaskId};
use resurgam_store::SharedStore;
use tokio::task::JoinSet;

use crate::fixture::{
    Fixture, HOUR, NOTHING, agent, lease_ref, register, registration, task, wanted,
};

crate::on_both! {
    no_two_claimers_get_the_same_lease
    each_task_is_completed_once_while_leases_are_lost
    one_of_many_who_hand_in_a_key_creates_the_task
    a_receiver_that_goes_on_after_the_last_number_misses_nothing
    new_lives_and_old_claims_leave_no_lease_behind
}

async fn no_two_claimers_get_the_same_lease(store: Fixture) {
    const TASKS: usize = 600;
    store.submit(&vec![task("x"); TASKS]).await.unwrap();
    let mut claimers = JoinSet::new();
    for n in 0..12 {
        let store = Arc::clone(&store);
        claimers.spawn(async move {
            let name = format!("w{n}");
            let instance = register(&store, &name).await;
            let mut mine = Vec::new();
            loop {
                let leases = store.claim(&wanted(&name, instance, 7, HOUR)).await.unwrap();
                if leases.is_empty() {
                    return mine;
                }
                mine.extend(leases.into_iter().map(|lease| lease.task));
            }
        });
    }
    let mut all: Vec<TaskId> = claimers.join_all().await.into_iter().flatten().collect();
    // Claimers that found the rest locked by others may have left before these were done.
    let last = register(&store, "last").await;
    let rest = store.claim(&wanted("last", last, 1000, HOUR)).await.unwrap();
    all.extend(rest.into_iter().map(|lease| lease.task));
    assert_eq!(all.len(), TASKS);
    assert_eq!(all.into_iter().collect::<HashSet<_>>().len(), TASKS);
}

async fn each_task_is_completed_once_while_leases_are_lost(store: Fixture) {
    const TASKS: usize = 150;
    let mut new = task("x");
    new.reply_to = Some(agent("boss"));
    new.retry.max_attempts = u32::MAX;
    store.submit(&vec![new; TASKS]).await.unwrap();
    let done = Arc::new(AtomicUsize::new(0));
    let mut all = JoinSet::new();
    for n in 0..8_u32 {
        let (store, done) = (Arc::clone(&store), Arc::clone(&done));
        all.spawn(async move {
            let name = format!("w{n}");
            let instance = register(&store, &name).await;
            let mut accepted = Vec::new();
            while done.load(Ordering::Relaxed) < TASKS {
                // Half of them are always late, so that taking back and completing race.
                let lease = if n % 2 == 0 { HOUR } else { NOTHING };
                let leases = store.claim(&wanted(&name, instance, 5, lease)).await.unwrap();
                let result = Payload::from_text(&name);
                let words: Vec<_> = leases
                    .iter()
                    .rev()
                    .map(|l| Completion { lease: lease_ref(l), result: result.clone() })
                    .collect();
                let outcomes = store.complete(&words).await.unwrap();
                for (word, outcome) in words.iter().zip(outcomes) {
                    if outcome == Outcome::Accepted {
                        accepted.push((word.lease.task, word.result.clone()));
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
            accepted
        });
    }
    for _ in 0..2 {
        let (store, done) = (Arc::clone(&store), Arc::clone(&done));
        all.spawn(async move {
            while done.load(Ordering::Relaxed) < TASKS {
                store.return_expired(20).await.unwrap();
            }
            Vec::new()
        });
    }
    let accepted: Vec<_> = all.join_all().await.into_iter().flatten().collect();
    assert_eq!(accepted.len(), TASKS);
    let accepted: HashMap<_, _> = accepted.into_iter().collect();
    assert_eq!(accepted.len(), TASKS);
    for (id, result) in accepted {
        assert_eq!(store.task(id).await.unwrap().unwrap().result, Some(result));
    }
    assert_eq!(store.receive(&agent("boss"), None, 1000).await.unwrap().len(), TASKS);
}

async fn one_of_many_who_hand_in_a_key_creates_the_task(store: Fixture) {
    const KEYS: usize = 20;
    let mut all = JoinSet::new();
    for n in 0..8 {
        let store = Arc::clone(&store);
        all.spawn(async move {
            let mut new: Vec<_> = (0..KEYS)
                .map(|key| {
                    let mut new = task("x");
                    new.idempotency_key = Some(format!("key-{key}"));
                    new
                })
                .collect();
            // Everyone in another order: the worst case for waiting for each other.
            new.rotate_left(n * 2);
            if n % 2 == 0 {
                new.reverse();
            }
            let submitted = store.submit(&new).await.unwrap();
            new.into_iter().map(|new| new.idempotency_key).zip(submitted).collect::<Vec<_>>()
        });
    }
    let all: Vec<_> = all.join_all().await.into_iter().flatten().collect();
    assert_eq!(all.iter().filter(|(_, submitted)| submitted.created).count(), KEYS);
    let ids: HashSet<_> = all.iter().map(|(key, submitted)| (key.clone(), submitted.id)).collect();
    assert_eq!(ids.len(), KEYS);
}

async fn a_receiver_that_goes_on_after_the_last_number_misses_nothing(store: Fixture) {
    const EACH: usize = 60;
    let mut senders = JoinSet::new();
    for sender in 0..8 {
        let store = Arc::clone(&store);
        senders.spawn(async move {
            for n in 0..EACH {
                let letter = |to: &str| NewMessage {
                    id: MessageId::new(),
                    topic: "t".to_owned(),
                    to: agent(to),
                    from: None,
                    kind: "k".to_owned(),
                    body: Payload::from_text(&format!("{sender} {n}")),
                    reply_to: None,
                    in_reply_to: None,
                    ttl: None,
                };
                // Both mailboxes in one call, in either order.
                let mut letters = [letter("a"), letter("b")];
                if sender % 2 == 0 {
                    letters.reverse();
                }
                store.send(&letters).await.unwrap();
            }
        });
    }
    let mut receivers = JoinSet::new();
    for name in ["a", "b"] {
        let store = Arc::clone(&store);
        receivers.spawn(async move {
            let (mut after, mut seen) = (None, HashSet::new());
            // Would go round for ever if it missed one: the test's time limit is the judge.
            while seen.len() < 8 * EACH {
                for message in store.receive(&agent(name), after, 10).await.unwrap() {
                    assert!(after < Some(message.sequence));
                    after = Some(message.sequence);
                    seen.insert(message.id);
                }
            }
        });
    }
    senders.join_all().await;
    let all = tokio::time::timeout(std::time::Duration::from_secs(60), receivers.join_all());
    all.await.expect("a message was passed over");
}

async fn new_lives_and_old_claims_leave_no_lease_behind(store: Fixture) {
    let mut new = task("x");
    new.retry.max_attempts = u32::MAX;
    store.submit(&vec![new; 50]).await.unwrap();
    let first = register(&store, "w").await;
    for _ in 0..30 {
        let instance = store.agent(&agent("w")).await.unwrap().unwrap().instance;
        let claim = |store: SharedStore| async move {
            // Refused when the next life was quicker.
            let _ = store.claim(&wanted("w", instance, 5, HOUR)).await;
        };
        let claims = [0, 1, 2].map(|_| tokio::spawn(claim(Arc::clone(&store))));
        let next = registration("w", resurgam_model::InstanceId::new());
        store.register(&next).await.unwrap();
        for claim in claims {
            claim.await.unwrap();
        }
        assert_eq!(store.agent(&next.id).await.unwrap().unwrap().running, 0);
        assert_ne!(next.instance, first);
    }
}
