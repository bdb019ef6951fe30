//! Who holds the connections of PostgreSQL, at one moment.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::blank::blank;

/// How many connections there are, and how many of them are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seats {
    /// Connections of clients, whoever they are. Those that stream do not count.
    pub taken: u32,
    /// So many may be taken before ordinary users are refused: `max_connections` without what is
    /// reserved for superusers and others.
    pub limit: u32,
}

impl Seats {
    /// At least so much is taken, in percent.
    #[must_use]
    pub fn reach(self, percent: u32) -> bool {
        u64::from(self.taken) * 100 >= u64::from(self.limit) * u64::from(percent)
    }
}

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// A transaction is open, and nothing is done in it.
    IdleInTransaction,
    /// No transaction is open.
    Idle,
    /// A statement runs.
    Active,
    /// The server does not say.
    Unknown,
}

impl State {
    /// From `pg_stat_activity.state`.
    pub(super) fn new(text: Option<&str>) -> Self {
        match text {
            Some("active" | "fastpath function call") => Self::Active,
            Some("idle") => Self::Idle,
            Some("idle in transaction" | "idle in transaction (aborted)") => {
                Self::IdleInTransaction
            }
            _ => Self::Unknown,
        }
    }
}

/// A connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The server's process for it.
    pub pid: i32,
    /// When it began, in microseconds since 1970: with the process, which connection it is.
    pub began_us: i64,
    /// Since when it is in its state, in microseconds since 1970.
    pub since_us: Option<i64>,
    /// Whose it is.
    pub user: String,
    /// That user is a superuser.
    pub superuser: bool,
    /// What the client calls itself.
    pub application: String,
    /// Where the client is, as the server sees it.
    pub address: String,
    /// What it is doing.
    pub state: State,
    /// For how long, in milliseconds.
    pub state_ms: u64,
    /// The statement that it did last, without what stood in it as values.
    pub statement: String,
}

impl Session {
    pub(super) fn with_statement(mut self, text: &str) -> Self {
        self.statement = blank(text);
        self
    }
}

/// All connections at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Census {
    /// How many there are and can be.
    pub seats: Seats,
    /// Those of clients, without the one that asks.
    pub sessions: Vec<Session>,
}

/// Connections of one application and one user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// What the client calls itself; may be empty.
    pub application: String,
    /// The user.
    pub user: String,
    /// All of them.
    pub connections: u32,
    /// Those that do nothing in an open transaction.
    pub idle_in_transaction: u32,
    /// Those without a transaction.
    pub idle: u32,
    /// Those at work.
    pub active: u32,
    /// For how long the one that has changed least has been in its state, in milliseconds.
    pub longest_ms: u64,
    /// What that one did last, without values.
    pub statement: String,
}

impl Holder {
    /// The application as people read it.
    #[must_use]
    pub fn name(&self) -> &str {
        if self.application.is_empty() { "(no application name)" } else { &self.application }
    }

    fn states(&self) -> String {
        let mut text = String::new();
        for (count, state) in [
            (self.idle_in_transaction, "idle in transaction"),
            (self.active, "active"),
            (self.idle, "idle"),
        ] {
            if count > 0 {
                let comma = if text.is_empty() { "" } else { ", " };
                let _ = write!(text, "{comma}{count} {state}");
            }
        }
        text
    }
}

impl Census {
    /// By application and user, the one with the most first.
    #[must_use]
    pub fn holders(&self) -> Vec<Holder> {
        let mut all: BTreeMap<(&str, &str), Holder> = BTreeMap::new();
        for session in &self.sessions {
            let holder =
                all.entry((&session.application, &session.user)).or_insert_with(|| Holder {
                    application: session.application.clone(),
                    user: session.user.clone(),
                    connections: 0,
                    idle_in_transaction: 0,
                    idle: 0,
                    active: 0,
                    longest_ms: 0,
                    statement: String::new(),
                });
            holder.connections += 1;
            match session.state {
                State::IdleInTransaction => holder.idle_in_transaction += 1,
                State::Idle => holder.idle += 1,
                State::Active => holder.active += 1,
                State::Unknown => {}
            }
            if session.state_ms >= holder.longest_ms {
                holder.longest_ms = session.state_ms;
                holder.statement.clone_from(&session.statement);
            }
        }
        let mut all: Vec<_> = all.into_values().collect();
        all.sort_by_key(|holder| std::cmp::Reverse(holder.connections));
        all
    }
}

/// Who has them, in a sentence.
#[must_use]
pub fn account(seats: Seats, holders: &[Holder]) -> String {
    let mut text = format!("{} of {} connections are taken", seats.taken, seats.limit);
    if let Some(most) = holders.first() {
        let _ = write!(
            text,
            ", {} of them by {} as user {} ({})",
            most.connections,
            most.name(),
            most.user,
            most.states()
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::leak::tests::session;
    use super::*;

    #[test]
    fn seats_are_counted_in_percent_of_what_ordinary_users_may_have() {
        let seats = |taken, limit| Seats { taken, limit };
        assert!(seats(90, 100).reach(90));
        assert!(!seats(89, 100).reach(90));
        assert!(seats(0, 0).reach(90), "nobody can connect");
    }

    #[test]
    fn holders_are_sorted_by_what_they_hold_and_show_their_longest() {
        let census = Census {
            seats: Seats { taken: 4, limit: 10 },
            sessions: vec![
                session(1, "small", State::Idle, 5),
                session(2, "big", State::Active, 7),
                session(3, "big", State::IdleInTransaction, 9000).with_statement("SELECT 'x'"),
                session(4, "big", State::IdleInTransaction, 8),
            ],
        };
        let holders = census.holders();
        assert_eq!(holders.len(), 2);
        assert_eq!(
            account(census.seats, &holders),
            "4 of 10 connections are taken, 3 of them by big as user dotnetagents (2 idle in transaction, 1 active)"
        );
        assert_eq!((holders[0].longest_ms, holders[0].statement.as_str()), (9000, "SELECT ?"));
    }
}
