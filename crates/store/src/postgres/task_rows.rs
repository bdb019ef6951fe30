//! How tasks are read.

use std::collections::BTreeMap;

use resurgam_model::task::{
    Backoff, Fallback, RetryPolicy, Task, TaskCounts, TaskQuery, TaskState, Token, WorkflowStep,
};
use resurgam_model::{AgentId, Capability, Duration, TaskId, WorkflowId};
use tokio_postgres::Row;
use uuid::Uuid;

use super::{PostgresStore, get};
use crate::column::{parsed, parsed_if, payload, time, time_if, unsigned};
use crate::{Counted, Result};

/// Whole tasks from one of the two tables.
macro_rules! tasks {
    (open: $condition:expr) => {
        concat!(
            "SELECT ",
            tasks!(columns),
            ", NULL::text AS result, NULL::bigint AS finished_at, NULL::bigint AS expires_at, note,
             (extract(epoch FROM lease_until) * 1000000)::bigint AS lease_until
             FROM tasks WHERE ",
            $condition
        )
    };
    (done: $condition:expr) => {
        concat!(
            "SELECT ",
            tasks!(columns),
            ", result, (extract(epoch FROM finished_at) * 1000000)::bigint AS finished_at,
             (extract(epoch FROM expires_at) * 1000000)::bigint AS expires_at,
             NULL::text AS note, NULL::bigint AS lease_until
             FROM tasks_done WHERE ",
            $condition
        )
    };
    (both: $condition:expr) => {
        concat!(
            "(", tasks!(open: $condition), ") UNION ALL (", tasks!(done: $condition), ")"
        )
    };
    (columns) => {
        "id, capability, state, payload, error, idempotency_key, priority, key, tags, timeout_ms,
         max_attempts, fixed_backoff, backoff_ms, max_backoff_ms, jitter, reply_to, workflow,
         step, attempts, token, held_by, fallback, fall_ms,
         (extract(epoch FROM run_at) * 1000000)::bigint AS run_at,
         (extract(epoch FROM created_at) * 1000000)::bigint AS created_at,
         (extract(epoch FROM started_at) * 1000000)::bigint AS started_at"
    };
}

/// The tasks of a workflow that are under way.
pub(super) const OF_WORKFLOW: &str = concat!(tasks!(open: "workflow = $1"), " ORDER BY id");

/// One task.
const ONE: &str = tasks!(both: "id = $1");

/// A page of tasks in their order, which is that of their ids. What comes after a task that is
/// unknown is what was handed in after its time.
macro_rules! page {
    ($tables:tt, $tag:literal, $condition:literal) => {
        concat!(
            tasks!($tables: concat!(
                $condition,
                " AND id > coalesce($1::uuid, '00000000-0000-0000-0000-000000000000')
                  AND ($2::text IS NULL OR capability = $2)
                  AND ($3::text IS NULL OR key = $3) AND ",
                $tag,
                " ORDER BY id LIMIT $5"
            )),
            page!(end $tables)
        )
    };
    (end both) => { " ORDER BY id LIMIT $5" };
    (end $other:tt) => { "" };
    ($state:expr, $tag:literal) => {
        // The names of the states are literals, because only these lead to the partial indexes.
        match $state {
            None => page!(both, $tag, "true"),
            Some(TaskState::Scheduled) => page!(open, $tag, "state = 'scheduled'"),
            Some(TaskState::Ready) => page!(open, $tag, "state = 'ready'"),
            Some(TaskState::Running) => page!(open, $tag, "state = 'running'"),
            Some(TaskState::Completed) => page!(done, $tag, "state = 'completed'"),
            Some(TaskState::Dead) => page!(done, $tag, "state = 'dead'"),
            Some(TaskState::Cancelled) => page!(done, $tag, "state = 'cancelled'"),
        }
    };
}

/// One query for each state, so that each is answered by its partial index alone.
const COUNT_OPEN: &str = "SELECT 'scheduled' AS state, capability, count(*) AS number
        FROM tasks WHERE state = 'scheduled' GROUP BY capability
    UNION ALL SELECT 'ready', capability, count(*)
        FROM tasks WHERE state = 'ready' GROUP BY capability
    UNION ALL SELECT 'running', capability, count(*)
        FROM tasks WHERE state = 'running' GROUP BY capability
    UNION ALL SELECT 'dead', capability, count(*)
        FROM tasks_done WHERE state = 'dead' GROUP BY capability";

