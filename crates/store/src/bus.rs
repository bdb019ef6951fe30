//! What a relay needs of the store: the outbox, the inbox, and one row that says which bus carries
//! messages and who relays.

use async_trait::async_trait;
use resurgam_model::bus::{BusState, BusWish, Outbox};
use resurgam_model::message::{DeadLetter, Message, NewMessage};
use resurgam_model::{AgentId, Duration, MessageId};

use crate::Result;

/// The row about the buses.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BusRecord {
    /// Whether messages wait for a relay.
    pub relayed: bool,
    /// What the relay has last said.
    pub state: Option<BusState>,
    /// What a person has ordered.
    pub wish: Option<BusWish>,
    /// Who relays, while its lease holds.
    pub relay: Option<String>,
}

/// What became of messages that a broker delivered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// In whose mailboxes there are new ones.
    pub agents: Vec<AgentId>,
    /// Those of which the store knows nothing.
    pub unknown: Vec<MessageId>,
}

/// The outbox and the inbox of messages that travel over brokers.
///
/// A message is in the outbox from the transaction that caused it until it was delivered. So
/// whatever a broker loses is still here, and a mailbox shows of each agent only what is before
/// its first message that is still on the way: the order holds, however often and over however
/// many ways messages come.
#[async_trait]
pub trait BusStore: Send + Sync + 'static {
    /// Says whether messages wait for a relay from now on, or are delivered at once. In the second
    /// case what waited is delivered as well.
    async fn set_relayed(&self, relayed: bool) -> Result<()>;

    /// Takes or renews the lease of the relay. Answers whether `relay` has it now.
    async fn lead(&self, relay: &str, lease: Duration) -> Result<bool>;

    /// Gives the lease back, so that another relay need not wait.
    async fn leave(&self, relay: &str) -> Result<()>;

    /// The row.
    async fn bus(&self) -> Result<BusRecord>;

    /// Notes what the relay says. Answers whether it still had the lease; else nothing is noted.
    async fn note_bus(&self, relay: &str, state: &BusState) -> Result<bool>;

    /// Notes what a person wants; `None` when it is done.
    async fn wish(&self, wish: Option<&BusWish>) -> Result<()>;

    /// Messages of the outbox in their order: those with numbers greater than `after`, without
    /// those whose numbers are given.
    async fn outgoing(&self, after: i64, under_way: &[i64], limit: u32) -> Result<Vec<Message>>;

    /// Those of these numbers that are in the outbox, in their order.
    async fn outgoing_of(&self, sequences: &[i64]) -> Result<Vec<Message>>;

    /// The numbers of the outbox up to this one, in their order.
    async fn waiting(&self, up_to: i64) -> Result<Vec<i64>>;

    /// Puts messages of the outbox into their mailboxes. Those that are there already, or were
    /// acknowledged, are passed over.
    async fn delivered(&self, ids: &[MessageId]) -> Result<Received>;

    /// Puts messages that are not from the outbox into their mailboxes at once. Known ids are
    /// passed over.
    async fn arrive(&self, messages: &[NewMessage]) -> Result<()>;

    /// What waits.
    async fn outbox(&self) -> Result<Outbox>;

    /// Keeps something that cannot be delivered. Known ids are passed over.
    async fn bury(&self, letters: &[DeadLetter]) -> Result<()>;
}
