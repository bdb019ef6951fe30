//! Looking agents up.

use resurgam_model::agent::{
    Agent, AgentCursor, AgentOrder, AgentPage, AgentQuery, AgentState, HeartbeatTerms,
};
use resurgam_model::{AgentId, Capability, Duration, InstanceId};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::{PostgresStore, get};
use crate::column::{agent_state, agent_state_column, from_json, parsed, time, unsigned};
use crate::{Error, Result};

/// The columns of an agent, with the number of tasks that it holds.
macro_rules! columns {
    () => {
        "a.id, a.instance, a.state, a.reason, a.capabilities, a.capacity, a.labels, a.version,
         a.every_us, a.expire_us, greatest(a.load, a.held) AS used,
         (extract(epoch FROM a.registered_at) * 1000000)::bigint AS registered_at,
         (extract(epoch FROM a.seen_at) * 1000000)::bigint AS seen_at,
         (SELECT count(*) FROM tasks WHERE state = 'running' AND held_by = a.id) AS running"
    };
}

const ONE: &str = concat!("SELECT ", columns!(), " FROM agents AS a WHERE a.id = $1");

/// A page of agents: the index that is walked along, and what else must hold. Parameters: the
/// last name of the page before, the limit, the state, whether busy, labels; then the index's own.
macro_rules! page {
    ($from:literal, $where:literal, $order:literal) => {
        concat!(
            "SELECT ",
            columns!(),
            ", ",
            $from,
            " WHERE ",
            $where,
            " AND ($3::text IS NULL OR a.state = $3)
              AND ($4::boolean IS NULL OR (greatest(a.load, a.held) >= a.capacity) = $4)
              AND cardinality($5::text[]) = (
                  SELECT count(*) FROM unnest($5::text[], $6::text[]) AS w (name, value)
                  JOIN agent_labels AS l
                      ON l.agent = a.id AND l.name = w.name AND l.value = w.value)
              ORDER BY ",
            $order,
            " LIMIT $2"
        )
    };
}

// By bytes, as everywhere, whatever language the database speaks. Each walks along one index,
// from where the page before ended.
pub(super) const BY_NAME: &str = page!(
    "NULL::bigint AS free FROM agents AS a",
    r#"a.id COLLATE "C" > $1"#,
    r#"a.id COLLATE "C""#
);
pub(super) const BY_STATE: &str = page!(
    "NULL::bigint AS free FROM agents AS a",
    r#"a.state = $3 AND a.id COLLATE "C" > $1"#,
    r#"a.id COLLATE "C""#
);
pub(super) const BY_BUSY: &str = page!(
    "NULL::bigint AS free FROM agents AS a",
    r#"a.state = 'available' AND greatest(a.load, a.held) >= a.capacity AND a.id COLLATE "C" > $1"#,
    r#"a.id COLLATE "C""#
);
pub(super) const BY_LABEL: &str = page!(
    "NULL::bigint AS free FROM agent_labels AS f JOIN agents AS a ON a.id = f.agent",
    r#"f.name = ($5::text[])[1] AND f.value = ($6::text[])[1] AND f.agent COLLATE "C" > $1"#,
    r#"f.agent COLLATE "C""#
);
pub(super) const BY_CAPABILITY: &str = page!(
    "NULL::bigint AS free FROM agent_capabilities AS f JOIN agents AS a ON a.id = f.agent",
    r#"f.capability = $7 AND f.agent COLLATE "C" > $1"#,
    r#"f.agent COLLATE "C""#
);
pub(super) const BY_LOAD: &str = page!(
    "f.free FROM agent_capabilities AS f JOIN agents AS a ON a.id = f.agent",
    r#"f.capability = $7 AND f.free BETWEEN $8 AND $9
        AND (f.free < $9 OR f.agent COLLATE "C" > $1)"#,
    r#"f.free DESC, f.agent COLLATE "C""#
);

impl PostgresStore {
    pub(super) async fn one_agent(&self, agent: &AgentId) -> Result<Option<Agent>> {
        let rows = self.query("read an agent", ONE, &[&agent.as_str()]).await?;
        rows.first().map(read_agent).transpose()
    }

    pub(super) async fn page_of_agents(&self, query: &AgentQuery) -> Result<AgentPage> {
        let limit = query.effective_limit();
        let rows_wanted = i64::from(limit);
        let after = query.after.as_ref().map_or("", |after| after.id.as_str());
        let (state, busy) = query.state.map_or((None, None), agent_state_column);
        let names: Vec<_> = query.labels.keys().collect();
        let values: Vec<_> = query.labels.values().collect();
        let capability = query.capability.as_ref().map(Capability::as_str);
        let (least, most) = crate::column::free_range(query);
        let common: [&(dyn ToSql + Sync); 6] =
            [&after, &rows_wanted, &state, &busy, &names, &values];
        let mut params = common.to_vec();
        let sql = match (capability.is_some(), query.sort) {
            (true, AgentOrder::Load) => {
                params.extend([&capability as &(dyn ToSql + Sync), &least, &most]);
                BY_LOAD
            }
            (true, AgentOrder::Name) => {
                params.push(&capability);
                BY_CAPABILITY
            }
            (false, AgentOrder::Load) => {
                return Err(Error::Settings(crate::column::NO_ORDER.to_owned()));
            }
            (false, AgentOrder::Name) if !names.is_empty() => BY_LABEL,
            (false, AgentOrder::Name) if busy == Some(true) => BY_BUSY,
            (false, AgentOrder::Name) if state.is_some() => BY_STATE,
            (false, AgentOrder::Name) => BY_NAME,
        };
        let rows = self.query("list agents", sql, &params).await?;
        let mut agents = rows.iter().map(read_agent).collect::<Result<Vec<_>>>()?;
        let mut next = None;
        if agents.len() >= limit as usize
            && let (Some(agent), Some(row)) = (agents.last(), rows.last())
        {
            next = Some(AgentCursor { free: get(row, "free")?, id: agent.id.clone() });
        }
        agents.shrink_to_fit();
        Ok(AgentPage { agents, next })
    }
}

pub(super) fn read_agent(row: &Row) -> Result<Agent> {
    let (used, capacity): (i64, i64) = (get(row, "used")?, get(row, "capacity")?);
    let state = agent_state(get(row, "state")?, used >= capacity)?;
    let free = if state == AgentState::Available { capacity.saturating_sub(used) } else { 0 };
    let micros = |column| -> Result<Duration> {
        Ok(Duration(std::time::Duration::from_micros(unsigned(get(row, column)?)?)))
    };
    Ok(Agent {
        id: parsed(get(row, "id")?)?,
        instance: InstanceId(get(row, "instance")?),
        state,
        reason: get(row, "reason")?,
        capabilities: from_json(get(row, "capabilities")?)?,
        capacity: unsigned(capacity)?,
        free: unsigned(free)?,
        labels: from_json(get(row, "labels")?)?,
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
