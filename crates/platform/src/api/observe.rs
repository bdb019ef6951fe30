//! What is seen of every request: its id, its span, its figures.
//!
//! The span has the request's id, its method and the template of its route; who asks is recorded
//! once that is known. A trace that the caller has begun (`traceparent`, `tracestate`) goes on in
//! it when spans are exported.

use std::borrow::Cow;
use std::cell::Cell;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{Status, TraceContextExt};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::field::Empty;
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use uuid::Uuid;

use super::App;
use crate::metrics::Http;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

tokio::task_local! {
    /// Whether the request asked to wait for something to come.
    static WAITS: Cell<bool>;
}

/// Notes that the request under way may take as long as it does because it waits.
pub(super) fn this_request_waits() {
    // Outside of a request there is nothing to note.
    let _ = WAITS.try_with(|waits| waits.set(true));
}

/// Notes who asks.
pub(super) fn this_agent(agent: &resurgam_model::AgentId) {
    Span::current().record("agent", agent.as_str());
}

/// Notes by which token.
pub(super) fn this_token(token: resurgam_model::TokenId) {
    Span::current().record("token", tracing::field::display(token));
}

/// Goes around everything else.
pub(super) async fn observe(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Response {
    let id = request_id(request.headers());
    // The audit log finds it there.
    request.headers_mut().insert(REQUEST_ID, id.clone());
    let method = method_label(request.method());
    let route: Cow<'static, str> = match request.extensions().get::<MatchedPath>() {
        Some(path) => Cow::Owned(path.as_str().to_owned()),
        None => Cow::Borrowed("none"),
    };
    let span = tracing::info_span!(
        "request",
        id = id.to_str().unwrap_or_default(),
        method,
        route = &*route,
        agent = Empty,
        token = Empty,
        trace = Empty,
        otel.name = Empty,
        otel.kind = Empty,
    );
    let traced = join_trace(&span, request.headers(), method, &route);
    let mut seen =
        Seen { http: &app.metrics.http, method, route, began: Instant::now(), end: None };
    seen.http.in_flight.inc();

    let run = async {
        let response = next.run(request).await;
        let waits = WAITS.try_with(Cell::get).unwrap_or(false);
        (response, waits)
    };
    let (mut response, waits) = WAITS.scope(Cell::new(false), run).instrument(span.clone()).await;

    let status = response.status();
    seen.end = Some((status, waits));
    span.in_scope(|| log(status, seen.began));
    if traced {
        span.set_attribute("http.response.status_code", i64::from(status.as_u16()));
        if status.is_server_error() {
            span.set_status(Status::error(""));
        }
    }
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

fn log(status: StatusCode, began: Instant) {
    let (status, ms) = (status.as_u16(), began.elapsed().as_secs_f64() * 1000.0);
    if status == 500 {
        tracing::warn!(status, ms, "answered");
    } else {
        tracing::debug!(status, ms, "answered");
    }
}

/// A request, counted when it is over: also when its caller has gone away and it is dropped.
struct Seen<'a> {
    http: &'a Http,
    method: &'static str,
    route: Cow<'static, str>,
    began: Instant,
    end: Option<(StatusCode, bool)>,
}

impl Drop for Seen<'_> {
    fn drop(&mut self) {
        self.http.in_flight.dec();
        let route = std::mem::take(&mut self.route);
        self.http.count(self.method, route, self.end, self.began.elapsed());
    }
}

/// Makes the caller's trace go on in this span. Whether the span is exported at all.
fn join_trace(span: &Span, headers: &HeaderMap, method: &str, route: &str) -> bool {
    if headers.contains_key("traceparent") {
        let parent = TraceContextPropagator::new().extract(&Headers(headers));
        let theirs = parent.span().span_context().clone();
        if theirs.is_valid() {
            // In the log also when spans are not exported.
            span.record("trace", tracing::field::display(theirs.trace_id()));
            // Refused only when nothing is exported.
            let _ = span.set_parent(parent);
        }
    }
    if !resurgam_metrics::traces().is_on() {
        return false;
    }
    // Before its context is looked at, which begins it: then it is too late for them.
    span.record("otel.name", tracing::field::display(format_args!("{method} {route}")));
    span.record("otel.kind", "server");
    let context = span.context();
    let ours = context.span().span_context().clone();
    if !ours.is_valid() {
        return false;
    }
    if !headers.contains_key("traceparent") {
        span.record("trace", tracing::field::display(ours.trace_id()));
    }
    true
}

/// Where a trace is told.
struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

/// Methods of anybody's invention must not become series.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_kept_when_harmless() {
        let with = |value: &str| {
            request_id(&HeaderMap::from_iter([(REQUEST_ID, HeaderValue::from_str(value).unwrap())]))
        };
        assert_eq!(with("abc-1"), "abc-1");
        for bad in ["", "a b", &"x".repeat(129)] {
            assert_eq!(with(bad).len(), 36, "{bad}");
        }
    }
}
