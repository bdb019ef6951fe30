//! Random graphs, random orders of events, some of them twice, and deaths between an event and
//! its being written down.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use resurgam_model::Payload;
use resurgam_workflow::definition::OnFailure;
use resurgam_workflow::state::{End, StepState, WorkflowState};
use resurgam_workflow::{Definition, Event, Place, StepId, WorkKey};
use serde_json::{Value, json};

use crate::sim::Sim;

/// What a step is like, as numbers to be shrunk.
#[derive(Clone, Debug)]
struct Shape {
    kind: u8,
    needs: u8,
    when: u8,
    compensate: bool,
    tolerant: bool,
    width: u8,
    parallel: u8,
}

fn shape() -> impl Strategy<Value = Shape> {
    (0..8_u8, any::<u8>(), 0..8_u8, any::<bool>(), prop::bool::weighted(0.2), 0..5_u8, 0..3_u8)
        .prop_map(|(kind, needs, when, compensate, tolerant, width, parallel)| Shape {
            kind,
            needs,
            when,
            compensate,
            tolerant,
            width,
            parallel,
        })
}

fn definition(shapes: &[Shape]) -> Definition {
    let mut steps = Vec::new();
    for (n, shape) in shapes.iter().enumerate() {
        let needs: Vec<String> =
            (0..n).filter(|i| shape.needs >> (i % 8) & 1 == 1).map(|i| format!("s{i}")).collect();
        let mut step = json!({ "id": format!("s{n}"), "needs": needs });
        let outputs: Vec<_> =
            needs.iter().map(|need| format!("${{steps.{need}.output}}")).collect();
        match shape.kind {
            0 => step["wait"] = json!({ "signal": "go" }),
            1 => step["wait"] = json!({ "timer": "1m" }),
            2 => {
                step["workflow"] = json!("child");
                step["input"] = json!(outputs);
            }
            3..=5 => {
                step[if shape.kind == 5 { "workflow" } else { "capability" }] = json!("many");
                step["for_each"] = json!((0..shape.width).collect::<Vec<_>>());
                step["input"] = json!([outputs, "${item}", "${input}"]);
                if shape.parallel > 0 {
                    step["max_parallel"] = json!(shape.parallel);
                }
            }
            _ => {
                step["capability"] = json!("one");
                step["input"] = json!(outputs);
            }
        }
        if shape.kind > 1 && shape.compensate {
            step["compensate"] =
                json!({ "capability": "undo", "input": ["${output}", "${input}"] });
        }
        match (shape.when, needs.first()) {
            (0, Some(need)) => step["when"] = json!(format!("steps.{need}.state != 'skipped'")),
            (1, _) => step["when"] = json!("input > 3"),
            (2, Some(need)) => step["when"] = json!(format!("length(steps.{need}.output) > 1")),
            _ => {}
        }
        if shape.tolerant {
            step["on_failure"] = json!("continue");
        }
        steps.push(step);
    }
    Definition::from_json(json!({ "name": "random", "steps": steps, "output": "${steps}" }))
        .or_else(|_| Definition::from_json(json!({ "name": "random", "steps": steps })))
        .unwrap()
}

/// What the test knows of the work that was done, apart from the engine.
#[derive(Default)]
struct Books {
    /// Completed and not undone, in the order of completion as the engine was told.
    done: Vec<Place>,
    /// Everything that was ever completed and is not undone.
    effects: BTreeSet<Place>,
    /// Each event that ever was.
    said: Vec<Event>,
    undo_failed: bool,
}

struct World {
    sim: Sim,
    books: Books,
    /// Events that were not delivered yet.
    inbox: Vec<Event>,
    checked: usize,
}

impl World {
    fn deliver(&mut self, events: &[Event]) {
        // Once without effect, as if the process died before the commit.
        let first = self.sim.would(events);
        assert_eq!(first, self.sim.would(events), "the same in gives the same out");
        let before = self.sim.full.clone();
        self.sim.advance(events);
        self.note(&before, events);
        self.check_handed_in(&before);
        // And again the same: everything of it is known now.
        if !events.contains(&Event::Retry) {
            let state = self.sim.full.state;
            let handed_in = self.sim.handed_in.len();
            self.sim.advance(events);
            assert_eq!((state, handed_in), (self.sim.full.state, self.sim.handed_in.len()));
        }
    }

