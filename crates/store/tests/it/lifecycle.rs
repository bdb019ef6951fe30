//! What becomes of tasks in the end, and on the way there: cancelled, requeued, timed out, forgotten.

use resurgam_model::task::{
    Backoff, Change, Lease, LeaseRef, NewTask, Outcome, RetryPolicy, TaskQuery, TaskState, Token,
    WorkflowStep,
};
use resurgam_model::{ClaimId, Duration, InstanceId, TaskId, Timestamp, WorkflowId};
use resurgam_store::{Order, SharedStore};

use crate::fixture::{
    Fixture, HOUR, NOTHING, agent, capability, claimed, completion, failure, lease_ref, no_lease,
    register, task, wanted,
};

crate::on_both! {
    tasks_are_cancelled_in_any_state_in_which_they_are_not_over
    requeued_tasks_have_all_their_tries_again
    tasks_of_workflows_are_not_requeued
    no_lease_goes_beyond_the_timeout_of_its_try
    a_try_that_takes_too_long_has_failed
    a_fixed_wait_does_not_grow
    waits_are_spread_by_the_jitter_and_no_further
    a_task_waits_for_its_moment
    any_moment_can_be_given
    tasks_become_ready_up_to_the_limit_and_the_next_time_is_told
    what_was_kept_long_enough_is_forgotten_with_its_key
    old_tasks_are_forgotten_up_to_the_limit
    tasks_are_found_by_tag_key_and_state_page_by_page
    a_claim_made_again_gives_the_same_leases
    a_claim_of_another_life_or_agent_is_not_given_again
    an_agent_that_drains_still_hears_what_it_took
    a_flood_of_one_kind_leaves_the_others_their_share
}

/// A time long past or far ahead of what these tests take.
const DAY: Duration = Duration::from_secs(24 * 3600);

async fn submitted(store: &SharedStore, new: NewTask) -> TaskId {
    store.submit(&[new]).await.unwrap()[0].id
}

async fn state(store: &SharedStore, task: TaskId) -> TaskState {
    store.task(task).await.unwrap().unwrap().state
}

fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64()
}

async fn tasks_are_cancelled_in_any_state_in_which_they_are_not_over(store: Fixture) {
    let mut new = task("x");
    new.reply_to = Some(agent("boss"));
    let running = claimed(&store, new.clone(), HOUR).await;
    let ready = submitted(&store, new.clone()).await;
    new.delay = Some(HOUR);
    let scheduled = submitted(&store, new).await;
    let unknown = no_lease().task;
    let ids = [scheduled, unknown, running.task, ready, scheduled];
    let words = store.cancel(&ids, "not \"needed\" \0 any more").await.unwrap();
    use Change::{Changed, Unchanged, Unknown};
    assert_eq!(words, [Changed, Unknown, Changed, Changed, Unchanged]);
    for id in [scheduled, running.task, ready] {
        let over = store.task(id).await.unwrap().unwrap();
        assert_eq!(over.state, TaskState::Cancelled);
        assert!(over.error.unwrap().starts_with("not \"needed\" "));
        assert!(over.finished_at.is_some() && over.expires_at > over.finished_at);
        assert_eq!((over.lease_until, over.result), (None, None));
    }
    assert_eq!(store.cancel(&ids[1..4], "").await.unwrap(), [Unknown, Unchanged, Unchanged]);

    // The holder learns of it at its next word, whatever that is.
    let held = lease_ref(&running);
    assert_eq!(store.extend(&[held], HOUR).await.unwrap(), [Outcome::Stale]);
    assert_eq!(store.complete(&[completion(held)]).await.unwrap(), [Outcome::Stale]);
    assert_eq!(store.fail(&[failure(held, true)]).await.unwrap(), [Outcome::Stale]);
    assert_eq!(state(&store, running.task).await, TaskState::Cancelled);

    let instance = register(&store, "w").await;
    assert!(store.claim(&wanted("w", instance, 9, HOUR)).await.unwrap().is_empty());
    assert_eq!(store.promote(9).await.unwrap().next, None);
    let letters = store.receive(&agent("boss"), None, 10).await.unwrap();
    assert_eq!(letters.len(), 3);
    for letter in letters {
        assert_eq!(letter.kind, "task.cancelled");
        let start = r#""state":"cancelled","error":"not \"needed\" "#;
        assert!(letter.body.json().contains(start), "{}", letter.body.json());
    }

    // What is over otherwise stays as it is.
    let done = lease_ref(&claimed(&store, task("x"), HOUR).await);
    store.complete(&[completion(done)]).await.unwrap();
    let dead = lease_ref(&claimed(&store, task("x"), HOUR).await);
    store.fail(&[failure(dead, false)]).await.unwrap();
    let words = store.cancel(&[done.task, dead.task], "").await.unwrap();
    assert_eq!(words, [Unchanged, Unchanged]);
    assert_eq!(state(&store, done.task).await, TaskState::Completed);
    assert_eq!(state(&store, dead.task).await, TaskState::Dead);
    assert!(store.cancel(&[], "").await.unwrap().is_empty());
}

