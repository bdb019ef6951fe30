//! The client against servers that are made for the purpose; against the real one it is tested
//! with that.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests are tests too"
)]

mod memory;
mod tls;
mod worker;
