//! Claiming tasks.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::SystemTime;

use resurgam_model::task::{Claim, Lease, Token};
use resurgam_model::{Capability, ClaimId, TaskId};
use tokio_postgres::Row;
use uuid::Uuid;

use super::{PostgresStore, get};
use crate::Result;
use crate::column::{micros, moment, parsed, payload, unsigned};

/// Turns the rows of `picked`, which must hold their locks, into leases. The parameters 1, 2, 4
/// and 5 are the agent, its life, the length of the leases and the claim's id.
macro_rules! take {
    ($limited:literal) => {
        concat!(
            "claimed AS (
                UPDATE tasks AS t SET
                    state = 'running', token = token + 1, attempts = attempts + 1, held_by = $1,
                    held_instance = $2, claim_id = $5::uuid, started_at = now(),
                    lease_until = least(
                        now() + $4::bigint * interval '1 microsecond',
                        now() + timeout_ms * interval '1 millisecond'),
                    timeout_at = now() + timeout_ms * interval '1 millisecond',
                    limited = ",
            $limited,
            "
                FROM picked WHERE t.ctid = picked.at
                RETURNING t.id, t.token, t.capability, t.payload, t.attempts, t.priority, t.key,
                    t.lease_until,
                    t.timeout_at
            )"
        )
    };
}
pub(super) use take;

/// Of the agent only its name leads to an index: with statistics from when there were few agents,
/// reading all that are available would look as cheap.
///
/// The agent's row is locked against its expiry and against its next life until commit, and so
/// these see the claim. The walk along the index is one for each capability, since one for all
/// would have to sort everything that is ready. Of what several capabilities give, the surplus
/// stays locked until commit, and others pass over it. The shares of capabilities with a limit,
/// in their turns, are left to a transaction of their own.
pub(super) const CLAIM: &str = concat!(
    "WITH me AS MATERIALIZED (
        SELECT id FROM agents
        WHERE id = $1 AND instance = $2 AND coalesce(state = 'available', false) FOR SHARE
    ), picked AS MATERIALIZED (
        SELECT t.at FROM unnest($3::text[]) WITH ORDINALITY AS c (capability, turn)
        CROSS JOIN LATERAL (
            SELECT ctid AS at FROM tasks
            WHERE state = 'ready' AND capability = c.capability
                AND EXISTS (SELECT FROM me)
                AND NOT EXISTS (SELECT FROM limits AS l WHERE l.capability = c.capability)
            ORDER BY priority DESC, id LIMIT $7 FOR UPDATE SKIP LOCKED
        ) AS t
        ORDER BY c.turn LIMIT $6 - (
            SELECT coalesce(sum(greatest(least($7, $6 - $7 * (c.turn - 1)), 0)), 0)::bigint
            FROM unnest($3::text[]) WITH ORDINALITY AS c (capability, turn)
            JOIN limits AS l ON l.capability = c.capability)
    ), ",
    take!("NULL"),
    " SELECT EXISTS (SELECT FROM me) AS known,
         ARRAY (SELECT capability FROM limits WHERE capability = ANY ($3)) AS limits, c.*
     FROM (SELECT) AS one LEFT JOIN claimed AS c ON true"
);

/// What a claim took whose answer was lost.
pub(super) const AGAIN: &str = "SELECT id, token, capability, payload, attempts, priority, key,
         lease_until, timeout_at
     FROM tasks
     WHERE state = 'running' AND held_by = $1 AND held_instance = $2 AND claim_id = $3";

impl PostgresStore {
    pub(super) async fn claim_tasks(&self, claim: &Claim) -> Result<Vec<Lease>> {
        if let (Some(id), true) = (claim.id, claim.again) {
            let leases = self.taken_before(claim, id).await?;
            if !leases.is_empty() {
                return Ok(leases);
            }
        }
        let turns = turns(&claim.capabilities);
        let mut found = Found { max: claim.max, leases: Vec::new() };
        // First an equal share for each, then the rest for those that had their whole share.
        let share = found.share(turns.len());
        // The first round also tells whether the agent is known, whatever it wants.
        let rows = self.claim_once(claim, &turns, found.left(), share).await?;
        let limits: Vec<&str> = rows.first().map_or(Ok(Vec::new()), |row| get(row, "limits"))?;
        if !rows.first().map_or(Ok(false), |row| get(row, "known"))? {
            return Err(self.no_claim(claim).await);
        }
        let counts = found.take(&rows, &turns)?;
        let (limited, mut free): (Vec<_>, Vec<_>) =
            turns.into_iter().partition(|c| limits.contains(&c.as_str()));
        if limited.is_empty() {
            free.retain(|c| counts.get(c).copied().unwrap_or_default() >= share);
        } else if found.left() > 0 {
            self.claim_limited(claim, &limited, &mut found).await?;
        }
        if !free.is_empty() && found.left() > 0 {
            let rows = self.claim_once(claim, &free, found.left(), found.left()).await?;
            if !rows.first().map_or(Ok(false), |row| get(row, "known"))? {
                return Err(self.no_claim(claim).await);
            }
            found.take(&rows, &free)?;
        }
        Ok(found.leases)
    }

