//! The task queue.
//!
//! What is to be changed is first locked in a materialized expression, in order of ids, and the
//! change goes by what that expression found: PostgreSQL gives it the newest committed version of
//! each row, also when another transaction changed it in the meantime.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use async_trait::async_trait;
use resurgam_model::task::{
    Claim, Completion, Failure, Lease, LeaseRef, NewTask, Outcome, Submitted, Task, TaskCounts,
    TaskQuery, TaskState, Token,
};
use resurgam_model::{AgentId, Capability, Duration, TaskId};
use uuid::Uuid;

use super::messages::deliver;
use super::take_back::{RETURN_EARLIER_LIVES, RETURN_EXPIRED, RETURN_LIFE, returned};
use super::task_rows::{self, outcomes, page, read_task, split};
use super::{PostgresStore, get};
use crate::column::{micros, millis, parsed, payload, time, unsigned};
use crate::{Error, LeasesOf, Result, Tasks};

#[async_trait]
impl Tasks for PostgresStore {
    async fn submit(&self, tasks: &[NewTask]) -> Result<Vec<Submitted>> {
        if tasks.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<_> = tasks.iter().map(|_| TaskId::new()).collect();
        let created = self.insert(&ids, tasks).await?;
        let known: Vec<_> = ids
            .iter()
            .zip(tasks)
            .filter(|(id, _)| !created.contains(&id.0))
            .filter_map(|(_, task)| task.idempotency_key.as_deref())
            .collect();
        let mut earlier = HashMap::new();
        let rows;
        if !known.is_empty() {
            // A statement of its own, because the insertion does not see what it had to wait for.
            let sql = "SELECT id, idempotency_key FROM tasks WHERE idempotency_key = ANY ($1)";
            rows = self.query("submit tasks", sql, &[&known]).await?;
            for row in &rows {
                earlier.insert(get::<&str>(row, "idempotency_key")?, TaskId(get(row, "id")?));
            }
        }
        let answer = |(id, task): (&TaskId, &NewTask)| {
            if created.contains(&id.0) {
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

    async fn claim(&self, claim: &Claim) -> Result<Vec<Lease>> {
        // The agent's row is locked against its expiry and against its next life until commit,
        // and so these see the claim. The walk along the index is one for each capability, since
        // one for all would have to sort everything that is ready. Of what several capabilities
        // give, the surplus stays locked until commit, and others pass over it.
        let sql = "WITH me AS MATERIALIZED (
                SELECT id FROM agents
                WHERE id = $1 AND instance = $2 AND state = 'available' FOR SHARE
            ), picked AS MATERIALIZED (
                SELECT t.id FROM unnest($3::text[]) AS c (capability)
                CROSS JOIN LATERAL (
                    SELECT id, priority, seq FROM tasks
                    WHERE state = 'ready' AND capability = c.capability
                        AND run_at <= clock_timestamp()
                        AND EXISTS (SELECT FROM me)
                    ORDER BY priority DESC, seq LIMIT $4 FOR UPDATE SKIP LOCKED
                ) AS t
                ORDER BY t.priority DESC, t.seq LIMIT $4
            ), claimed AS (
                UPDATE tasks AS t SET
                    state = 'running', token = token + 1, attempts = attempts + 1, held_by = $1,
                    held_instance = $2,
                    lease_until = clock_timestamp() + $5::bigint * interval '1 microsecond'
                FROM picked WHERE t.id = picked.id
                RETURNING t.id, t.token, t.capability, t.payload, t.attempts, t.priority, t.seq,
                    (extract(epoch FROM t.lease_until) * 1000000)::bigint AS lease_until
            )
            SELECT EXISTS (SELECT FROM me) AS known, c.*
            FROM (SELECT) AS one LEFT JOIN claimed AS c ON true
            ORDER BY c.priority DESC, c.seq";
        let capabilities: BTreeSet<_> = claim.capabilities.iter().map(Capability::as_str).collect();
        let capabilities: Vec<_> = capabilities.into_iter().collect();
        let (max, lease) = (i64::from(claim.max), micros(claim.lease));
        let rows = self
            .query(
                "claim tasks",
                sql,
                &[&claim.agent.as_str(), &claim.instance.0, &capabilities, &max, &lease],
            )
            .await?;
        let mut leases = Vec::with_capacity(rows.len());
        for row in &rows {
            if !get::<bool>(row, "known")? {
                return Err(self.no_claim(claim).await);
            }
            let Some(task) = get::<Option<Uuid>>(row, "id")? else { continue };
            leases.push(Lease {
                task: TaskId(task),
                token: Token(get(row, "token")?),
                capability: parsed(get(row, "capability")?)?,
                payload: payload(get(row, "payload")?)?,
                attempt: unsigned(get(row, "attempts")?)?,
                until: time(get(row, "lease_until")?)?,
            });
        }
        Ok(leases)
    }

    async fn extend(&self, leases: &[LeaseRef], lease: Duration) -> Result<Vec<Outcome>> {
        let sql = "WITH words AS MATERIALIZED (
                SELECT DISTINCT * FROM unnest($1::uuid[], $2::bigint[]) AS w (id, token)
            ), found AS MATERIALIZED (
                SELECT id, state, token, failed_token FROM tasks
                WHERE id = ANY ($1) ORDER BY id FOR UPDATE
            ), extended AS (
                UPDATE tasks AS t
                SET lease_until = clock_timestamp() + $3::bigint * interval '1 microsecond'
                FROM found AS f JOIN words AS w ON w.id = f.id AND w.token = f.token
                WHERE t.id = f.id AND f.state = 'running'
            )
            SELECT * FROM found";
        let (ids, tokens) = split(leases.iter().copied());
        let rows = self.query("extend leases", sql, &[&ids, &tokens, &micros(lease)]).await?;
        outcomes(leases.iter().copied(), &rows, |_, _| false)
    }

    async fn complete(&self, completions: &[Completion]) -> Result<Vec<Outcome>> {
        // Of two words about the same lease the first counts.
        let sql = concat!(
            "WITH words AS MATERIALIZED (
                SELECT DISTINCT ON (id, token) * FROM unnest($1::uuid[], $2::bigint[], $3::text[])
                    WITH ORDINALITY AS w (id, token, result, n)
                ORDER BY id, token, n
            ), found AS MATERIALIZED (
                SELECT id, state, token, failed_token FROM tasks
                WHERE id = ANY ($1) ORDER BY id FOR UPDATE
            ), done AS (
                UPDATE tasks AS t SET
                    state = 'completed', result = w.result, finished_at = clock_timestamp(),
                    held_by = NULL, held_instance = NULL, lease_until = NULL
                FROM found AS f JOIN words AS w ON w.id = f.id AND w.token = f.token
                WHERE t.id = f.id AND f.state = 'running'
                RETURNING t.id, t.result, t.reply_to, w.n
            ), letters AS (
                SELECT gen_random_uuid() AS id, 'agent-messages' AS topic, reply_to AS recipient,
                    NULL::text AS sender, 'task.completed' AS kind,
                    '{\"task\":\"' || id || '\",\"state\":\"completed\",\"result\":'
                        || result || '}' AS body,
                    n
                FROM done WHERE reply_to IS NOT NULL
            ), ",
            deliver!("letters"),
            " SELECT * FROM found"
        );
        let leases = || completions.iter().map(|done| done.lease);
        let (ids, tokens) = split(leases());
        let results: Vec<_> = completions.iter().map(|done| done.result.json()).collect();
        let rows = self.query("complete tasks", sql, &[&ids, &tokens, &results]).await?;
        outcomes(leases(), &rows, |state, _| state == TaskState::Completed)
    }