async fn requeued_tasks_have_all_their_tries_again(store: Fixture) {
    let mut new = task("x");
    new.retry.max_attempts = 2;
    new.idempotency_key = Some("k".to_owned());
    new.tags = vec!["t".to_owned()];
    new.timeout = Some(HOUR);
    let id = submitted(&store, new.clone()).await;
    let instance = register(&store, "w").await;
    let next = async || -> Lease {
        let mut leases = store.claim(&wanted("w", instance, 9, HOUR)).await.unwrap();
        assert_eq!(leases.len(), 1);
        leases.remove(0)
    };
    for round in 0..2 {
        for attempt in 1..=2 {
            let lease = next().await;
            let token = Token(i64::from(2 * round + attempt));
            assert_eq!((lease.task, lease.attempt), (id, u32::try_from(attempt).unwrap()));
            assert_eq!(lease.token, token);
            assert_eq!(store.fail(&[failure(lease_ref(&lease), true)]).await.unwrap().len(), 1);
        }
        assert_eq!(state(&store, id).await, TaskState::Dead);
        let words = store.requeue(&[id, no_lease().task, id]).await.unwrap();
        assert_eq!(words, [Change::Changed, Change::Unknown, Change::Unchanged]);
        let back = store.task(id).await.unwrap().unwrap();
        assert_eq!((back.state, back.attempts), (TaskState::Ready, 0));
        assert_eq!(back.token, Token(i64::from(2 * round + 2)));
        assert_eq!((back.finished_at, back.expires_at, back.held_by), (None, None, None));
        assert_eq!((&back.tags, back.timeout), (&new.tags, new.timeout));
        // A word from before is late.
        let late = LeaseRef { task: id, token: back.token };
        assert_eq!(store.fail(&[failure(late, true)]).await.unwrap(), [Outcome::Stale]);
        assert_eq!(store.complete(&[completion(late)]).await.unwrap(), [Outcome::Stale]);
    }
    // The key is still taken by it.
    assert_eq!(submitted(&store, new).await, id);

    // Cancelled under a lease, requeued, and done under the next one.
    let held = lease_ref(&next().await);
    store.cancel(&[id], "wait").await.unwrap();
    assert_eq!(store.requeue(&[id]).await.unwrap(), [Change::Changed]);
    assert_eq!(store.complete(&[completion(held)]).await.unwrap(), [Outcome::Stale]);
    let lease = next().await;
    assert!(lease.token > held.token);
    assert_eq!(store.requeue(&[id]).await.unwrap(), [Change::Unchanged]);
    let done = store.complete(&[completion(lease_ref(&lease))]).await.unwrap();
    assert_eq!(done, [Outcome::Accepted]);
    assert_eq!(store.requeue(&[id]).await.unwrap(), [Change::Unchanged]);
    assert!(store.requeue(&[]).await.unwrap().is_empty());
}

async fn tasks_of_workflows_are_not_requeued(store: Fixture) {
    let mut new = task("x");
    new.workflow = Some(WorkflowStep { workflow: WorkflowId::new(), step: "a".to_owned() });
    let dead = lease_ref(&claimed(&store, new.clone(), HOUR).await);
    store.fail(&[failure(dead, false)]).await.unwrap();
    let cancelled = submitted(&store, new.clone()).await;
    store.cancel(&[cancelled], "").await.unwrap();
    let words = store.requeue(&[dead.task, cancelled]).await.unwrap();
    assert_eq!(words, [Change::Unchanged, Change::Unchanged]);
    let found = store.task(dead.task).await.unwrap().unwrap();
    assert_eq!((found.state, found.workflow), (TaskState::Dead, new.workflow));
}

