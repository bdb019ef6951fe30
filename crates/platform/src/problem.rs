//! What the HTTP interface answers when it cannot do what was asked: RFC 9457 problem documents.
//!
//! `code` is stable and meant for programs, `detail` is meant for people and may change. A detail
//! never repeats what the database said: that goes to the log, under the request's id.

use std::borrow::Cow;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

/// The media type of problem documents.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// Seconds after which a caller may try again, as said in `Retry-After`.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// The codes of problems.
pub mod code {
    /// 400: the body is not JSON.
    pub const MALFORMED_JSON: &str = "malformed-json";
    /// 422: a field is missing, unknown, or its value is not allowed.
    pub const INVALID_FIELD: &str = "invalid-field";
    /// 400: a parameter of the address is not allowed.
    pub const INVALID_PARAMETER: &str = "invalid-parameter";
    /// 403: the Host header names another machine.
    pub const FORBIDDEN_HOST: &str = "forbidden-host";
    /// 404: there is no such thing.
    pub const NOT_FOUND: &str = "not-found";
    /// 404: there is no such path, or this process does not serve it.
    pub const NO_SUCH_PATH: &str = "no-such-path";
    /// 405: the path exists, but not with this method.
    pub const METHOD_NOT_ALLOWED: &str = "method-not-allowed";
    /// 408: the body did not arrive in time.
    pub const BODY_TIMEOUT: &str = "body-timeout";
    /// 409: the agent must register first.
    pub const UNKNOWN_AGENT: &str = "unknown-agent";
    /// 413: a payload, or the body as a whole, is over the limit.
    pub const TOO_LARGE: &str = "too-large";
    /// 415: the body is not declared as JSON.
    pub const UNSUPPORTED_MEDIA_TYPE: &str = "unsupported-media-type";
    /// 500: a fault of the platform.
    pub const INTERNAL: &str = "internal";
    /// 503: the store cannot be used at present.
    pub const UNAVAILABLE: &str = "unavailable";
    /// 503: the disk of the store is full.
    pub const STORAGE_FULL: &str = "storage-full";
    /// 503: it took too long.
    pub const TIMEOUT: &str = "timeout";
    /// 503: the agent registry cannot be reached at present.
    pub const REGISTRY_UNAVAILABLE: &str = "registry-unavailable";
}

/// A problem document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// A URN that ends in the code.
    #[serde(rename = "type")]
    pub kind: Cow<'static, str>,
    /// What it is, always the same for one code.
    pub title: Cow<'static, str>,
    /// The HTTP status.
    pub status: u16,
    /// What happened and what to do, for people.
    pub detail: String,
    /// What it is, for programs: one of [`code`].
    pub code: Cow<'static, str>,
}

impl Problem {
    fn new(
        status: StatusCode,
        code: &'static str,
        title: &'static str,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            kind: format!("urn:resurgam:problem:{code}").into(),
            title: title.into(),
            status: status.as_u16(),
            detail: bounded(detail.into()),
            code: code.into(),
        }
    }

    pub(crate) fn malformed_json(detail: String) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code::MALFORMED_JSON, "The body is not JSON", detail)
    }

    pub(crate) fn invalid_field(detail: impl Into<String>) -> Self {
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        Self::new(status, code::INVALID_FIELD, "A field cannot be accepted", detail)
    }

    pub(crate) fn invalid_parameter(detail: impl Into<String>) -> Self {
        let status = StatusCode::BAD_REQUEST;
        Self::new(status, code::INVALID_PARAMETER, "A parameter cannot be accepted", detail)
    }

    pub(crate) fn forbidden_host() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            code::FORBIDDEN_HOST,
            "The Host header is not allowed",
            "requests must name this machine as localhost or by a loopback address",
        )
    }

    pub(crate) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code::NOT_FOUND, "Not found", detail)
    }

    pub(crate) fn no_such_path(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code::NO_SUCH_PATH, "No such path", detail)
    }

    pub(crate) fn method_not_allowed(method: &str, path: &str) -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            code::METHOD_NOT_ALLOWED,
            "Method not allowed",
            format!("{path} cannot be used with {method}; the Allow header names what it takes"),
        )
    }

    pub(crate) fn body_timeout() -> Self {
        let detail = "the body did not arrive in time; send it again";
        let status = StatusCode::REQUEST_TIMEOUT;
        Self::new(status, code::BODY_TIMEOUT, "The body came too slowly", detail)
    }

    pub(crate) fn too_large(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, code::TOO_LARGE, "Too large", detail)
    }

    pub(crate) fn unsupported_media_type() -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            code::UNSUPPORTED_MEDIA_TYPE,
            "The body is not declared as JSON",
            "send the header Content-Type: application/json",
        )
    }

    pub(crate) fn internal() -> Self {
        let detail = "a fault of the platform; its log has the reason under this request's id";
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Self::new(status, code::INTERNAL, "Internal fault", detail)
    }

    pub(crate) fn unavailable(detail: impl Into<String>) -> Self {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Self::new(status, code::UNAVAILABLE, "The store is not available", detail)
    }

    pub(crate) fn timeout() -> Self {
        let detail = "the request took too long; it may have taken effect, and may be repeated";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code::TIMEOUT, "It took too long", detail)
    }

    pub(crate) fn registry_unavailable() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            code::REGISTRY_UNAVAILABLE,
            "The registry is not available",
            "the agent registry cannot be reached at present; try again",
        )
    }

    /// Whether the same request may succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self.status, 408 | 429 | 502 | 503 | 504)
    }
}

