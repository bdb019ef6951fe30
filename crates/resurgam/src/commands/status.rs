//! `resurgam status`

use std::time::Duration;

use resurgam_deployment::postgres::wire::ServerState;
use resurgam_model::Timestamp;
use resurgam_model::bus::Circuit;
use resurgam_recovery::connections::account;
use resurgam_recovery::disk::{Space, account as account_of_disk};
use resurgam_recovery::drill::subject::Address;
use resurgam_recovery::exposure::{Exposure, Loss};
use resurgam_recovery::status::{Instance, Postgres, Status};

use super::backup::age;
use super::bus;
use super::drill::wrapped;
use crate::calendar::{self, Outcome};
use crate::cli::StatusArgs;
use crate::failure::{Failure, code};
use crate::output;
use crate::plan::Loaded;

/// What the running controller says of its deployment.
pub(crate) async fn ask(loaded: &Loaded) -> Result<Status, Failure> {
    let state = loaded.state_dir();
    let address = Address::read(&state).ok_or_else(|| {
        Failure::new(format!("nothing runs on {}; start it with: resurgam up", state.display()))
    })?;
    let http = reqwest::Client::builder().timeout(Duration::from_secs(5)).no_proxy().build()?;
    let url = format!("{}/v1/status", address.url);
    Ok(http.get(url).send().await?.error_for_status()?.json().await?)
}

pub(crate) async fn run(args: &StatusArgs) -> Result<u8, Failure> {
    let loaded = Loaded::read(args.plan.as_deref())?;
    let status = ask(&loaded).await?;
    if args.json {
        output::json(&status)?;
    } else {
        print(&status);
        print_calendar(&loaded)?;
    }
    Ok(if status.ready { code::OK } else { code::MISSED })
}

