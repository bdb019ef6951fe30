//! The connections of PostgreSQL: who holds them, and what is done when there are none left.
//!
//! confirm → evidence → relieve → restart → verify
//!
//! The controller keeps a connection of its own open for that moment, on one of the places that are
//! reserved for superusers. Which connections leaked is decided by [`choose`] from what the plan
//! allows; what replicates, backs up or belongs to a superuser is never touched.

mod blank;
mod census;
mod leak;
mod line;
mod outline;
mod runbook;
mod watch;

pub use census::{Census, Holder, Seats, Session, State, account};
pub use leak::{Choice, choose};
pub use line::Line;
pub(crate) use outline::OUTLINE;
pub(crate) use runbook::{Relief, steps};
pub use watch::{Seen, watch};
