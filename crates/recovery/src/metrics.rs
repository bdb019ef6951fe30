//! Figures for Prometheus: how the deployment is, and what it would cost if something struck now.

use std::borrow::Cow;
use std::sync::Arc;

use resurgam_deployment::RunState;
use resurgam_metrics::{Computed, Named, Registry, build_info, process};
use resurgam_model::Timestamp;

use crate::exposure::Loss;
use crate::status::{Postgres, Status};

/// The figures at the moment of this status. What is not known is left out.
#[must_use]
pub fn registry(status: Status, now: Timestamp) -> Registry {
    let status = Arc::new(status);
    let mut registry = Registry::default();
    build_info(&mut registry, env!("CARGO_PKG_VERSION"), "controller");
    let one = |value: fn(&Status) -> Option<f64>| {
        let status = Arc::clone(&status);
        Computed::gauge(move || value(&status))
    };
    registry.add(
        "resurgam_deployment_ready",
        "1 when every component serves, redundancy is there, and no incident is open",
        &[],
        one(|status| Some(flag(status.ready))),
    );
    let seen = Arc::clone(&status);
    registry.add(
        "resurgam_component_up",
        "1 when a component runs, and answers if it is asked",
        &["component", "kind"],
        Computed::gauges(move || {
            let each = seen.components.iter().map(|health| {
                let component = &health.component;
                let up = component.state == RunState::Running && health.answers != Some(false);
                let words = [component.name.to_string(), component.kind.as_str().to_owned()];
                (labels(["component", "kind"], words), flag(up))
            });
            each.collect()
        }),
    );
    let seen = Arc::clone(&status);
    registry.add(
        "resurgam_component_restarts_total",
        "How often a component was started again since the controller began",
        &["component"],
        Computed::counters(move || {
            let each = seen.components.iter().map(|health| {
                let component = &health.component;
                let restarts = f64::from(component.restarts);
                (labels(["component"], [component.name.to_string()]), restarts)
            });
            each.collect()
        }),
    );
    let seen = Arc::clone(&status);
    registry.add(
        "resurgam_incidents_open",
        "Incidents whose recovery is not over",
        &["scenario", "severity"],
        Computed::gauges(move || {
            let open = |scenario| {
                let of = seen.incidents.iter().filter(|incident| incident.scenario == scenario);
                f64::from(u32::try_from(of.count()).unwrap_or(u32::MAX))
            };
            let each = seen.exposure.iter().map(|one| {
                let words = [one.scenario.to_string(), one.severity.to_string()];
                (labels(["scenario", "severity"], words), open(one.scenario))
            });
            each.collect()
        }),
    );
    disk(&mut registry, &status);
    exposure(&mut registry, &status);
    ages(&mut registry, &status, now);
    postgres(&mut registry, &status);
    process(&mut registry);
    registry
}

fn disk(registry: &mut Registry, status: &Arc<Status>) {
    #[allow(clippy::cast_precision_loss, reason = "a disk has less than 2^53 bytes")]
    let float = |bytes: u64| bytes as f64;
    let seen = status.disk;
    registry.add(
        "resurgam_disk_free_bytes",
        "What may still be written where the state folder is; none while it is not looked at",
        &[],
        Computed::gauge(move || seen.map(|space| float(space.free))),
    );
    registry.add(
        "resurgam_disk_wanted_bytes",
        "What the plan wants to be free there",
        &[],
        Computed::gauge(move || seen.map(|space| float(space.wanted))),
    );
}

