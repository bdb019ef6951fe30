//! What there is to know of the buses.

use std::borrow::Cow;
use std::sync::Arc;

use resurgam_metrics::{Computed, Named, Registry};
use resurgam_model::Timestamp;
use resurgam_model::bus::{BusHealth, BusState, Circuit, Observation, Outbox};
use resurgam_store::SharedStore;

use super::{Stock, number};

/// The buses as the relay last said, and what waits for them.
#[derive(Clone, Debug, Default)]
pub(super) struct Buses {
    /// None without brokers.
    state: Option<BusState>,
    outbox: Outbox,
}

impl Buses {
    pub(super) async fn ask(store: &SharedStore) -> resurgam_store::Result<Self> {
        let record = store.bus().await?;
        let state = record.state.filter(|_| record.relayed);
        Ok(Self { state, outbox: store.outbox().await? })
    }

    fn of(&self, value: impl Fn(&BusHealth) -> Option<f64>) -> Vec<(Named<1>, f64)> {
        let buses = self.state.iter().flat_map(|state| &state.buses);
        buses
            .filter_map(|bus| Some(([("bus", Cow::Borrowed(bus.bus.as_str()))], value(bus)?)))
            .collect()
    }

    fn observed(&self, value: impl Fn(&Observation) -> Option<f64> + Copy) -> Vec<(Named<1>, f64)> {
        // What it said before it failed says nothing of now.
        let current = |bus: &BusHealth| bus.circuit != Circuit::Open;
        self.of(|bus| bus.observation.as_ref().filter(|_| current(bus)).and_then(value))
    }
}

pub(super) fn register(stock: &Arc<Stock>, registry: &mut Registry) {
    let gauges = |values: fn(&Buses) -> Vec<(Named<1>, f64)>| {
        let stock = Arc::clone(stock);
        Computed::gauges(move || values(&stock.known().buses))
    };
    let gauge = |value: fn(&Buses) -> Option<f64>| {
        let stock = Arc::clone(stock);
        Computed::gauge(move || value(&stock.known().buses))
    };
    registry.add(
        "resurgam_bus_active",
        "1 for the bus that carries messages; 0 for all of them when messages have to wait",
        &["bus"],
        gauges(|buses| {
            let active = buses.state.as_ref().and_then(|state| state.active);
            buses.of(|bus| Some(f64::from(u8::from(active == Some(bus.bus)))))
        }),
    );
    registry.add(
        "resurgam_bus_usable",
        "1 when messages may go over the bus: its circuit is closed",
        &["bus"],
        gauges(|buses| buses.of(|bus| Some(f64::from(u8::from(bus.circuit == Circuit::Closed))))),
    );
    registry.add(
        "resurgam_bus_nodes",
        "Brokers of the bus that answer",
        &["bus"],
        gauges(|buses| buses.observed(|seen| Some(number(seen.nodes.len() as u64)))),
    );
    registry.add(
        "resurgam_bus_nodes_missing",
        "Brokers that are to hold copies of messages and do not answer",
        &["bus"],
        gauges(|buses| buses.observed(|seen| Some(number(seen.missing.len() as u64)))),
    );
    registry.add(
        "resurgam_bus_under_replicated",
        "Partitions or queues that have fewer copies than they should",
        &["bus"],
        gauges(|buses| buses.observed(|seen| Some(f64::from(seen.under_replicated)))),
    );
    registry.add(
        "resurgam_bus_offline",
        "Partitions or queues that cannot be used",
        &["bus"],
        gauges(|buses| buses.observed(|seen| Some(f64::from(seen.offline)))),
    );
    registry.add(
        "resurgam_bus_lag_messages",
        "Messages on the bus that wait for a relay to take them in",
        &["bus"],
        gauges(|buses| buses.observed(|seen| Some(number(seen.lag?)))),
    );
    let moves = {
        let stock = Arc::clone(stock);
        move || Some(number(stock.known().buses.state.as_ref()?.moves))
    };
    registry.add(
        "resurgam_bus_moves_total",
        "Changes from one bus to another since the deployment began",
        &[],
        Computed::counter(moves),
    );
    registry.add(
        "resurgam_bus_state_age_seconds",
        "How long ago a relay said how the buses are; messages wait while none does",
        &[],
        gauge(|buses| buses.state.as_ref().map(|state| age(state.at))),
    );
    registry.add(
        "resurgam_outbox_messages",
        "Messages that were accepted and are not in their mailboxes yet",
        &[],
        gauge(|buses| Some(number(buses.outbox.waiting))),
    );
    registry.add(
        "resurgam_outbox_oldest_seconds",
        "For how long the oldest message of the outbox has waited",
        &[],
        gauge(|buses| buses.outbox.oldest.map(age)),
    );
    registry.add(
        "resurgam_dead_letters",
        "Messages that could not be delivered or were rejected too often",
        &[],
        gauge(|buses| Some(number(buses.outbox.dead))),
    );
}

fn age(since: Timestamp) -> f64 {
    Timestamp::now().duration_since(since).as_secs_f64().max(0.0)
}
