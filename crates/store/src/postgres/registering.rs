//! Registration of agents, many at once: a fleet that starts, or comes back after an outage, does it
//! all at the same moment, and most of what a registration costs is the same for all that come with it.

use std::collections::{HashMap, HashSet};

use resurgam_model::Capability;
use resurgam_model::agent::{HeartbeatTerms, Registration};
use uuid::Uuid;

use super::registry::free;
use super::session::Session;
use super::take_back::RETURN_THESE;
use super::{PostgresStore, get};
use crate::column::{micros, to_json};
use crate::{Registered, Result};

/// In the order of their ids, as all that locks several agents.
pub(super) const REGISTER: &str = concat!(
    "INSERT INTO agents AS a (id, instance, capabilities, capacity, labels, version, every_us,
         expire_us, registered_at, seen_at, look_at)
     SELECT id, instance, capabilities, capacity, labels, version, every_us, expire_us,
         clock_timestamp(), clock_timestamp(),
         clock_timestamp() + expire_us * interval '1 microsecond'
     FROM unnest($1::text[], $2::uuid[], $3::text[], $4::bigint[], $5::text[], $6::text[],
         $7::bigint[], $8::bigint[])
         AS r (id, instance, capabilities, capacity, labels, version, every_us, expire_us)
     ORDER BY id
     ON CONFLICT (id) DO UPDATE SET
         instance = excluded.instance, gone = false, capabilities = excluded.capabilities,
         capacity = excluded.capacity, labels = excluded.labels, version = excluded.version,
         every_us = excluded.every_us, expire_us = excluded.expire_us,
         seen_at = excluded.seen_at, look_at = excluded.look_at,
         registered_at = CASE WHEN a.instance = excluded.instance
             THEN a.registered_at ELSE excluded.registered_at END,
         said = CASE WHEN a.instance = excluded.instance THEN a.said ELSE 'available' END,
         load = CASE WHEN a.instance = excluded.instance THEN a.load ELSE 0 END,
         held = CASE WHEN a.instance = excluded.instance THEN a.held ELSE 0 END,
         failing_until = CASE WHEN a.instance = excluded.instance THEN a.failing_until END,
         reason = CASE WHEN a.instance = excluded.instance OR a.drained THEN a.reason END
     RETURNING a.id, ",
    free!(),
    " AS free"
);

/// What is kept of agents beside their rows, brought into line with these: agents, lives,
/// capabilities and labels as JSON; then each capability of each agent with its free places, and
/// each label.
pub(super) const TRAITS: &str = "WITH who AS MATERIALIZED (
         SELECT id, instance, capabilities::jsonb AS capabilities, labels::jsonb AS labels
         FROM unnest($1::text[], $2::uuid[], $3::text[], $4::text[])
             AS w (id, instance, capabilities, labels)
     ), no_more AS (
         DELETE FROM agent_capabilities AS c USING who
         WHERE c.agent = who.id AND NOT who.capabilities ? c.capability
     ), no_label AS (
         DELETE FROM agent_labels AS l USING who
         WHERE l.agent = who.id AND NOT who.labels ? l.name
     ), earlier AS (
         DELETE FROM agent_failures AS f USING who
         WHERE f.agent = who.id AND f.instance <> who.instance
     ), labels AS (
         INSERT INTO agent_labels AS l (agent, name, value)
         SELECT agent, name, value FROM unnest($8::text[], $9::text[], $10::text[])
             AS w (agent, name, value)
         ON CONFLICT (agent, name) DO UPDATE SET value = excluded.value
         WHERE l.value <> excluded.value
     )
     INSERT INTO agent_capabilities AS c (agent, capability, free)
     SELECT agent, capability, free FROM unnest($5::text[], $6::text[], $7::bigint[])
         AS w (agent, capability, free)
     ON CONFLICT (agent, capability) DO UPDATE SET free = excluded.free
     WHERE c.free <> excluded.free";

/// What earlier lives of these agents hold. A statement of its own, so that it sees the claims that
/// the locks of the agents' rows waited for. One look into the index for each agent: in a join,
/// statistics from when the queue was empty could have all of its tasks read.
pub(super) const EARLIER: &str = "SELECT t.id, w.agent
     FROM unnest($1::text[], $2::uuid[]) AS w (agent, instance)
     CROSS JOIN LATERAL (
         SELECT id FROM tasks
         WHERE state = 'running' AND held_by = w.agent AND held_instance <> w.instance
         ORDER BY id::text FOR UPDATE
     ) AS t";

impl PostgresStore {
    pub(super) async fn register_agents(
        &self,
        registrations: &[(Registration, HeartbeatTerms)],
    ) -> Result<Vec<Registered>> {
        let mut tries = 0;
        loop {
            match self.register_once(registrations).await {
                Err(error) if error.is_deadlock() && tries < 3 => tries += 1,
                result => return result,
            }
        }
    }