fn exposure(registry: &mut Registry, status: &Arc<Status>) {
    let seen = Arc::clone(status);
    registry.add(
        "resurgam_exposure_loss_seconds",
        "What would be lost at most if the scenario struck now, in seconds of acknowledged work; +Inf for everything",
        &["scenario"],
        Computed::gauges(move || {
            let each = seen.exposure.iter().filter_map(|one| {
                let loss = match one.loss {
                    Loss::Nothing => 0.0,
                    Loss::UpTo { ms } => seconds(ms),
                    Loss::Everything => f64::INFINITY,
                    Loss::Unknown => return None,
                };
                Some((labels(["scenario"], [one.scenario.to_string()]), loss))
            });
            each.collect()
        }),
    );
    let seen = Arc::clone(status);
    registry.add(
        "resurgam_exposure_recovery_seconds",
        "How long the slowest of the last ten drills of the scenario took here",
        &["scenario"],
        Computed::gauges(move || {
            let each = seen.exposure.iter().filter_map(|one| {
                let took = seconds(one.recovery_ms?);
                Some((labels(["scenario"], [one.scenario.to_string()]), took))
            });
            each.collect()
        }),
    );
    let seen = Arc::clone(status);
    registry.add(
        "resurgam_objective_seconds",
        "What the plan promises: rpo, how much may be lost; rto, how long a recovery may take",
        &["scenario", "objective"],
        Computed::gauges(move || {
            let each = seen.exposure.iter().flat_map(|one| {
                [("rpo", one.rpo_ms), ("rto", one.rto_ms)].map(|(objective, ms)| {
                    let words = [one.scenario.to_string(), objective.to_owned()];
                    (labels(["scenario", "objective"], words), seconds(ms))
                })
            });
            each.collect()
        }),
    );
}

fn ages(registry: &mut Registry, status: &Arc<Status>, now: Timestamp) {
    let age = move |at: Timestamp| now.duration_since(at).as_secs_f64().max(0.0);
    let seen = Arc::clone(status);
    registry.add(
        "resurgam_backup_age_seconds",
        "The age of the newest backup in a vault that is not known to be bad",
        &["vault"],
        Computed::gauges(move || {
            let each = seen.vaults.iter().filter_map(|vault| {
                Some((labels(["vault"], [vault.vault.clone()]), age(vault.newest?)))
            });
            each.collect()
        }),
    );
    let seen = Arc::clone(status);
    registry.add(
        "resurgam_backup_proven_age_seconds",
        "The age of the newest backup in a vault that was restored",
        &["vault"],
        Computed::gauges(move || {
            let each = seen.vaults.iter().filter_map(|vault| {
                Some((labels(["vault"], [vault.vault.clone()]), age(vault.proven?)))
            });
            each.collect()
        }),
    );
    let seen = Arc::clone(status);
    registry.add(
        "resurgam_log_age_seconds",
        "All that the database acknowledged longer ago than this is in the vault",
        &["vault"],
        Computed::gauges(move || {
            let each = seen
                .log
                .iter()
                .filter_map(|log| Some((labels(["vault"], [log.vault.clone()]), age(log.until?))));
            each.collect()
        }),
    );
}

fn postgres(registry: &mut Registry, status: &Arc<Status>) {
    let of = |value: fn(&Postgres) -> Option<f64>| {
        let status = Arc::clone(status);
        Computed::gauge(move || value(status.postgres.as_ref()?))
    };
    registry.add(
        "resurgam_postgres_failover_is_safe",
        "1 when a failover now would lose nothing that was acknowledged",
        &[],
        of(|postgres| Some(flag(postgres.complete.is_some()))),
    );
    registry.add(
        "resurgam_postgres_epoch",
        "The number of the present reign: it grows with each failover",
        &[],
        of(|postgres| Some(count(u64::try_from(postgres.epoch.0).unwrap_or_default()))),
    );
    registry.add(
        "resurgam_postgres_connections",
        "Connections that are taken",
        &[],
        of(|postgres| Some(count(u64::from(postgres.connections.as_ref()?.seats.taken)))),
    );
    let seen = Arc::clone(status);
    registry.add(
        "resurgam_postgres_lag_bytes",
        "How many bytes of log an instance is behind the primary",
        &["instance"],
        Computed::gauges(move || {
            let instances = seen.postgres.iter().flat_map(|postgres| &postgres.instances);
            let each = instances.filter_map(|instance| {
                let name = instance.name.to_string();
                Some((labels(["instance"], [name]), count(instance.lag_bytes?)))
            });
            each.collect()
        }),
    );
}

