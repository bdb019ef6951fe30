//! Orders of people to a deployment that runs: recover, approve, restart, scale, and the words on
//! incidents.

use std::fs;

use resurgam_recovery::drill::fault::{Process, working_in};
use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{LONG, Place, Up, until};

const PLAN: &str = "[deployment]\nstate_dir = 'state'\n[workers]\nreplicas = 2\n";

fn names_of(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|step| step["name"].as_str().unwrap()).collect()
}

fn only_incident(place: &Place) -> Value {
    place.finish(&["incident", "list", "--json"]).json()[0].clone()
}

#[test]
fn a_recovery_is_planned_ordered_and_accounted_for() {
    let place = Place::new(PLAN);
    let up = Up::ready(&place);

    let planned = place.finish(&["recover", "agent-registry", "--dry-run", "--json"]).json();
    assert_eq!(planned["possible"], true, "{planned:#}");
    assert_eq!(names_of(&planned["steps"]), ["confirm", "evidence", "restart", "verify"]);
    let none = place.finish(&["recover", "postgres-primary", "--dry-run"]);
    assert_eq!(none.status.code(), Some(4), "{none:?}");
    assert!(none.out.contains("runs no PostgreSQL of its own"), "{none:?}");
    for scenario in ["postgres-primary", "full-cluster"] {
        let refused = place.finish(&["recover", scenario]);
        assert_eq!(refused.status.code(), Some(4), "{refused:?}");
    }
    assert_eq!(place.finish(&["incident", "list", "--json"]).json(), serde_json::json!([]));

    let recovered = place.start(&["recover", "agent-registry"]).end(&place, LONG);
    assert_eq!(recovered.status.code(), Some(0), "{recovered:?}\n{}", place.logs());
    assert!(recovered.out.contains("verify: done"), "{recovered:?}");
    let incident = only_incident(&place);
    assert_eq!(incident["state"], "recovered", "{incident:#}");
    let id = incident["id"].as_str().unwrap();

    assert_eq!(place.finish(&["incident", "note", id, "only a rehearsal"]).status.code(), Some(0));
    let nothing = place.finish(&["incident", "resolve", id, "over"]);
    assert!(nothing.err.contains("it is recovered already"), "{nothing:?}");
    let report = place.finish(&["incident", "report", id, "--output", "post-mortem.md"]);
    assert_eq!(report.status.code(), Some(0), "{report:?}");
    let text = fs::read_to_string(place.path("post-mortem.md")).unwrap();
    for part in ["# P1: agent-registry", "only a rehearsal", "| verify | done |", "## Lessons"] {
        assert!(text.contains(part), "{part} is missing:\n{text}");
    }
    let again = place.finish(&["incident", "report", id, "--output", "post-mortem.md"]);
    assert_eq!(again.status.code(), Some(1), "a file is not overwritten: {again:?}");

    let verified = place.finish(&["journal", "verify"]);
    assert_eq!(verified.status.code(), Some(0), "{verified:?}");
    let head = verified.out.trim().rsplit(' ').next().unwrap().to_owned();
    let expected = place.finish(&["journal", "verify", "--expect", &head]);
    assert_eq!(expected.status.code(), Some(0), "{expected:?}");
    let shown = place.finish(&["journal", "show", "--last", "500"]);
    assert!(shown.out.contains("orders to recover agent-registry"), "{shown:?}");
    up.process.stop(&place);
}

#[test]
fn a_recovery_waits_for_a_person_and_goes_on_at_the_word() {
    let place = Place::new(&format!("{PLAN}[approvals.agent-registry]\nask = 'always'\n"));
    let up = Up::ready(&place);
    let order = place.start(&["recover", "agent-registry"]);
    let waits = until("a step waits", LONG, &place, || {
        let incident = only_incident(&place);
        let id = incident["id"].as_str()?.to_owned();
        let shown = place.finish(&["incident", "show", &id, "--json"]).json();
        let steps = shown["steps"].as_array()?.clone();
        steps.iter().any(|step| step["status"] == "waiting").then_some(id)
    });
    let shown = place.finish(&["incident", "show", &waits]);
    assert!(shown.err.contains("resurgam approve"), "{shown:?}");
    let unknown = place.finish(&["approve", "0199a2c0-0000-7000-8000-000000000001"]);
    assert_eq!(unknown.status.code(), Some(1), "{unknown:?}");
    let approved = place.finish(&["approve", &waits]);
    assert_eq!(approved.status.code(), Some(0), "{approved:?}");
    assert!(approved.err.contains("restart is approved"), "{approved:?}");
    let ended = order.end(&place, LONG);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}\n{}", place.logs());

    // A no ends it, and it can be begun anew.
    let order = place.start(&["recover", "agent-registry"]);
    let second = until("another one waits", LONG, &place, || {
        let open = place.finish(&["incident", "list", "--open", "--json"]).json();
        let id = open[0]["id"].as_str()?.to_owned();
        let shown = place.finish(&["incident", "show", &id, "--json"]).json();
        shown["steps"].as_array()?.iter().any(|s| s["status"] == "waiting").then_some(id)
    });
    assert_eq!(place.finish(&["reject", &second]).status.code(), Some(0));
    let ended = order.end(&place, LONG);
    assert_eq!(ended.status.code(), Some(4), "{ended:?}\n{}", place.logs());
    let resumed = place.start(&["recover", "--resume", &second]);
    until("it waits anew", LONG, &place, || {
        let shown = place.finish(&["incident", "show", &second, "--json"]).json();
        shown["steps"].as_array()?.iter().any(|s| s["status"] == "waiting").then_some(())
    });
    let resolved = place.finish(&["incident", "resolve", &second, "enough for today"]);
    assert_eq!(resolved.status.code(), Some(0), "{resolved:?}");
    assert_eq!(resumed.end(&place, LONG).status.code(), Some(0));
    up.process.stop(&place);
}

