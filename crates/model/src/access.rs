//! Who may do what: roles, the tokens that carry them, and the record of what was done.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::id::InvalidName;
use crate::schema::Moment;
use crate::{AgentId, Duration, TokenId, TokenName};

/// Whether a server asks who comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AccessMode {
    /// It does not: everybody who reaches it may do everything. Only for loopback addresses.
    #[default]
    Open,
    /// It wants a token, or a client certificate, for all but `/health`.
    Tokens,
}

impl fmt::Display for AccessMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Open => "open",
            Self::Tokens => "tokens",
        })
    }
}

impl FromStr for AccessMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "open" => Ok(Self::Open),
            "tokens" => Ok(Self::Tokens),
            other => Err(format!("{other:?} is no mode of access; there are open and tokens")),
        }
    }
}

/// What a caller may do. Each role may do all that those before it may.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum AccessRole {
    /// Reads.
    Viewer,
    /// Hands in tasks, and works as an agent.
    Agent,
    /// Cancels, requeues, sets limits and schedules, drains; runs workflows.
    Operator,
    /// Makes and revokes tokens, and reads the audit log.
    Admin,
}

impl AccessRole {
    /// All of them, the least first.
    pub const ALL: [Self; 4] = [Self::Viewer, Self::Agent, Self::Operator, Self::Admin];

    /// The name in the database and in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Agent => "agent",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for AccessRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Not the name of a role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no role; the roles are viewer, agent, operator and admin")]
pub struct UnknownRole(String);

impl FromStr for AccessRole {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| UnknownRole(text.chars().take(40).collect()))
    }
}

/// Which agents a caller may act as: one by its name, or all whose names begin in one way
/// (`pool-*`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AgentPattern {
    /// The name, or how it begins.
    text: String,
    /// Whether names that go on are meant as well.
    prefix: bool,
}

impl AgentPattern {
    /// Exactly this agent.
    #[must_use]
    pub fn exactly(agent: &AgentId) -> Self {
        Self { text: agent.as_str().to_owned(), prefix: false }
    }

    /// Whether the agent is meant.
    #[must_use]
    pub fn matches(&self, agent: &AgentId) -> bool {
        match self.prefix {
            true => agent.as_str().starts_with(&self.text),
            false => agent.as_str() == self.text,
        }
    }
}

impl JsonSchema for AgentPattern {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "AgentPattern".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "minLength": 1,
            "maxLength": 128,
            "pattern": r"^[A-Za-z0-9][A-Za-z0-9._:/-]*\*?$",
        })
    }
}

impl fmt::Display for AgentPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        f.write_str(if self.prefix { "*" } else { "" })
    }
}

/// Not a pattern of agents.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPattern {
    /// The name, or what it begins with, is not allowed.
    #[error("{0}; a '*' may follow as the last character")]
    Name(#[from] InvalidName),
    /// All agents.
    #[error("\"*\" stands for every agent; leave the pattern out for that")]
    Everybody,
}

impl FromStr for AgentPattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, prefix) = match text.strip_suffix('*') {
            Some("") => return Err(InvalidPattern::Everybody),
            Some(prefix) => (prefix, true),
            None => (text, false),
        };
        let name = AgentId::new(name)?;
        Ok(Self { text: name.into(), prefix })
    }
}

impl TryFrom<String> for AgentPattern {
    type Error = InvalidPattern;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<AgentPattern> for String {
    fn from(pattern: AgentPattern) -> Self {
        pattern.to_string()
    }
}

/// SHA-256 of a token. A token is 256 random bits, so nobody finds it by trying, and a slow hash
/// with a salt, as for passwords, would add nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenHash(pub [u8; 32]);

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(…)")
    }
}

/// A token to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewAccessToken {
    /// What people call it; need not be unique.
    pub name: TokenName,
    /// What it allows.
    pub role: AccessRole,
    /// The agents that it may act as; every agent if not given. Only for the role `agent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agents: Option<AgentPattern>,
    /// How long it is valid; until it is revoked if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in: Option<Duration>,
}

