//! The recovery journal: a SQLite file outside every database that is recovered.
//!
//! What is about to be done is written here before it is done, and synced to disk
//! (`synchronous = FULL`). If the controller dies, the next one reads where it was.
//!
//! The journal also keeps the [`cluster::ClusterState`], on which fencing rests: a reign is
//! recorded before the instance that shall have it can learn of it.

pub mod cluster;
mod incidents;
mod steps;

pub use incidents::{Incident, IncidentState, NewIncident};
pub use steps::StepRecord;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use resurgam_model::Timestamp;
use rusqlite::{Connection, OptionalExtension};

use crate::{Error, Result};

/// A handle to the journal. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Journal {
    connection: Arc<Mutex<Connection>>,
}

impl Journal {
    /// Opens it, or makes a new one.
    ///
    /// # Errors
    /// When the file cannot be used or is no journal.
    pub fn open(path: &Path) -> Result<Self> {
        let open = || {
            let connection = Connection::open(path)?;
            connection.busy_timeout(std::time::Duration::from_secs(5))?;
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.pragma_update(None, "foreign_keys", "ON")?;
            connection.execute_batch(include_str!("schema.sql"))?;
            Ok(connection)
        };
        let connection =
            open().map_err(|source| Error::OpenJournal { path: path.to_owned(), source })?;
        Ok(Self { connection: Arc::new(Mutex::new(connection)) })
    }

    /// Runs a piece of work on the connection. The pieces are short, and each ends with at most
    /// one sync of the disk.
    fn with<T>(
        &self,
        action: &'static str,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T>,
    ) -> Result<T> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        work(&mut connection).map_err(error(action))
    }

    fn meta(&self, key: &str) -> Result<Option<String>> {
        self.with("be read", |c| {
            c.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0)).optional()
        })
    }

    fn set_meta(&self, key: &str, value: &str) -> Result<()> {
        self.with("be written", |c| {
            c.execute(
                "INSERT INTO meta (key, value) VALUES (?1, ?2)
                 ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                [key, value],
            )?;
            Ok(())
        })
    }

    /// Notes that the deployment is being run, and tells whether the run before ended in order.
    /// True also when there was none.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn begin_run(&self) -> Result<bool> {
        let clean = self.meta("running")?.is_none_or(|value| value == "no");
        self.set_meta("running", "yes")?;
        Ok(clean)
    }

    /// Notes that the run ended in order.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn end_run(&self) -> Result<()> {
        self.set_meta("running", "no")
    }
}

fn error(action: &'static str) -> impl FnOnce(rusqlite::Error) -> Error {
    move |source| Error::Journal { action, source }
}

/// Milliseconds since 1970, as the journal keeps times.
fn millis(at: Timestamp) -> i64 {
    at.as_millisecond()
}

fn timestamp(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(millis).unwrap_or_default()
}

/// Text of the journal that must be a known word.
fn word<T: serde::de::DeserializeOwned>(text: String) -> rusqlite::Result<T> {
    serde_json::from_value(serde_json::Value::String(text)).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error))
    })
}

/// The word for a value, as [`word`] reads it.
fn to_word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        other => format!("{other:?}"),
    }
}
