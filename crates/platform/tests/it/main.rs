//! The platform over real HTTP and a real SQLite file.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests are tests too"
)]

mod access;
mod direct;
mod exec;
mod flaky;
mod harness;
mod messages;
mod metrics;
mod orders;
mod outages;
mod problems;
mod streams;
mod tasks;
mod tls;
mod workers;
