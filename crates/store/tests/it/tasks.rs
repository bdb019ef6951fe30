//! The contract of the queue.

use resurgam_model::task::{
    LeaseRef, Outcome, RetryPolicy, TaskCounts, TaskQuery, TaskState, Token,
};
use resurgam_model::{Duration, InstanceId, Payload};
use resurgam_store::{Counted, Error, LeasesOf};

use crate::fixture::{
    Fixture, HOUR, NOTHING, agent, capability, claimed, completion, failure, lease_ref, no_lease,
    register, task, wanted,
};

crate::on_both! {
    a_task_keeps_everything_it_was_given
    a_known_key_gives_the_first_task_back
    capabilities_take_turns_and_within_one_priority_then_age_count
    a_delayed_task_waits
    only_registered_lives_claim
    each_claim_raises_token_and_attempts
    completing_is_final_and_may_be_repeated
    an_expired_lease_counts_until_it_is_taken_back
    a_word_under_an_old_token_changes_nothing
    failing_puts_the_task_back_after_a_wait
    failing_may_be_repeated_until_the_next_claim
    a_task_dies_when_its_tries_are_used_up
    a_task_that_cannot_succeed_dies_at_once
    extending_moves_the_end_of_the_lease
    expired_leases_are_taken_back_up_to_the_limit
    leases_of_one_life_or_of_all_earlier_ones_are_returned
    words_in_one_call_do_not_get_in_each_others_way
    tasks_are_listed_in_order_and_by_page
    tasks_are_counted_by_capability
    huge_durations_do_no_harm
}

async fn a_task_keeps_everything_it_was_given(store: Fixture) {
    let json = "{\"b\": 1.0e2,\t\"a\":[true,\"\\u0000ü\"]}";
    let mut new = task("x");
    new.payload = Payload::from_json(json).unwrap();
    new.idempotency_key = Some("kéy".to_owned());
    new.priority = i16::MIN;
    let submitted = store.submit(&[new]).await.unwrap();
    assert!(submitted[0].created);
    let found = store.task(submitted[0].id).await.unwrap().unwrap();
    assert_eq!(found.payload.json(), json);
    assert_eq!(found.idempotency_key.as_deref(), Some("kéy"));
    assert_eq!(found.priority, i16::MIN);
    assert_eq!((found.state, found.attempts, found.token), (TaskState::Ready, 0, Token(0)));
    assert_eq!((found.result, found.error, found.held_by), (None, None, None));
    assert_eq!(found.created_at, found.run_at);
    assert_eq!(store.task(no_lease().task).await.unwrap(), None);
    assert!(store.submit(&[]).await.unwrap().is_empty());
}

async fn a_known_key_gives_the_first_task_back(store: Fixture) {
    let keyed = |key: &str| {
        let mut new = task("x");
        new.idempotency_key = Some(key.to_owned());
        new
    };
    let first = store.submit(&[keyed("a"), task("x"), keyed("b"), keyed("a")]).await.unwrap();
    let created: Vec<_> = first.iter().map(|s| s.created).collect();
    assert_eq!(created, [true, true, true, false]);
    assert_eq!(first[3].id, first[0].id);
    let again = store.submit(&[keyed("b"), keyed("c"), keyed("a")]).await.unwrap();
    assert_eq!((again[0].id, again[0].created), (first[2].id, false));
    assert!(again[1].created);
    assert_eq!((again[2].id, again[2].created), (first[0].id, false));
    assert_eq!(store.tasks(&TaskQuery::default()).await.unwrap().len(), 4);
}

