//! What happens around every request.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use resurgam_client::wire::MAX_WAIT;
use resurgam_model::access::AccessMode;

use super::{App, Schema, access};
use crate::problem::Problem;

/// Refuses what must not come in, and bounds the time of a request.
pub(super) async fn around(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    // With access control a foreign name gets nobody in: a web page has no token.
    if app.access.mode() == AccessMode::Open && !is_local(request.headers()) {
        return Problem::forbidden_host().into_response();
    }
    if !needs_no_store(request.uri().path())
        && let Schema::Pending(why) = *app.migrated.borrow()
    {
        return Problem::unavailable(why).into_response();
    }
    let bound = app.settings.limits.request_timeout.0.saturating_add(MAX_WAIT.0);
    match tokio::time::timeout(bound, access::guard(&app, request, next)).await {
        Ok(response) => response,
        Err(_) => Problem::timeout().into_response(),
    }
}

/// Whether what is at this path answers also while the database is away.
pub(super) fn needs_no_store(path: &str) -> bool {
    path.starts_with("/health") || ["/metrics", "/openapi.json"].contains(&path)
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
    use axum::http::{HeaderName, HeaderValue};

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
}
