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

    async fn outgoing(&self, under_way: &[i64], limit: u32) -> Result<Vec<Message>> {
        let sql = concat!(
            "SELECT ",
            message_columns!(),
            " FROM messages
             LEFT JOIN unnest($1::bigint[]) AS under_way (number) ON number = sequence
             WHERE delivered_at IS NULL AND number IS NULL
             ORDER BY sequence LIMIT $2"
        );
        let rows = self.query("read the outbox", sql, &[&under_way, &i64::from(limit)]).await?;
        rows.iter().map(read_message).collect()
    }

    async fn still_waiting(&self, sequences: &[i64]) -> Result<Vec<i64>> {
        let sql = "SELECT sequence FROM messages
             WHERE sequence = ANY ($1) AND delivered_at IS NULL ORDER BY sequence";
        let rows = self.query("look through the outbox", sql, &[&sequences]).await?;
        rows.iter().map(|row| get(row, "sequence")).collect()
    }

    async fn delivered(&self, ids: &[MessageId]) -> Result<Received> {
        // In the order of the numbers, as everybody who locks several messages does.
        let sql = "WITH asked AS (
                 SELECT DISTINCT id FROM unnest($1::uuid[]) AS id
             ), known AS MATERIALIZED (
                 SELECT m.sequence, m.id, m.recipient, m.delivered_at IS NULL AS fresh
                 FROM messages AS m JOIN asked USING (id)
                 ORDER BY m.sequence FOR UPDATE OF m
             ), marked AS (
                 UPDATE messages SET delivered_at = clock_timestamp()
                 FROM known WHERE messages.sequence = known.sequence AND known.fresh
             )
             SELECT asked.id, known.recipient, coalesce(known.fresh, false) AS fresh
             FROM asked LEFT JOIN known USING (id)
             WHERE known.fresh IS DISTINCT FROM false";
        let ids: Vec<_> = ids.iter().map(|id| id.0).collect();
        let rows = self.query("deliver messages", sql, &[&ids]).await?;
        let mut received = Received::default();
        let mut agents = BTreeSet::new();
        for row in &rows {
            match get::<Option<&str>>(row, "recipient")? {
                Some(agent) => drop(agents.insert(parsed::<AgentId>(agent)?)),
                None => received.unknown.push(MessageId(get(row, "id")?)),
            }
        }
        self.ring_mail(agents.iter().cloned().collect());
        received.agents = agents.into_iter().collect();
        Ok(received)
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
