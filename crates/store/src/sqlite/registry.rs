//! The registry of agents.

use async_trait::async_trait;
use resurgam_model::agent::{
    Agent, AgentPage, AgentQuery, AgentState, Heartbeat, HeartbeatTerms, Registration,
};
use resurgam_model::task::Claim;
use resurgam_model::{AgentId, Capability, Duration, InstanceId};
use rusqlite::{Connection, OptionalExtension, named_params, params};

use super::ends::{Ready, return_leases};
use super::fault::Fault;
use super::{SqliteStore, failing, get, id, lookup, now};
use crate::column::{agent_state, micros, own_state, parsed, to_json};
use crate::{Error, Expired, LeasesOf, Order, Registered, Registry, Result};

#[async_trait]
impl Registry for SqliteStore {
    async fn register_all(
        &self,
        registrations: &[(Registration, HeartbeatTerms)],
    ) -> Result<Vec<Registered>> {
        let registrations = registrations.to_vec();
        let request = move |c: &Connection| {
            registrations.iter().map(|(agent, terms)| register(c, agent, terms)).collect()
        };
        let registered: Vec<Registered> = self.writer.run("register agents", request).await?;
        if registered.iter().any(|registered| registered.leases_returned > 0) {
            self.bell.ring_for_all();
        }
        Ok(registered)
    }

    async fn heartbeat(&self, beats: &[Heartbeat]) -> Result<Vec<bool>> {
        let beats = beats.to_vec();
        let request = move |c: &Connection| {
            let now = now();
            beats.iter().map(|beat| heartbeat(c, beat, now)).collect()
        };
        self.writer.run("record heartbeats", request).await
    }

    async fn expire(&self, watched: Duration, keep: Duration, limit: u32) -> Result<Expired> {
        let (watched, keep) = (micros(watched), micros(keep));
        let request = move |c: &Connection| expire(c, watched, keep, limit);
        let expired = self.writer.run("expire agents", request).await?;
        if !expired.gone.is_empty() {
            self.bell.ring_for_all();
        }
        Ok(expired)
    }

    async fn deregister(&self, agent: &AgentId, instance: InstanceId) -> Result<()> {
        let agent = agent.clone();
        let request = move |c: &Connection| {
            let gone = c
                .prepare_cached("DELETE FROM agents WHERE id = ?1 AND instance = ?2")?
                .execute(params![agent.as_str(), instance.0.as_bytes()])?;
            if gone > 0 {
                forget(c, agent.as_str())?;
                return_leases(c, &agent, LeasesOf::Life(instance), &mut Ready::new())?;
            }
            Ok(())
        };
        self.writer.run("deregister an agent", request).await?;
        self.bell.ring_for_all();
        Ok(())
    }

    async fn order(&self, agent: &AgentId, order: &Order) -> Result<Option<Agent>> {
        let (agent, order) = (agent.clone(), order.clone());
        let request = move |c: &Connection| {
            let (drained, reason) = match &order {
                Order::Drain(reason) => (true, reason.as_deref()),
                Order::Resume => (false, None),
            };
            if !drained {
                c.prepare_cached("DELETE FROM agent_failures WHERE agent = ?1")?
                    .execute([agent.as_str()])?;
            }
            c.prepare_cached(
                "UPDATE agents SET drained = ?2, reason = ?3,
                     failing_until = iif(?2, failing_until, NULL)
                 WHERE id = ?1",
            )?
            .execute(params![agent.as_str(), drained, reason])?;
            spread(c, agent.as_str())?;
            lookup::one(c, &agent)
        };
        self.writer.run("give an agent an order", request).await
    }

    async fn forgive(&self, early: Duration) -> Result<Vec<AgentId>> {
        // Looked up by a reader, so that the writer has nothing to do as long as nobody fails.
        let then = now().saturating_add(micros(early));
        let due = move |c: &Connection| failing::due(c, then);
        if self.readers.run("look for failing agents", due).await?.is_empty() {
            return Ok(Vec::new());
        }
        let forgive = move |c: &Connection| failing::forgive(c, early);
        self.writer.run("give failing agents tasks again", forgive).await
    }

    async fn agent(&self, agent: &AgentId) -> Result<Option<Agent>> {
        let agent = agent.clone();
        self.readers.run("read an agent", move |c| lookup::one(c, &agent)).await
    }

    async fn agents(&self, query: &AgentQuery) -> Result<AgentPage> {
        let query = query.clone();
        self.readers.run("list agents", move |c| lookup::page(c, &query)).await
    }