async fn capabilities_take_turns_and_within_one_priority_then_age_count(store: Fixture) {
    let with = |kind: &str, priority| {
        let mut new = task(kind);
        new.priority = priority;
        new
    };
    let new = [with("x", 0), with("y", 5), with("x", 5), with("z", 9), with("x", -1), with("y", 0)];
    let ids: Vec<_> = store.submit(&new).await.unwrap().iter().map(|s| s.id).collect();
    let instance = register(&store, "w").await;
    let mut claim = wanted("w", instance, 3, HOUR);
    claim.capabilities = vec![capability("y"), capability("x"), capability("y")];
    let first = store.claim(&claim).await.unwrap();
    let tasks: Vec<_> = first.iter().map(|lease| lease.task).collect();
    assert_eq!(tasks, [ids[1], ids[5], ids[2]]);
    assert_eq!(first[0].capability, capability("y"));
    // One that has nothing leaves its share to the others.
    let rest = store.claim(&claim).await.unwrap();
    assert_eq!(rest.iter().map(|lease| lease.task).collect::<Vec<_>>(), [ids[0], ids[4]]);
    assert!(store.claim(&claim).await.unwrap().is_empty());
    claim.capabilities.clear();
    assert!(store.claim(&claim).await.unwrap().is_empty());
    claim.max = 0;
    claim.capabilities = vec![capability("z")];
    assert!(store.claim(&claim).await.unwrap().is_empty());
}

async fn a_delayed_task_waits(store: Fixture) {
    let instance = register(&store, "w").await;
    let mut late = task("x");
    late.delay = Some(HOUR);
    let mut soon = task("x");
    soon.delay = Some(Duration::from_millis(50));
    let ids = store.submit(&[late, soon]).await.unwrap();
    assert!(store.claim(&wanted("w", instance, 5, HOUR)).await.unwrap().is_empty());
    let promoted = loop {
        let promoted = store.promote(10).await.unwrap();
        if promoted.promoted > 0 {
            break promoted;
        }
    };
    assert_eq!(promoted.promoted, 1);
    let next = store.task(ids[0].id).await.unwrap().unwrap();
    assert_eq!((next.state, Some(next.run_at)), (TaskState::Scheduled, promoted.next));
    let leases = store.claim(&wanted("w", instance, 5, HOUR)).await.unwrap();
    assert_eq!(leases.iter().map(|l| l.task).collect::<Vec<_>>(), [ids[1].id]);
    let claimed = store.task(ids[1].id).await.unwrap().unwrap();
    assert!(claimed.run_at > claimed.created_at);
}

async fn only_registered_lives_claim(store: Fixture) {
    store.submit(&[task("x")]).await.unwrap();
    let unknown = store.claim(&wanted("w", InstanceId::new(), 1, HOUR)).await.unwrap_err();
    assert!(matches!(&unknown, Error::UnknownAgent(who) if *who == agent("w")), "{unknown:?}");
    assert!(!unknown.is_transient());
    let old = register(&store, "w").await;
    let new = register(&store, "w").await;
    assert!(store.claim(&wanted("w", old, 1, HOUR)).await.is_err());
    assert_eq!(store.claim(&wanted("w", new, 1, HOUR)).await.unwrap().len(), 1);
}

async fn each_claim_raises_token_and_attempts(store: Fixture) {
    let first = claimed(&store, task("x"), NOTHING).await;
    assert_eq!((first.token, first.attempt), (Token(1), 1));
    assert_eq!(first.payload.json(), "{ \"n\":1.0 }");
    let held = store.task(first.task).await.unwrap().unwrap();
    assert_eq!(held.held_by, Some(agent("holder")));
    assert_eq!(held.lease_until, Some(first.until));
    assert_eq!(store.return_expired(10).await.unwrap(), 1);
    let instance = register(&store, "holder").await;
    let second = store.claim(&wanted("holder", instance, 1, HOUR)).await.unwrap().remove(0);
    assert_eq!((second.task, second.token, second.attempt), (first.task, Token(2), 2));
    assert!(second.until > first.until);
}

