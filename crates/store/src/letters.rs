//! What becomes of messages that are not delivered.

use async_trait::async_trait;
use resurgam_model::message::DeadLetter;
use resurgam_model::{AgentId, Duration, MessageId};

use crate::Result;

/// How long dead letters are kept: 30 days.
pub const DEAD_FOR: Duration = Duration::from_secs(30 * 24 * 3600);

/// That a receiver could do nothing with messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// What it said.
    pub reason: String,
    /// A message that was rejected so often is a dead letter; at least 1.
    pub max_tries: u32,
}

/// Messages that are rejected, or not read in time, and the dead letters that they become. The id
/// of a message that was given up stays known for a while, as that of an acknowledged one does.
#[async_trait]
pub trait DeadLetters: Send + Sync + 'static {
    /// Counts a rejection of messages by their receiver, and gives up those that were rejected
    /// too often. The others stay where they are. Answers how many it gave up.
    async fn reject(
        &self,
        agent: &AgentId,
        sequences: &[i64],
        rejection: &Rejection,
    ) -> Result<u64>;

    /// Gives up messages that are over their time, at most `limit`, and forgets dead letters
    /// that are older than [`DEAD_FOR`]. Answers how many messages it gave up.
    async fn expire_messages(&self, limit: u32) -> Result<u64>;

    /// Dead letters, the newest first.
    async fn dead_letters(&self, limit: u32) -> Result<Vec<DeadLetter>>;

    /// Sends a dead letter again, under a new id and without its time limit. Answers that id;
    /// `None` when there is no such letter, or nobody to send it to.
    async fn revive(&self, id: MessageId) -> Result<Option<MessageId>>;

    /// Forgets a dead letter. Answers whether it was there.
    async fn forget_letter(&self, id: MessageId) -> Result<bool>;
}
