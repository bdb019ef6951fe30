//! `/agents` and `/workers`: the registry.
//!
//! What is written goes through the one process that plays the registry, which alone judges who
//! is gone; what is read comes from the store in every process, so that it can be read while the
//! registry is away.

use std::collections::{BTreeMap, BTreeSet};

use axum::Json as Answer;
use axum::extract::State;
use axum::response::NoContent;
use resurgam_client::problem::code;
use resurgam_client::wire::{
    AgentList, DrainRequest, Heartbeats, Known, ResumeRequest, Welcome, WorkerList,
};
use resurgam_model::agent::{
    Agent, AgentCursor, AgentOrder, AgentPage, AgentQuery, AgentState, Heartbeat, Registration,
    UnknownState,
};
use resurgam_model::schema::Text;
use resurgam_model::{AgentId, Capability, InstanceId, Role};
use resurgam_store::Order;
use schemars::JsonSchema;
use serde::Deserialize;

use super::access::Caller;
use super::body::{AgentPath, Json, Parameters};
use super::route::Route;
use super::{Shared, check, observe};
use crate::problem::Problem;

pub(super) fn routes() -> Vec<Route> {
    const WRITTEN: &[Role] = &[Role::Api, Role::Registry];
    vec![
        Route::get("/agents", all)
            .about("Agents, gone ones too, page by page")
            .query::<AgentParameters>()
            .served_by(&Role::ALL),
        Route::post("/agents", register)
            .about("Registers an agent")
            .details(
                "A registration under a new `instance` returns the leases of the life before to \
                 the queue.",
            )
            .served_by(WRITTEN)
            .fails(&[code::REGISTRY_UNAVAILABLE]),
        Route::post("/agents/heartbeat", heartbeat)
            .about("Signs of life, of one agent or many")
            .details("`false` in the answer means: register again.")
            .served_by(WRITTEN)
            .fails(&[code::REGISTRY_UNAVAILABLE]),
        Route::post("/agents/drain", drain)
            .about("Orders an agent to take nothing new")
            .served_by(WRITTEN)
            .fails(&[code::NOT_FOUND]),
        Route::post("/agents/resume", resume)
            .about("Orders an agent to take tasks again")
            .served_by(WRITTEN)
            .fails(&[code::NOT_FOUND]),
        Route::get("/agents/{*id}", one)
            .about("One agent")
            .served_by(&Role::ALL)
            .fails(&[code::NOT_FOUND]),
        Route::delete("/agents/{*id}", deregister)
            .about("Leaves in order")
            .details(
                "Takes the agent out of the registry, and its leases back to the queue. An agent \
                 that is unknown, or lives another life, is left alone.",
            )
            .served_by(WRITTEN)
            .fails(&[code::REGISTRY_UNAVAILABLE]),
        Route::get("/workers", workers)
            .about("The agents that have capabilities, page by page")
            .query::<AgentParameters>()
            .served_by(&Role::ALL),
    ]
}

pub(super) async fn register(
    State(app): Shared,
    caller: Caller,
    Json(registration): Json<Registration>,
) -> Result<Answer<Welcome>, Problem> {
    check::registration(&registration)?;
    observe::this_agent(&registration.id);
    caller.may_act_as(&registration.id)?;
    if let Some(registry) = &app.registry {
        let mut welcome = registry.register(&registration).await.map_err(from_registry)?;
        // Elsewhere an address of this machine leads nowhere.
        welcome.registry = (!caller.is_elsewhere()).then(|| registry.base_url().to_owned());
        app.tasks_returned(welcome.leases_returned);
        return Ok(Answer(welcome));
    }
    let heartbeat = app.settings.heartbeat.agreed(registration.heartbeat);
    let registered = app.registrations.record(&app, vec![(registration, heartbeat)]).await?;
    let leases_returned = registered.iter().map(|registered| registered.leases_returned).sum();
    app.tasks_returned(leases_returned);
    Ok(Answer(Welcome { heartbeat, leases_returned, registry: None }))
}

