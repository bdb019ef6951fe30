//! What is kept of a workflow beside its columns, and how one begins.

use std::sync::Arc;

use resurgam_model::workflow::{ParentStep, Workflow, WorkflowState};
use resurgam_model::{Duration, Payload, Timestamp, WorkflowId};
use resurgam_workflow::state::{Child, End, Ending, Event, Slot};
use resurgam_workflow::{Definition, Place, State, StepId, WorkKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{MAX_DEPTH, NewWorkflow};
use crate::column::{time, time_if, unsigned};
use crate::{Error, Result};

/// What no query asks for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Head {
    pub(crate) ending: Option<Ending>,
    pub(crate) error: Option<String>,
    pub(crate) run: u32,
    pub(crate) order: i64,
    pub(crate) limit: Option<Duration>,
    pub(crate) deadline: Option<Timestamp>,
    pub(crate) undoing: Option<String>,
    pub(crate) started: bool,
    /// How many workflows are above it.
    pub(crate) depth: u32,
    pub(crate) parent: Option<Parent>,
}

/// Who started a sub-workflow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Parent {
    pub(crate) workflow: WorkflowId,
    pub(crate) key: WorkKey,
}

/// What a workflow is told, beside what tasks and signals tell it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Word {
    /// The work for a step is over.
    Ended { key: WorkKey, end: Said },
    /// It is to be cancelled.
    Cancel { reason: String },
    /// It is to go on after it failed; for the step with this key if it is a sub-workflow.
    Retry { key: Option<WorkKey> },
}

/// How work ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Said {
    Completed(Payload),
    Failed(String),
    Cancelled,
}

impl Word {
    pub(crate) fn to_json(&self) -> Result<String> {
        crate::column::to_json(self)
    }

    /// As the engine takes it. A retry may also bring a new key to answer to.
    pub(crate) fn event(self, head: &mut Head) -> Event {
        match self {
            Self::Ended { key, end } => Event::Ended { key, end: end.into() },
            Self::Cancel { reason } => Event::Cancel { reason },
            Self::Retry { key } => {
                if let (Some(key), Some(parent)) = (key, &mut head.parent) {
                    parent.key = key;
                }
                Event::Retry
            }
        }
    }
}

impl Said {
    /// Of a sub-workflow that did not come back.
    pub(crate) fn lost() -> Self {
        Self::Failed("its sub-workflow was lost; a retry starts it anew".to_owned())
    }
}

impl From<Said> for End {
    fn from(said: Said) -> Self {
        match said {
            Said::Completed(result) => Self::Completed(result),
            Said::Failed(error) => Self::Failed(error),
            Said::Cancelled => Self::Cancelled,
        }
    }
}

/// The row of a workflow.
#[derive(Clone, Debug)]
pub(crate) struct Instance {
    pub(crate) id: WorkflowId,
    pub(crate) root: WorkflowId,
    pub(crate) digest: String,
    pub(crate) name: String,
    pub(crate) version: i64,
    pub(crate) state: WorkflowState,
    pub(crate) key: Option<String>,
    pub(crate) head: Head,
    pub(crate) input: Slot,
    pub(crate) output: Slot,
    pub(crate) revision: i64,
    pub(crate) created_at: i64,
    pub(crate) changed_at: i64,
    pub(crate) finished_at: Option<i64>,
    pub(crate) expires_at: Option<i64>,
}

impl Instance {
    /// A workflow that somebody starts.
    pub(crate) fn new(start: &NewWorkflow, digest: String, now: Timestamp) -> Self {
        let id = WorkflowId::new();
        let head = Head { run: 1, ..Head::default() };
        Self::begin(id, id, &start.definition, digest, head, start.input.clone(), now)
            .with_key(start.idempotency_key.clone())
    }

    /// A sub-workflow, or why it cannot be.
    pub(crate) fn child(
        parent: &Self,
        child: &Child,
        definition: Option<(&Arc<Definition>, &str)>,
        now: Timestamp,
    ) -> std::result::Result<Self, String> {
        let Some((definition, digest)) = definition else {
            let version = child.version.map(|v| format!(" in version {v}")).unwrap_or_default();
            return Err(format!("there is no workflow {}{version}", child.name));
        };
        let depth = parent.head.depth + 1;
        if depth > MAX_DEPTH {
            return Err(format!("workflows call one another deeper than {MAX_DEPTH}"));
        }
        let input = serde_json::from_str(child.input.json()).map_err(|e| e.to_string())?;
        let input = definition
            .check_input(input)
            .map_err(|problems| format!("workflow {}: {problems}", child.name))?;
        let input = Payload::from_json(input.to_string()).map_err(|e| e.to_string())?;
        let head = Head {
            run: 1,
            limit: child.timeout,
            depth,
            parent: Some(Parent { workflow: parent.id, key: child.key.clone() }),
            ..Head::default()
        };
        let id = WorkflowId::new();
        Ok(Self::begin(id, parent.root, definition, digest.to_owned(), head, input, now))
    }