fn labels<const N: usize>(names: [&'static str; N], values: [String; N]) -> Named<N> {
    let mut values = values.into_iter();
    names.map(|name| (name, Cow::Owned(values.next().unwrap_or_default())))
}

fn flag(set: bool) -> f64 {
    if set { 1.0 } else { 0.0 }
}

#[allow(clippy::cast_precision_loss, reason = "a figure for people")]
fn count(number: u64) -> f64 {
    number as f64
}

fn seconds(ms: u64) -> f64 {
    count(ms) / 1000.0
}

#[cfg(test)]
mod tests {
    use resurgam_metrics::Format;
    use resurgam_model::{Scenario, Severity};

    use super::*;
    use crate::disk::Space;
    use crate::exposure::Exposure;
    use crate::restorer::VaultStanding;

    const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/controller-metrics.md");

    fn now() -> Timestamp {
        "2026-11-30T12:00:00Z".parse().unwrap()
    }

    fn exposed(scenario: Scenario, loss: Loss, recovery_ms: Option<u64>) -> Exposure {
        Exposure {
            scenario,
            severity: Severity::P0,
            loss,
            because: String::new(),
            recovery_ms,
            drills: 1,
            rpo_ms: 1000,
            rto_ms: 60_000,
        }
    }

    fn status() -> Status {
        Status {
            deployment: "d".to_owned(),
            kind: "local/sqlite".to_owned(),
            ready: true,
            api: String::new(),
            components: Vec::new(),
            pool: None,
            postgres: None,
            bus: None,
            log: Vec::new(),
            vaults: vec![VaultStanding {
                vault: "near".to_owned(),
                newest: Some(Timestamp::from_second(now().as_second() - 90).unwrap()),
                proven: None,
                error: None,
            }],
            exposure: vec![
                exposed(Scenario::FullCluster, Loss::Everything, None),
                exposed(Scenario::Api, Loss::Nothing, Some(1500)),
                exposed(Scenario::PostgresPrimary, Loss::Unknown, None),
                exposed(Scenario::PostgresRestore, Loss::UpTo { ms: 2500 }, None),
            ],
            disk: Some(Space {
                free: 7_000_000,
                total: 9_000_000,
                wanted: 1_000_000,
                low_since: None,
            }),
            notify: Vec::new(),
            incidents: Vec::new(),
        }
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let text = registry(status(), now()).encode(Format::Prometheus);
        let has = |line: &str| text.lines().any(|l| l == line);
        for line in [
            "resurgam_deployment_ready 1",
            "resurgam_disk_free_bytes 7000000",
            "resurgam_disk_wanted_bytes 1000000",
            "resurgam_exposure_loss_seconds{scenario=\"full-cluster\"} +Inf",
            "resurgam_exposure_loss_seconds{scenario=\"api\"} 0",
            "resurgam_exposure_loss_seconds{scenario=\"postgres-restore\"} 2.5",
            "resurgam_exposure_recovery_seconds{scenario=\"api\"} 1.5",
            "resurgam_objective_seconds{scenario=\"api\",objective=\"rto\"} 60",
            "resurgam_incidents_open{scenario=\"api\",severity=\"P0\"} 0",
            "resurgam_backup_age_seconds{vault=\"near\"} 90",
        ] {
            assert!(has(line), "{line}\n{text}");
        }
        assert!(!text.contains("loss_seconds{scenario=\"postgres-primary\"}"), "{text}");
        assert!(!text.contains("resurgam_backup_proven_age_seconds{"), "{text}");
        assert!(!text.lines().any(|l| l.starts_with("resurgam_postgres_epoch ")), "{text}");
    }

    #[test]
    fn the_document_about_these_metrics_is_up_to_date() {
        let mut text = "# Metrics of the controller\n\nWhat `GET /metrics` tells at the controller, whose address is in `controller.json` in the state folder;\n\
            `deployment.controller_port` gives it a port of your choice. Made from the code by\n\
            `UPDATE_DOCS=1 cargo test -p resurgam-recovery metrics`. What is not known is left out.\n\
            The roles of the platform have [figures of their own](metrics.md).\n\n\
            | metric | kind | labels | meaning |\n|---|---|---|---|\n"
            .to_owned();
        for entry in registry(status(), now()).entries() {
            let labels: Vec<_> = entry.labels.iter().map(|label| format!("`{label}`")).collect();
            let labels = labels.join(", ");
            text.push_str(&format!(
                "| `{}` | {} | {labels} | {} |\n",
                entry.name, entry.kind, entry.help
            ));
        }
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(FILE, &text).unwrap();
        }
        assert!(
            std::fs::read_to_string(FILE).unwrap_or_default() == text,
            "docs/controller-metrics.md is not what the code says; renew it and look at the difference:\n\n    \
             UPDATE_DOCS=1 cargo test -p resurgam-recovery metrics\n"
        );
    }
}
