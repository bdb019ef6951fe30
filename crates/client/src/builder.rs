//! The options of a client.

use std::fmt;

use http::HeaderValue;
use resurgam_model::Duration;
use url::{Host, Url};

use crate::client::{Client, Result};
use crate::error::Error;
use crate::http::Http;
use crate::tls::{self, Pem};

/// How long a call may take, beyond what it was asked to wait.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// What a client is to be; see [`Client::builder`]. Debug shows no secrets.
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    url: String,
    timeout: Duration,
    token: Option<Secret>,
    ca: Option<Pem>,
    identity: Option<Pem>,
}

impl ClientBuilder {
    pub(crate) fn new(url: String) -> Self {
        Self { url, timeout: DEFAULT_TIMEOUT, token: None, ca: None, identity: None }
    }

    /// The bearer token to show with every call. It goes over the network as it is: use `https`
    /// wherever others could listen. White space around it does not count.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(Secret(token.into()));
        self
    }

    /// Trust these authorities, PEM certificates, instead of those of the system.
    #[must_use]
    pub fn ca(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.ca = Some(Pem(pem.into()));
        self
    }

    /// Show this certificate to a server that asks for one: PEM, the certificate first, then those
    /// of its issuers if any, and its private key.
    #[must_use]
    pub fn identity(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.identity = Some(Pem(pem.into()));
        self
    }

    /// How long a call may take, 10 s by default; waiting that was asked for comes on top.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The client. Nothing is sent yet.
    ///
    /// # Errors
    /// [`Error::Url`] when the address cannot be called, [`Error::Option`] when a token or a
    /// certificate cannot be used.
    pub fn build(self) -> Result<Client> {
        let base = address(&self.url)?;
        let secure = base.scheme() == "https";
        let authorization = self.token.as_ref().map(Secret::authorization).transpose()?;
        let tls = tls::config(secure, self.ca.as_ref(), self.identity.as_ref())?;
        Ok(Client::from_parts(Http::new(tls, authorization), base, self.timeout))
    }
}

/// The base address: `http` or `https`, a path that ends in a slash, nothing else.
pub(crate) fn address(text: &str) -> Result<Url> {
    let wrong = |url: &str, why: &str| {
        let url = url.chars().take(200).collect();
        Error::Url { url, why: why.to_owned() }
    };
    let mut base = Url::parse(text).map_err(|error| {
        // What cannot be read might hold a password all the same.
        let shown = if text.contains('@') { "…" } else { text };
        wrong(shown, &error.to_string())
    })?;
    if !base.username().is_empty() || base.password().is_some() {
        let host = base.host().map(|host: Host<&str>| host.to_string()).unwrap_or_default();
        let why = "it names a user, which is not how access is given here; use a token";
        return Err(wrong(&format!("{}://…@{host}", base.scheme()), why));
    }
    if !matches!(base.scheme(), "http" | "https") {
        return Err(wrong(text, "only http and https are spoken"));
    }
    if base.query().is_some() || base.fragment().is_some() {
        return Err(wrong(text, "it must end with its path, without ? and #"));
    }
    if !base.path().ends_with('/') {
        base.set_path(&format!("{}/", base.path()));
    }
    Ok(base)
}

/// A token. It never shows.
#[derive(Clone)]
struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl Secret {
    fn authorization(&self) -> Result<HeaderValue> {
        let wrong = |why: &str| Error::Option { what: "the token", why: why.to_owned() };
        let token = self.0.trim();
        if token.is_empty() {
            return Err(wrong("it is empty"));
        }
        // What RFC 6750 takes for a token is narrower, but only this can break a header.
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(wrong("only printable ASCII characters without spaces can be sent"));
        }
        let mut value = HeaderValue::try_from(format!("Bearer {token}"))
            .map_err(|_| wrong("it cannot be sent in a header"))?;
        value.set_sensitive(true);
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked_before_anything_is_sent() {
        for good in ["http://127.0.0.1:1/base", "http://h", "http://[::1]:2/"] {
            assert!(address(good).unwrap().path().ends_with('/'), "{good}");
        }
        let secret = "hunter2";
        for bad in [
            "",
            "127.0.0.1:80",
            "file:///etc/passwd",
            "http://h?x=1",
            "http://h#x",
            "http://me:hunter2@h",
            "https://me:hunter2@",
        ] {
            let error = address(bad).unwrap_err();
            assert!(matches!(error, Error::Url { .. }), "{bad}");
            assert!(!format!("{error} {error:?}").contains(secret), "{error}");
        }
    }

    #[test]
    fn tokens_are_checked_and_never_show() {
        let with = |token: &str| Client::builder("http://127.0.0.1:1").token(token);
        assert!(with(" rsg_hunter2\n").build().is_ok());
        for bad in ["", " ", "hunter2 x", "hunter2\r\nx: y", "hünter2"] {
            let error = with(bad).build().unwrap_err();
            assert!(matches!(error, Error::Option { what: "the token", .. }), "{bad:?}");
            assert!(!format!("{error} {error:?}").contains("nter2"), "{error}");
        }
        let shown = format!("{:?} {:?}", with("hunter2"), with("hunter2").build().unwrap());
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn certificates_are_checked_when_the_client_is_made() {
        let new = || Client::builder("https://127.0.0.1:1");
        let what = |builder: ClientBuilder| match builder.build() {
            Err(Error::Option { what, .. }) => what,
            other => panic!("{other:?}"),
        };
        assert_eq!(what(new().ca("no certificate")), "the CA certificates");
        let broken = "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n";
        assert_eq!(what(new().ca(broken)), "the CA certificates");
    }
}
