//! The contract of the mailboxes.

use resurgam_model::message::NewMessage;
use resurgam_model::{Duration, MessageId, Payload};
use resurgam_store::Rejection;
use tokio::time::timeout;

use crate::fixture::{Fixture, agent};
use crate::wakes::PATIENCE;

crate::on_both! {
    messages_arrive_in_order_and_stay_until_acknowledged
    a_known_message_changes_nothing_even_when_it_was_acknowledged
    only_the_receiver_acknowledges
    what_answers_and_what_is_of_use_for_a_while_says_so
    a_message_over_its_time_is_not_delivered_and_becomes_a_dead_letter
    a_message_that_is_rejected_too_often_becomes_a_dead_letter
    mail_is_told_of
}

const HOUR: Duration = Duration::from_secs(3600);

fn message(to: &str, text: &str) -> NewMessage {
    NewMessage {
        id: MessageId::new(),
        topic: "talk".to_owned(),
        to: agent(to),
        from: Some(agent("me")),
        kind: "hello".to_owned(),
        body: Payload::from_text(text),
        reply_to: None,
        in_reply_to: None,
        ttl: None,
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

async fn what_answers_and_what_is_of_use_for_a_while_says_so(store: Fixture) {
    let question =
        NewMessage { reply_to: Some(agent("me")), ttl: Some(HOUR), ..message("a", "how many?") };
    let answer = NewMessage { in_reply_to: Some(question.id), ..message("me", "3") };
    store.send(&[question.clone(), answer]).await.unwrap();
    let asked = store.receive(&agent("a"), None, 10).await.unwrap().remove(0);
    assert_eq!(asked.reply_to, Some(agent("me")));
    let expires = asked.expires_at.unwrap();
    assert_eq!(expires.duration_since(asked.created_at).as_secs(), 3600);
    let told = store.receive(&agent("me"), None, 10).await.unwrap().remove(0);
    assert_eq!((told.in_reply_to, told.expires_at, told.rejections), (Some(question.id), None, 0));
}

async fn a_message_over_its_time_is_not_delivered_and_becomes_a_dead_letter(store: Fixture) {
    let a = agent("a");
    let late = NewMessage { ttl: Some(Duration::from_millis(1)), ..message("a", "late") };
    store.send(&[late.clone(), message("a", "kept")]).await.unwrap();
    while store.receive(&a, None, 10).await.unwrap().len() > 1 {}
    assert_eq!(store.receive(&a, None, 10).await.unwrap()[0].body, Payload::from_text("kept"));
    while store.expire_messages(10).await.unwrap() == 0 {}
    assert_eq!(store.expire_messages(10).await.unwrap(), 0);
    let dead = store.dead_letters(10).await.unwrap();
    assert_eq!(dead.len(), 1);
    assert_eq!((dead[0].id, dead[0].to.as_ref(), &dead[0].body), (late.id, Some(&a), &late.body));
    assert!(dead[0].reason.contains("time to live"), "{}", dead[0].reason);
    // Its sender may not have heard that it was taken.
    store.send(&[late]).await.unwrap();
    assert_eq!(store.receive(&a, None, 10).await.unwrap().len(), 1);
}

async fn a_message_that_is_rejected_too_often_becomes_a_dead_letter(store: Fixture) {
    let a = agent("a");
    store.send(&[message("a", "poison"), message("a", "good")]).await.unwrap();
    let poison = store.receive(&a, None, 1).await.unwrap().remove(0);
    let rejection = Rejection { reason: "no such colour".to_owned(), max_tries: 3 };
    for tried in 1..=2 {
        // Nobody else may, and nothing else is counted.
        assert_eq!(store.reject(&agent("b"), &[poison.sequence], &rejection).await.unwrap(), 0);
        let sequences = [poison.sequence, 999_999];
        assert_eq!(store.reject(&a, &sequences, &rejection).await.unwrap(), 0);
        let next = store.receive(&a, None, 1).await.unwrap().remove(0);
        assert_eq!((next.id, next.rejections), (poison.id, tried));
    }
    assert_eq!(store.reject(&a, &[poison.sequence], &rejection).await.unwrap(), 1);
    assert_eq!(store.reject(&a, &[poison.sequence], &rejection).await.unwrap(), 0);
    let left = store.receive(&a, None, 10).await.unwrap();
    assert_eq!((left.len(), &left[0].body), (1, &Payload::from_text("good")));

    let dead = store.dead_letters(10).await.unwrap().remove(0);
    assert_eq!((dead.id, &dead.from, &dead.kind), (poison.id, &poison.from, &poison.kind));
    assert_eq!(dead.reason, "rejected 3 times by its receiver: no such colour");
    let again = store.revive(poison.id).await.unwrap().unwrap();
    assert_eq!(store.revive(poison.id).await.unwrap(), None);
    let risen = store.receive(&a, None, 10).await.unwrap().remove(1);
    assert_eq!((risen.id, &risen.body, risen.rejections), (again, &poison.body, 0));
    assert!(store.dead_letters(10).await.unwrap().is_empty());

    let once = Rejection { reason: String::new(), max_tries: 1 };
    assert_eq!(store.reject(&a, &[risen.sequence], &once).await.unwrap(), 1);
    assert!(store.forget_letter(again).await.unwrap());
    assert!(!store.forget_letter(again).await.unwrap());
}

async fn mail_is_told_of(store: Fixture) {
    let mut mails = store.mails();
    let mut word = async || timeout(PATIENCE, mails.next()).await.expect("nobody was told");
    if store.kind() == "postgres" {
        // The listener's first word says that it listens.
        assert_eq!(word().await, None);
    }
    store.send(&[message("a", "1"), message("b", "1")]).await.unwrap();
    let mut told = [word().await, word().await];
    told.sort();
    assert_eq!(told, [Some(agent("a")), Some(agent("b"))]);
}
