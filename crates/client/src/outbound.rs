//! Requests to servers that are not ours.

use std::time::Duration;

use http::{HeaderValue, Method};
use url::Url;

use crate::error::Error;
use crate::http::Http;
use crate::tls;

/// Posts JSON to one address. Nothing that it says holds more of the address than the server: the rest
/// may be a secret.
#[derive(Clone, Debug)]
pub struct Outbound {
    http: Http,
    url: Url,
}

impl Outbound {
    /// To this address, with a bearer token if there is one.
    ///
    /// # Errors
    /// When the address is none, or the certificates of this system cannot be read.
    pub fn new(url: &str, token: Option<&str>) -> Result<Self, Error> {
        let wrong = |why: &str| Error::Url { url: "(not shown)".to_owned(), why: why.to_owned() };
        let url: Url = url.parse().map_err(|_| wrong("it cannot be read"))?;
        if !["http", "https"].contains(&url.scheme()) || url.host().is_none() {
            return Err(wrong("it does not begin with https:// or http:// and a host"));
        }
        let authorization = token.map(|token| {
            let value = HeaderValue::from_str(&format!("Bearer {token}"));
            value
                .map(|mut value| {
                    value.set_sensitive(true);
                    value
                })
                .map_err(|_| Error::Option {
                    what: "the token",
                    why: "it holds characters that a header cannot have".to_owned(),
                })
        });
        let tls = tls::config(url.scheme() == "https", None, None)?;
        Ok(Self { http: Http::new(tls, authorization.transpose()?), url })
    }

    /// Posts a document. Answers status and body, whatever they are.
    ///
    /// # Errors
    /// When there is no answer within `timeout`.
    pub async fn post(&self, json: Vec<u8>, timeout: Duration) -> Result<(u16, String), Error> {
        let (status, body) =
            self.http.exchange(Method::POST, &self.url, Some(json), timeout).await?;
        Ok((status, String::from_utf8_lossy(&body).chars().take(500).collect()))
    }
}
