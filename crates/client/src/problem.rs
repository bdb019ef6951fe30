//! What the HTTP interface answers when it cannot do what was asked: RFC 9457 problem documents.
//!
//! `code` is stable and meant for programs, `detail` is meant for people and may change.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The media type of problem documents.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// The codes of problems.
pub mod code {
    macro_rules! codes {
        ($($name:ident $text:literal $status:literal $meaning:literal;)+) => {
            $(
                #[doc = concat!($status, ": ", $meaning, ".")]
                pub const $name: &str = $text;
            )+

            /// Each code with its status and its meaning.
            pub const ALL: &[(&str, u16, &str)] = &[$(($name, $status, $meaning)),+];
        };
    }

    codes! {
        MALFORMED_JSON "malformed-json" 400 "the body is not JSON";
        INVALID_FIELD "invalid-field" 422 "a field is missing, unknown, or its value is not allowed";
        INVALID_PARAMETER "invalid-parameter" 400 "a parameter of the address is not allowed";
        UNAUTHENTICATED "unauthenticated" 401 "there is no token, or not a valid one";
        FORBIDDEN "forbidden" 403 "the caller's role, or the agents that it may act as, do not allow it";
        RATE_LIMITED "rate-limited" 429 "there are too many requests by one caller";
        FORBIDDEN_HOST "forbidden-host" 403 "the Host header names another machine";
        NOT_FOUND "not-found" 404 "there is no such thing";
        NO_SUCH_PATH "no-such-path" 404 "there is no such path, or this process does not serve it";
        METHOD_NOT_ALLOWED "method-not-allowed" 405 "the path exists, but not with this method";
        BODY_TIMEOUT "body-timeout" 408 "the body did not arrive in time";
        UNKNOWN_AGENT "unknown-agent" 409 "the agent must register first";
        AGENT_NOT_AVAILABLE "agent-not-available" 409 "the agent is known, but is given no tasks at present";
        WORKFLOW_STATE "workflow-state" 409 "the workflow does not stand where that is possible";
        DEFINITION_TAKEN "definition-taken" 409 "another definition has that name and version";
        TOO_LARGE "too-large" 413 "a payload, or the body as a whole, is over the limit";
        UNSUPPORTED_MEDIA_TYPE "unsupported-media-type" 415 "the body is not declared as JSON";
        INTERNAL "internal" 500 "a fault of the platform";
        UNAVAILABLE "unavailable" 503 "the store cannot be used at present";
        STORAGE_FULL "storage-full" 503 "the disk of the store is full";
        TIMEOUT "timeout" 503 "it took too long";
        REGISTRY_UNAVAILABLE "registry-unavailable" 503 "the agent registry cannot be reached at present";
    }
}

/// A problem document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
