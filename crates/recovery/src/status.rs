//! What the controller tells about its deployment.

use std::net::SocketAddr;

use resurgam_deployment::Component;
use resurgam_deployment::postgres::contain::Strength;
use resurgam_deployment::postgres::wire::Observed;
use resurgam_model::ComponentName;
use resurgam_model::database::Epoch;
use resurgam_model::report::StepReport;
use serde::{Deserialize, Serialize};

use crate::journal::Incident;

/// Everything at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The name of the deployment.
    pub deployment: String,
    /// What kind of deployment, and on what store: `local/sqlite`.
    pub kind: String,
    /// Every component serves and no incident is open.
    pub ready: bool,
    /// Where the API is.
    pub api: String,
    /// The components.
    pub components: Vec<Health>,
    /// The pool of workers, if its number goes by what there is to do.
    #[serde(default)]
    pub pool: Option<Pool>,
    /// The owned PostgreSQL, if there is one.
    pub postgres: Option<Postgres>,
    /// The open incidents.
    pub incidents: Vec<Incident>,
}

/// A component and whether it answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// As the deployment sees it.
    #[serde(flatten)]
    pub component: Component,
    /// Whether it answers; none for those that are not asked.
    pub answers: Option<bool>,
    /// Why it does not.
    pub why: Option<String>,
}

/// A pool of workers whose number goes by what there is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// How many there are.
    pub size: u16,
    /// How many there are to be.
    pub wish: u16,
    /// Never fewer.
    pub min: u16,
    /// Never more.
    pub max: u16,
    /// How many the tasks need, without bounds and patience.
    pub required: u64,
    /// Why so many, for people.
    pub reason: String,
}

/// An owned PostgreSQL.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Postgres {
    /// Where clients connect, whoever reigns.
    pub service: SocketAddr,
    /// The current reign.
    pub epoch: Epoch,
    /// Who has it.
    pub primary: Option<ComponentName>,
    /// Commits wait for this one.
    pub synchronous: Option<ComponentName>,
    /// This one has every acknowledged write: a failover would lose nothing.
    pub complete: Option<ComponentName>,
    /// The instances.
    pub instances: Vec<Instance>,
}

/// One instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    /// Its name.
    pub name: ComponentName,
    /// Where it listens.
    pub address: SocketAddr,
    /// How it is, as its keeper said last.
    pub observed: Option<Observed>,
    /// How long ago that was, in milliseconds.
    pub heard_ms: Option<u64>,
    /// What its keeper's death would take with it.
    pub fence: Option<Strength>,
    /// How many bytes of log it is behind the primary; none when that is not known.
    pub lag_bytes: Option<u64>,
}

/// An incident with all that belongs to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IncidentDetail {
    /// The incident.
    #[serde(flatten)]
    pub incident: Incident,
    /// Its steps.
    pub steps: Vec<StepReport>,
    /// What was kept before anything was changed.
    pub evidence: Vec<String>,
}
