//! What the library says beside its answers, and what its errors mean.

use std::sync::{Arc, Mutex, PoisonError};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use super::NAME;
use crate::broker::BrokerError;

/// Shared by all clients of a cluster. What they log goes into our log at a level for those who
/// look for it: what matters is in the errors.
#[derive(Clone, Debug, Default)]
pub(super) struct Context {
    /// Why nobody lets us in, if that was said. The library says it here alone: whoever asked for
    /// something only hears that there was no answer.
    refused: Arc<Mutex<Option<String>>>,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        tracing::debug!(?level, facility, text, "librdkafka");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
        if error.rdkafka_error_code() == Some(Code::Authentication) {
            *self.refused() = Some(reason.to_owned());
        }
    }
}

impl rdkafka::consumer::ConsumerContext for Context {}

impl Context {
    fn refused(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// We were let in.
    pub(super) fn let_in(&self) {
        self.refused().take();
    }

    /// What is wrong with the cluster, or the way to it.
    pub(super) fn trouble(&self, error: &KafkaError) -> BrokerError {
        let reason = error.to_string();
        match error.rdkafka_error_code() {
            Some(
                Code::Authentication
                | Code::SaslAuthenticationFailed
                | Code::ClusterAuthorizationFailed,
            ) => BrokerError::Credentials { broker: NAME, reason },
            Some(Code::TopicAuthorizationFailed | Code::GroupAuthorizationFailed) => {
                let reason = format!(
                    "{reason}; allow this user to read, write, describe and create the topic, and \
                     to read with its group"
                );
                BrokerError::Setup { broker: NAME, reason }
            }
            Some(Code::UnknownTopic | Code::UnknownTopicOrPartition) => {
                let reason =
                    format!("{reason}; the topic is not there, or this user may not see it");
                BrokerError::Setup { broker: NAME, reason }
            }
            Some(
                Code::NotEnoughReplicas
                | Code::NotEnoughReplicasAfterAppend
                | Code::KafkaStorageError,
            ) => BrokerError::Stopped { broker: NAME, reason },
            _ => match self.refused().clone() {
                Some(reason) => BrokerError::Credentials { broker: NAME, reason },
                None => BrokerError::Away { broker: NAME, reason },
            },
        }
    }
}

/// A client that could not even be made.
pub(super) fn misfit(error: &KafkaError) -> BrokerError {
    BrokerError::Setup { broker: NAME, reason: format!("the settings cannot be used: {error}") }
}
