//! `/metrics` against a real server: strict about the format, and the counts must be what was done.

use std::collections::{BTreeMap, BTreeSet};

use resurgam_model::Role;
use resurgam_model::task::{Completion, LeaseRef};
use tempfile::TempDir;

use crate::flaky::{Flaky, SECRET};
use crate::harness::{Server, claim, register, settings, sqlite, task};

/// Samples by their name with its labels.
struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    fn value(&self, series: &str) -> f64 {
        let found = self.0.get(series);
        *found.unwrap_or_else(|| panic!("no {series} in {:#?}", self.0.keys()))
    }
}

async fn scrape(server: &Server) -> Scrape {
    let answer = reqwest::get(format!("{}/metrics", server.url())).await.unwrap();
    assert_eq!(answer.status(), 200);
    let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
    assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
    parse(&answer.text().await.unwrap())
}

/// The text format, version 0.0.4, without tolerance: each metric has help and type before its
/// samples, its samples stand together, names and labels are well formed, no series occurs twice,
/// and the buckets of a histogram grow up to its count.
fn parse(text: &str) -> Scrape {
    let is_name = |name: &str| {
        !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
    };
    assert!(text.ends_with('\n'), "the last line must end");
    let (mut samples, mut seen) = (BTreeMap::new(), BTreeSet::new());
    let (mut metric, mut kind) = (String::new(), String::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("help");
            assert!(is_name(name) && help.ends_with('.') && !help.ends_with(".."), "{line}");
            assert!(seen.insert(name.to_owned()), "{name} occurs twice");
            (metric, kind) = (name.to_owned(), String::new());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, is) = rest.split_once(' ').expect("type");
            assert_eq!(name, metric, "{line}");
            assert!(["counter", "gauge", "histogram"].contains(&is), "{line}");
            assert_eq!(is == "counter", name.ends_with("_total"), "{line}");
            is.clone_into(&mut kind);
        } else {
            let (series, value) = line.rsplit_once(' ').expect("sample");
            assert!(!kind.is_empty(), "{line} before its type");
            let (name, labels) = match series.split_once('{') {
                Some((name, labels)) => (name, labels.strip_suffix('}').expect("closed")),
                None => (series, ""),
            };
            assert!(is_name(name), "{line}");
            let suffix = name.strip_prefix(&metric).expect("a sample of the metric before it");
            let suffixes: &[&str] =
                if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(suffixes.contains(&suffix), "{line}");
            let mut rest = labels;
            while !rest.is_empty() {
                let (label, value) = rest.split_once("=\"").expect("label");
                assert!(is_name(label), "{line}");
                let end = value.find('"').expect("quoted");
                assert!(!value[..end].contains('\\'), "no value here needs escaping: {line}");
                rest = &value[end + 1..];
                rest = rest.strip_prefix(',').unwrap_or(rest);
            }
            let value: f64 = value.parse().expect("number");
            assert!(samples.insert(series.to_owned(), value).is_none(), "{series} occurs twice");
        }
    }
    let mut buckets: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for (series, value) in &samples {
        if let Some((before, bound)) = series.split_once("le=\"") {
            let bound = bound.trim_end_matches(['"', '}']).replace("+Inf", "inf");
            let of = buckets.entry(before.to_owned()).or_default();
            of.push((bound.parse().unwrap(), *value));
        }
    }
    assert!(!buckets.is_empty());
    for (before, mut buckets) in buckets {
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        assert!(buckets.is_sorted_by(|a, b| a.1 <= b.1), "{before}: {buckets:?}");
        let count = before.replacen("_bucket{", "_count{", 1);
        let count = count.trim_end_matches(',');
        let count =
            if count.ends_with('{') { count.replace('{', "") } else { format!("{count}}}") };
        assert_eq!(buckets.last().unwrap().1, samples[&count], "{before}");
    }
    Scrape(samples)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_figures_are_what_was_done() {
    let dir = TempDir::new().unwrap();
    let server = Server::whole(&dir).await;
    let client = &server.client;
    let instance = register(client, "w", "x").await;
    client.submit_batch(&[task("x", "1"), task("x", "2"), task("y", "3")]).await.unwrap();
    let leases = client.claim(&claim("w", instance, "x"), Default::default()).await.unwrap();
    let lease = LeaseRef { task: leases[0].task, token: leases[0].token };
    let done = Completion { lease, result: Default::default() };
    client.complete(&[done]).await.unwrap();
    // Nothing waits for this one, so that it waits itself.
    let wait = resurgam_model::Duration::from_millis(1);
    assert!(client.claim(&claim("w", instance, "z"), wait).await.unwrap().is_empty());
    reqwest::get(format!("{}/no/such", server.url())).await.unwrap();

    let found = scrape(&server).await;
    for (series, value) in [
        (
            "resurgam_http_requests_total{method=\"POST\",route=\"/tasks/batch\",status=\"2xx\"}",
            1.0,
        ),
        (
            "resurgam_http_requests_total{method=\"POST\",route=\"/tasks/claim\",status=\"2xx\"}",
            2.0,
        ),
        ("resurgam_http_requests_total{method=\"GET\",route=\"none\",status=\"4xx\"}", 1.0),
        (
            "resurgam_http_request_duration_seconds_count{method=\"POST\",route=\"/tasks/claim\"}",
            1.0,
        ),
        ("resurgam_http_long_poll_duration_seconds_count{route=\"/tasks/claim\"}", 1.0),
        ("resurgam_http_requests_in_flight", 1.0),
        ("resurgam_store_operation_duration_seconds_count{operation=\"submit tasks\"}", 1.0),
        ("resurgam_tasks{capability=\"x\",state=\"ready\"}", 1.0),
        ("resurgam_tasks{capability=\"x\",state=\"running\"}", 0.0),
        ("resurgam_tasks{capability=\"y\",state=\"ready\"}", 1.0),
        ("resurgam_agents{state=\"available\"}", 1.0),
        ("resurgam_stock_stale", 0.0),
    ] {
        assert_eq!(found.value(series), value, "{series}");
    }
    assert!(found.value("resurgam_task_oldest_ready_seconds{capability=\"y\"}") >= 0.0);
    assert!(found.value("process_resident_memory_bytes") > 0.0);
    let version = env!("CARGO_PKG_VERSION");
    let build = format!("resurgam_build_info{{version=\"{version}\",process=\"platform\"}}");
    assert_eq!(found.value(&build), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn openmetrics_is_given_to_who_asks_for_it() {
    let dir = TempDir::new().unwrap();
    let server = Server::whole(&dir).await;
    let request = reqwest::Client::new()
        .get(format!("{}/metrics", server.url()))
        .header("accept", "application/openmetrics-text;version=1.0.0,text/plain;q=0.5");
    let answer = request.send().await.unwrap();
    let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
    assert!(kind.starts_with("application/openmetrics-text; version=1.0.0"), "{kind}");
    let text = answer.text().await.unwrap();
    assert!(text.ends_with("# EOF\n") && text.contains("# TYPE process_cpu_seconds counter\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrape_answers_while_the_database_is_away() {
    let dir = TempDir::new().unwrap();
    let store = Flaky::new(sqlite(dir.path()), true);
    let server = Server::start(settings([Role::Supervisor]), store.clone()).await;
    // Never there yet.
    let found = scrape(&server).await;
    assert_eq!(found.value("resurgam_stock_stale"), 1.0);
    assert!(!found.0.contains_key("resurgam_stock_age_seconds"));

    store.set_away(false);
    let mut fresh = false;
    while !fresh {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        fresh = scrape(&server).await.value("resurgam_stock_stale") == 0.0;
    }
    store.set_away(true);
    while fresh {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        let text = reqwest::get(format!("{}/metrics", server.url())).await.unwrap();
        let text = text.text().await.unwrap();
        assert!(!text.contains(SECRET) && !text.contains("hunter2"));
        let found = parse(&text);
        fresh = found.value("resurgam_stock_stale") == 0.0;
        // What was known is told on, with its age.
        assert!(found.value("resurgam_stock_age_seconds") >= 0.0);
    }
}
