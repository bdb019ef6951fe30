//! Who may come in: tokens, roles, and what is recorded.

use reqwest::{Method, RequestBuilder, StatusCode};
use resurgam_client::problem::code;
use resurgam_client::{Client, Error};
use resurgam_model::access::{
    AccessMode, AccessRole, ActorKind, AuditEntry, AuditOutcome, AuditQuery, NewAccessToken,
};
use resurgam_model::agent::{Heartbeat, Registration};
use resurgam_model::message::NewMessage;
use resurgam_model::task::{Completion, Failure, LeaseRef, Outcome, Token};
use resurgam_model::{Duration, InstanceId, MessageId, Payload, Role, TokenId, TokenName};
use resurgam_platform::access::{WORKER, routes};
use resurgam_platform::{AccessSettings, Rate, Secret, ServeSettings};
use resurgam_store::SharedStore;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::flaky::Flaky;
use crate::harness::*;

pub(crate) fn controlled() -> ServeSettings {
    let mut settings = settings(Role::ALL);
    settings.access.mode = AccessMode::Tokens;
    settings
}

pub(crate) async fn token(store: &SharedStore, role: AccessRole, agents: Option<&str>) -> Secret {
    made(store, role, agents, None).await.0
}

async fn made(
    store: &SharedStore,
    role: AccessRole,
    agents: Option<&str>,
    expires_in: Option<Duration>,
) -> (Secret, TokenId) {
    let secret = Secret::generate().unwrap();
    let new = NewAccessToken {
        name: TokenName::new(role.as_str()).unwrap(),
        role,
        agents: agents.map(|pattern| pattern.parse().unwrap()),
        expires_in,
    };
    let token = store.create_token(&new, &secret.hash(), "test").await.unwrap();
    (secret, token.id)
}

struct Guarded {
    server: Server,
    store: SharedStore,
    _dir: TempDir,
}

impl Guarded {
    async fn new(settings: ServeSettings) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = sqlite(dir.path());
        let server = Server::ready(settings, store.clone()).await;
        Self { server, store, _dir: dir }
    }

    fn with(&self, secret: &Secret) -> Client {
        Client::builder(self.server.url()).token(secret.expose()).build().unwrap()
    }

    async fn client(&self, role: AccessRole, agents: Option<&str>) -> Client {
        self.with(&token(&self.store, role, agents).await)
    }

    fn request(&self, method: &str, path: &str, secret: Option<&Secret>) -> RequestBuilder {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let request = reqwest::Client::new().request(method, self.server.url() + path);
        match secret {
            Some(secret) => request.bearer_auth(secret.expose()),
            None => request,
        }
    }

    async fn audit(&self) -> Vec<AuditEntry> {
        self.store.audit_log(&AuditQuery::default()).await.unwrap()
    }
}

fn registration(name: &str) -> Registration {
    Registration::new(agent(name), InstanceId::new(), [capability("x")])
}

fn refused_with(error: &Error) -> (u16, &str) {
    let problem = error.problem().expect("a refusal");
    (problem.status, &problem.code)
}

