//! `resurgam vault`

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand};
use resurgam_backup::vault::Vault;
use resurgam_backup::{Password, Place};
use resurgam_model::ComponentName;

use crate::backups::{base, blocking, open, planned};
use crate::failure::{Failure, code};
use crate::output;
use crate::plan::Loaded;

/// The places where backups are kept: restic repositories, encrypted.
///
/// They are in the plan, under [[backup.vaults]]. The standard `restic` program can read them with
/// the same password. It must not write to them or prune them: it does not know who else does.
///
/// Examples:
///   resurgam vault init
///   resurgam vault check --data
///   resurgam vault key add here --new-password-file escrow.txt
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct VaultArgs {
    #[command(subcommand)]
    command: VaultCommand,
}

#[derive(Debug, Subcommand)]
enum VaultCommand {
    /// Make the vaults of the plan that are not there yet.
    Init(WhichArgs),
    /// Look for damage. Exit code 3 when there is any.
    Check(CheckArgs),
    /// The passwords by which a vault can be opened.
    Key(KeyArgs),
}

#[derive(Debug, Args)]
struct WhichArgs {
    /// Which; all of the plan if none is named.
    vault: Option<ComponentName>,
    /// The plan.
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct CheckArgs {
    #[command(flatten)]
    which: WhichArgs,
    /// Read every byte, not the structure alone.
    #[arg(long)]
    data: bool,
}

#[derive(Debug, Args)]
struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// List the keys.
    List(KeyListArgs),
    /// Add a key: another password, such as one for escrow.
    Add(KeyAddArgs),
    /// Remove a key. Never the one in use.
    Remove(KeyRemoveArgs),
    /// Add a key and remove all others. The password of the plan is to be changed afterwards.
    Rotate(KeyAddArgs),
}

#[derive(Debug, Args)]
struct KeyListArgs {
    /// Of which vault.
    vault: ComponentName,
    /// The plan.
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct KeyAddArgs {
    /// Of which vault.
    vault: ComponentName,
    /// The file with the new password, in its first line.
    #[arg(long, value_name = "FILE")]
    new_password_file: PathBuf,
    /// The plan.
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct KeyRemoveArgs {
    /// Of which vault.
    vault: ComponentName,
    /// Which key; the beginning of its id is enough.
    key: String,
    /// The plan.
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
}

pub(crate) async fn run(args: VaultArgs) -> Result<u8, Failure> {
    match args.command {
        VaultCommand::Init(args) => init(&args).await,
        VaultCommand::Check(args) => check(&args).await,
        VaultCommand::Key(args) => match args.command {
            KeyCommand::List(args) => list(&args).await,
            KeyCommand::Add(args) => add(&args, false).await,
            KeyCommand::Rotate(args) => add(&args, true).await,
            KeyCommand::Remove(args) => remove(&args).await,
        },
    }
}

async fn init(args: &WhichArgs) -> Result<u8, Failure> {
    let loaded = Loaded::read(args.plan.as_deref())?;
    for vault in planned(&loaded, args.vault.as_ref())? {
        let (planned, base) = (vault.clone(), base(&loaded));
        let place = Place::of_plan(&planned, &base)?;
        let (shown, looked) = (place.to_string(), place.clone());
        if blocking(move || looked.has_vault()).await? {
            open(&loaded, vault).await?;
            output::note(&format!("{} is there already: {shown}", vault.name));
            continue;
        }
        let deployment = loaded.plan().deployment.name.clone();
        blocking(move || {
            let password = Password::of(&planned, &base)?;
            Vault::init(planned.name.as_str(), place, &deployment, password)
        })
        .await?;
        output::note(&format!(
            "{} is made: {shown}. Without its password nobody can restore anything: keep it elsewhere as well",
            vault.name,
        ));
    }
    Ok(code::OK)
}

async fn check(args: &CheckArgs) -> Result<u8, Failure> {
    let loaded = Loaded::read(args.which.plan.as_deref())?;
    let mut sound = true;
    for vault in planned(&loaded, args.which.vault.as_ref())? {
        let opened = open(&loaded, vault).await?;
        let data = args.data;
        let findings = blocking(move || opened.check(data)).await?;
        for finding in &findings {
            output::data(&format!("{}: {finding}", vault.name));
        }
        sound &= findings.is_empty();
        let word = match (findings.is_empty(), args.data) {
            (true, true) => "whole, every byte was read",
            (true, false) => "its structure is whole; --data reads every byte",
            (false, _) => "DAMAGED; verify its backups with: resurgam backup verify --all",
        };
        output::data(&format!("{}: {word}", vault.name));
    }
    Ok(if sound { code::OK } else { code::MISSED })
}

async fn one(plan: Option<&std::path::Path>, name: &ComponentName) -> Result<Arc<Vault>, Failure> {
    let loaded = Loaded::read(plan)?;
    let these = planned(&loaded, Some(name))?;
    let vault = these.first().ok_or_else(|| Failure::usage("the plan has no such vault"))?;
    open(&loaded, vault).await
}

async fn list(args: &KeyListArgs) -> Result<u8, Failure> {
    let vault = one(args.plan.as_deref(), &args.vault).await?;
    let keys = blocking(move || vault.keys()).await?;
    if args.json {
        output::json(&keys)?;
        return Ok(code::OK);
    }
    let mut table = output::table(&["key", "made by", "made at", ""]);
    for key in &keys {
        let present = if key.present { "in use" } else { "" };
        let id = key.id.chars().take(12).collect::<String>();
        table.add_row([id, key.by.clone(), key.created.clone(), present.to_owned()]);
    }
    output::data(&table.to_string());
    Ok(code::OK)
}

async fn add(args: &KeyAddArgs, rotate: bool) -> Result<u8, Failure> {
    let vault = one(args.plan.as_deref(), &args.vault).await?;
    let password = Password::from_file(args.vault.as_str(), &args.new_password_file)?;
    let loaded = Loaded::read(args.plan.as_deref())?;
    let plan = planned(&loaded, Some(&args.vault))?.first().map(|vault| (*vault).clone());
    let (opened, new) = (Arc::clone(&vault), password.clone());
    let id = blocking(move || opened.add_key(&new)).await?;
    let short: String = id.chars().take(12).collect();
    output::note(&format!("the key {short} is added"));
    if let (true, Some(plan)) = (rotate, plan) {
        let place = Place::of_plan(&plan, &base(&loaded))?;
        let name = args.vault.to_string();
        let deployment = loaded.plan().deployment.name.clone();
        // Opened by the new password, which proves that it works before the others go.
        let removed = blocking(move || {
            let vault = Vault::open(&name, place, &deployment, password)?;
            let others: Vec<_> = vault.keys()?.into_iter().filter(|key| !key.present).collect();
            for key in &others {
                vault.remove_key(&key.id)?;
            }
            Ok(others.len())
        })
        .await?;
        output::note(&format!(
            "{removed} other keys are removed; put the new password where the plan looks for it"
        ));
    }
    Ok(code::OK)
}

async fn remove(args: &KeyRemoveArgs) -> Result<u8, Failure> {
    let vault = one(args.plan.as_deref(), &args.vault).await?;
    let key = args.key.clone();
    blocking(move || vault.remove_key(&key)).await?;
    output::note("the key is removed; its password opens the vault no more");
    Ok(code::OK)
}
