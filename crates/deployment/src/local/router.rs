//! A service: an address that stays, in front of one that changes.
//!
//! It is what a Service is on Kubernetes, and one thing more: to re-route cuts every connection
//! to the former target, so that clients learn at once instead of waiting on a server that will
//! never answer. While there is no target, new connections wait; the moment there is one, they
//! go on. A client's first successful call after a failover is therefore as early as can be.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{Interest, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use crate::{Error, Result};

/// How long to wait before a target that refuses is tried again.
const RETRY: Duration = Duration::from_millis(20);

/// The listening side of a service. Dropping it closes the address and every connection.
#[derive(Debug)]
pub struct Router {
    address: SocketAddr,
    target: watch::Sender<Option<SocketAddr>>,
    accepting: AbortHandle,
}

impl Router {
    /// Listens; without a target yet.
    ///
    /// # Errors
    /// When the address is taken.
    pub async fn listen(address: SocketAddr) -> Result<Self> {
        let listener =
            TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })?;
        let address = listener.local_addr().map_err(|source| Error::Listen { address, source })?;
        let (target, targets) = watch::channel(None);
        let accepting = tokio::spawn(accept(listener, targets)).abort_handle();
        Ok(Self { address, target, accepting })
    }

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where connections go; to another target, or none, cuts those that exist.
    pub fn route(&self, target: Option<SocketAddr>) {
        self.target.send_if_modified(|current| {
            let changed = *current != target;
            *current = target;
            changed
        });
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, targets: watch::Receiver<Option<SocketAddr>>) {
    // Dropped, and with it every connection, when the router is.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => {
                    connections.spawn(serve(client, targets.clone()));
                }
                Err(error) => {
                    // Out of file descriptors, most likely: others must close first.
                    tracing::warn!(%error, "accept a connection");
                    tokio::time::sleep(RETRY).await;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn serve(mut client: TcpStream, mut targets: watch::Receiver<Option<SocketAddr>>) {
    let Some((target, mut server)) = connect(&client, &mut targets).await else { return };
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    tokio::select! {
        _ = copy_bidirectional(&mut client, &mut server) => {}
        _ = targets.wait_for(|current| *current != Some(target)) => {}
    }
}

/// Connects to the target, as soon as there is one that takes the connection. None when the
/// client gave up, or the router is gone.
async fn connect(
    client: &TcpStream,
    targets: &mut watch::Receiver<Option<SocketAddr>>,
) -> Option<(SocketAddr, TcpStream)> {
    loop {
        let target = tokio::select! {
            // While there is a target, a client that has said all it has to say is no client that
            // gave up: it waits for the answer.
            biased;
            found = targets.wait_for(Option::is_some) => (*found.ok()?)?,
            () = closed(client) => return None,
        };
        match TcpStream::connect(target).await {
            Ok(server) => return Some((target, server)),
            Err(_) => tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = closed(client) => return None,
            },
        }
    }
}

/// Returns when the client has closed its side. A client that has only sent something is still
/// there: the bytes stay for the server.
async fn closed(client: &TcpStream) {
    loop {
        match client.ready(Interest::READABLE).await {
            Ok(ready) if !ready.is_read_closed() => {
                // There is something to read and there will be: look again later.
                let mut byte = [0];
                if !matches!(client.peek(&mut byte).await, Ok(1)) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
            Ok(_) | Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A server that answers each byte with its own letter.
    async fn server(letter: u8) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    while stream.read_u8().await.is_ok() {
                        stream.write_u8(letter).await.unwrap();
                    }
                });
            }
        });
        address
    }

    #[tokio::test]
    async fn waits_for_a_target_and_cuts_when_it_changes() {
        let router = Router::listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let mut early = TcpStream::connect(router.address()).await.unwrap();
        early.write_u8(1).await.unwrap();

        router.route(Some(server(b'a').await));
        assert_eq!(early.read_u8().await.unwrap(), b'a');

        router.route(None);
        assert!(early.read_u8().await.is_err(), "the connection to the old target is cut");

        let mut late = TcpStream::connect(router.address()).await.unwrap();
        late.write_u8(1).await.unwrap();
        router.route(Some(server(b'b').await));
        assert_eq!(late.read_u8().await.unwrap(), b'b');
    }

    #[tokio::test]
    async fn a_target_that_is_not_up_yet_is_awaited() {
        let router = Router::listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = super::super::free_address("127.0.0.1".parse().unwrap(), 0).unwrap();
        router.route(Some(address));
        let mut client = TcpStream::connect(router.address()).await.unwrap();
        client.write_u8(1).await.unwrap();
        let listener = TcpListener::bind(address).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), 1);
    }
}