/// Why a token is not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidToken {
    /// A pattern for a role that it would not bind.
    #[error(
        "agents: only a token of the role agent can be bound to agents, not one of the role {0}"
    )]
    PatternForOther(AccessRole),
    /// It would be over at once, or after everybody has forgotten it.
    #[error("expires_in is {0}; it must be from 1s to 87600h")]
    Expiry(Duration),
}

impl NewAccessToken {
    /// Whether it makes sense.
    ///
    /// # Errors
    /// When it does not; the error names the field.
    pub fn check(&self) -> Result<(), InvalidToken> {
        if self.agents.is_some() && self.role != AccessRole::Agent {
            return Err(InvalidToken::PatternForOther(self.role));
        }
        let allowed = Duration::from_secs(1)..=Duration::from_secs(3650 * 24 * 3600);
        match self.expires_in {
            Some(expiry) if !allowed.contains(&expiry) => Err(InvalidToken::Expiry(expiry)),
            _ => Ok(()),
        }
    }
}

/// A token as it is on record, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AccessToken {
    /// Its id, which is no secret.
    pub id: TokenId,
    /// What people call it.
    pub name: TokenName,
    /// What it allows.
    pub role: AccessRole,
    /// The agents that it may act as; every agent if there is none.
    pub agents: Option<AgentPattern>,
    /// Who made it.
    pub created_by: String,
    /// When.
    #[schemars(with = "Moment")]
    pub created_at: Timestamp,
    /// Until when it is valid.
    #[schemars(with = "Option<Moment>")]
    pub expires_at: Option<Timestamp>,
    /// When it was last used, give or take some minutes.
    #[schemars(with = "Option<Moment>")]
    pub last_used_at: Option<Timestamp>,
    /// When it was revoked.
    #[schemars(with = "Option<Moment>")]
    pub revoked_at: Option<Timestamp>,
}

impl AccessToken {
    /// Whether it is valid at a moment.
    #[must_use]
    pub fn is_valid(&self, at: Timestamp) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|end| at < end)
    }
}

/// By what somebody was known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ActorKind {
    /// By a token.
    Token,
    /// By a client certificate.
    Certificate,
    /// A part of the platform itself.
    Internal,
    /// Not at all: somebody on this machine, while there was no access control.
    Loopback,
    /// By its access to the database.
    Database,
    /// Not at all: refused.
    Unknown,
}

impl ActorKind {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Token,
        Self::Certificate,
        Self::Internal,
        Self::Loopback,
        Self::Database,
        Self::Unknown,
    ];

    /// The name in the database and in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Certificate => "certificate",
            Self::Internal => "internal",
            Self::Loopback => "loopback",
            Self::Database => "database",
            Self::Unknown => "unknown",
        }
    }
}

impl FromStr for ActorKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|kind| kind.as_str() == text);
        found.ok_or_else(|| format!("{text:?} is no kind of actor"))
    }
}

/// Who did something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Actor {
    /// By what it was known.
    pub kind: ActorKind,
    /// The token.
    pub token: Option<TokenId>,
    /// The name of the token, the certificate or the user.
    pub name: Option<String>,
}

impl Actor {
    /// One that has no name.
    #[must_use]
    pub fn nameless(kind: ActorKind) -> Self {
        Self { kind, token: None, name: None }
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.as_str())?;
        match &self.name {
            Some(name) => write!(f, " {name}"),
            None => Ok(()),
        }
    }
}

/// What became of an act.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AuditOutcome {
    /// It was allowed and begun. If it stays so, the process ended before it could tell more.
    Begun,
    /// It was done.
    Done,
    /// It was allowed, and failed.
    Failed,
    /// It was not allowed.
    Denied,
}

impl AuditOutcome {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Begun, Self::Done, Self::Failed, Self::Denied];

    /// The name in the database and in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Begun => "begun",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Denied => "denied",
        }
    }
}

