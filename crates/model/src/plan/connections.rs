//! What is done when the connections of PostgreSQL run out.

use serde::{Deserialize, Serialize};

use crate::Duration;

/// When the connections of an owned PostgreSQL count as exhausted, and whose may be ended then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Connections {
    /// It is an incident once so much of what is there for ordinary users is taken, in percent.
    pub full_at: u32,
    /// In which states connections may be ended at all.
    pub end: Vec<Endable>,
    /// One that has done nothing in an open transaction for so long looks leaked. The written
    /// procedure says 5 minutes, which is also all that it allows for the whole recovery.
    pub idle_in_transaction: Duration,
    /// One that has had no transaction for so long is not needed.
    pub idle: Duration,
    /// A statement that has run for so long is taken for one that never ends.
    pub active: Duration,
    /// Applications whose connections are never ended, by `application_name`.
    pub protect: Vec<String>,
}

impl Default for Connections {
    fn default() -> Self {
        Self {
            full_at: 90,
            end: vec![Endable::IdleInTransaction, Endable::Idle],
            idle_in_transaction: Duration::from_secs(60),
            idle: Duration::from_secs(2 * 60),
            active: Duration::from_secs(10 * 60),
            protect: Vec::new(),
        }
    }
}

/// A state of connections that may be ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Endable {
    /// A transaction is open, and nothing is done in it.
    IdleInTransaction,
    /// No transaction is open.
    Idle,
    /// A statement runs.
    Active,
}

impl Connections {
    /// What cannot be used: the key, and what is wrong with it.
    pub(super) fn check(&self) -> Result<(), (String, String)> {
        let key = |key: &str| format!("postgres.connections.{key}");
        if !(10..=100).contains(&self.full_at) {
            let problem = format!("is {}; it must be from 10 to 100 percent", self.full_at);
            return Err((key("full_at"), problem));
        }
        for (name, age) in [
            ("idle_in_transaction", self.idle_in_transaction),
            ("idle", self.idle),
            ("active", self.active),
        ] {
            // In less time a transaction that is at work may pause between two statements.
            if !(Duration::from_secs(1)..=Duration::from_secs(86_400)).contains(&age) {
                return Err((key(name), format!("is {age}; it must be from 1s to 24h")));
            }
        }
        Ok(())
    }
}
