//! How the cluster is, and whether the topic is as safe as the number of brokers allows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use jiff::Timestamp;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::metadata::Metadata;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::net::TcpStream;

use super::context::{Context, misfit};
use super::{KafkaSettings, NAME};
use crate::broker::{BrokerError, BrokerResult, Observation};

/// Enough for a dozen consumers, and few enough for a small cluster.
const PARTITIONS: i32 = 12;
/// Copies of each message, where there are as many brokers.
const COPIES: usize = 3;
/// A connection on the way to a broker that lives takes much less.
const KNOCK: Duration = Duration::from_millis(500);
/// More than a client has to say after it failed.
const NEWS: u32 = 64;
/// To ask for the lag is dear: one question for each partition.
const LAG_EVERY: Duration = Duration::from_secs(5);

/// What is known of the cluster.
pub(super) struct Care {
    settings: KafkaSettings,
    known: Arc<Mutex<Known>>,
    context: Context,
}

#[derive(Default)]
struct Known {
    /// A client that only asks; made when it is first needed.
    client: Option<Arc<BaseConsumer<Context>>>,
    /// One that makes the topic; made when it is first needed.
    admin: Option<Arc<AdminClient<Context>>>,
    /// Each broker that was ever seen, by its id.
    brokers: BTreeMap<i32, String>,
    lag: Option<(Instant, u64)>,
    /// When the controller was last asked, and what came of it.
    asked: Option<Instant>,
    controller: Controller,
    /// What is wrong with the topic itself.
    findings: Vec<String>,
}

/// Whether anybody leads the cluster.
#[derive(Clone, Copy, Default)]
enum Controller {
    #[default]
    Unknown,
    Answers,
    Silent,
}

