//! What bad requests are answered.

use reqwest::{Method, RequestBuilder};
use resurgam_model::Role;
use resurgam_model::agent::AgentQuery;
use resurgam_model::{Duration, InstanceId, Payload};
use resurgam_platform::serve::Limits;

use crate::harness::*;

async fn small() -> (tempfile::TempDir, Server) {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings(SERVER);
    settings.limits = Limits { max_body_bytes: 4096, ..Limits::with_payload(1000) };
    let server = Server::ready(settings, sqlite(dir.path())).await;
    (dir, server)
}

fn request(server: &Server, method: Method, path: &str) -> RequestBuilder {
    reqwest::Client::new().request(method, format!("{}{path}", server.url()))
}

/// Status, media type and body; checks what every answer has.
async fn answer(request: RequestBuilder) -> String {
    let response = request.send().await.unwrap();
    let headers = response.headers().clone();
    assert!(headers.contains_key("x-request-id"), "{headers:?}");
    let media = headers.get("content-type").map_or("", |value| value.to_str().unwrap()).to_owned();
    assert_eq!(media, "application/problem+json");
    let status = response.status().as_u16();
    let body: serde_json::Value = response.json().await.unwrap();
    assert_eq!(body["status"], status);
    assert_eq!(body["type"], format!("urn:resurgam:problem:{}", body["code"].as_str().unwrap()));
    format!("{status} {}: {}", body["code"].as_str().unwrap(), body["detail"].as_str().unwrap())
}

async fn post(server: &Server, path: &str, body: impl Into<String>) -> String {
    let request = request(server, Method::POST, path).header("content-type", "application/json");
    answer(request.body(body.into())).await
}

