//! How a command reaches the API.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use resurgam_client::{Client, ClientBuilder};

use crate::failure::Failure;

/// Where a token may be, beside a file. Not an option: what is on a command line can be read by
/// everybody on the machine.
pub(crate) const TOKEN: &str = "RESURGAM_TOKEN";

/// The options of every command that speaks to the API. Flatten it into the command's own
/// arguments, and call [`ApiArgs::client`].
///
/// A token is taken from the file, else from the environment variable RESURGAM_TOKEN.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "The way to the API")]
pub(crate) struct ApiArgs {
    /// Where the API is.
    #[arg(
        long = "api",
        value_name = "URL",
        env = "RESURGAM_API",
        default_value = "http://127.0.0.1:7070"
    )]
    pub(crate) url: String,
    /// A file with the token to show; else RESURGAM_TOKEN, if the server wants one.
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Certificates (PEM) of those who may vouch for the server, instead of the system's.
    #[arg(long, value_name = "FILE")]
    pub(crate) cacert: Option<PathBuf>,
    /// A certificate (PEM) to show to a server that asks for one.
    #[arg(long, value_name = "FILE", requires = "client_key")]
    pub(crate) client_cert: Option<PathBuf>,
    /// The private key (PEM) of that certificate.
    #[arg(long, value_name = "FILE", requires = "client_cert")]
    pub(crate) client_key: Option<PathBuf>,
}

impl ApiArgs {
    /// The way that the controller of a deployment names, with a token if one is wanted.
    pub(crate) fn plain(url: String, token_file: Option<PathBuf>) -> Self {
        Self { url, token_file, cacert: None, client_cert: None, client_key: None }
    }

    /// A client of the API. Nothing is sent yet.
    ///
    /// # Errors
    /// Wrong usage, when the address cannot be called or a file cannot be used.
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        self.builder()?.build().map_err(|error| {
            Failure::usage(format!(
                "{error}; see --api, --token-file, --cacert, --client-cert and --client-key"
            ))
        })
    }

    /// What a client of the API is made of.
    ///
    /// # Errors
    /// Wrong usage, when a file cannot be read.
    fn builder(&self) -> Result<ClientBuilder, Failure> {
        let mut builder = Client::builder(&self.url);
        if let Some(token) = self.token()? {
            builder = builder.token(token);
        }
        if let Some(file) = &self.cacert {
            builder = builder.ca(read("--cacert", file)?);
        }
        if let (Some(cert), Some(key)) = (&self.client_cert, &self.client_key) {
            let mut pem = read("--client-cert", cert)?;
            pem.push(b'\n');
            pem.extend(read("--client-key", key)?);
            builder = builder.identity(pem);
        }
        Ok(builder)
    }

    fn token(&self) -> Result<Option<String>, Failure> {
        if let Some(file) = &self.token_file {
            let token = String::from_utf8(read("--token-file", file)?);
            let token = token.unwrap_or_default().trim().to_owned();
            if token.is_empty() {
                let file = file.display();
                return Err(Failure::usage(format!("--token-file {file} holds no token")));
            }
            return Ok(Some(token));
        }
        Ok(std::env::var(TOKEN).ok().filter(|token| !token.trim().is_empty()))
    }
}

fn read(option: &str, file: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(file).map_err(|error| {
        Failure::usage(format!("{option} {} cannot be read: {error}", file.display()))
    })
}
