//! One process of the platform.
//!
//! It comes up without its store: it answers `/health` at once, says at `/health/ready` what is
//! missing, and works as soon as the database does. It ends in order: waiting calls are answered,
//! requests that have begun are finished, nothing new is taken.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::serve::ListenerExt;
use resurgam_bus::Bus;
use resurgam_client::{Client, Patience, chain};
use resurgam_model::agent::HeartbeatTerms;
use resurgam_model::{Duration, Role};
use resurgam_store::SharedStore;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::api::{self, App, Schema};
use crate::heartbeats::{self, Heartbeats};
use crate::metrics::Metrics;
use crate::streams::Streams;
use crate::waiting::Waiting;
use crate::{queue, registry, supervisor};

/// What a process is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServeSettings {
    /// The parts that it plays; at least one.
    pub roles: BTreeSet<Role>,
    /// Where it listens; port 0 takes a free one. Only loopback addresses are taken.
    pub listen: SocketAddr,
    /// Where the registry is, for an API that is not the registry as well.
    pub registry_url: Option<String>,
    /// What it takes.
    pub limits: Limits,
    /// How often agents must show themselves.
    pub heartbeat: HeartbeatTerms,
    /// How long an agent that is gone is remembered.
    pub forget_gone: Duration,
    /// How often it looks for what other processes put into the store.
    pub recheck: Duration,
    /// How often the supervisor looks for expired leases.
    pub sweep: Duration,
    /// Within which time each check of `/health/ready` must answer.
    pub check_timeout: Duration,
    /// How long requests that have begun may take to finish when the process is to end.
    pub drain: Duration,
}

impl ServeSettings {
    /// These roles at this address, all else by default.
    #[must_use]
    pub fn new(roles: impl IntoIterator<Item = Role>, listen: SocketAddr) -> Self {
        Self {
            roles: roles.into_iter().collect(),
            listen,
            registry_url: None,
            limits: Limits::default(),
            heartbeat: HeartbeatTerms::default(),
            forget_gone: Duration::from_secs(24 * 3600),
            recheck: Duration::from_millis(200),
            sweep: Duration::from_millis(250),
            check_timeout: Duration::from_secs(1),
            drain: Duration::from_secs(5),
        }
    }
}

/// What a request may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest payload, result, message body or error in bytes; of JSON, its text.
    pub max_payload_bytes: usize,
    /// The largest body of a request in bytes.
    pub max_body_bytes: usize,
    /// How long a body may take to arrive.
    pub body_timeout: Duration,
    /// How long a request may take, beside the wait that it asks for.
    pub request_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self::with_payload(1024 * 1024)
    }
}

impl Limits {
    /// Limits for payloads of up to so many bytes: a body may hold several of them.
    #[must_use]
    pub fn with_payload(max_payload_bytes: usize) -> Self {
        const MANY_SMALL_ONES: usize = 16 * 1024 * 1024;
        const THE_REST_OF_A_TASK: usize = 64 * 1024;
        Self {
            max_payload_bytes,
            max_body_bytes: max_payload_bytes
                .saturating_add(THE_REST_OF_A_TASK)
                .max(MANY_SMALL_ONES),
            body_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
        }
    }
}

/// Why a process could not be what it was to be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not a loopback address.
    #[error(
        "{0} can be reached from other machines, and there is no access control yet; listen on a \
         loopback address such as 127.0.0.1 or [::1]"
    )]
    NotLoopback(SocketAddr),
    /// Another process listens there.
    #[error(
        "{0} is in use by another process; end that one, or choose another port (0 takes a free \
         one)"
    )]
    AddressInUse(SocketAddr),
    /// The address cannot be listened on for another reason.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// No role.
    #[error("the process has no role; give it api, registry or supervisor")]
    NoRole,
    /// An API without a registry.
    #[error("the role api needs the role registry in the same process, or the registry's URL")]
    NoRegistry,
    /// The registry's URL cannot be used.
    #[error("the registry's URL cannot be used: {0}")]
    RegistryUrl(resurgam_client::Error),
    /// The listening socket broke.
    #[error("serving failed: {0}")]
    Serve(#[from] io::Error),
}

