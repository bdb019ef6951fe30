//! Words about leases, and what is done with tasks that are over.

use std::collections::BTreeMap;

use resurgam_model::task::{
    Backoff, Change, Completion, DEFAULT_KEEP, Failure, LeaseRef, Outcome, RetryPolicy, TaskState,
    Token,
};
use resurgam_model::{AgentId, Capability, Duration, InstanceId, TaskId};
use rusqlite::{Connection, OptionalExtension, Row, params};
use uuid::Uuid;

use super::failing;
use super::fault::Fault;
use super::messages::reply;
use super::{get, id, now};
use crate::LeasesOf;
use crate::column::{
    EXPIRED, HOLDER_GONE, TIMED_OUT, micros, over_body, parsed, parsed_if, unsigned,
};

/// How many tasks of which kind have become ready.
pub(super) type Ready = BTreeMap<Capability, u64>;

/// What has to be known of a task to judge a word about it, or to end it.
pub(super) struct Standing {
    seq: i64,
    id: TaskId,
    capability: Capability,
    state: TaskState,
    token: Token,
    failed_token: Option<Token>,
    attempts: u32,
    retry: RetryPolicy,
    keep_ms: Option<i64>,
    timeout_at: Option<i64>,
    limited: bool,
    reply_to: Option<AgentId>,
    workflow: Option<Uuid>,
    step: Option<String>,
}

/// The columns of [`Standing`].
macro_rules! standing {
    ($rest:literal) => {
        concat!(
            "SELECT seq, id, capability, state, token, failed_token, attempts, max_attempts,
                 fixed_backoff, backoff_ms, max_backoff_ms, jitter, keep_ms, timeout_at, limited,
                 reply_to, workflow, step
             FROM tasks ",
            $rest
        )
    };
}

impl Standing {
    pub(super) fn of(c: &Connection, task: TaskId) -> Result<Option<Self>, Fault> {
        let mut statement = c.prepare_cached(standing!("WHERE id = ?1"))?;
        let mut rows = statement.query([task.0.as_bytes()])?;
        rows.next()?.map(Self::read).transpose()
    }

    fn read(row: &Row<'_>) -> Result<Self, Fault> {
        let millis =
            |column| unsigned(get(row, column)?).map(Duration::from_millis).map_err(Fault::from);
        let fixed = get(row, "fixed_backoff")?;
        Ok(Self {
            seq: get(row, "seq")?,
            id: TaskId(id(row, "id")?),
            capability: parsed(&get::<String>(row, "capability")?)?,
            state: parsed(&get::<String>(row, "state")?)?,
            token: Token(get(row, "token")?),
            failed_token: get::<Option<i64>>(row, "failed_token")?.map(Token),
            attempts: unsigned(get(row, "attempts")?)?,
            retry: RetryPolicy {
                max_attempts: unsigned(get(row, "max_attempts")?)?,
                kind: if fixed { Backoff::Fixed } else { Backoff::Exponential },
                backoff: millis("backoff_ms")?,
                max_backoff: millis("max_backoff_ms")?,
                jitter: unsigned(get(row, "jitter")?)?,
            },
            keep_ms: get(row, "keep_ms")?,
            timeout_at: get(row, "timeout_at")?,
            limited: get::<Option<i64>>(row, "limited")?.is_some(),
            reply_to: parsed_if(get::<Option<String>>(row, "reply_to")?.as_deref())?,
            workflow: get::<Option<[u8; 16]>>(row, "workflow")?.map(Uuid::from_bytes),
            step: get(row, "step")?,
        })
    }

    /// Whether the lease is the present one. That its time may be over does not matter as long
    /// as nobody has taken it back.
    fn holds(&self, token: Token) -> bool {
        self.state == TaskState::Running && self.token == token
    }

    /// Ends the task for good. `said` is the result of a completed task, or else the reason.
    fn finish(&self, c: &Connection, state: TaskState, said: &str) -> Result<(), Fault> {
        let now = now();
        let keep = self.keep_ms.map_or(micros(DEFAULT_KEEP), |ms| ms.saturating_mul(1000));
        let expires = (state != TaskState::Dead).then(|| now.saturating_add(keep));
        let (result, error) =
            if state == TaskState::Completed { (Some(said), None) } else { (None, Some(said)) };
        c.prepare_cached(
            "UPDATE tasks
             SET state = ?2, result = ?3, error = ifnull(?4, error), finished_at = ?5,
                 expires_at = ?6, held_instance = NULL, claim_id = NULL, lease_until = NULL,
                 timeout_at = NULL, limited = NULL, note = NULL
             WHERE seq = ?1",
        )?
        .execute(params![self.seq, state.as_str(), result, error, now, expires])?;
        if let Some(to) = &self.reply_to {
            let kind = format!("task.{}", state.as_str());
            reply(c, to, &kind, &over_body(self.id, state, said), now)?;
        }
        if let (Some(workflow), Some(step)) = (&self.workflow, &self.step) {
            c.prepare_cached(
                "INSERT INTO workflow_events (workflow, step, task, state)
                 VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![
                workflow.as_bytes(),
                step,
                self.id.0.as_bytes(),
                state.as_str()
            ])?;
        }
        Ok(())
    }

