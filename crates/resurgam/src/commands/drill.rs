//! `resurgam drill`

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use comfy_table::Table;
use resurgam_model::plan::{Drills, EffectivePlan, Plan, StoreKind};
use resurgam_model::report::{DrillReport, DrillResult, Measured, StepReport};
use resurgam_model::{Duration, Scenario};
use resurgam_recovery::drill::load::{Load, Shape};
use resurgam_recovery::drill::subject::Address;
use resurgam_recovery::drill::{Drill, FaultKind, Subject};
use serde_json::json;
use tempfile::TempDir;

use super::status::word_of;
use crate::cli::DrillArgs;
use crate::failure::{Failure, code};
use crate::output::{self, Progress};
use crate::plan::Loaded;
use crate::shutdown;

pub(crate) async fn run(args: DrillArgs) -> Result<u8, Failure> {
    let Some(scenario) = args.scenario else { return list(args.json) };
    let shutdown = shutdown::requested();
    if args.fault == FaultKind::Freeze && scenario != Scenario::PostgresPrimary {
        return Err(Failure::usage(format!(
            "{scenario} can only be killed; --fault freeze is for {}",
            Scenario::PostgresPrimary
        )));
    }
    let ground = match &args.plan {
        Some(file) => Ground::of_plan(file, scenario)?,
        None => Ground::temporary(&temporary_plan(&args, scenario)?)?,
    };
    let progress = Progress::new(args.json);
    progress.say("starting a deployment");
    let outcome = tokio::select! {
        outcome = one(&ground, scenario, &args, &progress) => outcome,
        () = shutdown => Err(Failure::interrupted()),
    };
    progress.clear();
    ground.clear(args.keep).await?;
    let report = outcome?;
    if args.json {
        output::json(&report)?;
    } else {
        print(&report);
    }
    Ok(exit_code(&report))
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
        if scenario == Scenario::PostgresPrimary && plan.store.kind != StoreKind::Postgres {
            return Err(Failure::usage(format!(
                "the plan {} runs no PostgreSQL of its own; set store.kind = \"postgres\" to drill {scenario}",
                file.display()
            )));
        }
        let state_dir = loaded.state_dir();
        if scenario == Scenario::FullCluster && plan.backup.vaults.is_empty() {
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

    pub(crate) async fn start(&self) -> Result<Subject, Failure> {
        // The temporary plan is complete: what the caller's environment says is not for it.
        let env = match &self.temporary {
            Some(_) => vec![
                ("DATABASE_URL".to_owned(), String::new()),
                ("DATABASE_MAX_POOL_SIZE".to_owned(), String::new()),
            ],
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

fn temporary_plan(args: &DrillArgs, scenario: Scenario) -> Result<String, Failure> {
    let postgres = match (args.store.as_deref(), scenario) {
        (Some("sqlite"), Scenario::PostgresPrimary) => {
            return Err(Failure::usage(format!("{scenario} needs --store postgres")));
        }
        (store, Scenario::PostgresPrimary) => store.is_none_or(|store| store == "postgres"),
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
        "[deployment]\ndrills = \"allowed\"\nstate_dir = \"state\"\n\n[store]\nkind = \"{store}\"\n\n[postgres]\nsynchronous = {}\n\n[backup]\nscheduled = false\n\n[[backup.vaults]]\nname = \"drill\"\npath = \"vault\"\npassword_file = \"vault-password\"\n",
        !args.asynchronous
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

fn stores(scenario: Scenario) -> &'static [&'static str] {
    match scenario {
        Scenario::PostgresPrimary => &["postgres"],
        _ => &["sqlite", "postgres"],
    }
}

fn faults(scenario: Scenario) -> &'static [&'static str] {
    match scenario {
        Scenario::PostgresPrimary => &["kill", "freeze"],
        _ => &["kill"],
    }
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
pub(crate) fn summary_table(reports: &[DrillReport]) -> Table {
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
    output::data(&summary_table(std::slice::from_ref(report)).to_string());
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
