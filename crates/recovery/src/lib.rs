//! Recovery: notice a failure, find its cause, recover by a journaled runbook, prove it.
//!
//! ```text
//! probes ─▶ diagnosis ─▶ incident ─▶ runbook ─▶ verify ─▶ report
//! (I/O)     (pure)       (journal)   (steps, each journaled before it acts)
//! ```
//!
//! The [`controller`] ties these together for a deployment. [`drill`] breaks a deployment from
//! outside, as a person or fate would, and measures with its own eyes what callers see.

pub mod account;
pub mod alerts;
pub mod brokers;
mod causes;
pub mod connections;
pub mod controller;
pub mod disk;
pub mod drill;
mod error;
pub mod exposure;
mod finding;
pub mod health;
pub mod journal;
pub mod metrics;
pub mod notify;
mod ordered;
pub mod paper;
pub mod planning;
pub mod postgres;
pub mod processes;
pub mod restorer;
pub mod runbook;
mod runbooks;
pub mod scaling;
pub mod server;
mod severity;
pub mod status;
pub mod stuck;
mod upkeep;

pub use error::{Error, Result};
