//! The task queue.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use resurgam_model::task::{
    Claim, Completion, Failure, Lease, LeaseRef, NewTask, Outcome, RetryPolicy, Submitted, Task,
    TaskCounts, TaskQuery, TaskState, Token,
};
use resurgam_model::{AgentId, Capability, Duration, InstanceId, TaskId};
use rusqlite::{Connection, OptionalExtension, Row, named_params, params};

use super::fault::Fault;
use super::messages::reply;
use super::registry::no_claim;
use super::{SqliteStore, get, id, now};
use crate::column::{
    COMPLETED, DEAD, EXPIRED, HOLDER_GONE, completed_body, dead_body, micros, millis, parsed,
    parsed_if, payload, time, time_if, unsigned,
};
use crate::{LeasesOf, Result, Tasks};

#[async_trait]
impl Tasks for SqliteStore {
    async fn submit(&self, tasks: &[NewTask]) -> Result<Vec<Submitted>> {
        let tasks = tasks.to_vec();
        let request = move |c: &Connection| tasks.iter().map(|task| submit(c, task)).collect();
        self.writer.run("submit tasks", request).await
    }

    async fn claim(&self, wanted: &Claim) -> Result<Vec<Lease>> {
        let wanted = wanted.clone();
        self.writer.run("claim tasks", move |c| claim(c, &wanted)).await
    }

    async fn extend(&self, leases: &[LeaseRef], lease: Duration) -> Result<Vec<Outcome>> {
        let (leases, lease) = (leases.to_vec(), micros(lease));
        let request =
            move |c: &Connection| leases.iter().map(|held| extend(c, *held, lease)).collect();
        self.writer.run("extend leases", request).await
    }

    async fn complete(&self, completions: &[Completion]) -> Result<Vec<Outcome>> {
        let completions = completions.to_vec();
        let request = move |c: &Connection| completions.iter().map(|d| complete(c, d)).collect();
        self.writer.run("complete tasks", request).await
    }

    async fn fail(&self, failures: &[Failure]) -> Result<Vec<Outcome>> {
        let failures = failures.to_vec();
        let request = move |c: &Connection| failures.iter().map(|f| fail(c, f)).collect();
        self.writer.run("record failed tries", request).await
    }

    async fn return_expired(&self, limit: u32) -> Result<u64> {
        let request = move |c: &Connection| {
            let mut due = c.prepare_cached(
                "SELECT seq FROM tasks WHERE state = 'running' AND lease_until < ?1
                 ORDER BY lease_until LIMIT ?2",
            )?;
            let due: Vec<i64> =
                due.query_map((now(), limit), |row| row.get(0))?.collect::<Result<_, _>>()?;
            take_back(c, &due, EXPIRED)
        };
        self.writer.run("take expired leases back", request).await
    }

    async fn return_leases(&self, agent: &AgentId, whose: LeasesOf) -> Result<u64> {
        let agent = agent.clone();
        self.writer.run("take leases back", move |c| return_leases(c, &agent, whose)).await
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

    async fn task_counts(&self) -> Result<Vec<(Capability, TaskCounts)>> {
        self.readers.run("count tasks", count).await
    }
}

fn submit(c: &Connection, task: &NewTask) -> Result<Submitted, Fault> {
    if let Some(key) = &task.idempotency_key {
        let known = c
            .prepare_cached("SELECT id FROM tasks WHERE idempotency_key = ?1")?
            .query_row([key], |row| Ok(id(row, "id")))
            .optional()?;
        if let Some(known) = known {
            return Ok(Submitted { id: TaskId(known?), created: false });
        }
    }
    let (new, now) = (TaskId::new(), now());
    let mut statement = c.prepare_cached(
        "INSERT INTO tasks (id, capability, state, payload, idempotency_key, priority,
             max_attempts, backoff_ms, max_backoff_ms, run_at, created_at, reply_to)
         VALUES (?1, ?2, 'ready', ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
    )?;
    statement.execute(params![
        new.0.as_bytes(),
        task.capability.as_str(),
        task.payload.json(),
        task.idempotency_key,
        task.priority,
        task.retry.max_attempts.max(1),
        millis(task.retry.backoff),
        millis(task.retry.max_backoff),
        now.saturating_add(task.delay.map_or(0, micros)),
        now,
        task.reply_to.as_ref().map(AgentId::as_str),
    ])?;
    Ok(Submitted { id: new, created: true })
}

fn claim(c: &Connection, claim: &Claim) -> Result<Vec<Lease>, Fault> {
    let known = c
        .prepare_cached(
            "SELECT 1 FROM agents WHERE id = ?1 AND instance = ?2 AND state = 'available'",
        )?
        .exists(params![claim.agent.as_str(), claim.instance.0.as_bytes()])?;
    if !known {
        return Err(no_claim(c, claim));
    }
    let now = now();
    // One short walk along the index for each capability. A single query for all of them would
    // have to sort everything that is ready.
    let mut ready: Vec<(i64, i64)> = Vec::new();
    let mut statement = c.prepare_cached(
        "SELECT -priority, seq FROM tasks
         WHERE state = 'ready' AND capability = ?1 AND run_at <= ?2
         ORDER BY priority DESC, seq LIMIT ?3",
    )?;
    for capability in claim.capabilities.iter().collect::<BTreeSet<_>>() {
        let found = statement
            .query_map(params![capability.as_str(), now, claim.max], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })?
            .collect::<Result<Vec<_>, _>>()?;
        ready.extend(found);
    }
    ready.sort_unstable();
    ready.truncate(usize::try_from(claim.max).unwrap_or(usize::MAX));

