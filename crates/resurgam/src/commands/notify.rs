//! `resurgam notify`

use std::path::PathBuf;

use clap::{Args, Subcommand};
use resurgam_model::ComponentName;
use resurgam_recovery::notify::{Sender, Told};
use serde::Serialize;

use crate::backups::base;
use crate::failure::{Failure, code};
use crate::output;
use crate::plan::Loaded;

/// Try the ways by which people are told of incidents.
///
/// Examples:
///   resurgam notify test --plan resurgam.toml
///   resurgam notify test pager --plan resurgam.toml
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct NotifyArgs {
    #[command(subcommand)]
    command: NotifyCommand,
}

#[derive(Debug, Subcommand)]
enum NotifyCommand {
    Test(TestArgs),
}

/// Send a test message over one channel of the plan, or over all.
///
/// Exit code 1 if one of them could not be used.
#[derive(Debug, Args)]
struct TestArgs {
    /// Which; without it all.
    channel: Option<ComponentName>,
    /// The plan.
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Tried {
    channel: String,
    kind: resurgam_model::plan::NotifyKind,
    told: bool,
    error: Option<String>,
}

pub(crate) async fn run(args: NotifyArgs) -> Result<u8, Failure> {
    let NotifyCommand::Test(args) = args.command;
    let loaded = Loaded::read(args.plan.as_deref())?;
    let plan = loaded.plan();
    let wanted = |name: &ComponentName| args.channel.as_ref().is_none_or(|channel| channel == name);
    let these: Vec<_> = plan.notify.iter().filter(|notify| wanted(&notify.name)).collect();
    if these.is_empty() {
        let names: Vec<_> = plan.notify.iter().map(|notify| notify.name.to_string()).collect();
        return Err(Failure::usage(if names.is_empty() {
            "the plan has no channel; add one under [[notify]]".to_owned()
        } else {
            format!("the plan has no such channel; there are {}", names.join(", "))
        }));
    }
    let told = Told::test(&plan.deployment.name);
    let mut all = Vec::new();
    for notify in these {
        let error = match Sender::new(notify, &base(&loaded)) {
            Ok(sender) => sender.send(&told).await.err().map(|failure| failure.to_string()),
            Err(why) => Some(why),
        };
        let channel = notify.name.to_string();
        all.push(Tried { channel, kind: notify.kind, told: error.is_none(), error });
    }
    if args.json {
        output::json(&all)?;
    } else {
        for tried in &all {
            output::data(&match &tried.error {
                None => format!("{}: told", tried.channel),
                Some(error) => format!("{}: NOT told: {error}", tried.channel),
            });
        }
    }
    Ok(if all.iter().all(|tried| tried.told) { code::OK } else { code::FAILED })
}
