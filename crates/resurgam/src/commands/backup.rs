//! `resurgam backup`

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand};
use resurgam_backup::log::store::AsOf;
use resurgam_backup::vault::{Backup, Proof, Vault};
use resurgam_model::{ComponentName, Timestamp};
use serde::Serialize;

use super::journal::who;
use crate::backups::{self, Taken, blocking, open_all};
use crate::failure::{Failure, code};
use crate::output;
use crate::plan::Loaded;

/// Take, list, prove and remove backups.
///
/// A backup is one recovery point: the database, the checkpoints of workflows, and the configuration
/// with its secrets. `resurgam up` takes them by the plan's schedule, and verifies each by restoring
/// it on trial.
///
/// Examples:
///   resurgam backup run --verify
///   resurgam backup list
///   resurgam backup verify --latest
///   resurgam backup log
///   resurgam backup prune
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct BackupArgs {
    #[command(subcommand)]
    command: BackupCommand,
}

#[derive(Debug, Subcommand)]
enum BackupCommand {
    /// Take a backup now.
    Run(RunArgs),
    /// List the backups, the newest first.
    List(ListArgs),
    /// Show the log of PostgreSQL in the vaults: up to when it is whole. Exit code 3 when the newest
    /// backup cannot be brought further by it.
    Log(ListArgs),
    /// Restore backups on trial, and write down what was found. Exit code 3 when one is bad.
    Verify(VerifyArgs),
    /// Show which backups no rule keeps; with --yes remove them.
    Prune(PruneArgs),
}

