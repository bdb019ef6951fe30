//! What becomes of messages that are not delivered.

use async_trait::async_trait;
use resurgam_model::message::DeadLetter;
use resurgam_model::{AgentId, MessageId};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::fault::Fault;
use super::{SqliteStore, get, id, now};
use crate::Result;
use crate::column::{micros, parsed, parsed_if, payload, time};
use crate::letters::{DEAD_FOR, DeadLetters, Rejection};

#[async_trait]
impl DeadLetters for SqliteStore {
    async fn reject(
        &self,
        agent: &AgentId,
        sequences: &[i64],
        rejection: &Rejection,
    ) -> Result<u64> {
        let (agent, sequences) = (agent.clone(), sequences.to_vec());
        let rejection = rejection.clone();
        let request = move |c: &Connection| reject(c, &agent, &sequences, &rejection);
        self.writer.run("reject messages", request).await
    }

    async fn expire_messages(&self, limit: u32) -> Result<u64> {
        let request = move |c: &Connection| expire(c, limit);
        self.writer.run("give up old messages", request).await
    }

    async fn dead_letters(&self, limit: u32) -> Result<Vec<DeadLetter>> {
        let request = move |c: &Connection| {
            let mut statement =
                c.prepare_cached("SELECT * FROM dead_letters ORDER BY died_at DESC LIMIT ?1")?;
            let mut rows = statement.query([limit])?;
            let mut letters = Vec::new();
            while let Some(row) = rows.next()? {
                letters.push(read_dead(row)?);
            }
            Ok(letters)
        };
        self.readers.run("list dead letters", request).await
    }

    async fn revive(&self, id: MessageId) -> Result<Option<MessageId>> {
        let request = move |c: &Connection| revive(c, id);
        let risen = self.writer.run("send a dead letter again", request).await?;
        let Some((new, agent)) = risen else { return Ok(None) };
        self.ring_mail([agent]);
        Ok(Some(new))
    }

    async fn forget_letter(&self, id: MessageId) -> Result<bool> {
        let request = move |c: &Connection| {
            let mut statement = c.prepare_cached("DELETE FROM dead_letters WHERE id = ?1")?;
            Ok(statement.execute([id.0.as_bytes()])? > 0)
        };
        self.writer.run("forget a dead letter", request).await
    }
}

fn reject(
    c: &Connection,
    agent: &AgentId,
    sequences: &[i64],
    rejection: &Rejection,
) -> Result<u64, Fault> {
    let most = rejection.max_tries.max(1);
    let why = format!("rejected {most} times by its receiver: {}", rejection.reason);
    let mut count = c.prepare_cached(
        "UPDATE messages SET rejections = rejections + 1
         WHERE sequence = ?1 AND recipient = ?2 AND acknowledged_at IS NULL
           AND delivered_at IS NOT NULL
         RETURNING rejections",
    )?;
    let mut dead = 0;
    for sequence in sequences {
        let rejections: Option<u32> =
            count.query_row(params![sequence, agent.as_str()], |row| row.get(0)).optional()?;
        if rejections.is_some_and(|rejections| rejections >= most) {
            give_up(c, *sequence, &why)?;
            dead += 1;
        }
    }
    Ok(dead)
}

fn expire(c: &Connection, limit: u32) -> Result<u64, Fault> {
    let now = now();
    let mut statement = c.prepare_cached(
        "SELECT sequence FROM messages
         WHERE expires_at < ?1 AND acknowledged_at IS NULL ORDER BY expires_at LIMIT ?2",
    )?;
    let over: Vec<i64> = statement
        .query_map(params![now, limit], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    for sequence in &over {
        give_up(c, *sequence, "not read within its time to live")?;
    }
    c.prepare_cached("DELETE FROM dead_letters WHERE died_at < ?1")?
        .execute([now.saturating_sub(micros(DEAD_FOR))])?;
    Ok(over.len() as u64)
}

/// Makes a dead letter of a message, which stays for a while without its body, so that its id is
/// known.
fn give_up(c: &Connection, sequence: i64, why: &str) -> Result<(), Fault> {
    let now = now();
    c.prepare_cached(
        "INSERT INTO dead_letters (id, topic, recipient, sender, kind, body, reply_to,
             in_reply_to, reason, created_at, died_at)
         SELECT id, topic, recipient, sender, kind, body, reply_to, in_reply_to, ?2, created_at, ?3
         FROM messages WHERE sequence = ?1 ON CONFLICT (id) DO NOTHING",
    )?
    .execute(params![sequence, why, now])?;
    c.prepare_cached(
        "UPDATE messages SET acknowledged_at = ?2, body = 'null',
             delivered_at = coalesce(delivered_at, ?2) WHERE sequence = ?1",
    )?
    .execute(params![sequence, now])?;
    Ok(())
}

fn revive(c: &Connection, id: MessageId) -> Result<Option<(MessageId, AgentId)>, Fault> {
    let new = MessageId::new();
    let recipient: Option<String> = c
        .prepare_cached(
            "INSERT INTO messages (id, topic, recipient, sender, kind, body, reply_to, in_reply_to,
                 created_at, delivered_at)
             SELECT ?2, topic, recipient, sender, kind, body, reply_to, in_reply_to, ?3,
                 CASE WHEN (SELECT relayed FROM bus) THEN NULL ELSE ?3 END
             FROM dead_letters WHERE id = ?1 AND recipient IS NOT NULL
             RETURNING recipient",
        )?
        .query_row(params![id.0.as_bytes(), new.0.as_bytes(), now()], |row| row.get(0))
        .optional()?;
    let Some(recipient) = recipient else { return Ok(None) };
    c.prepare_cached("DELETE FROM dead_letters WHERE id = ?1")?.execute([id.0.as_bytes()])?;
    Ok(Some((new, parsed(&recipient)?)))
}

fn read_dead(row: &Row<'_>) -> Result<DeadLetter, Fault> {
    Ok(DeadLetter {
        id: MessageId(id(row, "id")?),
        topic: get(row, "topic")?,
        to: parsed_if(get::<Option<String>>(row, "recipient")?.as_deref())?,
        from: parsed_if(get::<Option<String>>(row, "sender")?.as_deref())?,
        kind: get(row, "kind")?,
        body: payload(get(row, "body")?)?,
        reason: get(row, "reason")?,
        created_at: time(get(row, "created_at")?)?,
        died_at: time(get(row, "died_at")?)?,
    })
}