    async fn fail(&self, failures: &[Failure]) -> Result<Vec<Outcome>> {
        let sql = concat!(
            "WITH words AS MATERIALIZED (
                SELECT DISTINCT ON (id, token) *
                FROM unnest($1::uuid[], $2::bigint[], $3::text[], $4::boolean[])
                    WITH ORDINALITY AS w (id, token, error, retry, n)
                ORDER BY id, token, n
            ), found AS MATERIALIZED (
                SELECT id, state, token, failed_token, NOT (attempts < max_attempts) AS last
                FROM tasks
                WHERE id = ANY ($1) ORDER BY id FOR UPDATE
            ), ended AS (
                UPDATE tasks AS t SET
                    state = CASE WHEN f.last OR NOT w.retry THEN 'dead' ELSE 'ready' END,
                    finished_at = CASE WHEN f.last OR NOT w.retry THEN clock_timestamp() END,
                    run_at = clock_timestamp() + CASE WHEN f.last OR NOT w.retry
                        THEN interval '0'
                        ELSE least(backoff_ms * power(2, least(attempts - 1, 32)), max_backoff_ms)
                            * interval '1 millisecond' END,
                    error = w.error, failed_token = t.token,
                    held_by = NULL, held_instance = NULL, lease_until = NULL
                FROM found AS f JOIN words AS w ON w.id = f.id AND w.token = f.token
                WHERE t.id = f.id AND f.state = 'running'
                RETURNING t.id, t.state, t.error, t.reply_to, w.n
            ), letters AS (
                SELECT gen_random_uuid() AS id, 'agent-messages' AS topic, reply_to AS recipient,
                    NULL::text AS sender, 'task.dead' AS kind,
                    '{\"task\":\"' || id || '\",\"state\":\"dead\",\"error\":'
                        || to_json(error) || '}' AS body,
                    n
                FROM ended WHERE state = 'dead' AND reply_to IS NOT NULL
            ), ",
            deliver!("letters"),
            " SELECT * FROM found"
        );
        let leases = || failures.iter().map(|failure| failure.lease);
        let (ids, tokens) = split(leases());
        // PostgreSQL's text cannot hold the character NUL, and an error may quote anything.
        let errors: Vec<_> =
            failures.iter().map(|failure| failure.error.replace('\0', "\u{fffd}")).collect();
        let retries: Vec<_> = failures.iter().map(|failure| failure.retry).collect();
        let params = [&ids as _, &tokens as _, &errors as _, &retries as _];
        let rows = self.query("record failed tries", sql, &params).await?;
        outcomes(leases(), &rows, |_, failed_before| failed_before)
    }

    async fn return_expired(&self, limit: u32) -> Result<u64> {
        let rows =
            self.query("take expired leases back", RETURN_EXPIRED, &[&i64::from(limit)]).await?;
        returned(&rows)
    }

    async fn return_leases(&self, agent: &AgentId, whose: LeasesOf) -> Result<u64> {
        let (sql, instance) = match whose {
            LeasesOf::Life(instance) => (RETURN_LIFE, instance),
            LeasesOf::EarlierLives(instance) => (RETURN_EARLIER_LIVES, instance),
        };
        let rows = self.query("take leases back", sql, &[&agent.as_str(), &instance.0]).await?;
        returned(&rows)
    }

    async fn task(&self, id: TaskId) -> Result<Option<Task>> {
        let rows = self.query("read a task", task_rows::ONE, &[&id.0]).await?;
        rows.first().map(read_task).transpose()
    }

    async fn tasks(&self, query: &TaskQuery) -> Result<Vec<Task>> {
        let capability = query.capability.as_ref().map(Capability::as_str);
        let after = query.after.map(|after| after.0);
        let limit = i64::from(query.effective_limit());
        let rows =
            self.query("list tasks", page(query.state), &[&after, &capability, &limit]).await?;
        rows.iter().map(read_task).collect()
    }

    async fn task_counts(&self) -> Result<Vec<(Capability, TaskCounts)>> {
        // One query for each state, so that each is answered by its partial index alone.
        let sql = "SELECT 'ready' AS state, capability, count(*) AS number
                FROM tasks WHERE state = 'ready' GROUP BY capability
            UNION ALL SELECT 'running', capability, count(*)
                FROM tasks WHERE state = 'running' GROUP BY capability
            UNION ALL SELECT 'completed', capability, count(*)
                FROM tasks WHERE state = 'completed' GROUP BY capability
            UNION ALL SELECT 'dead', capability, count(*)
                FROM tasks WHERE state = 'dead' GROUP BY capability";
        let rows = self.query("count tasks", sql, &[]).await?;
        let mut counts: BTreeMap<Capability, TaskCounts> = BTreeMap::new();
        for row in &rows {
            let counts = counts.entry(parsed(get(row, "capability")?)?).or_default();
            let number = unsigned(get(row, "number")?)?;
            match parsed(get(row, "state")?)? {
                TaskState::Ready => counts.ready = number,
                TaskState::Running => counts.running = number,
                TaskState::Completed => counts.completed = number,
                TaskState::Dead => counts.dead = number,
            }
        }
        Ok(counts.into_iter().collect())
    }
}

