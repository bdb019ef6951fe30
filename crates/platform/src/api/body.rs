//! Reading what a request carries.

use std::fmt::Display;
use std::future::poll_fn;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;

use axum::body::{Body, HttpBody};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use resurgam_model::AgentId;
use serde::de::DeserializeOwned;

use super::App;
use crate::problem::Problem;

/// A JSON body within the limits.
pub(super) struct Json<T>(pub(super) T);

/// How much of a body that is too large is still read, so that the caller gets to see the answer
/// instead of a broken connection.
const READ_AND_DROP: usize = 64 * 1024 * 1024;

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Problem> {
        // A web page of somebody else can send a form here, but not this type.
        if !is_json(request.headers()) {
            return Err(Problem::unsupported_media_type());
        }
        let limits = &app.settings.limits;
        let read = read(request.into_body(), limits.max_body_bytes);
        match tokio::time::timeout(limits.body_timeout.0, read).await {
            Ok(body) => parse(&body?).map(Self),
            Err(_) => Err(Problem::body_timeout()),
        }
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()) else {
        return false;
    };
    let essence = value.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
}

async fn read(mut body: Body, limit: usize) -> Result<Vec<u8>, Problem> {
    let too_large =
        || Problem::too_large(format!("the body is larger than {limit} bytes; send less at once"));
    let mut read = Vec::new();
    let mut seen = 0_usize;
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let frame = frame
            .map_err(|_| Problem::malformed_json("the body broke off before its end".to_owned()))?;
        let Ok(data) = frame.into_data() else { continue };
        seen = seen.saturating_add(data.len());
        if seen <= limit {
            read.extend_from_slice(&data);
        } else if seen > limit.saturating_add(READ_AND_DROP) {
            break;
        }
    }
    if seen > limit { Err(too_large()) } else { Ok(read) }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let first = body.iter().find(|byte| !byte.is_ascii_whitespace());
    if first == Some(&b'[') && serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok() {
        // serde would take it for the fields in their order.
        return Err(Problem::invalid_field("the body must be an object, and is a list"));
    }
    serde_json::from_slice(body).map_err(|error| {
        if error.is_data() {
            // serde's text names the field and ends with line and column.
            Problem::invalid_field(error.to_string())
        } else if body.is_empty() {
            Problem::malformed_json("the body is empty; JSON is needed".to_owned())
        } else {
            Problem::malformed_json(error.to_string())
        }
    })
}

/// The parameters behind the `?`.
pub(super) struct Parameters<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<Arc<App>> for Parameters<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, Problem> {
        Query::try_from_uri(&parts.uri).map(|Query(value)| Self(value)).map_err(|rejection| {
            use std::error::Error;
            let reason =
                rejection.source().map_or_else(|| rejection.to_string(), ToString::to_string);
            Problem::invalid_parameter(reason)
        })
    }
}

/// An id that stands in the path, where the path has no other.
pub(super) struct PathId<T>(pub(super) T);

impl<T: FromStr<Err: Display>> FromRequestParts<Arc<App>> for PathId<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let refuse = |reason: &dyn Display| {
            Problem::invalid_parameter(format!("the id in the path: {reason}"))
        };
        let Path(text) = Path::<String>::from_request_parts(parts, app)
            .await
            .map_err(|rejection| refuse(&rejection))?;
        text.parse().map(Self).map_err(|error: T::Err| refuse(&error))
    }
}

/// The agent that the path names. Its `/` may be written as they are or as `%2F`.
pub(super) struct AgentPath(pub(super) AgentId);

impl FromRequestParts<Arc<App>> for AgentPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let id = match Path::<String>::from_request_parts(parts, app).await {
            Ok(Path(id)) => id,
            // The path that stands for itself: /agents/heartbeat.
            Err(_) => parts.uri.path().trim_start_matches("/agents/").to_owned(),
        };
        AgentId::new(id).map(Self).map_err(|error| Problem::invalid_parameter(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bodies_up_to_the_limit_are_read() {
        assert_eq!(read(Body::from("12345"), 5).await.unwrap(), b"12345");
        let problem = read(Body::from("123456"), 5).await.unwrap_err();
        assert_eq!(problem.status, 413);
        assert!(problem.detail.contains("5 bytes"), "{}", problem.detail);
    }

    #[test]
    fn a_list_is_not_taken_for_an_object() {
        #[derive(Debug, serde::Deserialize)]
        struct Order {
            #[serde(default)]
            all: bool,
        }
        assert!(!parse::<Order>(b" {}").unwrap().all);
        assert_eq!(parse::<Order>(b" [true]").unwrap_err().status, 422);
        assert_eq!(parse::<Order>(b"[").unwrap_err().status, 400);
    }

    #[test]
    fn json_is_recognised_by_its_type() {
        for (value, expected) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("text/plain", false),
            ("application/jsonp", false),
        ] {
            let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, value.parse().unwrap())]);
            assert_eq!(is_json(&headers), expected, "{value}");
        }
        assert!(!is_json(&HeaderMap::new()));
    }
}
