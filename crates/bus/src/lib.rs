//! The message bus of the platform behind one seam, with the bus that needs nothing else.
//!
//! # Guarantees, of every bus
//! - **Durable:** when [`Bus::send`] has returned `Ok`, each of its messages survives the death
//!   of every process.
//! - **At least once:** a message is delivered again and again until its receiver acknowledges
//!   it. A receiver that crashes between its work and the acknowledgement sees it once more, so
//!   receivers drop duplicates by [`Message::id`].
//! - **In order, per receiver:** the messages of one receiver come in the order of
//!   [`Message::sequence`]. Nothing is promised between receivers.
//! - **Sending again is harmless:** a message whose id is known changes nothing. After an error
//!   for which [`Error::is_transient`] holds the message may or may not be there: send it again.

pub mod broker;
mod embedded;
pub mod kafka;
pub mod rabbitmq;
pub mod relay;

pub use embedded::EmbeddedBus;

use async_trait::async_trait;
use resurgam_model::AgentId;
use resurgam_model::message::{Message, NewMessage};

/// What calls to the bus return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store under the embedded bus failed.
    #[error("the embedded bus cannot use its store: {0}")]
    Store(#[from] resurgam_store::Error),
}

impl Error {
    /// Whether the same call may succeed later. It may have taken effect already; to repeat it
    /// is harmless.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Store(error) => error.is_transient(),
        }
    }
}

/// A bus between agents: one durable mailbox per receiver.
#[async_trait]
pub trait Bus: Send + Sync + 'static {
    /// Accepts messages: all of them or, on an error, perhaps none.
    async fn send(&self, messages: &[NewMessage]) -> Result<()>;

    /// What waits for `agent`, oldest first, those after the sequence number `after` if given,
    /// at most `limit`. Takes nothing away: that is what [`Bus::acknowledge`] does.
    async fn receive(
        &self,
        agent: &AgentId,
        after: Option<i64>,
        limit: u32,
    ) -> Result<Vec<Message>>;

    /// Takes messages out of the mailbox of `agent`. Numbers that are not in it are passed over,
    /// so that acknowledging again is harmless.
    async fn acknowledge(&self, agent: &AgentId, sequences: &[i64]) -> Result<()>;

    /// `embedded`, later `kafka` or `rabbitmq`.
    fn kind(&self) -> &'static str;

    /// Whether the bus can be used now.
    async fn check(&self) -> Result<()>;
}
