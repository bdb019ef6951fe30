//! The runbooks for lost brokers: one broker of Kafka, all of them, or RabbitMQ.
//!
//! confirm → evidence → restart → carry → whole → return
//!
//! Messages move to another bus by themselves, long before anybody reads of it. The runbook makes
//! sure that they did, brings the broker back if it is one of this deployment, and is done only
//! when all copies are whole and messages take the preferred bus again.

mod finding;
mod outline;
mod watch;

pub(crate) use finding::{Found, Seen};
pub(crate) use outline::{KAFKA_BROKER, KAFKA_CLUSTER, RABBITMQ};
pub(crate) use watch::run as watch;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use resurgam_deployment::{Component, ComponentKind, Deployment, RunState};
use resurgam_model::bus::{BusHealth, BusKind, BusStatus, Circuit};
use resurgam_model::message::NewMessage;
use resurgam_model::plan::Bus;
use resurgam_model::{AgentId, MessageId, Scenario, Timestamp};
use tokio::sync::watch as channel;

use crate::health::Readiness;
use crate::journal::{Incident, Journal};
use crate::processes::{keep, start_again};
use crate::runbook::{Done, Outline, SoFar, Step, Stop};

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How long a try waits until messages flow.
const CARRIED: Duration = Duration::from_secs(50);
/// How long a try waits until a cluster is whole: its servers start, read their logs and copy.
const WHOLE: Duration = Duration::from_secs(180);
/// How long one message may take to arrive before another one is sent.
const PATIENCE: Duration = Duration::from_secs(2);
/// A cluster may take so long to notice that a broker of it is gone: Kafka's own default is nine
/// seconds.
const SETTLED: Duration = Duration::from_secs(10);
/// What the relay said longer ago says nothing of now.
const FRESH: i64 = 5;
/// A server that is younger may still be coming up.
const YOUNG: i64 = 30;

/// What the steps work on.
#[derive(Clone)]
pub struct Brokers {
    /// Where it all runs.
    pub deployment: Arc<dyn Deployment>,
    /// What the API says of the buses.
    pub buses: channel::Receiver<Option<BusStatus>>,
    /// The plan of the buses.
    pub plan: Bus,
    /// Whether the platform works.
    pub platform: Readiness,
    /// Where everything is recorded.
    pub journal: Journal,
}

/// The bus that a scenario is about.
#[must_use]
pub fn bus_of(scenario: Scenario) -> Option<BusKind> {
    match scenario {
        Scenario::KafkaBroker | Scenario::KafkaCluster => Some(BusKind::Kafka),
        Scenario::RabbitMq => Some(BusKind::RabbitMq),
        _ => None,
    }
}

/// The components that a bus has in this deployment.
#[must_use]
pub fn kind_of(bus: BusKind) -> Option<ComponentKind> {
    match bus {
        BusKind::Kafka => Some(ComponentKind::Kafka),
        BusKind::RabbitMq => Some(ComponentKind::RabbitMq),
        BusKind::Embedded => None,
    }
}

/// The steps of a scenario. None for scenarios that are not about brokers of this plan.
#[must_use]
pub fn steps(brokers: &Brokers, scenario: Scenario) -> Option<Vec<Box<dyn Step>>> {
    let bus = bus_of(scenario).filter(|bus| brokers.plan.order.contains(bus))?;
    let outline = match scenario {
        Scenario::KafkaBroker => &KAFKA_BROKER,
        Scenario::KafkaCluster => &KAFKA_CLUSTER,
        _ => &RABBITMQ,
    };
    let of = || Of { brokers: brokers.clone(), bus, outline };
    Some(vec![
        Box::new(Confirm(of())),
        Box::new(Evidence(of())),
        Box::new(Restart(of())),
        Box::new(Carry(of())),
        Box::new(Whole(of())),
        Box::new(Return(of())),
    ])
}

/// Whether the brokers of a bus lack nothing, as far as the relay knows; else what.
#[must_use]
pub fn lacks(health: &BusHealth, own: usize) -> Option<String> {
    if health.circuit != Circuit::Closed {
        let why = health.reason.as_deref().unwrap_or("it is being tried");
        return Some(format!("{} cannot be used: {why}", health.bus));
    }
    let Some(seen) = &health.observation else {
        return Some(format!("nothing is known of {}", health.bus));
    };
    if seen.nodes.len() < own {
        return Some(format!("{} of {own} brokers are there", seen.nodes.len()));
    }
    if !seen.missing.is_empty() {
        return Some(format!("missing: {}", seen.missing.join(", ")));
    }
    if seen.offline + seen.under_replicated > 0 {
        return Some(format!(
            "{} partitions or queues cannot be used, {} lack copies",
            seen.offline, seen.under_replicated
        ));
    }
    None
}

struct Of {
    brokers: Brokers,
    bus: BusKind,
    outline: &'static [Outline; 6],
}

