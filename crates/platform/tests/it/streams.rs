//! Leases as server-sent events.

use std::time::Duration as StdDuration;

use reqwest::Response;
use resurgam_model::InstanceId;
use resurgam_model::task::{Completion, Lease, LeaseRef, Outcome};
use uuid::Uuid;

use crate::harness::*;

/// A stream as a client sees it.
struct Stream {
    response: Response,
    buffer: String,
}

impl Stream {
    async fn open(server: &Server, parameters: &str) -> Self {
        let url = format!("{}/tasks/stream?{parameters}", server.url());
        let response = reqwest::get(url).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { response, buffer: String::new() }
    }

    /// The kind and the data of the next event; none at the end.
    async fn next(&mut self) -> Option<(String, String)> {
        let next = async {
            loop {
                if let Some((event, rest)) = self.buffer.split_once("\n\n") {
                    let (event, rest) = (event.to_owned(), rest.to_owned());
                    self.buffer = rest;
                    let field = |name: &str| {
                        let lines = event.lines().filter_map(|line| line.strip_prefix(name));
                        lines.map(str::trim).collect::<Vec<_>>().join("\n")
                    };
                    if !field("event:").is_empty() {
                        return Some((field("event:"), field("data:")));
                    }
                    continue;
                }
                let chunk = self.response.chunk().await.unwrap()?;
                self.buffer.push_str(std::str::from_utf8(&chunk).unwrap());
            }
        };
        tokio::time::timeout(StdDuration::from_secs(30), next).await.expect("no event came")
    }

    async fn lease(&mut self) -> Lease {
        let (kind, data) = self.next().await.unwrap();
        assert_eq!(kind, "lease", "{data}");
        serde_json::from_str(&data).unwrap()
    }
}

async fn listener(server: &Server, more: &str) -> (InstanceId, String) {
    let instance = register(&server.client, "w", "x").await;
    (instance, format!("agent=w&instance={instance}&capability=x{more}"))
}

async fn complete(server: &Server, lease: &Lease) {
    let lease = LeaseRef { task: lease.task, token: lease.token };
    let completion = Completion { lease, result: Default::default() };
    let outcomes = server.client.complete(&[completion]).await.unwrap();
    assert_eq!(outcomes, [Outcome::Accepted]);
}

#[tokio::test]
async fn leases_come_as_tasks_do_and_only_as_many_as_there_are_places() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::whole(&dir).await;
    let (_, parameters) = listener(&server, "&max_in_flight=2&lease=60s").await;
    let mut stream = Stream::open(&server, &parameters).await;
    let batch: Vec<_> = (0..4).map(|n| task("x", &format!("line\n{n}"))).collect();
    server.client.submit_batch(&batch).await.unwrap();
    let (first, second) = (stream.lease().await, stream.lease().await);
    assert_eq!((first.payload.text(), first.attempt), ("line\n0".into(), 1));
    let pending = server.client.pending().await.unwrap();
    assert_eq!((pending.ready, pending.running), (2, 2));
    complete(&server, &second).await;
    let third = stream.lease().await;
    assert_eq!(third.payload.text(), "line\n2");
    let pending = server.client.pending().await.unwrap();
    assert_eq!((pending.ready, pending.running), (1, 2));
    complete(&server, &first).await;
    assert_eq!(stream.lease().await.payload.text(), "line\n3");
}

#[tokio::test]
async fn a_place_is_free_again_when_the_task_ends_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::whole(&dir).await;
    let other = Server::ready(settings(SERVER), sqlite(dir.path())).await;
    let (_, parameters) = listener(&server, "&lease=60s").await;
    let mut stream = Stream::open(&server, &parameters).await;
    server.client.submit_batch(&[task("x", "1"), task("x", "2")]).await.unwrap();
    let first = stream.lease().await;
    complete(&other, &first).await;
    assert_eq!(stream.lease().await.payload.text(), "2");
}

#[tokio::test]
async fn who_opens_a_stream_again_gets_what_is_still_under_lease() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::whole(&dir).await;
    let name = Uuid::new_v4();
    let (_, parameters) =
        listener(&server, &format!("&max_in_flight=3&lease=60s&claim={name}")).await;
    let mut stream = Stream::open(&server, &parameters).await;
    let batch: Vec<_> = (0..4).map(|n| task("x", &n.to_string())).collect();
    server.client.submit_batch(&batch).await.unwrap();
    let mut leases = Vec::new();
    for _ in 0..3 {
        leases.push(stream.lease().await);
    }
    drop(stream);
    complete(&server, &leases.remove(0)).await;
    let mut stream = Stream::open(&server, &parameters).await;
    let again = [stream.lease().await, stream.lease().await];
    let name = |lease: &Lease| (lease.task, lease.token);
    assert_eq!(again.each_ref().map(name), [name(&leases[0]), name(&leases[1])]);
    assert_eq!(stream.lease().await.payload.text(), "3");
}

#[tokio::test]
async fn a_stream_ends_in_order_when_the_server_does() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::whole(&dir).await;
    let (_, parameters) = listener(&server, "").await;
    let mut stream = Stream::open(&server, &parameters).await;
    let stopping = tokio::spawn(server.stop());
    assert_eq!(stream.next().await.unwrap().0, "end");
    assert_eq!(stream.next().await, None);
    stopping.await.unwrap();
}

#[tokio::test]
async fn who_is_not_registered_any_more_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::whole(&dir).await;
    let (instance, parameters) = listener(&server, "").await;
    let mut stream = Stream::open(&server, &parameters).await;
    server.client.deregister(&agent("w"), instance).await.unwrap();
    let (kind, data) = stream.next().await.unwrap();
    assert!(kind == "problem" && data.contains("unknown-agent"), "{kind}: {data}");
    assert_eq!(stream.next().await, None);
}

#[tokio::test]
async fn parameters_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::whole(&dir).await;
    let (instance, good) = listener(&server, "").await;
    let id = instance.to_string();
    for (parameters, code) in [
        (String::new(), "invalid-parameter"),
        (format!("agent=w&instance={id}"), "invalid-parameter"),
        (format!("{good}&max_in_flight=0"), "invalid-parameter"),
        (format!("{good}&max_in_flight=257"), "invalid-parameter"),
        (format!("{good}&lease=1ms"), "invalid-parameter"),
        (format!("{good}&claim=mine"), "invalid-parameter"),
        (format!("{good}&agent=v"), "invalid-parameter"),
        (format!("{good}&wait=1s"), "invalid-parameter"),
        (good.replace(&id, &InstanceId::new().to_string()), "unknown-agent"),
    ] {
        let url = format!("{}/tasks/stream?{parameters}", server.url());
        let response = reqwest::get(url).await.unwrap();
        assert!(response.status().is_client_error(), "{parameters}");
        let problem: serde_json::Value = response.json().await.unwrap();
        assert_eq!(problem["code"], code, "{parameters}: {problem}");
    }
}
