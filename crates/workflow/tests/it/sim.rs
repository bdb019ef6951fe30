//! A store in memory that does with a transition what the real ones do, and gives `advance` as
//! little as they do.

use std::collections::BTreeSet;

use resurgam_model::{Payload, Timestamp, WorkflowId};
use resurgam_workflow::state::{Child, Row, Signal, Slot, StepState, Work};
use resurgam_workflow::{
    Advance, Definition, Event, Need, Place, State, StepId, Transition, WorkKey, advance,
};

pub(crate) struct Sim {
    pub(crate) definition: Definition,
    /// Everything, with all data.
    pub(crate) full: State,
    pub(crate) now: Timestamp,
    /// Tasks and sub-workflows that are under way.
    pub(crate) open: Vec<WorkKey>,
    /// Every key that was handed in, in order.
    pub(crate) handed_in: Vec<WorkKey>,
    pub(crate) payloads: Vec<(WorkKey, Payload)>,
    pub(crate) transitions: Vec<Transition>,
    signal_seq: i64,
}

impl Sim {
    pub(crate) fn new(definition: Definition, input: serde_json::Value) -> Self {
        Self {
            definition,
            full: State::new(Payload::from_json(input.to_string()).unwrap()),
            now: Timestamp::UNIX_EPOCH,
            open: Vec::new(),
            handed_in: Vec::new(),
            payloads: Vec::new(),
            transitions: Vec::new(),
            signal_seq: 0,
        }
    }

    pub(crate) fn of(toml: &str, input: serde_json::Value) -> Self {
        let definition = Definition::from_text(toml).unwrap_or_else(|error| panic!("{error}"));
        let mut sim = Self::new(definition, input);
        sim.advance(&[]);
        sim
    }

    pub(crate) fn signal(&mut self, name: &str, payload: serde_json::Value) {
        self.signal_seq += 1;
        self.full.signals.push(Signal {
            seq: self.signal_seq,
            name: name.to_owned(),
            payload: Payload::from_json(payload.to_string()).unwrap(),
        });
    }

    fn view(&self, events: &[Event], needs: &BTreeSet<Need>) -> State {
        let stored = |slot: &Slot| match slot {
            Slot::None => Slot::None,
            _ => Slot::Stored,
        };
        let mut view = self.full.clone();
        if !needs.contains(&Need::Input) {
            view.input = stored(&view.input);
        }
        for (id, row) in &mut view.steps {
            if !needs.contains(&Need::Output(id.clone())) {
                row.output = stored(&row.output);
            }
        }
        view.items.clear();
        let mut show = |id: &StepId, index: u32, row: &Row, output: bool, input: bool| {
            let entry = view.items.entry((id.clone(), index)).or_insert_with(|| Row {
                output: stored(&row.output),
                item: stored(&row.item),
                input: stored(&row.input),
                ..row.clone()
            });
            if output {
                entry.output = row.output.clone();
                entry.item = row.item.clone();
            }
            if input {
                entry.input = row.input.clone();
                entry.item = row.item.clone();
            }
        };
        for event in events {
            if let Event::Ended { key: WorkKey { place, .. }, .. } = event
                && let (Some(index), Some(row)) = (place.item, self.full.row(place))
            {
                show(&place.step, index, row, false, false);
            }
        }
        let items = |id: &StepId| {
            let id = id.clone();
            self.full.items.iter().filter(move |((step, _), _)| *step == id)
        };
        for need in needs {
            match need {
                Need::Input | Need::Output(_) => {}
                Need::Items(id) => {
                    items(id).for_each(|((id, index), row)| show(id, *index, row, true, false));
                }
                Need::Item(id, index) => {
                    let row = &self.full.items[&(id.clone(), *index)];
                    show(id, *index, row, true, false);
                }
                Need::Pending(id, count) => items(id)
                    .filter(|(_, row)| row.state == StepState::Pending)
                    .take(*count as usize)
                    .for_each(|((id, index), row)| show(id, *index, row, false, true)),
                Need::LastCompleted(id) => {
                    if let Some(((id, index), row)) = items(id)
                        .filter(|(_, row)| row.state == StepState::Completed)
                        .max_by_key(|(_, row)| row.order)
                    {
                        show(id, *index, row, true, false);
                    }
                    view.last_completed.insert(id.clone());
                }
            }
        }
        view
    }

    /// What would follow, without writing it down.
    pub(crate) fn would(&self, events: &[Event]) -> Advance {
        let mut needs = BTreeSet::new();
        for _ in 0..50 {
            match advance(&self.definition, self.view(events, &needs), events, self.now) {
                Ok(done) => return done,
                Err(more) => {
                    assert!(!more.is_subset(&needs), "{more:?} was loaded already");
                    needs.extend(more);
                }
            }
        }
        panic!("it always needs more: {needs:?}");
    }

