//! The bodies of requests and answers that are not types of the model themselves.
//!
//! Fields that a request does not know are refused, so that a misspelt one never goes unnoticed;
//! in answers they are passed over, so that an older client understands a newer server.

use std::collections::{BTreeMap, BTreeSet};

use resurgam_model::access::{AccessMode, AccessToken};
use resurgam_model::agent::{Agent, HeartbeatTerms, MAX_TRAITS};
use resurgam_model::bus::BusKind;
use resurgam_model::limit::Limit;
use resurgam_model::message::{NewMessage, default_topic};
use resurgam_model::pool::Demand;
use resurgam_model::schema::{self, Key, Text};
use resurgam_model::stuck::StuckTask;
use resurgam_model::task::{Change, Claim, LeaseRef, TaskCounts, TaskState};
use resurgam_model::{
    AgentId, Capability, ClaimId, Duration, InstanceId, MessageId, Payload, Role, TaskId,
};
use schemars::JsonSchema;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};

/// The most items in one request.
pub const MAX_ITEMS: usize = 1000;

/// The longest wait that the platform grants a request.
pub const MAX_WAIT: Duration = Duration::from_secs(30);

/// The most tasks in one claim.
pub const MAX_CLAIM: u32 = 256;

macro_rules! lists {
    ($($(#[$meta:meta])* $name:ident $field:ident $($max:literal)?;)+) => {$(
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[schemars(inline)]
        $(#[$meta])*
        pub struct $name<T> {
            /// The list.
            $(#[schemars(length(max = $max))])?
            pub $field: T,
        }
    )+};
}

lists! {
    /// `POST /tasks/batch`.
    #[serde(deny_unknown_fields)]
    TaskBatch tasks 1000;
    /// What came of a batch, and what `GET /tasks` answers.
    TaskList tasks;
    /// `POST /tasks/complete`.
    #[serde(deny_unknown_fields)]
    Completions completions 1000;
    /// `POST /tasks/fail`.
    #[serde(deny_unknown_fields)]
    Failures failures 1000;
    /// What came of each, in order.
    Outcomes outcomes;
    /// What was claimed.
    Leases leases;
    /// `POST /agents/heartbeat`.
    #[serde(deny_unknown_fields)]
    Heartbeats agents 1000;
    /// Whether each agent is known, in order; one that is not must register again.
    Known known;
    /// `POST /messages`.
    #[serde(deny_unknown_fields)]
    MessageBatch messages 1000;
    /// What `GET /workflows` answers.
    WorkflowList workflows;
    /// What `GET /workflows/{id}/step` answers.
    WorkflowSteps steps;
    /// What `GET /definitions` answers.
    DefinitionList definitions;
    /// What `GET /mailbox` answers.
    MessageList messages;
    /// What `GET /dead-letters` answers.
    DeadLetterList letters;
    /// What `GET /limits` answers.
    LimitList limits;
    /// What `GET /schedules` answers.
    ScheduleList schedules;
    /// What `GET /tokens` answers.
    TokenList tokens;
    /// What `GET /audit` answers.
    AuditLog entries;
}

/// `POST /workflows/{id}/cancel`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CancelWorkflow {
    /// Why, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Text>")]
    pub reason: Option<String>,
}

/// `GET /workflows/{id}/step`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StepQuery {
    /// The step.
    #[schemars(with = "Key")]
    pub step: String,
    /// Only items after this one.
    #[serde(default)]
    pub after: Option<u32>,
    /// At most so many items; 0 stands for 100, and 1000 is the most.
    #[serde(default)]
    pub limit: u32,
}

/// `GET /definitions`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DefinitionQuery {
    /// Only those after this name.
    pub after: Option<String>,
    /// And after this version of it.
    pub after_version: Option<u32>,
    /// At most so many; 0 stands for 100, and 1000 is the most.
    pub limit: u32,
}

/// `GET /definitions/{name}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct VersionQuery {
    /// The version; the latest if none is named.
    pub version: Option<u32>,
}

/// What `GET /agents` answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AgentList {
    /// The agents of this page.
    pub agents: Vec<Agent>,
    /// What to give as `after` for the next page; none at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// What `GET /workers` answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerList {
    /// The agents of this page that take tasks.
    pub workers: Vec<Agent>,
    /// What to give as `after` for the next page; none at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// What `GET /pool` answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PoolReport {
    /// What the pool is for.
    pub capabilities: Vec<Capability>,
    /// What there is to do, and who is there.
    #[serde(flatten)]
    pub demand: Demand,
    /// How many tasks a worker is taken to work on at once.
    pub places: u32,
    /// What waits is to be done within this time.
    pub drain_within: Duration,
    /// So many workers are needed.
    pub required: u64,
    /// Why so many, for people.
    pub reason: String,
}

