//! Logs, and traces for an OpenTelemetry collector.

mod export;

use std::io::IsTerminal as _;

use clap::ValueEnum;
use tracing_subscriber::filter::{EnvFilter, LevelFilter, Targets};
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

pub(crate) use export::Exporting;

use crate::failure::Failure;

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object on each line.
    Json,
}

/// Logs go to standard error. Spans go to a collector, if the variables of OpenTelemetry name one;
/// call it within a runtime. What it gives must be kept to the end, and be told of it.
pub(crate) fn start(format: LogFormat, default: &str) -> Result<Option<Exporting>, Failure> {
    let filter =
        EnvFilter::try_from_env("RESURGAM_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let (exporting, spans) = match export::from_environment()? {
        Some((exporting, tracer)) => {
            let layer = tracing_opentelemetry::layer()
                .with_tracer(tracer)
                .with_location(false)
                .with_threads(false)
                // What the export itself does must not be exported in turn.
                .with_filter(Targets::new().with_target("resurgam", LevelFilter::INFO));
            (Some(exporting), Some(layer))
        }
        None => (None, None),
    };
    tracing_subscriber::registry().with(lines.with_filter(filter)).with(spans).init();
    Ok(exporting)
}
