//! What the tests share.

mod brokers;
mod postgres;

pub use brokers::{ScratchKafka, ScratchRabbit, USERS};
pub use postgres::ScratchPostgres;
