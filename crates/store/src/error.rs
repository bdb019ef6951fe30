//! What can go wrong in the store, and whether trying again can help.

use resurgam_model::AgentId;
use resurgam_model::agent::AgentState;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The agent has to register (again) before it can claim.
    #[error("agent {0} is not registered; register it before it claims tasks")]
    UnknownAgent(AgentId),
    /// The agent is known, but is given no tasks at present.
    #[error("agent {agent} is {state} and is given no tasks")]
    NoTasks {
        /// Which one.
        agent: AgentId,
        /// Where it stands.
        state: AgentState,
    },
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

impl Error {
    /// Whether the same call may succeed later without anyone changing anything about it. It may
    /// also have taken effect already, without the answer having arrived.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::NoWritableHost(_) | Self::Timeout(_) | Self::DiskFull(_) | Self::Closed => true,
            Self::UnknownAgent(_)
            | Self::NoTasks { .. }
            | Self::NewerSchema { .. }
            | Self::Settings(_)
            | Self::Corrupt(_) => false,
            Self::Sqlite { source, .. } => sqlite_is_transient(source),
            Self::Postgres { source, .. } => match source.code() {
                Some(code) => state_is_transient(code.code()),
                None => connection_is_lost(source),
            },
        }
    }
}

impl Error {
    /// Whether PostgreSQL ended the transaction because it and another waited for each other.
    pub(crate) fn is_deadlock(&self) -> bool {
        matches!(self, Self::Postgres { source, .. }
            if source.code().is_some_and(|code| code.code() == "40P01"))
    }
}

fn sqlite_is_transient(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode as Code;
    // A failed flush or a transaction that was rolled back whole is not the fault of the request.
    matches!(
        error.sqlite_error_code(),
        Some(
            Code::DatabaseBusy
                | Code::DatabaseLocked
                | Code::FileLockingProtocolFailed
                | Code::SystemIoFailure
                | Code::DiskFull
                | Code::OperationInterrupted
                | Code::OperationAborted
                | Code::OutOfMemory
                | Code::CannotOpen
        )
    )
}

/// By SQLSTATE, see appendix A of PostgreSQL's manual.
fn state_is_transient(code: &str) -> bool {
    matches!(
        code,
        "25006" // read_only_sql_transaction: the server is a standby now
            | "25P03" // idle_in_transaction_session_timeout
            | "40001" // serialization_failure
            | "40003" // statement_completion_unknown
            | "40P01" // deadlock_detected
            | "55P03" // lock_not_available
            | "57014" // query_canceled, by the statement timeout
    ) || ["08", "53", "57P", "58"].iter().any(|class| code.starts_with(class))
}

/// Whether the connection is of no more use. Says nothing about what the server reported.
pub(crate) fn connection_is_lost(error: &tokio_postgres::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<std::io::Error>() {
            return true;
        }
        cause = error.source();
    }
    error.is_closed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::ffi;

    fn sqlite(code: i32) -> Error {
        let source = rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
        Error::Sqlite { action: "test", source }
    }

    #[test]
    fn what_passes_by_itself_is_transient() {
        for error in [
            Error::NoWritableHost(String::new()),
            Error::Timeout(resurgam_model::Duration::from_secs(1)),
            Error::DiskFull(String::new()),
            Error::Closed,
            sqlite(ffi::SQLITE_BUSY),
            sqlite(ffi::SQLITE_BUSY_SNAPSHOT),
            sqlite(ffi::SQLITE_LOCKED),
            sqlite(ffi::SQLITE_IOERR_FSYNC),
            sqlite(ffi::SQLITE_FULL),
            sqlite(ffi::SQLITE_ABORT_ROLLBACK),
        ] {
            assert!(error.is_transient(), "{error:?}");
        }
        for code in [
            "08006", "25006", "40001", "40P01", "53300", "53100", "57014", "57P01", "57P03",
            "58030",
        ] {
            assert!(state_is_transient(code), "{code}");
        }
    }

    #[test]
    fn what_a_person_has_to_mend_is_not() {
        for error in [
            Error::UnknownAgent(AgentId::new("a").unwrap()),
            Error::NewerSchema { found: 2, known: 1 },
            Error::Settings(String::new()),
            Error::Corrupt(String::new()),
            sqlite(ffi::SQLITE_CONSTRAINT),
            sqlite(ffi::SQLITE_CORRUPT),
            sqlite(ffi::SQLITE_NOTADB),
            sqlite(ffi::SQLITE_ERROR),
        ] {
            assert!(!error.is_transient(), "{error:?}");
        }
        for code in ["22021", "23505", "42601", "42P01", "28P01"] {
            assert!(!state_is_transient(code), "{code}");
        }
    }
}
