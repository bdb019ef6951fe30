//! `/messages` and `/mailbox`: the bus.

use axum::Json as Answer;
use axum::extract::State;
use axum::http::StatusCode;
use resurgam_client::wire::{Acknowledgement, MessageBatch, MessageList};
use resurgam_model::message::{Message, NewMessage};
use resurgam_model::{AgentId, Duration};
use serde::Deserialize;
use tokio::time::Instant;

use super::body::{Json, Parameters};
use super::{Shared, check};
use crate::problem::Problem;

pub(super) async fn send(
    State(app): Shared,
    Json(MessageBatch { messages }): Json<MessageBatch<Vec<NewMessage>>>,
) -> Result<StatusCode, Problem> {
    check::messages(&messages, &app.settings.limits)?;
    app.bus.send(&messages).await?;
    messages.iter().for_each(|message| app.readers.wake(&message.to, usize::MAX));
    Ok(StatusCode::ACCEPTED)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Reading {
    agent: AgentId,
    after: Option<i64>,
    #[serde(default = "hundred")]
    limit: u32,
    #[serde(default)]
    wait: Duration,
}

fn hundred() -> u32 {
    100
}

pub(super) async fn receive(
    State(app): Shared,
    Parameters(reading): Parameters<Reading>,
) -> Result<Answer<MessageList<Vec<Message>>>, Problem> {
    let until = Instant::now() + check::wait(reading.wait);
    let limit = match reading.limit {
        0 => hundred(),
        limit => limit.min(check::MAX_ITEMS as u32),
    };
    loop {
        let place = app.readers.join(std::slice::from_ref(&reading.agent));
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
    Json(Acknowledgement { agent, sequences }): Json<Acknowledgement>,
) -> Result<StatusCode, Problem> {
    check::count("sequences", sequences.len())?;
    app.bus.acknowledge(&agent, &sequences).await?;
    Ok(StatusCode::NO_CONTENT)
}
