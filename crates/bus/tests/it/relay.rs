//! The relay: over brokers that do everything wrong, and over real ones.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use resurgam_bus::relay::{Line, Relay, lines};
use resurgam_model::bus::{BusKind, BusState, BusWish, Circuit};
use resurgam_model::message::{Message, NewMessage};
use resurgam_model::plan::Bus;
use resurgam_model::{AgentId, Payload, Timestamp};
use resurgam_store::{SharedStore, open};
use resurgam_testing::{ScratchKafka, ScratchPostgres, ScratchRabbit};
use tokio::task::JoinHandle;

use crate::carriers::PATIENCE;
use crate::crooked::{Crooked, Faults, Shared};

/// Ends when it is dropped.
struct Running(JoinHandle<()>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn run(relay: Relay) -> Running {
    Running(tokio::spawn(relay.run()))
}

fn fits() -> Box<resurgam_bus::relay::Fits> {
    Box::new(|message| match message.kind.as_str() {
        "forbidden" => Err("this kind is forbidden".to_owned()),
        _ => Ok(()),
    })
}

/// Short times.
fn plan(order: &[BusKind]) -> Bus {
    let millis = resurgam_model::Duration::from_millis;
    Bus {
        order: order.to_vec(),
        probe_interval: millis(30),
        timeout: millis(100),
        failures: 2,
        retry_after: millis(100),
        close_after: millis(150),
        return_after: millis(400),
        drain_within: millis(500),
        ..Bus::default()
    }
}

async fn sqlite(dir: &tempfile::TempDir) -> SharedStore {
    let path = dir.path().join("store.sqlite");
    let store = open(&resurgam_store::Settings::Sqlite { path }).unwrap();
    store.migrate().await.unwrap();
    store
}

fn agent(number: usize) -> AgentId {
    AgentId::new(format!("agent-{number}")).unwrap()
}

fn message(to: usize, number: usize) -> NewMessage {
    NewMessage {
        body: Payload::from_text(&number.to_string()),
        ..NewMessage::new(agent(to), "note")
    }
}

fn number(message: &Message) -> usize {
    serde_json::from_str::<String>(message.body.json()).unwrap().parse().unwrap()
}

async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looked = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, looked).await.unwrap_or_else(|_| panic!("never: {what}"))
}

async fn state(store: &SharedStore) -> Option<BusState> {
    store.bus().await.unwrap().state
}

async fn active(store: &SharedStore, wanted: Option<BusKind>) -> BusState {
    until(&format!("{wanted:?} is used"), async || {
        state(store).await.filter(|state| state.active == wanted)
    })
    .await
}

/// What a reader has seen, who reads and acknowledges as it comes.
#[derive(Default)]
struct Seen(BTreeMap<usize, Vec<usize>>);

impl Seen {
    async fn read(&mut self, store: &SharedStore, agents: usize) -> usize {
        for to in 0..agents {
            let messages = store.receive(&agent(to), None, 1000).await.unwrap();
            let sequences: Vec<_> = messages.iter().map(|message| message.sequence).collect();
            self.0.entry(to).or_default().extend(messages.iter().map(number));
            store.acknowledge(&agent(to), &sequences).await.unwrap();
        }
        self.0.values().map(Vec::len).sum()
    }
}

async fn delivered(store: &SharedStore, to: usize, count: usize) -> Vec<usize> {
    until(&format!("{count} messages"), async || {
        let messages = store.receive(&agent(to), None, 1000).await.unwrap();
        (messages.len() >= count).then(|| messages.iter().map(number).collect())
    })
    .await
}

