//! Brings the schema of the database up to this program's version.

use std::time::Duration;

use super::{PostgresStore, get};
use crate::{Error, Result};

/// Every version of the schema, the first one first.
const MIGRATIONS: [&str; 8] = [
    include_str!("../../migrations/postgres/0001_initial.sql"),
    include_str!("../../migrations/postgres/0002_queue.sql"),
    include_str!("../../migrations/postgres/0003_registry.sql"),
    include_str!("../../migrations/postgres/0004_access.sql"),
    include_str!("../../migrations/postgres/0005_workflow.sql"),
    include_str!("../../migrations/postgres/0006_supervision.sql"),
    include_str!("../../migrations/postgres/0007_letters.sql"),
    include_str!("../../migrations/postgres/0008_bus.sql"),
];

/// A migration may have to rewrite a table, and wait for another process that does.
const PATIENCE: Duration = Duration::from_secs(300);

/// Of several processes that start at once, one does it and the others find it done.
pub(super) async fn migrate(store: &PostgresStore) -> Result<()> {
    let mut session = store.session_within("migrate the schema", PATIENCE).await?;
    session
        .batch(
            "BEGIN;
             SET LOCAL lock_timeout = 0;
             SET LOCAL client_min_messages = warning;
             SELECT pg_advisory_xact_lock(1381192513, -1);
             CREATE TABLE IF NOT EXISTS schema_versions (
                 version    bigint PRIMARY KEY,
                 applied_at timestamptz NOT NULL DEFAULT now()
             );",
        )
        .await?;
    let rows = session
        .query("SELECT coalesce(max(version), 0) AS version FROM schema_versions", &[])
        .await?;
    let found: i64 = rows.first().map_or(Ok(0), |row| get(row, "version"))?;
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    if found > known {
        return Err(Error::NewerSchema { found, known });
    }
    for (version, sql) in (1_i64..).zip(MIGRATIONS).filter(|(version, _)| *version > found) {
        session.batch(sql).await?;
        session.query("INSERT INTO schema_versions (version) VALUES ($1)", &[&version]).await?;
        tracing::info!(version, "migrated the PostgreSQL schema");
    }
    session.batch("COMMIT").await?;
    session.finish();
    Ok(())
}
