//! The runbook engine over a real journal, with steps that only note what they did.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests are tests too"
)]

mod approvals;
mod chain;
mod damage;
mod endings;
mod engine;
mod fakes;
mod incidents;
mod killed;
mod orders;
mod step_model;
