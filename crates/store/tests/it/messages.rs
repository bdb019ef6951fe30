//! The contract of the mailboxes.

use resurgam_model::message::NewMessage;
use resurgam_model::{MessageId, Payload};

use crate::fixture::{Fixture, agent};

crate::on_both! {
    messages_arrive_in_order_and_stay_until_acknowledged
    a_known_message_changes_nothing_even_when_it_was_acknowledged
    only_the_receiver_acknowledges
}

fn message(to: &str, text: &str) -> NewMessage {
    NewMessage {
        id: MessageId::new(),
        topic: "talk".to_owned(),
        to: agent(to),
        from: Some(agent("me")),
        kind: "hello".to_owned(),
        body: Payload::from_text(text),
    }
}

async fn messages_arrive_in_order_and_stay_until_acknowledged(store: Fixture) {
    let sent = [message("a", "1"), message("b", "x"), message("a", "2"), message("a", "3")];
    store.send(&sent).await.unwrap();
    store.send(&[]).await.unwrap();
    let a = agent("a");
    let all = store.receive(&a, None, 10).await.unwrap();
    assert_eq!(all.iter().map(|m| m.id).collect::<Vec<_>>(), [sent[0].id, sent[2].id, sent[3].id]);
    assert!(all.is_sorted_by_key(|m| m.sequence));
    assert_eq!(
        (&all[0].topic, &all[0].kind, &all[0].body),
        (&sent[0].topic, &sent[0].kind, &sent[0].body)
    );
    assert_eq!((&all[0].to, &all[0].from), (&a, &Some(agent("me"))));
    let page = store.receive(&a, Some(all[0].sequence), 1).await.unwrap();
    assert_eq!(page, all[1..2]);
    store.acknowledge(&a, &[all[0].sequence, all[2].sequence]).await.unwrap();
    store.acknowledge(&a, &[all[0].sequence, 999_999]).await.unwrap();
    store.acknowledge(&a, &[]).await.unwrap();
    assert_eq!(store.receive(&a, None, 10).await.unwrap(), all[1..2]);
    store.acknowledge(&a, &[all[1].sequence]).await.unwrap();
    // Numbers are not used again.
    store.send(&[message("a", "4")]).await.unwrap();
    let next = store.receive(&a, Some(all[2].sequence), 10).await.unwrap();
    assert_eq!(next.len(), 1);
}

async fn a_known_message_changes_nothing_even_when_it_was_acknowledged(store: Fixture) {
    let first = message("a", "1");
    store.send(&[first.clone(), first.clone()]).await.unwrap();
    let mut other = first.clone();
    other.body = Payload::from_text("other");
    store.send(&[other.clone(), message("a", "2")]).await.unwrap();
    let found = store.receive(&agent("a"), None, 10).await.unwrap();
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].body, first.body);
    store.acknowledge(&agent("a"), &[found[0].sequence]).await.unwrap();
    store.send(&[other]).await.unwrap();
    assert_eq!(store.receive(&agent("a"), None, 10).await.unwrap(), found[1..]);
}

async fn only_the_receiver_acknowledges(store: Fixture) {
    store.send(&[message("a", "1")]).await.unwrap();
    let found = store.receive(&agent("a"), None, 10).await.unwrap();
    store.acknowledge(&agent("b"), &[found[0].sequence]).await.unwrap();
    assert_eq!(store.receive(&agent("a"), None, 10).await.unwrap(), found);
    assert!(store.receive(&agent("b"), None, 10).await.unwrap().is_empty());
}
