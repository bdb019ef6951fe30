//! Declares silent agents gone, without ever taking its own blindness for their silence.
//!
//! While the registry, or the store under it, is away, nobody's heartbeat can be written down. So
//! after its start, after each outage of the store and after a time in which this process was not
//! run at all (frozen, or the machine asleep), everybody first gets as long as they are allowed
//! to be silent.
//!
//! Crash behaviour: nothing is kept here. Who is gone is in the store, and an agent's leases go
//! back to the queue in the same transaction.

use std::sync::Arc;

use resurgam_client::chain;
use tokio::time::{Instant, MissedTickBehavior};

use crate::api::App;

/// Runs until dropped.
pub(crate) async fn run(app: Arc<App>) {
    let terms = app.settings.heartbeat;
    let mut ticks = tokio::time::interval(terms.every.0.max(std::time::Duration::from_millis(10)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = Instant::now();
    let mut not_before = last + terms.expire_after.0;
    let mut blind = false;
    loop {
        ticks.tick().await;
        let now = Instant::now();
        if now.duration_since(last) > terms.expire_after.0 / 2 {
            not_before = now + terms.expire_after.0;
        }
        last = now;
        if now < not_before {
            continue;
        }
        let outcome = if blind {
            // Only when the store is back does the time of grace begin.
            app.store.check().await.map(|_| Vec::new())
        } else {
            app.store.expire(&terms).await
        };
        match outcome {
            Ok(_) if blind => {
                tracing::info!("the store is back; heartbeats count again");
                blind = false;
                not_before = Instant::now() + terms.expire_after.0;
            }
            Ok(gone) => {
                for agent in &gone {
                    tracing::warn!(%agent, "no heartbeat: the agent is gone, its leases returned");
                }
                app.tasks_returned(gone.len() as u64);
            }
            Err(error) => {
                if !blind {
                    tracing::warn!(reason = chain(&error), "cannot judge heartbeats");
                }
                blind = true;
            }
        }
        // The calls above may have taken long; that is no time in which nobody looked.
        last = Instant::now();
    }
}
