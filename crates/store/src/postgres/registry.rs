//! The registry of agents.

use std::collections::HashSet;

use async_trait::async_trait;
use resurgam_model::agent::{
    Agent, AgentPage, AgentQuery, Heartbeat, HeartbeatTerms, Registration,
};
use resurgam_model::task::Claim;
use resurgam_model::{AgentId, Duration, InstanceId};
use tokio_postgres::Row;
use uuid::Uuid;

use super::take_back::{RETURN_LIFE, take_back};
use super::{PostgresStore, get};
use crate::column::{agent_state, micros, own_state, parsed};
use crate::{Error, Expired, Order, Registered, Registry, Result};

/// The free places of an agent that may be given tasks, -1 for all others: what look-ups by load
/// go by.
macro_rules! free {
    () => {
        "CASE WHEN a.state = 'available' THEN greatest(a.capacity - greatest(a.load, a.held), 0)
         ELSE -1 END"
    };
}
pub(super) use free;

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
pub(super) use and_spread;

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

/// Takes back what these lives hold. One look into the index for each agent: in a join, statistics
/// from when the queue was empty could have all of its tasks read.
pub(super) const RETURN_GONE: &str = take_back!(
    "SELECT t.id FROM unnest($1::text[], $2::uuid[]) AS g (agent, instance)
     CROSS JOIN LATERAL (
         SELECT id FROM tasks
         WHERE state = 'running' AND held_by = g.agent AND held_instance = g.instance
         ORDER BY id::text FOR UPDATE
     ) AS t",
    "the holder of the lease is gone"
);

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
    async fn register_all(
        &self,
        registrations: &[(Registration, HeartbeatTerms)],
    ) -> Result<Vec<Registered>> {
        self.register_agents(registrations).await
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
            returned = session.query(RETURN_GONE, &[&ids, &instances]).await?;
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

    async fn forgive(&self, early: Duration) -> Result<Vec<AgentId>> {
        self.forgive_agents(early).await
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
