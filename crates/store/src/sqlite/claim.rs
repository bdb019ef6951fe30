//! Claiming tasks.

use std::collections::HashMap;

use resurgam_model::limit::{Bucket, Limit};
use resurgam_model::task::{Claim, Lease, Token};
use resurgam_model::{Capability, ClaimId, TaskId, Timestamp};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::fault::Fault;
use super::registry::no_claim;
use super::{get, id, now};
use crate::allowance::{self, Usage};
use crate::column::{from_json, micros, parsed, payload, time, time_if, unsigned};

pub(super) fn claim(c: &Connection, claim: &Claim) -> Result<Vec<Lease>, Fault> {
    // Also for one that drains by now: what it took it may finish.
    if let (Some(id), true) = (claim.id, claim.again) {
        let leases = taken_before(c, claim, id)?;
        if !leases.is_empty() {
            return Ok(leases);
        }
    }
    let known = c
        .prepare_cached(
            "SELECT 1 FROM agents WHERE id = ?1 AND instance = ?2 AND state = 'available'",
        )?
        .exists(params![claim.agent.as_str(), claim.instance.0.as_bytes()])?;
    if !known {
        return Err(no_claim(c, claim));
    }
    let mut turns: Vec<&Capability> = Vec::new();
    for capability in &claim.capabilities {
        if !turns.contains(&capability) {
            turns.push(capability);
        }
    }
    let now = now();
    let mut leases = Vec::new();
    let left = |leases: &Vec<Lease>| {
        claim.max.saturating_sub(u32::try_from(leases.len()).unwrap_or(u32::MAX))
    };
    // First an equal share for each, then the rest for those that had their whole share.
    let mut share = share(claim.max, turns.len());
    for _ in 0..2 {
        let mut more = Vec::new();
        for capability in turns {
            let wanted = share.min(left(&leases));
            if wanted == 0 {
                break;
            }
            let before = left(&leases);
            match limit(c, capability)? {
                None => {
                    let found = ready(c, capability, wanted)?;
                    take(c, claim, now, &found, false, &mut leases)?;
                }
                Some((limit, bucket)) => {
                    let kind = (capability, &limit, bucket);
                    claim_limited(c, claim, kind, (now, wanted), &mut leases)?;
                }
            }
            if before.saturating_sub(left(&leases)) == wanted {
                more.push(capability);
            }
        }
        turns = more;
        share = left(&leases);
    }
    Ok(leases)
}

fn share(of: u32, among: usize) -> u32 {
    of.div_ceil(u32::try_from(among.max(1)).unwrap_or(u32::MAX))
}

fn limit(c: &Connection, capability: &Capability) -> Result<Option<(Limit, Bucket)>, Fault> {
    let mut statement =
        c.prepare_cached("SELECT spec, level, level_at FROM limits WHERE capability = ?1")?;
    let mut rows = statement.query([capability.as_str()])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let limit = from_json(&get::<String>(row, "spec")?)?;
    let at = time_if(get(row, "level_at")?)?;
    let level = get::<Option<f64>>(row, "level")?.zip(at);
    Ok(Some((limit, Bucket { level })))
}

/// The first tasks of the queue of a capability.
fn ready(c: &Connection, capability: &Capability, most: u32) -> Result<Vec<i64>, Fault> {
    if most == 0 {
        return Ok(Vec::new());
    }
    let mut statement = c.prepare_cached(
        "SELECT seq FROM tasks WHERE state = 'ready' AND capability = ?1
         ORDER BY priority DESC, seq LIMIT ?2",
    )?;
    let found = statement.query_map(params![capability.as_str(), most], |row| row.get(0))?;
    Ok(found.collect::<Result<_, _>>()?)
}