async fn completing_is_final_and_may_be_repeated(store: Fixture) {
    let mut new = task("x");
    new.reply_to = Some(agent("boss"));
    let lease = lease_ref(&claimed(&store, new, HOUR).await);
    assert_eq!(store.complete(&[completion(lease)]).await.unwrap(), [Outcome::Accepted]);
    let mut other = completion(lease);
    other.result = Payload::from_text("other");
    assert_eq!(store.complete(&[other]).await.unwrap(), [Outcome::Accepted]);
    let done = store.task(lease.task).await.unwrap().unwrap();
    assert_eq!(done.state, TaskState::Completed);
    assert_eq!(done.result.unwrap().json(), "[1,  2.50]");
    assert!(done.finished_at.unwrap() >= done.created_at);
    assert_eq!((done.held_by, done.lease_until), (Some(agent("holder")), None));
    assert_eq!(store.fail(&[failure(lease, true)]).await.unwrap(), [Outcome::Stale]);
    assert_eq!(store.extend(&[lease], HOUR).await.unwrap(), [Outcome::Stale]);
    assert_eq!(store.complete(&[completion(no_lease())]).await.unwrap(), [Outcome::Unknown]);

    let letters = store.receive(&agent("boss"), None, 10).await.unwrap();
    assert_eq!(letters.len(), 1);
    assert_eq!((letters[0].kind.as_str(), &letters[0].from), ("task.completed", &None));
    assert_eq!(letters[0].topic, "agent-messages");
    let body = format!(r#"{{"task":"{}","state":"completed","result":[1,  2.50]}}"#, lease.task);
    assert_eq!(letters[0].body.json(), body);
}

async fn an_expired_lease_counts_until_it_is_taken_back(store: Fixture) {
    let lease = lease_ref(&claimed(&store, task("x"), NOTHING).await);
    assert_eq!(store.extend(&[lease], NOTHING).await.unwrap(), [Outcome::Accepted]);
    assert_eq!(store.complete(&[completion(lease)]).await.unwrap(), [Outcome::Accepted]);
    assert_eq!(store.return_expired(10).await.unwrap(), 0);
    let lease = lease_ref(&claimed(&store, task("x"), NOTHING).await);
    assert_eq!(store.return_expired(10).await.unwrap(), 1);
    assert_eq!(store.complete(&[completion(lease)]).await.unwrap(), [Outcome::Stale]);
    assert_eq!(store.fail(&[failure(lease, true)]).await.unwrap(), [Outcome::Stale]);
    let back = store.task(lease.task).await.unwrap().unwrap();
    assert_eq!((back.state, back.token), (TaskState::Ready, lease.token));
    assert!(back.error.is_some());
}

async fn a_word_under_an_old_token_changes_nothing(store: Fixture) {
    let old = lease_ref(&claimed(&store, task("x"), NOTHING).await);
    assert_eq!(store.return_expired(10).await.unwrap(), 1);
    let instance = register(&store, "other").await;
    let new = store.claim(&wanted("other", instance, 1, HOUR)).await.unwrap().remove(0);
    let before = store.task(old.task).await.unwrap();
    assert_eq!(store.complete(&[completion(old)]).await.unwrap(), [Outcome::Stale]);
    assert_eq!(store.fail(&[failure(old, false)]).await.unwrap(), [Outcome::Stale]);
    assert_eq!(store.extend(&[old], HOUR).await.unwrap(), [Outcome::Stale]);
    assert_eq!(store.task(old.task).await.unwrap(), before);
    let done = store.complete(&[completion(lease_ref(&new))]).await.unwrap();
    assert_eq!(done, [Outcome::Accepted]);
}

async fn failing_puts_the_task_back_after_a_wait(store: Fixture) {
    let mut new = task("x");
    new.retry = RetryPolicy {
        max_attempts: 9,
        backoff: HOUR,
        max_backoff: HOUR,
        jitter: 0,
        ..RetryPolicy::default()
    };
    let lease = claimed(&store, new, HOUR).await;
    let outcome = store.fail(&[failure(lease_ref(&lease), true)]).await.unwrap();
    assert_eq!(outcome, [Outcome::Accepted]);
    let back = store.task(lease.task).await.unwrap().unwrap();
    assert_eq!(back.state, TaskState::Scheduled);
    assert_eq!(back.error.as_deref(), Some("it \"broke\"\n"));
    let wait = back.run_at.duration_since(back.created_at);
    assert!((3600..3660).contains(&wait.as_secs()), "{wait:?}");
    assert_eq!(store.fail(&[failure(no_lease(), true)]).await.unwrap(), [Outcome::Unknown]);

    // The wait doubles, up to its limit.
    let mut new = task("x");
    new.retry.backoff = Duration::from_millis(1);
    new.retry.max_backoff = Duration::from_millis(3);
    let task = store.submit(&[new]).await.unwrap()[0].id;
    let instance = register(&store, "w").await;
    for expected in [1, 2, 3, 3] {
        let lease = loop {
            store.promote(10).await.unwrap();
            let mut leases = store.claim(&wanted("w", instance, 1, HOUR)).await.unwrap();
            if let Some(lease) = leases.pop() {
                break lease;
            }
        };
        assert_eq!(lease.task, task);
        let before = resurgam_model::Timestamp::now();
        store.fail(&[failure(lease_ref(&lease), true)]).await.unwrap();
        let wait = store.task(task).await.unwrap().unwrap().run_at.duration_since(before);
        assert!(wait.as_millis() >= expected, "{wait:?} {expected}");
    }
}

async fn failing_may_be_repeated_until_the_next_claim(store: Fixture) {
    let lease = lease_ref(&claimed(&store, task("x"), HOUR).await);
    for _ in 0..2 {
        let outcome = store.fail(&[failure(lease, true)]).await.unwrap();
        assert_eq!(outcome, [Outcome::Accepted]);
    }
    assert_eq!(store.complete(&[completion(lease)]).await.unwrap(), [Outcome::Stale]);
    let instance = register(&store, "w").await;
    assert_eq!(store.claim(&wanted("w", instance, 1, HOUR)).await.unwrap().len(), 1);
    assert_eq!(store.fail(&[failure(lease, true)]).await.unwrap(), [Outcome::Stale]);
}

async fn a_task_dies_when_its_tries_are_used_up(store: Fixture) {
    // By failing.
    let mut new = task("x");
    new.reply_to = Some(agent("boss"));
    new.retry.max_attempts = 1;
    let lease = lease_ref(&claimed(&store, new.clone(), HOUR).await);
    for _ in 0..2 {
        assert_eq!(store.fail(&[failure(lease, true)]).await.unwrap(), [Outcome::Accepted]);
    }
    let dead = store.task(lease.task).await.unwrap().unwrap();
    assert_eq!(dead.state, TaskState::Dead);
    assert!(dead.finished_at.is_some());
    let letters = store.receive(&agent("boss"), None, 10).await.unwrap();
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].kind, "task.dead");
    let body = format!(r#"{{"task":"{}","state":"dead","error":"it \"broke\"\n"}}"#, lease.task);
    assert_eq!(letters[0].body.json(), body);

    // By losing the lease. No tries at all is taken as one.
    new.retry.max_attempts = 0;
    let lease = lease_ref(&claimed(&store, new, NOTHING).await);
    assert_eq!(store.return_expired(10).await.unwrap(), 1);
    assert_eq!(store.task(lease.task).await.unwrap().unwrap().state, TaskState::Dead);
    assert_eq!(store.fail(&[failure(lease, true)]).await.unwrap(), [Outcome::Stale]);
    let letters = store.receive(&agent("boss"), None, 10).await.unwrap();
    assert_eq!(letters.len(), 2);
    assert!(letters[1].body.json().contains("ran out"), "{}", letters[1].body.json());
}

