//! Which bus carries messages: a circuit breaker with hysteresis for each, and the rules for
//! moving from one to another. Pure: time and what was seen come from outside.
//!
//! - A circuit opens after so many failures in a row, of probes or of publications, each counted by
//!   itself: a broker may answer every question and take no message. It opens at once when nothing
//!   that was published comes back for long.
//! - It is tried again after a while, and closes only when the trials have succeeded for long
//!   enough; one that has never failed closes at its first success.
//! - When the circuit of the bus in use opens, the next one in the order whose circuit is closed is
//!   used at once.
//! - A planned move, back to a preferred bus or by a person's order, waits until what went the old
//!   way is delivered, for a bounded time.

use std::time::Duration;

use resurgam_model::bus::{BusKind, Circuit};
use resurgam_model::plan::Bus;

/// Time since the relay began.
pub(super) type Elapsed = Duration;

/// The rules, as the plan has them.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    pub(super) failures: u32,
    pub(super) retry_after: Duration,
    pub(super) close_after: Duration,
    pub(super) return_after: Duration,
    pub(super) drain_within: Duration,
    /// How long the first choice waits for a bus that has not answered yet.
    pub(super) patience: Duration,
}

impl Policy {
    pub(super) fn of(plan: &Bus) -> Self {
        Self {
            failures: plan.failures,
            retry_after: plan.retry_after.0,
            close_after: plan.close_after.0,
            return_after: plan.return_after.0,
            drain_within: plan.drain_within.0,
            patience: plan.timeout.0 + plan.probe_interval.0,
        }
    }
}

/// What is known of one bus.
#[derive(Clone, Debug)]
pub(super) struct Breaker {
    pub(super) kind: BusKind,
    pub(super) circuit: Circuit,
    /// When the circuit became what it is.
    pub(super) since: Elapsed,
    /// Probes in a row that failed.
    failures: u32,
    /// Publications in a row that failed. A broker may answer every question and take no message:
    /// so a probe that succeeds says nothing about them.
    unpublished: u32,
    /// The first success since the last failure.
    healthy_since: Option<Elapsed>,
    /// Whether anything was ever heard of it.
    heard: bool,
    has_failed: bool,
    pub(super) reason: Option<String>,
}

impl Breaker {
    fn new(kind: BusKind, now: Elapsed) -> Self {
        // Nobody knows yet how a broker is; the store is there, or nothing is.
        let circuit = if kind == BusKind::Embedded { Circuit::Closed } else { Circuit::HalfOpen };
        Self {
            kind,
            circuit,
            since: now,
            failures: 0,
            unpublished: 0,
            healthy_since: None,
            heard: kind == BusKind::Embedded,
            has_failed: false,
            reason: None,
        }
    }

    fn become_(&mut self, circuit: Circuit, now: Elapsed) {
        if self.circuit != circuit {
            self.circuit = circuit;
            self.since = now;
            self.unpublished = 0;
        }
    }

    fn fail(&mut self, reason: &str) {
        self.heard = true;
        self.has_failed = true;
        self.healthy_since = None;
        self.reason = Some(reason.to_owned());
    }

    fn is_closed(&self) -> bool {
        self.circuit == Circuit::Closed
    }

    fn healthy_for(&self, now: Elapsed) -> Option<Duration> {
        if self.kind == BusKind::Embedded {
            return Some(Duration::MAX);
        }
        self.healthy_since.map(|since| now.saturating_sub(since))
    }
}

/// A move that waits until what went the old way is delivered.
#[derive(Clone, Debug)]
struct Draining {
    to: BusKind,
    since: Elapsed,
    reason: String,
}

/// A change of the bus in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Moved {
    pub(super) from: Option<BusKind>,
    pub(super) to: Option<BusKind>,
    pub(super) reason: String,
}

/// The buses of a plan, and which of them is used.
#[derive(Clone, Debug)]
pub(super) struct Switch {
    policy: Policy,
    pub(super) buses: Vec<Breaker>,
    pub(super) active: Option<BusKind>,
    began: Elapsed,
    pub(super) since: Elapsed,
    draining: Option<Draining>,
}

impl Switch {
    /// The buses in their order. `before` was used when the last relay ended.
    pub(super) fn new(
        policy: Policy,
        order: &[BusKind],
        before: Option<BusKind>,
        now: Elapsed,
    ) -> Self {
        let buses = order.iter().map(|kind| Breaker::new(*kind, now)).collect();
        let active = before.filter(|before| order.contains(before));
        Self { policy, buses, active, began: now, since: now, draining: None }
    }