    /// Ends a try: the next one comes after the wait, or the task is dead.
    fn end_try(
        &self,
        c: &Connection,
        why: &str,
        (failed, last, wait): (bool, bool, Duration),
        ready: &mut Ready,
    ) -> Result<(), Fault> {
        if failed {
            c.prepare_cached("UPDATE tasks SET failed_token = token WHERE seq = ?1")?
                .execute([self.seq])?;
        }
        let is_dead = last || self.attempts >= self.retry.max_attempts;
        let is_ready = !is_dead && wait.0.is_zero();
        if is_ready || self.limited {
            // It, or another one of a limited kind, may begin now.
            *ready.entry(self.capability.clone()).or_default() += 1;
        }
        if is_dead {
            return self.finish(c, TaskState::Dead, why);
        }
        c.prepare_cached(
            "UPDATE tasks
             SET state = ?2, run_at = ?3, error = ?4, held_by = NULL, held_instance = NULL,
                 claim_id = NULL, lease_until = NULL, timeout_at = NULL, limited = NULL,
                 note = NULL
             WHERE seq = ?1",
        )?
        .execute(params![
            self.seq,
            if is_ready { "ready" } else { "scheduled" },
            now().saturating_add(micros(wait)),
            why,
        ])?;
        Ok(())
    }

    fn wait(&self) -> Duration {
        self.retry.delay_with(self.attempts, super::chance())
    }
}

pub(super) fn extend(c: &Connection, lease: LeaseRef, micros: i64) -> Result<Outcome, Fault> {
    let Some(task) = Standing::of(c, lease.task)? else { return Ok(Outcome::Unknown) };
    let now = now();
    if !task.holds(lease.token) || task.timeout_at.is_some_and(|at| at <= now) {
        return Ok(Outcome::Stale);
    }
    let until = now.saturating_add(micros).min(task.timeout_at.unwrap_or(i64::MAX));
    c.prepare_cached("UPDATE tasks SET lease_until = ?2 WHERE seq = ?1")?
        .execute((task.seq, until))?;
    Ok(Outcome::Accepted)
}

pub(super) fn note(c: &Connection, lease: LeaseRef, note: &str) -> Result<Outcome, Fault> {
    let Some(task) = Standing::of(c, lease.task)? else { return Ok(Outcome::Unknown) };
    if !task.holds(lease.token) {
        return Ok(Outcome::Stale);
    }
    c.prepare_cached("UPDATE tasks SET note = ?2 WHERE seq = ?1")?.execute((task.seq, note))?;
    Ok(Outcome::Accepted)
}

pub(super) fn complete(
    c: &Connection,
    done: &Completion,
    some_fail: bool,
    ready: &mut Ready,
) -> Result<Outcome, Fault> {
    let LeaseRef { task: task_id, token } = done.lease;
    let Some(task) = Standing::of(c, task_id)? else { return Ok(Outcome::Unknown) };
    if task.state == TaskState::Completed && task.token == token {
        return Ok(Outcome::Accepted);
    }
    if !task.holds(token) {
        return Ok(Outcome::Stale);
    }
    if some_fail {
        failing::succeeded(c, task.seq)?;
    }
    task.finish(c, TaskState::Completed, done.result.json())?;
    if task.limited {
        // Another one may begin now.
        *ready.entry(task.capability).or_default() += 1;
    }
    Ok(Outcome::Accepted)
}

pub(super) fn fail(c: &Connection, failure: &Failure, ready: &mut Ready) -> Result<Outcome, Fault> {
    let LeaseRef { task: task_id, token } = failure.lease;
    let Some(task) = Standing::of(c, task_id)? else { return Ok(Outcome::Unknown) };
    if task.token == token && task.failed_token == Some(token) {
        return Ok(Outcome::Accepted);
    }
    if !task.holds(token) {
        return Ok(Outcome::Stale);
    }
    if failure.retry {
        failing::failed(c, task.seq)?;
    }
    task.end_try(c, &failure.error, (true, !failure.retry, task.wait()), ready)?;
    Ok(Outcome::Accepted)
}

/// Takes back the leases of an agent, or of one or some of its lives.
pub(super) fn return_leases(
    c: &Connection,
    agent: &AgentId,
    whose: LeasesOf,
    ready: &mut Ready,
) -> Result<u64, Fault> {
    let (sql, instance) = match whose {
        LeasesOf::Life(instance) => {
            (standing!("WHERE state = 'running' AND held_by = ?1 AND held_instance = ?2"), instance)
        }
        LeasesOf::EarlierLives(instance) => (
            standing!("WHERE state = 'running' AND held_by = ?1 AND held_instance <> ?2"),
            instance,
        ),
    };
    let held = held_by(c, sql, agent, instance)?;
    take_back(c, &held, HOLDER_GONE, ready)
}

