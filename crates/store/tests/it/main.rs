//! Tests of both adapters against real databases.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test that fails may panic; clippy exempts only the test functions themselves"
)]

mod access;
mod admin;
mod bus;
mod concurrency;
mod figures;
mod fixture;
mod lease_model;
mod lifecycle;
mod limits;
mod messages;
mod migration;
mod placement;
mod postgres_servers;
mod queue;
mod registry;
mod schedules;
mod sqlite_processes;
mod supervision;
mod tasks;
mod throughput;
mod wakes;
mod workflows;

/// Runs each test on both adapters.
macro_rules! on_both {
    ($($test:ident)+) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(crate::fixture::sqlite().await).await;
            })+
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(crate::fixture::postgres().await).await;
            })+
        }
    };
}
pub(crate) use on_both;
