//! Who may come in, and what is recorded of it.
//!
//! Around every request: who asks is found out ([`Caller`]), whether it may is looked up
//! ([`rules`]), and an act that changes how the platform works is put on record before it is
//! done and again when its outcome is known. What cannot be recorded is not done.

mod cache;
mod caller;
mod handlers;
mod leases;
mod rate;
pub(crate) mod rules;

pub(super) use caller::Caller;
pub(crate) use caller::Peer;
pub(super) use handlers::routes;
pub(super) use leases::Own;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use resurgam_model::access::{
    AccessMode, Actor, ActorKind, AuditOutcome, NewAuditEntry, TokenHash,
};
use resurgam_model::{AgentId, Timestamp, TokenId};
use resurgam_store::SharedStore;

use self::cache::{Cache, Known};
use self::caller::Who;
use self::rate::Limiter;
use self::rules::{Needs, Rule};
use super::{App, observe};
use crate::access::{AccessSettings, Rate, Secret, WORKER, same};
use crate::problem::Problem;

/// Refusals are recorded at this rate, so that a flood of them does not fill the disk.
const DENIALS: Rate = Rate { per_second: 1, burst: 100 };
/// How often the store is told which tokens were used.
const TELL_USE_EVERY: Duration = Duration::from_secs(10);
/// How often old entries of the audit log are looked for.
const PRUNE_EVERY: Duration = Duration::from_secs(3600);
/// So many entries are forgotten in one transaction.
const PRUNE: u32 = 1000;

/// What is needed to judge requests.
pub(crate) struct Access {
    settings: AccessSettings,
    cache: Arc<Cache>,
    /// Hashes of the tokens of the platform and of its workers.
    internal: Option<(TokenHash, TokenHash)>,
    limiter: Option<Limiter<Key>>,
    denials: Limiter<()>,
}

/// Whose requests are counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Token(TokenId),
    Agent(AgentId),
    /// Who need not say who it is.
    Address(IpAddr),
    /// Who did not get in. Apart from the others, so that neither probes nor attempts of one
    /// use up what the other may.
    Stranger(IpAddr),
}

/// As whom a request is counted.
#[derive(Clone, Copy)]
enum Counted<'a> {
    Known(&'a Caller),
    Unasked,
    Refused,
}

impl Access {
    pub(crate) fn new(settings: &AccessSettings, store: SharedStore) -> Self {
        let hashes = |secret: &Secret| (secret.hash(), secret.derived(WORKER).hash());
        Self {
            internal: settings.internal.as_ref().map(hashes),
            limiter: settings.rate.map(Limiter::new),
            denials: Limiter::new(DENIALS),
            cache: Cache::new(store),
            settings: settings.clone(),
        }
    }

    pub(super) fn mode(&self) -> AccessMode {
        self.settings.mode
    }

    /// Who asks.
    async fn identify(&self, headers: &HeaderMap, peer: Option<&Peer>) -> Result<Caller, Problem> {
        let is = |who: Who| Ok(Caller::new(who, peer));
        if self.settings.mode == AccessMode::Open {
            return is(Who::Anybody);
        }
        let Some(value) = headers.get(header::AUTHORIZATION) else {
            return match peer.and_then(|peer| peer.agent.clone()) {
                Some(agent) => is(Who::Certificate(agent)),
                None => Err(Problem::unauthenticated(
                    "this server wants a token: send it as Authorization: Bearer …",
                )),
            };
        };
        let secret = bearer(value).ok_or_else(|| {
            Problem::unauthenticated(
                "the header Authorization holds no token; send it as Authorization: Bearer rsg_…",
            )
        })?;
        let hash = secret.hash();
        if let Some((platform, worker)) = &self.internal {
            // Both are compared, whichever it is.
            match (same(platform, &hash), same(worker, &hash)) {
                (true, _) => return is(Who::Platform),
                (_, true) => return is(Who::Worker),
                _ => {}
            }
        }
        if let (Some(limiter), Some(peer)) = (&self.limiter, peer)
            && !self.cache.remembers(&hash)
        {
            // Who tries one token after the other is not to keep the store busy.
            limiter.is_spent(&Key::Stranger(address(peer))).map_err(Problem::rate_limited)?;
        }
        let Some(known) = self.cache.find(&hash).await? else {
            return Err(Problem::unauthenticated("the token is not known here"));
        };
        valid(&known)?;
        self.cache.note_use(&known);
        observe::this_token(known.token.id);
        is(Who::Token(known))
    }

    /// Whether a caller that was let in some time ago would be let in now. A store that is away
    /// changes nothing: who is in stays in.
    async fn is_still_let_in(&self, caller: &Caller) -> Result<(), Problem> {
        let Who::Token(known) = &caller.who else { return Ok(()) };
        match self.cache.find(&known.hash).await {
            Ok(Some(known)) => valid(&known),
            Ok(None) => Err(Problem::unauthenticated("the token is not known here")),
            Err(_) => valid(known),
        }
    }

