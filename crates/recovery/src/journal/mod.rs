//! The recovery journal: a SQLite file outside every database that is recovered.
//!
//! What is about to be done is written here before it is done, and synced to disk
//! (`synchronous = FULL`). If the controller dies, the next one reads where it was.
//!
//! The journal also keeps the [`cluster::ClusterState`], on which fencing rests: a reign is
//! recorded before the instance that shall have it can learn of it.
//!
//! Each change is also an entry of a [`chain`], in the same transaction.

pub mod chain;
pub mod cluster;
mod incidents;
pub mod orders;
mod steps;

pub use incidents::{Incident, IncidentState, NewIncident, Note};
pub use steps::StepRecord;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use resurgam_model::Timestamp;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior};

use chain::{Kind, append};

use crate::{Error, Result};

/// The layout of the tables. 0 had no chain, and fewer states of an incident; 1 had no index for
/// orders.
const LAYOUT: i64 = 2;

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
            let mut connection = Connection::open(path)?;
            connection.busy_timeout(std::time::Duration::from_secs(5))?;
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            prepare(&mut connection)?;
            connection.pragma_update(None, "foreign_keys", "ON")?;
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

    /// Changes something, in one transaction that is on disk when this returns. The change goes
    /// with an entry of the chain.
    fn write<T>(&self, work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>) -> Result<T> {
        self.with("be written", |c| {
            // It will write: to ask for the lock at once is to wait for it, not to fail half-way.
            let transaction = c.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let done = work(&transaction)?;
            transaction.commit()?;
            Ok(done)
        })
    }

    fn meta(&self, key: &str) -> Result<Option<String>> {
        self.with("be read", |c| {
            c.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0)).optional()
        })
    }

    /// Notes that the deployment is being run, and tells whether the run before ended in order.
    /// True also when there was none.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn begin_run(&self) -> Result<bool> {
        let clean = self.meta(RUNNING)?.is_none_or(|value| value == "no");
        self.set_running("yes")?;
        Ok(clean)
    }

    /// Notes that the run ended in order.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn end_run(&self) -> Result<()> {
        self.set_running("no")
    }

    /// The entry of the chain up to which somebody has read.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn marked(&self, reader: &str) -> Result<Option<u64>> {
        Ok(self.meta(&format!("read/{reader}"))?.and_then(|text| text.parse().ok()))
    }

    /// Notes the entry up to which somebody has read. That is no part of what the chain keeps.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn mark(&self, reader: &str, entry: u64) -> Result<()> {
        self.write(|transaction| {
            set_meta(transaction, &format!("read/{reader}"), &entry.to_string())
        })
    }

    /// The same, unless something was noted before.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn mark_once(&self, reader: &str, entry: u64) -> Result<()> {
        match self.marked(reader)? {
            Some(_) => Ok(()),
            None => self.mark(reader, entry),
        }
    }

    fn set_running(&self, value: &str) -> Result<()> {
        self.write(|transaction| {
            set_meta(transaction, RUNNING, value)?;
            append(transaction, Timestamp::now(), Kind::Run, RUNNING, &value)?;
            Ok(())
        })
    }
}

/// The key under which a run is noted.
const RUNNING: &str = "running";

fn set_meta(transaction: &Transaction<'_>, key: &str, value: &str) -> rusqlite::Result<()> {
    transaction.execute(
        "INSERT INTO meta (key, value) VALUES (?1, ?2)
         ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        [key, value],
    )?;
    Ok(())
}

/// Makes the tables, or brings those of an earlier version up to date.
fn prepare(connection: &mut Connection) -> rusqlite::Result<()> {
    let version = |c: &Connection| c.pragma_query_value(None, "user_version", |row| row.get(0));
    let found: i64 = version(connection)?;
    if found == LAYOUT {
        return Ok(());
    }
    // Tables are replaced by others of the same name, which references do not survive.
    connection.pragma_update(None, "foreign_keys", "OFF")?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found: i64 = version(&transaction)?;
    if found > LAYOUT {
        return Err(rusqlite::Error::ToSqlConversionFailure(
            format!("it was written by a later version of this program (layout {found}, known is {LAYOUT})").into(),
        ));
    }
    if found < LAYOUT {
        let is_old = found == 0 && transaction.table_exists(None, "incidents")?;
        if is_old {
            transaction.execute_batch(include_str!("relax.sql"))?;
        }
        transaction.execute_batch(include_str!("schema.sql"))?;
        if is_old {
            adopt(&transaction)?;
        }
        transaction.pragma_update(None, "user_version", LAYOUT)?;
    }
    transaction.commit()
}

/// Begins the chain with what was there before it.
fn adopt(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    let now = Timestamp::now();
    append(transaction, now, Kind::Adopted, "journal", &"kept without a chain until now")?;
    for (kind, about, content) in rows(transaction)? {
        let content = serde_json::value::RawValue::from_string(content)
            .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
        append(transaction, now, kind, &about, &content)?;
    }
    Ok(())
}

/// Every row that entries speak of: its kind, what it is about, and how it is, as the content of
/// an entry.
fn rows(c: &Connection) -> rusqlite::Result<Vec<(Kind, String, String)>> {
    let mut all = incidents::rows(c)?;
    all.extend(steps::rows(c)?);
    for (key, kind) in [(cluster::KEY, Kind::Cluster), (RUNNING, Kind::Run)] {
        let sql = "SELECT value FROM meta WHERE key = ?1";
        let value: Option<String> = c.query_row(sql, [key], |row| row.get(0)).optional()?;
        if let Some(value) = value {
            // The state of the cluster is JSON as it is.
            let content = if kind == Kind::Cluster { value } else { json(&value)? };
            all.push((kind, key.to_owned(), content));
        }
    }
    Ok(all)
}

fn json(value: &impl serde::Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

fn error(action: &'static str) -> impl FnOnce(rusqlite::Error) -> Error {
    move |source| Error::Journal { action, source }
}

/// A number of the database that is never negative, and back.
fn counted(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

fn to_counted(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
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