    async fn claim_once(
        &self,
        claim: &Claim,
        turns: &[Capability],
        max: u32,
        share: u32,
    ) -> Result<Vec<Row>> {
        let (max, share, lease) = (i64::from(max), i64::from(share), micros(claim.lease));
        let id = claim.id.map(|id| id.0);
        let (agent, life) = (claim.agent.as_str(), claim.instance.0);
        let capabilities: Vec<_> = turns.iter().map(Capability::as_str).collect();
        self.query("claim tasks", CLAIM, &[&agent, &life, &capabilities, &lease, &id, &max, &share])
            .await
    }

    /// Waits for claims of this agent that are under way, since the one that is asked for may be
    /// among them, and then looks what it took.
    async fn taken_before(&self, claim: &Claim, id: ClaimId) -> Result<Vec<Lease>> {
        let mut session = self.session("look for an earlier claim").await?;
        session.batch("BEGIN").await?;
        let lock = "SELECT 1 FROM agents WHERE id = $1 FOR UPDATE";
        session.query(lock, &[&claim.agent.as_str()]).await?;
        let rows = session.query(AGAIN, &[&claim.agent.as_str(), &claim.instance.0, &id.0]).await?;
        session.batch("COMMIT").await?;
        session.finish();
        let mut found = Found { max: u32::MAX, leases: Vec::new() };
        found.take(&rows, &turns(&claim.capabilities))?;
        Ok(found.leases)
    }
}

/// Each capability once, in the order of their turns.
fn turns(capabilities: &[Capability]) -> Vec<Capability> {
    let mut turns: Vec<Capability> = Vec::with_capacity(capabilities.len());
    for capability in capabilities {
        if !turns.contains(capability) {
            turns.push(capability.clone());
        }
    }
    turns
}

/// What a claim has found so far.
pub(super) struct Found {
    max: u32,
    pub(super) leases: Vec<Lease>,
}

impl Found {
    /// How many more are wanted.
    pub(super) fn left(&self) -> u32 {
        self.max.saturating_sub(u32::try_from(self.leases.len()).unwrap_or(u32::MAX))
    }

    /// An equal share of what is wanted, rounded up.
    pub(super) fn share(&self, among: usize) -> u32 {
        self.left().div_ceil(u32::try_from(among.max(1)).unwrap_or(u32::MAX))
    }

    /// Takes leases, in the order of the turns. Answers how many there were of each capability.
    pub(super) fn take(
        &mut self,
        rows: &[Row],
        turns: &[Capability],
    ) -> Result<HashMap<Capability, u32>> {
        let mut counts = HashMap::new();
        let mut taken = Vec::with_capacity(rows.len());
        for row in rows {
            let Some(task) = get::<Option<Uuid>>(row, "id")? else { continue };
            let capability: Capability = parsed(get(row, "capability")?)?;
            let turn = turns.iter().position(|c| *c == capability);
            *counts.entry(capability.clone()).or_default() += 1;
            let lease = Lease {
                task: TaskId(task),
                token: Token(get(row, "token")?),
                capability,
                payload: payload(get(row, "payload")?)?,
                attempt: unsigned(i64::from(get::<i32>(row, "attempts")?))?,
                until: moment(get(row, "lease_until")?)?,
                timeout_at: get::<Option<SystemTime>>(row, "timeout_at")?
                    .map(moment)
                    .transpose()?,
            };
            taken.push(((turn, Reverse(get::<i16>(row, "priority")?), task), lease));
        }
        taken.sort_by_key(|(place, _)| *place);
        self.leases.extend(taken.into_iter().map(|(_, lease)| lease));
        Ok(counts)
    }
}