    /// Resolves once a caller that was let in would be let in no more, with the reason: for
    /// answers that take long. Looked at each second.
    pub(crate) async fn refused(&self, caller: &Caller) -> Problem {
        if !matches!(caller.who, Who::Token(_)) {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(LOOK_AGAIN).await;
            if let Err(problem) = self.is_still_let_in(caller).await {
                return problem;
            }
        }
    }

    /// Counts a request against what its caller may.
    fn count(&self, caller: Counted<'_>, peer: Option<&Peer>) -> Result<(), Problem> {
        let Some(limiter) = &self.limiter else { return Ok(()) };
        let key = match caller {
            Counted::Known(Caller { who: Who::Platform | Who::Worker, .. }) => return Ok(()),
            Counted::Known(Caller { who: Who::Token(known), .. }) => {
                Some(Key::Token(known.token.id))
            }
            Counted::Known(Caller { who: Who::Certificate(agent), .. }) => {
                Some(Key::Agent(agent.clone()))
            }
            Counted::Known(Caller { who: Who::Anybody, .. }) | Counted::Unasked => {
                peer.map(|peer| Key::Address(address(peer)))
            }
            Counted::Refused => peer.map(|peer| Key::Stranger(address(peer))),
        };
        match key {
            Some(key) => limiter.take(key).map_err(Problem::rate_limited),
            None => Ok(()),
        }
    }
}

/// So often it is looked whether who gets a long answer may still have it.
const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_secs(1);

/// Whether the token is still good.
fn valid(known: &Known) -> Result<(), Problem> {
    if known.token.revoked_at.is_some() {
        return Err(Problem::unauthenticated("the token was revoked"));
    }
    if !known.token.is_valid(Timestamp::now()) {
        return Err(Problem::unauthenticated("the token has expired"));
    }
    Ok(())
}

/// The token in the header.
fn bearer(value: &HeaderValue) -> Option<Secret> {
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().parse().ok()).flatten()
}

/// The address of the other side; of IPv6 the network, for a machine has as many addresses in it
/// as it likes.
fn address(peer: &Peer) -> IpAddr {
    match peer.remote.ip().to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() & !u128::from(u64::MAX)).into()),
    }
}

/// Lets a request through to its handler, or not.
pub(super) async fn guard(app: &Arc<App>, mut request: Request, next: Next) -> Response {
    let access = &app.access;
    let path = request.extensions().get::<MatchedPath>().cloned();
    let peer = request.extensions().get::<Peer>().cloned();
    let Some(path) = path else {
        // Nothing is there, whoever asks.
        return match access.count(Counted::Unasked, peer.as_ref()) {
            Ok(()) => next.run(request).await,
            Err(problem) => problem.into_response(),
        };
    };
    let rule = rules::rule(request.method(), path.as_str());
    let caller = match rule.needs {
        Needs::Nothing => Err(None),
        Needs::Role(_) => access.identify(request.headers(), peer.as_ref()).await.map_err(Some),
    };
    let counted = match &caller {
        Ok(caller) => Counted::Known(caller),
        Err(None) => Counted::Unasked,
        Err(Some(_)) => Counted::Refused,
    };
    let counted = access.count(counted, peer.as_ref());
    // Where everybody may do everything, only acts are recorded.
    let recorded = access.mode() == AccessMode::Tokens || rule.act.is_some();
    let record = if recorded { Record::of(&request, peer.as_ref()) } else { Record::default() };
    let caller = match (caller, counted) {
        (_, Err(problem)) => return problem.into_response(),
        (Err(None), Ok(())) => return next.run(request).await,
        (Err(Some(problem)), Ok(())) => {
            return refuse(app, record, Actor::nameless(ActorKind::Unknown), rule, problem).await;
        }
        (Ok(caller), Ok(())) => caller,
    };
    if let Needs::Role(role) = rule.needs
        && caller.role() < role
    {
        let problem = Problem::forbidden(format!(
            "this needs the role {role}, and the caller has the role {}",
            caller.role()
        ));
        return refuse(app, record, caller.actor(), rule, problem).await;
    }
    let actor = caller.actor();
    let note = Arc::clone(&caller.note);
    request.extensions_mut().insert(caller);
    let Some(act) = rule.act else {
        let response = next.run(request).await;
        if recorded && response.status() == StatusCode::FORBIDDEN {
            deny(app, record, actor, rule, "it may not act as that agent").await;
        }
        return response;
    };
    // On record before it is done: what happens without a record did not come through here.
    let begun = record.entry(actor, act, AuditOutcome::Begun, None);
    let sequence = match app.store.record_audit(&[begun]).await {
        Ok(sequences) => sequences.first().copied(),
        Err(error) => return Problem::from(error).into_response(),
    };
    let response = next.run(request).await;
    let status = response.status();
    let (outcome, failure) = match status.as_u16() {
        0..400 => (AuditOutcome::Done, None),
        403 => (AuditOutcome::Denied, Some("answered 403".to_owned())),
        code => (AuditOutcome::Failed, Some(format!("answered {code}"))),
    };
    let note = note.get().cloned();
    let detail = match (note, failure) {
        (Some(note), Some(failure)) => Some(format!("{note}; {failure}")),
        (note, failure) => note.or(failure),
    };
    if let Some(sequence) = sequence
        && let Err(error) = app.store.finish_audit(sequence, outcome, detail.as_deref()).await
    {
        tracing::warn!(%error, sequence, act, "the audit log does not learn how it ended");
    }
    response
}

