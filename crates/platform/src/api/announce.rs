//! `/messages/any` and `/messages/all`: messages without a named receiver.
//!
//! Both become messages to agents at once, so that everything else, from the order in a mailbox to
//! dead letters, is as with any message.

use axum::Json as Answer;
use axum::extract::State;
use resurgam_client::problem::code;
use resurgam_client::wire::{Announced, AnnouncedTo, Announcement};
use resurgam_model::agent::{Agent, AgentOrder, AgentQuery, AgentState};
use resurgam_model::{AgentId, MessageId};

use super::access::Caller;
use super::body::Json;
use super::route::Route;
use super::{App, Shared, check};
use crate::problem::Problem;

/// So many agents at once.
const PAGE: u32 = 500;

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::post("/messages/any", any)
            .about("Sends a message to one agent that can do something")
            .details(
                "To the one with the most free places; if none has a free place, to one that is \
                 busy.",
            )
            .fails(&[code::NOT_FOUND]),
        Route::post("/messages/all", all)
            .about("Sends a message to all agents that are not gone")
            .details("With a capability, to those of them that have it."),
    ]
}

/// Checks what can be checked before the receivers are known, and fills in what is not said.
fn prepared(app: &App, caller: &Caller, announcement: &mut Announcement) -> Result<(), Problem> {
    caller.may_send_as("from", announcement.from.as_ref())?;
    announcement.ttl = announcement.ttl.or(app.settings.bus.ttl);
    let nobody =
        AgentId::new("nobody").map_err(|error| Problem::invalid_field(error.to_string()))?;
    check::messages(&[announcement.to(&nobody, announcement.id)], &app.settings.limits)
}

async fn any(
    State(app): Shared,
    caller: Caller,
    Json(mut announcement): Json<Announcement>,
) -> Result<Answer<AnnouncedTo>, Problem> {
    prepared(&app, &caller, &mut announcement)?;
    let Some(capability) = announcement.capability.clone() else {
        return Err(Problem::invalid_field(
            "capability is missing: say what it must be able to do",
        ));
    };
    let query = |state, sort| AgentQuery {
        capability: Some(capability.clone()),
        state,
        sort,
        limit: 1,
        ..AgentQuery::default()
    };
    let mut found = app.store.agents(&query(None, AgentOrder::Load)).await?.agents;
    if found.is_empty() {
        found = app.store.agents(&query(Some(AgentState::Busy), AgentOrder::Name)).await?.agents;
    }
    let Some(Agent { id: to, .. }) = found.into_iter().next() else {
        return Err(Problem::not_found(format!("there is no agent for {capability}")));
    };
    // The id is that of the announcement: told again, it stays with whom it was told to first.
    app.bus.send(&[announcement.to(&to, announcement.id)]).await?;
    Ok(Answer(AnnouncedTo { to }))
}

async fn all(
    State(app): Shared,
    caller: Caller,
    Json(mut announcement): Json<Announcement>,
) -> Result<Answer<Announced>, Problem> {
    prepared(&app, &caller, &mut announcement)?;
    let mut query = AgentQuery {
        capability: announcement.capability.clone(),
        limit: PAGE,
        ..AgentQuery::default()
    };
    let mut agents = 0;
    loop {
        let page = app.store.agents(&query).await?;
        let present = page.agents.iter().filter(|agent| agent.state != AgentState::Gone);
        let messages: Vec<_> = present
            .map(|agent| {
                // The same for the same agent, so that it can be told again after an error.
                let id = announcement.id.0.as_bytes();
                let id = MessageId::derived(&[id, agent.id.as_str().as_bytes()]);
                announcement.to(&agent.id, id)
            })
            .collect();
        app.bus.send(&messages).await?;
        agents += messages.len() as u64;
        match page.next {
            Some(next) => query.after = Some(next),
            None => return Ok(Answer(Announced { agents })),
        }
    }
}
