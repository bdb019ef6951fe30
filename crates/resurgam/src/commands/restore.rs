//! `resurgam restore`

use std::io::{BufRead as _, IsTerminal as _};
use std::path::PathBuf;

use clap::Args;
use resurgam_backup::log::replay::Target as ReplayTarget;
use resurgam_backup::manifest::Database;
use resurgam_backup::restore::{Component, Point, Target, Wish};
use resurgam_backup::vault::{Backup, Proof, Vault};
use resurgam_model::{ComponentName, Timestamp};
use resurgam_recovery::journal::Journal;

use super::backup::{age, bytes, find};
use super::journal::who;
use super::up::{fault, lock, make_dir};
use crate::backups::{self, blocking};
use crate::failure::{Failure, code};
use crate::output;
use crate::plan::Loaded;
use crate::points::{Found, look};

/// Restore a backup: in place of what is there, or into a folder to look at it.
///
/// In place, it says first what would be replaced and lost, and asks. Nothing may run: stop
/// `resurgam up` before. What is there is moved into set-aside in the state folder, never removed.
/// If it is cut off anywhere, doing it again finishes it. Afterwards `resurgam up` starts the
/// deployment as from a stop: standbys are made anew, leases of the dead return to the queue, and
/// what was acknowledged after the backup is gone.
///
/// An owned PostgreSQL whose log is in the vault is brought to any moment: --latest to the end of the
/// log, seconds before the loss; --at to what was committed before a time; --backup to the backup alone.
///
/// Examples:
///   resurgam restore --latest
///   resurgam restore --at 2026-11-25T13:14:15Z
///   resurgam restore --backup 20261125T131500Z-3f2a --yes
///   resurgam restore --latest --into /tmp/look
///   resurgam restore --latest --component state
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct RestoreArgs {
    /// Which backup; its id, as `resurgam backup list` shows it.
    #[arg(long, value_name = "ID", required_unless_present_any = ["latest", "at"])]
    backup: Option<String>,
    /// The newest one that is not known to be bad, and all of the log after it.
    #[arg(long, conflicts_with = "backup")]
    latest: bool,
    /// The database as it was at this moment, such as 2026-11-25T13:14:15.5Z: with all that was
    /// committed before it.
    #[arg(long, value_name = "TIME", conflicts_with_all = ["backup", "latest"])]
    at: Option<Timestamp>,
    /// Along this timeline of the log instead of the newest one: after a restore to an earlier
    /// moment, the way that was left there.
    #[arg(long, value_name = "NUMBER", conflicts_with = "backup")]
    timeline: Option<u32>,
    /// From this vault; the first of the plan that has it if none is named.
    #[arg(long)]
    vault: Option<ComponentName>,
    /// What of it: all, database, state or configuration.
    #[arg(long, default_value = "all")]
    component: Component,
    /// Into this folder instead, which must be empty or not there.
    #[arg(long, value_name = "DIR")]
    into: Option<PathBuf>,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// Open the vaults with the password in this file, in place of the plan's ways to one: for the key that
    /// is kept elsewhere.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// The plan of the deployment.
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
}

pub(crate) async fn run(args: RestoreArgs) -> Result<u8, Failure> {
    let mut loaded = Loaded::read(args.plan.as_deref())?;
    if let Some(file) = &args.password_file {
        loaded.with_password(file)?;
    }
    if args.at.is_some_and(|at| at > Timestamp::now()) {
        return Err(Failure::usage("that moment is yet to come; --latest restores all there is"));
    }
    let Found { vault, point, until } = choose(&loaded, &args).await?;
    let backup = point.backup.clone();
    if let Some(into) = &args.into {
        let into = std::path::absolute(into)?;
        let below = match args.component {
            Component::All => String::new(),
            part => part.to_string(),
        };
        let (id, to) = (backup.id.clone(), into.clone());
        blocking(move || vault.extract(&id, &below, &to)).await?;
        if args.at.is_some() {
            output::note(
                "these are the files of the backup; only in place is a database brought to a moment",
            );
        }
        output::note(&format!("{} is in {}", backup.id, into.display()));
        if backup.manifest.database == Database::Postgres {
            output::note(
                "its data folder has the passwords of the deployment, and lets nobody connect by its own configuration; resurgam backup verify starts it on trial",
            );
        }
        return Ok(code::OK);
    }
    let state = loaded.state_dir();
    make_dir(&state, 0o711)?;
    let _lock = lock(&state)?;
    let journal_file = state.join("journal.db");
    std::fs::File::options().create(true).append(true).open(&journal_file)?;
    let journal = Journal::open(&journal_file)?;
    let programs = backups::programs(&loaded)?;
    let instance = match &programs {
        None => None,
        Some(_) => Some(match journal.cluster()?.primary {
            Some(primary) => primary,
            None => ComponentName::new("postgres-0")?,
        }),
    };
    let target = Target {
        state: state.clone(),
        postgres: programs.zip(instance.clone().map(|name| name.to_string())),
    };
    show(&target, &point, until, args.component)?;
    if !args.yes {
        ask()?;
    }
    let fault = fault(loaded.plan())?;
    let before = |deed: &str| fault.iter().for_each(|fault| fault.die_before(deed));
    let by = who();
    let component = args.component;
    let what =
        format!("the backup {} of {} ({component}{})", backup.id, backup.taken_at, with(&point));
    journal.act(&by, &format!("begins to restore {what}"), Timestamp::now())?;
    let restored = async {
        before("prepare");
        let prepared = {
            let (target, point) = (target.clone(), point.clone());
            let handle = tokio::runtime::Handle::current();
            blocking(move || handle.block_on(target.prepare(&vault, &point, component))).await?
        };
        if let Some(reached) = prepared.reached() {
            let last = match reached.last_commit {
                Some(at) => format!("; the last transaction in it is of {at}"),
                None => "; no transaction came after the backup".to_owned(),
            };
            output::note(&format!("the log was replayed up to {}{last}", reached.at));
        }
        // First: from now on nothing begins with an empty database where there was one, and what
        // was before has lost its reign.
        before("reign");
        let database = matches!(component, Component::All | Component::Database);
        if let (true, Some(instance)) = (database, instance) {
            journal.set_cluster(&journal.cluster()?.restored(instance))?;
        }
        Ok::<_, Failure>(target.put_in_place(&prepared, &before)?)
    };
    let aside = match restored.await {
        Ok(aside) => aside,
        Err(failure) => {
            let text = format!("could not restore {what}: {}", failure.message);
            journal.act(&by, &text, Timestamp::now())?;
            return Err(failure);
        }
    };
    journal.act(&by, &format!("has restored {what}"), Timestamp::now())?;
    if let Some(aside) = aside {
        output::note(&format!(
            "what was there is in {}; remove it once all is well",
            aside.display()
        ));
    }
    output::note("restored; start it with: resurgam up");
    Ok(code::OK)
}

