//! The outbox, the inbox, and the row about the buses.

use std::collections::{BTreeSet, HashSet};

use async_trait::async_trait;
use resurgam_model::bus::{BusState, BusWish, Outbox};
use resurgam_model::message::{DeadLetter, Message, NewMessage};
use resurgam_model::{AgentId, Duration, MessageId};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::fault::Fault;
use super::messages::{insert, read_message};
use super::{SqliteStore, get, now};
use crate::Result;
use crate::bus::{BusRecord, BusStore, Received};
use crate::column::{due, from_json, micros, parsed, time_if, to_json, unsigned};

#[async_trait]
impl BusStore for SqliteStore {
    async fn set_relayed(&self, relayed: bool) -> Result<()> {
        let request = move |c: &Connection| {
            c.prepare_cached("UPDATE bus SET relayed = ?1 WHERE relayed <> ?1")?
                .execute([relayed])?;
            if !relayed {
                c.prepare_cached(
                    "UPDATE messages SET delivered_at = ?1 WHERE delivered_at IS NULL",
                )?
                .execute([now()])?;
            }
            Ok(())
        };
        self.writer.run("set the way of messages", request).await
    }

    async fn lead(&self, relay: &str, lease: Duration) -> Result<bool> {
        let relay = relay.to_owned();
        let request = move |c: &Connection| {
            let now = now();
            let mut statement = c.prepare_cached(
                "UPDATE bus SET relay = ?1, relay_until = ?2
                 WHERE relay = ?1 OR relay_until IS NULL OR relay_until < ?3",
            )?;
            let until = now.saturating_add(micros(lease));
            Ok(statement.execute(params![relay, until, now])? > 0)
        };
        self.writer.run("lead the relay", request).await
    }

    async fn leave(&self, relay: &str) -> Result<()> {
        let relay = relay.to_owned();
        let request = move |c: &Connection| {
            c.prepare_cached("UPDATE bus SET relay = NULL, relay_until = NULL WHERE relay = ?1")?
                .execute([relay.as_str()])?;
            Ok(())
        };
        self.writer.run("leave the relay", request).await
    }

    async fn bus(&self) -> Result<BusRecord> {
        let request = |c: &Connection| {
            let mut statement = c.prepare_cached("SELECT * FROM bus")?;
            let mut rows = statement.query([])?;
            let Some(row) = rows.next()? else { return Ok(BusRecord::default()) };
            let until: Option<i64> = get(row, "relay_until")?;
            let state: Option<String> = get(row, "state")?;
            let wish: Option<String> = get(row, "wish")?;
            Ok(BusRecord {
                relayed: get(row, "relayed")?,
                state: state.as_deref().map(from_json).transpose()?,
                wish: wish.as_deref().map(from_json).transpose()?,
                relay: if until >= Some(now()) { get(row, "relay")? } else { None },
            })
        };
        self.readers.run("read how the buses are", request).await
    }

    async fn note_bus(&self, relay: &str, state: &BusState) -> Result<bool> {
        let (relay, state) = (relay.to_owned(), to_json(state)?);
        let request = move |c: &Connection| {
            let mut statement = c.prepare_cached(
                "UPDATE bus SET state = ?2 WHERE relay = ?1 AND relay_until >= ?3",
            )?;
            Ok(statement.execute(params![relay, state, now()])? > 0)
        };
        self.writer.run("note how the buses are", request).await
    }

    async fn wish(&self, wish: Option<&BusWish>) -> Result<()> {
        let wish = wish.map(to_json).transpose()?;
        let request = move |c: &Connection| {
            c.prepare_cached("UPDATE bus SET wish = ?1")?.execute([&wish])?;
            Ok(())
        };
        self.writer.run("note the wish for a bus", request).await
    }

    async fn outgoing(&self, after: i64, under_way: &[i64], limit: u32) -> Result<Vec<Message>> {
        let under_way: HashSet<i64> = under_way.iter().copied().collect();
        let request = move |c: &Connection| {
            let mut statement = c.prepare_cached(
                "SELECT * FROM messages WHERE delivered_at IS NULL AND sequence > ?1
                 ORDER BY sequence",
            )?;
            let mut rows = statement.query([after])?;
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            let mut messages = Vec::new();
            while messages.len() < limit {
                let Some(row) = rows.next()? else { break };
                if !under_way.contains(&get(row, "sequence")?) {
                    messages.push(read_message(row)?);
                }
            }
            Ok(messages)
        };
        self.readers.run("read the outbox", request).await
    }

