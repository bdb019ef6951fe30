//! A workflow as a document: what exports write and imports read.

use resurgam_model::task::{NewTask, Task};
use resurgam_model::workflow::WorkflowState;
use resurgam_model::{Payload, WorkflowId};
use serde::{Deserialize, Serialize};

use super::instance::{Head, Word};

/// The form of the document.
pub(crate) const FORMAT: u32 = 1;

/// All of one workflow: its definition, its state, its steps and items, signals, what it was told
/// and has not taken note of, and the tasks that are under way.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    pub(crate) format: u32,
    /// The workflow.
    pub id: WorkflowId,
    /// How many changes it had seen.
    pub revision: i64,
    /// Where it stood.
    pub state: WorkflowState,
    pub(crate) root: WorkflowId,
    pub(crate) name: String,
    pub(crate) version: i64,
    /// Whether the definition is registered under its name and version.
    pub(crate) registered: bool,
    pub(crate) definition: Payload,
    pub(crate) idempotency_key: Option<String>,
    pub(crate) head: Head,
    pub(crate) input: Payload,
    pub(crate) output: Option<Payload>,
    pub(crate) created_at: i64,
    pub(crate) changed_at: i64,
    pub(crate) finished_at: Option<i64>,
    pub(crate) expires_at: Option<i64>,
    pub(crate) steps: Vec<SavedStep>,
    pub(crate) signals: Vec<SavedSignal>,
    pub(crate) words: Vec<Word>,
    pub(crate) tasks: Vec<SavedTask>,
}

impl Checkpoint {
    /// How many workflows are above it.
    #[must_use]
    pub fn depth(&self) -> u32 {
        self.head.depth
    }

    /// Whether this program knows the form of the document.
    ///
    /// # Errors
    /// When it does not, in words.
    pub fn check(&self) -> Result<(), String> {
        if self.format == FORMAT {
            return Ok(());
        }
        Err(format!("its format is {}, and this program knows {FORMAT}", self.format))
    }
}

/// A step or an item.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedStep {
    pub(crate) step: String,
    pub(crate) item: i32,
    pub(crate) state: String,
    pub(crate) run: i32,
    pub(crate) ord: Option<i64>,
    pub(crate) child: Option<WorkflowId>,
    pub(crate) meta: String,
    pub(crate) value: Option<Payload>,
    pub(crate) input: Option<Payload>,
    pub(crate) output: Option<Payload>,
}

/// A signal, also one that was taken: its id must not count a second time.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedSignal {
    pub(crate) id: Option<String>,
    pub(crate) name: String,
    pub(crate) payload: Payload,
    pub(crate) created_at: i64,
    pub(crate) taken_by: Option<String>,
}

/// A task that is under way, as it would be handed in.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedTask {
    pub(crate) step: String,
    pub(crate) task: NewTask,
}

/// What became of a checkpoint that was to be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restored {
    /// The workflow is back.
    Restored,
    /// It was there, with so many changes; it was left as it is.
    Kept {
        /// How many changes the one in the store has seen.
        revision: i64,
    },
}

/// A task as it was handed in.
pub(crate) fn saved_task(task: Task) -> Option<SavedTask> {
    let step = task.workflow?.step;
    let new = NewTask {
        idempotency_key: task.idempotency_key,
        priority: task.priority,
        timeout: task.timeout,
        key: task.key,
        tags: task.tags,
        retry: task.retry,
        reply_to: task.reply_to,
        ..NewTask::new(task.capability, task.payload)
    };
    Some(SavedTask { step, task: new })
}
