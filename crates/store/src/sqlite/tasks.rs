//! The task queue.

use std::collections::BTreeMap;

use async_trait::async_trait;
use resurgam_model::task::{
    Backoff, Change, Claim, Completion, Failure, Fallback, Lease, LeaseRef, NewTask, Outcome,
    RetryPolicy, Submitted, Task, TaskCounts, TaskQuery, TaskState, Token, WorkflowStep,
};
use resurgam_model::{AgentId, Capability, Duration, TaskId, WorkflowId};
use rusqlite::{Connection, OptionalExtension, Row, named_params};
use uuid::Uuid;

use super::ends::{self, Ready, return_leases};
use super::fault::Fault;
use super::{SqliteStore, claim, failing, get, id, now, submit};
use crate::column::{from_json, micros, parsed, parsed_if, payload, time, time_if, unsigned};
use crate::{Counted, LeasesOf, Promoted, Result, Tasks, Wake};

impl SqliteStore {
    /// Tells of tasks that have become ready.
    pub(super) fn ring(&self, ready: Ready) {
        for (capability, count) in ready {
            self.bell.ring(Wake { capability, count });
        }
    }

    /// Runs a request that may make tasks ready.
    async fn run<T: Send + 'static>(
        &self,
        action: &'static str,
        request: impl FnOnce(&Connection, &mut Ready) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T> {
        let request = |c: &Connection| {
            let mut ready = Ready::new();
            let answer = request(c, &mut ready)?;
            Ok((answer, ready))
        };
        let (answer, ready) = self.writer.run(action, request).await?;
        self.ring(ready);
        Ok(answer)
    }
}

impl SqliteStore {
    /// Runs a request that may end tasks: whoever listens advances their workflows at once.
    async fn run_ending<T: Send + 'static>(
        &self,
        action: &'static str,
        request: impl FnOnce(&Connection, &mut Ready) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T> {
        let request = |c: &Connection, ready: &mut Ready| {
            let last = "SELECT coalesce(max(sequence), 0) FROM workflow_events";
            let last: i64 = c.prepare_cached(last)?.query_row([], |row| row.get(0))?;
            let answer = request(c, ready)?;
            let mut moved = Vec::new();
            let mut statement = c.prepare_cached(
                "SELECT DISTINCT workflow FROM workflow_events WHERE sequence > ?1",
            )?;
            let mut rows = statement.query([last])?;
            while let Some(row) = rows.next()? {
                moved.push(WorkflowId(id(row, "workflow")?));
            }
            Ok((answer, moved))
        };
        let (answer, moved) = self.run(action, request).await?;
        self.moved.add(moved);
        Ok(answer)
    }
}

#[async_trait]
impl Tasks for SqliteStore {
    async fn submit(&self, tasks: &[NewTask]) -> Result<Vec<Submitted>> {
        let tasks = tasks.to_vec();
        let request = move |c: &Connection, ready: &mut Ready| {
            let mut all = Vec::with_capacity(tasks.len());
            for task in tasks {
                let (submitted, is_ready) = submit::submit(c, &task)?;
                all.push(submitted);
                if is_ready {
                    *ready.entry(task.capability).or_default() += 1;
                }
            }
            Ok(all)
        };
        let submitted: Vec<Submitted> = self.run("submit tasks", request).await?;
        let created = submitted.iter().filter(|task| task.created).count();
        self.meters.tasks("submitted", created);
        Ok(submitted)
    }

    async fn claim(&self, wanted: &Claim) -> Result<Vec<Lease>> {
        let wanted = wanted.clone();
        let leases = self.writer.run("claim tasks", move |c| claim::claim(c, &wanted)).await?;
        self.meters.tasks("claimed", leases.len());
        Ok(leases)
    }

    async fn extend(&self, leases: &[LeaseRef], lease: Duration) -> Result<Vec<Outcome>> {
        let (leases, lease) = (leases.to_vec(), micros(lease));
        let request =
            move |c: &Connection| leases.iter().map(|held| ends::extend(c, *held, lease)).collect();
        self.writer.run("extend leases", request).await
    }

