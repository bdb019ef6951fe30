//! The log of PostgreSQL in a vault: what came after a backup comes back too.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use resurgam_backup::log::segment::Size;
use resurgam_backup::vault::Vault;
use resurgam_backup::{Password, Place as VaultPlace};
use resurgam_model::database::Lsn;
use resurgam_model::{Scenario, Timestamp};
use resurgam_recovery::drill::fault::{Process, working_in};
use resurgam_recovery::journal::Journal;
use resurgam_recovery::journal::orders::{Order, Ordered};
use rustix::process::Signal;
use serde_json::Value;

use crate::backup::{api, back_up, place, restore, scheduled, tasks};
use crate::harness::{LONG, Place, SHORT, Up, all_complete, submit, until};
use crate::http;

const POSTGRES: &str = "[store]\nkind = 'postgres'\n[postgres]\nstandbys = 0\n";

/// What `resurgam backup log` says of the newest database.
pub(crate) fn log(place: &Place) -> Option<Value> {
    let shown = place.finish(&["backup", "log", "--json"]);
    shown.json().as_array()?.last().cloned()
}

/// Waits until all that was acknowledged before now is in the vault.
pub(crate) fn shipped(place: &Place) {
    let now = Timestamp::now();
    until("the log reaches the vault", LONG, place, || {
        let at = log(place)?["as_of"]["at"].as_str()?.parse::<Timestamp>().ok()?;
        (at > now).then_some(())
    });
}

fn kill(up: Up, place: &Place) {
    up.process.signal(Signal::KILL);
    up.process.end(place, SHORT);
    until("everything dies with it", SHORT, place, || place.processes().is_empty().then_some(()));
}

/// Kills everything, takes the state folder away, and restores the last moment that the vault has.
pub(crate) fn lose_everything(up: Up, place: &Place) {
    kill(up, place);
    fs::remove_dir_all(place.path("state")).unwrap();
    restore(place, &[]);
}

fn known(address: &str, tasks: &[String]) -> usize {
    let known = |id: &&String| http::get(&format!("{address}/tasks/{id}")).unwrap().status == 200;
    tasks.iter().filter(known).count()
}

#[test]
fn what_came_after_the_backup_comes_back_by_the_log() {
    let place = place(POSTGRES);
    let up = Up::ready(&place);
    let address = api(&up, &place);
    let mut all = tasks(&address, 0, 20);
    back_up(&place);
    all.extend(tasks(&address, 20, 60));
    all_complete(&address, &all, &place);
    shipped(&place);
    lose_everything(up, &place);
    let up = Up::ready(&place);
    let address = api(&up, &place);
    all_complete(&address, &all, &place);

    // The log goes on from there, with no other backup.
    all.extend(tasks(&address, 60, 80));
    all_complete(&address, &all, &place);
    shipped(&place);
    lose_everything(up, &place);
    let up = Up::ready(&place);
    all_complete(&api(&up, &place), &all, &place);
    up.process.stop(&place);
}

/// The segments in the vault.
fn segments(place: &Place) -> u64 {
    log(place).unwrap()["segments"].as_u64().unwrap()
}

#[test]
fn a_vault_that_was_away_gets_all_of_the_log_and_what_no_backup_needs_goes() {
    let place =
        place(&format!("{POSTGRES}[backup.retention]\ndaily = 1\nweekly = 0\nmonthly = 0\n"));
    let up = Up::ready(&place);
    let address = api(&up, &place);
    let mut all = tasks(&address, 0, 10);
    back_up(&place);
    shipped(&place);
    let (vault, away) = (place.path("vault"), place.path("vault-away"));
    fs::rename(&vault, &away).unwrap();
    let until_away = |wanted: bool| {
        until("the vault is missed, or back", LONG, &place, || {
            let log = up.status(&place)?["log"][0].clone();
            (log["error"].is_string() == wanted).then_some(())
        });
    };
    all.extend(tasks(&address, 10, 20));
    until_away(true);
    all.extend(tasks(&address, 20, 30));
    all_complete(&address, &all, &place);
    assert!(!vault.exists(), "nothing is made in its place");
    fs::rename(&away, &vault).unwrap();
    until_away(false);
    shipped(&place);
    let stands = log(&place).unwrap();
    assert!(!stands["broken"].as_bool().unwrap(), "{stands:#}");

    let before = segments(&place);
    back_up(&place);
    shipped(&place);
    let shown = place.finish(&["backup", "prune"]);
    assert!(shown.err.contains("1 backups would be removed"), "{shown:?}");
    assert!(shown.err.contains("segments of the log are older than"), "{shown:?}");
    assert!(segments(&place) > before, "nothing was removed yet");
    let pruned = place.start(&["backup", "prune", "--yes"]).end(&place, LONG);
    assert_eq!(pruned.status.code(), Some(0), "{pruned:?}");
    assert!(segments(&place) <= before, "{:#}", log(&place).unwrap());
    all.extend(tasks(&address, 30, 40));
    all_complete(&address, &all, &place);
    shipped(&place);
    lose_everything(up, &place);
    let up = Up::ready(&place);
    all_complete(&api(&up, &place), &all, &place);
    up.process.stop(&place);
}

