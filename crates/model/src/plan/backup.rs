//! What the plan says of backups.

use std::collections::BTreeSet;
use std::path::PathBuf;

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::bucket::{BucketUrl, Service};
use crate::schedule::Cron;
use crate::{ComponentName, Duration};

/// Where backups go, when they are taken, and how long they are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Backup {
    /// Whether the controller takes backups by itself.
    pub scheduled: bool,
    /// When, as a cron expression.
    pub schedule: Cron,
    /// By the clocks of this time zone.
    pub timezone: String,
    /// A scheduled backup begins at a random moment within this time, so that many deployments do
    /// not begin at once.
    pub jitter: Duration,
    /// Each scheduled backup is restored into a scratch instance at once, and counts as verified
    /// only if that worked.
    pub verify: bool,
    /// Whether the log of an owned PostgreSQL goes to the vaults as it is written, so that a loss
    /// is bounded by seconds and any moment can be restored.
    pub continuous: bool,
    /// At most so long after it was written.
    pub ship_every: Duration,
    /// How long.
    pub retention: Retention,
    /// For so many past days the log is kept, so that any moment in them can be restored.
    pub log_days: u32,
    /// Where to; none for no backups.
    pub vaults: Vec<Vault>,
}

impl Default for Backup {
    fn default() -> Self {
        Self {
            scheduled: true,
            schedule: Cron::every_six_hours(),
            timezone: "UTC".to_owned(),
            jitter: Duration::from_secs(30),
            verify: true,
            continuous: true,
            ship_every: Duration::from_secs(2),
            retention: Retention::default(),
            log_days: 7,
            vaults: Vec::new(),
        }
    }
}

/// Grandfather, father, son: of each of so many past periods the newest backup is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    /// Days.
    pub daily: u32,
    /// Weeks, from Monday on.
    pub weekly: u32,
    /// Months.
    pub monthly: u32,
}

impl Default for Retention {
    /// Those of the written procedure.
    fn default() -> Self {
        Self { daily: 7, weekly: 4, monthly: 12 }
    }
}

/// A place where backups are kept, encrypted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vault {
    /// Its name on the command line.
    pub name: ComponentName,
    /// The folder. Relative paths start at the plan file's folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// The part of a bucket, instead of a folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<BucketUrl>,
    /// Where the object store is, if not where its protocol's maker has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The region of an S3 bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The storage account of an Azure container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// The file with the credentials for the object store, where the environment has none, in the form of
    /// `~/.aws/credentials`. Relative paths start at the plan file's folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_file: Option<PathBuf>,
    /// Which section of that file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// Without other credentials the machine itself is asked for those that its cloud gave it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub instance_credentials: bool,
    /// The file with the password, in its first line. Relative paths start at the plan file's folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// The environment variable with the password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_env: Option<String>,
    /// The program that prints the password, and its arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub password_command: Vec<String>,
}

impl Backup {
    /// What cannot be used: the key, and what is wrong with it.
    pub(super) fn check(&self) -> Result<(), (String, String)> {
        let no = |key: &str, problem: &str| Err((format!("backup.{key}"), problem.to_owned()));
        if TimeZone::get(&self.timezone).is_err() {
            return no("timezone", "is no time zone that is known here, such as \"Europe/Zurich\"");
        }
        if self.jitter > Duration::from_secs(3600) {
            return no("jitter", "must be at most 1h");
        }
        if self.ship_every < Duration::from_millis(100)
            || self.ship_every > Duration::from_secs(3600)
        {
            return no("ship_every", "must be from 100ms to 1h");
        }
        let Retention { daily, weekly, monthly } = self.retention;
        if daily == 0 && weekly == 0 && monthly == 0 {
            return no(
                "retention",
                "would keep nothing; at least one of daily, weekly and monthly must be 1 or more",
            );
        }
        if [daily, weekly, monthly].iter().any(|count| *count > 10_000) {
            return no("retention", "must be at most 10000 of each");
        }
        if !(1..=10_000).contains(&self.log_days) {
            return no("log_days", "must be from 1 to 10000");
        }
        let mut names = BTreeSet::new();
        for vault in &self.vaults {
            if !names.insert(&vault.name) {
                return no("vaults", &format!("has {} twice", vault.name));
            }
            vault.check_place().map_err(|(key, problem)| {
                (format!("backup.vaults.{}{key}", vault.name), problem)
            })?;
            let ways = usize::from(vault.password_file.is_some())
                + usize::from(vault.password_env.is_some())
                + usize::from(!vault.password_command.is_empty());
            if ways != 1 {
                let key = format!("vaults.{}", vault.name);
                return no(
                    &key,
                    "needs exactly one of password_file, password_env and password_command",
                );
            }
        }
        Ok(())
    }
}

impl Vault {
    /// What cannot be used of where it lies: the end of the key, and what is wrong with it.
    fn check_place(&self) -> Result<(), (String, String)> {
        let no = |key: &str, problem: &str| Err((key.to_owned(), problem.to_owned()));
        let url = match (&self.path, &self.url) {
            (Some(_), None) => None,
            (None, Some(url)) => Some(url),
            _ => return no("", "needs exactly one of path and url"),
        };
        let service = url.map(|url| url.service);
        for (key, given, of) in [
            ("endpoint", self.endpoint.is_some(), None),
            ("region", self.region.is_some(), Some(Service::S3)),
            ("account", self.account.is_some(), Some(Service::Azure)),
            ("credentials_file", self.credentials_file.is_some(), None),
            ("profile", self.profile.is_some(), None),
            ("instance_credentials", self.instance_credentials, None),
        ] {
            let fits = service.is_some() && (of.is_none() || of == service);
            if given && !fits {
                let of = match of {
                    None => "an object store: give a url instead of a path",
                    Some(Service::S3) => "a url that begins with s3://",
                    Some(Service::Azure) => "a url that begins with az://",
                };
                return no(&format!(".{key}"), &format!("is only for {of}"));
            }
        }
        if service == Some(Service::Azure)
            && self.profile.is_some()
            && self.credentials_file.is_none()
        {
            return no(".profile", "needs credentials_file: no file is usual for Azure");
        }
        if let Some(endpoint) = &self.endpoint
            && !["http://", "https://"].iter().any(|scheme| endpoint.starts_with(scheme))
        {
            return no(".endpoint", "must begin with https:// or http://");
        }
        Ok(())
    }
}
