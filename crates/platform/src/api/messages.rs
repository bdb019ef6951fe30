//! `/messages` and `/mailbox`: the bus.

use axum::Json as Answer;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::NoContent;
use resurgam_client::wire::{Acknowledgement, MessageBatch, MessageList};
use resurgam_model::message::{Message, NewMessage};
use resurgam_model::{AgentId, Duration};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::Instant;

use super::access::Caller;
use super::body::{Json, Parameters};
use super::route::Route;
use super::{Shared, check};
use crate::problem::Problem;

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::post("/messages", send)
            .about("Sends messages")
            .details("A message whose `id` is known changes nothing.")
            .answers_empty(StatusCode::ACCEPTED, "They are in the mailboxes"),
        Route::get("/mailbox", receive)
            .about("Reads a mailbox, oldest message first")
            .details("Messages stay until they are acknowledged."),
        Route::post("/mailbox/acknowledge", acknowledge).about("Takes messages out of a mailbox"),
    ]
}

pub(super) async fn send(
    State(app): Shared,
    caller: Caller,
    Json(MessageBatch { messages }): Json<MessageBatch<Vec<NewMessage>>>,
) -> Result<StatusCode, Problem> {
    check::messages(&messages, &app.settings.limits)?;
    for (index, message) in messages.iter().enumerate() {
        let field = format_args!("messages[{index}].from");
        caller.may_send_as(field, message.from.as_ref())?;
    }
    app.bus.send(&messages).await?;
    messages.iter().for_each(|message| app.readers.wake(&message.to, usize::MAX));
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
