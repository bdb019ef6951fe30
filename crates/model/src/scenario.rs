//! The failures that Resurgam knows how to recover from.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Duration, Objectives, Severity};

/// A failure scenario. The names are those of the command line, the plan and the reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// The primary of PostgreSQL is lost and a standby exists.
    PostgresPrimary,
    /// The primary of PostgreSQL is lost with its data, and nobody else has them.
    PostgresRestore,
    /// Pages of PostgreSQL are damaged on disk.
    DatabaseCorruption,
    /// A standby of PostgreSQL is lost; the primary works.
    PostgresStandby,
    /// PostgreSQL is led from another place than the plan prefers, and is handed over in order.
    Failback,
    /// The connections of PostgreSQL have run out.
    PoolExhaustion,
    /// The disk with the state folder fills.
    DiskFilling,
    /// The agent registry does not answer.
    AgentRegistry,
    /// One of several brokers of Kafka is lost.
    KafkaBroker,
    /// Kafka is lost as a whole.
    KafkaCluster,
    /// RabbitMQ is lost.
    #[serde(rename = "rabbitmq")]
    RabbitMq,
    /// Workers died, with or without tasks in their hands.
    WorkerPool,
    /// Tasks hang in the hands of somebody who shows itself.
    StuckTasks,
    /// The API does not answer.
    Api,
    /// The controller is gone or hangs, and everything with it; its guard starts it again.
    Controller,
    /// Every process of the deployment is gone; its data folders are there.
    FullStop,
    /// Everything is gone, the data folders included; only plan, vault and key are left.
    FullCluster,
}

/// A text names no scenario.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no scenario {text:?}{}", hint(.nearest))]
pub struct UnknownScenario {
    text: String,
    nearest: Option<Scenario>,
}

fn hint(nearest: &Option<Scenario>) -> String {
    match nearest {
        Some(scenario) => format!("; did you mean {scenario}?"),
        None => {
            let all: Vec<_> = Scenario::ALL.iter().map(Scenario::as_str).collect();
            format!("; there are {}", all.join(", "))
        }
    }
}

impl Scenario {
    /// Whether it is about a PostgreSQL that the deployment runs itself.
    #[must_use]
    pub fn is_of_postgres(self) -> bool {
        matches!(
            self,
            Self::PostgresPrimary
                | Self::PostgresRestore
                | Self::DatabaseCorruption
                | Self::PoolExhaustion
                | Self::PostgresStandby
                | Self::Failback
        )
    }

    /// Whether nothing has failed, and people only want it so.
    #[must_use]
    pub fn is_planned(self) -> bool {
        self == Self::Failback
    }

    /// All of them, the gravest first.
    pub const ALL: [Self; 17] = [
        Self::FullCluster,
        Self::PostgresPrimary,
        Self::PostgresRestore,
        Self::DatabaseCorruption,
        Self::FullStop,
        Self::Controller,
        Self::KafkaCluster,
        Self::KafkaBroker,
        Self::RabbitMq,
        Self::Api,
        Self::PoolExhaustion,
        Self::DiskFilling,
        Self::AgentRegistry,
        Self::WorkerPool,
        Self::PostgresStandby,
        Self::StuckTasks,
        Self::Failback,
    ];

