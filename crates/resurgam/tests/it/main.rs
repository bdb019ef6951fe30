//! The program as people run it: its processes, its words, its exit codes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "helpers of tests are tests too"
)]

mod access;
mod backup;
mod bad_input;
mod buckets;
mod bus;
mod calendar;
mod commands;
mod connections;
mod controller_killed;
mod demo;
mod drill;
mod exposure;
mod failback;
mod full_disk;
mod harness;
mod http;
mod life;
mod log;
mod notify;
mod overtaken;
mod paper;
mod pool;
mod recover;
mod standby;
mod start_errors;
mod telemetry;
mod workflows_killed;