#[derive(Debug, Args)]
struct Which {
    /// Of or into this vault only.
    #[arg(long)]
    vault: Option<ComponentName>,
    /// The plan.
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct RunArgs {
    #[command(flatten)]
    which: Which,
    /// Restore it on trial afterwards.
    #[arg(long)]
    verify: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ListArgs {
    #[command(flatten)]
    which: Which,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct VerifyArgs {
    /// Which; its id, as `list` shows it.
    #[arg(required_unless_present_any = ["latest", "all"], conflicts_with_all = ["latest", "all"])]
    backup: Option<String>,
    /// The newest one.
    #[arg(long, conflicts_with = "all")]
    latest: bool,
    /// All of them.
    #[arg(long)]
    all: bool,
    /// Open the vaults with the password in this file alone, and not by the plan's ways: proves that a key
    /// which is kept elsewhere is enough.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, Args)]
struct PruneArgs {
    #[command(flatten)]
    which: Which,
    /// Remove them.
    #[arg(long)]
    yes: bool,
}

/// A backup in a vault.
#[derive(Serialize)]
struct Listed {
    vault: String,
    #[serde(flatten)]
    backup: Backup,
}

pub(crate) async fn run(args: BackupArgs) -> Result<u8, Failure> {
    match args.command {
        BackupCommand::Run(args) => take(&args).await,
        BackupCommand::List(args) => list(&args).await,
        BackupCommand::Log(args) => log(&args).await,
        BackupCommand::Verify(args) => verify(&args).await,
        BackupCommand::Prune(args) => prune(&args).await,
    }
}

/// The vaults that can be opened; people hear of the others.
async fn vaults(loaded: &Loaded, which: &Which) -> Result<(Vec<Arc<Vault>>, u8), Failure> {
    let (vaults, away) = open_all(loaded, which.vault.as_ref()).await?;
    for failure in &away {
        output::note(&failure.message);
    }
    Ok((vaults, away.last().map_or(code::OK, |failure| failure.code)))
}

async fn take(args: &RunArgs) -> Result<u8, Failure> {
    let loaded = Loaded::read(args.which.plan.as_deref())?;
    let (vaults, mut exit) = vaults(&loaded, &args.which).await?;
    let progress = output::Progress::new(args.json);
    let say = |text: &str| progress.say(text);
    let reason = format!("ordered by {}", who());
    let taken = backups::take(&loaded, &vaults, &reason, &say).await;
    progress.clear();
    let Taken { stored, failed } = taken?;
    let mut listed = Vec::new();
    for failure in failed {
        output::note(&failure.message);
        exit = failure.code;
    }
    for (vault, mut backup) in stored {
        if args.verify {
            let proof = backups::verify(&loaded, &vault, &backup, &say).await;
            progress.clear();
            backup.proof = proof?;
            if matches!(backup.proof, Proof::Bad(_)) {
                exit = code::MISSED;
            }
        }
        listed.push(Listed { vault: vault.name().to_owned(), backup });
    }
    print(&listed, args.json)?;
    Ok(exit)
}

async fn list(args: &ListArgs) -> Result<u8, Failure> {
    let loaded = Loaded::read(args.which.plan.as_deref())?;
    let mut listed = Vec::new();
    let (vaults, exit) = vaults(&loaded, &args.which).await?;
    for vault in vaults {
        let name = vault.name().to_owned();
        let all = blocking(move || vault.backups()).await?;
        listed.extend(all.into_iter().map(|backup| Listed { vault: name.clone(), backup }));
    }
    print(&listed, args.json)?;
    Ok(exit)
}

async fn log(args: &ListArgs) -> Result<u8, Failure> {
    let loaded = Loaded::read(args.which.plan.as_deref())?;
    let mut logs = Vec::new();
    let (vaults, away) = vaults(&loaded, &args.which).await?;
    for vault in vaults {
        logs.extend(blocking(move || vault.log_reports()).await?);
    }
    let broken = logs.iter().any(|log| log.broken);
    let exit = if broken { code::MISSED } else { away };
    if args.json {
        output::json(&logs)?;
        return Ok(exit);
    }
    let mut table =
        output::table(&["vault", "database", "timeline", "segments", "size", "to", "whole until"]);
    let now = Timestamp::now();
    for log in &logs {
        let as_of = |show: &dyn Fn(&AsOf) -> String| {
            log.as_of.as_ref().map_or_else(|| "unknown".to_owned(), show)
        };
        table.add_row([
            log.vault.clone(),
            log.system.clone(),
            log.timeline.to_string(),
            log.segments.to_string(),
            bytes(log.bytes),
            as_of(&|as_of| as_of.end.to_string()),
            as_of(&|as_of| format!("{} ({} ago)", as_of.at, age(now, as_of.at))),
        ]);
    }
    output::data(&table.to_string());
    if broken {
        output::note(
            "the newest backup cannot be brought further by the log; take another one with: resurgam backup run",
        );
    }
    Ok(exit)
}

fn print(listed: &[Listed], json: bool) -> Result<(), Failure> {
    if json {
        return output::json(&listed);
    }
    let mut table =
        output::table(&["backup", "vault", "age", "size", "added", "database", "verified", "why"]);
    let now = Timestamp::now();
    for Listed { vault, backup } in listed {
        let verified = match &backup.proof {
            Proof::None => "never".to_owned(),
            Proof::Verified(at) => format!("{} ago", age(now, *at)),
            Proof::Bad(why) => format!("BAD: {}", super::drill::wrapped(why)),
        };
        let kind = super::status::word_of(&backup.manifest.database);
        table.add_row([
            backup.id.clone(),
            vault.clone(),
            age(now, backup.taken_at),
            bytes(backup.size),
            bytes(backup.added),
            format!("{kind} {}", backup.manifest.version),
            verified,
            backup.manifest.reason.clone(),
        ]);
    }
    output::data(&table.to_string());
    Ok(())
}

/// In the greatest unit that fits.
pub(crate) fn age(now: Timestamp, at: Timestamp) -> String {
    let seconds = now.as_second().saturating_sub(at.as_second());
    match seconds {
        ..0 => format!("{} s from now", -seconds),
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// As people write sizes.
pub(crate) fn bytes(bytes: u64) -> String {
    let (mut whole, mut unit) = (bytes, 0);
    let mut tenth = 0;
    while whole >= 1024 && unit < 4 {
        tenth = whole % 1024 * 10 / 1024;
        whole /= 1024;
        unit += 1;
    }
    let unit = ["B", "KiB", "MiB", "GiB", "TiB"].get(unit).copied().unwrap_or_default();
    if unit == "B" { format!("{whole} {unit}") } else { format!("{whole}.{tenth} {unit}") }
}

/// One backup of a vault, by its id, or the newest.
pub(crate) fn find<'a>(
    all: &'a [Backup],
    vault: &str,
    id: Option<&str>,
) -> Result<&'a Backup, Failure> {
    let Some(id) = id else {
        return all.first().ok_or_else(|| {
            Failure::new(format!(
                "the vault {vault} has no backup; take one with: resurgam backup run"
            ))
        });
    };
    let mut matching = all.iter().filter(|backup| backup.id.starts_with(id));
    match (matching.next(), matching.next()) {
        (Some(backup), None) => Ok(backup),
        (Some(_), Some(_)) => Err(Failure::usage(format!("{id} names more than one backup"))),
        (None, _) => Err(Failure::usage(format!(
            "the vault {vault} has no backup {id}; see: resurgam backup list"
        ))),
    }
}

async fn verify(args: &VerifyArgs) -> Result<u8, Failure> {
    let mut loaded = Loaded::read(args.which.plan.as_deref())?;
    if let Some(file) = &args.password_file {
        loaded.with_password(file)?;
    }
    let progress = output::Progress::new(false);
    let say = |text: &str| progress.say(text);
    let (vaults, mut exit) = vaults(&loaded, &args.which).await?;
    for vault in vaults {
        let opened = Arc::clone(&vault);
        let all = blocking(move || opened.backups()).await?;
        let these: Vec<&Backup> = match args.all {
            true => all.iter().collect(),
            false => vec![find(&all, vault.name(), args.backup.as_deref())?],
        };
        for backup in these {
            let proof = backups::verify(&loaded, &vault, backup, &say).await;
            progress.clear();
            let word = match proof? {
                Proof::Bad(why) => {
                    exit = code::MISSED;
                    format!("BAD: {why}")
                }
                _ => "restored, read, and the platform was ready on it".to_owned(),
            };
            output::data(&format!("{} in {}: {word}", backup.id, vault.name()));
        }
    }
    Ok(exit)
}

async fn prune(args: &PruneArgs) -> Result<u8, Failure> {
    let loaded = Loaded::read(args.which.plan.as_deref())?;
    let (vaults, exit) = vaults(&loaded, &args.which).await?;
    for vault in vaults {
        let doomed = backups::doomed(&loaded, &vault).await?;
        let mut table = output::table(&["backup", "vault", "", "because"]);
        for verdict in &doomed.verdicts {
            let word = if verdict.keep { "stays" } else { "GOES" };
            table.add_row([&verdict.id, vault.name(), word, &verdict.why]);
        }
        output::data(&table.to_string());
        let count = doomed.gone().count();
        let segments: usize = doomed.log.iter().map(|(_, segments)| segments.len()).sum();
        if segments > 0 {
            output::note(&format!(
                "{segments} segments of the log are older than backup.log_days asks for"
            ));
        }
        if count == 0 && segments == 0 {
            output::note("nothing is to be removed");
        } else if args.yes {
            doomed.remove(&vault).await?;
            output::note(&format!(
                "{count} backups removed; the space that only they used is free after a day and another prune"
            ));
        } else {
            output::note(&format!("{count} backups would be removed; --yes removes them"));
        }
    }
    Ok(exit)
}