#[test]
fn a_database_is_restored_to_any_moment_and_back_again() {
    let place = place(POSTGRES);
    let up = Up::ready(&place);
    let address = api(&up, &place);
    let first = tasks(&address, 0, 10);
    all_complete(&address, &first, &place);
    let backup = back_up(&place);
    let second = tasks(&address, 10, 20);
    all_complete(&address, &second, &place);
    std::thread::sleep(Duration::from_millis(20));
    let between = Timestamp::now();
    std::thread::sleep(Duration::from_millis(20));
    let third = tasks(&address, 20, 30);
    all_complete(&address, &third, &place);
    shipped(&place);
    let old = log(&place).unwrap()["timeline"].to_string();
    up.process.stop(&place);

    let at = between.to_string();
    let restored = place.start(&["restore", "--at", &at, "--yes"]).end(&place, LONG);
    assert_eq!(restored.status.code(), Some(0), "{restored:?}\n{}", place.logs());
    let up = Up::ready(&place);
    let address = api(&up, &place);
    all_complete(&address, &first, &place);
    all_complete(&address, &second, &place);
    assert_eq!(known(&address, &third), 0, "they came later");
    let fourth = tasks(&address, 30, 40);
    all_complete(&address, &fourth, &place);
    shipped(&place);
    assert!(!log(&place).unwrap()["broken"].as_bool().unwrap());
    up.process.stop(&place);

    // The newest way is the one that was taken after the restore.
    restore(&place, &[]);
    let up = Up::ready(&place);
    let address = api(&up, &place);
    all_complete(&address, &fourth, &place);
    assert_eq!(known(&address, &third), 0);
    up.process.stop(&place);

    // The way that was left is still there.
    restore(&place, &["--timeline", &old]);
    let up = Up::ready(&place);
    let address = api(&up, &place);
    all_complete(&address, &third, &place);
    assert_eq!(known(&address, &fourth), 0);

    // And it goes on from there in the vault, on a timeline that is nobody else's.
    let fifth = tasks(&address, 40, 45);
    all_complete(&address, &fifth, &place);
    shipped(&place);
    lose_everything(up, &place);
    let up = Up::ready(&place);
    let address = api(&up, &place);
    all_complete(&address, &third, &place);
    all_complete(&address, &fifth, &place);
    assert_eq!(known(&address, &fourth), 0);
    up.process.stop(&place);

    // So it does from a backup alone.
    let id = backup["id"].as_str().unwrap();
    let restored = place.start(&["restore", "--backup", id, "--yes"]).end(&place, LONG);
    assert_eq!(restored.status.code(), Some(0), "{restored:?}\n{}", place.logs());
    let up = Up::ready(&place);
    let address = api(&up, &place);
    assert_eq!(known(&address, &second) + known(&address, &third), 0);
    let sixth = tasks(&address, 45, 50);
    all_complete(&address, &sixth, &place);
    shipped(&place);
    lose_everything(up, &place);
    let up = Up::ready(&place);
    let address = api(&up, &place);
    all_complete(&address, &first, &place);
    all_complete(&address, &sixth, &place);
    assert_eq!(known(&address, &second) + known(&address, &fifth), 0);
    up.process.stop(&place);

    let late = (between + Duration::from_secs(3600)).to_string();
    let refused = place.finish(&["restore", "--at", &late, "--yes"]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(refused.err.contains("is yet to come"), "{refused:?}");
    let refused = place.finish(&["restore", "--at", "2020-01-01T00:00:00Z", "--yes"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(refused.err.contains("no backup from before 2020"), "{refused:?}");
}

#[test]
fn the_log_follows_a_failover() {
    let place = place("[store]\nkind = 'postgres'\n");
    let mut up = Up::ready(&place);
    let address = api(&up, &place);
    let mut all = tasks(&address, 0, 10);
    back_up(&place);
    shipped(&place);
    let before = log(&place).unwrap()["timeline"].as_u64().unwrap();
    keeper(&up, &place).signal(Signal::KILL);
    up.closed_incidents(&place, "postgres-primary", &[]);
    up.wait_ready(&place);
    all.extend(tasks(&address, 10, 30));
    all_complete(&address, &all, &place);
    shipped(&place);
    let after = log(&place).unwrap();
    assert!(after["timeline"].as_u64().unwrap() > before, "{after:#}");
    assert!(!after["broken"].as_bool().unwrap(), "{after:#}");
    lose_everything(up, &place);
    let up = Up::ready(&place);
    all_complete(&api(&up, &place), &all, &place);
    up.process.stop(&place);
}

#[test]
fn damage_in_the_log_is_said_and_nothing_is_changed() {
    let place = place(POSTGRES);
    let up = Up::ready(&place);
    let address = api(&up, &place);
    let all = tasks(&address, 0, 10);
    back_up(&place);
    all_complete(&address, &all, &place);
    shipped(&place);
    up.process.stop(&place);
    let system = log(&place).unwrap()["system"].as_str().unwrap().to_owned();
    let folder = place.path("vault/log/dotnetagents").join(system);
    let piece = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("0000000"))
        .max()
        .unwrap();
    let whole = fs::read(&piece).unwrap();
    let mut flipped = whole.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    fs::write(&piece, &flipped).unwrap();
    let control = place.path("state/postgres/postgres-0/data/global/pg_control");
    let before = fs::read(&control).unwrap();
    let refused = place.start(&["restore", "--latest", "--yes"]).end(&place, LONG);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(refused.err.contains("is damaged"), "{refused:?}");
    assert_eq!(fs::read(&control).unwrap(), before, "nothing was changed");
    fs::write(&piece, &whole).unwrap();
    restore(&place, &[]);
}

/// What PostgreSQL takes for the end of the log is none when the vault has more.
#[test]
fn log_that_ends_in_its_middle_is_damaged() {
    let place = place(POSTGRES);
    let up = Up::ready(&place);
    let address = api(&up, &place);
    let all = tasks(&address, 0, 10);
    let range = back_up(&place)["manifest"]["log"].clone();
    all_complete(&address, &all, &place);
    shipped(&place);
    // Each begins a segment of its own.
    let taken = place.start(&["backup", "run"]).end(&place, LONG);
    assert_eq!(taken.status.code(), Some(0), "{taken:?}");
    shipped(&place);
    up.process.stop(&place);
    let password = Password::from_file("here", &place.path("password")).unwrap();
    let vault =
        Vault::open("here", VaultPlace::folder(place.path("vault")), "dotnetagents", password)
            .unwrap();
    let second = vault.backups().unwrap().remove(0).id;
    vault.remove(&[second]).unwrap();
    let size = Size::default();
    let store = vault.log(range["system"].as_str().unwrap(), size).unwrap();
    let start: Lsn = range["start"].as_str().unwrap().parse().unwrap();
    let segment = store.lineage(store.contents().unwrap().newest_timeline()).unwrap();
    let segment = segment.owner(size.number(start) + 1, size);
    store.put(segment, &vec![0; 16 << 20]).unwrap();
    let control = place.path("state/postgres/postgres-0/data/global/pg_control");
    let before = fs::read(&control).unwrap();
    let refused = place.start(&["restore", "--latest", "--yes"]).end(&place, LONG);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(refused.err.contains("PostgreSQL finds its end at"), "{refused:?}");
    assert_eq!(fs::read(&control).unwrap(), before, "nothing was changed");
}

/// The keeper of the first instance.
fn keeper(up: &Up, place: &Place) -> Process {
    let status = up.status(place).unwrap();
    let components = status["components"].as_array().unwrap();
    let keeper = components.iter().find(|c| c["name"] == "postgres-0").unwrap();
    Process::find(u32::try_from(keeper["pid"].as_u64().unwrap()).unwrap()).unwrap()
}

/// Kills the first instance, and moves its data away before anybody can see it. Where they were is
/// the answer.
fn take_data_away(up: &Up, place: &Place, to: &Path) -> PathBuf {
    let data = place.path("state/postgres/postgres-0/data");
    let mut victims = vec![keeper(up, place)];
    victims.extend(working_in(&data));
    victims.iter().for_each(|process| process.signal(Signal::STOP));
    fs::rename(&data, to).unwrap();
    victims.iter().for_each(|process| process.signal(Signal::KILL));
    data
}

/// Loses the database with its data, under a controller that dies at a step, and once more without.
fn lost(place: &Place, fault: &str, tasks_before: &mut Vec<String>, number: u32) {
    let mut command = place.command(&["up"]);
    command.env("RESURGAM_RECOVERY_FAULT", fault);
    let mut up = Up { process: place.run(command) };
    up.wait_ready(place);
    let known = incidents(&up, place);
    let address = api(&up, place);
    if tasks_before.is_empty() {
        back_up(place);
    }
    tasks_before.extend(tasks(&address, number * 10, number * 10 + 10));
    all_complete(&address, tasks_before, place);
    shipped(place);
    take_data_away(&up, place, &place.path("away"));
    fs::remove_dir_all(place.path("away")).unwrap();
    let died = up.process.end(place, LONG);
    let killed = std::os::unix::process::ExitStatusExt::signal(&died.status);
    assert_eq!(killed, Some(9), "{fault}: {died:?}\n{}", place.logs());
    until("everything dies with it", SHORT, place, || place.processes().is_empty().then_some(()));

    let mut up = Up::start(place);
    up.wait_ready(place);
    let incident = up.closed_incidents(place, "postgres-primary", &known).remove(0);
    assert_eq!(incident["state"], "recovered", "{fault}: {incident:#}\n{}", place.logs());
    let id = incident["id"].as_str().unwrap();
    let detail = up.get(place, &format!("/v1/incidents/{id}")).unwrap();
    let steps = detail["steps"].as_array().unwrap();
    let restore = steps.iter().find(|step| step["name"] == "restore").unwrap();
    assert_eq!(restore["status"], "done", "{fault}: {detail:#}");
    all_complete(&api(&up, place), tasks_before, place);
    up.process.stop(place);
}

fn incidents(up: &Up, place: &Place) -> Vec<String> {
    let all = up.get(place, "/v1/incidents").unwrap();
    all.as_array().unwrap().iter().map(|i| i["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_database_that_lost_its_data_is_restored_at_whatever_step_the_controller_dies() {
    let place = place(&format!("{}{POSTGRES}", "drills = 'allowed'\n"));
    let mut all = Vec::new();
    let faults = [
        "die-after:fence",
        "die-after:choose",
        "die-before:restore",
        "die-after:restore",
        "die-after:promote",
    ];
    for (number, fault) in (0..).zip(faults) {
        lost(&place, fault, &mut all, number);
    }
}

#[test]
fn without_a_vault_to_restore_from_nothing_is_begun_anew() {
    let place = Place::new(&format!("[deployment]\nstate_dir = 'state'\n{POSTGRES}"));
    let up = Up::ready(&place);
    let data = take_data_away(&up, &place, &place.path("away"));
    let incident = up.closed_incidents(&place, "postgres-primary", &[]).remove(0);
    assert_eq!(incident["state"], "refused", "{incident:#}\n{}", place.logs());
    assert!(!data.exists(), "no empty database takes the place of a lost one");
    // What is brought back is taken.
    fs::rename(place.path("away"), &data).unwrap();
    let id = incident["id"].as_str().unwrap();
    let resumed = place.start(&["recover", "--resume", id]).end(&place, LONG);
    assert_eq!(resumed.status.code(), Some(0), "{resumed:?}");
    until("it is back", LONG, &place, || up.status(&place)?["ready"].as_bool()?.then_some(()));
    up.process.stop(&place);
}

#[test]
fn a_damaged_database_without_a_standby_is_restored() {
    let place = place(POSTGRES);
    let mut up = Up::ready(&place);
    let address = api(&up, &place);
    let mut all = tasks(&address, 0, 10);
    back_up(&place);
    all.extend(tasks(&address, 10, 20));
    all_complete(&address, &all, &place);
    let base = place.path("state/postgres/postgres-0/data/base");
    let newest = fs::read_dir(&base)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<u32>().ok())
        .max();
    // The table of functions: nothing writes to it, so that nothing mends the damage.
    let file = base.join(newest.unwrap().to_string()).join("1255");
    let damaged = fs::File::options().write(true).open(&file).unwrap();
    damaged.write_all_at(&[0x55; 64], 3 * 8192 + 4096).unwrap();

    let refused = place.start(&["backup", "run"]).end(&place, LONG);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(refused.err.contains("is damaged on its disk"), "{refused:?}");
    let incident = up.closed_incidents(&place, "database-corruption", &[]).remove(0);
    assert_eq!(incident["state"], "recovered", "{incident:#}\n{}", place.logs());
    let cause = incident["cause"].as_str().unwrap();
    assert!(cause.contains("checksum verification failed in file"), "{cause}");
    up.wait_ready(&place);
    all_complete(&api(&up, &place), &all, &place);
    let aside = fs::read_dir(place.path("state/set-aside")).unwrap().next().unwrap().unwrap();
    assert!(aside.path().join("data/PG_VERSION").exists(), "what was damaged is kept");
    // And it can be backed up again.
    back_up(&place);
    up.process.stop(&place);
}

/// Who reigns, and in which epoch.
fn reign(up: &Up, place: &Place) -> (Value, Value) {
    let status = up.status(place).unwrap();
    (status["postgres"]["primary"].clone(), status["postgres"]["epoch"].clone())
}

#[test]
fn a_damaged_database_goes_on_when_nothing_could_take_its_place() {
    let place = Place::new(&format!("[deployment]\nstate_dir = 'state'\n{POSTGRES}"));
    let up = Up::ready(&place);
    let address = api(&up, &place);
    let before = reign(&up, &place);
    let refused = place.start(&["recover", "database-corruption"]).end(&place, LONG);
    assert_eq!(refused.status.code(), Some(4), "planned already to be refused: {refused:?}");
    let journal = Journal::open(&place.path("state/journal.db")).unwrap();
    let scenario = Scenario::DatabaseCorruption;
    let order = Order::Report { scenario, component: None, finding: "a page is bad".to_owned() };
    journal.order(&Ordered { by: "a test".to_owned(), order }, Timestamp::now()).unwrap();
    let incident = up.closed_incidents(&place, "database-corruption", &[]).remove(0);
    assert_eq!(incident["state"], "refused", "{incident:#}\n{}", place.logs());
    assert_eq!(reign(&up, &place), before, "no reign was taken away");
    all_complete(&address, &tasks(&address, 0, 10), &place);
    up.process.stop(&place);
}

#[test]
fn a_primary_is_recovered_also_while_people_think_about_its_damage() {
    let place = place(&format!("{POSTGRES}[approvals.database-corruption]\nask = 'dangerous'\n"));
    let up = Up::ready(&place);
    let address = api(&up, &place);
    let mut all = tasks(&address, 0, 10);
    all_complete(&address, &all, &place);
    back_up(&place);
    shipped(&place);
    let ordered = place.finish(&["recover", "database-corruption", "--no-wait"]);
    assert_eq!(ordered.status.code(), Some(0), "{ordered:?}");
    let waiting = |up: &Up| {
        until("a step waits for people", LONG, &place, || {
            let all = up.get(&place, "/v1/incidents")?;
            let mut all = all.as_array()?.iter();
            let id =
                all.find(|i| i["scenario"] == "database-corruption")?["id"].as_str()?.to_owned();
            let detail = up.get(&place, &format!("/v1/incidents/{id}"))?;
            let waits = |step: &Value| step["name"] == "fence" && step["status"] == "waiting";
            detail["steps"].as_array()?.iter().any(waits).then_some(id)
        })
    };
    waiting(&up);
    keeper(&up, &place).signal(Signal::KILL);
    let lost = up.closed_incidents(&place, "postgres-primary", &[]).remove(0);
    assert_eq!(lost["state"], "recovered", "{lost:#}\n{}", place.logs());
    all.extend(tasks(&address, 10, 20));
    all_complete(&address, &all, &place);

    // Nor does it keep the clients of a primary that works away from it.
    kill(up, &place);
    let up = Up::start(&place);
    let id = waiting(&up);
    let address = until("there is an API", LONG, &place, || {
        up.status(&place)?["api"].as_str().map(str::to_owned)
    });
    let more = until("tasks are taken", LONG, &place, || submit(&address, "task 20").ok());
    all.push(more);
    all_complete(&address, &all, &place);
    assert_eq!(place.finish(&["reject", &id]).status.code(), Some(0));
    let damaged = up.closed_incidents(&place, "database-corruption", &[]).remove(0);
    assert_eq!(damaged["state"], "refused", "{damaged:#}");
    up.process.stop(&place);
}

/// A second vault, and what waits until it, or the first alone, has all that is acknowledged now.
fn two_vaults(more: &str) -> Place {
    let place = scheduled(&format!(
        "{POSTGRES}{more}[[backup.vaults]]\nname = 'there'\npath = 'there'\npassword_file = 'password'\n"
    ));
    let made = place.finish(&["vault", "init", "there"]);
    assert_eq!(made.status.code(), Some(0), "{made:?}");
    place
}

fn shipped_to(names: &[&str], up: &Up, place: &Place) {
    let now = Timestamp::now();
    until("the log reaches the vaults", LONG, place, || {
        let log = up.status(place)?["log"].as_array()?.clone();
        let until = |name: &&str| {
            let log = log.iter().find(|log| log["vault"] == **name)?;
            log["until"].as_str()?.parse::<Timestamp>().ok()
        };
        names.iter().all(|name| until(name).is_some_and(|at| at > now)).then_some(())
    });
}

/// Positions in the log say nothing: a restore to an earlier moment takes them back.
#[test]
fn of_two_vaults_the_one_that_is_whole_up_to_later_is_taken() {
    let place = two_vaults("[backup]\nscheduled = false\n");
    let up = Up::ready(&place);
    let address = api(&up, &place);
    let first = tasks(&address, 0, 5);
    all_complete(&address, &first, &place);
    back_up(&place);
    std::thread::sleep(Duration::from_millis(20));
    let at = Timestamp::now().to_string();
    std::thread::sleep(Duration::from_millis(20));
    let second = tasks(&address, 5, 60);
    all_complete(&address, &second, &place);
    shipped_to(&["here", "there"], &up, &place);
    up.process.stop(&place);

    fs::rename(place.path("there"), place.path("away")).unwrap();
    let restored = place.start(&["restore", "--at", &at, "--yes"]).end(&place, LONG);
    assert_eq!(restored.status.code(), Some(0), "{restored:?}");
    assert!(restored.err.contains("vault there:"), "it is missed: {restored:?}");
    let up = Up::ready(&place);
    let address = api(&up, &place);
    let third = tasks(&address, 60, 61);
    all_complete(&address, &third, &place);
    shipped_to(&["here"], &up, &place);
    kill(up, &place);
    fs::rename(place.path("away"), place.path("there")).unwrap();
    restore(&place, &[]);
    let up = Up::ready(&place);
    let address = api(&up, &place);
    all_complete(&address, &first, &place);
    all_complete(&address, &third, &place);
    assert_eq!(known(&address, &second), 0, "that way was left");
    // And what was away takes the new way too.
    let fourth = tasks(&address, 61, 63);
    all_complete(&address, &fourth, &place);
    shipped_to(&["here", "there"], &up, &place);
    kill(up, &place);
    fs::rename(place.path("vault"), place.path("vault-away")).unwrap();
    restore(&place, &[]);
    let up = Up::ready(&place);
    let address = api(&up, &place);
    all_complete(&address, &third, &place);
    all_complete(&address, &fourth, &place);
    assert_eq!(known(&address, &second), 0);
    up.process.stop(&place);
}

#[test]
fn a_vault_that_is_away_keeps_no_other_from_its_scheduled_backups() {
    let place = two_vaults("[backup]\nschedule = '* * * * * *'\njitter = '0s'\nverify = false\n");
    fs::rename(place.path("there"), place.path("away")).unwrap();
    let up = Up::ready(&place);
    let taken = |wanted: &'static str| {
        until(&format!("a backup in {wanted}"), LONG, &place, || {
            let list = place.finish(&["backup", "list", "--json"]);
            list.json().as_array()?.iter().any(|b| b["vault"] == wanted).then_some(list.status)
        })
    };
    assert_eq!(taken("here").code(), Some(1), "and it is said that one is missing");
    fs::rename(place.path("away"), place.path("there")).unwrap();
    taken("there");
    up.process.stop(&place);
}

#[test]
fn a_new_database_beside_an_old_ones_backups_gets_a_backup_of_its_own_at_once() {
    // The schedule is far away, so that what is taken is taken for another reason.
    let place = scheduled(&format!(
        "{POSTGRES}[backup]\nschedule = '0 0 1 1 *'\njitter = '0s'\nverify = false\n"
    ));
    let count = |wanted: usize| {
        until(&format!("{wanted} backups"), LONG, &place, || {
            let list = place.finish(&["backup", "list", "--json"]).json();
            (list.as_array()?.len() == wanted).then_some(())
        });
    };
    let up = Up::ready(&place);
    count(1);
    shipped(&place);
    kill(up, &place);
    fs::remove_dir_all(place.path("state")).unwrap();
    let up = Up::ready(&place);
    count(2);
    shipped(&place);
    assert!(!log(&place).unwrap()["broken"].as_bool().unwrap());
    up.process.stop(&place);
}
