//! Drills by the calendar, on a copy, and broken off; and what keeps them away.

use std::fs;

use serde_json::Value;

use crate::harness::{LONG, Place, Up, all_complete, submit, until};

/// The only drill of the calendar, as the command shows it.
fn entry(place: &Place) -> Value {
    place.finish(&["drill", "--calendar", "--json"]).json()[0].clone()
}

fn history(place: &Place) -> Vec<Value> {
    let shown = place.finish(&["drill", "--history", "--json"]).json();
    shown.as_array().unwrap().clone()
}

#[test]
fn a_drill_is_held_when_its_time_has_come() {
    let place = Place::for_drills(
        "[[drills]]\nname = 'often'\nschedule = '*/10 * * * * *'\nscenarios = ['worker-pool']\nwithin = '1h'\n",
    );
    let up = Up::ready(&place);
    let passed = until("a drill of the calendar has passed", LONG, &place, || {
        let shown = entry(&place);
        assert_ne!(shown["last"]["outcome"], "failed", "{shown:#}\n{}", place.logs());
        (shown["last"]["outcome"] == "passed").then_some(shown)
    });
    assert_eq!(passed["drill"]["name"], "often");
    assert!(passed["next"].is_string(), "{passed:#}");
    let held = history(&place);
    assert_eq!(held[0]["scenario"], "worker-pool", "{held:#?}");
    let table = place.finish(&["drill", "--calendar"]);
    assert_eq!(table.status.code(), Some(0), "{table:?}");
    assert!(table.out.contains("worker-pool") && table.out.contains("passed"), "{table:?}");
    up.process.stop(&place);
}

#[test]
fn a_blackout_and_an_open_incident_keep_drills_away_and_what_is_missed_is_told() {
    let plan = |blackout: &str| {
        format!(
            "[[drills]]\nname = 'often'\nschedule = '*/2 * * * * *'\nscenarios = ['worker-pool']\nwithin = '1m'\n{blackout}\n[approvals.agent-registry]\nask = 'always'\n"
        )
    };
    let blackout = "[[blackouts]]\nname = 'frozen'\nfrom = '2020-01-01T00:00:00Z'\nuntil = '2100-01-01T00:00:00Z'\n";
    let place = Place::for_drills(&plan(blackout));
    let refused = place.finish(&["drill", "worker-pool", "--plan", "resurgam.toml"]);
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
    assert!(refused.err.contains("the blackout frozen"), "{refused:?}");
    let up = Up::ready(&place);
    until("the drill has to wait", LONG, &place, || {
        place.logs().contains("a drill of the calendar has to wait").then_some(())
    });
    assert_eq!(entry(&place)["last"]["outcome"], "planned");
    up.process.stop(&place);

    // A drill in which the controller was lost is not begun once more by the next one.
    let now = resurgam_model::Timestamp::now();
    let begun = format!(
        "{{\"name\":\"often\",\"due\":\"{now}\",\"at\":\"{now}\",\"outcome\":\"begun\",\"detail\":\"\"}}\n"
    );
    fs::write(place.path("state/calendar.jsonl"), begun).unwrap();
    let up = Up::start(&place);
    until("it is told that it was broken off", LONG, &place, || {
        (entry(&place)["last"]["outcome"] == "broken-off").then_some(())
    });
    assert_eq!(entry(&place)["last"]["due"], now.to_string());
    up.process.stop(&place);

    // As if nobody had run it for years; and an incident is open.
    let text = fs::read_to_string(place.path("resurgam.toml")).unwrap();
    let text = text.replace(blackout, "").replace("*/2 * * * * *", "0 0 1 1 *");
    fs::write(place.path("resurgam.toml"), text).unwrap();
    let long_ago = "{\"name\":\"often\",\"due\":\"2020-01-01T00:00:00Z\",\"at\":\"2020-01-01T00:00:00Z\",\"outcome\":\"passed\",\"detail\":\"\"}\n";
    fs::write(place.path("state/calendar.jsonl"), long_ago).unwrap();
    let mut up = Up::start(&place);
    up.wait_ready(&place);
    let order = place.start(&["recover", "agent-registry"]);
    until("an incident is open", LONG, &place, || {
        let open = place.finish(&["incident", "list", "--open", "--json"]).json();
        open[0]["id"].as_str().map(|_| ())
    });
    let by_hand = place.finish(&["drill", "worker-pool", "--plan", "resurgam.toml"]);
    assert_eq!(by_hand.status.code(), Some(4), "{by_hand:?}");
    assert!(by_hand.err.contains("(agent-registry) is open there"), "{by_hand:?}");
    drop(order);
    let missed = entry(&place)["last"].clone();
    assert_eq!(missed["outcome"], "missed", "{missed:#}");
    let detail = missed["detail"].as_str().unwrap();
    assert!(detail.ends_with("times in a row: the controller did not run"), "{detail}");
    let status = place.finish(&["status"]);
    assert!(status.out.contains("the drill often of"), "{status:?}");
    let audited = place.finish(&["audit", "--json"]).json();
    let findings = audited["findings"].as_array().unwrap();
    assert!(findings.iter().any(|found| found["rule"] == "calendar-missed"), "{audited:#}");
    assert_eq!(place.finish(&["drill", "--calendar"]).status.code(), Some(3));
    up.process.stop(&place);
}

