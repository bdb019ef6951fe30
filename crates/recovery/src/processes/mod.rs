//! The runbooks for lost processes: API, registry, workers, and all of them at once.
//!
//! confirm → evidence → restart → verify
//!
//! The deployment starts ended processes again by itself; the runbook makes sure of it, and
//! above all verifies what a restart alone does not show: that the agents are registered again,
//! that no task is held by the dead, and that the platform works down to its store.

mod outline;

pub(crate) use outline::{API, EVERYTHING, REGISTRY, WORKERS};

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use resurgam_deployment::{Component, ComponentKind, Deployment, RunState};
use resurgam_model::agent::{AgentQuery, AgentState};
use resurgam_model::plan::Detection;
use resurgam_model::{AgentId, ComponentName, Scenario, Timestamp};
use serde_json::json;
use tokio::sync::watch;

use crate::health::{Board, Health, Readiness};
use crate::journal::{Incident, Journal};
use crate::runbook::{Done, Outline, SoFar, Step, Stop};

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(25);
/// How long a process may take until it answers for the first time.
const STARTING: Duration = Duration::from_secs(20);
/// How long a try to verify waits for what is missing.
const VERIFIED: Duration = Duration::from_secs(50);

/// What the steps work on.
#[derive(Clone)]
pub struct Processes {
    /// Where it all runs.
    pub deployment: Arc<dyn Deployment>,
    /// What the probes find.
    pub board: watch::Receiver<Board>,
    /// When a probe counts.
    pub detection: Detection,
    /// Whether the platform works.
    pub platform: Readiness,
    /// Where everything is recorded.
    pub journal: Journal,
}

/// The steps of a scenario. None for scenarios that are not about processes.
#[must_use]
pub fn steps(processes: &Processes, scenario: Scenario) -> Option<Vec<Box<dyn Step>>> {
    let (kinds, outline): (&'static [ComponentKind], &'static [Outline; 4]) = match scenario {
        Scenario::Api => (&[ComponentKind::Api], &API),
        Scenario::AgentRegistry => (&[ComponentKind::Registry], &REGISTRY),
        Scenario::WorkerPool => (&[ComponentKind::Worker], &WORKERS),
        Scenario::FullStop | Scenario::Controller => (
            &[
                ComponentKind::Registry,
                ComponentKind::Supervisor,
                ComponentKind::Api,
                ComponentKind::Worker,
            ],
            &EVERYTHING,
        ),
        Scenario::PostgresPrimary
        | Scenario::PostgresRestore
        | Scenario::DatabaseCorruption
        | Scenario::PoolExhaustion
        | Scenario::PostgresStandby
        | Scenario::Failback
        | Scenario::DiskFilling
        | Scenario::StuckTasks
        | Scenario::FullCluster
        | Scenario::KafkaBroker
        | Scenario::KafkaCluster
        | Scenario::RabbitMq => return None,
    };
    let of = || Of { processes: processes.clone(), kinds, outline };
    Some(vec![
        Box::new(Confirm(of())),
        Box::new(Evidence(of())),
        Box::new(Restart(of())),
        Box::new(Verify(of())),
    ])
}

struct Of {
    processes: Processes,
    kinds: &'static [ComponentKind],
    outline: &'static [Outline; 4],
}

impl Of {
    #[allow(clippy::indexing_slicing, reason = "the places are constants of this module")]
    fn step(&self, place: usize) -> &'static Outline {
        &self.outline[place]
    }

    async fn components(&self) -> Result<Vec<Component>, Stop> {
        let all = self.processes.deployment.components().await?;
        // Who leaves on purpose is not to be brought back.
        let these = all.into_iter().filter(|component| {
            self.kinds.contains(&component.kind) && component.state != RunState::Draining
        });
        Ok(these.collect())
    }

    fn stuck(&self, components: &[Component]) -> BTreeSet<ComponentName> {
        let (now, board) = (Timestamp::now(), self.processes.board.borrow());
        let stuck = components.iter().filter(|component| {
            is_stuck(component, board.get(&component.name), &self.processes.detection, now)
        });
        stuck.map(|component| component.name.clone()).collect()
    }

    fn answers(&self, component: &Component) -> bool {
        let board = self.processes.board.borrow();
        component.address.is_none()
            || board
                .get(&component.name)
                .is_some_and(|health| health.is_well(&self.processes.detection))
    }
}

/// Whether a component runs and will not answer any more by itself.
fn is_stuck(
    component: &Component,
    health: Option<&Health>,
    detection: &Detection,
    now: Timestamp,
) -> bool {
    let Some(health) = health.filter(|health| health.is_suspect(detection)) else { return false };
    let Some(started) = component.started_at.filter(|_| component.state == RunState::Running)
    else {
        return false;
    };
    // Probes of the process before say nothing about this one, which may still be starting.
    let served = health.answered_at.is_some_and(|at| at > started);
    let age = Duration::try_from(now.duration_since(started)).unwrap_or_default();
    served || age > STARTING
}

