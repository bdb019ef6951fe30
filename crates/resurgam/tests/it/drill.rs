//! Drills on deployments of their own.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;

use crate::harness::{LONG, Place};

fn drill(arguments: &[&str]) -> Value {
    let place = Place::new("");
    let all = [&["drill", "--json"], arguments].concat();
    let ended = place.start(&all).end(&place, 2 * LONG);
    assert_eq!(ended.status.code(), Some(0), "{arguments:?}: {ended:?}");
    place.assert_nothing_left();
    let report = ended.json();
    assert_eq!(report["scenario"], arguments[0]);
    assert_eq!(report["result"], "recovered", "{report:#}");
    assert_eq!(report["duplicated"], 0, "{report:#}");
    assert_eq!(report["split_brain"], false, "{report:#}");
    report
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// What programs rely on.
fn is_complete(report: &Value) {
    for key in [
        "scenario",
        "severity",
        "deployment",
        "started_at",
        "steps",
        "rto",
        "rpo",
        "acknowledged",
        "lost",
        "duplicated",
        "split_brain",
        "result",
    ] {
        assert!(keys(report).contains(&key), "{key} is missing: {report:#}");
    }
    for objective in ["rto", "rpo"] {
        assert_eq!(keys(&report[objective]), ["measured_ms", "met", "objective_ms"]);
        assert_eq!(report[objective]["met"], true, "{report:#}");
    }
    for step in report["steps"].as_array().unwrap() {
        assert_eq!(
            keys(step),
            ["attempts", "detail", "duration_ms", "name", "started_at", "status"]
        );
        assert!(["done", "skipped"].contains(&step["status"].as_str().unwrap()), "{step:#}");
    }
    assert!(report["acknowledged"].as_u64().unwrap() > 0);
}

fn steps(report: &Value) -> Vec<&str> {
    report["steps"].as_array().unwrap().iter().map(|step| step["name"].as_str().unwrap()).collect()
}

const FAILOVER: [&str; 10] = [
    "confirm",
    "evidence",
    "fence",
    "choose",
    "restore",
    "promote",
    "reroute",
    "verify",
    "rebuild",
    "redundancy",
];

#[test]
fn scenarios_are_listed() {
    let place = Place::new("");
    let ended = place.finish(&["drill", "--list", "--json"]);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let list = ended.json();
    let names: Vec<_> = list.as_array().unwrap().iter().map(|s| &s["scenario"]).collect();
    assert_eq!(
        names,
        [
            "full-cluster",
            "postgres-primary",
            "postgres-restore",
            "database-corruption",
            "full-stop",
            "controller",
            "kafka-cluster",
            "kafka-broker",
            "rabbitmq",
            "api",
            "pool-exhaustion",
            "disk-filling",
            "agent-registry",
            "worker-pool",
            "postgres-standby",
            "stuck-tasks",
            "failback"
        ]
    );
    for scenario in list.as_array().unwrap() {
        assert_eq!(
            keys(scenario),
            ["faults", "rpo", "rto", "scenario", "severity", "stores", "summary"]
        );
    }
}

#[test]
fn everything_is_lost_and_comes_back_from_the_backup() {
    let place = Place::new("");
    let ended = place.start(&["drill", "full-cluster", "--json"]).end(&place, 2 * LONG);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    place.assert_nothing_left();
    let report = ended.json();
    is_complete(&report);
    assert_eq!(report["result"], "recovered", "{report:#}");
    assert_eq!(steps(&report), ["restore", "start"]);
    // The load went on for two seconds after the backup was taken, and more while it was stored.
    let (lost, acknowledged) = (report["lost"].as_u64(), report["acknowledged"].as_u64());
    assert!(lost > Some(0) && lost < acknowledged, "{report:#}");
    assert!(report["rpo"]["measured_ms"].as_u64() > Some(1500), "{report:#}");
}

#[test]
fn a_database_whose_data_are_gone_comes_back_with_the_log_after_the_backup() {
    let report = drill(&["postgres-restore"]);
    is_complete(&report);
    assert_eq!(report["result"], "recovered", "{report:#}");
    assert_eq!(steps(&report), FAILOVER);
    let of = |name: &str| {
        let steps = report["steps"].as_array().unwrap();
        steps.iter().find(|step| step["name"] == name).unwrap().clone()
    };
    assert_eq!(of("restore")["status"], "done", "{report:#}");
    let chosen = of("choose")["detail"].as_str().unwrap().to_owned();
    assert!(chosen.contains("with the log after it"), "{chosen}");
    // The load goes on for seconds after the backup; the log has more than that.
    assert!(report["lost"].as_u64() < report["acknowledged"].as_u64(), "{report:#}");
}

#[test]
fn a_backup_meets_damaged_pages_and_the_standby_takes_over() {
    let report = drill(&["database-corruption"]);
    is_complete(&report);
    assert_eq!(report["result"], "recovered", "{report:#}");
    assert_eq!(report["fault"], "damage");
    assert_eq!(report["lost"], 0, "{report:#}");
    assert_eq!(steps(&report), FAILOVER);
    let step = |name: &str| {
        let steps = report["steps"].as_array().unwrap();
        steps.iter().find(|step| step["name"] == name).unwrap()["detail"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert!(step("confirm").contains("checksum verification failed"), "{report:#}");
    // A rewind would keep the damage.
    assert!(step("rebuild").contains("set-aside/damaged-postgres-0"), "{report:#}");
    assert!(step("rebuild").contains("base backup"), "{report:#}");
}

#[test]
fn a_client_takes_every_connection_and_forgets_them() {
    let place = Place::for_drills(
        "[store]\nkind = 'postgres'\n[postgres]\nstandbys = 0\n\
         [postgres.connections]\nidle_in_transaction = '2s'\n",
    );
    let ended = place
        .start(&["drill", "pool-exhaustion", "--json", "--plan=resurgam.toml"])
        .end(&place, 2 * LONG);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let report = ended.json();
    is_complete(&report);
    assert_eq!(report["result"], "recovered", "{report:#}");
    assert_eq!(report["fault"], "leak");
    assert_eq!((&report["lost"], &report["duplicated"]), (&0.into(), &0.into()), "{report:#}");
    assert_eq!(steps(&report), ["confirm", "evidence", "relieve", "restart", "verify"]);
}

#[test]
fn a_worker_is_lost_on_postgresql() {
    let report = drill(&["worker-pool", "--store", "postgres"]);
    is_complete(&report);
    assert_eq!(report["deployment"], "local/postgres");
    assert_eq!(report["lost"], 0);
}

#[test]
fn the_registry_is_lost_on_sqlite() {
    let report = drill(&["agent-registry", "--store", "sqlite"]);
    is_complete(&report);
    assert_eq!(report["deployment"], "local/sqlite");
    assert_eq!(report["lost"], 0);
}

#[test]
fn the_primary_is_killed() {
    let report = drill(&["postgres-primary"]);
    is_complete(&report);
    assert_eq!(report["fault"], "kill");
    assert_eq!(report["lost"], 0);
    assert_eq!(steps(&report), FAILOVER);
    let outline = resurgam_recovery::runbook::outline(resurgam_model::Scenario::PostgresPrimary);
    assert_eq!(outline.iter().map(|step| step.name).collect::<Vec<_>>(), FAILOVER);
}

#[test]
fn the_primary_is_frozen() {
    let report = drill(&["postgres-primary", "--fault", "freeze"]);
    is_complete(&report);
    assert_eq!(report["fault"], "freeze");
    assert_eq!(report["lost"], 0);
    assert_eq!(steps(&report), FAILOVER);
}

#[test]
fn the_primary_is_killed_and_commits_did_not_wait() {
    let report = drill(&["postgres-primary", "--asynchronous"]);
    is_complete(&report);
    assert_eq!(steps(&report), FAILOVER);
}

#[test]
fn kafka_is_lost_and_messages_take_rabbitmq() {
    // One broker is enough to be a cluster, and three take the machine from the other tests.
    let place = Place::for_drills(
        "[bus]\norder = ['kafka', 'rabbitmq']\nclose_after = '1s'\nreturn_after = '2s'\n\
         [bus.kafka]\nbrokers = 1\n[bus.rabbitmq]\nnodes = 1\n",
    );
    let unfit = place.finish(&["drill", "kafka-broker", "--plan=resurgam.toml"]);
    assert_eq!(unfit.status.code(), Some(2), "{unfit:?}");
    assert!(unfit.err.contains("set bus.kafka.brokers to 3 or more"), "{unfit:?}");
    let ended = place.start(&["drill", "kafka-cluster", "--plan=resurgam.toml", "--json"]);
    let ended = ended.end(&place, 4 * LONG);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.told(&place));
    place.assert_nothing_left();
    let report = ended.json();
    is_complete(&report);
    assert_eq!((&report["lost"], &report["duplicated"]), (&0.into(), &0.into()), "{report:#}");
    assert_eq!(steps(&report), ["confirm", "evidence", "restart", "carry", "whole", "return"]);
    let carry = &report["steps"][3]["detail"];
    assert!(carry.as_str().unwrap().contains("a message sent over"), "{report:#}");
}

#[test]
fn all_scenarios_of_a_plan_are_drilled_and_remembered() {
    let place = Place::new(
        "[deployment]\ndrills = 'allowed'\nstate_dir = 'state'\n[disk]\nmin_free_mb = 0\n\
         [backup]\nscheduled = false\n\
         [[backup.vaults]]\nname = 'here'\npath = 'vault'\npassword_file = 'password'\n",
    );
    fs::write(place.path("password"), "the password of the vault\n").unwrap();
    fs::set_permissions(place.path("password"), Permissions::from_mode(0o600)).unwrap();
    let none = place.finish(&["drill", "--history"]);
    assert_eq!((none.status.code(), none.out.contains("no drills yet")), (Some(0), true));

    let all = ["drill", "--all", "--plan=resurgam.toml", "--json", "--junit=drills.xml"];
    let ended = place.start(&all).end(&place, 4 * LONG);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.told(&place));
    place.assert_nothing_left();
    for left_out in ["postgres-primary", "disk-filling"] {
        assert!(ended.err.contains(&format!("left out: {left_out}: ")), "{}", ended.err);
    }
    let names = |reports: &Value| -> Vec<String> {
        let reports = reports.as_array().unwrap().iter();
        reports.map(|report| report["scenario"].as_str().unwrap().to_owned()).collect()
    };
    let expected = [
        "full-cluster",
        "full-stop",
        "controller",
        "api",
        "agent-registry",
        "worker-pool",
        "stuck-tasks",
    ];
    let mut found = names(&ended.json());
    found.sort_by_key(|name| expected.iter().position(|wanted| wanted == name));
    assert_eq!(found, expected);
    let junit = fs::read_to_string(place.path("drills.xml")).unwrap();
    assert!(junit.contains("tests=\"7\" failures=\"0\" errors=\"0\""), "{junit}");

    // Also what was drilled before everything was lost is remembered.
    let again = place.start(&["drill", "full-cluster", "--plan=resurgam.toml", "--json"]);
    let again = again.end(&place, 2 * LONG);
    assert_eq!(again.status.code(), Some(0), "{}", again.told(&place));
    let history = place.finish(&["drill", "--history", "--json"]).json();
    assert_eq!(history.as_array().unwrap().len(), 8, "{history:#}");
    assert_eq!(history[7], again.json());
    let of_one = place.finish(&["drill", "--history", "full-cluster", "--json"]).json();
    assert_eq!(names(&of_one), ["full-cluster", "full-cluster"]);

    let audit = place.finish(&["audit", "--json"]).json();
    let reach = audit["reach"].as_array().unwrap();
    let full = reach.iter().find(|reach| reach["scenario"] == "full-cluster").unwrap();
    assert_eq!(full["drills"], 2, "{full:#}");
    assert!(full["rto_measured"].is_string(), "{full:#}");
    a_report_tells_of_them(&place);
}

/// As tables, as JSON, and as a page that needs nothing else.
fn a_report_tells_of_them(place: &Place) {
    let table = place.finish(&["report"]);
    assert_eq!(table.status.code(), Some(0), "{table:?}");
    assert!(table.out.contains("full-cluster"), "{table:?}");
    let report = place.finish(&["report", "--json"]).json();
    let scenarios = report["scenarios"].as_array().unwrap();
    let full = scenarios.iter().find(|one| one["scenario"] == "full-cluster").unwrap();
    assert_eq!(full["drills"].as_array().map(Vec::len), Some(2), "{full:#}");
    assert!(full["rto"]["min_ms"].as_u64() <= full["rto"]["max_ms"].as_u64(), "{full:#}");
    let page = place.finish(&["report", "--html", "page.html"]);
    assert_eq!(page.status.code(), Some(0), "{page:?}");
    let html = fs::read_to_string(place.path("page.html")).unwrap();
    for part in ["<svg", "full-cluster", "class=\"objective\"", "journal verify --expect"] {
        assert!(html.contains(part), "{part} is missing");
    }
    for foreign in ["<script", "<link", "@import", "src=", "href=", "url("] {
        assert!(!html.contains(foreign), "{foreign} is in the page");
    }
    for tag in ["details", "table", "svg", "figure", "pre", "p", "tr"] {
        let opened =
            html.matches(&format!("<{tag}>")).count() + html.matches(&format!("<{tag} ")).count();
        assert_eq!(opened, html.matches(&format!("</{tag}>")).count(), "{tag}");
    }
    let nowhere = place.finish(&["report", "--html", "no/such/folder/page.html"]);
    assert_eq!(nowhere.status.code(), Some(1), "{nowhere:?}");
}

#[test]
fn a_disk_that_fills_is_relieved_of_old_logs() {
    let report = drill(&["disk-filling"]);
    assert_eq!(report["fault"], "fill");
    assert_eq!(steps(&report), ["confirm", "evidence", "reclaim", "verify"]);
    is_complete(&report);
    let reclaim = &report["steps"][2]["detail"];
    assert!(reclaim.as_str().unwrap().contains("MB were removed"), "{report:#}");
}

#[test]
fn a_guard_starts_a_controller_again_that_hangs() {
    let report = drill(&["controller", "--fault", "freeze"]);
    assert_eq!(report["fault"], "freeze");
    assert_eq!(steps(&report), ["confirm", "evidence", "restart", "verify"]);
    is_complete(&report);
    // It is given time to answer before it is taken for lost.
    assert!(report["detection_ms"].as_u64().unwrap() >= 10_000, "{report:#}");
}

#[test]
fn a_standby_is_killed_and_redundancy_is_back() {
    let report = drill(&["postgres-standby"]);
    is_complete(&report);
    assert_eq!(report["lost"], 0);
    assert_eq!(steps(&report), ["confirm", "evidence", "restart", "redundancy"]);
    // No server starts, catches up and is heard of in less: what was heard before the fault is not
    // taken for what is so after it.
    assert!(report["rto"]["measured_ms"].as_u64() > Some(200), "{report:#}");
}

#[test]
fn a_standby_is_frozen_and_its_keeper_started_anew() {
    let report = drill(&["postgres-standby", "--fault", "freeze"]);
    is_complete(&report);
    assert_eq!(report["lost"], 0);
    let steps = report["steps"].as_array().unwrap();
    let restart = steps.iter().find(|step| step["name"] == "restart").unwrap();
    assert_eq!(restart["detail"], "restarted postgres-1", "{report:#}");
}

/// A round of faults at random, from its seed.
fn campaign(arguments: &[&str]) -> Value {
    let place = Place::new("");
    let all = [&["drill", "--random", "--for", "1s", "--json"], arguments].concat();
    let ended = place.start(&all).end(&place, 2 * LONG);
    assert_eq!(ended.status.code(), Some(0), "{arguments:?}: {ended:?}");
    place.assert_nothing_left();
    let report = ended.json();
    let rounds = report["rounds"].as_array().unwrap();
    assert_eq!(rounds.len(), 1, "{report:#}");
    assert_eq!(rounds[0]["violations"].as_array().map(Vec::len), Some(0), "{report:#}");
    assert!(report["acknowledged"].as_u64() > Some(0), "{report:#}");
    report
}

#[test]
fn what_is_only_for_faults_at_random_is_refused_elsewhere() {
    let place = Place::new("");
    for arguments in [
        &["drill", "api", "--seed", "3"] as &[&str],
        &["drill", "api", "--for", "1m"],
        &["drill", "--list", "--seed", "3"],
        &["drill", "--random", "api"],
        &["drill", "--random", "--asynchronous"],
        &["drill", "--seed", "3"],
    ] {
        let refused = place.finish(arguments);
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}: {refused:?}");
    }
}

#[test]
fn a_worker_is_killed_while_the_controller_is_frozen() {
    let report = campaign(&["--seed", "3", "--store", "sqlite"]);
    let strikes = report["rounds"][0]["strikes"].as_array().unwrap();
    assert!(strikes[0].as_str().unwrap().starts_with("kill worker worker-pool"), "{report:#}");
    assert_eq!(strikes[1], "freeze controller for 1002 ms", "{report:#}");
    assert_eq!(report["rounds"][0]["incidents"][0]["scenario"], "worker-pool", "{report:#}");
}

#[test]
fn keepers_are_killed_on_both_sides_one_after_the_other() {
    let report = campaign(&["--seed", "21"]);
    let strikes = report["rounds"][0]["strikes"].as_array().unwrap();
    assert!(strikes[0].as_str().unwrap().starts_with("kill keeper of the primary"), "{report:#}");
    assert!(strikes[1].as_str().unwrap().starts_with("kill primary with its keeper"), "{report:#}");
    // The drill's own writers, at every instance.
    assert!(report["writes"].as_u64() > Some(10), "{report:#}");
}
