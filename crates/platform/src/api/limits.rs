//! `/limits`: how much of a kind of work is under way at once, and how fast it begins.

use axum::Json as Answer;
use axum::extract::State;
use axum::response::NoContent;
use resurgam_client::problem::code;
use resurgam_client::wire::{CapabilityLimit, LimitList};
use resurgam_model::Capability;
use resurgam_model::limit::Limit;

use super::Shared;
use super::body::{Json, PathId};
use super::route::Route;
use crate::problem::Problem;

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::get("/limits", list).about("All limits"),
        Route::put("/limits/{*capability}", set)
            .about("Sets the limit of a capability, in place of the one that it had")
            .details(
                "Claims keep to it exactly, however many agents claim through however many \
                 processes. What is under a lease already counts.",
            ),
        Route::get("/limits/{*capability}", one)
            .about("The limit of a capability")
            .fails(&[code::NOT_FOUND]),
        Route::delete("/limits/{*capability}", remove)
            .about("Takes the limit of a capability away")
            .fails(&[code::NOT_FOUND]),
    ]
}

fn no_limit(capability: &Capability) -> Problem {
    Problem::not_found(format!("{capability} has no limit"))
}

async fn list(State(app): Shared) -> Result<Answer<LimitList<Vec<CapabilityLimit>>>, Problem> {
    let limits = app.store.limits().await?;
    let limits =
        limits.into_iter().map(|(capability, limit)| CapabilityLimit { capability, limit });
    Ok(Answer(LimitList { limits: limits.collect() }))
}

async fn one(
    State(app): Shared,
    PathId(capability): PathId<Capability>,
) -> Result<Answer<Limit>, Problem> {
    let limits = app.store.limits().await?;
    let found = limits.into_iter().find(|(name, _)| *name == capability);
    found.map(|(_, limit)| Answer(limit)).ok_or_else(|| no_limit(&capability))
}

async fn set(
    State(app): Shared,
    PathId(capability): PathId<Capability>,
    Json(limit): Json<Limit>,
) -> Result<Answer<Limit>, Problem> {
    if let Some(problem) = limit.problem() {
        return Err(Problem::invalid_field(problem));
    }
    app.store.set_limit(&capability, &limit).await?;
    Ok(Answer(limit))
}

async fn remove(
    State(app): Shared,
    PathId(capability): PathId<Capability>,
) -> Result<NoContent, Problem> {
    if app.store.remove_limit(&capability).await? {
        Ok(NoContent)
    } else {
        Err(no_limit(&capability))
    }
}
