//! The registry of agents.

use async_trait::async_trait;
use resurgam_model::agent::{Agent, AgentState, HeartbeatTerms, Registration};
use resurgam_model::{AgentId, InstanceId};
use rusqlite::{Connection, Row, params};

use super::fault::Fault;
use super::tasks::return_leases;
use super::{SqliteStore, get, id, now};
use crate::column::{from_json, micros, parsed, time, to_json, unsigned};
use crate::{Error, LeasesOf, Registered, Registry, Result};

/// An agent with the number of tasks that it holds.
const AGENTS: &str = "SELECT *, (SELECT count(*) FROM tasks
     WHERE state = 'running' AND held_by = agents.id) AS running FROM agents";

#[async_trait]
impl Registry for SqliteStore {
    async fn register(&self, registration: &Registration) -> Result<Registered> {
        let registration = registration.clone();
        self.writer.run("register an agent", move |c| register(c, &registration)).await
    }

    async fn heartbeat(&self, agents: &[(AgentId, InstanceId)]) -> Result<Vec<bool>> {
        let agents = agents.to_vec();
        let request = move |c: &Connection| {
            let now = now();
            let mut statement = c.prepare_cached(
                "UPDATE agents SET seen_at = ?3
                 WHERE id = ?1 AND instance = ?2 AND state = 'available'",
            )?;
            let mut known = Vec::with_capacity(agents.len());
            for (agent, instance) in &agents {
                known.push(
                    statement.execute(params![agent.as_str(), instance.0.as_bytes(), now])? == 1,
                );
            }
            Ok(known)
        };
        self.writer.run("record heartbeats", request).await
    }

    async fn expire(&self, terms: &HeartbeatTerms) -> Result<Vec<AgentId>> {
        let longest = micros(terms.expire_after);
        self.writer.run("expire agents", move |c| expire(c, longest)).await
    }

    async fn deregister(&self, agent: &AgentId, instance: InstanceId) -> Result<()> {
        let agent = agent.clone();
        let request = move |c: &Connection| {
            let gone = c
                .prepare_cached("DELETE FROM agents WHERE id = ?1 AND instance = ?2")?
                .execute(params![agent.as_str(), instance.0.as_bytes()])?;
            if gone > 0 {
                return_leases(c, &agent, LeasesOf::Life(instance))?;
            }
            Ok(())
        };
        self.writer.run("deregister an agent", request).await
    }

    async fn agent(&self, agent: &AgentId) -> Result<Option<Agent>> {
        let agent = agent.clone();
        let request = move |c: &Connection| {
            let mut statement = c.prepare_cached(&format!("{AGENTS} WHERE id = ?1"))?;
            let mut rows = statement.query([agent.as_str()])?;
            rows.next()?.map(read_agent).transpose()
        };
        self.readers.run("read an agent", request).await
    }

    async fn agents(&self) -> Result<Vec<Agent>> {
        let request = |c: &Connection| {
            let mut statement = c.prepare_cached(&format!("{AGENTS} ORDER BY id"))?;
            let mut rows = statement.query([])?;
            let mut agents = Vec::new();
            while let Some(row) = rows.next()? {
                agents.push(read_agent(row)?);
            }
            Ok(agents)
        };
        self.readers.run("list agents", request).await
    }
}

fn register(c: &Connection, registration: &Registration) -> Result<Registered, Fault> {
    let mut statement = c.prepare_cached(
        "INSERT INTO agents
             (id, instance, state, capabilities, capacity, labels, registered_at, seen_at)
         VALUES (?1, ?2, 'available', ?3, ?4, ?5, ?6, ?6)
         ON CONFLICT (id) DO UPDATE SET
             state = 'available', capabilities = excluded.capabilities,
             capacity = excluded.capacity, labels = excluded.labels, seen_at = excluded.seen_at,
             registered_at = iif(instance = excluded.instance, registered_at,
                                 excluded.registered_at),
             instance = excluded.instance",
    )?;
    statement.execute(params![
        registration.id.as_str(),
        registration.instance.0.as_bytes(),
        to_json(&registration.capabilities)?,
        registration.capacity,
        to_json(&registration.labels)?,
        now(),
    ])?;
    let earlier = LeasesOf::EarlierLives(registration.instance);
    Ok(Registered { leases_returned: return_leases(c, &registration.id, earlier)? })
}

fn expire(c: &Connection, longest: i64) -> Result<Vec<AgentId>, Fault> {
    let mut statement = c.prepare_cached(
        "UPDATE agents SET state = 'gone' WHERE state = 'available' AND seen_at < ?1
         RETURNING id, instance",
    )?;
    let mut rows = statement.query([now().saturating_sub(longest)])?;
    let mut gone = Vec::new();
    while let Some(row) = rows.next()? {
        let agent: AgentId = parsed(&get::<String>(row, "id")?)?;
        gone.push((agent, InstanceId(id(row, "instance")?)));
    }
    gone.sort();
    for (agent, instance) in &gone {
        return_leases(c, agent, LeasesOf::Life(*instance))?;
    }
    Ok(gone.into_iter().map(|(agent, _)| agent).collect())
}

fn read_agent(row: &Row<'_>) -> Result<Agent, Fault> {
    let state = match get::<String>(row, "state")?.as_str() {
        "available" => AgentState::Available,
        "gone" => AgentState::Gone,
        other => return Err(Error::Corrupt(format!("the agent state {other:?}")).into()),
    };
    Ok(Agent {
        id: parsed(&get::<String>(row, "id")?)?,
        instance: InstanceId(id(row, "instance")?),
        state,
        capabilities: from_json(&get::<String>(row, "capabilities")?)?,
        capacity: unsigned(get(row, "capacity")?)?,
        labels: from_json(&get::<String>(row, "labels")?)?,
        running: unsigned(get(row, "running")?)?,
        registered_at: time(get(row, "registered_at")?)?,
        seen_at: time(get(row, "seen_at")?)?,
    })
}
