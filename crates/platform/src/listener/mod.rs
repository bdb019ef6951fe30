//! Connections: how many there may be, how long each may take to say what it wants, and TLS.
//!
//! A connection costs memory and a descriptor, so nobody holds one for nothing: the handshake and
//! the head of each request have their time, and when all places are taken new connections wait
//! in the kernel's queue until one is free.

mod tls;

pub use tls::{Error as TlsError, TlsSettings};
pub(crate) use tls::{Tls, watch};

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch as watching};
use tokio::task::JoinSet;
use tower_service::Service;

use crate::api::Peer;

/// A TLS handshake may take so long.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The head of a request may take so long, counted from the end of the answer before. So this is
/// also how long a connection may do nothing; clients give theirs up earlier.
const HEAD: Duration = Duration::from_secs(30);
/// After an error that has to do with this machine, such as no free descriptor, so long is waited.
const PAUSE: Duration = Duration::from_millis(100);

/// How long connections may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Connections at once.
    pub max: usize,
    /// For a TLS handshake.
    pub handshake: resurgam_model::Duration,
    /// For the head of a request, and between requests.
    pub head: resurgam_model::Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            max: 16_384,
            handshake: resurgam_model::Duration(HANDSHAKE),
            head: resurgam_model::Duration(HEAD),
        }
    }
}

impl ConnectionLimits {
    /// As many connections as there can be descriptors for, after asking for as many as this
    /// process may have.
    pub(crate) fn within_descriptors(self) -> Self {
        /// For the store, the log and what else is open.
        const OTHERS: u64 = 256;
        let wanted = u64::try_from(self.max).unwrap_or(u64::MAX).saturating_add(OTHERS);
        let mut limit = getrlimit(Resource::Nofile);
        let Some(current) = limit.current.filter(|current| *current < wanted) else { return self };
        limit.current = Some(limit.maximum.map_or(wanted, |maximum| maximum.min(wanted)));
        let have = match setrlimit(Resource::Nofile, limit) {
            Ok(()) => limit.current.unwrap_or(current),
            Err(_) => current,
        };
        let max = usize::try_from(have.saturating_sub(OTHERS).max(have / 2)).unwrap_or(self.max);
        if max < self.max {
            tracing::warn!(max, wanted = self.max, "fewer connections: descriptors are limited");
        }
        Self { max: max.min(self.max), ..self }
    }
}

/// Serves the routes on one listening socket until `closing` says so, and then until the
/// requests that have begun are answered.
pub(crate) async fn serve(
    tcp: TcpListener,
    tls: Option<Arc<Tls>>,
    limits: ConnectionLimits,
    router: Router,
    mut closing: watching::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(limits.max.clamp(1, Semaphore::MAX_PERMITS)));
    let mut connections = JoinSet::new();
    let closed = closing.clone();
    loop {
        let next = async {
            // Nobody closes the semaphore.
            let place = Arc::clone(&places).acquire_owned().await.ok();
            (place, accept(&tcp).await)
        };
        let (place, (stream, remote)) = tokio::select! {
            next = next => next,
            () = until(&mut closing) => break,
            // Clears up after those that have ended.
            Some(_) = connections.join_next() => continue,
        };
        let (tls, router, closed) = (tls.clone(), router.clone(), closed.clone());
        connections.spawn(async move {
            connection(stream, remote, tls.as_deref(), limits, router, closed).await;
            drop(place);
        });
    }
    drop(tcp);
    while connections.join_next().await.is_some() {}
}

/// Resolves when the process is about to end.
async fn until(closing: &mut watching::Receiver<bool>) {
    // An error means that the sender is gone, which is an end as well.
    let _ = closing.wait_for(|closing| *closing).await;
}

async fn accept(tcp: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match tcp.accept().await {
            Ok(accepted) => return accepted,
            Err(error) if is_theirs(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Whether the error has to do with one connection, and not with this process.
fn is_theirs(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

async fn connection(
    stream: TcpStream,
    remote: SocketAddr,
    tls: Option<&Tls>,
    limits: ConnectionLimits,
    router: Router,
    closing: watching::Receiver<bool>,
) {
    // Without it an answer may wait for the other side's acknowledgement.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot switch off delayed sending");
    }
    let Some(tls) = tls else {
        let peer = Peer { remote, agent: None };
        return http(stream, peer, limits, router, closing).await;
    };
    match tokio::time::timeout(limits.handshake.0, tls.accept(stream)).await {
        Ok(Ok((stream, agent))) => {
            http(stream, Peer { remote, agent }, limits, router, closing).await;
        }
        Ok(Err(error)) => tracing::debug!(%remote, %error, "no TLS with this one"),
        Err(_) => tracing::debug!(%remote, "the TLS handshake took too long"),
    }
}

async fn http(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: Peer,
    limits: ConnectionLimits,
    router: Router,
    mut closing: watching::Receiver<bool>,
) {
    let remote = peer.remote;
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        // A router is always ready.
        router.clone().call(request.map(Body::new))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head.0)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = until(&mut closing) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::trace!(%remote, %error, "the connection broke");
    }
}
