//! The registry of agents.

use std::collections::HashSet;

use async_trait::async_trait;
use resurgam_model::agent::{
    Agent, AgentPage, AgentQuery, Heartbeat, HeartbeatTerms, Registration,
};
use resurgam_model::task::Claim;
use resurgam_model::{AgentId, Capability, Duration, InstanceId};
use tokio_postgres::Row;
use uuid::Uuid;

use super::take_back::{RETURN_EARLIER_LIVES, RETURN_LIFE, take_back};
use super::{PostgresStore, get};
use crate::column::{agent_state, micros, own_state, parsed, to_json};
use crate::{Error, Expired, Order, Registered, Registry, Result};

/// The free places of an agent that may be given tasks, -1 for all others: what look-ups by load
/// go by.
macro_rules! free {
    () => {
        "CASE WHEN a.state = 'available' THEN greatest(a.capacity - greatest(a.load, a.held), 0)
         ELSE -1 END"
    };
}

/// A statement that changes agents with the given expression `changed`, which answers their
/// `id` and `free`, and brings the look-up table into line.
macro_rules! and_spread {
    ($with:expr) => {
        concat!(
            $with,
            ", spread AS (
                UPDATE agent_capabilities AS c SET free = changed.free FROM changed
                WHERE c.agent = changed.id AND c.free <> changed.free
            )
            SELECT * FROM changed"
        )
    };
}

const REGISTER: &str = concat!(
    "INSERT INTO agents AS a (id, instance, capabilities, capacity, labels, version, every_us,
         expire_us, registered_at, seen_at, look_at)
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, clock_timestamp(), clock_timestamp(),
         clock_timestamp() + $8::bigint * interval '1 microsecond')
     ON CONFLICT (id) DO UPDATE SET
         instance = excluded.instance, gone = false, capabilities = excluded.capabilities,
         capacity = excluded.capacity, labels = excluded.labels, version = excluded.version,
         every_us = excluded.every_us, expire_us = excluded.expire_us,
         seen_at = excluded.seen_at, look_at = excluded.look_at,
         registered_at = CASE WHEN a.instance = excluded.instance
             THEN a.registered_at ELSE excluded.registered_at END,
         said = CASE WHEN a.instance = excluded.instance THEN a.said ELSE 'available' END,
         load = CASE WHEN a.instance = excluded.instance THEN a.load ELSE 0 END,
         held = CASE WHEN a.instance = excluded.instance THEN a.held ELSE 0 END,
         failing_until = CASE WHEN a.instance = excluded.instance THEN a.failing_until END,
         reason = CASE WHEN a.instance = excluded.instance OR a.drained THEN a.reason END
     RETURNING ",
    free!(),
    " AS free"
);

/// What is kept of an agent beside its row, brought into line with it.
const TRAITS: &str = "WITH no_more AS (
         DELETE FROM agent_capabilities WHERE agent = $1 AND capability <> ALL ($2::text[])
     ), no_label AS (
         DELETE FROM agent_labels WHERE agent = $1 AND name <> ALL ($4::text[])
     ), earlier AS (
         DELETE FROM agent_failures WHERE agent = $1 AND instance <> $6
     ), labels AS (
         INSERT INTO agent_labels AS l (name, value, agent)
         SELECT name, value, $1 FROM unnest($4::text[], $5::text[]) AS w (name, value)
         ON CONFLICT (agent, name) DO UPDATE SET value = excluded.value
         WHERE l.value <> excluded.value
     )
     INSERT INTO agent_capabilities AS c (capability, agent, free)
     SELECT DISTINCT capability, $1, $3::bigint FROM unnest($2::text[]) AS w (capability)
     ON CONFLICT (agent, capability) DO UPDATE SET free = excluded.free
     WHERE c.free <> excluded.free";