impl fmt::Display for AuditOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for AuditOutcome {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == text).ok_or_else(|| {
            format!("{text:?} is no outcome; there are begun, done, failed and denied")
        })
    }
}

/// Something to be put on record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewAuditEntry {
    /// Who.
    pub actor: Actor,
    /// What: `token.create`, `task.cancel`.
    pub act: String,
    /// To what: usually method and path.
    pub object: String,
    /// What became of it.
    pub outcome: AuditOutcome,
    /// More, for people.
    pub detail: Option<String>,
    /// The id of the request, as in the log.
    pub request_id: Option<String>,
    /// From where.
    pub remote: Option<String>,
}

/// Something on record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AuditEntry {
    /// Grows from entry to entry.
    pub sequence: i64,
    /// When.
    #[schemars(with = "Moment")]
    pub at: Timestamp,
    /// Who.
    pub actor: Actor,
    /// What: `token.create`, `task.cancel`.
    pub act: String,
    /// To what: usually method and path.
    pub object: String,
    /// What became of it.
    pub outcome: AuditOutcome,
    /// More, for people.
    pub detail: Option<String>,
    /// The id of the request, as in the log.
    pub request_id: Option<String>,
    /// From where.
    pub remote: Option<String>,
}

/// Which entries of the audit log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AuditQuery {
    /// Only those before this number: the last one of the page before.
    pub before: Option<i64>,
    /// At most so many; 0 stands for 100, and 1000 is the most.
    pub limit: u32,
    /// Only this act.
    pub act: Option<String>,
    /// Only with this outcome.
    pub outcome: Option<AuditOutcome>,
    /// Only by this token.
    pub token: Option<TokenId>,
}

impl AuditQuery {
    /// The limit that applies.
    #[must_use]
    pub fn effective_limit(&self) -> u32 {
        if self.limit == 0 { 100 } else { self.limit.min(1000) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(name: &str) -> AgentId {
        AgentId::new(name).unwrap()
    }

    #[test]
    fn patterns_mean_one_agent_or_those_that_begin_so() {
        let exact: AgentPattern = "worker-1".parse().unwrap();
        assert!(exact.matches(&agent("worker-1")));
        assert!(!exact.matches(&agent("worker-10")) && !exact.matches(&agent("worker")));
        let prefix: AgentPattern = "team/a-*".parse().unwrap();
        assert!(prefix.matches(&agent("team/a-1")) && prefix.matches(&agent("team/a-")));
        assert!(!prefix.matches(&agent("team/b-1")) && !prefix.matches(&agent("team/a")));
        assert_eq!(prefix.to_string(), "team/a-*");
        assert_eq!(AgentPattern::exactly(&agent("worker-1")), exact);
        for bad in ["", "*", "a**", "a*b", "*a", "-a*", "a b*", "ä*"] {
            assert!(bad.parse::<AgentPattern>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn roles_are_ordered_and_named() {
        assert!(AccessRole::ALL.is_sorted());
        for role in AccessRole::ALL {
            assert_eq!(role.as_str().parse(), Ok(role));
            assert_eq!(serde_json::to_value(role).unwrap(), role.as_str());
        }
        assert!("root".parse::<AccessRole>().unwrap_err().to_string().contains("operator"));
    }

    #[test]
    fn tokens_that_make_no_sense_are_refused() {
        let name = TokenName::new("ci").unwrap();
        let mut token = NewAccessToken {
            name,
            role: AccessRole::Agent,
            agents: "ci-*".parse().ok(),
            expires_in: Some(Duration::from_secs(60)),
        };
        assert_eq!(token.check(), Ok(()));
        token.expires_in = Some(Duration::from_millis(5));
        assert!(token.check().unwrap_err().to_string().contains("expires_in"));
        token.expires_in = None;
        token.role = AccessRole::Operator;
        assert!(token.check().unwrap_err().to_string().contains("agents"));
    }

    #[test]
    fn a_hash_is_not_shown() {
        assert!(!format!("{:?}", TokenHash([7; 32])).contains('7'));
    }
}
