//! The outbox, the inbox, and the row about the buses.

use std::collections::BTreeSet;

use async_trait::async_trait;
use resurgam_model::bus::{BusState, BusWish, Outbox};
use resurgam_model::message::{DeadLetter, Message, NewMessage};
use resurgam_model::{AgentId, Duration, MessageId};

use super::messages::{message_columns, read_message};
use super::{PostgresStore, get};
use crate::Result;
use crate::bus::{BusRecord, BusStore, Received};
use crate::column::{due, from_json, millis, parsed, time_if, to_json, unsigned};

/// The outbox behind a number, without some.
pub(super) const OUTGOING: &str = concat!(
    "SELECT ",
    message_columns!(),
    " FROM messages
     WHERE delivered_at IS NULL AND sequence > $3 AND sequence <> ALL ($1)
     ORDER BY sequence LIMIT $2"
);

/// Some of the outbox.
pub(super) const OUTGOING_OF: &str = concat!(
    "SELECT ",
    message_columns!(),
    " FROM messages WHERE sequence = ANY ($1) AND coalesce(delivered_at IS NULL, false)
     ORDER BY sequence"
);

/// The numbers of the outbox up to one.
pub(super) const WAITING: &str = "SELECT sequence FROM messages
     WHERE delivered_at IS NULL AND sequence <= $1 ORDER BY sequence";

/// Takes messages out of the outbox, in the order of the numbers, as everybody who locks several
/// messages does.
pub(super) const DELIVER: &str = "WITH known AS MATERIALIZED (
         SELECT sequence, id, recipient, delivered_at IS NULL AS fresh
         FROM messages WHERE id = ANY ($1) ORDER BY sequence + 0 FOR UPDATE
     ), marked AS (
         UPDATE messages SET delivered_at = clock_timestamp()
         WHERE sequence = ANY (ARRAY(SELECT sequence FROM known WHERE fresh))
     )
     SELECT id, recipient, fresh FROM known";

#[async_trait]
impl BusStore for PostgresStore {
    async fn set_relayed(&self, relayed: bool) -> Result<()> {
        self.query(
            "set the way of messages",
            "UPDATE bus SET relayed = $1 WHERE relayed <> $1",
            &[&relayed],
        )
        .await?;
        if !relayed {
            self.query(
                "deliver what waited",
                "UPDATE messages SET delivered_at = clock_timestamp() WHERE delivered_at IS NULL",
                &[],
            )
            .await?;
        }
        Ok(())
    }

    async fn lead(&self, relay: &str, lease: Duration) -> Result<bool> {
        let sql = "UPDATE bus SET relay = $1,
                 relay_until = clock_timestamp() + $2::bigint * interval '1 millisecond'
             WHERE relay = $1 OR relay_until IS NULL OR relay_until < clock_timestamp()
             RETURNING 1";
        Ok(!self.query("lead the relay", sql, &[&relay, &millis(lease)]).await?.is_empty())
    }

    async fn leave(&self, relay: &str) -> Result<()> {
        let sql = "UPDATE bus SET relay = NULL, relay_until = NULL WHERE relay = $1";
        self.query("leave the relay", sql, &[&relay]).await?;
        Ok(())
    }

    async fn bus(&self) -> Result<BusRecord> {
        let sql = "SELECT relayed, state, wish,
                 CASE WHEN relay_until >= clock_timestamp() THEN relay END AS relay FROM bus";
        let rows = self.query("read how the buses are", sql, &[]).await?;
        let Some(row) = rows.first() else { return Ok(BusRecord::default()) };
        Ok(BusRecord {
            relayed: get(row, "relayed")?,
            state: get::<Option<&str>>(row, "state")?.map(from_json).transpose()?,
            wish: get::<Option<&str>>(row, "wish")?.map(from_json).transpose()?,
            relay: get(row, "relay")?,
        })
    }

