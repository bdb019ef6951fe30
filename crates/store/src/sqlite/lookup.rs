//! Looking agents up.

use resurgam_model::agent::{
    Agent, AgentCursor, AgentOrder, AgentPage, AgentQuery, AgentState, HeartbeatTerms,
};
use resurgam_model::{AgentId, Capability, Duration, InstanceId};
use rusqlite::{Connection, Row, ToSql};

use super::fault::Fault;
use super::{get, id};
use crate::Error;
use crate::column::{
    agent_state, agent_state_column, free_range, from_json, parsed, time, to_json, unsigned,
};

/// An agent with the number of tasks that it holds.
const AGENT: &str = "a.*, max(a.load, a.held) AS used,
     (SELECT count(*) FROM tasks WHERE state = 'running' AND held_by = a.id) AS running";

/// What must hold beside what the index is walked along for.
const FILTER: &str = "(:state IS NULL OR a.state = :state)
     AND (:busy IS NULL OR (max(a.load, a.held) >= a.capacity) = :busy)
     AND NOT EXISTS (
         SELECT 1 FROM json_each(:labels) AS w
         WHERE NOT EXISTS (
             SELECT 1 FROM agent_labels AS l
             WHERE l.agent = a.id AND l.name = w.key AND l.value = w.value))";

/// The index that is walked along, from where the page before ended: source, condition, order.
fn source(query: &AgentQuery) -> (&'static str, &'static str, &'static str) {
    let with = |table| match table {
        "agent_capabilities" => "agent_capabilities AS f CROSS JOIN agents AS a ON a.id = f.agent",
        _ => "agent_labels AS f CROSS JOIN agents AS a ON a.id = f.agent",
    };
    match (&query.capability, query.sort) {
        (_, AgentOrder::Load) => (
            with("agent_capabilities"),
            "f.capability = :capability AND f.free BETWEEN :least AND :most
                 AND (f.free < :most OR f.agent > :after)",
            "f.free DESC, f.agent",
        ),
        (Some(_), AgentOrder::Name) => (
            with("agent_capabilities"),
            "f.capability = :capability AND f.agent > :after",
            "f.agent",
        ),
        (None, AgentOrder::Name) if !query.labels.is_empty() => (
            with("agent_labels"),
            "f.name = :name AND f.value = :value AND f.agent > :after
                ",
            "f.agent",
        ),
        (None, AgentOrder::Name) if query.state == Some(AgentState::Busy) => (
            "agents AS a INDEXED BY agents_busy",
            "a.state = 'available' AND (a.load >= a.capacity OR a.held >= a.capacity)
                 AND a.id > :after",
            "a.id",
        ),
        (None, AgentOrder::Name) if query.state.is_some() => {
            ("agents AS a INDEXED BY agents_by_state", "a.state = :state AND a.id > :after", "a.id")
        }
        (None, AgentOrder::Name) => ("agents AS a", "a.id > :after", "a.id"),
    }
}

/// The statement for a page.
pub(super) fn statement(query: &AgentQuery) -> String {
    let (from, condition, order) = source(query);
    let free = if query.sort == AgentOrder::Load { "f.free" } else { "NULL" };
    format!(
        "SELECT {AGENT}, {free} AS place FROM {from} WHERE {condition} AND {FILTER} ORDER BY {order} LIMIT :limit"
    )
}

pub(super) fn one(c: &Connection, agent: &AgentId) -> Result<Option<Agent>, Fault> {
    let mut statement =
        c.prepare_cached(&format!("SELECT {AGENT} FROM agents AS a WHERE a.id = ?1"))?;
    let mut rows = statement.query([agent.as_str()])?;
    rows.next()?.map(read_agent).transpose()
}

pub(super) fn page(c: &Connection, query: &AgentQuery) -> Result<AgentPage, Fault> {
    if query.sort == AgentOrder::Load && query.capability.is_none() {
        return Err(Error::Settings(crate::column::NO_ORDER.to_owned()).into());
    }
    let mut statement = c.prepare_cached(&statement(query))?;
    let (least, most) = free_range(query);
    let (state, busy) = query.state.map_or((None, None), agent_state_column);
    let first = query.labels.iter().next();
    let capability = query.capability.as_ref().map(Capability::as_str);
    let after = query.after.as_ref().map_or("", |after| after.id.as_str());
    let (labels, limit) = (to_json(&query.labels)?, query.effective_limit());
    let (name, value) = (first.map(|(name, _)| name), first.map(|(_, value)| value));
    let values: [(&str, &dyn ToSql); 10] = [
        (":capability", &capability),
        (":least", &least),
        (":most", &most),
        (":after", &after),
        (":state", &state),
        (":busy", &busy),
        (":labels", &labels),
        (":name", &name),
        (":value", &value),
        (":limit", &limit),
    ];
    for (name, value) in values {
        // Each walk needs some of them.
        if let Some(index) = statement.parameter_index(name)? {
            statement.raw_bind_parameter(index, value)?;
        }
    }
    let mut rows = statement.raw_query();
    let (mut agents, mut next) = (Vec::new(), None);
    while let Some(row) = rows.next()? {
        let agent = read_agent(row)?;
        next = Some(AgentCursor { free: get(row, "place")?, id: agent.id.clone() });
        agents.push(agent);
    }
    let full = agents.len() >= query.effective_limit() as usize;
    Ok(AgentPage { agents, next: next.filter(|_| full) })
}

fn read_agent(row: &Row<'_>) -> Result<Agent, Fault> {
    let (used, capacity): (i64, i64) = (get(row, "used")?, get(row, "capacity")?);
    let state = agent_state(&get::<String>(row, "state")?, used >= capacity)?;
    let free = if state == AgentState::Available { capacity.saturating_sub(used) } else { 0 };
    let micros = |column| -> Result<Duration, Fault> {
        Ok(Duration(std::time::Duration::from_micros(unsigned(get(row, column)?)?)))
    };
    Ok(Agent {
        id: parsed(&get::<String>(row, "id")?)?,
        instance: InstanceId(id(row, "instance")?),
        state,
        reason: get(row, "reason")?,
        capabilities: from_json(&get::<String>(row, "capabilities")?)?,
        capacity: unsigned(capacity)?,
        free: unsigned(free)?,
        labels: from_json(&get::<String>(row, "labels")?)?,
        version: get(row, "version")?,
        running: unsigned(get(row, "running")?)?,
        heartbeat: HeartbeatTerms {
            every: micros("every_us")?,
            expire_after: micros("expire_us")?,
        },
        registered_at: time(get(row, "registered_at")?)?,
        seen_at: time(get(row, "seen_at")?)?,
    })
}
