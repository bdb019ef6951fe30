//! The plan: what is deployed, what is promised, who is called. One file, `resurgam.toml`.

mod backup;
mod bucket;
mod bus;
mod calendar;
mod connections;
mod effective;
mod notify;

pub use backup::{Backup, Retention, Vault};
pub use bucket::{BadBucketUrl, BucketUrl, Service};
pub use bus::{BUS_VARIABLE, Bus, BusKind, Kafka, RabbitMq, UnknownBus};
pub use calendar::{Blackout, CalendarDrill, Place};
pub use connections::{Connections, Endable};
pub use effective::{EffectivePlan, Origin, PlanError, Setting, variables};
pub use notify::{Notify, NotifyKind, Team};

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::access::AccessMode;
use crate::{Capability, ComponentName, Duration, Objectives, Scenario};

/// The whole plan. Every part has a default: without a file this is the embedded plan, which
/// needs nothing but this program.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Plan {
    /// Where and as what the platform runs.
    pub deployment: Deployment,
    /// The HTTP interface.
    pub api: Api,
    /// The pool of workers.
    pub workers: Workers,
    /// Where the durable state lies.
    pub store: Store,
    /// PostgreSQL instances that the deployment runs itself.
    pub postgres: Postgres,
    /// What carries messages between agents.
    pub bus: Bus,
    /// How failures are noticed.
    pub detection: Detection,
    /// How much room there must be.
    pub disk: Disk,
    /// RTO and RPO per scenario, where they differ from the defaults.
    pub objectives: BTreeMap<Scenario, Objectives>,
    /// When recoveries ask people.
    pub approval: Approval,
    /// The same for single scenarios.
    pub approvals: BTreeMap<Scenario, Approval>,
    /// Where backups go, when, and for how long.
    pub backup: Backup,
    /// Who is called.
    pub contacts: Contacts,
    /// Who is told of incidents, and how.
    pub notify: Vec<Notify>,
    /// Who else may say that something has failed.
    pub alerts: Alerts,
    /// Drills that the controller begins by itself.
    pub drills: Vec<CalendarDrill>,
    /// When no drill begins.
    pub blackouts: Vec<Blackout>,
}

impl Plan {
    /// When the recovery of a scenario asks people.
    #[must_use]
    pub fn approval(&self, scenario: Scenario) -> Approval {
        self.approvals.get(&scenario).copied().unwrap_or(self.approval)
    }

    /// Whether a deployment of this plan has what the scenario is about.
    #[must_use]
    pub fn has(&self, scenario: Scenario) -> bool {
        let database = self.store.kind == StoreKind::Postgres;
        match scenario {
            Scenario::PostgresStandby | Scenario::Failback => {
                database && self.postgres.standbys > 0
            }
            Scenario::KafkaBroker | Scenario::KafkaCluster => {
                self.bus.order.contains(&BusKind::Kafka)
            }
            Scenario::RabbitMq => self.bus.order.contains(&BusKind::RabbitMq),
            other => database || !other.is_of_postgres(),
        }
    }

    /// What the scenario promises under this plan.
    #[must_use]
    pub fn objectives(&self, scenario: Scenario) -> Objectives {
        self.objectives.get(&scenario).copied().unwrap_or_else(|| scenario.default_objectives())
    }
}

/// Where and as what the platform runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Deployment {
    /// The prefix of the workloads' names, and the name of the database.
    pub name: String,
    /// Where everything that lasts is kept. Relative paths start at the plan file's folder.
    pub state_dir: PathBuf,
    /// Whether drills may break this deployment.
    pub drills: Drills,
    /// The port of the controller on this machine, with its status and figures; 0 takes a free one,
    /// and the same again at the next start if it can.
    pub controller_port: u16,
}

impl Default for Deployment {
    fn default() -> Self {
        Self {
            name: "dotnetagents".to_owned(),
            state_dir: PathBuf::from("resurgam-data"),
            drills: Drills::Refused,
            controller_port: 0,
        }
    }
}

