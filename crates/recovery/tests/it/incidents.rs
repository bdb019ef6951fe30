//! Incidents, and what a journal still knows after it was closed and opened again.

use resurgam_model::report::StepStatus;
use resurgam_model::{ComponentName, Scenario, Severity, Timestamp};
use resurgam_recovery::Error;
use resurgam_recovery::journal::cluster::ClusterState;
use resurgam_recovery::journal::{IncidentState, Journal, NewIncident};
use serde_json::{Value, json};

use crate::fakes::{Scene, cause, journal};

#[test]
fn one_cause_has_one_open_incident() {
    let scene = Scene::new();
    let journal = &scene.journal;
    let again = journal.open_incident(&cause("postgres-0"), Timestamp::now()).unwrap();
    assert_eq!(again, scene.incident);
    let other = journal.open_incident(&cause("postgres-1"), Timestamp::now()).unwrap();
    assert_ne!(other.id, scene.incident.id);
    let mut different = cause("postgres-0");
    different.scenario = Scenario::FullStop;
    let different = journal.open_incident(&different, Timestamp::now()).unwrap();
    assert_eq!(different.severity, Scenario::FullStop.severity());
    let open: Vec<_> = journal.open_incidents().unwrap().iter().map(|i| i.id).collect();
    assert_eq!(open, [scene.incident.id, other.id, different.id]);

    journal.close_incident(other.id, IncidentState::Refused, Timestamp::now()).unwrap();
    let next = journal.open_incident(&cause("postgres-1"), Timestamp::now()).unwrap();
    assert_ne!(next.id, other.id);
    let all: Vec<_> = journal.incidents(2).unwrap().iter().map(|i| i.id).collect();
    assert_eq!(all, [next.id, different.id], "the newest first, and no more than asked for");
}

/// Two that failed, for one cause: only one of them can be begun anew.
#[test]
fn one_cause_has_one_recovery_however_it_is_begun() {
    let scene = Scene::new();
    let (journal, first, now) = (&scene.journal, scene.incident.id, Timestamp::now());
    journal.restored(first, now).unwrap();
    journal.close_incident(first, IncidentState::Failed, now).unwrap();
    let second = journal.open_incident(&cause("postgres-0"), now).unwrap().id;
    assert!(!journal.reopen_incident(first, None, now).unwrap(), "the other one is open");
    journal.close_incident(second, IncidentState::Failed, now).unwrap();

    let later = Timestamp::from_millisecond(now.as_millisecond() + 60_000).unwrap();
    let again = NewIncident {
        cause: "lost once more".to_owned(),
        first_sign: later,
        ..cause("postgres-0")
    };
    assert!(journal.reopen_incident(first, Some(&again), later).unwrap());
    let incident = journal.incident(first).unwrap().unwrap();
    assert_eq!((incident.round, incident.cause.as_str()), (1, "lost once more"));
    assert_eq!(incident.first_sign.as_millisecond(), later.as_millisecond());
    assert_eq!(incident.restored_at, None, "it is lost again");
    assert!(!journal.reopen_incident(second, Some(&again), later).unwrap());
    assert!(journal.verify(None).unwrap().findings.is_empty());
}

#[test]
fn an_incident_becomes_graver_never_better_and_only_while_it_is_open() {
    let scene = Scene::new();
    let (journal, now) = (&scene.journal, Timestamp::now());
    let mut workers = cause("workers");
    workers.scenario = Scenario::WorkerPool;
    let id = journal.open_incident(&workers, now).unwrap().id;
    assert!(!journal.escalate(id, Severity::P2, "no", now).unwrap());
    assert!(!journal.escalate(id, Severity::P1, "it is that already", now).unwrap());
    assert!(journal.escalate(id, Severity::P0, "nothing is taken any more", now).unwrap());
    assert_eq!(journal.incident(id).unwrap().unwrap().severity, Severity::P0);
    let lines = resurgam_recovery::account::timeline(journal, id).unwrap();
    let text = lines.iter().map(|(_, line)| line.as_str()).collect::<Vec<_>>().join("\n");
    assert!(text.contains("P0 by now: nothing is taken any more"), "{text}");
    assert!(text.contains("P0 worker-pool on workers: graver than it was"), "{text}");
    journal.close_incident(id, IncidentState::Failed, now).unwrap();
    assert!(!journal.escalate(id, Severity::P0, "too late", now).unwrap());
    assert!(journal.reopen_incident(id, None, now).unwrap());
    assert_eq!(journal.incident(id).unwrap().unwrap().severity, Severity::P1, "it shows anew");
    assert!(journal.verify(None).unwrap().findings.is_empty());
}