/// What is wrong with which of them?
struct Confirm(Of);

#[async_trait]
impl Step for Confirm {
    fn outline(&self) -> &'static Outline {
        self.0.step(outline::CONFIRM)
    }

    async fn run(&self, so_far: &SoFar<'_>) -> Result<Done, Stop> {
        // The incident was opened on one sign: an ended process, or probes without answer.
        let mut signs = Vec::new();
        for component in self.0.components().await? {
            if component.state != RunState::Running {
                signs.push(format!("{} does not run", component.name));
            } else if !self.0.answers(&component) {
                signs.push(format!("{} does not answer", component.name));
            } else if component.started_at.is_some_and(|at| {
                at.as_millisecond() >= so_far.incident.first_sign.as_millisecond()
            }) {
                signs.push(format!("{} was started again", component.name));
            }
        }
        if signs.is_empty() {
            return Ok(Done::now("all of them run and answer again"));
        }
        Ok(Done::now(signs.join("; ")))
    }
}

/// Keeps how each of them is and what it logged last. Answers how many records that is.
pub(crate) async fn keep(
    deployment: &dyn Deployment,
    journal: &Journal,
    incident: &Incident,
    components: &[Component],
) -> Result<usize, Stop> {
    let now = Timestamp::now();
    for component in components {
        let log = deployment.logs(&component.name, 10).await.unwrap_or_default();
        let text = format!("{}\n{}", serde_json::to_string(component)?, log.join("\n"));
        journal.add_evidence(incident.id, &text, now)?;
    }
    Ok(components.len())
}

/// Starts those that do not run, and anew those that run and are stuck; makes sure that all of
/// them stay up.
pub(crate) async fn start_again(
    deployment: &dyn Deployment,
    components: &[Component],
    stuck: &BTreeSet<ComponentName>,
) -> Result<Done, Stop> {
    let mut restarted = Vec::new();
    for Component { name, state, .. } in components {
        if *state == RunState::Running && !stuck.contains(name) {
            continue;
        }
        deployment.restart(name).await?;
        restarted.push(name.to_string());
    }
    let now = deployment.components().await?;
    let mut these = now.iter().filter(|now| components.iter().any(|c| c.name == now.name));
    if let Some(down) = these.find(|c| !matches!(c.state, RunState::Running | RunState::Draining)) {
        let why = down.last_exit.as_deref().unwrap_or("no reason known");
        return Err(Stop::Retry(format!("{} does not stay up: {why}", down.name)));
    }
    if restarted.is_empty() {
        return Ok(Done::skipped("the deployment had started them again"));
    }
    Ok(Done::now(format!("restarted {}", restarted.join(", "))))
}

/// Keeps what is known before anything is restarted.
struct Evidence(Of);

#[async_trait]
impl Step for Evidence {
    fn outline(&self) -> &'static Outline {
        self.0.step(outline::EVIDENCE)
    }

    async fn run(&self, so_far: &SoFar<'_>) -> Result<Done, Stop> {
        let Processes { deployment, journal, .. } = &self.0.processes;
        let components = self.0.components().await?;
        let kept = keep(&**deployment, journal, so_far.incident, &components).await?;
        Ok(Done::now(format!("{kept} records kept")))
    }
}

/// Makes sure that they run: ended ones are started at once, and those that run without
/// answering are ended first.
struct Restart(Of);

#[async_trait]
impl Step for Restart {
    fn outline(&self) -> &'static Outline {
        self.0.step(outline::RESTART)
    }

    async fn run(&self, _: &SoFar<'_>) -> Result<Done, Stop> {
        let components = self.0.components().await?;
        let stuck = self.0.stuck(&components);
        start_again(&*self.0.processes.deployment, &components, &stuck).await
    }
}

/// Do they serve, and does the platform work?
struct Verify(Of);

