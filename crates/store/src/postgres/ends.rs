//! Words about leases: extended, completed, failed.
//!
//! A word that changes nothing is looked at again, in a statement of its own: most words change
//! something, and the one that does is fast.
//!
//! That a task is running is asked in a way that leads to no index: with statistics from when
//! the queue was empty, reading all that runs for each word would look cheaper than to look each
//! one up by its id.

use std::collections::{HashMap, HashSet};

use resurgam_model::task::{Completion, Failure, LeaseRef, Outcome, TaskState};
use resurgam_model::{Duration, WorkflowId};
use tokio_postgres::Row;
use uuid::Uuid;

use super::finish::{end_tries, finish, policy_wait};
use super::{PostgresStore, get};
use crate::column::{micros, parsed};
use crate::{Result, Wake};

pub(super) const EXTEND: &str = "WITH words AS MATERIALIZED (
        SELECT DISTINCT * FROM unnest($1::uuid[], $2::bigint[]) AS w (id, token)
    ), found AS MATERIALIZED (
        SELECT t.id FROM tasks AS t JOIN words AS w ON w.id = t.id AND w.token = t.token
        WHERE coalesce(t.state = 'running', false) ORDER BY t.id FOR UPDATE OF t
    )
    UPDATE tasks AS t SET lease_until =
        least(clock_timestamp() + $3::bigint * interval '1 microsecond', timeout_at)
    FROM found AS f
    WHERE t.id = f.id AND (timeout_at IS NULL OR timeout_at > clock_timestamp())
    RETURNING t.id, t.token";

/// `note` is in no index, and there is no other column to change.
pub(super) const NOTE: &str = "WITH words AS MATERIALIZED (
        SELECT DISTINCT * FROM unnest($1::uuid[], $2::bigint[]) AS w (id, token)
    ), found AS MATERIALIZED (
        SELECT t.id FROM tasks AS t JOIN words AS w ON w.id = t.id AND w.token = t.token
        WHERE coalesce(t.state = 'running', false) ORDER BY t.id FOR UPDATE OF t
    )
    UPDATE tasks AS t SET note = $3 FROM found AS f WHERE t.id = f.id RETURNING t.id, t.token";

/// Of two words about the same lease the first counts.
pub(super) const COMPLETE: &str = concat!(
    "WITH words AS MATERIALIZED (
        SELECT DISTINCT ON (id, token) * FROM unnest($1::uuid[], $2::bigint[], $3::text[])
            WITH ORDINALITY AS w (id, token, result, n)
        ORDER BY id, token, n
    ), over AS (
        DELETE FROM tasks AS t USING words AS w
        WHERE t.id = w.id AND t.token = w.token AND coalesce(t.state = 'running', false)
        RETURNING t.*, 'completed' AS end_state, w.result AS end_result, t.error AS end_error,
            t.failed_token AS end_failed, w.n
    ), ",
    finish!("over"),
    " SELECT count(*) AS number,
         coalesce(array_agg(capability) FILTER (WHERE limited), '{}') AS limited,
         coalesce(array_agg(workflow) FILTER (WHERE workflow IS NOT NULL), '{}') AS workflows,
         CASE WHEN EXISTS (SELECT FROM agent_failures)
             THEN ARRAY (SELECT DISTINCT held_by FROM over WHERE held_by IS NOT NULL)
             ELSE '{}' END AS holders
      FROM over"
);

pub(super) const FAIL: &str = concat!(
    "WITH words AS MATERIALIZED (
        SELECT DISTINCT ON (id, token) *
        FROM unnest($1::uuid[], $2::bigint[], $3::text[], $4::boolean[])
            WITH ORDINALITY AS w (id, token, error, retry, n)
        ORDER BY id, token, n
    ), ended AS MATERIALIZED (
        SELECT t.id, t.limited, t.held_by AS holder, t.held_instance AS life, w.error, w.n,
            true AS failed,
            NOT w.retry OR attempts >= max_attempts AS last,
            ",
    policy_wait!(),
    " AS wait_ms
        FROM tasks AS t JOIN words AS w ON w.id = t.id AND w.token = t.token
        WHERE coalesce(t.state = 'running', false) ORDER BY t.id FOR UPDATE OF t
    ), ",
    end_tries!("ended"),
    " SELECT id, token, capability, state = 'ready' OR coalesce(limited, false) AS ready,
          NULL::uuid AS workflow, holder, life FROM again
      UNION ALL SELECT id, token, capability, coalesce(limited, false), workflow, holder, life
      FROM over"
);

pub(super) const STANDING: &str =
    "SELECT id, token, failed_token, state FROM tasks WHERE id = ANY ($1)
    UNION ALL SELECT id, token, failed_token, state FROM tasks_done WHERE id = ANY ($1)";

impl PostgresStore {
    pub(super) async fn extend_leases(
        &self,
        leases: &[LeaseRef],
        lease: Duration,
    ) -> Result<Vec<Outcome>> {
        let (ids, tokens) = split(leases.iter().copied());
        let rows = self.query("extend leases", EXTEND, &[&ids, &tokens, &micros(lease)]).await?;
        self.outcomes(leases.to_vec(), &rows, |_, _| false).await
    }

    pub(super) async fn note_progress(
        &self,
        leases: &[LeaseRef],
        note: &str,
    ) -> Result<Vec<Outcome>> {
        let (ids, tokens) = split(leases.iter().copied());
        let note = note.replace('\0', "\u{fffd}");
        let rows = self.query("note progress", NOTE, &[&ids, &tokens, &note]).await?;
        self.outcomes(leases.to_vec(), &rows, |_, _| false).await
    }

