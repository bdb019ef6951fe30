//! `GET /tasks/stream`: leases as server-sent events, for agents that would rather listen than
//! ask.
//!
//! A stream claims as `POST /tasks/claim` does, and no more than the agent has places for: a
//! lease takes a place from when it is sent until its task is completed, failed, or the lease is
//! lost.
//!
//! # Crash behaviour
//! What was claimed but did not arrive is under lease all the same. Every claim of a stream goes
//! by one id; who opens the stream again with that id gets all of its leases that are still
//! valid. Otherwise they run out.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::fmt::Display;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration as StdDuration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use resurgam_client::problem::code;
use resurgam_model::task::{Claim, Lease, Token};
use resurgam_model::{AgentId, Capability, ClaimId, Duration, InstanceId, TaskId};
use schemars::JsonSchema;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::access::Caller;
use super::body::Parameters;
use super::route::Route;
use super::{App, Shared, check, observe};
use crate::claims::claim_until;
use crate::problem::Problem;
use crate::streams::Ended;

/// So often something is sent, so that both sides notice when the other is gone.
const KEEP_ALIVE: StdDuration = StdDuration::from_secs(5);
/// How long one claim waits; then the next one does.
const WAIT: StdDuration = StdDuration::from_secs(30);
/// So often a stream without a free place looks for leases that ended without its notice.
const LOOK: StdDuration = StdDuration::from_secs(1);

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::get("/tasks/stream", open)
            .about("Leases as they become available, as server-sent events")
            .details(
                "Each event `lease` holds one lease as JSON. At most `max_in_flight` of them are \
                 out at once: a place is free again when the task is completed or failed, or its \
                 lease is lost. An event `problem` says why the stream ends, \
                 such as that the token was revoked; an event `end` that \
                 the server does, and that the stream is to be opened again. Comments are sent \
                 in between. Who opens a stream again with the same `claim` gets all leases of it \
                 that are still valid, so that none is lost with a connection.",
            )
            .query::<StreamParameters>()
            .answers_as::<String>(StatusCode::OK, "text/event-stream", "The stream")
            .fails(&[code::INVALID_PARAMETER, code::UNKNOWN_AGENT]),
    ]
}

/// The parameters, which [`claim`] reads one by one because one of them may occur several times.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "describes parameters and is never made")]
struct StreamParameters {
    /// Who listens; it must be registered.
    agent: AgentId,
    /// The life of the agent that listens.
    instance: InstanceId,
    /// What it can do.
    #[schemars(length(min = 1, max = 256))]
    capability: Vec<Capability>,
    /// So many leases at once; 1 if not given.
    #[schemars(range(min = 1, max = 256))]
    max_in_flight: Option<u32>,
    /// How long the leases last unless extended, 100 ms to a day; 10 s if not given.
    lease: Option<Duration>,
    /// Names the stream, chosen by whoever opens it.
    claim: Option<ClaimId>,
}

/// What the stream claims when all places are free.
fn claim(parameters: Vec<(String, String)>) -> Result<Claim, Problem> {
    let (mut agent, mut instance, mut max, mut lease, mut id) = (None, None, None, None, None);
    let mut capabilities = Vec::new();
    for (name, value) in parameters {
        match name.as_str() {
            "agent" => set(&mut agent, &name, &value)?,
            "instance" => set(&mut instance, &name, &value)?,
            "max_in_flight" => set(&mut max, &name, &value)?,
            "lease" => set(&mut lease, &name, &value)?,
            "claim" => set(&mut id, &name, &value)?,
            "capability" => capabilities.push(read(&name, &value)?),
            _ => {
                let name: String = name.chars().take(60).collect();
                return Err(Problem::invalid_parameter(format!(
                    "there is no parameter {name:?}; use agent, instance, capability, \
                     max_in_flight, lease and claim"
                )));
            }
        }
    }
    let missing = |name: &str| Problem::invalid_parameter(format!("{name} is missing"));
    let claim = Claim {
        agent: agent.ok_or_else(|| missing("agent"))?,
        instance: instance.ok_or_else(|| missing("instance"))?,
        capabilities,
        max: max.unwrap_or(1),
        lease: lease.unwrap_or(Duration::from_secs(10)),
        again: id.is_some(),
        id: Some(id.unwrap_or_else(ClaimId::new)),
    };
    check::claim(&claim).map_err(|problem| {
        let detail = problem.detail.replace("capabilities", "capability");
        Problem::invalid_parameter(detail.replace("max is", "max_in_flight is"))
    })?;
    Ok(claim)
}

fn read<T: FromStr<Err: Display>>(name: &str, value: &str) -> Result<T, Problem> {
    value.parse().map_err(|error| Problem::invalid_parameter(format!("{name}: {error}")))
}

fn set<T: FromStr<Err: Display>>(
    place: &mut Option<T>,
    name: &str,
    value: &str,
) -> Result<(), Problem> {
    if place.replace(read(name, value)?).is_some() {
        return Err(Problem::invalid_parameter(format!("{name} is given twice")));
    }
    Ok(())
}

