//! Measures the crate `graphile_worker`, with its local queue and its batched completion.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bench_common::{Failure, Order, Pickup, done, pickups, wait_for_go};
use graphile_worker::tokio_postgres::TokioPostgresDatabase;
use graphile_worker::{
    Database, IntoTaskHandlerResult, JobSpec, LocalQueueConfig, RawJobSpec, TaskHandler, Worker,
    WorkerContext, WorkerOptions, WorkerUtils,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::PgPool;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// `sqlx` or `tokio-postgres`.
    driver: String,
    /// Connections at most.
    pool: u32,
    /// Jobs in one call.
    batch: usize,
    /// Calls at once.
    submitters: u64,
    /// Handlers at once.
    concurrency: usize,
    /// Jobs that are fetched at once, 0 for one by one.
    local_queue: usize,
    /// Local queues.
    #[serde(default = "one")]
    queues: usize,
    /// How long completions are gathered, in milliseconds; none for one by one.
    complete_delay_ms: Option<u64>,
    /// How often the database is asked without a notification, in milliseconds.
    poll_ms: u64,
}

fn one() -> usize {
    1
}

static HANDLED: AtomicU64 = AtomicU64::new(0);
static MOMENTS: OnceLock<mpsc::UnboundedSender<(u64, Instant)>> = OnceLock::new();

#[derive(Clone, Serialize, Deserialize)]
struct Noop {
    id: u64,
}

impl TaskHandler for Noop {
    const IDENTIFIER: &'static str = "noop";

    async fn run(self, _: WorkerContext) -> impl IntoTaskHandlerResult {
        if let Some(moments) = MOMENTS.get() {
            let _ = moments.send((self.id, Instant::now()));
        }
        HANDLED.fetch_add(1, Ordering::Relaxed);
        Ok::<(), String>(())
    }
}

struct Bench {
    order: Order<Settings>,
    /// For questions of our own.
    pool: PgPool,
    database: Database,
    utils: WorkerUtils,
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let order = Order::<Settings>::from_arguments()?;
    let settings = &order.settings;
    let pool = sqlx::postgres::PgPoolOptions::new()
        .max_connections(settings.pool)
        .connect(&order.database)
        .await?;
    let database: Database = match settings.driver.as_str() {
        "sqlx" => pool.clone().into(),
        "tokio-postgres" => {
            TokioPostgresDatabase::from_url(&order.database, settings.pool as usize)?.into()
        }
        other => return Err(format!("there is no driver {other}").into()),
    };
    let utils = WorkerUtils::new(database.clone(), "graphile_worker");
    utils.migrate().await?;
    let bench = Arc::new(Bench { order, pool, database, utils });
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
    async fn worker(&self) -> Result<Arc<Worker>, Failure> {
        let settings = &self.order.settings;
        let mut options = WorkerOptions::default()
            .database(self.database.clone())
            .schema("graphile_worker")
            .concurrency(settings.concurrency)
            .poll_interval(Duration::from_millis(settings.poll_ms))
            .listen_os_shutdown_signals(false)
            .define_job::<Noop>();
        if settings.local_queue > 0 {
            let queue = LocalQueueConfig::default().with_size(settings.local_queue);
            options = options.local_queue(queue.with_queue_count(settings.queues));
        }
        if let Some(delay) = settings.complete_delay_ms.map(Duration::from_millis) {
            options = options.complete_job_batch_delay(delay).fail_job_batch_delay(delay);
        }
        Ok(Arc::new(options.init().await?))
    }

