//! The store in one file, for a platform on one machine.
//!
//! Any number of processes may have the file open. Within each, one thread writes and a few
//! connections read; requests that come close together share a commit.

mod access;
mod advance;
mod bus;
mod checkpoints;
mod claim;
mod connection;
mod ends;
mod failing;
mod fault;
mod figures;
mod letters;
mod limits;
mod lookup;
mod messages;
mod migrations;
mod readers;
mod registry;
#[cfg(test)]
mod scale_tests;
mod schedules;
mod submit;
mod supervision;
mod tasks;
mod workflow_rows;
mod workflows;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use resurgam_model::{AgentId, Timestamp};
use rusqlite::Row;
use rusqlite::types::FromSql;
use uuid::Uuid;

use self::fault::Fault;
use self::readers::Readers;
use self::writer::Writer;
use crate::bell::{Bell, Mails};
use crate::workflows::{Definitions, Moved};
use crate::{Admin, Check, Error, Meters, Result, Wake, Wakes};

/// A store in a SQLite file.
pub struct SqliteStore {
    path: PathBuf,
    writer: Writer,
    readers: Readers,
    meters: Arc<Meters>,
    bell: Bell<Wake>,
    mail: Bell<AgentId>,
    /// Workflows to which something happened in this process.
    moved: Moved,
    definitions: Arc<Definitions>,
}

impl SqliteStore {
    /// Opens the file, or makes an empty one. The folder must be there. [`Admin::migrate`] has to
    /// run before anything else will work.
    ///
    /// # Errors
    /// When the file cannot be opened or is no database.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let connection = connection::open_writer(path)?;
        let meters = Arc::<Meters>::default();
        Ok(Self {
            path: path.to_owned(),
            writer: Writer::start(connection, Arc::clone(&meters))?,
            readers: Readers::new(path, Arc::clone(&meters)),
            meters,
            bell: Bell::default(),
            mail: Bell::default(),
            moved: Moved::default(),
            definitions: Arc::default(),
        })
    }
}

impl SqliteStore {
    /// Tells of messages.
    fn ring_mail(&self, mails: impl IntoIterator<Item = AgentId>) {
        for mail in mails {
            self.mail.ring(mail);
        }
    }
}

impl std::fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteStore").field("path", &self.path).finish_non_exhaustive()
    }
}

#[async_trait]
impl Admin for SqliteStore {
    async fn migrate(&self) -> Result<()> {
        self.writer.run("migrate the schema", migrations::migrate).await
    }

    async fn check(&self) -> Result<Check> {
        let write = |connection: &rusqlite::Connection| {
            let mut statement = connection.prepare_cached(
                "INSERT INTO checks (one, times, at) VALUES (1, 1, ?1)
                 ON CONFLICT (one) DO UPDATE SET times = times + 1, at = excluded.at
                 RETURNING times",
            )?;
            Ok(statement.query_row([now()], |row| row.get::<_, i64>(0))?)
        };
        let written = self.writer.run("write the check", write).await?;
        let read = |connection: &rusqlite::Connection| {
            let mut statement = connection.prepare_cached("SELECT times, at FROM checks")?;
            Ok(statement.query_row([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))?)
        };
        let (found, at) = self.readers.run("read the check back", read).await?;
        if found < written {
            return Err(Error::Corrupt("what the check wrote cannot be read back".to_owned()));
        }
        Ok(Check { at: crate::column::time(at)?, location: self.path.display().to_string() })
    }

    fn moved(&self) -> &Moved {
        &self.moved
    }

    fn wakes(&self) -> Wakes {
        self.bell.listen()
    }

    fn mails(&self) -> Mails {
        self.mail.listen()
    }

    fn kind(&self) -> &'static str {
        "sqlite"
    }
}

/// The clock, in the unit of the columns.
fn now() -> i64 {
    Timestamp::now().as_microsecond()
}

/// A column of a row, or what is wrong with it.
fn get<T: FromSql>(row: &Row<'_>, column: &str) -> Result<T, Fault> {
    Ok(row.get(column)?)
}

/// A column with an id.
fn id(row: &Row<'_>, column: &str) -> Result<Uuid, Fault> {
    Ok(Uuid::from_bytes(row.get(column)?))
}

/// Something at random from 0 up to 1.
fn chance() -> f64 {
    // The last bits of a random id are as good as a generator of random numbers.
    let (_, bits) = Uuid::new_v4().as_u64_pair();
    f64::from(u32::try_from(bits & 0xffff_ffff).unwrap_or_default()) / f64::from(u32::MAX)
}