/// Whatever the brokers do, every message arrives, once, in order.
#[tokio::test]
async fn whatever_brokers_do_messages_arrive_once_and_in_order() {
    for seed in [1_u64, 7, 23, 99] {
        let dir = tempfile::tempdir().unwrap();
        let store = sqlite(&dir).await;
        let brokers = [Crooked::new("kafka", seed), Crooked::new("rabbitmq", seed + 1)];
        let kinds = [BusKind::Kafka, BusKind::RabbitMq];
        let lines: Vec<_> = kinds
            .iter()
            .zip(&brokers)
            .map(|(kind, broker)| Line {
                kind: *kind,
                broker: Arc::new(Shared(Arc::clone(broker))),
            })
            .collect();
        let relay = || {
            let plan = plan(&kinds);
            Relay::over(lines.clone(), Arc::clone(&store), plan, format!("relay-{seed}"), fits())
        };
        let mut running = run(relay());
        active(&store, Some(BusKind::Kafka)).await;
        let (agents, count) = (5, 1500);
        let mut seen = Seen::default();
        let mut dice = seed;
        for number in 0..count {
            store.send(&[message(number % agents, number)]).await.unwrap();
            if number % 50 != 0 {
                continue;
            }
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let part = |shift: u32| (dice >> shift) % 40;
            let broker = &brokers[usize::try_from(dice >> 60).unwrap() % 2];
            match (dice >> 40) % 6 {
                0 => broker.set(Faults { away: true, ..Faults::default() }),
                1 => broker.forget(),
                2 => {
                    // The process that relays is killed.
                    drop(running);
                    running = run(relay());
                }
                _ => broker.set(Faults {
                    away: false,
                    lost: part(8) / 8,
                    doubled: part(14),
                    unconfirmed: part(20),
                    torn: part(26),
                }),
            }
            seen.read(&store, agents).await;
        }
        brokers.iter().for_each(|broker| broker.set(Faults::default()));
        until("all of them", async || (seen.read(&store, agents).await >= count).then_some(()))
            .await;
        // What comes late changes nothing.
        tokio::time::sleep(Duration::from_millis(300)).await;
        seen.read(&store, agents).await;
        for (to, numbers) in &seen.0 {
            let expected: Vec<_> = (0..count).filter(|number| number % agents == *to).collect();
            assert_eq!(*numbers, expected, "seed {seed}, agent {to}");
        }
        let outbox = store.outbox().await.unwrap();
        assert_eq!((outbox.waiting, outbox.dead), (0, 0));
    }
}

fn pair(dir_seed: u64) -> ([Arc<Crooked>; 2], Vec<Line>) {
    let brokers = [Crooked::new("kafka", dir_seed), Crooked::new("rabbitmq", dir_seed)];
    let lines = [BusKind::Kafka, BusKind::RabbitMq]
        .into_iter()
        .zip(&brokers)
        .map(|(kind, broker)| Line { kind, broker: Arc::new(Shared(Arc::clone(broker))) })
        .collect();
    (brokers, lines)
}

#[tokio::test]
async fn a_bus_that_failed_is_left_and_returned_to_and_people_may_order_both() {
    let dir = tempfile::tempdir().unwrap();
    let store = sqlite(&dir).await;
    let ([kafka, rabbit], lines) = pair(1);
    let plan = plan(&[BusKind::Kafka, BusKind::RabbitMq, BusKind::Embedded]);
    let _running = run(Relay::over(lines, Arc::clone(&store), plan, "one".to_owned(), fits()));
    active(&store, Some(BusKind::Kafka)).await;
    kafka.set(Faults { away: true, ..Faults::default() });
    store.send(&[message(0, 0)]).await.unwrap();
    let now = active(&store, Some(BusKind::RabbitMq)).await;
    assert_eq!(delivered(&store, 0, 1).await, [0]);
    let last = now.last_moves.last().unwrap();
    assert_eq!((last.from, last.to), (Some(BusKind::Kafka), Some(BusKind::RabbitMq)));
    assert!(last.reason.contains("told to be"), "{}", last.reason);
    assert_ne!(now.buses[0].circuit, Circuit::Closed);

    // The store is the last resort.
    rabbit.set(Faults { away: true, ..Faults::default() });
    active(&store, Some(BusKind::Embedded)).await;
    store.send(&[message(0, 1)]).await.unwrap();
    assert_eq!(delivered(&store, 0, 2).await, [0, 1]);
    kafka.set(Faults::default());
    rabbit.set(Faults::default());
    let now = active(&store, Some(BusKind::Kafka)).await;
    assert_eq!(now.moves, u64::try_from(now.last_moves.len()).unwrap());

    let wish = |to| BusWish { to, by: "ann".to_owned(), reason: None, at: Timestamp::now() };
    store.wish(Some(&wish(Some(BusKind::RabbitMq)))).await.unwrap();
    active(&store, Some(BusKind::RabbitMq)).await;
    assert!(store.bus().await.unwrap().wish.is_some(), "it stays until it is taken back");
    store.wish(Some(&wish(None))).await.unwrap();
    active(&store, Some(BusKind::Kafka)).await;
    until("the order is carried out", async || {
        store.bus().await.unwrap().wish.is_none().then_some(())
    })
    .await;
}

