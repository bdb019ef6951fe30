//! Who may come in: the options of `resurgam serve` about it.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use resurgam_model::Duration;
use resurgam_model::access::AccessMode;
use resurgam_platform::{AccessSettings, Rate, Secret, ServeSettings, TlsSettings};

use crate::failure::Failure;

/// The token that the parts of the platform show each other. Not an option: what is on a command
/// line can be read by everybody on the machine.
pub(crate) const INTERNAL: &str = "RESURGAM_INTERNAL_TOKEN";

/// What one caller may do unless it is said otherwise, where other machines can reach the server.
const RATE: Rate = Rate { per_second: 1000, burst: 2000 };

/// Who may come in, and how.
///
/// Parts of the platform in several processes know each other by the same token in
/// RESURGAM_INTERNAL_TOKEN.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Access")]
pub(crate) struct AccessArgs {
    /// Whether callers must show a token: open or tokens. Open only on loopback addresses.
    #[arg(long, default_value_t)]
    access: AccessMode,
    /// The server's certificate (PEM), and those of its issuers after it.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The private key (PEM) of that certificate. Both are read again when they change.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Who vouches for clients (PEM): each must show a certificate then. One with the alternative
    /// name URI:agent:NAME stands for that agent, if no token is shown.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
    /// Listen without TLS although other machines reach the address: behind a proxy that speaks
    /// TLS.
    #[arg(long)]
    insecure_plaintext: bool,
    /// A loopback address to listen on without TLS as well, for other parts on this machine.
    #[arg(long, value_name = "ADDRESS")]
    internal_listen: Option<SocketAddr>,
    /// Who vouches for the registry (PEM), instead of the system's authorities.
    #[arg(long, value_name = "FILE", requires = "registry")]
    registry_cacert: Option<PathBuf>,
    /// Requests per second of one caller; 0 for no limit. On loopback addresses there is none by
    /// default, elsewhere 1000.
    #[arg(long, value_name = "N")]
    rate_limit: Option<u32>,
    /// Requests of one caller at once after a rest; twice the rate by default.
    #[arg(long, value_name = "N", requires = "rate_limit")]
    rate_burst: Option<u32>,
    /// Connections at once.
    #[arg(long, value_name = "N", default_value_t = 16_384)]
    max_connections: u32,
    /// How long the audit log remembers.
    #[arg(long, value_name = "TIME", default_value = "2160h")]
    audit_keep: Duration,
}

impl AccessArgs {
    /// Puts the options where they belong.
    ///
    /// # Errors
    /// Wrong usage, when a file or the internal token cannot be used.
    pub(crate) fn apply(self, settings: &mut ServeSettings) -> Result<(), Failure> {
        settings.access = AccessSettings {
            mode: self.access,
            internal: internal()?,
            rate: rate(self.rate_limit, self.rate_burst, settings.listen.ip().is_loopback())?,
            audit_keep: self.audit_keep,
        };
        settings.tls = self.tls_cert.zip(self.tls_key).map(|(cert, key)| TlsSettings {
            cert,
            key,
            client_ca: self.tls_client_ca,
        });
        settings.insecure_plaintext = self.insecure_plaintext;
        settings.internal_listen = self.internal_listen;
        if let Some(file) = self.registry_cacert {
            let pem = fs::read(&file).map_err(|error| {
                let file = file.display();
                Failure::usage(format!("--registry-cacert {file} cannot be read: {error}"))
            })?;
            settings.registry_ca = Some(pem);
        }
        if self.max_connections == 0 {
            return Err(Failure::usage("--max-connections must be at least 1"));
        }
        settings.connections.max = usize::try_from(self.max_connections)?;
        Ok(())
    }
}

fn rate(limit: Option<u32>, burst: Option<u32>, loopback: bool) -> Result<Option<Rate>, Failure> {
    if burst == Some(0) {
        return Err(Failure::usage("--rate-burst must be at least 1"));
    }
    Ok(match limit {
        Some(0) => None,
        Some(per_second) => {
            let burst = burst.unwrap_or_else(|| per_second.saturating_mul(2));
            Some(Rate { per_second, burst })
        }
        None if loopback => None,
        None => Some(RATE),
    })
}

/// The token of the platform itself, if one was given.
fn internal() -> Result<Option<Secret>, Failure> {
    match std::env::var(INTERNAL) {
        Ok(text) if !text.is_empty() => text
            .parse()
            .map(Some)
            .map_err(|error| Failure::usage(format!("{INTERNAL} cannot be used: {error}"))),
        _ => Ok(None),
    }
}