async fn open(
    State(app): Shared,
    caller: Caller,
    Parameters(parameters): Parameters<Vec<(String, String)>>,
) -> Result<Response, Problem> {
    let claim = claim(parameters)?;
    caller.may_act_as(&claim.agent)?;
    observe::this_agent(&claim.agent);
    let mut feed = Feed::new(Arc::clone(&app), claim);
    // Whoever may not listen is told so in the ordinary way.
    feed.claim(Instant::now()).await?;
    // Looked at beside, however busy the stream is. Ends with the stream.
    let refused = Arc::clone(&feed.refused);
    let watch = async move { refused.send_replace(Some(app.access.refused(&caller).await)) };
    feed.background.spawn(async move { drop(watch.await) });
    let events = stream::unfold(feed, |mut feed| async move {
        feed.next().await.map(|event| (Ok::<_, Infallible>(event), feed))
    });
    let alive = KeepAlive::new().interval(KEEP_ALIVE).text("alive");
    Ok(Sse::new(events).keep_alive(alive).into_response())
}

/// What one stream has sent and is to send.
struct Feed {
    app: Arc<App>,
    claim: Claim,
    /// Leases that take a place.
    held: HashMap<TaskId, Token>,
    outgoing: VecDeque<Lease>,
    ended: Arc<Ended>,
    /// When to look for leases that ended without notice.
    look_at: Instant,
    closed: bool,
    /// Why the listener is let in no more.
    refused: Arc<watch::Sender<Option<Problem>>>,
    background: JoinSet<()>,
}

impl Feed {
    fn new(app: Arc<App>, claim: Claim) -> Self {
        let (held, outgoing, ended) = (HashMap::new(), VecDeque::new(), Arc::default());
        Self {
            app,
            claim,
            held,
            outgoing,
            ended,
            look_at: Instant::now() + LOOK,
            closed: false,
            refused: Arc::new(watch::Sender::new(None)),
            background: JoinSet::new(),
        }
    }

    fn places(&self) -> usize {
        self.claim.max as usize
    }

    /// The next event; none at the end.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if self.closed {
                return None;
            }
            if let Some(problem) = &*self.refused.borrow() {
                self.closed = true;
                return Some(event("problem", &**problem));
            }
            if let Some(lease) = self.outgoing.pop_front() {
                return Some(event("lease", &lease));
            }
            if *self.app.closing.borrow() {
                self.closed = true;
                return Some(Event::default().event("end").data("the server ends"));
            }
            if let Err(problem) = self.more().await {
                if !problem.is_transient() {
                    self.closed = true;
                    return Some(event("problem", &*problem));
                }
                tokio::select! {
                    () = tokio::time::sleep(LOOK) => {}
                    () = over(&self.app, &self.refused) => {}
                }
            }
        }
    }

    /// Waits for a free place, and then for leases.
    async fn more(&mut self) -> Result<(), Problem> {
        for lease in self.ended.take() {
            if self.held.get(&lease.task) == Some(&lease.token) {
                self.held.remove(&lease.task);
            }
        }
        if self.held.len() < self.places() {
            return self.claim(Instant::now() + WAIT).await;
        }
        tokio::select! {
            () = self.ended.some() => {}
            () = over(&self.app, &self.refused) => {}
            () = tokio::time::sleep_until(self.look_at) => {
                self.claim.again = true;
                self.claim(Instant::now()).await?;
            }
        }
        Ok(())
    }

    /// Claims tasks for the free places; or, `again`, all that the stream has, for all places if
    /// it has none.
    async fn claim(&mut self, until: Instant) -> Result<(), Problem> {
        let mut claim = self.claim.clone();
        if !claim.again {
            let held = u32::try_from(self.held.len()).unwrap_or(u32::MAX);
            claim.max = claim.max.saturating_sub(held).max(1);
        }
        let app = Arc::clone(&self.app);
        let refused = Arc::clone(&self.refused);
        let over = over(&app, &refused);
        let leases = claim_until(&*app.store, &app.claims, &claim, until, over).await?;
        if claim.again {
            let still = |task: &TaskId, token: &Token| {
                leases.iter().any(|lease| lease.task == *task && lease.token == *token)
            };
            let over: Vec<_> =
                self.held.extract_if(|task, token| !still(task, token)).map(|(t, _)| t).collect();
            app.streams.forget(over.into_iter(), &self.ended);
        }
        for lease in leases {
            if self.held.insert(lease.task, lease.token) != Some(lease.token) {
                app.streams.goes_out(lease.task, &self.ended);
                self.outgoing.push_back(lease);
            }
        }
        self.claim.again = false;
        self.look_at = Instant::now() + LOOK;
        Ok(())
    }
}

/// Resolves when the stream is to end, whoever wants it to.
async fn over(app: &App, refused: &watch::Sender<Option<Problem>>) {
    let mut refused = refused.subscribe();
    tokio::select! {
        () = app.closed() => {}
        _ = refused.wait_for(Option::is_some) => {}
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.app.streams.forget(self.held.keys().copied(), &self.ended);
    }
}

fn event(kind: &str, what: &impl serde::Serialize) -> Event {
    // What comes from the store can be written as JSON.
    Event::default()
        .event(kind)
        .json_data(what)
        .unwrap_or_else(|error| Event::default().comment(error.to_string()))
}
