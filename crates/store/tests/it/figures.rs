//! How things stand, and what is counted.

use std::time::Duration as Span;

use resurgam_metrics::{Format, Registry};
use resurgam_model::Duration;
use resurgam_model::agent::{Heartbeat, OwnState};
use resurgam_store::Error;

use crate::fixture::{
    Fixture, HOUR, agent, capability, completion, failure, lease_ref, register, task, wanted,
};

crate::on_both! {
    stock_is_taken_of_what_is_not_over
    operations_are_counted_by_name
}

async fn stock_is_taken_of_what_is_not_over(store: Fixture) {
    let empty = store.figures().await.unwrap();
    assert_eq!((empty.queues.len(), empty.agents.len()), (0, 0));

    let mut later = task("x");
    later.delay = Some(HOUR);
    let mut only_later = task("b");
    only_later.delay = Some(HOUR);
    let tasks = [task("x"), task("x"), task("x"), task("x"), later, only_later, task("a")];
    store.submit(&tasks).await.unwrap();
    let instance = register(&store, "w").await;
    register(&store, "other").await;
    let leases = store.claim(&wanted("w", instance, 3, HOUR)).await.unwrap();
    store.complete(&[completion(lease_ref(&leases[0]))]).await.unwrap();
    store.fail(&[failure(lease_ref(&leases[1]), false)]).await.unwrap();

    let stock = store.figures().await.unwrap();
    let numbers = |index: usize| {
        let queue = &stock.queues[index];
        let numbers = (queue.ready, queue.scheduled, queue.running, queue.dead);
        (queue.capability.clone(), numbers, queue.oldest_ready.is_some())
    };
    assert_eq!(stock.queues.len(), 3);
    assert_eq!(numbers(0), (capability("a"), (1, 0, 0, 0), true));
    assert_eq!(numbers(1), (capability("b"), (0, 1, 0, 0), false));
    assert_eq!(numbers(2), (capability("x"), (1, 1, 1, 1), true));
    let oldest = stock.queues[2].oldest_ready.unwrap();
    assert!(oldest < Span::from_secs(60), "{oldest:?}");
    assert_eq!(stock.agents, [("available".to_owned(), 2)]);

    let unwell =
        Heartbeat { state: Some(OwnState::Unhealthy), ..Heartbeat::new(agent("w"), instance) };
    store.heartbeat(&[unwell]).await.unwrap();
    let expected = [("available".to_owned(), 1), ("unhealthy".to_owned(), 1)];
    assert_eq!(store.figures().await.unwrap().agents, expected);
}

async fn operations_are_counted_by_name(store: Fixture) {
    store.submit(&[task("x")]).await.unwrap();
    store.submit(&[task("x")]).await.unwrap();
    // An answer to the caller is no error of the store.
    let unknown = store.claim(&wanted("nobody", resurgam_model::InstanceId::new(), 1, HOUR)).await;
    assert!(matches!(unknown, Err(Error::UnknownAgent(_))));
    let mut registry = Registry::default();
    store.meters().register(&mut registry);
    let text = registry.encode(Format::Prometheus);
    let has = |line: &str| assert!(text.lines().any(|l| l == line), "{line}\n{text}");
    has("resurgam_store_operation_duration_seconds_count{operation=\"submit tasks\"} 2");
    has("resurgam_store_operation_duration_seconds_count{operation=\"claim tasks\"} 1");
    assert!(!text.contains("resurgam_store_errors_total{"), "{text}");
    has("resurgam_sqlite_writer_queue 0");
    match store.kind() {
        "postgres" => has("resurgam_postgres_pool_connections{state=\"in-use\"} 0"),
        // The request for an unknown agent left nothing to commit.
        _ => has("resurgam_sqlite_batch_requests_sum 3.0"),
    }
}

#[tokio::test]
async fn a_server_that_is_away_is_counted_as_errors() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    let mut settings = crate::fixture::postgres_settings(format!("postgresql://me@{address}/x"));
    if let resurgam_store::Settings::Postgres(settings) = &mut settings {
        settings.timeout = Duration::from_secs(5).0;
    }
    let store = resurgam_store::open(&settings).unwrap();
    store.figures().await.unwrap_err();
    let mut registry = Registry::default();
    store.meters().register(&mut registry);
    let text = registry.encode(Format::Prometheus);
    let line =
        "resurgam_store_errors_total{operation=\"take stock\",kind=\"no-writable-host\"} 1\n";
    assert!(text.contains(line), "{text}");
}
