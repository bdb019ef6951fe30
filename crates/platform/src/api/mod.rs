//! The HTTP interface.
//!
//! | Path | What |
//! |---|---|
//! | `POST /tasks`, `POST /tasks/batch` | hand in tasks: durable when answered |
//! | `GET /tasks?state=&capability=&after=&limit=`, `GET /tasks/{id}` | tasks as they stand |
//! | `GET /tasks/pending` | counts |
//! | `POST /tasks/claim` | take leases on tasks, waiting for one if asked to |
//! | `POST /tasks/extend`, `/complete`, `/fail` | say what became of leases |
//! | `POST /agents`, `POST /agents/heartbeat` | register, show oneself |
//! | `GET /agents?capability=&state=&label.NAME=&sort=&after=&limit=`, `GET /workers` | agents |
//! | `GET /agents/{id}` | an agent; the id may hold `/` |
//! | `POST /agents/drain`, `POST /agents/resume` | have an agent take nothing new, or tasks again |
//! | `DELETE /agents/{id}?instance=` | leave in order |
//! | `POST /messages` | send messages |
//! | `GET /mailbox?agent=&after=&limit=&wait=` | read a mailbox, waiting for one if asked to |
//! | `POST /mailbox/acknowledge` | take messages out of a mailbox |
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

mod agents;
mod body;
mod check;
mod health;
mod messages;
mod middleware;
mod tasks;

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{Method, Uri};
use axum::routing::{get, post};
use resurgam_bus::Bus;
use resurgam_client::Client;
use resurgam_model::{AgentId, Capability, Duration, Role};
use resurgam_store::SharedStore;
use tokio::sync::watch;

use crate::heartbeats::Heartbeats;
use crate::problem::Problem;
use crate::serve::ServeSettings;
use crate::waiting::Waiting;

/// The longest wait for a task or a message.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// What the handlers share.
pub(crate) struct App {
    pub(crate) settings: ServeSettings,
    pub(crate) store: SharedStore,
    pub(crate) bus: Arc<dyn Bus>,
    /// The registry, when another process plays that part.
    pub(crate) registry: Option<Client>,
    /// Claims that wait for a task.
    pub(crate) claims: Waiting<Capability>,
    /// Readers that wait for a message.
    pub(crate) readers: Waiting<AgentId>,
    /// The way of heartbeats into the store.
    pub(crate) heartbeats: Heartbeats,
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

/// The routes of the parts that this process plays.
pub(crate) fn router(app: Arc<App>) -> Router {
    let roles: &BTreeSet<Role> = &app.settings.roles;
    let mut router = Router::new()
        .route("/health", get(health::alive))
        .route("/health/ready", get(health::ready))
        .route("/workers", get(agents::workers));
    router = if roles.contains(&Role::Api) || roles.contains(&Role::Registry) {
        // Agents have any name, also that of a path below /agents.
        let one = get(agents::one).delete(agents::deregister);
        router
            .route("/agents", get(agents::all).post(agents::register))
            .route("/agents/heartbeat", one.clone().post(agents::heartbeat))
            .route("/agents/drain", one.clone().post(agents::drain))
            .route("/agents/resume", one.clone().post(agents::resume))
            .route("/agents/{*id}", one)
    } else {
        router.route("/agents", get(agents::all)).route("/agents/{*id}", get(agents::one))
    };
    if roles.contains(&Role::Api) {
        router = router
            .route("/tasks", get(tasks::list).post(tasks::submit))
            .route("/tasks/batch", post(tasks::submit_batch))
            .route("/tasks/pending", get(tasks::pending))
            .route("/tasks/claim", post(tasks::claim))
            .route("/tasks/extend", post(tasks::extend))
            .route("/tasks/complete", post(tasks::complete))
            .route("/tasks/fail", post(tasks::fail))
            .route("/tasks/{id}", get(tasks::one))
            .route("/messages", post(messages::send))
            .route("/mailbox", get(messages::receive))
            .route("/mailbox/acknowledge", post(messages::acknowledge));
    }
    router
        .fallback(no_such_path)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&app), middleware::around))
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