pub(super) const HEARTBEAT: &str = "WITH alive AS MATERIALIZED (
         SELECT a.id FROM unnest($1::text[], $2::uuid[]) AS b (id, instance)
         JOIN agents AS a ON a.id = b.id AND a.instance = b.instance
         WHERE NOT a.gone ORDER BY a.id FOR NO KEY UPDATE OF a
     )
     UPDATE agents SET seen_at = clock_timestamp() FROM alive WHERE agents.id = alive.id
     RETURNING agents.id, agents.instance";

/// With what the agents say of themselves.
pub(super) const HEARTBEAT_WITH_WORDS: &str = and_spread!(concat!(
    "WITH beats AS MATERIALIZED (
         SELECT DISTINCT ON (id, instance) *
         FROM unnest($1::text[], $2::uuid[], $3::text[], $4::bigint[], $5::text[])
             WITH ORDINALITY AS b (id, instance, said, load, reason, n)
         ORDER BY id, instance, n DESC
     ), alive AS MATERIALIZED (
         SELECT a.id, b.said, b.load, b.reason
         FROM beats AS b JOIN agents AS a ON a.id = b.id AND a.instance = b.instance
         WHERE NOT a.gone ORDER BY a.id FOR NO KEY UPDATE OF a
     ), changed AS (
         UPDATE agents AS a SET
             seen_at = clock_timestamp(), said = coalesce(alive.said, a.said),
             load = coalesce(alive.load, a.load),
             reason = CASE
                 WHEN a.drained OR a.failing_until IS NOT NULL THEN a.reason
                 WHEN alive.said IS NOT NULL THEN alive.reason
                 ELSE coalesce(alive.reason, a.reason) END
         FROM alive WHERE a.id = alive.id
         RETURNING a.id, a.instance, ",
    free!(),
    " AS free
     )"
));

/// Looks at those whose time has come. Who is busy with another statement comes next time.
pub(super) const LOOK: &str = "WITH due AS MATERIALIZED (
         SELECT id, gone,
             greatest(seen_at, statement_timestamp() - $1::bigint * interval '1 microsecond')
                 + expire_us * interval '1 microsecond' AS until
         FROM agents WHERE look_at <= statement_timestamp()
         ORDER BY look_at LIMIT $3 FOR NO KEY UPDATE SKIP LOCKED
     ), judged AS (
         UPDATE agents AS a SET
             gone = due.until <= statement_timestamp(),
             load = CASE WHEN due.until <= statement_timestamp() THEN 0 ELSE a.load END,
             held = CASE WHEN due.until <= statement_timestamp() THEN 0 ELSE a.held END,
             look_at = CASE WHEN due.until <= statement_timestamp()
                 THEN statement_timestamp() + $2::bigint * interval '1 microsecond'
                 ELSE due.until END
         FROM due WHERE a.id = due.id AND NOT due.gone
         RETURNING a.id, a.instance, a.gone
     ), removed AS (
         DELETE FROM agents AS a USING due WHERE a.id = due.id AND due.gone RETURNING a.id
     )
     SELECT id, instance, gone, false AS removed FROM judged
     UNION ALL SELECT id, NULL, true, true FROM removed";

pub(super) const COUNT_HELD: &str = and_spread!(concat!(
    "WITH counted AS MATERIALIZED (
         SELECT held_by AS id, count(*) AS held FROM tasks WHERE state = 'running' GROUP BY held_by
     ), differ AS MATERIALIZED (
         (SELECT a.id, c.held FROM counted AS c JOIN agents AS a ON a.id = c.id
          WHERE a.held <> c.held LIMIT $1)
         UNION ALL
         (SELECT a.id, 0 FROM agents AS a
          WHERE a.held > 0 AND NOT EXISTS (SELECT FROM counted AS c WHERE c.id = a.id) LIMIT $1)
     ), locked AS MATERIALIZED (
         SELECT a.id, d.held FROM differ AS d JOIN agents AS a ON a.id = d.id
         WHERE NOT a.gone ORDER BY a.id FOR NO KEY UPDATE OF a SKIP LOCKED
     ), changed AS (
         UPDATE agents AS a SET held = locked.held FROM locked WHERE a.id = locked.id
         RETURNING a.id, ",
    free!(),
    " AS free
     )"
));