async fn no_lease_goes_beyond_the_timeout_of_its_try(store: Fixture) {
    let mut new = task("x");
    new.timeout = Some(HOUR);
    let lease = claimed(&store, new, DAY).await;
    let end = lease.timeout_at.unwrap();
    assert_eq!(lease.until, end);
    let held = lease_ref(&lease);
    assert_eq!(store.extend(&[held], DAY).await.unwrap(), [Outcome::Accepted]);
    let found = store.task(held.task).await.unwrap().unwrap();
    assert_eq!(found.lease_until, Some(end));
    let lasted = seconds(found.started_at.unwrap(), end);
    assert!((lasted - 3600.0).abs() < 0.01, "{lasted}");
    // A shorter lease ends when it says.
    assert_eq!(store.extend(&[held], NOTHING).await.unwrap(), [Outcome::Accepted]);
    assert!(store.task(held.task).await.unwrap().unwrap().lease_until.unwrap() < end);
    // Longer than any time that there is.
    let mut new = task("x");
    new.timeout = Some(Duration(std::time::Duration::MAX));
    assert!(claimed(&store, new, HOUR).await.timeout_at.is_some());
}

async fn a_try_that_takes_too_long_has_failed(store: Fixture) {
    let mut new = task("x");
    new.timeout = Some(Duration::from_millis(1));
    new.retry = RetryPolicy {
        max_attempts: 2,
        backoff: HOUR,
        max_backoff: HOUR,
        jitter: 0,
        ..RetryPolicy::default()
    };
    let held = lease_ref(&claimed(&store, new.clone(), DAY).await);
    while store.extend(&[held], DAY).await.unwrap() == [Outcome::Accepted] {}
    while store.return_expired(9).await.unwrap() == 0 {}
    let back = store.task(held.task).await.unwrap().unwrap();
    assert_eq!(back.state, TaskState::Scheduled);
    assert!(back.error.as_ref().unwrap().contains("timeout"), "{:?}", back.error);
    assert!(seconds(back.created_at, back.run_at) >= 3600.0);
    assert_eq!(store.complete(&[completion(held)]).await.unwrap(), [Outcome::Stale]);

    // A lease that ran out before is no failure of the task, and there is no wait.
    new.timeout = Some(HOUR);
    let held = lease_ref(&claimed(&store, new.clone(), NOTHING).await);
    while store.return_expired(9).await.unwrap() == 0 {}
    let back = store.task(held.task).await.unwrap().unwrap();
    assert_eq!(back.state, TaskState::Ready);
    assert!(!back.error.unwrap().contains("timeout"));
    store.cancel(&[held.task], "").await.unwrap();

    // The last try.
    new.timeout = Some(Duration::from_millis(1));
    new.retry.max_attempts = 1;
    let held = lease_ref(&claimed(&store, new, DAY).await);
    while store.return_expired(9).await.unwrap() == 0 {}
    let dead = store.task(held.task).await.unwrap().unwrap();
    assert_eq!(dead.state, TaskState::Dead);
    assert!(dead.error.unwrap().contains("timeout"));
}

async fn a_fixed_wait_does_not_grow(store: Fixture) {
    let wait = Duration::from_millis(20);
    let mut new = task("x");
    new.retry = RetryPolicy {
        kind: Backoff::Fixed,
        backoff: wait,
        max_backoff: HOUR,
        jitter: 0,
        ..RetryPolicy::default()
    };
    let id = submitted(&store, new.clone()).await;
    assert_eq!(store.task(id).await.unwrap().unwrap().retry, new.retry);
    let instance = register(&store, "w").await;
    for _ in 0..4 {
        let lease = loop {
            store.promote(9).await.unwrap();
            let mut leases = store.claim(&wanted("w", instance, 1, HOUR)).await.unwrap();
            if let Some(lease) = leases.pop() {
                break lease;
            }
        };
        let before = Timestamp::now();
        store.fail(&[failure(lease_ref(&lease), true)]).await.unwrap();
        let after = Timestamp::now();
        let due = store.task(id).await.unwrap().unwrap().run_at;
        assert!(seconds(before, due) > 0.0199 && seconds(after, due) < 0.0201);
    }
}

