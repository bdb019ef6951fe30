//! Limits on kinds of work.

use std::sync::Arc;
use std::time::Instant;

use resurgam_model::limit::{Limit, Rate};
use resurgam_model::task::{Claim, NewTask, TaskState};
use resurgam_model::{Duration, TaskId};
use resurgam_store::{Counted, SharedStore, Wake};
use tokio::task::JoinSet;

use crate::fixture::{
    Fixture, HOUR, NOTHING, capability, claimed, completion, failure, lease_ref, register, task,
    wanted,
};
use crate::wakes::heard;

crate::on_both! {
    limits_are_set_replaced_listed_and_removed
    no_more_run_than_the_limit_allows_however_many_claim
    each_key_has_its_own_places
    places_of_all_keys_together_are_limited_too
    no_more_begin_than_burst_and_rate_allow
    each_key_has_its_own_rate
    a_key_with_many_tasks_does_not_hold_up_others
    keys_that_had_no_turn_come_first
    a_limit_counts_what_runs_when_it_is_set
    tasks_from_before_a_limit_by_key_are_not_forgotten
    a_flood_without_a_limit_leaves_limited_kinds_their_share
    each_place_that_becomes_free_wakes_somebody
}

fn running(max: u32) -> Limit {
    Limit { max_running: Some(max), ..Limit::default() }
}

fn keyed(key: &str) -> NewTask {
    NewTask { key: Some(key.to_owned()), ..task("x") }
}

async fn limit(store: &SharedStore, limit: Limit) {
    store.set_limit(&capability("x"), &limit).await.unwrap();
}

async fn claimer(store: &SharedStore, max: u32) -> Claim {
    wanted("w", register(store, "w").await, max, HOUR)
}

/// The keys of what a claim takes, in its order.
async fn keys(store: &SharedStore, claim: &Claim) -> Vec<String> {
    let mut keys = Vec::new();
    for lease in store.claim(claim).await.unwrap() {
        keys.push(store.task(lease.task).await.unwrap().unwrap().key.unwrap_or_default());
    }
    keys.sort();
    keys
}

async fn limits_are_set_replaced_listed_and_removed(store: Fixture) {
    assert!(store.limits().await.unwrap().is_empty());
    let rate = Rate { count: 3, per: Duration::from_millis(1500) };
    let all = Limit {
        max_running: Some(1),
        max_running_per_key: Some(2),
        rate: Some(rate),
        rate_per_key: Some(rate),
        fair: true,
    };
    store.set_limit(&capability("y"), &running(1)).await.unwrap();
    limit(&store, running(1)).await;
    store.set_limit(&capability("y"), &all).await.unwrap();
    let listed = store.limits().await.unwrap();
    assert_eq!(listed, [(capability("x"), running(1)), (capability("y"), all)]);
    assert!(store.remove_limit(&capability("y")).await.unwrap());
    assert!(!store.remove_limit(&capability("y")).await.unwrap());
    assert_eq!(store.limits().await.unwrap(), [(capability("x"), running(1))]);
}

async fn no_more_run_than_the_limit_allows_however_many_claim(store: Fixture) {
    const TASKS: usize = 64;
    limit(&store, running(3)).await;
    store.submit(&vec![task("x"); TASKS]).await.unwrap();
    let mut claimers = JoinSet::new();
    for n in 0..16_u32 {
        let store = Arc::clone(&store);
        claimers.spawn(async move {
            let name = format!("w{n}");
            let claim = wanted(&name, register(&store, &name).await, 1 + n % 4, HOUR);
            loop {
                let leases = store.claim(&claim).await.unwrap();
                let counts = store.task_counts(Counted::Open).await.unwrap();
                let Some((_, counts)) = counts.first() else { return };
                assert!(counts.running <= 3, "{counts:?}");
                for lease in leases {
                    store.complete(&[completion(lease_ref(&lease))]).await.unwrap();
                }
                if counts.ready + counts.running == 0 {
                    return;
                }
            }
        });
    }
    claimers.join_all().await;
    let counts = store.task_counts(Counted::All).await.unwrap();
    assert_eq!(counts[0].1.completed, TASKS as u64);
}

async fn each_key_has_its_own_places(store: Fixture) {
    let new = ["a", "a", "a", "b", "b"].map(keyed);
    store.submit(&new).await.unwrap();
    store.submit(&[task("x"), task("x")]).await.unwrap();
    limit(&store, Limit { max_running_per_key: Some(1), ..Limit::default() }).await;
    let claim = claimer(&store, 10).await;
    let first = store.claim(&claim).await.unwrap();
    assert_eq!(first.len(), 4);
    assert!(store.claim(&claim).await.unwrap().is_empty());
    let mut of_a = None;
    for lease in &first {
        let found = store.task(lease.task).await.unwrap().unwrap();
        if found.key.as_deref() == Some("a") {
            of_a = Some(lease_ref(lease));
        }
    }
    store.complete(&[completion(of_a.unwrap())]).await.unwrap();
    assert_eq!(keys(&store, &claim).await, ["a"]);
    // Those without a key are not limited, also when they come later.
    store.submit(&[task("x"), task("x"), keyed("b")]).await.unwrap();
    assert_eq!(keys(&store, &claim).await, ["", ""]);
}

