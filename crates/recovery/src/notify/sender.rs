//! Brings messages to their receivers.

use std::path::Path;
use std::time::Duration;

use resurgam_client::Outbound;
use resurgam_model::plan::{Notify, NotifyKind};
use serde_json::Value;

use super::mail::Mail;
use super::message::Told;

/// How long a receiver may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Where PagerDuty takes events, unless the plan says otherwise.
const PAGERDUTY: &str = "https://events.pagerduty.com/v2/enqueue";

/// Why nobody was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The receiver does not take this message. To ask again does not help.
    Refused(String),
    /// Nobody answered, or not now.
    Unreachable(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::Refused(why) | Self::Unreachable(why)) = self;
        f.write_str(why)
    }
}

/// A channel that is ready to be used.
#[derive(Debug)]
pub struct Sender(Way);

#[derive(Debug)]
enum Way {
    Webhook(Outbound),
    Slack(Outbound),
    Alertmanager(Outbound),
    Pagerduty(Outbound, Secret),
    Email(Box<Mail>),
}

/// Not shown.
pub(super) struct Secret(pub(super) String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl Sender {
    /// As the plan says. `base` is the plan file's folder.
    ///
    /// # Errors
    /// What is missing or wrong. It holds neither address nor secret.
    pub fn new(notify: &Notify, base: &Path) -> Result<Self, String> {
        let url = line("the address", &notify.url_file, &notify.url_env, base)?;
        let url = url.or_else(|| notify.url.clone());
        let secret = line("the secret", &notify.secret_file, &notify.secret_env, base)?;
        let to = |url: &str, token: Option<&str>| {
            Outbound::new(url, token).map_err(|error| error.to_string())
        };
        let needed = || url.clone().ok_or_else(|| "it has no address".to_owned());
        Ok(Self(match notify.kind {
            NotifyKind::Webhook => Way::Webhook(to(&needed()?, secret.as_deref())?),
            NotifyKind::Slack => Way::Slack(to(&needed()?, None)?),
            NotifyKind::Alertmanager => {
                let url = format!("{}/api/v2/alerts", needed()?.trim_end_matches('/'));
                Way::Alertmanager(to(&url, secret.as_deref())?)
            }
            NotifyKind::Pagerduty => {
                let key = secret.ok_or_else(|| "it has no routing key".to_owned())?;
                Way::Pagerduty(to(url.as_deref().unwrap_or(PAGERDUTY), None)?, Secret(key))
            }
            NotifyKind::Email => Way::Email(Box::new(Mail::new(notify, &needed()?, secret)?)),
        }))
    }

    /// Tells.
    ///
    /// # Errors
    /// Why nobody is known to have heard it.
    pub async fn send(&self, told: &Told) -> Result<(), Failure> {
        match &self.0 {
            Way::Webhook(to) => post(to, &told.webhook()).await,
            Way::Slack(to) => post(to, &told.slack()).await,
            Way::Alertmanager(to) => post(to, &told.alerts()).await,
            Way::Pagerduty(to, key) => {
                for event in told.pager_events(&key.0) {
                    post(to, &event).await?;
                }
                Ok(())
            }
            Way::Email(mail) => mail.send(told, PATIENCE).await,
        }
    }
}

async fn post(to: &Outbound, document: &Value) -> Result<(), Failure> {
    let sent = to.post(document.to_string().into_bytes(), PATIENCE).await;
    let (status, body) = sent.map_err(|error| Failure::Unreachable(error.to_string()))?;
    let says = || format!("it answers {status}: {}", body.lines().next().unwrap_or_default());
    match status {
        200..=299 => Ok(()),
        // It does not take this document.
        400 | 413 | 422 => Err(Failure::Refused(says())),
        // Its own trouble, or an address or a secret that somebody will mend: nothing is lost for that.
        _ => Err(Failure::Unreachable(says())),
    }
}

/// The first line of a file, or a variable.
fn line(
    what: &str,
    file: &Option<std::path::PathBuf>,
    env: &Option<String>,
    base: &Path,
) -> Result<Option<String>, String> {
    let text = match (file, env) {
        (Some(file), _) => {
            let file = base.join(file);
            let read = std::fs::read_to_string(&file);
            read.map_err(|error| {
                format!("{what} is missing: {} cannot be read: {error}", file.display())
            })?
        }
        (None, Some(name)) => std::env::var(name).map_err(|_| {
            format!("{what} is missing: the environment variable {name} is not set")
        })?,
        (None, None) => return Ok(None),
    };
    let line = text.lines().next().unwrap_or_default().trim();
    if line.is_empty() {
        return Err(format!("{what} is missing: it is empty"));
    }
    Ok(Some(line.to_owned()))
}