/// How long the registry may take to answer what is handed on to it.
const REGISTRY_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs a process of the platform until `shutdown` resolves. Calls `ready` with the address
/// once it can be connected to; whether it can work is what `/health/ready` says.
///
/// # Errors
/// When the settings make no sense or the address cannot be had. That the store is away is no
/// error.
pub async fn serve(
    settings: ServeSettings,
    store: SharedStore,
    bus: Arc<dyn Bus>,
    ready: impl FnOnce(SocketAddr),
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let registry = check(&settings)?;
    let listener = bind(settings.listen).await?;
    let address = listener.local_addr()?;
    let (closing, closed) = watch::channel(false);
    let (schema, migrated) = watch::channel(Schema::Pending(
        "the database is not ready yet; the request had no effect, try again",
    ));
    let drain = settings.drain;
    let (heartbeats, beats) = Heartbeats::new();
    let metrics = Metrics::new(store.meters());
    let app = Arc::new(App {
        metrics,
        settings,
        store,
        bus,
        registry,
        claims: Waiting::default(),
        ended: Waiting::default(),
        streams: Streams::default(),
        readers: Waiting::default(),
        heartbeats,
        migrated,
        closing: closed.clone(),
    });
    // Aborted when this function ends or is dropped.
    let mut background = JoinSet::new();
    background.spawn(prepare(Arc::clone(&app), schema));
    background.spawn(heartbeats::run(Arc::clone(&app), beats));

    let listener = listener.tap_io(|stream| {
        // Without it an answer may wait for the other side's acknowledgement.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot switch off delayed sending");
        }
    });
    let mut until_closing = closed;
    let server =
        axum::serve(listener, api::router(Arc::clone(&app))).with_graceful_shutdown(async move {
            let _ = until_closing.wait_for(|closing| *closing).await;
        });
    let mut server = std::pin::pin!(server.into_future());
    tracing::info!(%address, roles = ?app.settings.roles, "listening");
    ready(address);
    tokio::select! {
        result = &mut server => return Ok(result?),
        () = shutdown => {}
    }
    tracing::info!("ending: requests that have begun are finished");
    background.abort_all();
    closing.send_replace(true);
    match tokio::time::timeout(drain.0, server).await {
        Ok(result) => Ok(result?),
        Err(_) => {
            tracing::warn!(after = %drain, "some requests did not end in time");
            Ok(())
        }
    }
}

/// Checks the settings, and gives the registry if another process plays that part.
fn check(settings: &ServeSettings) -> Result<Option<Client>, Error> {
    if settings.roles.is_empty() {
        return Err(Error::NoRole);
    }
    if !settings.listen.ip().is_loopback() {
        return Err(Error::NotLoopback(settings.listen));
    }
    if settings.roles.contains(&Role::Registry) || !settings.roles.contains(&Role::Api) {
        return Ok(None);
    }
    let url = settings.registry_url.as_deref().ok_or(Error::NoRegistry)?;
    let client = Client::new(url).map_err(Error::RegistryUrl)?;
    Ok(Some(client.with_timeout(REGISTRY_TIMEOUT)))
}

async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => Error::AddressInUse(address),
        _ => Error::Listen { address, source },
    })
}

/// Brings the schema up to date, as soon as there is a database, and starts what needs it.
async fn prepare(app: Arc<App>, schema: watch::Sender<Schema>) {
    let patience = Patience { max: Duration::from_millis(500), ..Patience::endless() };
    let mut backoff = patience.start();
    let mut last_reason = String::new();
    while let Err(error) = app.store.migrate().await {
        let reason = chain(&error);
        if reason != last_reason {
            tracing::warn!(reason, "the database is not ready; trying again until it is");
            last_reason = reason;
        }
        if let resurgam_store::Error::NewerSchema { .. } = error {
            schema.send_replace(Schema::Pending(
                "a newer version of the program has used this database; run that version",
            ));
        }
        tokio::time::sleep(backoff.next_delay().unwrap_or(patience.max.0)).await;
    }
    schema.send_replace(Schema::Ready);
    tracing::info!(store = app.store.kind(), "the database is ready");

    let mut loops = JoinSet::new();
    if app.plays(Role::Registry) {
        loops.spawn(registry::run(Arc::clone(&app)));
    }
    if app.plays(Role::Api) {
        loops.spawn(queue::wake(Arc::clone(&app)));
    }
    if app.plays(Role::Api) || app.plays(Role::Supervisor) {
        loops.spawn(queue::keep(Arc::clone(&app)));
    }
    if app.plays(Role::Supervisor) {
        loops.spawn(supervisor::run(Arc::clone(&app)));
    }
    let mut ticks =
        tokio::time::interval(app.settings.recheck.0.max(std::time::Duration::from_millis(10)));
    loop {
        ticks.tick().await;
        app.claims.recheck();
        app.ended.recheck();
        app.readers.recheck();
    }
}
