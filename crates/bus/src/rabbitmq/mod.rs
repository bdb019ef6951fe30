//! RabbitMQ as a carrier of messages.
//!
//! Messages lie in durable queues, as many as [`QUEUES`]; a key always goes into the same one, and
//! of several consumers of a queue one is active at a time, so that keys keep their order.
//!
//! In a cluster they are quorum queues. On a single node these gain nothing, and in RabbitMQ 3.10
//! one that was declared within seconds before the node was killed came back without a leader, and
//! answered nobody any more; so there they are classic ones.

mod arrivals;
mod care;
mod settings;

pub use settings::RabbitSettings;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::types::ShortString;
use lapin::uri::AMQPUri;
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ErrorKind};
use tokio::sync::Mutex;

use crate::broker::{Arrivals, Broker, BrokerError, BrokerResult, Observation, Parcel};

const NAME: &str = "rabbitmq";

/// So many queues share the keys, and with them the processes that consume.
pub const QUEUES: u64 = 8;

/// Seconds between signs of life on a connection; without two of them it counts as lost.
const HEARTBEAT: u16 = 5;

/// Persistent, in the words of the protocol.
const PERSISTENT: u8 = 2;

/// A node of RabbitMQ, or several of one cluster.
pub struct Rabbit {
    settings: Arc<RabbitSettings>,
    /// Made when it is first needed, and again after a fault.
    way: Mutex<Option<Way>>,
    care: care::Care,
}

/// A connection and the channel on it.
#[derive(Clone)]
struct Way {
    connection: Arc<Connection>,
    channel: Channel,
}

impl Way {
    async fn open(settings: &RabbitSettings) -> BrokerResult<Self> {
        let connection = connect(settings).await?;
        let channel = timely(settings.timeout, connection.create_channel()).await?;
        Ok(Self { connection: Arc::new(connection), channel })
    }

    fn is_usable(&self) -> bool {
        self.connection.status().connected() && self.channel.status().connected()
    }
}

impl Rabbit {
    /// RabbitMQ with these settings. Nothing is connected yet.
    #[must_use]
    pub fn new(settings: RabbitSettings) -> Arc<Self> {
        let settings = Arc::new(settings);
        let care = care::Care::new(Arc::clone(&settings));
        Arc::new(Self { settings, way: Mutex::new(None), care })
    }

