//! Figures that are worked out when they are asked for.

use std::fmt;

use prometheus_client::encoding::{
    EncodeGaugeValue, EncodeMetric, GaugeValueEncoder, MetricEncoder, NoLabelSet,
};
use prometheus_client::metrics::MetricType;

use crate::Named;

/// Gauges or counters with N labels, worked out by a function.
pub struct Computed<const N: usize> {
    kind: MetricType,
    values: Values<N>,
}

type Values<const N: usize> = Box<dyn Fn() -> Vec<(Named<N>, f64)> + Send + Sync>;

impl<const N: usize> Computed<N> {
    /// Gauges: one value for each set of labels. What is not known is left out.
    pub fn gauges(values: impl Fn() -> Vec<(Named<N>, f64)> + Send + Sync + 'static) -> Self {
        Self { kind: MetricType::Gauge, values: Box::new(values) }
    }

    /// Counters: they only grow while the process lives.
    pub fn counters(values: impl Fn() -> Vec<(Named<N>, f64)> + Send + Sync + 'static) -> Self {
        Self { kind: MetricType::Counter, values: Box::new(values) }
    }
}

impl Computed<0> {
    /// A gauge without labels.
    pub fn gauge(value: impl Fn() -> Option<f64> + Send + Sync + 'static) -> Self {
        Self::gauges(move || value().map(|value| ([], value)).into_iter().collect())
    }

    /// A counter without labels.
    pub fn counter(value: impl Fn() -> Option<f64> + Send + Sync + 'static) -> Self {
        Self::counters(move || value().map(|value| ([], value)).into_iter().collect())
    }
}

impl<const N: usize> fmt::Debug for Computed<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Computed").field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl<const N: usize> EncodeMetric for Computed<N> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (labels, value) in (self.values)() {
            let mut encoder = encoder.encode_family(&labels)?;
            match self.kind {
                MetricType::Counter => encoder.encode_counter::<NoLabelSet, f64, f64>(&value, None),
                _ => encoder.encode_gauge(&Value(value)),
            }?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        self.kind
    }
}

/// Whole numbers are written as such.
struct Value(f64);

impl EncodeGaugeValue for Value {
    #[allow(clippy::cast_possible_truncation, reason = "only whole numbers of this size are cast")]
    fn encode(&self, encoder: &mut GaugeValueEncoder<'_>) -> fmt::Result {
        if self.0.fract() == 0.0 && self.0.abs() < 9e15 {
            EncodeGaugeValue::encode(&(self.0 as i64), encoder)
        } else {
            EncodeGaugeValue::encode(&self.0, encoder)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;
    use crate::{Format, Registry};

    #[test]
    fn each_value_gets_its_labels() {
        let mut registry = Registry::default();
        let values = || vec![([("a", Cow::Borrowed("x\"y"))], 2.0), ([("a", "z".into())], 0.5)];
        registry.add("g", "G", &["a"], Computed::gauges(values));
        registry.add("one", "One", &[], Computed::gauge(|| Some(3.0)));
        registry.add("none", "None", &[], Computed::gauge(|| None));
        registry.add("c_total", "C", &[], Computed::counter(|| Some(4.0)));
        let text = registry.encode(Format::Prometheus);
        let samples: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(samples, [r#"g{a="x\"y"} 2"#, r#"g{a="z"} 0.5"#, "one 3", "c_total 4.0"]);
    }
}
