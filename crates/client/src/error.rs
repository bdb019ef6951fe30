//! Why a call failed, and whether calling again can help.

use resurgam_model::Duration;

use crate::problem::Problem;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address is not one that can be called.
    #[error("{url:?} cannot be called: {why}")]
    Url {
        /// The address.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// A message that is to be answered does not say where the answer goes.
    #[error("the message names no mailbox for its answer; set reply_to")]
    NoReplyTo,
    /// An option of the client cannot be used.
    #[error("{what} cannot be used: {why}")]
    Option {
        /// Which one.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Nobody answered, or the connection broke: the call may or may not have taken effect.
    #[error("{url} does not answer: {why}")]
    Unreachable {
        /// The server.
        url: String,
        /// What happened.
        why: String,
    },
    /// The answer did not come in time: the call may or may not have taken effect.
    #[error("{url} did not answer within {after}")]
    Timeout {
        /// The server.
        url: String,
        /// The bound.
        after: Duration,
    },
    /// The server refused, and said why.
    #[error("{} ({} {})", .0.detail, .0.status, .0.code)]
    Refused(Box<Problem>),
    /// The answer makes no sense, so that somebody else may be listening there.
    #[error("the answer (status {status}) cannot be read: {why}")]
    Unreadable {
        /// The HTTP status.
        status: u16,
        /// What is wrong with it.
        why: String,
    },
    /// The request cannot be written as JSON.
    #[error("the request cannot be written as JSON: {0}")]
    Unsendable(String),
}

impl Error {
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Timeout { .. } => true,
            Self::Refused(problem) => problem.is_transient(),
            Self::Unreadable { status, .. } => matches!(status, 429 | 502 | 503 | 504),
            Self::NoReplyTo | Self::Url { .. } | Self::Option { .. } | Self::Unsendable(_) => false,
        }
    }

    /// What the server said, if it refused.
    #[must_use]
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Refused(problem) => Some(problem),
            _ => None,
        }
    }

    /// The code of the problem, if the server refused.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        self.problem().map(|problem| &*problem.code)
    }
}

/// An error with all its causes, in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Some libraries repeat the cause in their own text.
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}