async fn a_task_that_cannot_succeed_dies_at_once(store: Fixture) {
    let lease = lease_ref(&claimed(&store, task("x"), HOUR).await);
    let mut hopeless = failure(lease, false);
    hopeless.error = "NUL \0 inside".to_owned();
    assert_eq!(store.fail(&[hopeless]).await.unwrap(), [Outcome::Accepted]);
    let dead = store.task(lease.task).await.unwrap().unwrap();
    assert_eq!(dead.state, TaskState::Dead);
    assert!(dead.error.unwrap().starts_with("NUL "));
}

async fn extending_moves_the_end_of_the_lease(store: Fixture) {
    let lease = claimed(&store, task("x"), NOTHING).await;
    let held = lease_ref(&lease);
    let stale = LeaseRef { task: lease.task, token: Token(7) };
    let outcomes = store.extend(&[no_lease(), held, stale, held], HOUR).await.unwrap();
    assert_eq!(outcomes, [Outcome::Unknown, Outcome::Accepted, Outcome::Stale, Outcome::Accepted]);
    let until = store.task(lease.task).await.unwrap().unwrap().lease_until.unwrap();
    assert!(until.duration_since(lease.until).as_secs() >= 3600);
    assert_eq!(store.return_expired(10).await.unwrap(), 0);
    assert!(store.extend(&[], HOUR).await.unwrap().is_empty());
}

