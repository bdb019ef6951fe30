//! `resurgam drill`

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;

use comfy_table::Table;
use resurgam_deployment::brokers::{KafkaPrograms, RabbitPrograms};
use resurgam_model::bus::BusKind;
use resurgam_model::plan::{Drills, EffectivePlan, Plan, StoreKind, variables};
use resurgam_model::report::{DrillReport, DrillResult, Measured, StepReport};
use resurgam_model::{Duration, Scenario};
use resurgam_recovery::brokers::bus_of;
use resurgam_recovery::drill::load::{Load, Shape};
use resurgam_recovery::drill::subject::Address;
use resurgam_recovery::drill::{Drill, FaultKind, Subject, history};
use serde_json::json;
use tempfile::TempDir;

use super::status::word_of;
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
            Some(file) => Ground::of_plan(file, scenario).map(drop),
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
    let ground = match &args.plan {
        Some(file) => Ground::of_plan(file, scenario)?,
        None => Ground::temporary(&temporary_plan(args, scenario)?)?,
    };
    let before = ground.history()?;
    progress.say("starting a deployment");
    let outcome = tokio::select! {
        outcome = one(&ground, scenario, args, progress) => outcome,
        () = shutdown => Err(Failure::interrupted()),
    };
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
    let mut subject = ground.start().await?;
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

/// Where a drill takes place.
pub(crate) struct Ground {
    plan: Plan,
    plan_file: PathBuf,
    state_dir: PathBuf,
    temporary: Option<TempDir>,
}

impl Ground {
    /// A temporary folder with a plan in it.
    pub(crate) fn temporary(plan_text: &str) -> Result<Self, Failure> {
        let dir = tempfile::Builder::new().prefix("resurgam-").tempdir()?;
        // PostgreSQL runs as another user when we are root.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711))?;
        let plan_file = dir.path().join("resurgam.toml");
        std::fs::write(&plan_file, plan_text)?;
        // For a vault in it, if it has one.
        let password = dir.path().join("vault-password");
        std::fs::write(&password, "")?;
        std::fs::set_permissions(&password, std::fs::Permissions::from_mode(0o600))?;
        std::fs::write(&password, uuid::Uuid::new_v4().simple().to_string())?;
        let plan = EffectivePlan::resolve(Some(plan_text), |_| None)?.plan;
        let state_dir = dir.path().join(&plan.deployment.state_dir);
        Ok(Self { plan, plan_file, state_dir, temporary: Some(dir) })
    }

    /// The deployment of somebody's plan, if that allows drills.
    fn of_plan(file: &Path, scenario: Scenario) -> Result<Self, Failure> {
        let loaded = Loaded::read(Some(file))?;
        let plan = loaded.plan().clone();
        if plan.deployment.drills != Drills::Allowed {
            return Err(Failure::refused(format!(
                "the plan {} does not allow drills; if this deployment may be broken on purpose, set deployment.drills = \"allowed\" in it",
                file.display()
            )));
        }
        let built_in = plan.workers.exec.is_empty();
        if !built_in || !plan.workers.capabilities.iter().any(|c| c.as_str() == "sha256") {
            return Err(Failure::refused(
                "a drill's load needs workers with the built-in sha256; drill without --plan, or with a plan that has them",
            ));
        }
        if is_of_postgres(scenario) && plan.store.kind != StoreKind::Postgres {
            return Err(Failure::usage(format!(
                "the plan {} runs no PostgreSQL of its own; set store.kind = \"postgres\" to drill {scenario}",
                file.display()
            )));
        }
        fits_brokers(&plan, scenario)?;
        let state_dir = loaded.state_dir();
        let restores = matches!(
            scenario,
            Scenario::FullCluster | Scenario::PostgresRestore | Scenario::DatabaseCorruption
        );
        if restores && plan.backup.vaults.is_empty() {
            return Err(Failure::usage(format!(
                "the plan {} has no vault; {scenario} restores from one, so add it under [[backup.vaults]]",
                file.display()
            )));
        }
        if matches!(scenario, Scenario::FullStop | Scenario::FullCluster)
            && Address::read(&state_dir).is_some()
        {
            return Err(Failure::refused(format!(
                "{scenario} would end a deployment that somebody else started, and who alone can start it again; end it first, and the drill starts it itself"
            )));
        }
        let plan_file = loaded.file.unwrap_or_else(|| file.to_owned());
        Ok(Self { plan, plan_file, state_dir, temporary: None })
    }

