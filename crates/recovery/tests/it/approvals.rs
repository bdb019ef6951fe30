//! Recoveries that ask people.

use std::time::Duration;

use resurgam_model::Timestamp;
use resurgam_model::plan::{Approval, Ask};
use resurgam_model::report::StepStatus;
use resurgam_recovery::journal::orders::{Order, Ordered};
use resurgam_recovery::journal::{IncidentState, StepRecord};
use resurgam_recovery::runbook::Terms;

use crate::fakes::{Does, STEPS, Scene, journal};

fn terms(ask: Ask, required: u32) -> Terms {
    Terms { approval: Approval { ask, required }, fault: None }
}

/// Waits until a step of the scene waits, and gives its name and question.
async fn asked(scene: &Scene) -> (String, String) {
    let until = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let waits = scene.records().into_iter().find(|s| s.status == StepStatus::Waiting);
        if let Some(step) = waits {
            return (step.name, step.detail);
        }
        assert!(tokio::time::Instant::now() < until, "{:?}", scene.recorded());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Answers what the step asks now; if it asks nothing, in advance.
fn say(scene: &Scene, by: &str, step: &str, yes: bool) {
    let (incident, step) = (scene.incident.id, step.to_owned());
    let waits = scene.records().into_iter().find(|s| s.status == StepStatus::Waiting);
    let question = waits.filter(|waits| waits.name == step).map(|waits| waits.detail);
    let order = match yes {
        true => Order::Approve { incident, step, question },
        false => Order::Reject { incident, step },
    };
    // As the command does: over a handle of its own.
    let ordered = Ordered { by: by.to_owned(), order };
    journal(scene.dir.path()).order(&ordered, Timestamp::now()).unwrap();
}

#[tokio::test]
async fn a_dangerous_step_waits_until_it_is_approved() {
    let scene = Scene::new();
    let people = async {
        let (step, question) = asked(&scene).await;
        assert_eq!((step.as_str(), question.as_str()), ("act", "shall the step act be taken?"));
        assert_eq!(scene.effects(), ["look"], "nothing is done before the word");
        say(&scene, "ada", "act", true);
    };
    let terms = terms(Ask::Dangerous, 1);
    let (ended, ()) = tokio::join!(scene.execute_on(None, &terms), people);
    assert_eq!(ended.state, IncidentState::Recovered);
    assert_eq!(scene.effects(), STEPS);
    assert!(scene.journal.verify(None).unwrap().findings.is_empty());
}

#[tokio::test]
async fn each_step_that_does_more_than_look_waits_when_asked_always() {
    let scene = Scene::new();
    let people = async {
        for expected in ["act", "verify"] {
            assert_eq!(asked(&scene).await.0, expected);
            say(&scene, "ada", expected, true);
            let waits = |s: &StepRecord| s.name == expected && s.status == StepStatus::Waiting;
            while scene.records().iter().any(waits) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    };
    let terms = terms(Ask::Always, 1);
    let (ended, ()) = tokio::join!(scene.execute_on(None, &terms), people);
    assert_eq!(ended.state, IncidentState::Recovered);
}

#[tokio::test]
async fn two_are_two_different_people() {
    let scene = Scene::new();
    let people = async {
        asked(&scene).await;
        for _ in 0..3 {
            say(&scene, "ada", "act", true);
        }
        // Longer than it takes to look at the journal.
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert_eq!(scene.effects(), ["look"], "one person stays one");
        say(&scene, "grace", "act", true);
    };
    let terms = terms(Ask::Dangerous, 2);
    let (ended, ()) = tokio::join!(scene.execute_on(None, &terms), people);
    assert_eq!(ended.state, IncidentState::Recovered);
    let decisions = scene.journal.decisions(scene.incident.id, "act").unwrap();
    assert_eq!(decisions.in_favour("shall the step act be taken?"), 2);
}

#[tokio::test]
async fn one_no_is_enough() {
    let scene = Scene::new();
    let people = async {
        asked(&scene).await;
        say(&scene, "ada", "act", true);
        say(&scene, "grace", "act", false);
    };
    let terms = terms(Ask::Dangerous, 2);
    let (ended, ()) = tokio::join!(scene.execute_on(None, &terms), people);
    assert_eq!(ended.state, IncidentState::Refused);
    assert_eq!(ended.detail, "grace has rejected it");
    assert_eq!(scene.effects(), ["look"]);
}

#[tokio::test]
async fn a_step_that_asks_by_itself_is_run_again_once_approved() {
    let scene = Scene::new();
    let people = async {
        let (step, question) = asked(&scene).await;
        assert_eq!((step.as_str(), question.as_str()), ("act", "all of it?"));
        say(&scene, "ada", "act", true);
    };
    let odd = Does::Asks(&["all of it?"]);
    let terms = terms(Ask::Never, 1);
    let (ended, ()) = tokio::join!(scene.execute_on(Some(("act", &odd)), &terms), people);
    assert_eq!(ended.state, IncidentState::Recovered);
    assert_eq!(scene.runs(), ["look", "act", "act", "verify"]);
}

/// The word is on what was asked: for more than that it is asked anew.
#[tokio::test]
async fn agreement_to_lose_little_is_none_to_lose_more() {
    let scene = Scene::new();
    let people = async {
        for expected in ["lose 1 s?", "lose 2 s?"] {
            while asked(&scene).await.1 != expected {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert!(!scene.effects().contains(&"act".to_owned()), "not before all is agreed");
            say(&scene, "ada", "act", true);
        }
    };
    let odd = Does::Asks(&["lose 1 s?", "lose 2 s?"]);
    let terms = terms(Ask::Never, 1);
    let (ended, ()) = tokio::join!(scene.execute_on(Some(("act", &odd)), &terms), people);
    assert_eq!(ended.state, IncidentState::Recovered);
    assert_eq!(scene.runs(), ["look", "act", "act", "act", "verify"]);
}

#[tokio::test]
async fn terms_that_nobody_has_seen_are_not_agreed_to_in_advance() {
    let scene = Scene::new();
    say(&scene, "ada", "act", true);
    let people = async {
        assert_eq!(asked(&scene).await.1, "all of it?");
        say(&scene, "ada", "act", false);
    };
    let odd = Does::Asks(&["all of it?"]);
    let terms = terms(Ask::Dangerous, 1);
    let (ended, ()) = tokio::join!(scene.execute_on(Some(("act", &odd)), &terms), people);
    assert_eq!(ended.state, IncidentState::Refused);
    assert_eq!(scene.effects(), ["look"]);
}

#[tokio::test]
async fn a_word_given_in_advance_counts_and_one_for_another_step_does_not() {
    let scene = Scene::new();
    say(&scene, "ada", "verify", true);
    say(&scene, "ada", "act", true);
    let ended = scene.execute_on(None, &terms(Ask::Always, 1)).await;
    assert_eq!(ended.state, IncidentState::Recovered);
}

#[tokio::test]
async fn a_controller_that_dies_while_it_waits_is_followed_by_one_that_waits() {
    let scene = Scene::new();
    let terms = terms(Ask::Dangerous, 1);
    {
        // Dropped in the middle: as good as dead for what is in the journal.
        let waiting = scene.execute_on(None, &terms);
        tokio::select! {
            ended = waiting => panic!("{ended:?}"),
            _ = asked(&scene) => {}
        }
    }
    say(&scene, "ada", "act", true);
    let ended = scene.execute_on(None, &terms).await;
    assert_eq!(ended.state, IncidentState::Recovered);
    assert_eq!(scene.effects(), STEPS);
}

#[tokio::test]
async fn an_incident_that_a_person_resolves_is_left_alone() {
    let scene = Scene::new();
    let people = async {
        asked(&scene).await;
        let journal = journal(scene.dir.path());
        let id = scene.incident.id;
        assert!(journal.resolve_incident(id, "ada", "by hand", Timestamp::now()).unwrap());
        assert!(!journal.resolve_incident(id, "ada", "again", Timestamp::now()).unwrap());
    };
    let terms = terms(Ask::Dangerous, 1);
    let (ended, ()) = tokio::join!(scene.execute_on(None, &terms), people);
    assert_eq!(ended.state, IncidentState::Resolved);
    assert_eq!(scene.effects(), ["look"]);
    assert_eq!(scene.now().state, IncidentState::Resolved);
}

#[tokio::test]
async fn a_recovery_that_is_begun_anew_asks_anew_and_keeps_what_was_before() {
    let scene = Scene::new();
    let no = async {
        asked(&scene).await;
        say(&scene, "ada", "act", false);
    };
    let terms = terms(Ask::Dangerous, 1);
    let (ended, ()) = tokio::join!(scene.execute_on(None, &terms), no);
    assert_eq!(ended.state, IncidentState::Refused);

    let id = scene.incident.id;
    assert!(scene.journal.reopen_incident(id, None, Timestamp::now()).unwrap());
    let again = scene.journal.reopen_incident(id, None, Timestamp::now()).unwrap();
    assert!(!again, "it is open already");
    assert!(scene.records().is_empty(), "all steps are to be taken anew");
    let yes = async {
        asked(&scene).await;
        say(&scene, "ada", "act", true);
    };
    let (ended, ()) = tokio::join!(scene.execute_on(None, &terms), yes);
    assert_eq!(ended.state, IncidentState::Recovered);
    let rounds: Vec<_> =
        scene.journal.all_steps(id).unwrap().iter().map(|s| (s.round, s.status)).collect();
    use StepStatus::{Done, Refused, Skipped};
    // What "look" had brought about is still there.
    assert_eq!(rounds, [(0, Done), (0, Refused), (1, Skipped), (1, Done), (1, Done)]);
    assert!(scene.journal.verify(None).unwrap().findings.is_empty());
}
