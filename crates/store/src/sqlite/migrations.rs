//! Brings the schema of the file up to this program's version.

use rusqlite::Connection;

use super::fault::Fault;
use crate::Error;

/// Every version of the schema, the first one first.
const MIGRATIONS: [&str; 8] = [
    include_str!("../../migrations/sqlite/0001_initial.sql"),
    include_str!("../../migrations/sqlite/0002_queue.sql"),
    include_str!("../../migrations/sqlite/0003_registry.sql"),
    include_str!("../../migrations/sqlite/0004_access.sql"),
    include_str!("../../migrations/sqlite/0005_workflow.sql"),
    include_str!("../../migrations/sqlite/0006_supervision.sql"),
    include_str!("../../migrations/sqlite/0007_letters.sql"),
    include_str!("../../migrations/sqlite/0008_bus.sql"),
];

/// Runs inside the writer's immediate transaction: of several processes that start at once, one
/// does it and the others find it done.
pub(super) fn migrate(connection: &Connection) -> Result<(), Fault> {
    connection.execute_batch(
        "CREATE TABLE IF NOT EXISTS schema_versions (
             version    INTEGER PRIMARY KEY,
             applied_at INTEGER NOT NULL
         ) STRICT",
    )?;
    let found: i64 = connection.query_row(
        "SELECT coalesce(max(version), 0) FROM schema_versions",
        [],
        |row| row.get(0),
    )?;
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    if found > known {
        return Err(Error::NewerSchema { found, known }.into());
    }
    for (version, sql) in (1_i64..).zip(MIGRATIONS).filter(|(version, _)| *version > found) {
        connection.execute_batch(sql)?;
        connection.execute(
            "INSERT INTO schema_versions (version, applied_at) VALUES (?1, ?2)",
            (version, super::now()),
        )?;
        tracing::info!(version, "migrated the SQLite schema");
    }
    Ok(())
}
