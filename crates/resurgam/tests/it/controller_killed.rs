//! The controller is killed before and after each step of a failover of a real PostgreSQL, and
//! started again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use resurgam_recovery::drill::fault::working_in;
use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{LONG, Place, Up, all_complete, submit, until};

const SCENARIO: &str = "postgres-primary";

/// Hands in tasks without pause, whatever happens, and remembers those that were acknowledged.
pub(crate) struct Load {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<String>>>,
}

impl Load {
    pub(crate) fn start(api: String, round: String) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let ending = Arc::clone(&end);
        let thread = std::thread::spawn(move || {
            let mut acknowledged = Vec::new();
            let mut number = 0;
            while !ending.load(Ordering::Relaxed) {
                number += 1;
                acknowledged.extend(submit(&api, &format!("{round} {number}")));
                std::thread::sleep(Duration::from_millis(20));
            }
            acknowledged
        });
        Self { end, thread: Some(thread) }
    }

    pub(crate) fn end(mut self) -> Vec<String> {
        self.end.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
    }
}

fn incidents(up: &Up, place: &Place) -> Vec<String> {
    let all = up.get(place, "/v1/incidents").unwrap();
    all.as_array().unwrap().iter().map(|i| i["id"].as_str().unwrap().to_owned()).collect()
}

/// The instances that say that they accept writes.
pub(crate) fn primaries(status: &Value) -> Vec<&str> {
    let instances = status["postgres"]["instances"].as_array().unwrap();
    let primary = |i: &&Value| i["observed"]["state"]["is"] == "primary";
    instances.iter().filter(primary).map(|i| i["name"].as_str().unwrap()).collect()
}

/// One loss of the primary in which the controller dies.
fn round(place: &Place, fault: &str) {
    let mut command = place.command(&["up"]);
    command.env("RESURGAM_RECOVERY_FAULT", fault);
    let mut up = Up { process: place.run(command) };
    let status = up.wait_ready(place);
    let known = incidents(&up, place);
    let api = status["api"].as_str().unwrap().to_owned();
    let primary = status["postgres"]["primary"].as_str().unwrap();
    let mut tasks: Vec<_> =
        (0..10).map(|n| submit(&api, &format!("{fault} before {n}")).unwrap()).collect();
    let load = Load::start(api.clone(), fault.to_owned());

    let data = place.path(&format!("state/postgres/{primary}/data"));
    let server = working_in(&data);
    assert!(server.len() > 3, "{server:?}");
    server.iter().for_each(|process| process.signal(Signal::KILL));
    let died = up.process.end(place, LONG);
    let killed = std::os::unix::process::ExitStatusExt::signal(&died.status);
    assert_eq!(killed, Some(9), "{fault}: {died:?}\n{}", place.logs());
    until("all of them die with the controller", LONG, place, || {
        place.processes().is_empty().then_some(())
    });

    let mut up = Up::start(place);
    let status = up.wait_ready(place);
    // A machine that is very busy may lose the primary once more; that has to end well, too.
    let all = up.closed_incidents(place, SCENARIO, &known);
    let false_alarm_allowed = fault.ends_with(":confirm");
    for again in &all[1..] {
        eprintln!("{fault}: lost once more: {}", again["cause"]);
    }
    for incident in &all {
        let state = incident["state"].as_str().unwrap();
        let first = incident["id"] == all[0]["id"];
        assert!(
            state == "recovered" || (state == "false-alarm" && (false_alarm_allowed || !first)),
            "{fault}: {all:#?}\n{}",
            place.logs()
        );
    }
    let id = all[0]["id"].as_str().unwrap();
    let detail = up.get(place, &format!("/v1/incidents/{id}")).unwrap();
    assert_eq!(primaries(&status).len(), 1, "{fault}: {status:#}");
    assert_eq!(primaries(&status)[0], status["postgres"]["primary"], "{fault}: {status:#}");
    let step = fault.split_once(':').unwrap().1;
    let of_step = detail["steps"].as_array().unwrap().iter().find(|s| s["name"] == step).unwrap();
    assert!(of_step["attempts"].as_u64().unwrap() >= 2, "{fault}: {of_step:#}");
    tasks.extend(load.end());
    assert_eq!(status["api"], *api);
    all_complete(&api, &tasks, place);
    up.process.stop(place);
}

/// One deployment goes through all of them, back and forth.
fn rounds(faults: &[&str]) {
    let place = Place::for_drills("[store]\nkind = 'postgres'\n");
    for fault in faults {
        let started = std::time::Instant::now();
        round(&place, fault);
        eprintln!("{fault}: {:?}", started.elapsed());
    }
}

#[test]
fn until_the_former_primary_is_out() {
    rounds(&[
        "die-before:confirm",
        "die-after:confirm",
        "die-before:evidence",
        "die-after:evidence",
        "die-before:fence",
        "die-after:fence",
    ]);
}

#[test]
fn until_the_clients_are_led_to_the_next() {
    rounds(&[
        "die-before:choose",
        "die-after:choose",
        "die-before:promote",
        "die-after:promote",
        "die-before:reroute",
        "die-after:reroute",
    ]);
}

#[test]
fn until_all_is_as_before() {
    rounds(&[
        "die-before:verify",
        "die-after:verify",
        "die-before:rebuild",
        "die-after:rebuild",
        "die-before:redundancy",
        "die-after:redundancy",
    ]);
}