/// Whether drills may break a deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Drills {
    /// They may.
    Allowed,
    /// They may not; the default, so that nobody drills in production by accident.
    Refused,
}

/// The HTTP interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Api {
    /// The address to listen on. What is no loopback address needs `access = "tokens"` and TLS.
    pub host: IpAddr,
    /// The port of the API; 0 takes a free one.
    pub port: u16,
    /// Whether callers must show a token.
    pub access: AccessMode,
    /// The server's certificate (PEM), and those of its issuers after it. Relative paths start at
    /// the plan file's folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<PathBuf>,
    /// The private key (PEM) of that certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    /// Who vouches for clients (PEM): each must show a certificate then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_client_ca: Option<PathBuf>,
    /// Whether an address that other machines reach may be without TLS: behind a proxy that
    /// speaks TLS.
    pub insecure_plaintext: bool,
    /// Requests per second of one caller; 0 for no limit. Without it there is none on loopback
    /// addresses, and 1000 elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<u32>,
    /// The largest payload or result in bytes of its JSON text.
    pub max_payload_bytes: usize,
}

impl Default for Api {
    fn default() -> Self {
        Self {
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            access: AccessMode::Open,
            tls_cert: None,
            tls_key: None,
            tls_client_ca: None,
            insecure_plaintext: false,
            rate_limit: None,
            max_payload_bytes: 1024 * 1024,
        }
    }
}

/// The pool of workers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Workers {
    /// How many worker processes, if their number is fixed.
    pub replicas: u16,
    /// The fewest, if their number goes by what there is to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<u16>,
    /// The most, if their number goes by what there is to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<u16>,
    /// There are so many workers that what waits is done within this time.
    pub drain_within: Duration,
    /// The pool shrinks to what was enough for so long.
    pub shrink_after: Duration,
    /// What they can do.
    pub capabilities: Vec<Capability>,
    /// The program that does it, and its arguments: payload on standard input, result on
    /// standard output, exit code 0 for success. Without one, the built-in `sha256` is all
    /// there is.
    pub exec: Vec<String>,
    /// Tasks that one worker works on at once.
    pub concurrency: u32,
    /// How long a lease lasts unless the worker extends it.
    pub lease: Duration,
}

impl Default for Workers {
    fn default() -> Self {
        Self {
            replicas: 3,
            min: None,
            max: None,
            drain_within: Duration::from_secs(30),
            shrink_after: Duration::from_secs(60),
            capabilities: Capability::new("sha256").into_iter().collect(),
            exec: Vec::new(),
            concurrency: 4,
            lease: Duration::from_secs(10),
        }
    }
}

impl Workers {
    /// The fewest and the most worker processes; the same when their number is fixed.
    #[must_use]
    pub fn bounds(&self) -> (u16, u16) {
        let min = self.min.unwrap_or(self.replicas);
        (min, self.max.unwrap_or(self.replicas).max(min))
    }
}

/// Which database holds the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoreKind {
    /// A SQLite file in the state folder.
    Sqlite,
    /// PostgreSQL instances that the deployment runs, supervises and recovers.
    Postgres,
    /// A PostgreSQL that somebody else runs, at `store.url`.
    External,
}

/// Where the durable state lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Store {
    /// Which database.
    pub kind: StoreKind,
    /// `postgresql://user@host1:5432,host2:5432/database`, for an external PostgreSQL. The
    /// writable one of several hosts is followed. Also the environment variable `DATABASE_URL`,
    /// which is the better place for a password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Connections that each process may hold. Also `DATABASE_MAX_POOL_SIZE`.
    pub max_pool_size: u32,
}

impl Default for Store {
    fn default() -> Self {
        Self { kind: StoreKind::Sqlite, url: None, max_pool_size: 8 }
    }
}

