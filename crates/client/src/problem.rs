//! What the HTTP interface answers when it cannot do what was asked: RFC 9457 problem documents.
//!
//! `code` is stable and meant for programs, `detail` is meant for people and may change.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// The media type of problem documents.
pub const MEDIA_TYPE: &str = "application/problem+json";

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
    /// 409: the agent is known, but is given no tasks at present.
    pub const AGENT_NOT_AVAILABLE: &str = "agent-not-available";
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
    /// Whether the same request may succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self.status, 408 | 429 | 502 | 503 | 504)
    }
}
