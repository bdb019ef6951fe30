//! The examples run.

use std::fs;
use std::path::PathBuf;

use resurgam_model::Payload;
use resurgam_workflow::Definition;
use resurgam_workflow::state::{End, WorkflowState};
use serde_json::json;

use crate::sim::Sim;

fn examples() -> Vec<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples/workflows");
    let mut all: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    assert!(all.len() >= 3);
    all
}

/// What each is started with.
fn input(name: &str) -> serde_json::Value {
    match name {
        "order" => json!({ "customer": "ann", "items": ["tea", "cup"] }),
        "publish-article" => json!({ "topic": "tea" }),
        "research" => json!({ "sources": ["a", "b"] }),
        other => panic!("say what {other} is started with"),
    }
}

#[test]
fn every_example_comes_to_its_end() {
    for file in examples() {
        let text = fs::read_to_string(&file).unwrap();
        let definition =
            Definition::from_text(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let given = definition.check_input(input(&definition.name)).unwrap();
        let signals: Vec<String> = definition.signals().into_iter().map(str::to_owned).collect();
        let mut sim = Sim::new(definition, given);
        for signal in signals {
            sim.signal(&signal, json!({ "approved": true }));
        }
        sim.advance(&[]);
        while let Some(key) = sim.open_keys().first().cloned() {
            let result = Payload::from_json(json!({ "of": key }).to_string()).unwrap();
            let event = sim.end(&key, End::Completed(result));
            sim.advance(&[event]);
        }
        assert_eq!(sim.full.state, WorkflowState::Completed, "{}", file.display());
    }
}

#[test]
fn the_example_of_the_reference_is_a_definition() {
    let reference = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/workflows.md");
    let text = fs::read_to_string(reference).unwrap();
    let (_, rest) = text.split_once("```toml\n").unwrap();
    let (toml, _) = rest.split_once("```").unwrap();
    Definition::from_text(toml).unwrap_or_else(|error| panic!("{error}"));
}
