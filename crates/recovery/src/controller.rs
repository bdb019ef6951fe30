//! The recovery controller of a deployment: sees, decides, recovers.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use resurgam_client::Client;
use resurgam_deployment::Deployment;
use resurgam_deployment::postgres::Secrets;
use resurgam_model::bus::{BusKind, BusStatus};
use resurgam_model::plan::Plan;
use resurgam_model::{ComponentName, IncidentId, Scenario, Timestamp};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::Result;
use crate::brokers;
use crate::connections::{self, Line};
use crate::disk;
use crate::exposure::Measurements;
use crate::finding::Watched;
use crate::health::{self, Board};
use crate::journal::{Incident, IncidentState, Journal, NewIncident};
use crate::notify;
use crate::postgres::{self, Authority, Beat};
use crate::restorer::{SharedRestorer, VaultStanding};
use crate::runbook::{Terms, execute, faults::Fault};
use crate::scaling;
use crate::status::Pool;
use crate::stuck;
use crate::upkeep::Upkeep;

/// How often to look when nothing rings.
const LOOK: Duration = Duration::from_millis(100);
/// After a recovery that did not succeed, the next one for the same cause waits so long; after
/// further ones longer, up to [`LONGEST_PAUSE`].
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(30);
/// So long at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// What a controller is made of.
pub struct Parts {
    /// The name of the deployment.
    pub name: ComponentName,
    /// The plan in force.
    pub plan: Plan,
    /// The folder where relative paths of the plan start.
    pub base: PathBuf,
    /// The journal.
    pub journal: Journal,
    /// Where it all runs.
    pub deployment: Arc<dyn Deployment>,
    /// Rings when a process started or ended.
    pub process_news: watch::Receiver<u64>,
    /// The API.
    pub api: Client,
    /// The roles to be probed.
    pub roles: Vec<(ComponentName, Client)>,
    /// The owned PostgreSQL, if there is one: who reigns, the passwords, where clients connect.
    pub postgres: Option<(Arc<Authority>, Secrets, SocketAddr)>,
    /// What brings data back that nobody has any more.
    pub restorer: Option<SharedRestorer>,
    /// What the vaults have, as somebody looks now and then.
    pub vaults: watch::Receiver<Vec<VaultStanding>>,
    /// Where everything that lasts is kept.
    pub state_dir: PathBuf,
    /// A fault in the recovery itself, for tests.
    pub fault: Option<Fault>,
    /// The run before did not end in order.
    pub after_crash: bool,
    /// How a guard has found the controller before this one, if it has started this one.
    pub lost: Option<String>,
}

/// The controller.
pub struct Controller {
    pub(crate) parts: Parts,
    pub(crate) beat: watch::Sender<Beat>,
    pub(crate) board: watch::Sender<Board>,
    /// Recoveries that run in this life.
    running: Mutex<BTreeSet<IncidentId>>,
    /// What was seen last of the pool of workers.
    pub(crate) pool: watch::Sender<Option<Pool>>,
    /// What the API said last of the buses.
    pub(crate) buses: watch::Sender<Option<BusStatus>>,
    /// The size of the pool of workers that a person has ordered.
    pub(crate) ordered_size: watch::Sender<Option<u16>>,
    /// Starts components again on purpose.
    pub(crate) upkeep: Arc<Upkeep>,
    /// The line to the owned PostgreSQL for when nobody else gets one.
    pub(crate) line: Option<Arc<Line>>,
    /// What was seen last of its connections.
    pub(crate) connections: watch::Sender<Option<connections::Seen>>,
    /// How those stand over whom people are told.
    pub(crate) channels: notify::Standings,
    /// Who was seen last with tasks that hang.
    pub(crate) stuck: watch::Sender<Vec<stuck::Holder>>,
    /// What was seen last of the disk.
    pub(crate) disk: watch::Sender<Option<disk::Space>>,
    /// The deployment has been seen to be up as a whole.
    pub(crate) settled: watch::Sender<bool>,
    /// How long recoveries took in drills.
    pub(crate) measurements: Measurements,
}