pub(super) async fn heartbeat(
    State(app): Shared,
    caller: Caller,
    Json(Heartbeats { agents }): Json<Heartbeats<Vec<Heartbeat>>>,
) -> Result<Answer<Known<Vec<bool>>>, Problem> {
    check::heartbeats(&agents)?;
    agents.iter().try_for_each(|beat| caller.may_act_as(&beat.id))?;
    let known = if let Some(registry) = &app.registry {
        registry.heartbeat(&agents).await.map_err(from_registry)?
    } else if agents.is_empty() {
        Vec::new()
    } else {
        app.heartbeats.record(&app, agents).await?
    };
    Ok(Answer(Known { known }))
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Leaving {
    /// The life that ends.
    instance: InstanceId,
}

pub(super) async fn deregister(
    State(app): Shared,
    caller: Caller,
    AgentPath(id): AgentPath,
    Parameters(Leaving { instance }): Parameters<Leaving>,
) -> Result<NoContent, Problem> {
    caller.may_act_as(&id)?;
    match &app.registry {
        Some(registry) => registry.deregister(&id, instance).await.map_err(from_registry)?,
        None => app.store.deregister(&id, instance).await?,
    }
    app.claims.wake_all();
    Ok(NoContent)
}

/// An operator's order: take nothing new.
pub(super) async fn drain(
    State(app): Shared,
    caller: Caller,
    Json(DrainRequest { id, reason }): Json<DrainRequest>,
) -> Result<Answer<Agent>, Problem> {
    reason.iter().try_for_each(|reason| check::text("reason", reason))?;
    caller.note(id.as_str());
    let agent = app.store.order(&id, &Order::Drain(reason)).await?;
    found(agent, &id)
}

/// An operator's order: take tasks again.
pub(super) async fn resume(
    State(app): Shared,
    caller: Caller,
    Json(ResumeRequest { id }): Json<ResumeRequest>,
) -> Result<Answer<Agent>, Problem> {
    caller.note(id.as_str());
    let agent = app.store.order(&id, &Order::Resume).await?;
    found(agent, &id)
}

pub(super) async fn all(
    State(app): Shared,
    Parameters(parameters): Parameters<Vec<(String, String)>>,
) -> Result<Answer<AgentList>, Problem> {
    let AgentPage { agents, next } = app.store.agents(&query(parameters)?).await?;
    Ok(Answer(AgentList { agents, next: next.map(|next| next.to_string()) }))
}

pub(super) async fn workers(
    State(app): Shared,
    Parameters(parameters): Parameters<Vec<(String, String)>>,
) -> Result<Answer<WorkerList>, Problem> {
    let AgentPage { agents: mut workers, next } = app.store.agents(&query(parameters)?).await?;
    workers.retain(Agent::is_worker);
    Ok(Answer(WorkerList { workers, next: next.map(|next| next.to_string()) }))
}

/// The parameters of lists of agents, which [`query`] reads one by one because the names of
/// labels are free.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "describes parameters and is never made")]
struct AgentParameters {
    /// Only those that are able to do this.
    capability: Option<Capability>,
    /// Only those that stand there.
    state: Option<AgentState>,
    /// The order: by name, or the least loaded first, which needs a capability.
    sort: Option<AgentOrder>,
    /// What the page before gave as `next`.
    after: Option<String>,
    /// At most so many; 0 stands for 100, and 1000 is the most.
    limit: Option<u32>,
    /// Only those with these labels: `label.zone=a`.
    #[schemars(extend("propertyNames" = { "pattern": "^label\\.." }))]
    label: Option<BTreeMap<String, Text>>,
}

/// Which agents the parameters ask for.
fn query(parameters: Vec<(String, String)>) -> Result<AgentQuery, Problem> {
    let mut query = AgentQuery::default();
    let mut after = None;
    let mut seen = BTreeSet::new();
    for (name, value) in parameters {
        let wrong = |why: String| Problem::invalid_parameter(format!("{name}: {why}"));
        match name.as_str() {
            "capability" => {
                let capability =
                    Capability::new(value).map_err(|error| wrong(error.to_string()))?;
                query.capability = Some(capability);
            }
            "state" => {
                query.state =
                    Some(value.parse().map_err(|error: UnknownState| wrong(error.to_string()))?);
            }
            "sort" => {
                query.sort = match value.as_str() {
                    "name" => AgentOrder::Name,
                    "load" => AgentOrder::Load,
                    _ => return Err(wrong("use name or load".to_owned())),
                };
            }
            "after" => after = Some(value),
            "limit" => {
                query.limit = value
                    .parse()
                    .map_err(|_| wrong("must be a whole number, 100 by default".to_owned()))?;
            }
            _ => match name.strip_prefix("label.").filter(|label| !label.is_empty()) {
                Some(label) => {
                    let wrong = |problem: Problem| wrong(problem.detail.clone());
                    check::text("the name of the label", label).map_err(wrong)?;
                    check::text("the value of the label", &value).map_err(wrong)?;
                    query.labels.insert(label.to_owned(), value);
                }
                None => {
                    return Err(Problem::invalid_parameter(format!(
                        "there is no parameter {:?}; use capability, state, label.NAME, sort, \
                         after and limit",
                        name.chars().take(60).collect::<String>()
                    )));
                }
            },
        }
        if let Some(twice) = seen.replace(name) {
            return Err(Problem::invalid_parameter(format!("{twice} is given more than once")));
        }
    }
    if query.sort == AgentOrder::Load && query.capability.is_none() {
        return Err(Problem::invalid_parameter("sort=load needs a capability to look for"));
    }
    if query.labels.len() > check::MAX_TRAITS {
        let detail = format!("at most {} labels can be asked for", check::MAX_TRAITS);
        return Err(Problem::invalid_parameter(detail));
    }
    let after = after.map(|after| AgentCursor::parse(&after, query.sort));
    let wrong = |why| Problem::invalid_parameter(format!("after: {why}"));
    query.after = after.transpose().map_err(wrong)?;
    Ok(query)
}

fn found(agent: Option<Agent>, id: &AgentId) -> Result<Answer<Agent>, Problem> {
    agent.map(Answer).ok_or_else(|| Problem::not_found(format!("there is no agent {id}")))
}

pub(super) async fn one(
    State(app): Shared,
    AgentPath(id): AgentPath,
) -> Result<Answer<Agent>, Problem> {
    let agent = app.store.agent(&id).await?;
    found(agent, &id)
}

/// What the registry refused is handed on; that it cannot be reached is said so.
fn from_registry(error: resurgam_client::Error) -> Problem {
    match error {
        resurgam_client::Error::Refused(problem) => Problem::from(*problem),
        error => {
            tracing::debug!(reason = %error, "the registry does not answer");
            Problem::registry_unavailable()
        }
    }
}
