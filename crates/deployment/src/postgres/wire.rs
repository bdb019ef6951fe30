//! What keeper and controller tell each other.

use std::net::SocketAddr;

use resurgam_model::database::{Epoch, Lsn};
use resurgam_model::{ComponentName, Duration, InstanceId};
use serde::{Deserialize, Serialize};

use super::contain::Strength;

/// A keeper says how its server is and asks what it shall be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Renewal {
    /// This life of the keeper. When it changes, the life before is dead, and its server with it.
    pub life: InstanceId,
    /// What the keeper's death would take with it.
    pub fence: Strength,
    /// Where its server listens.
    pub address: SocketAddr,
    /// How it is.
    pub observed: Observed,
    /// The number of the last directive that it has got; the answer can wait for a later one.
    pub heard: u64,
    /// The number of the last directive that was carried out, or is being carried out: nothing
    /// of an earlier one is still being done.
    pub carried_out: u64,
}

/// How a server is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Observed {
    /// Its state.
    pub state: ServerState,
    /// How it last ended, such as `killed by signal 9`.
    pub last_exit: Option<String>,
    /// A long act that is going on, such as `base backup from postgres-0`.
    pub doing: Option<String>,
    /// Why the directive cannot be carried out now.
    pub problem: Option<String>,
}

impl Default for Observed {
    fn default() -> Self {
        Self { state: ServerState::Unknown, last_exit: None, doing: None, problem: None }
    }
}

/// The state of a server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "is")]
pub enum ServerState {
    /// Not looked yet.
    Unknown,
    /// There is no data.
    Absent,
    /// There is data and no process.
    Stopped,
    /// It recovers and does not take connections yet.
    Starting,
    /// A process exists and does not answer.
    Unresponsive {
        /// For so long.
        for_ms: u64,
    },
    /// It replays and takes only reads.
    Standby(StandbyState),
    /// It accepts writes.
    Primary(PrimaryState),
}

impl ServerState {
    /// It cannot accept a write, for sure.
    #[must_use]
    pub fn is_harmless(&self) -> bool {
        matches!(self, Self::Absent | Self::Stopped | Self::Standby(_))
    }

    /// One word for tables.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Absent => "absent",
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Unresponsive { .. } => "unresponsive",
            Self::Standby(_) => "standby",
            Self::Primary(_) => "primary",
        }
    }
}

/// A standby.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandbyState {
    /// The timeline that it follows.
    pub timeline: u32,
    /// What it has safely on disk.
    pub received: Lsn,
    /// What it has replayed.
    pub replayed: Lsn,
    /// The port of the server that it streams from, if it does.
    pub streaming_from: Option<u16>,
    /// How long ago that server last said something.
    pub silent_ms: Option<u64>,
}

/// A primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrimaryState {
    /// Its reign.
    pub epoch: Epoch,
    /// Roles, database and slots are there.
    pub furnished: bool,
    /// Its timeline.
    pub timeline: u32,
    /// What is safely on its disk.
    pub flushed: Lsn,
    /// The standby that commits wait for, if they do.
    pub synchronous: Option<ComponentName>,
    /// The standbys that stream from it.
    pub standbys: Vec<SeenStandby>,
}

/// A standby as its primary sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenStandby {
    /// Its name.
    pub name: String,
    /// It has caught up and streams.
    pub streaming: bool,
    /// Commits wait for it.
    pub synchronous: bool,
    /// What it has confirmed to be on its disk.
    pub flushed: Lsn,
    /// How far behind it was in time when last measured; none when it is idle.
    pub lag_ms: Option<u64>,
}

/// What a server shall be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directive {
    /// Grows with each change, over all lives of the controller.
    pub number: u64,
    /// The current reign.
    pub epoch: Epoch,
    /// How long the word holds for a primary, from the moment it was asked for.
    pub lease: Duration,
    /// The word.
    pub order: Order,
}

/// The word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "be")]
pub enum Order {
    /// Do not run. A server that runs as primary is killed.
    Stopped,
    /// Accept writes, in the directive's epoch.
    Primary {
        /// Make a new database if there is no data. Only for the very first primary.
        create: bool,
        /// Keep what these standbys still need.
        standbys: Vec<ComponentName>,
        /// Let commits wait for this one.
        synchronous: Option<ComponentName>,
    },
    /// Follow, and accept no writes. A server that runs as primary is killed. Data that has
    /// gone its own way is rewound, or else replaced by a new copy.
    Standby {
        /// Whom to follow.
        upstream: Upstream,
    },
}

/// A primary to follow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstream {
    /// Its name.
    pub name: ComponentName,
    /// Where it listens.
    pub address: SocketAddr,
}
