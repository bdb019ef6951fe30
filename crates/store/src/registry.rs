//! The seam's part about agents.

use async_trait::async_trait;
use resurgam_model::agent::{
    Agent, AgentPage, AgentQuery, Heartbeat, HeartbeatTerms, Registration,
};
use resurgam_model::{AgentId, Duration, InstanceId};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// An agent that fails so many different tasks one after the other, none of them for good, is
/// unhealthy: most likely it is the agent that is at fault, and it would go on to use up the tries
/// of all tasks that there are.
pub const FAILING_AFTER: u32 = 10;

/// For so long it is given no tasks then, unless one that it still has succeeds.
pub const FAILING_FOR: Duration = Duration::from_secs(30);

/// The registry of agents.
#[async_trait]
pub trait Registry: Send + Sync + 'static {
    /// Registers an agent under these terms. Under the same instance it refreshes the entry and
    /// brings a gone agent back; under a new instance it also returns the leases of earlier lives
    /// to the queue, in the same transaction, and forgets what the earlier life said of itself.
    /// An operator's order to drain outlasts both.
    async fn register_under(
        &self,
        registration: &Registration,
        terms: &HeartbeatTerms,
    ) -> Result<Registered> {
        let registered = self.register_all(&[(registration.clone(), *terms)]).await?;
        let none = || Error::Corrupt("a registration was not answered".to_owned());
        registered.first().copied().ok_or_else(none)
    }

    /// [`Self::register_under`] for many at once, one answer for each, in order: all of them or
    /// none. Of two about the same agent the later one counts.
    async fn register_all(
        &self,
        registrations: &[(Registration, HeartbeatTerms)],
    ) -> Result<Vec<Registered>>;

    /// [`Self::register_under`] the terms by default.
    async fn register(&self, registration: &Registration) -> Result<Registered> {
        self.register_under(registration, &HeartbeatTerms::default()).await
    }

    /// Signs of life. Answers one word per agent, in order: false when the agent must register
    /// again, because it is unknown, counts as gone, or lives another life. Of two about the same
    /// life the later one counts.
    async fn heartbeat(&self, beats: &[Heartbeat]) -> Result<Vec<bool>>;

    /// Looks at up to `limit` agents whose time to be looked at has come: declares those gone
    /// that have not been seen for as long as their terms allow, and returns their leases in the
    /// same transaction; removes those that are gone for longer than `keep`.
    ///
    /// `watched` is for how long signs of life could be recorded without interruption: nobody who
    /// was allowed to be silent for longer is declared gone.
    async fn expire(&self, watched: Duration, keep: Duration, limit: u32) -> Result<Expired>;

    /// Takes an agent that leaves in order out of the registry and returns its leases. An agent
    /// that is unknown, or lives another life, is left alone.
    async fn deregister(&self, agent: &AgentId, instance: InstanceId) -> Result<()>;

    /// An operator's order: take nothing new, or take tasks again. The latter also forgets that
    /// its tries kept failing. Answers the agent as it stands then, if there is such a one.
    async fn order(&self, agent: &AgentId, order: &Order) -> Result<Option<Agent>>;

    /// Gives tasks again to agents whose tries kept failing, once [`FAILING_FOR`] is over, or will
    /// be within `early`. The next try that fails for another task stops them again. Answers who
    /// they are, in the order of their names.
    async fn forgive(&self, early: Duration) -> Result<Vec<AgentId>>;

    /// One agent.
    async fn agent(&self, id: &AgentId) -> Result<Option<Agent>>;

    /// Agents that match, gone ones too unless a state is asked for.
    async fn agents(&self, query: &AgentQuery) -> Result<AgentPage>;

    /// Counts anew how many leases agents hold, and writes it down for up to `limit` agents of
    /// which something else was known: what look-ups by load go by. Answers for how many.
    async fn count_held(&self, limit: u32) -> Result<u64>;
}

/// The answer to a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// Leases of earlier lives that went back to the queue.
    pub leases_returned: u64,
}

/// What came of looking at agents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// Those that are gone now, in the order of their names.
    pub gone: Vec<AgentId>,
    /// How many were gone for long enough and were removed.
    pub removed: u64,
    /// How many were looked at in all.
    pub seen: u64,
}

/// What an operator orders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Take nothing new, for this reason.
    Drain(Option<String>),
    /// Take tasks again.
    Resume,
}
