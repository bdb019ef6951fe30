//! One drill from fault to verdict.

use std::time::{Duration, Instant};

use resurgam_deployment::ComponentKind;
use resurgam_deployment::postgres::Programs;
use resurgam_model::bus::BusKind;
use resurgam_model::report::{DrillReport, DrillResult, Measured, StepReport, StepStatus};
use resurgam_model::{AgentId, ComponentName, Scenario, TaskId, Timestamp};

use super::FaultKind;
use super::fault::{Frozen, Process, strike, working_in};
use super::fence::Witness;
use super::load::Load;
use super::subject::Subject;
use crate::brokers::{bus_of, kind_of, lacks};
use crate::journal::{Incident, IncidentState};
use crate::status::{IncidentDetail, Status};
use crate::{Error, Result};

/// So much is acknowledged before the fault, so that there is something to lose.
const WARM_UP: u64 = 60;
/// How long the load may take to warm up, or to settle.
const LOAD_PATIENCE: Duration = Duration::from_secs(60);
/// The same after a restore, where what was acknowledged after the backup never comes.
const SETTLING: Duration = Duration::from_secs(15);
/// How long until an incident must be open.
pub(super) const DETECTION: Duration = Duration::from_secs(30);
/// How long a recovery may take before the drill gives up on it.
pub(super) const RECOVERY: Duration = Duration::from_secs(300);
/// How long a worker is given to take a task before it is killed without one.
const TAKING: Duration = Duration::from_secs(2);
/// How long brokers may take to be there, and their clusters to be whole.
const BROKERS: Duration = Duration::from_secs(240);
/// How often to look.
const LOOK: Duration = Duration::from_millis(20);

/// Tells people how far it is.
pub type Progress<'a> = &'a (dyn Fn(&str) + Sync);

/// A drill against a deployment under load.
pub struct Drill<'a> {
    /// The deployment.
    pub subject: &'a mut Subject,
    /// The load on it.
    pub load: &'a Load,
    /// Hears how far it is.
    pub progress: Progress<'a>,
}

/// What a scenario's own part found.
#[derive(Default)]
pub(super) struct Struck {
    pub(super) at: Timestamp,
    /// When everything was back, as the drill itself saw.
    pub(super) back: Option<Timestamp>,
    /// What the drill itself has done, where nobody is left to do it.
    pub(super) steps: Vec<StepReport>,
    pub(super) incident: Option<IncidentDetail>,
    pub(super) split_brain: bool,
    pub(super) fence: Vec<String>,
}

