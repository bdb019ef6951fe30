//! `resurgam audit`

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use clap::Args;
use resurgam_backup::vault::LogReport;
use resurgam_model::Timestamp;
use resurgam_model::plan::StoreKind;
use resurgam_recovery::drill::history;
use resurgam_recovery::drill::subject::Address;

use super::drill::wrapped;
use super::status::word_of;
use crate::audit::{LogState, VaultState, audit};
use crate::backups::{blocking, open};
use crate::calendar;
use crate::failure::{Failure, code};
use crate::output;
use crate::plan::Loaded;

/// Compute what the plan can keep of what it promises.
///
/// It looks at the plan, at the backups in its vaults, and at the drills of its deployment: what each
/// scenario could lose and how long its recovery took, beside its objectives, and what else will go
/// wrong one day, each with a remedy.
///
/// Exit code 3 when an objective cannot be met.
///
/// Examples:
///   resurgam audit --plan resurgam.toml
///   resurgam audit --json | jq '.findings[] | select(.level == "broken")'
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct AuditArgs {
    /// The plan; ./resurgam.toml if there is one.
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: AuditArgs) -> Result<u8, Failure> {
    let loaded = Loaded::read(args.plan.as_deref())?;
    let mut vaults = Vec::new();
    for vault in &loaded.plan().backup.vaults {
        let opened = open(&loaded, vault).await;
        let (backups, log) = match opened {
            Ok(vault) => {
                let listed = std::sync::Arc::clone(&vault);
                let log = blocking(move || vault.log_reports()).await;
                (blocking(move || listed.backups()).await, log.unwrap_or_default())
            }
            Err(failure) => (Err(failure), Vec::new()),
        };
        vaults.push(VaultState {
            name: vault.name.to_string(),
            same_device: vault
                .path
                .as_ref()
                .is_some_and(|path| same_device(&loaded.path(path), &loaded.state_dir())),
            backups: backups.map_err(|failure| failure.message),
            log: log_state(&loaded, &log),
        });
    }
    let state_dir = loaded.state_dir();
    let drills = history::read(&state_dir).map_err(|error| {
        Failure::new(format!("cannot read {}: {error}", history::file(&state_dir).display()))
    })?;
    let entries = calendar::entries(&state_dir)?;
    let found = audit(loaded.plan(), &vaults, &drills.reports, &entries, Timestamp::now());
    let exit = if found.holds() { code::OK } else { code::MISSED };
    if args.json {
        output::json(&found)?;
        return Ok(exit);
    }
    let mut table =
        output::table(&["scenario", "severity", "RTO", "took", "RPO", "can lose", "because"]);
    for reach in &found.reach {
        table.add_row([
            reach.scenario.to_string(),
            reach.severity.to_string(),
            reach.rto_objective.to_string(),
            match (reach.rto_measured, reach.drills) {
                (Some(took), _) => took.to_string(),
                (None, 0) => "not drilled".to_owned(),
                (None, _) => "never ended".to_owned(),
            },
            reach.rpo_objective.to_string(),
            reach.rpo_reach.map_or("everything".to_owned(), |reach| reach.to_string()),
            wrapped(&reach.because),
        ]);
    }
    output::data(&table.to_string());
    let mut table = output::table(&["", "rule", "what is wrong", "what to do"]);
    for finding in &found.findings {
        table.add_row([
            word_of(&finding.level),
            finding.rule.to_owned(),
            wrapped(&finding.problem),
            wrapped(&finding.remedy),
        ]);
    }
    if found.findings.is_empty() {
        output::data("nothing was found");
    } else {
        output::data(&table.to_string());
    }
    Ok(exit)
}

/// What is to be said of the log in a vault.
fn log_state(loaded: &Loaded, logs: &[LogReport]) -> LogState {
    let plan = loaded.plan();
    if !plan.backup.continuous || plan.store.kind != StoreKind::Postgres {
        return LogState::NotWanted;
    }
    let runs = Address::read(&loaded.state_dir()).is_some();
    let newest = logs.iter().filter_map(|log| log.as_of).map(|as_of| as_of.at).max();
    match newest {
        _ if logs.iter().any(|log| log.broken) => LogState::Broken,
        Some(at) => LogState::WholeUntil { at, runs },
        None if runs => LogState::Missing,
        None => LogState::NotWanted,
    }
}

/// Whether both are on one device. One that is not there yet will be on that of the folder above it.
fn same_device(one: &Path, other: &Path) -> bool {
    let device = |path: &Path| {
        path.ancestors().find_map(|path| std::fs::metadata(path).ok()).map(|meta| meta.dev())
    };
    device(one).is_some() && device(one) == device(other)
}
