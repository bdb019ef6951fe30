//! The start of steps and items.

use resurgam_model::{Payload, Timestamp};
use serde_json::Value;

use super::data::{Local, as_payload};
use super::{Need, Needs, Walk, later, null};
use crate::definition::{Action, MAX_ITEMS, Step, Wait};
use crate::expression::is_true;
use crate::state::{Child, Fan, Row, Slot, StepState, Work};
use crate::{Place, StepId, WorkKey};

/// What is put together from templates may have so many bytes.
const MAX_INPUT: usize = 16 * 1024 * 1024;

impl Walk<'_> {
    /// Starts a step whose needs are over.
    pub(super) fn start(&mut self, step: &Step) -> Needs {
        let skipped = |id| self.state.state_of(id) == StepState::Skipped;
        if !step.needs.is_empty() && step.needs.iter().all(skipped) {
            self.end_step(&step.id, StepState::Skipped, Slot::None, None);
            return Ok(());
        }
        let place = Place::step(&step.id);
        if self.state.row(&place).is_some_and(|row| row.fan.is_some()) {
            // After a retry it goes on with the items that it has.
            self.row_mut(&place).state = StepState::Running;
            return Ok(());
        }
        if let Some(when) = &step.when
            && !is_true(&self.evaluate(when)?)
        {
            self.end_step(&step.id, StepState::Skipped, Slot::None, None);
            return Ok(());
        }
        let started = match &step.for_each {
            Some(list) => {
                let list = self.evaluate(list)?;
                self.fan_out(step, list)?
            }
            None => self.start_one(step)?,
        };
        if let Err(why) = started {
            self.end_step(&step.id, StepState::Failed, Slot::None, Some(why));
        }
        Ok(())
    }

    fn start_one(&mut self, step: &Step) -> Needs<Result<(), String>> {
        let place = Place::step(&step.id);
        let (mut state, mut wake_at) = (StepState::Running, None);
        match &step.action {
            Action::Task(_) | Action::Workflow { .. } => {
                let input = self.render(&step.input, None)?;
                let key = self.fair_key(step, None)?;
                if let Err(why) = self.hand_in(step, &place, input, key) {
                    return Ok(Err(why));
                }
            }
            Action::Wait(wait) => {
                state = StepState::Waiting;
                wake_at = match wait {
                    Wait::Signal { timeout, .. } | Wait::Approval { timeout, .. } => {
                        timeout.map(|timeout| later(self.now, timeout))
                    }
                    Wait::Timer(timer) => Some(later(self.now, *timer)),
                    Wait::Until(until) => match moment(&self.render_value(until, None)?) {
                        Ok(at) => Some(at),
                        Err(why) => return Ok(Err(why)),
                    },
                };
            }
        }
        let (now, run) = (self.now, self.state.run);
        let row = self.row_mut(&place);
        let child = row.child;
        *row = Row { state, run, child, wake_at, started_at: Some(now), ..Row::default() };
        if wake_at.is_some_and(|at| at <= now) && step.signal().is_none() {
            self.end_step(&step.id, StepState::Completed, null(), None);
        }
        Ok(Ok(()))
    }

    /// Makes the items of a step; they are started by [`Self::start_items`].
    fn fan_out(&mut self, step: &Step, list: Value) -> Needs<Result<(), String>> {
        let Value::Array(list) = list else {
            let what = match list {
                Value::Null => "null",
                Value::Object(_) => "an object",
                Value::String(_) => "a text",
                _ => "a single value",
            };
            return Ok(Err(format!("for_each gave {what} instead of a list")));
        };
        if list.len() > MAX_ITEMS {
            let what = format!("for_each gave {} items; at most {MAX_ITEMS} are taken", list.len());
            return Ok(Err(what));
        }
        let total = u32::try_from(list.len()).unwrap_or(u32::MAX);
        let (now, run) = (self.now, self.state.run);
        for (index, item) in (0..).zip(list) {
            let local = Local { item: Some(item), index: Some(index), output: None };
            let input = self.render(&step.input, Some(&local))?;
            if input.len() > MAX_INPUT {
                return Ok(Err(too_large(input.len())));
            }
            let item = local.item.as_ref().map(as_payload).unwrap_or_default();
            let row = self.row_mut(&Place::item(&step.id, index));
            *row =
                Row { run, item: Slot::Loaded(item), input: Slot::Loaded(input), ..Row::default() };
        }
        let row = self.row_mut(&Place::step(&step.id));
        *row = Row {
            state: StepState::Running,
            run,
            started_at: Some(now),
            fan: Some(Fan { total, pending: total, ..Fan::default() }),
            ..Row::default()
        };
        Ok(Ok(()))
    }

    /// Starts items as far as `max_parallel` allows. True when there were some.
    pub(super) fn start_items(&mut self) -> Needs<bool> {
        let fans: Vec<(StepId, Fan)> = self
            .state
            .steps
            .iter()
            .filter(|(_, row)| row.state == StepState::Running)
            .filter_map(|(id, row)| Some((id.clone(), row.fan.filter(|fan| fan.pending > 0)?)))
            .collect();
        let mut changed = false;
        for (id, fan) in fans {
            let Some(step) = self.definition.step(&id) else { continue };
            let room = step.max_parallel.unwrap_or(u32::MAX).saturating_sub(fan.running);
            let count = room.min(fan.pending);
            if count == 0 {
                continue;
            }
            let next = self.pending_items(&id, count)?;
            for (index, input) in next {
                self.start_item(step, index, input)?;
            }
            changed = true;
        }
        Ok(changed)
    }

    /// The first pending items of a step with their inputs.
    fn pending_items(&self, id: &StepId, count: u32) -> Needs<Vec<(u32, Payload)>> {
        let wanted = usize::try_from(count).unwrap_or(usize::MAX);
        let first = (id.clone(), 0);
        let found: Vec<_> = self
            .state
            .items
            .range(first..)
            .take_while(|((step, _), _)| step == id)
            .filter(|(_, row)| row.state == StepState::Pending)
            .filter_map(|((_, index), row)| match &row.input {
                Slot::Loaded(input) => Some((*index, input.clone())),
                Slot::None | Slot::Stored => None,
            })
            .take(wanted)
            .collect();
        if found.len() < wanted {
            return Err([Need::Pending(id.clone(), count)].into());
        }
        Ok(found)
    }

    fn start_item(&mut self, step: &Step, index: u32, input: Payload) -> Needs {
        let place = Place::item(&step.id, index);
        let key = if matches!(&step.action, Action::Task(terms) if terms.key.is_some()) {
            let item = self.state.row(&place).map(|row| row.item.clone()).unwrap_or_default();
            let item = match &item {
                Slot::Loaded(item) => Some(super::data::as_value(item)),
                Slot::None => None,
                Slot::Stored => return Err([Need::Pending(step.id.clone(), 1)].into()),
            };
            self.fair_key(step, Some(&Local { item, index: Some(index), output: None }))?
        } else {
            None
        };
        let (now, run) = (self.now, self.state.run);
        let handed_in = self.hand_in(step, &place, input, key);
        let row = self.row_mut(&place);
        row.run = run;
        row.started_at = Some(now);
        row.state = StepState::Running;
        if let Err(why) = &handed_in {
            row.state = StepState::Failed;
            row.error = Some(why.clone());
            row.finished_at = Some(now);
        }
        let parent = self.row_mut(&Place::step(&step.id));
        if let Some(fan) = &mut parent.fan {
            fan.pending = fan.pending.saturating_sub(1);
            match handed_in {
                Ok(()) => fan.running += 1,
                Err(_) => fan.failed += 1,
            }
        }
        if let (Err(why), None) = (handed_in, &parent.error) {
            parent.error = Some(format!("{place}: {why}"));
        }
        Ok(())
    }

    fn fair_key(&mut self, step: &Step, local: Option<&Local>) -> Needs<Option<String>> {
        let Action::Task(terms) = &step.action else { return Ok(None) };
        let Some(key) = &terms.key else { return Ok(None) };
        Ok(match self.render_value(key, local)? {
            Value::Null => None,
            Value::String(text) => Some(text),
            other => Some(other.to_string()),
        })
    }

    /// Hands in the task, or starts the sub-workflow, of a step or item.
    fn hand_in(
        &mut self,
        step: &Step,
        place: &Place,
        input: Payload,
        fair_key: Option<String>,
    ) -> Result<(), String> {
        if input.len() > MAX_INPUT {
            return Err(too_large(input.len()));
        }
        if let Some(key) = &fair_key
            && (key.is_empty() || key.len() > 256 || key.chars().any(char::is_control))
        {
            return Err("key must give 1 to 256 bytes without control characters".to_owned());
        }
        let key = WorkKey { place: place.clone(), undo: false, run: self.state.run };
        match &step.action {
            Action::Task(terms) => {
                self.out.tasks.push(Work { key, terms: terms.clone(), payload: input, fair_key });
            }
            Action::Workflow { name, version, timeout } => self.out.children.push(Child {
                key,
                name: name.clone(),
                version: *version,
                input,
                timeout: *timeout,
            }),
            Action::Wait(_) => return Err("a wait has no work".to_owned()),
        }
        Ok(())
    }
}

fn too_large(bytes: usize) -> String {
    format!("its input has {bytes} bytes; at most {MAX_INPUT} are taken")
}

fn moment(value: &Value) -> Result<Timestamp, String> {
    let text = value.as_str().unwrap_or_default();
    text.parse().map_err(|_| {
        let shown: String = value.to_string().chars().take(60).collect();
        format!("wait.until gave {shown} instead of a moment such as \"2026-01-31T12:00:00Z\"")
    })
}
