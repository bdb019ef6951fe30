//! PostgreSQL instances that the deployment owns.
//!
//! Each server has a [`keeper`] beside it, in a process of its own. The keeper asks the
//! controller again and again for its [`wire::Directive`], and makes the server what the
//! directive says. What makes a promotion safe:
//!
//! 1. **At rest every data folder is a fenced standby.** It holds `standby.signal`, and its own
//!    configuration lets nobody connect. Whoever starts the server without its keeper, as an
//!    orchestrator would, gets a server that cannot accept a write. See [`data`].
//! 2. **Only a promotion makes a primary**, and the keeper promotes only under a lease of the
//!    current epoch. Also the first primary, and one that merely restarts, is promoted.
//! 3. **The lease ends by the kernel's clock.** When it is not renewed in time the kernel kills
//!    keeper and server, even when both are stopped. See [`fuse`] and [`contain`].

pub mod contain;
pub mod data;
mod floors;
pub mod fuse;
pub mod keeper;
pub mod programs;
pub mod secrets;
pub mod server;
pub mod wire;

mod config;
mod history;
mod rebuild;
mod sql;

pub use programs::Programs;
pub use secrets::Secrets;