    async fn complete(&self, completions: &[Completion]) -> Result<Vec<Outcome>> {
        let completions = completions.to_vec();
        let request = move |c: &Connection, ready: &mut Ready| {
            let some_fail = failing::some(c)?;
            completions.iter().map(|done| ends::complete(c, done, some_fail, ready)).collect()
        };
        let outcomes: Vec<Outcome> = self.run_ending("complete tasks", request).await?;
        self.meters.words("completed", &outcomes);
        Ok(outcomes)
    }

    async fn fail(&self, failures: &[Failure]) -> Result<Vec<Outcome>> {
        let failures = failures.to_vec();
        let request = move |c: &Connection, ready: &mut Ready| {
            failures.iter().map(|failure| ends::fail(c, failure, ready)).collect()
        };
        let outcomes: Vec<Outcome> = self.run_ending("record failed tries", request).await?;
        self.meters.words("failed", &outcomes);
        Ok(outcomes)
    }

    async fn note(&self, leases: &[LeaseRef], note: &str) -> Result<Vec<Outcome>> {
        let (leases, note) = (leases.to_vec(), note.to_owned());
        let request =
            move |c: &Connection| leases.iter().map(|held| ends::note(c, *held, &note)).collect();
        self.writer.run("note progress", request).await
    }

    async fn return_expired(&self, limit: u32) -> Result<u64> {
        let request =
            move |c: &Connection, ready: &mut Ready| ends::return_expired(c, limit, ready);
        let count: u64 = self.run_ending("take expired leases back", request).await?;
        self.meters.tasks("returned", usize::try_from(count).unwrap_or(usize::MAX));
        Ok(count)
    }

    async fn return_leases(&self, agent: &AgentId, whose: LeasesOf) -> Result<u64> {
        let agent = agent.clone();
        let request =
            move |c: &Connection, ready: &mut Ready| return_leases(c, &agent, whose, ready);
        self.run_ending("take leases back", request).await
    }

    async fn promote(&self, limit: u32) -> Result<Promoted> {
        // Most of the time there is nothing, which costs no transaction.
        let next = self.readers.run("look for due tasks", ends::next_due).await?;
        if next.is_none_or(|next| next > now()) {
            return Ok(Promoted { promoted: 0, next: time_if(next)? });
        }
        let request = move |c: &Connection| {
            let mut ready = Ready::new();
            let next = ends::promote(c, limit, &mut ready)?;
            Ok((next, ready))
        };
        let (next, ready) = self.writer.run("make due tasks ready", request).await?;
        let promoted = ready.values().sum();
        self.ring(ready);
        Ok(Promoted { promoted, next: time_if(next)? })
    }

    async fn cancel(&self, tasks: &[TaskId], reason: &str) -> Result<Vec<Change>> {
        let (tasks, reason) = (tasks.to_vec(), reason.to_owned());
        let request = move |c: &Connection, ready: &mut Ready| {
            tasks.iter().map(|task| ends::cancel(c, *task, &reason, ready)).collect()
        };
        self.run_ending("cancel tasks", request).await
    }

    async fn requeue(&self, tasks: &[TaskId]) -> Result<Vec<Change>> {
        let tasks = tasks.to_vec();
        let request = move |c: &Connection, ready: &mut Ready| {
            tasks.iter().map(|task| ends::requeue(c, *task, ready)).collect()
        };
        self.run("requeue tasks", request).await
    }