    /// Brings the books up to date with what the engine made of the events.
    fn note(&mut self, before: &resurgam_workflow::State, events: &[Event]) {
        for (n, event) in events.iter().enumerate() {
            let Event::Ended { key, end } = event else { continue };
            if events[..n].contains(event) {
                continue;
            }
            let was = before.row(&key.place).map(|row| (row.state, row.run));
            match end {
                End::Completed(_) if !key.undo && was == Some((StepState::Running, key.run)) => {
                    self.books.effects.insert(key.place.clone());
                    self.books.done.push(key.place.clone());
                }
                End::Completed(_)
                    if key.undo && was == Some((StepState::Compensating, key.run)) =>
                {
                    assert!(self.books.effects.remove(&key.place), "{} was not there", key.place);
                }
                _ => {}
            }
        }
    }

    /// What was handed in since the last time was due.
    fn check_handed_in(&mut self, before: &resurgam_workflow::State) {
        let definition = &self.sim.definition;
        let new: Vec<WorkKey> = self.sim.handed_in[self.checked..].to_vec();
        self.checked = self.sim.handed_in.len();
        let over = |id: &StepId| match self.sim.full.state_of(id) {
            StepState::Completed | StepState::Skipped => true,
            StepState::Failed => definition.step(id).unwrap().on_failure == OnFailure::Continue,
            _ => false,
        };
        for key in new {
            let step = definition.step(&key.place.step).unwrap();
            if key.undo {
                assert!(self.sim.full.ending.is_some());
                assert!(self.books.effects.contains(&key.place), "{key}: nothing to undo");
                // Nothing runs, and it is the last of all that can be undone.
                let undoable = |place: &&Place| {
                    definition.step(&place.step).unwrap().compensate.is_some()
                        && self.books.effects.contains(place)
                        && self.sim.full.row(place).unwrap().state != StepState::CompensationFailed
                };
                let last = self.books.done.iter().rev().find(undoable).unwrap();
                assert_eq!(last, &key.place, "in reverse order of completion");
                for (id, row) in &self.sim.full.steps {
                    assert_ne!(row.state, StepState::Running, "{id} runs while others are undone");
                }
                continue;
            }
            assert!(self.sim.full.ending.is_none(), "{key} begins on the way back");
            assert!(!self.books.effects.contains(&key.place), "{key} was done already");
            assert!(step.needs.iter().all(over), "{key} begins before its needs are over");
            let _ = before;
            if let Some(limit) = step.max_parallel {
                let runs = self.sim.full.items.iter().filter(|((id, _), row)| {
                    *id == key.place.step && row.state == StepState::Running
                });
                assert!(runs.count() <= limit as usize, "{key}: too many at once");
            }
        }
    }

    /// Some work comes to its end.
    fn work(&mut self, choice: u16, outcome: u8) {
        if self.sim.open.is_empty() {
            return;
        }
        let at = usize::from(choice) % self.sim.open.len();
        let key = self.sim.open.remove(at);
        let winding_down = self.sim.full.ending.is_some();
        let end = match outcome {
            0 => End::Failed("on purpose".to_owned()),
            1 if winding_down && !key.undo => End::Cancelled,
            _ => End::Completed(Payload::from_json(json!([key.to_string()]).to_string()).unwrap()),
        };
        self.books.undo_failed |= key.undo && !matches!(end, End::Completed(_));
        let event = Event::Ended { key, end };
        self.books.said.push(event.clone());
        self.inbox.push(event);
    }

