//! What happens around every request.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tracing::Instrument;
use uuid::Uuid;

use super::{App, MAX_WAIT, Schema};
use crate::problem::Problem;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Gives the request an id, refuses what must not come in, and bounds its time.
pub(super) async fn around(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let span = tracing::debug_span!(
        "request",
        id = id.to_str().unwrap_or_default(),
        method = %request.method(),
        path = request.uri().path(),
    );
    let mut response = answer(&app, request, next).instrument(span).await;
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

async fn answer(app: &App, request: Request, next: Next) -> Response {
    if !is_local(request.headers()) {
        return Problem::forbidden_host().into_response();
    }
    let is_health = request.uri().path().starts_with("/health");
    if !is_health && let Schema::Pending(why) = *app.migrated.borrow() {
        return Problem::unavailable(why).into_response();
    }
    let bound = app.settings.limits.request_timeout.0.saturating_add(MAX_WAIT.0);
    match tokio::time::timeout(bound, next.run(request)).await {
        Ok(response) => {
            tracing::debug!(status = response.status().as_u16(), "answered");
            response
        }
        Err(_) => Problem::timeout().into_response(),
    }
}

/// The caller's id if it is short and harmless in a log, else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let theirs = headers.get(REQUEST_ID).filter(|value| {
        (1..=128).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic)
    });
    theirs.cloned().unwrap_or_else(|| {
        let id = Uuid::now_v7().to_string();
        HeaderValue::from_str(&id).unwrap_or(HeaderValue::from_static("unknown"))
    })
}

/// Whether the request names this machine. A web page whose name was made to point here
/// ("DNS rebinding") does not.
fn is_local(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST) else { return true };
    let Ok(host) = host.to_str() else { return false };
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((v6, _port)) => v6,
        None => host.split_once(':').map_or(host, |(name, _port)| name),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn only_names_of_this_machine_are_taken() {
        assert!(is_local(&HeaderMap::new()));
        for good in ["localhost", "LocalHost:80", "127.0.0.1:7070", "127.1.2.3", "[::1]:1", "[::1]"]
        {
            assert!(is_local(&with(header::HOST, good)), "{good}");
        }
        for bad in ["", "example.org", "localhost.example.org:80", "10.0.0.1", "[fe80::1]:80"] {
            assert!(!is_local(&with(header::HOST, bad)), "{bad}");
        }
    }

    #[test]
    fn request_ids_are_kept_when_harmless() {
        assert_eq!(request_id(&with(REQUEST_ID, "abc-1")), "abc-1");
        for bad in ["", "a b", &"x".repeat(129)] {
            let id = request_id(&with(REQUEST_ID, bad));
            assert_eq!(id.len(), 36, "{bad}");
        }
    }
}
