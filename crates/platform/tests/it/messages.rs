//! Messages between agents, and about tasks.

use std::time::{Duration as StdDuration, Instant};

use resurgam_client::wire::Announcement;
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
async fn one_that_can_do_it_is_told_or_all_are() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::whole(&dir).await;
    let client = &server.client;
    for (name, can) in [("a", "x"), ("b", "x"), ("c", "y")] {
        register(client, name, can).await;
    }
    let mut told = Announcement::new("help");
    assert!(client.send_to_any(&told).await.is_err(), "it must say what is to be done");
    told.capability = Some(capability("z"));
    assert_eq!(client.send_to_any(&told).await.unwrap(), None);
    told.capability = Some(capability("y"));
    for _ in 0..2 {
        assert_eq!(client.send_to_any(&told).await.unwrap(), Some(agent("c")));
    }
    let got = client.receive(&agent("c"), None, 10, NOW).await.unwrap();
    assert_eq!((got.len(), got[0].id, &*got[0].kind), (1, told.id, "help"));

    let mut all = Announcement { from: Some(agent("boss")), ..Announcement::new("news") };
    for _ in 0..2 {
        assert_eq!(client.send_to_all(&all).await.unwrap(), 3);
    }
    let mut ids = Vec::new();
    for (name, before) in [("a", 0), ("b", 0), ("c", 1)] {
        let got = client.receive(&agent(name), None, 10, NOW).await.unwrap();
        assert_eq!(got.len(), before + 1, "{name}");
        assert_eq!((&*got[before].kind, &got[before].from), ("news", &all.from));
        ids.push(got[before].id);
    }
    ids.dedup();
    assert_eq!(ids.len(), 3, "each is a message of its own");
    all = Announcement { capability: Some(capability("x")), ..Announcement::new("news") };
    assert_eq!(client.send_to_all(&all).await.unwrap(), 2);
    let empty = Announcement::new("");
    assert!(client.send_to_all(&empty).await.is_err());
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

#[tokio::test]
async fn a_question_is_answered_and_nothing_else_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::whole(&dir).await;
    let (client, me) = (&server.client, agent("me"));
    let mut question = message("oracle", "question");
    let refused = client.request(&question, WAIT).await.unwrap_err();
    assert!(refused.to_string().contains("reply_to"), "{refused}");
    question.reply_to = Some(me.clone());
    assert_eq!(client.request(&question, Duration::from_millis(10)).await.unwrap(), None);

    client.send(&[message("me", "other")]).await.unwrap();
    let oracle = async {
        let asked = client.receive(&agent("oracle"), None, 10, WAIT).await.unwrap();
        let mailbox = asked[0].reply_to.clone().unwrap();
        let answer =
            NewMessage { in_reply_to: Some(asked[0].id), ..NewMessage::new(mailbox, "answer") };
        client.send(&[answer]).await.unwrap();
    };
    // Asking the same again changes nothing, and finds the answer.
    let (answer, ()) = tokio::join!(client.request(&question, WAIT), oracle);
    let answer = answer.unwrap().unwrap();
    assert_eq!((&*answer.kind, answer.in_reply_to), ("answer", Some(question.id)));
    let left = client.receive(&me, None, 10, NOW).await.unwrap();
    assert_eq!(left.iter().map(|m| &*m.kind).collect::<Vec<_>>(), ["other"]);
}

#[tokio::test]
async fn what_is_rejected_too_often_or_not_read_in_time_is_a_dead_letter() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::whole(&dir).await;
    let (client, a) = (&server.client, agent("a"));
    client.send(&[message("a", "poison"), message("a", "worse")]).await.unwrap();
    let came = client.receive(&a, None, 10, NOW).await.unwrap();
    for _ in 0..4 {
        assert_eq!(client.reject_messages(&a, &[came[0].sequence], "no", false).await.unwrap(), 0);
    }
    assert_eq!(client.receive(&a, None, 1, NOW).await.unwrap()[0].rejections, 4);
    assert_eq!(client.reject_messages(&a, &[came[0].sequence], "no", false).await.unwrap(), 1);
    assert_eq!(client.reject_messages(&a, &[came[1].sequence], "never", true).await.unwrap(), 1);
    assert!(client.receive(&a, None, 10, NOW).await.unwrap().is_empty());
    let dead = client.dead_letters(10).await.unwrap();
    assert_eq!(dead.iter().map(|d| d.id).collect::<Vec<_>>(), [came[1].id, came[0].id]);
    assert_eq!(dead[1].reason, "rejected 5 times by its receiver: no");

    let again = client.resend_letter(came[0].id).await.unwrap().unwrap();
    assert_eq!(client.resend_letter(came[0].id).await.unwrap(), None);
    assert_eq!(client.receive(&a, None, 10, NOW).await.unwrap()[0].id, again);
    assert!(client.forget_letter(came[1].id).await.unwrap());
    assert!(!client.forget_letter(came[1].id).await.unwrap());

    let mut late = message("b", "late");
    late.ttl = Some(Duration::from_millis(1));
    client.send(&[late.clone()]).await.unwrap();
    let until = Instant::now() + StdDuration::from_secs(60);
    loop {
        let dead = client.dead_letters(10).await.unwrap();
        if dead.iter().any(|letter| letter.id == late.id) {
            break;
        }
        assert!(Instant::now() < until, "{dead:?}");
        tokio::time::sleep(StdDuration::from_millis(50)).await;
    }
}
