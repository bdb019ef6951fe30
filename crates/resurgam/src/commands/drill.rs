//! `resurgam drill`

use std::pin::Pin;

use comfy_table::Table;
use resurgam_model::plan::Plan;
use resurgam_model::report::{DrillReport, DrillResult, Measured, StepReport};
use resurgam_model::{Duration, Scenario};
use resurgam_recovery::brokers::bus_of;
use resurgam_recovery::drill::load::{Load, Shape};
use resurgam_recovery::drill::{Drill, FaultKind, history};
use serde_json::json;

use super::ground::{self, Ground, Makeshift, Turn};
use super::status::word_of;
use super::{calendar, campaign};
use crate::cli::DrillArgs;
use crate::failure::{Failure, code};
use crate::junit;
use crate::output::{self, Progress};
use crate::plan::Loaded;
use crate::shutdown;

pub(crate) async fn run(args: DrillArgs) -> Result<u8, Failure> {
    if args.list {
        return list(args.json);
    }
    if args.history {
        return history(&args);
    }
    if args.abort {
        return ground::abort(&Loaded::read(args.plan.as_deref())?).await;
    }
    if args.calendar {
        return calendar::show(args.plan.as_deref(), args.json);
    }
    if args.random {
        return campaign::run(&args).await;
    }
    let scenarios = match args.scenario {
        Some(scenario) => vec![scenario],
        None => all_of(&args)?,
    };
    if let Some(scenario) = scenarios.iter().find(|scenario| !args.fault.fits(**scenario)) {
        return Err(Failure::usage(format!(
            "{scenario} can only be drilled with --fault {}; see: resurgam drill --list",
            faults(*scenario).join(" or ")
        )));
    }
    // What is refused leaves nothing behind.
    let _turn = match &args.plan {
        Some(file) => {
            ground::allowed(file, args.copy)?;
            if let (Some(scenario), false) = (args.scenario, args.copy) {
                Ground::of_plan(file)?.fits(scenario)?;
            }
            Some(Turn::take(&Loaded::read(Some(file))?)?)
        }
        None => None,
    };
    let mut shutdown = std::pin::pin!(shutdown::requested());
    let progress = Progress::new(args.json);
    let mut outcomes: Vec<Outcome> = Vec::new();
    for scenario in scenarios {
        let outcome = on_ground(scenario, &args, &progress, shutdown.as_mut()).await;
        let interrupted = outcome.as_ref().is_err_and(|failure| failure.code == code::INTERRUPTED);
        if interrupted || !args.all {
            outcomes.push((scenario, Ok(outcome?)));
            break;
        }
        match &outcome {
            Ok(report) if !args.json => {
                output::note(&format!("{scenario}: {}", word_of(&report.result)));
            }
            Ok(_) => {}
            Err(failure) => output::note(&format!("{scenario}: {}", failure.message)),
        }
        outcomes.push((scenario, outcome));
    }
    if let Some(file) = &args.junit {
        std::fs::write(file, junit::document(&outcomes))
            .map_err(|error| Failure::new(format!("cannot write {}: {error}", file.display())))?;
    }
    let reports: Vec<_> =
        outcomes.iter().filter_map(|(_, outcome)| outcome.as_ref().ok()).collect();
    match (args.json, args.all, reports.as_slice()) {
        (true, false, [report]) => output::json(report)?,
        (true, ..) => output::json(&reports)?,
        (false, false, [report]) => print(report),
        (false, ..) => output::data(&summary_table(reports.iter().copied()).to_string()),
    }
    Ok(verdict(&outcomes))
}

/// What came of one drill.
pub(crate) type Outcome = (Scenario, Result<DrillReport, Failure>);

/// The exit code of several drills: what failed goes before what was missed.
fn verdict(outcomes: &[Outcome]) -> u8 {
    let codes: Vec<_> = outcomes
        .iter()
        .map(|(_, outcome)| match outcome {
            Ok(report) => exit_code(report),
            Err(failure) => failure.code,
        })
        .collect();
    let first = |wanted: fn(&u8) -> bool| codes.iter().copied().find(wanted);
    first(|exit| ![code::OK, code::MISSED, code::REFUSED].contains(exit))
        .or_else(|| first(|exit| *exit == code::MISSED))
        .or_else(|| first(|exit| *exit != code::OK))
        .unwrap_or(code::OK)
}

