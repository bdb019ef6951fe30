//! What does the work.

use std::fmt::Write;

use async_trait::async_trait;
use resurgam_model::Payload;
use resurgam_model::task::Lease;
use sha2::Digest;

/// Works on tasks of one kind or several.
///
/// The future is dropped when the lease is lost or the worker ends: what it started must end
/// with it. A task may be worked on more than once; [`Lease::task`] together with
/// [`Lease::token`] names the try.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Works on one task and gives its result.
    async fn handle(&self, lease: &Lease) -> Result<Payload, HandlerError>;
}

/// Why a try failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct HandlerError {
    /// Why, for people.
    pub message: String,
    /// Whether another try can help.
    pub retry: bool,
}

impl HandlerError {
    /// Another try may help.
    #[must_use]
    pub fn retry(message: impl Into<String>) -> Self {
        Self { message: message.into(), retry: true }
    }

    /// No other try can help.
    #[must_use]
    pub fn permanent(message: impl Into<String>) -> Self {
        Self { message: message.into(), retry: false }
    }
}

/// Gives the SHA-256 of the payload's text in hexadecimal: work whose result can be checked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sha256;

#[async_trait]
impl Handler for Sha256 {
    async fn handle(&self, lease: &Lease) -> Result<Payload, HandlerError> {
        let mut text = String::with_capacity(64);
        for byte in sha2::Sha256::digest(lease.payload.text().as_bytes()) {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        Ok(Payload::from_text(&text))
    }
}
