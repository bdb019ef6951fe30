//! Backups as people take, prove and restore them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{LONG, Place, SHORT, Up, all_complete, submit, until};

const VAULT: &str =
    "[[backup.vaults]]\nname = 'here'\npath = 'vault'\npassword_file = 'password'\n";

/// Backups are taken when the test says so.
pub(crate) fn place(more: &str) -> Place {
    scheduled(&format!("{more}[backup]\nscheduled = false\n"))
}

pub(crate) fn scheduled(more: &str) -> Place {
    let place = Place::new(&format!("[deployment]\nstate_dir = 'state'\n{more}{VAULT}"));
    fs::write(place.path("password"), "correct horse\n").unwrap();
    let made = place.finish(&["vault", "init"]);
    assert_eq!(made.status.code(), Some(0), "{made:?}");
    place
}

pub(crate) fn api(up: &Up, place: &Place) -> String {
    up.status(place).unwrap()["api"].as_str().unwrap().to_owned()
}

pub(crate) fn tasks(api: &str, from: u32, to: u32) -> Vec<String> {
    (from..to).map(|n| submit(api, &format!("task {n}")).unwrap()).collect()
}

/// Takes a backup and restores it on trial.
pub(crate) fn back_up(place: &Place) -> Value {
    let taken = place.start(&["backup", "run", "--verify", "--json"]).end(place, LONG);
    assert_eq!(taken.status.code(), Some(0), "{taken:?}\n{}", place.logs());
    taken.json()[0].clone()
}

pub(crate) fn restore(place: &Place, more: &[&str]) {
    let arguments = [&["restore", "--latest", "--yes"], more].concat();
    let restored = place.start(&arguments).end(place, LONG);
    assert_eq!(restored.status.code(), Some(0), "{restored:?}\n{}", place.logs());
}

fn listed(place: &Place) -> Vec<Value> {
    let list = place.finish(&["backup", "list", "--json"]);
    assert_eq!(list.status.code(), Some(0), "{list:?}");
    list.json().as_array().unwrap().clone()
}

#[test]
fn a_damaged_sqlite_database_is_replaced_by_the_last_backup() {
    let place = place("");
    let up = Up::ready(&place);
    let address = api(&up, &place);
    let before = tasks(&address, 0, 50);
    all_complete(&address, &before, &place);
    let backup = back_up(&place);
    assert!(!backup["proof"]["verified"].is_null(), "{backup:#}");
    assert_eq!(backup["manifest"]["database"], "sqlite");
    tasks(&address, 50, 60);

    let refused = place.finish(&["restore", "--latest", "--yes"]);
    assert_eq!(refused.status.code(), Some(1), "never beneath a deployment that runs: {refused:?}");
    assert!(refused.err.contains("stop it first"), "{refused:?}");
    up.process.stop(&place);

    let database = place.path("state/store/platform.db");
    let mut bytes = fs::read(&database).unwrap();
    let middle = bytes.len() / 2;
    bytes[100..middle].fill(0x5a);
    fs::write(&database, &bytes).unwrap();
    let asked = place.finish(&["restore", "--latest"]);
    assert_eq!(asked.status.code(), Some(4), "nobody is there to be asked: {asked:?}");
    assert_eq!(fs::read(&database).unwrap(), bytes, "nothing was changed");
    restore(&place, &[]);

    let mut up = Up::start(&place);
    up.wait_ready(&place);
    all_complete(&address, &before, &place);
    all_complete(&address, &tasks(&address, 60, 70), &place);
    up.process.stop(&place);
    let aside = fs::read_dir(place.path("state/set-aside")).unwrap().next().unwrap().unwrap();
    assert_eq!(fs::read(aside.path().join("store/platform.db")).unwrap(), bytes);
    let shown = place.finish(&["journal", "show"]);
    assert!(shown.out.contains("has restored the backup"), "{shown:?}");
    assert_eq!(place.finish(&["journal", "verify"]).status.code(), Some(0));
}

