//! Words about tasks that have become ready.

use std::time::Duration as Span;

use resurgam_model::Duration;
use resurgam_store::{Wake, Wakes, open};

use crate::fixture::{
    Fixture, HOUR, NOTHING, capability, claimed, failure, lease_ref, postgres, register, task,
    wanted,
};

crate::on_both! {
    whatever_makes_tasks_ready_tells_of_them
    what_makes_nothing_ready_tells_of_nothing
}

/// Longer than anything takes.
pub(crate) const PATIENCE: Span = Span::from_secs(60);

/// The next word that names a capability.
pub(crate) async fn heard(wakes: &mut Wakes) -> Wake {
    let next = async {
        loop {
            if let Some(wake) = wakes.next().await {
                return wake;
            }
        }
    };
    tokio::time::timeout(PATIENCE, next).await.expect("nobody was woken")
}

fn wake(kind: &str, count: u64) -> Wake {
    Wake { capability: capability(kind), count }
}

async fn whatever_makes_tasks_ready_tells_of_them(store: Fixture) {
    let mut wakes = store.wakes();
    store.submit(&["x", "y", "x"].map(task)).await.unwrap();
    assert_eq!(heard(&mut wakes).await, wake("x", 2));
    assert_eq!(heard(&mut wakes).await, wake("y", 1));
    let mut special = task("y");
    special.tags = vec!["t".to_owned()];
    store.submit(&[special]).await.unwrap();
    assert_eq!(heard(&mut wakes).await, wake("y", 1));

    let instance = register(&store, "w").await;
    let leases = store.claim(&wanted("w", instance, 2, HOUR)).await.unwrap();
    store.fail(&[failure(lease_ref(&leases[0]), true)]).await.unwrap();
    assert_eq!(heard(&mut wakes).await, wake("x", 1));

    store.fail(&[failure(lease_ref(&leases[1]), false)]).await.unwrap();
    store.requeue(&[leases[1].task]).await.unwrap();
    assert_eq!(heard(&mut wakes).await, wake("x", 1));

    store.claim(&wanted("w", instance, 9, NOTHING)).await.unwrap();
    let mut back = 0;
    while back < 2 {
        back += store.return_expired(9).await.unwrap();
    }
    let mut count = 0;
    while count < 2 {
        let heard = heard(&mut wakes).await;
        assert_eq!(heard.capability, capability("x"));
        count += heard.count;
    }

    let mut later = task("z");
    later.delay = Some(Duration::from_millis(1));
    store.submit(&[later]).await.unwrap();
    while store.promote(9).await.unwrap().promoted == 0 {}
    assert_eq!(heard(&mut wakes).await, wake("z", 1));
}

async fn what_makes_nothing_ready_tells_of_nothing(store: Fixture) {
    let mut new = task("x");
    new.idempotency_key = Some("k".to_owned());
    new.retry.backoff = HOUR;
    new.retry.max_backoff = HOUR;
    let lease = lease_ref(&claimed(&store, new.clone(), HOUR).await);
    let mut wakes = store.wakes();
    store.fail(&[failure(lease, true)]).await.unwrap();
    // Known already.
    store.submit(&[new]).await.unwrap();
    let mut later = task("x");
    later.delay = Some(HOUR);
    store.submit(&[later]).await.unwrap();
    store.cancel(&[lease.task], "").await.unwrap();
    // The first word is about this one.
    store.submit(&[task("last")]).await.unwrap();
    assert_eq!(heard(&mut wakes).await, wake("last", 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn other_processes_hear_of_tasks_through_the_database() {
    let store = postgres().await;
    let other = open(&store.settings).unwrap();
    let mut wakes = other.wakes();
    // Told once it listens.
    let listens = tokio::time::timeout(PATIENCE, wakes.next()).await.unwrap();
    assert_eq!(listens, None);
    store.submit(&[task("x"), task("x")]).await.unwrap();
    assert_eq!(heard(&mut wakes).await, wake("x", 2));
    let mut later = task("y");
    later.delay = Some(Duration::from_millis(1));
    store.submit(&[later]).await.unwrap();
    while store.promote(9).await.unwrap().promoted == 0 {}
    assert_eq!(heard(&mut wakes).await, wake("y", 1));
}
