//! Kafka, with real brokers.

use std::sync::Arc;

use resurgam_bus::broker::{Broker, BrokerError, Parcel};
use resurgam_bus::kafka::{Kafka, KafkaCredentials, KafkaSettings};
use resurgam_testing::{ScratchKafka, USERS};

use crate::carriers::{self, PATIENCE, TIMEOUT, consuming, parcel, ready, receive};

/// Blocks the thread until the server is there; each test has its own thread.
fn shared() -> &'static ScratchKafka {
    ScratchKafka::shared().unwrap()
}

fn kafka(cluster: &ScratchKafka, topic: &str) -> Arc<Kafka> {
    Kafka::new(settings(cluster, topic))
}

fn settings(cluster: &ScratchKafka, topic: &str) -> KafkaSettings {
    KafkaSettings {
        bootstrap: cluster.bootstrap(),
        topic: topic.to_owned(),
        group: format!("{topic}-readers"),
        timeout: TIMEOUT,
        tls: false,
        ca: None,
        credentials: None,
    }
}

/// As somebody who has to say who they are.
fn guarded(topic: &str, username: &str, password: &str) -> KafkaSettings {
    KafkaSettings {
        bootstrap: vec![shared().guarded().unwrap().to_string()],
        credentials: Some(KafkaCredentials {
            username: username.to_owned(),
            password: password.to_owned(),
            mechanism: "PLAIN".to_owned(),
        }),
        ..settings(shared(), topic)
    }
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
async fn who_is_known_is_let_in_and_wrong_credentials_are_named_and_not_shown() {
    let (name, word) = USERS[0];
    carriers::carries_in_order_until_settled(Kafka::new(guarded("let-in", name, word))).await;

    let settings = guarded("kept-out", name, "hunter2");
    assert!(!format!("{settings:?}").contains("hunter2"));
    let kafka = Kafka::new(settings);
    for error in [
        kafka.prepare().await.unwrap_err(),
        kafka.observe().await.unwrap_err(),
        kafka.publish(&[parcel("a", "1")]).await.unwrap_err(),
    ] {
        assert!(matches!(error, BrokerError::Credentials { .. }), "{error:?}");
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }
}

#[tokio::test]
async fn who_may_do_nothing_is_told_what_to_ask_for() {
    // Neither where the topic is missing nor where it is there.
    ready(&*kafka(shared(), "forbidden")).await;
    let (name, word) = USERS[1];
    for topic in ["forbidden", "forbidden-and-missing"] {
        let kafka = Kafka::new(guarded(topic, name, word));
        for error in [
            kafka.prepare().await.unwrap_err(),
            kafka.publish(&[parcel("a", "1")]).await.unwrap_err(),
        ] {
            assert!(matches!(error, BrokerError::Setup { .. }), "{topic}: {error:?}");
        }
        let error = kafka.prepare().await.unwrap_err().to_string();
        assert!(error.contains("allow this user"), "{error}");
    }
}

/// Its disk is full: it can make no file greater.
#[tokio::test]
async fn a_broker_without_space_is_an_outage_and_goes_on_with_space() {
    let cluster = ScratchKafka::with_little_space(12 << 20).unwrap();
    let kafka = kafka(&cluster, "full");
    ready(&*kafka).await;
    // Nothing that could be compressed.
    let mut dice = 1_u64;
    let mut noise = || {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        dice.to_be_bytes()[0]
    };
    let content: bytes::Bytes = (0..500_000).map(|_| noise()).collect();
    let great = || Parcel { content: content.clone(), ..parcel("a", "") };
    let mut confirmed = Vec::new();
    let error = loop {
        let parcel = great();
        match kafka.publish(std::slice::from_ref(&parcel)).await {
            Ok(()) => confirmed.push(parcel.id),
            Err(error) => break error,
        }
        assert!(confirmed.len() < 50, "the disk is never full");
    };
    assert!(error.is_outage(), "{error}");
    assert!(confirmed.len() > 10, "{}", confirmed.len());
    let ended = async {
        while cluster.runs(0).unwrap() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.expect("it goes on with a disk that is full");
    let error = kafka.observe().await.unwrap_err();
    assert!(matches!(error, BrokerError::Away { .. }), "{error}");

    cluster.give_space(0).unwrap();
    cluster.resume(0).unwrap();
    ready(&*kafka).await;
    let last = great();
    let published = async { while kafka.publish(std::slice::from_ref(&last)).await.is_err() {} };
    tokio::time::timeout(PATIENCE, published).await.expect("it does not go on");
    confirmed.push(last.id);
    let mut arrivals = kafka.receive().await.unwrap();
    let mut came = Vec::new();
    while !confirmed.iter().all(|id| came.contains(id)) {
        came.extend(receive(&mut *arrivals, 1).await.into_iter().filter_map(|arrival| arrival.id));
    }
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
            if seen.nodes.len() == 3
                && seen.under_replicated == 0
                && seen.findings.is_empty()
                && seen.controller.is_some()
            {
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
    let leaderless = async {
        loop {
            if let Ok(seen) = kafka.observe().await
                && seen.controller.is_none()
                && seen.findings.iter().any(|finding| finding.contains("no controller"))
            {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, leaderless).await.expect("the missing majority is not seen");

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
