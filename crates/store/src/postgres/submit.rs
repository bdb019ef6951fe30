//! Handing in tasks.

use std::collections::{BTreeMap, HashMap, HashSet};

use resurgam_model::task::{Backoff, NewTask, RetryPolicy, Submitted};
use resurgam_model::{AgentId, TaskId};
use uuid::Uuid;

use super::session::{Param, Session};
use super::{PostgresStore, get};
use crate::column::{due, micros, millis, small};
use crate::{Error, Result, Wake};

/// Separates tags on their way into the database: no tag holds a control character.
const BETWEEN_TAGS: &str = "\u{1f}";

/// Tasks that need nothing but the columns that all tasks have, with one retry policy for all of
/// them: the usual case, and the shorter statement is a good deal faster.
const PLAIN: &str = "INSERT INTO tasks (id, capability, payload, priority, state, created_at,
         run_at, max_attempts, fixed_backoff, backoff_ms, max_backoff_ms, jitter, key)
     SELECT id, capability, payload, priority, 'ready', now(), now(), $5, $6, $7, $8, $9,
         CASE WHEN capability IN (SELECT capability FROM limits WHERE by_key) THEN '' END
     FROM unnest($1::uuid[], $2::text[], $3::text[], $4::smallint[])
         AS t (id, capability, payload, priority)";

/// All that a task can have. Keys are taken in their own order: two calls with the same keys in
/// different orders would otherwise wait for each other.
const FULL: &str = "WITH new AS MATERIALIZED (
         SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::smallint[], $5::text[],
                 $6::int[], $7::boolean[], $8::bigint[], $9::bigint[], $10::smallint[],
                 $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[], $15::text[],
                 $16::text[], $17::text[], $18::uuid[], $19::text[], $20::text[], $21::bigint[])
             WITH ORDINALITY
             AS t (id, capability, payload, priority, idempotency_key, max_attempts, fixed_backoff,
                   backoff_ms, max_backoff_ms, jitter, delay, run_at, timeout_ms, keep_ms, key,
                   tags, reply_to, workflow, step, fallback, fall_ms, n)
     ), taken AS (
         INSERT INTO task_keys (key, task)
         SELECT idempotency_key, id FROM new WHERE idempotency_key IS NOT NULL
         ORDER BY idempotency_key, n
         ON CONFLICT (key) DO NOTHING
         RETURNING task
     ), placed AS (
         SELECT *, coalesce(timestamptz 'epoch' + run_at * interval '1 microsecond',
             now() + delay * interval '1 microsecond') AS due
         FROM new
         WHERE idempotency_key IS NULL OR id IN (SELECT task FROM taken)
     )
     INSERT INTO tasks (id, capability, payload, priority, state, created_at, run_at,
         idempotency_key, max_attempts, fixed_backoff, backoff_ms, max_backoff_ms, jitter,
         timeout_ms, keep_ms, key, tags, reply_to, workflow, step, fallback, fall_ms, fall_at)
     SELECT id, capability, payload, priority,
         CASE WHEN due > now() THEN 'scheduled' ELSE 'ready' END, now(), due, idempotency_key,
         max_attempts, fixed_backoff, backoff_ms, max_backoff_ms, jitter, timeout_ms, keep_ms,
         coalesce(key, CASE WHEN capability IN (SELECT capability FROM limits WHERE by_key)
             THEN '' END),
         string_to_array(tags, E'\\x1f'), reply_to, workflow, step,
         fallback, fall_ms, greatest(due, now()) + fall_ms * interval '1 millisecond'
     FROM placed ORDER BY n
     RETURNING id, state = 'ready' AS ready";