impl Care {
    pub(super) fn new(settings: &KafkaSettings, context: &Context) -> Self {
        Self { settings: settings.clone(), known: Arc::default(), context: context.clone() }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn client(&self) -> BrokerResult<Arc<BaseConsumer<Context>>> {
        let mut known = self.known();
        if let Some(client) = &known.client {
            return Ok(Arc::clone(client));
        }
        let mut config = self.settings.client();
        config.set("group.id", &self.settings.group).set("enable.auto.commit", "false");
        let client: BaseConsumer<Context> =
            config.create_with_context(self.context.clone()).map_err(|error| misfit(&error))?;
        let client = Arc::new(client);
        known.client = Some(Arc::clone(&client));
        Ok(client)
    }

    /// Whether anybody is at home. A cluster that is gone refuses connections at once, while the
    /// library goes on trying until its time is up: this is what makes a failover quick.
    async fn knock(&self) -> BrokerResult<()> {
        let mut doors: Vec<_> = self.known().brokers.values().cloned().collect();
        doors.extend(self.settings.bootstrap.iter().cloned());
        doors.sort();
        doors.dedup();
        let knocks = doors.iter().map(|door| async move {
            match tokio::time::timeout(KNOCK, TcpStream::connect(door)).await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) => Err(format!("{door}: {error}")),
                Err(_) => Err(format!("{door}: no connection within {KNOCK:?}")),
            }
        });
        let answers = join_all(knocks).await;
        if answers.iter().any(Result::is_ok) {
            return Ok(());
        }
        let reasons: Vec<_> = answers.into_iter().filter_map(Result::err).collect();
        Err(BrokerError::Away { broker: NAME, reason: reasons.join("; ") })
    }

    /// Asks now and then whether there is a controller, without waiting for the answer. Who it is no
    /// client is told; but what it alone may decide shows whether it is there: would it make our
    /// topic? That it exists already is an answer, too.
    fn look_for_controller(&self) {
        {
            let mut known = self.known();
            if known.asked.is_some_and(|at| at.elapsed() < LAG_EVERY) {
                return;
            }
            known.asked = Some(Instant::now());
        }
        let Ok(admin) = self.admin() else { return };
        let (known, topic, timeout) =
            (Arc::clone(&self.known), self.settings.topic.clone(), self.settings.timeout);
        tokio::spawn(async move {
            let topic = NewTopic::new(&topic, PARTITIONS, TopicReplication::Fixed(1));
            let options = AdminOptions::new()
                .validate_only(true)
                .request_timeout(Some(timeout))
                .operation_timeout(Some(timeout));
            let answer = match admin.create_topics([&topic], &options).await {
                Ok(answers) => answers.into_iter().next(),
                Err(KafkaError::AdminOp(code)) => Some(Err((String::new(), code))),
                Err(_) => None,
            };
            let controller = match answer {
                Some(Ok(_) | Err((_, Code::TopicAlreadyExists))) => Controller::Answers,
                Some(Err((
                    _,
                    Code::RequestTimedOut | Code::OperationTimedOut | Code::NotController,
                ))) => Controller::Silent,
                // Not allowed to ask, say.
                Some(Err(_)) | None => Controller::Unknown,
            };
            known.lock().unwrap_or_else(PoisonError::into_inner).controller = controller;
        });
    }

    fn admin(&self) -> BrokerResult<Arc<AdminClient<Context>>> {
        let mut known = self.known();
        if let Some(admin) = &known.admin {
            return Ok(Arc::clone(admin));
        }
        let made = self.settings.client().create_with_context(self.context.clone());
        let admin = Arc::new(made.map_err(|error| misfit(&error))?);
        known.admin = Some(Arc::clone(&admin));
        Ok(admin)
    }

    async fn metadata(&self, topic: bool) -> BrokerResult<Metadata> {
        let (client, timeout) = (self.client()?, self.settings.timeout);
        let topic = topic.then(|| self.settings.topic.clone());
        let metadata = self.asked(move || {
            let metadata = client.fetch_metadata(topic.as_deref(), timeout);
            if metadata.is_err() {
                // Why there was no answer waits to be picked up, among other things that the
                // library has to say. That nothing is left it does not say.
                for _ in 0..NEWS {
                    let _ = client.poll(Duration::ZERO);
                }
            }
            metadata
        });
        let metadata = metadata.await?;
        self.context.let_in();
        Ok(metadata)
    }

    pub(super) async fn prepare(&self) -> BrokerResult<()> {
        self.knock().await?;
        let metadata = self.metadata(true).await?;
        let brokers = metadata.brokers().len();
        let there = metadata.topics().iter().any(|topic| {
            topic.name() == self.settings.topic
                && topic.error().is_none()
                && !topic.partitions().is_empty()
        });
        let admin = self.admin()?;
        let options = AdminOptions::new()
            .request_timeout(Some(self.settings.timeout))
            .operation_timeout(Some(self.settings.timeout));
        if !there {
            // Brokers that are only coming up would leave the topic with too few copies for ever.
            let known = self.settings.bootstrap.len().min(COPIES);
            if brokers < known {
                return Err(BrokerError::Stopped {
                    broker: NAME,
                    reason: format!(
                        "the topic {} is to have {known} copies of each message, and {brokers} \
                         brokers are there; it is made when {known} are",
                        self.settings.topic
                    ),
                });
            }
            let copies = i32::try_from(brokers.clamp(1, COPIES)).unwrap_or(1);
            let topic =
                NewTopic::new(&self.settings.topic, PARTITIONS, TopicReplication::Fixed(copies))
                    .set("min.insync.replicas", if copies >= 3 { "2" } else { "1" });
            let made = admin.create_topics([&topic], &options).await;
            match made.map_err(|error| self.context.trouble(&error))?.into_iter().next() {
                Some(Err((_, Code::TopicAlreadyExists))) | Some(Ok(_)) | None => {}
                Some(Err((name, code))) => {
                    return Err(BrokerError::Setup {
                        broker: NAME,
                        reason: format!(
                            "the topic {name} is not there and cannot be made: {code}; make it \
                             with {PARTITIONS} partitions, replication factor {copies} and \
                             min.insync.replicas {}, or allow this user to",
                            if copies >= 3 { 2 } else { 1 }
                        ),
                    });
                }
            }
        }
        self.look_at_topic(&admin, &options, &metadata).await
    }

    /// Notes what is not as it should be about a topic that somebody else may have made.
    async fn look_at_topic(
        &self,
        admin: &AdminClient<Context>,
        options: &AdminOptions,
        metadata: &Metadata,
    ) -> BrokerResult<()> {
        let topic = &self.settings.topic;
        let copies = metadata
            .topics()
            .iter()
            .filter(|found| found.name() == topic)
            .flat_map(|found| found.partitions())
            .map(|partition| partition.replicas().len())
            .min();
        let mut findings = Vec::new();
        let possible = metadata.brokers().len().min(COPIES);
        if let Some(copies) = copies.filter(|copies| *copies < possible) {
            findings.push(format!(
                "the topic {topic} has {copies} copies of each message, and could have {possible}"
            ));
        }
        // Not everybody may ask for it; then it is not known, which is said nowhere else either.
        let asked = admin.describe_configs([&ResourceSpecifier::Topic(topic)], options).await;
        let least = asked.ok().and_then(|found| {
            let found = found.into_iter().next()?.ok()?;
            found.get("min.insync.replicas")?.value.as_ref()?.parse::<usize>().ok()
        });
        if least == Some(1) && copies.is_some_and(|copies| copies >= 3) {
            findings.push(format!(
                "the topic {topic} confirms a message that one broker has; set \
                 min.insync.replicas to 2"
            ));
        }
        self.known().findings = findings;
        Ok(())
    }

    pub(super) async fn observe(&self) -> BrokerResult<Observation> {
        self.knock().await?;
        self.look_for_controller();
        let metadata = self.metadata(true).await?;
        let mut seen = Observation { at: Timestamp::now(), ..Observation::default() };
        let living: BTreeMap<_, _> = metadata
            .brokers()
            .iter()
            .map(|broker| (broker.id(), format!("{}:{}", broker.host(), broker.port())))
            .collect();
        seen.nodes = living.values().cloned().collect();
        let partitions = metadata
            .topics()
            .iter()
            .filter(|topic| topic.name() == self.settings.topic)
            .flat_map(|topic| topic.partitions());
        let (mut numbers, mut holders) = (Vec::new(), BTreeSet::new());
        for partition in partitions {
            numbers.push(partition.id());
            holders.extend(partition.replicas());
            if partition.leader() < 0 {
                seen.offline += 1;
            } else if partition.isr().len() < partition.replicas().len() {
                seen.under_replicated += 1;
            }
        }
        {
            let mut known = self.known();
            known.brokers.extend(living.iter().map(|(id, door)| (*id, door.clone())));
            // Those that are to hold copies. One that was taken out for good holds none any more.
            known.brokers.retain(|id, _| living.contains_key(id) || holders.contains(id));
            seen.missing = holders
                .iter()
                .filter(|id| !living.contains_key(id))
                .map(|id| known.brokers.get(id).cloned().unwrap_or_else(|| format!("number {id}")))
                .collect();
            seen.findings.clone_from(&known.findings);
            match known.controller {
                Controller::Unknown => {}
                Controller::Answers => seen.controller = Some("answers".to_owned()),
                Controller::Silent => seen.findings.push(
                    "no controller answers: no leaders can be chosen, and no topics made"
                        .to_owned(),
                ),
            }
        }
        if numbers.is_empty() {
            let missing = format!("the topic {} is not there", self.settings.topic);
            seen.stopped = Some(missing.clone());
            seen.findings.push(missing);
        }
        for door in &seen.missing {
            seen.findings.push(format!("the broker {door} is missing"));
        }
        if seen.offline > 0 {
            let lost = format!("{} partitions have no leader", seen.offline);
            seen.stopped = Some(lost.clone());
            seen.findings.push(lost);
        }
        if seen.under_replicated > 0 {
            seen.findings.push(format!("{} partitions lack copies", seen.under_replicated));
        }
        if seen.offline == 0 {
            seen.lag = self.lag(numbers).await;
        }
        Ok(seen)
    }

    /// Messages that wait for the group, as far as it can be told.
    async fn lag(&self, partitions: Vec<i32>) -> Option<u64> {
        if let Some((at, lag)) = self.known().lag
            && at.elapsed() < LAG_EVERY
        {
            return Some(lag);
        }
        let (client, timeout) = (self.client().ok()?, self.settings.timeout);
        let topic = self.settings.topic.clone();
        let lag = self
            .asked(move || {
                let mut list = TopicPartitionList::new();
                for partition in &partitions {
                    list.add_partition(&topic, *partition);
                }
                let committed = client.committed_offsets(list, timeout)?;
                let mut lag = 0_u64;
                for element in committed.elements() {
                    let (low, high) =
                        client.fetch_watermarks(&topic, element.partition(), timeout)?;
                    let reached = match element.offset() {
                        Offset::Offset(offset) => offset.max(low),
                        _ => low,
                    };
                    lag = lag.saturating_add(u64::try_from(high - reached).unwrap_or_default());
                }
                Ok(lag)
            })
            .await
            .ok()?;
        self.known().lag = Some((Instant::now(), lag));
        Some(lag)
    }

    /// Calls of the library that wait.
    async fn asked<T: Send + 'static>(
        &self,
        ask: impl FnOnce() -> Result<T, KafkaError> + Send + 'static,
    ) -> BrokerResult<T> {
        tokio::task::spawn_blocking(ask)
            .await
            .map_err(|error| BrokerError::Away { broker: NAME, reason: error.to_string() })?
            .map_err(|error| self.context.trouble(&error))
    }
}
