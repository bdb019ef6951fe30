//! Messages between agents.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::{self, Key, Moment};
use crate::{AgentId, Duration, MessageId, Payload};

/// The topic that agents use when they name no other.
pub const DEFAULT_TOPIC: &str = "agent-messages";

/// A message as it is handed in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewMessage {
    /// Chosen by the sender: sending the same id again changes nothing.
    #[serde(default = "MessageId::new")]
    #[schemars(transform = schema::without_default)]
    pub id: MessageId,
    /// The stream it belongs to.
    #[serde(default = "default_topic")]
    #[schemars(with = "Key")]
    pub topic: String,
    /// Who gets it.
    pub to: AgentId,
    /// Who sends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<AgentId>,
    /// What kind of message, such as `task.completed`.
    #[schemars(with = "Key")]
    pub kind: String,
    /// What it says.
    #[serde(default)]
    pub body: Payload,
    /// Whose mailbox an answer is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<AgentId>,
    /// The message that this one answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_reply_to: Option<MessageId>,
    /// How long it is of use; then it becomes a dead letter. Without it, for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Duration>,
}

impl NewMessage {
    /// A message of a kind to an agent, with a new id, and nothing else.
    #[must_use]
    pub fn new(to: AgentId, kind: &str) -> Self {
        Self {
            id: MessageId::new(),
            topic: default_topic(),
            to,
            from: None,
            kind: kind.to_owned(),
            body: Payload::default(),
            reply_to: None,
            in_reply_to: None,
            ttl: None,
        }
    }
}

/// The topic of who names none.
#[must_use]
pub fn default_topic() -> String {
    DEFAULT_TOPIC.to_owned()
}

/// A message as it is delivered: at least once, in order of `sequence` for one receiver.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Message {
    /// Grows with each message of the bus; what a receiver acknowledges.
    pub sequence: i64,
    /// Receivers drop duplicates by it.
    pub id: MessageId,
    /// The stream it belongs to.
    pub topic: String,
    /// Who gets it.
    pub to: AgentId,
    /// Who sent it; none when the platform did.
    pub from: Option<AgentId>,
    /// What kind of message.
    pub kind: String,
    /// What it says.
    pub body: Payload,
    /// Whose mailbox an answer is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<AgentId>,
    /// The message that this one answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_reply_to: Option<MessageId>,
    /// When it was accepted.
    #[schemars(with = "Moment")]
    pub created_at: Timestamp,
    /// From when on it is of no use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Moment>")]
    pub expires_at: Option<Timestamp>,
    /// How often its receiver has rejected it.
    #[serde(default)]
    pub rejections: u32,
}

/// A message that could not be delivered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeadLetter {
    /// The message.
    pub id: MessageId,
    /// The stream it belonged to.
    pub topic: String,
    /// Who was to get it; none when what came from a broker could not be read so far.
    pub to: Option<AgentId>,
    /// Who sent it.
    pub from: Option<AgentId>,
    /// What kind of message.
    pub kind: String,
    /// What it said.
    pub body: Payload,
    /// Why it was not delivered.
    pub reason: String,
    /// When it was accepted.
    #[schemars(with = "Moment")]
    pub created_at: Timestamp,
    /// When it was given up.
    #[schemars(with = "Moment")]
    pub died_at: Timestamp,
}
