//! What is wrong with the brokers of a deployment: one incident for each cause.
//!
//! There are two kinds of signs. A process that ended says at once that a broker is lost; whether
//! it is one or all of them shows a moment later, so ends are gathered before they are judged. What
//! the relay says of a bus counts when it has held for a while, and only of a bus that was whole
//! before: what has not come up yet is not lost.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use resurgam_deployment::{Component, ComponentKind};
use resurgam_model::bus::{BusHealth, BusKind, BusState, BusStatus, Circuit};
use resurgam_model::{ComponentName, Scenario, Timestamp};

use super::lacks;

/// Ends within this time are of one cause.
const GATHER: Duration = Duration::from_millis(300);
/// What the relay says counts when it has held for so long.
const HELD: Duration = Duration::from_secs(2);

/// So long a server may take to be part of its cluster again after it was ended on purpose.
const EXCUSED: Duration = Duration::from_secs(60);

/// What is to be an incident.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) scenario: Scenario,
    pub(crate) cause: String,
    pub(crate) first_sign: Timestamp,
}

/// What was seen of the brokers so far.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Brokers of Kafka that ended, how, and since when they are gathered.
    ended: BTreeMap<ComponentName, String>,
    since: Option<(Instant, Timestamp)>,
    /// Buses that were whole.
    whole: Vec<BusKind>,
    /// Since when a bus lacks something.
    lacking: BTreeMap<BusKind, Instant>,
    /// When a process of a bus was ended on purpose last.
    excused: BTreeMap<BusKind, Instant>,
}

impl Seen {
    /// A process ended, and not on purpose.
    pub(crate) fn note_end(&mut self, component: &Component, now: Instant) {
        let how = component.last_exit.as_deref().unwrap_or("ended").to_owned();
        self.ended.insert(component.name.clone(), how);
        self.since.get_or_insert((now, Timestamp::now()));
    }

    /// A process ended on purpose: what its bus lacks for a while is no failure.
    pub(crate) fn excuse(&mut self, component: &Component, now: Instant) {
        let bus = match component.kind {
            ComponentKind::RabbitMq => BusKind::RabbitMq,
            _ => BusKind::Kafka,
        };
        self.excused.insert(bus, now);
    }

    /// What is to be an incident, and why.
    pub(crate) fn find(
        &mut self,
        components: &[Component],
        status: Option<&BusStatus>,
        now: Instant,
    ) -> Vec<Found> {
        let mut found = self.judge_ends(components, now);
        let fresh =
            |state: &&BusState| Timestamp::now().as_second() - state.at.as_second() <= super::FRESH;
        let state = status.and_then(|status| status.state.as_ref()).filter(fresh);
        for health in state.iter().flat_map(|state| &state.buses) {
            found.extend(self.judge(health, now));
        }
        found
    }

    fn judge_ends(&mut self, components: &[Component], now: Instant) -> Vec<Found> {
        let gathered = |(since, _): &(Instant, _)| now.saturating_duration_since(*since) >= GATHER;
        let Some((_, first_sign)) = self.since.take_if(|since| gathered(since)) else {
            return Vec::new();
        };
        let ended = std::mem::take(&mut self.ended);
        let of = |kind| components.iter().filter(move |component| component.kind == kind);
        let mut found = Vec::new();
        for kind in [ComponentKind::Kafka, ComponentKind::RabbitMq] {
            let these: Vec<_> = of(kind)
                .filter_map(|component| ended.get_key_value(&component.name))
                .map(|(name, how)| format!("{name} ended: {how}"))
                .collect();
            if these.is_empty() {
                continue;
            }
            let left = of(kind).count() - these.len();
            let scenario = match kind {
                ComponentKind::RabbitMq => Scenario::RabbitMq,
                // Without a majority nobody leads.
                _ if left > these.len() => Scenario::KafkaBroker,
                _ => Scenario::KafkaCluster,
            };
            found.push(Found { scenario, cause: these.join("; "), first_sign });
        }
        found
    }

    fn judge(&mut self, health: &BusHealth, now: Instant) -> Option<Found> {
        let Some(cause) = lacks(health, 0) else {
            self.lacking.remove(&health.bus);
            if !self.whole.contains(&health.bus) {
                self.whole.push(health.bus);
            }
            return None;
        };
        if !self.whole.contains(&health.bus) {
            return None;
        }
        let excused = self.excused.get(&health.bus);
        if excused.is_some_and(|at| now.saturating_duration_since(*at) < EXCUSED) {
            self.lacking.remove(&health.bus);
            return None;
        }
        let since = *self.lacking.entry(health.bus).or_insert(now);
        if now.saturating_duration_since(since) < HELD {
            return None;
        }
        let scenario = match health.bus {
            BusKind::Kafka if health.circuit == Circuit::Closed => Scenario::KafkaBroker,
            BusKind::Kafka => Scenario::KafkaCluster,
            BusKind::RabbitMq => Scenario::RabbitMq,
            BusKind::Embedded => return None,
        };
        let wall = Timestamp::now();
        let held = now.saturating_duration_since(since);
        let first_sign = wall.checked_sub(held).unwrap_or(wall);
        Some(Found { scenario, cause, first_sign })
    }
}

