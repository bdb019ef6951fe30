//! What agents written in Rust depend on: the client of Resurgam's HTTP interface, the types that
//! travel over it, and the worker runtime.
//!
//! - [`Client`] makes calls, and [`Patience`] says how long it repeats them.
//! - [`worker::Worker`] claims tasks, has a [`worker::Handler`] work on them, and reports.
//! - [`Outbound`] posts to servers that are not ours, such as webhooks.
//! - [`wire`] has the bodies of requests and answers, [`problem`] those of refusals.

mod access;
mod builder;
mod client;
mod error;
mod http;
mod outbound;
mod patience;
pub mod problem;
mod tls;
pub mod wire;
pub mod worker;
mod workflows;

pub use builder::ClientBuilder;
pub use client::{Client, Result};
pub use error::{Error, chain};
pub use outbound::Outbound;
pub use patience::{Backoff, Patience};
