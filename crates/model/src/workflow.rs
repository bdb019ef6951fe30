//! Workflows as callers see them. What they are made of and how they go on is in the crate
//! `workflow`.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::{Key, Moment};
use crate::{Payload, TaskId, WorkflowId};

/// Where a workflow stands.
///
/// ```text
/// running ◀──▶ waiting ────────────────▶ completed
///    └────┬──────┘
///         ▼ failure, time-out, cancel
///    compensating ──▶ failed, cancelled ──retry──▶ running
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WorkflowState {
    /// Some step is being worked on.
    Running,
    /// It only waits: for signals, approvals or timers.
    Waiting,
    /// It goes back: what runs comes to its end, then what was completed is undone.
    Compensating,
    /// Done.
    Completed,
    /// It failed, and all that could be undone was.
    Failed,
    /// It was cancelled, and all that could be undone was.
    Cancelled,
}

/// Where a step or an item stands.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum StepState {
    /// Its turn has not come.
    #[default]
    Pending,
    /// Its task or its sub-workflow is under way.
    Running,
    /// It waits for a signal, an approval or a timer.
    Waiting,
    /// Done. It never runs again unless it is undone first.
    Completed,
    /// It failed.
    Failed,
    /// Its condition was false, or all that it needs was skipped.
    Skipped,
    /// The workflow ended before it.
    Cancelled,
    /// It is being undone.
    Compensating,
    /// It was undone.
    Compensated,
    /// Undoing it failed.
    CompensationFailed,
}

macro_rules! names {
    ($type:ident, $what:literal, $($variant:ident $name:literal),+) => {
        impl $type {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The name in the database and in JSON.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::ALL.iter().copied().find(|state| state.as_str() == text).ok_or_else(|| {
                    let all: Vec<_> = Self::ALL.iter().map(|state| state.as_str()).collect();
                    format!(concat!("there is no ", $what, " {:?}; use one of {}"), text,
                        all.join(", "))
                })
            }
        }
    };
}

names!(
    WorkflowState, "workflow state", Running "running", Waiting "waiting",
    Compensating "compensating", Completed "completed", Failed "failed", Cancelled "cancelled"
);
names!(
    StepState, "step state", Pending "pending", Running "running", Waiting "waiting",
    Completed "completed", Failed "failed", Skipped "skipped", Cancelled "cancelled",
    Compensating "compensating", Compensated "compensated",
    CompensationFailed "compensation-failed"
);

impl WorkflowState {
    /// Nothing changes it any more but a retry.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

/// How many items of a step stand where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Fan {
    /// All of them.
    pub total: u32,
    /// Those whose turn has not come.
    pub pending: u32,
    /// Those that are worked on.
    pub running: u32,
    /// Those that are done, and not undone.
    pub completed: u32,
    /// Those that failed.
    pub failed: u32,
    /// Those that ended with the workflow.
    pub cancelled: u32,
    /// Those that were undone.
    pub undone: u32,
    /// Those whose undoing failed.
    pub undo_failed: u32,
}

/// How a workflow is started: by the name of a definition, or with the definition itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StartWorkflow {
    /// The name of a registered definition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Key>")]
    pub name: Option<String>,
    /// Its version; the latest if none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// A definition of its own, instead of a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definition: Option<serde_json::Value>,
    /// What it works on.
    #[serde(default)]
    pub input: Payload,
    /// Starting with the same key again gives the first workflow back. Keys are kept as long as
    /// their workflows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Key>")]
    pub idempotency_key: Option<String>,
}

/// The answer to starting a workflow: it is durable now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StartedWorkflow {
    /// The workflow.
    pub id: WorkflowId,
    /// False when the idempotency key was known: `id` is then the earlier workflow.
    pub created: bool,
}

