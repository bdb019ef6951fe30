//! Steps that succeed, fail once, and are run twice.

use resurgam_model::report::StepStatus::{self, Done, Skipped};
use resurgam_recovery::journal::IncidentState;
use resurgam_recovery::runbook::faults::Fault;

use crate::fakes::{Does, STEPS, Scene};

fn attempts(odd: &str, status: StepStatus, attempts: u32) -> Vec<(String, StepStatus, u32)> {
    let of = |name: &str| if name == odd { (status, attempts) } else { (Done, 1) };
    STEPS.iter().map(|name| ((*name).to_owned(), of(name).0, of(name).1)).collect()
}

#[tokio::test]
async fn steps_are_done_in_order_and_the_incident_is_closed() {
    let scene = Scene::new();
    let ended = scene.execute(None, None).await;
    assert_eq!(ended.state, IncidentState::Recovered);
    assert_eq!(scene.runs(), STEPS);
    assert_eq!(scene.recorded(), attempts("", Done, 1));
    for step in scene.records() {
        assert!(step.ended_at.is_some_and(|end| end >= step.started_at), "{step:?}");
        assert_eq!(step.detail, "did it");
    }
    let incident = scene.now();
    assert_eq!(incident.state, IncidentState::Recovered);
    assert!(incident.restored_at.unwrap() <= incident.closed_at.unwrap());
}

#[tokio::test]
async fn a_step_that_fails_once_is_tried_again() {
    for step in STEPS {
        let scene = Scene::new();
        let ended = scene.execute(None, Some(&format!("fail-once:{step}"))).await;
        assert_eq!(ended.state, IncidentState::Recovered, "{step}");
        assert_eq!(scene.recorded(), attempts(step, Done, 2));
        assert_eq!(scene.effects(), STEPS);
    }
}

#[tokio::test]
async fn a_step_that_is_run_twice_takes_effect_once() {
    for step in STEPS {
        let scene = Scene::new();
        let ended = scene.execute(None, Some(&format!("repeat:{step}"))).await;
        assert_eq!(ended.state, IncidentState::Recovered, "{step}");
        assert_eq!(scene.runs().len(), STEPS.len() + 1, "{step} must have been run twice");
        assert_eq!(scene.effects(), STEPS);
        assert_eq!(scene.recorded(), attempts(step, Skipped, 2));
    }
}

#[tokio::test]
async fn a_fault_at_another_step_changes_nothing() {
    let scene = Scene::new();
    let ended = scene.execute(None, Some("die-before:promote")).await;
    assert_eq!(ended.state, IncidentState::Recovered);
    assert_eq!(scene.recorded(), attempts("", Done, 1));
}

#[tokio::test]
async fn a_step_that_hangs_is_given_up() {
    let scene = Scene::new();
    let ended = scene.execute(Some(("act", &Does::Hangs)), None).await;
    assert_eq!(ended.state, IncidentState::Failed);
    assert_eq!(ended.detail, "was not done within 20ms");
    assert_eq!(scene.runs(), ["look", "act", "act"]);
    assert_eq!(scene.now().restored_at, None);
}

#[test]
fn texts_that_name_no_fault_are_refused_with_the_words_that_do() {
    for text in ["", "die-before", "explode:fence", "DIE-AFTER:fence"] {
        let error = text.parse::<Fault>().unwrap_err().to_string();
        assert!(error.contains("die-before, die-after, fail-once or repeat"), "{error}");
    }
}
