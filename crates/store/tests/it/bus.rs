//! The contract of the outbox and the inbox of messages that travel over brokers.

use std::time::Duration as Span;

use resurgam_model::bus::{BusKind, BusState, BusWish};
use resurgam_model::message::{DeadLetter, NewMessage};
use resurgam_model::{Duration, MessageId, Payload, Timestamp};
use resurgam_store::Received;

use crate::fixture::{Fixture, agent};

crate::on_both! {
    a_message_waits_in_the_outbox_until_it_was_delivered
    what_was_sent_before_there_was_a_relay_is_there_and_what_waits_comes_when_it_goes
    a_mailbox_shows_nothing_that_would_overtake_what_is_on_the_way
    what_comes_from_elsewhere_is_taken_in_once
    what_cannot_be_read_is_kept_for_people
    one_relay_leads_and_what_another_one_says_is_not_noted
    a_wish_holds_until_it_is_taken_back
    a_message_over_its_time_leaves_the_outbox_too
}

const MINUTE: Duration = Duration::from_secs(60);

fn message(to: &str, text: &str) -> NewMessage {
    NewMessage { body: Payload::from_text(text), ..NewMessage::new(agent(to), "note") }
}

async fn texts(store: &Fixture, of: &str) -> Vec<String> {
    let messages = store.receive(&agent(of), None, 100).await.unwrap();
    messages.iter().map(|message| serde_json::from_str(message.body.json()).unwrap()).collect()
}

async fn a_message_waits_in_the_outbox_until_it_was_delivered(store: Fixture) {
    store.set_relayed(true).await.unwrap();
    let sent = [message("a", "1"), message("b", "2"), message("a", "3")];
    store.send(&sent).await.unwrap();
    store.send(&sent[..1]).await.unwrap();
    assert!(texts(&store, "a").await.is_empty());
    let out = store.outgoing(i64::MIN, &[], 10).await.unwrap();
    let ids: Vec<_> = out.iter().map(|message| message.id).collect();
    assert_eq!(ids, sent.each_ref().map(|message| message.id));
    assert!(out.is_sorted_by_key(|message| message.sequence));
    let rest = store.outgoing(i64::MIN, &[out[0].sequence, out[2].sequence], 10).await.unwrap();
    assert_eq!(rest, out[1..2]);
    assert_eq!(store.outgoing(i64::MIN, &[], 2).await.unwrap(), out[..2]);
    assert_eq!(store.outgoing(out[0].sequence, &[], 10).await.unwrap(), out[1..]);

    let outbox = store.outbox().await.unwrap();
    assert_eq!((outbox.waiting, outbox.oldest), (3, Some(out[0].created_at)));
    let stranger = MessageId::new();
    let received = store.delivered(&[ids[0], stranger, ids[1]]).await.unwrap();
    assert_eq!(received.agents, [agent("a"), agent("b")]);
    assert_eq!(received.unknown, [stranger]);
    assert_eq!(store.delivered(&ids[..2]).await.unwrap(), Received::default());
    let numbers: Vec<_> = out.iter().map(|message| message.sequence).collect();
    assert_eq!(store.waiting(numbers[2]).await.unwrap(), numbers[2..]);
    assert!(store.waiting(numbers[1]).await.unwrap().is_empty());
    let asked = [999_999, numbers[2], numbers[0]];
    assert_eq!(store.outgoing_of(&asked).await.unwrap(), out[2..]);
    assert_eq!(
        (texts(&store, "a").await, texts(&store, "b").await),
        (vec!["1".to_owned()], vec!["2".to_owned()])
    );

    // What was acknowledged is known, too.
    let first = store.receive(&agent("a"), None, 1).await.unwrap()[0].sequence;
    store.acknowledge(&agent("a"), &[first]).await.unwrap();
    assert_eq!(store.delivered(&ids[..1]).await.unwrap(), Received::default());
    assert_eq!(store.outgoing(i64::MIN, &[], 10).await.unwrap(), out[2..]);
}

async fn what_was_sent_before_there_was_a_relay_is_there_and_what_waits_comes_when_it_goes(
    store: Fixture,
) {
    store.send(&[message("a", "before")]).await.unwrap();
    store.set_relayed(true).await.unwrap();
    assert!(store.bus().await.unwrap().relayed);
    store.send(&[message("a", "with")]).await.unwrap();
    assert_eq!(texts(&store, "a").await, ["before"]);
    store.set_relayed(true).await.unwrap();
    assert_eq!(texts(&store, "a").await, ["before"]);
    store.set_relayed(false).await.unwrap();
    store.send(&[message("a", "after")]).await.unwrap();
    assert_eq!(texts(&store, "a").await, ["before", "with", "after"]);
}

