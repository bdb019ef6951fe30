//! What the queue does beyond handing tasks out and taking results.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use resurgam_model::limit::{Limit, Rate};
use resurgam_model::schedule::{Missed, NewSchedule};
use resurgam_model::task::{Backoff, Change, Outcome, TaskQuery, TaskState};
use resurgam_model::{ClaimId, Duration, InstanceId, ScheduleName};
use resurgam_store::open;
use tokio::task::JoinSet;

use crate::fixture::{
    Fixture, HOUR, NOTHING, agent, capability, claimed, completion, failure, lease_ref, no_lease,
    register, task, wanted,
};

crate::on_both! {
    cancelling_takes_tasks_back_in_every_state
    requeueing_gives_all_tries_back_under_a_new_token
    a_try_ends_at_its_timeout
    a_fixed_wait_does_not_grow
    finished_tasks_are_forgotten_with_their_keys
    tasks_are_found_by_key_and_tag
    a_claim_whose_answer_was_lost_is_told_again
    no_kind_starves_another
    many_claimers_together_keep_to_a_limit
    a_limit_holds_for_each_key_and_keys_take_turns
    a_rate_lets_its_burst_through_and_no_more
    a_schedule_hands_in_one_task_each_time
    a_paused_schedule_rests
    those_who_wait_are_told
}

async fn cancelling_takes_tasks_back_in_every_state(store: Fixture) {
    let mut new = task("x");
    new.reply_to = Some(agent("boss"));
    let running = claimed(&store, new.clone(), HOUR).await;
    let mut late = new.clone();
    late.delay = Some(HOUR);
    let waiting: Vec<_> = store.submit(&[new, late]).await.unwrap().iter().map(|s| s.id).collect();
    let all = [running.task, waiting[0], waiting[1], no_lease().task];
    let changes = store.cancel(&all, "not needed").await.unwrap();
    assert_eq!(changes, [Change::Changed, Change::Changed, Change::Changed, Change::Unknown]);
    assert_eq!(store.cancel(&all[..1], "again").await.unwrap(), [Change::Unchanged]);
    for id in &all[..3] {
        let over = store.task(*id).await.unwrap().unwrap();
        assert_eq!(over.state, TaskState::Cancelled);
        assert_eq!(over.error.as_deref(), Some("not needed"));
        assert!(over.expires_at.is_some());
    }
    let lease = lease_ref(&running);
    assert_eq!(store.extend(&[lease], HOUR).await.unwrap(), [Outcome::Stale]);
    assert_eq!(store.complete(&[completion(lease)]).await.unwrap(), [Outcome::Stale]);
    let letters = store.receive(&agent("boss"), None, 10).await.unwrap();
    assert_eq!(letters.len(), 3);
    assert!(letters.iter().all(|letter| letter.kind == "task.cancelled"));
}

async fn requeueing_gives_all_tries_back_under_a_new_token(store: Fixture) {
    let mut new = task("x");
    new.retry.max_attempts = 1;
    new.idempotency_key = Some("k".to_owned());
    let lease = claimed(&store, new.clone(), HOUR).await;
    store.fail(&[failure(lease_ref(&lease), true)]).await.unwrap();
    assert_eq!(store.requeue(&[lease.task]).await.unwrap(), [Change::Changed]);
    assert_eq!(store.requeue(&[lease.task]).await.unwrap(), [Change::Unchanged]);
    let back = store.task(lease.task).await.unwrap().unwrap();
    assert_eq!((back.state, back.attempts, back.expires_at), (TaskState::Ready, 0, None));
    // The key still names it, and the late word of the first holder counts for nothing.
    assert!(!store.submit(&[new]).await.unwrap()[0].created);
    let instance = register(&store, "w").await;
    let again = store.claim(&wanted("w", instance, 1, HOUR)).await.unwrap().remove(0);
    assert!(again.token > lease.token);
    assert_eq!(again.attempt, 1);
    let late = store.complete(&[completion(lease_ref(&lease))]).await.unwrap();
    assert_eq!(late, [Outcome::Stale]);
    let done = store.complete(&[completion(lease_ref(&again))]).await.unwrap();
    assert_eq!(done, [Outcome::Accepted]);
    assert_eq!(store.requeue(&[lease.task]).await.unwrap(), [Change::Unchanged]);
}

