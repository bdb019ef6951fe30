//! Workflows: the part of the seam that keeps them, and what both adapters do alike.
//!
//! # How a workflow goes on
//! Whatever happens to a workflow is first written down: that a task of it is over, in the
//! transaction that ends the task; that a sub-workflow is over; that somebody wants it cancelled
//! or tried again; a signal. [`Workflows::advance_workflow`] takes the workflow's lock, reads
//! what was written down and asks [`resurgam_workflow::advance`] what follows. The new state,
//! new tasks and new sub-workflows, and that the events have been taken note of, are one
//! transaction. So it does not matter who advances a workflow, nor how often, nor where that
//! process dies.

pub(crate) mod checkpoint;
pub(crate) mod instance;
pub(crate) mod plan;
pub(crate) mod rows;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use resurgam_model::workflow::{
    DefinitionInfo, ItemQuery, NewSignal, StartedWorkflow, Workflow, WorkflowDetail, WorkflowQuery,
    WorkflowStepView,
};
use resurgam_model::{Duration, Payload, Timestamp, WorkflowId};
use resurgam_workflow::Definition;
use tokio::sync::Notify;

pub use checkpoint::{Checkpoint, Restored};

use crate::Result;

/// How long a finished workflow is kept unless its definition says otherwise.
pub const DEFAULT_KEEP: Duration = Duration::from_secs(30 * 24 * 3600);

/// Workflows that call one another may do so to this depth.
pub const MAX_DEPTH: u32 = 16;

/// So many events are taken note of in one transaction.
pub(crate) const MAX_EVENTS: u32 = 500;

/// Outputs of up to so many bytes are loaded with their steps.
pub(crate) const SMALL: i32 = 4096;

/// Outputs of up to so many bytes are shown with their workflow.
pub(crate) const SHOWN: u32 = 64 * 1024;

/// Workflows and their definitions.
#[async_trait]
pub trait Workflows: Send + Sync + 'static {
    /// Registers a definition. Name and version together are taken once and for all.
    async fn define(&self, definition: &Definition) -> Result<Defined>;

    /// A registered definition; the latest version if none is named.
    async fn definition(&self, name: &str, version: Option<u32>) -> Result<Option<DefinitionInfo>>;

    /// The registered definitions, all versions, in the order of their names; those after the
    /// name and version given, at most `limit`.
    async fn definitions(
        &self,
        after: Option<(&str, u32)>,
        limit: u32,
    ) -> Result<Vec<DefinitionInfo>>;

    /// Starts a workflow. `input` must have been checked against the definition.
    async fn start_workflow(&self, start: &NewWorkflow) -> Result<StartedWorkflow>;

    /// One workflow with its steps.
    async fn workflow(&self, id: WorkflowId) -> Result<Option<WorkflowDetail>>;

    /// A step with all of its output, if it has begun, and a page of its items.
    async fn workflow_step(
        &self,
        id: WorkflowId,
        step: &str,
        items: &ItemQuery,
    ) -> Result<Vec<WorkflowStepView>>;

    /// Workflows in the order in which they were started.
    async fn workflows(&self, query: &WorkflowQuery) -> Result<Vec<Workflow>>;

    /// Leaves a signal for a workflow. It stays until a step takes it or the workflow is
    /// forgotten.
    async fn signal_workflow(&self, id: WorkflowId, signal: &NewSignal) -> Result<Told>;

    /// Asks that a workflow be cancelled.
    async fn cancel_workflow(&self, id: WorkflowId, reason: &str) -> Result<Told>;

    /// Asks that a failed or cancelled workflow go on.
    async fn retry_workflow(&self, id: WorkflowId) -> Result<Told>;

    /// Takes note of what happened to a workflow and does what follows. When another process is
    /// at it, waits for it with `wait`, and otherwise leaves it to it.
    async fn advance_workflow(&self, id: WorkflowId, wait: bool) -> Result<Advanced>;

    /// Workflows to which something happened, or for which it is time, that nobody has taken
    /// note of.
    async fn due_workflows(&self, limit: u32) -> Result<Vec<WorkflowId>>;

    /// Forgets up to `limit` finished workflows whose time to be kept is over, with their
    /// sub-workflows. Answers how many.
    async fn expire_workflows(&self, limit: u32) -> Result<u64>;

    /// Workflows that have changed at or after a moment, by that moment, after the one given.
    async fn changed_workflows(
        &self,
        since: Timestamp,
        after: Option<(Timestamp, WorkflowId)>,
        limit: u32,
    ) -> Result<Vec<ChangedWorkflow>>;

    /// Which of these are still there.
    async fn known_workflows(&self, ids: &[WorkflowId]) -> Result<BTreeSet<WorkflowId>>;

    /// All of one workflow, as it stands at one moment.
    async fn checkpoint(&self, id: WorkflowId) -> Result<Option<Checkpoint>>;

    /// Brings a workflow back as it stood, with the tasks that were under way. A workflow that
    /// is there is left as it is.
    async fn restore(&self, checkpoint: &Checkpoint) -> Result<Restored>;

    /// To be called for each restored workflow once all are back: tells it of sub-workflows that
    /// ended after its checkpoint was taken, or that did not come back.
    async fn reconnect(&self, id: WorkflowId) -> Result<()>;
}

