//! Messages as mails.

use std::time::Duration;

use lettre::message::header::ContentType;
use lettre::message::{Mailbox, MessageBuilder};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Tls, TlsParameters};
use lettre::{AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use resurgam_model::plan::Notify;
use uuid::Uuid;

use super::message::Told;
use super::sender::Failure;

/// A mail server, and who writes to whom.
#[derive(Debug)]
pub(super) struct Mail {
    server: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
    to: Vec<Mailbox>,
}

impl Mail {
    /// To the server at this address: `smtps://` speaks TLS from the beginning, `smtp://` from then on when
    /// the server has said that it can, which it must unless it is on this machine.
    pub(super) fn new(notify: &Notify, url: &str, secret: Option<String>) -> Result<Self, String> {
        let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
        let rest = rest.trim_end_matches('/');
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !rest.ends_with(']') => {
                let port: u16 = port.parse().map_err(|_| "the port of the mail server is none")?;
                (host, Some(port))
            }
            _ => (rest, None),
        };
        let name = host.trim_matches(['[', ']']);
        let here = name == "localhost"
            || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
        let tls = || {
            TlsParameters::new(name.to_owned())
                .map_err(|error| format!("TLS cannot be spoken with the mail server: {error}"))
        };
        let (tls, usual) = match scheme {
            "smtps" => (Tls::Wrapper(tls()?), 465),
            "smtp" if here => (Tls::None, 25),
            "smtp" => (Tls::Required(tls()?), 587),
            _ => {
                return Err(
                    "the address of the mail server must begin with smtp:// or smtps://".to_owned()
                );
            }
        };
        let server = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(name)
            .port(port.unwrap_or(usual))
            .tls(tls);
        let server = match (&notify.user, secret) {
            (Some(user), Some(secret)) => {
                server.credentials(Credentials::new(user.clone(), secret))
            }
            _ => server,
        };
        let address = |text: &str| {
            text.parse::<Mailbox>().map_err(|error| format!("{text:?} is no mail address: {error}"))
        };
        let from = address(notify.from.as_deref().unwrap_or_default())?;
        let to = notify.to.iter().map(|to| address(to)).collect::<Result<_, _>>()?;
        Ok(Self { server: server.build(), from, to })
    }

    fn write(&self, told: &Told) -> Result<Message, Failure> {
        let start: MessageBuilder = Message::builder()
            .from(self.from.clone())
            .message_id(Some(format!("<{}@resurgam>", Uuid::now_v7())))
            .subject(told.subject.clone())
            .header(ContentType::TEXT_PLAIN);
        let to = self.to.iter().cloned();
        to.fold(start, MessageBuilder::to)
            .body(told.text.clone())
            .map_err(|error| Failure::Refused(format!("the mail cannot be written: {error}")))
    }

    pub(super) async fn send(&self, told: &Told, patience: Duration) -> Result<(), Failure> {
        let sending = self.server.send(self.write(told)?);
        match tokio::time::timeout(patience, sending).await {
            Ok(Ok(_)) => Ok(()),
            // What a mail server refuses, it refuses because of sender, receivers or password: of all
            // mails alike, until somebody mends it.
            Ok(Err(error)) => Err(Failure::Unreachable(format!("the mail was not sent: {error}"))),
            Err(_) => Err(Failure::Unreachable(format!(
                "the mail server took longer than {} s",
                patience.as_secs()
            ))),
        }
    }
}