async fn a_try_ends_at_its_timeout(store: Fixture) {
    let mut new = task("x");
    new.timeout = Some(Duration::from_millis(50));
    new.retry.backoff = HOUR;
    new.retry.max_backoff = HOUR;
    let lease = claimed(&store, new, HOUR).await;
    assert_eq!(Some(lease.until), lease.timeout_at);
    while store.extend(&[lease_ref(&lease)], HOUR).await.unwrap() == [Outcome::Accepted] {
        let held = store.task(lease.task).await.unwrap().unwrap();
        assert!(held.lease_until <= lease.timeout_at);
    }
    while store.return_expired(10).await.unwrap() == 0 {}
    let failed = store.task(lease.task).await.unwrap().unwrap();
    assert_eq!(failed.state, TaskState::Scheduled);
    assert!(failed.error.unwrap().contains("timeout"));
}

async fn a_fixed_wait_does_not_grow(store: Fixture) {
    let mut new = task("x");
    new.retry.kind = Backoff::Fixed;
    new.retry.backoff = HOUR;
    new.retry.max_backoff = HOUR;
    new.retry.jitter = 50;
    let lease = claimed(&store, new, HOUR).await;
    store.fail(&[failure(lease_ref(&lease), true)]).await.unwrap();
    let failed = store.task(lease.task).await.unwrap().unwrap();
    let wait = failed.run_at.duration_since(failed.created_at).as_secs();
    assert!((1800..=3660).contains(&wait), "{wait}");
    assert_eq!(failed.retry.kind, Backoff::Fixed);
}

async fn finished_tasks_are_forgotten_with_their_keys(store: Fixture) {
    let mut new = task("x");
    new.keep = Some(NOTHING);
    new.idempotency_key = Some("k".to_owned());
    let lease = claimed(&store, new.clone(), HOUR).await;
    store.complete(&[completion(lease_ref(&lease))]).await.unwrap();
    let mut dies = new.clone();
    dies.idempotency_key = None;
    let dies = claimed(&store, dies, HOUR).await;
    store.fail(&[failure(lease_ref(&dies), false)]).await.unwrap();
    while store.purge(10).await.unwrap() == 0 {}
    assert_eq!(store.task(lease.task).await.unwrap(), None);
    assert!(store.submit(&[new]).await.unwrap()[0].created);
    // Dead letters wait for a person.
    assert_eq!(store.task(dies.task).await.unwrap().unwrap().expires_at, None);
}

