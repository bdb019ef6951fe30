//! Where a workflow stands, what happens to it, and what follows.

use std::collections::{BTreeMap, BTreeSet};

pub use resurgam_model::workflow::{Fan, StepState, WorkflowState};
use resurgam_model::{Duration, Payload, TaskId, Timestamp, WorkflowId};
use serde::{Deserialize, Serialize};

use crate::definition::TaskTerms;
use crate::{Place, StepId, WorkKey};

/// How a workflow that goes back will end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// As failed.
    Failed,
    /// As cancelled.
    Cancelled,
}

/// Data that may have been left in the store.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Slot {
    /// There is none.
    #[default]
    None,
    /// There is some, but it was not loaded; [`crate::Need`] says when it has to be.
    Stored,
    /// Here it is.
    Loaded(Payload),
}

/// A step or an item as it stands. A step without a row is pending.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// Where it stands.
    pub state: StepState,
    /// In which run of the workflow it was started or undone last.
    pub run: u32,
    /// Its last task, for those who look; whoever hands it in notes it here.
    pub task: Option<TaskId>,
    /// Its sub-workflow. A step that is started again goes on with the same one.
    pub child: Option<WorkflowId>,
    /// What it gave.
    pub output: Slot,
    /// Why it failed.
    pub error: Option<String>,
    /// Of an item: the element of the list.
    pub item: Slot,
    /// Of an item: what its task works on.
    pub input: Slot,
    /// Of a step that fans out: how its items stand.
    pub fan: Option<Fan>,
    /// The how manieth it was completed, of all that can be undone.
    pub order: Option<i64>,
    /// When it has to be looked at again.
    pub wake_at: Option<Timestamp>,
    /// When it was started.
    pub started_at: Option<Timestamp>,
    /// When it came to its end.
    pub finished_at: Option<Timestamp>,
}

/// A signal that nobody has taken yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Signal {
    /// Its number in the store; the smallest came first.
    pub seq: i64,
    /// Its name.
    pub name: String,
    /// What it carries.
    pub payload: Payload,
}

/// A workflow as it stands. All steps with a row are here; of the items only those that an
/// event is about, or that were asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Where it stands.
    pub state: WorkflowState,
    /// How it will end, once it goes back.
    pub ending: Option<Ending>,
    /// Why.
    pub error: Option<String>,
    /// Counts the retries, from 1.
    pub run: u32,
    /// How many completed steps that can be undone there were.
    pub order: i64,
    /// What it was started with.
    pub input: Slot,
    /// What it gave.
    pub output: Slot,
    /// How long it may take, beside what the definition says.
    pub limit: Option<Duration>,
    /// When it must be over.
    pub deadline: Option<Timestamp>,
    /// The compensation that is under way; never more than one.
    pub undoing: Option<Place>,
    /// Whether the start has been taken note of.
    pub started: bool,
    /// Its steps.
    pub steps: BTreeMap<StepId, Row>,
    /// Some of their items.
    pub items: BTreeMap<(StepId, u32), Row>,
    /// For which steps the last completed item is among them, if there is one.
    pub last_completed: BTreeSet<StepId>,
    /// Signals that nobody has taken.
    pub signals: Vec<Signal>,
}

impl State {
    /// A workflow that has not begun.
    #[must_use]
    pub fn new(input: Payload) -> Self {
        Self {
            state: WorkflowState::Running,
            ending: None,
            error: None,
            run: 1,
            order: 0,
            input: Slot::Loaded(input),
            output: Slot::None,
            limit: None,
            deadline: None,
            undoing: None,
            started: false,
            steps: BTreeMap::new(),
            items: BTreeMap::new(),
            last_completed: BTreeSet::new(),
            signals: Vec::new(),
        }
    }

    /// The row of a step or item, if it is here.
    #[must_use]
    pub fn row(&self, place: &Place) -> Option<&Row> {
        match place.item {
            None => self.steps.get(&place.step),
            Some(item) => self.items.get(&(place.step.clone(), item)),
        }
    }

    /// Where a step stands.
    #[must_use]
    pub fn state_of(&self, step: &StepId) -> StepState {
        self.steps.get(step).map_or(StepState::Pending, |row| row.state)
    }
}

/// How a task or a sub-workflow ended.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// Done, with this result.
    Completed(Payload),
    /// Given up, for this reason.
    Failed(String),
    /// Cancelled.
    Cancelled,
}

/// What can happen to a workflow, beside that time passes and that signals lie there.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The task or the sub-workflow of a step came to its end.
    Ended {
        /// Which.
        key: WorkKey,
        /// How.
        end: End,
    },
    /// Somebody wants it cancelled.
    Cancel {
        /// Why, for people.
        reason: String,
    },
    /// Somebody wants a failed or cancelled one to go on.
    Retry,
}

/// What has to be written down, all of it in one transaction.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Transition {
    /// Rows that are new or have changed.
    pub changed: BTreeSet<Place>,
    /// Steps whose row is to be taken away, with all its items.
    pub forgotten: BTreeSet<StepId>,
    /// Steps whose items are to be set back to pending, unless they are completed; those that
    /// were undone also lose their sub-workflow.
    pub reset_items: BTreeSet<StepId>,
    /// Steps whose items are to be set back from compensation-failed to completed.
    pub reset_undos: BTreeSet<StepId>,
    /// Tasks to hand in.
    pub tasks: Vec<Work>,
    /// Sub-workflows to start. Where the row names one already, that one is to go on instead, as
    /// after a retry.
    pub children: Vec<Child>,
    /// Nothing new is to begin: tasks that nobody works on are to be cancelled, those that are
    /// worked on not to be tried again, and sub-workflows to be cancelled. Each of them still
    /// gives its event.
    pub wind_down: bool,
    /// Signals that were taken, and by which step.
    pub taken: Vec<(i64, StepId)>,
    /// When to look again, if nothing happens before. That may be at once.
    pub wake_at: Option<Timestamp>,
    /// True when it came to its end just now, or was asked again how it ended: whoever started
    /// it as a sub-workflow is to be told.
    pub ended: bool,
}

/// A task to hand in.
#[derive(Clone, Debug, PartialEq)]
pub struct Work {
    /// For what. With the workflow's id it makes the idempotency key.
    pub key: WorkKey,
    /// How.
    pub terms: TaskTerms,
    /// On what.
    pub payload: Payload,
    /// The key of its concurrency limit and fair share.
    pub fair_key: Option<String>,
}

/// A sub-workflow to start.
#[derive(Clone, Debug, PartialEq)]
pub struct Child {
    /// For what.
    pub key: WorkKey,
    /// Which.
    pub name: String,
    /// In which version; the latest if none is named.
    pub version: Option<u32>,
    /// With what.
    pub input: Payload,
    /// How long it may take, beside what its own definition says.
    pub timeout: Option<Duration>,
}