/// PostgreSQL instances that the deployment runs itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Postgres {
    /// How many standbys beside the primary.
    pub standbys: u16,
    /// Whether a commit waits until a standby has it on disk. With `true`, no acknowledged
    /// write is lost when the primary is; with `false`, what the standby has not received is.
    pub synchronous: bool,
    /// The folder of `postgres`, `initdb` and the others; found by itself if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bin_dir: Option<PathBuf>,
    /// How long a primary may accept writes without word from the controller. When it ends, the
    /// kernel kills the instance, so that this is also the time until a primary that cannot be
    /// reached may be replaced.
    pub lease: Duration,
    /// How long commits may wait for a synchronous standby that is gone, or gets no further, before
    /// the primary goes on alone. Until redundancy is back no failover without loss is possible.
    pub degrade_after: Duration,
    /// Which instance is to be the primary when all is well: `resurgam failback` hands over to it.
    pub preferred: ComponentName,
    /// What is done when its connections run out.
    pub connections: Connections,
    /// `shared_buffers` and other settings, as in `postgresql.conf`. Settings on which
    /// replication and fencing rest are refused.
    pub settings: BTreeMap<String, String>,
}

impl Postgres {
    /// The names of the instances.
    pub fn instances(&self) -> impl Iterator<Item = ComponentName> {
        (0..=self.standbys).map(ComponentName::instance)
    }
}

impl Default for Postgres {
    fn default() -> Self {
        Self {
            standbys: 1,
            synchronous: true,
            bin_dir: None,
            lease: Duration::from_secs(3),
            degrade_after: Duration::from_secs(5),
            preferred: ComponentName::instance(0),
            connections: Connections::default(),
            settings: BTreeMap::new(),
        }
    }
}

/// How failures are noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Detection {
    /// Each component is probed so often.
    pub interval: Duration,
    /// A probe that takes longer has failed.
    pub timeout: Duration,
    /// So many failures in a row make a component suspect.
    pub failures: u32,
    /// So many successes in a row end the suspicion.
    pub successes: u32,
}

impl Default for Detection {
    fn default() -> Self {
        Self {
            interval: Duration::from_millis(250),
            timeout: Duration::from_secs(1),
            failures: 3,
            successes: 2,
        }
    }
}

/// How much room there must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Disk {
    /// So many megabytes are to be free where the state folder is; with fewer, incident `disk-filling` is
    /// opened. 0 does not look.
    pub min_free_mb: u64,
}

impl Default for Disk {
    fn default() -> Self {
        Self { min_free_mb: 1000 }
    }
}

/// Alerts of others, such as Prometheus' Alertmanager, that open incidents.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Alerts {
    /// The file with the token that they show, in its first line; without one none are taken.
    /// Relative paths start at the plan file's folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
}

/// When a recovery asks people before it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Approval {
    /// Before which steps. A step that could lose more than the objective allows asks always.
    pub ask: Ask,
    /// How many different people must say yes.
    pub required: u32,
}

impl Default for Approval {
    fn default() -> Self {
        Self { ask: Ask::Never, required: 1 }
    }
}

/// Before which steps of a recovery people are asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ask {
    /// Before none: recoveries run by themselves.
    #[default]
    Never,
    /// Before those that take something away that may still be needed.
    Dangerous,
    /// Before all that do more than look.
    Always,
}

/// A text is none of the words of [`Ask`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not known; there are never, dangerous and always")]
pub struct UnknownAsk(String);

impl std::str::FromStr for Ask {
    type Err = UnknownAsk;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "never" => Ok(Self::Never),
            "dangerous" => Ok(Self::Dangerous),
            "always" => Ok(Self::Always),
            other => Err(UnknownAsk(other.chars().take(60).collect())),
        }
    }
}

/// Who is called.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Contacts {
    /// The engineer on call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_call: Option<String>,
    /// The database team.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// The infrastructure team.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub infrastructure: Option<String>,
}
