//! Vacuums the table of the queue in time.
//!
//! Each task leaves two or three dead rows behind, and dead entries at the very place of the index
//! where the next claim begins. The server's own autovacuum looks once a minute; by then a busy
//! queue has left millions, and every claim has to walk over them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::PostgresStore;
use super::bell::Bells;
use super::connect::race;

/// So many tasks may end before the table is vacuumed.
const EVERY: u64 = 50_000;

/// Of several processes one does it. The lock ends with the connection.
const LOCK: &str = "SELECT pg_try_advisory_lock(1381192513, -2)";

/// At full speed, and without the lock that cutting the file off would need.
const VACUUM_TASKS: &str = "VACUUM (SKIP_LOCKED, INDEX_CLEANUP ON, TRUNCATE OFF) tasks";

/// How much there is to vacuum.
#[derive(Debug, Default)]
pub(super) struct Tidy {
    ended: AtomicU64,
    busy: AtomicBool,
}

impl PostgresStore {
    /// So many tasks have left the table.
    pub(super) fn ended(&self, count: u64) {
        let tidy = &self.bells.tidy;
        let before = tidy.ended.fetch_add(count, Ordering::Relaxed);
        if before.saturating_add(count) < EVERY || tidy.busy.swap(true, Ordering::AcqRel) {
            return;
        }
        tidy.ended.store(0, Ordering::Relaxed);
        let bells = Arc::clone(&self.bells);
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(vacuum(bells))),
            Err(_) => tidy.busy.store(false, Ordering::Release),
        }
    }
}

async fn vacuum(bells: Arc<Bells>) {
    match race(&bells.hosts, bells.timeout, None).await {
        Ok(connected) => {
            if let Some(client) = connected.client()
                && let Err(error) = run(client).await
            {
                tracing::debug!(%error, "the table of tasks was not vacuumed");
            }
        }
        Err(reasons) => tracing::debug!(reasons, "no connection to vacuum"),
    }
    bells.tidy.busy.store(false, Ordering::Release);
}

async fn run(client: &tokio_postgres::Client) -> Result<(), tokio_postgres::Error> {
    if client.query_one(LOCK, &[]).await?.try_get(0)? {
        client.batch_execute("SET vacuum_cost_delay = 0").await?;
        client.batch_execute(VACUUM_TASKS).await?;
    }
    Ok(())
}
