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

/// So many tasks may come in, or end, before the tables are looked at, once until the next vacuum.
const FILLED: u64 = 2_000;

/// While a table is known as empty, plans would rather read it than look tasks up in it, and keep to
/// that when it fills. So it is looked at, for which a few rows are enough: a few milliseconds. All
/// connections make their plans anew then.
pub(super) const QUICK_LOOK: &str =
    "SET default_statistics_target = 1; ANALYZE tasks, tasks_done, task_keys";

/// Of several processes one does it. The lock ends with the connection.
const LOCK: &str = "SELECT pg_try_advisory_lock(1381192513, -2)";

/// At full speed, and without the lock that cutting the file off would need.
const VACUUM_TASKS: &str = "VACUUM (SKIP_LOCKED, INDEX_CLEANUP ON, TRUNCATE OFF) tasks";

/// How much there is to vacuum.
#[derive(Debug, Default)]
pub(super) struct Tidy {
    ended: AtomicU64,
    came: AtomicU64,
    busy: AtomicBool,
}

impl PostgresStore {
    /// So many tasks have come into the table.
    pub(super) fn came(&self, count: u64) {
        let tidy = &self.bells.tidy;
        let before = tidy.came.fetch_add(count, Ordering::Relaxed);
        self.look_when_filled(before, count);
    }

    fn look_when_filled(&self, before: u64, count: u64) {
        let crosses = before < FILLED && before.saturating_add(count) >= FILLED;
        if crosses && let Ok(runtime) = tokio::runtime::Handle::try_current() {
            drop(runtime.spawn(look(Arc::clone(&self.bells))));
        }
    }

    /// So many tasks have left the table.
    pub(super) fn ended(&self, count: u64) {
        let tidy = &self.bells.tidy;
        let before = tidy.ended.fetch_add(count, Ordering::Relaxed);
        self.look_when_filled(before, count);
        if before.saturating_add(count) < EVERY || tidy.busy.swap(true, Ordering::AcqRel) {
            return;
        }
        tidy.ended.store(0, Ordering::Relaxed);
        tidy.came.store(0, Ordering::Relaxed);
        let bells = Arc::clone(&self.bells);
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(vacuum(bells))),
            Err(_) => tidy.busy.store(false, Ordering::Release),
        }
    }
}

async fn look(bells: Arc<Bells>) {
    match race(&bells.hosts, bells.timeout, None).await {
        Ok(connected) => {
            if let Some(client) = connected.client()
                && let Err(error) = client.batch_execute(QUICK_LOOK).await
            {
                tracing::debug!(%error, "the table of tasks was not looked at");
            }
        }
        Err(reasons) => tracing::debug!(reasons, "no connection to look at the table of tasks"),
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