/// The scenarios that can be drilled there. Says of the others why not.
fn all_of(args: &DrillArgs) -> Result<Vec<Scenario>, Failure> {
    let mut fit = Vec::new();
    for scenario in Scenario::ALL {
        let unfit = match &args.plan {
            // A copy has whatever the plan has, and may be ended like any other temporary one.
            Some(file) if args.copy => Loaded::read(Some(file)).and_then(|loaded| {
                ground::fits_plan(loaded.plan(), file, &std::env::temp_dir(), scenario)
            }),
            Some(file) => Ground::of_plan(file).and_then(|ground| ground.fits(scenario)),
            None => temporary_plan(args, scenario).map(drop),
        };
        match unfit {
            Ok(()) => fit.push(scenario),
            Err(failure) => output::note(&format!("left out: {scenario}: {}", failure.message)),
        }
    }
    if fit.is_empty() {
        return Err(Failure::refused("none of the scenarios can be drilled there; see above"));
    }
    Ok(fit)
}

/// One drill, from nothing to nothing.
async fn on_ground(
    scenario: Scenario,
    args: &DrillArgs,
    progress: &Progress,
    shutdown: Pin<&mut impl Future<Output = ()>>,
) -> Result<DrillReport, Failure> {
    let mut shutdown = shutdown;
    let ground = match &args.plan {
        Some(file) if args.copy => tokio::select! {
            ground = Ground::copy_of(file, progress) => ground?,
            () = shutdown.as_mut() => return Err(Failure::interrupted()),
        },
        Some(file) => Ground::of_plan(file)?,
        None => Ground::temporary(&temporary_plan(args, scenario)?)?,
    };
    ground.fits(scenario)?;
    let before = ground.history()?;
    progress.say("starting a deployment");
    let mut outcome = tokio::select! {
        outcome = one(&ground, scenario, args, progress) => outcome,
        () = shutdown => Err(Failure::interrupted()),
    };
    if let (Ok(report), true) = (&mut outcome, args.copy) {
        report.deployment.push_str(" (copy)");
    }
    progress.clear();
    if let Some(before) = &before {
        ground.remember(before, outcome.as_ref().ok())?;
    }
    ground.clear(args.keep).await?;
    outcome
}

/// What the drills of a deployment have shown so far.
fn history(args: &DrillArgs) -> Result<u8, Failure> {
    let loaded = Loaded::read(args.plan.as_deref())?;
    let state_dir = loaded.state_dir();
    let file = history::file(&state_dir);
    let mut found = history::read(&state_dir)
        .map_err(|error| Failure::new(format!("cannot read {}: {error}", file.display())))?;
    for line in &found.unreadable {
        output::note(&format!("line {line} of {} cannot be read", file.display()));
    }
    found.reports.retain(|report| args.scenario.is_none_or(|wanted| report.scenario == wanted));
    if args.json {
        output::json(&found.reports)?;
        return Ok(code::OK);
    }
    if found.reports.is_empty() {
        output::data("no drills yet; see `resurgam drill --list`");
        return Ok(code::OK);
    }
    let mut table = output::table(&[
        "started", "scenario", "fault", "detected", "RTO", "of", "RPO", "of", "lost", "result",
    ]);
    for report in &found.reports {
        let ((rto, rto_found), (rpo, rpo_found)) = (measured(&report.rto), measured(&report.rpo));
        table.add_row([
            report.started_at.strftime("%F %TZ").to_string(),
            report.scenario.to_string(),
            report.fault.clone(),
            report.detection_ms.map(|ms| format!("{ms} ms")).unwrap_or_default(),
            rto_found,
            rto,
            rpo_found,
            rpo,
            report.lost.to_string(),
            word_of(&report.result),
        ]);
    }
    output::data(&table.to_string());
    Ok(code::OK)
}

async fn one(
    ground: &Ground,
    scenario: Scenario,
    args: &DrillArgs,
    progress: &Progress,
) -> Result<DrillReport, Failure> {
    let mut subject = ground.start(scenario == Scenario::Controller).await?;
    let load = Load::start(&subject.api(), Shape::default())?;
    let say = |text: &str| progress.say(text);
    let mut drill = Drill { subject: &mut subject, load: &load, progress: &say };
    let report = drill.run(scenario, args.fault).await;
    load.end().await;
    progress.say("cleaning up");
    let ended = subject.end().await;
    let report = report?;
    ended?;
    Ok(report)
}

fn temporary_plan(args: &DrillArgs, scenario: Scenario) -> Result<String, Failure> {
    let postgres = match (args.store.as_deref(), scenario) {
        (Some("sqlite"), scenario) if scenario.is_of_postgres() => {
            return Err(Failure::usage(format!("{scenario} needs --store postgres")));
        }
        (store, scenario) if scenario.is_of_postgres() => {
            store.is_none_or(|store| store == "postgres")
        }
        (store, _) => store == Some("postgres"),
    };
    if args.asynchronous && !postgres {
        return Err(Failure::usage("--asynchronous is about PostgreSQL; add --store postgres"));
    }
    let usual = Plan::default().postgres.standbys;
    let makeshift = Makeshift {
        postgres,
        standbys: if scenario == Scenario::PostgresRestore { 0 } else { usual },
        synchronous: !args.asynchronous,
        brokers: args.brokers || bus_of(scenario).is_some(),
        fills: scenario == Scenario::DiskFilling,
    };
    makeshift.plan()
}

