//! Takes messages from the outbox over a broker into the mailboxes, and changes brokers when one
//! fails.
//!
//! The truth about a message is its row in the store. It is *undelivered* from the transaction that
//! caused it until it came back from a broker. Therefore
//! - **nothing is lost:** what a broker loses, with all its disks if need be, is still undelivered
//!   and is published again;
//! - **nothing comes twice:** a row is delivered once, and its id is known for an hour after it was
//!   acknowledged;
//! - **order holds:** a mailbox shows nothing behind its first undelivered message, so it does not
//!   matter how often, or over how many brokers at once, messages come.
//!
//! Many processes may relay. All of them consume; one at a time, by a lease in the store, asks the
//! brokers how they are and publishes. Safety does not rest on the lease: two that publish only
//! publish twice.
//!
//! Crash behaviour: what was under way is undelivered; the next relay begins at the oldest
//! undelivered message.

mod ahead;
mod envelope;
mod inbox;
mod lead;
mod switch;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use resurgam_model::bus::{BusKind, Observation};
use resurgam_model::message::NewMessage;
use resurgam_model::plan::Bus;
use resurgam_store::SharedStore;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::broker::Broker;
use crate::kafka::{Kafka, KafkaSettings};
use crate::rabbitmq::{Rabbit, RabbitSettings};
use switch::{Elapsed, Switch};

/// Says what is wrong with a message that somebody else has published.
pub type Fits = dyn Fn(&NewMessage) -> Result<(), String> + Send + Sync;

/// A broker of the plan.
#[derive(Clone)]
pub struct Line {
    /// Which.
    pub kind: BusKind,
    /// The way to it.
    pub broker: Arc<dyn Broker>,
}

/// The brokers of a plan, in its order. Nothing is connected yet.
#[must_use]
pub fn lines(plan: &Bus) -> Vec<Line> {
    let line = |kind: &BusKind| {
        let broker: Arc<dyn Broker> = match kind {
            BusKind::Embedded => return None,
            BusKind::Kafka => Kafka::new(KafkaSettings::of(plan)),
            BusKind::RabbitMq => Rabbit::new(RabbitSettings::of(plan)),
        };
        Some(Line { kind: *kind, broker })
    };
    plan.order.iter().filter_map(line).collect()
}

/// The relay of one process.
pub struct Relay {
    shared: Arc<Shared>,
    lines: Vec<Line>,
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").field("name", &self.shared.name).finish_non_exhaustive()
    }
}

/// What the parts of a relay share.
struct Shared {
    store: SharedStore,
    /// Who this is, for the lease and for people.
    name: String,
    plan: Bus,
    fits: Box<Fits>,
    began: Instant,
    /// There while this process leads.
    switch: Mutex<Option<Switch>>,
    /// Rings when the switch has learnt something.
    learnt: watch::Sender<u64>,
    /// Numbers of messages that came back.
    arrived: Mutex<Vec<i64>>,
    observations: Mutex<BTreeMap<BusKind, Observation>>,
}

/// The values stay whole whatever happens to a thread that held them.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn now(&self) -> Elapsed {
        self.began.elapsed()
    }

    /// Lets the switch know something, if this process leads.
    fn learn<T>(&self, learn: impl FnOnce(&mut Switch, Elapsed) -> T) -> Option<T> {
        let result = self.learn_quietly(learn);
        self.learnt.send_modify(|count| *count = count.wrapping_add(1));
        result
    }

    /// As [`Self::learn`], without telling anybody that something was learnt.
    fn learn_quietly<T>(&self, learn: impl FnOnce(&mut Switch, Elapsed) -> T) -> Option<T> {
        let now = self.now();
        lock(&self.switch).as_mut().map(|switch| learn(switch, now))
    }

    fn failed(&self, kind: BusKind, reason: &str) {
        self.learn(|switch, now| switch.failed(kind, reason, now));
    }

    /// Whether messages may go over this bus now.
    fn is_in_use(&self, kind: BusKind) -> bool {
        lock(&self.switch)
            .as_ref()
            .is_some_and(|switch| switch.active == Some(kind) && switch.is_closed(kind))
    }
}

impl Relay {
    /// A relay for the buses of a plan. `name` tells it from others; `fits` judges messages that
    /// others have published.
    #[must_use]
    pub fn new(store: SharedStore, plan: Bus, name: String, fits: Box<Fits>) -> Self {
        let lines = lines(&plan);
        Self::over(lines, store, plan, name, fits)
    }

    /// A relay over these brokers instead of those that the plan leads to.
    #[must_use]
    pub fn over(
        lines: Vec<Line>,
        store: SharedStore,
        plan: Bus,
        name: String,
        fits: Box<Fits>,
    ) -> Self {
        let (learnt, _) = watch::channel(0);
        let shared = Arc::new(Shared {
            store,
            name,
            plan,
            fits,
            began: Instant::now(),
            switch: Mutex::new(None),
            learnt,
            arrived: Mutex::default(),
            observations: Mutex::default(),
        });
        Self { shared, lines }
    }

    /// Works until it is dropped. The store may be away at times.
    pub async fn run(self) {
        if self.lines.is_empty() {
            lead::deliver_at_once(&self.shared).await;
        }
        let mut parts = JoinSet::new();
        for line in &self.lines {
            parts.spawn(inbox::run(Arc::clone(&self.shared), line.clone()));
            parts.spawn(lead::probe(Arc::clone(&self.shared), line.clone()));
        }
        parts.spawn(lead::run(self.shared, self.lines));
        while parts.join_next().await.is_some() {}
    }
}