    async fn publish_on(&self, way: &Way, parcels: &[Parcel]) -> BrokerResult<()> {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let mut confirms = Vec::with_capacity(parcels.len());
        for parcel in parcels {
            let properties = BasicProperties::default()
                .with_delivery_mode(PERSISTENT)
                .with_content_type("application/json".into())
                .with_message_id(parcel.id.to_string().into());
            let queue = queue_name(&self.settings.queue, queue_of(&parcel.key));
            let sent = way
                .channel
                .basic_publish("".into(), queue, options, &parcel.content, properties)
                .await;
            confirms.push(sent.map_err(|error| refused(&error, parcels))?);
        }
        for confirm in confirms {
            match confirm.await.map_err(|error| refused(&error, parcels))? {
                Confirmation::Ack(None) => {}
                Confirmation::Ack(Some(back)) | Confirmation::Nack(Some(back)) => {
                    let reason = format!(
                        "a message came back: {} {}",
                        back.reply_code,
                        back.reply_text.as_str()
                    );
                    return Err(BrokerError::Setup { broker: NAME, reason });
                }
                Confirmation::Nack(None) | Confirmation::NotRequested => {
                    let reason = "it did not confirm a message".to_owned();
                    return Err(BrokerError::Stopped { broker: NAME, reason });
                }
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Broker for Rabbit {
    fn kind(&self) -> &'static str {
        NAME
    }

    async fn prepare(&self) -> BrokerResult<()> {
        self.care.prepare().await
    }

    async fn publish(&self, parcels: &[Parcel]) -> BrokerResult<()> {
        // One at a time: what a publication that failed has left on the way must not mix with
        // the next one.
        let mut kept = self.way.lock().await;
        let way = match kept.take().filter(Way::is_usable) {
            Some(way) => way,
            None => {
                let way = Way::open(&self.settings).await?;
                let confirm = way.channel.confirm_select(ConfirmSelectOptions::default());
                timely(self.settings.timeout, confirm).await?;
                way
            }
        };
        let published =
            tokio::time::timeout(self.settings.timeout, self.publish_on(&way, parcels)).await;
        match published {
            Ok(Ok(())) => {
                *kept = Some(way);
                Ok(())
            }
            // The connection is given up: dropping it closes it.
            Ok(Err(error)) => Err(error),
            Err(_) if way.connection.status().blocked() => Err(BrokerError::Stopped {
                broker: NAME,
                reason: "it has blocked those who publish: it is short of memory or disk"
                    .to_owned(),
            }),
            Err(_) => Err(silent(self.settings.timeout)),
        }
    }

    async fn receive(&self) -> BrokerResult<Box<dyn Arrivals>> {
        Ok(Box::new(arrivals::RabbitArrivals::begin(&self.settings).await?))
    }

    async fn observe(&self) -> BrokerResult<Observation> {
        self.care.observe().await
    }
}

/// Connects to the first node that answers.
async fn connect(settings: &RabbitSettings) -> BrokerResult<Connection> {
    let mut last = None;
    for url in &settings.urls {
        let Ok(mut uri) = url.parse::<AMQPUri>() else {
            // Its text may hold a password.
            let reason = "one of the URLs in bus.rabbitmq.urls cannot be read".to_owned();
            return Err(BrokerError::Setup { broker: NAME, reason });
        };
        let place = format!("{}:{}", uri.authority.host, uri.authority.port);
        uri.query.heartbeat.get_or_insert(HEARTBEAT);
        let properties = ConnectionProperties::default().with_connection_name("resurgam".into());
        let connected =
            tokio::time::timeout(settings.timeout, Connection::connect_uri(uri, properties));
        match connected.await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) => match trouble(&error) {
                BrokerError::Away { reason, .. } => {
                    last = Some(BrokerError::Away {
                        broker: NAME,
                        reason: format!("{place}: {reason}"),
                    });
                }
                error => last = Some(error),
            },
            Err(_) => last = Some(silent(settings.timeout)),
        }
    }
    Err(last.unwrap_or_else(|| BrokerError::Setup {
        broker: NAME,
        reason: "bus.rabbitmq.urls names no node".to_owned(),
    }))
}

/// The answer, if it comes in time.
async fn timely<T>(
    within: Duration,
    asked: impl Future<Output = lapin::Result<T>>,
) -> BrokerResult<T> {
    match tokio::time::timeout(within, asked).await {
        Ok(answer) => answer.map_err(|error| trouble(&error)),
        Err(_) => Err(silent(within)),
    }
}

fn silent(within: Duration) -> BrokerError {
    BrokerError::Away { broker: NAME, reason: format!("no answer within {within:?}") }
}

/// Why parcels were not published.
fn refused(error: &lapin::Error, parcels: &[Parcel]) -> BrokerError {
    // The channel is closed for it, without saying for which: no other can be greater.
    if let ErrorKind::ProtocolError(said) = error.kind()
        && said.kind() == &AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED)
        && said.get_message().as_str().contains("size")
        && let Some(parcel) = parcels.iter().max_by_key(|parcel| parcel.content.len())
    {
        let size = parcel.content.len();
        return BrokerError::TooLarge { broker: NAME, id: parcel.id, size };
    }
    trouble(error)
}

/// What is wrong with RabbitMQ, or the way to it.
fn trouble(error: &lapin::Error) -> BrokerError {
    let broker = NAME;
    let ErrorKind::ProtocolError(said) = error.kind() else {
        return BrokerError::Away { broker, reason: error.to_string() };
    };
    let reason = said.get_message().as_str().to_owned();
    match said.kind() {
        AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) if reason.contains("Login") => {
            BrokerError::Credentials { broker, reason }
        }
        AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => BrokerError::Setup {
            broker,
            reason: format!("{reason}; allow this user to configure, write and read the queues"),
        },
        AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) => BrokerError::Setup { broker, reason },
        AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) => BrokerError::Setup {
            broker,
            reason: format!("{reason}; delete the queue, or let bus.rabbitmq.queue name others"),
        },
        AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => BrokerError::Setup {
            broker,
            reason: format!("{reason}; make the virtual host, or allow this user to use it"),
        },
        AMQPErrorKind::Hard(AMQPHardError::RESOURCEERROR) => {
            BrokerError::Stopped { broker, reason }
        }
        _ => BrokerError::Away { broker, reason },
    }
}

fn queue_name(prefix: &str, number: u64) -> ShortString {
    format!("{prefix}.{number}").into()
}

/// The queue of a key: the same in every process and every version, by the hash FNV-1a.
fn queue_of(key: &str) -> u64 {
    let hash = key.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // The lower bits of short keys that differ in their end alone are good enough.
    hash % QUEUES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_keep_their_queues_and_share_them() {
        // Other versions must find the same.
        assert_eq!([queue_of("a"), queue_of("agent-17"), queue_of("")], [4, 5, 5]);
        let mut counts = [0_u32; 8];
        for number in 0..8000 {
            counts[usize::try_from(queue_of(&format!("agent-{number}"))).unwrap()] += 1;
        }
        assert!(counts.iter().all(|count| (800..1200).contains(count)), "{counts:?}");
    }
}
