//! Where the platform runs, behind one seam, and the PostgreSQL instances that it owns.
//!
//! [`Deployment`] is what the recovery engine may do to a running platform. [`local`] does it
//! with child processes of this machine. [`postgres`] is the part that runs beside each
//! PostgreSQL server: it starts the server, holds its lease, and makes sure that a server whose
//! lease has ended cannot accept a write.

pub mod brokers;
pub mod local;
pub mod postgres;

mod error;

pub use error::Error;

use std::net::SocketAddr;

use async_trait::async_trait;
use resurgam_model::{ComponentName, Timestamp};
use serde::{Deserialize, Serialize};

/// What calls to a deployment return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The seam "where it runs".
///
/// Every act is idempotent: to ask for what is so already changes nothing and succeeds.
#[async_trait]
pub trait Deployment: Send + Sync + 'static {
    /// What kind of deployment, for reports: `local`.
    fn kind(&self) -> &'static str;

    /// Every component and how it is.
    async fn components(&self) -> Result<Vec<Component>>;

    /// Ends the component, if it runs, and starts it afresh without waiting out its backoff.
    async fn restart(&self, name: &ComponentName) -> Result<()>;

    /// Ends the component and keeps it ended.
    async fn stop(&self, name: &ComponentName) -> Result<()>;

    /// Starts the component and keeps it running.
    async fn start(&self, name: &ComponentName) -> Result<()>;

    /// Brings a pool of components to a size: starts what is missing, or has the surplus finish
    /// what it has begun and end. Does not wait for either.
    async fn scale(&self, pool: &ComponentName, size: u16) -> Result<()>;

    /// Points a service at an address. Connections to any other address are cut at once.
    /// Without an address new connections wait until there is one.
    async fn route(&self, service: &str, target: Option<SocketAddr>) -> Result<()>;

    /// The last lines that a component logged, oldest first.
    async fn logs(&self, name: &ComponentName, lines: usize) -> Result<Vec<String>>;
}

/// What a component is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ComponentKind {
    /// Serves tasks and messages.
    Api,
    /// Takes back leases.
    Supervisor,
    /// Knows the agents.
    Registry,
    /// Works on tasks.
    Worker,
    /// A PostgreSQL server with its keeper.
    Postgres,
    /// A broker of Kafka.
    Kafka,
    /// A node of RabbitMQ.
    #[serde(rename = "rabbitmq")]
    RabbitMq,
}

impl ComponentKind {
    /// The word in JSON and for people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Supervisor => "supervisor",
            Self::Registry => "registry",
            Self::Worker => "worker",
            Self::Postgres => "postgres",
            Self::Kafka => "kafka",
            Self::RabbitMq => "rabbitmq",
        }
    }

    /// Whether it keeps data for others, so that it ends last, and is started again only when it
    /// is named.
    #[must_use]
    pub fn keeps_data(self) -> bool {
        matches!(self, Self::Postgres | Self::Kafka | Self::RabbitMq)
    }
}

/// Whether a component runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// A process of it exists.
    Running,
    /// It ended and waits to be started again.
    Restarting,
    /// It finishes what it has begun and then ends, on purpose.
    Draining,
    /// It was stopped on purpose.
    Stopped,
}

impl RunState {
    /// It is to run no longer: that it ends is no failure.
    #[must_use]
    pub fn is_on_purpose(self) -> bool {
        matches!(self, Self::Draining | Self::Stopped)
    }
}

/// A component as the deployment sees it. Running is not serving: whether it serves, probes say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Component {
    /// Its name.
    pub name: ComponentName,
    /// What it is for.
    pub kind: ComponentKind,
    /// Whether it runs.
    pub state: RunState,
    /// Its process, while it runs.
    pub pid: Option<u32>,
    /// Where it listens, if it does.
    pub address: Option<SocketAddr>,
    /// When the process began.
    pub started_at: Option<Timestamp>,
    /// How often it was started again.
    pub restarts: u32,
    /// How its last process ended, such as `killed by signal 9`.
    pub last_exit: Option<String>,
}
