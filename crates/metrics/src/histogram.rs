//! A histogram without a lock: an observation is two additions to atomic numbers.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// Bounds for what ought to be fast, in seconds.
pub const LATENCY: &[f64] = &[
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0, 30.0,
];

/// Bounds for what agents take their time for, and for what waits for them, in seconds.
pub const WORK: &[f64] = &[
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1_800.0,
    14_400.0, 86_400.0,
];

/// Bounds for numbers of things.
pub const SIZES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// How many observations fell between bounds, and their sum. Clones count together.
#[derive(Clone)]
pub struct Histogram(Arc<Inner>);

struct Inner {
    bounds: &'static [f64],
    /// One for each bound, and one for what is above all.
    buckets: Box<[AtomicU64]>,
    /// In microseconds, or in pieces.
    sum: AtomicU64,
    per_unit: f64,
}

impl Histogram {
    /// For lengths of time, with bounds in seconds.
    #[must_use]
    pub fn seconds(bounds: &'static [f64]) -> Self {
        Self::new(bounds, 1e6)
    }

    /// For numbers of things.
    #[must_use]
    pub fn sizes(bounds: &'static [f64]) -> Self {
        Self::new(bounds, 1.0)
    }

    fn new(bounds: &'static [f64], per_unit: f64) -> Self {
        let buckets = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self(Arc::new(Inner { bounds, buckets, sum: AtomicU64::new(0), per_unit }))
    }

    /// Counts a length of time.
    pub fn observe(&self, time: Duration) {
        self.add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    /// Counts a length of time in microseconds, as databases give it; less than nothing is nothing.
    pub fn observe_micros(&self, micros: i64) {
        self.add(u64::try_from(micros).unwrap_or(0));
    }

    /// Counts a number of things.
    pub fn observe_size(&self, size: usize) {
        self.add(size as u64);
    }

    #[allow(clippy::cast_precision_loss, reason = "a bucket need not be known that precisely")]
    fn add(&self, value: u64) {
        let place = value as f64 / self.0.per_unit;
        let index = self.0.bounds.partition_point(|bound| *bound < place);
        if let Some(bucket) = self.0.buckets.get(index) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.0.sum.fetch_add(value, Ordering::Relaxed);
    }

    /// How many were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Histogram").field("count", &self.count()).finish_non_exhaustive()
    }
}

impl EncodeMetric for Histogram {
    #[allow(clippy::cast_precision_loss, reason = "sums are given as floating point numbers")]
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let bounds = self.0.bounds.iter().copied().chain([f64::INFINITY]);
        let numbers = self.0.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed));
        let buckets: Vec<_> = bounds.zip(numbers).collect();
        // Not read at one moment, but what is told fits together.
        let count = buckets.iter().map(|(_, number)| number).sum();
        let sum = self.0.sum.load(Ordering::Relaxed) as f64 / self.0.per_unit;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_the_bucket_below_it() {
        let sizes = Histogram::sizes(SIZES);
        for size in [0, 1, 2, 3, 512, 513] {
            sizes.observe_size(size);
        }
        let buckets: Vec<_> = sizes.0.buckets.iter().map(|b| b.load(Ordering::Relaxed)).collect();
        assert_eq!(buckets, [2, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!((sizes.count(), sizes.0.sum.load(Ordering::Relaxed)), (6, 1031));
    }

    #[test]
    fn a_clock_that_was_set_back_counts_as_nothing() {
        let times = Histogram::seconds(LATENCY);
        times.observe_micros(-5);
        times.observe(Duration::MAX);
        assert_eq!(times.count(), 2);
    }
}
