//! What it would cost if something struck now, as people and Prometheus see it.

use serde_json::{Value, json};

use crate::backup::{back_up, place, scheduled};
use crate::harness::{LONG, Place, Up, until};
use crate::http;

/// What a scenario would lose.
fn loss(up: &Up, place: &Place, scenario: &str) -> Option<Value> {
    let status = up.status(place)?;
    let all = status["exposure"].as_array()?.clone();
    all.into_iter().find(|one| one["scenario"] == scenario)
}

fn figures(up: &Up, place: &Place) -> String {
    let url = format!("{}/metrics", up.controller(place).unwrap());
    http::text(&url).unwrap()
}

fn has(figures: &str, line: &str) -> bool {
    figures.lines().any(|l| l == line)
}

#[test]
fn exposure_follows_standbys_backups_and_the_log() {
    let place = place("[store]\nkind = 'postgres'\n");
    let up = Up::ready(&place);
    let everything = until("the vault is looked into", LONG, &place, || {
        loss(&up, &place, "full-cluster").filter(|one| one["loss"]["loses"] != "unknown")
    });
    assert_eq!(everything["loss"]["loses"], "everything", "{everything:#}");
    let primary = loss(&up, &place, "postgres-primary").unwrap();
    assert_eq!(primary["loss"]["loses"], "nothing", "{primary:#}");
    let text = figures(&up, &place);
    for line in [
        "resurgam_exposure_loss_seconds{scenario=\"full-cluster\"} +Inf",
        "resurgam_exposure_loss_seconds{scenario=\"postgres-primary\"} 0",
        "resurgam_component_up{component=\"postgres-0\",kind=\"postgres\"} 1",
        "resurgam_postgres_failover_is_safe 1",
        "resurgam_deployment_ready 1",
    ] {
        assert!(has(&text, line), "{line}\n{text}");
    }

    back_up(&place);
    let little = until("backup and log are seen", LONG, &place, || {
        loss(&up, &place, "full-cluster")
            .filter(|one| one["because"].as_str().is_some_and(|why| why.contains("log")))
    });
    assert_eq!(little["loss"]["loses"], "up-to", "{little:#}");
    assert!(little["loss"]["ms"].as_u64() < Some(60_000), "{little:#}");
    until("the proof is seen", LONG, &place, || {
        let status = up.status(&place)?;
        (!status["vaults"][0]["proven"].is_null()).then_some(())
    });
    let status = place.finish(&["status"]);
    assert!(status.out.contains("proven by a restore"), "{status:?}");
    assert!(status.out.contains("if it struck now"), "{status:?}");
    let text = figures(&up, &place);
    assert!(text.contains("resurgam_backup_proven_age_seconds{vault=\"here\"}"), "{text}");
    up.process.stop(&place);
}

/// What Prometheus says is found out before it is believed.
#[test]
fn an_alert_of_somebody_else_opens_an_incident() {
    let place = Place::new("[deployment]\nstate_dir = 'state'\n[alerts]\ntoken_file = 'token'\n");
    std::fs::write(place.path("token"), "0123456789abcdef\n").unwrap();
    let up = Up::ready(&place);
    let url = format!("{}/v1/alerts", up.controller(&place).unwrap());
    let alert = |scenario: &str| {
        json!({ "version": "4", "status": "firing", "alerts": [{
            "status": "firing",
            "labels": { "alertname": "RegistryDown", "resurgam_scenario": scenario },
            "annotations": { "summary": "it does not answer me" },
        }] })
    };
    let stranger = http::post_as("0123456789abcdeX", &url, &alert("agent-registry")).unwrap();
    assert_eq!(stranger.status, 401, "{stranger:?}");
    let unknown = http::post_as("0123456789abcdef", &url, &alert("no-such")).unwrap();
    assert_eq!(unknown.status, 400, "{unknown:?}");
    let taken = http::post_as("0123456789abcdef", &url, &alert("agent-registry")).unwrap();
    assert_eq!((taken.status, &taken.body["taken"]), (202, &json!(1)), "{taken:?}");
    let incidents = up.closed_incidents(&place, "agent-registry", &[]);
    let cause = incidents[0]["cause"].as_str().unwrap();
    assert!(
        cause.contains("RegistryDown: it does not answer me (found by alertmanager)"),
        "{cause}"
    );
    assert_eq!(incidents.len(), 1, "{incidents:#?}");
    up.process.stop(&place);
}

#[test]
fn the_controller_is_where_the_plan_says_and_says_what_it_does_not_know() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    let place = scheduled(&format!("controller_port = {port}\n[backup]\nscheduled = false\n"));
    let taken = place.start(&["up"]).end(&place, LONG);
    assert_eq!(taken.status.code(), Some(1), "{taken:?}");
    assert!(taken.err.contains(&port.to_string()), "{taken:?}");
    drop(free);
    let up = Up::ready(&place);
    assert_eq!(up.controller(&place), Some(format!("http://127.0.0.1:{port}")));
    std::fs::write(place.path("password"), "wrong\n").unwrap();
    up.process.stop(&place);
    let up = Up::ready(&place);
    let unknown = until("the vault is looked into", LONG, &place, || {
        loss(&up, &place, "full-cluster")
            .filter(|one| one["because"].as_str().is_some_and(|why| why.contains("cannot be")))
    });
    assert_eq!(unknown["loss"]["loses"], "unknown", "{unknown:#}");
    let text = figures(&up, &place);
    assert!(!text.contains("exposure_loss_seconds{scenario=\"full-cluster\"}"), "{text}");
    assert!(!text.contains("postgres-primary"), "there is none here: {text}");
    up.process.stop(&place);
}
