//! Returns expired leases to the queue.
//!
//! Crash behaviour: nothing is kept here. While no supervisor runs, expired leases stay with
//! their holders, who may still complete them; the next supervisor returns what has expired.

use std::sync::Arc;

use resurgam_client::chain;
use tokio::time::{Instant, MissedTickBehavior};

use crate::api::App;

/// So many at once.
const BATCH: u32 = 500;

/// Runs until dropped.
pub(crate) async fn run(app: Arc<App>) {
    let mut ticks =
        tokio::time::interval(app.settings.sweep.0.max(std::time::Duration::from_millis(10)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut not_before = Instant::now();
    let mut blind = false;
    loop {
        ticks.tick().await;
        if Instant::now() < not_before {
            continue;
        }
        if blind && app.store.check().await.is_ok() {
            // Nobody could extend a lease meanwhile: let those who are alive do it first.
            tracing::info!("the store is back; leases are swept again soon");
            blind = false;
            not_before = Instant::now() + app.settings.heartbeat.expire_after.0;
        }
        if !blind && Instant::now() >= not_before {
            blind = !sweep(&app).await;
        }
    }
}

/// Returns what has expired. False when the store cannot be used.
async fn sweep(app: &App) -> bool {
    loop {
        match app.store.return_expired(BATCH).await {
            Ok(0) => return true,
            Ok(count) => {
                tracing::info!(count, "leases had expired and were returned");
                app.tasks_returned(count);
                if count < u64::from(BATCH) {
                    return true;
                }
            }
            Err(error) => {
                tracing::warn!(reason = chain(&error), "cannot return expired leases");
                return false;
            }
        }
    }
}
