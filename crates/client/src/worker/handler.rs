//! What does the work.

use std::fmt::Write;
use std::sync::Arc;

use async_trait::async_trait;
use resurgam_model::Payload;
use serde::Serialize;
use sha2::Digest;

use super::Job;

/// Works on tasks of one kind or several.
///
/// The future is dropped when the lease is lost or the grace of a worker that ends is over: what
/// it started must end with it; [`Job::cancellation`] tells threads that it is so. A task may be
/// worked on more than once: [`Job::id`] is the key under which its effects can be made to happen
/// once.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Works on one task and gives its result.
    async fn handle(&self, job: Job) -> Result<Payload, HandlerError>;
}

#[async_trait]
impl<H: Handler + ?Sized> Handler for Arc<H> {
    async fn handle(&self, job: Job) -> Result<Payload, HandlerError> {
        (**self).handle(job).await
    }
}

/// A function as a handler.
///
/// ```
/// use resurgam_client::worker::{HandlerError, Job, handler, result};
///
/// let add = handler(|job: Job| async move {
///     let (a, b): (u32, u32) = job.parse()?;
///     let sum = a.checked_add(b).ok_or_else(|| HandlerError::permanent("too large"))?;
///     result(&sum)
/// });
/// # let _ = add;
/// ```
pub fn handler<F, Fut>(work: F) -> impl Handler
where
    F: Fn(Job) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Payload, HandlerError>> + Send,
{
    Function(work)
}

struct Function<F>(F);

#[async_trait]
impl<F, Fut> Handler for Function<F>
where
    F: Fn(Job) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Payload, HandlerError>> + Send,
{
    async fn handle(&self, job: Job) -> Result<Payload, HandlerError> {
        (self.0)(job).await
    }
}

/// A value as the result of a task.
///
/// # Errors
/// A failure for which no other try is made, when the value cannot be written as JSON.
pub fn result(value: &impl Serialize) -> Result<Payload, HandlerError> {
    let wrong = |error: serde_json::Error| {
        HandlerError::permanent(format!("the result cannot be written as JSON: {error}"))
    };
    serde_json::to_string(value).and_then(Payload::from_json).map_err(wrong)
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
    async fn handle(&self, job: Job) -> Result<Payload, HandlerError> {
        let mut text = String::with_capacity(64);
        for byte in sha2::Sha256::digest(job.payload().text().as_bytes()) {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        Ok(Payload::from_text(&text))
    }
}
