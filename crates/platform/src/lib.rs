//! The agent platform: registry, task queue, supervisor and workers, the HTTP interface to
//! them, and the client of that interface.
//!
//! - [`serve()`] runs one process of the platform: any set of [`Role`]s over one store.
//! - [`worker::run`] runs one worker against the interface of such a process.
//! - [`client::Client`] speaks to it from anywhere.
//!
//! # What survives what
//! All durable state is in the store. Every process here can be killed at any moment and started
//! again: what was acknowledged is kept, what a dead worker held goes back to the queue when its
//! heartbeat or its lease runs out, and each task's fencing token makes the word of a worker that
//! comes too late count for nothing.

mod api;
pub mod client;
pub mod problem;
mod registry;
pub mod role;
pub mod serve;
mod supervisor;
mod waiting;
pub mod wire;
pub mod worker;

pub use role::Role;
pub use serve::{ServeSettings, serve};
