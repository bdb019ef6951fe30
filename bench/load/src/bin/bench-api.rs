//! A mix of requests at a constant rate: `bench-api HOST:PORT REQUESTS_PER_SECOND SECONDS`
//!
//! Each request has a moment at which it is due, and its latency counts from then, whether or not
//! an earlier one was slow. Of 100 requests 30 submit, 20 claim one task, 20 complete what was
//! claimed, 10 are heartbeats and 20 look a task up.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bench_load::{Connection, Failure, argument, due, summary};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use uuid::Uuid;

/// More than can ever be under way: a rate that is held has 20 at a latency of 20 ms.
const CONNECTIONS: u64 = 256;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Submit,
    Claim,
    Complete,
    Heartbeat,
    Get,
}

impl Kind {
    /// Spread evenly, the same in every run.
    fn of(number: u64) -> Self {
        match number * 37 % 100 {
            0..30 => Self::Submit,
            30..50 => Self::Claim,
            50..70 => Self::Complete,
            70..80 => Self::Heartbeat,
            _ => Self::Get,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Submit => "submit",
            Self::Claim => "claim",
            Self::Complete => "complete",
            Self::Heartbeat => "heartbeat",
            Self::Get => "get",
        }
    }
}

/// What requests leave for later ones.
#[derive(Default)]
struct Known {
    submitted: Vec<String>,
    claimed: Vec<Value>,
}

struct Load {
    host: String,
    rate: f64,
    requests: u64,
    begun: Instant,
    next: AtomicU64,
    instance: Uuid,
    known: Mutex<Known>,
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let host: String = argument(1, "HOST:PORT")?;
    let rate: f64 = argument(2, "REQUESTS_PER_SECOND")?;
    let seconds: f64 = argument(3, "SECONDS")?;
    let instance = Uuid::now_v7();
    let mut first = Connection::open(&host).await?;
    let registration = json!({"id": "load", "instance": instance, "capabilities": ["load"],
                              "capacity": 1000});
    first.call("POST", "/agents", &registration.to_string()).await?.json()?;
    // So that there is always something to claim, to complete and to look up.
    let mut known = Known::default();
    for _ in 0..20 {
        let tasks: Vec<_> = (0..100).map(|_| json!({"capability": "load"})).collect();
        let answer =
            first.call("POST", "/tasks/batch", &json!({"tasks": tasks}).to_string()).await?;
        let ids = answer.json()?;
        let ids = ids["tasks"].as_array().ok_or("no list of tasks")?.iter();
        known.submitted.extend(ids.filter_map(|task| Some(task["id"].as_str()?.to_owned())));
    }
    let claim = json!({"agent": "load", "instance": instance, "capabilities": ["load"],
                       "max": 200, "lease": "10m"});
    let claimed = first.call("POST", "/tasks/claim", &claim.to_string()).await?.json()?;
    known.claimed.extend(claimed["leases"].as_array().ok_or("no list of leases")?.iter().cloned());

    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(Connection::open(&host).await?);
    }
    let load = Arc::new(Load {
        host,
        rate,
        requests: (rate * seconds) as u64,
        begun: Instant::now() + Duration::from_millis(100),
        next: AtomicU64::new(0),
        instance,
        known: Mutex::new(known),
    });
    let mut callers = JoinSet::new();
    for connection in connections {
        callers.spawn(call(Arc::clone(&load), connection));
    }
    let mut samples: HashMap<Kind, Vec<f64>> = HashMap::new();
    let mut statuses: HashMap<u16, u64> = HashMap::new();
    while let Some(ended) = callers.join_next().await {
        for (kind, status, millis) in ended?? {
            samples.entry(kind).or_default().push(millis);
            *statuses.entry(status).or_default() += 1;
        }
    }
    let took = load.begun.elapsed().as_secs_f64();
    let mut all: Vec<f64> = samples.values().flatten().copied().collect();
    let kinds: serde_json::Map<_, _> = samples
        .iter_mut()
        .map(|(kind, samples)| (kind.name().to_owned(), summary(samples)))
        .collect();
    let statuses: serde_json::Map<_, _> =
        statuses.iter().map(|(status, count)| (status.to_string(), json!(count))).collect();
    println!(
        "{}",
        json!({"host": load.host, "asked_per_second": load.rate,
               "answered_per_second": all.len() as f64 / took, "all_ms": summary(&mut all),
               "ms": kinds, "statuses": statuses})
    );
    Ok(())
}

/// One connection takes whatever request is due next.
async fn call(
    load: Arc<Load>,
    mut connection: Connection,
) -> Result<Vec<(Kind, u16, f64)>, Failure> {
    let mut samples = Vec::new();
    loop {
        let number = load.next.fetch_add(1, Ordering::Relaxed);
        if number >= load.requests {
            return Ok(samples);
        }
        let due = due(load.begun, number, load.rate);
        tokio::time::sleep_until(due.into()).await;
        let mut kind = Kind::of(number);
        let (method, path, body) = request(&load, &mut kind).await;
        let answer = connection.call(method, &path, &body).await?;
        samples.push((kind, answer.status, due.elapsed().as_secs_f64() * 1e3));
        let mut known = load.known.lock().await;
        match kind {
            Kind::Submit => {
                known.submitted.extend(answer.json()?["id"].as_str().map(str::to_owned));
            }
            Kind::Claim => {
                let leases = answer.json()?;
                known.claimed.extend(leases["leases"].as_array().into_iter().flatten().cloned());
            }
            Kind::Complete | Kind::Heartbeat | Kind::Get => {
                answer.json()?;
            }
        }
    }
}

/// The next request of this kind. One that has nothing to complete claims instead.
async fn request(load: &Load, kind: &mut Kind) -> (&'static str, String, String) {
    let instance = load.instance;
    let mut known = load.known.lock().await;
    if *kind == Kind::Complete {
        if let Some(lease) = known.claimed.pop() {
            let completion =
                json!({"task": lease["task"], "token": lease["token"], "result": "done"});
            let body = json!({"completions": [completion]});
            return ("POST", "/tasks/complete".to_owned(), body.to_string());
        }
        *kind = Kind::Claim;
    }
    match kind {
        Kind::Submit => {
            let body = json!({"capability": "load", "payload": {"title": "Tides", "words": 300}});
            ("POST", "/tasks".to_owned(), body.to_string())
        }
        Kind::Claim | Kind::Complete => {
            let body = json!({"agent": "load", "instance": instance, "capabilities": ["load"],
                              "max": 1, "lease": "10m"});
            ("POST", "/tasks/claim".to_owned(), body.to_string())
        }
        Kind::Heartbeat => {
            let body = json!({"agents": [{"id": "load", "instance": instance}]});
            ("POST", "/agents/heartbeat".to_owned(), body.to_string())
        }
        Kind::Get => {
            let last = known.submitted.len() - 1;
            let number = load.next.load(Ordering::Relaxed) as usize * 7919 % (last + 1);
            let id = known.submitted.get(number).cloned().unwrap_or_default();
            ("GET", format!("/tasks/{id}"), String::new())
        }
    }
}