/// A workflow as it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Workflow {
    /// Its id.
    pub id: WorkflowId,
    /// The name of its definition.
    pub name: String,
    /// The version of its definition.
    pub version: u32,
    /// Where it stands.
    pub state: WorkflowState,
    /// Why it failed or was cancelled.
    pub error: Option<String>,
    /// 1, and one more with each retry.
    pub run: u32,
    /// Grows with each change.
    pub revision: i64,
    /// The step that started it, if it is a sub-workflow.
    pub parent: Option<ParentStep>,
    /// Its key, if it was given one.
    pub idempotency_key: Option<String>,
    /// When it was started.
    #[schemars(with = "Moment")]
    pub created_at: Timestamp,
    /// When it must be over.
    #[schemars(with = "Option<Moment>")]
    pub deadline: Option<Timestamp>,
    /// When it came to its end.
    #[schemars(with = "Option<Moment>")]
    pub finished_at: Option<Timestamp>,
    /// When it is forgotten.
    #[schemars(with = "Option<Moment>")]
    pub expires_at: Option<Timestamp>,
}

/// The step that started a sub-workflow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ParentStep {
    /// Its workflow.
    pub workflow: WorkflowId,
    /// The step, and which item of it: `draft`, `draft[17]`.
    pub step: String,
}

/// A workflow with all that belongs to it but the items of its steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkflowDetail {
    /// The workflow.
    #[serde(flatten)]
    pub workflow: Workflow,
    /// What it was started with.
    pub input: Payload,
    /// What it gave.
    pub output: Option<Payload>,
    /// Its definition.
    pub definition: Payload,
    /// Its steps that have begun or are over. All others are pending.
    pub steps: Vec<WorkflowStepView>,
}

/// A step, or one item of it, as it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkflowStepView {
    /// Its name.
    pub step: String,
    /// Which item.
    pub item: Option<u32>,
    /// Where it stands.
    pub state: StepState,
    /// In which run of the workflow it was started last.
    pub run: u32,
    /// How its items stand, if it fans out.
    pub items: Option<Fan>,
    /// Its last task.
    pub task: Option<TaskId>,
    /// Its sub-workflow.
    pub workflow: Option<WorkflowId>,
    /// Why it failed.
    pub error: Option<String>,
    /// What it gave; left out of the workflow's detail if it is large.
    pub output: Option<Payload>,
    /// How many bytes that has.
    pub output_bytes: Option<u64>,
    /// When it has to be looked at again: the end of a timer or of a wait.
    #[schemars(with = "Option<Moment>")]
    pub wake_at: Option<Timestamp>,
    /// When it was started.
    #[schemars(with = "Option<Moment>")]
    pub started_at: Option<Timestamp>,
    /// When it came to its end.
    #[schemars(with = "Option<Moment>")]
    pub finished_at: Option<Timestamp>,
}

/// Which workflows to list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct WorkflowQuery {
    /// Only those that stand there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<WorkflowState>,
    /// Only those of definitions of this name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Key>")]
    pub name: Option<String>,
    /// Only those that were started after this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<WorkflowId>,
    /// At most so many; 0 stands for 100, and 1000 is the most.
    #[serde(skip_serializing_if = "is_zero")]
    pub limit: u32,
}

/// Which items of a step to list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ItemQuery {
    /// Only those after this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<u32>,
    /// At most so many; 0 stands for 100, and 1000 is the most.
    #[serde(skip_serializing_if = "is_zero")]
    pub limit: u32,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// The limit that applies to a page.
#[must_use]
pub fn page_limit(limit: u32) -> u32 {
    if limit == 0 { 100 } else { limit.min(1000) }
}

/// Something that a workflow is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewSignal {
    /// The name for which it waits; for an approval the name of the step.
    #[schemars(with = "Key")]
    pub name: String,
    /// What it carries. For an approval `approved`, and perhaps `by` and `comment`.
    #[serde(default)]
    pub payload: Payload,
    /// The same id again changes nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Key>")]
    pub id: Option<String>,
}

/// A definition that is registered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DefinitionInfo {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: u32,
    /// When it was registered.
    #[schemars(with = "Moment")]
    pub created_at: Timestamp,
    /// The definition itself; not in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definition: Option<Payload>,
}
