//! What the controller tells about its deployment.

use std::net::SocketAddr;
use std::time::Instant;

use resurgam_deployment::postgres::contain::Strength;
use resurgam_deployment::postgres::wire::{Observed, ServerState};
use resurgam_deployment::{Component, RunState};
use resurgam_model::bus::BusStatus;
use resurgam_model::database::Epoch;
use resurgam_model::plan::StoreKind;
use resurgam_model::report::StepReport;
use resurgam_model::{ComponentName, Timestamp};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::connections::Seen as Connections;
use crate::controller::Controller;
use crate::disk::Space;
use crate::exposure::{Exposure, Facts, Failover, exposure};
use crate::health::Readiness;
use crate::journal::Incident;
use crate::notify::ChannelStanding;
use crate::postgres::Authority;
use crate::restorer::{LogStanding, VaultStanding};

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
    /// How the buses are, as the API said last; none while it says nothing.
    #[serde(default)]
    pub bus: Option<BusStatus>,
    /// How the log of the owned PostgreSQL stands in each vault to which it goes.
    #[serde(default)]
    pub log: Vec<LogStanding>,
    /// What each vault has, as it was seen last.
    #[serde(default)]
    pub vaults: Vec<VaultStanding>,
    /// What each scenario would cost if it struck now, the worst first.
    #[serde(default)]
    pub exposure: Vec<Exposure>,
    /// The disk with the state folder, if it is looked at.
    #[serde(default)]
    pub disk: Option<Space>,
    /// How the channels stand over which people are told.
    #[serde(default)]
    pub notify: Vec<ChannelStanding>,
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
    /// Who has it when all is well.
    #[serde(default)]
    pub preferred: Option<ComponentName>,
    /// Commits wait for this one.
    pub synchronous: Option<ComponentName>,
    /// This one has every acknowledged write: a failover would lose nothing.
    pub complete: Option<ComponentName>,
    /// Its connections; none when nothing is known of them.
    #[serde(default)]
    pub connections: Option<Connections>,
    /// The instances.
    pub instances: Vec<Instance>,
}

impl Postgres {
    /// Who ought to reign, if somebody else does.
    #[must_use]
    pub fn away_from(&self) -> Option<&ComponentName> {
        let primary = self.primary.as_ref()?;
        self.preferred.as_ref().filter(|preferred| *preferred != primary)
    }
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

impl Controller {
    /// Everything at this moment.
    ///
    /// # Errors
    /// When the journal or the deployment fails.
    pub async fn status(&self) -> Result<Status> {
        let components = self.parts.deployment.components().await?;
        let board = self.board.borrow().clone();
        let detection = &self.parts.plan.detection;
        let components: Vec<_> = components
            .into_iter()
            .map(|component| {
                let health = board.get(&component.name);
                Health {
                    answers: health.map(|h| h.met && !h.is_suspect(detection)),
                    why: health.and_then(|h| h.why.clone()),
                    component,
                }
            })
            .collect();
        let incidents = self.parts.journal.open_incidents()?;
        let up = components.iter().all(|health| {
            match health.component.state {
                RunState::Running => health.answers != Some(false),
                // Of its own accord it is about to be gone.
                state => state == RunState::Draining,
            }
        });
        let redundant = self.authority().is_none_or(|authority| self.redundant(authority));
        let kind = match self.parts.plan.store.kind {
            StoreKind::Sqlite => "sqlite",
            StoreKind::Postgres => "postgres",
            StoreKind::External => "external",
        };
        let log = self.parts.restorer.as_ref().map(|vaults| vaults.log()).unwrap_or_default();
        let vaults = self.parts.vaults.borrow().clone();
        let settled = *self.settled.borrow();
        let works = settled && up && Readiness::new(self.parts.api.clone()).is_ready().await;
        Ok(Status {
            deployment: self.parts.plan.deployment.name.clone(),
            kind: format!("{}/{kind}", self.parts.deployment.kind()),
            ready: works && redundant && incidents.is_empty(),
            api: self.parts.api.base_url().trim_end_matches('/').to_owned(),
            components,
            pool: self.pool.borrow().clone(),
            postgres: self.parts.postgres.as_ref().map(|(a, _, service)| Postgres {
                connections: self.connections.borrow().clone(),
                preferred: Some(self.parts.plan.postgres.preferred.clone()),
                ..postgres_status(a, *service)
            }),
            bus: self.buses(),
            notify: self.channels.now(),
            disk: *self.disk.borrow(),
            exposure: self.exposure(&log, &vaults),
            log,
            vaults,
            incidents,
        })
    }

    fn exposure(&self, log: &[LogStanding], vaults: &[VaultStanding]) -> Vec<Exposure> {
        let failover =
            self.authority().map(|authority| Failover::now(&authority.view(), Instant::now()));
        let plan = &self.parts.plan;
        self.measurements.with(|drills| {
            exposure(&Facts { plan, failover, log, vaults, drills, now: Timestamp::now() })
        })
    }

    /// The standbys stream, and with a synchronous plan one of them has everything.
    fn redundant(&self, authority: &Authority) -> bool {
        let view = authority.view();
        let Some(ServerState::Primary(primary)) = view.reigning().and_then(|n| view.server(n))
        else {
            return false;
        };
        let streaming = primary.standbys.iter().filter(|standby| standby.streaming).count();
        let all = streaming + 1 >= authority.members().len();
        let alone = authority.members().len() == 1;
        all && (alone || !self.parts.plan.postgres.synchronous || view.state.complete.is_some())
    }
}

fn postgres_status(authority: &Authority, service: SocketAddr) -> Postgres {
    let view = authority.view();
    let flushed = view.reigning().and_then(|name| match view.server(name) {
        Some(ServerState::Primary(state)) => Some(state.flushed),
        _ => None,
    });
    let instances = authority
        .members()
        .iter()
        .map(|(name, address)| {
            let seen = view.seen.get(name);
            let received = match seen.map(|seen| &seen.renewal.observed.state) {
                Some(ServerState::Standby(state)) => Some(state.received),
                _ => None,
            };
            Instance {
                name: name.clone(),
                address: *address,
                observed: seen.map(|seen| seen.renewal.observed.clone()),
                heard_ms: seen
                    .map(|seen| u64::try_from(seen.at.elapsed().as_millis()).unwrap_or(u64::MAX)),
                fence: seen.map(|seen| seen.renewal.fence),
                lag_bytes: flushed.zip(received).map(|(f, r)| f.bytes_ahead_of(r)),
            }
        })
        .collect();
    Postgres {
        service,
        epoch: view.state.epoch,
        primary: view.state.primary,
        preferred: None,
        synchronous: view.state.synchronous,
        complete: view.state.complete,
        connections: None,
        instances,
    }
}
