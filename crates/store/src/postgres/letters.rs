//! What becomes of messages that are not delivered.

use std::collections::BTreeSet;

use async_trait::async_trait;
use resurgam_model::message::DeadLetter;
use resurgam_model::{AgentId, MessageId};
use tokio_postgres::Row;

use super::messages::deliver;
use super::{PostgresStore, get};
use crate::Result;
use crate::column::{micros, parsed, parsed_if, payload, small, time, unsigned};
use crate::letters::{DEAD_FOR, DeadLetters, Rejection};

/// A common table expression `buried` that makes dead letters of the rows of the one named, which
/// must be rows of `messages` with the column `why`; the messages stay for a while without their
/// body, so that their ids are known.
macro_rules! bury {
    ($given_up:literal) => {
        concat!(
            "buried AS (
                INSERT INTO dead_letters (id, topic, recipient, sender, kind, body, reply_to,
                    in_reply_to, reason, created_at, died_at)
                SELECT id, topic, recipient, sender, kind, body, reply_to, in_reply_to, why,
                    created_at, clock_timestamp()
                FROM ",
            $given_up,
            " ON CONFLICT (id) DO NOTHING
            ), ended AS (
                UPDATE messages SET acknowledged_at = clock_timestamp(), body = 'null',
                    delivered_at = coalesce(messages.delivered_at, clock_timestamp())
                FROM ",
            $given_up,
            " AS g WHERE messages.sequence = g.sequence
            )"
        )
    };
}

#[async_trait]
impl DeadLetters for PostgresStore {
    async fn reject(
        &self,
        agent: &AgentId,
        sequences: &[i64],
        rejection: &Rejection,
    ) -> Result<u64> {
        let sql = concat!(
            "WITH rejected AS MATERIALIZED (
                 SELECT * FROM messages
                 WHERE recipient = $1 AND sequence = ANY ($2) AND acknowledged_at IS NULL
                   AND delivered_at IS NOT NULL
                 ORDER BY sequence FOR UPDATE
             ), counted AS (
                 UPDATE messages SET rejections = messages.rejections + 1
                 FROM rejected WHERE messages.sequence = rejected.sequence
                   AND rejected.rejections + 1 < $3
             ), given_up AS MATERIALIZED (
                 SELECT *, 'rejected ' || $3::int || ' times by its receiver: ' || $4::text AS why
                 FROM rejected WHERE rejections + 1 >= $3
             ), ",
            bury!("given_up"),
            " SELECT count(*) AS dead FROM given_up"
        );
        let (most, reason) = (small(rejection.max_tries.max(1)), &rejection.reason);
        let params = [&agent.as_str() as _, &sequences as _, &most as _, reason as _];
        let rows = self.query("reject messages", sql, &params).await?;
        rows.first().map_or(Ok(0), |row| unsigned(get(row, "dead")?))
    }

    async fn expire_messages(&self, limit: u32) -> Result<u64> {
        let sql = concat!(
            "WITH given_up AS MATERIALIZED (
                 SELECT *, 'not read within its time to live' AS why FROM messages
                 WHERE expires_at < statement_timestamp() AND acknowledged_at IS NULL
                 ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED
             ), ",
            bury!("given_up"),
            ", forgotten AS (
                 DELETE FROM dead_letters WHERE id IN (
                     SELECT id FROM dead_letters
                     WHERE died_at < statement_timestamp() - $2::bigint * interval '1 microsecond'
                     ORDER BY died_at LIMIT $1)
             )
             SELECT count(*) AS dead FROM given_up"
        );
        let params = [&i64::from(limit) as _, &micros(DEAD_FOR) as _];
        let rows = self.query("give up old messages", sql, &params).await?;
        rows.first().map_or(Ok(0), |row| unsigned(get(row, "dead")?))
    }

    async fn dead_letters(&self, limit: u32) -> Result<Vec<DeadLetter>> {
        let sql = "SELECT id, topic, recipient, sender, kind, body, reason,
                 (extract(epoch FROM created_at) * 1000000)::bigint AS created_at,
                 (extract(epoch FROM died_at) * 1000000)::bigint AS died_at
             FROM dead_letters ORDER BY died_at DESC LIMIT $1";
        let rows = self.query("list dead letters", sql, &[&i64::from(limit)]).await?;
        rows.iter().map(read_dead).collect()
    }

    async fn revive(&self, id: MessageId) -> Result<Option<MessageId>> {
        let sql = concat!(
            "WITH risen AS MATERIALIZED (
                 DELETE FROM dead_letters WHERE id = $1 AND recipient IS NOT NULL RETURNING *
             ), letters AS MATERIALIZED (
                 SELECT $2::uuid AS id, topic, recipient, sender, kind, body, reply_to,
                     in_reply_to, NULL::bigint AS ttl_ms, false AS there, 1 AS n
                 FROM risen
             ), ",
            deliver!("letters"),
            " SELECT recipient FROM letters"
        );
        let new = MessageId::new();
        let rows = self.query("send a dead letter again", sql, &[&id.0, &new.0]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let agent = parsed(get(row, "recipient")?)?;
        self.ring_mail(BTreeSet::from([agent]));
        Ok(Some(new))
    }

    async fn forget_letter(&self, id: MessageId) -> Result<bool> {
        let sql = "DELETE FROM dead_letters WHERE id = $1 RETURNING 1";
        Ok(!self.query("forget a dead letter", sql, &[&id.0]).await?.is_empty())
    }
}

fn read_dead(row: &Row) -> Result<DeadLetter> {
    Ok(DeadLetter {
        id: MessageId(get(row, "id")?),
        topic: get(row, "topic")?,
        to: parsed_if(get(row, "recipient")?)?,
        from: parsed_if(get(row, "sender")?)?,
        kind: get(row, "kind")?,
        body: payload(get(row, "body")?)?,
        reason: get(row, "reason")?,
        created_at: time(get(row, "created_at")?)?,
        died_at: time(get(row, "died_at")?)?,
    })
}
