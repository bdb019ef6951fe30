//! Tests from outside the crate.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::needless_pass_by_value,
    missing_docs,
    reason = "tests"
)]

mod advancing;
mod checks;
mod drawing;
mod examples;
mod model;
mod sim;
