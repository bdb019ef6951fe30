//! `resurgam limit`

use clap::{Args, Subcommand};
use resurgam_model::limit::{Limit, Rate};
use resurgam_model::{Capability, Duration};

use super::api::ApiArgs;
use crate::failure::{Failure, code};
use crate::output;

/// Limit how much of a kind of work is under way at once, and how fast it begins.
///
/// Examples:
///   resurgam limit set translate --max-running 20 --max-running-per-key 2
///   resurgam limit set crawl --rate 100/1m --fair
///   resurgam limit list
///   resurgam limit remove translate
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct LimitArgs {
    #[command(subcommand)]
    command: LimitCommand,
}

#[derive(Debug, Subcommand)]
enum LimitCommand {
    /// Set the limit of a capability, in place of the one that it had.
    Set(SetArgs),
    /// List all limits.
    List(ListArgs),
    /// Take the limit of a capability away.
    Remove(RemoveArgs),
}

#[derive(Debug, Args)]
struct SetArgs {
    /// What the limit holds for.
    capability: Capability,
    /// Tasks under a lease at once.
    #[arg(long, value_name = "N")]
    max_running: Option<u32>,
    /// Tasks of the same key under a lease at once.
    #[arg(long, value_name = "N")]
    max_running_per_key: Option<u32>,
    /// How many tasks begin in how long, as in 100/1m.
    #[arg(long, value_name = "N/TIME", value_parser = rate)]
    rate: Option<Rate>,
    /// How many tasks of the same key begin in how long.
    #[arg(long, value_name = "N/TIME", value_parser = rate)]
    rate_per_key: Option<Rate>,
    /// Let keys take turns.
    #[arg(long)]
    fair: bool,
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Debug, Args)]
struct RemoveArgs {
    /// Whose limit.
    capability: Capability,
    #[command(flatten)]
    api: ApiArgs,
}

fn rate(text: &str) -> Result<Rate, String> {
    let wrong = || "write how many in how long, such as 100/1m".to_owned();
    let (count, per) = text.split_once('/').ok_or_else(wrong)?;
    let count = count.trim().parse().map_err(|_| wrong())?;
    let per: Duration = per.parse().map_err(|error| format!("{error}"))?;
    Ok(Rate { count, per })
}

pub(crate) async fn run(args: LimitArgs) -> Result<u8, Failure> {
    match args.command {
        LimitCommand::Set(args) => {
            let limit = Limit {
                max_running: args.max_running,
                max_running_per_key: args.max_running_per_key,
                rate: args.rate,
                rate_per_key: args.rate_per_key,
                fair: args.fair,
            };
            if let Some(problem) = limit.problem() {
                return Err(Failure::usage(problem));
            }
            args.api.client()?.set_limit(&args.capability, &limit).await?;
        }
        LimitCommand::List(args) => {
            let limits = args.api.client()?.limits().await?;
            if args.json {
                output::json(&limits)?;
                return Ok(code::OK);
            }
            let mut table = output::table(&[
                "capability",
                "running",
                "running per key",
                "rate",
                "rate per key",
                "keys take turns",
            ]);
            let number = |number: Option<u32>| number.map(|n| n.to_string()).unwrap_or_default();
            let rate = |rate: Option<Rate>| {
                rate.map(|rate| format!("{}/{}", rate.count, rate.per)).unwrap_or_default()
            };
            for one in &limits {
                table.add_row([
                    one.capability.to_string(),
                    number(one.limit.max_running),
                    number(one.limit.max_running_per_key),
                    rate(one.limit.rate),
                    rate(one.limit.rate_per_key),
                    if one.limit.by_key() { "yes" } else { "no" }.to_owned(),
                ]);
            }
            output::data(&table.to_string());
        }
        LimitCommand::Remove(args) => {
            if !args.api.client()?.remove_limit(&args.capability).await? {
                return Err(Failure::new(format!("{} has no limit", args.capability)));
            }
        }
    }
    Ok(code::OK)
}
