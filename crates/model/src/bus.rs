//! How the buses are, and which of them carries messages.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use crate::plan::BusKind;
use crate::schema::Moment;

/// What a broker says of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Observation {
    /// When it was asked.
    #[schemars(with = "Moment")]
    pub at: Timestamp,
    /// Nodes that answer.
    pub nodes: Vec<String>,
    /// Nodes that are known and do not answer.
    pub missing: Vec<String>,
    /// Who leads the cluster, or that somebody does if it is not told who; none if nobody does or
    /// that is not known.
    pub controller: Option<String>,
    /// Partitions, or queues with replicas, that have fewer replicas than they should.
    pub under_replicated: u32,
    /// Partitions or queues that cannot be used.
    pub offline: u32,
    /// Messages that wait for our consumers.
    pub lag: Option<u64>,
    /// Why it takes no messages now, if it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
    /// What is wrong, each a sentence for people: alarms, full disks, too few replicas.
    pub findings: Vec<String>,
}

/// Whether a bus may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Circuit {
    /// It may: what was asked of it was done.
    Closed,
    /// It has failed, and is left alone until it is tried again.
    Open,
    /// It is being tried, and not used yet.
    HalfOpen,
}

impl Circuit {
    /// What it is called in tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
        }
    }
}

/// How one bus is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BusHealth {
    /// Which.
    pub bus: BusKind,
    /// Whether it may be used.
    pub circuit: Circuit,
    /// Since when.
    #[schemars(with = "Moment")]
    pub since: Timestamp,
    /// What it failed with last, if it has failed.
    pub reason: Option<String>,
    /// What it said of itself last.
    pub observation: Option<Observation>,
}

/// That a person has chosen the bus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BusWish {
    /// The bus to use, as long as it can be used; none to return to the order of the plan.
    pub to: Option<BusKind>,
    /// Who said so.
    pub by: String,
    /// Why, if they said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When.
    #[schemars(with = "Moment")]
    pub at: Timestamp,
}

/// A change from one bus to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BusMove {
    /// The one before; none if messages had to wait.
    pub from: Option<BusKind>,
    /// The one after; none if messages have to wait.
    pub to: Option<BusKind>,
    /// When messages began to go the new way.
    #[schemars(with = "Moment")]
    pub at: Timestamp,
    /// Why.
    pub reason: String,
}

/// What the relay has last said of the buses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BusState {
    /// Which bus carries messages; none while none can.
    pub active: Option<BusKind>,
    /// Since when.
    #[schemars(with = "Moment")]
    pub since: Timestamp,
    /// When this was written.
    #[schemars(with = "Moment")]
    pub at: Timestamp,
    /// Each bus of the plan, in its order.
    pub buses: Vec<BusHealth>,
    /// How often the bus was changed since the deployment began.
    pub moves: u64,
    /// The last changes, the newest last; at most 20.
    pub last_moves: Vec<BusMove>,
    /// Messages that no broker would take, and that the store delivered instead.
    pub carried_by_store: u64,
}

/// How many messages wait, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Outbox {
    /// Messages that are not delivered yet.
    pub waiting: u64,
    /// When the oldest of them was accepted.
    #[schemars(with = "Option<Moment>")]
    pub oldest: Option<Timestamp>,
    /// Dead letters.
    pub dead: u64,
}

/// Everything about the buses: what `GET /bus` answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BusStatus {
    /// The buses of the plan of the process that answered, the preferred one first.
    pub order: Vec<BusKind>,
    /// What the relay has last said; none with the embedded bus alone, or before a relay began.
    pub state: Option<BusState>,
    /// What a person has ordered, if it still holds.
    pub wish: Option<BusWish>,
    /// The process that relays, while it does.
    pub relay: Option<String>,
    /// What waits.
    pub outbox: Outbox,
}