async fn a_mailbox_shows_nothing_that_would_overtake_what_is_on_the_way(store: Fixture) {
    store.set_relayed(true).await.unwrap();
    let sent = ["1", "2", "3"].map(|text| message("a", text));
    store.send(&sent).await.unwrap();
    store.delivered(&[sent[2].id]).await.unwrap();
    assert!(texts(&store, "a").await.is_empty());
    store.delivered(&[sent[0].id]).await.unwrap();
    assert_eq!(texts(&store, "a").await, ["1"]);
    store.delivered(&[sent[1].id]).await.unwrap();
    assert_eq!(texts(&store, "a").await, ["1", "2", "3"]);
}

async fn what_comes_from_elsewhere_is_taken_in_once(store: Fixture) {
    store.set_relayed(true).await.unwrap();
    let foreign = message("a", "hello");
    store.arrive(std::slice::from_ref(&foreign)).await.unwrap();
    store.arrive(std::slice::from_ref(&foreign)).await.unwrap();
    assert_eq!(texts(&store, "a").await, ["hello"]);
    assert!(store.outgoing(i64::MIN, &[], 10).await.unwrap().is_empty());
}

async fn what_cannot_be_read_is_kept_for_people(store: Fixture) {
    let now = Timestamp::now();
    let letter = DeadLetter {
        id: MessageId::new(),
        topic: "agent-messages".to_owned(),
        to: None,
        from: None,
        kind: "unreadable".to_owned(),
        body: Payload::from_text("%"),
        reason: "it is no JSON".to_owned(),
        created_at: now,
        died_at: now,
    };
    store.bury(&[letter.clone(), letter.clone()]).await.unwrap();
    store.bury(std::slice::from_ref(&letter)).await.unwrap();
    let dead = store.dead_letters(10).await.unwrap();
    assert_eq!(dead.len(), 1);
    assert_eq!((dead[0].id, &dead[0].to, &dead[0].reason), (letter.id, &None, &letter.reason));
    assert_eq!(dead[0].body, letter.body);
    assert_eq!(store.outbox().await.unwrap().dead, 1);
    // There is nobody to send it to.
    assert_eq!(store.revive(letter.id).await.unwrap(), None);
    assert!(store.forget_letter(letter.id).await.unwrap());
}

fn state(active: BusKind) -> BusState {
    let now = Timestamp::now();
    BusState {
        active: Some(active),
        since: now,
        at: now,
        buses: Vec::new(),
        moves: 1,
        last_moves: Vec::new(),
        carried_by_store: 0,
    }
}

async fn one_relay_leads_and_what_another_one_says_is_not_noted(store: Fixture) {
    assert_eq!(store.bus().await.unwrap().relay, None);
    assert!(store.lead("one", MINUTE).await.unwrap());
    assert!(!store.lead("two", MINUTE).await.unwrap());
    assert!(store.lead("one", MINUTE).await.unwrap());
    assert!(store.note_bus("one", &state(BusKind::Kafka)).await.unwrap());
    assert!(!store.note_bus("two", &state(BusKind::RabbitMq)).await.unwrap());
    let record = store.bus().await.unwrap();
    assert_eq!(record.relay.as_deref(), Some("one"));
    assert_eq!(record.state.unwrap().active, Some(BusKind::Kafka));

    store.leave("two").await.unwrap();
    assert!(!store.lead("two", MINUTE).await.unwrap());
    store.leave("one").await.unwrap();
    assert!(store.lead("two", Duration::from_millis(1)).await.unwrap());
    // Its lease runs out.
    let taken = async {
        while !store.lead("one", MINUTE).await.unwrap() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Span::from_secs(60), taken).await.unwrap();
    assert!(!store.note_bus("two", &state(BusKind::RabbitMq)).await.unwrap());
}

async fn a_wish_holds_until_it_is_taken_back(store: Fixture) {
    let wish = BusWish {
        to: Some(BusKind::RabbitMq),
        by: "ann".to_owned(),
        reason: Some("the brokers move".to_owned()),
        at: "2026-01-02T03:04:05Z".parse().unwrap(),
    };
    store.wish(Some(&wish)).await.unwrap();
    assert_eq!(store.bus().await.unwrap().wish, Some(wish));
    store.wish(None).await.unwrap();
    assert_eq!(store.bus().await.unwrap().wish, None);
}

async fn a_message_over_its_time_leaves_the_outbox_too(store: Fixture) {
    store.set_relayed(true).await.unwrap();
    let short = NewMessage { ttl: Some(Duration::from_millis(1)), ..message("a", "short") };
    store.send(&[short, message("a", "long")]).await.unwrap();
    while store.expire_messages(10).await.unwrap() == 0 {}
    let left = store.outgoing(i64::MIN, &[], 10).await.unwrap();
    assert_eq!(left.len(), 1);
    store.delivered(&[left[0].id]).await.unwrap();
    assert_eq!(texts(&store, "a").await, ["long"]);
}