/// Gives out leases on tasks.
fn take(
    c: &Connection,
    claim: &Claim,
    now: i64,
    tasks: &[i64],
    limited: bool,
    leases: &mut Vec<Lease>,
) -> Result<(), Fault> {
    let until = now.saturating_add(micros(claim.lease));
    let mut statement = c.prepare_cached(
        "UPDATE tasks
         SET state = 'running', token = token + 1, attempts = attempts + 1,
             held_by = ?2, held_instance = ?3, claim_id = ?4, started_at = ?5,
             lease_until = min(?6, ifnull(?5 + timeout_ms * 1000, ?6)),
             timeout_at = ?5 + timeout_ms * 1000, limited = ?7
         WHERE seq = ?1
         RETURNING id, token, capability, payload, attempts, lease_until, timeout_at",
    )?;
    for seq in tasks {
        let mut rows = statement.query(params![
            seq,
            claim.agent.as_str(),
            claim.instance.0.as_bytes(),
            claim.id.map(|id| *id.0.as_bytes()),
            now,
            until,
            limited.then_some(1),
        ])?;
        while let Some(row) = rows.next()? {
            leases.push(read_lease(row)?);
        }
    }
    Ok(())
}

fn read_lease(row: &Row<'_>) -> Result<Lease, Fault> {
    Ok(Lease {
        task: TaskId(id(row, "id")?),
        token: Token(get(row, "token")?),
        capability: parsed(&get::<String>(row, "capability")?)?,
        payload: payload(get(row, "payload")?)?,
        attempt: unsigned(get(row, "attempts")?)?,
        until: time(get(row, "lease_until")?)?,
        timeout_at: time_if(get(row, "timeout_at")?)?,
    })
}

/// What a claim took whose answer was lost.
fn taken_before(c: &Connection, claim: &Claim, id: ClaimId) -> Result<Vec<Lease>, Fault> {
    let mut statement = c.prepare_cached(
        "SELECT id, token, capability, payload, attempts, lease_until, timeout_at FROM tasks
         WHERE state = 'running' AND held_by = ?1 AND held_instance = ?2 AND claim_id = ?3
         ORDER BY seq",
    )?;
    let life = claim.instance.0.as_bytes();
    let mut rows = statement.query(params![claim.agent.as_str(), life, id.0.as_bytes()])?;
    let mut leases = Vec::new();
    while let Some(row) = rows.next()? {
        leases.push(read_lease(row)?);
    }
    Ok(leases)
}

/// Takes what the limit of a capability allows.
fn claim_limited(
    c: &Connection,
    claim: &Claim,
    (capability, limit, bucket): (&Capability, &Limit, Bucket),
    (micros, wanted): (i64, u32),
    leases: &mut Vec<Lease>,
) -> Result<(), Fault> {
    let now = time(micros)?;
    let mut usage = Usage { bucket, ..Usage::default() };
    let mut statement = c.prepare_cached(
        "SELECT ifnull(key, ''), count(*) FROM tasks WHERE limited = 1 AND capability = ?1
         GROUP BY 1",
    )?;
    let mut rows = statement.query([capability.as_str()])?;
    while let Some(row) = rows.next()? {
        usage.running.insert(row.get(0)?, row.get(1)?);
    }
    let total = allowance::total(limit, &usage, now, wanted);
    let before = leases.len();
    if limit.by_key() {
        let chosen = choose_by_key(c, capability, limit, &mut usage, (now, total))?;
        for (key, tasks) in &chosen {
            take(c, claim, micros, tasks, true, leases)?;
            let bucket = usage.keys.get(key).map(|(bucket, _)| *bucket).unwrap_or_default();
            let count = u32::try_from(tasks.len()).unwrap_or(u32::MAX);
            let level = limit.rate_per_key.and_then(|rate| bucket.taken(rate, now, count).level);
            let level = level.map(|(level, _)| level);
            c.prepare_cached(
                "INSERT INTO limit_keys (capability, key, level, level_at) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (capability, key)
                 DO UPDATE SET level = excluded.level, level_at = excluded.level_at",
            )?
            .execute(params![capability.as_str(), key, level, micros])?;
        }
    } else {
        take(c, claim, micros, &ready(c, capability, total)?, true, leases)?;
    }
    if let Some(rate) = limit.rate {
        let taken = leases.len().saturating_sub(before);
        let taken = u32::try_from(taken).unwrap_or(u32::MAX);
        let level = bucket.taken(rate, now, taken).level.map(|(level, _)| level);
        c.prepare_cached("UPDATE limits SET level = ?2, level_at = ?3 WHERE capability = ?1")?
            .execute(params![capability.as_str(), level, micros])?;
    }
    Ok(())
}