#[cfg(test)]
mod tests {
    use resurgam_deployment::RunState;
    use resurgam_model::bus::Observation;

    use super::*;

    fn component(name: &str, kind: ComponentKind) -> Component {
        Component {
            name: ComponentName::new(name).unwrap(),
            kind,
            state: RunState::Restarting,
            pid: None,
            address: None,
            started_at: None,
            restarts: 1,
            last_exit: Some("killed by signal 9".to_owned()),
        }
    }

    fn brokers() -> [Component; 4] {
        [
            component("kafka-1", ComponentKind::Kafka),
            component("kafka-2", ComponentKind::Kafka),
            component("kafka-3", ComponentKind::Kafka),
            component("rabbitmq-0", ComponentKind::RabbitMq),
        ]
    }

    fn scenarios(found: &[Found]) -> Vec<Scenario> {
        found.iter().map(|found| found.scenario).collect()
    }

    #[test]
    fn ends_at_one_time_are_of_one_cause() {
        let all = brokers();
        let begin = Instant::now();
        for (ended, expected) in [
            (&[0][..], vec![Scenario::KafkaBroker]),
            (&[0, 2], vec![Scenario::KafkaCluster]),
            (&[0, 1, 2], vec![Scenario::KafkaCluster]),
            (&[3], vec![Scenario::RabbitMq]),
            (&[1, 3], vec![Scenario::KafkaBroker, Scenario::RabbitMq]),
        ] {
            let mut seen = Seen::default();
            for place in ended {
                seen.note_end(&all[*place], begin);
            }
            assert!(seen.find(&all, None, begin).is_empty(), "they are gathered first");
            let found = seen.find(&all, None, begin + GATHER);
            assert_eq!(scenarios(&found), expected);
            assert!(found[0].cause.contains("killed by signal 9"), "{found:?}");
            assert!(seen.find(&all, None, begin + GATHER * 2).is_empty(), "told once");
        }
        // The only broker is the cluster.
        let mut seen = Seen::default();
        seen.note_end(&all[0], begin);
        assert_eq!(
            scenarios(&seen.find(&all[..1], None, begin + GATHER)),
            [Scenario::KafkaCluster]
        );
    }

    fn health(circuit: Circuit, missing: &[&str]) -> BusHealth {
        BusHealth {
            bus: BusKind::Kafka,
            circuit,
            since: Timestamp::UNIX_EPOCH,
            reason: Some("gone".to_owned()),
            observation: Some(Observation {
                missing: missing.iter().map(ToString::to_string).collect(),
                ..Observation::default()
            }),
        }
    }

    #[test]
    fn what_the_relay_says_counts_when_it_has_held_and_was_otherwise_before() {
        let begin = Instant::now();
        let mut seen = Seen::default();
        let open = health(Circuit::Open, &[]);
        assert_eq!(seen.judge(&open, begin + HELD * 9), None, "it has not come up yet");
        assert_eq!(seen.judge(&health(Circuit::Closed, &[]), begin), None);
        assert_eq!(seen.judge(&open, begin), None);
        assert_eq!(seen.judge(&open, begin + HELD / 2), None);
        let found = seen.judge(&open, begin + HELD).unwrap();
        assert_eq!(
            (found.scenario, found.cause.as_str()),
            (Scenario::KafkaCluster, "kafka cannot be used: gone")
        );
        // On purpose is no failure, for a while.
        seen.excuse(&brokers()[0], begin + HELD);
        assert_eq!(seen.judge(&open, begin + HELD * 2), None);
        let begin = begin + EXCUSED + HELD * 2;
        assert_eq!(seen.judge(&open, begin), None);
        assert!(seen.judge(&open, begin + HELD).is_some());
        // Well again, and then only one is missing.
        assert_eq!(seen.judge(&health(Circuit::Closed, &[]), begin + HELD), None);
        let ill = health(Circuit::Closed, &["a:1"]);
        assert_eq!(seen.judge(&ill, begin + HELD), None);
        let found = seen.judge(&ill, begin + HELD * 2).unwrap();
        assert_eq!((found.scenario, found.cause.as_str()), (Scenario::KafkaBroker, "missing: a:1"));
    }
}