/// What the audit log is to know of a request.
#[derive(Default)]
struct Record {
    object: String,
    request_id: Option<String>,
    remote: Option<String>,
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

impl Record {
    fn of(request: &Request, peer: Option<&Peer>) -> Self {
        let path = request.uri().path_and_query().map_or("", |path| path.as_str());
        let object = format!("{} {path}", request.method());
        let id = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok());
        Self {
            object: object.chars().take(500).collect(),
            request_id: id.map(ToOwned::to_owned),
            remote: peer.map(|peer| peer.remote.to_string()),
        }
    }

    fn entry(
        self,
        actor: Actor,
        act: &str,
        outcome: AuditOutcome,
        detail: Option<String>,
    ) -> NewAuditEntry {
        let Self { object, request_id, remote } = self;
        let act = act.to_owned();
        NewAuditEntry { actor, act, object, outcome, detail, request_id, remote }
    }
}

/// Answers with a problem, and records that it was so.
async fn refuse(app: &App, record: Record, actor: Actor, rule: Rule, problem: Problem) -> Response {
    // That the store is away is no refusal.
    if matches!(problem.status, 401 | 403) {
        let detail = problem.detail.clone();
        deny(app, record, actor, rule, &detail).await;
    }
    problem.into_response()
}

/// Records that something was not allowed, unless that happens all the time.
async fn deny(app: &App, record: Record, actor: Actor, rule: Rule, why: &str) {
    tracing::info!(%actor, object = record.object, why, "refused");
    if app.access.denials.take(()).is_err() {
        return;
    }
    let act = rule.act.unwrap_or("request");
    let entry = record.entry(actor, act, AuditOutcome::Denied, Some(why.to_owned()));
    if let Err(error) = app.store.record_audit(&[entry]).await {
        tracing::debug!(%error, "cannot record a refusal");
    }
}

/// Tells the store which tokens are used, and forgets what is old.
pub(crate) async fn run(app: Arc<App>) {
    let mut use_ticks = tokio::time::interval(TELL_USE_EVERY);
    let mut prune_ticks = tokio::time::interval(PRUNE_EVERY);
    loop {
        tokio::select! {
            _ = use_ticks.tick() => app.access.cache.tell_use().await,
            _ = prune_ticks.tick() => prune(&app).await,
        }
    }
}

async fn prune(app: &App) {
    loop {
        match app.store.prune_access(app.access.settings.audit_keep, PRUNE).await {
            Ok(gone) if gone >= u64::from(PRUNE) => {}
            Ok(_) => return,
            Err(error) => {
                tracing::debug!(%error, "cannot shorten the audit log");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bearer_token_is_taken_out_of_its_header() {
        let secret = Secret::generate().unwrap();
        for good in ["Bearer", "bearer", "BEARER"] {
            let value = format!("{good} {}", secret.expose()).parse().unwrap();
            assert_eq!(bearer(&value), Some(secret.clone()), "{good}");
        }
        for bad in ["", "Bearer", "Bearer x", &format!("Basic {}", secret.expose())] {
            assert_eq!(bearer(&bad.parse().unwrap()), None, "{bad}");
        }
        assert_eq!(bearer(&HeaderValue::from_bytes(b"Bearer \xff").unwrap()), None);
    }

    #[test]
    fn an_ipv6_network_counts_as_one_caller() {
        let key = |text: &str| address(&Peer { remote: text.parse().unwrap(), agent: None });
        assert_eq!(key("[2001:db8:1:2::1]:5"), key("[2001:db8:1:2:ffff::9]:6"));
        assert_ne!(key("[2001:db8:1:2::1]:5"), key("[2001:db8:1:3::1]:5"));
        assert_eq!(key("[::ffff:10.0.0.1]:5"), key("10.0.0.1:7"));
        assert_ne!(key("10.0.0.1:5"), key("10.0.0.2:5"));
    }
}
