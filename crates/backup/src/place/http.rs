//! Requests to object stores, over the HTTP and TLS that the rest of the program uses.

use std::error::Error as _;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http_body_util::BodyExt as _;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector as Tcp;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody,
    HttpResponse, HttpResponseBody, HttpService,
};
use rustls::{ClientConfig, RootCertStore};

/// Who cannot be connected to within this time is taken for away.
const CONNECT: Duration = Duration::from_secs(5);
/// The head of an answer may take so long, and longer by what is sent before it.
const ANSWER: Duration = Duration::from_secs(15);
/// The slowest line that is borne, in bytes a second: 2 Mbit/s.
const SLOWEST: f64 = 250_000.0;
/// Each further part of it so long.
const PART: Duration = Duration::from_secs(30);
/// Connections that nobody uses are kept so long.
const KEEP_IDLE: Duration = Duration::from_secs(20);

/// Makes clients.
#[derive(Debug)]
pub(super) struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            object_store::Error::Generic { store: "TLS", source: error }
        };
        // An address that is plain needs no certificates; one that is not says so itself when there
        // are none.
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| failed(error.into()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut tcp = Tcp::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let connections = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(KEEP_IDLE)
            .build(connector);
        Ok(HttpClient::new(Connections(connections)))
    }
}

#[derive(Debug)]
struct Connections(legacy::Client<HttpsConnector<Tcp>, HttpRequestBody>);

#[async_trait]
impl HttpService for Connections {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (head, body) = request.into_parts();
        // What is answered is small or one pack; it is taken as a whole, so that a store that falls
        // silent half-way is noticed.
        #[allow(clippy::cast_precision_loss, reason = "packs are far below 2^52 bytes")]
        let sending = Duration::from_secs_f64(body.content_length() as f64 / SLOWEST);
        let response = within(ANSWER + sending, async {
            self.0
                .request(HttpRequest::from_parts(head, body))
                .await
                .map_err(|error| refused(&error))
        })
        .await?;
        let (head, mut body) = response.into_parts();
        let mut parts = Vec::new();
        while let Some(part) = within(PART, async { Ok(body.frame().await) }).await? {
            let part = part.map_err(|error| HttpError::new(HttpErrorKind::Interrupted, error))?;
            if let Ok(data) = part.into_data() {
                parts.extend_from_slice(&data);
            }
        }
        Ok(HttpResponse::from_parts(head, HttpResponseBody::from(bytes::Bytes::from(parts))))
    }
}

/// Says the cause: the outermost error only says that something failed.
fn refused(error: &legacy::Error) -> HttpError {
    let kind = if error.is_connect() { HttpErrorKind::Connect } else { HttpErrorKind::Request };
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    HttpError::new(kind, io::Error::other(text))
}

async fn within<T>(
    time: Duration,
    call: impl Future<Output = Result<T, HttpError>>,
) -> Result<T, HttpError> {
    tokio::time::timeout(time, call).await.unwrap_or_else(|_| {
        let text = format!("no answer within {} s", time.as_secs());
        Err(HttpError::new(HttpErrorKind::Timeout, io::Error::new(io::ErrorKind::TimedOut, text)))
    })
}