    async fn count_held(&self, limit: u32) -> Result<u64> {
        // Looked up by a reader, so that the writer has nothing to do as long as all is so.
        let differ = self.readers.run("count leases", move |c| differ(c, limit)).await?;
        if differ.is_empty() {
            return Ok(0);
        }
        let request = move |c: &Connection| {
            let mut changed = 0;
            for (agent, held) in &differ {
                let mut statement = c.prepare_cached(
                    "UPDATE agents SET held = ?2 WHERE id = ?1 AND NOT gone AND held <> ?2",
                )?;
                if statement.execute(params![agent, held])? > 0 {
                    spread(c, agent)?;
                    changed += 1;
                }
            }
            Ok(changed)
        };
        self.writer.run("count leases", request).await
    }
}

fn register(
    c: &Connection,
    registration: &Registration,
    terms: &HeartbeatTerms,
) -> Result<Registered, Fault> {
    let (now, agent) = (now(), registration.id.as_str());
    let expire = micros(terms.expire_after);
    let mut statement = c.prepare_cached(
        "INSERT INTO agents (id, instance, capabilities, capacity, labels, version, every_us,
             expire_us, registered_at, seen_at, look_at)
         VALUES (:id, :instance, :capabilities, :capacity, :labels, :version, :every, :expire,
             :now, :now, :look_at)
         ON CONFLICT (id) DO UPDATE SET
             gone = 0, capabilities = excluded.capabilities, capacity = excluded.capacity,
             labels = excluded.labels, version = excluded.version, every_us = excluded.every_us,
             expire_us = excluded.expire_us, seen_at = excluded.seen_at,
             look_at = excluded.look_at,
             registered_at = iif(instance = excluded.instance, registered_at,
                                 excluded.registered_at),
             said = iif(instance = excluded.instance, said, 'available'),
             load = iif(instance = excluded.instance, load, 0),
             held = iif(instance = excluded.instance, held, 0),
             failing_until = iif(instance = excluded.instance, failing_until, NULL),
             reason = iif(instance = excluded.instance OR drained, reason, NULL),
             instance = excluded.instance",
    )?;
    statement.execute(named_params! {
        ":id": agent,
        ":instance": registration.instance.0.as_bytes(),
        ":capabilities": to_json(&registration.capabilities)?,
        ":capacity": registration.capacity,
        ":labels": to_json(&registration.labels)?,
        ":version": registration.version,
        ":every": micros(terms.every),
        ":expire": expire,
        ":now": now,
        ":look_at": now.saturating_add(expire),
    })?;
    c.prepare_cached("DELETE FROM agent_failures WHERE agent = ?1 AND instance <> ?2")?
        .execute(params![agent, registration.instance.0.as_bytes()])?;
    c.prepare_cached("DELETE FROM agent_labels WHERE agent = ?1")?.execute([agent])?;
    let mut label =
        c.prepare_cached("INSERT INTO agent_labels (name, value, agent) VALUES (?1, ?2, ?3)")?;
    for (name, value) in &registration.labels {
        label.execute(params![name, value, agent])?;
    }
    c.prepare_cached("DELETE FROM agent_capabilities WHERE agent = ?1")?.execute([agent])?;
    let mut able = c.prepare_cached(
        "INSERT INTO agent_capabilities (capability, agent, free) VALUES (?1, ?2, -1)
         ON CONFLICT DO NOTHING",
    )?;
    for capability in &registration.capabilities {
        able.execute(params![Capability::as_str(capability), agent])?;
    }
    spread(c, agent)?;
    let earlier = LeasesOf::EarlierLives(registration.instance);
    Ok(Registered {
        leases_returned: return_leases(c, &registration.id, earlier, &mut Ready::new())?,
    })
}

fn heartbeat(c: &Connection, beat: &Heartbeat, now: i64) -> Result<bool, Fault> {
    let (agent, instance) = (beat.id.as_str(), beat.instance.0);
    if beat.is_plain() {
        let mut statement = c.prepare_cached(
            "UPDATE agents SET seen_at = ?3 WHERE id = ?1 AND instance = ?2 AND NOT gone",
        )?;
        return Ok(statement.execute(params![agent, instance.as_bytes(), now])? == 1);
    }
    let (said, load) = own_state(beat);
    let mut statement = c.prepare_cached(
        "UPDATE agents SET
             seen_at = ?3, said = coalesce(?4, said), load = coalesce(?5, load),
             reason = CASE WHEN drained OR failing_until IS NOT NULL THEN reason
                 WHEN ?4 IS NOT NULL THEN ?6 ELSE coalesce(?6, reason) END
         WHERE id = ?1 AND instance = ?2 AND NOT gone",
    )?;
    let known =
        statement.execute(params![agent, instance.as_bytes(), now, said, load, beat.reason])? == 1;
    if known {
        spread(c, agent)?;
    }
    Ok(known)
}

