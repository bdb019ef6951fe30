//! How words about leases are read: without fields inside fields, so that one that is not known
//! can be refused.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{LeaseRef, Token};
use crate::{Payload, TaskId};

/// A task done.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Completion {
    /// The task.
    task: TaskId,
    /// The token of the lease.
    token: Token,
    /// What it gave.
    #[serde(default)]
    result: Payload,
}

impl From<Completion> for super::Completion {
    fn from(form: Completion) -> Self {
        let Completion { task, token, result } = form;
        Self { lease: LeaseRef { task, token }, result }
    }
}

/// A try that failed.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Failure {
    /// The task.
    task: TaskId,
    /// The token of the lease.
    token: Token,
    /// Why, for people.
    error: String,
    /// False when another try cannot help: the task is dead at once.
    #[serde(default = "yes")]
    retry: bool,
}

fn yes() -> bool {
    true
}

impl From<Failure> for super::Failure {
    fn from(form: Failure) -> Self {
        let Failure { task, token, error, retry } = form;
        Self { lease: LeaseRef { task, token }, error, retry }
    }
}

#[cfg(test)]
mod tests {
    use crate::task::{Completion, Failure};

    #[test]
    fn what_is_sent_is_read_and_what_is_not_known_is_refused() {
        let task = "0198c0de-0000-7000-8000-000000000000";
        let text = format!(r#"{{"task":"{task}","token":3,"result":[1]}}"#);
        let completion: Completion = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&completion).unwrap(), text);
        let text = format!(r#"{{"task":"{task}","token":3,"error":"x","retry":false}}"#);
        let failure: Failure = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&failure).unwrap(), text);
        let short = format!(r#"{{"task":"{task}","token":3,"error":"x"}}"#);
        assert!(serde_json::from_str::<Failure>(&short).unwrap().retry);
        let misspelt = format!(r#"{{"task":"{task}","token":3,"results":1}}"#);
        assert!(serde_json::from_str::<Completion>(&misspelt).is_err());
    }
}