/// Many threads notice the same loss at once, over several handles on the same file.
#[test]
fn one_cause_has_one_open_incident_also_under_contention() {
    let dir = tempfile::tempdir().unwrap();
    drop(journal(dir.path()));
    let path = dir.path();
    let ids: Vec<_> = std::thread::scope(|scope| {
        let notice = || {
            let opened = journal(path).open_incident(&cause("postgres-0"), Timestamp::now());
            opened.unwrap().id
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(notice)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

#[tokio::test]
async fn everything_is_there_after_reopening() {
    let scene = Scene::new();
    let id = scene.incident.id;
    scene.journal.add_evidence(id, "postgres-0, 12 ms ago: gone", Timestamp::now()).unwrap();
    scene.journal.add_evidence(id, "its last lines", Timestamp::now()).unwrap();
    scene.execute(None, None).await;
    let state = ClusterState {
        version: 7,
        primary: Some(ComponentName::new("postgres-1").unwrap()),
        created: true,
        former: Some(ComponentName::new("postgres-0").unwrap()),
        ..ClusterState::default()
    };
    scene.journal.set_cluster(&state).unwrap();
    let (incident, steps, evidence) =
        (scene.now(), scene.records(), scene.journal.evidence(id).unwrap());

    let Scene { dir, journal: handle, .. } = scene;
    drop(handle);
    let journal = journal(dir.path());
    assert_eq!(journal.incident(id).unwrap(), Some(incident));
    assert_eq!(journal.steps(id).unwrap(), steps);
    assert_eq!(journal.evidence(id).unwrap(), evidence);
    assert_eq!(evidence[1].1, "its last lines");
    assert_eq!(journal.cluster().unwrap(), state);
}

#[test]
fn a_run_that_did_not_end_in_order_is_known_to_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let begin = || journal(dir.path()).begin_run().unwrap();
    assert!(begin(), "there was none before");
    assert!(!begin(), "the one before did not end");
    journal(dir.path()).end_run().unwrap();
    assert!(begin());
}

#[test]
fn illegal_transitions_are_refused_and_change_nothing() {
    let scene = Scene::new();
    let (journal, id) = (&scene.journal, scene.incident.id);
    let start = |number, name| journal.start_step(id, number, name, Timestamp::now());
    let end = |number, name, status| {
        let output = json!({ "from": name });
        journal.end_step(id, number, name, status, "ended", &output, Timestamp::now())
    };
    let refused = |result: Result<(), Error>, text: &str| {
        let before = scene.records();
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Transition { .. }), "{error:?}");
        assert_eq!(error.to_string(), text);
        assert_eq!(scene.records(), before);
    };

    refused(
        end(0, "fence", StepStatus::Done),
        "step fence of the runbook cannot go from nothing to done",
    );
    start(0, "fence").unwrap();
    refused(start(0, "choose"), "step choose of the runbook cannot go from started to started");
    refused(
        end(0, "choose", StepStatus::Done),
        "step choose of the runbook cannot go from started to done",
    );
    start(0, "fence").unwrap();
    for status in [StepStatus::Done, StepStatus::Skipped, StepStatus::Failed, StepStatus::Refused] {
        let number = 10 + status as u32;
        start(number, "act").unwrap();
        end(number, "act", status).unwrap();
        let word = serde_json::to_value(status).unwrap();
        let word = word.as_str().unwrap();
        refused(
            start(number, "act"),
            &format!("step act of the runbook cannot go from {word} to started"),
        );
        refused(
            end(number, "act", StepStatus::Failed),
            &format!("step act of the runbook cannot go from {word} to failed"),
        );
    }
    // A step is recorded for an incident that exists, or not at all.
    let unknown = resurgam_model::IncidentId::new();
    let error = journal.start_step(unknown, 0, "fence", Timestamp::now()).unwrap_err();
    assert!(matches!(error, Error::Journal { .. }), "{error:?}");
    assert_eq!(scene.records()[0].attempts, 2);
    assert_eq!(scene.records()[0].output, Value::Null);
}

#[test]
fn handles_of_one_journal_see_the_same() {
    let scene = Scene::new();
    let other: Journal = scene.journal.clone();
    other.close_incident(scene.incident.id, IncidentState::Failed, Timestamp::now()).unwrap();
    assert!(scene.journal.open_incidents().unwrap().is_empty());
}