impl PostgresStore {
    /// Inserts what is not known yet and answers the ids of that.
    async fn insert(&self, ids: &[TaskId], tasks: &[NewTask]) -> Result<HashSet<Uuid>> {
        // The places in the queue are given out in the order of the call, but the rows are
        // inserted in the order of their keys: two calls with the same keys in different orders
        // would otherwise wait for each other.
        let sql = "INSERT INTO tasks (seq, id, capability, state, payload, idempotency_key,
                 priority, max_attempts, backoff_ms, max_backoff_ms, run_at, created_at, reply_to)
             SELECT seq, id, capability, 'ready', payload, idempotency_key, priority, max_attempts,
                 backoff_ms, max_backoff_ms, now() + delay * interval '1 microsecond', now(),
                 reply_to
             FROM (
                 SELECT *, nextval('tasks_seq') AS seq
                 FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::smallint[],
                             $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[], $10::text[])
                     AS t (id, capability, payload, idempotency_key, priority, max_attempts,
                           backoff_ms, max_backoff_ms, delay, reply_to)
             ) AS placed
             ORDER BY idempotency_key NULLS FIRST, seq
             ON CONFLICT (idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
             RETURNING id";
        let ids: Vec<_> = ids.iter().map(|id| id.0).collect();
        let capabilities: Vec<_> = tasks.iter().map(|t| t.capability.as_str()).collect();
        let payloads: Vec<_> = tasks.iter().map(|t| t.payload.json()).collect();
        let keys: Vec<_> = tasks.iter().map(|t| t.idempotency_key.as_deref()).collect();
        let priorities: Vec<_> = tasks.iter().map(|t| t.priority).collect();
        let attempts: Vec<_> =
            tasks.iter().map(|t| i64::from(t.retry.max_attempts.max(1))).collect();
        let backoffs: Vec<_> = tasks.iter().map(|t| millis(t.retry.backoff)).collect();
        let max_backoffs: Vec<_> = tasks.iter().map(|t| millis(t.retry.max_backoff)).collect();
        let delays: Vec<_> = tasks.iter().map(|t| t.delay.map_or(0, micros)).collect();
        let reply_to: Vec<_> =
            tasks.iter().map(|t| t.reply_to.as_ref().map(AgentId::as_str)).collect();
        let params = [
            &ids as _,
            &capabilities as _,
            &payloads as _,
            &keys as _,
            &priorities as _,
            &attempts as _,
            &backoffs as _,
            &max_backoffs as _,
            &delays as _,
            &reply_to as _,
        ];
        let rows = self.query("submit tasks", sql, &params).await?;
        rows.iter().map(|row| get(row, "id")).collect()
    }
}
