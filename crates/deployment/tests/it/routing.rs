//! The address that stays, in front of the one that changes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use resurgam_deployment::local::{Router, free_address};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::processes::within;

async fn router() -> Router {
    Router::listen("127.0.0.1:0".parse().unwrap()).await.unwrap()
}

/// A server that answers each byte with its own letter, and says how many are connected.
async fn server(letter: u8) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connected = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connected);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let count = Arc::clone(&count);
            count.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                while stream.read_u8().await.is_ok() {
                    if stream.write_u8(letter).await.is_err() {
                        break;
                    }
                }
                count.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    (address, connected)
}

async fn ask(address: SocketAddr) -> std::io::Result<u8> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_u8(1).await?;
    stream.read_u8().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_has_said_all_still_gets_its_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let router = router().await;
    router.route(Some(listener.local_addr().unwrap()));
    let answering = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut said = String::new();
        // To its end: the answer comes after the client has closed its side.
        stream.read_to_string(&mut said).await.unwrap();
        stream.write_all(said.to_uppercase().as_bytes()).await.unwrap();
    });
    let mut client = TcpStream::connect(router.address()).await.unwrap();
    client.write_all(b"hello").await.unwrap();
    client.shutdown().await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "HELLO");
    answering.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_can_wait_for_a_target() {
    let router = router().await;
    let mut clients = JoinSet::new();
    for _ in 0..200 {
        let address = router.address();
        clients.spawn(async move { ask(address).await });
    }
    let (target, _) = server(b'a').await;
    // Nobody listens there at first: they go on waiting.
    router.route(Some(free_address("127.0.0.1".parse().unwrap(), 0).unwrap()));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(clients.try_join_next().is_none(), "nobody can have an answer yet");
    router.route(Some(target));
    let all = tokio::time::timeout(Duration::from_secs(20), clients.join_all());
    let answers = all.await.expect("an answer for each");
    assert!(answers.iter().all(|answer| matches!(answer, Ok(b'a'))), "{answers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_gave_up_waiting_does_not_disturb_the_target() {
    let router = router().await;
    for said in [&b""[..], &b"anyone?"[..]] {
        let mut client = TcpStream::connect(router.address()).await.unwrap();
        client.write_all(said).await.unwrap();
    }
    // They are noticed to be gone at the latest when the clock has ticked once more.
    tokio::time::sleep(Duration::from_millis(600)).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    router.route(Some(listener.local_addr().unwrap()));
    let mut client = TcpStream::connect(router.address()).await.unwrap();
    client.write_u8(b'!').await.unwrap();
    let (mut first, _) = listener.accept().await.unwrap();
    assert_eq!(first.read_u8().await.unwrap(), b'!', "the first to arrive is one who is there");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_storm_of_changes_all_are_where_the_last_one_says() {
    let router = Arc::new(router().await);
    let servers = [server(b'a').await, server(b'b').await, server(b'c').await];
    let mut clients = JoinSet::new();
    for _ in 0..20 {
        let address = router.address();
        clients.spawn(async move {
            // Asks over one connection until it is cut, then over the next.
            let mut connections = 0;
            loop {
                connections += 1;
                let Ok(mut stream) = TcpStream::connect(address).await else { continue };
                while stream.write_u8(1).await.is_ok() {
                    match stream.read_u8().await {
                        Ok(b'c') if connections > 1 => return connections,
                        Ok(_) => {}
                        Err(_) => break,
                    }
                }
            }
        });
    }
    for round in 0..300 {
        let target = [None, Some(servers[0].0), Some(servers[1].0)][round % 3];
        router.route(target);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    router.route(Some(servers[2].0));
    let all = tokio::time::timeout(Duration::from_secs(20), clients.join_all()).await;
    assert_eq!(all.expect("each arrives").len(), 20);
    within(5, "leave the others", async || {
        servers[..2].iter().all(|(_, connected)| connected.load(Ordering::SeqCst) == 0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_that_is_dropped_closes_everything() {
    let router = router().await;
    let (target, connected) = server(b'a').await;
    router.route(Some(target));
    let mut client = TcpStream::connect(router.address()).await.unwrap();
    client.write_u8(1).await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'a');
    let address = router.address();
    drop(router);
    assert!(client.read_u8().await.is_err());
    within(5, "close", async || TcpStream::connect(address).await.is_err()).await;
    within(5, "leave", async || connected.load(Ordering::SeqCst) == 0).await;
}