    fn bus(&mut self, kind: BusKind) -> Option<&mut Breaker> {
        self.buses.iter_mut().find(|bus| bus.kind == kind)
    }

    /// Whether the circuit of the bus is closed.
    pub(super) fn is_closed(&self, kind: BusKind) -> bool {
        self.buses.iter().any(|bus| bus.kind == kind && bus.is_closed())
    }

    /// Whether the bus is to be asked now how it is.
    pub(super) fn is_to_be_probed(&mut self, kind: BusKind, now: Elapsed) -> bool {
        let retry_after = self.policy.retry_after;
        let Some(bus) = self.bus(kind) else { return false };
        if bus.circuit != Circuit::Open {
            return true;
        }
        if now.saturating_sub(bus.since) < retry_after {
            return false;
        }
        bus.become_(Circuit::HalfOpen, now);
        true
    }

    /// The bus has confirmed what was published.
    pub(super) fn published(&mut self, kind: BusKind) {
        if let Some(bus) = self.bus(kind) {
            bus.unpublished = 0;
        }
    }

    /// The bus has not confirmed what was published, or it did not come back.
    pub(super) fn not_published(&mut self, kind: BusKind, reason: &str, now: Elapsed) {
        let limit = self.policy.failures;
        let Some(bus) = self.bus(kind) else { return };
        bus.unpublished = bus.unpublished.saturating_add(1);
        bus.fail(reason);
        if bus.unpublished >= limit {
            bus.become_(Circuit::Open, now);
        }
    }

    /// The bus takes messages and gives none back.
    pub(super) fn fell_silent(&mut self, kind: BusKind, reason: &str, now: Elapsed) {
        let Some(bus) = self.bus(kind) else { return };
        bus.fail(reason);
        bus.become_(Circuit::Open, now);
    }

    /// A probe of the bus did what it should.
    pub(super) fn succeeded(&mut self, kind: BusKind, now: Elapsed) {
        let close_after = self.policy.close_after;
        let Some(bus) = self.bus(kind) else { return };
        bus.heard = true;
        bus.failures = 0;
        let healthy_since = *bus.healthy_since.get_or_insert(now);
        let proven = !bus.has_failed || now.saturating_sub(healthy_since) >= close_after;
        // An answer that comes when it was given up already does not count.
        if bus.circuit == Circuit::HalfOpen && proven {
            bus.become_(Circuit::Closed, now);
            bus.reason = None;
        }
    }

    /// A probe of the bus did not do what it should.
    pub(super) fn failed(&mut self, kind: BusKind, reason: &str, now: Elapsed) {
        let limit = self.policy.failures;
        let Some(bus) = self.bus(kind) else { return };
        bus.failures = bus.failures.saturating_add(1);
        bus.fail(reason);
        if bus.circuit == Circuit::HalfOpen || bus.failures >= limit {
            bus.become_(Circuit::Open, now);
        }
    }

    /// Whether the first bus of the order that can be used is used.
    pub(super) fn is_at_best(&self) -> bool {
        let best = self.buses.iter().find(|bus| bus.is_closed());
        self.active.is_some() && self.active == best.map(|bus| bus.kind)
    }

    /// Whether nothing is to be published: a move is near, or nothing is known of the bus yet.
    pub(super) fn is_held(&self) -> bool {
        self.draining.is_some() || self.active.is_some_and(|active| !self.is_closed(active))
    }

    /// Whether the bus in use has not been heard of in this relay's life, and may still be.
    fn is_unheard(&self, now: Elapsed) -> bool {
        let early = now.saturating_sub(self.began) < self.policy.patience;
        early && self.buses.iter().any(|bus| Some(bus.kind) == self.active && !bus.heard)
    }

    /// Decides which bus is used. `wish` is what a person wants: a bus, or the order of the plan
    /// at once. `under_way` says how many messages were published and are not delivered.
    pub(super) fn decide(
        &mut self,
        wish: Option<Option<BusKind>>,
        under_way: usize,
        now: Elapsed,
    ) -> Option<Moved> {
        // An unknown bus is neither used nor lost.
        if self.is_unheard(now) {
            return None;
        }
        let lost = self.active.filter(|active| !self.is_closed(*active));
        let target = self.target(wish, lost.is_some(), now);
        let Some((to, reason)) = target else {
            // The bus in use is lost, and there is no other.
            self.draining = None;
            let lost = lost?;
            return Some(self.go(
                None,
                format!("{lost} failed, and no other bus can be used"),
                now,
            ));
        };
        if self.active == Some(to) {
            self.draining = None;
            return None;
        }
        if self.active.is_none() || lost.is_some() {
            let reason = match lost {
                Some(lost) => {
                    let why = self.bus(lost).and_then(|bus| bus.reason.clone());
                    format!("{lost} failed: {}", why.unwrap_or_default())
                }
                None => reason,
            };
            return Some(self.go(Some(to), reason, now));
        }
        let draining = match self.draining.take() {
            Some(draining) if draining.to == to => draining,
            _ => Draining { to, since: now, reason },
        };
        if under_way == 0 || now.saturating_sub(draining.since) >= self.policy.drain_within {
            return Some(self.go(Some(to), draining.reason, now));
        }
        self.draining = Some(draining);
        None
    }

