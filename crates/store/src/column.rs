//! What both adapters do to get values in and out of columns.

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

/// A point in time from microseconds since 1970.
pub(crate) fn time(micros: i64) -> Result<Timestamp> {
    Timestamp::from_microsecond(micros).map_err(|error| Error::Corrupt(error.to_string()))
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

/// The kind of the message that tells of a completed task.
pub(crate) const COMPLETED: &str = "task.completed";

/// The kind of the message that tells of a dead task.
pub(crate) const DEAD: &str = "task.dead";

/// Why a try failed whose lease ran out.
pub(crate) const EXPIRED: &str = "the lease ran out without a word from its holder";

/// Why a try failed whose holder is no longer there.
pub(crate) const HOLDER_GONE: &str = "the holder of the lease is gone";

/// What the message about a completed task says.
pub(crate) fn completed_body(task: TaskId, result: &str) -> String {
    format!(r#"{{"task":"{task}","state":"completed","result":{result}}}"#)
}

/// What the message about a dead task says.
pub(crate) fn dead_body(task: TaskId, error: &str) -> String {
    let error = serde_json::Value::from(error);
    format!(r#"{{"task":"{task}","state":"dead","error":{error}}}"#)
}

/// How long the ids of acknowledged messages are remembered: longer than a sender that did not
/// hear the answer goes on repeating the message.
pub(crate) const REMEMBER: Duration = Duration::from_secs(60 * 60);

/// A list or map in a text column.
pub(crate) fn to_json<T: serde::Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|error| Error::Corrupt(error.to_string()))
}

/// A list or map from a text column.
pub(crate) fn from_json<T: serde::de::DeserializeOwned>(json: &str) -> Result<T> {
    serde_json::from_str(json).map_err(|error| Error::Corrupt(error.to_string()))
}
