//! Logs as people and programs read them, and traces as a collector gets them.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value as Any};
use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind};
use prost::Message as _;
use resurgam_testing::ScratchPostgres;
use serde_json::Value;

use crate::harness::{Finished, Place, Running, SHORT, until};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const TOKEN: &str = "rsg_0123456789abcdef-not-to-be-seen";

/// Takes what is exported to it. Its thread ends with the test process.
struct Collector {
    url: String,
    requests: Receiver<ExportTraceServiceRequest>,
}

impl Collector {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (taken, requests) = mpsc::channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let taken = taken.clone();
                thread::spawn(move || {
                    let mut stream = BufReader::new(stream.unwrap());
                    while let Ok(Some((head, body))) = read_request(&mut stream) {
                        assert!(head.starts_with("POST /v1/traces "), "{head}");
                        let decoded = ExportTraceServiceRequest::decode(body.as_slice()).unwrap();
                        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                        if taken.send(decoded).is_err()
                            || stream.get_mut().write_all(answer).is_err()
                        {
                            return;
                        }
                    }
                });
            }
        });
        Self { url, requests }
    }

    /// All spans that have come, with the name of the service. Call it when the sender has ended.
    fn spans(&self) -> Vec<(String, Span)> {
        let mut all = Vec::new();
        for group in self.requests.try_iter().flat_map(|request| request.resource_spans) {
            let resource = group.resource.unwrap();
            let Some(Any::StringValue(service)) = value(&resource.attributes, "service.name")
            else {
                panic!("{resource:?}");
            };
            let spans = group.scope_spans.into_iter().flat_map(|scope| scope.spans);
            all.extend(spans.map(|span| (service.clone(), span)));
        }
        all
    }
}

fn read_request(stream: &mut BufReader<TcpStream>) -> io::Result<Option<(String, Vec<u8>)>> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head)? == 0 {
            return Ok(None);
        }
    }
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().unwrap())
    });
    let mut body = vec![0; length.unwrap()];
    stream.read_exact(&mut body)?;
    Ok(Some((head, body)))
}

fn value(attributes: &[KeyValue], key: &str) -> Option<Any> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    found.value.clone().and_then(|AnyValue { value }| value)
}

/// A server, and the way to it.
struct Served {
    place: Place,
    address: String,
    server: Running,
}

impl Served {
    fn new(environment: &[(&str, &str)]) -> Self {
        let place = Place::new("");
        // Taken and given back, so that it is most likely free.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let mut command = place.command(&[
            "serve",
            "--role=api",
            "--role=registry",
            &format!("--listen={address}"),
        ]);
        if !environment.iter().any(|(name, _)| *name == "DATABASE_URL") {
            command.arg("--sqlite=agents.db");
        }
        command.envs(environment.iter().copied());
        let server = place.run(command);
        for word in ["serving", "the database is ready"] {
            until(word, SHORT, &place, || server.said().contains(word).then_some(()));
        }
        Self { place, address, server }
    }

    /// What the server answers, head and body.
    fn get(&self, path: &str, headers: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(SHORT)).unwrap();
        let address = &self.address;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn figure(&self, name: &str) -> u64 {
        let text = self.get("/metrics", "");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name}: {text}")).parse().unwrap()
    }

    fn stop(self) -> Finished {
        self.server.signal(rustix::process::Signal::TERM);
        let ended = self.server.end(&self.place, SHORT);
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        ended
    }
}

fn parent(sampled: bool) -> String {
    format!("traceparent: 00-{TRACE}-b7ad6b7169203331-0{}\r\n", u8::from(sampled))
}

#[test]
fn a_collector_gets_the_callers_trace_continued() {
    let collector = Collector::start();
    let served = Served::new(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url),
        ("OTEL_SERVICE_NAME", "fleet"),
    ]);
    served.get("/limits?secret=in-a-query", &parent(true));
    served.get("/limits", &parent(false));
    served.stop();
    let spans = collector.spans();
    let ours: Vec<_> = spans.iter().filter(|(_, span)| hex(&span.trace_id) == TRACE).collect();
    // The one that its caller did not sample is not there.
    let requests: Vec<_> = ours.iter().filter(|(_, span)| span.name == "GET /limits").collect();
    assert_eq!(requests.len(), 1, "{spans:?}");
    let (service, span) = requests[0];
    assert_eq!(service, "fleet");
    assert_eq!(hex(&span.parent_span_id), "b7ad6b7169203331");
    assert_eq!(span.kind, SpanKind::Server as i32);
    assert_eq!(value(&span.attributes, "http.response.status_code"), Some(Any::IntValue(200)));
    assert_eq!(value(&span.attributes, "route"), Some(Any::StringValue("/limits".into())));
    assert!(!format!("{spans:?}").contains("in-a-query"), "{spans:?}");
}

#[test]
fn what_is_sampled_away_is_not_exported() {
    let collector = Collector::start();
    let served = Served::new(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url),
        ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "0"),
    ]);
    served.get("/limits", "");
    served.get("/limits", &parent(true));
    served.stop();
    let spans = collector.spans();
    assert!(!spans.is_empty());
    assert!(spans.iter().all(|(_, span)| hex(&span.trace_id) == TRACE), "{spans:?}");
    assert!(spans.iter().all(|(service, _)| service == "resurgam"), "{spans:?}");
}

#[test]
fn a_collector_that_is_away_is_told_of_once() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://someone:hunter2@{gone}");
    let served = Served::new(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &url)]);
    // In two batches at least.
    for _ in 0..2 {
        let before = served.figure("resurgam_trace_spans_failed_total");
        until("spans are given up", SHORT, &served.place, || {
            (served.figure("resurgam_trace_spans_failed_total") > before).then_some(())
        });
    }
    let ended = served.stop();
    let told = ended.err.matches("the collector does not take traces").count();
    assert_eq!(told, 1, "{}", ended.err);
    assert!(!ended.err.contains("hunter2"), "{}", ended.err);
}

#[test]
fn what_is_not_understood_is_refused() {
    let place = Place::new("");
    let mut command =
        place.command(&["serve", "--role=api", "--role=registry", "--sqlite=agents.db"]);
    command
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
        .env("OTEL_TRACES_SAMPLER", "sometimes");
    let refused = place.run(command).end(&place, SHORT);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(refused.err.contains("OTEL_TRACES_SAMPLER must be"), "{refused:?}");
    let refused = place.finish(&["--log-format=xml", "plan", "show"]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn json_logs_are_lines_without_secrets() {
    let server = ScratchPostgres::shared().unwrap();
    let database = server.create_database().await.unwrap();
    let url = server.url(&database);
    let url = url.replacen("postgres@", "postgres:hunter2@", 1);
    assert!(url.contains("hunter2"), "{url}");
    let served = Served::new(&[
        ("DATABASE_URL", &url),
        ("RESURGAM_LOG_FORMAT", "json"),
        ("RESURGAM_LOG", "trace"),
    ]);
    served.get("/limits", &format!("x-request-id: r-1\r\nAuthorization: Bearer {TOKEN}\r\n"));
    let ended = served.stop();
    let lines: Vec<Value> = ended
        .err
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let answered = lines.iter().find(|line| line["message"] == "answered").unwrap();
    assert_eq!(answered["span"]["id"], "r-1", "{answered}");
    assert_eq!(answered["span"]["route"], "/limits", "{answered}");
    for secret in ["hunter2", TOKEN] {
        let seen = ended.err.lines().find(|line| line.contains(secret));
        assert_eq!(seen, None);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
