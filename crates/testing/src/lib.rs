//! What the tests share.

mod postgres;

pub use postgres::ScratchPostgres;
