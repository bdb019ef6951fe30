//! The mailboxes.
//!
//! A receiver goes on after the last number it saw. Numbers are given out before commit, so
//! without care a smaller one could become visible after a greater one, and its message would
//! never be seen. Therefore every insertion first takes a lock on each mailbox, held until after
//! the commit: within a mailbox numbers are given out and become visible in the same order. The
//! price is that senders to one mailbox commit one after the other.
//!
//! (The other known way is to hide what is newer than the oldest open transaction. It would let
//! any session that is left open stop all delivery, and sessions left open are one of the
//! incidents that the platform has to survive.)
//!
//! Mailboxes share 1024 locks, so that a message to very many cannot use up the server's table
//! of locks. They are taken in order, after any locks on agents and tasks.

use async_trait::async_trait;
use resurgam_model::message::{Message, NewMessage};
use resurgam_model::{AgentId, MessageId};
use tokio_postgres::Row;

use super::{PostgresStore, get};
use crate::column::{REMEMBER, micros, millis, parsed, parsed_if, payload, time, time_if};
use crate::{Messages, Result};

/// Two common table expressions, `locks` and `told`, that put the rows of the one named into the
/// mailboxes, or into the outbox if there is a relay: it must have the columns id, topic,
/// recipient, sender, kind, body, reply_to, in_reply_to, ttl_ms, there (into the mailbox in any
/// case) and n, the order.
macro_rules! deliver {
    ($letters:literal) => {
        concat!(
            "locks AS MATERIALIZED (
                SELECT pg_advisory_xact_lock(1381192513, mailbox) FROM (
                    SELECT DISTINCT (hashtextextended(recipient, 0) & 1023)::int AS mailbox
                    FROM ",
            $letters,
            " ORDER BY 1
                ) AS mailboxes
            ), told AS (
                INSERT INTO messages (id, topic, recipient, sender, kind, body, reply_to,
                    in_reply_to, created_at, expires_at, delivered_at)
                SELECT id, topic, recipient, sender, kind, body, reply_to, in_reply_to,
                    clock_timestamp(), clock_timestamp() + ttl_ms * interval '1 millisecond',
                    CASE WHEN there OR NOT (SELECT relayed FROM bus) THEN clock_timestamp() END
                -- Counting makes sure that all locks are held before the first number is taken.
                FROM (SELECT count(*) FROM locks) AS held, ",
            $letters,
            " ORDER BY n
                ON CONFLICT (id) DO NOTHING
            )"
        )
    };
}
pub(super) use deliver;

/// What [`read_message`] reads.
macro_rules! message_columns {
    () => {
        "sequence, id, topic, recipient, sender, kind, body, reply_to, in_reply_to, rejections,
         (extract(epoch FROM created_at) * 1000000)::bigint AS created_at,
         (extract(epoch FROM expires_at) * 1000000)::bigint AS expires_at"
    };
}
pub(super) use message_columns;

/// What waits in a mailbox, as far as nothing before it is still on the way.
pub(super) const RECEIVE: &str = concat!(
    "SELECT ",
    message_columns!(),
    " FROM messages
     WHERE recipient = $1 AND sequence > $2 AND acknowledged_at IS NULL
       AND delivered_at IS NOT NULL
       AND (expires_at IS NULL OR expires_at > clock_timestamp())
       -- What is still on the way goes first.
       AND sequence < coalesce(
           (SELECT min(sequence) FROM messages
            WHERE recipient = $1 AND delivered_at IS NULL), 9223372036854775807)
     ORDER BY sequence LIMIT $3"
);

/// Acknowledges, and forgets what was acknowledged long ago. The time is that of the statement:
/// compared with a clock that goes on, every row would be read. Numbers go from part to part as
/// arrays, because a join may be made by reading the whole table.
pub(super) const ACKNOWLEDGE: &str = "WITH over AS (
         SELECT sequence FROM messages
         WHERE acknowledged_at < statement_timestamp() - $3::bigint * interval '1 microsecond'
         ORDER BY acknowledged_at LIMIT $4 FOR UPDATE SKIP LOCKED
     ), forgotten AS (
         DELETE FROM messages WHERE sequence = ANY (ARRAY(SELECT sequence FROM over))
     ), now_over AS MATERIALIZED (
         SELECT sequence FROM messages
         -- By their numbers: a mailbox may be long.
         WHERE sequence = ANY ($2) AND recipient || '' = $1
           AND coalesce(acknowledged_at IS NULL, false)
         ORDER BY sequence FOR UPDATE
     )
     UPDATE messages SET acknowledged_at = clock_timestamp(), body = 'null'
     WHERE sequence = ANY (ARRAY(SELECT sequence FROM now_over))";