const COUNT_DONE: &str = "SELECT state, capability, count(*) AS number
    FROM tasks_done WHERE state IN ('completed', 'cancelled') GROUP BY state, capability";

impl PostgresStore {
    pub(super) async fn read_task(&self, id: TaskId) -> Result<Option<Task>> {
        let rows = self.query("read a task", ONE, &[&id.0]).await?;
        rows.first().map(read_task).transpose()
    }

    pub(super) async fn list_tasks(&self, query: &TaskQuery) -> Result<Vec<Task>> {
        let sql = match query.tag {
            None => page!(query.state, "$4::text IS NULL"),
            Some(_) => page!(query.state, "tags @> ARRAY[$4::text]"),
        };
        let capability = query.capability.as_ref().map(Capability::as_str);
        let after = query.after.map(|after| after.0);
        let limit = i64::from(query.effective_limit());
        let params = [&after as _, &capability as _, &query.key as _, &query.tag as _, &limit as _];
        let rows = self.query("list tasks", sql, &params).await?;
        rows.iter().map(read_task).collect()
    }

    pub(super) async fn count_tasks(
        &self,
        counted: Counted,
    ) -> Result<Vec<(Capability, TaskCounts)>> {
        let mut rows = self.query("count tasks", COUNT_OPEN, &[]).await?;
        if counted == Counted::All {
            rows.extend(self.query("count finished tasks", COUNT_DONE, &[]).await?);
        }
        let mut counts: BTreeMap<Capability, TaskCounts> = BTreeMap::new();
        for row in &rows {
            let counts = counts.entry(parsed(get(row, "capability")?)?).or_default();
            *counts.of(parsed(get(row, "state")?)?) = unsigned(get(row, "number")?)?;
        }
        Ok(counts.into_iter().collect())
    }
}

pub(super) fn read_task(row: &Row) -> Result<Task> {
    let millis = |column| get::<i64>(row, column).and_then(unsigned).map(Duration::from_millis);
    let count = |column| unsigned(i64::from(get::<i32>(row, column)?));
    let workflow =
        match (get::<Option<Uuid>>(row, "workflow")?, get::<Option<String>>(row, "step")?) {
            (Some(workflow), Some(step)) => {
                Some(WorkflowStep { workflow: WorkflowId(workflow), step })
            }
            _ => None,
        };
    Ok(Task {
        id: TaskId(get(row, "id")?),
        capability: parsed(get(row, "capability")?)?,
        state: parsed(get(row, "state")?)?,
        payload: payload(get(row, "payload")?)?,
        result: get::<Option<String>>(row, "result")?.map(payload).transpose()?,
        error: get(row, "error")?,
        idempotency_key: get(row, "idempotency_key")?,
        priority: get(row, "priority")?,
        key: get::<Option<String>>(row, "key")?.filter(|key| !key.is_empty()),
        tags: get::<Option<_>>(row, "tags")?.unwrap_or_default(),
        timeout: get::<Option<i64>>(row, "timeout_ms")?
            .map(|ms| unsigned(ms).map(Duration::from_millis))
            .transpose()?,
        retry: RetryPolicy {
            max_attempts: count("max_attempts")?,
            kind: if get(row, "fixed_backoff")? { Backoff::Fixed } else { Backoff::Exponential },
            backoff: millis("backoff_ms")?,
            max_backoff: millis("max_backoff_ms")?,
            jitter: unsigned(i64::from(get::<i16>(row, "jitter")?))?,
        },
        fallback: match (get::<Option<&str>>(row, "fallback")?, get(row, "fall_ms")?) {
            (Some(capability), Some(after)) => Some(Fallback {
                capability: parsed(capability)?,
                after: Duration::from_millis(unsigned(after)?),
            }),
            _ => None,
        },
        note: get(row, "note")?,
        reply_to: parsed_if::<AgentId>(get(row, "reply_to")?)?,
        workflow,
        attempts: count("attempts")?,
        token: Token(get(row, "token")?),
        held_by: parsed_if(get(row, "held_by")?)?,
        lease_until: time_if(get(row, "lease_until")?)?,
        run_at: time(get(row, "run_at")?)?,
        created_at: time(get(row, "created_at")?)?,
        started_at: time_if(get(row, "started_at")?)?,
        finished_at: time_if(get(row, "finished_at")?)?,
        expires_at: time_if(get(row, "expires_at")?)?,
    })
}
