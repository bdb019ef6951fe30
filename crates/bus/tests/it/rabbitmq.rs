//! RabbitMQ, with a real node.

use std::sync::Arc;

use resurgam_bus::broker::{Broker, BrokerError};
use resurgam_bus::rabbitmq::{Rabbit, RabbitSettings};
use resurgam_testing::ScratchRabbit;

use crate::carriers::{self, PATIENCE, TIMEOUT, parcel, ready, receive};

fn shared() -> &'static ScratchRabbit {
    ScratchRabbit::shared().unwrap()
}

fn settings(node: &ScratchRabbit, queue: &str) -> RabbitSettings {
    RabbitSettings {
        urls: vec![node.url().to_owned()],
        queue: queue.to_owned(),
        quorum: false,
        management: Some(node.management().to_owned()),
        timeout: TIMEOUT,
    }
}

fn rabbit(node: &ScratchRabbit, queue: &str) -> Arc<Rabbit> {
    Rabbit::new(settings(node, queue))
}

#[tokio::test]
async fn it_carries_in_order_until_settled() {
    carriers::carries_in_order_until_settled(rabbit(shared(), "in-order")).await;
}

#[tokio::test]
async fn its_quorum_queues_do_so_too() {
    let quorum = RabbitSettings { quorum: true, ..settings(shared(), "quorum") };
    carriers::carries_in_order_until_settled(Rabbit::new(quorum)).await;
    // Others are not taken for them.
    let error = rabbit(shared(), "quorum").prepare().await.unwrap_err();
    assert!(matches!(error, BrokerError::Setup { .. }), "{error}");
    assert!(error.to_string().contains("delete the queue"), "{error}");
}

#[tokio::test]
async fn wrong_credentials_are_named_and_not_shown() {
    let mut settings = settings(shared(), "credentials");
    let place = settings.urls[0].rsplit_once('@').unwrap().1.to_owned();
    settings.urls = vec![format!("amqp://resurgam:hunter2@{place}")];
    assert!(!format!("{settings:?}").contains("hunter2"));
    let rabbit = Rabbit::new(settings);
    for error in [
        rabbit.prepare().await.unwrap_err(),
        rabbit.publish(&[parcel("a", "1")]).await.unwrap_err(),
        rabbit.observe().await.unwrap_err(),
        rabbit.receive().await.map(drop).unwrap_err(),
    ] {
        assert!(matches!(error, BrokerError::Credentials { .. }), "{error}");
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }
}

#[tokio::test]
async fn queues_that_are_not_there_and_queues_of_another_make_are_said_to_be() {
    let rabbit = rabbit(shared(), "nobody-made-it");
    let error = rabbit.publish(&[parcel("a", "1")]).await.unwrap_err();
    assert!(matches!(error, BrokerError::Setup { .. }), "{error}");
    let error = rabbit.observe().await.unwrap_err();
    assert!(matches!(error, BrokerError::Setup { .. }), "{error}");
    let error = rabbit.receive().await.map(drop).unwrap_err();
    assert!(matches!(error, BrokerError::Setup { .. }), "{error}");
    let mut settings = settings(shared(), "no-such-host");
    settings.urls = vec![settings.urls[0].replace("%2f", "elsewhere")];
    let error = Rabbit::new(settings).prepare().await.unwrap_err();
    assert!(matches!(error, BrokerError::Setup { .. }), "{error}");
}

#[tokio::test]
async fn tls_to_a_port_without_it_is_an_error() {
    let mut settings = settings(shared(), "tls");
    settings.urls = vec![settings.urls[0].replace("amqp://", "amqps://")];
    let error = Rabbit::new(settings).prepare().await.unwrap_err();
    assert!(matches!(error, BrokerError::Away { .. }), "{error}");
}

#[tokio::test]
async fn it_says_how_much_waits_and_which_nodes_there_are() {
    let rabbit = rabbit(shared(), "waiting");
    ready(&*rabbit).await;
    rabbit.publish(&[parcel("a", "1"), parcel("b", "2"), parcel("c", "3")]).await.unwrap();
    let until = async |wanted: u64| {
        let seen = async {
            loop {
                let seen = rabbit.observe().await.unwrap();
                if seen.lag == Some(wanted) && seen.nodes.len() == 1 {
                    return seen;
                }
            }
        };
        tokio::time::timeout(PATIENCE, seen).await.expect("the number is never seen")
    };
    let seen = until(3).await;
    assert_eq!((seen.offline, seen.under_replicated, &seen.stopped), (0, 0, &None), "{seen:?}");
    let mut arrivals = rabbit.receive().await.unwrap();
    receive(&mut *arrivals, 3).await;
    arrivals.settle().await.unwrap();
    until(0).await;
}

/// The other queues have nothing to say of it.
#[tokio::test]
async fn a_queue_taken_from_its_consumer_is_an_outage_and_no_silence() {
    let rabbit = rabbit(shared(), "taken");
    ready(&*rabbit).await;
    let mut arrivals = rabbit.receive().await.unwrap();
    let queue = format!("{}/api/queues/%2f/taken.3", shared().management());
    let deleted = reqwest::Client::new().delete(queue).send().await.unwrap();
    assert!(deleted.status().is_success(), "{}", deleted.status());
    let next = tokio::time::timeout(PATIENCE, arrivals.next()).await.expect("it is silent");
    let error = next.unwrap_err();
    assert!(error.is_outage(), "{error}");
    // The others of its consumers must not stand before those to come.
    drop(arrivals);
    // What was made again is consumed again.
    ready(&*rabbit).await;
    let mut arrivals = carriers::consuming(&*rabbit).await;
    rabbit.publish(&[parcel("a", "after")]).await.unwrap();
    assert_eq!(receive(&mut *arrivals, 1).await.len(), 1);
}

/// Less space is left on its disk than it wants.
#[tokio::test]
async fn a_node_short_of_disk_says_so_takes_nothing_and_goes_on_with_space() {
    let node = ScratchRabbit::start().unwrap();
    let rabbit = rabbit(&node, "full");
    ready(&*rabbit).await;
    rabbit.publish(&[parcel("a", "before")]).await.unwrap();
    node.kill().unwrap();
    node.want_space(true);
    node.resume().unwrap();
    let short = async {
        loop {
            if let Ok(seen) = rabbit.observe().await
                && let Some(why) = seen.stopped
                && why.contains("disk")
            {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, short).await.expect("it is never short of disk");
    let error = rabbit.publish(&[parcel("a", "meanwhile")]).await.unwrap_err();
    assert!(matches!(error, BrokerError::Stopped { .. }), "{error}");
    // What it has it gives.
    let mut arrivals = rabbit.receive().await.unwrap();
    assert_eq!(receive(&mut *arrivals, 1).await.len(), 1);
    arrivals.settle().await.unwrap();

    node.kill().unwrap();
    node.want_space(false);
    node.resume().unwrap();
    ready(&*rabbit).await;
    let published = async { while rabbit.publish(&[parcel("a", "after")]).await.is_err() {} };
    tokio::time::timeout(PATIENCE, published).await.expect("it does not go on");
}

#[tokio::test]
async fn it_says_that_it_is_away_and_never_hangs() {
    let node = ScratchRabbit::start().unwrap();
    carriers::says_that_it_is_away(
        rabbit(&node, "away"),
        || node.kill().unwrap(),
        || node.resume().unwrap(),
    )
    .await;
    carriers::never_hangs(rabbit(&node, "frozen"), || node.freeze().unwrap()).await;
}
