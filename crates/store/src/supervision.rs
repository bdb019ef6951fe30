//! The seam's part about what a supervisor has to know.

use async_trait::async_trait;
use resurgam_model::pool::Demand;
use resurgam_model::stuck::{LongRunning, Usual};
use resurgam_model::{Capability, Duration};

use crate::Result;
use crate::column::{micros, unsigned};

/// What there is to do, and how it goes. Each look is at a bounded number of rows, however many
/// tasks there are.
#[async_trait]
pub trait Supervision: Send + Sync + 'static {
    /// What tasks of these capabilities ask for, going by what was handed in within `window`, and
    /// which agents there are for them.
    async fn demand(&self, capabilities: &[Capability], window: Duration) -> Result<Demand>;

    /// How long tasks took lately, by capability.
    async fn usual(&self) -> Result<Vec<(Capability, Usual)>>;

    /// Up to `limit` tasks that have been running for longer than this, the longest first.
    async fn long_running(&self, than: Duration, limit: u32) -> Result<Vec<LongRunning>>;
}

/// So many tasks are looked at, the newest first.
pub(crate) const SAMPLE: i64 = 5000;

/// So many waiting tasks are counted; more ask for no more workers.
pub(crate) const COUNTED: i64 = 100_000;

/// A time in which fewer tasks came than are looked at is not taken to be shorter, in
/// microseconds.
const LEAST_SPAN: i64 = 5_000_000;

/// The demand, from what was counted: tasks that came and the time that they span, if it is
/// shorter than the window; how long they took; workers and their places; waiting and running.
#[allow(clippy::cast_precision_loss, reason = "numbers of tasks are far below 2^52")]
pub(crate) fn demand(
    window: Duration,
    came: i64,
    span: Option<i64>,
    mean: Option<i64>,
    (workers, places): (i64, i64),
    (queue, running): (i64, i64),
) -> Result<Demand> {
    let span = span.map_or(micros(window), |span| span.max(LEAST_SPAN)).max(1);
    Ok(Demand {
        rate: came as f64 * 1e6 / span as f64,
        seconds_per_task: mean.map(|mean| mean.max(0) as f64 / 1e6),
        queue: unsigned(queue)?,
        running: unsigned(running)?,
        workers: unsigned(workers)?,
        concurrency: if workers > 0 { places as f64 / workers as f64 } else { 0.0 },
    })
}