/// What was asked for, in the vault that has it best.
async fn choose(loaded: &Loaded, args: &RestoreArgs) -> Result<Found, Failure> {
    let wish = |vault: &Vault, all: &[Backup]| {
        Ok(match (&args.backup, args.at) {
            (Some(id), _) => Wish::Backup(find(all, vault.name(), Some(id))?.id.clone()),
            (None, Some(at)) => Wish::At(at),
            (None, None) => Wish::Latest,
        })
    };
    let (found, mut without) = look(loaded, args.vault.as_ref(), &wish, args.timeline).await?;
    for (vault, failure) in &without {
        output::note(&format!("vault {vault}: {}", failure.message));
    }
    let why = without.pop().map(|(_, failure)| failure);
    found.ok_or_else(|| why.unwrap_or_else(|| Failure::new("no vault has a backup")))
}

/// What is replayed, for the journal.
fn with(point: &Point) -> String {
    match point.replay.as_ref().map(|replay| replay.target) {
        None | Some(ReplayTarget::Backup) => String::new(),
        Some(ReplayTarget::End) => ", with the log to its end".to_owned(),
        Some(ReplayTarget::Time(at)) => format!(", with the log to {at}"),
    }
}

/// Says what would be done. `until` is up to when the vault has all for it.
fn show(
    target: &Target,
    point: &Point,
    until: Timestamp,
    component: Component,
) -> Result<(), Failure> {
    let (now, backup) = (Timestamp::now(), &point.backup);
    let proof = match &backup.proof {
        Proof::None => {
            "it was NEVER restored on trial; resurgam backup verify does that".to_owned()
        }
        Proof::Verified(at) => format!("it was restored on trial {} ago", age(now, *at)),
        Proof::Bad(why) => format!("it is known to be BAD: {why}"),
    };
    output::note(&format!(
        "backup {} of {} ({} ago, {}); {proof}",
        backup.id,
        backup.taken_at,
        age(now, backup.taken_at),
        bytes(backup.size)
    ));
    let replay = point.replay.as_ref().filter(|_| component.has(Component::Database));
    // Up to when what was acknowledged will be there.
    let until = match replay.map(|replay| (replay, replay.target)) {
        Some((replay, ReplayTarget::Time(at))) => {
            output::note(&format!("the log of {} is replayed on it, up to {at}", replay.store));
            at
        }
        Some((replay, ReplayTarget::End)) => {
            output::note(&format!(
                "the log of {} is replayed on it to its end, which is whole up to {until}",
                replay.store
            ));
            until
        }
        Some((_, ReplayTarget::Backup)) | None => backup.taken_at,
    };
    let replaced = target.replaced(point, component);
    if replaced.is_empty() {
        output::note("nothing is there that it would replace");
        return Ok(());
    }
    for path in &replaced {
        output::note(&format!("  would be moved aside: {}", path.display()));
    }
    output::note(&format!(
        "what was acknowledged in the last {} may not be in it, and would be LOST to the deployment",
        age(now, until)
    ));
    Ok(())
}

fn ask() -> Result<(), Failure> {
    let no = || Failure::refused("nothing was changed");
    if !std::io::stdin().is_terminal() {
        return Err(Failure::refused(
            "nothing was changed: nobody is there to be asked; --yes does it without asking",
        ));
    }
    output::note("write yes to go on:");
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    if answer.trim() == "yes" { Ok(()) } else { Err(no()) }
}
