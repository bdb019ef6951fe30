//! What the program says to what cannot be done, and with which exit code.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use insta::assert_snapshot;

use crate::harness::{Place, SHORT};

fn told(plan: &str, arguments: &[&str]) -> String {
    let place = Place::new(plan);
    let told = place.finish(arguments).told(&place);
    assert!(!place.path("state").exists(), "nothing may have been made");
    place.assert_no_process();
    told
}

#[test]
fn a_missing_plan() {
    assert_snapshot!(told("", &["up", "--plan", "other.toml"]), @"
    exit 2
    resurgam: the plan other.toml cannot be read: No such file or directory (os error 2); name another with --plan, or leave it out to run embedded
    ");
}

#[test]
fn an_unknown_key() {
    assert_snapshot!(told("[workers]\nreplicsa = 3\n", &["up"]), @"
    exit 2
    resurgam: resurgam.toml: the plan cannot be read:
    TOML parse error at line 2, column 1
      |
    2 | replicsa = 3
      | ^^^^^^^^
    unknown field `replicsa`, expected one of `replicas`, `min`, `max`, `drain_within`, `shrink_after`, `capabilities`, `exec`, `concurrency`, `lease`
    ");
}

#[test]
fn a_value_of_the_wrong_kind() {
    assert_snapshot!(told("[workers]\nreplicas = 'three'\n", &["up"]), @r#"
    exit 2
    resurgam: resurgam.toml: the plan cannot be read:
    TOML parse error at line 2, column 12
      |
    2 | replicas = 'three'
      |            ^^^^^^^
    invalid type: string "three", expected u16
    "#);
}

#[test]
fn a_value_out_of_range() {
    assert_snapshot!(told("[postgres]\nlease = '1ms'\n", &["up"]), @"
    exit 2
    resurgam: resurgam.toml: the plan cannot be used: `postgres.lease` is 1ms; it must be from 500ms to 1h
    ");
}

#[test]
fn a_plan_that_is_no_toml() {
    assert_snapshot!(told("[workers\n", &["plan", "show"]), @"
    exit 2
    resurgam: resurgam.toml: the plan cannot be read:
    TOML parse error at line 1, column 9
      |
    1 | [workers
      |         ^
    unclosed table, expected `]`
    ");
}

#[test]
fn an_unknown_flag() {
    assert_snapshot!(told("", &["up", "--bogus"]), @"
    exit 2
    error: unexpected argument '--bogus' found

    Usage: resurgam up [OPTIONS]

    For more information, try '--help'.
    ");
}

#[test]
fn an_unknown_scenario() {
    assert_snapshot!(told("", &["drill", "postgres-primry"]), @r#"
    exit 2
    error: invalid value 'postgres-primry' for '[SCENARIO]': there is no scenario "postgres-primry"; did you mean postgres-primary?

    For more information, try '--help'.
    "#);
}

#[test]
fn an_unknown_fault() {
    assert_snapshot!(told("", &["drill", "api", "--fault", "burn"]), @r#"
    exit 2
    error: invalid value 'burn' for '--fault <FAULT>': there is no fault "burn"; use kill or freeze

    For more information, try '--help'.
    "#);
}

#[test]
fn a_drill_of_a_plan_that_does_not_allow_it() {
    let plan = "[deployment]\nstate_dir = 'state'\n";
    assert_snapshot!(told(plan, &["drill", "api", "--plan", "resurgam.toml"]), @r#"
    exit 4
    resurgam: the plan resurgam.toml does not allow drills; if this deployment may be broken on purpose, set deployment.drills = "allowed" in it
    "#);
}

#[test]
fn a_drill_that_the_plan_cannot_have() {
    let plan = "[deployment]\ndrills = 'allowed'\nstate_dir = 'state'\n";
    assert_snapshot!(told(plan, &["drill", "postgres-primary", "--plan", "resurgam.toml"]), @r#"
    exit 2
    resurgam: the plan resurgam.toml runs no PostgreSQL of its own; set store.kind = "postgres" to drill postgres-primary
    "#);
}

#[test]
fn postgres_primary_on_sqlite() {
    assert_snapshot!(told("", &["drill", "postgres-primary", "--store", "sqlite"]), @"
    exit 2
    resurgam: postgres-primary needs --store postgres
    ");
}

#[test]
fn asynchronous_without_postgres() {
    assert_snapshot!(told("", &["drill", "api", "--asynchronous"]), @"
    exit 2
    resurgam: --asynchronous is about PostgreSQL; add --store postgres
    ");
}

#[test]
fn serve_without_a_database() {
    assert_snapshot!(told("", &["serve", "--role", "api"]), @"
    exit 2
    resurgam: no database was named: set DATABASE_URL, or give --sqlite FILE
    ");
}

#[test]
fn a_worker_that_can_do_nothing() {
    assert_snapshot!(told("", &["worker", "--capability", "translate"]), @"
    exit 2
    resurgam: nothing built in can do translate; name the program that can with --exec
    ");
}

#[test]
fn the_status_of_nothing() {
    let plan = "[deployment]\nstate_dir = 'state'\n";
    assert_snapshot!(told(plan, &["status"]), @"
    exit 1
    resurgam: nothing runs on [dir]/state; start it with: resurgam up
    ");
}

#[test]
fn the_incidents_of_nothing() {
    let plan = "[deployment]\nstate_dir = 'state'\n";
    assert_snapshot!(told(plan, &["incident", "list"]), @"
    exit 1
    resurgam: there is no journal at [dir]/state/journal.db; nothing has run there yet
    ");
}

#[test]
fn a_folder_without_postgresql() {
    let plan =
        "[deployment]\nstate_dir = 'state'\n[store]\nkind = 'postgres'\n[postgres]\nbin_dir = ";
    let place = Place::new("");
    let plan = format!("{plan}'{}'\n", place.path("tmp").display());
    fs::write(place.path("resurgam.toml"), plan).unwrap();
    assert_snapshot!(place.finish(&["up"]).told(&place), @"
    exit 1
    resurgam: [dir]/tmp has no postgres; install PostgreSQL's server programs 15 or later, or set postgres.bin_dir in the plan to their folder
    ");
    place.assert_no_process();
}

#[test]
fn a_postgresql_that_is_too_old() {
    let place = Place::new("");
    let bin = place.path("old/bin");
    fs::create_dir_all(&bin).unwrap();
    for program in ["postgres", "initdb", "pg_basebackup", "pg_controldata", "pg_rewind"] {
        let file = bin.join(program);
        fs::write(&file, "#!/bin/sh\necho 'postgres (PostgreSQL) 13.11'\n").unwrap();
        fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let plan = format!(
        "[deployment]\nstate_dir = 'state'\n[store]\nkind = 'postgres'\n[postgres]\nbin_dir = '{}'\n",
        bin.display()
    );
    fs::write(place.path("resurgam.toml"), plan).unwrap();
    assert_snapshot!(place.finish(&["up"]).told(&place), @"
    exit 1
    resurgam: PostgreSQL 13 in [dir]/old/bin is too old; install 15 or later, or set postgres.bin_dir in the plan to a newer one
    ");
    place.assert_no_process();
}

#[test]
fn faults_in_the_recovery_only_where_drills_are_allowed() {
    let place = Place::new("[deployment]\nstate_dir = 'state'\n");
    let with = |fault: &str| {
        let mut command = place.command(&["up"]);
        command.env("RESURGAM_RECOVERY_FAULT", fault);
        place.run(command).end(&place, SHORT).told(&place)
    };
    assert_snapshot!(with("die-before:fence"), @r#"
    exit 4
    resurgam: RESURGAM_RECOVERY_FAULT is set, but the plan does not say deployment.drills = "allowed"
    "#);
    fs::write(
        place.path("resurgam.toml"),
        "[deployment]\ndrills = 'allowed'\nstate_dir = 'state'\n",
    )
    .unwrap();
    assert_snapshot!(with("explode:fence"), @r#"
    exit 2
    resurgam: RESURGAM_RECOVERY_FAULT="explode:fence" names no fault; write die-before, die-after, fail-once or repeat, a colon, and a step
    "#);
    place.assert_no_process();
}

#[test]
fn a_journal_that_is_none() {
    let place = Place::new("[deployment]\nstate_dir = 'state'\n");
    fs::create_dir(place.path("state")).unwrap();
    fs::write(place.path("state/journal.db"), "not a database ".repeat(500)).unwrap();
    assert_snapshot!(place.finish(&["up"]).told(&place), @"
    exit 1
    resurgam: the recovery journal [dir]/state/journal.db cannot be opened: file is not a database: Error code 26: file is not a database
    ");
    assert_snapshot!(place.finish(&["incident", "list"]).told(&place), @"
    exit 1
    resurgam: the recovery journal [dir]/state/journal.db cannot be opened: file is not a database: Error code 26: file is not a database
    ");
    place.assert_no_process();
}
