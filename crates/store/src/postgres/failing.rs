//! Agents whose tries keep failing.
//!
//! What is counted here is counted beside the words that it follows from, in a transaction of its
//! own: should it be lost, an agent is stopped a task later, or goes on a task later. So failures and
//! completions pay next to nothing for it while all is well.

use resurgam_model::{AgentId, Duration};
use uuid::Uuid;

use super::registry::{and_spread, free};
use super::{PostgresStore, get};
use crate::column::{micros, parsed};
use crate::{FAILING_AFTER, FAILING_FOR, Result};

/// Counts failed tries: agents, their lives, tasks. A task that fails again is counted once as long
/// as no other fails in between. Answers who is stopped now.
pub(super) const FAILED: &str = and_spread!(concat!(
    "WITH tries AS MATERIALIZED (
         SELECT agent, instance, count(DISTINCT task) AS tasks,
             (array_agg(task ORDER BY n DESC))[1] AS last_task
         FROM unnest($1::text[], $2::uuid[], $3::uuid[]) WITH ORDINALITY
             AS w (agent, instance, task, n)
         GROUP BY agent, instance
     ), alive AS MATERIALIZED (
         SELECT t.* FROM tries AS t JOIN agents AS a ON a.id = t.agent AND a.instance = t.instance
         WHERE NOT a.gone ORDER BY a.id FOR NO KEY UPDATE OF a
     ), counted AS (
         INSERT INTO agent_failures AS f (agent, instance, tasks, last_task, since)
         SELECT agent, instance, tasks, last_task, clock_timestamp() FROM alive ORDER BY agent
         ON CONFLICT (agent) DO UPDATE SET
             instance = excluded.instance, last_task = excluded.last_task,
             since = CASE WHEN f.instance = excluded.instance THEN f.since ELSE excluded.since END,
             tasks = CASE WHEN f.instance <> excluded.instance THEN excluded.tasks
                 WHEN f.last_task = excluded.last_task THEN f.tasks + excluded.tasks - 1
                 ELSE f.tasks + excluded.tasks END
         RETURNING agent, tasks
     ), changed AS (
         UPDATE agents AS a SET
             failing_until = clock_timestamp() + $5::bigint * interval '1 microsecond',
             reason = CASE WHEN a.drained THEN a.reason
                 ELSE counted.tasks || ' tasks failed one after the other' END
         FROM counted
         WHERE a.id = counted.agent AND counted.tasks >= $4::bigint AND a.failing_until IS NULL
         RETURNING a.id, ",
    free!(),
    " AS free
     )"
));

/// A try of theirs succeeded.
pub(super) const SUCCEEDED: &str = and_spread!(concat!(
    "WITH alive AS MATERIALIZED (
         SELECT id, failing_until FROM agents WHERE id = ANY ($1::text[])
         ORDER BY id FOR NO KEY UPDATE
     ), forgotten AS (
         DELETE FROM agent_failures WHERE agent IN (SELECT id FROM alive)
     ), changed AS (
         UPDATE agents AS a SET failing_until = NULL, reason = CASE WHEN a.drained THEN a.reason END
         FROM alive WHERE a.id = alive.id AND alive.failing_until IS NOT NULL
         RETURNING a.id, ",
    free!(),
    " AS free
     )"
));

/// Those whose time is over. The next task that fails is one too many again.
pub(super) const FORGIVE: &str = and_spread!(concat!(
    "WITH due AS MATERIALIZED (
         SELECT id FROM agents
         WHERE failing_until <= statement_timestamp() + $1::bigint * interval '1 microsecond'
         ORDER BY failing_until LIMIT 1000 FOR NO KEY UPDATE SKIP LOCKED
     ), lowered AS (
         UPDATE agent_failures AS f SET tasks = least(f.tasks, $2::bigint - 1)
         FROM due WHERE f.agent = due.id
     ), changed AS (
         UPDATE agents AS a SET failing_until = NULL, reason = CASE WHEN a.drained THEN a.reason END
         FROM due WHERE a.id = due.id
         RETURNING a.id, ",
    free!(),
    " AS free
     )"
));

impl PostgresStore {
    /// Takes note of tries that failed but may be made again.
    pub(super) async fn tries_failed(&self, tries: &[(String, Uuid, Uuid)]) {
        if tries.is_empty() {
            return;
        }
        let agents: Vec<_> = tries.iter().map(|(agent, ..)| agent.as_str()).collect();
        let lives: Vec<_> = tries.iter().map(|(_, life, _)| *life).collect();
        let tasks: Vec<_> = tries.iter().map(|(.., task)| *task).collect();
        let (after, pause) = (i64::from(FAILING_AFTER), micros(FAILING_FOR));
        let params = [&agents as _, &lives as _, &tasks as _, &after as _, &pause as _];
        match self.query("count failed tries", FAILED, &params).await {
            Ok(rows) => {
                for row in &rows {
                    let agent: Option<&str> = get(row, "id").ok();
                    tracing::warn!(agent, "its tries keep failing: it is given no tasks for now");
                }
            }
            Err(error) => tracing::debug!(%error, "failed tries were not counted"),
        }
    }

    /// Takes note of agents that completed tasks while some agent was known to fail.
    pub(super) async fn tries_succeeded(&self, agents: &[String]) {
        if agents.is_empty() {
            return;
        }
        if let Err(error) = self.query("forget failed tries", SUCCEEDED, &[&agents]).await {
            tracing::debug!(%error, "failed tries were not forgotten");
        }
    }

    pub(super) async fn forgive_agents(&self, early: Duration) -> Result<Vec<AgentId>> {
        let params = [&micros(early) as _, &i64::from(FAILING_AFTER) as _];
        let rows = self.query("give failing agents tasks again", FORGIVE, &params).await?;
        let ids = rows.iter().map(|row| parsed(get(row, "id")?));
        let mut forgiven = ids.collect::<Result<Vec<AgentId>>>()?;
        forgiven.sort();
        Ok(forgiven)
    }
}
