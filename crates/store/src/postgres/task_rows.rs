//! How tasks are read, and the answers to words about leases.

use std::collections::HashMap;

use resurgam_model::TaskId;
use resurgam_model::task::{LeaseRef, Outcome, Task, TaskState, Token};
use tokio_postgres::Row;
use uuid::Uuid;

use super::get;
use crate::Result;
use crate::column::{parsed, parsed_if, payload, time, time_if, unsigned};

/// A query for whole tasks.
macro_rules! tasks {
    ($($rest:expr),+) => {
        concat!(
            "SELECT id, capability, state, payload, result, error, idempotency_key, priority,
                 attempts, token, held_by,
                 (extract(epoch FROM lease_until) * 1000000)::bigint AS lease_until,
                 (extract(epoch FROM run_at) * 1000000)::bigint AS run_at,
                 (extract(epoch FROM created_at) * 1000000)::bigint AS created_at,
                 (extract(epoch FROM finished_at) * 1000000)::bigint AS finished_at
             FROM tasks WHERE ",
            $($rest),+
        )
    };
}

/// One task.
pub(super) const ONE: &str = tasks!("id = $1");

/// A page of tasks. What comes after a task that is unknown is nothing.
macro_rules! page {
    ($condition:literal) => {
        tasks!(
            $condition,
            " AND ($1::uuid IS NULL OR seq > (SELECT seq FROM tasks WHERE id = $1))
              AND ($2::text IS NULL OR capability = $2)
             ORDER BY seq LIMIT $3"
        )
    };
}

/// The statement that lists tasks in a state or in all. The names of the states are literals,
/// because only these lead to the partial indexes.
pub(super) fn page(state: Option<TaskState>) -> &'static str {
    match state {
        None => page!("true"),
        Some(TaskState::Ready) => page!("state = 'ready'"),
        Some(TaskState::Running) => page!("state = 'running'"),
        Some(TaskState::Completed) => page!("state = 'completed'"),
        Some(TaskState::Dead) => page!("state = 'dead'"),
    }
}

pub(super) fn read_task(row: &Row) -> Result<Task> {
    Ok(Task {
        id: TaskId(get(row, "id")?),
        capability: parsed(get(row, "capability")?)?,
        state: parsed(get(row, "state")?)?,
        payload: payload(get(row, "payload")?)?,
        result: get::<Option<String>>(row, "result")?.map(payload).transpose()?,
        error: get(row, "error")?,
        idempotency_key: get(row, "idempotency_key")?,
        priority: get(row, "priority")?,
        attempts: unsigned(get(row, "attempts")?)?,
        token: Token(get(row, "token")?),
        held_by: parsed_if(get(row, "held_by")?)?,
        lease_until: time_if(get(row, "lease_until")?)?,
        run_at: time(get(row, "run_at")?)?,
        created_at: time(get(row, "created_at")?)?,
        finished_at: time_if(get(row, "finished_at")?)?,
    })
}

/// The columns of a list of leases.
pub(super) fn split(leases: impl Iterator<Item = LeaseRef>) -> (Vec<Uuid>, Vec<i64>) {
    leases.map(|lease| (lease.task.0, lease.token.0)).unzip()
}

/// What became of each word, given how the tasks stood before. `said_before` tells whether a
/// task under the same token that is no longer running was brought there by the same word.
pub(super) fn outcomes(
    leases: impl Iterator<Item = LeaseRef>,
    found: &[Row],
    said_before: fn(TaskState, bool) -> bool,
) -> Result<Vec<Outcome>> {
    let mut tasks = HashMap::with_capacity(found.len());
    for row in found {
        let state: TaskState = parsed(get(row, "state")?)?;
        let token: i64 = get(row, "token")?;
        let failed: Option<i64> = get(row, "failed_token")?;
        let accepts = state == TaskState::Running || said_before(state, failed == Some(token));
        tasks.insert(get::<Uuid>(row, "id")?, (token, accepts));
    }
    let outcome = |lease: LeaseRef| match tasks.get(&lease.task.0) {
        None => Outcome::Unknown,
        Some(&(token, true)) if token == lease.token.0 => Outcome::Accepted,
        Some(_) => Outcome::Stale,
    };
    Ok(leases.map(outcome).collect())
}