    /// The bus that should be used, and why it rather than the one in use.
    fn target(
        &self,
        wish: Option<Option<BusKind>>,
        lost: bool,
        now: Elapsed,
    ) -> Option<(BusKind, String)> {
        if let Some(Some(wanted)) = wish
            && self.is_closed(wanted)
        {
            return Some((wanted, "a person ordered it".to_owned()));
        }
        let mut closed = self.buses.iter().filter(|bus| bus.is_closed());
        let Some(active) = self.active.filter(|_| !lost) else {
            // At the beginning a preferred bus gets the time to answer for the first time.
            let best = closed.next()?;
            let unheard = self.buses.iter().take_while(|bus| bus.kind != best.kind);
            let wait = self.active.is_none() && unheard.clone().any(|bus| !bus.heard);
            if wait && now.saturating_sub(self.began) < self.policy.patience {
                return None;
            }
            return Some((best.kind, format!("{} can be used", best.kind)));
        };
        // A wish for a bus that cannot be used leaves things as they are; a wish for the order of
        // the plan does not wait until the preferred bus has been healthy for long.
        let at_once = wish == Some(None);
        let rank = self.buses.iter().position(|bus| bus.kind == active)?;
        let better = self.buses.iter().take(rank).find(|bus| {
            let healthy = bus.healthy_for(now).unwrap_or_default();
            bus.is_closed() && (at_once || (wish.is_none() && healthy >= self.policy.return_after))
        });
        match better {
            Some(bus) if at_once => Some((bus.kind, "a person ordered the return".to_owned())),
            Some(bus) => Some((bus.kind, format!("{} is healthy again", bus.kind))),
            None => Some((active, String::new())),
        }
    }