    async fn purge(&self, limit: u32) -> Result<u64> {
        let due = |c: &Connection| {
            let mut due = c.prepare_cached("SELECT 1 FROM tasks WHERE expires_at <= ?1 LIMIT 1")?;
            Ok(due.exists([now()])?)
        };
        if !self.readers.run("look for old tasks", due).await? {
            return Ok(0);
        }
        let request = move |c: &Connection| {
            let gone = c
                .prepare_cached(
                    "DELETE FROM tasks WHERE seq IN (
                         SELECT seq FROM tasks WHERE expires_at <= ?1
                         ORDER BY expires_at LIMIT ?2)",
                )?
                .execute((now(), limit))?;
            Ok(u64::try_from(gone).unwrap_or(u64::MAX))
        };
        self.writer.run("forget old tasks", request).await
    }

    async fn task(&self, task: TaskId) -> Result<Option<Task>> {
        let request = move |c: &Connection| {
            let mut statement = c.prepare_cached("SELECT * FROM tasks WHERE id = ?1")?;
            let mut rows = statement.query([task.0.as_bytes()])?;
            rows.next()?.map(read_task).transpose()
        };
        self.readers.run("read a task", request).await
    }

    async fn tasks(&self, query: &TaskQuery) -> Result<Vec<Task>> {
        let query = query.clone();
        self.readers.run("list tasks", move |c| list(c, &query)).await
    }

    async fn task_counts(&self, counted: Counted) -> Result<Vec<(Capability, TaskCounts)>> {
        self.readers.run("count tasks", move |c| count(c, counted)).await
    }
}

fn list(c: &Connection, query: &TaskQuery) -> Result<Vec<Task>, Fault> {
    // What is not over yet lies far back in a long table, and without statistics SQLite would
    // read all of it. A partial index is usable only where the state is a literal.
    let from = match query.state {
        None if query.tag.is_some() => "tasks INDEXED BY tasks_tagged WHERE tags IS NOT NULL",
        None => "tasks WHERE true",
        Some(TaskState::Scheduled) => "tasks INDEXED BY tasks_scheduled WHERE state = 'scheduled'",
        Some(TaskState::Ready) => "tasks INDEXED BY tasks_ready WHERE state = 'ready'",
        Some(TaskState::Running) => "tasks INDEXED BY tasks_held WHERE state = 'running'",
        Some(TaskState::Completed) => "tasks WHERE state = 'completed'",
        Some(TaskState::Dead) => "tasks INDEXED BY tasks_dead WHERE state = 'dead'",
        Some(TaskState::Cancelled) => "tasks INDEXED BY tasks_cancelled WHERE state = 'cancelled'",
    };
    let condition = |given: bool, yes: &'static str, no: &'static str| if given { yes } else { no };
    let sql = format!(
        "SELECT * FROM {from} AND seq > :after AND {} AND {} AND {} ORDER BY seq LIMIT :limit",
        condition(query.capability.is_some(), "capability = :capability", ":capability IS NULL"),
        condition(query.key.is_some(), "key = :key", ":key IS NULL"),
        condition(
            query.tag.is_some(),
            "EXISTS (SELECT 1 FROM json_each(tags) WHERE value = :tag)",
            ":tag IS NULL"
        ),
    );
    let after = match query.after {
        Some(after) => c
            .prepare_cached("SELECT seq FROM tasks WHERE id = ?1")?
            .query_row([after.0.as_bytes()], |row| row.get::<_, i64>(0))
            .optional()?
            .unwrap_or(i64::MAX),
        None => 0,
    };
    let mut statement = c.prepare_cached(&sql)?;
    let mut rows = statement.query(named_params! {
        ":after": after,
        ":capability": query.capability.as_ref().map(Capability::as_str),
        ":key": query.key,
        ":tag": query.tag,
        ":limit": query.effective_limit(),
    })?;
    let mut tasks = Vec::new();
    while let Some(row) = rows.next()? {
        tasks.push(read_task(row)?);
    }
    Ok(tasks)
}

