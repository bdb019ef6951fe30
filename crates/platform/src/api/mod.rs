//! The HTTP interface.
//!
//! | Path | What |
//! |---|---|
//! | `POST /tasks`, `POST /tasks/batch` | hand in tasks: durable when answered |
//! | `GET /tasks?state=&capability=&after=&limit=`, `GET /tasks/{id}` | tasks as they stand |
//! | `GET /tasks/pending?finished=` | counts |
//! | `POST /tasks/cancel`, `/requeue` | orders about tasks |
//! | `GET /limits`, `PUT`, `GET`, `DELETE /limits/{capability}` | limits of kinds of work |
//! | `GET /schedules`, `PUT`, `GET`, `DELETE /schedules/{name}` | schedules |
//! | `POST /tasks/claim` | take leases on tasks, waiting for one if asked to |
//! | `GET /tasks/stream?agent=&instance=&capability=&max_in_flight=` | leases as they come |
//! | `POST /tasks/extend`, `/complete`, `/fail` | say what became of leases |
//! | `POST /agents`, `POST /agents/heartbeat` | register, show oneself |
//! | `GET /agents?capability=&state=&label.NAME=&sort=&after=&limit=`, `GET /workers` | agents |
//! | `GET /agents/{id}` | an agent; the id may hold `/` |
//! | `POST /agents/drain`, `POST /agents/resume` | have an agent take nothing new, or tasks again |
//! | `DELETE /agents/{id}?instance=` | leave in order |
//! | `GET /tasks/stuck` | tasks that run for much longer than usual |
//! | `GET /pool?capability=&concurrency=&drain_within=` | how many workers tasks need |
//! | `POST /messages` | send messages |
//! | `POST /messages/any`, `/messages/all` | send a message to one agent that can do something, or to all |
//! | `GET /mailbox?agent=&after=&limit=&wait=` | read a mailbox, waiting for one if asked to |
//! | `POST /mailbox/acknowledge`, `/reject` | take messages out of a mailbox, or say that they are of no use |
//! | `GET /dead-letters?limit=`, `POST /dead-letters/{id}/resend`, `DELETE /dead-letters/{id}` | what was not delivered |
//! | `GET /bus`, `POST /bus/switch`, `/return` | how the buses are, and which is used |
//! | `GET /metrics` | figures for Prometheus |
//! | `GET /openapi.json` | the description of all this for programs |
//! | `GET /tokens?after=&limit=`, `POST /tokens`, `DELETE /tokens/{id}` | who may come in |
//! | `GET /audit?before=&limit=&act=&outcome=&token=` | what was done with privilege |
//! | `GET /health` | whether the process lives: does not touch the store |
//! | `GET /health/ready` | whether it can work: writes to the store and reads it back |
//!
//! An agent's id may hold `/`, so a mailbox is named by a parameter and not by a path.
//!
//! Whatever goes wrong is a [`Problem`]. Every answer carries `x-request-id`: the caller's own if
//! it sent one, and the log has it too.
//!
//! # Crash behaviour
//! Nothing lasting is kept here. A request whose answer never came may have taken effect and may
//! be repeated; the leases of a claim whose answer never came run out.

mod access;
mod agents;
mod announce;
mod body;
mod bus;
pub(crate) mod check;
mod health;
mod limits;
mod messages;
mod metrics;
mod middleware;
mod observe;
mod openapi;
mod orders;
pub(crate) mod pool;
mod route;
mod schedules;
mod stream;
mod tasks;
mod workflows;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{Method, Uri};
use axum::routing::MethodRouter;
use resurgam_bus::Bus;
use resurgam_client::Client;
use resurgam_model::agent::{Heartbeat, HeartbeatTerms, Registration};
use resurgam_model::message::NewMessage;
use resurgam_model::{AgentId, Capability, Role, TaskId};
use resurgam_store::SharedStore;
use tokio::sync::watch;

pub(crate) use self::access::rules::{Needs, TABLE};
pub(crate) use self::access::{Access, Peer, run as keep_access};
use self::route::Route;
use crate::gather::Gather;
use crate::problem::Problem;
use crate::serve::{Limits, ServeSettings};
use crate::streams::Streams;
use crate::waiting::Waiting;