fn list(json: bool) -> Result<u8, Failure> {
    let plan = Plan::default();
    if json {
        let all: Vec<_> = Scenario::ALL
            .iter()
            .map(|scenario| {
                let objectives = plan.objectives(*scenario);
                json!({
                    "scenario": scenario,
                    "severity": scenario.severity(),
                    "rto": objectives.rto,
                    "rpo": objectives.rpo,
                    "stores": stores(*scenario),
                    "faults": faults(*scenario),
                    "summary": scenario.summary(),
                })
            })
            .collect();
        output::json(&all)?;
        return Ok(code::OK);
    }
    let mut table =
        output::table(&["scenario", "severity", "RTO", "RPO", "stores", "faults", "what happens"]);
    for scenario in Scenario::ALL {
        let objectives = plan.objectives(scenario);
        table.add_row([
            scenario.to_string(),
            scenario.severity().to_string(),
            objectives.rto.to_string(),
            objectives.rpo.to_string(),
            stores(scenario).join(", "),
            faults(scenario).join(", "),
            scenario.summary().to_owned(),
        ]);
    }
    output::data(&table.to_string());
    Ok(code::OK)
}

fn stores(scenario: Scenario) -> &'static [&'static str] {
    match scenario {
        scenario if scenario.is_of_postgres() => &["postgres"],
        _ => &["sqlite", "postgres"],
    }
}

fn faults(scenario: Scenario) -> Vec<&'static str> {
    let all = [FaultKind::Kill, FaultKind::Freeze];
    all.into_iter().filter(|fault| fault.fits(scenario)).map(|fault| fault.word(scenario)).collect()
}

/// The exit code that goes with a report.
pub(crate) fn exit_code(report: &DrillReport) -> u8 {
    match report.result {
        DrillResult::Recovered => code::OK,
        DrillResult::Failed => code::MISSED,
        DrillResult::Refused => code::REFUSED,
    }
}

fn measured(measured: &Measured) -> (String, String) {
    let objective = Duration::from_millis(measured.objective_ms).to_string();
    let found = measured.measured_ms.map_or("never".to_owned(), |ms| {
        let text = format!("{}.{:03} s", ms / 1000, ms % 1000);
        if measured.met { text } else { format!("{text} MISSED") }
    });
    (objective, found)
}

/// One row per drill.
pub(crate) fn summary_table<'a>(reports: impl IntoIterator<Item = &'a DrillReport>) -> Table {
    let mut table = output::table(&[
        "scenario",
        "severity",
        "RTO objective",
        "RTO measured",
        "RPO objective",
        "RPO measured",
        "acknowledged",
        "lost",
        "duplicated",
        "result",
    ]);
    for report in reports {
        let ((rto, rto_found), (rpo, rpo_found)) = (measured(&report.rto), measured(&report.rpo));
        table.add_row([
            report.scenario.to_string(),
            report.severity.to_string(),
            rto,
            rto_found,
            rpo,
            rpo_found,
            report.acknowledged.to_string(),
            report.lost.to_string(),
            report.duplicated.to_string(),
            word_of(&report.result),
        ]);
    }
    table
}

/// The steps of a recovery.
pub(crate) fn steps_table(steps: &[StepReport]) -> Table {
    let mut table = output::table(&["step", "status", "took", "tries", "what"]);
    for step in steps {
        table.add_row([
            step.name.clone(),
            word_of(&step.status),
            format!("{} ms", step.duration_ms),
            step.attempts.to_string(),
            wrapped(&step.detail),
        ]);
    }
    table
}

/// Breaks long text at words.
pub(crate) fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let length = lines.last().map_or(0, |line| line.chars().count());
        if length > 0 && length + word.chars().count() > 78 {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines.join("\n")
}

fn print(report: &DrillReport) {
    output::data(&format!(
        "{} ({}) on {}, {}",
        report.scenario, report.fault, report.deployment, report.started_at
    ));
    output::data(&steps_table(&report.steps).to_string());
    output::data(&summary_table([report]).to_string());
    if let Some(ms) = report.detection_ms {
        output::data(&format!("detected after {ms} ms"));
    }
    if !report.fence.is_empty() {
        output::data("writes tried on the former primary:");
        for line in &report.fence {
            output::data(&format!("  {line}"));
        }
        let split = if report.split_brain { "YES" } else { "no" };
        output::data(&format!("split brain: {split}"));
    }
}
