//! How things stand, in numbers: what is asked for by those who watch, not by those who work.

use std::time::Duration;

use async_trait::async_trait;
use resurgam_model::Capability;

use crate::{Meters, Result};

/// What a store knows of its load.
#[async_trait]
pub trait Figures: Send + Sync + 'static {
    /// What waits and who is there. Does not look at tasks that are completed, of which there may
    /// be millions.
    async fn figures(&self) -> Result<Snapshot>;

    /// What has been counted since the store was opened, with gauges as they stand now.
    fn meters(&self) -> &Meters;
}

/// How things stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// By capability, in the order of their names.
    pub queues: Vec<Queue>,
    /// Agents by state.
    pub agents: Vec<(String, u64)>,
}

/// The tasks of one capability.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// The capability.
    pub capability: Capability,
    /// Can be claimed now.
    pub ready: u64,
    /// Their time has not come.
    pub scheduled: u64,
    /// Under a lease.
    pub running: u64,
    /// Dead letters.
    pub dead: u64,
    /// For how long the oldest of the ready ones could have been claimed.
    pub oldest_ready: Option<Duration>,
}