impl Of {
    #[allow(clippy::indexing_slicing, reason = "the places are constants of this module")]
    fn step(&self, place: usize) -> &'static Outline {
        &self.outline[place]
    }

    async fn components(&self) -> Result<Vec<Component>, Stop> {
        let all = self.brokers.deployment.components().await?;
        let kind = kind_of(self.bus);
        Ok(all.into_iter().filter(|component| Some(component.kind) == kind).collect())
    }

    /// What the API said last, if that is of use.
    fn status(&self) -> Result<BusStatus, String> {
        let status = self.brokers.buses.borrow().clone();
        let status = status.ok_or("the API does not say how the buses are")?;
        let at = status.state.as_ref().map(|state| state.at);
        match at {
            Some(at) if Timestamp::now().as_second() - at.as_second() <= FRESH => Ok(status),
            Some(_) | None => Err("no supervisor relays messages now".to_owned()),
        }
    }

    fn health(&self) -> Result<BusHealth, String> {
        let state = self.status()?.state.ok_or("nothing is known of the buses")?;
        let found = state.buses.into_iter().find(|health| health.bus == self.bus);
        found.ok_or_else(|| format!("the relay knows no {}", self.bus))
    }

    /// Waits until nothing is missing any more, and says what was found.
    async fn wait(
        &self,
        patience: Duration,
        look: impl Fn() -> Result<String, String> + Send,
    ) -> Result<String, Stop> {
        let until = Instant::now() + patience;
        loop {
            match look() {
                Ok(found) => return Ok(found),
                Err(missing) if Instant::now() >= until => return Err(Stop::Retry(missing)),
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }
}

/// Whether the process is of the time before the incident.
fn is_of_before(component: &Component, incident: &Incident) -> bool {
    component.started_at.is_none_or(|at| at.as_millisecond() < incident.first_sign.as_millisecond())
}

/// What is wrong with which of them?
struct Confirm(Of);

#[async_trait]
impl Step for Confirm {
    fn outline(&self) -> &'static Outline {
        self.0.step(outline::CONFIRM)
    }

    async fn run(&self, so_far: &SoFar<'_>) -> Result<Done, Stop> {
        let mut signs = Vec::new();
        for component in self.0.components().await? {
            if component.state != RunState::Running {
                signs.push(format!("{} does not run", component.name));
            } else if !is_of_before(&component, so_far.incident) {
                signs.push(format!("{} was started again", component.name));
            }
        }
        match self.0.health() {
            Ok(health) => signs.extend(lacks(&health, 0)),
            Err(unknown) => signs.push(unknown),
        }
        if signs.is_empty() {
            return Ok(Done::now(format!(
                "{} lacks nothing, as far as the relay knows",
                self.0.bus
            )));
        }
        Ok(Done::now(signs.join("; ")))
    }
}

/// Keeps what is known before anything is restarted.
struct Evidence(Of);

#[async_trait]
impl Step for Evidence {
    fn outline(&self) -> &'static Outline {
        self.0.step(outline::EVIDENCE)
    }

    async fn run(&self, so_far: &SoFar<'_>) -> Result<Done, Stop> {
        let brokers = &self.0.brokers;
        let (id, now) = (so_far.incident.id, Timestamp::now());
        let status = brokers.buses.borrow().clone();
        brokers.journal.add_evidence(id, &serde_json::to_string(&status)?, now)?;
        let components = self.0.components().await?;
        let incident = so_far.incident;
        let kept = 1 + keep(&*brokers.deployment, &brokers.journal, incident, &components).await?;
        Ok(Done::now(format!("{kept} records kept")))
    }
}

/// Makes sure that the brokers of this deployment run.
struct Restart(Of);

/// A server may have been started by hand a moment ago, and be coming up.
fn is_young(component: &Component) -> bool {
    component.started_at.is_some_and(|at| Timestamp::now().as_second() - at.as_second() < YOUNG)
}

impl Restart {
    /// Whether it runs and does nothing: it is of the time before the incident, and its cluster,
    /// or all of the bus, is without it.
    fn is_stuck(&self, component: &Component, incident: &Incident) -> bool {
        if component.state != RunState::Running || !is_of_before(component, incident) {
            return false;
        }
        let Ok(health) = self.0.health() else { return false };
        let address = component.address.map(|address| address.to_string());
        let missing = health
            .observation
            .as_ref()
            .is_some_and(|seen| seen.missing.iter().any(|door| Some(door) == address.as_ref()));
        missing || health.circuit != Circuit::Closed
    }
}

#[async_trait]
impl Step for Restart {
    fn outline(&self) -> &'static Outline {
        self.0.step(outline::RESTART)
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(YOUNG.unsigned_abs()) + Duration::from_secs(30)
    }

    async fn run(&self, so_far: &SoFar<'_>) -> Result<Done, Stop> {
        let (components, stuck) = loop {
            let components = self.0.components().await?;
            let stuck: Vec<_> =
                components.iter().filter(|c| self.is_stuck(c, so_far.incident)).collect();
            // Those that come up are there soon; the others are old enough then.
            if !stuck.iter().any(|component| is_young(component)) {
                let stuck: BTreeSet<_> = stuck.iter().map(|c| c.name.clone()).collect();
                break (components, stuck);
            }
            tokio::time::sleep(LOOK).await;
        };
        if components.is_empty() {
            return Ok(Done::skipped("the brokers run elsewhere: start them there"));
        }
        start_again(&*self.0.brokers.deployment, &components, &stuck).await
    }
}

