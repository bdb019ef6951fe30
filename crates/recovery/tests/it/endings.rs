//! Recoveries that end otherwise than well, and controllers that die at the very end of a step.

use resurgam_model::Timestamp;
use resurgam_model::report::StepStatus;
use resurgam_recovery::journal::IncidentState;
use resurgam_recovery::runbook::Stop;

use crate::fakes::{Does, RESTORES, STEPS, Scene};

#[tokio::test]
async fn the_reason_to_stop_decides_how_the_incident_is_closed() {
    let why = || "because".to_owned();
    for (stop, step, incident, runs) in [
        (Stop::Retry(why()), StepStatus::Failed, IncidentState::Failed, 2),
        (Stop::Refuse(why()), StepStatus::Refused, IncidentState::Refused, 1),
        (Stop::FalseAlarm(why()), StepStatus::Skipped, IncidentState::FalseAlarm, 1),
    ] {
        for place in STEPS {
            let scene = Scene::new();
            let ended = scene.execute(Some((place, &Does::Stops(stop.clone()))), None).await;
            assert_eq!((ended.state, ended.detail.as_str()), (incident, "because"));
            let now = scene.now();
            assert_eq!(now.state, incident);
            assert!(now.closed_at.is_some());
            // Nothing follows, and as often as allowed is how often it was tried.
            let last = scene.records().pop().unwrap();
            assert_eq!((last.name.as_str(), last.status, last.attempts), (place, step, runs));
            assert_eq!(last.detail, "because");
            assert_eq!(scene.runs().last().unwrap(), place);
            // The service works again only once the step is done that brings it back.
            assert_eq!(now.restored_at.is_some(), place == "verify", "{stop:?} at {place}");
        }
    }
}

#[tokio::test]
async fn what_was_recorded_as_the_end_closes_the_incident_in_the_next_life() {
    for (recorded, state) in
        [(StepStatus::Failed, IncidentState::Failed), (StepStatus::Refused, IncidentState::Refused)]
    {
        let scene = Scene::new();
        scene.record(0, StepStatus::Done, "did it");
        scene.record(1, recorded, "no way");
        let ended = scene.execute(None, None).await;
        assert_eq!((ended.state, ended.detail.as_str()), (state, "no way"));
        assert_eq!(scene.now().state, state);
        assert!(scene.runs().is_empty(), "nothing may be tried again");
    }
}

/// Died after the false alarm was recorded and before the incident was closed: to go on would be
/// to recover what was never lost.
#[tokio::test]
async fn a_false_alarm_stays_one_in_the_next_life() {
    let scene = Scene::new();
    let alarm = Does::Stops(Stop::FalseAlarm("it came back".to_owned()));
    scene.execute(Some(("look", &alarm)), None).await;
    reopen(&scene);
    let ended = scene.execute(None, None).await;
    assert_eq!((ended.state, ended.detail.as_str()), (IncidentState::FalseAlarm, "it came back"));
    assert_eq!(scene.now().state, IncidentState::FalseAlarm);
    assert_eq!(scene.runs(), ["look"]);
}

/// Died after the service was back and before that was noted.
#[tokio::test]
async fn the_time_of_restoration_is_noted_in_the_next_life() {
    let scene = Scene::new();
    scene.record(0, StepStatus::Done, "did it");
    assert_eq!(STEPS[1], RESTORES);
    scene.record(1, StepStatus::Done, "did it");
    let restored = scene.records()[1].ended_at;
    let ended = scene.execute(None, None).await;
    assert_eq!(ended.state, IncidentState::Recovered);
    assert_eq!(scene.runs(), ["verify"]);
    assert_eq!(scene.now().restored_at, restored);
}

#[tokio::test]
async fn a_closed_incident_stays_as_it_was_closed() {
    let scene = Scene::new();
    scene.execute(None, None).await;
    let before = scene.now();
    let id = scene.incident.id;
    scene.journal.close_incident(id, IncidentState::Failed, Timestamp::now()).unwrap();
    scene.journal.restored(id, Timestamp::now()).unwrap();
    assert_eq!(scene.now(), before);
    // The same recovery once more finds everything done.
    scene.execute(None, None).await;
    assert_eq!(scene.runs(), STEPS);
    assert_eq!(scene.now(), before);
}

/// Makes the incident as it was before it was closed.
fn reopen(scene: &Scene) {
    let file = scene.dir.path().join("journal.db");
    let connection = rusqlite::Connection::open(file).unwrap();
    let changed =
        connection.execute("UPDATE incidents SET state = 'open', closed_at = NULL", []).unwrap();
    assert_eq!(changed, 1);
}