    fn go(&mut self, to: Option<BusKind>, reason: String, now: Elapsed) -> Moved {
        self.draining = None;
        self.since = now;
        Moved { from: std::mem::replace(&mut self.active, to), to, reason }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KAFKA: BusKind = BusKind::Kafka;
    const RABBIT: BusKind = BusKind::RabbitMq;

    fn secs(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn policy() -> Policy {
        Policy {
            failures: 3,
            retry_after: secs(1),
            close_after: secs(5),
            return_after: secs(60),
            drain_within: secs(10),
            patience: secs(2),
        }
    }

    fn switch(order: &[BusKind]) -> Switch {
        Switch::new(policy(), order, None, secs(0))
    }

    /// Both answer, so the first is used.
    fn settled() -> Switch {
        let mut switch = switch(&[KAFKA, RABBIT]);
        switch.succeeded(KAFKA, secs(0));
        switch.succeeded(RABBIT, secs(0));
        assert_eq!(switch.decide(None, 0, secs(0)).unwrap().to, Some(KAFKA));
        switch
    }

    fn fail(switch: &mut Switch, kind: BusKind, now: Duration) {
        for _ in 0..3 {
            switch.failed(kind, "gone", now);
        }
    }

    #[test]
    fn the_preferred_one_gets_the_time_to_answer_first() {
        let mut switch = switch(&[KAFKA, RABBIT]);
        switch.succeeded(RABBIT, secs(0));
        assert_eq!(switch.decide(None, 0, secs(1)), None);
        assert_eq!(switch.decide(None, 0, secs(2)).unwrap().to, Some(RABBIT));
        // It has answered for the first time only now, and has not been healthy for long.
        switch.succeeded(KAFKA, secs(3));
        assert_eq!(switch.decide(None, 0, secs(4)), None);
        assert_eq!(switch.decide(None, 0, secs(63)).unwrap().to, Some(KAFKA));
    }

    #[test]
    fn what_fails_at_the_beginning_is_not_waited_for() {
        let mut switch = switch(&[KAFKA, BusKind::Embedded]);
        assert_eq!(switch.decide(None, 0, secs(0)), None);
        switch.failed(KAFKA, "gone", secs(0));
        assert_eq!(switch.decide(None, 0, secs(0)).unwrap().to, Some(BusKind::Embedded));
    }

    #[test]
    fn it_moves_at_once_when_the_circuit_opens_and_not_before() {
        let mut switch = settled();
        switch.failed(KAFKA, "gone", secs(9));
        switch.failed(KAFKA, "gone", secs(9));
        switch.succeeded(KAFKA, secs(9));
        switch.failed(KAFKA, "gone", secs(10));
        switch.failed(KAFKA, "gone", secs(10));
        assert_eq!(switch.decide(None, 7, secs(10)), None);
        switch.failed(KAFKA, "gone", secs(10));
        let moved = switch.decide(None, 7, secs(10)).unwrap();
        assert_eq!((moved.from, moved.to), (Some(KAFKA), Some(RABBIT)));
        assert_eq!(moved.reason, "kafka failed: gone");
    }

    #[test]
    fn a_bus_that_answers_and_takes_or_gives_no_messages_is_left() {
        let mut switch = settled();
        for second in 1..=2 {
            switch.not_published(KAFKA, "no leader", secs(second));
            switch.succeeded(KAFKA, secs(second));
        }
        // One that is taken in between shows that it can be used.
        switch.published(KAFKA);
        for second in 3..=5 {
            assert_eq!(switch.decide(None, 7, secs(second)), None);
            switch.not_published(KAFKA, "no leader", secs(second));
            switch.succeeded(KAFKA, secs(second));
        }
        let moved = switch.decide(None, 7, secs(5)).unwrap();
        assert_eq!((moved.to, moved.reason.as_str()), (Some(RABBIT), "kafka failed: no leader"));

        let mut switch = settled();
        switch.fell_silent(KAFKA, "nothing comes", secs(9));
        assert_eq!(switch.decide(None, 7, secs(9)).unwrap().to, Some(RABBIT));
    }

    #[test]
    fn an_open_circuit_is_left_alone_then_tried_and_closed_with_hysteresis() {
        let mut switch = settled();
        fail(&mut switch, KAFKA, secs(10));
        assert!(!switch.is_to_be_probed(KAFKA, secs(10)));
        assert!(switch.is_to_be_probed(KAFKA, secs(11)));
        switch.succeeded(KAFKA, secs(11));
        switch.succeeded(KAFKA, secs(15));
        assert_eq!(switch.buses[0].circuit, Circuit::HalfOpen);
        // One failure of a trial is enough.
        switch.failed(KAFKA, "again", secs(15));
        assert_eq!(switch.buses[0].circuit, Circuit::Open);
        assert!(switch.is_to_be_probed(KAFKA, secs(16)));
        switch.succeeded(KAFKA, secs(16));
        switch.succeeded(KAFKA, secs(21));
        assert_eq!(switch.buses[0].circuit, Circuit::Closed);
        assert_eq!(switch.buses[0].reason, None);
    }

    #[test]
    fn it_returns_after_a_while_and_drains_before() {
        let mut switch = settled();
        fail(&mut switch, KAFKA, secs(10));
        switch.decide(None, 0, secs(10)).unwrap();
        switch.is_to_be_probed(KAFKA, secs(11));
        for second in 11..80 {
            switch.succeeded(KAFKA, secs(second));
            let moved = switch.decide(None, 3, secs(second));
            assert_eq!(moved, None, "at {second}");
            assert_eq!(switch.is_held(), second >= 71, "at {second}");
        }
        // Delivered at last, or not in time.
        let mut late = switch.clone();
        assert_eq!(late.decide(None, 3, secs(81)).unwrap().to, Some(KAFKA));
        let moved = switch.decide(None, 0, secs(80)).unwrap();
        assert_eq!((moved.to, switch.is_held()), (Some(KAFKA), false));
    }

    #[test]
    fn a_person_may_switch_and_return_and_is_not_obeyed_into_a_failure() {
        let mut switch = settled();
        let wish = Some(Some(RABBIT));
        assert_eq!(switch.decide(wish, 2, secs(1)), None);
        assert!(switch.is_held());
        assert_eq!(switch.decide(wish, 0, secs(2)).unwrap().to, Some(RABBIT));
        // It stays there, however healthy the preferred one is.
        assert_eq!(switch.decide(wish, 0, secs(900)), None);
        // What was wished for fails: the others take over, and it is used again when it can be.
        fail(&mut switch, RABBIT, secs(901));
        assert_eq!(switch.decide(wish, 0, secs(901)).unwrap().to, Some(KAFKA));
        assert_eq!(switch.decide(wish, 0, secs(902)), None);
        switch.is_to_be_probed(RABBIT, secs(903));
        switch.succeeded(RABBIT, secs(903));
        switch.succeeded(RABBIT, secs(908));
        assert_eq!(switch.decide(wish, 0, secs(908)).unwrap().to, Some(RABBIT));
        // The order of the plan, at once.
        assert_eq!(switch.decide(Some(None), 0, secs(909)).unwrap().to, Some(KAFKA));
    }

    #[test]
    fn without_any_bus_messages_wait() {
        let mut switch = settled();
        fail(&mut switch, RABBIT, secs(5));
        fail(&mut switch, KAFKA, secs(5));
        assert_eq!(switch.decide(None, 0, secs(5)).unwrap().to, None);
        assert_eq!(switch.decide(None, 0, secs(6)), None);
        switch.is_to_be_probed(RABBIT, secs(7));
        switch.succeeded(RABBIT, secs(7));
        switch.succeeded(RABBIT, secs(12));
        assert_eq!(switch.decide(None, 0, secs(12)).unwrap().to, Some(RABBIT));
    }

    #[test]
    fn the_next_relay_goes_on_with_the_bus_of_the_last_one() {
        let mut switch = Switch::new(policy(), &[KAFKA, RABBIT], Some(RABBIT), secs(0));
        switch.succeeded(KAFKA, secs(0));
        assert_eq!(switch.decide(None, 0, secs(0)), None, "it is not known yet");
        assert!(switch.is_held());
        let mut silent = switch.clone();
        assert_eq!(silent.decide(None, 0, secs(2)).unwrap().to, Some(KAFKA));
        switch.succeeded(RABBIT, secs(0));
        assert!(!switch.is_held());
        switch.succeeded(KAFKA, secs(0));
        assert_eq!(switch.decide(None, 0, secs(1)), None);
        assert_eq!(switch.active, Some(RABBIT));
        assert_eq!(switch.decide(None, 0, secs(60)).unwrap().to, Some(KAFKA));
    }

    #[derive(Clone, Debug)]
    enum Event {
        Succeeded(BusKind),
        Failed(BusKind),
        Published(BusKind),
        NotPublished(BusKind),
        FellSilent(BusKind),
        Probe(BusKind),
        Wish(Option<Option<BusKind>>),
    }

    fn kind() -> impl Strategy<Value = BusKind> {
        prop_oneof![Just(KAFKA), Just(RABBIT)]
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            kind().prop_map(Event::Succeeded),
            kind().prop_map(Event::Failed),
            kind().prop_map(Event::Published),
            kind().prop_map(Event::NotPublished),
            kind().prop_map(Event::FellSilent),
            kind().prop_map(Event::Probe),
            proptest::option::of(proptest::option::of(kind())).prop_map(Event::Wish),
        ]
    }

    proptest! {
        /// Whatever happens: what is used after a decision is closed (or still unknown at the
        /// beginning of a relay's life), and nothing closed is left unused while none is used.
        #[test]
        fn a_bus_that_is_used_can_be_used(
            events in proptest::collection::vec((event(), 0_u64..4000, 0_usize..3), 1..200),
            embedded in any::<bool>(),
        ) {
            let mut order = vec![KAFKA, RABBIT];
            order.extend(embedded.then_some(BusKind::Embedded));
            let mut switch = switch(&order);
            let mut now = Duration::ZERO;
            let mut wish = None;
            for (event, later, under_way) in events {
                now += Duration::from_millis(later);
                match event {
                    Event::Succeeded(kind) => switch.succeeded(kind, now),
                    Event::Failed(kind) => switch.failed(kind, "gone", now),
                    Event::Published(kind) => switch.published(kind),
                    Event::NotPublished(kind) => switch.not_published(kind, "full", now),
                    Event::FellSilent(kind) => switch.fell_silent(kind, "silent", now),
                    Event::Probe(kind) => drop(switch.is_to_be_probed(kind, now)),
                    Event::Wish(new) => wish = new,
                }
                let before = switch.active;
                let moved = switch.decide(wish, under_way, now);
                prop_assert_eq!(moved.is_some(), before != switch.active);
                match switch.active {
                    Some(active) => prop_assert!(switch.is_closed(active) && !switch.is_unheard(now)),
                    None if now >= secs(2) => {
                        prop_assert!(!switch.buses.iter().any(Breaker::is_closed));
                    }
                    None => {}
                }
            }
        }
    }
}