/// The whole table: every role at every route.
#[tokio::test(flavor = "multi_thread")]
async fn each_role_may_do_what_the_table_says() {
    let guarded = Guarded::new(controlled()).await;
    let mut callers = vec![(None, None)];
    for role in AccessRole::ALL {
        callers.push((Some(role), Some(token(&guarded.store, role, None).await)));
    }
    for (method, path, needed) in routes() {
        let path = path.replace("{id}", "0198c0de-0000-7000-8000-000000000000");
        let path = path.replace("{*id}", "nobody");
        for (role, secret) in &callers {
            // Without a body, so that nothing comes of what is let through.
            let answer = guarded.request(method, &path, secret.as_ref()).send().await.unwrap();
            let status = answer.status();
            let challenge = answer.headers().get("www-authenticate").cloned();
            let body: Value = answer.json().await.unwrap_or_default();
            let what = format!("{method} {path} as {role:?}: {status} {body}");
            match (needed, role) {
                (None, _) => assert!(status.is_success(), "{what}"),
                (Some(_), None) => {
                    assert_eq!(status, StatusCode::UNAUTHORIZED, "{what}");
                    assert_eq!(challenge.unwrap(), "Bearer realm=\"resurgam\"", "{what}");
                    assert_eq!(body["code"], code::UNAUTHENTICATED);
                }
                (Some(needed), Some(role)) if *role >= needed => {
                    assert_ne!(status, StatusCode::UNAUTHORIZED, "{what}");
                    assert_ne!(status, StatusCode::FORBIDDEN, "{what}");
                    assert!(!status.is_server_error(), "{what}");
                }
                (Some(needed), Some(_)) => {
                    assert_eq!(status, StatusCode::FORBIDDEN, "{what}");
                    let detail = body["detail"].as_str().unwrap();
                    assert!(detail.contains(needed.as_str()), "{what}");
                }
            }
        }
    }
    // What is not there, or cannot be used so.
    let admin = callers[4].1.as_ref();
    for (method, path, secret, status) in [
        ("GET", "/nothing", None, StatusCode::NOT_FOUND),
        ("PUT", "/tasks", None, StatusCode::UNAUTHORIZED),
        ("PUT", "/tasks", callers[3].1.as_ref(), StatusCode::FORBIDDEN),
        ("PUT", "/tasks", admin, StatusCode::METHOD_NOT_ALLOWED),
        ("HEAD", "/tasks", None, StatusCode::UNAUTHORIZED),
        ("HEAD", "/tasks", callers[1].1.as_ref(), StatusCode::OK),
    ] {
        let answer = guarded.request(method, path, secret).send().await.unwrap();
        assert_eq!(answer.status(), status, "{method} {path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_valid_token_opens_nothing() {
    let guarded = Guarded::new(controlled()).await;
    assert_eq!(guarded.server.client.health().await.unwrap().access, AccessMode::Tokens);
    let second = Duration::from_secs(1);
    let (short, _) = made(&guarded.store, AccessRole::Admin, None, Some(second)).await;
    let (revoked, id) = made(&guarded.store, AccessRole::Admin, None, None).await;
    guarded.store.revoke_token(id).await.unwrap();
    let good = token(&guarded.store, AccessRole::Viewer, None).await;
    let unknown = Secret::generate().unwrap();
    until("expired", || async { guarded.with(&short).pending().await.is_err() }).await;
    let error = async |secret: &Secret| guarded.with(secret).pending().await.unwrap_err();
    insta::assert_snapshot!(error(&short).await, @"the token has expired (401 unauthenticated)");
    insta::assert_snapshot!(error(&revoked).await, @"the token was revoked (401 unauthenticated)");
    insta::assert_snapshot!(error(&unknown).await, @"the token is not known here (401 unauthenticated)");
    insta::assert_snapshot!(guarded.server.client.pending().await.unwrap_err(), @"this server wants a token: send it as Authorization: Bearer … (401 unauthenticated)");
    for header in ["", "Bearer", "Bearer ", "Basic YTpi", "Bearer rsg_", "rsg_x", "Bearer ä"] {
        let request = guarded.request("GET", "/tasks", None).header("authorization", header);
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{header}");
        let body: Value = answer.json().await.unwrap();
        assert!(!body["detail"].as_str().unwrap().contains("YTpi"), "{body}");
    }
    assert_eq!(guarded.with(&good).pending().await.unwrap().ready, 0);
    // Any name will do for the server: a web page of somebody else has no token.
    let foreign = guarded.request("GET", "/tasks", Some(&good)).header("host", "api.example:80");
    assert_eq!(foreign.send().await.unwrap().status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_takes_effect_in_every_replica() {
    let dir = tempfile::tempdir().unwrap();
    let store = sqlite(dir.path());
    let one = Server::ready(controlled(), store.clone()).await;
    let other = Server::ready(controlled(), sqlite(dir.path())).await;
    let (secret, id) = made(&store, AccessRole::Viewer, None, None).await;
    let admin = token(&store, AccessRole::Admin, None).await;
    let of = |server: &Server, secret: &Secret| {
        Client::builder(server.url()).token(secret.expose()).build().unwrap()
    };
    let (at_one, at_other) = (of(&one, &secret), of(&other, &secret));
    at_one.pending().await.unwrap();
    at_other.pending().await.unwrap();
    let revoked = of(&one, &admin).revoke_token(id).await.unwrap();
    assert!(revoked.revoked_at.is_some());
    // At once where it was said, and soon everywhere.
    assert_eq!(refused_with(&at_one.pending().await.unwrap_err()).0, 401);
    until("refused", || async { at_other.pending().await.is_err() }).await;
    assert_eq!(refused_with(&at_other.pending().await.unwrap_err()).0, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_when_its_token_is_revoked() {
    let guarded = Guarded::new(controlled()).await;
    let (secret, id) = made(&guarded.store, AccessRole::Agent, None, None).await;
    let instance = register(&guarded.with(&secret), "w", "x").await;
    let path = format!("/tasks/stream?agent=w&instance={instance}&capability=x");
    let mut answer = guarded.request("GET", &path, Some(&secret)).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    // It waits for a task; that the token is gone ends it all the same.
    guarded.store.revoke_token(id).await.unwrap();
    let mut all = Vec::new();
    let read = async {
        while let Some(chunk) = answer.chunk().await.unwrap() {
            all.extend_from_slice(&chunk);
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), read).await.expect("it goes on");
    let all = String::from_utf8(all).unwrap();
    assert!(all.contains("event: problem") && all.contains("the token was revoked"), "{all}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_lets_nobody_in_but_the_platform_itself() {
    let dir = tempfile::tempdir().unwrap();
    let store = sqlite(dir.path());
    let flaky = Flaky::new(store.clone(), false);
    let internal = Secret::generate().unwrap();
    let mut settings = controlled();
    settings.access.internal = Some(internal.clone());
    let server = Server::ready(settings, flaky.clone()).await;
    let secret = token(&store, AccessRole::Viewer, None).await;
    let with =
        |secret: &Secret| Client::builder(server.url()).token(secret.expose()).build().unwrap();
    with(&secret).pending().await.unwrap();
    flaky.set_away(true);
    let error = with(&token(&store, AccessRole::Viewer, None).await).pending().await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert!(!error.to_string().contains("hunter2"), "{error}");
    // It is known, and told what is wrong behind the door.
    let error = with(&internal).pending().await.unwrap_err();
    assert_eq!(refused_with(&error), (503, code::UNAVAILABLE));
    flaky.set_away(false);
    with(&secret).pending().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_made_listed_and_revoked_over_the_api() {
    let guarded = Guarded::new(controlled()).await;
    let admin = guarded.client(AccessRole::Admin, None).await;
    let new = NewAccessToken {
        name: TokenName::new("team-a").unwrap(),
        role: AccessRole::Agent,
        agents: Some("a-*".parse().unwrap()),
        expires_in: Some(Duration::from_secs(3600)),
    };
    let made = admin.create_token(&new).await.unwrap();
    assert_eq!((&made.token.name, made.token.role), (&new.name, AccessRole::Agent));
    assert_eq!(made.token.created_by, "token admin");
    assert!(!format!("{made:?}").contains(&made.secret));
    let secret: Secret = made.secret.parse().unwrap();
    let agent = guarded.with(&secret);
    register(&agent, "a-1", "x").await;
    let listed = admin.tokens(None, 0).await.unwrap();
    assert_eq!(
        listed.iter().map(|token| token.name.as_str()).collect::<Vec<_>>(),
        ["admin", "team-a"]
    );
    assert_eq!(admin.tokens(Some(listed[0].id), 1).await.unwrap(), listed[1..]);
    admin.revoke_token(made.token.id).await.unwrap();
    admin.revoke_token(made.token.id).await.unwrap();
    assert_eq!(refused_with(&agent.pending().await.unwrap_err()).0, 401);
    let error = admin.revoke_token(TokenId::new()).await.unwrap_err();
    assert_eq!(refused_with(&error), (404, code::NOT_FOUND));

    let bad = NewAccessToken { role: AccessRole::Viewer, ..new.clone() };
    insta::assert_snapshot!(admin.create_token(&bad).await.unwrap_err(), @"agents: only a token of the role agent can be bound to agents, not one of the role viewer (422 invalid-field)");
    let bad = NewAccessToken { expires_in: Some(Duration::default()), ..new };
    insta::assert_snapshot!(admin.create_token(&bad).await.unwrap_err(), @"expires_in is 0s; it must be from 1s to 87600h (422 invalid-field)");
    let secret = token(&guarded.store, AccessRole::Admin, None).await;
    for (body, part) in [
        (json!({"name": "a", "role": "root"}), "unknown variant"),
        (json!({"name": "a b", "role": "admin"}), "token name"),
        (json!({"name": "a", "role": "agent", "agents": "*"}), "every agent"),
        (json!({"name": "a", "role": "admin", "secret": "x"}), "unknown field"),
        (json!({"name": "a"}), "missing field"),
    ] {
        let request = guarded.request("POST", "/tokens", Some(&secret)).json(&body);
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::UNPROCESSABLE_ENTITY, "{body}");
        let problem: Value = answer.json().await.unwrap();
        assert!(problem["detail"].as_str().unwrap().contains(part), "{body}: {problem}");
    }
    for (method, path) in
        [("DELETE", "/tokens/7"), ("GET", "/tokens?after=7"), ("GET", "/audit?x=1")]
    {
        let answer = guarded.request(method, path, Some(&secret)).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_access_control_no_tokens_are_made() {
    let guarded = Guarded::new(settings(Role::ALL)).await;
    assert_eq!(guarded.server.client.health().await.unwrap().access, AccessMode::Open);
    let new = NewAccessToken {
        name: TokenName::new("later").unwrap(),
        role: AccessRole::Admin,
        agents: None,
        expires_in: None,
    };
    let error = guarded.server.client.create_token(&new).await.unwrap_err();
    assert_eq!(refused_with(&error), (403, code::FORBIDDEN));
    let error = guarded.server.client.revoke_token(TokenId::new()).await.unwrap_err();
    assert_eq!(refused_with(&error), (403, code::FORBIDDEN));
    assert!(guarded.server.client.tokens(None, 0).await.unwrap().is_empty());
    let log = guarded.server.client.audit_log(&AuditQuery::default()).await.unwrap();
    let seen: Vec<_> = log.iter().map(|e| (&*e.act, e.outcome, e.actor.kind)).collect();
    let loopback = ActorKind::Loopback;
    assert_eq!(
        seen,
        [
            ("token.revoke", AuditOutcome::Denied, loopback),
            ("token.create", AuditOutcome::Denied, loopback)
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_itself_alone() {
    let guarded = Guarded::new(controlled()).await;
    let mine = guarded.client(AccessRole::Agent, Some("mine-*")).await;
    let free = guarded.client(AccessRole::Agent, None).await;
    let theirs = register(&free, "theirs", "x").await;
    let own = register(&mine, "mine-1", "x").await;
    let forbidden = |error: Error| assert_eq!(refused_with(&error), (403, code::FORBIDDEN));

    forbidden(mine.register(&registration("theirs")).await.unwrap_err());
    forbidden(mine.deregister(&agent("theirs"), theirs).await.unwrap_err());
    let beat = |name: &str, life: InstanceId| Heartbeat::new(agent(name), life);
    forbidden(mine.heartbeat(&[beat("mine-1", own), beat("theirs", theirs)]).await.unwrap_err());
    assert_eq!(mine.heartbeat(&[beat("mine-1", own)]).await.unwrap(), [true]);
    forbidden(mine.claim(&claim("theirs", theirs, "x"), Duration::default()).await.unwrap_err());
    forbidden(mine.receive(&agent("theirs"), None, 9, Duration::default()).await.unwrap_err());
    forbidden(mine.acknowledge(&agent("theirs"), &[1]).await.unwrap_err());
    assert!(mine.receive(&agent("mine-7"), None, 9, Duration::default()).await.unwrap().is_empty());

    let mut letter = NewMessage {
        id: MessageId::new(),
        topic: "agent-messages".to_owned(),
        to: agent("theirs"),
        from: None,
        kind: "note".to_owned(),
        body: Payload::from_text("hello"),
        reply_to: None,
        in_reply_to: None,
        ttl: None,
    };
    // What has no sender is from the platform, so that it cannot be made up.
    assert_eq!(refused_with(&mine.send(&[letter.clone()]).await.unwrap_err()).0, 422);
    letter.from = Some(agent("boss"));
    forbidden(mine.send(&[letter.clone()]).await.unwrap_err());
    letter.from = Some(agent("mine-1"));
    mine.send(&[letter]).await.unwrap();
    let box_of_theirs = free.receive(&agent("theirs"), None, 9, Duration::default()).await.unwrap();
    assert_eq!(box_of_theirs.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_touches_its_own_leases_alone() {
    let guarded = Guarded::new(controlled()).await;
    let mine = guarded.client(AccessRole::Agent, Some("mine")).await;
    let free = guarded.client(AccessRole::Agent, None).await;
    mine.submit_batch(&[task("x", "1"), task("x", "2")]).await.unwrap();
    let life = register(&free, "theirs", "x").await;
    let foreign = free.claim(&claim("theirs", life, "x"), Duration::default()).await.unwrap();
    let life = register(&mine, "mine", "x").await;
    let own = mine.claim(&claim("mine", life, "x"), Duration::default()).await.unwrap();
    let lease =
        |lease: &resurgam_model::task::Lease| LeaseRef { task: lease.task, token: lease.token };
    let (foreign, own) = (lease(&foreign[0]), lease(&own[0]));
    let done = |lease: LeaseRef| Completion { lease, result: Payload::from_text("ok") };
    let broken = |lease: LeaseRef| Failure { lease, error: "no".to_owned(), retry: true };
    let minute = Duration::from_secs(60);

    for error in [
        mine.extend(&[own, foreign], minute).await.unwrap_err(),
        mine.complete(&[done(own), done(foreign)]).await.unwrap_err(),
        mine.fail(&[broken(own), broken(foreign)]).await.unwrap_err(),
    ] {
        assert_eq!(refused_with(&error), (403, code::FORBIDDEN));
    }
    // Nothing of those requests was done. A token that is yet to come is not accepted either.
    let next = LeaseRef { token: Token(foreign.token.0 + 1), ..foreign };
    assert_eq!(
        mine.extend(&[own, next], minute).await.unwrap(),
        [Outcome::Accepted, Outcome::Stale]
    );
    let nothing = LeaseRef { task: resurgam_model::TaskId::new(), token: Token(1) };
    assert_eq!(
        mine.complete(&[done(nothing), done(own), done(next)]).await.unwrap(),
        [Outcome::Unknown, Outcome::Accepted, Outcome::Stale]
    );
    // A word that is repeated because the answer was lost.
    assert_eq!(mine.complete(&[done(own)]).await.unwrap(), [Outcome::Accepted]);
    assert_eq!(free.complete(&[done(foreign)]).await.unwrap(), [Outcome::Accepted]);
    assert!(mine.complete(&[]).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_parts_of_the_platform_know_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let store = sqlite(dir.path());
    let internal = Secret::generate().unwrap();
    let with = |roles: &[Role]| {
        let mut settings = ServeSettings { roles: roles.iter().copied().collect(), ..controlled() };
        settings.access.internal = Some(internal.clone());
        settings
    };
    let registry = Server::ready(with(&[Role::Registry]), store.clone()).await;
    let mut settings = with(&[Role::Api, Role::Supervisor]);
    settings.registry_url = Some(registry.url());
    let api = Server::ready(settings, store.clone()).await;
    let client =
        |secret: &Secret| Client::builder(api.url()).token(secret.expose()).build().unwrap();
    let bound = client(&token(&store, AccessRole::Agent, Some("w-*")).await);
    // Handed on to the registry, which lets the API in.
    register(&bound, "w-1", "x").await;
    let error = bound.register(&registration("v-1")).await.unwrap_err();
    assert_eq!(refused_with(&error), (403, code::FORBIDDEN));
    // A worker of the platform works as any agent, and no more than that.
    let worker = client(&internal.derived(WORKER));
    register(&worker, "worker-pool-0", "x").await;
    let error = worker.tokens(None, 0).await.unwrap_err();
    assert_eq!(refused_with(&error), (403, code::FORBIDDEN));
    assert_eq!(client(&internal).tokens(None, 0).await.unwrap().len(), 1);
    let stranger = client(&internal.derived("other"));
    assert_eq!(refused_with(&stranger.pending().await.unwrap_err()).0, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn acts_are_recorded_with_who_and_what_and_how_they_ended() {
    let guarded = Guarded::new(controlled()).await;
    let (secret, id) = made(&guarded.store, AccessRole::Operator, None, None).await;
    let agent_of = guarded.client(AccessRole::Agent, None).await;
    register(&agent_of, "w", "x").await;
    let drain = |name: &str| {
        let request = guarded.request("POST", "/agents/drain", Some(&secret));
        request.header("x-request-id", "r-17").json(&json!({"id": name}))
    };
    assert_eq!(drain("w").send().await.unwrap().status(), StatusCode::OK);
    assert_eq!(drain("nobody").send().await.unwrap().status(), StatusCode::NOT_FOUND);
    let denied = guarded.request("GET", "/audit?act=x", Some(&secret)).send().await.unwrap();
    assert_eq!(denied.status(), StatusCode::FORBIDDEN);
    assert_eq!(guarded.request("GET", "/tasks", None).send().await.unwrap().status(), 401);

    let log = guarded.audit().await;
    let seen: Vec<_> = log.iter().rev().map(|e| (&*e.act, &*e.object, e.outcome)).collect();
    assert_eq!(
        seen,
        [
            ("agent.drain", "POST /agents/drain", AuditOutcome::Done),
            ("agent.drain", "POST /agents/drain", AuditOutcome::Failed),
            ("request", "GET /audit?act=x", AuditOutcome::Denied),
            ("request", "GET /tasks", AuditOutcome::Denied),
        ]
    );
    let done = &log[3];
    assert_eq!((done.actor.kind, done.actor.token), (ActorKind::Token, Some(id)));
    assert_eq!(done.actor.name.as_deref(), Some("operator"));
    assert_eq!(done.request_id.as_deref(), Some("r-17"));
    assert!(done.remote.as_ref().unwrap().starts_with("127.0.0.1:"));
    assert_eq!(done.detail.as_deref(), Some("w"));
    assert_eq!(log[2].detail.as_deref(), Some("nobody; answered 404"));
    assert_eq!((log[1].actor.token, log[1].actor.kind), (Some(id), ActorKind::Token));
    assert_eq!(log[0].actor.kind, ActorKind::Unknown);
    assert!(log[0].request_id.is_some());

    let admin = guarded.client(AccessRole::Admin, None).await;
    let query = AuditQuery { token: Some(id), limit: 1, ..AuditQuery::default() };
    let read = admin.audit_log(&query).await.unwrap();
    assert_eq!(read.iter().map(|e| e.sequence).collect::<Vec<_>>(), [log[1].sequence]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_recorded_is_not_done() {
    let dir = tempfile::tempdir().unwrap();
    let flaky = Flaky::new(sqlite(dir.path()), false);
    let internal = Secret::generate().unwrap();
    let mut settings = controlled();
    settings.access.internal = Some(internal.clone());
    let server = Server::ready(settings, flaky.clone()).await;
    let client = Client::builder(server.url()).token(internal.expose()).build().unwrap();
    flaky.set_away(true);
    let new = NewAccessToken {
        name: TokenName::new("x").unwrap(),
        role: AccessRole::Viewer,
        agents: None,
        expires_in: None,
    };
    let error = client.create_token(&new).await.unwrap_err();
    assert_eq!(refused_with(&error), (503, code::UNAVAILABLE));
    flaky.set_away(false);
    assert!(client.tokens(None, 0).await.unwrap().is_empty());
    assert!(client.audit_log(&AuditQuery::default()).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_refusals_does_not_fill_the_disk() {
    let guarded = Guarded::new(controlled()).await;
    let stranger = Client::builder(guarded.server.url()).build().unwrap();
    for _ in 0..150 {
        assert_eq!(refused_with(&stranger.pending().await.unwrap_err()).0, 401);
    }
    let query = AuditQuery { limit: 1000, ..AuditQuery::default() };
    let recorded = guarded.store.audit_log(&query).await.unwrap().len();
    assert!((100..150).contains(&recorded), "{recorded}");
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_are_limited_each_for_itself() {
    let mut settings = controlled();
    let internal = Secret::generate().unwrap();
    settings.access = AccessSettings {
        internal: Some(internal.clone()),
        rate: Some(Rate { per_second: 1, burst: 3 }),
        ..settings.access
    };
    let guarded = Guarded::new(settings).await;
    let one = guarded.client(AccessRole::Viewer, None).await;
    let other = guarded.client(AccessRole::Viewer, None).await;
    let mut refused = None;
    for _ in 0..20 {
        if let Err(error) = one.pending().await {
            refused = Some(error);
            break;
        }
    }
    let refused = refused.expect("twenty at once are more than three");
    assert_eq!(refused_with(&refused), (429, code::RATE_LIMITED));
    assert!(refused.is_transient());
    other.pending().await.unwrap();
    // The platform itself is not counted.
    let platform = guarded.with(&internal);
    for _ in 0..20 {
        platform.pending().await.unwrap();
    }
    // Strangers are counted by their address, and told when to come again.
    let mut last = None;
    for _ in 0..20 {
        let answer = guarded.request("GET", "/tasks", None).send().await.unwrap();
        if answer.status() == StatusCode::TOO_MANY_REQUESTS {
            last = Some(answer);
            break;
        }
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    }
    let wait: u64 =
        last.expect("a limit").headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!(wait >= 1);
    // Who has waited so long is let in again.
    until("let in again", || async { one.pending().await.is_ok() }).await;
}