async fn places_of_all_keys_together_are_limited_too(store: Fixture) {
    store.submit(&["a", "a", "b", "b", "c"].map(keyed)).await.unwrap();
    let both = Limit { max_running_per_key: Some(1), ..running(2) };
    limit(&store, both).await;
    let claim = claimer(&store, 10).await;
    assert_eq!(keys(&store, &claim).await, ["a", "b"]);
    assert!(store.claim(&claim).await.unwrap().is_empty());
}

async fn no_more_begin_than_burst_and_rate_allow(store: Fixture) {
    store.submit(&vec![task("x"); 30]).await.unwrap();
    let rate = |count, per| Limit { rate: Some(Rate { count, per }), ..Limit::default() };
    limit(&store, rate(5, HOUR)).await;
    let claim = claimer(&store, 3).await;
    let counts = [3, 2, 0, 0];
    for expected in counts {
        assert_eq!(store.claim(&claim).await.unwrap().len(), expected);
    }
    // What was not taken does not count: the bucket stays as full as it was.
    store.remove_limit(&capability("x")).await.unwrap();
    let began = Instant::now();
    limit(&store, rate(2, Duration::from_millis(40))).await;
    let mut begun = 0;
    while begun < 12 {
        begun += store.claim(&claim).await.unwrap().len();
        let allowed = 2.0 + began.elapsed().as_secs_f64() / 0.020;
        assert!(begun as f64 <= allowed + 1e-6, "{begun} {allowed}");
    }
}

async fn each_key_has_its_own_rate(store: Fixture) {
    store.submit(&["a", "a", "a", "b"].map(keyed)).await.unwrap();
    store.submit(&[task("x"), task("x"), task("x")]).await.unwrap();
    let rate = Rate { count: 2, per: HOUR };
    limit(&store, Limit { rate_per_key: Some(rate), ..Limit::default() }).await;
    let claim = claimer(&store, 10).await;
    assert_eq!(keys(&store, &claim).await, ["", "", "", "a", "a", "b"]);
    store.submit(&["b", "b"].map(keyed)).await.unwrap();
    assert_eq!(keys(&store, &claim).await, ["b"]);
    assert!(store.claim(&claim).await.unwrap().is_empty());
}

async fn a_key_with_many_tasks_does_not_hold_up_others(store: Fixture) {
    store.submit(&vec![keyed("many"); 1000]).await.unwrap();
    store.submit(&[keyed("one"), task("x")]).await.unwrap();
    limit(&store, Limit { fair: true, ..Limit::default() }).await;
    let claim = claimer(&store, 4).await;
    assert_eq!(keys(&store, &claim).await, ["", "many", "many", "one"]);
    assert_eq!(keys(&store, &claim).await, ["many"; 4]);
}

async fn keys_that_had_no_turn_come_first(store: Fixture) {
    let new: Vec<_> = ["a", "b", "c", "d"].iter().flat_map(|k| [keyed(k), keyed(k)]).collect();
    store.submit(&new).await.unwrap();
    limit(&store, Limit { fair: true, ..Limit::default() }).await;
    let claim = claimer(&store, 1).await;
    let mut order = Vec::new();
    for _ in 0..8 {
        order.extend(keys(&store, &claim).await);
    }
    assert_eq!(order, ["a", "b", "c", "d", "a", "b", "c", "d"]);
}

async fn a_limit_counts_what_runs_when_it_is_set(store: Fixture) {
    store.submit(&vec![task("x"); 6]).await.unwrap();
    let claim = claimer(&store, 3).await;
    let held = store.claim(&claim).await.unwrap();
    limit(&store, running(3)).await;
    assert!(store.claim(&claim).await.unwrap().is_empty());
    store.complete(&[completion(lease_ref(&held[0]))]).await.unwrap();
    assert_eq!(store.claim(&claim).await.unwrap().len(), 1);
    limit(&store, running(1)).await;
    store.complete(&[completion(lease_ref(&held[1]))]).await.unwrap();
    assert!(store.claim(&claim).await.unwrap().is_empty());
    assert!(store.remove_limit(&capability("x")).await.unwrap());
    assert_eq!(store.claim(&claim).await.unwrap().len(), 2);
}

