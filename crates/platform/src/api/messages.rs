//! `/messages`, `/mailbox` and `/dead-letters`: the bus.

use axum::Json as Answer;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::NoContent;
use resurgam_client::problem::code;
use resurgam_client::wire::{
    Acknowledgement, DeadLetterList, MailRejection, MessageBatch, MessageList, Rejected, Resent,
};
use resurgam_model::message::{DeadLetter, Message, NewMessage};
use resurgam_model::{AgentId, Duration, MessageId};
use resurgam_store::Rejection;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::Instant;

use super::access::Caller;
use super::body::{Json, Parameters, PathId};
use super::route::Route;
use super::{Shared, check};
use crate::problem::Problem;

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::post("/messages", send)
            .about("Sends messages")
            .details("A message whose `id` is known changes nothing.")
            .answers_empty(
                StatusCode::ACCEPTED,
                "They are in the store, and will be in the mailboxes",
            ),
        Route::get("/mailbox", receive)
            .about("Reads a mailbox, oldest message first")
            .details("Messages stay until they are acknowledged."),
        Route::post("/mailbox/acknowledge", acknowledge).about("Takes messages out of a mailbox"),
        Route::post("/mailbox/reject", reject)
            .about("Says that an agent can do nothing with messages of its mailbox")
            .details(
                "They come again, until they were rejected as often as the plan allows, five \
                 times if it does not say: then they are dead letters.",
            ),
        Route::get("/dead-letters", dead_letters)
            .about("Messages that were not delivered, the newest first")
            .details("They are kept for 30 days."),
        Route::post("/dead-letters/{id}/resend", resend)
            .about("Sends a dead letter again, under a new id")
            .fails(&[code::NOT_FOUND]),
        Route::delete("/dead-letters/{id}", forget)
            .about("Forgets a dead letter")
            .fails(&[code::NOT_FOUND]),
    ]
}

pub(super) async fn send(
    State(app): Shared,
    caller: Caller,
    Json(MessageBatch { mut messages }): Json<MessageBatch<Vec<NewMessage>>>,
) -> Result<StatusCode, Problem> {
    check::messages(&messages, &app.settings.limits)?;
    for (index, message) in messages.iter().enumerate() {
        let field = format_args!("messages[{index}].from");
        caller.may_send_as(field, message.from.as_ref())?;
    }
    for message in &mut messages {
        message.ttl = message.ttl.or(app.settings.bus.ttl);
    }
    // The store tells the readers.
    app.bus.send(&messages).await?;
    Ok(StatusCode::ACCEPTED)
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Reading {
    /// Whose mailbox.
    agent: AgentId,
    /// Only messages with greater sequence numbers.
    after: Option<i64>,
    /// At most so many; 1000 is the most.
    #[serde(default = "hundred")]
    limit: u32,
    /// How long to wait for a message when there is none; at most 30 s.
    #[serde(default)]
    wait: Duration,
}

fn hundred() -> u32 {
    100
}

pub(super) async fn receive(
    State(app): Shared,
    caller: Caller,
    Parameters(reading): Parameters<Reading>,
) -> Result<Answer<MessageList<Vec<Message>>>, Problem> {
    caller.may_act_as(&reading.agent)?;
    let until = Instant::now() + check::wait(reading.wait);
    let limit = match reading.limit {
        0 => hundred(),
        limit => limit.min(check::MAX_ITEMS as u32),
    };
    loop {
        let place = app.readers.join(std::slice::from_ref(&reading.agent), 1);
        let messages = app.bus.receive(&reading.agent, reading.after, limit).await?;
        if !messages.is_empty() {
            return Ok(Answer(MessageList { messages }));
        }
        tokio::select! {
            () = place.woken() => {}
            () = tokio::time::sleep_until(until) => return Ok(Answer(MessageList { messages })),
            () = app.closed() => return Ok(Answer(MessageList { messages })),
        }
    }
}

pub(super) async fn acknowledge(
    State(app): Shared,
    caller: Caller,
    Json(Acknowledgement { agent, sequences }): Json<Acknowledgement>,
) -> Result<NoContent, Problem> {
    check::count("sequences", sequences.len())?;
    caller.may_act_as(&agent)?;
    app.bus.acknowledge(&agent, &sequences).await?;
    Ok(NoContent)
}

pub(super) async fn reject(
    State(app): Shared,
    caller: Caller,
    Json(rejection): Json<MailRejection>,
) -> Result<Answer<Rejected>, Problem> {
    check::count("sequences", rejection.sequences.len())?;
    check::text("reason", &rejection.reason)?;
    caller.may_act_as(&rejection.agent)?;
    let MailRejection { agent, sequences, reason, at_once } = rejection;
    let max_tries = if at_once { 1 } else { app.settings.bus.max_tries };
    let rejection = Rejection { reason, max_tries };
    let dead = app.store.reject(&agent, &sequences, &rejection).await?;
    if dead > 0 {
        tracing::warn!(%agent, dead, reason = rejection.reason, "messages became dead letters");
    }
    Ok(Answer(Rejected { dead }))
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Listing {
    /// At most so many; 1000 is the most.
    #[serde(default = "hundred")]
    limit: u32,
}

pub(super) async fn dead_letters(
    State(app): Shared,
    Parameters(listing): Parameters<Listing>,
) -> Result<Answer<DeadLetterList<Vec<DeadLetter>>>, Problem> {
    let limit = match listing.limit {
        0 => hundred(),
        limit => limit.min(check::MAX_ITEMS as u32),
    };
    Ok(Answer(DeadLetterList { letters: app.store.dead_letters(limit).await? }))
}

fn no_letter(id: MessageId) -> Problem {
    Problem::not_found(format!("there is no dead letter {id}"))
}

pub(super) async fn resend(
    State(app): Shared,
    PathId(id): PathId<MessageId>,
) -> Result<Answer<Resent>, Problem> {
    let resent = app.store.revive(id).await?.ok_or_else(|| no_letter(id))?;
    tracing::info!(letter = %id, message = %resent, "a dead letter was sent again");
    Ok(Answer(Resent { id: resent }))
}

pub(super) async fn forget(
    State(app): Shared,
    PathId(id): PathId<MessageId>,
) -> Result<NoContent, Problem> {
    if app.store.forget_letter(id).await? { Ok(NoContent) } else { Err(no_letter(id)) }
}
