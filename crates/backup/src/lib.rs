//! Backups that are proven.
//!
//! ```text
//! take ─▶ vault (pending ─▶ complete) ─▶ verify in a scratch instance ─▶ restore
//!                                                       retention ─▶ prune
//! ```
//!
//! A backup is one *recovery point*: the database, the checkpoints of workflows, and the
//! configuration with its secrets, taken together and restored together or in part. It is gathered
//! in a folder and validated there before it goes into a [`vault`], and it counts as verified only
//! once it was restored into a [`scratch`] instance.

mod error;
pub mod log;
pub mod manifest;
mod password;
mod place;
pub mod restore;
pub mod retention;
pub mod scratch;
mod server;
pub mod take;
pub mod vault;

pub use error::{Error, Result};
pub use password::Password;
pub use place::Place;
