//! Advances workflows: at once when something happened to them in this process, and by looking
//! around for whatever was left over.
//!
//! Crash behaviour: nothing is kept here. What happened to a workflow is in the store until
//! somebody has taken note of it; whoever looks around next finds it. Several who advance the
//! same workflow wait for one another's transaction or pass over it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use resurgam_client::chain;
use resurgam_model::WorkflowId;
use resurgam_store::workflows::Advanced;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use crate::api::App;

/// So many are advanced at once.
const AT_ONCE: usize = 4;

/// So many are looked for at once.
const BATCH: u32 = 500;

/// So often finished workflows are looked through for old ones.
const FORGET_EVERY: Duration = Duration::from_secs(5);

/// One that cannot be advanced for a reason that time does not heal is left alone for so long.
const LEFT_ALONE: Duration = Duration::from_secs(30);

/// Workflows that are being advanced, and whether something happened to them meanwhile.
#[derive(Default)]
struct UnderWay(Mutex<HashMap<WorkflowId, bool>>);

impl UnderWay {
    /// Whether the caller is to advance it. If somebody is at it, he does it once more.
    fn begin(&self, id: WorkflowId) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match all.get_mut(&id) {
            Some(again) => {
                *again = true;
                false
            }
            None => {
                all.insert(id, false);
                true
            }
        }
    }

    /// Whether it is to be advanced once more.
    fn again(&self, id: WorkflowId) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match all.get_mut(&id) {
            Some(again) if *again => {
                *again = false;
                true
            }
            _ => {
                all.remove(&id);
                false
            }
        }
    }
}

/// Advances what something happened to in this process; runs until dropped.
pub(crate) async fn advance(app: Arc<App>) {
    let under_way = Arc::new(UnderWay::default());
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let mut busy = JoinSet::new();
    loop {
        let moved = app.store.moved().take().await;
        while busy.try_join_next().is_some() {}
        for id in moved {
            if !under_way.begin(id) {
                continue;
            }
            let Ok(turn) = Arc::clone(&turns).acquire_owned().await else { return };
            let (app, under_way) = (Arc::clone(&app), Arc::clone(&under_way));
            busy.spawn(async move {
                loop {
                    if let Err(error) = app.store.advance_workflow(id, true).await {
                        // Whoever looks around will find it.
                        let reason = chain(&error);
                        tracing::warn!(workflow = %id, reason, "cannot advance a workflow now");
                    }
                    if !under_way.again(id) {
                        break;
                    }
                }
                drop(turn);
            });
        }
    }
}

/// Looks around for workflows that nobody has advanced; runs until dropped.
pub(crate) async fn sweep(app: Arc<App>) {
    let mut ticks = tokio::time::interval(app.settings.sweep.0.max(Duration::from_millis(10)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut forget_at = Instant::now();
    let mut left_alone = HashMap::new();
    let mut away = false;
    loop {
        ticks.tick().await;
        let mut done = look_around(&app, &mut left_alone).await;
        if done.is_ok() && Instant::now() >= forget_at {
            forget_at = Instant::now() + FORGET_EVERY;
            done = app.store.expire_workflows(BATCH).await.map(drop);
        }
        match done {
            Ok(()) => away = false,
            Err(error) if away => tracing::debug!(reason = chain(&error), "still no store"),
            Err(error) => {
                away = true;
                tracing::warn!(reason = chain(&error), "cannot look for workflows that are due");
            }
        }
    }
}

async fn look_around(
    app: &App,
    left_alone: &mut HashMap<WorkflowId, Instant>,
) -> resurgam_store::Result<()> {
    let now = Instant::now();
    left_alone.retain(|_, until| *until > now);
    for id in app.store.due_workflows(BATCH).await? {
        if left_alone.contains_key(&id) {
            continue;
        }
        loop {
            match app.store.advance_workflow(id, false).await {
                Ok(Advanced::More) => {}
                Ok(Advanced::Done | Advanced::Busy | Advanced::Unknown) => break,
                Err(error) if error.is_transient() => return Err(error),
                Err(error) => {
                    // One that is broken must not keep the others from going on.
                    tracing::error!(workflow = %id, reason = chain(&error), "a workflow is stuck");
                    left_alone.insert(id, now + LEFT_ALONE);
                    break;
                }
            }
        }
    }
    Ok(())
}