    pub(crate) fn advance(&mut self, events: &[Event]) -> Transition {
        let Advance { state, transition } = self.would(events);
        self.apply(state, &transition);
        self.transitions.push(transition.clone());
        if !transition.reset_items.is_empty() || !transition.reset_undos.is_empty() {
            assert_eq!(transition.wake_at, Some(self.now));
            self.advance(&[]);
        }
        transition
    }

    fn apply(&mut self, state: State, transition: &Transition) {
        let keep = |new: Slot, old: Option<&Slot>| match new {
            Slot::Stored => old.cloned().expect("only what is stored can stay stored"),
            new => new,
        };
        for id in &transition.forgotten {
            self.full.steps.remove(id);
            self.full.items.retain(|(step, _), _| step != id);
        }
        for ((id, _), row) in &mut self.full.items {
            let again = !matches!(row.state, StepState::Completed);
            if transition.reset_items.contains(id) && again {
                if row.state == StepState::Compensated {
                    row.child = None;
                }
                *row = Row {
                    child: row.child,
                    item: row.item.clone(),
                    input: row.input.clone(),
                    ..Row::default()
                };
            }
            if transition.reset_undos.contains(id) && row.state == StepState::CompensationFailed {
                row.state = StepState::Completed;
                row.error = None;
            }
        }
        for place in &transition.changed {
            let mut row = state.row(place).unwrap().clone();
            let old = self.full.row(place);
            row.output = keep(row.output, old.map(|row| &row.output));
            row.item = keep(row.item, old.map(|row| &row.item));
            row.input = keep(row.input, old.map(|row| &row.input));
            match place.item {
                None => self.full.steps.insert(place.step.clone(), row),
                Some(item) => self.full.items.insert((place.step.clone(), item), row),
            };
        }
        // What changed without being named would be lost by a real store.
        let all: BTreeSet<_> = state.steps.keys().collect();
        assert_eq!(all, self.full.steps.keys().collect());
        for (id, row) in &state.steps {
            let full = &self.full.steps[id];
            assert_eq!((row.state, row.run, row.fan), (full.state, full.run, full.fan), "{id}");
        }
        for ((id, index), row) in &state.items {
            let full = &self.full.items[&(id.clone(), *index)];
            assert_eq!((row.state, row.run), (full.state, full.run), "{id}[{index}]");
        }
        let (steps, items) =
            (std::mem::take(&mut self.full.steps), std::mem::take(&mut self.full.items));
        let input = self.full.input.clone();
        let output = keep(state.output.clone(), Some(&self.full.output));
        self.full = State { steps, items, input, output, last_completed: BTreeSet::new(), ..state };
        for Work { key, payload, .. } in &transition.tasks {
            self.hand_in(key, payload);
        }
        for Child { key, input, .. } in &transition.children {
            self.hand_in(key, input);
            let child = match key.place.item {
                None => &mut self.full.steps.get_mut(&key.place.step).unwrap().child,
                Some(item) => {
                    let item = (key.place.step.clone(), item);
                    &mut self.full.items.get_mut(&item).unwrap().child
                }
            };
            child.get_or_insert_with(WorkflowId::new);
        }
    }

    fn hand_in(&mut self, key: &WorkKey, payload: &Payload) {
        assert!(!self.handed_in.contains(key), "{key} is handed in twice");
        self.handed_in.push(key.clone());
        self.open.push(key.clone());
        self.payloads.push((key.clone(), payload.clone()));
    }

    /// What the work for a key is to do.
    pub(crate) fn payload(&self, key: &str) -> serde_json::Value {
        let (_, payload) =
            self.payloads.iter().rev().find(|(k, _)| k.to_string() == key).expect("no such work");
        serde_json::from_str(payload.json()).unwrap()
    }

    pub(crate) fn open_keys(&self) -> Vec<String> {
        self.open.iter().map(ToString::to_string).collect()
    }

    /// Takes work that is under way and gives its end.
    pub(crate) fn end(&mut self, key: &str, end: resurgam_workflow::state::End) -> Event {
        let at = self.open.iter().position(|open| open.to_string() == key).expect("not open");
        Event::Ended { key: self.open.remove(at), end }
    }

    pub(crate) fn complete(&mut self, key: &str, result: serde_json::Value) -> Transition {
        let result = Payload::from_json(result.to_string()).unwrap();
        let event = self.end(key, resurgam_workflow::state::End::Completed(result));
        self.advance(&[event])
    }

    pub(crate) fn fail(&mut self, key: &str) -> Transition {
        let event = self.end(key, resurgam_workflow::state::End::Failed("on purpose".to_owned()));
        self.advance(&[event])
    }

    pub(crate) fn states(&self) -> String {
        let place = |place: Place, row: &Row| format!("{place} {}", row.state);
        let steps = self.full.steps.iter().map(|(id, row)| place(Place::step(id), row));
        let items = self.full.items.iter();
        let items = items.map(|((id, index), row)| place(Place::item(id, *index), row));
        steps.chain(items).collect::<Vec<_>>().join(", ")
    }
}
