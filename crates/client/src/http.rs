//! Requests and their answers, as bytes.

use std::time::Duration as StdDuration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use resurgam_model::Duration;
use rustls::ClientConfig;
use url::Url;

use crate::error::{Error, chain};

/// Who cannot be connected to within this time is taken for away.
const CONNECT_TIMEOUT: StdDuration = StdDuration::from_secs(2);
/// Connections that nobody uses are kept so long: less than servers and what is between usually
/// keep them, so that a request seldom meets one that the other side is about to close.
const KEEP_IDLE: StdDuration = StdDuration::from_secs(20);

/// The connections of a client, and its token. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Http {
    connections: legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    authorization: Option<HeaderValue>,
}

impl Http {
    pub(crate) fn new(tls: ClientConfig, authorization: Option<HeaderValue>) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let connections = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(KEEP_IDLE)
            .build(connector);
        Self { connections, authorization }
    }

    /// One request and its whole answer, within `timeout`.
    pub(crate) async fn exchange(
        &self,
        method: Method,
        url: &Url,
        json: Option<Vec<u8>>,
        timeout: StdDuration,
    ) -> Result<(u16, Bytes), Error> {
        let whole = async {
            let response = self.send(method, url, json).await?;
            let status = response.status().as_u16();
            let body = response.into_body().collect().await;
            let body = body.map_err(|error| unreachable(url, &error))?;
            Ok((status, body.to_bytes()))
        };
        tokio::time::timeout(timeout, whole)
            .await
            .unwrap_or_else(|_| Err(Error::Timeout { url: server(url), after: Duration(timeout) }))
    }

    /// One request; what comes after the head of its answer is still to be read.
    pub(crate) async fn send(
        &self,
        method: Method,
        url: &Url,
        json: Option<Vec<u8>>,
    ) -> Result<Response<Incoming>, Error> {
        let mut request = Request::builder().method(method).uri(url.as_str());
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization.clone());
        }
        if json.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = Full::new(Bytes::from(json.unwrap_or_default()));
        let request = request
            .body(body)
            .map_err(|error| Error::Url { url: server(url), why: error.to_string() })?;
        self.connections.request(request).await.map_err(|error| unreachable(url, &error))
    }
}

pub(crate) fn unreachable(url: &Url, error: &dyn std::error::Error) -> Error {
    Error::Unreachable { url: server(url), why: chain(error) }
}

/// The server that an address names.
fn server(url: &Url) -> String {
    url.origin().ascii_serialization()
}
