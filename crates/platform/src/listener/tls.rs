//! TLS 1.2 and 1.3, with certificates that are read again when their files change.
//!
//! The cryptography is ring's. The other choice, aws-lc, takes several times as long to build
//! and needs more tools for it; what it has beyond ring is not needed here.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use resurgam_model::AgentId;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use webpki::EndEntityCert;

/// So often it is looked whether the files have changed.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The files that TLS needs, all of them PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSettings {
    /// The server's certificate, and those of its issuers after it.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Who vouches for clients. With it, every client must show a certificate.
    pub client_ca: Option<PathBuf>,
}

/// Why TLS cannot be spoken.
#[derive(Debug, thiserror::Error)]
#[error("{} cannot be used for TLS: {why}", file.display())]
pub struct Error {
    /// The file.
    file: PathBuf,
    /// What is wrong with it.
    why: String,
}

/// What tells whether a file is another one than before.
type Mark = Vec<Option<(u64, u64, i64, i64)>>;

/// The TLS side of a listener.
pub(crate) struct Tls {
    settings: TlsSettings,
    config: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    /// Reads the files.
    pub(crate) fn load(settings: &TlsSettings) -> Result<Arc<Self>, Error> {
        let config = RwLock::new(load(settings)?);
        Ok(Arc::new(Self { settings: settings.clone(), config }))
    }

    fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The handshake, and the agent for which the client's certificate stands.
    pub(super) async fn accept(
        &self,
        stream: TcpStream,
    ) -> io::Result<(TlsStream<TcpStream>, Option<AgentId>)> {
        let stream = TlsAcceptor::from(self.config()).accept(stream).await?;
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let agent = certificate.and_then(agent);
        Ok((stream, agent))
    }
}

/// Reads the files again whenever they have changed. What cannot be used is reported, and what
/// was there before goes on.
pub(crate) async fn watch(tls: Arc<Tls>) {
    let mut last = mark(&tls.settings);
    // Whoever changed a file between the first reading and here would otherwise go unnoticed.
    let mut changed = true;
    loop {
        if changed {
            match load(&tls.settings) {
                Ok(config) => {
                    *tls.config.write().unwrap_or_else(PoisonError::into_inner) = config;
                    tracing::info!(certificate = %tls.settings.cert.display(), "TLS is up to date");
                }
                Err(error) => {
                    tracing::error!(%error, "the changed files do not fit; the former ones go on");
                }
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
        let now = mark(&tls.settings);
        changed = now != last;
        last = now;
    }
}

fn mark(settings: &TlsSettings) -> Mark {
    let files = [Some(&settings.cert), Some(&settings.key), settings.client_ca.as_ref()];
    let of = |file: &PathBuf| {
        let found = fs::metadata(file).ok()?;
        Some((found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
    };
    files.into_iter().flatten().map(of).collect()
}

fn load(settings: &TlsSettings) -> Result<Arc<ServerConfig>, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let wrong = |file: &Path, why: &dyn std::fmt::Display| Error {
        file: file.to_owned(),
        why: why.to_string(),
    };
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(&settings.cert, &error))?;
    let builder = match &settings.client_ca {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let mut roots = RootCertStore::empty();
            for authority in certificates(file)? {
                roots.add(authority).map_err(|error| wrong(file, &error))?;
            }
            let roots = Arc::new(roots);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
                .build()
                .map_err(|error| wrong(file, &error))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let key = read(&settings.key)?;
    let key = PrivateKeyDer::from_pem_slice(&key)
        .map_err(|error| wrong(&settings.key, &format!("it holds no private key: {error}")))?;
    let mut config = builder
        .with_single_cert(certificates(&settings.cert)?, key)
        .map_err(|error| wrong(&settings.cert, &error))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn read(file: &Path) -> Result<Vec<u8>, Error> {
    fs::read(file).map_err(|error| Error { file: file.to_owned(), why: error.to_string() })
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let wrong = |why: String| Error { file: file.to_owned(), why };
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(file)?).collect();
    match found {
        Ok(found) if found.is_empty() => {
            Err(wrong("it holds no certificate (-----BEGIN CERTIFICATE-----)".to_owned()))
        }
        Ok(found) => Ok(found),
        Err(error) => Err(wrong(error.to_string())),
    }
}

/// The agent for which a certificate stands: the one alternative name of it that is a URI
/// `agent:NAME`. (The common name is not looked at: names have been in the alternative names for
/// twenty years.) With several it would be anybody's guess which one is meant.
fn agent(certificate: &CertificateDer<'_>) -> Option<AgentId> {
    let certificate = EndEntityCert::try_from(certificate).ok()?;
    let mut agents = certificate.valid_uri_names().filter_map(|uri| uri.strip_prefix("agent:"));
    match (agents.next(), agents.next()) {
        (Some(name), None) => AgentId::new(name).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    fn with_uris(uris: &[&str]) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let uris = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap()));
        params.subject_alt_names.extend(uris);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn a_certificate_names_at_most_one_agent() {
        let name = |uris: &[&str]| agent(&with_uris(uris)).map(String::from);
        assert_eq!(name(&["agent:worker-1"]).as_deref(), Some("worker-1"));
        let among = ["spiffe://x/y", "agent:llm/gpt:4.1"];
        assert_eq!(name(&among).as_deref(), Some("llm/gpt:4.1"));
        for none in [&[] as &[_], &["worker-1"], &["agent:"], &["agent:-"], &["agent:a", "agent:b"]]
        {
            assert_eq!(name(none), None, "{none:?}");
        }
    }

    #[test]
    fn files_that_do_not_fit_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let file = folder.path().join(name);
            fs::write(&file, text).unwrap();
            file
        };
        let key = KeyPair::generate().unwrap();
        let other = KeyPair::generate().unwrap().serialize_pem();
        let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let cert = file("cert", &params.self_signed(&key).unwrap().pem());
        let key = file("key", &key.serialize_pem());
        let good = TlsSettings { cert, key, client_ca: None };
        assert!(load(&good).is_ok());
        let other = file("other", &other);
        let nothing = file("nothing", "");
        let gone = folder.path().join("gone");
        for (settings, expected) in [
            (TlsSettings { cert: gone, ..good.clone() }, "gone"),
            (TlsSettings { cert: nothing.clone(), ..good.clone() }, "no certificate"),
            (TlsSettings { key: nothing.clone(), ..good.clone() }, "private key"),
            (TlsSettings { key: other, ..good.clone() }, "cert"),
            (TlsSettings { client_ca: Some(nothing), ..good }, "no certificate"),
        ] {
            let error = load(&settings).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains("BEGIN PRIVATE"), "{error}");
        }
    }
}
