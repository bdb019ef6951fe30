//! Messages as they come from the topic.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt as _;
use rdkafka::consumer::{CommitMode, Consumer as _, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::context::{Context, misfit};
use super::{ID, KafkaSettings, NAME, id_of};
use crate::broker::{Arrival, Arrivals, BrokerError, BrokerResult};

/// So many at once at most.
const MOST: usize = 1000;

/// What is settled is noted at the cluster so often: what comes twice is known by its id, and each
/// note is a message itself, with copies of its own.
const NOTE: Duration = Duration::from_millis(250);

/// A member of the group.
pub(super) struct KafkaArrivals {
    /// There until the end.
    consumer: Option<StreamConsumer<Context>>,
    /// Where the next message of each partition is that is not settled.
    reached: TopicPartitionList,
    settled: Settled,
}

/// Where the next message of each partition is that is to be noted as such.
struct Settled {
    offsets: TopicPartitionList,
    noted: Option<Instant>,
}

impl Settled {
    fn due(&self) -> Option<Instant> {
        let due = self.noted.map_or_else(Instant::now, |noted| noted + NOTE);
        (self.offsets.count() > 0).then_some(due)
    }

    fn add(&mut self, reached: &TopicPartitionList) {
        for element in reached.elements() {
            place(&mut self.offsets, element.topic(), element.partition(), element.offset());
        }
    }

    /// Does not wait for the cluster.
    fn note(&mut self, consumer: &StreamConsumer<Context>) -> BrokerResult<()> {
        self.noted = Some(Instant::now());
        let offsets = std::mem::take(&mut self.offsets);
        if offsets.count() == 0 {
            return Ok(());
        }
        let noted = consumer.commit(&offsets, CommitMode::Async);
        noted.map_err(|error| consumer.context().trouble(&error))
    }
}

impl KafkaArrivals {
    pub(super) fn begin(settings: &KafkaSettings, context: &Context) -> BrokerResult<Self> {
        let mut config = settings.client();
        config
            .set("group.id", &settings.group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            // What is in the topic before the group reads it for the first time is ours as well.
            .set("auto.offset.reset", "earliest")
            .set("session.timeout.ms", "6000")
            .set("heartbeat.interval.ms", "1000")
            .set("max.poll.interval.ms", "300000")
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("fetch.wait.max.ms", "100");
        let consumer: StreamConsumer<Context> =
            config.create_with_context(context.clone()).map_err(|error| misfit(&error))?;
        consumer.subscribe(&[&settings.topic]).map_err(|error| context.trouble(&error))?;
        let settled = Settled { offsets: TopicPartitionList::new(), noted: None };
        Ok(Self { consumer: Some(consumer), reached: TopicPartitionList::new(), settled })
    }
}

impl Drop for KafkaArrivals {
    /// To leave the group takes as long as the cluster takes to answer, which may be for ever. So
    /// nobody waits for it.
    fn drop(&mut self) {
        let Some(consumer) = self.consumer.take() else { return };
        if let Err(error) = self.settled.note(&consumer) {
            tracing::debug!(%error, "what is settled is not noted, and will come again");
        }
        let leaving = std::thread::Builder::new().name("kafka-leave".to_owned());
        if let Err(error) = leaving.spawn(move || drop(consumer)) {
            tracing::warn!(%error, "no thread for a consumer of Kafka to leave its group");
        }
    }
}

#[async_trait]
impl Arrivals for KafkaArrivals {
    async fn next(&mut self) -> BrokerResult<Vec<Arrival>> {
        let Self { consumer, reached, settled } = self;
        let Some(consumer) = consumer else { return Err(ended()) };
        let first = loop {
            let due = settled.due().map(tokio::time::Instant::from_std);
            let received = match due {
                Some(due) => tokio::time::timeout_at(due, consumer.recv()).await,
                None => Ok(consumer.recv().await),
            };
            match received {
                Ok(Ok(first)) => break first,
                Err(_) => settled.note(consumer)?,
                // The library connects again by itself, and goes on where it was.
                Ok(Err(error)) if is_passing(&error) => {
                    tracing::debug!(%error, "a consumer of Kafka");
                }
                Ok(Err(error)) => return Err(consumer.context().trouble(&error)),
            }
        };
        let mut arrivals = vec![read(&first, reached)];
        while arrivals.len() < MOST {
            // An error comes again at the next call, when there is nothing else to give.
            let Some(Ok(message)) = consumer.recv().now_or_never() else { break };
            arrivals.push(read(&message, reached));
        }
        Ok(arrivals)
    }

    async fn settle(&mut self) -> BrokerResult<()> {
        let Some(consumer) = &self.consumer else { return Err(ended()) };
        self.settled.add(&std::mem::take(&mut self.reached));
        if self.settled.due().is_some_and(|due| due <= Instant::now()) {
            self.settled.note(consumer)?;
        }
        Ok(())
    }
}

fn ended() -> BrokerError {
    BrokerError::Away { broker: NAME, reason: "the consumer has ended".to_owned() }
}

fn is_passing(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(Code::BrokerTransportFailure | Code::AllBrokersDown | Code::OperationTimedOut)
    )
}

/// Reads a message, and notes that the partition was read so far.
fn read(message: &BorrowedMessage<'_>, reached: &mut TopicPartitionList) -> Arrival {
    let (topic, partition, offset) = (message.topic(), message.partition(), message.offset());
    place(reached, topic, partition, Offset::Offset(offset.saturating_add(1)));
    let id = message
        .headers()
        .and_then(|headers| headers.iter().find(|header| header.key == ID)?.value.and_then(id_of));
    Arrival {
        place: format!("{topic}/{partition}@{offset}"),
        id,
        content: Bytes::copy_from_slice(message.payload().unwrap_or_default()),
        redelivered: 0,
    }
}

/// Writes down where the next message of a partition is.
fn place(list: &mut TopicPartitionList, topic: &str, partition: i32, next: Offset) {
    if list.find_partition(topic, partition).is_none() {
        list.add_partition(topic, partition);
    }
    if let Err(error) = list.set_partition_offset(topic, partition, next) {
        tracing::debug!(%error, "an offset cannot be noted; the message will come again");
    }
}
