//! How connections to the file are set up.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};

use super::fault::during;
use crate::Result;

/// How long to wait for another process that writes.
const BUSY: Duration = Duration::from_secs(5);

/// How often to look whether it has finished. SQLite's own handler looks ever more rarely, up to
/// ten times a second, and so hardly ever meets the short gap between two transactions of a busy
/// process.
const LOOK: Duration = Duration::from_millis(1);

/// The connection that writes.
pub(super) fn open_writer(path: &Path) -> Result<Connection> {
    let connection = open(path)?;
    to_wal(&connection).map_err(|source| during(source, "switch to write-ahead logging"))?;
    connection
        .execute_batch("PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;")
        .map_err(|source| during(source, "set up the connection"))?;
    Ok(connection)
}

/// A connection that only reads.
pub(super) fn open_reader(path: &Path) -> Result<Connection> {
    let connection = open(path)?;
    connection
        .execute_batch("PRAGMA query_only = ON;")
        .map_err(|source| during(source, "set up the connection"))?;
    Ok(connection)
}

fn open(path: &Path) -> Result<Connection> {
    let mut connection =
        Connection::open(path).map_err(|source| during(source, "open the database file"))?;
    let mut since = Instant::now();
    connection
        .busy_handler(Some(move |times: i32| {
            if times == 0 {
                since = Instant::now();
            }
            std::thread::sleep(LOOK);
            since.elapsed() < BUSY
        }))
        .map_err(|source| during(source, "set up the connection"))?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

/// SQLite does not ask the busy handler when it changes the journal mode, and several processes
/// may start on a new file at once.
fn to_wal(connection: &Connection) -> Result<(), rusqlite::Error> {
    let began = Instant::now();
    loop {
        match connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get::<_, String>(0)) {
            Err(error)
                if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
                    && began.elapsed() < BUSY =>
            {
                std::thread::sleep(LOOK);
            }
            other => return other.map(|_| ()),
        }
    }
}