async fn waits_are_spread_by_the_jitter_and_no_further(store: Fixture) {
    const TASKS: u32 = 40;
    let mut new = task("x");
    new.retry = RetryPolicy { backoff: HOUR, max_backoff: HOUR, jitter: 50, ..new.retry };
    store.submit(&vec![new; TASKS as usize]).await.unwrap();
    let instance = register(&store, "w").await;
    let leases = store.claim(&wanted("w", instance, TASKS, HOUR)).await.unwrap();
    let words: Vec<_> = leases.iter().map(|lease| failure(lease_ref(lease), true)).collect();
    let before = Timestamp::now();
    store.fail(&words).await.unwrap();
    let after = Timestamp::now();
    let tasks = store.tasks(&TaskQuery::default()).await.unwrap();
    assert_eq!(tasks.len(), TASKS as usize);
    let waits = || tasks.iter().map(|task| seconds(before, task.run_at));
    assert!(waits().all(|wait| wait > 1799.9), "{:?}", waits().collect::<Vec<_>>());
    assert!(tasks.iter().all(|task| seconds(after, task.run_at) < 3600.1));
    // That all of them are in one half by chance is less likely than 1 in 10^12 / 2.
    assert!(waits().any(|wait| wait < 2700.0) && waits().any(|wait| wait > 2700.0));
}

async fn a_task_waits_for_its_moment(store: Fixture) {
    let now = Timestamp::now();
    let at = |micros: i64| Timestamp::from_microsecond(now.as_microsecond() + micros).unwrap();
    let mut new = task("x");
    new.run_at = Some(at(3_600_000_000));
    let later = submitted(&store, new.clone()).await;
    new.run_at = Some(at(-3_600_000_000));
    let past = submitted(&store, new).await;
    let found = store.task(later).await.unwrap().unwrap();
    assert_eq!((found.state, found.run_at), (TaskState::Scheduled, at(3_600_000_000)));
    let instance = register(&store, "w").await;
    let leases = store.claim(&wanted("w", instance, 9, HOUR)).await.unwrap();
    assert_eq!(leases.iter().map(|lease| lease.task).collect::<Vec<_>>(), [past]);
    let promoted = store.promote(9).await.unwrap();
    assert_eq!((promoted.promoted, promoted.next), (0, Some(at(3_600_000_000))));
}

async fn any_moment_can_be_given(store: Fixture) {
    let at = |at| NewTask { run_at: Some(at), ..task("x") };
    let ids = store.submit(&[at(Timestamp::MIN), at(Timestamp::MAX)]).await.unwrap();
    assert_eq!(state(&store, ids[0].id).await, TaskState::Ready);
    assert_eq!(state(&store, ids[1].id).await, TaskState::Scheduled);
    assert_eq!(store.promote(9).await.unwrap().promoted, 0);
}

async fn tasks_become_ready_up_to_the_limit_and_the_next_time_is_told(store: Fixture) {
    assert_eq!(store.promote(9).await.unwrap(), resurgam_store::Promoted::default());
    let mut soon = task("x");
    soon.delay = Some(Duration::from_millis(1));
    let mut later = task("x");
    later.delay = Some(HOUR);
    let ids = store.submit(&[later, soon.clone(), soon.clone(), soon]).await.unwrap();
    let next = store.task(ids[0].id).await.unwrap().unwrap().run_at;
    let mut promoted = 0;
    while promoted < 3 {
        let step = store.promote(2).await.unwrap();
        assert!(step.promoted <= 2);
        promoted += step.promoted;
        assert!(step.next.unwrap() <= next);
    }
    let none = store.promote(2).await.unwrap();
    assert_eq!((none.promoted, none.next), (0, Some(next)));
    let instance = register(&store, "w").await;
    assert_eq!(store.claim(&wanted("w", instance, 9, HOUR)).await.unwrap().len(), 3);
}

