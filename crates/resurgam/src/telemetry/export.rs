//! Hands spans to an OpenTelemetry collector, without ever being in the way of the work.
//!
//! Spans that end go into a queue of bounded length; when it is full they are dropped and counted.
//! One task takes them out in batches and sends them, each attempt bounded in time. That the
//! collector cannot be reached is said once, and that it is back.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    SdkTracer, SdkTracerProvider, Span, SpanData, SpanExporter as _, SpanProcessor,
};
use resurgam_metrics::traces;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::failure::Failure;

/// So many spans wait for the collector at most.
const QUEUE: usize = 4096;
/// So many are sent at once.
const BATCH: usize = 512;
/// Spans wait so long for others to go with them.
const LINGER: Duration = Duration::from_secs(1);
/// The longest that the collector is waited for, also at the end.
const PATIENCE: Duration = Duration::from_secs(3);

/// The variables that name a collector.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

/// The export of this process.
pub(crate) struct Exporting {
    provider: SdkTracerProvider,
    stop: oneshot::Sender<()>,
    sending: JoinHandle<()>,
}

impl Exporting {
    /// Sends what has not been sent yet, for a short while.
    pub(crate) async fn finish(self) {
        let _ = self.stop.send(());
        // What cannot be sent in time is given up: the process is to end.
        let _ = tokio::time::timeout(PATIENCE, self.sending).await;
        let _ = self.provider.shutdown();
    }
}

/// Starts the export, if a collector is named. `OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER` and
/// the headers are read by the library.
///
/// # Errors
/// When the address or the sampler is not understood.
pub(crate) fn from_environment() -> Result<Option<(Exporting, SdkTracer)>, Failure> {
    let set = |name: &str| std::env::var(name).is_ok_and(|value| !value.is_empty());
    let off = std::env::var("OTEL_SDK_DISABLED").is_ok_and(|v| v.eq_ignore_ascii_case("true"));
    if off || !ENDPOINTS.into_iter().any(set) {
        return Ok(None);
    }
    let variable = |name: &str| std::env::var(name).ok();
    check_sampler(
        variable("OTEL_TRACES_SAMPLER").as_deref(),
        variable("OTEL_TRACES_SAMPLER_ARG").as_deref(),
    )?;
    let client = reqwest::Client::builder()
        .timeout(PATIENCE)
        .build()
        .map_err(|error| Failure::new(format!("traces cannot be exported: {error}")))?;
    let mut exporter =
        SpanExporter::builder().with_http().with_http_client(Client(client)).build().map_err(
            |error| {
                Failure::usage(format!("traces cannot be exported; see {}: {error}", ENDPOINTS[1]))
            },
        )?;
    let mut resource = Resource::builder();
    if !set("OTEL_SERVICE_NAME") {
        resource = resource.with_service_name("resurgam");
    }
    let resource = resource.build();
    exporter.set_resource(&resource);
    let (queue, spans) = mpsc::channel(QUEUE);
    let (stop, stopped) = oneshot::channel();
    let sending = tokio::spawn(send(exporter, spans, stopped));
    let provider = SdkTracerProvider::builder()
        .with_resource(resource)
        .with_span_processor(Queue { spans: Mutex::new(Some(queue)) })
        .build();
    let tracer = provider.tracer("resurgam");
    traces().set_on();
    Ok(Some((Exporting { provider, stop, sending }, tracer)))
}

/// The library would take everything instead of a sampler that it does not know, and not say so.
fn check_sampler(sampler: Option<&str>, argument: Option<&str>) -> Result<(), Failure> {
    match sampler {
        None
        | Some("always_on" | "always_off" | "parentbased_always_on" | "parentbased_always_off") => {
            Ok(())
        }
        Some(name @ ("traceidratio" | "parentbased_traceidratio")) => {
            let ratio = argument.and_then(|argument| argument.parse::<f64>().ok());
            if ratio.is_some_and(|ratio| (0.0..=1.0).contains(&ratio)) {
                return Ok(());
            }
            Err(Failure::usage(format!(
                "OTEL_TRACES_SAMPLER is {name}, for which OTEL_TRACES_SAMPLER_ARG must be a number \
                 from 0 to 1"
            )))
        }
        Some(_) => Err(Failure::usage(
            "OTEL_TRACES_SAMPLER must be always_on, always_off, traceidratio, \
             parentbased_always_on, parentbased_always_off or parentbased_traceidratio"
                .to_owned(),
        )),
    }
}

/// Puts ended spans into the queue, or drops them.
#[derive(Debug)]
struct Queue {
    spans: Mutex<Option<mpsc::Sender<SpanData>>>,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &opentelemetry::Context) {}

    fn on_end(&self, span: SpanData) {
        if !span.span_context.is_sampled() {
            return;
        }
        let spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        if spans.as_ref().is_none_or(|spans| spans.try_send(span).is_err()) {
            traces().dropped.inc();
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(())
    }
}

/// Sends batches until told to stop; then what is still in the queue.
async fn send(
    exporter: SpanExporter,
    mut spans: mpsc::Receiver<SpanData>,
    mut stop: oneshot::Receiver<()>,
) {
    let mut away = false;
    let mut ending = false;
    loop {
        let mut batch = Vec::new();
        if ending {
            while batch.len() < BATCH
                && let Ok(span) = spans.try_recv()
            {
                batch.push(span);
            }
            if batch.is_empty() {
                return;
            }
        } else {
            tokio::select! {
                _ = &mut stop => ending = true,
                taken = spans.recv_many(&mut batch, BATCH) => {
                    if taken == 0 {
                        return;
                    }
                    tokio::select! {
                        _ = &mut stop => ending = true,
                        () = tokio::time::sleep(LINGER), if spans.len() < BATCH => {}
                    }
                    while batch.len() < BATCH && let Ok(span) = spans.try_recv() {
                        batch.push(span);
                    }
                }
            }
            if batch.is_empty() {
                continue;
            }
        }
        let number = batch.len() as u64;
        match exporter.export(batch).await {
            Ok(()) => {
                traces().exported.inc_by(number);
                if std::mem::take(&mut away) {
                    tracing::info!("the collector takes traces again");
                }
            }
            Err(error) => {
                traces().failed.inc_by(number);
                if !std::mem::replace(&mut away, true) {
                    tracing::warn!(%error, "the collector does not take traces; they are given up");
                }
            }
        }
    }
}

/// The client that the rest of the program uses too.
#[derive(Debug)]
struct Client(reqwest::Client);

#[async_trait::async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        // The address may hold a password.
        let answer =
            self.0.execute(request.try_into()?).await.map_err(reqwest::Error::without_url)?;
        let status = answer.status();
        let mut response = Response::builder().status(status);
        if let Some(headers) = response.headers_mut() {
            headers.clone_from(answer.headers());
        }
        Ok(response.body(answer.bytes().await.map_err(reqwest::Error::without_url)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samplers_that_are_not_understood_are_refused() {
        let good = |sampler, argument| check_sampler(sampler, argument).is_ok();
        assert!(good(None, Some("x")) && good(Some("always_off"), None));
        assert!(good(Some("traceidratio"), Some("0.25")));
        assert!(good(Some("parentbased_traceidratio"), Some("1")));
        for argument in [None, Some(""), Some("a tenth"), Some("1.5"), Some("-1"), Some("NaN")] {
            assert!(!good(Some("traceidratio"), argument), "{argument:?}");
        }
        for sampler in ["", "always", "xray", "jaeger_remote"] {
            assert!(!good(Some(sampler), None), "{sampler}");
        }
    }
}
