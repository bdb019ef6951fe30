//! Drills: break a deployment from outside, and measure with one's own eyes.
//!
//! A drill believes nothing that the controller says about success. Its [`load`] hands in
//! checkable tasks and keeps a [`ledger`] of what it was told is safe; its [`fence`] witness
//! tries to write where nothing may be written. Only the steps, and when the incident was
//! opened, are taken from the controller's journal.

pub mod campaign;
mod damage;
pub mod fault;
pub mod fence;
pub mod fill;
mod handover;
mod hang;
pub mod history;
pub mod leak;
pub mod ledger;
pub mod lines;
pub mod load;
pub mod lost;
mod run;
pub mod subject;
mod whole;

pub use fault::FaultKind;
pub use run::{Drill, Progress};
pub use subject::Subject;
