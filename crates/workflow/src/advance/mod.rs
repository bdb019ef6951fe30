//! What happens next.
//!
//! [`advance`] is a pure function. It takes the state before, what happened and the time, and
//! gives the state after and what has to be written down and handed in. Called again with the
//! same it says the same; called with an event that it has seen before it says that nothing
//! changes: what an event is about must still stand where the event left it.
//!
//! It does not get all data, because outputs may be large and items many. When it needs some it
//! says so ([`Need`]); the caller loads it into the state and calls again.
//!
//! # Failure
//! When a step fails for good, the workflow goes back. Nothing new begins. Tasks that nobody
//! works on are cancelled, but those that are worked on come to their end, so that what they did
//! is known. Then what was completed and has a compensation is undone, one after the other, the
//! last completed first.

mod data;
mod events;
mod start;
mod undo;

use std::collections::{BTreeMap, BTreeSet};

use resurgam_model::{Payload, Timestamp};
use serde_json::Value;

use crate::definition::{Definition, OnFailure, Step};
use crate::state::{Ending, Event, Row, Slot, State, StepState, Transition, WorkflowState};
use crate::{Place, StepId};

/// What has to be loaded into the state before it can be said what happens next.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// The workflow's input.
    Input,
    /// What a step gave.
    Output(StepId),
    /// All items of a step, with what they gave.
    Items(StepId),
    /// So many items of a step that are pending, the first ones, with their elements and inputs.
    Pending(StepId, u32),
    /// One item of a step, with its element and what it gave.
    Item(StepId, u32),
    /// The item of a step that was completed last and can be undone, with its element and output.
    LastCompleted(StepId),
}

/// What happens next.
#[derive(Clone, Debug, PartialEq)]
pub struct Advance {
    /// The state after it.
    pub state: State,
    /// What has to be done for that, in the same transaction.
    pub transition: Transition,
}

/// Says what happens next.
///
/// # Errors
/// When more has to be loaded first: call again with the state as it was before, and that in it.
pub fn advance(
    definition: &Definition,
    state: State,
    events: &[Event],
    now: Timestamp,
) -> Result<Advance, BTreeSet<Need>> {
    let mut walk =
        Walk { definition, state, out: Transition::default(), now, parsed: BTreeMap::new() };
    walk.begin();
    for event in events {
        walk.take(event);
    }
    if walk.out.reset_items.is_empty() && walk.out.reset_undos.is_empty() {
        walk.time_passes();
        walk.settle()?;
        walk.out.wake_at = walk.next_wake();
    } else {
        // Items can be loaded as they will stand only once this has been written down.
        walk.out.wake_at = Some(now);
    }
    Ok(Advance { state: walk.state, transition: walk.out })
}

type Needs<T = ()> = Result<T, BTreeSet<Need>>;

/// One call of [`advance`].
struct Walk<'a> {
    definition: &'a Definition,
    state: State,
    out: Transition,
    now: Timestamp,
    /// Outputs that were parsed already.
    parsed: BTreeMap<data::Source, Value>,
}