#[test]
fn a_copy_is_broken_and_the_deployment_left_alone() {
    // It need not allow drills for that.
    let place = Place::new(
        "[deployment]\nstate_dir = 'state'\n[backup]\nscheduled = false\n[[backup.vaults]]\nname = 'here'\npath = 'vault'\npassword_file = 'password'\n[[drills]]\nname = 'yearly'\nschedule = '0 0 1 1 *'\nscenarios = ['full-cluster']\non = 'copy'\n",
    );
    fs::write(place.path("password"), "correct horse battery staple").unwrap();
    let mut up = Up::ready(&place);
    let status = up.wait_ready(&place);
    let api = status["api"].as_str().unwrap().to_owned();
    let tasks: Vec<_> = (0..20).map(|n| submit(&api, &format!("kept {n}")).unwrap()).collect();
    all_complete(&api, &tasks, &place);
    assert_eq!(place.finish(&["vault", "init"]).status.code(), Some(0));
    let taken = place.start(&["backup", "run"]).end(&place, LONG);
    assert_eq!(taken.status.code(), Some(0), "{taken:?}");
    let refused = place.finish(&["drill", "worker-pool", "--plan", "resurgam.toml"]);
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");

    let drilled = place
        .start(&["drill", "full-stop", "--copy", "--plan", "resurgam.toml", "--json"])
        .end(&place, LONG);
    assert_eq!(drilled.status.code(), Some(0), "{drilled:?}\n{}", place.logs());
    let report = drilled.json();
    assert_eq!(report["result"], "recovered", "{report:#}");
    assert_eq!(report["deployment"], "local/sqlite (copy)");
    assert_eq!(history(&place), [report]);
    let after = up.wait_ready(&place);
    assert_eq!(after["components"], status["components"], "nothing was touched");
    assert_eq!(place.finish(&["incident", "list", "--json"]).json(), serde_json::json!([]));
    up.process.stop(&place);
}

#[test]
fn a_drill_is_broken_off_by_the_operators_word_and_what_it_stopped_goes_on() {
    let place = Place::for_drills("[store]\nkind = 'postgres'\n");
    let up = Up::ready(&place);
    let none = place.finish(&["drill", "--abort"]);
    assert!(none.out.contains("no drill is under way"), "{none:?}");
    let drill =
        place.start(&["drill", "postgres-standby", "--fault", "freeze", "--plan", "resurgam.toml"]);
    let frozen = until("a standby is frozen", LONG, &place, || {
        place.processes().into_iter().find(|process| process.is_stopped())
    });
    let second = place.finish(&["drill", "worker-pool", "--plan", "resurgam.toml"]);
    assert_eq!(second.status.code(), Some(4), "{second:?}");
    assert!(second.err.contains("another drill is under way"), "{second:?}");
    let aborted = place.finish(&["drill", "--abort"]);
    assert_eq!(aborted.status.code(), Some(0), "{aborted:?}");
    assert_eq!(drill.end(&place, LONG).status.code(), Some(130));
    assert!(!frozen.is_stopped());
    until("everything is well again", LONG, &place, || {
        (place.finish(&["status"]).status.code() == Some(0)).then_some(())
    });
    up.process.stop(&place);
}
