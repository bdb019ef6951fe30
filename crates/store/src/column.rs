//! What both adapters do to get values in and out of columns.

use resurgam_model::agent::{AgentQuery, AgentState, Heartbeat, OwnState};
use resurgam_model::task::TaskState;
use resurgam_model::{Duration, Payload, TaskId, Timestamp};

use crate::{Error, Result};

/// No wait and no lease is longer: a hundred years. Keeps sums of times within what the
/// databases can hold.
const LONGEST_MS: u64 = 100 * 366 * 24 * 60 * 60 * 1000;

/// A duration in milliseconds.
pub(crate) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis().min(LONGEST_MS)).unwrap_or(i64::MAX)
}

/// A duration in microseconds.
pub(crate) fn micros(duration: Duration) -> i64 {
    let longest = u128::from(LONGEST_MS) * 1000;
    i64::try_from(duration.0.as_micros().min(longest)).unwrap_or(i64::MAX)
}

/// When a task is due, in microseconds since 1970, within what both databases can hold and
/// [`time`] can read.
pub(crate) fn due(at: Timestamp) -> i64 {
    at.as_second().clamp(0, Timestamp::MAX.as_second() - 1) * 1_000_000
        + i64::from(at.subsec_microsecond().max(0))
}

/// A count for a column of 32 bits; nobody counts further.
pub(crate) fn small(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// A point in time from microseconds since 1970.
pub(crate) fn time(micros: i64) -> Result<Timestamp> {
    Timestamp::from_microsecond(micros).map_err(|error| Error::Corrupt(error.to_string()))
}

/// A point in time as PostgreSQL's driver gives it.
pub(crate) fn moment(at: std::time::SystemTime) -> Result<Timestamp> {
    Timestamp::try_from(at).map_err(|error| Error::Corrupt(error.to_string()))
}

/// A point in time that may be missing.
pub(crate) fn time_if(micros: Option<i64>) -> Result<Option<Timestamp>> {
    micros.map(time).transpose()
}

/// A value that was checked before it was stored.
pub(crate) fn parsed<T>(text: &str) -> Result<T>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    text.parse().map_err(|error: T::Err| Error::Corrupt(error.to_string()))
}

/// A value that may be missing.
pub(crate) fn parsed_if<T>(text: Option<&str>) -> Result<Option<T>>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    text.map(parsed).transpose()
}

/// JSON as it came in.
pub(crate) fn payload(json: String) -> Result<Payload> {
    Payload::from_json(json).map_err(|error| Error::Corrupt(format!("a payload: {error}")))
}

/// A whole number that is never negative.
pub(crate) fn unsigned<T: TryFrom<i64>>(number: i64) -> Result<T> {
    T::try_from(number).map_err(|_| Error::Corrupt(format!("the number {number} is out of range")))
}

/// Why a try failed whose lease ran out.
pub(crate) const EXPIRED: &str = "the lease ran out without a word from its holder";

/// Why a try failed whose holder is no longer there.
pub(crate) const HOLDER_GONE: &str = "the holder of the lease is gone";

/// Why a try failed that took too long.
pub(crate) const TIMED_OUT: &str = "the try took longer than the task's timeout";

/// What the message about a task says that is over: `said` is the result of a completed task as
/// JSON, or else the reason.
pub(crate) fn over_body(task: TaskId, state: TaskState, said: &str) -> String {
    let name = state.as_str();
    if state == TaskState::Completed {
        return format!(r#"{{"task":"{task}","state":"{name}","result":{said}}}"#);
    }
    let error = serde_json::Value::from(said);
    format!(r#"{{"task":"{task}","state":"{name}","error":{error}}}"#)
}

/// How long the ids of acknowledged messages are remembered: longer than a sender that did not
/// hear the answer goes on repeating the message.
pub const REMEMBER: Duration = Duration::from_secs(60 * 60);

/// A list or map in a text column.
pub(crate) fn to_json<T: serde::Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|error| Error::Corrupt(error.to_string()))
}

/// A list or map from a text column.
pub(crate) fn from_json<T: serde::de::DeserializeOwned>(json: &str) -> Result<T> {
    serde_json::from_str(json).map_err(|error| Error::Corrupt(error.to_string()))
}

/// Where an agent stands, from the column `state` and whether all its places are taken.
pub(crate) fn agent_state(state: &str, full: bool) -> Result<AgentState> {
    match state {
        "available" if full => Ok(AgentState::Busy),
        "available" => Ok(AgentState::Available),
        "draining" => Ok(AgentState::Draining),
        "unhealthy" => Ok(AgentState::Unhealthy),
        "gone" => Ok(AgentState::Gone),
        other => Err(Error::Corrupt(format!("the agent state {other:?}"))),
    }
}

/// What stands in the column `state` for it, and whether all places are taken if that matters.
pub(crate) fn agent_state_column(state: AgentState) -> (Option<&'static str>, Option<bool>) {
    match state {
        AgentState::Available => (Some("available"), Some(false)),
        AgentState::Busy => (Some("available"), Some(true)),
        AgentState::Draining => (Some("draining"), None),
        AgentState::Unhealthy => (Some("unhealthy"), None),
        AgentState::Gone => (Some("gone"), None),
    }
}

/// Which numbers of free places a list by load is about, from the least to the most.
pub(crate) fn free_range(query: &AgentQuery) -> (i64, i64) {
    let (least, most) = match query.state {
        None => (0, i64::MAX),
        Some(AgentState::Available) => (1, i64::MAX),
        Some(AgentState::Busy) => (0, 0),
        Some(AgentState::Draining | AgentState::Unhealthy | AgentState::Gone) => (-1, -1),
    };
    let after = query.after.as_ref().and_then(|after| after.free);
    (least, after.map_or(most, |after| after.min(most)))
}

/// Why a list by load was refused.
pub(crate) const NO_ORDER: &str = "agents are in the order of their load only for one capability";

/// What an agent says of its own state, as it is kept, and how many places it says are taken.
/// One that is busy is available with all places taken.
pub(crate) fn own_state(beat: &Heartbeat) -> (Option<&'static str>, Option<i64>) {
    let load = beat.load.map(i64::from);
    match beat.state {
        None => (None, load),
        // Takes back a `busy` said before.
        Some(OwnState::Available) => (Some("available"), load.or(Some(0))),
        Some(OwnState::Busy) => (Some("available"), load.or(Some(i64::from(u32::MAX)))),
        Some(OwnState::Draining) => (Some("draining"), load),
        Some(OwnState::Unhealthy) => (Some("unhealthy"), load),
    }
}
