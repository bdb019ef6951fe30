//! Sizes the pool of workers by what there is to do, through the deployment.
//!
//! The figures come from the API, the rule and its patience are
//! [`resurgam_model::pool`]'s. While the API does not answer, the pool stays as it is: a platform
//! that is being recovered is in no need of fewer workers.
//!
//! Crash behaviour: nothing is kept. The next controller begins with the fewest workers that the
//! plan allows and grows the pool at once if more are needed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use resurgam_client::Client;
use resurgam_deployment::{ComponentKind, Deployment};
use resurgam_model::ComponentName;
use resurgam_model::plan::Workers;
use resurgam_model::pool::Sizing;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::Result;
use crate::status::Pool;

/// The name of the pool of workers; theirs are the same with a number.
pub const POOL: &str = "worker-pool";

/// How often the demand is weighed.
const EVERY: Duration = Duration::from_secs(1);
/// A figure that comes later is of no use any more.
const PATIENCE: resurgam_model::Duration = resurgam_model::Duration::from_secs(3);

/// Runs until dropped. A pool whose number is fixed is left alone.
///
/// # Errors
/// When the deployment fails.
pub async fn run(
    deployment: Arc<dyn Deployment>,
    api: Client,
    workers: Workers,
    ordered: watch::Receiver<Option<u16>>,
    seen: watch::Sender<Option<Pool>>,
) -> Result<()> {
    let (min, max) = workers.bounds();
    if min == max {
        return std::future::pending().await;
    }
    let Ok(pool) = ComponentName::new(POOL) else { return std::future::pending().await };
    let api = api.with_timeout(PATIENCE);
    let mut sizing = Sizing::new(min, max, workers.shrink_after);
    let began = Instant::now();
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let figures =
            api.pool(&workers.capabilities, workers.concurrency, workers.drain_within).await;
        let size = size(&*deployment).await?;
        let report = match figures {
            Ok(report) => report,
            Err(error) => {
                tracing::debug!(%error, "no figures: the pool of workers stays as it is");
                continue;
            }
        };
        let wish = sizing.decide(began.elapsed(), report.required, size);
        // A person may want more than the plan allows, and gets no fewer than ordered.
        let ordered = *ordered.borrow();
        let wish = ordered.map_or(wish, |least| wish.max(least));
        if wish != size {
            let (required, reason) = (report.required, &report.reason);
            tracing::info!(
                from = size,
                to = wish,
                required,
                reason,
                "the pool of workers is resized"
            );
            deployment.scale(&pool, wish).await?;
        }
        let (required, reason) = (report.required, report.reason);
        seen.send_replace(Some(Pool { size, wish, min, max, required, reason }));
    }
}

/// How many workers there are, those that leave on purpose not counted.
async fn size(deployment: &dyn Deployment) -> Result<u16> {
    let components = deployment.components().await?;
    let workers = components.iter().filter(|component| {
        component.kind == ComponentKind::Worker && !component.state.is_on_purpose()
    });
    Ok(u16::try_from(workers.count()).unwrap_or(u16::MAX))
}
