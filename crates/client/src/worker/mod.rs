//! A worker: claims tasks, works on several at once, and says what became of them.
//!
//! # Guarantees
//! - The result of a task is reported again and again until the platform has accepted it or has
//!   said that the lease is no longer valid. An outage of the platform costs no work that was
//!   done, as long as the worker lives and nobody else was given the task meanwhile.
//! - Work whose lease was lost is dropped at the next extension, a third of a lease later at
//!   most. Should it end earlier, its report is stale and changes nothing.
//! - After [`run`] has returned, or its future was dropped, nothing that the worker started runs
//!   any more.
//!
//! # Crash behaviour
//! A worker that dies leaves its tasks under their leases. They go back to the queue when the
//! registry misses its heartbeat, when a new life of it registers under the same name, or when
//! the leases expire, whichever comes first. Handlers must bear that a task is worked on again:
//! delivery is at least once.

mod exec;
mod handler;
mod outbox;
mod session;
mod spawner;
mod work;

pub use exec::{DO_NOT_RETRY, Exec};
pub use handler::{Handler, HandlerError, Sha256};

use std::collections::BTreeMap;
use std::sync::Arc;

use resurgam_model::agent::Registration;
use resurgam_model::{AgentId, Capability, Duration, InstanceId};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::{Client, ClientBuilder, Patience};
use outbox::Outbox;
use work::Table;

/// What a worker is to be.
#[derive(Clone, Debug)]
pub struct WorkerSettings {
    /// The way to the API.
    pub api: ClientBuilder,
    /// Its name, stable over restarts.
    pub id: AgentId,
    /// What it can do.
    pub capabilities: Vec<Capability>,
    /// How many tasks it works on at once.
    pub concurrency: u32,
    /// How long a lease lasts unless it is extended.
    pub lease: Duration,
    /// The program that does the work, and its arguments; without one, [`Sha256`] does.
    pub exec: Option<Vec<String>>,
    /// Free labels for the registry.
    pub labels: BTreeMap<String, String>,
    /// The version of its software, for the registry.
    pub version: Option<String>,
    /// How often it wants to show itself, if that is less often than the registry asks for.
    pub heartbeat: Option<Duration>,
    /// How long one claim waits for a task.
    pub wait: Duration,
    /// How long running tasks may take to finish when the worker is to end.
    pub grace: Duration,
}

impl WorkerSettings {
    /// A worker with these capabilities, all else by default.
    #[must_use]
    pub fn new(
        api: impl Into<ClientBuilder>,
        id: AgentId,
        capabilities: impl IntoIterator<Item = Capability>,
    ) -> Self {
        Self {
            api: api.into(),
            id,
            capabilities: capabilities.into_iter().collect(),
            concurrency: 4,
            lease: Duration::from_secs(10),
            exec: None,
            labels: BTreeMap::new(),
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            heartbeat: None,
            wait: Duration::from_secs(10),
            grace: Duration::from_secs(20),
        }
    }

    /// The handler that the settings ask for.
    ///
    /// # Errors
    /// When `exec` is given but empty, or the thread that starts programs cannot be made.
    pub fn handler(&self) -> Result<Arc<dyn Handler>, Error> {
        match &self.exec {
            None => Ok(Arc::new(Sha256)),
            Some(command) => Ok(Arc::new(Exec::new(command)?)),
        }
    }
}

/// Why a worker could not work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting makes no sense.
    #[error("{0}")]
    Settings(String),
    /// The way to the API cannot be used.
    #[error("the API cannot be called: {0}")]
    Url(#[source] crate::Error),
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
    client: Client,
    settings: WorkerSettings,
    /// This life of the worker.
    instance: InstanceId,
    table: Table,
    outbox: Outbox,
    /// Whether the registry knows this life.
    registered: watch::Sender<bool>,
    /// Somebody was told that the registry does not know this life.
    unknown: Notify,
}

impl Shared {
    fn registration(&self) -> Registration {
        Registration {
            id: self.settings.id.clone(),
            instance: self.instance,
            capabilities: self.settings.capabilities.clone(),
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

/// Works until `shutdown` resolves, then finishes what it has begun, and leaves.
///
/// # Errors
/// When the settings make no sense or the first registration is refused. That the platform is
/// away is no error: the worker waits for it.
pub async fn run(
    settings: WorkerSettings,
    handler: Arc<dyn Handler>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    check(&settings)?;
    let client = settings.api.clone().timeout(CALL_TIMEOUT).build().map_err(Error::Url)?;
    let shared = Arc::new(Shared {
        client,
        settings,
        instance: InstanceId::new(),
        table: Table::default(),
        outbox: Outbox::default(),
        registered: watch::Sender::new(false),
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
    parts.spawn(work::extend(Arc::clone(&shared)));
    parts.spawn(outbox::deliver(Arc::clone(&shared)));
    work::work(&shared, &handler, shutdown).await;

    shared.outbox.emptied(LAST_REPORTS).await;
    parts.shutdown().await;
    session::leave(&shared).await;
    Ok(())
}

/// How long the last reports may take to be accepted before the worker leaves without.
const LAST_REPORTS: Duration = Duration::from_secs(5);

fn check(settings: &WorkerSettings) -> Result<(), Error> {
    let wrong = |text: &str| Err(Error::Settings(text.to_owned()));
    if settings.capabilities.is_empty() {
        return wrong("a worker needs at least one capability");
    }
    if !(1..=1000).contains(&settings.concurrency) {
        return wrong("the concurrency of a worker must be 1 to 1000");
    }
    if settings.lease < Duration::from_millis(100) {
        return wrong("a lease must last at least 100ms");
    }
    Ok(())
}
