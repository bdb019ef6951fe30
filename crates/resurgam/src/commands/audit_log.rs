//! `resurgam audit-log`

use clap::Args;
use resurgam_model::TokenId;
use resurgam_model::access::{AuditOutcome, AuditQuery};

use super::token::WayArgs;
use crate::failure::{Failure, code};
use crate::output;

/// Show what was done with privilege, and what was refused: the newest first.
///
/// By way of the API this needs an admin's token; with --sqlite FILE, or with --direct and
/// DATABASE_URL, it reads the database itself.
///
/// Examples:
///   resurgam audit-log --limit 20
///   resurgam audit-log --outcome denied --json
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct AuditLogArgs {
    /// At most so many; 1000 is the most.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Only those before this number: the last one of the page before.
    #[arg(long, value_name = "NUMBER")]
    before: Option<i64>,
    /// Only this act, such as task.cancel.
    #[arg(long)]
    act: Option<String>,
    /// Only this outcome: begun, done, failed or denied.
    #[arg(long)]
    outcome: Option<AuditOutcome>,
    /// Only what was done with this token.
    #[arg(long, value_name = "ID")]
    token: Option<TokenId>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    way: WayArgs,
}

pub(crate) async fn run(args: AuditLogArgs) -> Result<u8, Failure> {
    let AuditLogArgs { limit, before, act, outcome, token, json, way } = args;
    let query = AuditQuery { before, limit, act, outcome, token };
    let log = way.open().await?.audit_log(&query).await?;
    if json {
        output::json(&log)?;
        return Ok(code::OK);
    }
    let mut table =
        output::table(&["number", "when", "who", "act", "object", "outcome", "more", "from"]);
    for entry in log {
        table.add_row([
            entry.sequence.to_string(),
            entry.at.strftime("%Y-%m-%d %H:%M:%S").to_string(),
            entry.actor.to_string(),
            entry.act,
            entry.object,
            entry.outcome.to_string(),
            entry.detail.unwrap_or_default(),
            entry.remote.unwrap_or_default(),
        ]);
    }
    output::data(&table.to_string());
    Ok(code::OK)
}