const ORDER: &str = and_spread!(concat!(
    "WITH forgotten AS (
         DELETE FROM agent_failures WHERE agent = $1 AND NOT $2
     ), changed AS (
         UPDATE agents AS a SET drained = $2, reason = $3,
             failing_until = CASE WHEN $2 THEN a.failing_until END
         WHERE a.id = $1 RETURNING a.id, ",
    free!(),
    " AS free
     )"
));

#[async_trait]
impl Registry for PostgresStore {
    async fn register_under(
        &self,
        registration: &Registration,
        terms: &HeartbeatTerms,
    ) -> Result<Registered> {
        let mut session = self.session("register an agent").await?;
        session.batch("BEGIN").await?;
        let agent = registration.id.as_str();
        let instance = registration.instance.0;
        let capabilities = to_json(&registration.capabilities)?;
        let labels = to_json(&registration.labels)?;
        let capacity = i64::from(registration.capacity);
        let (every, expire) = (micros(terms.every), micros(terms.expire_after));
        let params = [
            &agent as _,
            &instance as _,
            &capabilities as _,
            &capacity as _,
            &labels as _,
            &registration.version as _,
            &every as _,
            &expire as _,
        ];
        let rows = session.query(REGISTER, &params).await?;
        let free: i64 = rows.first().map_or(Ok(-1), |row| get(row, "free"))?;
        let can: Vec<_> = registration.capabilities.iter().map(Capability::as_str).collect();
        let names: Vec<_> = registration.labels.keys().collect();
        let values: Vec<_> = registration.labels.values().collect();
        session.query(TRAITS, &[&agent, &can, &free, &names, &values, &instance]).await?;
        // A statement of its own, so that it sees the claims that the row's lock waited for.
        let rows = session.query(RETURN_EARLIER_LIVES, &[&agent, &instance]).await?;
        session.batch("COMMIT").await?;
        session.finish();
        Ok(Registered { leases_returned: self.returned(&rows)? })
    }

    async fn heartbeat(&self, beats: &[Heartbeat]) -> Result<Vec<bool>> {
        let mut alive = HashSet::new();
        let (plain, telling): (Vec<_>, Vec<_>) = beats.iter().partition(|beat| beat.is_plain());
        let ids = |beats: &[&Heartbeat]| -> (Vec<String>, Vec<Uuid>) {
            beats.iter().map(|beat| (beat.id.as_str().to_owned(), beat.instance.0)).unzip()
        };
        // One transaction for each kind: a heartbeat of one agent is never in need of another's.
        if !plain.is_empty() {
            let (ids, instances) = ids(&plain);
            let rows = self.query("record heartbeats", HEARTBEAT, &[&ids, &instances]).await?;
            living(&rows, &mut alive)?;
        }
        if !telling.is_empty() {
            let (ids, instances) = ids(&telling);
            let (said, loads): (Vec<_>, Vec<_>) =
                telling.iter().map(|beat| own_state(beat)).unzip();
            let reasons: Vec<_> = telling.iter().map(|beat| beat.reason.as_deref()).collect();
            let params = [&ids as _, &instances as _, &said as _, &loads as _, &reasons as _];
            let rows = self.query("record heartbeats", HEARTBEAT_WITH_WORDS, &params).await?;
            living(&rows, &mut alive)?;
        }
        let known = |beat: &Heartbeat| alive.contains(&(beat.id.clone(), beat.instance.0));
        Ok(beats.iter().map(known).collect())
    }

