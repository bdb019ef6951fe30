//! `resurgam agents`

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use resurgam_client::Client;
use resurgam_model::agent::{Agent, AgentOrder, AgentQuery, AgentState};
use resurgam_model::{AgentId, Capability};

use super::api::ApiArgs;
use crate::failure::{Failure, code};
use crate::output;

/// Look agents up, and have them take no new tasks for a while.
///
/// Examples:
///   resurgam agents list --capability translate --sort load
///   resurgam agents list --state unhealthy --json
///   resurgam agents drain writer-1 --reason "a new disk"
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct AgentsArgs {
    #[command(subcommand)]
    command: AgentsCommand,
}

#[derive(Debug, Subcommand)]
enum AgentsCommand {
    List(ListArgs),
    Show(ShowArgs),
    Drain(DrainArgs),
    Resume(ShowArgs),
}

/// List agents, gone ones too unless a state is asked for.
#[derive(Debug, Args)]
struct ListArgs {
    #[command(flatten)]
    api: ApiArgs,
    /// Only those that can do this.
    #[arg(long)]
    capability: Option<Capability>,
    /// Only those that are available, busy, draining, unhealthy or gone.
    #[arg(long)]
    state: Option<AgentState>,
    /// Only those with this label, as NAME=VALUE. Can be given several times.
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// By name, or by load: the one with the most free places first, which needs --capability.
    #[arg(long, value_parser = order, default_value = "name")]
    sort: AgentOrder,
    /// At most so many; all by default.
    #[arg(long)]
    limit: Option<usize>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Show one agent, or have it take tasks again.
#[derive(Debug, Args)]
struct ShowArgs {
    #[command(flatten)]
    api: ApiArgs,
    /// The agent.
    id: AgentId,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Have an agent finish what it has and take nothing new.
#[derive(Debug, Args)]
struct DrainArgs {
    #[command(flatten)]
    api: ApiArgs,
    /// The agent.
    id: AgentId,
    /// Why, for whoever looks at it.
    #[arg(long)]
    reason: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write it as NAME=VALUE".to_owned()),
    }
}

fn order(text: &str) -> Result<AgentOrder, String> {
    match text {
        "name" => Ok(AgentOrder::Name),
        "load" => Ok(AgentOrder::Load),
        _ => Err("use name or load".to_owned()),
    }
}

pub(crate) async fn run(args: AgentsArgs) -> Result<u8, Failure> {
    match args.command {
        AgentsCommand::List(args) => list(args).await,
        AgentsCommand::Show(args) => {
            let client = args.api.client()?;
            one(client.agent(&args.id).await?, &args.id, args.json)
        }
        AgentsCommand::Drain(args) => {
            let client = args.api.client()?;
            one(client.drain(&args.id, args.reason.as_deref()).await?, &args.id, args.json)
        }
        AgentsCommand::Resume(args) => {
            let client = args.api.client()?;
            one(client.resume(&args.id).await?, &args.id, args.json)
        }
    }
}

async fn list(args: ListArgs) -> Result<u8, Failure> {
    if args.sort == AgentOrder::Load && args.capability.is_none() {
        return Err(Failure::usage("--sort load needs --capability".to_owned()));
    }
    let query = AgentQuery {
        capability: args.capability,
        state: args.state,
        labels: args.labels.into_iter().collect::<BTreeMap<_, _>>(),
        sort: args.sort,
        ..AgentQuery::default()
    };
    let agents = up_to(&args.api.client()?, query, args.limit.unwrap_or(usize::MAX)).await?;
    if args.json {
        output::json(&agents)?;
        return Ok(code::OK);
    }
    let mut table = output::table(&[
        "agent",
        "state",
        "free",
        "running",
        "capacity",
        "capabilities",
        "labels",
        "version",
        "seen",
    ]);
    for agent in &agents {
        table.add_row([
            agent.id.to_string(),
            agent.state.to_string(),
            agent.free.to_string(),
            agent.running.to_string(),
            agent.capacity.to_string(),
            capabilities(agent),
            labels(agent),
            agent.version.clone().unwrap_or_else(|| "-".to_owned()),
            agent.seen_at.to_string(),
        ]);
    }
    output::data(&table.to_string());
    Ok(code::OK)
}

/// The first agents that match, page by page.
async fn up_to(client: &Client, mut query: AgentQuery, most: usize) -> Result<Vec<Agent>, Failure> {
    let mut agents = Vec::new();
    while agents.len() < most {
        query.limit = u32::try_from(most.saturating_sub(agents.len())).unwrap_or(1000).min(1000);
        let page = client.agents(&query).await?;
        agents.extend(page.agents);
        match page.next {
            Some(next) => query.after = Some(next),
            None => break,
        }
    }
    Ok(agents)
}

fn one(agent: Option<Agent>, id: &AgentId, json: bool) -> Result<u8, Failure> {
    let agent = agent.ok_or_else(|| {
        Failure::new(format!("there is no agent {id}; list them with: resurgam agents list"))
    })?;
    if json {
        output::json(&agent)?;
        return Ok(code::OK);
    }
    let mut table = output::table(&["agent", id.as_str()]);
    let none = || "-".to_owned();
    let terms = &agent.heartbeat;
    for (name, value) in [
        ("state", agent.state.to_string()),
        ("reason", agent.reason.clone().unwrap_or_else(none)),
        ("capabilities", capabilities(&agent)),
        ("labels", labels(&agent)),
        ("version", agent.version.clone().unwrap_or_else(none)),
        ("capacity", agent.capacity.to_string()),
        ("free", agent.free.to_string()),
        ("running", agent.running.to_string()),
        ("heartbeat", format!("every {}, gone after {}", terms.every, terms.expire_after)),
        ("registered", agent.registered_at.to_string()),
        ("seen", agent.seen_at.to_string()),
        ("instance", agent.instance.to_string()),
    ] {
        table.add_row([name.to_owned(), value]);
    }
    output::data(&table.to_string());
    Ok(code::OK)
}

fn capabilities(agent: &Agent) -> String {
    let names: Vec<_> = agent.capabilities.iter().map(Capability::as_str).collect();
    if names.is_empty() { "-".to_owned() } else { names.join(", ") }
}

fn labels(agent: &Agent) -> String {
    let labels: Vec<_> =
        agent.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    if labels.is_empty() { "-".to_owned() } else { labels.join(", ") }
}