/// What `GET /tasks/stuck` answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StuckList {
    /// Those that run for much longer than usual, the longest first; 1000 at most.
    pub tasks: Vec<StuckTask>,
}

/// `POST /agents/drain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DrainRequest {
    /// The agent that is to take nothing new.
    pub id: AgentId,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Text>")]
    pub reason: Option<String>,
}

/// `POST /agents/resume`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResumeRequest {
    /// The agent that is to take tasks again.
    pub id: AgentId,
}

/// `POST /tasks/cancel` and `POST /tasks/requeue`: either tasks by their ids or a filter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TaskOrder {
    /// Which tasks, at most 1000.
    #[schemars(length(max = 1000))]
    pub tasks: Vec<TaskId>,
    /// All tasks that it fits, instead of `tasks`.
    #[serde(deserialize_with = "object", skip_serializing_if = "Option::is_none")]
    pub filter: Option<TaskFilter>,
    /// Why they are cancelled, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Text>")]
    pub reason: Option<String>,
}

/// Reads an object and nothing else: serde would also take a list of its fields, in which an order
/// about all tasks is easily hidden.
fn object<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned,
{
    let object = Option::<serde_json::Map<String, serde_json::Value>>::deserialize(deserializer)?;
    let value = object.map(|object| T::deserialize(serde_json::Value::Object(object)));
    value.transpose().map_err(D::Error::custom)
}

/// Which tasks an order is about. What is given must all fit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TaskFilter {
    /// Those that stand there; those in all states to which the order applies if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<TaskState>,
    /// Those of this kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capability: Option<Capability>,
    /// Those with this key.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Key>")]
    pub key: Option<String>,
    /// Those with this tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Key>")]
    pub tag: Option<String>,
}

/// What became of an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Ordered {
    /// A word on each task.
    pub tasks: Vec<Changed>,
    /// Whether the filter may fit further tasks: ask again.
    pub more: bool,
}

/// What became of an order about one task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Changed {
    /// The task.
    pub task: TaskId,
    /// What was done.
    pub change: Change,
}

/// The parameters of `GET /tasks/{id}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TaskWait {
    /// How long to wait for the task to be over; at most 30 s.
    pub wait: Duration,
}

/// The parameters of `GET /tasks/pending`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PendingQuery {
    /// Count also what is completed or cancelled, which takes time in proportion to it.
    pub finished: bool,
}

/// A limit and what it holds for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CapabilityLimit {
    /// The capability.
    pub capability: Capability,
    /// Its limit.
    #[serde(flatten)]
    pub limit: Limit,
}

/// `POST /tasks/claim`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClaimRequest {
    /// Who asks.
    pub agent: AgentId,
    /// The life of the agent that asks.
    pub instance: InstanceId,
    /// What it can do.
    #[schemars(length(min = 1, max = MAX_TRAITS))]
    pub capabilities: Vec<Capability>,
    /// At most so many; 1 to 256.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = MAX_CLAIM))]
    pub max: u32,
    /// How long the leases last unless extended; 100 ms to a day.
    #[serde(default = "ten_seconds")]
    pub lease: Duration,
    /// How long to wait for a task when there is none; at most 30 s.
    #[serde(default)]
    pub wait: Duration,
    /// Names this claim, so that it can be made `again` when its answer was lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ClaimId>,
    /// The claim `id` was made before and its answer was lost: what it took is given again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub again: bool,
}

fn one() -> u32 {
    1
}

fn ten_seconds() -> Duration {
    Duration::from_secs(10)
}

impl ClaimRequest {
    /// The claim, and how long it may wait.
    #[must_use]
    pub fn split(self) -> (Claim, Duration) {
        let Self { agent, instance, capabilities, max, lease, wait, id, again } = self;
        (Claim { agent, instance, capabilities, max, lease, id, again }, wait)
    }
}

/// `POST /tasks/extend`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExtendRequest {
    /// Which leases.
    #[schemars(length(max = MAX_ITEMS))]
    pub leases: Vec<LeaseRef>,
    /// From now, until when.
    pub lease: Duration,
    /// How far the holder is with them, for people: shown with the tasks as long as they run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Text>")]
    pub note: Option<String>,
}

/// The answer to a registration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Welcome {
    /// How often to show oneself.
    pub heartbeat: HeartbeatTerms,
    /// Leases of earlier lives that went back to the queue.
    pub leases_returned: u64,
    /// Where the registry itself takes heartbeats, if that is another process: an agent that
    /// goes there directly stays known while the API is away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry: Option<String>,
}

