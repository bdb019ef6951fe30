//! Messages as they come from the topic.

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt as _;
use rdkafka::consumer::{CommitMode, Consumer as _, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::{ID, KafkaSettings, Quiet, id_of, misfit, trouble};
use crate::broker::{Arrival, Arrivals, BrokerResult};

/// So many at once at most.
const MOST: usize = 1000;

/// A member of the group.
pub(super) struct KafkaArrivals {
    consumer: StreamConsumer<Quiet>,
    /// Where the next message of each partition is that is not settled.
    reached: TopicPartitionList,
}

impl KafkaArrivals {
    pub(super) fn begin(settings: &KafkaSettings) -> BrokerResult<Self> {
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
        let consumer: StreamConsumer<Quiet> =
            config.create_with_context(Quiet).map_err(|error| misfit(&error))?;
        consumer.subscribe(&[&settings.topic]).map_err(|error| trouble(&error))?;
        Ok(Self { consumer, reached: TopicPartitionList::new() })
    }
}

#[async_trait]
impl Arrivals for KafkaArrivals {
    async fn next(&mut self) -> BrokerResult<Vec<Arrival>> {
        let Self { consumer, reached } = self;
        let first = loop {
            match consumer.recv().await {
                Ok(first) => break first,
                // The library connects again by itself, and goes on where it was.
                Err(error) if is_passing(&error) => tracing::debug!(%error, "a consumer of Kafka"),
                Err(error) => return Err(trouble(&error)),
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
        if self.reached.count() == 0 {
            return Ok(());
        }
        // Not waited for: what is settled twice is known by its id.
        self.consumer.commit(&self.reached, CommitMode::Async).map_err(|error| trouble(&error))?;
        self.reached = TopicPartitionList::new();
        Ok(())
    }
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
    let next = Offset::Offset(offset.saturating_add(1));
    if reached.find_partition(topic, partition).is_none() {
        reached.add_partition(topic, partition);
    }
    if let Err(error) = reached.set_partition_offset(topic, partition, next) {
        tracing::debug!(%error, "an offset cannot be noted; the message will come again");
    }
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
