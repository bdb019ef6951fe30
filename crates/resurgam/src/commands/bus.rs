//! `resurgam bus`

use std::time::Duration as Span;

use clap::{Args, Subcommand};
use resurgam_client::Client;
use resurgam_client::wire::{BusReturn, BusSwitch};
use resurgam_model::bus::{BusKind, BusStatus};
use resurgam_model::{Duration, Timestamp};
use tokio::time::Instant;

use super::api::ApiArgs;
use crate::failure::{Failure, code};
use crate::output;

/// See which bus carries messages, and have them take another.
///
/// With brokers in the plan (bus.order), messages travel from the store over the first of them
/// that can be used into the mailboxes. What a broker loses is still in the store.
///
/// Examples:
///   resurgam bus status
///   resurgam bus switch rabbitmq --reason "Kafka gets new disks"
///   resurgam bus return
///
/// Exit codes of status: 0 when the first bus of the plan carries messages, 3 when another one
/// does, 4 when messages have to wait.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct BusArgs {
    #[command(subcommand)]
    command: BusCommand,
}

#[derive(Debug, Subcommand)]
enum BusCommand {
    /// Show how the buses are.
    Status(StatusArgs),
    /// Have messages take this bus until `resurgam bus return`.
    Switch(SwitchArgs),
    /// Have messages take the order of the plan again.
    Return(OrderArgs),
}

#[derive(Debug, Args)]
struct StatusArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Debug, Args)]
struct SwitchArgs {
    /// The bus: kafka, rabbitmq or embedded.
    to: BusKind,
    #[command(flatten)]
    order: OrderArgs,
}

#[derive(Debug, Args)]
struct OrderArgs {
    /// Why; it is kept with the order.
    #[arg(long)]
    reason: Option<String>,
    /// How long to wait until it is so; 0s does not wait.
    #[arg(long, value_name = "TIME", default_value = "30s")]
    within: Duration,
    #[command(flatten)]
    api: ApiArgs,
}

/// How often to look whether an order is carried out.
const LOOK: Span = Span::from_millis(200);

pub(crate) async fn run(args: BusArgs) -> Result<u8, Failure> {
    match args.command {
        BusCommand::Status(args) => status(&args).await,
        BusCommand::Switch(SwitchArgs { to, order }) => {
            let client = order.api.client()?;
            client.switch_bus(&BusSwitch { to, reason: order.reason.clone() }).await?;
            let there = |status: &BusStatus| active(status) == Some(to);
            wait(&client, order.within, there, &format!("messages take {to}")).await
        }
        BusCommand::Return(order) => {
            take_back(&order.api.client()?, order.reason.clone(), order.within).await
        }
    }
}

/// Has messages take the order of the plan again, and waits for it.
pub(super) async fn take_back(
    client: &Client,
    reason: Option<String>,
    within: Duration,
) -> Result<u8, Failure> {
    client.return_bus(&BusReturn { reason }).await?;
    let there = |status: &BusStatus| status.wish.is_none();
    wait(client, within, there, "messages take the order of the plan").await
}

fn active(status: &BusStatus) -> Option<BusKind> {
    match &status.state {
        Some(state) => state.active,
        None => status.order.first().copied().filter(|kind| *kind == BusKind::Embedded),
    }
}

async fn wait(
    client: &Client,
    within: Duration,
    there: impl Fn(&BusStatus) -> bool,
    what: &str,
) -> Result<u8, Failure> {
    if within == Duration::default() {
        output::note("ordered; see: resurgam bus status");
        return Ok(code::OK);
    }
    let until = Instant::now() + within.0;
    loop {
        let status = client.bus().await?;
        if there(&status) {
            output::data(what);
            return Ok(code::OK);
        }
        if Instant::now() >= until {
            let why = match &status.relay {
                None => "no supervisor relays messages: is one running?".to_owned(),
                Some(_) => status
                    .state
                    .iter()
                    .flat_map(|state| &state.buses)
                    .filter_map(|bus| Some(format!("{}: {}", bus.bus, bus.reason.as_ref()?)))
                    .collect::<Vec<_>>()
                    .join("; "),
            };
            return Err(Failure::new(format!(
                "ordered, but not so within {within}; the order stands. {why}"
            )));
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn status(args: &StatusArgs) -> Result<u8, Failure> {
    let status = args.api.client()?.bus().await?;
    if args.json {
        output::json(&status)?;
    } else {
        print(&status);
    }
    let preferred = status.order.first().copied();
    Ok(match active(&status) {
        None => code::REFUSED,
        active if active == preferred => code::OK,
        Some(_) => code::MISSED,
    })
}

/// Which way messages take.
pub(super) fn way(status: &BusStatus) -> String {
    match active(status) {
        Some(active) => format!("messages take {active}"),
        None => "messages have to wait: there is no bus that can be used".to_owned(),
    }
}

/// What is on the way, and for how long.
pub(super) fn waiting(status: &BusStatus) -> String {
    let outbox = &status.outbox;
    let oldest = outbox.oldest.map(|at| {
        let age = Span::try_from(Timestamp::now().duration_since(at)).unwrap_or_default();
        format!(", the oldest for {}", Duration::from_secs(age.as_secs()))
    });
    let oldest = oldest.unwrap_or_default();
    format!("on the way: {}{oldest}; dead letters: {}", outbox.waiting, outbox.dead)
}

fn print(status: &BusStatus) {
    output::data(&way(status));
    if let Some(wish) = &status.wish {
        let to = wish.to.map_or("the order of the plan", BusKind::as_str);
        let why = wish.reason.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
        output::data(&format!("ordered by {} at {}: {to}{why}", wish.by, wish.at));
    }
    output::data(&waiting(status));
    let Some(state) = &status.state else { return };
    let mut table =
        output::table(&["bus", "circuit", "since", "nodes", "missing", "lag", "what is wrong"]);
    for bus in &state.buses {
        let seen = bus.observation.as_ref();
        let mut wrong: Vec<_> = bus.reason.iter().cloned().collect();
        wrong.extend(seen.iter().flat_map(|seen| seen.findings.iter().cloned()));
        table.add_row([
            bus.bus.to_string(),
            bus.circuit.as_str().to_owned(),
            bus.since.to_string(),
            seen.map(|seen| seen.nodes.len().to_string()).unwrap_or_default(),
            seen.map(|seen| seen.missing.join(", ")).unwrap_or_default(),
            seen.and_then(|seen| seen.lag).map(|lag| lag.to_string()).unwrap_or_default(),
            wrong.join("; "),
        ]);
    }
    output::data(&table.to_string());
    for moved in &state.last_moves {
        let name = |bus: Option<BusKind>| bus.map_or("nothing", BusKind::as_str);
        output::data(&format!(
            "{} {} -> {}: {}",
            moved.at,
            name(moved.from),
            name(moved.to),
            moved.reason
        ));
    }
    match &status.relay {
        Some(relay) => output::data(&format!("relayed by {relay}, as of {}", state.at)),
        None => output::data("no supervisor relays messages now"),
    }
}