    async fn outgoing_of(&self, sequences: &[i64]) -> Result<Vec<Message>> {
        let mut sequences = sequences.to_vec();
        sequences.sort_unstable();
        let request = move |c: &Connection| {
            let mut look = c.prepare_cached(
                "SELECT * FROM messages WHERE sequence = ?1 AND delivered_at IS NULL",
            )?;
            let mut messages = Vec::new();
            for sequence in sequences {
                let mut rows = look.query([sequence])?;
                if let Some(row) = rows.next()? {
                    messages.push(read_message(row)?);
                }
            }
            Ok(messages)
        };
        self.readers.run("read of the outbox", request).await
    }

    async fn waiting(&self, up_to: i64) -> Result<Vec<i64>> {
        let request = move |c: &Connection| {
            let mut look = c.prepare_cached(
                "SELECT sequence FROM messages WHERE delivered_at IS NULL AND sequence <= ?1
                 ORDER BY sequence",
            )?;
            let mut rows = look.query([up_to])?;
            let mut sequences = Vec::new();
            while let Some(row) = rows.next()? {
                sequences.push(get(row, "sequence")?);
            }
            Ok(sequences)
        };
        self.readers.run("look through the outbox", request).await
    }

    async fn delivered(&self, ids: &[MessageId]) -> Result<Received> {
        let ids = ids.to_vec();
        let request = move |c: &Connection| deliver(c, &ids);
        let received = self.writer.run("deliver messages", request).await?;
        self.ring_mail(received.agents.iter().cloned());
        Ok(received)
    }

    async fn arrive(&self, messages: &[NewMessage]) -> Result<()> {
        let letters = messages.to_vec();
        let request = move |c: &Connection| {
            let now = now();
            letters.iter().try_for_each(|message| insert(c, message, now, true))
        };
        self.writer.run("take in messages", request).await?;
        self.ring_mail(messages.iter().map(|m| m.to.clone()));
        Ok(())
    }

    async fn outbox(&self) -> Result<Outbox> {
        let request = |c: &Connection| {
            let mut statement = c.prepare_cached(
                "SELECT count(*) AS waiting, min(created_at) AS oldest,
                     (SELECT count(*) FROM dead_letters) AS dead
                 FROM messages WHERE delivered_at IS NULL",
            )?;
            let mut rows = statement.query([])?;
            let Some(row) = rows.next()? else { return Ok(Outbox::default()) };
            Ok(Outbox {
                waiting: unsigned(get(row, "waiting")?)?,
                oldest: time_if(get(row, "oldest")?)?,
                dead: unsigned(get(row, "dead")?)?,
            })
        };
        self.readers.run("look at the outbox", request).await
    }

    async fn bury(&self, letters: &[DeadLetter]) -> Result<()> {
        let letters = letters.to_vec();
        let request = move |c: &Connection| {
            let mut statement = c.prepare_cached(
                "INSERT INTO dead_letters (id, topic, recipient, sender, kind, body, reason,
                     created_at, died_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT (id) DO NOTHING",
            )?;
            for letter in &letters {
                let to = letter.to.as_ref().map(AgentId::as_str);
                let from = letter.from.as_ref().map(AgentId::as_str);
                statement.execute(params![
                    letter.id.0.as_bytes(),
                    letter.topic,
                    to,
                    from,
                    letter.kind,
                    letter.body.json(),
                    letter.reason,
                    due(letter.created_at),
                    now()
                ])?;
            }
            Ok(())
        };
        self.writer.run("keep dead letters", request).await
    }
}

fn deliver(c: &Connection, ids: &[MessageId]) -> Result<Received, Fault> {
    let now = now();
    let mut agents = BTreeSet::new();
    let mut received = Received::default();
    let mut mark = c.prepare_cached(
        "UPDATE messages SET delivered_at = ?2 WHERE id = ?1 AND delivered_at IS NULL
         RETURNING recipient",
    )?;
    let mut look = c.prepare_cached("SELECT 1 FROM messages WHERE id = ?1")?;
    for id in ids {
        let key = id.0.as_bytes();
        let recipient: Option<String> =
            mark.query_row(params![key, now], |row| row.get(0)).optional()?;
        match recipient {
            Some(agent) => drop(agents.insert(parsed::<AgentId>(&agent)?)),
            None if look.exists([key])? => {}
            None => received.unknown.push(*id),
        }
    }
    received.agents = agents.into_iter().collect();
    Ok(received)
}
