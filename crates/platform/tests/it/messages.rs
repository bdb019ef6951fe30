//! Messages between agents, and about tasks.

use std::time::{Duration as StdDuration, Instant};

use resurgam_client::worker::Sha256;
use resurgam_model::message::NewMessage;
use resurgam_model::task::TaskState;
use resurgam_model::{Duration, MessageId, Payload};

use crate::harness::*;

const NOW: Duration = Duration::from_secs(0);
const WAIT: Duration = Duration::from_secs(30);

fn message(to: &str, kind: &str) -> NewMessage {
    NewMessage {
        id: MessageId::new(),
        topic: "agent-messages".to_owned(),
        to: agent(to),
        from: Some(agent("sender")),
        kind: kind.to_owned(),
        body: Payload::from_json("{\"n\": 1.0e2}").unwrap(),
        reply_to: None,
        in_reply_to: None,
        ttl: None,
    }
}

#[tokio::test]
async fn they_stay_in_order_until_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::whole(&dir).await;
    let client = &server.client;
    let sent = [message("team/b", "one"), message("team/c", "x"), message("team/b", "two")];
    client.send(&sent).await.unwrap();
    client.send(&sent).await.unwrap();
    let reader = agent("team/b");
    let got = client.receive(&reader, None, 0, NOW).await.unwrap();
    assert_eq!(got.iter().map(|m| &*m.kind).collect::<Vec<_>>(), ["one", "two"]);
    assert_eq!(got[0].body.json(), "{\"n\": 1.0e2}");
    let rest = client.receive(&reader, Some(got[0].sequence), 10, NOW).await.unwrap();
    assert_eq!(rest, got[1..]);
    for _ in 0..2 {
        client.acknowledge(&reader, &[got[0].sequence]).await.unwrap();
    }
    assert_eq!(client.receive(&reader, None, 10, NOW).await.unwrap(), got[1..]);
    assert_eq!(client.receive(&agent("team/c"), None, 10, NOW).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_reader_that_waits_wakes_up() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings(SERVER);
    settings.recheck = Duration::from_secs(3600);
    let server = Server::ready(settings, sqlite(dir.path())).await;
    let client = server.client.clone();
    let start = Instant::now();
    let waiting = tokio::spawn(async move { client.receive(&agent("b"), None, 10, WAIT).await });
    server.client.send(&[message("b", "hello")]).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap()[0].kind, "hello");
    assert!(start.elapsed() < StdDuration::from_secs(10), "{:?}", start.elapsed());
}

#[tokio::test]
async fn who_handed_in_a_task_is_told_how_it_ended() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::whole(&dir).await;
    let client = &server.client;
    let mut new = task("sha256", "abc");
    new.reply_to = Some(agent("boss"));
    let id = client.submit(&new).await.unwrap().id;
    let _worker = Worker::start(&server, worker("w").on(capability("sha256"), Sha256));
    let got = client.receive(&agent("boss"), None, 10, WAIT).await.unwrap();
    assert_eq!((got.len(), &*got[0].kind), (1, "task.completed"));
    assert!(got[0].body.json().contains(&id.to_string()), "{}", got[0].body.json());
    reaches(client, id, TaskState::Completed).await;
}
