//! Tasks and the leases under which they are worked on.

use std::fmt;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::Moment;
use crate::{AgentId, Capability, Duration, InstanceId, Payload, TaskId};

/// Where a task stands.
///
/// ```text
/// ready ──claim──▶ running ──complete──▶ completed
///   ▲                 │
///   └─ fail, expiry ──┴── tries used up ──▶ dead
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TaskState {
    /// Waits to be claimed, perhaps until its time has come.
    Ready,
    /// An agent holds a lease on it.
    Running,
    /// Done; its result is kept.
    Completed,
    /// All tries failed: it waits for a person in the dead-letter queue.
    Dead,
}

impl TaskState {
    /// The name in the database and in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Dead => "dead",
        }
    }

    /// Nothing changes it any more.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Dead)
    }
}

impl std::str::FromStr for TaskState {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Ready, Self::Running, Self::Completed, Self::Dead]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| {
                format!("there is no task state {text:?}; use ready, running, completed or dead")
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

/// How often and how far apart a task is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RetryPolicy {
    /// Claims that may end in failure or in a lost lease before the task is dead; at least 1.
    pub max_attempts: u32,
    /// The wait after the first failure; it doubles with each further one.
    pub backoff: Duration,
    /// The longest wait.
    pub max_backoff: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: 25,
            backoff: Duration::from_millis(500),
            max_backoff: Duration::from_secs(300),
        }
    }
}

impl RetryPolicy {
    /// The wait before the try that follows failure number `attempt` (1 is the first).
    #[must_use]
    pub fn delay_after(&self, attempt: u32) -> Duration {
        let doublings = attempt.saturating_sub(1).min(32);
        let millis = self.backoff.as_millis().saturating_mul(1_u64 << doublings);
        Duration::from_millis(millis.min(self.max_backoff.as_millis()))
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
    pub idempotency_key: Option<String>,
    /// Higher goes first; 0 by default.
    #[serde(default)]
    pub priority: i16,
    /// How long it waits before it can be claimed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<Duration>,
    /// Tries and waits.
    #[serde(default)]
    pub retry: RetryPolicy,
    /// Who gets a message on the bus when the task is completed or dead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<AgentId>,
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
            retry: RetryPolicy::default(),
            reply_to: None,
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
    /// Claims so far.
    pub attempts: u32,
    /// The token of the last lease; 0 before the first.
    pub token: Token,
    /// Who holds the lease.
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
    /// When it was completed or declared dead.
    #[schemars(with = "Option<Moment>")]
    pub finished_at: Option<Timestamp>,
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
}

/// Names a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct LeaseRef {
    /// The task.
    pub task: TaskId,
    /// The token of the lease.
    pub token: Token,
}

/// A task done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Completion {
    /// Under which lease.
    #[serde(flatten)]
    pub lease: LeaseRef,
    /// What it gave.
    #[serde(default)]
    pub result: Payload,
}

/// A try that failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Failure {
    /// Under which lease.
    #[serde(flatten)]
    pub lease: LeaseRef,
    /// Why, for people.
    pub error: String,
    /// False when another try cannot help: the task is dead at once.
    #[serde(default = "yes")]
    pub retry: bool,
}

fn yes() -> bool {
    true
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

/// Tasks by state, for one capability or all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TaskCounts {
    /// Waiting.
    pub ready: u64,
    /// Under a lease.
    pub running: u64,
    /// Done.
    pub completed: u64,
    /// Given up.
    pub dead: u64,
}

/// Which tasks to list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TaskQuery {
    /// Only those that stand there.
    pub state: Option<TaskState>,
    /// Only those of this kind.
    pub capability: Option<Capability>,
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
    fn backoff_doubles_up_to_its_limit_and_never_overflows() {
        let policy = RetryPolicy {
            max_attempts: 5,
            backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(1),
        };
        let waits: Vec<_> = (1..=6).map(|n| policy.delay_after(n).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(policy.delay_after(u32::MAX).as_millis(), 1000);
    }

    #[test]
    fn unknown_fields_of_a_task_are_refused() {
        let error = serde_json::from_str::<NewTask>(r#"{"capability":"x","prio":3}"#).unwrap_err();
        assert!(error.to_string().contains("prio"), "{error}");
    }
}
