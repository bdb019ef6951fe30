//! Tasks and the leases under which they are worked on.

mod forms;
mod retry;

pub use retry::{Backoff, RetryPolicy};

use std::fmt;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::{Key, Moment};
use crate::{AgentId, Capability, ClaimId, Duration, InstanceId, Payload, TaskId, WorkflowId};

/// Where a task stands.
///
/// ```text
/// scheduled ──its time──▶ ready ──claim──▶ running ──complete──▶ completed
///     ▲                     ▲                 │
///     └────── fail ─────────┴── lease lost ───┼── tries used up ──▶ dead
///  scheduled, ready, running ────── cancel ───┴───────────────▶ cancelled
///                dead, cancelled ──requeue──▶ ready
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TaskState {
    /// Its time has not come.
    Scheduled,
    /// Waits to be claimed.
    Ready,
    /// An agent holds a lease on it.
    Running,
    /// Done; its result is kept.
    Completed,
    /// All tries failed: it waits for a person in the dead-letter queue.
    Dead,
    /// Somebody took it back.
    Cancelled,
}

impl TaskState {
    /// All of them, in the order of a task's life.
    pub const ALL: [Self; 6] =
        [Self::Scheduled, Self::Ready, Self::Running, Self::Completed, Self::Dead, Self::Cancelled];

    /// The name in the database and in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Ready => "ready",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
        }
    }

    /// It is over: only requeueing changes it any more.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Dead | Self::Cancelled)
    }
}

impl std::str::FromStr for TaskState {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|state| state.as_str() == text).ok_or_else(|| {
            format!(
                "there is no task state {text:?}; use scheduled, ready, running, completed, dead \
                 or cancelled"
            )
        })
    }
}

/// The fencing token of a lease. It grows with each claim of its task, so that a late worker's
/// token is always smaller than the present one and changes nothing.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct Token(pub i64);

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A task as it is handed in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewTask {
    /// What an agent must be able to do.
    pub capability: Capability,
    /// What it works on.
    #[serde(default)]
    pub payload: Payload,
    /// Handing in the same key again gives the first task back instead of a second one. Keys
    /// are kept as long as their tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Key>")]
    pub idempotency_key: Option<String>,
    /// Higher goes first; 0 by default.
    #[serde(default)]
    pub priority: i16,
    /// How long it waits before it can be claimed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<Duration>,
    /// Not to be claimed before this moment; instead of `delay`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Moment>")]
    pub run_at: Option<Timestamp>,
    /// How long one try may take: the lease cannot be extended beyond, and when it is over the
    /// try has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// For whom or what it is done (a customer, an account): limits can hold for each key, and
    /// keys take turns where they do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Key>")]
    pub key: Option<String>,
    /// Words to find it by; at most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<Key>", length(max = 32))]
    pub tags: Vec<String>,
    /// How long it is kept once it is completed or cancelled; [`DEFAULT_KEEP`] if not given.
    /// Dead tasks stay until somebody deals with them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<Duration>,
    /// Tries and waits.
    #[serde(default)]
    pub retry: RetryPolicy,
    /// For which other agents it is when nobody has begun it after a while.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Fallback>,
    /// Who gets a message on the bus when the task is completed, dead or cancelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<AgentId>,
    /// The step of a workflow that it carries out. Callers cannot set it: only the platform
    /// hands in such tasks.
    #[serde(skip_deserializing, default, skip_serializing_if = "Option::is_none")]
    pub workflow: Option<WorkflowStep>,
}

/// For whom a task is when nobody has begun it after a while: it is handed in for the agents that
/// are near, and becomes one for all that are able to do it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Fallback {
    /// What an agent must be able to do then, instead.
    pub capability: Capability,
    /// How long after it could be claimed first.
    pub after: Duration,
}

/// How long completed and cancelled tasks are kept unless they say otherwise.
pub const DEFAULT_KEEP: Duration = Duration::from_secs(7 * 24 * 3600);

/// A step of a workflow.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct WorkflowStep {
    /// The workflow.
    pub workflow: WorkflowId,
    /// The step, and which one of a fan-out.
    pub step: String,
}

impl NewTask {
    /// A task with nothing but a capability and a payload.
    #[must_use]
    pub fn new(capability: Capability, payload: Payload) -> Self {
        Self {
            capability,
            payload,
            idempotency_key: None,
            priority: 0,
            delay: None,
            run_at: None,
            timeout: None,
            key: None,
            tags: Vec::new(),
            keep: None,
            retry: RetryPolicy::default(),
            fallback: None,
            reply_to: None,
            workflow: None,
        }
    }
}

/// The answer to handing in a task: it is durable now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Submitted {
    /// The task.
    pub id: TaskId,
    /// False when the idempotency key was known: `id` is then the earlier task.
    pub created: bool,
}

