//! The embedded bus over a SQLite file.

use resurgam_bus::{Bus, EmbeddedBus};
use resurgam_model::message::NewMessage;
use resurgam_model::{AgentId, MessageId, Payload};
use resurgam_store::{Settings, open};

fn message(to: &AgentId, kind: &str) -> NewMessage {
    NewMessage {
        id: MessageId::new(),
        topic: "agent-messages".to_owned(),
        to: to.clone(),
        from: None,
        kind: kind.to_owned(),
        body: Payload::default(),
        reply_to: None,
        in_reply_to: None,
        ttl: None,
    }
}

#[tokio::test]
async fn messages_outlast_the_process_and_come_once_per_id_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings::Sqlite { path: dir.path().join("store.sqlite") };
    let store = open(&settings).unwrap();
    store.migrate().await.unwrap();
    let bus = EmbeddedBus::new(store);
    let reader = AgentId::new("reader").unwrap();
    let sent = [message(&reader, "one"), message(&reader, "two")];
    bus.send(&sent).await.unwrap();
    bus.send(&sent).await.unwrap();
    bus.send(&[]).await.unwrap();
    drop(bus);

    let bus = EmbeddedBus::new(open(&settings).unwrap());
    bus.check().await.unwrap();
    let got = bus.receive(&reader, None, 10).await.unwrap();
    assert_eq!(got.iter().map(|m| m.id).collect::<Vec<_>>(), sent.map(|m| m.id));
    bus.acknowledge(&reader, &[got[0].sequence]).await.unwrap();
    bus.acknowledge(&reader, &[got[0].sequence, 4711]).await.unwrap();
    assert_eq!(bus.receive(&reader, None, 10).await.unwrap(), got[1..]);
    assert_eq!(bus.receive(&reader, Some(got[1].sequence), 10).await.unwrap(), []);
}

#[tokio::test]
async fn a_bus_without_its_tables_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&Settings::Sqlite { path: dir.path().join("store.sqlite") }).unwrap();
    assert!(EmbeddedBus::new(store).check().await.is_err());
}