async fn tasks_are_found_by_key_and_tag(store: Fixture) {
    let with = |key: &str, tags: &[&str]| {
        let mut new = task("x");
        new.key = Some(key.to_owned());
        new.tags = tags.iter().map(ToString::to_string).collect();
        new
    };
    let new = [with("a", &["red", "big"]), with("b", &["red"]), task("x")];
    let ids: Vec<_> = store.submit(&new).await.unwrap().iter().map(|s| s.id).collect();
    store.cancel(&ids[1..2], "why").await.unwrap();
    let found = async |key: Option<&str>, tag: Option<&str>, state: Option<TaskState>| {
        let query = TaskQuery {
            key: key.map(str::to_owned),
            tag: tag.map(str::to_owned),
            state,
            ..TaskQuery::default()
        };
        let tasks = store.tasks(&query).await.unwrap();
        tasks.iter().map(|t| ids.iter().position(|id| *id == t.id).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(found(None, Some("red"), None).await, [0, 1]);
    assert_eq!(found(None, Some("big"), None).await, [0]);
    assert_eq!(found(None, Some("re"), None).await, [0_usize; 0]);
    assert_eq!(found(Some("b"), None, None).await, [1]);
    assert_eq!(found(Some("a"), Some("red"), Some(TaskState::Ready)).await, [0]);
    assert_eq!(found(None, Some("red"), Some(TaskState::Cancelled)).await, [1]);
    let task = store.task(ids[0]).await.unwrap().unwrap();
    assert_eq!((task.key.as_deref(), task.tags.len()), (Some("a"), 2));
}

async fn a_claim_whose_answer_was_lost_is_told_again(store: Fixture) {
    store.submit(&vec![task("x"); 3]).await.unwrap();
    let instance = register(&store, "w").await;
    let mut claim = wanted("w", instance, 2, HOUR);
    claim.id = Some(ClaimId::new());
    let first = store.claim(&claim).await.unwrap();
    claim.again = true;
    assert_eq!(store.claim(&claim).await.unwrap(), first);
    store.complete(&[completion(lease_ref(&first[0]))]).await.unwrap();
    assert_eq!(store.claim(&claim).await.unwrap(), first[1..]);
    // One that took nothing is made anew.
    claim.id = Some(ClaimId::new());
    let second = store.claim(&claim).await.unwrap();
    assert_eq!(second.len(), 1);
    assert!(!first.contains(&second[0]));
    claim.instance = InstanceId::new();
    assert!(store.claim(&claim).await.is_err());
}

async fn no_kind_starves_another(store: Fixture) {
    store.submit(&vec![task("x"); 50]).await.unwrap();
    let rare = store.submit(&[task("y")]).await.unwrap()[0].id;
    let instance = register(&store, "w").await;
    let mut claim = wanted("w", instance, 4, HOUR);
    claim.capabilities = vec![capability("x"), capability("y")];
    let leases = store.claim(&claim).await.unwrap();
    assert_eq!(leases.len(), 4);
    assert!(leases.iter().any(|lease| lease.task == rare));
}

async fn many_claimers_together_keep_to_a_limit(store: Fixture) {
    let limit = Limit { max_running: Some(3), ..Limit::default() };
    store.set_limit(&capability("x"), &limit).await.unwrap();
    assert_eq!(store.limits().await.unwrap(), [(capability("x"), limit)]);
    store.submit(&vec![task("x"); 60]).await.unwrap();
    let running = Arc::new(AtomicU32::new(0));
    let mut claimers = JoinSet::new();
    for n in 0..8 {
        let (store, running) = (Arc::clone(&store), Arc::clone(&running));
        claimers.spawn(async move {
            let name = format!("w{n}");
            let instance = register(&store, &name).await;
            let mut done = 0;
            while store.task_counts(resurgam_store::Counted::Open).await.unwrap().len() == 1
                && done < 60
            {
                let leases = store.claim(&wanted(&name, instance, 5, HOUR)).await.unwrap();
                let count = u32::try_from(leases.len()).unwrap();
                assert!(running.fetch_add(count, Ordering::SeqCst) + count <= 3);
                // What is counted here ends before the store may give out the next one.
                running.fetch_sub(count, Ordering::SeqCst);
                let words: Vec<_> = leases.iter().map(|l| completion(lease_ref(l))).collect();
                if !words.is_empty() {
                    store.complete(&words).await.unwrap();
                }
                done += words.len();
            }
        });
    }
    claimers.join_all().await;
    assert!(store.remove_limit(&capability("x")).await.unwrap());
    assert!(!store.remove_limit(&capability("x")).await.unwrap());
}

async fn a_limit_holds_for_each_key_and_keys_take_turns(store: Fixture) {
    let keyed = |key: &str| {
        let mut new = task("x");
        new.key = Some(key.to_owned());
        new
    };
    store.submit(&vec![keyed("flood"); 20]).await.unwrap();
    let plain = store.submit(&[task("x")]).await.unwrap()[0].id;
    let limit = Limit { max_running_per_key: Some(2), ..Limit::default() };
    store.set_limit(&capability("x"), &limit).await.unwrap();
    let small = store.submit(&[keyed("small")]).await.unwrap()[0].id;
    let instance = register(&store, "w").await;
    let first = store.claim(&wanted("w", instance, 3, HOUR)).await.unwrap();
    let tasks: Vec<_> = first.iter().map(|lease| lease.task).collect();
    assert!(tasks.contains(&small) && tasks.contains(&plain), "{tasks:?}");
    let second = store.claim(&wanted("w", instance, 10, HOUR)).await.unwrap();
    assert_eq!(second.len(), 1, "two of the flood run now");
    assert!(store.claim(&wanted("w", instance, 10, HOUR)).await.unwrap().is_empty());
    store.complete(&[completion(lease_ref(&second[0]))]).await.unwrap();
    assert_eq!(store.claim(&wanted("w", instance, 10, HOUR)).await.unwrap().len(), 1);
    assert_eq!(store.task(plain).await.unwrap().unwrap().key, None);
}

async fn a_rate_lets_its_burst_through_and_no_more(store: Fixture) {
    let limit = Limit { rate: Some(Rate { count: 3, per: HOUR }), ..Limit::default() };
    store.set_limit(&capability("x"), &limit).await.unwrap();
    store.submit(&vec![task("x"); 10]).await.unwrap();
    let instance = register(&store, "w").await;
    assert_eq!(store.claim(&wanted("w", instance, 2, HOUR)).await.unwrap().len(), 2);
    assert_eq!(store.claim(&wanted("w", instance, 9, HOUR)).await.unwrap().len(), 1);
    assert!(store.claim(&wanted("w", instance, 9, HOUR)).await.unwrap().is_empty());
    let faster = Rate { count: 1000, per: Duration::from_secs(1) };
    let limit = Limit { rate: Some(faster), ..limit };
    store.set_limit(&capability("x"), &limit).await.unwrap();
    let mut begun = 0;
    while begun < 7 {
        begun += store.claim(&wanted("w", instance, 9, HOUR)).await.unwrap().len();
    }
}

fn schedule(cron: &str) -> NewSchedule {
    NewSchedule {
        cron: cron.parse().unwrap(),
        time_zone: "Europe/Zurich".to_owned(),
        task: task("x"),
        missed: Missed::Once,
        paused: false,
    }
}

async fn a_schedule_hands_in_one_task_each_time(store: Fixture) {
    let name = ScheduleName::new("tick").unwrap();
    let put = store.put_schedule(&name, &schedule("* * * * * *")).await.unwrap();
    assert!(put.next_at.is_some());
    let other = open(&store.settings).unwrap();
    let mut fired = Vec::new();
    while fired.len() < 2 {
        let (here, there) = tokio::join!(store.fire(), other.fire());
        fired.extend(here.unwrap());
        fired.extend(there.unwrap());
    }
    let times: std::collections::BTreeSet<_> = fired.iter().map(|fired| fired.at).collect();
    assert_eq!(times.len(), fired.len());
    let tasks = store.tasks(&TaskQuery::default()).await.unwrap();
    assert_eq!(tasks.len(), fired.len());
    let found = store.schedule(&name).await.unwrap().unwrap();
    assert_eq!(found.last_task, fired.last().map(|fired| fired.task));
    assert!(store.remove_schedule(&name).await.unwrap());
    assert!(store.schedules().await.unwrap().is_empty());
}

async fn a_paused_schedule_rests(store: Fixture) {
    let name = ScheduleName::new("tick").unwrap();
    let paused = NewSchedule { paused: true, ..schedule("* * * * * *") };
    assert_eq!(store.put_schedule(&name, &paused).await.unwrap().next_at, None);
    assert!(store.fire().await.unwrap().is_empty());
    let mut nowhere = schedule("0 3 * * *");
    nowhere.time_zone = "Atlantis".to_owned();
    let error = store.put_schedule(&name, &nowhere).await.unwrap_err().to_string();
    assert!(error.contains("Atlantis"), "{error}");
}

async fn those_who_wait_are_told(store: Fixture) {
    // On PostgreSQL also those in another process.
    let other = open(&store.settings).unwrap();
    let listener = if store.kind() == "postgres" { &other } else { &*store };
    let mut wakes = listener.wakes();
    let instance = register(&store, "w").await;
    let wait = Duration::from_secs(30).0;
    let heard = async |wakes: &mut resurgam_store::Wakes| loop {
        let wake = tokio::time::timeout(wait, wakes.next()).await.expect("nobody was told");
        if wake.is_some_and(|wake| wake.capability == capability("x")) {
            return;
        }
    };
    if store.kind() == "postgres" {
        // The listener's first word says that it listens.
        assert_eq!(tokio::time::timeout(wait, wakes.next()).await.unwrap(), None);
    }
    store.submit(&[task("x")]).await.unwrap();
    heard(&mut wakes).await;
    let lease = store.claim(&wanted("w", instance, 1, NOTHING)).await.unwrap().remove(0);
    while store.return_expired(10).await.unwrap() == 0 {}
    heard(&mut wakes).await;
    store.cancel(&[lease.task], "why").await.unwrap();
    store.requeue(&[lease.task]).await.unwrap();
    heard(&mut wakes).await;
    let mut late = task("x");
    late.delay = Some(Duration::from_millis(1));
    store.submit(&[late]).await.unwrap();
    while store.promote(10).await.unwrap().promoted == 0 {}
    heard(&mut wakes).await;
}
