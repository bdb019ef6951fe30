//! A hundred thousand agents: what is asked often stays on its index.

use std::collections::BTreeMap;

use resurgam_model::Capability;
use resurgam_model::agent::{AgentOrder, AgentQuery, AgentState};
use rusqlite::Connection;

use super::{lookup, migrations, registry};

const FILL: &str = "
    WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 100000)
    INSERT INTO agents (id, instance, capabilities, capacity, labels, registered_at, seen_at, gone,
        look_at)
    SELECT 'agent-' || n, x'00000000000000000000000000000001', '[\"x\"]', 4, '{}', 0, 0,
        n % 10000 = 0, 1000
    FROM numbers;
    INSERT INTO agent_capabilities (capability, agent, free)
    SELECT 'x', id, iif(gone, -1, capacity) FROM agents;
    INSERT INTO agent_labels (name, value, agent) SELECT 'zone', 'a', id FROM agents;
    ANALYZE;";

fn plan(c: &Connection, sql: &str) -> String {
    let mut statement = c.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
    let mut rows = statement.raw_query();
    let mut lines = Vec::new();
    while let Some(row) = rows.next().unwrap() {
        lines.push(row.get::<_, String>(3).unwrap());
    }
    lines.join("\n")
}

fn on_index(plan: &str, index: &str) {
    assert!(plan.contains(index), "{index} is not used:\n{plan}");
    for table in ["SCAN a", "SCAN f", "SCAN agents", "TEMP B-TREE"] {
        assert!(!plan.lines().any(|line| line == table || line.contains("TEMP B-TREE")), "{plan}");
    }
}

#[test]
fn a_hundred_thousand_agents_stay_on_their_indexes() {
    let c = Connection::open_in_memory().unwrap();
    assert!(migrations::migrate(&c).is_ok());
    c.execute_batch(FILL).unwrap();
    let all = AgentQuery::default();
    let x = AgentQuery { capability: Some(Capability::new("x").unwrap()), ..all.clone() };
    let by_load = AgentQuery { sort: AgentOrder::Load, ..x.clone() };
    let gone = AgentQuery { state: Some(AgentState::Gone), ..all.clone() };
    let zone = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
    let labelled = AgentQuery { labels: zone, ..all.clone() };
    for (query, index) in [
        (all, "sqlite_autoindex_agents_1"),
        (x, "agent_capabilities_by_name"),
        (by_load.clone(), "agent_capabilities_by_load"),
        (gone, "agents_by_state"),
        (labelled, "agent_labels_by_value"),
    ] {
        on_index(&plan(&c, &lookup::statement(&query)), index);
    }
    on_index(&plan(&c, registry::DUE), "agents_to_look_at");
    let Ok(page) = lookup::page(&c, &by_load) else { panic!("no page") };
    assert_eq!((page.agents.len(), page.next.unwrap().free), (100, Some(4)));
}
