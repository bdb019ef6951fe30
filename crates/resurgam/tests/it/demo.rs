//! `resurgam demo`, to its end and interrupted.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::{LONG, Place, Running, SHORT, until};

#[test]
fn four_losses_are_recovered_from_in_under_a_minute() {
    let place = Place::new("");
    let started = Instant::now();
    let ended = place.start(&["demo", "--json"]).end(&place, LONG);
    let took = started.elapsed();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let reports = ended.json();
    let reports = reports.as_array().unwrap();
    let scenarios: Vec<_> = reports.iter().map(|report| &report["scenario"]).collect();
    assert_eq!(scenarios, ["worker-pool", "agent-registry", "api", "full-stop"]);
    for report in reports {
        assert_eq!(report["result"], "recovered", "{report:#}");
        assert_eq!(report["lost"], 0);
        assert_eq!(report["duplicated"], 0);
        assert_ne!(report["acknowledged"], 0);
    }
    assert!(took < Duration::from_secs(60), "{took:?}");
    place.assert_nothing_left();
}

/// Interrupts it once `moment` has come, and checks that nothing is left.
fn interrupted(arguments: &[&str], moment: impl Fn(&Place, &Running) -> bool) {
    let place = Place::new("");
    let demo = place.start(arguments);
    until("the moment comes", LONG, &place, || moment(&place, &demo).then_some(()));
    demo.signal(Signal::INT);
    let ended = demo.end(&place, SHORT);
    assert_eq!(ended.status.code(), Some(130), "{ended:?}");
    assert!(ended.err.contains("resurgam: interrupted"), "{ended:?}");
    place.assert_nothing_left();
}

/// The files of the only temporary deployment that match.
fn there(place: &Place, file: &str) -> bool {
    place.temporary_files().iter().any(|dir| dir.join(file).exists())
}

#[test]
fn an_interrupt_leaves_nothing_as_soon_as_there_is_a_folder() {
    interrupted(&["demo"], |place, _| !place.temporary_files().is_empty());
}

#[test]
fn an_interrupt_leaves_nothing_while_the_deployment_starts() {
    interrupted(&["demo"], |place, _| there(place, "state/controller.json"));
}

#[test]
fn an_interrupt_leaves_nothing_while_agents_work() {
    interrupted(&["demo"], |place, _| there(place, "state/store/platform.db-wal"));
}

#[test]
fn an_interrupt_leaves_nothing_during_a_recovery() {
    interrupted(&["demo"], |_, demo| demo.said().contains("waiting for the recovery"));
}

#[test]
fn an_interrupt_leaves_nothing_after_a_full_stop() {
    interrupted(&["demo"], |_, demo| demo.said().contains("full-stop: killing every process"));
}

#[test]
fn an_interrupt_leaves_no_database() {
    let primary = ["drill", "postgres-primary"];
    interrupted(&primary, |place, _| there(place, "state/postgres/postgres-0/data/base"));
    interrupted(&primary, |_, drill| drill.said().contains("waiting for the promotion"));
}

#[test]
fn the_table_is_for_people() {
    let place = Place::new("");
    let ended = place.start(&["demo"]).end(&place, LONG);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(ended.out.contains("full-stop"), "{}", ended.out);
    assert!(ended.out.contains("tasks were acknowledged while this happened"), "{}", ended.out);
}
