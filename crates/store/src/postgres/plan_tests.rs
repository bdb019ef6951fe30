//! The statements of the queue and of the mailboxes stay on their indexes, also when the statistics are from when it was
//! empty: then reading all of it looks as cheap as anything.

use std::time::Duration as Span;

use resurgam_model::task::NewTask;
use resurgam_model::{Capability, Payload};
use resurgam_testing::ScratchPostgres;
use tokio_postgres::{Client, NoTls};

use super::connect::PLANS;
use super::tidy::QUICK_LOOK;
use super::{
    PostgresStore, Settings, bus, changes, claim, ends, failing, messages, registering, take_back,
};
use crate::{Admin, Tasks};

/// What stays on its indexes even if the statistics are from when the table was empty.
const ALWAYS: [(&str, &str); 9] = [
    ("claim", claim::CLAIM),
    ("claim again", claim::AGAIN),
    ("held by earlier lives", registering::EARLIER),
    ("read a mailbox", messages::RECEIVE),
    ("acknowledge", messages::ACKNOWLEDGE),
    ("read the outbox", bus::OUTGOING),
    ("read of the outbox", bus::OUTGOING_OF),
    ("look through the outbox", bus::WAITING),
    ("deliver", bus::DELIVER),
];

/// What looks tasks up by ids that are given or were found. Where the table is taken for empty it would be read
/// for that: hence the quick look of [`super::tidy`].
const BY_ID: [(&str, &str); 19] = [
    ("promote", changes::PROMOTE),
    ("fall", changes::FALL),
    ("purge", changes::PURGE),
    ("return one life", take_back::RETURN_LIFE),
    ("return earlier lives", take_back::RETURN_EARLIER_LIVES),
    ("return the expired", take_back::RETURN_EXPIRED),
    ("return the gone", super::registry::RETURN_GONE),
    ("forgive", failing::FORGIVE),
    ("extend", ends::EXTEND),
    ("note", ends::NOTE),
    ("complete", ends::COMPLETE),
    ("fail", ends::FAIL),
    ("standing", ends::STANDING),
    ("cancel", changes::CANCEL),
    ("requeue", changes::REQUEUE),
    ("known", changes::KNOWN),
    ("return these", take_back::RETURN_THESE),
    ("count failed tries", failing::FAILED),
    ("forget failed tries", failing::SUCCEEDED),
];

const FILL: &str = "
    INSERT INTO tasks (id, capability, payload, priority, state, created_at, run_at, max_attempts,
        fixed_backoff, backoff_ms, max_backoff_ms, jitter)
    SELECT gen_random_uuid(), 'x', '{}', 0, 'ready', now(), now(), 9, false, 1, 1, 0
    FROM generate_series(1, 20000);
    INSERT INTO tasks_done (id, created_at, run_at, token, backoff_ms, max_backoff_ms, attempts,
        max_attempts, priority, jitter, fixed_backoff, state, capability, payload, finished_at)
    SELECT gen_random_uuid(), now(), now(), 1, 1, 1, 1, 9, 0, 0, false, 'completed', 'x', '{}', now()
    FROM generate_series(1, 20000);
    INSERT INTO task_keys (key, task) SELECT n::text, gen_random_uuid()
    FROM generate_series(1, 20000) AS n;
    INSERT INTO messages (id, topic, recipient, kind, body, created_at, delivered_at, acknowledged_at)
    SELECT gen_random_uuid(), 't', n % 20, 'k', '{}', now(),
        CASE WHEN n % 3 > 0 THEN now() END, CASE WHEN n % 3 > 1 THEN now() END
    FROM generate_series(1, 20000) AS n";

/// How a statement is carried out, whatever its values.
async fn plan(client: &Client, sql: &str) -> String {
    let count = (1..=30).rev().find(|n| sql.contains(&format!("${n}"))).unwrap_or(0);
    let values = vec!["NULL"; count].join(", ");
    let values = if count == 0 { String::new() } else { format!("({values})") };
    client.batch_execute(&format!("PREPARE it AS {sql}")).await.unwrap();
    let rows =
        client.query(&format!("EXPLAIN (COSTS OFF) EXECUTE it {values}"), &[]).await.unwrap();
    client.batch_execute("DEALLOCATE it").await.unwrap();
    rows.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>().join("\n")
}

