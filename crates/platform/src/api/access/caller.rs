//! Who asks, and as which agents it may act.

use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use resurgam_model::AgentId;
use resurgam_model::access::{AccessRole, Actor, ActorKind, AgentPattern};

use super::cache::Known;
use crate::api::App;
use crate::api::route::Takes;
use crate::problem::Problem;

/// The other side of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) remote: SocketAddr,
    /// The agent for which its certificate stands.
    pub(crate) agent: Option<AgentId>,
}

/// By what a caller is known.
#[derive(Clone)]
pub(super) enum Who {
    /// Not at all: there is no access control.
    Anybody,
    /// A part of the platform.
    Platform,
    /// A worker of the platform.
    Worker,
    Token(Arc<Known>),
    Certificate(AgentId),
}

/// Who asks. Handlers take it as an argument, and ask it before they act as an agent.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(super) who: Who,
    /// The agents that it may act as; every agent if there is none.
    pattern: Option<AgentPattern>,
    /// Where it is.
    remote: Option<SocketAddr>,
    /// What the audit log is to say beyond method and path.
    pub(super) note: Arc<OnceLock<String>>,
}

impl Caller {
    pub(super) fn new(who: Who, peer: Option<&Peer>) -> Self {
        let pattern = match &who {
            Who::Anybody | Who::Platform | Who::Worker => None,
            Who::Token(known) => known.token.agents.clone(),
            Who::Certificate(agent) => Some(AgentPattern::exactly(agent)),
        };
        Self { who, pattern, remote: peer.map(|peer| peer.remote), note: Arc::default() }
    }

    pub(super) fn role(&self) -> AccessRole {
        match &self.who {
            Who::Anybody | Who::Platform => AccessRole::Admin,
            Who::Worker | Who::Certificate(_) => AccessRole::Agent,
            Who::Token(known) => known.token.role,
        }
    }

    pub(crate) fn actor(&self) -> Actor {
        match &self.who {
            Who::Anybody => Actor::nameless(ActorKind::Loopback),
            Who::Platform => Actor::nameless(ActorKind::Internal),
            Who::Worker => {
                Actor { kind: ActorKind::Internal, token: None, name: Some("worker".to_owned()) }
            }
            Who::Token(known) => Actor {
                kind: ActorKind::Token,
                token: Some(known.token.id),
                name: Some(known.token.name.to_string()),
            },
            Who::Certificate(agent) => {
                let name = Some(agent.to_string());
                Actor { kind: ActorKind::Certificate, token: None, name }
            }
        }
    }

    /// Whether it was not asked who it is.
    pub(super) fn is_anybody(&self) -> bool {
        matches!(self.who, Who::Anybody)
    }

    /// Whether it may be on another machine, where loopback addresses of this one mean nothing.
    pub(crate) fn is_elsewhere(&self) -> bool {
        self.remote.is_some_and(|remote| !remote.ip().is_loopback())
    }

    /// The agents that it may act as, unless it may act as any.
    pub(crate) fn only(&self) -> Option<&AgentPattern> {
        self.pattern.as_ref()
    }

    /// Whether it may act as the agent.
    pub(crate) fn may_act_as(&self, agent: &AgentId) -> Result<(), Problem> {
        match &self.pattern {
            Some(pattern) if !pattern.matches(agent) => Err(Problem::forbidden(format!(
                "this caller may act as {pattern}, not as {agent}; use a token for that agent"
            ))),
            _ => Ok(()),
        }
    }

    /// Whether it may send in that name. Who is bound to agents cannot send without any: what
    /// has no sender is from the platform.
    pub(crate) fn may_send_as(
        &self,
        field: impl Display,
        agent: Option<&AgentId>,
    ) -> Result<(), Problem> {
        match (agent, &self.pattern) {
            (Some(agent), _) => self.may_act_as(agent),
            (None, None) => Ok(()),
            (None, Some(pattern)) => Err(Problem::invalid_field(format!(
                "{field} is missing: this caller may send as {pattern} only, and must say as whom"
            ))),
        }
    }

    /// Says more about the act for the audit log than method and path do, once per request:
    /// which tasks, how many. Without secrets.
    pub(crate) fn note(&self, note: impl Into<String>) {
        let note: String = note.into();
        let _ = self.note.set(note.chars().take(500).collect());
    }
}

/// What it may bring, it brings to every route that asks who comes: see the table of rules.
impl Takes for Caller {}

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, Problem> {
        // It is put there before any handler runs.
        parts.extensions.get().cloned().ok_or_else(Problem::internal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(name: &str) -> AgentId {
        AgentId::new(name).unwrap()
    }

    #[test]
    fn a_certificate_acts_as_its_agent_alone_and_says_so() {
        let caller = Caller::new(Who::Certificate(agent("a")), None);
        assert_eq!(caller.role(), AccessRole::Agent);
        assert!(caller.may_act_as(&agent("a")).is_ok());
        let problem = caller.may_act_as(&agent("b")).unwrap_err();
        assert_eq!(problem.status, 403);
        assert!(caller.may_send_as("from", Some(&agent("a"))).is_ok());
        assert!(caller.may_send_as("from", Some(&agent("b"))).is_err());
        assert!(caller.may_send_as("from", None).is_err());
    }

    #[test]
    fn the_platform_acts_as_anybody() {
        for who in [Who::Anybody, Who::Platform, Who::Worker] {
            let caller = Caller::new(who, None);
            assert!(caller.may_act_as(&agent("b")).is_ok());
            assert!(caller.may_send_as("from", None).is_ok());
        }
    }
}
