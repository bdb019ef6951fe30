//! Agents and the registry that knows them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::{MAX_TEXT, Moment, TEXT_PATTERN, Text};
use crate::{AgentId, Capability, Duration, InstanceId};

/// The most labels and capabilities of one agent.
pub const MAX_TRAITS: usize = 256;

/// What an agent says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Registration {
    /// Its name, stable over restarts.
    pub id: AgentId,
    /// This life of it. Registering under a new one returns the leases of the old one.
    pub instance: InstanceId,
    /// What it can do; empty for an agent that only hands in work.
    #[serde(default)]
    #[schemars(length(max = MAX_TRAITS))]
    pub capabilities: Vec<Capability>,
    /// How many tasks it works on at once.
    #[serde(default = "one")]
    pub capacity: u32,
    /// Free labels: zone, team.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, Text>", extend(
        "maxProperties" = MAX_TRAITS,
        "propertyNames" = { "maxLength": MAX_TEXT, "pattern": TEXT_PATTERN },
    ))]
    pub labels: BTreeMap<String, String>,
    /// The version of its software, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Text>")]
    pub version: Option<String>,
    /// How often it wants to show itself, if that is less often than the registry asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat: Option<Duration>,
}

fn one() -> u32 {
    1
}

impl Registration {
    /// An agent of capacity 1 that says nothing else of itself.
    #[must_use]
    pub fn new(
        id: AgentId,
        instance: InstanceId,
        capabilities: impl IntoIterator<Item = Capability>,
    ) -> Self {
        Self {
            id,
            instance,
            capabilities: capabilities.into_iter().collect(),
            capacity: 1,
            labels: BTreeMap::new(),
            version: None,
            heartbeat: None,
        }
    }
}

/// Where an agent stands.
///
/// Only an agent that is available or busy is given tasks.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum AgentState {
    /// Its heartbeat is fresh, and it has a place free.
    Available,
    /// All its places are taken, as far as was counted last.
    Busy,
    /// It finishes what it has and takes nothing new: it said so, or an operator did.
    Draining,
    /// It said so itself in a heartbeat, or ten different tasks failed with it one after the other: then
    /// it is given tasks again after 30 s, or when one that it has succeeds.
    Unhealthy,
    /// No heartbeat for longer than it promised: its leases have gone back to the queue.
    Gone,
}

impl AgentState {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Available, Self::Busy, Self::Draining, Self::Unhealthy, Self::Gone];

    /// The name in the database and in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Available => "available",
            Self::Busy => "busy",
            Self::Draining => "draining",
            Self::Unhealthy => "unhealthy",
            Self::Gone => "gone",
        }
    }
}

impl fmt::Display for AgentState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A text names no state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no agent state {0:?}; use available, busy, draining, unhealthy or gone")]
pub struct UnknownState(String);

impl FromStr for AgentState {
    type Err = UnknownState;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| UnknownState(text.chars().take(60).collect()))
    }
}

/// An agent as the registry knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Agent {
    /// Its name.
    pub id: AgentId,
    /// Its present life.
    pub instance: InstanceId,
    /// Where it stands.
    pub state: AgentState,
    /// Why, when somebody said so.
    #[serde(default)]
    pub reason: Option<String>,
    /// What it can do.
    pub capabilities: Vec<Capability>,
    /// How many tasks it works on at once.
    pub capacity: u32,
    /// How many of its places are free, as far as was counted last; 0 unless it is available.
    #[serde(default)]
    pub free: u32,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
    /// The version of its software.
    #[serde(default)]
    pub version: Option<String>,
    /// Tasks that it holds now.
    pub running: u64,
    /// The terms of its heartbeats.
    #[serde(default)]
    pub heartbeat: HeartbeatTerms,
    /// When it registered under its present life.
    #[schemars(with = "Moment")]
    pub registered_at: Timestamp,
    /// When it last gave a sign of life.
    #[schemars(with = "Moment")]
    pub seen_at: Timestamp,
}

impl Agent {
    /// An agent that takes tasks is a worker.
    #[must_use]
    pub fn is_worker(&self) -> bool {
        !self.capabilities.is_empty()
    }
}

/// What an agent may say of its own state in a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OwnState {
    /// It works as it should.
    Available,
    /// It works as it should, and all its places are taken.
    Busy,
    /// It finishes what it has and takes nothing new.
    Draining,
    /// It cannot do its work at present.
    Unhealthy,
}

/// A sign of life. What it does not say stays as it was said last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Heartbeat {
    /// The agent.
    pub id: AgentId,
    /// Its life.
    pub instance: InstanceId,
    /// How it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<OwnState>,
    /// How many of its places are taken, work that is not from the queue included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<u32>,
    /// Why it is so, for people; goes with `state`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Text>")]
    pub reason: Option<String>,
}

impl Heartbeat {
    /// A sign of life and nothing more.
    #[must_use]
    pub fn new(id: AgentId, instance: InstanceId) -> Self {
        Self { id, instance, state: None, load: None, reason: None }
    }

    /// It says nothing but that the agent lives.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.state.is_none() && self.load.is_none() && self.reason.is_none()
    }
}

