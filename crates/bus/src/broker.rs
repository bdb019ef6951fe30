//! The seam to message brokers outside: Kafka and RabbitMQ.
//!
//! A broker only carries. The truth about each message stays in the store, where it lies until it
//! was delivered; so whatever a broker loses is published again, and whatever it delivers twice is
//! known by its id. What a broker must do well is to keep the order of each key, to say honestly
//! what it has confirmed, and never to hang.

use async_trait::async_trait;
use bytes::Bytes;
use resurgam_model::MessageId;
pub use resurgam_model::bus::Observation;

/// What calls to a broker return.
pub type BrokerResult<T> = std::result::Result<T, BrokerError>;

/// A message on its way to a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parcel {
    /// Receivers drop duplicates by it.
    pub id: MessageId,
    /// Parcels of one key stay in order.
    pub key: String,
    /// The message, as JSON.
    pub content: Bytes,
}

/// A message that came from a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Where it stands in the broker, for people: `agent-messages/3@1042` or a delivery tag.
    pub place: String,
    /// The id that came with it, if one did. What others have published may have none.
    pub id: Option<MessageId>,
    /// What it says: the content of a [`Parcel`], or whatever others have published.
    pub content: Bytes,
    /// How often the broker has delivered it before, as far as it knows.
    pub redelivered: u32,
}

/// A broker outside, already configured. Connections are made when they are needed, and made
/// again when they are lost.
#[async_trait]
pub trait Broker: Send + Sync + 'static {
    /// `kafka` or `rabbitmq`.
    fn kind(&self) -> &'static str;

    /// Makes sure that topic or queues exist and are as safe as the number of brokers allows.
    /// Harmless when they are there already.
    async fn prepare(&self) -> BrokerResult<()>;

    /// Publishes parcels in their order and returns when every one of them is confirmed: by all
    /// in-sync replicas, or by the publisher confirm of a durable queue.
    ///
    /// # Errors
    /// Some of the parcels may be there then. Of each key it is those up to some point without a
    /// gap, so that publishing the same parcels again keeps the order. After
    /// [`BrokerError::TooLarge`] and [`BrokerError::Refused`] the parcel that is named can never be
    /// published; all others may be.
    async fn publish(&self, parcels: &[Parcel]) -> BrokerResult<()>;

    /// Begins to receive, at the first message that was not settled.
    async fn receive(&self) -> BrokerResult<Box<dyn Arrivals>>;

    /// What the broker is like now. An answer also when it is ill; an error when it cannot be asked.
    async fn observe(&self) -> BrokerResult<Observation>;
}

/// Messages as they come.
#[async_trait]
pub trait Arrivals: Send {
    /// What has come, at least one, as many as are there at once up to some thousand. Waits until
    /// something comes; safe to drop while it waits.
    ///
    /// # Errors
    /// The connection is lost or what came cannot be relied on: begin anew with
    /// [`Broker::receive`].
    async fn next(&mut self) -> BrokerResult<Vec<Arrival>>;

    /// Everything that [`Arrivals::next`] has given so far is done with: it does not come again,
    /// also after a crash. What is not settled comes again.
    async fn settle(&mut self) -> BrokerResult<()>;
}

/// What went wrong with a broker. Texts never hold a password.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BrokerError {
    /// It cannot be reached, or did not answer in time. Trying again may help.
    #[error("{broker} does not answer: {reason}")]
    Away {
        /// Which.
        broker: &'static str,
        /// What happened.
        reason: String,
    },
    /// It does not let us in.
    #[error("{broker} refuses the credentials: {reason}")]
    Credentials {
        /// Which.
        broker: &'static str,
        /// What it said.
        reason: String,
    },
    /// Something that we need is missing or not allowed: a topic that we may not create, say.
    #[error("{broker} is not set up: {reason}")]
    Setup {
        /// Which.
        broker: &'static str,
        /// What is missing, and what to do about it.
        reason: String,
    },
    /// It cannot take more now: too few replicas in sync, a full disk, an alarm.
    #[error("{broker} takes no messages: {reason}")]
    Stopped {
        /// Which.
        broker: &'static str,
        /// Why.
        reason: String,
    },
    /// This parcel is greater than the broker allows.
    #[error("{broker} takes no message of this size: {size} bytes")]
    TooLarge {
        /// Which.
        broker: &'static str,
        /// The parcel.
        id: MessageId,
        /// Its size.
        size: usize,
    },
    /// The broker will never take this parcel, for another reason.
    #[error("{broker} refuses the message {id}: {reason}")]
    Refused {
        /// Which.
        broker: &'static str,
        /// The parcel.
        id: MessageId,
        /// What it said.
        reason: String,
    },
}

impl BrokerError {
    /// Whether this says that the broker cannot be used for any message now.
    #[must_use]
    pub fn is_outage(&self) -> bool {
        !matches!(self, Self::TooLarge { .. } | Self::Refused { .. })
    }
}
