//! A deployment from its start to its end, in order and otherwise.

use resurgam_recovery::drill::fault::Process;
use rustix::process::Signal;

use crate::harness::{LONG, Place, SHORT, Up, all_complete, descendants, submit, until};

const PLAN: &str = "[deployment]\nstate_dir = 'state'\n";

#[test]
fn tasks_are_done_and_the_end_is_in_order() {
    let place = Place::new(PLAN);
    let up = Up::ready(&place);
    let status = place.finish(&["status", "--json"]);
    assert_eq!(status.status.code(), Some(0), "{status:?}");
    let status = status.json();
    assert_eq!(status["kind"], "local/sqlite");
    assert_eq!(status["ready"], true);
    assert_eq!(status["incidents"], serde_json::json!([]));
    let names: Vec<_> =
        status["components"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
    assert_eq!(
        names,
        [
            "agent-registry",
            "dotnetagents-api",
            "dotnetagents-supervisor",
            "worker-pool-0",
            "worker-pool-1",
            "worker-pool-2"
        ]
    );

    let api = status["api"].as_str().unwrap();
    let tasks: Vec<_> = (0..20).map(|n| submit(api, &format!("task {n}")).unwrap()).collect();
    all_complete(api, &tasks, &place);

    assert_eq!(descendants(up.process.id()).len(), 6);
    up.process.stop(&place);
    assert!(!place.path("state/controller.json").exists());
    let status = place.finish(&["status"]);
    assert_eq!(status.status.code(), Some(1), "{status:?}");

    // An end in order is nothing to recover from.
    let up = Up::ready(&place);
    assert_eq!(up.get(&place, "/v1/incidents"), Some(serde_json::json!([])));
    all_complete(api, &tasks, &place);
    up.process.stop(&place);
}

#[test]
fn an_interrupt_is_an_end_in_order_as_well() {
    let place = Place::new(PLAN);
    let up = Up::ready(&place);
    up.process.signal(Signal::INT);
    let ended = up.process.end(&place, SHORT);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    place.assert_no_process();
}

#[test]
fn an_end_is_possible_at_once() {
    let place = Place::new(PLAN);
    let up = Up::start(&place);
    until("it says where it is", SHORT, &place, || up.controller(&place));
    up.process.stop(&place);
}

#[test]
fn a_full_stop_is_recovered_from() {
    let place = Place::new(PLAN);
    let up = Up::ready(&place);
    let api = up.status(&place).unwrap()["api"].as_str().unwrap().to_owned();
    let tasks: Vec<_> = (0..200).map(|n| submit(&api, &format!("task {n}")).unwrap()).collect();
    let children = descendants(up.process.id());
    assert_eq!(children.len(), 6);
    assert!(children.iter().all(Process::is_alive));
    up.process.signal(Signal::KILL);
    up.process.end(&place, SHORT);
    until("its children die with it", SHORT, &place, || {
        children.iter().all(|child| !child.is_alive()).then_some(())
    });
    place.assert_no_process();

    let mut up = Up::start(&place);
    let incident = up.closed_incidents(&place, "full-stop", &[]).remove(0);
    assert_eq!(incident["state"], "recovered", "{incident:#}");
    assert!(!incident["restored_at"].is_null(), "{incident:#}");
    let status = up.wait_ready(&place);
    assert_eq!(status["api"], api, "the address stays the same");
    all_complete(&api, &tasks, &place);

    let id = incident["id"].as_str().unwrap();
    let shown = place.finish(&["incident", "show", id, "--json"]).json();
    let steps: Vec<_> = shown["steps"].as_array().unwrap().iter().map(|s| &s["name"]).collect();
    assert_eq!(steps, ["confirm", "evidence", "restart", "verify"]);
    let listed = place.finish(&["incident", "list", "--json"]).json();
    assert_eq!(listed.as_array().unwrap().len(), 1, "{listed:#}");
    up.process.stop(&place);
}

/// Whatever runs on this machine, `up` does not leave its workers' children behind either.
#[test]
fn programs_of_workers_end_with_the_deployment() {
    let place = Place::new(
        "[deployment]\nstate_dir = 'state'\n[workers]\nreplicas = 1\ncapabilities = ['nap']\nexec = ['sleep', '300']\n",
    );
    let up = Up::ready(&place);
    let api = up.status(&place).unwrap()["api"].as_str().unwrap().to_owned();
    let task = serde_json::json!({ "capability": "nap" });
    let answer = crate::http::post(&format!("{api}/tasks"), &task).unwrap();
    assert_eq!(answer.status, 201, "{answer:?}");
    let before = 4;
    let all = until("the program runs", LONG, &place, || {
        Some(descendants(up.process.id())).filter(|all| all.len() > before)
    });
    up.process.signal(Signal::KILL);
    up.process.end(&place, SHORT);
    until("all of them die", SHORT, &place, || {
        all.iter().all(|child| !child.is_alive()).then_some(())
    });
}
