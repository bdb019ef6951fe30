//! The registry of agents.

use std::collections::HashSet;

use async_trait::async_trait;
use resurgam_model::agent::{Agent, AgentState, HeartbeatTerms, Registration};
use resurgam_model::{AgentId, InstanceId};
use tokio_postgres::Row;
use uuid::Uuid;

use super::messages::deliver;
use super::take_back::{RETURN_EARLIER_LIVES, RETURN_LIFE, returned, take_back};
use super::{PostgresStore, get};
use crate::column::{from_json, micros, parsed, time, to_json, unsigned};
use crate::{Error, Registered, Registry, Result};

/// An agent with the number of tasks that it holds.
macro_rules! agents {
    ($rest:literal) => {
        concat!(
            "SELECT id, instance, state, capabilities, capacity, labels,
                 (extract(epoch FROM registered_at) * 1000000)::bigint AS registered_at,
                 (extract(epoch FROM seen_at) * 1000000)::bigint AS seen_at,
                 (SELECT count(*) FROM tasks WHERE state = 'running' AND held_by = agents.id)
                     AS running
             FROM agents ",
            $rest
        )
    };
}

#[async_trait]
impl Registry for PostgresStore {
    async fn register(&self, registration: &Registration) -> Result<Registered> {
        let mut session = self.session("register an agent").await?;
        session.batch("BEGIN").await?;
        let agent = registration.id.as_str();
        let instance = registration.instance.0;
        let capabilities = to_json(&registration.capabilities)?;
        let labels = to_json(&registration.labels)?;
        let capacity = i64::from(registration.capacity);
        let sql = "INSERT INTO agents AS a (id, instance, state, capabilities, capacity, labels,
                 registered_at, seen_at)
             VALUES ($1, $2, 'available', $3, $4, $5, clock_timestamp(), clock_timestamp())
             ON CONFLICT (id) DO UPDATE SET
                 instance = excluded.instance, state = 'available',
                 capabilities = excluded.capabilities, capacity = excluded.capacity,
                 labels = excluded.labels, seen_at = excluded.seen_at,
                 registered_at = CASE WHEN a.instance = excluded.instance
                     THEN a.registered_at ELSE excluded.registered_at END";
        session.query(sql, &[&agent, &instance, &capabilities, &capacity, &labels]).await?;
        // A statement of its own, so that it sees the claims that the row's lock waited for.
        let rows = session.query(RETURN_EARLIER_LIVES, &[&agent, &instance]).await?;
        session.batch("COMMIT").await?;
        session.finish();
        Ok(Registered { leases_returned: returned(&rows)? })
    }

    async fn heartbeat(&self, agents: &[(AgentId, InstanceId)]) -> Result<Vec<bool>> {
        if agents.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<_> = agents.iter().map(|(agent, _)| agent.as_str()).collect();
        let instances: Vec<_> = agents.iter().map(|(_, instance)| instance.0).collect();
        let sql = "WITH alive AS MATERIALIZED (
                 SELECT id FROM agents
                 WHERE state = 'available' AND (id, instance) IN (
                     SELECT * FROM unnest($1::text[], $2::uuid[]))
                 ORDER BY id FOR NO KEY UPDATE
             )
             UPDATE agents SET seen_at = clock_timestamp() FROM alive WHERE agents.id = alive.id
             RETURNING agents.id, agents.instance";
        let rows = self.query("record heartbeats", sql, &[&ids, &instances]).await?;
        let alive = rows
            .iter()
            .map(|row| Ok((get(row, "id")?, get(row, "instance")?)))
            .collect::<Result<HashSet<(&str, Uuid)>>>()?;
        Ok(agents.iter().map(|(id, life)| alive.contains(&(id.as_str(), life.0))).collect())
    }

    async fn expire(&self, terms: &HeartbeatTerms) -> Result<Vec<AgentId>> {
        let mut session = self.session("expire agents").await?;
        session.batch("BEGIN").await?;
        let sql = "WITH silent AS MATERIALIZED (
                 SELECT id FROM agents
                 WHERE state = 'available'
                     AND seen_at < clock_timestamp() - $1::bigint * interval '1 microsecond'
                 ORDER BY id FOR NO KEY UPDATE
             )
             UPDATE agents SET state = 'gone' FROM silent WHERE agents.id = silent.id
             RETURNING agents.id, agents.instance";
        let rows = session.query(sql, &[&micros(terms.expire_after)]).await?;
        let mut gone = Vec::with_capacity(rows.len());
        for row in &rows {
            gone.push((parsed::<AgentId>(get(row, "id")?)?, get::<Uuid>(row, "instance")?));
        }
        gone.sort();
        if !gone.is_empty() {
            let ids: Vec<_> = gone.iter().map(|(id, _)| id.as_str()).collect();
            let instances: Vec<_> = gone.iter().map(|(_, instance)| *instance).collect();
            let sql = take_back!(
                "SELECT t.id FROM tasks AS t
                 JOIN unnest($1::text[], $2::uuid[]) AS g (agent, instance)
                     ON t.held_by = g.agent AND t.held_instance = g.instance
                 WHERE t.state = 'running'
                 ORDER BY t.id FOR UPDATE OF t",
                "the holder of the lease is gone"
            );
            session.query(sql, &[&ids, &instances]).await?;
        }
        session.batch("COMMIT").await?;
        session.finish();
        Ok(gone.into_iter().map(|(agent, _)| agent).collect())
    }

    async fn deregister(&self, agent: &AgentId, instance: InstanceId) -> Result<()> {
        let mut session = self.session("deregister an agent").await?;
        session.batch("BEGIN").await?;
        let sql = "DELETE FROM agents WHERE id = $1 AND instance = $2 RETURNING id";
        let gone = session.query(sql, &[&agent.as_str(), &instance.0]).await?;
        if !gone.is_empty() {
            session.query(RETURN_LIFE, &[&agent.as_str(), &instance.0]).await?;
        }
        session.batch("COMMIT").await?;
        session.finish();
        Ok(())
    }

    async fn agent(&self, agent: &AgentId) -> Result<Option<Agent>> {
        let rows =
            self.query("read an agent", agents!("WHERE id = $1"), &[&agent.as_str()]).await?;
        rows.first().map(read_agent).transpose()
    }

    async fn agents(&self) -> Result<Vec<Agent>> {
        // By bytes, as everywhere, whatever language the database speaks.
        let rows = self.query("list agents", agents!("ORDER BY id COLLATE \"C\""), &[]).await?;
        rows.iter().map(read_agent).collect()
    }
}

fn read_agent(row: &Row) -> Result<Agent> {
    let state = match get(row, "state")? {
        "available" => AgentState::Available,
        "gone" => AgentState::Gone,
        other => return Err(Error::Corrupt(format!("the agent state {other:?}"))),
    };
    Ok(Agent {
        id: parsed(get(row, "id")?)?,
        instance: InstanceId(get(row, "instance")?),
        state,
        capabilities: from_json(get(row, "capabilities")?)?,
        capacity: unsigned(get(row, "capacity")?)?,
        labels: from_json(get(row, "labels")?)?,
        running: unsigned(get(row, "running")?)?,
        registered_at: time(get(row, "registered_at")?)?,
        seen_at: time(get(row, "seen_at")?)?,
    })
}