#[tokio::test]
async fn messages_wait_without_any_bus_and_leave_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let store = sqlite(&dir).await;
    let ([kafka, rabbit], lines) = pair(1);
    for broker in [&kafka, &rabbit] {
        broker.set(Faults { away: true, ..Faults::default() });
    }
    let plan = plan(&[BusKind::Kafka, BusKind::RabbitMq]);
    let _running = run(Relay::over(lines, Arc::clone(&store), plan, "one".to_owned(), fits()));
    until("it relays", async || store.bus().await.unwrap().relayed.then_some(())).await;
    for number in 0..10 {
        store.send(&[message(0, number)]).await.unwrap();
    }
    until("it says that there is none", async || {
        state(&store).await.filter(|state| {
            state.active.is_none() && state.buses.iter().all(|bus| bus.reason.is_some())
        })
    })
    .await;
    assert_eq!(store.outbox().await.unwrap().waiting, 10);
    assert!(store.receive(&agent(0), None, 10).await.unwrap().is_empty());
    rabbit.set(Faults::default());
    assert_eq!(delivered(&store, 0, 10).await, (0..10).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_no_broker_takes_is_delivered_by_the_store_and_keeps_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let store = sqlite(&dir).await;
    let ([kafka, _], lines) = pair(1);
    kafka.set_greatest(1000);
    let plan = plan(&[BusKind::Kafka, BusKind::RabbitMq]);
    let _running = run(Relay::over(lines, Arc::clone(&store), plan, "one".to_owned(), fits()));
    active(&store, Some(BusKind::Kafka)).await;
    let great = NewMessage {
        body: Payload::from_text(&"0".repeat(2000)),
        ..NewMessage::new(agent(0), "note")
    };
    store.send(&[message(0, 1), great, message(0, 2)]).await.unwrap();
    assert_eq!(delivered(&store, 0, 3).await, [1, 0, 2]);
    until("it is counted", async || {
        state(&store).await.filter(|state| state.carried_by_store == 1)
    })
    .await;
}