/// How often an agent must show itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HeartbeatTerms {
    /// Send one so often.
    pub every: Duration,
    /// After so long without one the agent counts as gone.
    pub expire_after: Duration,
}

/// An agent may miss two heartbeats: it counts as gone after so many intervals.
const INTERVALS: u32 = 3;

impl HeartbeatTerms {
    /// The longest interval that an agent may ask for.
    pub const LONGEST: Duration = Duration::from_secs(10 * 60);

    /// The terms for an agent that asks for an interval, given those for everybody. One that
    /// asks for a shorter interval gets those for everybody.
    #[must_use]
    pub fn agreed(self, asked: Option<Duration>) -> Self {
        match asked.map(|asked| asked.min(Self::LONGEST)) {
            Some(every) if every > self.every => {
                let expire_after = Duration(every.0 * INTERVALS).max(self.expire_after);
                Self { every, expire_after }
            }
            _ => self,
        }
    }
}

impl Default for HeartbeatTerms {
    fn default() -> Self {
        Self { every: Duration::from_millis(500), expire_after: Duration::from_secs(3) }
    }
}

/// Which agents to look up. All that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentQuery {
    /// Only those that can do this.
    pub capability: Option<Capability>,
    /// Only those that stand there.
    pub state: Option<AgentState>,
    /// Only those with these labels.
    pub labels: BTreeMap<String, String>,
    /// In which order.
    pub sort: AgentOrder,
    /// Only those that come after this: [`AgentPage::next`] of the page before.
    pub after: Option<AgentCursor>,
    /// At most so many; 0 stands for 100, and 1000 is the most.
    pub limit: u32,
}

impl AgentQuery {
    /// The limit that applies.
    #[must_use]
    pub fn effective_limit(&self) -> u32 {
        if self.limit == 0 { 100 } else { self.limit.min(1000) }
    }
}

/// The order of a list of agents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AgentOrder {
    /// By their names, byte by byte.
    #[default]
    Name,
    /// The one with the most free places first. Needs a capability, and lists only agents that
    /// are given tasks unless another state is asked for.
    Load,
}

/// A place in a list of agents. As text `NAME`, or `FREE/NAME` when the order is by load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentCursor {
    /// The free places of the last agent before; none when the order is by name.
    pub free: Option<i64>,
    /// The last agent before.
    pub id: AgentId,
}

impl AgentCursor {
    /// Reads one for a list in this order.
    ///
    /// # Errors
    /// With what is expected, when the text is no such place.
    pub fn parse(text: &str, order: AgentOrder) -> Result<Self, String> {
        let wrong = || format!("{:?} is not the `next` of a page before", short(text));
        let (free, id) = match order {
            AgentOrder::Name => (None, text),
            AgentOrder::Load => {
                let (free, id) = text.split_once('/').ok_or_else(wrong)?;
                (Some(free.parse().map_err(|_| wrong())?), id)
            }
        };
        Ok(Self { free, id: AgentId::new(id).map_err(|_| wrong())? })
    }
}

impl fmt::Display for AgentCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.free {
            Some(free) => write!(f, "{free}/{}", self.id),
            None => self.id.fmt(f),
        }
    }
}

fn short(text: &str) -> String {
    text.chars().take(60).collect()
}

/// A part of a list of agents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentPage {
    /// The agents.
    pub agents: Vec<Agent>,
    /// Where the list goes on, if it does.
    pub next: Option<AgentCursor>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longer_intervals_are_granted_with_room_for_two_that_are_missed() {
        let terms = HeartbeatTerms::default();
        assert_eq!(terms.agreed(None), terms);
        assert_eq!(terms.agreed(Some(Duration::from_millis(20))), terms);
        let second = terms.agreed(Some(Duration::from_millis(700)));
        assert_eq!(second.every, Duration::from_millis(700));
        assert_eq!(second.expire_after, terms.expire_after);
        let ten = terms.agreed(Some(Duration::from_secs(10)));
        assert_eq!(
            (ten.every, ten.expire_after),
            (Duration::from_secs(10), Duration::from_secs(30))
        );
        let endless = terms.agreed(Some(Duration::from_secs(u64::MAX)));
        assert_eq!(endless.every, HeartbeatTerms::LONGEST);
    }

    #[test]
    fn a_cursor_is_what_it_says() {
        for (order, text) in
            [(AgentOrder::Name, "a/b"), (AgentOrder::Load, "3/a/b"), (AgentOrder::Load, "-1/a")]
        {
            assert_eq!(AgentCursor::parse(text, order).unwrap().to_string(), text);
        }
        for text in ["", "a", "x/a", "1/", "99999999999999999999/a"] {
            assert!(AgentCursor::parse(text, AgentOrder::Load).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_heartbeat_is_at_least_a_life_and_knows_its_fields() {
        let plain = r#"{"id":"a","instance":"0198c0de-0000-7000-8000-000000000001"}"#;
        let beat: Heartbeat = serde_json::from_str(plain).unwrap();
        assert!(beat.is_plain());
        assert_eq!(serde_json::to_string(&beat).unwrap(), plain);
        let gone = plain.replace('}', r#","state":"gone"}"#);
        assert!(serde_json::from_str::<Heartbeat>(&gone).is_err());
    }
}