/// `POST /mailbox/acknowledge`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Acknowledgement {
    /// Whose mailbox.
    pub agent: AgentId,
    /// The sequence numbers of what was read.
    #[schemars(length(max = MAX_ITEMS))]
    pub sequences: Vec<i64>,
}

/// `POST /mailbox/reject`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MailRejection {
    /// Whose mailbox.
    pub agent: AgentId,
    /// The sequence numbers of what the agent can do nothing with.
    #[schemars(length(max = MAX_ITEMS))]
    pub sequences: Vec<i64>,
    /// Why, for people.
    #[schemars(with = "Text")]
    pub reason: String,
    /// Whether to try again is of no use: they are dead letters at once.
    #[serde(default)]
    pub at_once: bool,
}

/// What `POST /mailbox/reject` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Rejected {
    /// How many of the messages are dead letters now. The others come again.
    pub dead: u64,
}

/// What `POST /dead-letters/{id}/resend` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Resent {
    /// The new message.
    pub id: MessageId,
}

/// What `POST /messages/any` and `POST /messages/all` take: a message without a receiver.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Announcement {
    /// Chosen by the sender: announcing the same id again changes nothing for who has it.
    #[serde(default = "MessageId::new")]
    #[schemars(transform = schema::without_default)]
    pub id: MessageId,
    /// What the receivers must be able to do; needed for any of them, not for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capability: Option<Capability>,
    /// The stream it belongs to.
    #[serde(default = "default_topic")]
    #[schemars(with = "Key")]
    pub topic: String,
    /// Who sends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<AgentId>,
    /// What kind of message, such as `plan.changed`.
    #[schemars(with = "Key")]
    pub kind: String,
    /// What it says.
    #[serde(default)]
    pub body: Payload,
    /// Whose mailbox an answer is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<AgentId>,
    /// How long it is of use; then it becomes a dead letter. Without it, for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Duration>,
}

impl Announcement {
    /// An announcement of a kind, with a new id, and nothing else.
    #[must_use]
    pub fn new(kind: &str) -> Self {
        Self {
            id: MessageId::new(),
            capability: None,
            topic: default_topic(),
            from: None,
            kind: kind.to_owned(),
            body: Payload::default(),
            reply_to: None,
            ttl: None,
        }
    }

    /// The message that an agent gets of it.
    #[must_use]
    pub fn to(&self, agent: &AgentId, id: MessageId) -> NewMessage {
        NewMessage {
            id,
            topic: self.topic.clone(),
            from: self.from.clone(),
            body: self.body.clone(),
            reply_to: self.reply_to.clone(),
            ttl: self.ttl,
            ..NewMessage::new(agent.clone(), &self.kind)
        }
    }
}

/// What `POST /messages/any` answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AnnouncedTo {
    /// Who was chosen now. If the id was known, it may have gone to another one before.
    pub to: AgentId,
}

/// What `POST /messages/all` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Announced {
    /// How many agents get it.
    pub agents: u64,
}

/// What `POST /bus/switch` takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BusSwitch {
    /// The bus to use, as long as it can be used.
    pub to: BusKind,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What `POST /bus/return` takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BusReturn {
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What `GET /tasks/pending` answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Pending {
    /// Tasks that wait for their time, over all capabilities.
    #[serde(default)]
    pub scheduled: u64,
    /// Tasks that wait to be claimed, over all capabilities.
    pub ready: u64,
    /// Tasks under a lease, over all capabilities.
    pub running: u64,
    /// All counts by capability.
    pub capabilities: BTreeMap<Capability, TaskCounts>,
}

/// What `GET /health` answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Health {
    /// `ok`.
    pub status: String,
    /// The parts that the process plays.
    pub roles: BTreeSet<Role>,
    /// The version of the program.
    pub version: String,
    /// Whether it asks who comes.
    #[serde(default)]
    pub access: AccessMode,
}

/// What `GET /health/ready` answers, with 200 when ready and 503 when not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Readiness {
    /// `ready` or `unready`.
    pub status: String,
    /// By name: `store` and `bus`.
    pub checks: BTreeMap<String, CheckResult>,
}

impl Readiness {
    /// Whether every check was passed.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.status == "ready"
    }
}

/// One check of the readiness.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CheckResult {
    /// Whether it was passed.
    pub ok: bool,
    /// What was checked: `sqlite`, `postgres`, `embedded`.
    pub kind: String,
    /// How long it took.
    pub millis: u64,
    /// Where, or why it was not passed; for people.
    pub detail: String,
}

/// The answer to a token that was made.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MadeToken {
    /// The token itself. Nobody will ever see it again.
    pub secret: String,
    /// What is on record.
    #[serde(flatten)]
    pub token: AccessToken,
}

impl std::fmt::Debug for MadeToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MadeToken").field("token", &self.token).finish_non_exhaustive()
    }
}
