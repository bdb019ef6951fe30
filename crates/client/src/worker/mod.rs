//! A worker: claims tasks, works on several at once, and says what became of them.
//!
//! # Guarantees
//! - The result of a task is reported again and again until the platform has accepted it or has
//!   said that the lease is no longer valid. An outage of the platform costs no work that was
//!   done, as long as the worker lives and nobody else was given the task meanwhile.
//! - Work whose lease was lost is dropped at the next extension, a third of a lease later at
//!   most. Should it end earlier, its report is stale and changes nothing.
//! - After [`Worker::run`] has returned, or its future was dropped, nothing that the worker started runs
//!   any more.
//!
//! # Crash behaviour
//! A worker that dies leaves its tasks under their leases. They go back to the queue when the
//! registry misses its heartbeat, when a new life of it registers under the same name, or when
//! the leases expire, whichever comes first. Handlers must bear that a task is worked on again:
//! delivery is at least once.

mod claims;
mod demand;
mod exec;
mod handler;
mod job;
mod leases;
mod outbox;
mod queue;
mod session;
mod spawner;
mod work;

pub use exec::{DO_NOT_RETRY, Exec};
pub use handler::{Handler, HandlerError, Sha256, handler, result};
pub use job::{Cancellation, Cancelled, Job};
pub use queue::{Queue, Remote};

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use resurgam_model::agent::Registration;
use resurgam_model::{AgentId, Capability, Duration, InstanceId, InvalidName};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::Patience;
use demand::Demand;
use leases::Table;
use outbox::Outbox;
use work::Handlers;

/// A worker: what it can do, and how.
///
/// ```no_run
/// use resurgam_client::Client;
/// use resurgam_client::worker::{Exec, Job, Remote, Worker, handler, result};
/// use resurgam_model::{AgentId, Capability};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let client = Client::builder("https://agents.example").token("rsg_…").build()?;
/// Worker::new(AgentId::new("translator-1")?)
///     .on(Capability::new("length")?, handler(|job: Job| async move {
///         result(&job.payload().text().len())
///     }))
///     .on(Capability::new("translate")?, Exec::new(&["./translate".to_owned()])?)
///     .concurrency(16)
///     .run(Remote::new(client), async { drop(tokio::signal::ctrl_c().await) })
///     .await?;
/// # Ok(())
/// # }
/// ```
pub struct Worker {
    settings: Settings,
    handlers: Handlers,
}

/// What a worker is to be, but for what it can do.
#[derive(Clone, Debug)]
struct Settings {
    id: AgentId,
    concurrency: u32,
    lease: Duration,
    ahead: Duration,
    buffer: usize,
    labels: BTreeMap<String, String>,
    version: Option<String>,
    heartbeat: Option<Duration>,
    wait: Duration,
    grace: Duration,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let handlers: Vec<_> = self.handlers.keys().collect();
        f.debug_struct("Worker").field("can", &handlers).field("settings", &self.settings).finish()
    }
}

impl Worker {
    /// A worker that can do nothing yet. Its name is to be the same after a restart: then it
    /// takes back at once what an earlier life left behind.
    #[must_use]
    pub fn new(id: AgentId) -> Self {
        let settings = Settings {
            id,
            concurrency: 4,
            lease: Duration::from_secs(10),
            ahead: Duration::from_millis(50),
            buffer: 64 * 1024 * 1024,
            labels: BTreeMap::new(),
            version: None,
            heartbeat: None,
            wait: Duration::from_secs(10),
            grace: Duration::from_secs(20),
        };
        Self { settings, handlers: Handlers::new() }
    }

    /// It can do this, too. A handler that it had for it is replaced.
    #[must_use]
    pub fn on(mut self, capability: Capability, handler: impl Handler) -> Self {
        self.handlers.insert(capability, Arc::new(handler));
        self
    }

    /// How many tasks it works on at once, over all that it can do: 1 to 1000, by default 4.
    #[must_use]
    pub fn concurrency(mut self, tasks: u32) -> Self {
        self.settings.concurrency = tasks;
        self
    }