    let until = now.saturating_add(micros(claim.lease));
    let mut statement = c.prepare_cached(
        "UPDATE tasks
         SET state = 'running', token = token + 1, attempts = attempts + 1,
             held_by = ?2, held_instance = ?3, lease_until = ?4
         WHERE seq = ?1
         RETURNING id, token, capability, payload, attempts",
    )?;
    let mut leases = Vec::with_capacity(ready.len());
    for (_, seq) in ready {
        let holder = params![seq, claim.agent.as_str(), claim.instance.0.as_bytes(), until];
        let mut rows = statement.query(holder)?;
        while let Some(row) = rows.next()? {
            leases.push(Lease {
                task: TaskId(id(row, "id")?),
                token: Token(get(row, "token")?),
                capability: parsed(&get::<String>(row, "capability")?)?,
                payload: payload(get(row, "payload")?)?,
                attempt: unsigned(get(row, "attempts")?)?,
                until: time(until)?,
            });
        }
    }
    Ok(leases)
}

/// What has to be known of a task to judge a word about it.
struct Standing {
    seq: i64,
    state: TaskState,
    token: Token,
    failed_token: Option<Token>,
    attempts: u32,
    max_attempts: u32,
    retry: RetryPolicy,
    reply_to: Option<AgentId>,
}

impl Standing {
    fn of(c: &Connection, task: TaskId) -> Result<Option<Self>, Fault> {
        let mut statement = c.prepare_cached(
            "SELECT seq, state, token, failed_token, attempts, max_attempts, backoff_ms,
                 max_backoff_ms, reply_to
             FROM tasks WHERE id = ?1",
        )?;
        let mut rows = statement.query([task.0.as_bytes()])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let max_attempts = unsigned(get(row, "max_attempts")?)?;
        Ok(Some(Self {
            seq: get(row, "seq")?,
            state: parsed(&get::<String>(row, "state")?)?,
            token: Token(get(row, "token")?),
            failed_token: get::<Option<i64>>(row, "failed_token")?.map(Token),
            attempts: unsigned(get(row, "attempts")?)?,
            max_attempts,
            retry: RetryPolicy {
                max_attempts,
                backoff: Duration::from_millis(unsigned(get(row, "backoff_ms")?)?),
                max_backoff: Duration::from_millis(unsigned(get(row, "max_backoff_ms")?)?),
            },
            reply_to: parsed_if(get::<Option<String>>(row, "reply_to")?.as_deref())?,
        }))
    }

    /// Whether the lease is the present one. That its time may be over does not matter as long
    /// as nobody has taken it back.
    fn holds(&self, token: Token) -> bool {
        self.state == TaskState::Running && self.token == token
    }
}

