//! What is done to tasks from outside: made ready in time, cancelled, requeued, forgotten.

use std::collections::HashSet;

use resurgam_model::TaskId;
use resurgam_model::task::Change;
use tokio_postgres::Row;
use uuid::Uuid;

use super::finish::finish;
use super::{PostgresStore, get};
use crate::column::{parsed, time_if, unsigned};
use crate::{Promoted, Result, Wake};

pub(super) const PROMOTE: &str = "WITH due AS MATERIALIZED (
        SELECT id FROM tasks WHERE state = 'scheduled' AND run_at <= statement_timestamp()
        ORDER BY run_at LIMIT $1 FOR UPDATE SKIP LOCKED
    ), promoted AS (
        UPDATE tasks SET state = 'ready' FROM due WHERE tasks.id = due.id RETURNING capability
    )
    SELECT capability, count(*) AS number FROM promoted GROUP BY capability";

/// Tasks that nobody near has begun in time. They keep their place in the queue: it goes by age.
pub(super) const FALL: &str = "WITH due AS MATERIALIZED (
        SELECT id FROM tasks
        WHERE state = 'ready' AND fall_at IS NOT NULL AND fall_at <= statement_timestamp()
        ORDER BY fall_at LIMIT $1 FOR UPDATE SKIP LOCKED
    ), fallen AS (
        UPDATE tasks SET capability = fallback, fallback = NULL, fall_ms = NULL, fall_at = NULL,
            key = coalesce(key, CASE WHEN fallback IN (SELECT capability FROM limits WHERE by_key)
                THEN '' END)
        FROM due WHERE tasks.id = due.id RETURNING capability
    )
    SELECT capability, count(*) AS number FROM fallen GROUP BY capability";

pub(super) const NEXT: &str = "SELECT (extract(epoch FROM least(
         (SELECT min(run_at) FROM tasks WHERE state = 'scheduled'),
         (SELECT min(fall_at) FROM tasks WHERE state = 'ready' AND fall_at IS NOT NULL)
     )) * 1000000)::bigint AS next";

pub(super) const CANCEL: &str = concat!(
    "WITH found AS MATERIALIZED (
        SELECT id FROM tasks WHERE id = ANY ($1) ORDER BY id FOR UPDATE
    ), over AS (
        DELETE FROM tasks AS t USING found AS f WHERE t.id = f.id
        RETURNING t.*, 'cancelled' AS end_state, NULL::text AS end_result,
            $2::text AS end_error, t.failed_token AS end_failed, 1 AS n
    ), ",
    finish!("over"),
    " SELECT id, capability, coalesce(limited, false) AS limited, workflow FROM over"
);

pub(super) const REQUEUE: &str = "WITH found AS MATERIALIZED (
        SELECT id FROM tasks_done
        WHERE id = ANY ($1) AND state IN ('dead', 'cancelled') AND workflow IS NULL
        ORDER BY id FOR UPDATE
    ), back AS (
        DELETE FROM tasks_done AS t USING found AS f WHERE t.id = f.id RETURNING t.*
    )
    INSERT INTO tasks (id, created_at, run_at, token, backoff_ms, max_backoff_ms, max_attempts,
        priority, jitter, fixed_backoff, state, capability, payload, idempotency_key, key, tags,
        timeout_ms, keep_ms, reply_to, error, fallback, fall_ms, fall_at)
    SELECT id, created_at, clock_timestamp(), token, backoff_ms, max_backoff_ms, max_attempts,
        priority, jitter, fixed_backoff, 'ready', capability, payload, idempotency_key, key, tags,
        timeout_ms, keep_ms, reply_to, error, fallback, fall_ms,
        clock_timestamp() + fall_ms * interval '1 millisecond'
    FROM back RETURNING id, capability";

pub(super) const PURGE: &str = "WITH old AS MATERIALIZED (
        SELECT id FROM tasks_done WHERE expires_at <= statement_timestamp()
        ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM tasks_done AS t USING old WHERE t.id = old.id
        RETURNING t.id, t.idempotency_key
    ), keys AS (
        DELETE FROM task_keys AS k USING gone AS g
        WHERE k.key = g.idempotency_key AND k.task = g.id
    )
    SELECT count(*) AS number FROM gone";

pub(super) const KNOWN: &str = "SELECT id FROM tasks WHERE id = ANY ($1)
    UNION ALL SELECT id FROM tasks_done WHERE id = ANY ($1)";

impl PostgresStore {
    pub(super) async fn promote_tasks(&self, limit: u32) -> Result<Promoted> {
        let rows = self.query("make due tasks ready", PROMOTE, &[&i64::from(limit)]).await?;
        let fallen = self.query("let tasks fall to others", FALL, &[&i64::from(limit)]).await?;
        let mut promoted = 0;
        for row in rows.iter().chain(&fallen) {
            let count = unsigned(get(row, "number")?)?;
            promoted += count;
            self.ring(Wake { capability: parsed(get(row, "capability")?)?, count });
        }
        let rows = self.query("look for the next due task", NEXT, &[]).await?;
        let next = rows.first().map_or(Ok(None), |row| time_if(get(row, "next")?))?;
        Ok(Promoted { promoted, next })
    }

    pub(super) async fn cancel_tasks(&self, tasks: &[TaskId], why: &str) -> Result<Vec<Change>> {
        let ids: Vec<_> = tasks.iter().map(|task| task.0).collect();
        let why = why.replace('\0', "\u{fffd}");
        let rows = self.query("cancel tasks", CANCEL, &[&ids, &why]).await?;
        self.note_workflows(&rows)?;
        for row in &rows {
            // Another one may begin now.
            if get(row, "limited")? {
                self.ring(Wake { capability: parsed(get(row, "capability")?)?, count: 1 });
            }
        }
        self.changes(&ids, &rows).await
    }

    pub(super) async fn requeue_tasks(&self, tasks: &[TaskId]) -> Result<Vec<Change>> {
        let ids: Vec<_> = tasks.iter().map(|task| task.0).collect();
        let rows = self.query("requeue tasks", REQUEUE, &[&ids]).await?;
        for row in &rows {
            self.ring(Wake { capability: parsed(get(row, "capability")?)?, count: 1 });
        }
        self.changes(&ids, &rows).await
    }

    pub(super) async fn purge_tasks(&self, limit: u32) -> Result<u64> {
        let rows = self.query("forget old tasks", PURGE, &[&i64::from(limit)]).await?;
        rows.first().map_or(Ok(0), |row| unsigned(get(row, "number")?))
    }

    /// One word for each task, given those that were changed. Of a task named twice the first
    /// word is that it was changed.
    async fn changes(&self, ids: &[Uuid], changed: &[Row]) -> Result<Vec<Change>> {
        let mut left =
            changed.iter().map(|row| get(row, "id")).collect::<Result<HashSet<Uuid>>>()?;
        let known: HashSet<Uuid> = if left.len() == ids.len() {
            HashSet::new()
        } else {
            let rows = self.query("look for tasks", KNOWN, &[&ids]).await?;
            rows.iter().map(|row| get(row, "id")).collect::<Result<_>>()?
        };
        let change = |id: &Uuid| match (left.remove(id), known.contains(id)) {
            (true, _) => Change::Changed,
            (false, true) => Change::Unchanged,
            (false, false) => Change::Unknown,
        };
        Ok(ids.iter().map(change).collect())
    }
}
