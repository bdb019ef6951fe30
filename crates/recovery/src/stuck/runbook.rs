//! The steps when tasks hang.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use resurgam_client::Client;
use resurgam_deployment::{ComponentKind, Deployment};
use resurgam_model::agent::Registration;
use resurgam_model::stuck::StuckTask;
use resurgam_model::{AgentId, ComponentName, InstanceId, TaskId, Timestamp};
use serde_json::json;

use crate::journal::Journal;
use crate::runbook::{Danger, Done, Outline, SoFar, Step, Stop};
use crate::upkeep::Upkeep;

const CONFIRM: usize = 0;
const EVIDENCE: usize = 1;
const RELEASE: usize = 2;
const VERIFY: usize = 3;

/// So long a try waits for what is missing.
const PATIENCE: Duration = Duration::from_secs(50);
/// How often to look.
const LOOK: Duration = Duration::from_millis(250);
/// So many of the holder's last lines are kept.
const LINES: usize = 40;

/// In order.
pub static OUTLINE: [Outline; 4] = [
    Outline {
        name: "confirm",
        danger: Danger::Looks,
        does: "Asks the platform for the tasks that have been running for much longer than their like, and who holds them.",
        verified: "The tasks are in the journal.",
        by_hand: &["resurgam task stuck", "resurgam agents show AGENT"],
    },
    Outline {
        name: "evidence",
        danger: Danger::Looks,
        does: "Keeps each of them, with how long it runs and its like take, and the last lines of the holder's log if the deployment runs it.",
        verified: "The records are in the journal.",
        by_hand: &[
            "resurgam task show TASK",
            "kubectl --namespace dotnetagents logs --selector app=worker-pool --tail 200",
        ],
    },
    Outline {
        name: "release",
        danger: Danger::Dangerous,
        does: "Starts a worker of the deployment again, which gives its tasks back. From an agent that runs elsewhere they are taken only if a person agrees: it gets nothing further until somebody lets it, and its present life counts as over. What it may still report of them is refused by their fencing tokens.",
        verified: "The holder has none of the tasks any more.",
        by_hand: &[
            "resurgam restart worker-pool-0",
            "# An agent that runs elsewhere: nothing further for it, and end it where it runs:",
            "resurgam agents drain AGENT --reason \"its tasks hang\"",
            "# Once it is mended:",
            "resurgam agents resume AGENT",
        ],
    },
    Outline {
        name: "verify",
        danger: Danger::Looks,
        does: "Makes sure that each of them waits, or runs elsewhere, or is over.",
        verified: "None of them counts as stuck any more.",
        by_hand: &["resurgam task stuck"],
    },
];

/// What the steps work on.
#[derive(Clone)]
pub(crate) struct Hung {
    pub(crate) api: Client,
    pub(crate) deployment: Arc<dyn Deployment>,
    pub(crate) upkeep: Arc<Upkeep>,
    pub(crate) journal: Journal,
}

/// The steps.
pub(crate) fn steps(hung: &Hung) -> Vec<Box<dyn Step>> {
    vec![
        Box::new(Confirm(hung.clone())),
        Box::new(Evidence(hung.clone())),
        Box::new(Release(hung.clone())),
        Box::new(Verify(hung.clone())),
    ]
}

#[allow(clippy::indexing_slicing, reason = "the places are constants of this module")]
fn step(place: usize) -> &'static Outline {
    &OUTLINE[place]
}

impl Hung {
    /// Those that hang in the hands of whom the incident is about.
    async fn tasks(&self, holder: &ComponentName) -> Result<Vec<StuckTask>, Stop> {
        let of = |stuck: &StuckTask| {
            stuck.task.held_by.as_ref().is_some_and(|agent| agent.as_str() == holder.as_str())
        };
        Ok(self.api.stuck().await?.into_iter().filter(of).collect())
    }

    /// Whether the deployment runs the holder itself.
    async fn is_own(&self, holder: &ComponentName) -> Result<bool, Stop> {
        let all = self.deployment.components().await?;
        Ok(all.iter().any(|c| c.name == *holder && c.kind == ComponentKind::Worker))
    }
}

/// The ids that the first step has left for the later ones.
fn known(so_far: &SoFar<'_>) -> Result<Vec<TaskId>, Stop> {
    let output = so_far.output(step(CONFIRM).name).and_then(|output| output.get("tasks"));
    let output = output.ok_or_else(|| Stop::Retry("the journal has no tasks".to_owned()))?;
    Ok(serde_json::from_value(output.clone())?)
}

/// Do they hang?
struct Confirm(Hung);