/// A task as it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Task {
    /// Its id.
    pub id: TaskId,
    /// What an agent must be able to do.
    pub capability: Capability,
    /// Where it stands.
    pub state: TaskState,
    /// What it works on.
    pub payload: Payload,
    /// What it gave, once completed.
    pub result: Option<Payload>,
    /// Why the last try failed.
    pub error: Option<String>,
    /// Its key, if it was given one.
    pub idempotency_key: Option<String>,
    /// Higher goes first.
    pub priority: i16,
    /// For whom or what it is done.
    pub key: Option<String>,
    /// Words to find it by.
    pub tags: Vec<String>,
    /// How long one try may take.
    pub timeout: Option<Duration>,
    /// Tries and waits.
    pub retry: RetryPolicy,
    /// For which other agents it is when nobody has begun it after a while; none once it is.
    #[serde(default)]
    pub fallback: Option<Fallback>,
    /// What its holder said last of how far it is.
    #[serde(default)]
    pub note: Option<String>,
    /// Who gets a message when it is over.
    pub reply_to: Option<AgentId>,
    /// The step of a workflow that it carries out.
    pub workflow: Option<WorkflowStep>,
    /// Claims since it was handed in or requeued.
    pub attempts: u32,
    /// The token of the last lease; 0 before the first.
    pub token: Token,
    /// Who holds the lease; once it is over, who held the last one.
    pub held_by: Option<AgentId>,
    /// When the lease ends.
    #[schemars(with = "Option<Moment>")]
    pub lease_until: Option<Timestamp>,
    /// Not to be claimed earlier.
    #[schemars(with = "Moment")]
    pub run_at: Timestamp,
    /// When it was handed in.
    #[schemars(with = "Moment")]
    pub created_at: Timestamp,
    /// When the last try began.
    #[schemars(with = "Option<Moment>")]
    pub started_at: Option<Timestamp>,
    /// When it was completed, declared dead or cancelled.
    #[schemars(with = "Option<Moment>")]
    pub finished_at: Option<Timestamp>,
    /// When it is forgotten.
    #[schemars(with = "Option<Moment>")]
    pub expires_at: Option<Timestamp>,
}

/// Which tasks an agent wants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// Who asks; it must be registered.
    pub agent: AgentId,
    /// The life of the agent that asks.
    pub instance: InstanceId,
    /// What it can do.
    pub capabilities: Vec<Capability>,
    /// At most so many.
    pub max: u32,
    /// How long the leases last unless extended.
    pub lease: Duration,
    /// Names this claim, for [`Claim::again`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ClaimId>,
    /// The claim was made before and its answer was lost: what it took is given again, and
    /// only if it took nothing it is made anew.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub again: bool,
}

/// The right to work on a task for a while.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Lease {
    /// The task.
    pub task: TaskId,
    /// Proves the right; to be given with every later word about the task.
    pub token: Token,
    /// What it is about.
    pub capability: Capability,
    /// What to work on.
    pub payload: Payload,
    /// 1 on the first try.
    pub attempt: u32,
    /// When the right ends unless it is extended.
    #[schemars(with = "Moment")]
    pub until: Timestamp,
    /// Beyond which it cannot be extended, if the task has a timeout.
    #[schemars(with = "Option<Moment>")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_at: Option<Timestamp>,
}

/// Names a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LeaseRef {
    /// The task.
    pub task: TaskId,
    /// The token of the lease.
    pub token: Token,
}

/// A task done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "forms::Completion")]
pub struct Completion {
    /// Under which lease.
    #[serde(flatten)]
    pub lease: LeaseRef,
    /// What it gave.
    pub result: Payload,
}

/// A try that failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "forms::Failure")]
pub struct Failure {
    /// Under which lease.
    #[serde(flatten)]
    pub lease: LeaseRef,
    /// Why, for people.
    pub error: String,
    /// False when another try cannot help: the task is dead at once.
    pub retry: bool,
}

/// What became of a word about a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It took effect, now or when the same word was said before.
    Accepted,
    /// The lease was no longer valid; nothing was changed.
    Stale,
    /// There is no such task.
    Unknown,
}

/// What became of an order to cancel or requeue a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// Done.
    Changed,
    /// The task was in another state, in which this cannot be done; nothing was changed.
    Unchanged,
    /// There is no such task.
    Unknown,
}

/// Tasks by state, for one capability or all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TaskCounts {
    /// Waiting for their time.
    pub scheduled: u64,
    /// Waiting to be claimed.
    pub ready: u64,
    /// Under a lease.
    pub running: u64,
    /// Done, and not yet forgotten. 0 where finished tasks were not counted.
    pub completed: u64,
    /// Given up.
    pub dead: u64,
    /// Taken back, and not yet forgotten. 0 where finished tasks were not counted.
    pub cancelled: u64,
}

impl TaskCounts {
    /// The count of one state.
    #[must_use]
    pub fn of(&mut self, state: TaskState) -> &mut u64 {
        match state {
            TaskState::Scheduled => &mut self.scheduled,
            TaskState::Ready => &mut self.ready,
            TaskState::Running => &mut self.running,
            TaskState::Completed => &mut self.completed,
            TaskState::Dead => &mut self.dead,
            TaskState::Cancelled => &mut self.cancelled,
        }
    }
}

/// Which tasks to list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TaskQuery {
    /// Only those that stand there.
    pub state: Option<TaskState>,
    /// Only those of this kind.
    pub capability: Option<Capability>,
    /// Only those with this key.
    #[schemars(with = "Option<Key>")]
    pub key: Option<String>,
    /// Only those with this tag.
    #[schemars(with = "Option<Key>")]
    pub tag: Option<String>,
    /// Only those that came after this one.
    pub after: Option<TaskId>,
    /// At most so many; 0 stands for 100, and 1000 is the most.
    pub limit: u32,
}

impl TaskQuery {
    /// The limit that applies.
    #[must_use]
    pub fn effective_limit(&self) -> u32 {
        if self.limit == 0 { 100 } else { self.limit.min(1000) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_of_a_task_are_refused() {
        let error = serde_json::from_str::<NewTask>(r#"{"capability":"x","prio":3}"#).unwrap_err();
        assert!(error.to_string().contains("prio"), "{error}");
    }

    #[test]
    fn nobody_hands_in_a_task_of_a_workflow() {
        let json = format!(
            r#"{{"capability":"x","workflow":{{"workflow":"{}","step":"a"}}}}"#,
            WorkflowId::new()
        );
        assert!(serde_json::from_str::<NewTask>(&json).is_err());
    }
}
