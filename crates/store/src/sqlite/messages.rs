//! The mailboxes.
//!
//! With one writer at a time a smaller sequence number is always committed before a greater one,
//! so a receiver that goes on after the last number it saw misses nothing.

use async_trait::async_trait;
use resurgam_model::message::{Message, NewMessage};
use resurgam_model::{AgentId, MessageId, Payload};
use rusqlite::{Connection, Row, params};
use uuid::Uuid;

use super::fault::Fault;
use super::{SqliteStore, get, id, now};
use crate::column::{REMEMBER, micros, parsed, parsed_if, payload, time, time_if};
use crate::{Error, Messages, Result};

#[async_trait]
impl Messages for SqliteStore {
    async fn send(&self, messages: &[NewMessage]) -> Result<()> {
        let letters = messages.to_vec();
        let request = move |c: &Connection| {
            let now = now();
            letters.iter().try_for_each(|message| insert(c, message, now, false))
        };
        self.writer.run("send messages", request).await?;
        self.ring_mail(messages.iter().map(|message| message.to.clone()));
        Ok(())
    }

    async fn receive(
        &self,
        agent: &AgentId,
        after: Option<i64>,
        limit: u32,
    ) -> Result<Vec<Message>> {
        let agent = agent.clone();
        let request = move |c: &Connection| {
            let mut statement = c.prepare_cached(
                "SELECT * FROM messages
                 WHERE recipient = ?1 AND sequence > ?2 AND acknowledged_at IS NULL
                   AND delivered_at IS NOT NULL AND (expires_at IS NULL OR expires_at > ?4)
                   -- What is still on the way goes first.
                   AND sequence < coalesce(
                       (SELECT min(sequence) FROM messages
                        WHERE recipient = ?1 AND delivered_at IS NULL), 9223372036854775807)
                 ORDER BY sequence LIMIT ?3",
            )?;
            let after = after.unwrap_or(i64::MIN);
            let mut rows = statement.query((agent.as_str(), after, limit, now()))?;
            let mut messages = Vec::new();
            while let Some(row) = rows.next()? {
                messages.push(read_message(row)?);
            }
            Ok(messages)
        };
        self.readers.run("read a mailbox", request).await
    }

    async fn acknowledge(&self, agent: &AgentId, sequences: &[i64]) -> Result<()> {
        let (agent, sequences) = (agent.clone(), sequences.to_vec());
        self.writer.run("acknowledge messages", move |c| acknowledge(c, &agent, &sequences)).await
    }
}

/// Tells somebody what became of a task.
pub(super) fn reply(
    c: &Connection,
    to: &AgentId,
    kind: &str,
    body: &str,
    now: i64,
) -> Result<(), Fault> {
    let body = Payload::from_json(body).map_err(|error| Error::Corrupt(error.to_string()))?;
    insert(c, &NewMessage { body, ..NewMessage::new(to.clone(), kind) }, now, false)
}

/// Puts a message into the outbox, or, if there is no relay or it is `there` already, into the
/// mailbox.
pub(super) fn insert(
    c: &Connection,
    message: &NewMessage,
    now: i64,
    there: bool,
) -> Result<(), Fault> {
    let relayed =
        !there && c.prepare_cached("SELECT relayed FROM bus")?.query_row([], |row| row.get(0))?;
    let mut statement = c.prepare_cached(
        "INSERT INTO messages (id, topic, recipient, sender, kind, body, reply_to, in_reply_to,
             created_at, expires_at, delivered_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11) ON CONFLICT (id) DO NOTHING",
    )?;
    statement.execute(params![
        message.id.0.as_bytes(),
        message.topic,
        message.to.as_str(),
        message.from.as_ref().map(AgentId::as_str),
        message.kind,
        message.body.json(),
        message.reply_to.as_ref().map(AgentId::as_str),
        message.in_reply_to.as_ref().map(|id| id.0.as_bytes()),
        now,
        message.ttl.map(|ttl| now.saturating_add(micros(ttl))),
        (!relayed).then_some(now),
    ])?;
    Ok(())
}

fn acknowledge(c: &Connection, agent: &AgentId, sequences: &[i64]) -> Result<(), Fault> {
    let now = now();
    let mut statement = c.prepare_cached(
        "UPDATE messages SET acknowledged_at = ?3, body = 'null'
         WHERE sequence = ?2 AND recipient = ?1 AND acknowledged_at IS NULL",
    )?;
    for sequence in sequences {
        statement.execute((agent.as_str(), sequence, now))?;
    }
    // Twice as many leave as come, so that what is remembered cannot pile up.
    let most = i64::try_from(sequences.len()).unwrap_or(i64::MAX).saturating_mul(2);
    c.prepare_cached(
        "DELETE FROM messages WHERE sequence IN (
             SELECT sequence FROM messages WHERE acknowledged_at < ?1
             ORDER BY acknowledged_at LIMIT ?2)",
    )?
    .execute((now.saturating_sub(micros(REMEMBER)), most))?;
    Ok(())
}

pub(super) fn read_message(row: &Row<'_>) -> Result<Message, Fault> {
    Ok(Message {
        sequence: get(row, "sequence")?,
        id: MessageId(id(row, "id")?),
        topic: get(row, "topic")?,
        to: parsed(&get::<String>(row, "recipient")?)?,
        from: parsed_if(get::<Option<String>>(row, "sender")?.as_deref())?,
        kind: get(row, "kind")?,
        body: payload(get(row, "body")?)?,
        reply_to: parsed_if(get::<Option<String>>(row, "reply_to")?.as_deref())?,
        in_reply_to: get::<Option<[u8; 16]>>(row, "in_reply_to")?
            .map(|id| MessageId(Uuid::from_bytes(id))),
        created_at: time(get(row, "created_at")?)?,
        expires_at: time_if(get(row, "expires_at")?)?,
        rejections: get(row, "rejections")?,
    })
}