#[async_trait]
impl Step for Confirm {
    fn outline(&self) -> &'static Outline {
        step(CONFIRM)
    }

    async fn run(&self, so_far: &SoFar<'_>) -> Result<Done, Stop> {
        let holder = &so_far.incident.component;
        let tasks = self.0.tasks(holder).await?;
        if tasks.is_empty() {
            return Err(Stop::FalseAlarm(format!("{holder} holds no task that hangs")));
        }
        let ids: Vec<_> = tasks.iter().map(|stuck| stuck.task.task).collect();
        let detail = format!("{holder} holds {} tasks that hang", ids.len());
        Ok(Done::now(detail).with(json!({ "tasks": ids })))
    }
}

/// Keeps what is known of them.
struct Evidence(Hung);

#[async_trait]
impl Step for Evidence {
    fn outline(&self) -> &'static Outline {
        step(EVIDENCE)
    }

    async fn run(&self, so_far: &SoFar<'_>) -> Result<Done, Stop> {
        let hung = &self.0;
        let holder = &so_far.incident.component;
        let now = Timestamp::now();
        let tasks = hung.tasks(holder).await?;
        let lines: Vec<_> = tasks
            .iter()
            .map(|StuckTask { task, threshold, .. }| {
                format!(
                    "{} ({}), try {}, running for {}; its like count as stuck after {threshold}",
                    task.task, task.capability, task.attempt, task.running_for
                )
            })
            .collect();
        hung.journal.add_evidence(so_far.incident.id, &lines.join("\n"), now)?;
        if hung.is_own(holder).await? {
            let log = hung.deployment.logs(holder, LINES).await.unwrap_or_default();
            let text = format!("last lines of {holder}:\n{}", log.join("\n"));
            hung.journal.add_evidence(so_far.incident.id, &text, now)?;
        }
        Ok(Done::now(format!("{} tasks are kept", lines.len())))
    }
}

/// Takes them back.
struct Release(Hung);

#[async_trait]
impl Step for Release {
    fn outline(&self) -> &'static Outline {
        step(RELEASE)
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(120)
    }

    async fn run(&self, so_far: &SoFar<'_>) -> Result<Done, Stop> {
        let hung = &self.0;
        let holder = &so_far.incident.component;
        let ids = known(so_far)?;
        let left: Vec<_> = hung
            .tasks(holder)
            .await?
            .into_iter()
            .filter(|stuck| ids.contains(&stuck.task.task))
            .collect();
        if left.is_empty() {
            return Ok(Done::skipped(format!("{holder} holds none of them any more")));
        }
        if hung.is_own(holder).await? {
            hung.upkeep.restart(std::slice::from_ref(holder)).await.map_err(Stop::Retry)?;
            return Ok(Done::now(format!(
                "{holder} was started again, and has given back what it held"
            )));
        }
        let question = format!(
            "{holder} runs elsewhere, shows itself, and holds tasks that hang. Shall they be taken from it, and it get nothing further until somebody says: resurgam agents resume {holder}? What it has begun of them may be done a second time"
        );
        if !so_far.agreed.contains(&question) {
            return Err(Stop::Ask(question));
        }
        let id = AgentId::new(holder.as_str())?;
        let reason = format!("its tasks hang: incident {}", so_far.incident.id);
        let Some(agent) = hung.api.drain(&id, Some(&reason)).await? else {
            return Ok(Done::skipped(format!("{holder} is gone, and its tasks with it")));
        };
        // A new life under its name ends the old one, whose leases return. Should it live, it is told at its
        // next word, and begins another life; that it drains outlasts both.
        let registration = Registration {
            id,
            instance: InstanceId::new(),
            capabilities: agent.capabilities,
            capacity: agent.capacity,
            labels: agent.labels,
            version: agent.version,
            heartbeat: None,
        };
        hung.api.register(&registration).await?;
        Ok(Done::now(format!("{} tasks were taken from {holder}, which drains", left.len())))
    }
}

/// Are they out of its hands?
struct Verify(Hung);

#[async_trait]
impl Step for Verify {
    fn outline(&self) -> &'static Outline {
        step(VERIFY)
    }

    fn timeout(&self) -> Duration {
        PATIENCE + Duration::from_secs(10)
    }

    fn restores_service(&self) -> bool {
        true
    }

    async fn run(&self, so_far: &SoFar<'_>) -> Result<Done, Stop> {
        let hung = &self.0;
        let ids = known(so_far)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let stuck = hung.api.stuck().await?;
            let left = stuck.iter().filter(|stuck| ids.contains(&stuck.task.task)).count();
            if left == 0 {
                return Ok(Done::now(format!("none of the {} hangs any more", ids.len())));
            }
            if Instant::now() > deadline {
                return Err(Stop::Retry(format!("{left} of {} still hang", ids.len())));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}
