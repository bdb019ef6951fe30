//! Whom the client trusts, and as whom it shows itself.

use std::fmt;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::error::{Error, chain};

/// PEM text. It may hold a private key, so that Debug shows only how long it is.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Pem(pub(crate) Vec<u8>);

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({} bytes of PEM)", self.0.len())
    }
}

impl Pem {
    fn certificates(&self, what: &'static str) -> Result<Vec<CertificateDer<'static>>, Error> {
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.0).collect();
        let certificates = certificates.map_err(|error| wrong(what, error.to_string()))?;
        if certificates.is_empty() {
            let why = "it holds no certificate (-----BEGIN CERTIFICATE-----)";
            return Err(wrong(what, why.to_owned()));
        }
        Ok(certificates)
    }

    fn key(&self, what: &'static str) -> Result<PrivateKeyDer<'static>, Error> {
        PrivateKeyDer::from_pem_slice(&self.0)
            .map_err(|error| wrong(what, format!("it holds no usable private key: {error}")))
    }
}

fn wrong(what: &'static str, why: String) -> Error {
    Error::Option { what, why }
}

/// How TLS is spoken: with the authorities in `ca` alone, or with those of the system if there is
/// none. Without `secure` nobody is trusted, as no server will be asked for a certificate; so a
/// client of a plain address needs no certificates on its machine.
pub(crate) fn config(
    secure: bool,
    ca: Option<&Pem>,
    identity: Option<&Pem>,
) -> Result<ClientConfig, Error> {
    const CA: &str = "the CA certificates";
    const IDENTITY: &str = "the client's certificate and key";
    let mut roots = RootCertStore::empty();
    if let Some(ca) = ca {
        for certificate in ca.certificates(CA)? {
            roots.add(certificate).map_err(|error| wrong(CA, error.to_string()))?;
        }
    } else if secure {
        let system = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(system.certs);
        if roots.is_empty() {
            let why = system.errors.first().map_or_else(|| "there are none".to_owned(), chain_of);
            return Err(wrong("the CA certificates of this system", why));
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong("TLS", error.to_string()))?
        .with_root_certificates(roots);
    let Some(identity) = identity else { return Ok(config.with_no_client_auth()) };
    let (certificates, key) = (identity.certificates(IDENTITY)?, identity.key(IDENTITY)?);
    config
        .with_client_auth_cert(certificates, key)
        .map_err(|error| wrong(IDENTITY, error.to_string()))
}

fn chain_of(error: &rustls_native_certs::Error) -> String {
    chain(error)
}
