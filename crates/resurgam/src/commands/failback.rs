//! `resurgam failback`: everything to its preferred place again.

use std::path::PathBuf;

use clap::Args;
use resurgam_model::plan::Ask;
use resurgam_model::{ComponentName, Duration, Scenario};
use resurgam_recovery::journal::orders::Order;
use resurgam_recovery::planning::{self, Planned};
use resurgam_recovery::status::{Postgres, Status};

use super::api::ApiArgs;
use super::journal::JournalArgs;
use super::recover::{follow, give, opened_by, print};
use super::{bus, status};
use crate::failure::{Failure, code};
use crate::output;

/// So long the relay may take to do as ordered.
const WITHIN: Duration = Duration::from_secs(30);

/// Bring database and bus to their preferred places again, in order and without loss.
///
/// After a failover another instance of PostgreSQL is the primary than the plan prefers
/// (postgres.preferred), and messages may take another bus by order. The database is handed over only
/// to who is on record as having every acknowledged write; for the second or so that this takes,
/// clients wait. With --to the same hands over to any other instance, before its machine gets new disks.
///
/// Exit code 0 when everything is in its place, 3 when a step failed, 4 when it was refused.
///
/// Examples:
///   resurgam failback --dry-run
///   resurgam failback
///   resurgam failback --to postgres-1
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct FailbackArgs {
    /// Which instance is to be the primary, if not the one that the plan prefers.
    #[arg(long, value_name = "INSTANCE")]
    to: Option<ComponentName>,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// When people are asked: never, dangerous (before steps that take something away), always.
    /// Otherwise as the plan says.
    #[arg(long, value_name = "WHEN")]
    approve: Option<Ask>,
    /// A file with the token for the API, where the bus is ordered back; else RESURGAM_TOKEN.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    journal: JournalArgs,
    /// With --dry-run: print JSON.
    #[arg(long, requires = "dry_run")]
    json: bool,
}

pub(crate) async fn run(args: FailbackArgs) -> Result<u8, Failure> {
    let opened = args.journal.open()?;
    let seen = status::ask(&opened.loaded).await?;
    let mut plan = opened.loaded.plan().clone();
    if let Some(to) = &args.to {
        if !seen.postgres.iter().flat_map(|p| &p.instances).any(|i| i.name == *to) {
            let names = seen.postgres.iter().flat_map(|p| &p.instances);
            let names: Vec<_> = names.map(|i| i.name.to_string()).collect();
            return Err(Failure::usage(match names.as_slice() {
                [] => "this deployment runs no PostgreSQL of its own".to_owned(),
                names => format!("there is no instance {to}; there are {}", names.join(", ")),
            }));
        }
        plan.postgres.preferred = to.clone();
    }
    let preferred = &plan.postgres.preferred;
    let database = seen
        .postgres
        .as_ref()
        .filter(|postgres| !in_place(postgres, preferred))
        .map(|_| planning::plan(Scenario::Failback, &seen, &plan));
    // Where nobody has ordered otherwise, messages take the order of the plan by themselves.
    let bus = seen.bus.as_ref().filter(|bus| bus.wish.is_some() && args.to.is_none());
    if args.dry_run {
        return dry_run(&args, &seen, preferred, database.as_ref());
    }
    if let Some(planned) = database {
        if !planned.possible {
            return Err(Failure::refused(planned.summary));
        }
        if let Some(open) = seen.incidents.iter().find(|open| open.scenario.is_of_postgres()) {
            return Err(Failure::refused(format!(
                "the incident {} ({}) is open; hand over when it is closed: resurgam incident watch {}",
                open.id, open.scenario, open.id
            )));
        }
        let order = Order::Recover {
            scenario: Scenario::Failback,
            component: Some(preferred.clone()),
            ask: args.approve,
        };
        let number = give(&opened, order).await?;
        let id = opened_by(&opened, number, Scenario::Failback)?;
        let ended = follow(&opened, number, id).await?;
        if ended != code::OK {
            return Ok(ended);
        }
        let now = status::ask(&opened.loaded).await?;
        if !now.postgres.is_some_and(|postgres| in_place(&postgres, preferred)) {
            return Err(Failure::new(format!(
                "{preferred} did not take over; see: resurgam incident show {id}"
            )));
        }
    }
    if bus.is_some() {
        let api = ApiArgs::plain(seen.api.clone(), args.token_file.clone());
        let reason = Some("resurgam failback".to_owned());
        bus::take_back(&api.client()?, reason, WITHIN).await?;
    }
    output::data("everything is in its preferred place");
    Ok(code::OK)
}

fn in_place(postgres: &Postgres, preferred: &ComponentName) -> bool {
    postgres.primary.as_ref() == Some(preferred)
}

fn dry_run(
    args: &FailbackArgs,
    seen: &Status,
    preferred: &ComponentName,
    database: Option<&Planned>,
) -> Result<u8, Failure> {
    let wish = seen.bus.as_ref().and_then(|bus| bus.wish.as_ref()).filter(|_| args.to.is_none());
    if args.json {
        output::json(&serde_json::json!({ "database": database, "bus": wish.is_some() }))?;
    } else {
        match database {
            Some(planned) => print(planned),
            None if seen.postgres.is_some() => output::data(&format!("{preferred} reigns already")),
            None => output::data("this deployment runs no PostgreSQL of its own"),
        }
        if let Some(wish) = wish {
            let to = wish.to.map_or("the order of the plan".to_owned(), |to| to.to_string());
            output::data(&format!(
                "the order of {} that messages take {to} would be taken back",
                wish.by
            ));
        }
    }
    let possible = database.is_none_or(|planned| planned.possible);
    Ok(if possible { code::OK } else { code::REFUSED })
}
