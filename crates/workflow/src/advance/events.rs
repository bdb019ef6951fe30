//! What happened.

use resurgam_model::Payload;

use super::data::as_value;
use super::{Need, Needs, Walk, null};
use crate::definition::{Action, Wait};
use crate::state::{End, Ending, Event, Row, Slot, StepState, WorkflowState};
use crate::{Place, StepId, WorkKey};

impl Walk<'_> {
    pub(super) fn take(&mut self, event: &Event) {
        match event {
            Event::Ended { key, end } if key.undo => self.undo_ended(key, end),
            Event::Ended { key, end } => self.work_ended(key, end),
            Event::Cancel { reason } => {
                if self.state.ending.is_none() && !self.state.state.is_final() {
                    self.go_back(Ending::Cancelled, reason.clone());
                }
            }
            Event::Retry => self.retry(),
        }
    }

    /// The task or sub-workflow of a step or item came to its end.
    fn work_ended(&mut self, key: &WorkKey, end: &End) {
        // An event that was seen before finds its row in another state, or in a later run.
        let expected = self
            .state
            .row(&key.place)
            .is_some_and(|row| row.state == StepState::Running && row.run == key.run);
        if !expected || self.state.state.is_final() {
            return;
        }
        let going_back = self.state.ending.is_some();
        let (state, output, error) = match end {
            End::Completed(result) => (StepState::Completed, Slot::Loaded(result.clone()), None),
            End::Failed(error) => (StepState::Failed, Slot::None, Some(error.clone())),
            End::Cancelled if going_back => (StepState::Cancelled, Slot::None, None),
            End::Cancelled => {
                (StepState::Failed, Slot::None, Some("its work was cancelled".to_owned()))
            }
        };
        if key.place.item.is_none() {
            self.end_step(&key.place.step, state, output, error);
            return;
        }
        let undoable = state == StepState::Completed
            && self.definition.step(&key.place.step).is_some_and(|step| step.compensate.is_some());
        let order = undoable.then(|| self.next_order());
        let now = self.now;
        let row = self.row_mut(&key.place);
        row.state = state;
        row.output = output;
        row.error.clone_from(&error);
        row.order = order;
        row.finished_at = Some(now);
        let place = key.place.to_string();
        let parent = self.row_mut(&Place::step(&key.place.step));
        if let Some(fan) = &mut parent.fan {
            fan.running = fan.running.saturating_sub(1);
            match state {
                StepState::Completed => fan.completed += 1,
                StepState::Cancelled => fan.cancelled += 1,
                _ => fan.failed += 1,
            }
        }
        if let (Some(error), None) = (error, &parent.error) {
            parent.error = Some(format!("{place}: {error}"));
        }
    }

    /// Gives signals to those who wait for them. True when somebody took one.
    pub(super) fn take_signals(&mut self) -> bool {
        let mut changed = false;
        let waiting: Vec<StepId> = self
            .definition
            .steps
            .iter()
            .filter(|step| {
                step.signal().is_some() && self.state.state_of(&step.id) == StepState::Waiting
            })
            .map(|step| step.id.clone())
            .collect();
        for id in waiting {
            let Some(step) = self.definition.step(&id) else { continue };
            let Some(at) = step
                .signal()
                .and_then(|name| self.state.signals.iter().position(|signal| signal.name == name))
            else {
                continue;
            };
            let signal = self.state.signals.remove(at);
            self.out.taken.push((signal.seq, id.clone()));
            changed = true;
            match refusal(&step.action, &signal.payload) {
                None => {
                    let output = Slot::Loaded(signal.payload);
                    self.end_step(&id, StepState::Completed, output, None);
                }
                Some(why) => self.end_step(&id, StepState::Failed, Slot::None, Some(why)),
            }
        }
        changed
    }

    /// Ends steps whose items are all over. True when there was one.
    pub(super) fn join(&mut self) -> Needs<bool> {
        let over: Vec<StepId> = self
            .state
            .steps
            .iter()
            .filter(|(_, row)| {
                row.state == StepState::Running
                    && row.fan.is_some_and(|fan| fan.pending == 0 && fan.running == 0)
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in &over {
            let Some(row) = self.state.steps.get(id) else { continue };
            let Some(fan) = row.fan else { continue };
            let state = if fan.failed > 0 {
                StepState::Failed
            } else if fan.completed < fan.total {
                StepState::Cancelled
            } else {
                StepState::Completed
            };
            let error = row.error.clone();
            let output = self.collect(id, fan.total)?;
            self.end_step(id, state, output, error);
        }
        Ok(!over.is_empty())
    }

    /// What the items of a step gave, as a list; `null` for those that gave nothing.
    fn collect(&self, id: &StepId, total: u32) -> Needs<Slot> {
        let mut list = String::from("[");
        for index in 0..total {
            if index > 0 {
                list.push(',');
            }
            match self.state.items.get(&(id.clone(), index)).map(|row| &row.output) {
                Some(Slot::Loaded(output)) => list.push_str(output.json()),
                Some(Slot::None) => list.push_str("null"),
                Some(Slot::Stored) | None => {
                    return Err([Need::Items(id.clone())].into());
                }
            }
        }
        list.push(']');
        Ok(Payload::from_json(list).map_or_else(|_| null(), Slot::Loaded))
    }

    /// A failed or cancelled workflow goes on from where it stopped.
    fn retry(&mut self) {
        match self.state.state {
            WorkflowState::Failed | WorkflowState::Cancelled => {}
            // The one who asks has not heard of it.
            WorkflowState::Completed => {
                self.out.ended = true;
                return;
            }
            _ => return,
        }
        self.state.run += 1;
        if self.retry_undo() {
            return;
        }
        self.state.ending = None;
        self.state.error = None;
        self.state.state = WorkflowState::Running;
        self.set_deadline();
        let mut again: Vec<StepId> = Vec::new();
        for (id, row) in &self.state.steps {
            match row.state {
                StepState::Failed if self.tolerates_failure(id) => {}
                StepState::Failed | StepState::Cancelled | StepState::Compensated => {
                    again.push(id.clone());
                }
                // Partly undone: some of its items are to be done again.
                StepState::Completed if row.fan.is_some_and(|fan| fan.completed < fan.total) => {
                    again.push(id.clone());
                }
                _ => {}
            }
        }
        for id in again {
            self.do_again(&id);
        }
        self.unskip();
    }

    fn do_again(&mut self, id: &StepId) {
        let Some(step) = self.definition.step(id) else { return };
        let run = self.state.run;
        let place = Place::step(id);
        let row = self.row_mut(&place);
        // Sub-workflows are kept, because they go on from their own failed steps.
        let keeps =
            matches!(step.action, Action::Workflow { .. }) && row.state != StepState::Compensated;
        let partly = row.fan.filter(|fan| fan.completed > 0 || keeps);
        if let Some(mut fan) = partly {
            fan.pending = fan.total.saturating_sub(fan.completed);
            (fan.running, fan.failed, fan.cancelled, fan.undone) = (0, 0, 0, 0);
            row.fan = Some(fan);
            // What it needs may have to be done again, too.
            row.state = StepState::Pending;
            row.run = run;
            row.output = Slot::None;
            row.error = None;
            row.finished_at = None;
            self.state.items.retain(|(step, _), _| step != id);
            self.out.changed.retain(|place| place.item.is_none() || &place.step != id);
            self.out.reset_items.insert(id.clone());
        } else if keeps {
            *row = Row { child: row.child, ..Row::default() };
        } else {
            self.forget(id);
        }
    }

    /// A step that is to be done anew from the start.
    fn forget(&mut self, id: &StepId) {
        self.state.steps.remove(id);
        self.state.items.retain(|(step, _), _| step != id);
        self.out.changed.retain(|place| &place.step != id);
        self.out.forgotten.insert(id.clone());
    }

    /// What was skipped is decided anew when something before it is done anew.
    fn unskip(&mut self) {
        loop {
            let skipped: Vec<StepId> = self
                .definition
                .steps
                .iter()
                .filter(|step| self.state.state_of(&step.id) == StepState::Skipped)
                .filter(|step| {
                    step.needs.iter().any(|need| {
                        matches!(self.state.state_of(need), StepState::Pending | StepState::Running)
                    })
                })
                .map(|step| step.id.clone())
                .collect();
            if skipped.is_empty() {
                return;
            }
            for id in skipped {
                self.forget(&id);
            }
        }
    }
}

/// Why a signal means no.
fn refusal(action: &Action, payload: &Payload) -> Option<String> {
    let Action::Wait(Wait::Approval { .. }) = action else { return None };
    let answer = as_value(payload);
    if answer.get("approved").and_then(serde_json::Value::as_bool) == Some(true) {
        return None;
    }
    let part = |name: &str| answer.get(name).and_then(serde_json::Value::as_str);
    let by = part("by").map(|by| format!(" by {by}")).unwrap_or_default();
    let comment = part("comment").map(|comment| format!(": {comment}")).unwrap_or_default();
    Some(format!("it was not approved{by}{comment}"))
}
