//! The agent platform: registry, task queue and supervisor, and the HTTP interface to them.
//!
//! - [`serve()`] runs one process of the platform: any set of [`Role`]s over one store.
//! - [`resurgam_client::worker::Worker`] works on tasks by way of the interface of such a process,
//!   or over a store beside it, which is then [`Direct`].
//! - [`resurgam_client::Client`] speaks to it from anywhere.
//!
//! # What survives what
//! All durable state is in the store. Every process here can be killed at any moment and started
//! again: what was acknowledged is kept, what a dead worker held goes back to the queue when its
//! heartbeat or its lease runs out, and each task's fencing token makes the word of a worker that
//! comes too late count for nothing.

pub mod access;
mod api;
pub mod checkpoints;
mod claims;
mod direct;
mod gather;
mod listener;
pub mod metrics;
mod problem;
mod queue;
mod registry;
pub mod serve;
mod streams;
mod supervisor;
mod waiting;
mod workflows;

pub use access::{AccessSettings, Rate, Secret};
pub use direct::Direct;
pub use listener::{ConnectionLimits, TlsError, TlsSettings};
pub use serve::{ServeSettings, serve};