/// Each look at one of the tables is one into an index, and not along the whole of it.
fn stays_on_indexes(name: &str, plan: &str) {
    let lines: Vec<_> = plan.lines().collect();
    // Thousands of messages at once are not to be compared each with each.
    let pairs = plan.contains(" on messages") && plan.contains("Join Filter:");
    assert!(!pairs, "{name} joins without an index:\n{plan}");
    for (n, line) in lines.iter().enumerate() {
        let of_the_queue = [" on tasks", " on tasks_done", " on task_keys", " on messages"]
            .iter()
            .any(|on| line.ends_with(on) || line.contains(&format!("{on} ")));
        if !of_the_queue || !line.contains("Scan") {
            continue;
        }
        let below = lines.iter().skip(n + 1).take_while(|line| !line.contains("->"));
        let mut conditions = below.filter(|line| {
            line.contains("Index Cond:")
                || line.contains("Recheck Cond:")
                || line.contains("TID Cond:")
        });
        assert!(conditions.next().is_some(), "{name} reads all of it:{line}\n{plan}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queue_stays_on_its_indexes_whatever_the_statistics_say() {
    let server = ScratchPostgres::shared().unwrap();
    let database = server.create_database().await.unwrap();
    let store = PostgresStore::connect(&Settings {
        url: server.url(&database),
        max_pool_size: 2,
        application_name: "store-tests".to_owned(),
        timeout: Span::from_secs(60),
    })
    .unwrap();
    store.migrate().await.unwrap();
    let mut config: tokio_postgres::Config = server.url(&database).parse().unwrap();
    let (client, connection) = config.options(PLANS).connect(NoTls).await.unwrap();
    let connection = tokio::spawn(connection);
    for (stage, fill) in [
        ("never filled", ""),
        ("known as empty", "VACUUM ANALYZE"),
        ("filled", FILL),
        ("filled and looked at", QUICK_LOOK),
        ("filled and vacuumed", "VACUUM ANALYZE"),
    ] {
        client.batch_execute(fill).await.unwrap();
        let by_id: &[_] = if stage == "filled" || stage == "known as empty" { &[] } else { &BY_ID };
        for (name, sql) in ALWAYS.iter().chain(by_id) {
            stays_on_indexes(&format!("{name}, {stage},"), &plan(&client, sql).await);
        }
    }
    drop(client);
    connection.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_empty_is_looked_at_when_it_fills() {
    let server = ScratchPostgres::shared().unwrap();
    let database = server.create_database().await.unwrap();
    let store = PostgresStore::connect(&Settings {
        url: server.url(&database),
        max_pool_size: 2,
        application_name: "store-tests".to_owned(),
        timeout: Span::from_secs(60),
    })
    .unwrap();
    store.migrate().await.unwrap();
    server.execute(&database, "VACUUM ANALYZE tasks").await.unwrap();
    let (client, connection) =
        tokio_postgres::connect(&server.url(&database), NoTls).await.unwrap();
    let connection = tokio::spawn(connection);
    let task = NewTask::new(Capability::new("x").unwrap(), Payload::default());
    for _ in 0..3 {
        store.submit(&vec![task.clone(); 1000]).await.unwrap();
    }
    let begun = std::time::Instant::now();
    let known = "SELECT reltuples FROM pg_class WHERE oid = 'tasks'::regclass";
    while client.query_one(known, &[]).await.unwrap().get::<_, f32>(0) < 1000.0 {
        assert!(begun.elapsed() < Span::from_secs(30), "nobody looked");
        tokio::time::sleep(Span::from_millis(10)).await;
    }
    drop(client);
    connection.await.unwrap().unwrap();
}