fn extend(c: &Connection, lease: LeaseRef, micros: i64) -> Result<Outcome, Fault> {
    let Some(task) = Standing::of(c, lease.task)? else { return Ok(Outcome::Unknown) };
    if !task.holds(lease.token) {
        return Ok(Outcome::Stale);
    }
    c.prepare_cached("UPDATE tasks SET lease_until = ?2 WHERE seq = ?1")?
        .execute((task.seq, now().saturating_add(micros)))?;
    Ok(Outcome::Accepted)
}

fn complete(c: &Connection, done: &Completion) -> Result<Outcome, Fault> {
    let LeaseRef { task: task_id, token } = done.lease;
    let Some(task) = Standing::of(c, task_id)? else { return Ok(Outcome::Unknown) };
    if task.state == TaskState::Completed && task.token == token {
        return Ok(Outcome::Accepted);
    }
    if !task.holds(token) {
        return Ok(Outcome::Stale);
    }
    let now = now();
    c.prepare_cached(
        "UPDATE tasks
         SET state = 'completed', result = ?2, finished_at = ?3,
             held_by = NULL, held_instance = NULL, lease_until = NULL
         WHERE seq = ?1",
    )?
    .execute((task.seq, done.result.json(), now))?;
    if let Some(to) = &task.reply_to {
        reply(c, to, COMPLETED, &completed_body(task_id, done.result.json()), now)?;
    }
    Ok(Outcome::Accepted)
}

fn fail(c: &Connection, failure: &Failure) -> Result<Outcome, Fault> {
    let LeaseRef { task: task_id, token } = failure.lease;
    let Some(task) = Standing::of(c, task_id)? else { return Ok(Outcome::Unknown) };
    if task.token == token && task.failed_token == Some(token) {
        return Ok(Outcome::Accepted);
    }
    if !task.holds(token) {
        return Ok(Outcome::Stale);
    }
    let now = now();
    let dead = !failure.retry || task.attempts >= task.max_attempts;
    let wait = if dead { 0 } else { micros(task.retry.delay_after(task.attempts)) };
    let mut statement = c.prepare_cached(
        "UPDATE tasks
         SET state = :state, error = :error, failed_token = token, run_at = :run_at,
             finished_at = :finished_at, held_by = NULL, held_instance = NULL, lease_until = NULL
         WHERE seq = :seq",
    )?;
    statement.execute(named_params! {
        ":state": if dead { "dead" } else { "ready" },
        ":error": failure.error,
        ":run_at": now.saturating_add(wait),
        ":finished_at": dead.then_some(now),
        ":seq": task.seq,
    })?;
    if let (true, Some(to)) = (dead, &task.reply_to) {
        reply(c, to, DEAD, &dead_body(task_id, &failure.error), now)?;
    }
    Ok(Outcome::Accepted)
}

/// Takes back the leases of an agent, or of one or some of its lives.
pub(super) fn return_leases(
    c: &Connection,
    agent: &AgentId,
    whose: LeasesOf,
) -> Result<u64, Fault> {
    let (sql, instance) = match whose {
        LeasesOf::Life(instance) => (
            "SELECT seq FROM tasks
             WHERE state = 'running' AND held_by = ?1 AND held_instance = ?2",
            instance,
        ),
        LeasesOf::EarlierLives(instance) => (
            "SELECT seq FROM tasks
             WHERE state = 'running' AND held_by = ?1 AND held_instance <> ?2",
            instance,
        ),
    };
    held_by(c, sql, agent, instance).and_then(|held| take_back(c, &held, HOLDER_GONE))
}

