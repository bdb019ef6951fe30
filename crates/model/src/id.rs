//! One type per kind of id, so that no two kinds can be confused.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::schema;

macro_rules! uuid_id {
    ($($(#[$doc:meta])* $name:ident;)+) => {$(
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
        )]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new id (UUID version 7: ids of one process sort by the time they were made).
            #[must_use]
            #[allow(clippy::new_without_default, reason = "an id is made on purpose, never by default")]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    )+};
}

uuid_id! {
    /// A task in the queue.
    TaskId;
    /// A message on the bus; receivers drop duplicates by it.
    MessageId;
    /// One life of a process. A restarted agent keeps its [`AgentId`] and takes a new one of these.
    InstanceId;
    /// An incident: one cause, from its first failed probe to its verified end.
    IncidentId;
    /// One execution of a runbook.
    RunId;
    /// A token that lets somebody in; the id is no secret.
    TokenId;
    /// One claim of tasks: repeating it after a lost answer gives the same leases again.
    ClaimId;
    /// A workflow that was started.
    WorkflowId;
}

impl MessageId {
    /// An id that is always the same for the same parts: the 128 bits of the hash FNV-1a over
    /// them, with a byte between one and the next that is in no text.
    #[must_use]
    pub fn derived(parts: &[&[u8]]) -> Self {
        let bytes = parts.iter().flat_map(|part| part.iter().chain(&[0xff]));
        let hash = bytes.fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128, |hash, byte| {
            (hash ^ u128::from(*byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
        });
        Self(Uuid::from_u128(hash))
    }
}

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{kind} {text:?} is not allowed: use 1 to {max} of the characters a-z, A-Z, 0-9, '.', '_', '-', ':' and '/', the first of them a letter or digit"
)]
pub struct InvalidName {
    kind: &'static str,
    text: String,
    max: usize,
}

/// Longest name in bytes.
const MAX_NAME: usize = 128;

fn check_name(kind: &'static str, text: &str) -> Result<(), InvalidName> {
    let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    let rest = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-:/".contains(&b));
    if first && rest && text.len() <= MAX_NAME {
        return Ok(());
    }
    let text = text.chars().take(MAX_NAME).collect();
    Err(InvalidName { kind, text, max: MAX_NAME })
}

macro_rules! name_id {
    ($($(#[$doc:meta])* $name:ident $kind:literal;)+) => {$(
        $(#[$doc])*
        #[derive(
            Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
        )]
        #[serde(try_from = "String", into = "String")]
        #[schemars(extend("pattern" = schema::NAME_PATTERN, "maxLength" = MAX_NAME))]
        pub struct $name(String);

        impl $name {
            /// Checks the name.
            ///
            /// # Errors
            /// When it is empty, longer than 128 bytes, or holds characters that would need
            /// quoting in a URL path, a file name or a log line.
            pub fn new(text: impl Into<String>) -> Result<Self, InvalidName> {
                let text = text.into();
                check_name($kind, &text)?;
                Ok(Self(text))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }
    )+};
}

name_id! {
    /// The name that an agent chose for itself; stable over its restarts.
    AgentId "agent name";
    /// What an agent can do; tasks ask for one.
    Capability "capability";
    /// A component of the deployment: `dotnetagents-api`, `postgres-0`, `worker-pool-2`.
    ComponentName "component name";
    /// What people call a token: `ci`, `team-a`.
    TokenName "token name";
    /// A schedule that hands in tasks.
    ScheduleName "name of a schedule";
}

impl ComponentName {
    /// An instance of a PostgreSQL that the deployment runs itself: `postgres-0` and so on.
    #[must_use]
    pub fn instance(number: u16) -> Self {
        Self(format!("postgres-{number}"))
    }
}

impl Capability {
    /// The same for the agents that have a label: `resize/zone:eu-1` is `resize` near `zone=eu-1`.
    /// Agents that are there can do both; tasks that are to be done there are handed in for this,
    /// with the capability itself as their fallback if others may do them in the end.
    ///
    /// # Errors
    /// When label and value make no name.
    pub fn near(&self, label: &str, value: &str) -> Result<Self, InvalidName> {
        Self::new(format!("{self}/{label}:{value}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capability_near_something_is_one_of_its_own() {
        let resize = Capability::new("resize").unwrap();
        assert_eq!(resize.near("zone", "eu-1").unwrap().as_str(), "resize/zone:eu-1");
        assert!(resize.near("zone", "eu 1").is_err());
        assert!(resize.near("zone", &"x".repeat(128)).is_err());
    }

    #[test]
    fn names_are_checked_on_every_way_in() {
        assert!(AgentId::new("worker-1").is_ok());
        assert!(AgentId::new("llm/gpt:4.1").is_ok());
        for bad in ["", "-x", "a b", "ä", "a\n", &"x".repeat(129)] {
            assert!(AgentId::new(bad).is_err(), "{bad:?}");
            let json = serde_json::to_string(bad).unwrap();
            assert!(serde_json::from_str::<AgentId>(&json).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_very_long_name_is_not_repeated_in_full() {
        let error = Capability::new("y".repeat(10_000)).unwrap_err().to_string();
        assert!(error.len() < 400, "{error}");
    }
}
