//! What the tests share.

mod brokers;
mod object_stores;
mod place;
mod postgres;

pub use brokers::{ScratchKafka, ScratchRabbit, USERS};
pub use object_stores::{BUCKET, ObjectStore};
pub use postgres::ScratchPostgres;
