//! An agent that takes a task and never ends it, and shows itself all the while.

use std::time::{Duration, Instant};

use resurgam_client::Client;
use resurgam_model::agent::{Heartbeat, Registration};
use resurgam_model::report::StepStatus;
use resurgam_model::task::{Claim, LeaseRef};
use resurgam_model::{AgentId, Capability, InstanceId, Scenario, Timestamp};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::run::{Drill, Struck};
use crate::journal::IncidentState;
use crate::{Error, Result};

/// What it calls itself.
const HANGER: &str = "hanging-agent";
/// How often it shows itself, and extends what it holds.
const BEAT: Duration = Duration::from_millis(500);
/// How long its lease lasts unless it is extended.
const LEASE: resurgam_model::Duration = resurgam_model::Duration::from_secs(10);
/// How long one claim waits.
const WAIT: resurgam_model::Duration = resurgam_model::Duration::from_secs(1);
/// How long until it must have a task.
const TAKEN: Duration = Duration::from_secs(30);
/// A task hangs after a minute at the earliest; so long until that must be noticed.
const NOTICED: Duration = Duration::from_secs(120);

impl Drill<'_> {
    /// Has an agent take a task of the load and keep it; and agrees that it is taken from it.
    pub(super) async fn stuck_tasks(&mut self) -> Result<Struck> {
        let id = AgentId::new(HANGER).map_err(|error| Error::Drill(error.to_string()))?;
        let capability =
            Capability::new("sha256").map_err(|error| Error::Drill(error.to_string()))?;
        let instance = InstanceId::new();
        let told = |error: resurgam_client::Error| Error::Drill(error.to_string());
        let api = self.subject.api();
        let client = api.borrow().clone();
        let registration = Registration {
            id: id.clone(),
            instance,
            capabilities: vec![capability.clone()],
            capacity: 1,
            labels: Default::default(),
            version: None,
            heartbeat: None,
        };
        self.say("an agent takes a task, and hangs");
        let claim = Claim {
            agent: id.clone(),
            instance,
            capabilities: vec![capability],
            max: 1,
            lease: LEASE,
            id: None,
            again: false,
        };
        let deadline = Instant::now() + TAKEN;
        let lease = loop {
            // Again and again: who only waits for a task shows no sign of life meanwhile.
            client.register(&registration).await.map_err(told)?;
            match client.claim(&claim, WAIT).await.map(|mut leases| leases.pop()) {
                Ok(Some(lease)) => break lease,
                Err(error) if Instant::now() > deadline => return Err(told(error)),
                Ok(None) if Instant::now() > deadline => {
                    return Err(Error::Drill("it got no task".to_owned()));
                }
                Ok(None) | Err(_) => {}
            }
        };
        let at = Timestamp::now();
        let mut life = JoinSet::new();
        let lease = LeaseRef { task: lease.task, token: lease.token };
        life.spawn(live(api.clone(), id.clone(), instance, lease));
        self.say("waiting until that is noticed, which takes a minute at least");
        let incident = self.subject.incident(Scenario::StuckTasks, at, NOTICED).await;
        let detail = match incident {
            Err(_) => None,
            Ok(incident) => {
                self.say("the hanging task was noticed; agreeing that it is taken back");
                let detail = self
                    .until(&incident, |detail| {
                        let waits = detail.steps.iter().any(|s| s.status == StepStatus::Waiting);
                        waits || detail.incident.state != IncidentState::Open
                    })
                    .await?;
                if detail.incident.state == IncidentState::Open {
                    self.subject.command(&["approve", &incident.id.to_string()]).await?;
                }
                let over = |detail: &crate::status::IncidentDetail| {
                    detail.incident.state != IncidentState::Open
                };
                Some(self.until(&incident, over).await?)
            }
        };
        life.shutdown().await;
        // The name is nobody's any more.
        let client = api.borrow().clone();
        if let Some(agent) = client.agent(&id).await.map_err(told)? {
            client.deregister(&id, agent.instance).await.map_err(told)?;
        }
        Ok(Struck { at, incident: detail, ..Struck::default() })
    }
}

/// Shows itself, and extends what it holds, until that is not its own any more.
async fn live(api: watch::Receiver<Client>, id: AgentId, instance: InstanceId, lease: LeaseRef) {
    loop {
        let client = api.borrow().clone();
        let _ = client.heartbeat(&[Heartbeat::new(id.clone(), instance)]).await;
        let _ = client.extend(&[lease], LEASE).await;
        tokio::time::sleep(BEAT).await;
    }
}
