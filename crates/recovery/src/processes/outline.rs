//! The runbooks for lost processes, for people.

use crate::runbook::{Danger, Outline};

pub(super) const CONFIRM: usize = 0;
pub(super) const EVIDENCE: usize = 1;
pub(super) const RESTART: usize = 2;
pub(super) const VERIFY: usize = 3;

/// The four steps are the same for each kind of process; what a person would type is not.
const fn outline(
    look: &'static [&'static str],
    keep: &'static [&'static str],
    restart: &'static [&'static str],
    check: &'static [&'static str],
) -> [Outline; 4] {
    [
        Outline {
            name: "confirm",
            danger: Danger::Looks,
            does: "Finds out which of the processes do not run, do not answer, or were started again since the first sign.",
            verified: "What was found is in the journal.",
            by_hand: look,
        },
        Outline {
            name: "evidence",
            danger: Danger::Looks,
            does: "Keeps how each process ended and the last lines that it logged, before anything is started again.",
            verified: "The records are in the journal.",
            by_hand: keep,
        },
        Outline {
            name: "restart",
            danger: Danger::Acts,
            does: "Makes sure that they run: starts those that ended, and ends and starts those that run without answering.",
            verified: "All of them run, and stay up.",
            by_hand: restart,
        },
        Outline {
            name: "verify",
            danger: Danger::Looks,
            does: "Makes sure of what a restart alone does not show: that they answer, that the platform is ready down to its store, that every worker is registered again, and that no task is held by the dead.",
            verified: "All of it holds at once.",
            by_hand: check,
        },
    ]
}

const CHECK: &[&str] = &[
    "resurgam status",
    "resurgam agents list",
    "curl --fail --silent --show-error http://127.0.0.1:7070/ready",
];

pub(crate) static API: [Outline; 4] = outline(
    &[
        "curl --max-time 2 http://127.0.0.1:7070/health",
        "kubectl --namespace dotnetagents get pods --selector app=dotnetagents-api",
    ],
    &[
        "resurgam logs dotnetagents-api --lines 200 > evidence-api.txt",
        "kubectl --namespace dotnetagents logs --selector app=dotnetagents-api --tail 200 --previous",
    ],
    &[
        "resurgam restart dotnetagents-api",
        "kubectl --namespace dotnetagents rollout restart deployment/dotnetagents-api",
        "kubectl --namespace dotnetagents rollout status deployment/dotnetagents-api --timeout 5m",
    ],
    CHECK,
);

pub(crate) static REGISTRY: [Outline; 4] = outline(
    &[
        "resurgam agents list",
        "kubectl --namespace dotnetagents get pods --selector app=agent-registry",
    ],
    &[
        "resurgam logs agent-registry --lines 200 > evidence-registry.txt",
        "kubectl --namespace dotnetagents logs --selector app=agent-registry --tail 100",
    ],
    &[
        "resurgam restart agent-registry",
        "# wait --for=condition=ready right after a restart meets the old pods; rollout status does not.",
        "kubectl --namespace dotnetagents rollout restart deployment/agent-registry",
        "kubectl --namespace dotnetagents rollout status deployment/agent-registry --timeout 5m",
    ],
    CHECK,
);

pub(crate) static WORKERS: [Outline; 4] = outline(
    &["resurgam agents list", "kubectl --namespace dotnetagents get pods --selector app=worker"],
    &[
        "resurgam logs worker-pool-0 --lines 200 > evidence-worker-0.txt",
        "kubectl --namespace dotnetagents logs --selector app=worker --tail 100 --previous",
    ],
    &[
        "# Not by scaling to nothing and up again: that takes the healthy ones as well.",
        "resurgam restart worker-pool-0",
        "kubectl --namespace dotnetagents rollout restart deployment/worker-pool",
        "kubectl --namespace dotnetagents rollout status deployment/worker-pool --timeout 5m",
    ],
    CHECK,
);

pub(crate) static EVERYTHING: [Outline; 4] = outline(
    &["resurgam status", "kubectl get nodes", "kubectl --namespace dotnetagents get pods"],
    &["tar --create --gzip --file evidence.tar.gz resurgam-data/logs"],
    &[
        "resurgam up --plan resurgam.toml",
        "# The database first; then registry, supervisor, API, workers.",
        "kubectl --namespace dotnetagents rollout restart statefulset/postgres",
        "kubectl --namespace dotnetagents rollout restart deployment/agent-registry deployment/dotnetagents-supervisor deployment/dotnetagents-api deployment/worker-pool",
    ],
    CHECK,
);
