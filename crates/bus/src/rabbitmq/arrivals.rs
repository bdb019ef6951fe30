//! Messages as they come from the queues.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, SelectAll};
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection};

use super::{NAME, QUEUES, RabbitSettings, connect, queue_name, silent, timely, trouble};
use crate::broker::{Arrival, Arrivals, BrokerError, BrokerResult};

/// So many at once at most.
const MOST: usize = 1000;

/// So many of one queue come before the first of them is settled.
const AHEAD: u16 = 500;

/// So often consumers that get nothing look whether the way to them still leads anywhere.
const LOOK: Duration = Duration::from_secs(2);

/// Deliveries of a queue, with its number; nothing once its consumer has ended.
type Deliveries = dyn Stream<Item = (u64, Option<lapin::Result<Delivery>>)> + Send + Unpin;

/// A consumer of each queue.
pub(super) struct RabbitArrivals {
    settings: RabbitSettings,
    /// One for each queue, so that all up to one delivery can be settled at once.
    channels: BTreeMap<u64, Channel>,
    deliveries: SelectAll<Box<Deliveries>>,
    /// The last delivery of each queue that is not settled.
    reached: BTreeMap<u64, u64>,
    /// Closed when it is dropped.
    connection: Connection,
}

impl RabbitArrivals {
    pub(super) async fn begin(settings: &RabbitSettings) -> BrokerResult<Self> {
        let connection = connect(settings).await?;
        let within = settings.timeout;
        let mut channels = BTreeMap::new();
        let mut deliveries = SelectAll::new();
        for number in 0..QUEUES {
            let channel = timely(within, connection.create_channel()).await?;
            timely(within, channel.basic_qos(AHEAD, BasicQosOptions::default())).await?;
            let consumer = timely(
                within,
                channel.basic_consume(
                    queue_name(&settings.queue, number),
                    "".into(),
                    BasicConsumeOptions::default(),
                    FieldTable::default(),
                ),
            )
            .await?;
            // The server ends single consumers, when their queue is deleted for instance; among
            // the others that would go unnoticed, and the queue be silent for ever.
            let until_its_end = consumer.map(Some).chain(stream::iter([None]));
            let numbered = until_its_end.map(move |delivery| (number, delivery));
            deliveries.push(Box::new(numbered) as Box<Deliveries>);
            channels.insert(number, channel);
        }
        Ok(Self {
            settings: settings.clone(),
            channels,
            deliveries,
            reached: BTreeMap::new(),
            connection,
        })
    }

    /// That nothing comes may be peace, or a connection whose end nobody has told.
    async fn look(&mut self) -> BrokerResult<()> {
        let open = self.connection.status().connected()
            && self.channels.values().all(|channel| channel.status().connected());
        let channel = self.channels.values().next().filter(|_| open).ok_or_else(lost)?;
        // Something that is answered, and changes nothing for those that consume already.
        let asked = channel.basic_qos(AHEAD, BasicQosOptions::default());
        timely(self.settings.timeout, asked).await
    }

    fn read(
        &mut self,
        (number, delivery): (u64, Option<lapin::Result<Delivery>>),
    ) -> BrokerResult<Arrival> {
        let delivery = delivery.ok_or_else(lost)?.map_err(|error| trouble(&error))?;
        self.reached.insert(number, delivery.delivery_tag);
        Ok(Arrival {
            place: format!("{}.{number}#{}", self.settings.queue, delivery.delivery_tag),
            id: delivery.properties.message_id().as_ref().and_then(|id| id.as_str().parse().ok()),
            redelivered: redeliveries(&delivery),
            content: Bytes::from(delivery.data),
        })
    }
}

fn lost() -> BrokerError {
    BrokerError::Away { broker: NAME, reason: "consumers of its queues have ended".to_owned() }
}

/// A quorum queue counts them; other queues say only that there were some.
fn redeliveries(delivery: &Delivery) -> u32 {
    let headers = delivery.properties.headers().as_ref();
    let counted = headers.and_then(|headers| headers.inner().get("x-delivery-count"));
    match counted {
        Some(AMQPValue::LongLongInt(count)) => u32::try_from(*count).unwrap_or(u32::MAX),
        Some(AMQPValue::LongInt(count)) => u32::try_from(*count).unwrap_or(u32::MAX),
        _ => u32::from(delivery.redelivered),
    }
}

#[async_trait]
impl Arrivals for RabbitArrivals {
    async fn next(&mut self) -> BrokerResult<Vec<Arrival>> {
        let first = loop {
            match tokio::time::timeout(LOOK, self.deliveries.next()).await {
                Ok(first) => break first.ok_or_else(lost)?,
                Err(_) => self.look().await?,
            }
        };
        let mut arrivals = vec![self.read(first)?];
        while arrivals.len() < MOST {
            let Some(Some(next)) = self.deliveries.next().now_or_never() else { break };
            arrivals.push(self.read(next)?);
        }
        Ok(arrivals)
    }

    async fn settle(&mut self) -> BrokerResult<()> {
        let all = BasicAckOptions { multiple: true };
        for (number, tag) in std::mem::take(&mut self.reached) {
            let Some(channel) = self.channels.get(&number) else { continue };
            let acknowledged = channel.basic_ack(tag, all);
            match tokio::time::timeout(self.settings.timeout, acknowledged).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(trouble(&error)),
                Err(_) => return Err(silent(self.settings.timeout)),
            }
        }
        Ok(())
    }
}
