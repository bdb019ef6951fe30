//! `/health`: whether the process lives, and whether it can work.

use std::collections::BTreeMap;
use std::fmt::Display;

use axum::Json as Answer;
use axum::extract::State;
use axum::http::StatusCode;
use resurgam_client::wire::{CheckResult, Health, Readiness};
use resurgam_model::{Duration, Role};
use tokio::time::Instant;

use super::route::Route;
use super::{Schema, Shared};
use crate::problem::Problem;

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::get("/health", alive)
            .about("Whether the process lives")
            .details("It does not touch the store.")
            .served_by(&Role::ALL),
        Route::get("/health/ready", ready)
            .about("Whether the process can work")
            .details("Writes to the store and reads it back.")
            .served_by(&Role::ALL)
            .answers::<Readiness>(StatusCode::OK, "It can work")
            .answers::<Readiness>(StatusCode::SERVICE_UNAVAILABLE, "It cannot work at present"),
    ]
}

/// Touches nothing but this process: who cannot reach the store is alive all the same, and to
/// restart it would help nobody.
pub(super) async fn alive(State(app): Shared) -> Answer<Health> {
    Answer(Health {
        status: "ok".to_owned(),
        roles: app.settings.roles.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        access: app.settings.access.mode,
    })
}

/// Writes to the store and reads it back, and asks the bus, both within the time allowed.
pub(super) async fn ready(State(app): Shared) -> (StatusCode, Answer<Readiness>) {
    let timeout = app.settings.check_timeout;
    let store = async {
        let schema = app.migrated.borrow().clone();
        if let Schema::Pending(why) = schema {
            return Err(why.to_owned());
        }
        app.store.check().await.map(|found| found.location).map_err(|error| public(&error.into()))
    };
    let bus = async {
        let schema = app.migrated.borrow().clone();
        if let Schema::Pending(why) = schema {
            return Err(why.to_owned());
        }
        app.bus.check().await.map(|()| "it can be used").map_err(|error| public(&error.into()))
    };
    let (store, bus) = tokio::join!(
        measured(app.store.kind(), timeout, store),
        measured(app.bus.kind(), timeout, bus)
    );
    let ready = store.ok && bus.ok;
    let checks = BTreeMap::from([("store".to_owned(), store), ("bus".to_owned(), bus)]);
    let (code, status) = if ready {
        (StatusCode::OK, "ready")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "unready")
    };
    (code, Answer(Readiness { status: status.to_owned(), checks }))
}

fn public(problem: &Problem) -> String {
    problem.detail.clone()
}

async fn measured<T: Display>(
    kind: &str,
    timeout: Duration,
    check: impl Future<Output = Result<T, String>>,
) -> CheckResult {
    let start = Instant::now();
    let (ok, detail) = match tokio::time::timeout(timeout.0, check).await {
        Ok(Ok(detail)) => (true, detail.to_string()),
        Ok(Err(detail)) => (false, detail),
        Err(_) => (false, format!("no answer within {timeout}")),
    };
    let millis = Duration(start.elapsed()).as_millis();
    CheckResult { ok, kind: kind.to_owned(), millis, detail }
}
