//! Returns expired leases to the queue, counts which agent holds how much, and tells of tasks that
//! are stuck.
//!
//! Crash behaviour: nothing is kept here. While no supervisor runs, expired leases stay with
//! their holders, who may still complete them; the next supervisor returns what has expired.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use resurgam_client::chain;
use resurgam_model::stuck::StuckTask;
use tokio::time::{Instant, MissedTickBehavior};

use crate::api::App;
use crate::api::pool::find_stuck;

/// So many at once.
const BATCH: u32 = 500;
/// How often the leases of the agents are counted anew: look-ups by load are so old at most.
const COUNT_EVERY: Duration = Duration::from_secs(1);
/// So many agents are brought up to date in one go, which bounds what a large fleet costs.
const COUNTED: u32 = 2000;
/// How often stuck tasks are looked for.
const STUCK_EVERY: Duration = Duration::from_secs(15);

/// Runs until dropped.
pub(crate) async fn run(app: Arc<App>) {
    let mut ticks = tokio::time::interval(app.settings.sweep.0.max(Duration::from_millis(10)));
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

/// Keeps the load of the agents up to date, and gives tasks again to those that failed for a while;
/// runs until dropped. What fails is tried again: what is
/// written here is only what look-ups go by.
pub(crate) async fn count(app: Arc<App>) {
    let mut ticks = tokio::time::interval(COUNT_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(error) = app.store.count_held(COUNTED).await {
            tracing::debug!(reason = chain(&error), "cannot count leases");
        }
        match app.store.forgive(resurgam_model::Duration::default()).await {
            Ok(agents) => {
                for agent in agents {
                    tracing::info!(%agent, "its tries kept failing: it is given tasks again");
                }
            }
            Err(error) => tracing::debug!(reason = chain(&error), "cannot look for the failing"),
        }
    }
}

/// Says which tasks are stuck, each try once; runs until dropped.
pub(crate) async fn tell_of_stuck(app: Arc<App>) {
    let mut ticks = tokio::time::interval(STUCK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = BTreeSet::new();
    loop {
        ticks.tick().await;
        let stuck = match find_stuck(&app).await {
            Ok(stuck) => stuck,
            Err(error) => {
                tracing::debug!(reason = chain(&error), "cannot look for stuck tasks");
                continue;
            }
        };
        let mut now = BTreeSet::new();
        for StuckTask { task, threshold, .. } in stuck {
            if !told.contains(&(task.task, task.attempt)) {
                let agent = task.held_by.as_ref().map_or("nobody", |agent| agent.as_str());
                tracing::warn!(
                    task = %task.task, capability = %task.capability, agent,
                    running_for = %task.running_for, %threshold,
                    "a task is stuck: it runs for much longer than usual"
                );
            }
            now.insert((task.task, task.attempt));
        }
        told = now;
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
