//! One process of the platform.
//!
//! It comes up without its store: it answers `/health` at once, says at `/health/ready` what is
//! missing, and works as soon as the database does. It ends in order: waiting calls are answered,
//! requests that have begun are finished, nothing new is taken.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use resurgam_bus::Bus;
use resurgam_bus::relay::Relay;
use resurgam_client::{Client, Patience, chain};
use resurgam_model::access::AccessMode;
use resurgam_model::agent::HeartbeatTerms;
use resurgam_model::message::NewMessage;
use resurgam_model::{Duration, InstanceId, Role};
use resurgam_store::SharedStore;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::access::AccessSettings;
use crate::api::{self, Access, App, Schema};
use crate::gather::{self, Gather};
use crate::listener::{self, ConnectionLimits, Tls, TlsError, TlsSettings};
use crate::metrics::Metrics;
use crate::streams::Streams;
use crate::waiting::Waiting;
use crate::{checkpoints, queue, registry, supervisor, workflows};

/// What a process is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServeSettings {
    /// The parts that it plays; at least one.
    pub roles: BTreeSet<Role>,
    /// Where it listens; port 0 takes a free one. What is no loopback address needs access
    /// control and TLS.
    pub listen: SocketAddr,
    /// TLS at that address.
    pub tls: Option<TlsSettings>,
    /// Whether that address may be without TLS although other machines reach it: for a proxy in
    /// front that speaks TLS.
    pub insecure_plaintext: bool,
    /// A loopback address where it listens without TLS as well, for the other parts on this
    /// machine.
    pub internal_listen: Option<SocketAddr>,
    /// How many connections, and how long they may take.
    pub connections: ConnectionLimits,
    /// Who may come in.
    pub access: AccessSettings,
    /// Where the registry is, for an API that is not the registry as well.
    pub registry_url: Option<String>,
    /// Who vouches for the registry (PEM), instead of the authorities of the system.
    pub registry_ca: Option<Vec<u8>>,
    /// What it takes.
    pub limits: Limits,
    /// What carries messages.
    pub bus: resurgam_model::plan::Bus,
    /// How often agents must show themselves.
    pub heartbeat: HeartbeatTerms,
    /// How long an agent that is gone is remembered.
    pub forget_gone: Duration,
    /// Where the supervisor keeps workflows as files, if it does.
    pub checkpoints: Option<PathBuf>,
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
            tls: None,
            insecure_plaintext: false,
            internal_listen: None,
            connections: ConnectionLimits::default(),
            access: AccessSettings::default(),
            registry_url: None,
            registry_ca: None,
            limits: Limits::default(),
            bus: resurgam_model::plan::Bus::default(),
            heartbeat: HeartbeatTerms::default(),
            forget_gone: Duration::from_secs(24 * 3600),
            checkpoints: None,
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
    /// Other machines reach it, and it would not ask who comes.
    #[error(
        "{0} can be reached from other machines, and access is open; control it with --access \
         tokens, or listen on a loopback address such as 127.0.0.1 or [::1]"
    )]
    Open(SocketAddr),
    /// Other machines reach it, and tokens would go over the network for all to read.
    #[error(
        "{0} can be reached from other machines without TLS; give --tls-cert and --tls-key, or, \
         if a proxy in front speaks TLS, --insecure-plaintext"
    )]
    Plaintext(SocketAddr),
    /// What is for the parts on this machine would be for others as well.
    #[error("{0} is to be for the parts on this machine, but is no loopback address")]
    NotInternal(SocketAddr),
    /// The certificates or the key.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The registry would not let this process in.
    #[error(
        "access is controlled, and the registry is another process: give both the same token in \
         RESURGAM_INTERNAL_TOKEN"
    )]
    NoInternalToken,
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
    /// The listening socket cannot be used.
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
    let tls = settings.tls.as_ref().map(Tls::load).transpose()?;
    let listener = bind(settings.listen).await?;
    let address = listener.local_addr()?;
    let internal = match settings.internal_listen {
        Some(address) => Some(bind(address).await?),
        None => None,
    };
    let (closing, closed) = watch::channel(false);
    let (schema, migrated) = watch::channel(Schema::Pending(
        "the database is not ready yet; the request had no effect, try again",
    ));
    let drain = settings.drain;
    let (heartbeats, beats) = Gather::new();
    let (registrations, registered) = Gather::new();
    let metrics = Metrics::new(store.meters());
    let access = Access::new(&settings.access, Arc::clone(&store));
    let app = Arc::new(App {
        relay: relay_name(&settings),
        metrics,
        access,
        settings,
        store,
        bus,
        registry,
        claims: Waiting::default(),
        ended: Waiting::default(),
        streams: Streams::default(),
        readers: Waiting::default(),
        heartbeats,
        registrations,
        migrated,
        closing: closed.clone(),
    });
    // Aborted when this function ends or is dropped.
    let mut background = JoinSet::new();
    background.spawn(prepare(Arc::clone(&app), schema));
    background.spawn(gather::run(Arc::clone(&app), beats));
    background.spawn(gather::run(Arc::clone(&app), registered));

    if let Some(tls) = &tls {
        background.spawn(listener::watch(Arc::clone(tls)));
    }
    let limits = app.settings.connections.within_descriptors();
    let router = api::router(Arc::clone(&app));
    let server = async {
        let inside = async {
            if let Some(internal) = internal {
                listener::serve(internal, None, limits, router.clone(), closed.clone()).await;
            }
        };
        let outside = listener::serve(listener, tls, limits, router.clone(), closed.clone());
        tokio::join!(inside, outside);
    };
    let mut server = std::pin::pin!(server);
    let (access, tls) = (app.settings.access.mode, app.settings.tls.is_some());
    tracing::info!(%address, roles = ?app.settings.roles, %access, tls, "listening");
    if access == AccessMode::Open {
        tracing::warn!("there is no access control: everybody on this machine may do everything");
    }
    ready(address);
    tokio::select! {
        () = &mut server => return Ok(()),
        () = shutdown => {}
    }
    tracing::info!("ending: requests that have begun are finished");
    background.abort_all();
    if app.plays(Role::Supervisor) {
        // Another process may relay at once. If the store is away, the lease runs out.
        let leaving = app.store.leave(&app.relay);
        let _ = tokio::time::timeout(Duration::from_millis(500).0, leaving).await;
    }
    closing.send_replace(true);
    if tokio::time::timeout(drain.0, server).await.is_err() {
        tracing::warn!(after = %drain, "some requests did not end in time");
    }
    Ok(())
}

