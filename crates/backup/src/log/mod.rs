//! The write-ahead log of PostgreSQL, stored as it is written: what bounds a loss by seconds instead
//! of by the schedule of backups, and lets a database be restored to any moment.

mod caught_up;
pub mod contents;
mod feed;
pub mod replay;
mod replication;
pub mod segment;
pub mod ship;
pub mod store;

pub use replication::{Replication, StreamError};