#[tokio::test]
async fn what_others_publish_arrives_and_what_nobody_can_read_is_a_dead_letter() {
    let dir = tempfile::tempdir().unwrap();
    let store = sqlite(&dir).await;
    let ([kafka, _], lines) = pair(1);
    let plan = plan(&[BusKind::Kafka, BusKind::RabbitMq]);
    let _running = run(Relay::over(lines, Arc::clone(&store), plan, "one".to_owned(), fits()));
    kafka.plant(br#"{"to": "agent-0", "kind": "note", "body": "7"}"#);
    kafka.plant(br#"{"to": "agent-0", "kind": "forbidden"}"#);
    kafka.plant(b"\xff is nothing");
    assert_eq!(delivered(&store, 0, 1).await, [7]);
    let dead = until("the others are dead letters", async || {
        let dead = store.dead_letters(10).await.unwrap();
        (dead.len() == 2).then_some(dead)
    })
    .await;
    let reasons: Vec<_> = dead.iter().map(|letter| letter.reason.as_str()).collect();
    assert!(reasons.iter().any(|reason| reason.contains("forbidden")), "{reasons:?}");
    assert!(reasons.iter().any(|reason| reason.contains("kafka@planted-2")), "{reasons:?}");
}

#[tokio::test]
async fn what_a_restored_store_has_lost_comes_back_and_what_it_has_forgotten_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let store = sqlite(&dir).await;
    let ([kafka, _], lines) = pair(1);
    let plan = plan(&[BusKind::Kafka, BusKind::RabbitMq]);
    let _running = run(Relay::over(lines, Arc::clone(&store), plan, "one".to_owned(), fits()));
    let plant = |text: &str, minutes: i64| {
        let created_at = Timestamp::now() - jiff::SignedDuration::from_mins(minutes);
        let id = resurgam_model::MessageId::new();
        let message = serde_json::json!({
            "sequence": 77, "id": id, "topic": "agent-messages", "to": "agent-0", "from": null,
            "kind": "note", "body": text, "created_at": created_at,
        });
        kafka.plant(message.to_string().as_bytes());
        kafka.plant(message.to_string().as_bytes());
    };
    plant("1", 120);
    plant("2", 5);
    assert_eq!(delivered(&store, 0, 1).await, [2]);
    plant("3", 0);
    assert_eq!(delivered(&store, 0, 2).await, [2, 3]);
}

#[tokio::test]
async fn another_process_takes_over_and_all_of_them_deliver() {
    let dir = tempfile::tempdir().unwrap();
    let store = sqlite(&dir).await;
    let ([kafka, _], lines) = pair(1);
    let order = [BusKind::Kafka, BusKind::RabbitMq];
    let relay = |name: &str| {
        Relay::over(lines.clone(), Arc::clone(&store), plan(&order), name.to_owned(), fits())
    };
    let one = run(relay("one"));
    until("it leads", async || {
        (store.bus().await.unwrap().relay.as_deref() == Some("one")).then_some(())
    })
    .await;
    let _two = run(relay("two"));
    active(&store, Some(BusKind::Kafka)).await;
    store.send(&[message(0, 0)]).await.unwrap();
    assert_eq!(delivered(&store, 0, 1).await, [0]);
    drop(one);
    until("the other one leads", async || {
        (store.bus().await.unwrap().relay.as_deref() == Some("two")).then_some(())
    })
    .await;
    let before = kafka.taken();
    store.send(&[message(0, 1)]).await.unwrap();
    assert_eq!(delivered(&store, 0, 2).await, [0, 1]);
    assert!(kafka.taken() > before);
}

#[tokio::test]
async fn a_plan_without_brokers_delivers_what_waited() {
    let dir = tempfile::tempdir().unwrap();
    let store = sqlite(&dir).await;
    store.set_relayed(true).await.unwrap();
    store.send(&[message(0, 0)]).await.unwrap();
    let relay = Relay::new(Arc::clone(&store), Bus::default(), "one".to_owned(), fits());
    let _running = run(relay);
    assert_eq!(delivered(&store, 0, 1).await, [0]);
    store.send(&[message(0, 1)]).await.unwrap();
    assert_eq!(delivered(&store, 0, 2).await, [0, 1]);
    assert!(!store.bus().await.unwrap().relayed);
    // As a sender does that had begun before the way changed.
    store.set_relayed(true).await.unwrap();
    store.send(&[message(0, 2)]).await.unwrap();
    assert_eq!(delivered(&store, 0, 3).await, [0, 1, 2]);
}

/// The real thing: Kafka is killed under load, RabbitMQ takes over, Kafka takes over again; and
/// all over PostgreSQL.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_dies_under_load_and_comes_back_and_nothing_is_lost_doubled_or_out_of_order() {
    let server = ScratchPostgres::shared().unwrap();
    let database = server.create_database().await.unwrap();
    let url = server.url(&database);
    let settings = resurgam_store::Settings::Postgres(resurgam_store::postgres::Settings {
        url,
        max_pool_size: 8,
        application_name: "bus-tests".to_owned(),
        timeout: Duration::from_secs(20),
    });
    let store = open(&settings).unwrap();
    store.migrate().await.unwrap();
    let (kafka, rabbit) = (ScratchKafka::start(1).unwrap(), ScratchRabbit::shared().unwrap());
    let mut plan = Bus {
        timeout: resurgam_model::Duration::from_secs(1),
        probe_interval: resurgam_model::Duration::from_millis(200),
        close_after: resurgam_model::Duration::from_secs(1),
        return_after: resurgam_model::Duration::from_secs(2),
        ..plan(&[BusKind::Kafka, BusKind::RabbitMq])
    };
    plan.kafka.bootstrap = kafka.bootstrap();
    plan.kafka.topic = "under-load".to_owned();
    plan.rabbitmq.urls = vec![rabbit.url().to_owned()];
    plan.rabbitmq.queue = "under-load".to_owned();
    assert_eq!(lines(&plan).len(), 2);
    let _running = run(Relay::new(Arc::clone(&store), plan, "one".to_owned(), fits()));
    // RabbitMQ may have been there first.
    let moves = active(&store, Some(BusKind::Kafka)).await.moves;

    let agents = 20;
    let sender = {
        let store = Arc::clone(&store);
        let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            let mut count = 0;
            while stopped.try_recv().is_err() {
                let some: Vec<_> = (count..count + 20).map(|n| message(n % agents, n)).collect();
                store.send(&some).await.unwrap();
                count += some.len();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            count
        });
        (stop, task)
    };
    let mut seen = Seen::default();
    until("some came over Kafka", async || (seen.read(&store, agents).await > 500).then_some(()))
        .await;
    kafka.kill(0).unwrap();
    active(&store, Some(BusKind::RabbitMq)).await;
    let so_far = seen.read(&store, agents).await;
    until("some came over RabbitMQ", async || {
        (seen.read(&store, agents).await > so_far + 500).then_some(())
    })
    .await;
    kafka.resume(0).unwrap();
    active(&store, Some(BusKind::Kafka)).await;
    let so_far = seen.read(&store, agents).await;
    until("some came over Kafka again", async || {
        (seen.read(&store, agents).await > so_far + 500).then_some(())
    })
    .await;
    let (stop, task) = sender;
    stop.send(()).unwrap();
    let count = task.await.unwrap();
    until("all of them", async || (seen.read(&store, agents).await >= count).then_some(())).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    seen.read(&store, agents).await;
    for (to, numbers) in &seen.0 {
        let expected: Vec<_> = (0..count).filter(|number| number % agents == *to).collect();
        assert_eq!(*numbers, expected, "agent {to}");
    }
    let state = state(&store).await.unwrap();
    let counts = (state.moves - moves, state.carried_by_store);
    assert_eq!(counts, (2, 0), "{:?}", state.last_moves);
}