/// Brings the look-up table into line with an agent.
pub(super) fn spread(c: &Connection, agent: &str) -> Result<(), Fault> {
    let mut statement = c.prepare_cached(
        "UPDATE agent_capabilities AS c SET free = a.free
         FROM (SELECT id, iif(state = 'available', max(capacity - max(load, held), 0), -1) AS free
               FROM agents WHERE id = ?1) AS a
         WHERE c.agent = a.id AND c.free <> a.free",
    )?;
    statement.execute([agent])?;
    Ok(())
}

/// What is kept of an agent beside its row goes with it.
fn forget(c: &Connection, agent: &str) -> Result<(), Fault> {
    c.prepare_cached("DELETE FROM agent_capabilities WHERE agent = ?1")?.execute([agent])?;
    c.prepare_cached("DELETE FROM agent_labels WHERE agent = ?1")?.execute([agent])?;
    c.prepare_cached("DELETE FROM agent_failures WHERE agent = ?1")?.execute([agent])?;
    Ok(())
}

/// Those whose time to be looked at has come.
pub(super) const DUE: &str = "SELECT id, instance, gone, seen_at, expire_us FROM agents
     WHERE look_at <= ?1 ORDER BY look_at LIMIT ?2";

fn expire(c: &Connection, watched: i64, keep: i64, limit: u32) -> Result<Expired, Fault> {
    let now = now();
    let mut due = Vec::new();
    let mut statement = c.prepare_cached(DUE)?;
    let mut rows = statement.query(params![now, limit])?;
    while let Some(row) = rows.next()? {
        let agent: AgentId = parsed(&get::<String>(row, "id")?)?;
        let seen = get::<i64>(row, "seen_at")?.max(now.saturating_sub(watched));
        let until = seen.saturating_add(get(row, "expire_us")?);
        due.push((agent, InstanceId(id(row, "instance")?), get::<bool>(row, "gone")?, until));
    }
    drop(rows);
    let mut expired = Expired { seen: due.len() as u64, ..Expired::default() };
    for (agent, instance, gone, until) in due {
        if gone {
            c.prepare_cached("DELETE FROM agents WHERE id = ?1")?.execute([agent.as_str()])?;
            forget(c, agent.as_str())?;
            expired.removed += 1;
        } else if until > now {
            c.prepare_cached("UPDATE agents SET look_at = ?2 WHERE id = ?1")?
                .execute(params![agent.as_str(), until])?;
        } else {
            c.prepare_cached(
                "UPDATE agents SET gone = 1, load = 0, held = 0, look_at = ?2 WHERE id = ?1",
            )?
            .execute(params![agent.as_str(), now.saturating_add(keep)])?;
            spread(c, agent.as_str())?;
            return_leases(c, &agent, LeasesOf::Life(instance), &mut Ready::new())?;
            expired.gone.push(agent);
        }
    }
    expired.gone.sort();
    Ok(expired)
}

/// Agents of which another number of leases is on record than they hold.
fn differ(c: &Connection, limit: u32) -> Result<Vec<(String, i64)>, Fault> {
    let mut found = Vec::new();
    for sql in [
        "SELECT a.id AS id, t.held AS held
         FROM (SELECT held_by, count(*) AS held FROM tasks WHERE state = 'running'
               GROUP BY held_by) AS t CROSS JOIN agents AS a ON a.id = t.held_by
         WHERE a.held <> t.held AND NOT a.gone LIMIT ?1",
        "SELECT id, 0 AS held FROM agents AS a
         WHERE held > 0 AND NOT EXISTS
             (SELECT 1 FROM tasks WHERE state = 'running' AND held_by = a.id) LIMIT ?1",
    ] {
        let mut statement = c.prepare_cached(sql)?;
        let rows = statement.query_map([limit], |row| Ok((row.get("id")?, row.get("held")?)))?;
        found.extend(rows.collect::<Result<Vec<_>, _>>()?);
    }
    Ok(found)
}

/// Why an agent that claims is given nothing, after the claim found it not available.
pub(super) fn no_claim(c: &Connection, claim: &Claim) -> Fault {
    let state = || -> Result<Option<AgentState>, Fault> {
        let state: Option<String> = c
            .prepare_cached(
                "SELECT state FROM agents WHERE id = ?1 AND instance = ?2 AND NOT gone",
            )?
            .query_row(params![claim.agent.as_str(), claim.instance.0.as_bytes()], |row| row.get(0))
            .optional()?;
        Ok(state.map(|state| agent_state(&state, false)).transpose()?)
    };
    match state() {
        Ok(Some(state)) => Error::NoTasks { agent: claim.agent.clone(), state }.into(),
        Ok(None) => Error::UnknownAgent(claim.agent.clone()).into(),
        Err(fault) => fault,
    }
}