fn held_by(
    c: &Connection,
    sql: &str,
    agent: &AgentId,
    instance: InstanceId,
) -> Result<Vec<Standing>, Fault> {
    let mut statement = c.prepare_cached(sql)?;
    let mut rows = statement.query(params![agent.as_str(), instance.0.as_bytes()])?;
    let mut held = Vec::new();
    while let Some(row) = rows.next()? {
        held.push(Standing::read(row)?);
    }
    Ok(held)
}

pub(super) fn return_expired(c: &Connection, limit: u32, ready: &mut Ready) -> Result<u64, Fault> {
    let mut statement = c.prepare_cached(standing!(
        "WHERE state = 'running' AND lease_until < ?1 ORDER BY lease_until LIMIT ?2"
    ))?;
    let mut rows = statement.query((now(), limit))?;
    let mut due = Vec::new();
    while let Some(row) = rows.next()? {
        due.push(Standing::read(row)?);
    }
    take_back(c, &due, EXPIRED, ready)
}

/// Takes running tasks back: ready at once, or dead when tries are used up. What has run beyond
/// its timeout has failed, and waits as after any failure.
fn take_back(
    c: &Connection,
    tasks: &[Standing],
    why: &str,
    ready: &mut Ready,
) -> Result<u64, Fault> {
    for task in tasks {
        if task.timeout_at.is_some_and(|at| at <= now()) {
            task.end_try(c, TIMED_OUT, (false, false, task.wait()), ready)?;
        } else {
            task.end_try(c, why, (false, false, Duration::default()), ready)?;
        }
    }
    unsigned(i64::try_from(tasks.len()).unwrap_or(i64::MAX)).map_err(Fault::from)
}

pub(super) fn cancel(
    c: &Connection,
    task: TaskId,
    why: &str,
    ready: &mut Ready,
) -> Result<Change, Fault> {
    let Some(task) = Standing::of(c, task)? else { return Ok(Change::Unknown) };
    if task.state.is_final() {
        return Ok(Change::Unchanged);
    }
    task.finish(c, TaskState::Cancelled, why)?;
    if task.limited {
        // Another one may begin now.
        *ready.entry(task.capability).or_default() += 1;
    }
    Ok(Change::Changed)
}

pub(super) fn requeue(c: &Connection, task: TaskId, ready: &mut Ready) -> Result<Change, Fault> {
    let Some(task) = Standing::of(c, task)? else { return Ok(Change::Unknown) };
    let is_over = matches!(task.state, TaskState::Dead | TaskState::Cancelled);
    if !is_over || task.workflow.is_some() {
        return Ok(Change::Unchanged);
    }
    c.prepare_cached(
        "UPDATE tasks
         SET state = 'ready', run_at = ?2, attempts = 0, failed_token = NULL, held_by = NULL,
             finished_at = NULL, expires_at = NULL, started_at = NULL,
             fall_at = ?2 + fall_ms * 1000,
             -- It may have been over when a limit came that chooses tasks key by key.
             key = ifnull(key, (SELECT '' FROM limits AS l
                                WHERE l.capability = tasks.capability AND l.by_key = 1))
         WHERE seq = ?1",
    )?
    .execute((task.seq, now()))?;
    *ready.entry(task.capability).or_default() += 1;
    Ok(Change::Changed)
}

/// When the time of the next task comes, to be ready or to fall to others.
pub(super) fn next_due(c: &Connection) -> Result<Option<i64>, Fault> {
    let first = |sql| -> Result<Option<i64>, Fault> {
        Ok(c.prepare_cached(sql)?.query_row([], |row| row.get(0)).optional()?)
    };
    let run = first("SELECT run_at FROM tasks WHERE state = 'scheduled' ORDER BY run_at LIMIT 1")?;
    let fall = first(
        "SELECT fall_at FROM tasks WHERE state = 'ready' AND fall_at IS NOT NULL
         ORDER BY fall_at LIMIT 1",
    )?;
    Ok(run.into_iter().chain(fall).min())
}

/// Makes tasks ready whose time has come, and turns those over to the agents of their fallback that
/// nobody has begun in time. Answers when the time of the next one comes.
pub(super) fn promote(c: &Connection, limit: u32, ready: &mut Ready) -> Result<Option<i64>, Fault> {
    for sql in [
        "UPDATE tasks SET state = 'ready' WHERE seq IN (
             SELECT seq FROM tasks WHERE state = 'scheduled' AND run_at <= ?1
             ORDER BY run_at LIMIT ?2)
         RETURNING capability",
        "UPDATE tasks SET capability = fallback, fallback = NULL, fall_ms = NULL, fall_at = NULL,
             key = ifnull(key, (SELECT '' FROM limits AS l
                                WHERE l.capability = tasks.fallback AND l.by_key = 1))
         WHERE seq IN (
             SELECT seq FROM tasks WHERE state = 'ready' AND fall_at IS NOT NULL AND fall_at <= ?1
             ORDER BY fall_at LIMIT ?2)
         RETURNING capability",
    ] {
        let mut statement = c.prepare_cached(sql)?;
        let mut rows = statement.query((now(), limit))?;
        while let Some(row) = rows.next()? {
            *ready.entry(parsed(&get::<String>(row, "capability")?)?).or_default() += 1;
        }
    }
    next_due(c)
}