impl PostgresStore {
    /// Hands in tasks as a transaction of its own.
    pub(super) async fn submit_tasks(&self, tasks: &[NewTask]) -> Result<Vec<Submitted>> {
        if tasks.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<_> = tasks.iter().map(|_| TaskId::new()).collect();
        let (created, ready) = if let Some(policy) = plain(tasks) {
            let columns = Columns::of(&ids, tasks);
            self.query("submit tasks", PLAIN, &columns.plain(&Policy::of(policy))).await?;
            (None, tasks.iter().collect())
        } else {
            let columns = Columns::of(&ids, tasks);
            let full = Full::of(tasks);
            let rows = self.query("submit tasks", FULL, &full.params(&columns)).await?;
            let created = created(&rows)?;
            let ready = ids.iter().zip(tasks).filter(|(id, _)| created.get(&id.0) == Some(&true));
            let ready = ready.map(|(_, task)| task).collect();
            (Some(created), ready)
        };
        self.came(u64::try_from(tasks.len()).unwrap_or(u64::MAX));
        self.ring_for(ready);
        let Some(created) = created else {
            return Ok(ids.into_iter().map(|id| Submitted { id, created: true }).collect());
        };
        let known: Vec<_> = ids
            .iter()
            .zip(tasks)
            .filter(|(id, _)| !created.contains_key(&id.0))
            .filter_map(|(_, task)| task.idempotency_key.as_deref())
            .collect();
        let mut earlier = HashMap::new();
        let rows;
        if !known.is_empty() {
            // A statement of its own, because the insertion does not see what it had to wait for.
            let sql = "SELECT key, task FROM task_keys WHERE key = ANY ($1)";
            rows = self.query("submit tasks", sql, &[&known]).await?;
            for row in &rows {
                earlier.insert(get::<&str>(row, "key")?, TaskId(get(row, "task")?));
            }
        }
        let answer = |(id, task): (&TaskId, &NewTask)| {
            if created.contains_key(&id.0) {
                return Ok(Submitted { id: *id, created: true });
            }
            let key = task.idempotency_key.as_deref().unwrap_or_default();
            match earlier.get(key) {
                Some(id) => Ok(Submitted { id: *id, created: false }),
                None => Err(Error::Corrupt("a key is taken, but its task is missing".to_owned())),
            }
        };
        ids.iter().zip(tasks).map(answer).collect()
    }

    /// Hands in tasks within the transaction of a session: those whose key is known already are
    /// passed over. Answers the ids of the new ones; the caller rings for them after its commit.
    pub(super) async fn submit_within(
        session: &mut Session<'_>,
        ids: &[TaskId],
        tasks: &[NewTask],
    ) -> Result<HashSet<TaskId>> {
        if tasks.is_empty() {
            return Ok(HashSet::new());
        }
        let columns = Columns::of(ids, tasks);
        let full = Full::of(tasks);
        let rows = session.query(FULL, &full.params(&columns)).await?;
        Ok(created(&rows)?.into_keys().map(TaskId).collect())
    }

    /// Wakes those who wait for such tasks.
    pub(super) fn ring_for(&self, ready: Vec<&NewTask>) {
        let mut counts = BTreeMap::<_, u64>::new();
        for task in ready {
            *counts.entry(&task.capability).or_default() += 1;
        }
        for (capability, count) in counts {
            self.ring(Wake { capability: capability.clone(), count });
        }
    }
}

fn created(rows: &[tokio_postgres::Row]) -> Result<HashMap<Uuid, bool>> {
    rows.iter().map(|row| Ok((get(row, "id")?, get(row, "ready")?))).collect()
}

/// The one retry policy of tasks that have nothing special.
fn plain(tasks: &[NewTask]) -> Option<RetryPolicy> {
    let policy = tasks.first()?.retry;
    let is_plain = |task: &NewTask| {
        let NewTask {
            capability: _,
            payload: _,
            idempotency_key,
            priority: _,
            delay,
            run_at,
            timeout,
            key,
            tags,
            keep,
            retry,
            fallback,
            reply_to,
            workflow,
        } = task;
        *retry == policy
            && idempotency_key.is_none()
            && delay.is_none_or(|delay| delay.0.is_zero())
            && run_at.is_none()
            && timeout.is_none()
            && key.is_none()
            && tags.is_empty()
            && keep.is_none()
            && fallback.is_none()
            && reply_to.is_none()
            && workflow.is_none()
    };
    tasks.iter().all(is_plain).then_some(policy)
}

/// A retry policy in the types of the columns.
struct Policy {
    max_attempts: i32,
    fixed: bool,
    backoff: i64,
    max_backoff: i64,
    jitter: i16,
}

impl Policy {
    fn of(policy: RetryPolicy) -> Self {
        Self {
            max_attempts: small(policy.max_attempts.max(1)),
            fixed: policy.kind == Backoff::Fixed,
            backoff: millis(policy.backoff),
            max_backoff: millis(policy.max_backoff),
            jitter: i16::from(policy.jitter.min(100)),
        }
    }
}

