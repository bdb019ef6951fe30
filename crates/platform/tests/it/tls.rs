//! TLS at the API, and what holds a connection for nothing.

use std::fs;
use std::path::Path;
use std::time::Duration as Span;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType, date_time_ymd,
};
use resurgam_client::{Client, ClientBuilder};
use resurgam_model::access::{AccessMode, AccessRole};
use resurgam_model::{Duration, Role};
use resurgam_platform::{ServeSettings, TlsSettings};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::access::{controlled, token};
use crate::harness::*;

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn signed(&self, change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        change(&mut params);
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }

    fn server(&self, dir: &Path) -> TlsSettings {
        self.put(dir, |_| {});
        TlsSettings { cert: dir.join("cert"), key: dir.join("key"), client_ca: None }
    }

    fn put(&self, dir: &Path, change: impl FnOnce(&mut CertificateParams)) {
        let (cert, key) = self.signed(change);
        fs::write(dir.join("cert"), cert).unwrap();
        fs::write(dir.join("key"), key).unwrap();
    }

    fn agent(&self, uri: Option<&str>) -> String {
        let (cert, key) = self.signed(|params| {
            let uri = uri.map(|uri| SanType::URI(uri.try_into().unwrap()));
            params.subject_alt_names.extend(uri);
        });
        cert + &key
    }
}

async fn serving(settings: ServeSettings, dir: &TempDir) -> Server {
    // Its own client speaks no TLS, so that it cannot be waited for as for the others.
    Server::start(settings, sqlite(dir.path())).await
}

fn to(server: &Server, authority: &Authority) -> ClientBuilder {
    Client::builder(format!("https://{}", server.address)).ca(authority.0.pem())
}

/// What comes back on a connection of its own, until the other side closes it.
async fn rest(mut stream: TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    let read = tokio::time::timeout(Span::from_secs(20), stream.read_to_end(&mut all)).await;
    // A reset is an end as well.
    let _ = read.expect("the other side never closed it");
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_spoken_with_those_who_trust_the_certificate() {
    let (dir, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let mut settings = settings(Role::ALL);
    settings.tls = Some(authority.server(dir.path()));
    let server = serving(settings, &dir).await;
    assert_eq!(to(&server, &authority).build().unwrap().health().await.unwrap().status, "ok");
    let error = to(&server, &Authority::new()).build().unwrap().health().await.unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
    // Without TLS at all.
    assert!(server.client.health().await.is_err());
    let mut plain = TcpStream::connect(server.address).await.unwrap();
    plain.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    assert!(!rest(plain).await.starts_with(b"HTTP"));
    assert_eq!(to(&server, &authority).build().unwrap().health().await.unwrap().status, "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_read_again_when_they_change() {
    let (dir, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let mut settings = settings(Role::ALL);
    settings.tls = Some(authority.server(dir.path()));
    let server = serving(settings, &dir).await;
    let works = async |authority: &Authority| {
        // A client of its own each time, because connections that are open stay as they are.
        to(&server, authority).build().unwrap().health().await.is_ok()
    };
    assert!(works(&authority).await);
    let next = Authority::new();
    next.put(dir.path(), |_| {});
    until("the next certificate", || works(&next)).await;
    assert!(!works(&authority).await);
    // One that has expired is trusted by nobody.
    next.put(dir.path(), |params| params.not_after = date_time_ymd(2020, 1, 1));
    until("an expired certificate", || async { !works(&next).await }).await;
    next.put(dir.path(), |_| {});
    until("a good certificate", || works(&next)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_stands_for_its_agent() {
    let (dir, authority, clients) =
        (tempfile::tempdir().unwrap(), Authority::new(), Authority::new());
    fs::write(dir.path().join("clients"), clients.0.pem()).unwrap();
    let mut settings = controlled();
    settings.tls = Some(TlsSettings {
        client_ca: Some(dir.path().join("clients")),
        ..authority.server(dir.path())
    });
    let server = serving(settings, &dir).await;
    let with = |identity: String| to(&server, &authority).identity(identity);
    let agent = with(clients.agent(Some("agent:w-1"))).build().unwrap();
    until("ready", || async { agent.ready().await.is_ok_and(|ready| ready.is_ready()) }).await;

    register(&agent, "w-1", "x").await;
    let error = agent.tokens(None, 0).await.unwrap_err();
    assert_eq!(error.problem().unwrap().status, 403);
    let error = agent.receive(&crate::harness::agent("w-2"), None, 1, Duration::default()).await;
    assert_eq!(error.unwrap_err().problem().unwrap().status, 403);
    // A token says more than the certificate.
    let admin = token(&sqlite(dir.path()), AccessRole::Admin, None).await;
    let both = with(clients.agent(Some("agent:w-1"))).token(admin.expose()).build().unwrap();
    both.tokens(None, 0).await.unwrap();
    // A certificate that names no agent gets a connection and no more.
    let nameless = with(clients.agent(None)).build().unwrap();
    assert_eq!(nameless.health().await.unwrap().access, AccessMode::Tokens);
    assert_eq!(nameless.pending().await.unwrap_err().problem().unwrap().status, 401);
    // None at all, or one of somebody else's.
    assert!(to(&server, &authority).build().unwrap().health().await.is_err());
    let stranger = Authority::new().agent(Some("agent:w-1"));
    assert!(with(stranger).build().unwrap().health().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_nothing_or_half_of_it_loses_the_connection() {
    let (dir, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let mut settings = settings(Role::ALL);
    settings.connections.handshake = Duration::from_millis(200);
    settings.connections.head = Duration::from_millis(200);
    let plain = Server::ready(settings.clone(), sqlite(dir.path())).await;
    settings.tls = Some(authority.server(dir.path()));
    let secure = serving(settings, &dir).await;
    for (address, said) in [
        (plain.address, &b""[..]),
        (plain.address, b"GET /health HTT"),
        (plain.address, b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: "),
        (secure.address, b""),
        // The beginning of a handshake.
        (secure.address, &[22, 3, 1, 2, 0, 1, 0]),
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(said).await.unwrap();
        let answer = rest(stream).await;
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{said:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_places_are_taken_the_next_one_waits() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings(Role::ALL);
    settings.connections.max = 1;
    settings.connections.head = Duration::from_millis(500);
    let server = Server::start(settings, sqlite(dir.path())).await;
    let holding = TcpStream::connect(server.address).await.unwrap();
    // It is let in when the one that says nothing has lost its place.
    assert_eq!(server.client.health().await.unwrap().status, "ok");
    assert!(rest(holding).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_parts_on_this_machine_have_a_way_without_tls() {
    let (dir, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let internal = free.local_addr().unwrap();
    drop(free);
    let mut settings = controlled();
    settings.tls = Some(authority.server(dir.path()));
    settings.internal_listen = Some(internal);
    let server = serving(settings, &dir).await;
    let inside = Client::new(&format!("http://{internal}")).unwrap();
    until("ready", || async { inside.ready().await.is_ok_and(|ready| ready.is_ready()) }).await;
    // It asks who comes as well.
    assert_eq!(inside.pending().await.unwrap_err().problem().unwrap().status, 401);
    assert_eq!(to(&server, &authority).build().unwrap().health().await.unwrap().status, "ok");
}
