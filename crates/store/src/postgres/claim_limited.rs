//! Claiming tasks of capabilities that have a limit.
//!
//! The row of the limit is locked until the claim is committed, so that however many claim at
//! once, each sees what the one before took.

use std::collections::HashMap;

use resurgam_model::limit::{Bucket, Limit};
use resurgam_model::task::Claim;
use resurgam_model::{Capability, Timestamp};

use super::claim::{Found, take};
use super::session::{Param, Session};
use super::{PostgresStore, get};
use crate::Result;
use crate::allowance::{self, Usage};
use crate::column::{from_json, micros, parsed, time, time_if, unsigned};

/// So many keys are looked at in one claim.
const MOST_KEYS: i64 = 5000;

/// As in every claim.
const LOCK_AGENT: &str = "SELECT 1 FROM agents
     WHERE id = $1 AND instance = $2 AND coalesce(state = 'available', false) FOR SHARE";

const LOCK: &str = "SELECT capability, spec, level,
         (extract(epoch FROM level_at) * 1000000)::bigint AS level_at,
         (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now
     FROM limits WHERE capability = ANY ($1) ORDER BY capability FOR UPDATE";

const RUNNING: &str = "SELECT coalesce(key, '') AS key, count(*) AS number
     FROM tasks WHERE limited AND capability = $1 GROUP BY 1";

const KEYS: &str = "SELECT key, level, (extract(epoch FROM level_at) * 1000000)::bigint AS level_at
     FROM limit_keys WHERE capability = $1 AND key = ANY ($2)";

/// Tasks that were handed in before the limit came, or at the same moment, get the empty key.
const ADOPT: &str = "UPDATE tasks SET key = '' WHERE id IN (
         SELECT id FROM tasks WHERE state = 'ready' AND capability = $1 AND key IS NULL
         ORDER BY priority DESC, id LIMIT 1000 FOR UPDATE SKIP LOCKED)";

/// The keys for which something waits: jumps along the index from key to key.
const WAITING: &str = "WITH RECURSIVE keys AS (
         (SELECT key FROM tasks
          WHERE state = 'ready' AND capability = $1 AND key IS NOT NULL ORDER BY key LIMIT 1)
         UNION ALL
         SELECT (SELECT t.key FROM tasks AS t
             WHERE t.state = 'ready' AND t.capability = $1 AND t.key IS NOT NULL
                 AND t.key > keys.key
             ORDER BY t.key LIMIT 1)
         FROM keys WHERE keys.key IS NOT NULL
     )
     SELECT key FROM keys WHERE key IS NOT NULL LIMIT $2";

const CLAIM: &str = concat!(
    "WITH picked AS MATERIALIZED (
        SELECT ctid AS at FROM tasks
        WHERE state = 'ready' AND capability = $3
        ORDER BY priority DESC, id LIMIT $6 FOR UPDATE SKIP LOCKED
    ), ",
    take!("true"),
    " SELECT * FROM claimed"
);

/// The keys $7 take turns in their order, each for up to as many as $8 says.
const CLAIM_BY_KEY: &str = concat!(
    "WITH candidates AS (
        SELECT t.id, a.turn,
            row_number() OVER (PARTITION BY a.key ORDER BY t.priority DESC, t.id) AS round
        FROM unnest($7::text[], $8::bigint[]) WITH ORDINALITY AS a (key, allowance, turn)
        CROSS JOIN LATERAL (
            SELECT id, priority FROM tasks
            WHERE state = 'ready' AND capability = $3 AND key = a.key
            ORDER BY priority DESC, id LIMIT a.allowance
        ) AS t
    ), chosen AS MATERIALIZED (
        SELECT id FROM candidates ORDER BY round, turn LIMIT $6
    ), picked AS MATERIALIZED (
        SELECT ctid AS at FROM tasks
        WHERE id IN (SELECT id FROM chosen) AND state = 'ready'
        ORDER BY id FOR UPDATE SKIP LOCKED
    ), ",
    take!("true"),
    " SELECT * FROM claimed"
);

const SPEND: &str = "UPDATE limits SET level = $2,
         level_at = timestamptz 'epoch' + $3::bigint * interval '1 microsecond'
     WHERE capability = $1";

const SPEND_KEYS: &str = "INSERT INTO limit_keys (capability, key, level, level_at)
     SELECT $1, key, level, timestamptz 'epoch' + $4::bigint * interval '1 microsecond'
     FROM unnest($2::text[], $3::double precision[]) AS k (key, level)
     ON CONFLICT (capability, key)
     DO UPDATE SET level = excluded.level, level_at = excluded.level_at";