impl Controller {
    /// A controller that does nothing yet.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let (beat, _) = watch::channel(Beat::default());
        let (board, _) = watch::channel(Board::new());
        let (settled, _) = watch::channel(false);
        let (pool, _) = watch::channel(None);
        let (ordered_size, _) = watch::channel(None);
        let (buses, _) = watch::channel(None);
        let (connections, _) = watch::channel(None);
        let (disk, _) = watch::channel(None);
        let (stuck, _) = watch::channel(Vec::new());
        let (deployment, detection) = (Arc::clone(&parts.deployment), parts.plan.detection);
        let upkeep = Arc::new(Upkeep::new(deployment, board.clone(), detection));
        let line = parts
            .postgres
            .as_ref()
            .map(|(authority, secrets, _)| Line::new(Arc::clone(authority), secrets.clone()));
        Self {
            measurements: Measurements::new(&parts.state_dir),
            parts,
            beat,
            board,
            running: Mutex::default(),
            pool,
            buses,
            ordered_size,
            upkeep,
            line: line.map(Arc::new),
            connections,
            channels: notify::Standings::default(),
            disk,
            stuck,
            settled,
        }
    }

    /// The journal.
    #[must_use]
    pub fn journal(&self) -> &Journal {
        &self.parts.journal
    }

    /// Who reigns over the owned PostgreSQL.
    #[must_use]
    pub fn authority(&self) -> Option<&Arc<Authority>> {
        self.parts.postgres.as_ref().map(|(authority, _, _)| authority)
    }

    /// What the API said last of the buses.
    pub(crate) fn buses(&self) -> Option<BusStatus> {
        self.buses.borrow().clone()
    }

    /// Works until it is dropped.
    ///
    /// # Errors
    /// When the journal fails: what cannot be recorded is not done.
    pub async fn run(self: Arc<Self>) -> Result<()> {
        let mut parts = JoinSet::new();
        if let Some((authority, secrets, _)) = &self.parts.postgres {
            let detection = self.parts.plan.detection;
            let probe = postgres::probe(
                Arc::clone(authority),
                secrets.clone(),
                detection,
                self.beat.clone(),
            );
            parts.spawn(async move {
                probe.await;
                Ok(())
            });
            let plan = &self.parts.plan.postgres;
            let (synchronous, patience) =
                (plan.synchronous && plan.standbys > 0, plan.degrade_after.0);
            parts.spawn(postgres::care(Arc::clone(authority), synchronous, patience));
        }
        if let Some(line) = &self.line {
            let watching = connections::watch(
                Arc::clone(line),
                self.parts.plan.postgres.connections.clone(),
                self.parts.plan.detection,
                self.connections.clone(),
            );
            parts.spawn(async move {
                watching.await;
                Ok(())
            });
        }
        let watching = stuck::watch(self.parts.api.clone(), self.stuck.clone());
        parts.spawn(async move {
            watching.await;
            Ok(())
        });
        let min_free_mb = self.parts.plan.disk.min_free_mb;
        if min_free_mb > 0 {
            let watching =
                disk::watch(self.parts.state_dir.clone(), min_free_mb, self.disk.clone());
            parts.spawn(async move {
                watching.await;
                Ok(())
            });
        }
        let watching = health::watch_all(
            self.parts.roles.clone(),
            self.parts.plan.detection,
            self.board.clone(),
        );
        parts.spawn(async move {
            watching.await;
            Ok(())
        });
        parts.spawn(scaling::run(
            Arc::clone(&self.parts.deployment),
            self.parts.api.clone(),
            self.parts.plan.workers.clone(),
            self.ordered_size.subscribe(),
            self.pool.clone(),
        ));
        if self.parts.plan.bus.order.iter().any(|kind| *kind != BusKind::Embedded) {
            let watching = brokers::watch(self.parts.api.clone(), self.buses.clone());
            parts.spawn(async move {
                watching.await;
                Ok(())
            });
        }
        parts.spawn(notify::run(
            self.parts.journal.clone(),
            self.parts.plan.clone(),
            self.parts.base.clone(),
            self.channels.clone(),
        ));
        parts.spawn(Arc::clone(&self).watch_severity());
        parts.spawn(Arc::clone(&self).watch());
        while let Some(ended) = parts.join_next().await {
            match ended {
                Ok(result) => result?,
                Err(error) => {
                    return Err(crate::Error::Timeout(format!("the controller broke: {error}")));
                }
            }
        }
        Ok(())
    }

    /// Looks, opens incidents, starts recoveries.
    async fn watch(self: Arc<Self>) -> Result<()> {
        let mut recoveries = JoinSet::new();
        let mut processes = self.parts.process_news.clone();
        let mut board = self.board.subscribe();
        let mut beat = self.beat.subscribe();
        let mut news = self.authority().map(|authority| authority.news());
        let mut watched = Watched::default();
        if self.parts.after_crash {
            let (scenario, cause) = match &self.parts.lost {
                Some(how) => (Scenario::Controller, format!("the controller was lost: {how}")),
                None => (Scenario::FullStop, "the run before did not end in order".to_owned()),
            };
            let new = NewIncident {
                scenario,
                component: self.parts.name.clone(),
                cause,
                first_sign: Timestamp::now(),
            };
            self.parts.journal.open_incident(&new, Timestamp::now())?;
        }
        loop {
            let components = self.parts.deployment.components().await?;
            let settled = self.settle(&components, &mut watched);
            self.route().await?;
            for new in self.find(&components, settled, &mut watched)? {
                self.raise(&new)?;
            }
            self.take_orders(&components, &mut recoveries).await?;
            for incident in self.parts.journal.open_incidents()? {
                self.recover(incident, &mut recoveries);
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                _ = processes.changed() => {}
                _ = board.changed() => {}
                _ = beat.changed() => {}
                () = changed(&mut news) => {}
                Some(ended) = recoveries.join_next() => {
                    if let Ok(Err(error)) = ended {
                        return Err(error);
                    }
                }
            }
        }
    }

    fn is_running(&self, id: IncidentId) -> bool {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).contains(&id)
    }

    /// Runs the runbook of an incident, unless it runs already.
    fn recover(self: &Arc<Self>, incident: Incident, recoveries: &mut JoinSet<Result<()>>) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if !running.insert(incident.id) {
            return;
        }
        drop(running);
        let controller = Arc::clone(self);
        recoveries.spawn(async move {
            let steps = controller.runbook(incident.scenario);
            let journal = &controller.parts.journal;
            let mut approval = controller.parts.plan.approval(incident.scenario);
            approval.ask = incident.ask.unwrap_or(approval.ask);
            let terms = Terms { approval, fault: controller.parts.fault.clone() };
            let ended = match steps {
                Some(steps) => execute(journal, &incident, &steps, &terms).await,
                None => {
                    // An incident of another plan: this deployment has no such component.
                    journal.close_incident(
                        incident.id,
                        IncidentState::FalseAlarm,
                        Timestamp::now(),
                    )?;
                    return Ok(());
                }
            };
            let mut running = controller.running.lock().unwrap_or_else(PoisonError::into_inner);
            running.remove(&incident.id);
            drop(running);
            let ended = ended?;
            if incident.scenario == Scenario::Failback && !controller.parts.plan.postgres.synchronous
                && let Some(authority) = controller.authority()
            {
                // Commits were made to wait for the successor. Broken off, they would wait on.
                authority.change(|state| {
                    if state.primary.is_some() {
                        (state.synchronous, state.complete) = (None, None);
                    }
                })?;
            }
            match ended.state {
                IncidentState::Recovered
                | IncidentState::FalseAlarm
                | IncidentState::Resolved
                | IncidentState::Open => {
                    tracing::info!(incident = %incident.id, state = ?ended.state, detail = ended.detail, "incident closed");
                }
                IncidentState::Failed | IncidentState::Refused => {
                    tracing::error!(incident = %incident.id, state = ?ended.state, detail = ended.detail, "incident needs a person");
                }
            }
            Ok(())
        });
    }

    /// Opens an incident for what was found, or begins the recovery of the last one for the same
    /// cause anew, if that did not succeed and its time has come.
    pub(crate) fn raise(&self, new: &NewIncident) -> Result<()> {
        let journal = &self.parts.journal;
        let last = journal.last_incident(new.scenario, &new.component)?;
        let unsuccessful = last
            .filter(|last| matches!(last.state, IncidentState::Failed | IncidentState::Refused));
        if let Some(last) = unsuccessful {
            let closed = last.closed_at.unwrap_or_default();
            let age = Timestamp::now().duration_since(closed);
            let pause = PAUSE_AFTER_FAILURE.saturating_mul(1 << last.round.min(10));
            if Duration::try_from(age).is_ok_and(|age| age < pause.min(LONGEST_PAUSE)) {
                return Ok(());
            }
            if journal.reopen_incident(last.id, Some(new), Timestamp::now())? {
                tracing::warn!(incident = %last.id, scenario = %new.scenario, cause = new.cause, "the recovery is begun anew");
            }
            return Ok(());
        }
        let incident = journal.open_incident(new, Timestamp::now())?;
        if !self.is_running(incident.id) {
            if let Some(text) = self.considered(new) {
                journal.add_evidence(incident.id, &text, Timestamp::now())?;
            }
            tracing::warn!(incident = %incident.id, scenario = %new.scenario, cause = new.cause, "incident");
        }
        Ok(())
    }

    /// Another scenario of the database than this has an incident: two recoveries of one database
    /// would get into each other's way. The loss of the primary gives way only to one that acts: while
    /// that waits for people, the database must not.
    pub(crate) fn database_is_recovering(&self, scenario: Scenario) -> Result<bool> {
        if !is_of_database(scenario) {
            return Ok(false);
        }
        for other in self.parts.journal.open_incidents()? {
            if other.scenario == scenario || !is_of_database(other.scenario) {
                continue;
            }
            let yields = scenario == Scenario::PostgresPrimary
                && !postgres::has_begun(&self.parts.journal.steps(other.id)?);
            if !yields {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The service of the database leads to whoever reigns, except while a recovery is about to
    /// change that.
    async fn route(&self) -> Result<()> {
        let Some((authority, _, _)) = &self.parts.postgres else { return Ok(()) };
        let mut recovering = false;
        for incident in self.parts.journal.open_incidents()? {
            // A route ends with the process: one that a controller before this one has set is
            // set again.
            if is_of_database(incident.scenario) {
                let steps = self.parts.journal.steps(incident.id)?;
                // One that waits for people before it acts has changed nothing yet.
                recovering |= postgres::has_begun(&steps) && !postgres::is_rerouted(&steps);
            }
        }
        let view = authority.view();
        if !recovering
            && view.state.created
            && let Some(name) = view.reigning()
            && let Some(address) = authority.members().get(name)
        {
            self.parts.deployment.route(postgres::SERVICE, Some(*address)).await?;
        }
        Ok(())
    }
}

/// The scenario is about the owned PostgreSQL as a whole.
pub(crate) fn is_of_database(scenario: Scenario) -> bool {
    matches!(
        scenario,
        Scenario::PostgresPrimary
            | Scenario::PostgresRestore
            | Scenario::DatabaseCorruption
            | Scenario::Failback
    )
}

async fn changed(news: &mut Option<watch::Receiver<u64>>) {
    match news {
        Some(news) => {
            if news.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
        None => std::future::pending().await,
    }
}