    async fn expire(&self, watched: Duration, keep: Duration, limit: u32) -> Result<Expired> {
        let mut session = self.session("expire agents").await?;
        session.batch("BEGIN").await?;
        let params = [&micros(watched) as _, &micros(keep) as _, &i64::from(limit) as _];
        let rows = session.query(LOOK, &params).await?;
        let (mut gone, mut removed) = (Vec::new(), Vec::new());
        for row in &rows {
            let id: &str = get(row, "id")?;
            if get(row, "removed")? {
                removed.push(id);
            } else if get(row, "gone")? {
                gone.push((parsed::<AgentId>(id)?, get::<Uuid>(row, "instance")?));
            }
        }
        gone.sort();
        let mut returned = Vec::new();
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
            returned = session.query(sql, &[&ids, &instances]).await?;
            let sql = "UPDATE agent_capabilities SET free = -1
                 WHERE agent = ANY ($1::text[]) AND free <> -1";
            session.query(sql, &[&ids]).await?;
        }
        if !removed.is_empty() {
            session.query(FORGET, &[&removed]).await?;
        }
        session.batch("COMMIT").await?;
        session.finish();
        self.returned(&returned)?;
        let seen = rows.len() as u64;
        let removed = removed.len() as u64;
        Ok(Expired { gone: gone.into_iter().map(|(agent, _)| agent).collect(), removed, seen })
    }

    async fn deregister(&self, agent: &AgentId, instance: InstanceId) -> Result<()> {
        let mut session = self.session("deregister an agent").await?;
        session.batch("BEGIN").await?;
        let sql = "DELETE FROM agents WHERE id = $1 AND instance = $2 RETURNING id";
        let gone = session.query(sql, &[&agent.as_str(), &instance.0]).await?;
        let mut returned = Vec::new();
        if !gone.is_empty() {
            session.query(FORGET, &[&[agent.as_str()].as_slice()]).await?;
            returned = session.query(RETURN_LIFE, &[&agent.as_str(), &instance.0]).await?;
        }
        session.batch("COMMIT").await?;
        session.finish();
        self.returned(&returned)?;
        Ok(())
    }

    async fn order(&self, agent: &AgentId, order: &Order) -> Result<Option<Agent>> {
        let (drained, reason) = match order {
            Order::Drain(reason) => (true, reason.as_deref()),
            Order::Resume => (false, None),
        };
        self.query("give an agent an order", ORDER, &[&agent.as_str(), &drained, &reason]).await?;
        self.one_agent(agent).await
    }

    async fn agent(&self, agent: &AgentId) -> Result<Option<Agent>> {
        self.one_agent(agent).await
    }

    async fn agents(&self, query: &AgentQuery) -> Result<AgentPage> {
        self.page_of_agents(query).await
    }

    async fn count_held(&self, limit: u32) -> Result<u64> {
        let rows = self.query("count leases", COUNT_HELD, &[&i64::from(limit)]).await?;
        Ok(rows.len() as u64)
    }
}

/// What is kept of agents beside their rows goes with them.
const FORGET: &str = "WITH capabilities AS (
         DELETE FROM agent_capabilities WHERE agent = ANY ($1::text[])
     ), labels AS (
         DELETE FROM agent_labels WHERE agent = ANY ($1::text[])
     )
     DELETE FROM agent_failures WHERE agent = ANY ($1::text[])";

impl PostgresStore {
    /// Why an agent that claims is given nothing, after the claim found it not available.
    pub(super) async fn no_claim(&self, claim: &Claim) -> Error {
        let sql = "SELECT state FROM agents WHERE id = $1 AND instance = $2 AND NOT gone";
        let params = [&claim.agent.as_str() as _, &claim.instance.0 as _];
        let rows = match self.query("read an agent", sql, &params).await {
            Ok(rows) => rows,
            Err(error) => return error,
        };
        let Some(row) = rows.first() else { return Error::UnknownAgent(claim.agent.clone()) };
        match get(row, "state").and_then(|state| agent_state(state, false)) {
            // Available again meanwhile is as good as not yet: it will ask again.
            Ok(state) => Error::NoTasks { agent: claim.agent.clone(), state },
            Err(error) => error,
        }
    }
}

fn living(rows: &[Row], alive: &mut HashSet<(AgentId, Uuid)>) -> Result<()> {
    for row in rows {
        alive.insert((parsed(get(row, "id")?)?, get(row, "instance")?));
    }
    Ok(())
}