impl PostgresStore {
    /// Takes what the limits of these capabilities allow.
    pub(super) async fn claim_limited(
        &self,
        claim: &Claim,
        turns: &[Capability],
        found: &mut Found,
    ) -> Result<()> {
        let mut session = self.session("claim limited tasks").await?;
        session.batch("BEGIN").await?;
        let (agent, life) = (claim.agent.as_str(), claim.instance.0);
        if session.query(LOCK_AGENT, &[&agent, &life]).await?.is_empty() {
            drop(session);
            return Err(self.no_claim(claim).await);
        }
        let names: Vec<_> = turns.iter().map(Capability::as_str).collect();
        let mut limits = HashMap::new();
        let mut now = Timestamp::UNIX_EPOCH;
        for row in &session.query(LOCK, &[&names]).await? {
            let limit: Limit = from_json(get(row, "spec")?)?;
            let level: Option<f64> = get(row, "level")?;
            let at = time_if(get(row, "level_at")?)?;
            let bucket = Bucket { level: level.zip(at) };
            now = time(get(row, "now")?)?;
            limits.insert(parsed::<Capability>(get(row, "capability")?)?, (limit, bucket));
        }
        let mut among = limits.len();
        for capability in turns {
            let Some((limit, bucket)) = limits.remove(capability) else { continue };
            let wanted = found.share(among);
            among = among.saturating_sub(1);
            let kind = Kind { capability, limit, bucket, now };
            claim_kind(&mut session, claim, &kind, wanted, found).await?;
        }
        session.batch("COMMIT").await?;
        session.finish();
        Ok(())
    }
}

/// A capability with its limit.
struct Kind<'a> {
    capability: &'a Capability,
    limit: Limit,
    bucket: Bucket,
    now: Timestamp,
}

async fn claim_kind(
    session: &mut Session<'_>,
    claim: &Claim,
    kind: &Kind<'_>,
    wanted: u32,
    found: &mut Found,
) -> Result<()> {
    let Kind { capability, limit, bucket, now } = kind;
    let name = capability.as_str();
    let mut usage = Usage { bucket: *bucket, ..Usage::default() };
    for row in &session.query(RUNNING, &[&name]).await? {
        usage.running.insert(get(row, "key")?, unsigned(get(row, "number")?)?);
    }
    let total = allowance::total(limit, &usage, *now, wanted);
    if total == 0 {
        return Ok(());
    }
    let (agent, life, id) = (claim.agent.as_str(), claim.instance.0, claim.id.map(|id| id.0));
    let (lease, most) = (micros(claim.lease), i64::from(total));
    let rows = if limit.by_key() {
        session.query(ADOPT, &[&name]).await?;
        let rows = session.query(WAITING, &[&name, &MOST_KEYS]).await?;
        let waiting = rows.iter().map(|row| get(row, "key")).collect::<Result<Vec<String>>>()?;
        for row in &session.query(KEYS, &[&name, &waiting]).await? {
            let at = time(get(row, "level_at")?)?;
            let level = get::<Option<f64>>(row, "level")?.map(|level| (level, at));
            usage.keys.insert(get(row, "key")?, (Bucket { level }, at));
        }
        let allowed = allowance::by_key(limit, &usage, waiting, *now, total);
        let (keys, counts): (Vec<_>, Vec<_>) =
            allowed.into_iter().map(|(key, count)| (key, i64::from(count))).unzip();
        let params: [Param<'_>; 8] = [&agent, &life, &name, &lease, &id, &most, &keys, &counts];
        session.query(CLAIM_BY_KEY, &params).await?
    } else {
        session.query(CLAIM, &[&agent, &life, &name, &lease, &id, &most]).await?
    };
    if let Some(rate) = limit.rate {
        let taken = u32::try_from(rows.len()).unwrap_or(u32::MAX);
        let level = bucket.taken(rate, *now, taken).level.map(|(level, _)| level);
        session.query(SPEND, &[&name, &level, &now.as_microsecond()]).await?;
    }
    if limit.by_key() {
        let mut taken = HashMap::<String, u32>::new();
        for row in &rows {
            *taken.entry(get::<Option<String>>(row, "key")?.unwrap_or_default()).or_default() += 1;
        }
        let level = |(key, count): (&String, &u32)| {
            let bucket = usage.keys.get(key).map(|(bucket, _)| *bucket).unwrap_or_default();
            let rate = limit.rate_per_key?;
            bucket.taken(rate, *now, *count).level.map(|(level, _)| level)
        };
        let levels: Vec<Option<f64>> = taken.iter().map(level).collect();
        let keys: Vec<_> = taken.keys().map(String::as_str).collect();
        session.query(SPEND_KEYS, &[&name, &keys, &levels, &now.as_microsecond()]).await?;
    }
    found.take(&rows, std::slice::from_ref(*capability))?;
    Ok(())
}