#[test]
fn postgresql_comes_back_when_the_whole_state_folder_is_gone() {
    let place = place("[store]\nkind = 'postgres'\n");
    let up = Up::ready(&place);
    let address = api(&up, &place);
    let before = tasks(&address, 0, 50);
    all_complete(&address, &before, &place);
    let first = back_up(&place);
    assert!(!first["proof"]["verified"].is_null(), "{first:#}");
    let before = [before, tasks(&address, 50, 80)].concat();
    let second = back_up(&place);
    assert!(second["added"].as_u64() < second["size"].as_u64().map(|size| size / 4), "{second:#}");
    up.process.signal(Signal::KILL);
    up.process.end(&place, SHORT);
    until("everything dies with it", SHORT, &place, || place.processes().is_empty().then_some(()));
    fs::remove_dir_all(place.path("state")).unwrap();

    restore(&place, &[]);
    let mut up = Up::start(&place);
    let status = up.wait_ready(&place);
    assert!(!status["postgres"]["complete"].is_null(), "its standby is made anew: {status:#}");
    all_complete(&api(&up, &place), &before, &place);
    // And it goes on to be a deployment that can be backed up.
    back_up(&place);
    up.process.stop(&place);
}

#[test]
fn the_standard_program_reads_a_vault() {
    let place = place("");
    let up = Up::ready(&place);
    let backup = back_up(&place);
    up.process.stop(&place);
    let restic = |arguments: &[&str]| {
        let mut command = Command::new("restic");
        place.prepare(&mut command);
        command.args(["--no-cache", "--repo", "vault", "--password-file", "password"]);
        let output = command.args(arguments).output().expect("restic is installed");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let snapshots: Value = serde_json::from_str(&restic(&["snapshots", "--json"])).unwrap();
    let id = backup["id"].as_str().unwrap();
    assert!(snapshots[0]["tags"].to_string().contains(id), "{snapshots:#}");
    restic(&["check", "--read-data"]);
    restic(&["restore", "latest", "--target", "out"]);
    assert!(place.path("out/recovery-point/database/platform.db").is_file());
}

/// Programs of PostgreSQL, one of which is replaced.
fn programs_with(place: &Place, name: &str, script: &str) -> std::path::PathBuf {
    let real = resurgam_deployment::postgres::Programs::find(None).unwrap().bin_dir;
    let dir = place.path("programs");
    fs::create_dir(&dir).unwrap();
    for entry in fs::read_dir(&real).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != name {
            std::os::unix::fs::symlink(entry.path(), dir.join(entry.file_name())).unwrap();
        }
    }
    let script = script.replace("REAL", real.join(name).to_str().unwrap());
    fs::write(dir.join(name), format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

#[test]
fn a_copy_that_failed_or_is_not_whole_never_becomes_a_backup() {
    let place = place("[store]\nkind = 'postgres'\n[postgres]\nstandbys = 0\n");
    let up = Up::ready(&place);
    for (script, word) in [
        // Killed half-way.
        ("REAL \"$@\" & sleep 0.1; kill -9 $!; wait $!", "exit status: 137"),
        ("REAL \"$@\"; exit 3", "exit status: 3"),
        // The last argument is the folder.
        (
            "REAL \"$@\" || exit 1; for last; do :; done; : > \"$last/global/pg_filenode.map\"",
            "the base backup is damaged",
        ),
        (
            "REAL \"$@\" || exit 1; for last; do :; done; rm -r \"$last/pg_wal\"",
            "the base backup is damaged",
        ),
    ] {
        let dir = programs_with(&place, "pg_basebackup", script);
        let plan = fs::read_to_string(place.path("resurgam.toml")).unwrap();
        let plan =
            plan.replace("standbys = 0", &format!("standbys = 0\nbin_dir = '{}'", dir.display()));
        fs::write(place.path("odd.toml"), plan).unwrap();
        let failed = place.start(&["backup", "run", "--plan", "odd.toml"]).end(&place, LONG);
        assert_eq!(failed.status.code(), Some(1), "{script}: {failed:?}");
        assert!(failed.err.contains(word), "{script}: {failed:?}");
        assert!(!failed.err.contains("correct horse"), "{failed:?}");
        fs::remove_dir_all(dir).unwrap();
        assert!(listed(&place).is_empty(), "{script}");
        assert!(!place.path("state/backup/content").exists(), "nothing is left lying about");
    }
    up.process.stop(&place);
}

fn greatest_file(dir: &Path) -> std::path::PathBuf {
    let mut folders = vec![dir.to_owned()];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.into_iter().max_by_key(|file| fs::metadata(file).unwrap().len()).unwrap()
}

#[test]
fn a_flipped_bit_is_found_and_the_next_older_backup_is_offered() {
    let place = place("");
    let up = Up::ready(&place);
    let address = api(&up, &place);
    let old = back_up(&place);
    all_complete(&address, &tasks(&address, 0, 400), &place);
    let packs: Vec<_> = packs(&place);
    let new = back_up(&place);
    up.process.stop(&place);
    let added = packs_of(&place, &packs);
    let mut bytes = fs::read(&added).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::set_permissions(&added, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&added, bytes).unwrap();

    let checked = place.finish(&["vault", "check", "--data"]);
    assert_eq!(checked.status.code(), Some(3), "{checked:?}");
    let verified = place.start(&["backup", "verify", "--latest"]).end(&place, LONG);
    assert_eq!(verified.status.code(), Some(3), "{verified:?}");
    let all = listed(&place);
    assert_eq!(all[0]["id"], new["id"]);
    assert!(!all[0]["proof"]["bad"].is_null(), "{all:#?}");
    let asked = place.finish(&["restore", "--latest"]);
    let offered = format!("backup {}", old["id"].as_str().unwrap());
    assert!(asked.err.contains(&offered), "{asked:?}");
    let pruned = place.finish(&["backup", "prune"]);
    assert!(pruned.out.contains("it is bad, but no newer one is verified"), "{pruned:?}");
}

fn packs(place: &Place) -> Vec<std::path::PathBuf> {
    let mut all = Vec::new();
    for folder in fs::read_dir(place.path("vault/data")).unwrap() {
        for pack in fs::read_dir(folder.unwrap().path()).unwrap() {
            all.push(pack.unwrap().path());
        }
    }
    all
}

/// The greatest pack that was not there before.
fn packs_of(place: &Place, before: &[std::path::PathBuf]) -> std::path::PathBuf {
    let new = packs(place).into_iter().filter(|pack| !before.contains(pack));
    new.max_by_key(|pack| fs::metadata(pack).unwrap().len()).unwrap()
}

#[test]
fn keys_are_added_rotated_and_removed_and_one_always_opens() {
    let place = place("");
    let up = Up::ready(&place);
    back_up(&place);
    up.process.stop(&place);
    fs::write(place.path("escrow"), "in the safe\n").unwrap();
    let added = place.finish(&["vault", "key", "add", "here", "--new-password-file", "escrow"]);
    assert_eq!(added.status.code(), Some(0), "{added:?}");
    let keys = place.finish(&["vault", "key", "list", "here", "--json"]).json();
    assert_eq!(keys.as_array().unwrap().len(), 2);
    let present = keys.as_array().unwrap().iter().find(|key| key["present"] == true).unwrap();
    let refused =
        place.finish(&["vault", "key", "remove", "here", present["id"].as_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");

    // With the key from escrow alone, also where the plan's own password is gone.
    fs::rename(place.path("password"), place.path("away")).unwrap();
    let verify = ["backup", "verify", "--latest", "--password-file"];
    let drilled = place.start(&[&verify[..], &["escrow"]].concat()).end(&place, LONG);
    assert_eq!(drilled.status.code(), Some(0), "{drilled:?}");
    assert!(drilled.out.contains("the platform was ready on it"), "{drilled:?}");
    fs::write(place.path("other"), "not that one\n").unwrap();
    let wrong = place.finish(&[&verify[..], &["other"]].concat());
    assert_eq!(wrong.status.code(), Some(1), "{wrong:?}");
    assert!(wrong.err.contains("the password does not open the vault here"), "{wrong:?}");
    assert!(!wrong.err.contains("not that one"), "{wrong:?}");
    fs::rename(place.path("away"), place.path("password")).unwrap();
    let plan = fs::read_to_string(place.path("resurgam.toml")).unwrap();
    fs::write(place.path("escrow.toml"), plan.replace("'password'", "'escrow'")).unwrap();
    fs::remove_file(place.path("password")).unwrap();
    let gone = place.finish(&["backup", "list"]);
    assert_eq!(gone.status.code(), Some(1), "{gone:?}");
    restore(&place, &["--plan", "escrow.toml", "--into", "look"]);
    assert!(place.path("look/database/platform.db").is_file());
    let again = place.finish(&["restore", "--latest", "--plan", "escrow.toml", "--into", "look"]);
    assert_eq!(again.status.code(), Some(1), "a folder that is not empty: {again:?}");

    fs::write(place.path("new"), "battery staple\n").unwrap();
    let rotated = place.finish(&[
        "vault",
        "key",
        "rotate",
        "here",
        "--new-password-file",
        "new",
        "--plan",
        "escrow.toml",
    ]);
    assert_eq!(rotated.status.code(), Some(0), "{rotated:?}");
    let wrong = place.finish(&["backup", "list", "--plan", "escrow.toml"]);
    assert_eq!(wrong.status.code(), Some(1), "{wrong:?}");
    assert!(wrong.err.contains("the password does not open the vault here"), "{wrong:?}");
    assert!(!wrong.err.contains("in the safe"), "{wrong:?}");
    fs::rename(place.path("new"), place.path("password")).unwrap();
    assert_eq!(listed(&place).len(), 1);
}

#[test]
fn a_backup_is_taken_on_schedule_verified_and_made_up_for_when_missed() {
    let place = scheduled(
        "[backup]\nschedule = '* * * * * *'\njitter = '0s'\nretention = { daily = 1, weekly = 0, monthly = 0 }\n",
    );
    let up = Up::ready(&place);
    let verified = until("a verified backup that was scheduled", LONG, &place, || {
        let all = listed(&place);
        all.into_iter().find(|backup| !backup["proof"]["verified"].is_null())
    });
    assert_eq!(verified["manifest"]["reason"], "scheduled");
    // Of one day one is kept, and each newest verified one.
    until("older ones are removed", LONG, &place, || {
        let all = listed(&place);
        (all.iter().all(|backup| backup["id"] != verified["id"]) && all.len() <= 2).then_some(())
    });
    up.process.stop(&place);
}

#[test]
fn what_cannot_be_is_said_clearly() {
    let none = Place::new("");
    let told = none.finish(&["backup", "run"]);
    assert_eq!(told.status.code(), Some(2), "{told:?}");
    assert!(told.err.contains("[[backup.vaults]]"), "{told:?}");
    for (plan, word) in [
        (format!("{VAULT}{VAULT}"), "has here twice"),
        (VAULT.replace("password_file = 'password'\n", ""), "exactly one of password_file"),
        (format!("[backup]\nschedule = 'now and then'\n{VAULT}"), "is not a cron expression"),
        (format!("[backup]\ntimezone = 'Mars/Olympus'\n{VAULT}"), "is no time zone"),
        (
            format!("[backup]\nretention = {{ daily = 0, weekly = 0, monthly = 0 }}\n{VAULT}"),
            "would keep nothing",
        ),
        (format!("[backup]\ncolour = 'red'\n{VAULT}"), "unknown field"),
    ] {
        let told = Place::new(&plan).finish(&["backup", "list"]);
        assert_eq!(told.status.code(), Some(2), "{plan}: {told:?}");
        assert!(told.err.contains(word), "{plan}: {told:?}");
    }
    let place = place("");
    let empty = place.finish(&["restore", "--latest"]);
    assert!(empty.err.contains("take one with: resurgam backup run"), "{empty:?}");
    let nothing = place.finish(&["backup", "run"]);
    assert_eq!(nothing.status.code(), Some(1), "{nothing:?}");
    let greatest = greatest_file(&place.path("vault"));
    fs::remove_file(greatest).unwrap();
}

#[test]
fn an_audit_says_what_the_plan_cannot_keep() {
    let place = place("");
    let broken = place.finish(&["audit", "--json"]);
    assert_eq!(broken.status.code(), Some(3), "{broken:?}");
    let found = broken.json();
    let rules: Vec<_> = found["findings"].as_array().unwrap().iter().map(|f| &f["rule"]).collect();
    for rule in ["rpo-out-of-reach", "no-backup", "same-failure-domain", "no-contact"] {
        assert!(rules.iter().any(|found| *found == rule), "{rule} is missing: {rules:?}");
    }
    let kept = scheduled(
        "[contacts]\non-call = 'desk 9'\n[backup]\nschedule = '*/20 * * * *'\njitter = '10s'\n",
    );
    let up = Up::ready(&kept);
    back_up(&kept);
    up.process.stop(&kept);
    let told = kept.finish(&["audit"]);
    assert_eq!(told.status.code(), Some(0), "{told:?}");
    assert!(told.out.contains("20m 10s"), "{told:?}");
}

/// Dies before each of its deeds; once more finishes it, from wherever it was.
fn cut_off(place: &Place, deeds: &[&str]) {
    for deed in deeds {
        let mut command = place.command(&["restore", "--latest", "--yes"]);
        command.env("RESURGAM_RECOVERY_FAULT", format!("die-before:{deed}"));
        let ended = place.run(command).end(place, LONG);
        assert_eq!(ended.status.signal(), Some(9), "{deed}: {ended:?}");
        restore(place, &[]);
        assert!(!place.path("state/restore").read_dir().unwrap().any(|_| true), "{deed}");
    }
}

#[test]
fn a_restore_that_is_cut_off_anywhere_is_finished_by_doing_it_again() {
    let place = place("drills = 'allowed'\n");
    let mut up = Up::ready(&place);
    let address = api(&up, &place);
    let before = tasks(&address, 0, 30);
    all_complete(&address, &before, &place);
    back_up(&place);
    up.process.stop(&place);
    cut_off(
        &place,
        &[
            "prepare",
            "reign",
            "aside-store",
            "place-store",
            "aside-checkpoints",
            "place-checkpoints",
            "clean",
        ],
    );
    up = Up::ready(&place);
    all_complete(&api(&up, &place), &before, &place);
    up.process.stop(&place);
    assert_eq!(place.finish(&["journal", "verify"]).status.code(), Some(0));
}

#[test]
fn a_restore_of_postgresql_that_is_cut_off_is_finished_by_doing_it_again() {
    let place = place("drills = 'allowed'\n[store]\nkind = 'postgres'\n");
    let mut up = Up::ready(&place);
    let address = api(&up, &place);
    let before = tasks(&address, 0, 30);
    all_complete(&address, &before, &place);
    back_up(&place);
    up.process.stop(&place);
    let deeds =
        ["reign", "aside-postgres", "place-postgres", "aside-secrets", "place-secrets", "clean"];
    cut_off(&place, &deeds);
    up = Up::ready(&place);
    all_complete(&api(&up, &place), &before, &place);
    up.process.stop(&place);
}

/// Two deployments keep their backups in one vault, and neither sees or removes the other's.
#[test]
fn a_vault_that_is_shared_keeps_apart_what_is_whose() {
    let ours = place("");
    let other = place("");
    let plan = fs::read_to_string(other.path("resurgam.toml")).unwrap();
    let shared = format!("path = '{}'", ours.path("vault").display());
    let plan = plan.replace("[deployment]", "[deployment]\nname = 'other'");
    fs::write(other.path("resurgam.toml"), plan.replace("path = 'vault'", &shared)).unwrap();
    for place in [&ours, &other] {
        let up = Up::ready(place);
        back_up(place);
        up.process.stop(place);
    }
    let (mine, theirs) = (listed(&ours), listed(&other));
    assert_eq!((mine.len(), theirs.len()), (1, 1));
    assert_ne!(mine[0]["id"], theirs[0]["id"]);
    let id = theirs[0]["id"].as_str().unwrap();
    let refused = ours.finish(&["restore", "--backup", id, "--yes"]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    let pruned = ours.finish(&["backup", "prune", "--yes"]);
    assert!(!pruned.out.contains(id), "{pruned:?}");
    assert_eq!(listed(&other).len(), 1);
}

/// What could not be tried says nothing about the backup.
#[test]
fn a_backup_is_not_bad_because_a_program_is_missing() {
    let place = place("[store]\nkind = 'postgres'\n[postgres]\nstandbys = 0\n");
    let up = Up::ready(&place);
    let taken = place.start(&["backup", "run"]).end(&place, LONG);
    assert_eq!(taken.status.code(), Some(0), "{taken:?}");
    up.process.stop(&place);
    let dir = programs_with(&place, "pg_verifybackup", "");
    fs::remove_file(dir.join("pg_verifybackup")).unwrap();
    let plan = fs::read_to_string(place.path("resurgam.toml")).unwrap();
    let plan =
        plan.replace("standbys = 0", &format!("standbys = 0\nbin_dir = '{}'", dir.display()));
    fs::write(place.path("odd.toml"), plan).unwrap();
    let tried =
        place.start(&["backup", "verify", "--latest", "--plan", "odd.toml"]).end(&place, LONG);
    assert_eq!(tried.status.code(), Some(1), "{tried:?}");
    assert!(tried.err.contains("has no pg_verifybackup"), "{tried:?}");
    assert_eq!(listed(&place)[0]["proof"], "none");
}