    /// The history as it is before a drill that may lose it; none of a temporary deployment.
    fn history(&self) -> Result<Option<Vec<u8>>, Failure> {
        if self.temporary.is_some() {
            return Ok(None);
        }
        match std::fs::read(history::file(&self.state_dir)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Some(Vec::new())),
            Err(error) => Err(Failure::new(format!(
                "cannot read {}: {error}",
                history::file(&self.state_dir).display()
            ))),
        }
    }

    /// Adds the report to the history. A drill that takes the state folder away takes no history.
    fn remember(&self, before: &[u8], report: Option<&DrillReport>) -> Result<(), Failure> {
        let file = history::file(&self.state_dir);
        let failed = |error| Failure::new(format!("cannot write {}: {error}", file.display()));
        if !before.is_empty() && self.state_dir.is_dir() && !file.exists() {
            std::fs::write(&file, before).map_err(failed)?;
        }
        match report {
            Some(report) => history::append(&self.state_dir, report).map_err(failed),
            None => Ok(()),
        }
    }

    pub(crate) async fn start(&self) -> Result<Subject, Failure> {
        // The temporary plan is complete: what the caller's environment says is not for it.
        let env = match &self.temporary {
            Some(_) => variables().map(|name| (name.to_owned(), String::new())).collect(),
            None => Vec::new(),
        };
        let program = std::env::current_exe()?;
        let (plan_file, plan) = (self.plan_file.clone(), self.plan.clone());
        Ok(Subject::start(program, plan_file, plan, self.state_dir.clone(), env).await?)
    }

    /// Ends whatever is left of a deployment of our own, and removes its folder, or says where
    /// it is. A deployment of somebody's plan is left alone.
    pub(crate) async fn clear(self, keep: bool) -> Result<(), Failure> {
        let Some(dir) = self.temporary else { return Ok(()) };
        resurgam_recovery::drill::fault::clear(dir.path()).await?;
        if keep {
            output::note(&format!("kept {}", dir.keep().display()));
            return Ok(());
        }
        Ok(dir.close()?)
    }
}

/// Whether the deployment runs the brokers that the scenario is about.
fn fits_brokers(plan: &Plan, scenario: Scenario) -> Result<(), Failure> {
    let bus = &plan.bus;
    let (kind, own, needed, key) = match scenario {
        Scenario::KafkaBroker => (BusKind::Kafka, bus.kafka.brokers, 3, "bus.kafka.brokers"),
        Scenario::KafkaCluster => (BusKind::Kafka, bus.kafka.brokers, 1, "bus.kafka.brokers"),
        Scenario::RabbitMq => (BusKind::RabbitMq, bus.rabbitmq.nodes, 1, "bus.rabbitmq.nodes"),
        _ => return Ok(()),
    };
    if bus.order.contains(&kind) && own >= needed {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "{scenario} needs brokers that the deployment runs itself; set {key} to {needed} or more, and name {kind} in bus.order"
    )))
}

/// A plan with brokers of its own, for the scenarios that are about them.
fn temporary_brokers(scenario: Scenario) -> Result<&'static str, Failure> {
    if bus_of(scenario).is_none() {
        return Ok("");
    }
    // Before anything is made.
    KafkaPrograms::find(None)?;
    RabbitPrograms::find(None)?;
    Ok(
        "\n[bus]\norder = [\"kafka\", \"rabbitmq\"]\nclose_after = \"2s\"\nreturn_after = \"5s\"\n\n[bus.kafka]\nbrokers = 3\n\n[bus.rabbitmq]\nnodes = 1\n",
    )
}

fn temporary_plan(args: &DrillArgs, scenario: Scenario) -> Result<String, Failure> {
    let postgres = match (args.store.as_deref(), scenario) {
        (Some("sqlite"), scenario) if is_of_postgres(scenario) => {
            return Err(Failure::usage(format!("{scenario} needs --store postgres")));
        }
        (store, scenario) if is_of_postgres(scenario) => {
            store.is_none_or(|store| store == "postgres")
        }
        (store, _) => store == Some("postgres"),
    };
    if args.asynchronous && !postgres {
        return Err(Failure::usage("--asynchronous is about PostgreSQL; add --store postgres"));
    }
    if postgres {
        // Before anything is made.
        resurgam_deployment::postgres::Programs::find(None)?;
    }
    let store = if postgres { "postgres" } else { "sqlite" };
    Ok(format!(
        "[deployment]\ndrills = \"allowed\"\nstate_dir = \"state\"\n\n[store]\nkind = \"{store}\"\n\n[postgres]\nsynchronous = {}\n{}\n[backup]\nscheduled = false\n\n[[backup.vaults]]\nname = \"drill\"\npath = \"vault\"\npassword_file = \"vault-password\"\n{}",
        !args.asynchronous,
        if scenario == Scenario::PostgresRestore { "standbys = 0\n" } else { "" },
        temporary_brokers(scenario)?
    ))
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

/// Nothing but PostgreSQL has it.
fn is_of_postgres(scenario: Scenario) -> bool {
    matches!(
        scenario,
        Scenario::PostgresPrimary
            | Scenario::PostgresRestore
            | Scenario::DatabaseCorruption
            | Scenario::PoolExhaustion
            | Scenario::PostgresStandby
    )
}

fn stores(scenario: Scenario) -> &'static [&'static str] {
    match scenario {
        scenario if is_of_postgres(scenario) => &["postgres"],
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
