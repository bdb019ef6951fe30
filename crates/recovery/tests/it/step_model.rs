//! Any series of transitions against a model of the state machine of steps.

use std::collections::BTreeMap;

use proptest::prelude::*;
use resurgam_model::Timestamp;
use resurgam_model::report::StepStatus;
use serde_json::Value;

use crate::fakes::{Scene, journal};

#[derive(Clone, Debug)]
enum Op {
    Start { number: u32, name: &'static str },
    End { number: u32, name: &'static str, status: StepStatus },
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    let number = 0..3_u32;
    let name = prop_oneof![4 => Just("act"), 1 => Just("other")];
    let status = prop_oneof![
        Just(StepStatus::Done),
        Just(StepStatus::Skipped),
        Just(StepStatus::Failed),
        Just(StepStatus::Refused),
    ];
    prop_oneof![
        8 => (number.clone(), name.clone()).prop_map(|(number, name)| Op::Start { number, name }),
        8 => (number, name, status)
            .prop_map(|(number, name, status)| Op::End { number, name, status }),
        1 => Just(Op::Reopen),
    ]
}

/// What the journal must know.
#[derive(Default)]
struct Model {
    steps: BTreeMap<u32, (&'static str, StepStatus, u32)>,
}

impl Model {
    /// Whether it is allowed; takes it if so.
    fn start(&mut self, number: u32, name: &'static str) -> bool {
        let step = self.steps.entry(number).or_insert((name, StepStatus::Started, 0));
        let allowed = step.0 == name && step.1 == StepStatus::Started;
        step.2 += u32::from(allowed);
        allowed
    }

    fn end(&mut self, number: u32, name: &'static str, status: StepStatus) -> bool {
        let step = self.steps.get_mut(&number);
        match step.filter(|step| step.0 == name && step.1 == StepStatus::Started) {
            Some(step) => {
                step.1 = status;
                true
            }
            None => false,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_journal_allows_what_the_model_allows(ops in prop::collection::vec(op(), 1..40)) {
        let mut scene = Scene::new();
        let id = scene.incident.id;
        let mut model = Model::default();
        for op in ops {
            let now = Timestamp::now();
            match op {
                Op::Start { number, name } => {
                    let took = scene.journal.start_step(id, number, name, now).is_ok();
                    prop_assert_eq!(took, model.start(number, name));
                }
                Op::End { number, name, status } => {
                    let ended =
                        scene.journal.end_step(id, number, name, status, "", &Value::Null, now);
                    prop_assert_eq!(ended.is_ok(), model.end(number, name, status));
                }
                Op::Reopen => scene.journal = journal(scene.dir.path()),
            }
            let expected: Vec<_> = model
                .steps
                .values()
                .map(|(name, status, attempts)| ((*name).to_owned(), *status, *attempts))
                .collect();
            prop_assert_eq!(scene.recorded(), expected);
            for step in scene.records() {
                prop_assert_eq!(step.ended_at.is_some(), step.status != StepStatus::Started);
            }
        }
    }
}
