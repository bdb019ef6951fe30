//! How errors of SQLite become errors of the store.

use rusqlite::ErrorCode;
use rusqlite::ffi;

use crate::Error;

/// What can go wrong inside a request; turned into an [`Error`] where it is known what the
/// request was for.
#[derive(Debug)]
pub(super) enum Fault {
    /// SQLite refused.
    Sql(rusqlite::Error),
    /// Something of our own.
    Store(Error),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

impl Fault {
    /// The error to tell.
    pub(super) fn during(self, action: &'static str) -> Error {
        match self {
            Self::Sql(source) => during(source, action),
            Self::Store(error) => error,
        }
    }
}

/// The error to tell for one of SQLite's.
pub(super) fn during(source: rusqlite::Error, action: &'static str) -> Error {
    if source.sqlite_error_code() == Some(ErrorCode::DiskFull) {
        return Error::DiskFull(format!("SQLite could not {action}"));
    }
    Error::Sqlite { action, source }
}

/// The same error for one more caller: SQLite's errors cannot be cloned.
pub(super) fn copy(error: &rusqlite::Error, action: &'static str) -> Error {
    let code = match error {
        rusqlite::Error::SqliteFailure(code, _) => *code,
        _ => ffi::Error::new(ffi::SQLITE_ABORT),
    };
    during(rusqlite::Error::SqliteFailure(code, Some(error.to_string())), action)
}

/// An error that stands for a transaction that SQLite ended by itself.
pub(super) fn failed(what: &str) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(
        ffi::Error::new(ffi::SQLITE_ABORT_ROLLBACK),
        Some(what.to_owned()),
    )
}
