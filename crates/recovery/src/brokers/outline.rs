//! The runbooks for lost brokers, for people.

use crate::runbook::{Danger, Outline};

pub(super) const CONFIRM: usize = 0;
pub(super) const EVIDENCE: usize = 1;
pub(super) const RESTART: usize = 2;
pub(super) const CARRY: usize = 3;
pub(super) const WHOLE: usize = 4;
pub(super) const RETURN: usize = 5;

/// The six steps are the same for each broker; what a person would type is not.
const fn outline(
    look: &'static [&'static str],
    keep: &'static [&'static str],
    restart: &'static [&'static str],
    whole: &'static [&'static str],
) -> [Outline; 6] {
    [
        Outline {
            name: "confirm",
            danger: Danger::Looks,
            does: "Finds out which brokers do not run, are missing from their cluster, or were started again since the first sign, and what the relay says of the bus.",
            verified: "What was found is in the journal.",
            by_hand: look,
        },
        Outline {
            name: "evidence",
            danger: Danger::Looks,
            does: "Keeps how the buses are and the last lines that the brokers logged, before anything is started again.",
            verified: "The records are in the journal.",
            by_hand: keep,
        },
        Outline {
            name: "restart",
            danger: Danger::Acts,
            does: "Makes sure that the brokers of this deployment run: starts those that ended, and ends and starts those that run and are missing from their cluster. Brokers elsewhere are left to those who run them.",
            verified: "All of them run.",
            by_hand: restart,
        },
        Outline {
            name: "carry",
            danger: Danger::Looks,
            does: "Makes sure that messages flow again, over whichever bus: sends one, and waits until it arrives.",
            verified: "The message arrived.",
            by_hand: &[
                "resurgam bus status",
                "resurgam message send bus-probe note --from bus-probe",
                "resurgam message read bus-probe --wait 10s",
            ],
        },
        Outline {
            name: "whole",
            danger: Danger::Looks,
            does: "Waits until the brokers are whole again: none missing, every partition or queue with a leader and all of its copies.",
            verified: "The relay says so of the bus.",
            by_hand: whole,
        },
        Outline {
            name: "return",
            danger: Danger::Acts,
            does: "Waits until messages take the preferred bus again, which happens by itself after bus.return_after, unless a person has ordered another.",
            verified: "The preferred bus is in use.",
            by_hand: &["resurgam bus return", "resurgam bus status"],
        },
    ]
}

const KEEP_KAFKA: &[&str] = &[
    "resurgam bus status --json > evidence-bus.json",
    "resurgam logs kafka-1 --lines 200 > evidence-kafka-1.txt",
    "kubectl --namespace dotnetagents logs --selector app=kafka --tail 200 --previous",
];

const WHOLE_KAFKA: &[&str] = &[
    "# Both lists must be empty.",
    "kafka-topics.sh --bootstrap-server 127.0.0.1:9092 --describe --unavailable-partitions",
    "kafka-topics.sh --bootstrap-server 127.0.0.1:9092 --describe --under-replicated-partitions",
];

pub(crate) static KAFKA_BROKER: [Outline; 6] = outline(
    &[
        "resurgam bus status",
        "kafka-broker-api-versions.sh --bootstrap-server 127.0.0.1:9092",
        "kafka-metadata-quorum.sh --bootstrap-server 127.0.0.1:9092 describe --status",
        "kubectl --namespace dotnetagents get pods --selector app=kafka",
    ],
    KEEP_KAFKA,
    &[
        "resurgam restart kafka-1",
        "# One at a time: two of three must stay up.",
        "kubectl --namespace dotnetagents delete pod kafka-0",
        "kubectl --namespace dotnetagents rollout status statefulset/kafka --timeout 5m",
    ],
    WHOLE_KAFKA,
);

pub(crate) static KAFKA_CLUSTER: [Outline; 6] = outline(
    &[
        "resurgam bus status",
        "kafka-metadata-quorum.sh --bootstrap-server 127.0.0.1:9092 describe --status",
        "kubectl --namespace dotnetagents get pods --selector app=kafka",
    ],
    KEEP_KAFKA,
    &[
        "# Messages take RabbitMQ by themselves; to be sure:",
        "resurgam bus switch rabbitmq --reason \"Kafka is gone\"",
        "resurgam restart kafka-1 kafka-2 kafka-3",
        "kubectl --namespace dotnetagents rollout restart statefulset/kafka",
        "kubectl --namespace dotnetagents rollout status statefulset/kafka --timeout 10m",
    ],
    WHOLE_KAFKA,
);

pub(crate) static RABBITMQ: [Outline; 6] = outline(
    &[
        "resurgam bus status",
        "rabbitmq-diagnostics check_running",
        "rabbitmq-diagnostics check_local_alarms",
        "kubectl --namespace dotnetagents get pods --selector app=rabbitmq",
    ],
    &[
        "resurgam bus status --json > evidence-bus.json",
        "resurgam logs rabbitmq-0 --lines 200 > evidence-rabbitmq.txt",
        "kubectl --namespace dotnetagents logs --selector app=rabbitmq --tail 200 --previous",
    ],
    &[
        "resurgam restart rabbitmq-0",
        "kubectl --namespace dotnetagents rollout restart statefulset/rabbitmq",
        "kubectl --namespace dotnetagents rollout status statefulset/rabbitmq --timeout 5m",
    ],
    &[
        "rabbitmq-diagnostics check_running",
        "rabbitmq-diagnostics check_virtual_hosts",
        "rabbitmqctl list_queues name type state messages consumers",
    ],
);
