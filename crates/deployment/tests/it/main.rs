//! The deployment with real processes and real PostgreSQL servers.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test that fails may panic; clippy exempts only the test functions themselves"
)]

mod contained;
mod controller;
mod instances;
mod keeper;
mod processes;
mod rebuilding;
mod roles;
mod routing;
mod supervised;
