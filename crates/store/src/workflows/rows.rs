//! Steps and items between the engine and the columns.

use resurgam_model::workflow::{Fan, StepState, WorkflowStepView};
use resurgam_model::{Payload, TaskId, Timestamp, WorkflowId};
use resurgam_workflow::Place;
use resurgam_workflow::state::{Row, Slot};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::instance::step_id;
use crate::Result;
use crate::column::{from_json, parsed, payload, to_json, unsigned};

/// A row stands for a step itself if its item is this.
pub(crate) const NO_ITEM: i32 = -1;

/// What no query asks for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Meta {
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<TaskId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fan: Option<Fan>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wake_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at: Option<Timestamp>,
}

/// A row as it is written. What is `None` among the data stays as it was.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Record {
    pub(crate) step: String,
    pub(crate) item: i32,
    pub(crate) state: &'static str,
    pub(crate) run: i32,
    pub(crate) ord: Option<i64>,
    pub(crate) child: Option<Uuid>,
    pub(crate) meta: String,
    pub(crate) value: Option<String>,
    pub(crate) input: Option<String>,
    pub(crate) output: Option<String>,
    /// True when there is no output any more.
    pub(crate) no_output: bool,
}

impl Record {
    pub(crate) fn of(place: &Place, row: &Row) -> Result<Self> {
        let meta = Meta {
            task: row.task,
            error: row.error.clone(),
            fan: row.fan,
            wake_at: row.wake_at,
            started_at: row.started_at,
            finished_at: row.finished_at,
        };
        Ok(Self {
            step: place.step.as_str().to_owned(),
            item: place.item.map_or(NO_ITEM, |item| i32::try_from(item).unwrap_or(i32::MAX)),
            state: row.state.as_str(),
            run: i32::try_from(row.run).unwrap_or(i32::MAX),
            ord: row.order,
            child: row.child.map(|id| id.0),
            meta: to_json(&meta)?,
            value: loaded(&row.item),
            input: loaded(&row.input),
            output: loaded(&row.output),
            no_output: row.output == Slot::None,
        })
    }
}

fn loaded(slot: &Slot) -> Option<String> {
    match slot {
        Slot::Loaded(payload) => Some(payload.json().to_owned()),
        Slot::None | Slot::Stored => None,
    }
}

/// A row as it is read.
pub(crate) struct Columns {
    pub(crate) step: String,
    pub(crate) item: i32,
    pub(crate) state: String,
    pub(crate) run: i32,
    pub(crate) ord: Option<i64>,
    pub(crate) child: Option<Uuid>,
    pub(crate) meta: String,
    pub(crate) value: Slot,
    pub(crate) input: Slot,
    pub(crate) output: Slot,
}

impl Columns {
    pub(crate) fn row(self) -> Result<(Place, Row)> {
        let meta: Meta = from_json(&self.meta)?;
        let place = Place { step: step_id(&self.step)?, item: u32::try_from(self.item).ok() };
        let row = Row {
            state: parsed(&self.state)?,
            run: unsigned(i64::from(self.run))?,
            task: meta.task,
            child: self.child.map(WorkflowId),
            output: self.output,
            error: meta.error,
            item: self.value,
            input: self.input,
            fan: meta.fan,
            order: self.ord,
            wake_at: meta.wake_at,
            started_at: meta.started_at,
            finished_at: meta.finished_at,
        };
        Ok((place, row))
    }

    /// As callers see it.
    pub(crate) fn view(self, output_bytes: Option<i64>) -> Result<WorkflowStepView> {
        let (place, row) = self.row()?;
        let state: StepState = row.state;
        Ok(WorkflowStepView {
            step: place.step.to_string(),
            item: place.item,
            state,
            run: row.run,
            items: row.fan,
            task: row.task,
            workflow: row.child,
            error: row.error,
            output: match row.output {
                Slot::Loaded(output) => Some(output),
                Slot::None | Slot::Stored => None,
            },
            output_bytes: output_bytes.map(unsigned).transpose()?,
            wake_at: row.wake_at,
            started_at: row.started_at,
            finished_at: row.finished_at,
        })
    }
}

/// Data from a column that may have been left out.
pub(crate) fn slot(text: Option<String>, there: bool) -> Result<Slot> {
    Ok(match text {
        Some(text) => Slot::Loaded(payload(text)?),
        None if there => Slot::Stored,
        None => Slot::None,
    })
}

/// Data that were loaded as a whole.
pub(crate) fn whole(slot: &Slot) -> Option<&Payload> {
    match slot {
        Slot::Loaded(payload) => Some(payload),
        Slot::None | Slot::Stored => None,
    }
}
