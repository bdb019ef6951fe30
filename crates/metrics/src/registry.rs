//! What there is, and how it is written.

use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Metric, Unit};

/// What is known of a metric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name as it is asked for.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// The unit, if it has one beside pieces.
    pub unit: Option<&'static str>,
    /// What it means, without the full stop.
    pub help: &'static str,
    /// The names of its labels.
    pub labels: &'static [&'static str],
}

/// The metrics of a process.
#[derive(Debug, Default)]
pub struct Registry {
    inner: prometheus_client::registry::Registry,
    entries: Vec<Entry>,
}

/// How the figures are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The text format of Prometheus, version 0.0.4.
    Prometheus,
    /// OpenMetrics, version 1.0.
    OpenMetrics,
}

impl Format {
    /// What the `Accept` header asks for: OpenMetrics where it is named, else Prometheus.
    #[must_use]
    pub fn accepted(accept: Option<&str>) -> Self {
        let names_it = |part: &str| {
            let mut words = part.split(';').map(str::trim);
            let is_it = words
                .next()
                .is_some_and(|kind| kind.eq_ignore_ascii_case("application/openmetrics-text"));
            is_it && words.all(|word| word != "q=0" && word != "q=0.0")
        };
        if accept.is_some_and(|accept| accept.split(',').any(names_it)) {
            Self::OpenMetrics
        } else {
            Self::Prometheus
        }
    }

    /// The `Content-Type`.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

impl Registry {
    /// Adds a metric under its full name, with unit and, for a counter, `_total`.
    pub fn add(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
        metric: impl Metric,
    ) {
        let kind = match metric.metric_type() {
            MetricType::Counter => "counter",
            MetricType::Histogram => "histogram",
            MetricType::Gauge | MetricType::Info | MetricType::Unknown => "gauge",
        };
        let stem = name.strip_suffix("_total").unwrap_or(name);
        let unit = [("_seconds", "seconds", Unit::Seconds), ("_bytes", "bytes", Unit::Bytes)]
            .into_iter()
            .find_map(|(suffix, word, unit)| Some((stem.strip_suffix(suffix)?, word, unit)));
        let word = unit.as_ref().map(|(_, word, _)| *word);
        match unit {
            // The encoder puts the unit back behind the name.
            Some((stem, _, unit)) => self.inner.register_with_unit(stem, help, unit, metric),
            None => self.inner.register(stem, help, metric),
        }
        self.entries.push(Entry { name, kind, unit: word, help, labels });
    }

    /// All metrics, in the order in which they were added.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Writes all figures.
    #[must_use]
    pub fn encode(&self, format: Format) -> String {
        let mut out = String::new();
        let written = match format {
            Format::Prometheus => prometheus_text::encode(&mut out, &self.inner),
            Format::OpenMetrics => text::encode(&mut out, &self.inner),
        };
        // Writing to a String cannot fail.
        debug_assert!(written.is_ok());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Counter, FloatGauge, Histogram, LATENCY};

    #[test]
    fn the_accept_header_chooses_the_format() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;q=0.5,*/*";
        for (accept, format) in [
            (None, Format::Prometheus),
            (Some("*/*"), Format::Prometheus),
            (Some("text/plain;version=0.0.4"), Format::Prometheus),
            (Some("application/openmetrics-text;q=0, text/plain"), Format::Prometheus),
            (Some("application/openmetrics-text"), Format::OpenMetrics),
            (Some(prometheus), Format::OpenMetrics),
        ] {
            assert_eq!(Format::accepted(accept), format, "{accept:?}");
        }
    }

    #[test]
    fn names_units_and_kinds_are_written_as_they_were_given() {
        let mut registry = Registry::default();
        let (counter, gauge) = (Counter::<u64>::default(), FloatGauge::default());
        let histogram = Histogram::seconds(LATENCY);
        registry.add("a_total", "Things", &[], counter.clone());
        registry.add("b_seconds", "Age", &[], gauge.clone());
        registry.add("c_seconds", "Length", &[], histogram.clone());
        counter.inc();
        gauge.set(1.5);
        histogram.observe(std::time::Duration::from_millis(3));
        let text = registry.encode(Format::Prometheus);
        for line in [
            "# TYPE a_total counter",
            "a_total 1",
            "# TYPE b_seconds gauge",
            "b_seconds 1.5",
            "# TYPE c_seconds histogram",
            "c_seconds_sum 0.003",
            "c_seconds_count 1",
            "c_seconds_bucket{le=\"0.0025\"} 0",
            "c_seconds_bucket{le=\"0.005\"} 1",
            "c_seconds_bucket{le=\"+Inf\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        let open = registry.encode(Format::OpenMetrics);
        assert!(open.contains("# UNIT c_seconds seconds\n") && open.ends_with("# EOF\n"), "{open}");
        let entries: Vec<_> = registry.entries().iter().map(|e| (e.name, e.kind, e.unit)).collect();
        assert_eq!(
            entries,
            [
                ("a_total", "counter", None),
                ("b_seconds", "gauge", Some("seconds")),
                ("c_seconds", "histogram", Some("seconds"))
            ]
        );
    }
}