impl Verify {
    /// What is still missing; empty when all is well.
    async fn missing(&self) -> Result<Vec<String>, Stop> {
        let processes = &self.0.processes;
        let mut missing = Vec::new();
        let components = self.0.components().await?;
        // Those that got stuck only after the restart, or were too young to tell.
        let stuck = self.0.stuck(&components);
        let these: Vec<_> =
            components.iter().filter(|c| stuck.contains(&c.name)).cloned().collect();
        if !these.is_empty() {
            start_again(&*processes.deployment, &these, &stuck).await?;
        }
        for component in &components {
            if component.state != RunState::Running || !self.0.answers(component) {
                missing.push(format!("{} does not answer yet", component.name));
            }
        }
        if !processes.platform.is_ready().await {
            missing.push("the platform is not ready".to_owned());
        }
        if !missing.is_empty() {
            return Ok(missing);
        }
        // A lost registry shows in the agents, lost workers in the agents and in their tasks.
        let workers: Vec<Component> = processes
            .deployment
            .components()
            .await?
            .into_iter()
            .filter(|component| {
                component.kind == ComponentKind::Worker && component.state != RunState::Draining
            })
            .collect();
        let client = processes.platform.client();
        // A registry that came back must have heard of them in its present life.
        let registry = components
            .iter()
            .find(|component| component.kind == ComponentKind::Registry)
            .and_then(|component| component.started_at)
            .unwrap_or_default();
        for worker in &workers {
            let agent = match AgentId::new(worker.name.as_str()) {
                Ok(id) => client.agent(&id).await?,
                Err(_) => None,
            };
            let started = worker.started_at.unwrap_or_default();
            // The database keeps times in microseconds, the deployment in nanoseconds.
            let present = agent.is_some_and(|agent| {
                agent.state != AgentState::Gone
                    && agent.registered_at.as_millisecond() + 1 >= started.as_millisecond()
                    && agent.seen_at.as_millisecond() + 1 >= registry.as_millisecond()
            });
            if !present {
                missing.push(format!("{} is not registered again", worker.name));
            }
        }
        let gone = AgentQuery { state: Some(AgentState::Gone), ..AgentQuery::default() };
        for agent in client.all_agents(&gone).await? {
            if agent.running > 0 {
                missing.push(format!("{} is gone and holds {} tasks", agent.id, agent.running));
            }
        }
        Ok(missing)
    }
}

#[async_trait]
impl Step for Verify {
    fn outline(&self) -> &'static Outline {
        self.0.step(outline::VERIFY)
    }

    fn timeout(&self) -> Duration {
        // Longer than its own patience, so that it can say what is missing.
        VERIFIED + Duration::from_secs(10)
    }

    fn restores_service(&self) -> bool {
        true
    }

    async fn run(&self, _: &SoFar<'_>) -> Result<Done, Stop> {
        let deadline = Instant::now() + VERIFIED;
        loop {
            let missing = match self.missing().await {
                // The API itself may be what is being recovered.
                Err(Stop::Retry(why)) => vec![why],
                missing => missing?,
            };
            if missing.is_empty() {
                break;
            }
            if Instant::now() > deadline {
                return Err(Stop::Retry(missing.join("; ")));
            }
            tokio::time::sleep(LOOK).await;
        }
        let names: Vec<String> =
            self.0.components().await?.iter().map(|c| c.name.to_string()).collect();
        Ok(Done::now(format!(
            "{} answer, every worker is registered, no task is held by the dead",
            names.join(", ")
        ))
        .with(json!({ "components": names })))
    }
}

/// The component that an incident about such processes is about.
#[must_use]
pub fn subject(kind: ComponentKind, name: &ComponentName) -> Option<(Scenario, ComponentName)> {
    match kind {
        ComponentKind::Api => Some((Scenario::Api, name.clone())),
        ComponentKind::Registry => Some((Scenario::AgentRegistry, name.clone())),
        ComponentKind::Worker => {
            // worker-pool-2 belongs to worker-pool.
            let pool = name.as_str().rsplit_once('-').map_or(name.as_str(), |(pool, _)| pool);
            Some((Scenario::WorkerPool, ComponentName::new(pool).ok()?))
        }
        ComponentKind::Supervisor
        | ComponentKind::Postgres
        | ComponentKind::Kafka
        | ComponentKind::RabbitMq => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_answered_and_does_not_any_more_is_stuck_however_young() {
        let detection = Detection::default();
        let start: Timestamp = "2026-11-30T12:00:00Z".parse().unwrap();
        let after = |seconds: i64| Timestamp::from_second(start.as_second() + seconds).unwrap();
        let component = Component {
            name: ComponentName::new("api-0").unwrap(),
            kind: ComponentKind::Api,
            state: RunState::Running,
            pid: Some(1),
            address: None,
            started_at: Some(start),
            restarts: 0,
            last_exit: None,
        };
        let silent = |answered_at| Health {
            met: true,
            failures: detection.failures,
            answered_at,
            ..Health::default()
        };
        let stuck =
            |health: &Health, now: i64| is_stuck(&component, Some(health), &detection, after(now));
        assert!(stuck(&silent(Some(after(1))), 4));
        // The answers and failures of the process before it are not its own.
        assert!(!stuck(&silent(Some(after(-1))), 4));
        assert!(!stuck(&silent(None), 19));
        assert!(stuck(&silent(None), 21));
        let well = Health { failures: 0, ..silent(Some(after(1))) };
        assert!(!stuck(&well, 4));
        let ended = Component { state: RunState::Restarting, ..component.clone() };
        assert!(!is_stuck(&ended, Some(&silent(None)), &detection, after(60)));
    }
}