fn print(status: &Status) {
    let word = if status.ready { "ready" } else { "NOT READY" };
    output::data(&format!(
        "{} ({}) is {word}; API at {}",
        status.deployment, status.kind, status.api
    ));
    let mut table =
        output::table(&["component", "kind", "state", "answers", "pid", "restarts", "last exit"]);
    for health in &status.components {
        let component = &health.component;
        let answers = match health.answers {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "-",
        };
        table.add_row([
            component.name.to_string(),
            word_of(&component.kind),
            word_of(&component.state),
            answers.to_owned(),
            component.pid.map_or("-".to_owned(), |pid| pid.to_string()),
            component.restarts.to_string(),
            component.last_exit.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    output::data(&table.to_string());
    if let Some(pool) = &status.pool {
        output::data(&format!(
            "workers: {} of {} wished for ({} to {}); {} required: {}",
            pool.size, pool.wish, pool.min, pool.max, pool.required, pool.reason
        ));
    }
    if let Some(postgres) = &status.postgres {
        print_postgres(postgres);
        if let Some(preferred) = postgres.away_from() {
            output::data(&format!(
                "the plan prefers {preferred} as the primary; to hand over: resurgam failback"
            ));
        }
    }
    let now = Timestamp::now();
    for log in &status.log {
        let until = log.until.map_or_else(
            || "not known to be whole".to_owned(),
            |until| format!("whole up to {} ago", age(now, until)),
        );
        let error = log.error.as_ref().map_or(String::new(), |error| format!("; {error}"));
        output::data(&format!("log of the database in the vault {}: {until}{error}", log.vault));
    }
    for vault in &status.vaults {
        let newest = vault.newest.map_or("has no backup".to_owned(), |newest| {
            let proven = match vault.proven {
                Some(proven) if proven == newest => "proven by a restore".to_owned(),
                Some(proven) => format!("the last one proven is of {} ago", age(now, proven)),
                None => "none is proven".to_owned(),
            };
            format!("has a backup of {} ago; {proven}", age(now, newest))
        });
        let said = vault.error.as_ref().map_or(newest, |error| format!("is not known: {error}"));
        output::data(&format!("the vault {} {said}", vault.vault));
    }
    if let Some(space) = status.disk.filter(Space::is_low) {
        output::data(&account_of_disk(&space));
    }
    print_exposure(&status.exposure);
    for channel in &status.notify {
        if let Some(error) = &channel.error {
            output::data(&format!("nobody can be told over {}: {error}", channel.name));
        }
    }
    if let Some(bus) = &status.bus {
        output::data(&format!("{}; {}", bus::way(bus), bus::waiting(bus)));
        let ill = bus.state.iter().flat_map(|state| &state.buses);
        for one in ill.filter(|one| one.circuit != Circuit::Closed) {
            let why = one.reason.as_deref().unwrap_or("it has not answered yet");
            output::data(&format!("{} cannot be used ({}): {why}", one.bus, one.circuit.as_str()));
        }
    }
    if status.incidents.is_empty() {
        output::data("no open incidents");
        return;
    }
    let mut table =
        output::table(&["incident", "scenario", "severity", "component", "since", "cause"]);
    for incident in &status.incidents {
        table.add_row([
            incident.id.to_string(),
            incident.scenario.to_string(),
            incident.severity.to_string(),
            incident.component.to_string(),
            incident.opened_at.to_string(),
            incident.cause.clone(),
        ]);
    }
    output::data(&table.to_string());
}

/// The drills of the calendar that were not held, or did not pass.
fn print_calendar(loaded: &Loaded) -> Result<(), Failure> {
    let entries = calendar::entries(&loaded.state_dir())?;
    for drill in &loaded.plan().drills {
        let Some(entry) = calendar::last(&entries, &drill.name) else { continue };
        let word = match entry.outcome {
            Outcome::Missed => "was not held",
            Outcome::Failed => "did not pass",
            Outcome::Planned | Outcome::Begun | Outcome::Passed | Outcome::BrokenOff => continue,
        };
        output::data(&format!(
            "the drill {} of {} {word}: {}",
            drill.name, entry.due, entry.detail
        ));
    }
    Ok(())
}

/// What would be lost if something happened now, and for how long.
fn print_exposure(exposure: &[Exposure]) {
    let mut table = output::table(&["if it struck now", "loses", "of", "takes", "of", "because"]);
    for one in exposure {
        let loss = match one.loss {
            Loss::Nothing => "nothing".to_owned(),
            Loss::UpTo { ms } => format!("up to {}", rough(ms)),
            Loss::Everything => "everything".to_owned(),
            Loss::Unknown => "unknown".to_owned(),
        };
        let took = match (one.recovery_ms, one.drills) {
            (Some(ms), _) => rough(ms),
            (None, 0) => "not drilled".to_owned(),
            (None, _) => "never ended".to_owned(),
        };
        let mark = if one.is_out_of_bounds() { " !" } else { "" };
        table.add_row([
            format!("{}{mark}", one.scenario),
            loss,
            resurgam_model::Duration::from_millis(one.rpo_ms).to_string(),
            took,
            resurgam_model::Duration::from_millis(one.rto_ms).to_string(),
            wrapped(&one.because),
        ]);
    }
    output::data(&table.to_string());
}

/// A length of time as people say it.
fn rough(ms: u64) -> String {
    let seconds = Duration::from_secs(ms / 1000);
    match ms {
        0..10_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        _ => resurgam_model::Duration(seconds).to_string(),
    }
}

fn print_postgres(postgres: &Postgres) {
    let none = || "nobody".to_owned();
    output::data(&format!(
        "PostgreSQL at {}: epoch {}, primary {}, commits wait for {}; a failover now would {}",
        postgres.service,
        postgres.epoch,
        postgres.primary.as_ref().map_or_else(none, ToString::to_string),
        postgres.synchronous.as_ref().map_or_else(none, ToString::to_string),
        if postgres.complete.is_some() { "lose nothing" } else { "lose what no standby has yet" },
    ));
    output::data(&match &postgres.connections {
        Some(seen) => account(seen.seats, &seen.holders),
        None => "how many connections are taken is not known".to_owned(),
    });
    let mut table = output::table(&[
        "instance", "address", "role", "timeline", "position", "lag", "heard", "fence", "note",
    ]);
    for instance in &postgres.instances {
        let (timeline, position) = place(instance);
        let observed = instance.observed.as_ref();
        let note = observed.and_then(|o| o.doing.clone().or_else(|| o.problem.clone()));
        table.add_row([
            instance.name.to_string(),
            instance.address.to_string(),
            observed.map_or("never heard", |o| o.state.word()).to_owned(),
            timeline,
            position,
            instance.lag_bytes.map_or("-".to_owned(), |lag| format!("{lag} bytes")),
            instance.heard_ms.map_or("-".to_owned(), |ms| format!("{ms} ms ago")),
            instance.fence.as_ref().map_or("-".to_owned(), word_of),
            note.unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    output::data(&table.to_string());
}

fn place(instance: &Instance) -> (String, String) {
    match instance.observed.as_ref().map(|observed| &observed.state) {
        Some(ServerState::Primary(state)) => {
            (state.timeline.to_string(), state.flushed.to_string())
        }
        Some(ServerState::Standby(state)) => {
            (state.timeline.to_string(), state.received.to_string())
        }
        _ => ("-".to_owned(), "-".to_owned()),
    }
}

/// The word that JSON has for a value.
pub(crate) fn word_of(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => "?".to_owned(),
    }
}
