//! Workflows as plain values.
//!
//! - [`Definition`]: a directed graph of steps, read from TOML or JSON and checked as a whole.
//! - [`advance`]: what happens next, as a pure function of the definition, the state and the
//!   events. No clock and no I/O: whoever calls it writes down what it says in one transaction.
//! - [`draw`]: the graph with the state of each step, for terminals and for Mermaid.

pub mod advance;
pub mod check;
pub mod definition;
pub mod draw;
pub mod expression;
pub mod key;
pub mod state;
pub mod template;

pub use advance::{Advance, Need, advance};
pub use check::Problems;
pub use definition::{Definition, Step};
pub use key::{Place, StepId, WorkKey};
pub use state::{Event, State, Transition};