impl Walk<'_> {
    fn begin(&mut self) {
        if self.state.started {
            return;
        }
        self.state.started = true;
        self.set_deadline();
    }

    fn set_deadline(&mut self) {
        let limit = self.definition.timeout.into_iter().chain(self.state.limit).min();
        self.state.deadline = limit.map(|limit| later(self.now, limit));
    }

    /// A row, made if there is none, and noted as changed.
    fn row_mut(&mut self, place: &Place) -> &mut Row {
        self.out.changed.insert(place.clone());
        match place.item {
            None => self.state.steps.entry(place.step.clone()).or_default(),
            Some(item) => self.state.items.entry((place.step.clone(), item)).or_default(),
        }
    }

    /// Time-outs and timers that are due.
    fn time_passes(&mut self) {
        if !matches!(self.state.state, WorkflowState::Running | WorkflowState::Waiting) {
            return;
        }
        if self.state.deadline.is_some_and(|deadline| deadline <= self.now) {
            let why = match self.definition.timeout {
                Some(timeout) => format!("it was not over within {timeout}"),
                None => "it was not over in the time that it was given".to_owned(),
            };
            self.go_back(Ending::Failed, why);
            return;
        }
        let due: Vec<StepId> = self
            .state
            .steps
            .iter()
            .filter(|(_, row)| {
                row.state == StepState::Waiting && row.wake_at.is_some_and(|at| at <= self.now)
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in due {
            let Some(step) = self.definition.step(&id) else { continue };
            match step.signal() {
                // A signal that lies there counts, also when it came in the last moment.
                Some(name) if self.state.signals.iter().any(|signal| signal.name == name) => {}
                Some(name) => {
                    let what = format!("{name} did not come in time");
                    self.end_step(&id, StepState::Failed, Slot::None, Some(what));
                }
                None => self.end_step(&id, StepState::Completed, null(), None),
            }
        }
    }

    /// Goes on until nothing changes any more.
    fn settle(&mut self) -> Needs {
        while !self.state.state.is_final() {
            let changed = match self.state.ending {
                None => self.forward()?,
                Some(ending) => self.backward(ending)?,
            };
            if !changed {
                break;
            }
        }
        if matches!(self.state.state, WorkflowState::Running | WorkflowState::Waiting) {
            let runs = self.state.steps.values().any(|row| row.state == StepState::Running);
            self.state.state = if runs { WorkflowState::Running } else { WorkflowState::Waiting };
        }
        Ok(())
    }

    /// One round forward. False when there is nothing to do but wait.
    fn forward(&mut self) -> Needs<bool> {
        if let Some(why) = self.failure() {
            self.go_back(Ending::Failed, why);
            return Ok(true);
        }
        let mut changed = self.take_signals();
        changed |= self.join()?;
        changed |= self.start_items()?;
        let ready: Vec<&Step> = self
            .definition
            .steps
            .iter()
            .filter(|step| {
                self.state.state_of(&step.id) == StepState::Pending
                    && step.needs.iter().all(|need| self.is_over(need))
            })
            .collect();
        for step in ready {
            self.start(step)?;
            changed = true;
            if self.failure().is_some() {
                return Ok(true);
            }
        }
        if !changed && self.definition.steps.iter().all(|step| self.is_over(&step.id)) {
            let output = self.render(&self.definition.output, None)?;
            self.state.output = Slot::Loaded(output);
            self.end(WorkflowState::Completed);
        }
        Ok(changed)
    }

    /// Whether those that need this step need not wait for it any longer.
    fn is_over(&self, id: &StepId) -> bool {
        match self.state.state_of(id) {
            StepState::Completed | StepState::Skipped => true,
            StepState::Failed => self.tolerates_failure(id),
            _ => false,
        }
    }

    fn tolerates_failure(&self, id: &StepId) -> bool {
        self.definition.step(id).is_some_and(|step| step.on_failure == OnFailure::Continue)
    }

    /// Why the workflow has to go back, if a step failed.
    fn failure(&self) -> Option<String> {
        self.state.steps.iter().find_map(|(id, row)| {
            let failed = row.state == StepState::Failed
                || row.fan.is_some_and(|fan| fan.failed > 0 && row.state == StepState::Running);
            if !failed || self.tolerates_failure(id) {
                return None;
            }
            let why = row.error.as_deref().unwrap_or("one of its items failed");
            Some(format!("step {id} failed: {why}"))
        })
    }

    /// The end of a step that is not an item.
    fn end_step(&mut self, id: &StepId, state: StepState, output: Slot, error: Option<String>) {
        let undoable = self.definition.step(id).is_some_and(|step| {
            step.compensate.is_some() && step.for_each.is_none() && state == StepState::Completed
        });
        let order = undoable.then(|| self.next_order());
        let now = self.now;
        let row = self.row_mut(&Place::step(id));
        row.state = state;
        row.output = output;
        row.error = error;
        row.order = order;
        row.wake_at = None;
        row.started_at.get_or_insert(now);
        row.finished_at = Some(now);
    }

    fn next_order(&mut self) -> i64 {
        self.state.order += 1;
        self.state.order
    }

    /// Turns round.
    fn go_back(&mut self, ending: Ending, why: String) {
        self.state.ending = Some(ending);
        self.state.error = Some(why);
        self.state.state = WorkflowState::Compensating;
        self.out.wind_down = true;
        // What this very call was about to begin does not begin.
        let tasks = std::mem::take(&mut self.out.tasks);
        let children = std::mem::take(&mut self.out.children);
        let places = tasks.into_iter().map(|task| task.key.place);
        for place in places.chain(children.into_iter().map(|child| child.key.place)) {
            if let (Some(_), Some(fan)) =
                (place.item, self.state.steps.get_mut(&place.step).and_then(|row| row.fan.as_mut()))
            {
                fan.running = fan.running.saturating_sub(1);
                fan.cancelled += 1;
                self.out.changed.insert(Place::step(&place.step));
            }
            self.row_mut(&place).state = StepState::Cancelled;
        }
        let waiting: Vec<StepId> = self
            .state
            .steps
            .iter()
            .filter(|(_, row)| row.state == StepState::Waiting)
            .map(|(id, _)| id.clone())
            .collect();
        for id in waiting {
            self.end_step(&id, StepState::Cancelled, Slot::None, None);
        }
    }

    /// The end of the workflow.
    fn end(&mut self, state: WorkflowState) {
        self.state.state = state;
        self.out.ended = true;
    }

    /// When to look again if nothing happens.
    fn next_wake(&self) -> Option<Timestamp> {
        match self.state.state {
            WorkflowState::Running | WorkflowState::Waiting => {
                let steps = self.state.steps.values().filter_map(|row| row.wake_at);
                steps.chain(self.state.deadline).min()
            }
            _ => None,
        }
    }
}

/// The output of what gives none.
fn null() -> Slot {
    Slot::Loaded(Payload::default())
}

/// So much later; the end of time at the latest.
fn later(from: Timestamp, by: resurgam_model::Duration) -> Timestamp {
    from.checked_add(by.0).unwrap_or(Timestamp::MAX)
}
