//! The servers, and the store.

use std::sync::Arc;
use std::time::Duration;

use bench_common::Failure;
use resurgam_bus::relay::Relay;
use resurgam_model::bus::{BusKind, BusState, Circuit};
use resurgam_model::plan::Bus;
use resurgam_store::{SharedStore, open, postgres};
use resurgam_testing::{ScratchKafka, ScratchRabbit};
use tokio::task::JoinHandle;

use crate::AGENTS;
use crate::load::Load;

/// What does not happen within this time never does.
const PATIENCE: Duration = Duration::from_secs(180);

/// The load before what is measured.
const WARM: Duration = Duration::from_secs(20);

/// A relay ends when it is dropped.
pub struct Running(JoinHandle<()>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Three brokers of Kafka, a node of RabbitMQ, and PostgreSQL.
pub struct Stage {
    pub store: SharedStore,
    pub kafka: ScratchKafka,
    _rabbit: ScratchRabbit,
    plan: Bus,
}

impl Stage {
    /// Starts the brokers.
    pub async fn set(url: &str, brokers: u16) -> Result<Self, Failure> {
        let store = open(&resurgam_store::Settings::Postgres(postgres::Settings {
            url: url.to_owned(),
            max_pool_size: 16,
            application_name: "bench-bus".to_owned(),
            timeout: Duration::from_secs(20),
        }))?;
        store.migrate().await?;
        let (kafka, rabbit) = (ScratchKafka::start(brokers)?, ScratchRabbit::start()?);
        // The defaults, but a return to Kafka is not waited for so long.
        let mut plan = Bus {
            order: vec![BusKind::Kafka, BusKind::RabbitMq],
            return_after: resurgam_model::Duration::from_secs(10),
            ..Bus::default()
        };
        plan.kafka.bootstrap = kafka.bootstrap();
        plan.rabbitmq.urls = vec![rabbit.url().to_owned()];
        plan.rabbitmq.management = Some(rabbit.management().to_owned());
        Ok(Self { store, kafka, _rabbit: rabbit, plan })
    }

    /// Relays until the answer is dropped.
    pub fn relay(&self) -> Running {
        let (store, plan) = (Arc::clone(&self.store), self.plan.clone());
        let relay = Relay::new(store, plan, "bench".to_owned(), Box::new(|_| Ok(())));
        Running(tokio::spawn(relay.run()))
    }

    async fn until(&self, what: &str, look: impl Fn(&BusState) -> bool) -> Result<(), Failure> {
        let looked = async {
            loop {
                if self.store.bus().await?.state.is_some_and(|state| look(&state)) {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, looked).await.map_err(|_| format!("never: {what}"))?
    }

    pub async fn active(&self) -> Result<Option<BusKind>, Failure> {
        Ok(self.store.bus().await?.state.and_then(|state| state.active))
    }

    pub async fn until_used(&self, kind: BusKind) -> Result<(), Failure> {
        self.until("the bus is used", |state| state.active == Some(kind)).await
    }

    pub async fn until_rabbit_is_closed(&self) -> Result<(), Failure> {
        self.until("RabbitMQ can be used", |state| {
            let mut buses = state.buses.iter();
            buses.any(|bus| bus.bus == BusKind::RabbitMq && bus.circuit == Circuit::Closed)
        })
        .await
    }

    /// Waits until Kafka lacks nothing.
    pub async fn until_whole(&self) -> Result<(), Failure> {
        self.until("Kafka is whole", |state| {
            state.buses.iter().any(|bus| {
                bus.bus == BusKind::Kafka
                    && bus.observation.as_ref().is_some_and(|seen| {
                        seen.nodes.len() == 3
                            && seen.missing.is_empty()
                            && seen.under_replicated + seen.offline == 0
                    })
            })
        })
        .await
    }

    /// Connections are made, and code that runs often is compiled: brokers are slow at first.
    pub async fn warm(&self, rate: u64) -> Result<(), Failure> {
        let load = Load::begin(&self.store, rate, 1.max(rate / 500), AGENTS);
        tokio::time::sleep(WARM).await;
        load.end().await?;
        Ok(())
    }

    /// Waits until so many messages are left in the outbox.
    pub async fn until_waiting(&self, count: u64) -> Result<(), Failure> {
        let looked = async {
            // To count a full outbox is work.
            while self.store.outbox().await?.waiting > count {
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
            Ok(())
        };
        tokio::time::timeout(PATIENCE, looked).await.map_err(|_| "the outbox stays full")?
    }
}
