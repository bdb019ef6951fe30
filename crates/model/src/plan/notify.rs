//! Who is told of incidents, and how.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{ComponentName, Duration, Severity};

/// A way to tell people, or another program, of incidents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Notify {
    /// Its name on the command line.
    pub name: ComponentName,
    /// What is spoken.
    pub kind: NotifyKind,
    /// Where to. An address that is itself a secret, as Slack's is, does not belong here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The file with the address, in its first line. Relative paths start at the plan file's folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_file: Option<PathBuf>,
    /// The environment variable with the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_env: Option<String>,
    /// The file with the secret, in its first line: PagerDuty's routing key, the token of a webhook or of
    /// Alertmanager, the password for the mail server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_file: Option<PathBuf>,
    /// The environment variable with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_env: Option<String>,
    /// The sender of mails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The receivers of mails.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<String>,
    /// The user for the mail server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Incidents at least as grave as this.
    #[serde(default = "all")]
    pub severity: Severity,
    /// Those that this team is needed for.
    #[serde(default)]
    pub team: Team,
    /// Only what has lasted for so long: whoever comes next is told then.
    #[serde(default = "at_once", skip_serializing_if = "is_zero")]
    pub after: Duration,
}

fn all() -> Severity {
    Severity::P3
}

fn at_once() -> Duration {
    Duration::from_secs(0)
}

fn is_zero(duration: &Duration) -> bool {
    *duration == at_once()
}

/// What a channel speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NotifyKind {
    /// A JSON document, by POST.
    Webhook,
    /// Slack's incoming webhooks, and what is compatible.
    Slack,
    /// Alertmanager's API, version 2.
    Alertmanager,
    /// PagerDuty's Events API, version 2.
    Pagerduty,
    /// Mail, over SMTP.
    Email,
}

/// A team.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Team {
    /// The engineer on call, who is needed for everything.
    #[default]
    OnCall,
    /// The database team.
    Database,
    /// The infrastructure team.
    Infrastructure,
}

impl Notify {
    /// What cannot be used: the key, and what is wrong with it.
    pub(super) fn check(&self) -> Result<(), (String, String)> {
        let no = |key: &str, problem: &str| {
            Err((format!("notify.{}{key}", self.name), problem.to_owned()))
        };
        let addresses = usize::from(self.url.is_some())
            + usize::from(self.url_file.is_some())
            + usize::from(self.url_env.is_some());
        let secrets =
            usize::from(self.secret_file.is_some()) + usize::from(self.secret_env.is_some());
        if secrets > 1 {
            return no("", "needs at most one of secret_file and secret_env");
        }
        let mail = self.kind == NotifyKind::Email;
        match self.kind {
            NotifyKind::Pagerduty if secrets == 0 => {
                return no("", "needs secret_file or secret_env with the routing key");
            }
            NotifyKind::Pagerduty if addresses > 1 => {
                return no("", "needs at most one of url, url_file and url_env");
            }
            NotifyKind::Slack if self.url.is_some() => {
                return no(
                    ".url",
                    "is a secret, as whoever has it may write; use url_file or url_env",
                );
            }
            NotifyKind::Slack
            | NotifyKind::Webhook
            | NotifyKind::Alertmanager
            | NotifyKind::Email
                if addresses != 1 =>
            {
                return no("", "needs exactly one of url, url_file and url_env");
            }
            _ => {}
        }
        if mail && (self.from.is_none() || self.to.is_empty()) {
            return no("", "needs from and to");
        }
        if mail && self.user.is_some() != (secrets == 1) {
            return no("", "needs both user and one of secret_file and secret_env, or neither");
        }
        if !mail && (self.from.is_some() || !self.to.is_empty() || self.user.is_some()) {
            return no("", "has from, to or user, which are only for mail");
        }
        if let Some(url) = &self.url {
            let schemes: &[&str] =
                if mail { &["smtp://", "smtps://"] } else { &["https://", "http://"] };
            if !schemes.iter().any(|scheme| url.starts_with(scheme)) {
                return no(".url", &format!("must begin with {}", schemes.join(" or ")));
            }
            if url.contains('@') {
                return no(".url", "must not hold a user or a password");
            }
        }
        if self.after > Duration::from_secs(86_400) {
            return no(".after", "must be at most 24h");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::EffectivePlan;

    fn problem(text: &str) -> Option<String> {
        let text = format!("[[notify]]\nname = 'n'\n{text}");
        EffectivePlan::resolve(Some(&text), |_| None).err().map(|error| error.to_string())
    }

    #[test]
    fn what_is_missing_or_does_not_fit_is_said() {
        for (text, word) in [
            ("kind = 'webhook'", "exactly one of url"),
            ("kind = 'webhook'\nurl = 'ftp://x'", "must begin with https://"),
            ("kind = 'webhook'\nurl = 'https://me:secret@x'", "must not hold"),
            ("kind = 'webhook'\nurl = 'https://x'\nurl_env = 'U'", "exactly one of url"),
            ("kind = 'webhook'\nurl = 'https://x'\nto = ['a@b']", "only for mail"),
            ("kind = 'slack'\nurl = 'https://hooks/secret'", "is a secret"),
            ("kind = 'pagerduty'", "routing key"),
            ("kind = 'email'\nurl = 'smtps://x'", "needs from and to"),
            ("kind = 'email'\nurl = 'https://x'\nfrom = 'a@b'\nto = ['a@b']", "smtp://"),
            (
                "kind = 'email'\nurl = 'smtps://x'\nfrom = 'a@b'\nto = ['a@b']\nuser = 'u'",
                "needs both user",
            ),
            ("kind = 'webhook'\nurl = 'https://x'\nafter = '25h'", "at most 24h"),
            ("kind = 'pigeon'\nurl = 'https://x'", "pigeon"),
            ("kind = 'webhook'\nurl = 'https://x'\nfoo = 1", "foo"),
        ] {
            let found = problem(text).unwrap_or_default();
            assert!(found.contains(word), "{text}: {found}");
            assert!(!found.contains("me:secret"), "{found}");
        }
        assert_eq!(problem("kind = 'slack'\nurl_env = 'URL'"), None);
        assert_eq!(problem("kind = 'pagerduty'\nsecret_env = 'KEY'"), None);
        let mail = "kind = 'email'\nurl = 'smtp://h'\nfrom = 'a@b'\nto = ['a@b']";
        assert_eq!(problem(mail), None);
        let twice = format!("{mail}\n[[notify]]\nname = 'n'\n{mail}");
        assert!(problem(&twice).unwrap().contains("has n twice"));
    }
}