/// Checks the settings, and gives the registry if another process plays that part.
fn check(settings: &ServeSettings) -> Result<Option<Client>, Error> {
    if settings.roles.is_empty() {
        return Err(Error::NoRole);
    }
    let open = settings.access.mode == AccessMode::Open;
    if !settings.listen.ip().is_loopback() {
        if open {
            return Err(Error::Open(settings.listen));
        }
        if settings.tls.is_none() && !settings.insecure_plaintext {
            return Err(Error::Plaintext(settings.listen));
        }
    }
    if let Some(address) = settings.internal_listen.filter(|address| !address.ip().is_loopback()) {
        return Err(Error::NotInternal(address));
    }
    if settings.roles.contains(&Role::Registry) || !settings.roles.contains(&Role::Api) {
        return Ok(None);
    }
    let url = settings.registry_url.as_deref().ok_or(Error::NoRegistry)?;
    let mut client = Client::builder(url).timeout(REGISTRY_TIMEOUT);
    if let Some(ca) = &settings.registry_ca {
        client = client.ca(ca.clone());
    }
    match &settings.access.internal {
        Some(secret) => client = client.token(secret.expose()),
        None if open => {}
        None => return Err(Error::NoInternalToken),
    }
    client.build().map(Some).map_err(Error::RegistryUrl)
}

async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => Error::AddressInUse(address),
        _ => Error::Listen { address, source },
    })
}

/// Who relays messages here. Number and address are for people: in containers they are the same for
/// many.
fn relay_name(settings: &ServeSettings) -> String {
    let life = InstanceId::new();
    format!("process {} at {}, {life}", std::process::id(), settings.listen)
}

/// Takes messages over the buses of the plan.
fn relay(app: &Arc<App>) -> Relay {
    let limits = app.settings.limits.clone();
    let fits = move |message: &NewMessage| api::fits(std::slice::from_ref(message), &limits);
    let (store, bus) = (Arc::clone(&app.store), app.settings.bus.clone());
    Relay::new(store, bus, app.relay.clone(), Box::new(fits))
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
    // Before anybody can send: nothing may come unheard in between.
    let mails = app.store.mails();
    schema.send_replace(Schema::Ready);
    tracing::info!(store = app.store.kind(), "the database is ready");

    let mut loops = JoinSet::new();
    loops.spawn(api::keep_access(Arc::clone(&app)));
    if app.plays(Role::Registry) {
        loops.spawn(registry::run(Arc::clone(&app)));
    }
    if app.plays(Role::Api) {
        loops.spawn(queue::wake(Arc::clone(&app)));
        loops.spawn(queue::wake_readers(Arc::clone(&app), mails));
    }
    if app.plays(Role::Api) || app.plays(Role::Supervisor) {
        loops.spawn(queue::keep(Arc::clone(&app)));
    }
    if app.plays(Role::Api) || app.plays(Role::Supervisor) {
        loops.spawn(workflows::advance(Arc::clone(&app)));
    }
    if app.plays(Role::Supervisor) {
        loops.spawn(supervisor::run(Arc::clone(&app)));
        loops.spawn(relay(&app).run());
        loops.spawn(workflows::sweep(Arc::clone(&app)));
        if let Some(folder) = app.settings.checkpoints.clone() {
            loops.spawn(checkpoints::run(Arc::clone(&app), folder));
        }
        loops.spawn(supervisor::count(Arc::clone(&app)));
        loops.spawn(supervisor::tell_of_stuck(Arc::clone(&app)));
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