/// What the handlers share.
pub(crate) struct App {
    pub(crate) metrics: crate::metrics::Metrics,
    pub(crate) access: Access,
    pub(crate) settings: ServeSettings,
    /// The name under which this process relays messages.
    pub(crate) relay: String,
    pub(crate) store: SharedStore,
    pub(crate) bus: Arc<dyn Bus>,
    /// The registry, when another process plays that part.
    pub(crate) registry: Option<Client>,
    /// Claims that wait for a task.
    pub(crate) claims: Waiting<Capability>,
    /// Callers that wait for a task to be over.
    pub(crate) ended: Waiting<TaskId>,
    /// Leases that are out on streams.
    pub(crate) streams: Streams,
    /// Readers that wait for a message.
    pub(crate) readers: Waiting<AgentId>,
    /// The way of heartbeats into the store.
    pub(crate) heartbeats: Gather<Heartbeat>,
    /// The way of registrations into the store.
    pub(crate) registrations: Gather<(Registration, HeartbeatTerms)>,
    /// Whether the schema is in place.
    pub(crate) migrated: watch::Receiver<Schema>,
    /// Whether the process is about to end.
    pub(crate) closing: watch::Receiver<bool>,
}

/// Where the schema of the store stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Schema {
    /// Not yet brought up to date, and why.
    Pending(&'static str),
    /// In place.
    Ready,
}

impl App {
    pub(crate) fn plays(&self, role: Role) -> bool {
        self.settings.roles.contains(&role)
    }

    /// Resolves when the process is about to end.
    async fn closed(&self) {
        let mut closing = self.closing.clone();
        // An error means that the sender is gone, which is an end as well.
        let _ = closing.wait_for(|closing| *closing).await;
    }

    /// Tasks may have come back to the queue.
    pub(crate) fn tasks_returned(&self, count: u64) {
        if count > 0 {
            self.claims.wake_all();
        }
    }
}

type Shared = State<Arc<App>>;

/// Every route of every part. A route that is not in one of these lists does not exist; see
/// [`openapi`].
fn routes() -> Vec<Route> {
    [
        access::routes(),
        agents::routes(),
        announce::routes(),
        bus::routes(),
        health::routes(),
        limits::routes(),
        messages::routes(),
        metrics::routes(),
        openapi::routes(),
        orders::routes(),
        schedules::routes(),
        pool::routes(),
        tasks::routes(),
        stream::routes(),
        workflows::routes(),
    ]
    .concat()
}

/// What is wrong with messages that came another way than over this API.
pub(crate) fn fits(messages: &[NewMessage], limits: &Limits) -> Result<(), String> {
    check::messages(messages, limits).map_err(|problem| problem.detail.clone())
}

/// The routes of the parts that this process plays.
pub(crate) fn router(app: Arc<App>) -> Router {
    let mut paths = BTreeMap::<&str, BTreeMap<&str, MethodRouter<Arc<App>>>>::new();
    for route in routes() {
        if route.roles.iter().any(|role| app.plays(*role)) {
            let methods = paths.entry(route.path).or_default();
            methods.insert(route.method, route.handlers);
        }
    }
    // Agents have any name, also that of a path below /agents.
    let one = paths.get("/agents/{*id}").cloned().unwrap_or_default();
    for (path, methods) in &mut paths {
        if path.starts_with("/agents/") && !path.contains('{') {
            for (method, handlers) in &one {
                methods.entry(method).or_insert_with(|| handlers.clone());
            }
        }
    }
    let mut router = Router::new();
    for (path, methods) in paths {
        let methods = methods.into_values().fold(MethodRouter::new(), MethodRouter::merge);
        router = router.route(path, methods);
    }
    router
        .fallback(no_such_path)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&app), middleware::around))
        // The outermost, so that it sees all that is refused.
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&app), observe::observe))
        .with_state(app)
}

async fn no_such_path(State(app): Shared, uri: Uri) -> Problem {
    let roles: Vec<_> = app.settings.roles.iter().map(|role| role.as_str()).collect();
    let roles = roles.join(", ");
    Problem::no_such_path(format!("{} is not served here (roles: {roles})", uri.path()))
}

async fn method_not_allowed(method: Method, uri: Uri) -> Problem {
    Problem::method_not_allowed(method.as_str(), uri.path())
}