    fn begin(
        id: WorkflowId,
        root: WorkflowId,
        definition: &Definition,
        digest: String,
        head: Head,
        input: Payload,
        now: Timestamp,
    ) -> Self {
        Self {
            id,
            root,
            digest,
            name: definition.name.clone(),
            version: i64::from(definition.version),
            state: WorkflowState::Running,
            key: None,
            head,
            input: Slot::Loaded(input),
            output: Slot::None,
            revision: 1,
            created_at: now.as_microsecond(),
            changed_at: now.as_microsecond(),
            finished_at: None,
            expires_at: None,
        }
    }

    /// As a checkpoint has it.
    pub(crate) fn restored(saved: &super::Checkpoint, digest: String) -> Self {
        Self {
            id: saved.id,
            root: saved.root,
            digest,
            name: saved.name.clone(),
            version: saved.version,
            state: saved.state,
            key: saved.idempotency_key.clone(),
            head: saved.head.clone(),
            input: Slot::Loaded(saved.input.clone()),
            output: saved.output.clone().map_or(Slot::None, Slot::Loaded),
            revision: saved.revision,
            created_at: saved.created_at,
            changed_at: saved.changed_at,
            finished_at: saved.finished_at,
            expires_at: saved.expires_at,
        }
    }

    fn with_key(self, key: Option<String>) -> Self {
        Self { key, ..self }
    }

    /// As the engine sees it, without its steps.
    pub(crate) fn engine_state(&self) -> Result<State> {
        let head = &self.head;
        Ok(State {
            state: self.state,
            ending: head.ending,
            error: head.error.clone(),
            run: head.run,
            order: head.order,
            limit: head.limit,
            deadline: head.deadline,
            undoing: head.undoing.as_deref().map(place).transpose()?,
            started: head.started,
            input: self.input.clone(),
            output: self.output.clone(),
            ..State::new(Payload::default())
        })
    }

    /// How it ended, if it has.
    pub(crate) fn said(&self) -> Option<Said> {
        said(self.state, &self.output, self.head.error.as_deref())
    }

    /// As callers see it.
    pub(crate) fn view(self) -> Result<Workflow> {
        Ok(Workflow {
            id: self.id,
            name: self.name,
            version: unsigned(self.version)?,
            state: self.state,
            error: self.head.error,
            run: self.head.run,
            revision: self.revision,
            parent: self.head.parent.map(|parent| ParentStep {
                workflow: parent.workflow,
                step: parent.key.place.to_string(),
            }),
            idempotency_key: self.key,
            created_at: time(self.created_at)?,
            deadline: self.head.deadline,
            finished_at: time_if(self.finished_at)?,
            expires_at: time_if(self.expires_at)?,
        })
    }
}

/// What a workflow tells the one that started it, once it is over.
pub(crate) fn said(state: WorkflowState, output: &Slot, error: Option<&str>) -> Option<Said> {
    Some(match (state, output) {
        (WorkflowState::Completed, Slot::Loaded(output)) => Said::Completed(output.clone()),
        (WorkflowState::Completed, _) => Said::Completed(Payload::default()),
        (WorkflowState::Cancelled, _) => Said::Cancelled,
        (WorkflowState::Failed, _) => Said::Failed(error.unwrap_or_default().to_owned()),
        _ => return None,
    })
}

/// Takes what the engine changed.
pub(crate) fn head_after(head: &Head, state: &State) -> Head {
    Head {
        ending: state.ending,
        error: state.error.clone(),
        run: state.run,
        order: state.order,
        limit: state.limit,
        deadline: state.deadline,
        undoing: state.undoing.as_ref().map(ToString::to_string),
        started: state.started,
        depth: head.depth,
        parent: head.parent.clone(),
    }
}

/// A step or item from its written form.
pub(crate) fn place(text: &str) -> Result<Place> {
    let key: WorkKey = crate::column::parsed(text)?;
    Ok(key.place)
}

/// A step's name from the database.
pub(crate) fn step_id(text: &str) -> Result<StepId> {
    StepId::new(text).map_err(|error| Error::Corrupt(error.to_string()))
}

/// What names a definition's text.
pub(crate) fn digest(json: &str) -> String {
    use std::fmt::Write as _;
    Sha256::digest(json.as_bytes()).iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
