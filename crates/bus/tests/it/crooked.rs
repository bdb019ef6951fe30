//! A broker that does everything wrong that a broker can do.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use resurgam_bus::broker::{
    Arrival, Arrivals, Broker, BrokerError, BrokerResult, Observation, Parcel,
};
use tokio::sync::Notify;

/// What it does wrong; each number says how many of a hundred.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// It is away as a whole.
    pub(crate) away: bool,
    /// Confirmed, and gone.
    pub(crate) lost: u64,
    /// Delivered twice, the second time much later.
    pub(crate) doubled: u64,
    /// Published, and not confirmed.
    pub(crate) unconfirmed: u64,
    /// Some of a batch are there, the rest is not, and it is not confirmed.
    pub(crate) torn: u64,
}

/// A broker in memory.
pub(crate) struct Crooked {
    name: &'static str,
    state: Mutex<State>,
    rung: Notify,
}

struct State {
    faults: Faults,
    random: u64,
    log: Vec<Arrival>,
    settled: usize,
    greatest: usize,
}

impl State {
    /// A number below 100, by the generator of Knuth's MMIX.
    fn dice(&mut self) -> u64 {
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % 100
    }
}

impl Crooked {
    pub(crate) fn new(name: &'static str, seed: u64) -> Arc<Self> {
        let (log, faults) = (Vec::new(), Faults::default());
        let state = State { faults, random: seed, log, settled: 0, greatest: usize::MAX };
        Arc::new(Self { name, state: Mutex::new(state), rung: Notify::new() })
    }

    pub(crate) fn set(&self, faults: Faults) {
        self.state.lock().unwrap().faults = faults;
        self.rung.notify_waiters();
    }

    /// It takes nothing greater.
    pub(crate) fn set_greatest(&self, bytes: usize) {
        self.state.lock().unwrap().greatest = bytes;
    }

    /// All that it has not delivered is gone, as with its disks.
    pub(crate) fn forget(&self) {
        let mut state = self.state.lock().unwrap();
        let settled = state.settled;
        state.log.truncate(settled);
    }

    /// How many it has taken.
    pub(crate) fn taken(&self) -> usize {
        self.state.lock().unwrap().log.len()
    }

    /// Somebody else publishes this.
    pub(crate) fn plant(&self, content: &[u8]) {
        let mut state = self.state.lock().unwrap();
        let place = format!("{}@planted-{}", self.name, state.log.len());
        let content = Bytes::copy_from_slice(content);
        state.log.push(Arrival { place, id: None, content, redelivered: 0 });
        self.rung.notify_waiters();
    }

    fn away(&self) -> BrokerError {
        BrokerError::Away { broker: self.name, reason: "told to be".to_owned() }
    }

    fn check(&self) -> BrokerResult<()> {
        if self.state.lock().unwrap().faults.away { Err(self.away()) } else { Ok(()) }
    }
}

#[async_trait]
impl Broker for Crooked {
    fn kind(&self) -> &'static str {
        self.name
    }

    async fn prepare(&self) -> BrokerResult<()> {
        self.check()
    }

    async fn publish(&self, parcels: &[Parcel]) -> BrokerResult<()> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        self.check()?;
        let mut state = self.state.lock().unwrap();
        let torn = state.dice() < state.faults.torn;
        let count = if torn { parcels.len() / 2 } else { parcels.len() };
        let mut again = Vec::new();
        for parcel in &parcels[..count] {
            if parcel.content.len() > state.greatest {
                let (id, size) = (parcel.id, parcel.content.len());
                return Err(BrokerError::TooLarge { broker: self.name, id, size });
            }
            let (id, content) = (Some(parcel.id), parcel.content.clone());
            let place = format!("{}@{}", self.name, state.log.len());
            let arrival = Arrival { place, id, content, redelivered: 0 };
            if state.dice() < state.faults.doubled {
                again.push(Arrival { redelivered: 1, ..arrival.clone() });
            }
            if state.dice() >= state.faults.lost {
                state.log.push(arrival);
            }
        }
        state.log.extend(again);
        let confirmed = !torn && state.dice() >= state.faults.unconfirmed;
        drop(state);
        self.rung.notify_waiters();
        if confirmed { Ok(()) } else { Err(self.away()) }
    }

    async fn receive(&self) -> BrokerResult<Box<dyn Arrivals>> {
        self.check()?;
        Err(BrokerError::Setup { broker: self.name, reason: "use Shared".to_owned() })
    }

    async fn observe(&self) -> BrokerResult<Observation> {
        self.check()?;
        Ok(Observation { at: jiff::Timestamp::now(), ..Observation::default() })
    }
}

/// The broker itself cannot hand out itself; this can.
pub(crate) struct Shared(pub(crate) Arc<Crooked>);

#[async_trait]
impl Broker for Shared {
    fn kind(&self) -> &'static str {
        self.0.kind()
    }

    async fn prepare(&self) -> BrokerResult<()> {
        self.0.prepare().await
    }

    async fn publish(&self, parcels: &[Parcel]) -> BrokerResult<()> {
        self.0.publish(parcels).await
    }

    async fn receive(&self) -> BrokerResult<Box<dyn Arrivals>> {
        self.0.check()?;
        let given = self.0.state.lock().unwrap().settled;
        Ok(Box::new(Reader { broker: Arc::clone(&self.0), given }))
    }

    async fn observe(&self) -> BrokerResult<Observation> {
        self.0.observe().await
    }
}

struct Reader {
    broker: Arc<Crooked>,
    given: usize,
}

#[async_trait]
impl Arrivals for Reader {
    async fn next(&mut self) -> BrokerResult<Vec<Arrival>> {
        loop {
            let rung = self.broker.rung.notified();
            {
                let mut state = self.broker.state.lock().unwrap();
                if state.faults.away {
                    return Err(self.broker.away());
                }
                self.given = self.given.min(state.log.len());
                if self.given < state.log.len() {
                    // Not all at once.
                    let most = 1 + usize::try_from(state.dice()).unwrap();
                    let end = state.log.len().min(self.given + most);
                    let some = state.log[self.given..end].to_vec();
                    self.given = end;
                    return Ok(some);
                }
            }
            let _ = tokio::time::timeout(Duration::from_millis(20), rung).await;
        }
    }

    async fn settle(&mut self) -> BrokerResult<()> {
        self.broker.check()?;
        let mut state = self.broker.state.lock().unwrap();
        state.settled = self.given;
        Ok(())
    }
}