pub(super) fn read_task(row: &Row<'_>) -> Result<Task, Fault> {
    let millis =
        |column| unsigned(get(row, column)?).map(Duration::from_millis).map_err(Fault::from);
    let workflow = get::<Option<[u8; 16]>>(row, "workflow")?
        .zip(get::<Option<String>>(row, "step")?)
        .map(|(id, step)| WorkflowStep { workflow: WorkflowId(Uuid::from_bytes(id)), step });
    let fixed = get(row, "fixed_backoff")?;
    Ok(Task {
        id: TaskId(id(row, "id")?),
        capability: parsed(&get::<String>(row, "capability")?)?,
        state: parsed(&get::<String>(row, "state")?)?,
        payload: payload(get(row, "payload")?)?,
        result: get::<Option<String>>(row, "result")?.map(payload).transpose()?,
        error: get(row, "error")?,
        idempotency_key: get(row, "idempotency_key")?,
        priority: get(row, "priority")?,
        key: get::<Option<String>>(row, "key")?.filter(|key| !key.is_empty()),
        tags: get::<Option<String>>(row, "tags")?
            .map_or_else(|| Ok(Vec::new()), |tags| from_json(&tags))?,
        timeout: get::<Option<i64>>(row, "timeout_ms")?
            .map(|ms| unsigned(ms).map(Duration::from_millis))
            .transpose()?,
        retry: RetryPolicy {
            max_attempts: unsigned(get(row, "max_attempts")?)?,
            kind: if fixed { Backoff::Fixed } else { Backoff::Exponential },
            backoff: millis("backoff_ms")?,
            max_backoff: millis("max_backoff_ms")?,
            jitter: unsigned(get(row, "jitter")?)?,
        },
        fallback: match (get::<Option<String>>(row, "fallback")?, get(row, "fall_ms")?) {
            (Some(capability), Some(after)) => Some(Fallback {
                capability: parsed(&capability)?,
                after: Duration::from_millis(unsigned(after)?),
            }),
            _ => None,
        },
        note: get(row, "note")?,
        reply_to: parsed_if(get::<Option<String>>(row, "reply_to")?.as_deref())?,
        workflow,
        attempts: unsigned(get(row, "attempts")?)?,
        token: Token(get(row, "token")?),
        held_by: parsed_if(get::<Option<String>>(row, "held_by")?.as_deref())?,
        lease_until: time_if(get(row, "lease_until")?)?,
        run_at: time(get(row, "run_at")?)?,
        created_at: time(get(row, "created_at")?)?,
        started_at: time_if(get(row, "started_at")?)?,
        finished_at: time_if(get(row, "finished_at")?)?,
        expires_at: time_if(get(row, "expires_at")?)?,
    })
}

fn count(c: &Connection, counted: Counted) -> Result<Vec<(Capability, TaskCounts)>, Fault> {
    let mut counts: BTreeMap<Capability, TaskCounts> = BTreeMap::new();
    // One query for each state, so that each is answered by its partial index alone.
    let queries = [
        (
            TaskState::Scheduled,
            "SELECT capability, count(*) FROM tasks
             WHERE state = 'scheduled' GROUP BY 1",
        ),
        (
            TaskState::Ready,
            "SELECT capability, count(*) FROM tasks
             WHERE state = 'ready' GROUP BY 1",
        ),
        (
            TaskState::Running,
            "SELECT capability, count(*) FROM tasks
             WHERE state = 'running' GROUP BY 1",
        ),
        (
            TaskState::Dead,
            "SELECT capability, count(*) FROM tasks
             WHERE state = 'dead' GROUP BY 1",
        ),
        (
            TaskState::Cancelled,
            "SELECT capability, count(*) FROM tasks
             WHERE state = 'cancelled' GROUP BY 1",
        ),
        (
            TaskState::Completed,
            "SELECT capability, count(*) FROM tasks
             WHERE state = 'completed' GROUP BY 1",
        ),
    ];
    for (state, sql) in queries {
        let is_open = !state.is_final() || state == TaskState::Dead;
        if !is_open && counted == Counted::Open {
            continue;
        }
        let mut statement = c.prepare_cached(sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let capability = parsed(&row.get::<_, String>(0)?)?;
            *counts.entry(capability).or_default().of(state) = unsigned(row.get(1)?)?;
        }
    }
    Ok(counts.into_iter().collect())
}
