//! What a handler is given.

use std::sync::{Arc, Mutex, PoisonError};

use resurgam_model::task::{Lease, Token};
use resurgam_model::{Capability, Payload, TaskId};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::HandlerError;

/// A task that was claimed, for the handler to work on.
#[derive(Clone, Debug)]
pub struct Job {
    lease: Lease,
    cancellation: Cancellation,
    note: Note,
}

/// What a handler said of how far it is, until it is told to the platform.
#[derive(Clone, Debug, Default)]
pub(super) struct Note(Arc<Mutex<Option<String>>>);

impl Note {
    fn set(&self, text: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
    }

    /// What is to be told; once.
    pub(super) fn take(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The most characters of a note.
const MAX_NOTE: usize = 256;

impl Job {
    /// A job that nobody cancels, for trying a handler out.
    #[must_use]
    pub fn new(lease: Lease) -> Self {
        let cancellation = Cancellation(watch::channel(None).1);
        Self { lease, cancellation, note: Note::default() }
    }

    pub(super) fn under(
        lease: Lease,
        cancelled: watch::Receiver<Option<Cancelled>>,
        note: Note,
    ) -> Self {
        Self { lease, cancellation: Cancellation(cancelled), note }
    }

    /// Says how far the work is, for people who look at the task: a short text, told with the next
    /// extension of the lease, within a third of it. Of several in between the last one counts, and
    /// only its first 256 characters without control characters.
    pub fn note(&self, text: &str) {
        self.note.set(text.chars().filter(|c| !c.is_control()).take(MAX_NOTE).collect());
    }

    /// The task. The same on every try: the key under which the handler's effects elsewhere can
    /// be made to happen once.
    #[must_use]
    pub fn id(&self) -> TaskId {
        self.lease.task
    }

    /// The fencing token of this try; greater than that of every earlier one. What refuses
    /// smaller tokens than it has seen cannot be changed by a try that comes too late.
    #[must_use]
    pub fn token(&self) -> Token {
        self.lease.token
    }

    /// Which try it is; 1 is the first.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.lease.attempt
    }

    /// What was asked for.
    #[must_use]
    pub fn capability(&self) -> &Capability {
        &self.lease.capability
    }

    /// What to work on.
    #[must_use]
    pub fn payload(&self) -> &Payload {
        &self.lease.payload
    }

    /// What to work on, read as a type.
    ///
    /// # Errors
    /// A failure for which no other try is made: the payload stays what it is.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, HandlerError> {
        serde_json::from_str(self.lease.payload.json()).map_err(|error| {
            HandlerError::permanent(format!("the payload cannot be read: {error}"))
        })
    }

    /// The lease, as it was when the task was claimed.
    #[must_use]
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Tells when the work is not wanted any more.
    #[must_use]
    pub fn cancellation(&self) -> Cancellation {
        self.cancellation.clone()
    }
}

/// Why work is not wanted any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancelled {
    /// The lease was lost: it ran out, the try took longer than the task allows, or the task
    /// was cancelled. The handler's future is dropped right after this, and nothing that it could
    /// still report would count. Threads that it started must end on their own.
    LeaseLost,
    /// The worker is to end. What is finished within the grace still counts; after it the future
    /// is dropped and the task goes back to the queue.
    Shutdown,
}

/// Tells when work is not wanted any more, also to threads outside of the runtime.
#[derive(Clone, Debug)]
pub struct Cancellation(watch::Receiver<Option<Cancelled>>);

impl Cancellation {
    /// Why the work is not wanted any more; none as long as it is.
    #[must_use]
    pub fn reason(&self) -> Option<Cancelled> {
        *self.0.borrow()
    }

    /// Waits until the work is not wanted any more; for ever if it is to the end.
    pub async fn requested(&mut self) -> Cancelled {
        match self.0.wait_for(Option::is_some).await.map(|reason| *reason) {
            Ok(Some(reason)) => reason,
            // The other end goes when the work has ended.
            _ => std::future::pending().await,
        }
    }
}
