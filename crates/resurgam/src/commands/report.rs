//! `resurgam report`

use std::path::PathBuf;

use clap::Args;
use resurgam_model::Timestamp;
use resurgam_recovery::drill::history;

use super::journal::JournalArgs;
use crate::failure::{Failure, code};
use crate::output;
use crate::plan::Loaded;
use crate::report::{Report, Spread, page, report, seconds};

/// Show what drills and incidents have shown, beside what the plan promises.
///
/// With --html it is one page that needs nothing else: pictures of RTO and RPO over time, each drill
/// and incident with its steps, its time line and the evidence. Look at it before you pass it on:
/// evidence holds lines of logs.
///
/// Exit code 3 when the last drill of a scenario failed.
///
/// Examples:
///   resurgam report --plan resurgam.toml
///   resurgam report --html recoveries.html
///   resurgam report --json | jq '.scenarios[] | {scenario, rto}'
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct ReportArgs {
    /// The plan; ./resurgam.toml if there is one.
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// Write the page there. A file that is there is replaced.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Of how many incidents, the last ones.
    #[arg(long, value_name = "N", default_value_t = 20)]
    incidents: u32,
    /// Print JSON.
    #[arg(long, conflicts_with = "html")]
    json: bool,
}

pub(crate) fn run(args: &ReportArgs) -> Result<u8, Failure> {
    let loaded = Loaded::read(args.plan.as_deref())?;
    let state_dir = loaded.state_dir();
    let drills = history::read(&state_dir).map_err(|error| {
        Failure::new(format!("cannot read {}: {error}", history::file(&state_dir).display()))
    })?;
    for line in &drills.unreadable {
        output::note(&format!(
            "line {line} of {} cannot be read, and is left out",
            history::file(&state_dir).display()
        ));
    }
    let journal = match state_dir.join("journal.db").exists() {
        true => Some(JournalArgs::of(args.plan.clone()).open()?.journal),
        false => None,
    };
    let made =
        report(loaded.plan(), &drills.reports, journal.as_ref(), args.incidents, Timestamp::now())?;
    match &args.html {
        Some(file) => {
            std::fs::write(file, page(&made)).map_err(|error| {
                Failure::new(format!("cannot write {}: {error}", file.display()))
            })?;
            output::note(&format!("written to {}", file.display()));
        }
        None if args.json => output::json(&made)?,
        None => print(&made),
    }
    let failed = made.scenarios.iter().any(|practice| {
        let last = practice.drills.last();
        last.is_some_and(|drill| drill.result != resurgam_model::report::DrillResult::Recovered)
    });
    Ok(if failed { code::MISSED } else { code::OK })
}

fn print(report: &Report) {
    let mut table = output::table(&[
        "scenario",
        "drills",
        "failed",
        "detected",
        "RTO",
        "of",
        "RPO",
        "of",
        "last drill",
    ]);
    let spread = |spread: Option<Spread>| {
        spread.map_or("-".to_owned(), |spread| {
            let [min, median, max] = [spread.min_ms, spread.median_ms, spread.max_ms].map(seconds);
            format!("{min} / {median} / {max}")
        })
    };
    for practice in &report.scenarios {
        table.add_row([
            practice.scenario.to_string(),
            practice.drills.len().to_string(),
            practice.failed.to_string(),
            practice.detection.map_or("-".to_owned(), |spread| seconds(spread.median_ms)),
            spread(practice.rto),
            seconds(practice.rto_objective_ms),
            practice.rpo.map_or("-".to_owned(), |spread| seconds(spread.max_ms)),
            seconds(practice.rpo_objective_ms),
            practice.drills.last().map_or("never".to_owned(), |drill| {
                drill.started_at.strftime("%F %TZ").to_string()
            }),
        ]);
    }
    output::data(&table.to_string());
    output::data(
        "RTO: least / middle / most. RPO: most. See resurgam audit for what follows from it.",
    );
    if report.incidents.is_empty() {
        output::data("no incidents");
        return;
    }
    let mut table = output::table(&["opened", "scenario", "severity", "component", "state"]);
    for account in &report.incidents {
        let incident = &account.incident;
        table.add_row([
            incident.opened_at.strftime("%F %TZ").to_string(),
            incident.scenario.to_string(),
            incident.severity.to_string(),
            incident.component.to_string(),
            super::status::word_of(&incident.state),
        ]);
    }
    output::data(&table.to_string());
}
