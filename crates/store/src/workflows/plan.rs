//! What has to be written for a transition, in the terms of the database.

use std::collections::{BTreeSet, HashMap};

use resurgam_model::task::{NewTask, WorkflowStep};
use resurgam_model::workflow::WorkflowState;
use resurgam_model::{TaskId, Timestamp, WorkflowId};
use resurgam_workflow::state::{Child, Slot, Work};
use resurgam_workflow::{Advance, Definition, Place, State, StepId, WorkKey};

use super::DEFAULT_KEEP;
use super::instance::{Head, Instance, Word, head_after, said};
use super::rows::Record;
use crate::Result;
use crate::column::micros;

/// What has to be written.
pub(crate) struct Plan {
    pub(crate) state: WorkflowState,
    pub(crate) head: Head,
    pub(crate) output: Option<String>,
    pub(crate) wake_at: Option<i64>,
    pub(crate) finished_at: Option<i64>,
    pub(crate) expires_at: Option<i64>,
    pub(crate) tasks: Vec<NewTask>,
    /// For which places the tasks are, in the same order.
    places: Vec<Place>,
    /// Sub-workflows to start.
    pub(crate) children: Vec<Child>,
    /// Sub-workflows that are there and are to go on, with the key that they answer to.
    pub(crate) resumed: Vec<(WorkflowId, WorkKey)>,
    pub(crate) wind_down: bool,
    pub(crate) taken: Vec<(i64, String)>,
    pub(crate) forgotten: BTreeSet<StepId>,
    pub(crate) reset_items: BTreeSet<StepId>,
    pub(crate) reset_undos: BTreeSet<StepId>,
    /// Who is to be told, and what.
    pub(crate) report: Option<(WorkflowId, Word)>,
    changed: BTreeSet<Place>,
    after: State,
}

impl Plan {
    pub(crate) fn new(
        instance: &Instance,
        definition: &Definition,
        advance: Advance,
        now: Timestamp,
    ) -> Self {
        let Advance { state: after, transition } = advance;
        let head = head_after(&instance.head, &after);
        let is_final = after.state.is_final();
        let finished_at = is_final.then(|| {
            let before = instance.finished_at.filter(|_| instance.state.is_final());
            before.unwrap_or_else(|| now.as_microsecond())
        });
        let keep = micros(definition.keep.unwrap_or(DEFAULT_KEEP));
        // A sub-workflow is kept as long as the one that started it.
        let expires_at = finished_at
            .filter(|_| head.parent.is_none())
            .map(|finished| finished.saturating_add(keep));
        let report = match (&head.parent, transition.ended) {
            (Some(parent), true) => said(after.state, &after.output, after.error.as_deref())
                .map(|end| (parent.workflow, Word::Ended { key: parent.key.clone(), end })),
            _ => None,
        };
        let (mut children, mut resumed) = (Vec::new(), Vec::new());
        for child in transition.children {
            match after.row(&child.key.place).and_then(|row| row.child) {
                Some(id) => resumed.push((id, child.key)),
                None => children.push(child),
            }
        }
        let places = transition.tasks.iter().map(|work| work.key.place.clone()).collect();
        let tasks = transition.tasks.into_iter().map(|work| task(instance.id, work)).collect();
        let output = match &after.output {
            Slot::Loaded(output) => Some(output.json().to_owned()),
            Slot::None | Slot::Stored => None,
        };
        Self {
            state: after.state,
            head,
            output,
            wake_at: transition.wake_at.map(Timestamp::as_microsecond),
            finished_at,
            expires_at,
            tasks,
            places,
            children,
            resumed,
            wind_down: transition.wind_down,
            taken: transition
                .taken
                .into_iter()
                .map(|(seq, step)| (seq, step.to_string()))
                .collect(),
            forgotten: transition.forgotten,
            reset_items: transition.reset_items,
            reset_undos: transition.reset_undos,
            report,
            changed: transition.changed,
            after,
        }
    }

    /// Notes which tasks and sub-workflows were made, and gives the rows to write.
    pub(crate) fn records(
        &mut self,
        tasks: &[TaskId],
        children: &HashMap<Place, WorkflowId>,
    ) -> Result<Vec<Record>> {
        let task: HashMap<&Place, TaskId> = self.places.iter().zip(tasks.iter().copied()).collect();
        self.changed
            .iter()
            .filter_map(|place| {
                let mut row = self.after.row(place)?.clone();
                row.task = task.get(place).copied().or(row.task);
                row.child = children.get(place).copied().or(row.child);
                Some(Record::of(place, &row))
            })
            .collect()
    }

    /// Whether it is to be advanced again at once.
    pub(crate) fn again(&self, now: Timestamp) -> bool {
        self.wake_at.is_some_and(|at| at <= now.as_microsecond())
    }
}

/// The task for a step. Its idempotency key makes sure that there is never a second one.
fn task(workflow: WorkflowId, work: Work) -> NewTask {
    let step = work.key.to_string();
    NewTask {
        idempotency_key: Some(format!("workflow:{workflow}/{step}")),
        priority: work.terms.priority,
        timeout: work.terms.timeout,
        key: work.fair_key,
        retry: work.terms.retry,
        workflow: Some(WorkflowStep { workflow, step }),
        ..NewTask::new(work.terms.capability, work.payload)
    }
}
