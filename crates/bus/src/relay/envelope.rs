//! A message as it travels over a broker: JSON.
//!
//! What the relay publishes is a [`Message`] without its number of rejections. Others may publish
//! what they would hand in as a [`NewMessage`]; the number in the outbox, `sequence`, tells one
//! from the other.

use bytes::Bytes;
use jiff::Timestamp;
use resurgam_model::message::{DeadLetter, Message, NewMessage};
use resurgam_model::{Duration, MessageId, Payload};

use crate::broker::{Arrival, Parcel};

/// A parcel with a message of the outbox.
pub(super) fn pack(message: &Message) -> Result<Parcel, serde_json::Error> {
    let content = Bytes::from(serde_json::to_vec(message)?);
    Ok(Parcel { id: message.id, key: message.to.to_string(), content })
}

/// What came from a broker.
#[derive(Debug, PartialEq)]
pub(super) enum Content {
    /// A message of an outbox: this one's, or one from which the store was restored since.
    Ours(Box<Message>),
    /// Somebody else published it.
    Foreign(Box<NewMessage>),
    /// Nobody can read it.
    Unreadable(Box<DeadLetter>),
}

/// Reads what came.
pub(super) fn unpack(arrival: &Arrival, topic: &str, now: Timestamp) -> Content {
    if let Ok(message) = serde_json::from_slice::<Message>(&arrival.content) {
        return Content::Ours(Box::new(message));
    }
    match serde_json::from_slice::<NewMessage>(&arrival.content) {
        Ok(mut message) => {
            // One that names no id gets the one that came beside it, or always the same one: it
            // may come again.
            let names_id = serde_json::from_slice::<serde_json::Value>(&arrival.content)
                .is_ok_and(|value| value.get("id").is_some());
            if !names_id {
                message.id = arrival.id.unwrap_or_else(|| id_of(arrival));
            }
            Content::Foreign(Box::new(message))
        }
        Err(error) => Content::Unreadable(Box::new(DeadLetter {
            id: id_of(arrival),
            topic: topic.to_owned(),
            to: None,
            from: None,
            kind: "unreadable".to_owned(),
            body: Payload::from_text(&String::from_utf8_lossy(&arrival.content)),
            reason: format!("what came at {} cannot be read: {error}", arrival.place),
            created_at: now,
            died_at: now,
        })),
    }
}

/// The dead letter that a message of somebody else becomes.
pub(super) fn refused(message: NewMessage, reason: String, now: Timestamp) -> DeadLetter {
    DeadLetter {
        id: message.id,
        topic: message.topic,
        to: Some(message.to),
        from: message.from,
        kind: message.kind,
        body: message.body,
        reason,
        created_at: now,
        died_at: now,
    }
}

/// What a message says that is to be put into a mailbox anew.
pub(super) fn again(message: Message, now: Timestamp) -> Option<NewMessage> {
    let ttl = match message.expires_at {
        Some(at) if at <= now => return None,
        Some(at) => Some(Duration(at.duration_since(now).unsigned_abs())),
        None => None,
    };
    Some(NewMessage {
        id: message.id,
        topic: message.topic,
        to: message.to,
        from: message.from,
        kind: message.kind,
        body: message.body,
        reply_to: message.reply_to,
        in_reply_to: message.in_reply_to,
        ttl,
    })
}

/// The same id for the same arrival; by its place, so that two messages that say the same are two.
fn id_of(arrival: &Arrival) -> MessageId {
    MessageId::derived(&[&arrival.content, arrival.place.as_bytes()])
}

#[cfg(test)]
mod tests {
    use resurgam_model::AgentId;

    use super::*;

    fn message() -> Message {
        let now: Timestamp = "2026-01-02T03:04:05.678901Z".parse().unwrap();
        Message {
            sequence: 7,
            id: MessageId::new(),
            topic: "agent-messages".to_owned(),
            to: AgentId::new("a").unwrap(),
            from: None,
            kind: "note".to_owned(),
            body: Payload::from_text("hello"),
            reply_to: None,
            in_reply_to: None,
            created_at: now,
            expires_at: Some(now + jiff::SignedDuration::from_secs(5)),
            rejections: 0,
        }
    }

    fn arrival(content: &[u8], id: Option<MessageId>) -> Arrival {
        let content = Bytes::copy_from_slice(content);
        Arrival { place: "x/0@1".to_owned(), id, content, redelivered: 0 }
    }

    #[test]
    fn what_was_packed_is_ours() {
        let message = message();
        let parcel = pack(&message).unwrap();
        assert_eq!((parcel.id, parcel.key.as_str()), (message.id, "a"));
        let now = Timestamp::now();
        let content = unpack(&arrival(&parcel.content, Some(message.id)), "x", now);
        assert_eq!(content, Content::Ours(Box::new(message)));
    }

    #[test]
    fn what_others_publish_has_one_id_however_often_it_comes() {
        let now = Timestamp::now();
        let text = br#"{"to": "a", "kind": "note", "body": {"x": 1}}"#;
        let read = |arrival: &Arrival| match unpack(arrival, "x", now) {
            Content::Foreign(message) => message,
            other => panic!("{other:?}"),
        };
        let first = read(&arrival(text, None));
        assert_eq!(first.id, read(&arrival(text, None)).id);
        let elsewhere = Arrival { place: "x/0@2".to_owned(), ..arrival(text, None) };
        assert_ne!(first.id, read(&elsewhere).id);
        let id = MessageId::new();
        assert_eq!(read(&arrival(text, Some(id))).id, id);
        let named = format!(r#"{{"id": "{id}", "to": "a", "kind": "note"}}"#);
        assert_eq!(read(&arrival(named.as_bytes(), None)).id, id);
    }

    #[test]
    fn what_cannot_be_read_says_why_and_where() {
        let now = Timestamp::now();
        for text in [&b"\xff\xfe"[..], b"", b"{}", br#"{"to": "a", "kind": "note", "colour": 1}"#] {
            let Content::Unreadable(letter) = unpack(&arrival(text, None), "topic", now) else {
                panic!("{text:?} was read");
            };
            assert!(letter.reason.contains("x/0@1"), "{}", letter.reason);
            assert_eq!((letter.to, letter.topic.as_str()), (None, "topic"));
        }
    }

    #[test]
    fn what_is_put_into_a_mailbox_anew_keeps_its_time() {
        let message = message();
        let at = message.created_at + jiff::SignedDuration::from_secs(2);
        let anew = again(message.clone(), at).unwrap();
        assert_eq!(anew.ttl, Some(Duration::from_secs(3)));
        assert_eq!(again(message.clone(), at + jiff::SignedDuration::from_secs(3)), None);
        assert_eq!(anew.id, message.id);
    }
}
