//! Tests of the buses against the real thing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests are tests too"
)]

mod carriers;
mod crooked;
mod embedded;
mod kafka;
mod rabbitmq;
mod relay;
