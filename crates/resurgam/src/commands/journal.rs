//! `resurgam journal`: what was done, in a chain that shows when it was changed afterwards.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use resurgam_recovery::account;
use resurgam_recovery::journal::Journal;
use resurgam_recovery::journal::chain::Head;

use crate::failure::{Failure, code};
use crate::output;
use crate::plan::Loaded;

/// Entries that are read at once.
const PAGE: u32 = 500;

/// Read the recovery journal, and find out whether somebody has changed it.
///
/// Each step of a recovery, each order and each approval is an entry with a hash over it and all
/// before it. A changed, missing or inserted entry breaks the chain. That the end was cut off shows
/// only to those who kept a head from before: `verify` prints it, and so do post-mortems.
///
/// Examples:
///   resurgam journal show --last 20
///   resurgam journal verify
///   resurgam journal verify --expect 57:9f86d081…
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct JournalCommandArgs {
    #[command(subcommand)]
    command: JournalCommand,
}

#[derive(Debug, Subcommand)]
enum JournalCommand {
    /// Print the last entries.
    Show(ShowArgs),
    /// Check every entry. Exit code 3 when something is wrong.
    Verify(VerifyArgs),
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// How many.
    #[arg(long, value_name = "N", default_value_t = 50)]
    last: u32,
    #[command(flatten)]
    journal: JournalArgs,
    /// Print whole entries as JSON, one in a line.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct VerifyArgs {
    /// A head that was noted earlier: is it still a part of the chain?
    #[arg(long, value_name = "HEAD")]
    expect: Option<Head>,
    #[command(flatten)]
    journal: JournalArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The way to the journal of a deployment.
#[derive(Debug, Args)]
pub(crate) struct JournalArgs {
    /// The plan of the deployment.
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
}

/// A journal, and the plan of its deployment.
pub(crate) struct Opened {
    pub(crate) loaded: Loaded,
    pub(crate) journal: Journal,
}

impl JournalArgs {
    /// The journal of the deployment of this plan.
    pub(crate) fn of(plan: Option<PathBuf>) -> Self {
        Self { plan }
    }

    pub(crate) fn open(&self) -> Result<Opened, Failure> {
        let loaded = Loaded::read(self.plan.as_deref())?;
        let path = loaded.state_dir().join("journal.db");
        if !path.exists() {
            return Err(Failure::new(format!(
                "there is no journal at {}; nothing has run there yet",
                path.display()
            )));
        }
        Ok(Opened { journal: Journal::open(&path)?, loaded })
    }
}

/// Who gives an order: the user of this process, and who became it by sudo. The journal's guard is
/// who may write into the state folder; this is for those who read it later.
pub(crate) fn who() -> String {
    let uid = rustix::process::getuid().as_raw();
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, _, id) = (fields.next()?, fields.next()?, fields.next()?);
        (id.parse() == Ok(uid)).then(|| name.to_owned())
    });
    let name = name.unwrap_or_else(|| format!("uid {uid}"));
    match std::env::var("SUDO_USER") {
        Ok(before) if !before.is_empty() && uid == 0 => format!("{before} (as {name})"),
        _ => name,
    }
}

pub(crate) fn run(args: JournalCommandArgs) -> Result<u8, Failure> {
    match args.command {
        JournalCommand::Show(args) => show(&args),
        JournalCommand::Verify(args) => verify(&args),
    }
}

fn show(args: &ShowArgs) -> Result<u8, Failure> {
    let journal = args.journal.open()?.journal;
    let mut after = journal.head()?.number.saturating_sub(u64::from(args.last));
    loop {
        let entries = journal.entries(after, PAGE, None)?;
        let Some(last) = entries.last() else { return Ok(code::OK) };
        after = last.number;
        for entry in &entries {
            if args.json {
                output::data(&serde_json::to_string(entry)?);
            } else if let Some(line) = account::line(entry) {
                output::data(&format!("{:>6} {} {line}", entry.number, entry.at));
            }
        }
    }
}

fn verify(args: &VerifyArgs) -> Result<u8, Failure> {
    let journal = args.journal.open()?.journal;
    let found = journal.verify(args.expect.as_ref())?;
    let sound = found.findings.is_empty();
    if args.json {
        output::json(&found)?;
    } else {
        for finding in &found.findings {
            output::data(finding);
        }
        let word = if sound { "the chain is whole" } else { "THE JOURNAL WAS CHANGED" };
        output::data(&format!("{word}: {} entries, head {}", found.entries, found.head));
    }
    Ok(if sound { code::OK } else { code::MISSED })
}
