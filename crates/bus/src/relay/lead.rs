//! From the outbox to the broker in use, by the one process that leads.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use resurgam_model::bus::{BusHealth, BusKind, BusMove, BusState, BusWish};
use resurgam_model::message::Message;
use tokio::time::Instant;

use super::ahead::Ahead;
use super::envelope::pack;
use super::switch::{Elapsed, Moved, Policy, Switch};
use super::{Line, Shared, lock};
use crate::broker::{Broker, BrokerError, BrokerResult, Parcel};

/// For how long a process leads if it is not heard of again.
const LEASE: Duration = Duration::from_secs(3);
/// How often it makes itself heard, and how often another one tries to take over.
const RENEW: Duration = Duration::from_millis(750);
/// How often what still waits for a relay is delivered when there is none.
const SWEEP: Duration = Duration::from_secs(2);
/// How often the relay looks for messages when nothing rings.
const LOOK: Duration = Duration::from_millis(100);
/// How often it looks for wishes of people, and for what other processes have delivered.
const GLANCE: Duration = Duration::from_millis(250);
/// How often it says how the buses are when nothing has changed.
const NOTE: Duration = Duration::from_secs(1);
/// What was published and has not come back after so many times the patience with a broker is
/// published again.
const OVERDUE: u32 = 5;
/// A bus that takes messages and gives none back for at least so long is not used any more. More
/// than the time after which a cluster gives the partitions of a dead consumer to another one.
const SILENT: Duration = Duration::from_secs(15);
/// The pause after a publication that failed.
const PAUSE: Duration = Duration::from_millis(50);
/// So many moves are kept for people.
const MOVES: usize = 20;

/// Asks a broker how it is, for as long as this process leads; until dropped.
pub(super) async fn probe(shared: Arc<Shared>, line: Line) {
    let mut prepared = false;
    loop {
        tokio::time::sleep(shared.plan.probe_interval.0).await;
        let due = shared.learn(|switch, now| switch.is_to_be_probed(line.kind, now));
        if due != Some(true) {
            prepared &= due.is_some();
            continue;
        }
        // Whatever the library does, the answer of a probe is never waited for without end.
        let patience = shared.plan.timeout.0.saturating_mul(3);
        let asked = tokio::time::timeout(patience, ask(&*line.broker, &mut prepared)).await;
        let failure = match asked {
            Ok(Ok(observation)) => {
                let stopped = observation.stopped.clone();
                lock(&shared.observations).insert(line.kind, observation);
                stopped
            }
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("{} did not answer within {patience:?}", line.kind)),
        };
        match failure {
            None => drop(shared.learn(|switch, now| switch.succeeded(line.kind, now))),
            Some(reason) => {
                prepared = false;
                shared.failed(line.kind, &reason);
            }
        }
    }
}

async fn ask(broker: &dyn Broker, prepared: &mut bool) -> BrokerResult<crate::broker::Observation> {
    if !*prepared {
        broker.prepare().await?;
        *prepared = true;
    }
    broker.observe().await
}

