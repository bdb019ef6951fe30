//! The recovery of PostgreSQL: who reigns, how a loss is noticed, and the runbook.

mod authority;
mod care;
mod choose;
mod choosing;
mod database;
mod diagnosis;
mod fencing;
mod handover;
mod outline;
pub(crate) mod probe;
mod runbook;
mod standby;

pub use authority::{Authority, Seen, View};
pub use care::care;
pub use choose::{Candidate, Choice, choose};
pub(crate) use choosing::candidates;
pub use database::{Aim, Database};
pub use diagnosis::{KeeperSign, Signs, SqlSign, StandbySign, Verdict, diagnose};
pub use fencing::{Proof, prove};
pub use handover::{HANDOVER_OUTLINE, handover_steps};
pub use outline::OUTLINE;
pub use probe::{Beat, probe};
pub use runbook::{SERVICE, has_begun, is_rerouted, steps};
pub(crate) use standby::Missing;
pub use standby::{STANDBY_OUTLINE, standby_steps};
