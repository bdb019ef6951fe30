//! `/agents` and `/workers`: the registry.
//!
//! What is written goes through the one process that plays the registry, which alone judges who
//! is gone; what is read comes from the store in every process, so that it can be read while the
//! registry is away.

use axum::Json as Answer;
use axum::extract::State;
use axum::http::StatusCode;
use resurgam_client::wire::{AgentList, Heartbeats, Known, Life, Welcome, WorkerList};
use resurgam_model::InstanceId;
use resurgam_model::agent::{Agent, Registration};
use serde::Deserialize;

use super::body::{AgentPath, Json, Parameters};
use super::{Shared, check};
use crate::problem::Problem;

pub(super) async fn register(
    State(app): Shared,
    Json(registration): Json<Registration>,
) -> Result<Answer<Welcome>, Problem> {
    check::registration(&registration)?;
    if let Some(registry) = &app.registry {
        let mut welcome = registry.register(&registration).await.map_err(from_registry)?;
        welcome.registry = Some(registry.base_url().to_owned());
        app.tasks_returned(welcome.leases_returned);
        return Ok(Answer(welcome));
    }
    let registered = app.store.register(&registration).await?;
    app.tasks_returned(registered.leases_returned);
    let leases_returned = registered.leases_returned;
    Ok(Answer(Welcome { heartbeat: app.settings.heartbeat, leases_returned, registry: None }))
}

pub(super) async fn heartbeat(
    State(app): Shared,
    Json(Heartbeats { agents }): Json<Heartbeats<Vec<Life>>>,
) -> Result<Answer<Known<Vec<bool>>>, Problem> {
    check::count("agents", agents.len())?;
    let known = if let Some(registry) = &app.registry {
        registry.heartbeat(&agents).await.map_err(from_registry)?
    } else if agents.is_empty() {
        Vec::new()
    } else {
        let agents: Vec<_> = agents.into_iter().map(|life| (life.id, life.instance)).collect();
        app.store.heartbeat(&agents).await?
    };
    Ok(Answer(Known { known }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Leaving {
    instance: InstanceId,
}

pub(super) async fn deregister(
    State(app): Shared,
    AgentPath(id): AgentPath,
    Parameters(Leaving { instance }): Parameters<Leaving>,
) -> Result<StatusCode, Problem> {
    match &app.registry {
        Some(registry) => registry.deregister(&id, instance).await.map_err(from_registry)?,
        None => app.store.deregister(&id, instance).await?,
    }
    app.claims.wake_all();
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn all(State(app): Shared) -> Result<Answer<AgentList<Vec<Agent>>>, Problem> {
    Ok(Answer(AgentList { agents: app.store.agents().await? }))
}

pub(super) async fn workers(State(app): Shared) -> Result<Answer<WorkerList<Vec<Agent>>>, Problem> {
    let mut workers = app.store.agents().await?;
    workers.retain(Agent::is_worker);
    Ok(Answer(WorkerList { workers }))
}

pub(super) async fn one(
    State(app): Shared,
    AgentPath(id): AgentPath,
) -> Result<Answer<Agent>, Problem> {
    let agent = app.store.agent(&id).await?;
    agent.map(Answer).ok_or_else(|| Problem::not_found(format!("there is no agent {id}")))
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