impl Drill<'_> {
    /// Makes the fault, waits for the recovery, and balances the books.
    ///
    /// # Errors
    /// When the drill itself cannot be carried out. A recovery that fails is no error: it is in
    /// the report.
    pub async fn run(&mut self, scenario: Scenario, kind: FaultKind) -> Result<DrillReport> {
        if !kind.fits(scenario) {
            return Err(Error::Drill(format!(
                "{scenario} cannot be drilled by a {}",
                kind.as_str()
            )));
        }
        self.say("waiting until everything is up");
        let status = self.subject.ready().await?;
        let from = Timestamp::now();
        if bus_of(scenario).is_some() {
            self.say("waiting until every broker is there");
            self.every_broker(&status).await?;
        }
        self.warm_up(from).await?;
        let struck = match scenario {
            Scenario::PostgresPrimary => self.postgres_primary(&status, kind).await?,
            Scenario::PostgresRestore => self.postgres_restore(&status).await?,
            Scenario::DatabaseCorruption => self.database_corruption(&status).await?,
            Scenario::PostgresStandby => self.postgres_standby(&status, kind).await?,
            Scenario::Failback => self.failback(&status).await?,
            Scenario::PoolExhaustion => self.pool_exhaustion(&status).await?,
            Scenario::FullStop => self.full_stop(&status).await?,
            Scenario::Controller => self.controller(kind).await?,
            Scenario::DiskFilling => self.disk_filling().await?,
            Scenario::StuckTasks => self.stuck_tasks().await?,
            Scenario::FullCluster => self.full_cluster().await?,
            Scenario::WorkerPool => self.one_of(&status, scenario, ComponentKind::Worker).await?,
            Scenario::AgentRegistry => {
                self.one_of(&status, scenario, ComponentKind::Registry).await?
            }
            Scenario::Api => self.one_of(&status, scenario, ComponentKind::Api).await?,
            Scenario::KafkaBroker | Scenario::KafkaCluster | Scenario::RabbitMq => {
                self.brokers(&status, scenario, kind).await?
            }
        };
        self.say("balancing the books");
        self.report(scenario, kind, &status.kind, from, struck).await
    }

    pub(super) fn say(&self, text: &str) {
        (self.progress)(text);
    }

    async fn warm_up(&self, from: Timestamp) -> Result<()> {
        let deadline = Instant::now() + LOAD_PATIENCE;
        while self.load.ledger().balance(from).acknowledged < WARM_UP {
            if Instant::now() > deadline {
                return Err(Error::Timeout(
                    "the load was not acknowledged; see the logs of the api".to_owned(),
                ));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Kills one process of a kind.
    async fn one_of(
        &self,
        status: &Status,
        scenario: Scenario,
        kind: ComponentKind,
    ) -> Result<Struck> {
        let victims: Vec<_> =
            status.components.iter().filter(|health| health.component.kind == kind).collect();
        let victim = victims.first().map(|health| health.component.clone());
        let victim =
            victim.ok_or_else(|| Error::Drill(format!("the plan has nothing for {scenario}")))?;
        let process = victim.pid.and_then(Process::find);
        let process =
            process.ok_or_else(|| Error::Drill(format!("{} does not run", victim.name)))?;
        self.say(&format!("killing {}", victim.name));
        let _frozen = Frozen(vec![process]);
        if kind == ComponentKind::Worker {
            self.let_it_take_tasks(&victim.name, process).await?;
        }
        let since = Timestamp::now();
        strike(&[process], FaultKind::Kill).await?;
        let at = Timestamp::now();
        let incident = self.recovery(scenario, since).await?;
        Ok(Struck { at, incident, ..Struck::default() })
    }

    /// Kills or freezes one broker of Kafka, all of them, or RabbitMQ.
    async fn brokers(
        &self,
        status: &Status,
        scenario: Scenario,
        fault: FaultKind,
    ) -> Result<Struck> {
        let kind = bus_of(scenario).and_then(kind_of);
        let own: Vec<_> = status
            .components
            .iter()
            .map(|health| &health.component)
            .filter(|component| Some(component.kind) == kind)
            .collect();
        let count = if scenario == Scenario::KafkaBroker { 1 } else { own.len() };
        let victims: Vec<_> = own
            .iter()
            .take(count)
            .filter_map(|component| component.pid.and_then(Process::find))
            .collect();
        if victims.is_empty() || victims.len() < count {
            return Err(Error::Drill(format!("the brokers that {scenario} is about do not run")));
        }
        let names: Vec<_> = own.iter().take(count).map(|c| c.name.to_string()).collect();
        self.say(&format!("{} {}", fault.as_str(), names.join(", ")));
        let _frozen = Frozen::by(fault, &victims);
        let since = Timestamp::now();
        strike(&victims, fault).await?;
        let at = Timestamp::now();
        let incident = self.recovery(scenario, since).await?;
        Ok(Struck { at, incident, ..Struck::default() })
    }

    /// Waits until every bus of the plan lacks nothing, and messages take the first.
    async fn every_broker(&self, status: &Status) -> Result<()> {
        let deadline = Instant::now() + BROKERS;
        let order = &self.subject.plan().bus.order;
        loop {
            let client = self.subject.api().borrow().clone();
            let state = client.bus().await.ok().and_then(|status| status.state);
            let missing = match &state {
                None => vec!["nothing is known of the buses".to_owned()],
                Some(state) => {
                    let mut missing: Vec<_> = state
                        .buses
                        .iter()
                        .filter(|health| health.bus != BusKind::Embedded)
                        .filter_map(|health| {
                            let kind = kind_of(health.bus);
                            let own = status.components.iter();
                            let own = own.filter(|c| Some(c.component.kind) == kind).count();
                            lacks(health, own)
                        })
                        .collect();
                    if state.active != order.first().copied() {
                        missing.push("messages do not take the first bus of the plan".to_owned());
                    }
                    missing
                }
            };
            if missing.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Error::Timeout(missing.join("; ")));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The tasks are so short that a worker is seldom caught with one. One that is stopped is
    /// handed what its open claim gets, and keeps it.
    async fn let_it_take_tasks(&self, name: &ComponentName, process: Process) -> Result<()> {
        strike(&[process], FaultKind::Freeze).await?;
        let client = self.subject.api().borrow().clone();
        let deadline = Instant::now() + TAKING;
        while Instant::now() < deadline {
            let agent = match AgentId::new(name.as_str()) {
                Ok(id) => client.agent(&id).await.ok().flatten(),
                Err(_) => None,
            };
            if agent.is_some_and(|agent| agent.running > 0) {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
        // It goes on without: the load may be elsewhere.
        Ok(())
    }

    /// Strikes a standby: its server, and the keeper.
    async fn postgres_standby(&mut self, status: &Status, kind: FaultKind) -> Result<Struck> {
        let postgres = status.postgres.as_ref();
        let standby = postgres.and_then(|postgres| {
            let primary = postgres.primary.as_ref()?;
            postgres.instances.iter().find(|instance| instance.name != *primary)
        });
        let standby = standby.ok_or_else(|| {
            Error::Drill("this deployment has no standby of PostgreSQL to lose".to_owned())
        })?;
        let name = &standby.name;
        let keeper = status.components.iter().find(|h| h.component.name == *name);
        let mut victims: Vec<_> =
            keeper.and_then(|health| Process::find(health.component.pid?)).into_iter().collect();
        let folder = self.subject.state_dir().join("postgres").join(name.as_str());
        victims.extend(working_in(&folder.join("data")));
        self.say(&format!("{} {name}: {} processes", kind.as_str(), victims.len()));
        let _frozen = Frozen::by(kind, &victims);
        let since = Timestamp::now();
        strike(&victims, kind).await?;
        let at = Timestamp::now();
        let incident = self.recovery(Scenario::PostgresStandby, since).await?;
        Ok(Struck { at, incident, ..Struck::default() })
    }

    async fn postgres_primary(&mut self, status: &Status, kind: FaultKind) -> Result<Struck> {
        let postgres = status.postgres.as_ref().ok_or_else(|| {
            Error::Drill(
                "this deployment runs no PostgreSQL of its own; set store.kind = \"postgres\""
                    .to_owned(),
            )
        })?;
        let primary = postgres.primary.clone();
        let primary = primary.ok_or_else(|| Error::Drill("there is no primary".to_owned()))?;
        let instance = postgres.instances.iter().find(|instance| instance.name == primary);
        let instance = instance.ok_or_else(|| Error::Drill("the primary is unknown".to_owned()))?;
        let keeper = status.components.iter().find(|h| h.component.name == primary);
        let keeper = keeper.and_then(|health| Process::find(health.component.pid?));
        let state_dir = self.subject.state_dir().to_owned();
        let programs = Programs::find(self.subject.plan().postgres.bin_dir.as_deref())?;
        // Without a standby the former primary itself comes back, and may be written to.
        let mut witness = match postgres.instances.len() {
            0 | 1 => None,
            _ => {
                Some(Witness::new(&state_dir, primary.as_str(), instance.address, programs).await?)
            }
        };
        let data = state_dir.join("postgres").join(primary.as_str()).join("data");

        let mut victims = Vec::new();
        if kind == FaultKind::Freeze {
            // The keeper first: it must not see what happens to its server.
            victims.extend(keeper);
        }
        victims.extend(working_in(&data));
        self.say(&format!("{} {primary}: {} processes", kind.as_str(), victims.len()));
        let frozen = Frozen::by(kind, &victims);
        let since = Timestamp::now();
        strike(&victims, kind).await?;
        let at = Timestamp::now();
        if let Some(witness) = &mut witness {
            witness.begin();
            witness.keep_starting();
        }
        let incident = self.subject.incident(Scenario::PostgresPrimary, since, DETECTION).await?;
        self.say("the loss was noticed; waiting for the promotion");
        self.until(&incident, |detail| {
            detail.steps.iter().any(|s| s.name == "promote" && s.status != StepStatus::Started)
                || detail.incident.state != IncidentState::Open
        })
        .await?;
        if kind == FaultKind::Freeze {
            self.say("waking the former primary");
        }
        drop(frozen);
        self.say("waiting until redundancy is back");
        let detail =
            self.until(&incident, |detail| detail.incident.state != IncidentState::Open).await?;
        let (split_brain, fence) = match witness {
            Some(witness) => witness.end().await,
            None => (false, vec!["not tried: there is no standby to take over".to_owned()]),
        };
        Ok(Struck { at, incident: Some(detail), split_brain, fence, ..Struck::default() })
    }

    /// Waits for the incident and its end.
    pub(super) async fn recovery(
        &self,
        scenario: Scenario,
        since: Timestamp,
    ) -> Result<Option<IncidentDetail>> {
        let Ok(incident) = self.subject.incident(scenario, since, DETECTION).await else {
            return Ok(None);
        };
        self.say("the loss was noticed; waiting for the recovery");
        let detail =
            self.until(&incident, |detail| detail.incident.state != IncidentState::Open).await?;
        Ok(Some(detail))
    }

    pub(super) async fn until(
        &self,
        incident: &Incident,
        reached: impl Fn(&IncidentDetail) -> bool,
    ) -> Result<IncidentDetail> {
        let deadline = Instant::now() + RECOVERY;
        loop {
            let detail = self.subject.detail(incident.id).await;
            match detail {
                Ok(detail) if reached(&detail) => return Ok(detail),
                Ok(detail) if Instant::now() > deadline => return Ok(detail),
                Err(error) if Instant::now() > deadline => return Err(error),
                // The controller may be busy, or on its way back.
                _ => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Those of the tasks that the platform no longer knows.
    async fn forgotten(&self, tasks: Vec<(TaskId, Timestamp)>) -> Result<Vec<(TaskId, Timestamp)>> {
        let client = self.subject.api().borrow().clone();
        let mut forgotten = Vec::new();
        for (id, acknowledged) in tasks {
            let known = client.task(id).await;
            let known = known.map_err(|error| Error::Drill(format!("task {id}: {error}")))?;
            if known.is_none() {
                forgotten.push((id, acknowledged));
            }
        }
        Ok(forgotten)
    }

    async fn report(
        &self,
        scenario: Scenario,
        fault: FaultKind,
        deployment: &str,
        from: Timestamp,
        struck: Struck,
    ) -> Result<DrillReport> {
        let ledger = self.load.ledger();
        let until = Timestamp::now();
        // What went back in time is not to be waited for so long.
        let goes_back = matches!(
            scenario,
            Scenario::FullCluster | Scenario::PostgresRestore | Scenario::DatabaseCorruption
        );
        let patience = if goes_back { SETTLING } else { LOAD_PATIENCE };
        let deadline = Instant::now() + patience;
        // All that was acknowledged up to here must take effect.
        let open_until = |balance: &super::ledger::Balance| {
            let open = balance.open.iter().filter(|(_, acknowledged)| *acknowledged <= until);
            open.copied().collect::<Vec<_>>()
        };
        let mut balance = ledger.balance(from);
        while !open_until(&balance).is_empty() && Instant::now() < deadline {
            tokio::time::sleep(LOOK).await;
            balance = ledger.balance(from);
        }
        let mut lost = open_until(&balance);
        if goes_back {
            // Also what was done already is lost when nobody remembers it.
            lost.extend(self.forgotten(ledger.acknowledged_within(from, struck.at)).await?);
            lost.sort();
            lost.dedup();
        }
        let since_fault = |moment: Timestamp| {
            let nanos = moment.as_nanosecond().saturating_sub(struck.at.as_nanosecond());
            let nanos = u64::try_from(nanos).unwrap_or(0);
            resurgam_model::Duration(Duration::from_nanos(nanos))
        };
        let incident = struck.incident.as_ref().map(|detail| &detail.incident);
        let first_write = ledger.first_acknowledged_after(struck.at);
        let restored = incident.and_then(|incident| incident.restored_at);
        let back = match scenario {
            // Writes are what was lost, so the first one that is acknowledged ends the outage.
            Scenario::PostgresPrimary | Scenario::PostgresRestore | Scenario::Api => first_write,
            // Writes went on all the time, or are not all: the verified end of the step counts.
            Scenario::DatabaseCorruption
            | Scenario::PostgresStandby
            | Scenario::Failback
            | Scenario::DiskFilling
            | Scenario::StuckTasks
            | Scenario::AgentRegistry
            | Scenario::WorkerPool
            | Scenario::KafkaBroker
            | Scenario::KafkaCluster
            | Scenario::RabbitMq => restored,
            // Who had a connection went on; who had none was let in at this moment.
            Scenario::PoolExhaustion => restored.max(struck.back).filter(|_| restored.is_some()),
            Scenario::FullStop | Scenario::Controller => {
                restored.max(first_write).filter(|_| restored.is_some())
            }
            Scenario::FullCluster => struck.back.max(first_write).filter(|_| struck.back.is_some()),
        };
        let objectives = self.subject.plan().objectives(scenario);
        let rto = Measured::new(objectives.rto, back.map(since_fault));
        let oldest = lost.iter().map(|(_, acknowledged)| *acknowledged).min();
        let age = oldest.map_or(Duration::ZERO, |oldest| {
            let nanos = struck.at.as_nanosecond().saturating_sub(oldest.as_nanosecond());
            Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
        });
        let rpo = Measured::new(objectives.rpo, Some(resurgam_model::Duration(age)));
        let state = incident.map(|incident| incident.state);
        let met = rto.met && rpo.met && (lost.is_empty() || objectives.rpo.0 > Duration::ZERO);
        // To go back in time is to do again what was done since.
        let sound = (balance.duplicated == 0 || goes_back)
            && balance.wrong.is_empty()
            && !struck.split_brain;
        let result = match state {
            None if struck.back.is_some() && met && sound => DrillResult::Recovered,
            Some(IncidentState::Refused) => DrillResult::Refused,
            Some(IncidentState::Recovered | IncidentState::FalseAlarm) if met && sound => {
                DrillResult::Recovered
            }
            _ => DrillResult::Failed,
        };
        for wrong in &balance.wrong {
            tracing::error!(wrong, "a wrong result");
        }
        Ok(DrillReport {
            scenario,
            severity: scenario.severity(),
            deployment: deployment.to_owned(),
            fault: fault.word(scenario).to_owned(),
            started_at: struck.at,
            detection_ms: incident.map(|incident| since_fault(incident.opened_at).as_millis()),
            steps: struck.incident.as_ref().map_or(struck.steps, |d| d.steps.clone()),
            rto,
            rpo,
            acknowledged: balance.acknowledged,
            lost: u64::try_from(lost.len()).unwrap_or(u64::MAX),
            duplicated: balance.duplicated,
            split_brain: struck.split_brain,
            fence: struck.fence,
            result,
        })
    }
}
