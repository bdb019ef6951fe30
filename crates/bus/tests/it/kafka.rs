//! Kafka, with real brokers.

use std::sync::Arc;

use resurgam_bus::broker::{Broker, BrokerError};
use resurgam_bus::kafka::{Kafka, KafkaSettings};
use resurgam_testing::ScratchKafka;

use crate::carriers::{self, PATIENCE, TIMEOUT, consuming, parcel, ready, receive};

/// Blocks the thread until the server is there; each test has its own thread.
fn shared() -> &'static ScratchKafka {
    ScratchKafka::shared().unwrap()
}

fn kafka(cluster: &ScratchKafka, topic: &str) -> Arc<Kafka> {
    Kafka::new(KafkaSettings {
        bootstrap: cluster.bootstrap(),
        topic: topic.to_owned(),
        group: format!("{topic}-readers"),
        timeout: TIMEOUT,
        tls: false,
        ca: None,
        credentials: None,
    })
}

#[tokio::test]
async fn it_carries_in_order_until_settled() {
    carriers::carries_in_order_until_settled(kafka(shared(), "in-order")).await;
}

#[tokio::test]
async fn it_names_what_is_too_great() {
    carriers::names_what_is_too_great(kafka(shared(), "too-great"), 2_000_000).await;
}

#[tokio::test]
async fn a_topic_that_is_not_there_is_said_to_be_missing() {
    let kafka = kafka(shared(), "nobody-made-it");
    let seen = kafka.observe().await.unwrap();
    assert!(seen.stopped.is_some_and(|why| why.contains("is not there")), "{:?}", seen.findings);
    let error = kafka.publish(&[parcel("a", "1")]).await.unwrap_err();
    assert!(error.is_outage(), "{error}");
}

#[tokio::test]
async fn the_lag_is_what_nobody_has_settled() {
    let kafka = kafka(shared(), "lag");
    ready(&*kafka).await;
    kafka.publish(&[parcel("a", "1"), parcel("b", "2"), parcel("c", "3")]).await.unwrap();
    let lag = async |wanted: u64| {
        let seen = async {
            loop {
                let seen = kafka.observe().await.unwrap();
                if seen.lag == Some(wanted) {
                    return seen;
                }
            }
        };
        tokio::time::timeout(PATIENCE, seen).await.expect("the lag is never seen")
    };
    let seen = lag(3).await;
    assert_eq!((seen.nodes.len(), seen.offline, seen.under_replicated), (1, 0, 0), "{seen:?}");
    assert_eq!(seen.stopped, None);
    let mut arrivals = kafka.receive().await.unwrap();
    receive(&mut *arrivals, 3).await;
    arrivals.settle().await.unwrap();
    lag(0).await;
}

#[tokio::test]
async fn it_says_that_it_is_away() {
    let cluster = ScratchKafka::start(1).unwrap();
    carriers::says_that_it_is_away(
        kafka(&cluster, "away"),
        || cluster.kill(0).unwrap(),
        || cluster.resume(0).unwrap(),
    )
    .await;
    carriers::never_hangs(kafka(&cluster, "frozen"), || cluster.freeze(0).unwrap()).await;
}

#[tokio::test]
async fn one_of_three_brokers_may_go_and_two_may_not() {
    let cluster = ScratchKafka::start(3).unwrap();
    let kafka = kafka(&cluster, "three");
    ready(&*kafka).await;
    let whole = async {
        loop {
            let seen = kafka.observe().await.unwrap();
            if seen.nodes.len() == 3 && seen.under_replicated == 0 && seen.findings.is_empty() {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, whole).await.expect("the cluster is never whole");
    let mut arrivals = consuming(&*kafka).await;

    cluster.kill(0).unwrap();
    let parcels: Vec<_> = (0..50).map(|number| parcel(&number.to_string(), "two")).collect();
    let published = async { while kafka.publish(&parcels).await.is_err() {} };
    tokio::time::timeout(PATIENCE, published).await.expect("two brokers do not go on");
    receive(&mut *arrivals, parcels.len()).await;
    let ill = async {
        loop {
            // While the leaders change it may not answer.
            if let Ok(seen) = kafka.observe().await
                && seen.missing.len() == 1
                && seen.under_replicated > 0
                && seen.offline == 0
            {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, ill).await.expect("the missing broker is not seen");

    // What one broker has could be lost with it: it is not confirmed.
    cluster.kill(1).unwrap();
    let error = kafka.publish(&[parcel("a", "one")]).await.unwrap_err();
    assert!(matches!(error, BrokerError::Stopped { .. } | BrokerError::Away { .. }), "{error}");

    cluster.resume(0).unwrap();
    cluster.resume(1).unwrap();
    let whole = async {
        loop {
            if let Ok(seen) = kafka.observe().await
                && seen.nodes.len() == 3
                && seen.under_replicated == 0
                && seen.offline == 0
            {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, whole).await.expect("the replicas are not whole again");
    let published = async { while kafka.publish(&parcels).await.is_err() {} };
    tokio::time::timeout(PATIENCE, published).await.expect("three brokers do not go on");
}
