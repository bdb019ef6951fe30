//! How RabbitMQ is, and the queues that it keeps for us.

use std::sync::Arc;

use jiff::Timestamp;
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use serde::Deserialize;
use tokio::sync::Mutex;

use super::{QUEUES, RabbitSettings, Way, queue_name, timely};
use crate::broker::{BrokerResult, Observation};

/// What is known of RabbitMQ.
pub(super) struct Care {
    settings: Arc<RabbitSettings>,
    /// A connection that only asks.
    way: Mutex<Option<Way>>,
    client: reqwest::Client,
}

/// What the management API says of a node.
#[derive(Debug, Deserialize)]
struct NodeSays {
    name: String,
    #[serde(default)]
    running: bool,
    #[serde(default)]
    mem_alarm: bool,
    #[serde(default)]
    disk_free_alarm: bool,
    #[serde(default)]
    partitions: Vec<serde_json::Value>,
}

/// What it says of a queue.
#[derive(Debug, Deserialize)]
struct QueueSays {
    name: String,
    #[serde(default)]
    members: Vec<String>,
    #[serde(default)]
    online: Vec<String>,
    #[serde(default)]
    state: Option<String>,
}

impl Care {
    pub(super) fn new(settings: Arc<RabbitSettings>) -> Self {
        let client = reqwest::Client::builder().timeout(settings.timeout).build();
        // Without its settings it works as well, only slower to give up.
        Self { settings, way: Mutex::new(None), client: client.unwrap_or_default() }
    }

    /// Declares each queue anew, or only looks whether it is there, and answers how many
    /// messages wait in all of them.
    async fn declare(&self, passive: bool) -> BrokerResult<u64> {
        let mut kept = self.way.lock().await;
        let way = match kept.take().filter(Way::is_usable) {
            Some(way) => way,
            None => Way::open(&self.settings).await?,
        };
        let mut arguments = FieldTable::default();
        let kind = if self.settings.quorum { "quorum" } else { "classic" };
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
        arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
        let mut waiting = 0_u64;
        for number in 0..QUEUES {
            let options = QueueDeclareOptions { passive, ..QueueDeclareOptions::durable() };
            let name = queue_name(&self.settings.queue, number);
            let queue = way.channel.queue_declare(name, options, arguments.clone());
            let queue = timely(self.settings.timeout, queue).await?;
            waiting = waiting.saturating_add(queue.message_count().into());
        }
        *kept = Some(way);
        Ok(waiting)
    }

    pub(super) async fn prepare(&self) -> BrokerResult<()> {
        self.declare(false).await.map(drop)
    }

    pub(super) async fn observe(&self) -> BrokerResult<Observation> {
        let waiting = self.declare(true).await?;
        let mut seen =
            Observation { at: Timestamp::now(), lag: Some(waiting), ..Observation::default() };
        let blocked =
            self.way.lock().await.as_ref().is_some_and(|way| way.connection.status().blocked());
        if blocked {
            let reason = "it has blocked those who publish".to_owned();
            seen.stopped = Some(reason.clone());
            seen.findings.push(reason);
        }
        let Some(management) = &self.settings.management else { return Ok(seen) };
        match self.ask(management).await {
            Ok((nodes, queues)) => look(&mut seen, nodes, &queues, &self.settings.queue),
            Err(reason) => {
                seen.findings.push(format!("its management API does not say how it is: {reason}"))
            }
        }
        Ok(seen)
    }

    /// Errors do not show the URL, which may hold a password.
    async fn ask(&self, management: &str) -> Result<(Vec<NodeSays>, Vec<QueueSays>), String> {
        let base = management.trim_end_matches('/');
        let get = async |what: &str| {
            let answer = self.client.get(format!("{base}/api/{what}")).send().await;
            let answer = answer.and_then(reqwest::Response::error_for_status);
            let text = match answer {
                Ok(answer) => answer.bytes().await,
                Err(error) => Err(error),
            };
            text.map_err(|error| error.without_url().to_string())
        };
        let (nodes, queues) =
            tokio::try_join!(get("nodes"), get("queues?columns=name,members,online,state"))?;
        let unreadable = |error: serde_json::Error| error.to_string();
        Ok((
            serde_json::from_slice(&nodes).map_err(unreadable)?,
            serde_json::from_slice(&queues).map_err(unreadable)?,
        ))
    }
}

fn look(seen: &mut Observation, nodes: Vec<NodeSays>, queues: &[QueueSays], prefix: &str) {
    let ours = |queue: &&QueueSays| {
        queue.name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.'))
    };
    for queue in queues.iter().filter(ours) {
        let half = queue.members.len() / 2;
        // Queues that lie on one node have no members.
        let lost = !queue.members.is_empty() && queue.online.len() <= half;
        if queue.state.as_deref() == Some("down") || lost {
            seen.offline += 1;
        } else if queue.online.len() < queue.members.len() {
            seen.under_replicated += 1;
        }
    }
    if seen.offline > 0 {
        let lost = format!("{} queues cannot be used: their nodes are missing", seen.offline);
        seen.stopped = Some(lost.clone());
        seen.findings.push(lost);
    }
    if seen.under_replicated > 0 {
        seen.findings.push(format!("{} queues lack copies", seen.under_replicated));
    }
    for node in nodes {
        for (alarm, what) in [(node.mem_alarm, "memory"), (node.disk_free_alarm, "disk")] {
            if alarm {
                let reason =
                    format!("{} is short of {what} and blocks those who publish", node.name);
                seen.stopped = Some(reason.clone());
                seen.findings.push(reason);
            }
        }
        if !node.partitions.is_empty() {
            seen.findings.push(format!("{} has been cut off from other nodes", node.name));
        }
        if node.running {
            seen.nodes.push(node.name);
        } else {
            seen.findings.push(format!("the node {} is missing", node.name));
            seen.missing.push(node.name);
        }
    }
}
