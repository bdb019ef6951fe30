//! The contract of what a supervisor has to know.

use resurgam_model::Duration;
use resurgam_model::pool::Demand;
use resurgam_model::stuck::ENOUGH;

use crate::fixture::{
    Fixture, HOUR, NOTHING, agent, capability, completion, lease_ref, register, task, wanted,
};

crate::on_both! {
    the_demand_is_what_came_what_waits_and_who_is_there
    what_is_usual_and_what_runs_for_long_is_known
}

const WINDOW: Duration = Duration::from_secs(100);

async fn the_demand_is_what_came_what_waits_and_who_is_there(store: Fixture) {
    let x = [capability("x"), capability("z")];
    assert_eq!(store.demand(&x, WINDOW).await.unwrap(), Demand::default());
    let (v, _w) = (register(&store, "v").await, register(&store, "w").await);
    let tasks: Vec<_> = ["x"; 8].into_iter().chain(["y"; 5]).map(task).collect();
    store.submit(&tasks).await.unwrap();
    let leases = store.claim(&wanted("v", v, 3, HOUR)).await.unwrap();
    store.complete(&[completion(lease_ref(&leases[0]))]).await.unwrap();
    let demand = store.demand(&x, WINDOW).await.unwrap();
    assert!((demand.rate - 0.08).abs() < 1e-9, "{demand:?}");
    assert!(demand.seconds_per_task.is_some_and(|took| (0.0..60.0).contains(&took)), "{demand:?}");
    assert_eq!((demand.queue, demand.running), (5, 2));
    assert_eq!((demand.workers, demand.concurrency), (2, 3.0));
    let y = store.demand(&[capability("y")], WINDOW).await.unwrap();
    assert_eq!((y.queue, y.running, y.workers, y.seconds_per_task), (5, 0, 0, None));
    // Who is given no tasks is no worker.
    let order = resurgam_store::Order::Drain(None);
    store.order(&agent("w"), &order).await.unwrap();
    assert_eq!(store.demand(&x, WINDOW).await.unwrap().workers, 1);
    assert!((store.demand(&x, NOTHING).await.unwrap().seconds_per_task).is_none());
}

async fn what_is_usual_and_what_runs_for_long_is_known(store: Fixture) {
    let w = register(&store, "w").await;
    assert_eq!(store.usual().await.unwrap(), []);
    let many = usize::try_from(ENOUGH).unwrap();
    store.submit(&vec![task("x"); many + 1]).await.unwrap();
    let max = u32::try_from(ENOUGH).unwrap();
    let leases = store.claim(&wanted("w", w, max, HOUR)).await.unwrap();
    let done: Vec<_> = leases.iter().map(|lease| completion(lease_ref(lease))).collect();
    store.complete(&done).await.unwrap();
    let usual = store.usual().await.unwrap();
    assert_eq!(usual.len(), 1);
    assert_eq!((&usual[0].0, usual[0].1.samples), (&capability("x"), ENOUGH));
    assert!(usual[0].1.median < Duration::from_secs(60), "{usual:?}");

    let running = store.claim(&wanted("w", w, 1, HOUR)).await.unwrap();
    assert_eq!(store.long_running(HOUR, 9).await.unwrap(), []);
    let found = store.long_running(NOTHING, 9).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].task, found[0].attempt), (running[0].task, 1));
    assert_eq!(found[0].held_by, Some(agent("w")));
}
