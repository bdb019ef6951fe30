//! Figures for Prometheus: what is counted, how it is written, and what every process tells of
//! itself.
//!
//! A [`Registry`] remembers of each metric also its labels, so that `docs/metrics.md` can be made
//! from the code. To count is to add to an atomic number: nothing here is locked on the way of a
//! task, and nothing is allocated once a series is there.

mod by_capability;
mod computed;
mod histogram;
mod process;
mod registry;
mod traces;

pub use by_capability::{Capped, MOST_CAPABILITIES, OTHER};
pub use computed::Computed;
pub use histogram::{Histogram, LATENCY, SIZES, WORK};
pub use process::{build_info, process};
pub use prometheus_client::metrics::counter::Counter;
pub use prometheus_client::metrics::family::Family;
pub use prometheus_client::metrics::gauge::Gauge;
pub use registry::{Entry, Format, Registry};
pub use traces::{Traces, traces};

/// A gauge with a fraction.
pub type FloatGauge = Gauge<f64, std::sync::atomic::AtomicU64>;

/// Labels: names with values that are known when the program is built.
pub type Fixed<const N: usize> = [(&'static str, &'static str); N];

/// Labels: names with values that come from outside.
pub type Named<const N: usize> = [(&'static str, std::borrow::Cow<'static, str>); N];
