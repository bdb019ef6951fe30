//! A controller that says what the test wants it to say.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use resurgam_deployment::postgres::wire::{Directive, Order, Renewal, ServerState};
use resurgam_model::database::Epoch;
use tokio::sync::watch;

pub(crate) const TOKEN: &str = "the token";

/// An answer is held back for so long when there is nothing new.
const HOLD: Duration = Duration::from_millis(100);

#[derive(Clone, Debug, Default)]
struct Slot {
    directive: Option<Directive>,
    said: Option<Renewal>,
    /// The long acts that were told.
    did: Vec<String>,
    /// And the problems.
    problems: Vec<String>,
    /// When the question came to which the last answer was given.
    answered: Option<Instant>,
}

#[derive(Debug, Default)]
struct Inner {
    slots: Mutex<BTreeMap<String, Slot>>,
    changes: watch::Sender<u64>,
    silent: watch::Sender<bool>,
}

/// The controller. Its server ends with the runtime of the test.
#[derive(Clone, Debug)]
pub(crate) struct Controller {
    inner: Arc<Inner>,
    pub(crate) address: SocketAddr,
}

impl Controller {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let inner = Arc::new(Inner::default());
        let routes = axum::Router::new()
            .route("/v1/instances/{name}/renew", post(renew))
            .with_state(Arc::clone(&inner));
        tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        Self { inner, address }
    }

    fn slot<T>(&self, name: &str, look: impl FnOnce(&mut Slot) -> T) -> T {
        look(self.inner.slots.lock().unwrap().entry(name.to_owned()).or_default())
    }

    /// Gives an order; answers its number.
    pub(crate) fn order(&self, name: &str, epoch: i64, lease: Duration, order: Order) -> u64 {
        let mut number = 0;
        self.inner.changes.send_modify(|changes| {
            *changes += 1;
            number = *changes;
            let lease = resurgam_model::Duration(lease);
            let directive = Directive { number, epoch: Epoch(epoch), lease, order };
            self.slot(name, |slot| slot.directive = Some(directive));
        });
        number
    }

    /// Answers nobody any more, or again.
    pub(crate) fn be_silent(&self, silent: bool) {
        self.inner.silent.send_replace(silent);
    }

    /// The last word of a keeper.
    pub(crate) fn said(&self, name: &str) -> Option<Renewal> {
        self.slot(name, |slot| slot.said.clone())
    }

    /// The long acts that a keeper told of.
    pub(crate) fn did(&self, name: &str) -> Vec<String> {
        self.slot(name, |slot| slot.did.clone())
    }

    /// The problems that a keeper told of.
    pub(crate) fn problems(&self, name: &str) -> Vec<String> {
        self.slot(name, |slot| slot.problems.clone())
    }

    pub(crate) fn forget(&self, name: &str) {
        self.slot(name, |slot| slot.said = None);
    }

    pub(crate) fn state(&self, name: &str) -> ServerState {
        self.said(name).map_or(ServerState::Unknown, |said| said.observed.state)
    }

    /// When the last question came that was answered.
    pub(crate) fn last_answered(&self, name: &str) -> Instant {
        self.slot(name, |slot| slot.answered).expect("an answer was given")
    }
}

async fn renew(
    State(inner): State<Arc<Inner>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Json(renewal): Json<Renewal>,
) -> Response {
    let asked = Instant::now();
    let bearer = format!("Bearer {TOKEN}");
    assert_eq!(headers["authorization"], bearer.as_str());
    let heard = renewal.heard;
    let slot = |look: &mut dyn FnMut(&mut Slot)| {
        look(inner.slots.lock().unwrap().entry(name.clone()).or_default());
    };
    slot(&mut |slot| {
        let doing = renewal.observed.doing.clone();
        slot.did.extend(doing.filter(|doing| slot.did.last() != Some(doing)));
        let problem = renewal.observed.problem.clone();
        slot.problems.extend(problem.filter(|problem| slot.problems.last() != Some(problem)));
        slot.said = Some(renewal.clone());
    });
    let mut changes = inner.changes.subscribe();
    let news = changes.wait_for(|_| {
        let slots = inner.slots.lock().unwrap();
        slots[&name].directive.as_ref().is_some_and(|directive| directive.number != heard)
    });
    let _ = tokio::time::timeout(HOLD, news).await;
    let _ = inner.silent.subscribe().wait_for(|silent| !silent).await;
    let mut answer = None;
    slot(&mut |slot| {
        answer.clone_from(&slot.directive);
        slot.answered = Some(asked);
    });
    match answer {
        Some(directive) => Json(directive).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}