    /// How long a lease lasts unless it is extended, which is done each third of it: at least
    /// 100 ms, by default 10 s. After a third of it at the latest work is dropped whose task was
    /// cancelled or given to somebody else.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.settings.lease = lease;
        self
    }

    /// How far it looks ahead, by default 50 ms: beside the tasks that it works on it holds those
    /// that it expects to begin within this time, going by how long tasks took so far, and never
    /// more than 512. So short tasks need not wait for the next claim, and long ones are left to
    /// whoever has a place for them. With 0 nothing is taken ahead: right where a task may have
    /// one try only, for one that is lost with the worker before it was begun has had its try.
    #[must_use]
    pub fn ahead(mut self, time: Duration) -> Self {
        self.settings.ahead = time;
        self
    }

    /// How many bytes of results may wait for the platform to take them, by default 64 MiB. When
    /// there are more, or more than 4096 results, nothing further is claimed or begun until the
    /// platform has taken some. What is being worked on goes on, so that there can be more by one
    /// result for each task at work. No result is ever thrown away for want of room.
    #[must_use]
    pub fn buffer(mut self, bytes: usize) -> Self {
        self.settings.buffer = bytes;
        self
    }

    /// A label for the registry.
    #[must_use]
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.labels.insert(name.into(), value.into());
        self
    }

    /// Where it is: a label for the registry, by which it also gets the tasks that are to be done
    /// near: those for `CAPABILITY/LABEL:VALUE` ([`Capability::near`]) of all that it can do so far.
    ///
    /// # Errors
    /// When label and value are no part of a capability's name.
    pub fn at(mut self, label: &str, value: &str) -> Result<Self, InvalidName> {
        for (capability, handler) in self.handlers.clone() {
            self.handlers.insert(capability.near(label, value)?, handler);
        }
        Ok(self.label(label, value))
    }

    /// The version of its software, for the registry.
    #[must_use]
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.settings.version = Some(version.into());
        self
    }

    /// How often it wants to show itself, if that is less often than the registry asks for.
    #[must_use]
    pub fn heartbeat(mut self, every: Duration) -> Self {
        self.settings.heartbeat = Some(every);
        self
    }

    /// How long one claim waits for a task, by default 10 s; the platform waits for 30 s at most.
    #[must_use]
    pub fn wait(mut self, wait: Duration) -> Self {
        self.settings.wait = wait;
        self
    }

    /// How long tasks may take to finish when the worker is to end, by default 20 s.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.settings.grace = grace;
        self
    }

    /// Works until `shutdown` resolves, then finishes what it has taken, and leaves.
    ///
    /// # Errors
    /// When the settings make no sense or the first registration is refused. That the platform
    /// is away is no error: the worker waits for it.
    pub async fn run(
        self,
        queue: impl Queue,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), Error> {
        check(&self)?;
        let Self { settings, handlers } = self;
        let mut capabilities: Vec<_> = handlers.keys().cloned().collect();
        capabilities.sort_unstable();
        let shared = Arc::new(Shared {
            queue: Box::new(queue),
            capabilities,
            instance: InstanceId::new(),
            demand: Demand::new(settings.concurrency as usize, settings.ahead.0),
            outbox: Outbox::new(settings.buffer),
            settings,
            table: Table::default(),
            registered: watch::Sender::new(false),
            ending: watch::Sender::new(false),
            unknown: Notify::new(),
        });
        let mut shutdown = std::pin::pin!(shutdown);
        let welcome = tokio::select! {
            welcome = session::register_first(&shared) => welcome.map_err(Error::Refused)?,
            () = &mut shutdown => return Ok(()),
        };

        // All of these, and all handlers, end when this function does or is dropped.
        let mut parts = JoinSet::new();
        parts.spawn(session::keep(Arc::clone(&shared), welcome));
        parts.spawn(leases::extend(Arc::clone(&shared)));
        for _ in 0..outbox::DELIVERERS {
            parts.spawn(outbox::deliver(Arc::clone(&shared)));
        }
        work::work(&shared, &handlers, shutdown).await;

        shared.outbox.emptied(LAST_REPORTS).await;
        parts.shutdown().await;
        session::leave(&shared).await;
        Ok(())
    }
}

/// Why a worker could not work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting makes no sense.
    #[error("{0}")]
    Settings(String),
    /// The platform does not want the worker as it is; asking again cannot help.
    #[error("the registration was refused: {0}")]
    Refused(#[source] crate::Error),
    /// The thread that starts programs cannot be made.
    #[error("cannot start the thread that starts programs: {0}")]
    Spawner(#[source] std::io::Error),
}

/// How long one call may take. Shorter than most outages: it is tried again.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// What the parts of a worker share.
struct Shared {
    queue: Box<dyn Queue>,
    settings: Settings,
    capabilities: Vec<Capability>,
    /// This life of the worker.
    instance: InstanceId,
    demand: Demand,
    table: Table,
    outbox: Outbox,
    /// Whether the registry knows this life.
    registered: watch::Sender<bool>,
    /// Whether it only finishes what it has.
    ending: watch::Sender<bool>,
    /// Somebody was told that the registry does not know this life.
    unknown: Notify,
}

impl Shared {
    fn registration(&self) -> Registration {
        Registration {
            id: self.settings.id.clone(),
            instance: self.instance,
            capabilities: self.capabilities.clone(),
            capacity: self.settings.concurrency,
            labels: self.settings.labels.clone(),
            version: self.settings.version.clone(),
            heartbeat: self.settings.heartbeat,
        }
    }

    /// How the parts wait for a platform that is away: long enough not to be a burden, short
    /// enough to be there soon after it is back.
    fn patience() -> Patience {
        Patience { max: Duration::from_millis(500), ..Patience::endless() }
    }
}

/// How long the last reports may take to be accepted before the worker leaves without.
const LAST_REPORTS: Duration = Duration::from_secs(5);

fn check(worker: &Worker) -> Result<(), Error> {
    let wrong = |text: &str| Err(Error::Settings(text.to_owned()));
    if worker.handlers.is_empty() {
        return wrong("a worker needs at least one capability");
    }
    if !(1..=1000).contains(&worker.settings.concurrency) {
        return wrong("the concurrency of a worker must be 1 to 1000");
    }
    if worker.settings.lease < Duration::from_millis(100) {
        return wrong("a lease must last at least 100ms");
    }
    if worker.settings.buffer == 0 {
        return wrong("a worker needs room for at least one byte of results");
    }
    Ok(())
}
