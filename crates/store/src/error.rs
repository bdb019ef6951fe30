//! What can go wrong in the store, and whether trying again can help.

use resurgam_model::AgentId;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The agent has to register (again) before it can claim.
    #[error("agent {0} is not registered; register it before it claims tasks")]
    UnknownAgent(AgentId),
    /// A later version of the program has changed the schema.
    #[error(
        "the database has schema version {found}, but this program knows only up to {known}; run a newer resurgam"
    )]
    NewerSchema {
        /// What the database has.
        found: i64,
        /// What this program knows.
        known: i64,
    },
    /// The settings for the store make no sense.
    #[error("the database settings cannot be used: {0}")]
    Settings(String),
    /// No server was reachable that accepts writes.
    #[error("no writable database: {0}")]
    NoWritableHost(String),
    /// It took too long; it may or may not have taken effect.
    #[error("the database did not answer within {0}")]
    Timeout(resurgam_model::Duration),
    /// The disk is full.
    #[error("no space is left for the database ({0}); free some, nothing was lost")]
    DiskFull(String),
    /// SQLite refused.
    #[error("SQLite failed to {action}")]
    Sqlite {
        /// What was being done.
        action: &'static str,
        /// Why it failed.
        source: rusqlite::Error,
    },
    /// PostgreSQL refused, or the connection broke.
    #[error("PostgreSQL failed to {action}")]
    Postgres {
        /// What was being done.
        action: &'static str,
        /// Why it failed.
        source: tokio_postgres::Error,
    },
    /// What is stored does not fit the program.
    #[error("the database holds something unreadable: {0}")]
    Corrupt(String),
    /// The store is being shut down.
    #[error("the store is closed")]
    Closed,
}