/// Without brokers messages need no relay; what waited for one is delivered. Again and again, until
/// dropped: what was being sent while the way changed waits for a relay as well, and would hold up
/// its mailbox for ever.
pub(super) async fn deliver_at_once(shared: &Shared) -> ! {
    loop {
        let pause = match shared.store.set_relayed(false).await {
            Ok(()) => SWEEP,
            Err(error) => {
                tracing::debug!(%error, "the store does not take the way of messages now");
                RENEW
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Leads whenever no other process does; until dropped.
pub(super) async fn run(shared: Arc<Shared>, lines: Vec<Line>) {
    loop {
        match lead(&shared, &lines).await {
            Ok(()) => {}
            Err(error) => tracing::debug!(%error, "the store lets nobody lead now"),
        }
        lock(&shared.switch).take();
        tokio::time::sleep(RENEW).await;
    }
}

/// Takes the lease, and works until it is lost.
async fn lead(shared: &Shared, lines: &[Line]) -> resurgam_store::Result<()> {
    let lease = resurgam_model::Duration(LEASE);
    let asked = Instant::now();
    if !shared.store.lead(&shared.name, lease).await? {
        return Ok(());
    }
    let mut leading = Leading::begin(shared, lines).await?;
    let renew = async {
        let mut since = asked;
        loop {
            tokio::time::sleep(RENEW).await;
            let asked = Instant::now();
            match shared.store.lead(&shared.name, lease).await {
                Ok(true) => since = asked,
                Ok(false) => return,
                // The store may be away for a moment.
                Err(_) if since.elapsed() < LEASE => {}
                Err(_) => return,
            }
        }
    };
    tokio::select! {
        result = leading.work() => result,
        () = renew => {
            tracing::info!("another process relays messages now");
            Ok(())
        }
    }
}

/// What is known while this process leads.
struct Leading<'a> {
    shared: &'a Shared,
    lines: &'a [Line],
    ahead: Ahead,
    /// When a bus confirmed messages, if none has come back since.
    unanswered: Option<Instant>,
    wish: Option<BusWish>,
    moves: u64,
    last_moves: Vec<BusMove>,
    carried_by_store: u64,
    glanced: Option<Instant>,
    noted: Option<Instant>,
}

impl<'a> Leading<'a> {
    async fn begin(shared: &'a Shared, lines: &'a [Line]) -> resurgam_store::Result<Self> {
        shared.store.set_relayed(true).await?;
        let record = shared.store.bus().await?;
        let before = record.state.as_ref();
        let switch = Switch::new(
            Policy::of(&shared.plan),
            &shared.plan.order,
            before.and_then(|state| state.active),
            shared.now(),
        );
        *lock(&shared.switch) = Some(switch);
        Ok(Self {
            shared,
            lines,
            ahead: Ahead::default(),
            unanswered: None,
            wish: record.wish,
            moves: before.map_or(0, |state| state.moves),
            last_moves: before.map(|state| state.last_moves.clone()).unwrap_or_default(),
            carried_by_store: before.map_or(0, |state| state.carried_by_store),
            glanced: None,
            noted: None,
        })
    }

    async fn work(&mut self) -> resurgam_store::Result<()> {
        let mut mails = self.shared.store.mails();
        let mut learnt = self.shared.learnt.subscribe();
        loop {
            learnt.borrow_and_update();
            self.tidy().await?;
            self.decide().await?;
            if !self.publish().await? {
                tokio::select! {
                    _ = mails.next() => {}
                    _ = learnt.changed() => {}
                    () = tokio::time::sleep(LOOK) => {}
                }
            }
        }
    }

    /// Forgets what was delivered, and has what did not come back published again.
    async fn tidy(&mut self) -> resurgam_store::Result<()> {
        for sequence in std::mem::take(&mut *lock(&self.shared.arrived)) {
            if self.ahead.delivered(sequence) {
                self.unanswered = None;
            }
        }
        if self.glanced.is_some_and(|at| at.elapsed() < GLANCE) {
            return Ok(());
        }
        self.glanced = Some(Instant::now());
        self.wish = self.shared.store.bus().await?.wish;
        if let Some(last) = self.ahead.last() {
            let waiting = self.shared.store.waiting(last).await?;
            // Other processes consume, too.
            if self.ahead.waiting(&waiting) {
                self.unanswered = None;
            }
        }
        let overdue = self.shared.plan.timeout.0.saturating_mul(OVERDUE);
        if self.ahead.is_overdue(overdue) {
            tracing::warn!(?overdue, "what did not come back in time is published again");
            self.ahead.clear();
        }
        let silent = self.unanswered.map(|since| since.elapsed());
        if let Some(silent) = silent.filter(|silent| *silent >= overdue.max(SILENT)) {
            self.unanswered = None;
            let reason = format!("it has taken messages and given none back for {silent:.1?}");
            self.shared.learn(|switch, now| {
                if let Some(active) = switch.active {
                    switch.fell_silent(active, &reason, now);
                }
            });
        }
        Ok(())
    }

    /// Changes the bus if that is called for, and says how the buses are.
    async fn decide(&mut self) -> resurgam_store::Result<()> {
        let wish = self.wish.as_ref().map(|wish| wish.to);
        let under_way = self.ahead.len();
        let moved = self.shared.learn_quietly(|switch, now| switch.decide(wish, under_way, now));
        let moved = moved.flatten();
        if let Some(moved) = &moved {
            self.note_move(moved);
        }
        // Back in the order of the plan, as ordered: the order is carried out.
        let home = self.shared.learn_quietly(|switch, _| switch.is_at_best()).unwrap_or_default();
        if wish == Some(None) && home {
            self.shared.store.wish(None).await?;
            self.wish = None;
        }
        if moved.is_some() || self.noted.is_none_or(|at| at.elapsed() >= NOTE) {
            self.noted = Some(Instant::now());
            if let Some(state) = self.state() {
                self.shared.store.note_bus(&self.shared.name, &state).await?;
            }
        }
        Ok(())
    }

    fn note_move(&mut self, moved: &Moved) {
        // What went the old way may be lost: it is published again.
        self.ahead.clear();
        self.unanswered = None;
        let Moved { from, to, reason } = moved;
        match to {
            Some(to) => tracing::warn!(?from, %to, reason, "messages take another way"),
            None => tracing::error!(?from, reason, "messages have to wait: there is no bus"),
        }
        // At the beginning there was nothing to move away from.
        if from.is_none() && self.moves == 0 {
            return;
        }
        self.moves = self.moves.saturating_add(1);
        self.last_moves.push(BusMove {
            from: *from,
            to: *to,
            at: Timestamp::now(),
            reason: reason.clone(),
        });
        let surplus = self.last_moves.len().saturating_sub(MOVES);
        self.last_moves.drain(..surplus);
    }

    fn state(&self) -> Option<BusState> {
        let (now, at) = (self.shared.now(), Timestamp::now());
        let moment = |since: Elapsed| {
            let ago = SignedDuration::try_from(now.saturating_sub(since)).unwrap_or_default();
            at.checked_sub(ago).unwrap_or(at)
        };
        let switch = lock(&self.shared.switch).clone()?;
        let observations = lock(&self.shared.observations).clone();
        Some(BusState {
            active: switch.active,
            since: moment(switch.since),
            at,
            buses: switch
                .buses
                .iter()
                .map(|bus| BusHealth {
                    bus: bus.kind,
                    circuit: bus.circuit,
                    since: moment(bus.since),
                    reason: bus.reason.clone(),
                    observation: observations.get(&bus.kind).cloned(),
                })
                .collect(),
            moves: self.moves,
            last_moves: self.last_moves.clone(),
            carried_by_store: self.carried_by_store,
        })
    }

    /// Publishes what waits. Answers whether there may be more at once.
    async fn publish(&mut self) -> resurgam_store::Result<bool> {
        let held = self.shared.learn_quietly(|switch, _| (switch.is_held(), switch.active));
        let Some((false, Some(active))) = held else { return Ok(false) };
        if self.ahead.is_full() {
            return Ok(false);
        }
        let (late, batch) = match self.ahead.take() {
            Some(batch) => (false, batch),
            None => {
                let part = self.ahead.part();
                (part.is_late(), part.read(&self.shared.store).await?)
            }
        };
        let more = !late && self.ahead.read(&batch);
        if batch.is_empty() {
            return Ok(late);
        }
        let Some(line) = self.lines.iter().find(|line| line.kind == active) else {
            // The store itself is the last resort.
            let ids: Vec<_> = batch.iter().map(|message| message.id).collect();
            self.shared.store.delivered(&ids).await?;
            self.carried_by_store += ids.len() as u64;
            return Ok(true);
        };
        let parcels = self.pack(&batch).await?;
        self.ahead.publishing(&batch);
        let part = more.then(|| self.ahead.part());
        let publishing = async {
            tokio::select! {
                outcome = line.broker.publish(&parcels) => Some(outcome),
                () = self.fallen(active) => None,
            }
        };
        // While the broker confirms, the store reads on.
        let reading = async {
            match &part {
                Some(part) => part.read(&self.shared.store).await.map(Some),
                None => Ok(None),
            }
        };
        let (outcome, next) = tokio::join!(publishing, reading);
        let Some(outcome) = outcome else {
            self.ahead.forget(&batch);
            return Ok(true);
        };
        match outcome {
            Ok(()) => {
                self.unanswered.get_or_insert_with(Instant::now);
                self.shared.learn_quietly(|switch, _| switch.published(active));
                if let Some(next) = next? {
                    self.ahead.keep(next);
                }
            }
            Err(BrokerError::TooLarge { id, .. } | BrokerError::Refused { id, .. }) => {
                // It arrives all the same. Of the others nobody knows, so they go again.
                tracing::warn!(bus = %active, message = %id, "the bus does not take a message; the store delivers it");
                self.shared.store.delivered(&[id]).await?;
                self.carried_by_store += 1;
                self.ahead.forget(&batch);
            }
            Err(error) => {
                tracing::debug!(bus = %active, %error, "messages were not published");
                let reason = error.to_string();
                self.shared.learn(|switch, now| switch.not_published(active, &reason, now));
                self.ahead.forget(&batch);
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(true)
    }

    /// Resolves when the bus must not be used any more.
    async fn fallen(&self, kind: BusKind) {
        let mut learnt = self.shared.learnt.subscribe();
        while self.shared.is_in_use(kind) {
            // The sender is part of what is borrowed here, so it is there.
            let _ = learnt.changed().await;
        }
    }

    /// Messages ready to travel. What cannot be packed is delivered by the store.
    async fn pack(&mut self, batch: &[Message]) -> resurgam_store::Result<Vec<Parcel>> {
        let mut parcels = Vec::with_capacity(batch.len());
        for message in batch {
            match pack(message) {
                Ok(parcel) => parcels.push(parcel),
                Err(error) => {
                    tracing::error!(message = %message.id, %error, "a message cannot be packed");
                    self.shared.store.delivered(&[message.id]).await?;
                    self.carried_by_store += 1;
                }
            }
        }
        Ok(parcels)
    }
}
