//! Many agents: `bench-heartbeats HOST:PORT register AGENTS EVERY_SECONDS`, or
//! `bench-heartbeats HOST:PORT beat AGENTS EVERY_SECONDS BATCH SECONDS`
//!
//! `register` says how long it took, and how long look-ups take then. `beat` has each agent send a
//! heartbeat every so many seconds, `BATCH` agents in one request, at a constant rate.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bench_load::{Connection, Failure, argument, due, summary};
use serde_json::json;
use tokio::task::JoinSet;
use uuid::Uuid;

/// Agents share these: a server that holds one for each agent holds idle ones.
const CONNECTIONS: u64 = 512;
/// Registrations under way at once.
const REGISTERING: u64 = 32;
const CAPABILITIES: [&str; 10] =
    ["c-0", "c-1", "c-2", "c-3", "c-4", "c-5", "c-6", "c-7", "c-8", "c-9"];

fn agent(number: u64) -> String {
    format!("agent-{number:06}")
}

/// The same in each run of this program, so that `beat` speaks for those of `register`.
fn instance(number: u64) -> Uuid {
    Uuid::from_u128(0x0198_c0de_0000_7000_8000_0000_0000_0000 | u128::from(number))
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let host: String = argument(1, "HOST:PORT")?;
    let what: String = argument(2, "register or beat")?;
    let agents: u64 = argument(3, "AGENTS")?;
    let every: u64 = argument(4, "EVERY_SECONDS")?;
    match what.as_str() {
        "register" => register(&host, agents, every).await,
        "beat" => {
            let batch: u64 = argument(5, "BATCH")?;
            let seconds: f64 = argument(6, "SECONDS")?;
            beat(&host, agents, every, batch, seconds).await
        }
        other => Err(format!("there is no {other}").into()),
    }
}

async fn register(host: &str, agents: u64, every: u64) -> Result<(), Failure> {
    let next = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    let mut callers = JoinSet::new();
    for _ in 0..REGISTERING {
        let next = Arc::clone(&next);
        let mut connection = Connection::open(host).await?;
        callers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= agents {
                    return Ok::<(), Failure>(());
                }
                let capability = CAPABILITIES[(number % 10) as usize];
                let body = json!({"id": agent(number), "instance": instance(number),
                                  "capabilities": [capability], "capacity": 4,
                                  "labels": {"zone": format!("z-{}", number % 3)},
                                  "heartbeat": format!("{every}s")});
                connection.call("POST", "/agents", &body.to_string()).await?.json()?;
            }
        });
    }
    while let Some(ended) = callers.join_next().await {
        ended??;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let mut look_ups = serde_json::Map::new();
    let mut connection = Connection::open(host).await?;
    let one = format!("/agents/{}", agent(agents / 2));
    let free = "/agents?capability=c-3&sort=load&limit=10";
    let page = "/agents?limit=1000";
    for (name, path, times) in [("one", one.as_str(), 100), ("free", free, 50), ("page", page, 20)]
    {
        let mut samples = Vec::new();
        let mut bytes = 0;
        for _ in 0..times {
            let asked = Instant::now();
            let answer = connection.call("GET", path, "").await?;
            bytes = answer.body.len();
            answer.json()?;
            samples.push(asked.elapsed().as_secs_f64() * 1e3);
        }
        look_ups.insert(
            name.to_owned(),
            json!({"path": path, "bytes": bytes, "ms": summary(&mut samples)}),
        );
    }
    println!(
        "{}",
        json!({"agents": agents, "seconds": seconds, "per_second": agents as f64 / seconds,
               "look_ups": look_ups})
    );
    Ok(())
}

async fn beat(
    host: &str,
    agents: u64,
    every: u64,
    batch: u64,
    seconds: f64,
) -> Result<(), Failure> {
    let rate = agents as f64 / every as f64 / batch as f64;
    let requests = (rate * seconds) as u64;
    let next = Arc::new(AtomicU64::new(0));
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(Connection::open(host).await?);
    }
    let begun = Instant::now() + Duration::from_millis(100);
    let mut callers = JoinSet::new();
    for mut connection in connections {
        let next = Arc::clone(&next);
        callers.spawn(async move {
            let mut samples = Vec::new();
            let mut unknown = 0;
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= requests {
                    return Ok::<_, Failure>((samples, unknown));
                }
                let due = due(begun, number, rate);
                let lives: Vec<_> = (0..batch)
                    .map(|offset| (number * batch + offset) % agents)
                    .map(|number| json!({"id": agent(number), "instance": instance(number)}))
                    .collect();
                let body = json!({"agents": lives}).to_string();
                tokio::time::sleep_until(due.into()).await;
                let answer = connection.call("POST", "/agents/heartbeat", &body).await?.json()?;
                samples.push(due.elapsed().as_secs_f64() * 1e3);
                let known = answer["known"].as_array().ok_or("no list of who is known")?;
                unknown += known.iter().filter(|known| **known != json!(true)).count();
            }
        });
    }
    let mut samples = Vec::new();
    let mut unknown = 0;
    while let Some(ended) = callers.join_next().await {
        let (more, not_known) = ended??;
        samples.extend(more);
        unknown += not_known;
    }
    let took = begun.elapsed().as_secs_f64();
    println!(
        "{}",
        json!({"agents": agents, "batch": batch, "asked_per_second": rate,
               "answered_per_second": requests as f64 / took, "unknown": unknown,
               "ms": summary(&mut samples)})
    );
    Ok(())
}