async fn expired_leases_are_taken_back_up_to_the_limit(store: Fixture) {
    let instance = register(&store, "w").await;
    store.submit(&[task("x"), task("x"), task("x"), task("x")]).await.unwrap();
    assert_eq!(store.claim(&wanted("w", instance, 3, NOTHING)).await.unwrap().len(), 3);
    assert_eq!(store.claim(&wanted("w", instance, 3, HOUR)).await.unwrap().len(), 1);
    assert_eq!(store.return_expired(2).await.unwrap(), 2);
    assert_eq!(store.return_expired(2).await.unwrap(), 1);
    assert_eq!(store.return_expired(2).await.unwrap(), 0);
}

async fn leases_of_one_life_or_of_all_earlier_ones_are_returned(store: Fixture) {
    let first = register(&store, "w").await;
    let other = register(&store, "other").await;
    store.submit(&[task("x"), task("x"), task("x")]).await.unwrap();
    store.claim(&wanted("w", first, 2, HOUR)).await.unwrap();
    store.claim(&wanted("other", other, 1, HOUR)).await.unwrap();
    let w = agent("w");
    let unrelated = InstanceId::new();
    assert_eq!(store.return_leases(&w, LeasesOf::Life(unrelated)).await.unwrap(), 0);
    assert_eq!(store.return_leases(&w, LeasesOf::EarlierLives(first)).await.unwrap(), 0);
    assert_eq!(store.return_leases(&w, LeasesOf::EarlierLives(unrelated)).await.unwrap(), 2);
    let leases = store.claim(&wanted("w", first, 2, HOUR)).await.unwrap();
    assert_eq!(leases.iter().map(|l| l.attempt).collect::<Vec<_>>(), [2, 2]);
    assert_eq!(store.return_leases(&w, LeasesOf::Life(first)).await.unwrap(), 2);
}

async fn words_in_one_call_do_not_get_in_each_others_way(store: Fixture) {
    let instance = register(&store, "w").await;
    let mut new = task("x");
    new.reply_to = Some(agent("boss"));
    store.submit(&vec![new; 4]).await.unwrap();
    let leases = store.claim(&wanted("w", instance, 4, HOUR)).await.unwrap();
    let [a, b, c, d] = [0, 1, 2, 3].map(|n| lease_ref(&leases[n]));
    let wrong = LeaseRef { token: Token(9), ..b };
    let mut second_word = completion(a);
    second_word.result = Payload::from_text("second");
    let words =
        [completion(c), completion(no_lease()), completion(a), completion(wrong), second_word];
    let outcomes = store.complete(&words).await.unwrap();
    use Outcome::{Accepted, Stale, Unknown};
    assert_eq!(outcomes, [Accepted, Unknown, Accepted, Stale, Accepted]);
    let first = store.task(a.task).await.unwrap().unwrap();
    assert_eq!(first.result.unwrap().json(), "[1,  2.50]");
    let outcomes = store.fail(&[failure(d, false), failure(a, true), failure(d, true)]).await;
    assert_eq!(outcomes.unwrap(), [Accepted, Stale, Accepted]);
    assert_eq!(store.task(d.task).await.unwrap().unwrap().state, TaskState::Dead);
    assert_eq!(store.task(b.task).await.unwrap().unwrap().state, TaskState::Running);
    // The messages are in the order of the words.
    let letters = store.receive(&agent("boss"), None, 10).await.unwrap();
    let about: Vec<_> = letters.iter().map(|m| m.body.json()[9..45].to_owned()).collect();
    assert_eq!(about, [c, a, d].map(|lease| lease.task.to_string()));
    assert!(store.complete(&[]).await.unwrap().is_empty());
    assert!(store.fail(&[]).await.unwrap().is_empty());
}

