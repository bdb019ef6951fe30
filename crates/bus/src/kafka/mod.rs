//! Apache Kafka as a carrier of messages.

mod arrivals;
mod care;
mod context;
mod settings;

pub use settings::{KafkaCredentials, KafkaSettings};

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _, PurgeConfig};
use resurgam_model::MessageId;

use self::context::{Context, misfit};
use crate::broker::{Arrivals, Broker, BrokerError, BrokerResult, Observation, Parcel};

const NAME: &str = "kafka";

/// The header with the id of a message.
const ID: &str = "id";

/// A cluster of brokers, and the topic on it.
pub struct Kafka {
    settings: KafkaSettings,
    /// Made when it is first needed, and made anew after a fault from which it cannot recover.
    producer: Mutex<Option<FutureProducer<Context>>>,
    care: care::Care,
    context: Context,
}

impl Kafka {
    /// A cluster with these settings. Nothing is connected yet.
    #[must_use]
    pub fn new(settings: KafkaSettings) -> Arc<Self> {
        let context = Context::default();
        let care = care::Care::new(&settings, &context);
        Arc::new(Self { settings, producer: Mutex::new(None), care, context })
    }

    fn producer(&self) -> BrokerResult<FutureProducer<Context>> {
        let mut kept = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
        let usable = kept.take().filter(|producer| producer.client().fatal_error().is_none());
        let producer = match usable {
            Some(producer) => producer,
            None => {
                let mut config = self.settings.client();
                let patience = self.settings.timeout.as_millis().to_string();
                config
                    .set("enable.idempotence", "true")
                    .set("acks", "all")
                    .set("linger.ms", "1")
                    .set("compression.type", "lz4")
                    .set("message.timeout.ms", &patience)
                    .set("message.max.bytes", MOST_BYTES);
                config.create_with_context(self.context.clone()).map_err(|error| misfit(&error))?
            }
        };
        *kept = Some(producer.clone());
        Ok(producer)
    }

    /// Why a parcel was not published.
    fn refused(&self, error: &KafkaError, parcel: &Parcel) -> BrokerError {
        match error.rdkafka_error_code() {
            Some(Code::MessageSizeTooLarge | Code::InvalidMessageSize) => {
                BrokerError::TooLarge { broker: NAME, id: parcel.id, size: parcel.content.len() }
            }
            Some(Code::InvalidRecord | Code::InvalidMessage) => {
                BrokerError::Refused { broker: NAME, id: parcel.id, reason: error.to_string() }
            }
            _ => self.context.trouble(error),
        }
    }
}

/// The producer lets everything through; what is too much the broker says itself.
const MOST_BYTES: &str = "1000000000";

#[async_trait]
impl Broker for Kafka {
    fn kind(&self) -> &'static str {
        NAME
    }

    async fn prepare(&self) -> BrokerResult<()> {
        self.care.prepare().await
    }

    async fn publish(&self, parcels: &[Parcel]) -> BrokerResult<()> {
        let producer = self.producer()?;
        let purge = PurgeOnDrop(&producer);
        let mut deliveries = Vec::with_capacity(parcels.len());
        for parcel in parcels {
            let id = parcel.id.to_string();
            let headers = OwnedHeaders::new().insert(Header { key: ID, value: Some(&id) });
            let record = FutureRecord::to(&self.settings.topic)
                .key(&parcel.key)
                .payload(&*parcel.content)
                .headers(headers);
            match producer.send_result(record) {
                Ok(delivery) => deliveries.push(delivery),
                Err((error, _)) => return Err(self.refused(&error, parcel)),
            }
        }
        // The producer gives up each of them within the time-out; the rest is for its own delays.
        let patience = self.settings.timeout + Duration::from_millis(500);
        let answers = tokio::time::timeout(patience, join_all(deliveries)).await.map_err(|_| {
            BrokerError::Away { broker: NAME, reason: format!("no answer within {patience:?}") }
        })?;
        // One that can never be published goes before an outage that hit others.
        let mut first = None;
        for (answer, parcel) in answers.into_iter().zip(parcels) {
            let error = match answer {
                Ok(Ok(_)) => continue,
                Ok(Err((error, _))) => self.refused(&error, parcel),
                Err(_) => BrokerError::Away { broker: NAME, reason: "it was cut off".to_owned() },
            };
            if !error.is_outage() {
                return Err(error);
            }
            first.get_or_insert(error);
        }
        match first {
            Some(error) => Err(error),
            None => {
                std::mem::forget(purge);
                self.context.let_in();
                Ok(())
            }
        }
    }

    async fn receive(&self) -> BrokerResult<Box<dyn Arrivals>> {
        Ok(Box::new(arrivals::KafkaArrivals::begin(&self.settings, &self.context)?))
    }

    async fn observe(&self) -> BrokerResult<Observation> {
        self.care.observe().await
    }
}

/// What is still queued when a publication fails or is given up is published again by the caller,
/// so it must not come out of the queue later, on its own.
struct PurgeOnDrop<'a>(&'a FutureProducer<Context>);

impl Drop for PurgeOnDrop<'_> {
    fn drop(&mut self) {
        self.0.purge(PurgeConfig::default().queue().inflight());
    }
}

fn id_of(text: &[u8]) -> Option<MessageId> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

impl KafkaSettings {
    /// What every client of the cluster has.
    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        let patience = self.timeout.as_millis().to_string();
        config
            .set("bootstrap.servers", self.bootstrap.join(","))
            .set("client.id", "resurgam")
            .set("socket.timeout.ms", &patience)
            .set(
                "socket.connection.setup.timeout.ms",
                self.timeout.as_millis().max(1000).to_string(),
            )
            .set("socket.keepalive.enable", "true")
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "500")
            .set("topic.metadata.refresh.interval.ms", "5000")
            .set("allow.auto.create.topics", "false");
        self.secure(&mut config);
        config.set_log_level(RDKafkaLogLevel::Notice);
        config
    }
}
