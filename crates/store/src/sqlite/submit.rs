//! Handing in tasks.

use resurgam_model::task::{Backoff, NewTask, Submitted};
use resurgam_model::{AgentId, TaskId};
use rusqlite::{Connection, OptionalExtension, params};

use super::fault::Fault;
use super::{id, now};
use crate::column::{due, micros, millis, to_json};

/// Hands in a task. Says also whether it can be claimed at once.
pub(super) fn submit(c: &Connection, task: &NewTask) -> Result<(Submitted, bool), Fault> {
    if let Some(key) = &task.idempotency_key {
        let known = c
            .prepare_cached("SELECT id FROM tasks WHERE idempotency_key = ?1")?
            .query_row([key], |row| Ok(id(row, "id")))
            .optional()?;
        if let Some(known) = known {
            return Ok((Submitted { id: TaskId(known?), created: false }, false));
        }
    }
    let (new, now) = (TaskId::new(), now());
    let run_at = match (task.run_at, task.delay) {
        (Some(at), _) => due(at),
        (None, delay) => now.saturating_add(delay.map_or(0, micros)),
    };
    let ready = run_at <= now;
    let tags = if task.tags.is_empty() { None } else { Some(to_json(&task.tags)?) };
    let key = match &task.key {
        Some(key) => Some(key.as_str()),
        None => c
            .prepare_cached("SELECT 1 FROM limits WHERE capability = ?1 AND by_key = 1")?
            .exists([task.capability.as_str()])?
            .then_some(""),
    };
    let mut statement = c.prepare_cached(
        "INSERT INTO tasks (id, capability, state, payload, idempotency_key, priority,
             max_attempts, fixed_backoff, backoff_ms, max_backoff_ms, jitter, run_at, created_at,
             reply_to, key, tags, timeout_ms, keep_ms, workflow, step,
             fallback, fall_ms, fall_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18,
             ?19, ?20, ?21, ?22, ?23)",
    )?;
    statement.execute(params![
        new.0.as_bytes(),
        task.capability.as_str(),
        if ready { "ready" } else { "scheduled" },
        task.payload.json(),
        task.idempotency_key,
        task.priority,
        task.retry.max_attempts.max(1),
        task.retry.kind == Backoff::Fixed,
        millis(task.retry.backoff),
        millis(task.retry.max_backoff),
        task.retry.jitter.min(100),
        run_at,
        now,
        task.reply_to.as_ref().map(AgentId::as_str),
        key,
        tags,
        task.timeout.map(millis),
        task.keep.map(millis),
        task.workflow.as_ref().map(|step| step.workflow.0.as_bytes()),
        task.workflow.as_ref().map(|step| step.step.as_str()),
        task.fallback.as_ref().map(|fallback| fallback.capability.as_str()),
        task.fallback.as_ref().map(|fallback| millis(fallback.after)),
        task.fallback.as_ref().map(|f| run_at.max(now).saturating_add(micros(f.after))),
    ])?;
    Ok((Submitted { id: new, created: true }, ready))
}