async fn tasks_from_before_a_limit_by_key_are_not_forgotten(store: Fixture) {
    let mut new = task("x");
    let dead = lease_ref(&claimed(&store, new.clone(), HOUR).await);
    store.fail(&[failure(dead, false)]).await.unwrap();
    let held = lease_ref(&claimed(&store, new.clone(), HOUR).await);
    let ready = store.submit(&[new.clone()]).await.unwrap()[0].id;
    new.delay = Some(Duration::from_millis(1));
    let scheduled = store.submit(&[new]).await.unwrap()[0].id;
    limit(&store, Limit { fair: true, ..Limit::default() }).await;
    while store.promote(9).await.unwrap().promoted == 0 {}
    store.fail(&[failure(held, true)]).await.unwrap();
    store.requeue(&[dead.task]).await.unwrap();
    let claim = claimer(&store, 9).await;
    let mut taken: Vec<TaskId> =
        store.claim(&claim).await.unwrap().iter().map(|lease| lease.task).collect();
    let mut expected = vec![dead.task, held.task, ready, scheduled];
    taken.sort_by_key(|task| task.0);
    expected.sort_by_key(|task| task.0);
    assert_eq!(taken, expected);
    // Nobody sees that they were given an empty key.
    assert_eq!(store.task(ready).await.unwrap().unwrap().key, None);
}

async fn a_flood_without_a_limit_leaves_limited_kinds_their_share(store: Fixture) {
    store.submit(&vec![task("x"); 50]).await.unwrap();
    store.submit(&["y", "y", "z", "z"].map(task)).await.unwrap();
    store.set_limit(&capability("y"), &running(50)).await.unwrap();
    let mut claim = claimer(&store, 6).await;
    let count = async |claim: &Claim| {
        let leases = store.claim(claim).await.unwrap();
        let count =
            |kind: &str| leases.iter().filter(|lease| lease.capability == capability(kind)).count();
        ["x", "y", "z"].map(count)
    };
    claim.capabilities = ["x", "y", "z"].map(capability).to_vec();
    assert_eq!(count(&claim).await, [2, 2, 2]);
    // A claim of one task is for the one whose turn it is.
    store.submit(&["y", "z"].map(task)).await.unwrap();
    claim.max = 1;
    claim.capabilities.rotate_left(1);
    assert_eq!(count(&claim).await, [0, 1, 0]);
    // What a limited kind does not need is for the others.
    claim.max = 6;
    assert_eq!(count(&claim).await, [5, 0, 1]);
    // And a limited kind gets all that others do not need.
    store.submit(&vec![task("y"); 9]).await.unwrap();
    claim.capabilities = ["z", "y"].map(capability).to_vec();
    assert_eq!(count(&claim).await, [0, 6, 0]);
}

async fn each_place_that_becomes_free_wakes_somebody(store: Fixture) {
    limit(&store, running(1)).await;
    let hear = Wake { capability: capability("x"), count: 1 };
    let mut new = task("x");
    new.retry.backoff = HOUR;
    new.retry.max_backoff = HOUR;
    store.submit(&vec![new.clone(); 6]).await.unwrap();
    let mut claim = claimer(&store, 9).await;
    let take = async |claim: &Claim| lease_ref(&store.claim(claim).await.unwrap()[0]);

    let held = take(&claim).await;
    let mut wakes = store.wakes();
    store.complete(&[completion(held)]).await.unwrap();
    assert_eq!(heard(&mut wakes).await, hear);

    let held = take(&claim).await;
    let mut wakes = store.wakes();
    store.fail(&[failure(held, true)]).await.unwrap();
    assert_eq!(heard(&mut wakes).await, hear);

    let held = take(&claim).await;
    let mut wakes = store.wakes();
    store.fail(&[failure(held, false)]).await.unwrap();
    assert_eq!(heard(&mut wakes).await, hear);

    let held = take(&claim).await;
    let mut wakes = store.wakes();
    store.cancel(&[held.task], "").await.unwrap();
    assert_eq!(heard(&mut wakes).await, hear);

    // A try that is taken back, with another one after a wait, and as the last one.
    new.timeout = Some(Duration::from_millis(1));
    new.priority = 1;
    for max_attempts in [2, 1] {
        new.retry.max_attempts = max_attempts;
        store.submit(&[new.clone()]).await.unwrap();
        claim.lease = NOTHING;
        let held = take(&claim).await;
        let mut wakes = store.wakes();
        // Only once the timeout is over, too, the task has to wait.
        while store.extend(&[held], HOUR).await.unwrap()
            == [resurgam_model::task::Outcome::Accepted]
        {}
        while store.return_expired(9).await.unwrap() == 0 {}
        let state = store.task(held.task).await.unwrap().unwrap().state;
        let expected = if max_attempts == 1 { TaskState::Dead } else { TaskState::Scheduled };
        assert_eq!(state, expected);
        assert_eq!(heard(&mut wakes).await, hear);
    }
}