#[tokio::test]
async fn the_document_as_it_is() {
    let (_dir, server) = small().await;
    let request =
        request(&server, Method::POST, "/tasks").header("content-type", "application/json");
    let response = request.header("x-request-id", "mine-1").body("{").send().await.unwrap();
    assert_eq!(response.headers()["x-request-id"], "mine-1");
    insta::assert_snapshot!(response.text().await.unwrap(), @r#"{"type":"urn:resurgam:problem:malformed-json","title":"The body is not JSON","status":400,"detail":"EOF while parsing an object at line 1 column 1","code":"malformed-json"}"#);
}

#[tokio::test]
async fn bodies() {
    let (_dir, server) = small().await;
    insta::assert_snapshot!(post(&server, "/tasks", "").await, @"400 malformed-json: the body is empty; JSON is needed");
    insta::assert_snapshot!(post(&server, "/tasks", "{\"capability\": x}").await, @"400 malformed-json: expected value at line 1 column 16");
    insta::assert_snapshot!(post(&server, "/tasks", "{\"capability\":\"x\",\n\"prio\":3}").await, @"422 invalid-field: unknown field `prio`, expected one of `capability`, `payload`, `idempotency_key`, `priority`, `delay`, `run_at`, `timeout`, `key`, `tags`, `keep`, `retry`, `fallback`, `reply_to` at line 2 column 6");
    insta::assert_snapshot!(post(&server, "/tasks", "{}").await, @"422 invalid-field: missing field `capability` at line 1 column 2");
    insta::assert_snapshot!(post(&server, "/tasks", "{\"capability\":\"a b\"}").await, @r#"422 invalid-field: capability "a b" is not allowed: use 1 to 128 of the characters a-z, A-Z, 0-9, '.', '_', '-', ':' and '/', the first of them a letter or digit at line 1 column 20"#);
    insta::assert_snapshot!(post(&server, "/tasks", "{\"capability\":\"x\",\"delay\":\"soon\"}").await, @r#"422 invalid-field: "soon" is not a duration: write a number and a unit, such as "250ms", "15m" or "1h 30m" at line 1 column 33"#);
    insta::assert_snapshot!(
        post(&server, "/tasks", "{\"capability\":\"x\",\"retry\":{\"max_attempts\":0}}").await, @"422 invalid-field: retry.max_attempts must be at least 1");
    insta::assert_snapshot!(
        post(&server, "/tasks/batch", "{\"tasks\":[{\"capability\":\"x\",\"idempotency_key\":\"a\\u0000\"}]}").await,
        @"422 invalid-field: tasks[0].idempotency_key: use at most 256 characters without control characters");
    let deep = "[".repeat(2000);
    insta::assert_snapshot!(
        post(&server, "/tasks", format!("{{\"capability\":\"x\",\"payload\":{deep}}}")).await, @"400 malformed-json: expected value at line 1 column 2029");
    let plain = request(&server, Method::POST, "/tasks").body("{\"capability\":\"x\"}");
    insta::assert_snapshot!(answer(plain).await, @"415 unsupported-media-type: send the header Content-Type: application/json");
    assert_eq!(server.client.pending().await.unwrap().ready, 0, "a refused task was taken");
}

#[tokio::test]
async fn sizes() {
    let (_dir, server) = small().await;
    let mut large = task("x", "");
    large.payload = Payload::from_text(&"x".repeat(998));
    server.client.submit(&large).await.unwrap();
    large.payload = Payload::from_text(&"x".repeat(999));
    let error = server.client.submit_batch(&[task("x", ""), large]).await.unwrap_err();
    assert!(!error.is_transient());
    insta::assert_snapshot!(error, @"tasks[1].payload has 1001 bytes; at most 1000 are taken. Store large data elsewhere and hand in where it is (413 too-large)");
    let huge = format!("{{\"capability\":\"{}\"}}", "x".repeat(20_000_000));
    insta::assert_snapshot!(post(&server, "/tasks", huge).await, @"413 too-large: the body is larger than 4096 bytes; send less at once");
    let many: Vec<_> = (0..1001).map(|_| ()).collect();
    let sequences = serde_json::to_string(&many).unwrap().replace("null", "1");
    let many = format!("{{\"agent\":\"a\",\"sequences\":{sequences}}}");
    insta::assert_snapshot!(post(&server, "/mailbox/acknowledge", many).await, @"422 invalid-field: sequences: 1001 items in one request; at most 1000 are taken");
}

#[tokio::test]
async fn paths_and_parameters() {
    let (_dir, server) = small().await;
    let get = |path: &'static str| answer(request(&server, Method::GET, path));
    insta::assert_snapshot!(get("/nothing").await, @"404 no-such-path: /nothing is not served here (roles: api, registry, supervisor)");
    insta::assert_snapshot!(get("/tasks/0198c0de-0000-7000-8000-000000000000").await, @"404 not-found: there is no task 0198c0de-0000-7000-8000-000000000000");
    insta::assert_snapshot!(get("/tasks/17").await, @"400 invalid-parameter: the id in the path: invalid length: found 2");
    insta::assert_snapshot!(get("/tasks?state=done").await, @"400 invalid-parameter: state: unknown variant `done`, expected one of `scheduled`, `ready`, `running`, `completed`, `dead`, `cancelled`");
    insta::assert_snapshot!(get("/tasks?limit=-1").await, @"400 invalid-parameter: limit: invalid digit found in string");
    insta::assert_snapshot!(get("/tasks?order=asc").await, @"400 invalid-parameter: order: unknown field `order`, expected one of `state`, `capability`, `key`, `tag`, `after`, `limit`");
    insta::assert_snapshot!(get("/mailbox").await, @"400 invalid-parameter: missing field `agent`");
    insta::assert_snapshot!(get("/agents/a%2Fb/c").await, @"404 not-found: there is no agent a/b/c");
    insta::assert_snapshot!(get("/agents/heartbeat").await, @"404 not-found: there is no agent heartbeat");
    insta::assert_snapshot!(get("/agents/a%20b").await, @r#"400 invalid-parameter: agent name "a b" is not allowed: use 1 to 128 of the characters a-z, A-Z, 0-9, '.', '_', '-', ':' and '/', the first of them a letter or digit"#);
    insta::assert_snapshot!(answer(request(&server, Method::DELETE, "/agents/a")).await, @"400 invalid-parameter: missing field `instance`");
    let put = request(&server, Method::PUT, "/tasks").send().await.unwrap();
    let allow = put.headers()["allow"].to_str().unwrap();
    assert!(allow.contains("GET") && allow.contains("POST"), "{allow}");
    insta::assert_snapshot!(answer(request(&server, Method::PUT, "/tasks")).await, @"405 method-not-allowed: /tasks cannot be used with PUT; the Allow header names what it takes");
    let foreign = request(&server, Method::GET, "/agents").header("host", "evil.example:80");
    insta::assert_snapshot!(answer(foreign).await, @"403 forbidden-host: requests must name this machine as localhost or by a loopback address");
}

#[tokio::test]
async fn claims() {
    let (_dir, server) = small().await;
    let stranger = claim("stranger", InstanceId::new(), "x");
    let error = server.client.claim(&stranger, Duration::default()).await.unwrap_err();
    assert!(!error.is_transient());
    insta::assert_snapshot!(error, @"agent stranger is not registered; register it before it claims tasks (409 unknown-agent)");
    for (field, change) in [
        ("max", &|claim: &mut resurgam_model::task::Claim| claim.max = 0),
        ("lease", &|claim| claim.lease = Duration::from_millis(1)),
        ("capabilities", &|claim| claim.capabilities.clear()),
    ] as [(&str, &dyn Fn(&mut resurgam_model::task::Claim)); 3]
    {
        let mut claim = stranger.clone();
        change(&mut claim);
        let error = server.client.claim(&claim, Duration::default()).await.unwrap_err();
        assert_eq!(error.code(), Some("invalid-field"));
        assert!(error.to_string().contains(field), "{error}");
    }
}

#[tokio::test]
async fn a_process_serves_only_its_roles() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::ready(settings([Role::Supervisor]), sqlite(dir.path())).await;
    assert_eq!(server.client.workers().await.unwrap(), []);
    assert_eq!(server.client.agents(&AgentQuery::default()).await.unwrap().agents, []);
    insta::assert_snapshot!(post(&server, "/tasks", "{}").await, @"404 no-such-path: /tasks is not served here (roles: supervisor)");
    insta::assert_snapshot!(post(&server, "/agents", "{}").await, @"405 method-not-allowed: /agents cannot be used with POST; the Allow header names what it takes");
}

#[tokio::test]
async fn a_broken_off_body_or_connection_harms_nobody() {
    use tokio::io::AsyncWriteExt;
    let (_dir, server) = small().await;
    for bytes in [
        "POST /tasks HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{",
        "POST /tasks HTTP/1.1\r\n",
        "\0\0\0",
    ] {
        let mut stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        drop(stream);
    }
    assert_eq!(server.client.health().await.unwrap().status, "ok");
}
