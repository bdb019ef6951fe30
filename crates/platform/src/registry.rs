//! Declares silent agents gone, without ever taking its own blindness for their silence, and
//! removes those that are gone for long.
//!
//! While the registry, or the store under it, is away, nobody's heartbeat can be written down. So
//! after its start, after each outage of the store and after a time in which this process was not
//! run at all (frozen, or the machine asleep), everybody first gets as long as they are allowed
//! to be silent: for each look, the store is told for how long heartbeats could be recorded
//! without interruption, and spares whoever may be silent for longer.
//!
//! Crash behaviour: nothing is kept here. Who is gone is in the store, and an agent's leases go
//! back to the queue in the same transaction. Several may run at once.

use std::sync::Arc;

use resurgam_client::chain;
use resurgam_model::Duration;
use tokio::time::{Instant, MissedTickBehavior};

use crate::api::App;

/// So many are looked at in one transaction.
const BATCH: u32 = 1000;

/// So many that are gone are named in the log, of those that are found at once.
const NAMED: usize = 10;

/// Runs until dropped.
pub(crate) async fn run(app: Arc<App>) {
    let terms = app.settings.heartbeat;
    let mut ticks = tokio::time::interval(terms.every.0.max(std::time::Duration::from_millis(10)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = Instant::now();
    let mut watching_since = last;
    let mut blind = false;
    loop {
        ticks.tick().await;
        let now = Instant::now();
        if now.duration_since(last) > terms.expire_after.0 / 2 {
            watching_since = now;
        }
        if blind && app.store.check().await.is_ok() {
            // Only when the store is back does the time of grace begin.
            tracing::info!("the store is back; heartbeats count again");
            blind = false;
            watching_since = Instant::now();
        }
        if !blind {
            blind = !look(&app, watching_since).await;
        }
        // The calls above may have taken long; that is no time in which nobody looked.
        last = Instant::now();
    }
}

/// Looks at all whose time has come. False when the store cannot be used.
async fn look(app: &App, watching_since: Instant) -> bool {
    loop {
        let watched = Duration(watching_since.elapsed());
        match app.store.expire(watched, app.settings.forget_gone, BATCH).await {
            Ok(expired) => {
                for agent in expired.gone.iter().take(NAMED) {
                    tracing::warn!(%agent, "no heartbeat: the agent is gone, its leases returned");
                }
                // A whole fleet that is cut off would bury all else in the log.
                let further = expired.gone.len().saturating_sub(NAMED);
                if further > 0 {
                    tracing::warn!(
                        further,
                        "further agents are gone as well, their leases returned"
                    );
                }
                if expired.removed > 0 {
                    let count = expired.removed;
                    tracing::info!(count, "agents were gone for long and are forgotten");
                }
                app.tasks_returned(expired.gone.len() as u64);
                if expired.seen < u64::from(BATCH) {
                    return true;
                }
            }
            Err(error) => {
                tracing::warn!(reason = chain(&error), "cannot judge heartbeats");
                return false;
            }
        }
    }
}
