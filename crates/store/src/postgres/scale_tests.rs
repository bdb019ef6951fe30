//! A hundred thousand agents: what is asked often stays on its index.

use std::time::Duration as Span;

use resurgam_testing::ScratchPostgres;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

use super::connect::PLANS;
use super::lookup::{BY_BUSY, BY_CAPABILITY, BY_LABEL, BY_LOAD, BY_NAME, BY_STATE};
use super::registering::{EARLIER, REGISTER, TRAITS};
use super::registry::{HEARTBEAT, HEARTBEAT_WITH_WORDS, LOOK, RETURN_GONE};
use super::take_back::{RETURN_EARLIER_LIVES, RETURN_LIFE};
use super::{PostgresStore, Settings};
use crate::{Admin, Registry};

const AGENTS: i64 = 100_000;

/// One in ten thousand is gone; everybody can do `x`, and each something of its own.
const FILL: &str = "
    INSERT INTO agents (id, instance, capabilities, capacity, labels, registered_at, seen_at, gone,
        look_at)
    SELECT 'agent-' || n, '00000000-0000-0000-0000-000000000001', '[\"x\"]', 4, '{}', now(), now(),
        n % 10000 = 0, now() + interval '1 hour'
    FROM generate_series(1, 100000) AS n;
    INSERT INTO agent_capabilities (capability, agent, free)
    SELECT 'x', 'agent-' || n, CASE WHEN n % 10000 = 0 THEN -1 ELSE n % 5 END
    FROM generate_series(1, 100000) AS n;
    INSERT INTO agent_labels (name, value, agent)
    SELECT 'zone', (n % 1000)::text, 'agent-' || n FROM generate_series(1, 100000) AS n;
    ANALYZE;";

struct Plans {
    client: Client,
}

impl Plans {
    async fn of(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> String {
        let rows = self.client.query(&format!("EXPLAIN (COSTS OFF) {sql}"), params).await.unwrap();
        let lines: Vec<_> = rows.iter().map(|row| row.get::<_, String>(0)).collect();
        lines.join("\n")
    }
}

fn on_index(plan: &str, index: &str) {
    assert!(plan.contains(index), "{index} is not used:\n{plan}");
    for table in ["agents", "agent_capabilities", "agent_labels"] {
        for scan in [format!("Seq Scan on {table} "), format!("Seq Scan on {table}\n")] {
            assert!(!plan.contains(&scan), "{table} is scanned:\n{plan}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_agents_stay_on_their_indexes() {
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
    server.execute(&database, FILL).await.unwrap();
    // As the store plans.
    let mut config: tokio_postgres::Config = server.url(&database).parse().unwrap();
    let (client, connection) = config.options(PLANS).connect(NoTls).await.unwrap();
    let connection = tokio::spawn(connection);
    let plans = Plans { client };

    let (after, limit) = ("agent-5", 100_i64);
    let (no_state, gone, busy): (Option<&str>, Option<&str>, Option<bool>) =
        (None, Some("gone"), None);
    let (names, values) = (vec!["zone"], vec!["7"]);
    let nothing: Vec<&str> = Vec::new();
    let plan = plans.of(BY_NAME, &[&after, &limit, &no_state, &busy, &nothing, &nothing]).await;
    on_index(&plan, "agents_by_name");
    let plan = plans.of(BY_STATE, &[&after, &limit, &gone, &busy, &nothing, &nothing]).await;
    on_index(&plan, "agents_by_state");
    let plan = plans.of(BY_BUSY, &[&after, &limit, &"available", &true, &nothing, &nothing]).await;
    on_index(&plan, "agents_busy");
    let plan = plans.of(BY_LABEL, &[&after, &limit, &no_state, &busy, &names, &values]).await;
    on_index(&plan, "agent_labels_by_value");
    let by_x: [&(dyn ToSql + Sync); 7] =
        [&after, &limit, &no_state, &busy, &nothing, &nothing, &"x"];
    on_index(&plans.of(BY_CAPABILITY, &by_x).await, "agent_capabilities_by_name");
    let mut by_load = by_x.to_vec();
    by_load.extend([&0_i64 as &(dyn ToSql + Sync), &3_i64]);
    on_index(&plans.of(BY_LOAD, &by_load).await, "agent_capabilities_by_load");

    let ids: Vec<_> = (1..=250).map(|n| format!("agent-{n}")).collect();
    let lives = vec![Uuid::from_u128(1); ids.len()];
    on_index(&plans.of(HEARTBEAT, &[&ids, &lives]).await, "agents_pkey");
    let said = vec![Some("available"); ids.len()];
    let loads = vec![Some(1_i64); ids.len()];
    let reasons = vec![None::<&str>; ids.len()];
    let told: [&(dyn ToSql + Sync); 5] = [&ids, &lives, &said, &loads, &reasons];
    on_index(&plans.of(HEARTBEAT_WITH_WORDS, &told).await, "agents_pkey");
    let look: [&(dyn ToSql + Sync); 3] = [&(1_i64 << 50), &1_i64, &1000_i64];
    on_index(&plans.of(LOOK, &look).await, "agents_to_look_at");

    let (none, four) = (vec!["[]"; ids.len()], vec![4_i64; ids.len()]);
    let no_labels = vec!["{}"; ids.len()];
    let versions = vec![None::<&str>; ids.len()];
    let register: [&(dyn ToSql + Sync); 8] =
        [&ids, &lives, &none, &four, &no_labels, &versions, &four, &four];
    on_index(&plans.of(REGISTER, &register).await, "agents_pkey");
    let traits: [&(dyn ToSql + Sync); 10] =
        [&ids, &lives, &none, &no_labels, &ids, &ids, &four, &ids, &ids, &ids];
    let plan = plans.of(TRAITS, &traits).await;
    on_index(&plan, "agent_capabilities_pkey");
    on_index(&plan, "agent_labels_pkey");
    on_index(&plans.of(EARLIER, &[&ids, &lives]).await, "tasks_held");
    let one: [&(dyn ToSql + Sync); 2] = [&"w", &Uuid::nil()];
    on_index(&plans.of(RETURN_LIFE, &one).await, "tasks_held");
    on_index(&plans.of(RETURN_EARLIER_LIVES, &one).await, "tasks_held");
    on_index(&plans.of(RETURN_GONE, &[&ids, &lives]).await, "tasks_held");

    // Heartbeats touch no index: each is a change within its page.
    plans.client.batch_execute("BEGIN").await.unwrap();
    let beats = plans.client.query(HEARTBEAT, &[&ids, &lives]).await.unwrap();
    assert_eq!(beats.len(), ids.len());
    let hot = "SELECT pg_stat_get_xact_tuples_hot_updated('agents'::regclass)";
    let hot: i64 = plans.client.query_one(hot, &[]).await.unwrap().get(0);
    assert_eq!(hot, i64::try_from(ids.len()).unwrap());
    plans.client.batch_execute("COMMIT").await.unwrap();

    // Nobody is late: nobody is looked at.
    let hour = resurgam_model::Duration::from_secs(3600);
    assert_eq!(store.expire(hour, hour, 1000).await.unwrap().seen, 0);
    let total: i64 =
        plans.client.query_one("SELECT count(*) FROM agents", &[]).await.unwrap().get(0);
    assert_eq!(total, AGENTS);
    drop(plans);
    connection.await.unwrap().unwrap();
}
