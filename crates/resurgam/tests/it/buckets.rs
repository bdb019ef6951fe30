//! Vaults in object stores: real servers, which check signatures.

use std::fs;
use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use resurgam_recovery::drill::fault::Process;
use resurgam_testing::{BUCKET, ObjectStore};
use rustix::process::Signal;
use serde_json::Value;

use crate::backup::{api, back_up, tasks};
use crate::harness::{LONG, Place, Up, all_complete, descendants, until};
use crate::log::{log, lose_everything, shipped};

/// A place whose plan has one vault in that store, with the credentials in a file.
fn place(store: &ObjectStore, more: &str) -> Place {
    let place = Place::new(&format!(
        "[deployment]\nstate_dir = 'state'\n{more}[backup]\nscheduled = false\n\
         [[backup.vaults]]\nname = 'far'\npassword_file = 'password'\n\
         credentials_file = 'credentials'\n{}",
        store.plan
    ));
    fs::write(place.path("password"), "correct horse\n").unwrap();
    write_credentials(&place, store, |value| value.to_owned());
    place
}

fn write_credentials(place: &Place, store: &ObjectStore, change: impl Fn(&str) -> String) {
    let lines: String = store
        .env
        .iter()
        .map(|(name, value)| format!("{} = {}\n", name.to_lowercase(), change(value)))
        .collect();
    fs::write(place.path("credentials"), format!("[default]\n{lines}")).unwrap();
}

fn init(place: &Place) {
    let made = place.finish(&["vault", "init"]);
    assert_eq!(made.status.code(), Some(0), "{made:?}");
}

/// What can be done with a vault in a folder can be done with one in a bucket.
fn all_of_it(store: &ObjectStore) -> Place {
    let place = place(store, "[store]\nkind = 'postgres'\n[postgres]\nstandbys = 0\n");
    let none = place.finish(&["backup", "list"]);
    assert_eq!(none.status.code(), Some(1), "{none:?}");
    assert!(none.err.contains("there is no vault at") && none.err.contains("/dr"), "{none:?}");
    init(&place);
    let again = place.finish(&["vault", "init"]);
    assert!(again.err.contains("far is there already"), "{again:?}");

    let up = Up::ready(&place);
    let address = api(&up, &place);
    let mut all = tasks(&address, 0, 20);
    let backup = back_up(&place);
    assert!(!backup["proof"]["verified"].is_null(), "{backup:#}");
    all.extend(tasks(&address, 20, 40));
    // A store that hangs for a while holds up neither the platform nor, afterwards, the log.
    let mut server = descendants(store.pid());
    server.extend(Process::find(store.pid()));
    server.iter().for_each(|process| process.signal(Signal::STOP));
    all.extend(tasks(&address, 40, 60));
    all_complete(&address, &all, &place);
    server.iter().for_each(|process| process.signal(Signal::CONT));
    shipped(&place);
    until("the backup can be brought further", LONG, &place, || {
        (log(&place)?["broken"] == false).then_some(())
    });
    lose_everything(up, &place);

    let up = Up::ready(&place);
    let address = api(&up, &place);
    all_complete(&address, &all, &place);
    let second = place.start(&["backup", "run", "--json"]).end(&place, LONG);
    assert_eq!(second.status.code(), Some(0), "{second:?}");
    up.process.stop(&place);
    let checked = place.start(&["vault", "check", "--data"]).end(&place, LONG);
    assert_eq!(checked.status.code(), Some(0), "{checked:?}");
    let listed = place.finish(&["backup", "list", "--json"]);
    assert_eq!(listed.json().as_array().unwrap().len(), 2, "{listed:?}");
    place
}

