//! Servers that are silent, go away, come back or change their roles.

use std::net::TcpListener;
use std::time::{Duration as Span, Instant};

use resurgam_store::{Error, Settings, SharedStore, open, postgres};
use resurgam_testing::ScratchPostgres;

use crate::fixture::{self, HOUR, register, task, wanted};

const TIMEOUT: Span = Span::from_secs(4);

fn connect(hosts: &[String], database: &str) -> SharedStore {
    let url = format!("postgresql://postgres:s3cret@{}/{database}", hosts.join(","));
    open(&Settings::Postgres(postgres::Settings {
        url,
        max_pool_size: 4,
        application_name: "store-tests".to_owned(),
        timeout: TIMEOUT,
    }))
    .unwrap()
}

/// An address that accepts connections and never says a word, as a frozen server does.
fn silent() -> (TcpListener, String) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

/// An address where nobody listens.
fn nobody() -> String {
    silent().1
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_host_does_not_delay_the_others() {
    let server = ScratchPostgres::shared().unwrap();
    let database = server.create_database().await.unwrap();
    let (_listener, silent) = silent();
    let store = connect(&[silent, nobody(), server.address()], &database);
    let began = Instant::now();
    store.migrate().await.unwrap();
    assert!(began.elapsed() < TIMEOUT / 2, "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_host_that_refuses_is_named_with_its_reason() {
    let server = ScratchPostgres::shared().unwrap();
    let (_listener, silent) = silent();
    let nobody = nobody();
    let hosts = [silent.clone(), nobody.clone(), server.address()];
    let store = connect(&hosts, "missing");
    let began = Instant::now();
    let error = store.check().await.unwrap_err();
    assert!(began.elapsed() < TIMEOUT, "{:?}", began.elapsed());
    assert!(error.is_transient());
    let Error::NoWritableHost(told) = &error else { panic!("{error:?}") };
    assert!(told.contains(&format!("{silent} did not answer in time")), "{told}");
    assert!(told.contains(&format!("{nobody} refused:")), "{told}");
    assert!(told.contains("database \"missing\" does not exist"), "{told}");
    assert!(!told.contains("s3cret"), "{told}");

    // When all have spoken there is nothing to wait for.
    let store = connect(&hosts[1..], "missing");
    let began = Instant::now();
    store.check().await.unwrap_err();
    assert!(began.elapsed() < TIMEOUT / 2, "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_outlives_its_server() {
    let server = ScratchPostgres::start().unwrap();
    let store = connect(&[server.address()], "postgres");
    store.migrate().await.unwrap();
    let checks: Vec<_> = (0..4).map(|_| tokio::spawn(checked(store.clone()))).collect();
    for check in checks {
        check.await.unwrap().unwrap();
    }
    server.stop().unwrap();
    for _ in 0..3 {
        let error = store.check().await.unwrap_err();
        assert!(error.is_transient(), "{error:?}");
    }
    server.resume().unwrap();
    store.check().await.unwrap();
}

async fn checked(store: SharedStore) -> resurgam_store::Result<()> {
    store.check().await.map(|_| ())
}

/// Idle connections that the crash broke are found out without an error, or with one that is
/// transient and the last.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_unseen_costs_at_most_one_error() {
    let server = ScratchPostgres::start().unwrap();
    let store = connect(&[server.address()], "postgres");
    store.migrate().await.unwrap();
    let checks: Vec<_> = (0..4).map(|_| tokio::spawn(checked(store.clone()))).collect();
    for check in checks {
        check.await.unwrap().unwrap();
    }
    server.stop().unwrap();
    server.resume().unwrap();
    if let Err(error) = store.check().await {
        assert!(error.is_transient(), "{error:?}");
    }
    for _ in 0..8 {
        store.check().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_demotion_the_next_call_finds_the_new_primary() {
    let old = ScratchPostgres::start().unwrap();
    let new = ScratchPostgres::shared().unwrap();
    let database = new.create_database().await.unwrap();
    old.execute("postgres", &format!("CREATE DATABASE {database}")).await.unwrap();
    connect(&[new.address()], &database).migrate().await.unwrap();
    // The new one is left out at first, so that it is certain to whom the connections are.
    let store = connect(&[old.address(), nobody()], &database);
    store.migrate().await.unwrap();
    let read_only = |on: &str| {
        let sql = format!("ALTER SYSTEM SET default_transaction_read_only = {on}");
        let old = &old;
        async move {
            old.execute("postgres", &sql).await.unwrap();
            old.execute("postgres", "SELECT pg_reload_conf()").await.unwrap();
        }
    };
    read_only("on").await;
    let error = loop {
        // Until the reload has reached the sessions.
        if let Err(error) = store.submit(&[task("x")]).await {
            break error;
        }
    };
    assert!(error.is_transient(), "{error:?}");
    let error = store.submit(&[task("x")]).await.unwrap_err();
    let Error::NoWritableHost(told) = &error else { panic!("{error:?}") };
    assert!(told.contains(&format!("{} accepts only reads", old.address())), "{told}");

    let store = connect(&[old.address(), new.address()], &database);
    store.submit(&[task("x")]).await.unwrap();
    assert_eq!(store.check().await.unwrap().location.split(' ').next(), Some(&*new.address()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_too_long_is_given_up_and_its_connection_too() {
    let server = ScratchPostgres::shared().unwrap();
    let database = server.create_database().await.unwrap();
    let Settings::Postgres(mut settings) = fixture::postgres_settings(server.url(&database)) else {
        panic!("not PostgreSQL")
    };
    settings.max_pool_size = 1;
    settings.timeout = Span::from_millis(500);
    let store = open(&Settings::Postgres(settings)).unwrap();
    store.migrate().await.unwrap();
    let instance = register(&store, "w").await;
    store.submit(&[task("x")]).await.unwrap();

    let url = server.url(&database);
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client.batch_execute("BEGIN; LOCK TABLE tasks").await.unwrap();
    let began = Instant::now();
    let claim = wanted("w", instance, 1, HOUR);
    let (first, second) = tokio::join!(store.claim(&claim), store.claim(&claim));
    for error in [first.unwrap_err(), second.unwrap_err()] {
        assert!(matches!(error, Error::Timeout(_)), "{error:?}");
    }
    assert!(began.elapsed() < Span::from_secs(2), "{:?}", began.elapsed());
    client.batch_execute("COMMIT").await.unwrap();
    // The claim that was given up may have gone through once the lock was free: then its task
    // is leased, which is what the contract says of an error that is transient.
    store.check().await.unwrap();
}