async fn what_was_kept_long_enough_is_forgotten_with_its_key(store: Fixture) {
    let keyed = |key: &str, keep| {
        let mut new = task("x");
        new.idempotency_key = Some(key.to_owned());
        new.keep = keep;
        new
    };
    let gone = lease_ref(&claimed(&store, keyed("gone", Some(NOTHING)), HOUR).await);
    store.complete(&[completion(gone)]).await.unwrap();
    let kept = lease_ref(&claimed(&store, keyed("kept", None), HOUR).await);
    store.complete(&[completion(kept)]).await.unwrap();
    let dead = lease_ref(&claimed(&store, keyed("dead", Some(NOTHING)), HOUR).await);
    store.fail(&[failure(dead, false)]).await.unwrap();
    let cancelled = submitted(&store, keyed("cancelled", Some(NOTHING))).await;
    store.cancel(&[cancelled], "").await.unwrap();
    let waiting = submitted(&store, keyed("waiting", Some(NOTHING))).await;

    let found = store.task(kept.task).await.unwrap().unwrap();
    let keep = seconds(found.finished_at.unwrap(), found.expires_at.unwrap());
    assert!((keep - 7.0 * 24.0 * 3600.0).abs() < 0.01, "{keep}");
    assert_eq!(store.task(dead.task).await.unwrap().unwrap().expires_at, None);

    assert_eq!(store.purge(9).await.unwrap(), 2);
    assert_eq!(store.purge(9).await.unwrap(), 0);
    assert_eq!(store.task(gone.task).await.unwrap(), None);
    assert_eq!(store.task(cancelled).await.unwrap(), None);
    assert_eq!(store.complete(&[completion(gone)]).await.unwrap(), [Outcome::Unknown]);
    for (key, id) in [("kept", kept.task), ("dead", dead.task), ("waiting", waiting)] {
        let again = store.submit(&[keyed(key, None)]).await.unwrap();
        assert_eq!((again[0].id, again[0].created), (id, false));
    }
    for key in ["gone", "cancelled"] {
        assert!(store.submit(&[keyed(key, None)]).await.unwrap()[0].created);
    }
}

async fn old_tasks_are_forgotten_up_to_the_limit(store: Fixture) {
    let mut new = task("x");
    new.keep = Some(NOTHING);
    let ids: Vec<_> =
        store.submit(&vec![new; 3]).await.unwrap().iter().map(|task| task.id).collect();
    store.cancel(&ids, "").await.unwrap();
    for expected in [2, 1, 0] {
        assert_eq!(store.purge(2).await.unwrap(), expected);
    }
}

async fn tasks_are_found_by_tag_key_and_state_page_by_page(store: Fixture) {
    let with = |kind: &str, tags: &[&str], key: Option<&str>| {
        let mut new = task(kind);
        new.tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
        new.key = key.map(str::to_owned);
        new
    };
    let tricky = "a \"b\", {c} ü\\";
    let new = [
        with("x", &["red", tricky], Some("k")),
        with("x", &["red"], None),
        with("y", &["blue", "red"], Some("k")),
        with("x", &[], Some("k2")),
        with("x", &["redder", "blue"], Some("k")),
        with("x", &["red"], Some("k2")),
    ];
    let ids: Vec<_> = store.submit(&new).await.unwrap().iter().map(|task| task.id).collect();
    for (id, new) in ids.iter().zip(&new) {
        let found = store.task(*id).await.unwrap().unwrap();
        assert_eq!((&found.tags, &found.key), (&new.tags, &new.key));
    }
    let instance = register(&store, "w").await;
    let leases = store.claim(&wanted("w", instance, 2, HOUR)).await.unwrap();
    store.complete(&[completion(lease_ref(&leases[0]))]).await.unwrap();
    store.fail(&[failure(lease_ref(&leases[1]), false)]).await.unwrap();
    store.cancel(&[ids[5]], "").await.unwrap();

    let list = async |query: TaskQuery| -> Vec<usize> {
        let tasks = store.tasks(&query).await.unwrap();
        tasks.iter().map(|task| ids.iter().position(|id| *id == task.id).unwrap()).collect()
    };
    let tag = |tag: &str| TaskQuery { tag: Some(tag.to_owned()), ..TaskQuery::default() };
    let key = |key: &str| TaskQuery { key: Some(key.to_owned()), ..TaskQuery::default() };
    assert_eq!(list(tag("red")).await, [0, 1, 2, 5]);
    assert_eq!(list(tag(tricky)).await, [0]);
    assert!(list(tag("re")).await.is_empty());
    assert_eq!(list(key("k")).await, [0, 2, 4]);
    let both = TaskQuery { tag: Some("blue".to_owned()), ..key("k") };
    assert_eq!(list(both).await, [2, 4]);
    let of_kind = TaskQuery { capability: Some(capability("y")), ..tag("red") };
    assert_eq!(list(of_kind).await, [2]);
    let states = [
        (TaskState::Completed, vec![0]),
        (TaskState::Dead, vec![1]),
        (TaskState::Ready, vec![2]),
        (TaskState::Cancelled, vec![5]),
        (TaskState::Running, vec![]),
        (TaskState::Scheduled, vec![]),
    ];
    for (state, expected) in states {
        assert_eq!(list(TaskQuery { state: Some(state), ..tag("red") }).await, expected);
    }
    // Page by page, over tasks that are over and others.
    let mut all = Vec::new();
    let mut after = None;
    loop {
        let page = list(TaskQuery { after, limit: 2, ..tag("red") }).await;
        let Some(last) = page.last() else { break };
        assert!(page.len() <= 2);
        after = Some(ids[*last]);
        all.extend(page);
    }
    assert_eq!(all, [0, 1, 2, 5]);
}

