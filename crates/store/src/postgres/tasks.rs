//! The task queue.
//!
//! Tasks that are not over are in `tasks`, the others in `tasks_done`. What is to be changed is
//! locked in a materialized expression in order of ids, or changed in that order, and the change
//! goes by what was found under the lock: PostgreSQL gives it the newest committed version of each
//! row, also when another transaction changed it in the meantime.

use async_trait::async_trait;
use resurgam_model::task::{
    Change, Claim, Completion, Failure, Lease, LeaseRef, NewTask, Outcome, Submitted, Task,
    TaskCounts, TaskQuery,
};
use resurgam_model::{AgentId, Capability, Duration, TaskId};

use super::PostgresStore;
use super::take_back::{RETURN_EARLIER_LIVES, RETURN_EXPIRED, RETURN_LIFE};
use crate::{Counted, LeasesOf, Promoted, Result, Tasks};

#[async_trait]
impl Tasks for PostgresStore {
    async fn submit(&self, tasks: &[NewTask]) -> Result<Vec<Submitted>> {
        let submitted = self.submit_tasks(tasks).await?;
        self.meters.tasks("submitted", submitted.iter().filter(|task| task.created).count());
        Ok(submitted)
    }

    async fn claim(&self, claim: &Claim) -> Result<Vec<Lease>> {
        let leases = self.claim_tasks(claim).await?;
        self.meters.tasks("claimed", leases.len());
        Ok(leases)
    }

    async fn extend(&self, leases: &[LeaseRef], lease: Duration) -> Result<Vec<Outcome>> {
        self.extend_leases(leases, lease).await
    }

    async fn complete(&self, completions: &[Completion]) -> Result<Vec<Outcome>> {
        let outcomes = self.complete_tasks(completions).await?;
        self.meters.words("completed", &outcomes);
        Ok(outcomes)
    }

    async fn fail(&self, failures: &[Failure]) -> Result<Vec<Outcome>> {
        let outcomes = self.fail_tasks(failures).await?;
        self.meters.words("failed", &outcomes);
        Ok(outcomes)
    }

    async fn note(&self, leases: &[LeaseRef], note: &str) -> Result<Vec<Outcome>> {
        self.note_progress(leases, note).await
    }

    async fn return_expired(&self, limit: u32) -> Result<u64> {
        let rows =
            self.query("take expired leases back", RETURN_EXPIRED, &[&i64::from(limit)]).await?;
        self.returned(&rows)
    }

    async fn return_leases(&self, agent: &AgentId, whose: LeasesOf) -> Result<u64> {
        let (sql, instance) = match whose {
            LeasesOf::Life(instance) => (RETURN_LIFE, instance),
            LeasesOf::EarlierLives(instance) => (RETURN_EARLIER_LIVES, instance),
        };
        let rows = self.query("take leases back", sql, &[&agent.as_str(), &instance.0]).await?;
        self.returned(&rows)
    }

    async fn promote(&self, limit: u32) -> Result<Promoted> {
        self.promote_tasks(limit).await
    }

    async fn cancel(&self, tasks: &[TaskId], reason: &str) -> Result<Vec<Change>> {
        self.cancel_tasks(tasks, reason).await
    }

    async fn requeue(&self, tasks: &[TaskId]) -> Result<Vec<Change>> {
        self.requeue_tasks(tasks).await
    }

    async fn purge(&self, limit: u32) -> Result<u64> {
        self.purge_tasks(limit).await
    }

    async fn task(&self, id: TaskId) -> Result<Option<Task>> {
        self.read_task(id).await
    }

    async fn tasks(&self, query: &TaskQuery) -> Result<Vec<Task>> {
        self.list_tasks(query).await
    }

    async fn task_counts(&self, counted: Counted) -> Result<Vec<(Capability, TaskCounts)>> {
        self.count_tasks(counted).await
    }
}
