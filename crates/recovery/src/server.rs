//! The controller's HTTP interface, on loopback: leases for keepers, status for people, figures, and
//! alerts of others.
//!
//! Leases are given only to those who show the deployment's token. What people may see is
//! readable without it, like the platform's own interface.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use resurgam_deployment::postgres::wire::Renewal;
use resurgam_metrics::Format;
use resurgam_model::{ComponentName, IncidentId, Timestamp};
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;

use crate::alerts;
use crate::controller::Controller;
use crate::metrics;
use crate::status::IncidentDetail;

/// A renewal is small.
const MAX_BODY: usize = 256 * 1024;

struct Shared {
    controller: Arc<Controller>,
    token: String,
}

/// Serves until `shutdown`.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    controller: Arc<Controller>,
    token: String,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let shared = Arc::new(Shared { controller, token });
    let router = Router::new()
        .route("/health", get(|| async { "ok\n" }))
        .route("/v1/status", get(status))
        .route("/metrics", get(figures))
        .route("/v1/alerts", post(alerted))
        .route("/v1/incidents", get(incidents))
        .route("/v1/incidents/{id}", get(incident))
        .route("/v1/instances/{name}/renew", post(renew))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn(local_only))
        .fallback(|| async { problem(StatusCode::NOT_FOUND, "there is nothing at this path") })
        .with_state(shared);
    axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>())
        .with_graceful_shutdown(shutdown)
        .await
}

/// Refuses requests under another name than this machine's: a page in a browser must not get here
/// by a name of its own that leads to a loopback address.
async fn local_only(request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let name = host.unwrap_or_default();
    let name = match name.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => name,
    };
    let address = name.trim_matches(['[', ']']).parse::<IpAddr>();
    if name == "localhost" || address.is_ok_and(|address| address.is_loopback()) {
        return next.run(request).await;
    }
    problem(StatusCode::FORBIDDEN, "ask by a loopback address, such as http://127.0.0.1")
}

/// An RFC 9457 problem document.
fn problem(status: StatusCode, detail: impl Into<String>) -> Response {
    let body = json!({
        "type": "about:blank",
        "title": status.canonical_reason().unwrap_or("error"),
        "status": status.as_u16(),
        "detail": detail.into(),
    });
    (status, [(header::CONTENT_TYPE, "application/problem+json")], body.to_string()).into_response()
}

fn failed(error: &crate::Error) -> Response {
    tracing::error!(%error, "answer a request");
    problem(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

async fn status(State(shared): State<Arc<Shared>>) -> Response {
    match shared.controller.status().await {
        Ok(status) => Json(status).into_response(),
        Err(error) => failed(&error),
    }
}

/// Figures for Prometheus, in the format that `Accept` asks for.
async fn figures(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let format = Format::accepted(accept);
    match shared.controller.status().await {
        Ok(status) => {
            let text = metrics::registry(status, Timestamp::now()).encode(format);
            ([(header::CONTENT_TYPE, format.content_type())], text).into_response()
        }
        Err(error) => failed(&error),
    }
}

/// Alerts of others, who show the token of the plan.
async fn alerted(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    let controller = &shared.controller;
    let (plan, base) = (&controller.parts.plan.alerts, &controller.parts.base);
    let token = match alerts::token(plan.token_file.as_deref(), base) {
        Ok(token) => token,
        Err(why) => return problem(StatusCode::FORBIDDEN, why),
    };
    if !same(bearer(&headers), &token) {
        return problem(StatusCode::UNAUTHORIZED, "the token of alerts.token_file is needed");
    }
    let sent = serde_json::from_slice(&body);
    let sent = sent.map_err(|error| format!("this is no webhook of Alertmanager: {error}"));
    match sent.and_then(alerts::orders) {
        Ok(orders) => match alerts::take(controller.journal(), orders) {
            Ok(taken) => (StatusCode::ACCEPTED, Json(taken)).into_response(),
            Err(error) => failed(&error),
        },
        Err(why) => problem(StatusCode::BAD_REQUEST, why),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listing {
    #[serde(default = "hundred")]
    limit: u32,
}

fn hundred() -> u32 {
    100
}

async fn incidents(
    State(shared): State<Arc<Shared>>,
    query: Result<Query<Listing>, QueryRejection>,
) -> Response {
    let query = match query {
        Ok(query) => query,
        Err(error) => return problem(StatusCode::BAD_REQUEST, error.body_text()),
    };
    match shared.controller.journal().incidents(query.limit.min(1000)) {
        Ok(incidents) => Json(incidents).into_response(),
        Err(error) => failed(&error),
    }
}

async fn incident(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Response {
    let Ok(id) = id.parse::<IncidentId>() else {
        return problem(StatusCode::BAD_REQUEST, "an incident's id is a UUID; see /v1/incidents");
    };
    let journal = shared.controller.journal();
    let detail = || {
        let Some(incident) = journal.incident(id)? else { return Ok(None) };
        let now = Timestamp::now();
        let steps = journal.steps(id)?.iter().map(|step| step.report(now)).collect();
        let evidence =
            journal.evidence(id)?.into_iter().map(|(at, text)| format!("{at} {text}")).collect();
        Ok(Some(IncidentDetail { incident, steps, evidence }))
    };
    match detail() {
        Ok(Some(detail)) => Json(detail).into_response(),
        Ok(None) => problem(StatusCode::NOT_FOUND, format!("there is no incident {id}")),
        Err(error) => failed(&error),
    }
}

async fn renew(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if !same(bearer(&headers), &shared.token) {
        return problem(StatusCode::UNAUTHORIZED, "the deployment's token is needed for a lease");
    }
    let renewal: Renewal = match serde_json::from_slice(&body) {
        Ok(renewal) => renewal,
        Err(error) => {
            return problem(StatusCode::BAD_REQUEST, format!("this is no renewal: {error}"));
        }
    };
    let directive = match (shared.controller.authority(), ComponentName::new(name)) {
        (Some(authority), Ok(name)) => authority.renew(&name, renewal).await,
        _ => None,
    };
    match directive {
        Some(directive) => Json(directive).into_response(),
        None => problem(StatusCode::NOT_FOUND, "there is no such instance"),
    }
}

/// The token that was shown; empty when there is none.
fn bearer(headers: &HeaderMap) -> &str {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    given.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default()
}

/// Compares in a time that does not depend on where the two differ.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |diff, (a, b)| diff | (a ^ b)) == 0
}