    pub(super) async fn complete_tasks(&self, completions: &[Completion]) -> Result<Vec<Outcome>> {
        let leases: Vec<_> = completions.iter().map(|done| done.lease).collect();
        let (ids, tokens) = split(leases.iter().copied());
        let results: Vec<_> = completions.iter().map(|done| done.result.json()).collect();
        let rows = self.query("complete tasks", COMPLETE, &[&ids, &tokens, &results]).await?;
        let mut completed = 0;
        let mut holders: Vec<String> = Vec::new();
        for row in &rows {
            holders.extend(get::<Vec<String>>(row, "holders")?);
            completed += get::<i64>(row, "number")?;
            // Another one of a limited kind may begin now.
            for capability in get::<Vec<&str>>(row, "limited")? {
                self.ring(Wake { capability: parsed(capability)?, count: 1 });
            }
            let workflows: Vec<Uuid> = get(row, "workflows")?;
            self.moved.add(workflows.into_iter().map(WorkflowId));
        }
        self.tries_succeeded(&holders).await;
        self.ended(u64::try_from(completed).unwrap_or_default());
        if usize::try_from(completed).is_ok_and(|completed| completed == leases.len()) {
            return Ok(vec![Outcome::Accepted; leases.len()]);
        }
        // Those that were completed just now are found completed like those from before.
        self.outcomes(leases, &[], |state, _| state == TaskState::Completed).await
    }

    pub(super) async fn fail_tasks(&self, failures: &[Failure]) -> Result<Vec<Outcome>> {
        let leases: Vec<_> = failures.iter().map(|failure| failure.lease).collect();
        let (ids, tokens) = split(leases.iter().copied());
        // PostgreSQL's text cannot hold the character NUL, and an error may quote anything.
        let errors: Vec<_> =
            failures.iter().map(|failure| failure.error.replace('\0', "\u{fffd}")).collect();
        let retries: Vec<_> = failures.iter().map(|failure| failure.retry).collect();
        let params = [&ids as _, &tokens as _, &errors as _, &retries as _];
        let rows = self.query("record failed tries", FAIL, &params).await?;
        self.note_workflows(&rows)?;
        let for_good: HashSet<_> = failures
            .iter()
            .filter(|f| !f.retry)
            .map(|f| (f.lease.task.0, f.lease.token.0))
            .collect();
        let mut tries: Vec<(String, Uuid, Uuid)> = Vec::new();
        for row in &rows {
            let task: Uuid = get(row, "id")?;
            if let (Some(holder), Some(life)) = (get(row, "holder")?, get(row, "life")?)
                && !for_good.contains(&(task, get(row, "token")?))
            {
                tries.push((holder, life, task));
            }
            // It, or another one of a limited kind, may begin now.
            if get(row, "ready")? {
                self.ring(Wake { capability: parsed(get(row, "capability")?)?, count: 1 });
            }
        }
        self.tries_failed(&tries).await;
        self.outcomes(leases, &rows, |_, failed_before| failed_before).await
    }

    /// Workflows whose tasks came to their end are advanced at once by whoever listens here.
    pub(super) fn note_workflows(&self, ended: &[Row]) -> Result<()> {
        let mut moved = Vec::new();
        for row in ended {
            moved.extend(get::<Option<Uuid>>(row, "workflow")?.map(WorkflowId));
        }
        self.moved.add(moved);
        Ok(())
    }

    /// What became of each word. `changed` has the leases that were changed. `said_before` tells
    /// whether a task under the same token was brought where it is by the same word.
    async fn outcomes(
        &self,
        leases: Vec<LeaseRef>,
        changed: &[Row],
        said_before: fn(TaskState, bool) -> bool,
    ) -> Result<Vec<Outcome>> {
        let mut accepted = HashSet::with_capacity(changed.len());
        for row in changed {
            accepted.insert((get::<Uuid>(row, "id")?, get::<i64>(row, "token")?));
        }
        let is_accepted = |lease: &LeaseRef| accepted.contains(&(lease.task.0, lease.token.0));
        let rest: Vec<_> = leases.iter().filter(|l| !is_accepted(l)).map(|l| l.task.0).collect();
        let mut standing = HashMap::with_capacity(rest.len());
        if !rest.is_empty() {
            for row in &self.query("look at words that came late", STANDING, &[&rest]).await? {
                let state: TaskState = parsed(get(row, "state")?)?;
                let token: i64 = get(row, "token")?;
                let failed: Option<i64> = get(row, "failed_token")?;
                let said = said_before(state, failed == Some(token));
                standing.insert(get::<Uuid>(row, "id")?, (token, said));
            }
        }
        let outcome = |lease: &LeaseRef| match standing.get(&lease.task.0) {
            _ if is_accepted(lease) => Outcome::Accepted,
            None if accepted.iter().any(|(id, _)| *id == lease.task.0) => Outcome::Stale,
            None => Outcome::Unknown,
            Some(&(token, true)) if token == lease.token.0 => Outcome::Accepted,
            Some(_) => Outcome::Stale,
        };
        Ok(leases.iter().map(outcome).collect())
    }
}

/// The columns of a list of leases.
fn split(leases: impl Iterator<Item = LeaseRef>) -> (Vec<Uuid>, Vec<i64>) {
    leases.map(|lease| (lease.task.0, lease.token.0)).unzip()
}