/// Chooses tasks key by key. Keys take turns, those first whose last turn is longest ago.
fn choose_by_key(
    c: &Connection,
    capability: &Capability,
    limit: &Limit,
    usage: &mut Usage,
    (now, total): (Timestamp, u32),
) -> Result<Vec<(String, Vec<i64>)>, Fault> {
    if total == 0 {
        return Ok(Vec::new());
    }
    let waiting = waiting_keys(c, capability)?;
    let mut known = c.prepare_cached(
        "SELECT level, level_at FROM limit_keys WHERE capability = ?1 AND key = ?2",
    )?;
    for key in &waiting {
        let found: Option<(Option<f64>, i64)> = known
            .query_row(params![capability.as_str(), key], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        if let Some((level, at)) = found {
            let at = time(at)?;
            let bucket = Bucket { level: level.map(|level| (level, at)) };
            usage.keys.insert(key.clone(), (bucket, at));
        }
    }
    let mut queues = Vec::new();
    let mut statement = c.prepare_cached(
        "SELECT seq FROM tasks WHERE state = 'ready' AND capability = ?1 AND key = ?2
         ORDER BY priority DESC, seq LIMIT ?3",
    )?;
    for (key, allowance) in allowance::by_key(limit, usage, waiting, now, total) {
        // More keys than places: the rest has its turn another time.
        if queues.len() >= usize::try_from(total).unwrap_or(usize::MAX) {
            break;
        }
        let tasks: Vec<i64> = statement
            .query_map(params![capability.as_str(), key, allowance], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        queues.push((key, tasks));
    }
    Ok(take_turns(queues, total))
}

/// The first of each queue, then the second of each, and so on, until `total` are chosen.
fn take_turns(queues: Vec<(String, Vec<i64>)>, total: u32) -> Vec<(String, Vec<i64>)> {
    let mut chosen = HashMap::<usize, usize>::new();
    let mut left = total;
    for round in 0.. {
        let mut any = false;
        for (index, (_, tasks)) in queues.iter().enumerate() {
            if left > 0 && tasks.len() > round {
                *chosen.entry(index).or_default() += 1;
                left -= 1;
                any = true;
            }
        }
        if !any {
            break;
        }
    }
    let cut = |(index, (key, mut tasks)): (usize, (String, Vec<i64>))| {
        tasks.truncate(chosen.get(&index).copied().unwrap_or_default());
        (!tasks.is_empty()).then_some((key, tasks))
    };
    queues.into_iter().enumerate().filter_map(cut).collect()
}

/// The keys for which something waits: jumps along the index from key to key.
fn waiting_keys(c: &Connection, capability: &Capability) -> Result<Vec<String>, Fault> {
    const MOST: usize = 5000;
    let mut statement = c.prepare_cached(
        "SELECT key FROM tasks
         WHERE state = 'ready' AND capability = ?1 AND key IS NOT NULL AND key > ?2
         ORDER BY key LIMIT 1",
    )?;
    let empty = c
        .prepare_cached(
            "SELECT 1 FROM tasks WHERE state = 'ready' AND capability = ?1 AND key = '' LIMIT 1",
        )?
        .exists([capability.as_str()])?;
    let mut keys: Vec<String> = empty.then(String::new).into_iter().collect();
    while keys.len() < MOST {
        let last = keys.last().map_or("", String::as_str);
        let next: Option<String> =
            statement.query_row(params![capability.as_str(), last], |row| row.get(0)).optional()?;
        match next {
            Some(key) => keys.push(key),
            None => break,
        }
    }
    Ok(keys)
}