struct Columns<'t> {
    ids: Vec<Uuid>,
    capabilities: Vec<&'t str>,
    payloads: Vec<&'t str>,
    priorities: Vec<i16>,
}

impl<'t> Columns<'t> {
    fn of(ids: &[TaskId], tasks: &'t [NewTask]) -> Self {
        Self {
            ids: ids.iter().map(|id| id.0).collect(),
            capabilities: tasks.iter().map(|t| t.capability.as_str()).collect(),
            payloads: tasks.iter().map(|t| t.payload.json()).collect(),
            priorities: tasks.iter().map(|t| t.priority).collect(),
        }
    }

    fn plain<'a>(&'a self, policy: &'a Policy) -> [Param<'a>; 9] {
        [
            &self.ids,
            &self.capabilities,
            &self.payloads,
            &self.priorities,
            &policy.max_attempts,
            &policy.fixed,
            &policy.backoff,
            &policy.max_backoff,
            &policy.jitter,
        ]
    }
}

struct Full<'t> {
    keys: Vec<Option<&'t str>>,
    attempts: Vec<i32>,
    fixed: Vec<bool>,
    backoffs: Vec<i64>,
    max_backoffs: Vec<i64>,
    jitters: Vec<i16>,
    delays: Vec<i64>,
    run_at: Vec<Option<i64>>,
    timeouts: Vec<Option<i64>>,
    keeps: Vec<Option<i64>>,
    whom: Vec<Option<&'t str>>,
    tags: Vec<Option<String>>,
    reply_to: Vec<Option<&'t str>>,
    workflows: Vec<Option<Uuid>>,
    steps: Vec<Option<&'t str>>,
    fallbacks: Vec<Option<&'t str>>,
    falls: Vec<Option<i64>>,
}

impl<'t> Full<'t> {
    fn of(tasks: &'t [NewTask]) -> Self {
        let policies: Vec<_> = tasks.iter().map(|t| Policy::of(t.retry)).collect();
        Self {
            keys: tasks.iter().map(|t| t.idempotency_key.as_deref()).collect(),
            attempts: policies.iter().map(|p| p.max_attempts).collect(),
            fixed: policies.iter().map(|p| p.fixed).collect(),
            backoffs: policies.iter().map(|p| p.backoff).collect(),
            max_backoffs: policies.iter().map(|p| p.max_backoff).collect(),
            jitters: policies.iter().map(|p| p.jitter).collect(),
            delays: tasks.iter().map(|t| t.delay.map_or(0, micros)).collect(),
            run_at: tasks.iter().map(|t| t.run_at.map(due)).collect(),
            timeouts: tasks.iter().map(|t| t.timeout.map(millis)).collect(),
            keeps: tasks.iter().map(|t| t.keep.map(millis)).collect(),
            whom: tasks.iter().map(|t| t.key.as_deref()).collect(),
            tags: tasks
                .iter()
                .map(|t| (!t.tags.is_empty()).then(|| t.tags.join(BETWEEN_TAGS)))
                .collect(),
            reply_to: tasks.iter().map(|t| t.reply_to.as_ref().map(AgentId::as_str)).collect(),
            workflows: tasks
                .iter()
                .map(|t| t.workflow.as_ref().map(|step| step.workflow.0))
                .collect(),
            steps: tasks.iter().map(|t| t.workflow.as_ref().map(|s| s.step.as_str())).collect(),
            fallbacks: tasks
                .iter()
                .map(|t| t.fallback.as_ref().map(|fallback| fallback.capability.as_str()))
                .collect(),
            falls: tasks.iter().map(|t| t.fallback.as_ref().map(|f| millis(f.after))).collect(),
        }
    }

    fn params<'a>(&'a self, columns: &'a Columns<'_>) -> [Param<'a>; 21] {
        [
            &columns.ids,
            &columns.capabilities,
            &columns.payloads,
            &columns.priorities,
            &self.keys,
            &self.attempts,
            &self.fixed,
            &self.backoffs,
            &self.max_backoffs,
            &self.jitters,
            &self.delays,
            &self.run_at,
            &self.timeouts,
            &self.keeps,
            &self.whom,
            &self.tags,
            &self.reply_to,
            &self.workflows,
            &self.steps,
            &self.fallbacks,
            &self.falls,
        ]
    }
}
