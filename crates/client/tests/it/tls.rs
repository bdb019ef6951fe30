//! TLS on both sides, and the token.

use std::net::SocketAddr;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use resurgam_client::{Client, Error};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// An authority that signs certificates of servers and clients.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    fn signed(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.0).unwrap(), key)
    }

    /// Certificate and key as a client takes them.
    fn identity(&self) -> String {
        let (certificate, key) = self.signed("agent");
        certificate.pem() + &key.serialize_pem()
    }
}

/// Answers every request with `ok` as `/health` does, and tells what the last one was. Ends when
/// dropped.
struct Server {
    address: SocketAddr,
    requests: tokio::sync::mpsc::UnboundedReceiver<String>,
    _tasks: JoinSet<()>,
}

impl Server {
    async fn start(tls: Option<ServerConfig>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, requests) = tokio::sync::mpsc::unbounded_channel();
        let acceptor = tls.map(|config| TlsAcceptor::from(Arc::new(config)));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let Some(acceptor) = &acceptor else {
                    answer(tcp, &tell).await;
                    continue;
                };
                // Who is not trusted, or does not trust, does not come through here.
                if let Ok(stream) = acceptor.accept(tcp).await {
                    answer(stream, &tell).await;
                }
            }
        });
        Self { address, requests, _tasks: tasks }
    }
}

async fn answer(
    mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin,
    tell: &tokio::sync::mpsc::UnboundedSender<String>,
) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => request.push(byte),
            Err(_) => return,
        }
    }
    tell.send(String::from_utf8(request).unwrap()).unwrap();
    let body = r#"{"status":"ok","roles":[],"version":"1"}"#;
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
    let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
    let _ = stream.shutdown().await;
}

fn server_config(authority: &Authority, clients: Option<&Authority>) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(clients) => {
            let mut roots = RootCertStore::empty();
            roots.add(clients.0.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let (certificate, key) = authority.signed("127.0.0.1");
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    builder.with_single_cert(vec![certificate.der().clone()], key).unwrap()
}

#[tokio::test]
async fn a_server_is_trusted_by_its_authority_alone() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let server = Server::start(Some(server_config(&authority, None))).await;
    let url = format!("https://{}", server.address);
    let trusting = |authority: &Authority| Client::builder(&url).ca(authority.pem()).build();
    assert_eq!(trusting(&authority).unwrap().health().await.unwrap().status, "ok");
    let error = trusting(&stranger).unwrap().health().await.unwrap_err();
    assert!(matches!(&error, Error::Unreachable { why, .. } if why.contains("certificate")));
    // Nor may it be another machine than the one that was meant.
    let elsewhere = url.replace("127.0.0.1", "localhost");
    let client = Client::builder(elsewhere).ca(authority.pem()).build().unwrap();
    let error = client.health().await.unwrap_err();
    assert!(matches!(&error, Error::Unreachable { why, .. } if why.contains("certificate")));
}

#[tokio::test]
async fn a_client_shows_who_it_is() {
    let (servers, clients) = (Authority::new(), Authority::new());
    let server = Server::start(Some(server_config(&servers, Some(&clients)))).await;
    let new = || Client::builder(format!("https://{}", server.address)).ca(servers.pem());
    let known = new().identity(clients.identity()).build().unwrap();
    assert_eq!(known.health().await.unwrap().status, "ok");
    for stranger in [new(), new().identity(servers.identity())] {
        let error = stranger.build().unwrap().health().await.unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    }
    let key_alone = KeyPair::generate().unwrap().serialize_pem();
    let error = new().identity(key_alone.clone()).build().unwrap_err();
    assert!(matches!(error, Error::Option { .. }), "{error}");
    assert!(!format!("{error:?}{:?}", new().identity(key_alone)).contains("PRIVATE"));
}

#[tokio::test]
async fn the_token_goes_with_every_call_and_never_from_tls_to_plain() {
    let mut server = Server::start(None).await;
    let url = format!("http://{}", server.address);
    let client = Client::builder(&url).token("rsg_hunter2").build().unwrap();
    client.health().await.unwrap();
    let request = server.requests.recv().await.unwrap();
    assert!(request.contains("authorization: Bearer rsg_hunter2\r\n"), "{request}");
    client.at(&url).unwrap().health().await.unwrap();
    assert!(server.requests.recv().await.unwrap().contains("Bearer rsg_hunter2"));

    let ca = Authority::new().pem();
    let secure = Client::builder("https://127.0.0.1:1").ca(ca).token("hunter2").build().unwrap();
    let error = secure.at(&url).unwrap_err();
    assert!(matches!(error, Error::Url { .. }), "{error}");
    assert!(secure.at("https://127.0.0.1:2").is_ok());
    // What is refused, or breaks, does not show it either.
    let error = secure.health().await.unwrap_err();
    assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
}