/// Do messages flow?
struct Carry(Of);

#[async_trait]
impl Step for Carry {
    fn outline(&self) -> &'static Outline {
        self.0.step(outline::CARRY)
    }

    fn timeout(&self) -> Duration {
        CARRIED + Duration::from_secs(10)
    }

    fn restores_service(&self) -> bool {
        true
    }

    async fn run(&self, _: &SoFar<'_>) -> Result<Done, Stop> {
        let began = Instant::now();
        let deadline = began + CARRIED;
        loop {
            let trial = async {
                let client = self.0.brokers.platform.client();
                let mailbox = AgentId::new(format!("bus-probe-{}", MessageId::new()))?;
                let ttl = Some(resurgam_model::Duration(CARRIED.saturating_mul(2)));
                let probe = NewMessage { ttl, ..NewMessage::new(mailbox.clone(), "probe") };
                client.send(std::slice::from_ref(&probe)).await?;
                let left = deadline.saturating_duration_since(Instant::now());
                let wait = resurgam_model::Duration(left.min(PATIENCE));
                let came = client.receive(&mailbox, None, 1, wait).await?;
                let sequences: Vec<_> = came.iter().map(|message| message.sequence).collect();
                if sequences.is_empty() {
                    return Ok(false);
                }
                client.acknowledge(&mailbox, &sequences).await?;
                Ok::<_, Stop>(true)
            };
            match trial.await {
                Ok(true) => break,
                Ok(false) | Err(_) if Instant::now() < deadline => {
                    tokio::time::sleep(LOOK).await;
                }
                Ok(false) => {
                    return Err(Stop::Retry("a message sent now does not arrive".to_owned()));
                }
                Err(stop) => return Err(stop),
            }
        }
        let over = self.0.status().ok().and_then(|status| status.state?.active);
        let over = over.map_or(String::new(), |bus| format!(" over {bus}"));
        Ok(Done::now(format!(
            "a message sent{over} arrived after {} ms",
            began.elapsed().as_millis()
        )))
    }
}

/// Are all copies there?
struct Whole(Of);

#[async_trait]
impl Step for Whole {
    fn outline(&self) -> &'static Outline {
        self.0.step(outline::WHOLE)
    }

    fn timeout(&self) -> Duration {
        WHOLE + Duration::from_secs(10)
    }

    async fn run(&self, so_far: &SoFar<'_>) -> Result<Done, Stop> {
        let components = self.0.components().await?;
        let own = components.len();
        // What was seen before the last of them was started says nothing of now, nor does what was
        // seen before its cluster could have noticed.
        let started = components.iter().filter_map(|component| component.started_at).max();
        let since = started.max(Some(so_far.incident.first_sign)).unwrap_or_default();
        let since = since.checked_add(SETTLED).unwrap_or(since);
        let found = self
            .0
            .wait(WHOLE, || {
                let health = self.0.health()?;
                match lacks(&health, own) {
                    Some(missing) => Err(missing),
                    None if health.observation.is_none_or(|seen| seen.at <= since) => {
                        Err(format!("{} has not been heard since", self.0.bus))
                    }
                    None => Ok(format!("{} lacks nothing", self.0.bus)),
                }
            })
            .await?;
        Ok(Done::now(found))
    }
}

/// Do messages take the preferred bus?
struct Return(Of);

impl Return {
    fn patience(&self) -> Duration {
        let plan = &self.0.brokers.plan;
        plan.return_after.0 + plan.drain_within.0 + Duration::from_secs(60)
    }
}

#[async_trait]
impl Step for Return {
    fn outline(&self) -> &'static Outline {
        self.0.step(outline::RETURN)
    }

    fn timeout(&self) -> Duration {
        self.patience() + Duration::from_secs(10)
    }

    async fn run(&self, _: &SoFar<'_>) -> Result<Done, Stop> {
        let best = self.0.brokers.plan.order.first().copied();
        let found = self
            .0
            .wait(self.patience(), || {
                let status = self.0.status()?;
                let active = status.state.and_then(|state| state.active);
                if let Some(wish) = status.wish.filter(|wish| wish.to.is_some()) {
                    return Ok(format!("left as it is: {} has ordered another bus", wish.by));
                }
                match (active, best) {
                    (Some(active), Some(best)) if active == best => {
                        Ok(format!("messages take {best}"))
                    }
                    (Some(active), _) => Err(format!("messages still take {active}")),
                    (None, _) => Err("messages have to wait: no bus can be used".to_owned()),
                }
            })
            .await?;
        Ok(Done::now(found))
    }
}