/// What became of a definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defined {
    /// It is registered now.
    Created,
    /// The very same was registered before.
    Same,
    /// Another one was registered under its name and version.
    Taken,
}

/// What became of a word to a workflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It is written down.
    Accepted,
    /// The workflow is over (or, for a retry, it is not): nothing was written.
    Refused,
    /// There is no such workflow.
    Unknown,
}

/// A workflow to start.
#[derive(Clone, Debug)]
pub struct NewWorkflow {
    /// What it is made of.
    pub definition: Arc<Definition>,
    /// What it works on.
    pub input: Payload,
    /// Starting with the same key again gives the first workflow back.
    pub idempotency_key: Option<String>,
}

/// What [`Workflows::advance_workflow`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advanced {
    /// What could be done was done; the next look is due when something happens.
    Done,
    /// There is more to do at once.
    More,
    /// Another process is at it.
    Busy,
    /// There is no such workflow; what was written down for it was thrown away.
    Unknown,
}

/// A workflow that has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangedWorkflow {
    /// Its id.
    pub id: WorkflowId,
    /// How many changes it has seen.
    pub revision: i64,
    /// When the last one was.
    pub changed_at: Timestamp,
}

/// Ids of workflows to which something happened, and somebody who waits for them.
#[derive(Debug, Default)]
pub struct Moved {
    ids: Mutex<BTreeSet<WorkflowId>>,
    rung: Notify,
}

/// More than so many are left to the sweep.
const MAX_MOVED: usize = 100_000;

impl Moved {
    /// Something happened to these.
    pub(crate) fn add(&self, ids: impl IntoIterator<Item = WorkflowId>) {
        let mut all = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        let before = all.len();
        all.extend(ids);
        while all.len() > MAX_MOVED {
            all.pop_last();
        }
        if all.len() > before {
            drop(all);
            self.rung.notify_one();
        }
    }

    /// Waits until there are some, and takes them.
    pub async fn take(&self) -> Vec<WorkflowId> {
        loop {
            let rung = self.rung.notified();
            let taken =
                std::mem::take(&mut *self.ids.lock().unwrap_or_else(PoisonError::into_inner));
            if !taken.is_empty() {
                return taken.into_iter().collect();
            }
            rung.await;
        }
    }
}

/// Definitions that were read before, by the digest of their text.
#[derive(Debug, Default)]
pub(crate) struct Definitions(Mutex<HashMap<String, Arc<Definition>>>);

/// A definition that was looked for by its name, with its digest.
pub(crate) type Named = Option<(Arc<Definition>, String)>;

/// More are not remembered.
const MAX_REMEMBERED: usize = 1000;

impl Definitions {
    pub(crate) fn get(&self, digest: &str) -> Option<Arc<Definition>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(digest).cloned()
    }

    /// Reads one and remembers it.
    pub(crate) fn read(&self, digest: &str, json: &str) -> Result<Arc<Definition>> {
        let definition = Definition::from_text(json)
            .map_err(|error| crate::Error::Corrupt(format!("a workflow's definition: {error}")))?;
        let definition = Arc::new(definition);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_REMEMBERED {
            known.clear();
        }
        known.insert(digest.to_owned(), Arc::clone(&definition));
        Ok(definition)
    }
}