fn held_by(
    c: &Connection,
    sql: &str,
    agent: &AgentId,
    instance: InstanceId,
) -> Result<Vec<i64>, Fault> {
    let mut statement = c.prepare_cached(sql)?;
    let held = statement
        .query_map(params![agent.as_str(), instance.0.as_bytes()], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    Ok(held)
}

/// Takes running tasks back: ready at once, or dead when tries are used up.
fn take_back(c: &Connection, tasks: &[i64], why: &str) -> Result<u64, Fault> {
    let now = now();
    let mut statement = c.prepare_cached(
        "UPDATE tasks
         SET state = iif(attempts >= max_attempts, 'dead', 'ready'),
             finished_at = iif(attempts >= max_attempts, ?2, NULL),
             run_at = ?2, error = ?3, held_by = NULL, held_instance = NULL, lease_until = NULL
         WHERE seq = ?1
         RETURNING id, state, reply_to",
    )?;
    for seq in tasks {
        let mut rows = statement.query((seq, now, why))?;
        while let Some(row) = rows.next()? {
            let to: Option<AgentId> =
                parsed_if(get::<Option<String>>(row, "reply_to")?.as_deref())?;
            if let ("dead", Some(to)) = (get::<String>(row, "state")?.as_str(), &to) {
                reply(c, to, DEAD, &dead_body(TaskId(id(row, "id")?), why), now)?;
            }
        }
    }
    unsigned(i64::try_from(tasks.len()).unwrap_or(i64::MAX)).map_err(Fault::from)
}

fn list(c: &Connection, query: &TaskQuery) -> Result<Vec<Task>, Fault> {
    // What is not over yet lies far back in a long table, and without statistics SQLite would
    // read all of it. A partial index is usable only where the state is a literal.
    let mut sql = match query.state {
        None => "SELECT * FROM tasks WHERE seq > :after",
        Some(TaskState::Ready) => {
            "SELECT * FROM tasks INDEXED BY tasks_ready WHERE state = 'ready' AND seq > :after"
        }
        Some(TaskState::Running) => {
            "SELECT * FROM tasks INDEXED BY tasks_held WHERE state = 'running' AND seq > :after"
        }
        Some(TaskState::Completed) => {
            "SELECT * FROM tasks WHERE state = 'completed' AND seq > :after"
        }
        Some(TaskState::Dead) => {
            "SELECT * FROM tasks INDEXED BY tasks_dead WHERE state = 'dead' AND seq > :after"
        }
    }
    .to_owned();
    if query.capability.is_some() {
        sql.push_str(" AND capability = :capability");
    } else {
        sql.push_str(" AND :capability IS NULL");
    }
    sql.push_str(" ORDER BY seq LIMIT :limit");
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
        ":limit": query.effective_limit(),
    })?;
    let mut tasks = Vec::new();
    while let Some(row) = rows.next()? {
        tasks.push(read_task(row)?);
    }
    Ok(tasks)
}

fn read_task(row: &Row<'_>) -> Result<Task, Fault> {
    Ok(Task {
        id: TaskId(id(row, "id")?),
        capability: parsed(&get::<String>(row, "capability")?)?,
        state: parsed(&get::<String>(row, "state")?)?,
        payload: payload(get(row, "payload")?)?,
        result: get::<Option<String>>(row, "result")?.map(payload).transpose()?,
        error: get(row, "error")?,
        idempotency_key: get(row, "idempotency_key")?,
        priority: get(row, "priority")?,
        attempts: unsigned(get(row, "attempts")?)?,
        token: Token(get(row, "token")?),
        held_by: parsed_if(get::<Option<String>>(row, "held_by")?.as_deref())?,
        lease_until: time_if(get(row, "lease_until")?)?,
        run_at: time(get(row, "run_at")?)?,
        created_at: time(get(row, "created_at")?)?,
        finished_at: time_if(get(row, "finished_at")?)?,
    })
}

fn count(c: &Connection) -> Result<Vec<(Capability, TaskCounts)>, Fault> {
    let mut counts: BTreeMap<Capability, TaskCounts> = BTreeMap::new();
    let mut add = |sql: &str, put: fn(&mut TaskCounts, u64)| -> Result<(), Fault> {
        let mut statement = c.prepare_cached(sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let capability = parsed(&get::<String>(row, "capability")?)?;
            put(counts.entry(capability).or_default(), unsigned(get(row, "number")?)?);
        }
        Ok(())
    };
    // One query for each state, so that each is answered by its partial index alone.
    add(
        "SELECT capability, count(*) AS number FROM tasks WHERE state = 'ready' GROUP BY 1",
        |counts, number| counts.ready = number,
    )?;
    add(
        "SELECT capability, count(*) AS number FROM tasks WHERE state = 'running' GROUP BY 1",
        |counts, number| counts.running = number,
    )?;
    add(
        "SELECT capability, count(*) AS number FROM tasks WHERE state = 'completed' GROUP BY 1",
        |counts, number| counts.completed = number,
    )?;
    add(
        "SELECT capability, count(*) AS number FROM tasks WHERE state = 'dead' GROUP BY 1",
        |counts, number| counts.dead = number,
    )?;
    Ok(counts.into_iter().collect())
}