#[test]
fn top_shows_what_each_component_uses() {
    let place = Place::new(PLAN);
    let up = Up::ready(&place);
    let looked = place.finish(&["top", "--count", "1", "--json", "--interval", "100ms"]);
    assert_eq!(looked.status.code(), Some(0), "{looked:?}");
    let look = looked.json();
    assert!(look["tasks"]["ready"].is_u64(), "{look:#}");
    let components = look["components"].as_array().unwrap();
    assert_eq!(components.len(), 5, "{look:#}");
    for component in components {
        assert_eq!(component["state"], "running", "{component:#}");
        assert!(component["memory_bytes"].as_u64().unwrap() > 1 << 20, "{component:#}");
        assert_eq!(component["processes"], 1, "{component:#}");
    }
    let table = place.finish(&["top", "-n", "1"]);
    assert!(table.out.contains("worker-pool-1") && table.out.contains("0 ready"), "{table:?}");
    let never = place.finish(&["top", "--interval", "1ms"]);
    assert_eq!(never.status.code(), Some(2), "{never:?}");
    up.process.stop(&place);
}

#[test]
fn components_are_started_again_in_turn_and_the_pool_gets_its_size() {
    let place = Place::new(PLAN);
    let mut up = Up::ready(&place);
    let pids = |status: &Value| -> Vec<u64> {
        let all = status["components"].as_array().unwrap().iter();
        all.map(|component| component["pid"].as_u64().unwrap()).collect()
    };
    let before = pids(&up.status(&place).unwrap());
    let restarted = place.start(&["restart", "--all"]).end(&place, LONG);
    assert_eq!(restarted.status.code(), Some(0), "{restarted:?}\n{}", place.logs());
    let status = up.wait_ready(&place);
    let after = pids(&status);
    assert_eq!(after.len(), before.len());
    assert!(after.iter().all(|pid| !before.contains(pid)), "{before:?} {after:?}");
    assert_eq!(
        place.finish(&["incident", "list", "--json"]).json(),
        serde_json::json!([]),
        "what is done on purpose is no incident"
    );

    let scaled = place.finish(&["scale", "worker-pool", "4"]);
    assert_eq!(scaled.status.code(), Some(0), "{scaled:?}");
    until("there are four workers", LONG, &place, || {
        let status = up.status(&place)?;
        let components = status["components"].as_array()?;
        let workers =
            components.iter().filter(|c| c["kind"] == "worker" && c["state"] == "running");
        (workers.count() == 4).then_some(())
    });
    let logs = place.finish(&["logs", "worker-pool-0", "--lines", "3"]);
    assert_eq!(logs.status.code(), Some(0), "{logs:?}");
    assert!((1..=3).contains(&logs.out.lines().count()), "{logs:?}");
    let unknown = place.finish(&["restart", "nobody"]);
    assert_eq!(unknown.status.code(), Some(2), "{unknown:?}");
    assert!(unknown.err.contains("worker-pool-1"), "it says what there is: {unknown:?}");
    up.process.stop(&place);
}

/// People take their time. What came back meanwhile is not to be fenced.
#[test]
fn a_primary_that_came_back_while_people_thought_keeps_its_reign() {
    let place = Place::new(
        "[deployment]\nstate_dir = 'state'\n[store]\nkind = 'postgres'\n[postgres]\nlease = '20s'\n[approvals.postgres-primary]\nask = 'dangerous'\n",
    );
    let up = Up::ready(&place);
    let before = up.status(&place).unwrap();
    let keeper = before["components"].as_array().unwrap().iter();
    let keeper = keeper.clone().find(|c| c["name"] == "postgres-0").unwrap()["pid"].as_u64();
    let mut frozen = vec![Process::find(u32::try_from(keeper.unwrap()).unwrap()).unwrap()];
    frozen.extend(working_in(&place.path("state/postgres/postgres-0/data")));
    assert!(frozen.len() > 3);
    frozen.iter().for_each(|process| process.signal(Signal::STOP));
    let id = until("the loss is believed, and a step waits", LONG, &place, || {
        let open = place.finish(&["incident", "list", "--open", "--json"]).json();
        let id = open[0]["id"].as_str()?.to_owned();
        let shown = place.finish(&["incident", "show", &id, "--json"]).json();
        shown["steps"].as_array()?.iter().any(|s| s["status"] == "waiting").then_some(id)
    });
    frozen.iter().for_each(|process| process.signal(Signal::CONT));
    until("the primary is heard again", LONG, &place, || {
        let status = up.status(&place)?;
        let instances = status["postgres"]["instances"].as_array()?.clone();
        let primary = instances.into_iter().find(|i| i["name"] == "postgres-0")?;
        let well = primary["observed"]["state"]["is"] == "primary";
        (well && primary["heard_ms"].as_u64()? < 1000).then_some(())
    });
    assert_eq!(place.finish(&["approve", &id]).status.code(), Some(0));
    let incident = up.closed_incidents(&place, "postgres-primary", &[]).remove(0);
    assert_eq!(incident["state"], "false-alarm", "{incident:#}\n{}", place.logs());
    let after = up.status(&place).unwrap();
    assert_eq!(after["postgres"]["primary"], "postgres-0");
    assert_eq!(after["postgres"]["epoch"], before["postgres"]["epoch"], "no reign was taken away");
    up.process.stop(&place);
}
