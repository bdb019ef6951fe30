//! Where the cluster is, and who we are there.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use rdkafka::config::ClientConfig;
use resurgam_model::plan::{Bus, Kafka};

/// Where a Kafka cluster is, and how to use it. Debug output shows no password.
#[derive(Clone, PartialEq, Eq)]
pub struct KafkaSettings {
    /// Some of its brokers, each `host:port`; they name the others.
    pub bootstrap: Vec<String>,
    /// The topic.
    pub topic: String,
    /// The group of consumers that share the topic.
    pub group: String,
    /// What has not answered within this time has failed.
    pub timeout: Duration,
    /// Whether to speak TLS.
    pub tls: bool,
    /// Certificates (PEM) of those who may vouch for the brokers, instead of the system's.
    pub ca: Option<PathBuf>,
    /// Name and password, and how they are shown: `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`.
    pub credentials: Option<KafkaCredentials>,
}

/// Who we are to a Kafka cluster.
#[derive(Clone, PartialEq, Eq)]
pub struct KafkaCredentials {
    /// The name.
    pub username: String,
    /// The password.
    pub password: String,
    /// The mechanism of SASL.
    pub mechanism: String,
}

impl fmt::Debug for KafkaCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaCredentials")
            .field("username", &self.username)
            .field("mechanism", &self.mechanism)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for KafkaSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaSettings")
            .field("bootstrap", &self.bootstrap)
            .field("topic", &self.topic)
            .field("group", &self.group)
            .field("timeout", &self.timeout)
            .field("tls", &self.tls)
            .field("ca", &self.ca)
            .field("credentials", &self.credentials)
            .finish()
    }
}

impl KafkaSettings {
    /// The cluster of a plan.
    #[must_use]
    pub fn of(plan: &Bus) -> Self {
        let Kafka { bootstrap, topic, tls, ca, username, password, mechanism, .. } =
            plan.kafka.clone();
        let credentials = username.zip(password).map(|(username, password)| KafkaCredentials {
            username,
            password,
            mechanism,
        });
        let group = format!("{topic}-relay");
        Self { bootstrap, group, topic, timeout: plan.timeout.0, tls, ca, credentials }
    }

    pub(super) fn secure(&self, config: &mut ClientConfig) {
        let protocol = match (&self.credentials, self.tls) {
            (None, false) => "plaintext",
            (None, true) => "ssl",
            (Some(_), false) => "sasl_plaintext",
            (Some(_), true) => "sasl_ssl",
        };
        config.set("security.protocol", protocol);
        if let Some(ca) = self.ca.as_ref().filter(|_| self.tls) {
            config.set("ssl.ca.location", ca.display().to_string());
        }
        if let Some(credentials) = &self.credentials {
            config
                .set("sasl.mechanism", &credentials.mechanism)
                .set("sasl.username", &credentials.username)
                .set("sasl.password", &credentials.password);
        }
    }
}
