//! The load of a drill: agents that hand in tasks and hear of their results.

use std::sync::Arc;
use std::time::Duration;

use resurgam_client::{Client, Patience};
use resurgam_model::agent::{Heartbeat, Registration};
use resurgam_model::message::Message;
use resurgam_model::task::NewTask;
use resurgam_model::{AgentId, Capability, InstanceId, Payload, TaskId, Timestamp};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::ledger::Ledger;
use crate::{Error, Result};

/// A call that takes longer is made again; a frozen server never answers.
const CALL: resurgam_model::Duration = resurgam_model::Duration::from_secs(1);
/// Bounds of the waits between tries: short, because they count into what is measured.
const PATIENCE: Patience = Patience {
    total: None,
    first: resurgam_model::Duration::from_millis(10),
    max: resurgam_model::Duration::from_millis(50),
};
/// How long one look into the mailbox waits.
const MAILBOX_WAIT: resurgam_model::Duration = resurgam_model::Duration::from_millis(500);

/// How the load is shaped.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// How many agents.
    pub agents: u32,
    /// The pause of each between two tasks.
    pub pause: Duration,
}

impl Default for Shape {
    fn default() -> Self {
        Self { agents: 4, pause: Duration::from_millis(15) }
    }
}

/// Agents at work. Dropping it ends them.
#[derive(Debug)]
pub struct Load {
    ledger: Arc<Ledger>,
    submitting: watch::Sender<bool>,
    agents: JoinSet<()>,
}

impl Load {
    /// Lets agents work against the API that `api` names at each moment: it changes when a
    /// whole deployment is started again elsewhere.
    ///
    /// # Errors
    /// When `sha256` is no capability, which cannot be.
    pub fn start(api: &watch::Receiver<Client>, shape: Shape) -> Result<Self> {
        let ledger = Arc::new(Ledger::default());
        let (submitting, submit) = watch::channel(true);
        let mut agents = JoinSet::new();
        let name = |error: resurgam_model::id::InvalidName| Error::Drill(error.to_string());
        let capability = Capability::new("sha256").map_err(name)?;
        // Names of their own, so that nothing of another drill is taken for theirs.
        let run = Uuid::new_v4().simple().to_string();
        let run = run.get(..8).unwrap_or_default().to_owned();
        for number in 1..=shape.agents {
            let id = AgentId::new(format!("drill-{run}-{number}")).map_err(name)?;
            let agent = Agent {
                id,
                instance: InstanceId::new(),
                api: api.clone(),
                ledger: Arc::clone(&ledger),
                capability: capability.clone(),
            };
            agents.spawn(agent.clone().stay_registered());
            agents.spawn(agent.clone().read_mailbox());
            agents.spawn(agent.submit(shape.pause, submit.clone()));
        }
        Ok(Self { ledger, submitting, agents })
    }

    /// The books.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Hands in nothing more; what was handed in is still followed.
    pub fn stop_submitting(&self) {
        self.submitting.send_replace(false);
    }

    /// Ends the agents.
    pub async fn end(mut self) {
        self.agents.shutdown().await;
    }
}

/// The hash as the workers must give it, computed apart from them.
fn sha256_hex(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[derive(Clone, Debug)]
struct Agent {
    id: AgentId,
    instance: InstanceId,
    api: watch::Receiver<Client>,
    ledger: Arc<Ledger>,
    capability: Capability,
}

#[derive(Deserialize)]
struct Completed {
    task: TaskId,
    state: String,
    result: Option<String>,
}

impl Agent {
    fn client(&self) -> Client {
        self.api.borrow().clone().with_timeout(CALL)
    }

    /// Makes a call until it succeeds, at the API as it is at each try.
    async fn insist<T, F, Fut>(&self, mut call: F) -> T
    where
        F: FnMut(Client) -> Fut,
        Fut: Future<Output = Result<T, resurgam_client::Error>>,
    {
        let mut backoff = PATIENCE.start();
        loop {
            match call(self.client()).await {
                Ok(value) => return value,
                Err(error) => {
                    tracing::trace!(%error, agent = %self.id, "call again");
                    tokio::time::sleep(backoff.next_delay().unwrap_or(CALL.0)).await;
                }
            }
        }
    }

    async fn stay_registered(self) {
        let registration = Registration::new(self.id.clone(), self.instance, []);
        loop {
            let registration = &registration;
            let welcome =
                self.insist(|client| async move { client.register(registration).await }).await;
            let life = [Heartbeat::new(self.id.clone(), self.instance)];
            loop {
                tokio::time::sleep(welcome.heartbeat.every.0).await;
                let life = &life;
                let known = self.insist(|client| async move { client.heartbeat(life).await }).await;
                if known.first() != Some(&true) {
                    break;
                }
            }
        }
    }

    async fn submit(self, pause: Duration, mut submitting: watch::Receiver<bool>) {
        while *submitting.borrow_and_update() {
            let text = Uuid::new_v4().to_string();
            let task = NewTask {
                idempotency_key: Some(format!("{}/{text}", self.id)),
                reply_to: Some(self.id.clone()),
                ..NewTask::new(self.capability.clone(), Payload::from_text(&text))
            };
            let task = &task;
            // Each try is a write of its own: what counts is when the one that was acknowledged
            // was handed in.
            let (submitted, sent) = self
                .insist(|client| async move {
                    let sent = Timestamp::now();
                    client.submit(task).await.map(|submitted| (submitted, sent))
                })
                .await;
            self.ledger.acknowledged(submitted.id, sent, sha256_hex(&text));
            tokio::time::sleep(pause).await;
        }
    }

    async fn read_mailbox(self) {
        loop {
            let id = &self.id;
            let messages = self
                .insist(|client| async move { client.receive(id, None, 200, MAILBOX_WAIT).await })
                .await;
            for message in &messages {
                self.read(message);
            }
            let read: Vec<i64> = messages.iter().map(|message| message.sequence).collect();
            if read.is_empty() {
                continue;
            }
            let read = &read;
            self.insist(|client| async move { client.acknowledge(id, read).await }).await;
        }
    }

    fn read(&self, message: &Message) {
        match serde_json::from_str::<Completed>(message.body.json()) {
            Ok(Completed { task, state, result }) if state == "completed" => {
                self.ledger.took_effect(task, message.id, result.as_deref().unwrap_or_default());
            }
            Ok(Completed { task, state, .. }) => {
                self.ledger.took_effect(task, message.id, &format!("({state})"));
            }
            Err(error) => tracing::error!(%error, "a message that is no task's end"),
        }
    }
}
