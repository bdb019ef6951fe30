//! The database is handed over in order: by command, and while the controller dies at its steps.

use serde_json::Value;

use crate::controller_killed::{Load, primaries};
use crate::harness::{LONG, Place, Up, all_complete, until};

const PLAN: &str = "[store]\nkind = 'postgres'\n";

fn reigning(status: &Value) -> &str {
    status["postgres"]["primary"].as_str().unwrap_or_default()
}

#[test]
fn another_instance_reigns_by_order_and_the_preferred_one_again() {
    let place = Place::for_drills(PLAN);
    let mut up = Up::ready(&place);
    let status = up.wait_ready(&place);
    let api = status["api"].as_str().unwrap().to_owned();
    assert_eq!(reigning(&status), "postgres-0");
    let nothing = place.finish(&["failback"]);
    assert_eq!(nothing.status.code(), Some(0), "{nothing:?}");
    let unknown = place.finish(&["failback", "--to", "postgres-7"]);
    assert_eq!(unknown.status.code(), Some(2), "{unknown:?}");
    assert!(unknown.err.contains("there are postgres-0, postgres-1"), "{unknown:?}");

    let load = Load::start(api.clone(), "handed over".to_owned());
    let planned = place.finish(&["failback", "--to", "postgres-1", "--dry-run"]);
    assert_eq!(planned.status.code(), Some(0), "{planned:?}");
    assert!(planned.out.contains("postgres-0 hands over to postgres-1"), "{planned:?}");
    assert_eq!(place.finish(&["incident", "list", "--json"]).json(), serde_json::json!([]));
    let over = place.start(&["failback", "--to", "postgres-1"]).end(&place, LONG);
    assert_eq!(over.status.code(), Some(0), "{over:?}\n{}", place.logs());
    let status = up.wait_ready(&place);
    assert_eq!(reigning(&status), "postgres-1");
    let told = place.finish(&["status"]);
    assert!(told.out.contains("the plan prefers postgres-0 as the primary"), "{told:?}");

    let back = place.start(&["failback"]).end(&place, LONG);
    assert_eq!(back.status.code(), Some(0), "{back:?}\n{}", place.logs());
    let status = up.wait_ready(&place);
    assert_eq!(primaries(&status), ["postgres-0"], "{status:#}");
    all_complete(&api, &load.end(), &place);
    let incidents = place.finish(&["incident", "list", "--json"]).json();
    for incident in incidents.as_array().unwrap() {
        let expected = ("failback", "recovered", "P3");
        let found = (&incident["scenario"], &incident["state"], &incident["severity"]);
        assert_eq!(found.0, expected.0, "{incident:#}");
        assert_eq!(found.1, expected.1, "{incident:#}");
        assert_eq!(found.2, expected.2, "{incident:#}");
    }
    assert_eq!(incidents.as_array().unwrap().len(), 2, "{incidents:#}");
    up.process.stop(&place);
}

#[test]
fn a_handover_that_people_refuse_leaves_all_as_it_was() {
    let place = Place::for_drills(&format!(
        "{PLAN}[postgres]\nsynchronous = false\n[approvals.failback]\nask = 'dangerous'\n"
    ));
    let mut up = Up::ready(&place);
    let epoch = up.wait_ready(&place)["postgres"]["epoch"].clone();
    let order = place.start(&["failback", "--to", "postgres-1"]);
    let id = until("the fence waits for a person", LONG, &place, || {
        let open = place.finish(&["incident", "list", "--open", "--json"]).json();
        let id = open[0]["id"].as_str()?.to_owned();
        let shown = place.finish(&["incident", "show", &id, "--json"]).json();
        shown["steps"].as_array()?.iter().any(|s| s["status"] == "waiting").then_some(id)
    });
    assert_eq!(up.status(&place).unwrap()["postgres"]["synchronous"], "postgres-1");
    assert_eq!(place.finish(&["reject", &id]).status.code(), Some(0));
    let ended = order.end(&place, LONG);
    assert_eq!(ended.status.code(), Some(4), "{ended:?}\n{}", place.logs());
    // Commits wait for nobody again, as the plan wants it.
    let status = until("commits wait for nobody", LONG, &place, || {
        let status = up.status(&place)?;
        status["postgres"]["synchronous"].is_null().then_some(status)
    });
    assert_eq!(reigning(&status), "postgres-0");
    assert_eq!(status["postgres"]["epoch"], epoch);
    up.process.stop(&place);
}

/// Hands over to and fro; the controller dies at a step, and the next one goes on.
fn rounds(faults: &[&str]) {
    let place = Place::for_drills(PLAN);
    for (number, fault) in faults.iter().enumerate() {
        let to = if number % 2 == 0 { "postgres-1" } else { "postgres-0" };
        let mut command = place.command(&["up"]);
        command.env("RESURGAM_RECOVERY_FAULT", fault);
        let mut up = Up { process: place.run(command) };
        let status = up.wait_ready(&place);
        let api = status["api"].as_str().unwrap().to_owned();
        let load = Load::start(api.clone(), (*fault).to_owned());
        let order = place.start(&["failback", "--to", to]);
        let died = up.process.end(&place, LONG);
        let killed = std::os::unix::process::ExitStatusExt::signal(&died.status);
        assert_eq!(killed, Some(9), "{fault}: {died:?}\n{}", place.logs());
        until("all of them die with the controller", LONG, &place, || {
            (place.processes().len() <= 1).then_some(())
        });
        let mut up = Up::start(&place);
        // Whoever has ordered it follows it beyond the death of the controller.
        let ended = order.end(&place, LONG);
        assert_eq!(ended.status.code(), Some(0), "{fault}: {ended:?}\n{}", place.logs());
        let status = up.wait_ready(&place);
        assert_eq!(primaries(&status), [to], "{fault}: {status:#}");
        assert_eq!(reigning(&status), to, "{fault}: {status:#}");
        all_complete(&api, &load.end(), &place);
        up.process.stop(&place);
    }
}

#[test]
fn the_controller_dies_before_and_while_nobody_reigns_and_after() {
    rounds(&["die-after:catch-up", "die-after:fence", "die-before:promote", "die-after:promote"]);
}