#[test]
fn a_vault_on_s3_brings_everything_back_and_restic_reads_it() {
    let store = ObjectStore::s3().unwrap();
    let place = all_of_it(&store);
    let restic = |arguments: &[&str]| {
        let mut command = Command::new("restic");
        place.prepare(&mut command);
        let repository = format!("s3:http://{}/{BUCKET}/dr", store.address);
        command.envs(store.env.iter().map(|(name, value)| (name, value)));
        command.args(["--no-cache", "--repo", &repository, "--password-file", "password"]);
        let output = command.args(arguments).output().expect("restic is installed");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let snapshots: Value = serde_json::from_str(&restic(&["snapshots", "--json"])).unwrap();
    let backups = snapshots.as_array().unwrap().iter().filter(|s| s["tags"].is_array());
    assert_eq!(backups.count(), 2, "{snapshots:#}");
    restic(&["check", "--read-data"]);

    // Retention and keys, too.
    let pruned = place.start(&["backup", "prune", "--yes"]).end(&place, LONG);
    assert_eq!(pruned.status.code(), Some(0), "{pruned:?}");
    fs::write(place.path("new"), "battery staple\n").unwrap();
    let rotated = place.finish(&["vault", "key", "rotate", "far", "--new-password-file", "new"]);
    assert_eq!(rotated.status.code(), Some(0), "{rotated:?}");
    let old = place.finish(&["backup", "list"]);
    assert!(old.err.contains("the password does not open the vault far"), "{old:?}");
    fs::rename(place.path("new"), place.path("password")).unwrap();
    assert_eq!(place.finish(&["backup", "list"]).status.code(), Some(0));
}

#[test]
fn a_vault_on_azure_brings_everything_back() {
    all_of_it(&ObjectStore::azure().unwrap());
}

#[test]
fn who_is_not_let_in_is_told_why_and_secrets_are_not_shown() {
    let store = ObjectStore::s3().unwrap();
    let place = place(&store, "");
    let fails = |word: &str| {
        let failed = place.start(&["vault", "init"]).end(&place, LONG);
        assert_eq!(failed.status.code(), Some(1), "{failed:?}");
        assert!(failed.err.contains(word), "{word}: {failed:?}");
        for (_, secret) in store.env.iter().filter(|(name, _)| name.contains("SECRET")) {
            assert!(!failed.err.contains(secret.as_str()), "{failed:?}");
        }
    };
    write_credentials(&place, &store, |value| value.chars().rev().collect());
    fails("s3://backups/dr cannot be read: ");
    fs::write(place.path("credentials"), "[other]\n").unwrap();
    fails("has no section [default]");
    fs::remove_file(place.path("credentials")).unwrap();
    fails("credentials cannot be read: No such file");
    write_credentials(&place, &store, |value| value.to_owned());
    let plan = fs::read_to_string(place.path("resurgam.toml")).unwrap();
    let with = |from: &str, to: &str| {
        assert!(plan.contains(from));
        fs::write(place.path("resurgam.toml"), plan.replace(from, to)).unwrap();
    };
    with("credentials_file = 'credentials'\n", "");
    fails("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY");
    with("s3://backups/", "s3://nobody-made-this/");
    fails("nobody-made-this");
    with(&store.address.to_string(), "127.0.0.1:1");
    fails("Connection refused");
}

#[test]
fn a_store_that_never_answers_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let place = Place::new(&format!(
        "[deployment]\nstate_dir = 'state'\n[[backup.vaults]]\nname = 'far'\n\
         password_file = 'password'\nurl = 's3://{BUCKET}'\nendpoint = 'http://{address}'\n"
    ));
    fs::write(place.path("password"), "correct horse\n").unwrap();
    let began = Instant::now();
    let mut command = place.command(&["backup", "list"]);
    command.env("AWS_ACCESS_KEY_ID", "key").env("AWS_SECRET_ACCESS_KEY", "geheim");
    let failed = place.run(command).end(&place, LONG);
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    assert!(failed.err.contains("no answer within 15 s"), "{failed:?}");
    assert!(!failed.err.contains("geheim"), "{failed:?}");
    assert!(began.elapsed() < Duration::from_secs(80));
    until("nothing runs", LONG, &place, || place.processes().is_empty().then_some(()));
}
