//! What every broker must do.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use resurgam_bus::broker::{Arrival, Arrivals, Broker, BrokerError, Parcel};
use resurgam_model::MessageId;

/// Longer than anything takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// What the brokers of these tests must answer within. A machine that does much else is slow.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) fn parcel(key: &str, text: &str) -> Parcel {
    let content = Bytes::copy_from_slice(text.as_bytes());
    Parcel { id: MessageId::new(), key: key.to_owned(), content }
}

/// Waits until it can be used.
pub(crate) async fn ready(broker: &dyn Broker) {
    let asked = async {
        while broker.prepare().await.is_err() || broker.observe().await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.expect("the broker does not become ready");
}

pub(crate) async fn receive(arrivals: &mut dyn Arrivals, count: usize) -> Vec<Arrival> {
    let mut all = Vec::new();
    while all.len() < count {
        let next = tokio::time::timeout(PATIENCE, arrivals.next()).await.expect("nothing came");
        all.extend(next.unwrap());
    }
    all
}

fn texts(arrivals: &[Arrival]) -> Vec<&str> {
    arrivals.iter().map(|arrival| std::str::from_utf8(&arrival.content).unwrap()).collect()
}

/// Receives from a broker that was just prepared: a consumer that comes too early is told so.
pub(crate) async fn consuming(broker: &dyn Broker) -> Box<dyn Arrivals> {
    broker.publish(&[parcel("a", "first")]).await.unwrap();
    let received = async {
        loop {
            let Ok(mut arrivals) = broker.receive().await else { continue };
            if arrivals.next().await.is_ok() {
                arrivals.settle().await.unwrap();
                return arrivals;
            }
        }
    };
    tokio::time::timeout(PATIENCE, received).await.expect("nothing came")
}

/// Keys keep their order, ids come along, what is settled does not come again and what is not
/// does.
pub(crate) async fn carries_in_order_until_settled(broker: Arc<dyn Broker>) {
    ready(&*broker).await;
    broker.prepare().await.unwrap();
    broker.publish(&[]).await.unwrap();
    let parcels: Vec<_> = (0..600)
        .map(|number| parcel(&format!("agent-{}", number % 7), &number.to_string()))
        .collect();
    for batch in parcels.chunks(250) {
        broker.publish(batch).await.unwrap();
    }
    let mut arrivals = broker.receive().await.unwrap();
    let got = receive(&mut *arrivals, parcels.len()).await;
    assert_eq!(got.len(), parcels.len());
    let mut of_key: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for text in texts(&got) {
        let number: u32 = text.parse().unwrap();
        of_key.entry(number % 7).or_default().push(number);
    }
    assert!(of_key.values().all(|numbers| numbers.is_sorted()), "{of_key:?}");
    let sent: BTreeMap<_, _> = parcels.iter().map(|p| (p.id, p.content.clone())).collect();
    assert!(got.iter().all(|a| a.id.is_some_and(|id| sent.get(&id) == Some(&a.content))));
    assert_eq!(got.iter().map(|a| &a.place).collect::<std::collections::BTreeSet<_>>().len(), 600);
    arrivals.settle().await.unwrap();

    broker.publish(&[parcel("a", "unsettled")]).await.unwrap();
    assert_eq!(texts(&receive(&mut *arrivals, 1).await), ["unsettled"]);
    drop(arrivals);
    let mut arrivals = broker.receive().await.unwrap();
    assert_eq!(texts(&receive(&mut *arrivals, 1).await), ["unsettled"]);
    arrivals.settle().await.unwrap();
    broker.publish(&[parcel("a", "last")]).await.unwrap();
    assert_eq!(texts(&receive(&mut *arrivals, 1).await), ["last"]);
    arrivals.settle().await.unwrap();
}

/// The one that is too great is named, and the broker goes on after that.
pub(crate) async fn names_what_is_too_great(broker: Arc<dyn Broker>, size: usize) {
    ready(&*broker).await;
    // Nothing that could be compressed: the generator of Knuth's MMIX.
    let next = |seed: &u64| {
        Some(seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407))
    };
    let numbers = std::iter::successors(Some(1_u64), next);
    let content: Vec<u8> = numbers.map(|number| number.to_be_bytes()[0]).take(size).collect();
    let great = Parcel { content: Bytes::from(content), ..parcel("a", "") };
    let error = broker.publish(&[parcel("a", "1"), great.clone()]).await.unwrap_err();
    assert!(!error.is_outage(), "{error}");
    match error {
        BrokerError::TooLarge { id, size: named, .. } => assert_eq!((id, named), (great.id, size)),
        other => panic!("{other}"),
    }
    broker.publish(&[parcel("a", "2")]).await.unwrap();
    let mut arrivals = broker.receive().await.unwrap();
    // Whether the first one was published as well is not said.
    let got = receive(&mut *arrivals, 1).await;
    let rest =
        if texts(&got).contains(&"2") { Vec::new() } else { receive(&mut *arrivals, 1).await };
    assert!(texts(&got).contains(&"2") || texts(&rest).contains(&"2"));
    arrivals.settle().await.unwrap();
}

/// A broker that is gone is an error soon, and works again when it is back.
pub(crate) async fn says_that_it_is_away(
    broker: Arc<dyn Broker>,
    kill: impl FnOnce(),
    resume: impl FnOnce(),
) {
    ready(&*broker).await;
    broker.publish(&[parcel("a", "before")]).await.unwrap();
    let mut arrivals = broker.receive().await.unwrap();
    assert_eq!(texts(&receive(&mut *arrivals, 1).await), ["before"]);
    arrivals.settle().await.unwrap();
    kill();
    let error = timely(broker.publish(&[parcel("a", "lost?")])).await.unwrap_err();
    assert!(error.is_outage(), "{error}");
    assert!(matches!(error, BrokerError::Away { .. }), "{error}");
    let error = timely(broker.observe()).await.unwrap_err();
    assert!(matches!(error, BrokerError::Away { .. }), "{error}");
    resume();
    let published = async {
        while broker.publish(&[parcel("a", "after")]).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, published).await.expect("it does not come back");
    // The consumers of before may have noticed the end of the connection, or have made a new one.
    let found = async {
        loop {
            match arrivals.next().await {
                Ok(got) if texts(&got).contains(&"after") => return,
                Ok(_) => {}
                Err(_) => match broker.receive().await {
                    Ok(anew) => arrivals = anew,
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                },
            }
        }
    };
    tokio::time::timeout(PATIENCE, found).await.expect("what was published does not come");
}

/// A broker that accepts and never answers is an error within a bounded time.
pub(crate) async fn never_hangs(broker: Arc<dyn Broker>, freeze: impl FnOnce()) {
    ready(&*broker).await;
    broker.publish(&[parcel("a", "before")]).await.unwrap();
    freeze();
    assert!(timely(broker.publish(&[parcel("a", "after")])).await.unwrap_err().is_outage());
    assert!(timely(broker.observe()).await.unwrap_err().is_outage());
    assert!(timely(broker.prepare()).await.unwrap_err().is_outage());
}

async fn timely<T>(asked: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, asked).await.expect("it hangs")
}