async fn a_claim_made_again_gives_the_same_leases(store: Fixture) {
    store.submit(&vec![task("x"); 3]).await.unwrap();
    let instance = register(&store, "w").await;
    let mut claim = wanted("w", instance, 2, HOUR);
    claim.id = Some(ClaimId::new());
    let first = store.claim(&claim).await.unwrap();
    claim.again = true;
    assert_eq!(store.claim(&claim).await.unwrap(), first);
    assert_eq!(store.claim(&claim).await.unwrap(), first);
    // Only those that are still held.
    store.complete(&[completion(lease_ref(&first[0]))]).await.unwrap();
    assert_eq!(store.claim(&claim).await.unwrap(), first[1..]);
    // Nothing is left of it: it is made anew.
    store.fail(&[failure(lease_ref(&first[1]), false)]).await.unwrap();
    let anew = store.claim(&claim).await.unwrap();
    assert_eq!(anew.len(), 1);
    assert!(first.iter().all(|lease| lease.task != anew[0].task));
    // One whose answer was lost before the server heard it.
    store.submit(&[task("x")]).await.unwrap();
    claim.id = Some(ClaimId::new());
    let unheard = store.claim(&claim).await.unwrap();
    assert_eq!(unheard.len(), 1);
    assert_eq!(store.claim(&claim).await.unwrap(), unheard);
}

async fn a_claim_of_another_life_or_agent_is_not_given_again(store: Fixture) {
    store.submit(&vec![task("x"); 2]).await.unwrap();
    let (mine, theirs) = (register(&store, "w").await, register(&store, "other").await);
    let id = Some(ClaimId::new());
    let mut claim = wanted("w", mine, 1, HOUR);
    claim.id = id;
    let first = store.claim(&claim).await.unwrap();
    let mut other = wanted("other", theirs, 1, HOUR);
    (other.id, other.again) = (id, true);
    let others = store.claim(&other).await.unwrap();
    assert_eq!(others.len(), 1);
    assert_ne!(others[0].task, first[0].task);
    // What an earlier life took is not what this one works on.
    let next = InstanceId::new();
    store.register(&crate::fixture::registration("w", next)).await.unwrap();
    (claim.instance, claim.again) = (next, true);
    let leases = store.claim(&claim).await.unwrap();
    assert!(leases.iter().all(|lease| lease.task == first[0].task && lease.token == Token(2)));
}

async fn an_agent_that_drains_still_hears_what_it_took(store: Fixture) {
    store.submit(&vec![task("x"); 2]).await.unwrap();
    let mut claim = wanted("w", register(&store, "w").await, 1, HOUR);
    claim.id = Some(ClaimId::new());
    let first = store.claim(&claim).await.unwrap();
    store.order(&agent("w"), &Order::Drain(None)).await.unwrap();
    claim.again = true;
    assert_eq!(store.claim(&claim).await.unwrap(), first);
    store.complete(&[completion(lease_ref(&first[0]))]).await.unwrap();
    assert!(store.claim(&claim).await.is_err());
}

async fn a_flood_of_one_kind_leaves_the_others_their_share(store: Fixture) {
    store.submit(&vec![task("x"); 200]).await.unwrap();
    store.submit(&["y", "y", "z"].map(task)).await.unwrap();
    let instance = register(&store, "w").await;
    let mut claim = wanted("w", instance, 9, HOUR);
    claim.capabilities = ["x", "y", "z"].map(capability).to_vec();
    let leases = store.claim(&claim).await.unwrap();
    let count = |kind| leases.iter().filter(|lease| lease.capability == capability(kind)).count();
    assert_eq!(["x", "y", "z"].map(count), [6, 2, 1]);
}
