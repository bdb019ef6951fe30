//! What the tests share.

mod brokers;
mod postgres;

pub use brokers::{ScratchKafka, ScratchRabbit};
pub use postgres::ScratchPostgres;
