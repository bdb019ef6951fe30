//! The way back.

use resurgam_model::Payload;

use super::data::{Local, as_value};
use super::{Need, Needs, Walk};
use crate::state::{End, Ending, Slot, StepState, Work, WorkflowState};
use crate::{Place, StepId, WorkKey};

impl Walk<'_> {
    /// One round on the way back. False when there is nothing to do but wait.
    pub(super) fn backward(&mut self, ending: Ending) -> Needs<bool> {
        self.stop_items();
        if self.join()? {
            return Ok(true);
        }
        let runs = self.state.steps.values().any(|row| row.state == StepState::Running);
        if runs || self.state.undoing.is_some() {
            return Ok(false);
        }
        if let Some(place) = self.last_completed()? {
            self.undo(place)?;
            return Ok(true);
        }
        let pending: Vec<StepId> = self
            .definition
            .steps
            .iter()
            .filter(|step| self.state.state_of(&step.id) == StepState::Pending)
            .map(|step| step.id.clone())
            .collect();
        for id in pending {
            self.end_step(&id, StepState::Cancelled, Slot::None, None);
        }
        let failures: Vec<String> = self
            .state
            .steps
            .iter()
            .filter(|(_, row)| {
                row.state == StepState::CompensationFailed
                    || row.fan.is_some_and(|fan| fan.undo_failed > 0)
            })
            .map(|(id, _)| id.to_string())
            .collect();
        if !failures.is_empty() {
            let why = self.state.error.clone().unwrap_or_default();
            let note = format!("; not undone: {}", failures.join(", "));
            if !why.ends_with(&note) {
                self.state.error = Some(why + &note);
            }
        }
        self.end(match ending {
            Ending::Failed => WorkflowState::Failed,
            Ending::Cancelled => WorkflowState::Cancelled,
        });
        Ok(true)
    }

    /// Items whose turn has not come never begin.
    fn stop_items(&mut self) {
        let fans: Vec<StepId> = self
            .state
            .steps
            .iter()
            .filter(|(_, row)| row.state == StepState::Running)
            .filter(|(_, row)| row.fan.is_some_and(|fan| fan.pending > 0))
            .map(|(id, _)| id.clone())
            .collect();
        for id in fans {
            if let Some(fan) = &mut self.row_mut(&Place::step(&id)).fan {
                fan.cancelled += fan.pending;
                fan.pending = 0;
            }
        }
    }

    /// What was completed last of all that is still to be undone.
    fn last_completed(&self) -> Needs<Option<Place>> {
        let mut needs = std::collections::BTreeSet::new();
        let mut found: Option<(i64, Place)> = None;
        let mut consider = |order: Option<i64>, place: Place| {
            if let Some(order) = order
                && found.as_ref().is_none_or(|(best, _)| order > *best)
            {
                found = Some((order, place));
            }
        };
        for (id, row) in &self.state.steps {
            let undoable = self.definition.step(id).is_some_and(|step| step.compensate.is_some());
            match row.fan {
                _ if !undoable => {}
                None if row.state == StepState::Completed => consider(row.order, Place::step(id)),
                None => {}
                Some(fan) if fan.completed == 0 => {}
                Some(_) if !self.state.last_completed.contains(id) => {
                    needs.insert(Need::LastCompleted(id.clone()));
                }
                Some(_) => {
                    let items = self.state.items.range((id.clone(), 0)..);
                    let items = items.take_while(|((step, _), _)| step == id);
                    for ((_, index), row) in items {
                        if row.state == StepState::Completed {
                            consider(row.order, Place::item(id, *index));
                        }
                    }
                }
            }
        }
        if needs.is_empty() { Ok(found.map(|(_, place)| place)) } else { Err(needs) }
    }

    /// Hands in the task that undoes a step or item.
    fn undo(&mut self, place: Place) -> Needs {
        let Some(step) = self.definition.step(&place.step) else { return Ok(()) };
        let Some(compensation) = &step.compensate else { return Ok(()) };
        let row = self.state.row(&place).cloned().unwrap_or_default();
        let need = |slot: &Slot| -> Needs<Option<Payload>> {
            match slot {
                Slot::Loaded(payload) => Ok(Some(payload.clone())),
                Slot::None => Ok(None),
                Slot::Stored => Err(match place.item {
                    None => [Need::Output(place.step.clone())].into(),
                    Some(index) => [Need::Item(place.step.clone(), index)].into(),
                }),
            }
        };
        let (output, item) = (need(&row.output)?, need(&row.item)?);
        let payload = match &compensation.input {
            None => output.unwrap_or_default(),
            Some(template) => {
                let local = Local {
                    item: item.as_ref().map(as_value),
                    index: place.item,
                    output: output.as_ref().map(as_value),
                };
                self.render(template, Some(&local))?
            }
        };
        let run = self.state.run;
        self.out.tasks.push(Work {
            key: WorkKey { place: place.clone(), undo: true, run },
            terms: compensation.task.clone(),
            payload,
            fair_key: None,
        });
        let row = self.row_mut(&place);
        row.state = StepState::Compensating;
        row.run = run;
        if place.item.is_some()
            && let Some(fan) = &mut self.row_mut(&Place::step(&place.step)).fan
        {
            fan.completed = fan.completed.saturating_sub(1);
        }
        // The next one of its step has to be looked for anew.
        self.state.last_completed.remove(&place.step);
        self.state.undoing = Some(place);
        Ok(())
    }

    pub(super) fn undo_ended(&mut self, key: &WorkKey, end: &End) {
        let expected = self.state.undoing.as_ref() == Some(&key.place)
            && self
                .state
                .row(&key.place)
                .is_some_and(|row| row.state == StepState::Compensating && row.run == key.run);
        if !expected {
            return;
        }
        self.state.undoing = None;
        let (state, error) = match end {
            End::Completed(_) => (StepState::Compensated, None),
            End::Failed(error) => (StepState::CompensationFailed, Some(error.clone())),
            End::Cancelled => {
                (StepState::CompensationFailed, Some("its work was cancelled".to_owned()))
            }
        };
        let row = self.row_mut(&key.place);
        row.state = state;
        if state == StepState::Compensated {
            row.order = None;
        }
        row.error.clone_from(&error);
        if key.place.item.is_none() {
            return;
        }
        let place = key.place.to_string();
        let parent = self.row_mut(&Place::step(&key.place.step));
        let Some(fan) = &mut parent.fan else { return };
        match error {
            None => fan.undone += 1,
            Some(error) => {
                fan.undo_failed += 1;
                parent.error = Some(format!("{place} was not undone: {error}"));
            }
        }
        if fan.undone == fan.total {
            parent.state = StepState::Compensated;
        } else if fan.undone + fan.undo_failed == fan.total {
            parent.state = StepState::CompensationFailed;
        }
    }

    /// Where undoing failed, a retry tries that again and nothing else. True when that was so.
    pub(super) fn retry_undo(&mut self) -> bool {
        let failed: Vec<StepId> = self
            .state
            .steps
            .iter()
            .filter(|(_, row)| {
                row.state == StepState::CompensationFailed
                    || row.fan.is_some_and(|fan| fan.undo_failed > 0)
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in &failed {
            let row = self.row_mut(&Place::step(id));
            row.error = None;
            if row.state == StepState::CompensationFailed {
                row.state = StepState::Completed;
            }
            match &mut row.fan {
                None => {}
                Some(fan) => {
                    fan.completed += fan.undo_failed;
                    fan.undo_failed = 0;
                    self.out.reset_undos.insert(id.clone());
                    self.state.items.retain(|(step, _), _| step != id);
                }
            }
        }
        if failed.is_empty() {
            return false;
        }
        self.state.state = WorkflowState::Compensating;
        if let Some(error) = &mut self.state.error
            && let Some(at) = error.find("; not undone: ")
        {
            error.truncate(at);
        }
        true
    }
}