#[async_trait]
impl Messages for PostgresStore {
    async fn send(&self, messages: &[NewMessage]) -> Result<()> {
        self.put(messages, false).await
    }

    async fn receive(
        &self,
        agent: &AgentId,
        after: Option<i64>,
        limit: u32,
    ) -> Result<Vec<Message>> {
        let (after, limit) = (after.unwrap_or(i64::MIN), i64::from(limit));
        let rows =
            self.query("read a mailbox", RECEIVE, &[&agent.as_str(), &after, &limit]).await?;
        rows.iter().map(read_message).collect()
    }

    async fn acknowledge(&self, agent: &AgentId, sequences: &[i64]) -> Result<()> {
        if sequences.is_empty() {
            return Ok(());
        }
        // Twice as many leave as come, so that what is remembered cannot pile up.
        let most = i64::try_from(sequences.len()).unwrap_or(i64::MAX).saturating_mul(2);
        let params = [&agent.as_str() as _, &sequences as _, &micros(REMEMBER) as _, &most as _];
        self.query("acknowledge messages", ACKNOWLEDGE, &params).await?;
        Ok(())
    }
}

impl PostgresStore {
    /// Puts messages into the outbox, or, if there is no relay or they are `there` already, into
    /// the mailboxes; and tells of them: the relay, or whoever waits for them.
    pub(super) async fn put(&self, messages: &[NewMessage], there: bool) -> Result<()> {
        if messages.is_empty() {
            return Ok(());
        }
        let ids: Vec<_> = messages.iter().map(|m| m.id.0).collect();
        let topics: Vec<_> = messages.iter().map(|m| m.topic.as_str()).collect();
        let to: Vec<_> = messages.iter().map(|m| m.to.as_str()).collect();
        let from: Vec<_> = messages.iter().map(|m| m.from.as_ref().map(AgentId::as_str)).collect();
        let kinds: Vec<_> = messages.iter().map(|m| m.kind.as_str()).collect();
        let bodies: Vec<_> = messages.iter().map(|m| m.body.json()).collect();
        let reply_to: Vec<_> =
            messages.iter().map(|m| m.reply_to.as_ref().map(AgentId::as_str)).collect();
        let in_reply_to: Vec<_> = messages.iter().map(|m| m.in_reply_to.map(|id| id.0)).collect();
        let ttls: Vec<_> = messages.iter().map(|m| m.ttl.map(millis)).collect();
        let sql = concat!(
            "WITH letters AS MATERIALIZED (
                SELECT *, $10::boolean AS there
                FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[],
                            $7::text[], $8::uuid[], $9::bigint[])
                    WITH ORDINALITY AS l (id, topic, recipient, sender, kind, body, reply_to,
                                          in_reply_to, ttl_ms, n)
            ), ",
            deliver!("letters"),
            " SELECT 1"
        );
        self.query(
            "send messages",
            sql,
            &[&ids, &topics, &to, &from, &kinds, &bodies, &reply_to, &in_reply_to, &ttls, &there],
        )
        .await?;
        self.ring_mail(messages.iter().map(|message| message.to.clone()).collect());
        Ok(())
    }
}

/// A row with the columns of [`message_columns`].
pub(super) fn read_message(row: &Row) -> Result<Message> {
    Ok(Message {
        sequence: get(row, "sequence")?,
        id: MessageId(get(row, "id")?),
        topic: get(row, "topic")?,
        to: parsed(get(row, "recipient")?)?,
        from: parsed_if(get(row, "sender")?)?,
        kind: get(row, "kind")?,
        body: payload(get(row, "body")?)?,
        reply_to: parsed_if(get(row, "reply_to")?)?,
        in_reply_to: get::<Option<_>>(row, "in_reply_to")?.map(MessageId),
        created_at: time(get(row, "created_at")?)?,
        expires_at: time_if(get(row, "expires_at")?)?,
        rejections: get::<i32>(row, "rejections")?.unsigned_abs(),
    })
}
