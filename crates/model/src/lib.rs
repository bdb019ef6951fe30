//! The vocabulary of Resurgam: ids, durations, severities, states, the plan and the report.
//!
//! Everything here is a plain value. Nothing does I/O, reads a clock or keeps global state, so
//! that every decision built on these types can be tested without a machine around it.

pub mod access;
pub mod agent;
pub mod bus;
pub mod database;
pub mod duration;
pub mod id;
pub mod limit;
pub mod message;
pub mod objective;
pub mod payload;
pub mod plan;
pub mod pool;
pub mod report;
pub mod role;
pub mod scenario;
pub mod schedule;
pub mod schema;
pub mod stuck;
pub mod task;
pub mod workflow;

pub use duration::Duration;
pub use id::{
    AgentId, Capability, ClaimId, ComponentName, IncidentId, InstanceId, InvalidName, MessageId,
    RunId, ScheduleName, TaskId, TokenId, TokenName, WorkflowId,
};
pub use jiff::Timestamp;
pub use objective::{Objectives, Severity};
pub use payload::Payload;
pub use role::Role;
pub use scenario::Scenario;