    async fn register_once(
        &self,
        registrations: &[(Registration, HeartbeatTerms)],
    ) -> Result<Vec<Registered>> {
        let mut answers = vec![Registered { leases_returned: 0 }; registrations.len()];
        if registrations.is_empty() {
            return Ok(answers);
        }
        let mut session = self.session("register agents").await?;
        session.batch("BEGIN").await?;
        let mut ready = Vec::new();
        for round in rounds(registrations) {
            let round: Vec<_> =
                round.into_iter().filter_map(|n| Some((n, registrations.get(n)?))).collect();
            let returned = register(&mut session, &round, &mut ready).await?;
            for (n, (registration, _)) in round {
                if let (Some(answer), Some(count)) =
                    (answers.get_mut(n), returned.get(registration.id.as_str()))
                {
                    answer.leases_returned = *count;
                }
            }
        }
        session.batch("COMMIT").await?;
        session.finish();
        self.returned(&ready)?;
        Ok(answers)
    }
}

/// The places of the registrations, in parts that have each agent once at most.
fn rounds(registrations: &[(Registration, HeartbeatTerms)]) -> Vec<Vec<usize>> {
    let mut rounds = Vec::new();
    let mut left: Vec<usize> = (0..registrations.len()).collect();
    while !left.is_empty() {
        let mut seen = HashSet::new();
        let first = |n: &usize| registrations.get(*n).is_some_and(|(r, _)| seen.insert(&r.id));
        let (round, later) = left.into_iter().partition(first);
        rounds.push(round);
        left = later;
    }
    rounds
}

/// Registers agents that are all different. Answers how many leases came back from whom.
async fn register(
    session: &mut Session<'_>,
    round: &[(usize, &(Registration, HeartbeatTerms))],
    ready: &mut Vec<tokio_postgres::Row>,
) -> Result<HashMap<String, u64>> {
    let each = || round.iter().map(|(_, (registration, _))| registration);
    let ids: Vec<_> = each().map(|r| r.id.as_str()).collect();
    let lives: Vec<_> = each().map(|r| r.instance.0).collect();
    let capabilities = each().map(|r| to_json(&r.capabilities)).collect::<Result<Vec<_>>>()?;
    let labels = each().map(|r| to_json(&r.labels)).collect::<Result<Vec<_>>>()?;
    let capacities: Vec<_> = each().map(|r| i64::from(r.capacity)).collect();
    let versions: Vec<_> = each().map(|r| r.version.as_deref()).collect();
    let every: Vec<_> = round.iter().map(|(_, (_, terms))| micros(terms.every)).collect();
    let expire: Vec<_> = round.iter().map(|(_, (_, terms))| micros(terms.expire_after)).collect();
    let params = [
        &ids as _,
        &lives as _,
        &capabilities as _,
        &capacities as _,
        &labels as _,
        &versions as _,
        &every as _,
        &expire as _,
    ];
    let mut free = HashMap::with_capacity(ids.len());
    for row in &session.query(REGISTER, &params).await? {
        free.insert(get::<String>(row, "id")?, get::<i64>(row, "free")?);
    }
    let (mut able, mut can, mut places) = (Vec::new(), Vec::new(), Vec::new());
    let (mut labelled, mut names, mut values) = (Vec::new(), Vec::new(), Vec::new());
    for registration in each() {
        let id = registration.id.as_str();
        let mut seen = HashSet::new();
        for capability in registration.capabilities.iter().map(Capability::as_str) {
            if seen.insert(capability) {
                able.push(id);
                can.push(capability);
                places.push(free.get(id).copied().unwrap_or(-1));
            }
        }
        for (name, value) in &registration.labels {
            labelled.push(id);
            names.push(name.as_str());
            values.push(value.as_str());
        }
    }
    let params = [
        &ids as _,
        &lives as _,
        &capabilities as _,
        &labels as _,
        &able as _,
        &can as _,
        &places as _,
        &labelled as _,
        &names as _,
        &values as _,
    ];
    session.query(TRAITS, &params).await?;
    let (mut held, mut returned) = (Vec::new(), HashMap::new());
    for row in &session.query(EARLIER, &[&ids, &lives]).await? {
        held.push(get::<Uuid>(row, "id")?);
        *returned.entry(get::<String>(row, "agent")?).or_default() += 1;
    }
    // Rare, and the statement is long: to start it costs more than all of the above.
    if !held.is_empty() {
        ready.extend(session.query(RETURN_THESE, &[&held]).await?);
    }
    Ok(returned)
}
