//! Measures messages on their way from the outbox over real brokers into the mailboxes.
//!
//! `bench-bus MODE DATABASE-URL QUANTITY SECONDS`, where QUANTITY is a rate in messages per second, or for
//! `throughput` a number of messages. Prints one line of JSON.

mod books;
mod load;
mod stage;

use std::time::{Duration, Instant};

use bench_common::Failure;
use resurgam_model::bus::BusKind;
use serde_json::{Value, json};

use crate::load::Load;
use crate::stage::Stage;

/// So many receivers share the messages.
const AGENTS: usize = 20;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [mode, url, quantity, seconds] = arguments.as_slice() else {
        return Err("give MODE, DATABASE-URL, QUANTITY and SECONDS".into());
    };
    let (quantity, seconds) = (quantity.parse()?, Duration::from_secs(seconds.parse()?));
    let found = match mode.as_str() {
        "throughput" => throughput(url, quantity).await?,
        "latency" => latency(url, quantity, seconds).await?,
        "kafka-cluster" => lose(url, quantity, seconds, &[0, 1, 2]).await?,
        "kafka-broker" => lose(url, quantity, seconds, &[0]).await?,
        other => return Err(format!("there is no mode {other}").into()),
    };
    println!("{found}");
    Ok(())
}

/// How fast a full outbox becomes empty.
async fn throughput(url: &str, messages: u64) -> Result<Value, Failure> {
    let stage = Stage::set(url, 3).await?;
    let relay = stage.relay();
    stage.until_used(BusKind::Kafka).await?;
    stage.warm(2000).await?;
    drop(relay);
    let begun = Instant::now();
    let mut next = 0;
    while next < messages {
        load::send(&stage.store, next, 500, AGENTS).await?;
        next += 500;
    }
    let sending = begun.elapsed().as_secs_f64();
    let relay = stage.relay();
    // The lease of the relay before, and the first answer of the brokers, are not counted.
    let mut begun = Instant::now();
    while stage.store.outbox().await?.waiting >= messages {
        begun = Instant::now();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    stage.until_waiting(0).await?;
    let took = begun.elapsed().as_secs_f64();
    drop(relay);
    Ok(json!({
        "messages": messages, "seconds": took, "per_second": messages as f64 / took,
        "accepted_per_second": messages as f64 / sending,
    }))
}

/// The way from the call of the sender to the receiver when all is well.
async fn latency(url: &str, rate: u64, time: Duration) -> Result<Value, Failure> {
    let stage = Stage::set(url, 3).await?;
    let _relay = stage.relay();
    stage.until_used(BusKind::Kafka).await?;
    stage.warm(rate).await?;
    let load = Load::begin(&stage.store, rate, 1, AGENTS);
    tokio::time::sleep(time).await;
    let books = load.end().await?;
    Ok(json!({ "rate": rate, "books": books.balance(), "ms": books.latencies() }))
}

/// Brokers of Kafka are killed under load, started again some time later, and returned to.
async fn lose(url: &str, rate: u64, time: Duration, brokers: &[usize]) -> Result<Value, Failure> {
    let stage = Stage::set(url, 3).await?;
    let _relay = stage.relay();
    stage.until_used(BusKind::Kafka).await?;
    stage.until_rabbit_is_closed().await?;
    stage.warm(rate).await?;
    let load = Load::begin(&stage.store, rate, 20, AGENTS);
    tokio::time::sleep(time).await;
    let killed = Instant::now();
    for broker in brokers {
        stage.kafka.kill(*broker)?;
    }
    tokio::time::sleep(time.max(Duration::from_secs(20))).await;
    let moved = stage.active().await? != Some(BusKind::Kafka);
    let resumed = Instant::now();
    for broker in brokers {
        stage.kafka.resume(*broker)?;
    }
    stage.until_used(BusKind::Kafka).await?;
    let returned = Instant::now();
    stage.until_whole().await?;
    let whole = Instant::now();
    tokio::time::sleep(time).await;
    let books = load.end().await?;
    let state = stage.store.bus().await?.state;
    let moves: Vec<_> = state
        .iter()
        .flat_map(|state| &state.last_moves)
        .map(|step| json!({"to": step.to, "reason": step.reason}))
        .collect();
    Ok(json!({
        "rate": rate, "killed": brokers.len(), "moved": moved, "books": books.balance(),
        "loss": books.disturbance(killed, resumed),
        "return": books.disturbance(resumed, returned + Duration::from_secs(5)),
        "returned_after_seconds": (returned - resumed).as_secs_f64(),
        "whole_after_seconds": (whole - resumed).as_secs_f64(),
        "moves": moves,
    }))
}
