//! What becomes of the spans that are handed to an OpenTelemetry collector.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use crate::{Counter, Registry};

/// Spans of this process.
#[derive(Clone, Debug, Default)]
pub struct Traces {
    /// Taken by the collector.
    pub exported: Counter,
    /// Given up because they came faster than the collector takes them.
    pub dropped: Counter,
    /// Given up because the collector did not take them.
    pub failed: Counter,
    on: Arc<AtomicBool>,
}

impl Traces {
    /// Notes that this process hands its spans to a collector.
    pub fn set_on(&self) {
        self.on.store(true, Ordering::Relaxed);
    }

    /// Whether this process hands its spans to a collector.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Adds them to a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.add(
            "resurgam_trace_spans_exported_total",
            "Spans that the OpenTelemetry collector has taken",
            &[],
            self.exported.clone(),
        );
        registry.add(
            "resurgam_trace_spans_dropped_total",
            "Spans given up because the queue to the collector was full",
            &[],
            self.dropped.clone(),
        );
        registry.add(
            "resurgam_trace_spans_failed_total",
            "Spans given up because the collector did not take them",
            &[],
            self.failed.clone(),
        );
    }
}

/// Those of this process: there is one exporter in it.
#[must_use]
pub fn traces() -> &'static Traces {
    static TRACES: LazyLock<Traces> = LazyLock::new(Traces::default);
    &TRACES
}