/// Details repeat what was sent, so they are cut off.
fn bounded(detail: String) -> String {
    const MAX: usize = 600;
    match detail.char_indices().nth(MAX) {
        Some((at, _)) => format!("{} …", detail.get(..at).unwrap_or_default()),
        None => detail,
    }
}

impl From<resurgam_store::Error> for Problem {
    fn from(error: resurgam_store::Error) -> Self {
        use resurgam_store::Error;
        let reason = crate::client::chain(&error);
        match error {
            Error::UnknownAgent(_) => Self::new(
                StatusCode::CONFLICT,
                code::UNKNOWN_AGENT,
                "The agent is not registered",
                error.to_string(),
            ),
            Error::DiskFull(_) => {
                tracing::error!(reason, "the disk of the store is full");
                let detail = "no space is left for the database; nothing was lost, but nothing \
                              can be accepted until some is freed";
                let status = StatusCode::SERVICE_UNAVAILABLE;
                Self::new(status, code::STORAGE_FULL, "No space left", detail)
            }
            Error::Timeout(_) => {
                tracing::warn!(reason, "the store is slow");
                Self::timeout()
            }
            _ if error.is_transient() => {
                tracing::warn!(reason, "the store is not available");
                Self::unavailable(
                    "the database cannot be reached or takes no writes at present; the request \
                     may have taken effect, and may be repeated",
                )
            }
            _ => {
                tracing::error!(reason, "the store failed");
                Self::internal()
            }
        }
    }
}

impl From<resurgam_bus::Error> for Problem {
    fn from(error: resurgam_bus::Error) -> Self {
        match error {
            resurgam_bus::Error::Store(error) => error.into(),
            error if error.is_transient() => {
                tracing::warn!(reason = crate::client::chain(&error), "the bus is not available");
                Self::unavailable("the message bus cannot be reached at present; try again")
            }
            error => {
                tracing::error!(reason = crate::client::chain(&error), "the bus failed");
                Self::internal()
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_string(&self).unwrap_or_default();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_are_bounded_and_cut_between_characters() {
        let problem = Problem::invalid_field("ä".repeat(10_000));
        assert!(problem.detail.chars().count() < 700, "{}", problem.detail.len());
    }

    #[test]
    fn what_the_database_said_stays_inside() {
        let error = resurgam_store::Error::NoWritableHost("password=hunter2".to_owned());
        let problem = Problem::from(error);
        assert_eq!((problem.status, &*problem.code), (503, code::UNAVAILABLE));
        assert!(!format!("{problem:?}").contains("hunter2"));
        let error = resurgam_store::Error::Corrupt("SELECT secret".to_owned());
        let problem = Problem::from(error);
        assert_eq!(problem.status, 500);
        assert!(!format!("{problem:?}").contains("SELECT"));
    }
}