    async fn note_bus(&self, relay: &str, state: &BusState) -> Result<bool> {
        let sql = "UPDATE bus SET state = $2
             WHERE relay = $1 AND relay_until >= clock_timestamp() RETURNING 1";
        let state = to_json(state)?;
        Ok(!self.query("note how the buses are", sql, &[&relay, &state]).await?.is_empty())
    }

    async fn wish(&self, wish: Option<&BusWish>) -> Result<()> {
        let wish = wish.map(to_json).transpose()?;
        self.query("note the wish for a bus", "UPDATE bus SET wish = $1", &[&wish]).await?;
        Ok(())
    }

    async fn outgoing(&self, after: i64, under_way: &[i64], limit: u32) -> Result<Vec<Message>> {
        let params = [&under_way as _, &i64::from(limit) as _, &after as _];
        let rows = self.query("read the outbox", OUTGOING, &params).await?;
        rows.iter().map(read_message).collect()
    }

    async fn outgoing_of(&self, sequences: &[i64]) -> Result<Vec<Message>> {
        let rows = self.query("read of the outbox", OUTGOING_OF, &[&sequences]).await?;
        rows.iter().map(read_message).collect()
    }

    async fn waiting(&self, up_to: i64) -> Result<Vec<i64>> {
        let rows = self.query("look through the outbox", WAITING, &[&up_to]).await?;
        rows.iter().map(|row| get(row, "sequence")).collect()
    }

    async fn delivered(&self, ids: &[MessageId]) -> Result<Received> {
        let mut unknown: BTreeSet<_> = ids.iter().copied().collect();
        let ids: Vec<_> = unknown.iter().map(|id| id.0).collect();
        let rows = self.query("deliver messages", DELIVER, &[&ids]).await?;
        let mut agents = BTreeSet::new();
        for row in &rows {
            unknown.remove(&MessageId(get(row, "id")?));
            if get(row, "fresh")? {
                agents.insert(parsed::<AgentId>(get(row, "recipient")?)?);
            }
        }
        self.ring_mail(agents.clone());
        Ok(Received {
            agents: agents.into_iter().collect(),
            unknown: unknown.into_iter().collect(),
        })
    }

    async fn arrive(&self, messages: &[NewMessage]) -> Result<()> {
        self.put(messages, true).await?;
        self.ring_mail(messages.iter().map(|m| m.to.clone()).collect());
        Ok(())
    }

    async fn outbox(&self) -> Result<Outbox> {
        let sql = "SELECT count(*) AS waiting, (SELECT count(*) FROM dead_letters) AS dead,
                 (extract(epoch FROM min(created_at)) * 1000000)::bigint AS oldest
             FROM messages WHERE delivered_at IS NULL";
        let rows = self.query("look at the outbox", sql, &[]).await?;
        let Some(row) = rows.first() else { return Ok(Outbox::default()) };
        Ok(Outbox {
            waiting: unsigned(get(row, "waiting")?)?,
            oldest: time_if(get(row, "oldest")?)?,
            dead: unsigned(get(row, "dead")?)?,
        })
    }

    async fn bury(&self, letters: &[DeadLetter]) -> Result<()> {
        let sql = "INSERT INTO dead_letters (id, topic, recipient, sender, kind, body, reason,
                 created_at, died_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7,
                 to_timestamp($8::bigint / 1000000.0), clock_timestamp())
             ON CONFLICT (id) DO NOTHING";
        for letter in letters {
            let to = letter.to.as_ref().map(AgentId::as_str);
            let from = letter.from.as_ref().map(AgentId::as_str);
            let params = [
                &letter.id.0 as _,
                &letter.topic as _,
                &to as _,
                &from as _,
                &letter.kind as _,
                &letter.body.json() as _,
                &letter.reason as _,
                &due(letter.created_at) as _,
            ];
            self.query("keep a dead letter", sql, &params).await?;
        }
        Ok(())
    }
}
