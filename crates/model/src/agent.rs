//! Agents and the registry that knows them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{AgentId, Capability, Duration, InstanceId};

/// What an agent says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registration {
    /// Its name, stable over restarts.
    pub id: AgentId,
    /// This life of it. Registering under a new one returns the leases of the old one.
    pub instance: InstanceId,
    /// What it can do; empty for an agent that only hands in work.
    #[serde(default)]
    pub capabilities: Vec<Capability>,
    /// How many tasks it works on at once.
    #[serde(default = "one")]
    pub capacity: u32,
    /// Free labels: zone, version, team.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

fn one() -> u32 {
    1
}

/// Where an agent stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgentState {
    /// Its heartbeat is fresh.
    Available,
    /// No heartbeat for longer than it promised: its leases have gone back to the queue.
    Gone,
}

impl AgentState {
    /// The name in the database and in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Available => "available",
            Self::Gone => "gone",
        }
    }
}

/// An agent as the registry knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agent {
    /// Its name.
    pub id: AgentId,
    /// Its present life.
    pub instance: InstanceId,
    /// Where it stands.
    pub state: AgentState,
    /// What it can do.
    pub capabilities: Vec<Capability>,
    /// How many tasks it works on at once.
    pub capacity: u32,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
    /// Tasks that it holds now.
    pub running: u64,
    /// When it registered under its present life.
    pub registered_at: Timestamp,
    /// When it last gave a sign of life.
    pub seen_at: Timestamp,
}

impl Agent {
    /// An agent that takes tasks is a worker.
    #[must_use]
    pub fn is_worker(&self) -> bool {
        !self.capabilities.is_empty()
    }
}

/// How often an agent must show itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatTerms {
    /// Send one so often.
    pub every: Duration,
    /// After so long without one the agent counts as gone.
    pub expire_after: Duration,
}

impl Default for HeartbeatTerms {
    fn default() -> Self {
        Self { every: Duration::from_millis(500), expire_after: Duration::from_secs(3) }
    }
}
