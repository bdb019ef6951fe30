//! Messages between agents.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::{self, Key, Moment};
use crate::{AgentId, MessageId, Payload};

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
}

fn default_topic() -> String {
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
    /// When it was accepted.
    #[schemars(with = "Moment")]
    pub created_at: Timestamp,
}
