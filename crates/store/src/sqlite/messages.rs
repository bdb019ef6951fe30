//! The mailboxes.
//!
//! With one writer at a time a smaller sequence number is always committed before a greater one,
//! so a receiver that goes on after the last number it saw misses nothing.

use async_trait::async_trait;
use resurgam_model::message::{DEFAULT_TOPIC, Message, NewMessage};
use resurgam_model::{AgentId, MessageId};
use rusqlite::{Connection, Row, params};

use super::fault::Fault;
use super::{SqliteStore, get, id, now};
use crate::column::{REMEMBER, micros, parsed, parsed_if, payload, time};
use crate::{Messages, Result};

#[async_trait]
impl Messages for SqliteStore {
    async fn send(&self, messages: &[NewMessage]) -> Result<()> {
        let messages = messages.to_vec();
        let request = move |c: &Connection| {
            let now = now();
            messages.iter().try_for_each(|message| insert(c, message, now))
        };
        self.writer.run("send messages", request).await
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
                 ORDER BY sequence LIMIT ?3",
            )?;
            let mut rows = statement.query((agent.as_str(), after.unwrap_or(i64::MIN), limit))?;
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
    insert_raw(c, MessageId::new(), DEFAULT_TOPIC, (to, None), (kind, body), now)
}

fn insert(c: &Connection, message: &NewMessage, now: i64) -> Result<(), Fault> {
    let way = (&message.to, message.from.as_ref());
    insert_raw(c, message.id, &message.topic, way, (&message.kind, message.body.json()), now)
}

fn insert_raw(
    c: &Connection,
    id: MessageId,
    topic: &str,
    (to, from): (&AgentId, Option<&AgentId>),
    (kind, body): (&str, &str),
    now: i64,
) -> Result<(), Fault> {
    let mut statement = c.prepare_cached(
        "INSERT INTO messages (id, topic, recipient, sender, kind, body, created_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (id) DO NOTHING",
    )?;
    let from = from.map(AgentId::as_str);
    statement.execute(params![id.0.as_bytes(), topic, to.as_str(), from, kind, body, now])?;
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

fn read_message(row: &Row<'_>) -> Result<Message, Fault> {
    Ok(Message {
        sequence: get(row, "sequence")?,
        id: MessageId(id(row, "id")?),
        topic: get(row, "topic")?,
        to: parsed(&get::<String>(row, "recipient")?)?,
        from: parsed_if(get::<Option<String>>(row, "sender")?.as_deref())?,
        kind: get(row, "kind")?,
        body: payload(get(row, "body")?)?,
        created_at: time(get(row, "created_at")?)?,
    })
}
