//! What the HTTP interface answers when it cannot do what was asked: RFC 9457 problem documents.
//!
//! A detail never repeats what the database said: that goes to the log, under the request's id.

use std::ops::Deref;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use resurgam_client::chain;
use resurgam_client::problem::{MEDIA_TYPE, code};

/// Seconds after which a caller may try again, as said in `Retry-After`.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// How a caller may say who it is.
const CHALLENGE: HeaderValue = HeaderValue::from_static("Bearer realm=\"resurgam\"");

/// A problem document that is to be an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem(
    resurgam_client::problem::Problem,
    /// After how many seconds the caller may go on.
    Option<u64>,
);

impl From<resurgam_client::problem::Problem> for Problem {
    /// What another process of the platform answered is handed on as it is.
    fn from(problem: resurgam_client::problem::Problem) -> Self {
        Self(problem, None)
    }
}

impl From<Problem> for resurgam_client::problem::Problem {
    fn from(problem: Problem) -> Self {
        problem.0
    }
}

impl Deref for Problem {
    type Target = resurgam_client::problem::Problem;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Problem {
    fn new(
        status: StatusCode,
        code: &'static str,
        title: &'static str,
        detail: impl Into<String>,
    ) -> Self {
        Self(
            resurgam_client::problem::Problem {
                kind: format!("urn:resurgam:problem:{code}").into(),
                title: title.into(),
                status: status.as_u16(),
                detail: bounded(detail.into()),
                code: code.into(),
            },
            None,
        )
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

    pub(crate) fn unauthenticated(detail: impl Into<String>) -> Self {
        let status = StatusCode::UNAUTHORIZED;
        Self::new(status, code::UNAUTHENTICATED, "Who asks is not known", detail)
    }

    pub(crate) fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, code::FORBIDDEN, "The caller may not do this", detail)
    }

    /// Too many requests by one caller, who may go on after `wait`.
    pub(crate) fn rate_limited(wait: std::time::Duration) -> Self {
        // Whole seconds, and not a moment too early.
        let seconds = wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0)).max(1);
        let detail = format!("there are too many requests by this caller; wait for {seconds} s");
        let status = StatusCode::TOO_MANY_REQUESTS;
        let problem = Self::new(status, code::RATE_LIMITED, "Too many requests", detail);
        Self(problem.0, Some(seconds))
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

    pub(crate) fn workflow_state(detail: impl Into<String>) -> Self {
        let title = "The workflow does not stand where that is possible";
        Self::new(StatusCode::CONFLICT, code::WORKFLOW_STATE, title, detail)
    }

    pub(crate) fn definition_taken(detail: impl Into<String>) -> Self {
        let title = "Another definition has that name and version";
        Self::new(StatusCode::CONFLICT, code::DEFINITION_TAKEN, title, detail)
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
        let reason = chain(&error);
        match error {
            Error::UnknownAgent(_) => Self::new(
                StatusCode::CONFLICT,
                code::UNKNOWN_AGENT,
                "The agent is not registered",
                error.to_string(),
            ),
            Error::NoTasks { .. } => Self::new(
                StatusCode::CONFLICT,
                code::AGENT_NOT_AVAILABLE,
                "The agent is given no tasks",
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
                tracing::warn!(reason = chain(&error), "the bus is not available");
                Self::unavailable("the message bus cannot be reached at present; try again")
            }
            error => {
                tracing::error!(reason = chain(&error), "the bus failed");
                Self::internal()
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_string(&self.0).unwrap_or_default();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        if let Some(seconds) = self.1 {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, CHALLENGE);
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