    fn act(&mut self, action: u8, choice: u16) {
        match action {
            0..=3 => self.work(choice, (choice >> 8) as u8 % 10),
            4..=6 if !self.inbox.is_empty() => {
                // Any of them, not in order, perhaps several at once.
                let at = usize::from(choice) % self.inbox.len();
                let mut events = self.inbox.split_off(at);
                self.inbox.extend(events.drain(1.min(events.len())..).collect::<Vec<_>>());
                if choice & 0x100 != 0
                    && let Some(again) = self.books.said.get(usize::from(choice >> 9))
                {
                    events.push(again.clone());
                }
                // An event that is said twice in one breath.
                let distinct: Vec<_> = events.clone();
                if choice & 0x200 != 0 {
                    events.extend(distinct);
                }
                // One that has not been delivered yet is not delivered by accident.
                events.retain(|event| !self.inbox.contains(event));
                self.deliver(&events);
            }
            7 => {
                self.sim.now += std::time::Duration::from_secs(40);
                self.deliver(&[]);
            }
            8 => {
                self.sim.signal("go", json!(choice));
                self.deliver(&[]);
            }
            9 if choice.is_multiple_of(8) => {
                self.deliver(&[Event::Cancel { reason: "enough".to_owned() }]);
            }
            9 if choice.is_multiple_of(3)
                && self.sim.full.state.is_final()
                && self.sim.full.run < 6 =>
            {
                self.deliver(&[Event::Retry]);
            }
            _ => {}
        }
    }

    /// Lets everything that is under way end well, and checks that the workflow ends.
    fn finish(&mut self, failing: bool) {
        for round in 0_u16.. {
            assert!(
                round < 500,
                "it does not end: {:?} {}",
                self.sim.full.state,
                self.sim.states()
            );
            if self.sim.full.state.is_final() && self.inbox.is_empty() && self.sim.open.is_empty() {
                break;
            }
            let outcome = u8::from(!failing || !round.is_multiple_of(3)) * 9;
            self.work(round.wrapping_mul(7), outcome);
            self.sim.signal("go", json!(null));
            self.sim.now += std::time::Duration::from_secs(61);
            let events = std::mem::take(&mut self.inbox);
            self.deliver(&events);
        }
    }

    fn check_end(&self) {
        let full = &self.sim.full;
        let mut counts: BTreeMap<&Place, u32> = BTreeMap::new();
        for place in &self.books.done {
            *counts.entry(place).or_default() += 1;
        }
        for step in &self.sim.definition.steps {
            let state = full.state_of(&step.id);
            match full.state {
                WorkflowState::Completed => assert!(
                    matches!(state, StepState::Completed | StepState::Skipped)
                        || (state == StepState::Failed && step.on_failure == OnFailure::Continue),
                    "{} is {state} in a completed workflow",
                    step.id
                ),
                _ => assert!(
                    !matches!(
                        state,
                        StepState::Running
                            | StepState::Waiting
                            | StepState::Pending
                            | StepState::Compensating
                    ),
                    "{} is {state} at the end",
                    step.id
                ),
            }
            // Exactly what was completed and can be undone was undone.
            if full.state != WorkflowState::Completed
                && step.compensate.is_some()
                && !self.books.undo_failed
            {
                let left: Vec<_> =
                    self.books.effects.iter().filter(|place| place.step == step.id).collect();
                assert!(left.is_empty(), "{left:?} were not undone");
            }
            let Some(row) = full.steps.get(&step.id) else { continue };
            if let (Some(fan), StepState::Completed) = (row.fan, state) {
                assert_eq!(fan.completed, fan.total, "{} joined too early", step.id);
            }
            if let Some(fan) = row.fan {
                let sum = fan.pending
                    + fan.running
                    + fan.completed
                    + fan.failed
                    + fan.cancelled
                    + fan.undone
                    + fan.undo_failed;
                assert_eq!(sum, fan.total, "{}: {fan:?}", step.id);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn every_workflow_keeps_its_promises(
        shapes in prop::collection::vec(shape(), 1..7),
        input in 0..6_u8,
        actions in prop::collection::vec((0..10_u8, any::<u16>()), 0..60),
        failing in any::<bool>(),
    ) {
        let definition = definition(&shapes);
        let mut world = World {
            sim: Sim::new(definition, Value::from(input)),
            books: Books::default(),
            inbox: Vec::new(),
            checked: 0,
        };
        world.deliver(&[]);
        for (action, choice) in actions {
            world.act(action, choice);
        }
        world.finish(failing);
        world.check_end();
        // However it ended, retries without failures bring it to its end in good order.
        for _ in 0..4 {
            if world.sim.full.state == WorkflowState::Completed {
                break;
            }
            world.deliver(&[Event::Retry]);
            world.finish(false);
            world.check_end();
            world.books.undo_failed = false;
        }
        prop_assert_eq!(world.sim.full.state, WorkflowState::Completed);
    }
}