    async fn submit(self: &Arc<Self>, jobs: u64) -> Result<(), Failure> {
        let submitters = self.order.settings.submitters;
        let mut tasks = JoinSet::new();
        for submitter in 0..submitters {
            let bench = Arc::clone(self);
            tasks.spawn(async move {
                let ids: Vec<u64> = (0..jobs).filter(|id| id % submitters == submitter).collect();
                for batch in ids.chunks(bench.order.settings.batch) {
                    bench.utils.add_raw_jobs(&specs(batch)).await?;
                }
                Ok::<(), Failure>(())
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended??;
        }
        Ok(())
    }

    /// Waits until `jobs` were handled and, if none is to be left, their ends are in the database.
    async fn all_handled(&self, jobs: u64, none_left: bool) -> Result<(), Failure> {
        while HANDLED.load(Ordering::Relaxed) < jobs {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let left = "SELECT EXISTS (SELECT FROM graphile_worker._private_jobs)";
        while none_left && sqlx::query_scalar::<_, bool>(left).fetch_one(&self.pool).await? {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    async fn submit_only(self: Arc<Self>) -> Result<(), Failure> {
        wait_for_go()?;
        let begun = Instant::now();
        self.submit(self.order.jobs).await?;
        let seconds = begun.elapsed().as_secs_f64();
        let found = "SELECT count(*) FROM graphile_worker._private_jobs";
        let found: i64 = sqlx::query_scalar(found).fetch_one(&self.pool).await?;
        done(&json!({"seconds": seconds, "submitted": found}))
    }

    async fn execute(self: Arc<Self>) -> Result<(), Failure> {
        self.submit(self.order.jobs).await?;
        let worker = self.worker().await?;
        wait_for_go()?;
        let begun = Instant::now();
        start(&worker);
        self.all_handled(self.order.jobs, true).await?;
        let seconds = begun.elapsed().as_secs_f64();
        done(&json!({"seconds": seconds, "executed": HANDLED.load(Ordering::Relaxed)}))
    }

    async fn end_to_end(self: Arc<Self>) -> Result<(), Failure> {
        let worker = self.worker().await?;
        start(&worker);
        wait_for_go()?;
        let begun = Instant::now();
        self.submit(self.order.jobs).await?;
        self.all_handled(self.order.jobs, true).await?;
        let seconds = begun.elapsed().as_secs_f64();
        done(&json!({"seconds": seconds, "executed": HANDLED.load(Ordering::Relaxed)}))
    }

    /// Completed jobs are deleted, so that only the waiting ones make a difference.
    async fn large(self: Arc<Self>) -> Result<(), Failure> {
        self.submit(self.order.waiting).await?;
        let worker = self.worker().await?;
        wait_for_go()?;
        let begun = Instant::now();
        start(&worker);
        self.submit(self.order.jobs).await?;
        self.all_handled(self.order.jobs, false).await?;
        let seconds = begun.elapsed().as_secs_f64();
        done(&json!({"seconds": seconds, "executed": self.order.jobs}))
    }

    async fn pickup(self: Arc<Self>) -> Result<(), Failure> {
        let (sender, mut moments) = mpsc::unbounded_channel();
        MOMENTS.set(sender).map_err(|_| "set twice")?;
        let worker = self.worker().await?;
        start(&worker);
        for id in 0..50 {
            self.sample(id, &mut moments).await?;
        }
        wait_for_go()?;
        let begun = Instant::now();
        let mut samples = Vec::new();
        for id in 0..self.order.jobs {
            samples.push(self.sample(id, &mut moments).await?);
        }
        let seconds = begun.elapsed().as_secs_f64();
        let mut found = pickups(&samples);
        found["seconds"] = json!(seconds);
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
        self.utils.add_job(Noop { id }, JobSpec::default()).await?;
        let returned = Instant::now();
        let (handled_id, handled) = moments.recv().await.ok_or("the worker is gone")?;
        if handled_id != id {
            return Err(format!("handled {handled_id} instead of {id}").into());
        }
        Ok(Pickup { called, returned, handled })
    }
}

fn start(worker: &Arc<Worker>) {
    let worker = Arc::clone(worker);
    tokio::spawn(async move {
        if let Err(error) = worker.run().await {
            eprintln!("the worker ended: {error}");
            std::process::exit(1);
        }
    });
}

fn specs(ids: &[u64]) -> Vec<RawJobSpec> {
    let spec = |&id: &u64| RawJobSpec {
        identifier: Noop::IDENTIFIER.into(),
        payload: json!({"id": id}),
        spec: JobSpec::default(),
    };
    ids.iter().map(spec).collect()
}