    /// The name on the command line.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::PostgresPrimary => "postgres-primary",
            Self::PostgresRestore => "postgres-restore",
            Self::DatabaseCorruption => "database-corruption",
            Self::PostgresStandby => "postgres-standby",
            Self::Failback => "failback",
            Self::PoolExhaustion => "pool-exhaustion",
            Self::DiskFilling => "disk-filling",
            Self::AgentRegistry => "agent-registry",
            Self::KafkaBroker => "kafka-broker",
            Self::KafkaCluster => "kafka-cluster",
            Self::RabbitMq => "rabbitmq",
            Self::WorkerPool => "worker-pool",
            Self::StuckTasks => "stuck-tasks",
            Self::Api => "api",
            Self::Controller => "controller",
            Self::FullStop => "full-stop",
            Self::FullCluster => "full-cluster",
        }
    }

    /// One line for lists.
    #[must_use]
    pub fn summary(&self) -> &'static str {
        match self {
            Self::PostgresPrimary => "the PostgreSQL primary is lost; its standby takes over",
            Self::PostgresRestore => {
                "PostgreSQL is lost with its data and has no standby; backup and log bring it back"
            }
            Self::DatabaseCorruption => {
                "pages of PostgreSQL fail their checksums; a standby takes over, or backup and log do"
            }
            Self::PostgresStandby => {
                "a standby of PostgreSQL is lost; it is brought back, and redundancy with it"
            }
            Self::Failback => {
                "PostgreSQL is handed over to its preferred place, in order and without loss"
            }
            Self::PoolExhaustion => {
                "the connections of PostgreSQL have run out; those that leaked are found and ended"
            }
            Self::DiskFilling => {
                "the disk fills; what can be had again is removed, and people are asked about the rest"
            }
            Self::AgentRegistry => {
                "the agent registry is gone; agents register again by themselves"
            }
            Self::KafkaBroker => {
                "one of several brokers of Kafka is gone; the others go on, and all copies return"
            }
            Self::KafkaCluster => {
                "Kafka is gone as a whole; messages take the next bus, and return"
            }
            Self::RabbitMq => "RabbitMQ is gone; messages take another bus, and may take it again",
            Self::WorkerPool => {
                "workers die with tasks in their hands; the tasks return to the queue"
            }
            Self::StuckTasks => {
                "tasks hang in the hands of somebody who shows itself; they are taken back"
            }
            Self::Api => "the API is gone; callers retry until it is back",
            Self::Controller => {
                "the controller is killed or hangs, and all dies with it; its guard starts it again"
            }
            Self::FullStop => "every process is killed at once; all state comes back from disk",
            Self::FullCluster => {
                "everything is lost, the data included; it comes back from the last backup"
            }
        }
    }

    /// How bad it is.
    #[must_use]
    pub fn severity(&self) -> Severity {
        match self {
            Self::PostgresPrimary
            | Self::PostgresRestore
            | Self::DatabaseCorruption
            | Self::Api
            | Self::Controller
            | Self::FullStop
            | Self::FullCluster
            | Self::KafkaBroker
            | Self::KafkaCluster
            | Self::RabbitMq => Severity::P0,
            Self::PoolExhaustion | Self::DiskFilling | Self::AgentRegistry | Self::WorkerPool => {
                Severity::P1
            }
            // Others go on; these tasks wait.
            Self::StuckTasks => Severity::P2,
            // Nothing is affected yet; the next loss is what it is about.
            Self::PostgresStandby => Severity::P2,
            // Nothing is the matter: somebody wants it so.
            Self::Failback => Severity::P3,
        }
    }

    /// The objectives when the plan names no others. PostgreSQL and its connections, the brokers,
    /// registry, worker pool and the whole cluster have those of the written procedure; it has none for the API alone, nor for a stop that leaves
    /// the disks whole, nor for the disk, tasks that hang, the controller and the way back, so these take 5 minutes like the other processes. Where the
    /// procedure gives no recovery point, nothing acknowledged may be lost.
    #[must_use]
    pub fn default_objectives(&self) -> Objectives {
        match self {
            Self::PostgresPrimary | Self::PostgresRestore | Self::DatabaseCorruption => {
                Objectives { rto: Duration::from_secs(15 * 60), rpo: Duration::from_secs(5 * 60) }
            }
            Self::FullCluster => {
                Objectives { rto: Duration::from_secs(30 * 60), rpo: Duration::from_secs(60 * 60) }
            }
            Self::KafkaBroker | Self::KafkaCluster | Self::RabbitMq => {
                Objectives { rto: Duration::from_secs(10 * 60), rpo: Duration::from_secs(0) }
            }
            // The written procedure leaves the database without a standby, and has no figure: the time
            // in which a second loss would be one is that of the first.
            Self::PostgresStandby => {
                Objectives { rto: Duration::from_secs(15 * 60), rpo: Duration::from_secs(0) }
            }
            Self::PoolExhaustion
            | Self::DiskFilling
            | Self::AgentRegistry
            | Self::WorkerPool
            | Self::StuckTasks
            | Self::Api
            | Self::Controller
            | Self::FullStop
            | Self::Failback => {
                Objectives { rto: Duration::from_secs(5 * 60), rpo: Duration::from_secs(0) }
            }
        }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Scenario {
    type Err = UnknownScenario;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|s| s.as_str() == text).ok_or_else(|| UnknownScenario {
            text: text.chars().take(60).collect(),
            nearest: nearest(text, Self::ALL.iter().map(|s| (s.as_str(), *s))),
        })
    }
}

/// The candidate whose name is most like the text, if one is like it at all.
pub(crate) fn nearest<T>(text: &str, names: impl Iterator<Item = (&'static str, T)>) -> Option<T> {
    names
        .map(|(name, value)| (strsim::jaro_winkler(text, name), value))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_on_the_command_line_and_in_json() {
        for scenario in Scenario::ALL {
            assert_eq!(scenario.as_str().parse::<Scenario>().unwrap(), scenario);
            let json = serde_json::to_string(&scenario).unwrap();
            assert_eq!(json, format!("\"{scenario}\""));
        }
    }

    #[test]
    fn suggests_the_nearest() {
        let near = "postgres-primry".parse::<Scenario>().unwrap_err().to_string();
        assert!(near.contains("did you mean postgres-primary?"), "{near}");
        let far = "zzz".parse::<Scenario>().unwrap_err().to_string();
        assert!(far.contains("worker-pool"), "{far}");
    }
}
