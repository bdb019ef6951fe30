//! Measures Resurgam's own queue: on PostgreSQL and SQLite by the calls of the store, as a worker
//! process beside the database makes them, and over HTTP with the worker runtime.

mod server;
mod target;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bench_common::{Failure, Order, Pickup, done, pickups, wait_for_go};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::target::Target;

/// What can be chosen.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// `postgres`, `sqlite` or `http`.
    store: String,
    /// Connections to PostgreSQL at most.
    pool: u32,
    /// Tasks in one call that submits.
    batch: usize,
    /// Calls that submit at once.
    submitters: u64,
    /// Loops that claim and complete.
    workers: usize,
    /// Tasks in one claim, and in one completion.
    claim: u32,
    /// The program that serves; for `http`.
    #[serde(default)]
    resurgam: String,
}

/// Completions that were accepted.
static COMPLETED: AtomicU64 = AtomicU64::new(0);

struct Bench {
    order: Order<Settings>,
    target: Target,
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let order = Order::<Settings>::from_arguments()?;
    let target = Target::open(&order).await?;
    let bench = Arc::new(Bench { order, target });
    match bench.order.mode.as_str() {
        "submit" => bench.submit_only().await,
        "execute" => bench.execute().await,
        "end-to-end" => bench.end_to_end().await,
        "large" => bench.large().await,
        "pickup" => bench.pickup().await,
        other => Err(format!("there is no mode {other}").into()),
    }
}

impl Bench {
    async fn submit(self: &Arc<Self>, jobs: u64) -> Result<(), Failure> {
        let submitters = self.order.settings.submitters;
        let mut tasks = JoinSet::new();
        for submitter in 0..submitters {
            let bench = Arc::clone(self);
            tasks.spawn(async move {
                let ids: Vec<u64> = (0..jobs).filter(|id| id % submitters == submitter).collect();
                for batch in ids.chunks(bench.order.settings.batch) {
                    bench.target.submit(batch).await?;
                }
                Ok::<(), Failure>(())
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended??;
        }
        Ok(())
    }

    /// Starts loops that claim and complete until so many were completed since the program began.
    fn work(self: &Arc<Self>, until: u64) -> JoinSet<Result<(), Failure>> {
        let mut workers = JoinSet::new();
        for worker in 0..self.order.settings.workers {
            let bench = Arc::clone(self);
            workers.spawn(async move {
                let mut agent = bench.target.agent(worker).await?;
                while COMPLETED.load(Ordering::Relaxed) < until {
                    let leases = agent.claim(bench.order.settings.claim).await?;
                    if leases.is_empty() {
                        agent.idle().await;
                        continue;
                    }
                    let accepted = agent.complete(&leases).await?;
                    COMPLETED.fetch_add(accepted, Ordering::Relaxed);
                }
                Ok(())
            });
        }
        workers
    }

    async fn worked(
        self: &Arc<Self>,
        mut workers: JoinSet<Result<(), Failure>>,
        until: u64,
    ) -> Result<(), Failure> {
        while COMPLETED.load(Ordering::Relaxed) < until {
            tokio::select! {
                Some(ended) = workers.join_next() => ended??,
                () = tokio::time::sleep(Duration::from_millis(1)) => {}
            }
        }
        Ok(())
    }

    async fn submit_only(self: Arc<Self>) -> Result<(), Failure> {
        wait_for_go()?;
        let begun = Instant::now();
        self.submit(self.order.jobs).await?;
        let seconds = begun.elapsed().as_secs_f64();
        done(&json!({"seconds": seconds, "submitted": self.target.ready().await?}))
    }

    async fn execute(self: Arc<Self>) -> Result<(), Failure> {
        let jobs = self.order.jobs;
        self.submit(jobs).await?;
        wait_for_go()?;
        let begun = Instant::now();
        let workers = self.work(jobs);
        self.worked(workers, jobs).await?;
        let seconds = begun.elapsed().as_secs_f64();
        done(&json!({"seconds": seconds, "executed": COMPLETED.load(Ordering::Relaxed)}))
    }

    async fn end_to_end(self: Arc<Self>) -> Result<(), Failure> {
        let jobs = self.order.jobs;
        let workers = self.work(jobs);
        tokio::time::sleep(Duration::from_millis(200)).await;
        wait_for_go()?;
        let begun = Instant::now();
        self.submit(jobs).await?;
        self.worked(workers, jobs).await?;
        let seconds = begun.elapsed().as_secs_f64();
        done(&json!({"seconds": seconds, "executed": COMPLETED.load(Ordering::Relaxed)}))
    }

    /// As many are submitted as are completed, so that the number that waits stays.
    async fn large(self: Arc<Self>) -> Result<(), Failure> {
        let Order { jobs, completed, waiting, .. } = self.order;
        // In parts, so that never more wait than afterwards.
        let mut before = 0;
        while before < completed {
            let part = (completed - before).min(100_000);
            self.submit(part).await?;
            before += part;
            let workers = self.work(before);
            self.worked(workers, before).await?;
        }
        self.submit(waiting).await?;
        wait_for_go()?;
        let begun = Instant::now();
        let workers = self.work(completed + jobs);
        self.submit(jobs).await?;
        self.worked(workers, completed + jobs).await?;
        let seconds = begun.elapsed().as_secs_f64();
        done(&json!({"seconds": seconds, "executed": jobs}))
    }

    async fn pickup(self: Arc<Self>) -> Result<(), Failure> {
        let (sender, mut moments) = mpsc::unbounded_channel();
        self.target.handle_one_by_one(&self.order.settings, sender).await?;
        for id in 0..50 {
            self.sample(id, &mut moments).await?;
        }
        wait_for_go()?;
        let begun = Instant::now();
        let mut samples = Vec::new();
        for id in 0..self.order.jobs {
            samples.push(self.sample(id, &mut moments).await?);
        }
        let mut found = pickups(&samples);
        found["seconds"] = json!(begun.elapsed().as_secs_f64());
        done(&found)
    }

    async fn sample(
        &self,
        id: u64,
        moments: &mut mpsc::UnboundedReceiver<(u64, Instant)>,
    ) -> Result<Pickup, Failure> {
        // Not in step with anything that polls.
        let pause = self.order.pause_ms + id * 7 % 11;
        tokio::time::sleep(Duration::from_millis(pause)).await;
        let called = Instant::now();
        self.target.submit(&[id]).await?;
        let returned = Instant::now();
        let (handled_id, handled) = moments.recv().await.ok_or("the worker is gone")?;
        if handled_id != id {
            return Err(format!("handled {handled_id} instead of {id}").into());
        }
        Ok(Pickup { called, returned, handled })
    }
}
