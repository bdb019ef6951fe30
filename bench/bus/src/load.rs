//! Senders at a constant rate, and receivers who acknowledge what comes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bench_common::Failure;
use resurgam_model::message::NewMessage;
use resurgam_model::{AgentId, Payload};
use resurgam_store::SharedStore;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};

use crate::books::Books;

/// A receiver looks by itself so often if nothing rings.
const LOOK: Duration = Duration::from_millis(250);
/// What did not come so long after the last was sent is lost.
const PATIENCE: Duration = Duration::from_secs(60);
/// Calls that send at once.
const SENDERS: u64 = 4;

fn agent(number: usize) -> AgentId {
    AgentId::new(format!("agent-{number}")).expect("a fitting name")
}

fn message(number: u64, agents: usize) -> NewMessage {
    let to = usize::try_from(number).unwrap_or_default() % agents;
    // About a hundred bytes.
    let body = format!("{number:>100}");
    NewMessage { body: Payload::from_text(&body), ..NewMessage::new(agent(to), "note") }
}

/// Sends so many messages in one call.
pub async fn send(
    store: &SharedStore,
    from: u64,
    count: u64,
    agents: usize,
) -> Result<(), Failure> {
    let messages: Vec<_> = (from..from + count).map(|number| message(number, agents)).collect();
    Ok(store.send(&messages).await?)
}

/// Messages that are being sent and received.
pub struct Load {
    books: Arc<Mutex<Books>>,
    stop: Arc<AtomicBool>,
    senders: JoinSet<Result<(), Failure>>,
    receivers: Vec<JoinHandle<()>>,
}

impl Load {
    /// Sends `rate` messages in a second, `batch` with each call.
    pub fn begin(store: &SharedStore, rate: u64, batch: u64, agents: usize) -> Self {
        let books = Arc::new(Mutex::new(Books::new(agents)));
        let stop = Arc::new(AtomicBool::new(false));
        let receivers = receivers(store, &books, agents);
        let mut senders = JoinSet::new();
        // Each sender has agents of its own, so that the order of each is that of one sender.
        for sender in 0..SENDERS {
            let own: Vec<_> = (0..agents as u64).filter(|to| to % SENDERS == sender).collect();
            let (store, books, stop) = (Arc::clone(store), Arc::clone(&books), Arc::clone(&stop));
            senders.spawn(async move {
                let pause = Duration::from_secs_f64((batch * SENDERS) as f64 / rate as f64);
                let mut beat = tokio::time::interval(pause);
                beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
                let mut count = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    // A call that is late is counted from when it was due.
                    let due = beat.tick().await.into_std();
                    let numbers: Vec<_> = (count..count + batch)
                        .map(|n| {
                            let (round, place) = (n / own.len() as u64, n % own.len() as u64);
                            round * agents as u64 + own[usize::try_from(place).unwrap_or_default()]
                        })
                        .collect();
                    count += batch;
                    let messages: Vec<_> = numbers.iter().map(|n| message(*n, agents)).collect();
                    store.send(&messages).await?;
                    let mut books = books.lock().unwrap_or_else(PoisonError::into_inner);
                    numbers.iter().for_each(|number| books.sent(*number, due));
                }
                Ok(())
            });
        }
        Self { books, stop, senders, receivers }
    }

    /// Sends no more, and waits until everything has come.
    pub async fn end(mut self) -> Result<Books, Failure> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.senders.join_next().await {
            ended??;
        }
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until && self.lacks() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // What comes twice comes late.
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.receivers.iter().for_each(JoinHandle::abort);
        Ok(std::mem::take(&mut *self.books.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    fn lacks(&self) -> usize {
        self.books.lock().unwrap_or_else(PoisonError::into_inner).lacks()
    }
}

fn receivers(store: &SharedStore, books: &Arc<Mutex<Books>>, agents: usize) -> Vec<JoinHandle<()>> {
    let bells: HashMap<_, _> = (0..agents).map(|n| (agent(n), Arc::new(Notify::new()))).collect();
    let mut tasks = Vec::new();
    for (to, name) in (0..agents).map(|n| (n, agent(n))) {
        let (store, books) = (Arc::clone(store), Arc::clone(books));
        let bell = Arc::clone(&bells[&name]);
        tasks.push(tokio::spawn(async move {
            loop {
                let _ = tokio::time::timeout(LOOK, bell.notified()).await;
                let Ok(came) = store.receive(&name, None, 1000).await else { continue };
                let now = Instant::now();
                let sequences: Vec<_> = came.iter().map(|message| message.sequence).collect();
                for message in &came {
                    let text = serde_json::from_str::<String>(message.body.json());
                    let number = text.unwrap_or_default().trim().parse().unwrap_or(u64::MAX);
                    books.lock().unwrap_or_else(PoisonError::into_inner).came(to, number, now);
                }
                while store.acknowledge(&name, &sequences).await.is_err() {}
            }
        }));
    }
    let mut mails = store.mails();
    tasks.push(tokio::spawn(async move {
        loop {
            match mails.next().await {
                Some(agent) => {
                    if let Some(bell) = bells.get(&agent) {
                        bell.notify_one();
                    }
                }
                None => bells.values().for_each(|bell| bell.notify_one()),
            }
        }
    }));
    tasks
}