async fn tasks_are_listed_in_order_and_by_page(store: Fixture) {
    let kinds = ["x", "y", "x", "y", "x"];
    let submitted = store.submit(&kinds.map(task)).await.unwrap();
    let ids: Vec<_> = submitted.iter().map(|s| s.id).collect();
    let instance = register(&store, "w").await;
    let leases = store.claim(&wanted("w", instance, 2, HOUR)).await.unwrap();
    store.complete(&[completion(lease_ref(&leases[1]))]).await.unwrap();
    let list = async |query: TaskQuery| -> Vec<_> {
        store.tasks(&query).await.unwrap().iter().map(|t| t.id).collect()
    };
    assert_eq!(list(TaskQuery::default()).await, ids);
    let page = TaskQuery { after: Some(ids[1]), limit: 2, ..TaskQuery::default() };
    assert_eq!(list(page).await, ids[2..4]);
    let unknown = TaskQuery { after: Some(no_lease().task), ..TaskQuery::default() };
    assert!(list(unknown).await.is_empty());
    let of = |state| TaskQuery { state, ..TaskQuery::default() };
    assert_eq!(list(of(Some(TaskState::Ready))).await, [ids[1], ids[3], ids[4]]);
    assert_eq!(list(of(Some(TaskState::Running))).await, [ids[0]]);
    assert_eq!(list(of(Some(TaskState::Completed))).await, [ids[2]]);
    assert!(list(of(Some(TaskState::Dead))).await.is_empty());
    for state in [Some(TaskState::Ready), None] {
        let query = TaskQuery { capability: Some(capability("y")), ..of(state) };
        assert_eq!(list(query).await, [ids[1], ids[3]]);
    }
}

async fn tasks_are_counted_by_capability(store: Fixture) {
    assert!(store.task_counts(Counted::All).await.unwrap().is_empty());
    store.submit(&["z", "x", "x", "x", "x"].map(task)).await.unwrap();
    let instance = register(&store, "w").await;
    let leases = store.claim(&wanted("w", instance, 3, HOUR)).await.unwrap();
    store.complete(&[completion(lease_ref(&leases[0]))]).await.unwrap();
    store.fail(&[failure(lease_ref(&leases[1]), false)]).await.unwrap();
    let counts = store.task_counts(Counted::All).await.unwrap();
    let x = TaskCounts { ready: 1, running: 1, completed: 1, dead: 1, ..TaskCounts::default() };
    let z = TaskCounts { ready: 1, ..TaskCounts::default() };
    assert_eq!(counts, [(capability("x"), x), (capability("z"), z)]);
}

async fn huge_durations_do_no_harm(store: Fixture) {
    let huge = Duration(std::time::Duration::MAX);
    let mut new = task("x");
    new.retry = RetryPolicy {
        max_attempts: u32::MAX,
        backoff: huge,
        max_backoff: huge,
        ..RetryPolicy::default()
    };
    let lease = lease_ref(&claimed(&store, new.clone(), huge).await);
    assert_eq!(store.extend(&[lease], huge).await.unwrap(), [Outcome::Accepted]);
    assert_eq!(store.fail(&[failure(lease, true)]).await.unwrap(), [Outcome::Accepted]);
    new.delay = Some(huge);
    store.submit(&[new]).await.unwrap();
    assert_eq!(store.tasks(&TaskQuery::default()).await.unwrap().len(), 2);
}
