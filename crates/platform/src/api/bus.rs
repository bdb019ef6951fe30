//! `/bus`: which bus carries messages, and the orders of people about it.

use axum::Json as Answer;
use axum::extract::State;
use resurgam_client::wire::{BusReturn, BusSwitch};
use resurgam_model::Timestamp;
use resurgam_model::bus::{BusKind, BusStatus, BusWish};
use resurgam_model::plan::Bus;

use super::access::Caller;
use super::body::Json;
use super::route::Route;
use super::{App, Shared, check};
use crate::problem::Problem;

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::get("/bus", status).about("How the buses are, and which of them carries messages"),
        Route::post("/bus/switch", switch)
            .about("Has messages take another bus, until `/bus/return`")
            .details(
                "What went over the bus before is delivered first, as far as it can be. While \
                 the bus that is ordered cannot be used, the others carry on.",
            ),
        Route::post("/bus/return", return_).about("Has messages take the order of the plan again"),
    ]
}

async fn look(app: &App) -> Result<BusStatus, Problem> {
    let record = app.store.bus().await?;
    Ok(BusStatus {
        order: app.settings.bus.order.clone(),
        state: record.state.filter(|_| has_brokers(&app.settings.bus)),
        wish: record.wish,
        relay: record.relay,
        outbox: app.store.outbox().await?,
    })
}

fn has_brokers(bus: &Bus) -> bool {
    bus.order.iter().any(|kind| *kind != BusKind::Embedded)
}

async fn status(State(app): Shared) -> Result<Answer<BusStatus>, Problem> {
    look(&app).await.map(Answer)
}

async fn switch(
    State(app): Shared,
    caller: Caller,
    Json(BusSwitch { to, reason }): Json<BusSwitch>,
) -> Result<Answer<BusStatus>, Problem> {
    let order = &app.settings.bus.order;
    if !order.contains(&to) {
        let known: Vec<_> = order.iter().map(|kind| kind.as_str()).collect();
        return Err(Problem::invalid_field(format!(
            "to: the plan has no bus {to}; it has {}",
            known.join(", ")
        )));
    }
    caller.note(format!("to {to}"));
    wish(&app, &caller, Some(to), reason).await
}

async fn return_(
    State(app): Shared,
    caller: Caller,
    Json(BusReturn { reason }): Json<BusReturn>,
) -> Result<Answer<BusStatus>, Problem> {
    wish(&app, &caller, None, reason).await
}

async fn wish(
    app: &App,
    caller: &Caller,
    to: Option<BusKind>,
    reason: Option<String>,
) -> Result<Answer<BusStatus>, Problem> {
    if let Some(reason) = &reason {
        check::text("reason", reason)?;
    }
    if !has_brokers(&app.settings.bus) {
        return Err(Problem::invalid_field(
            "the plan has no bus but the embedded one, so there is nothing to switch".to_owned(),
        ));
    }
    let actor = caller.actor();
    let by = actor.name.unwrap_or_else(|| actor.kind.as_str().to_owned());
    app.store.wish(Some(&BusWish { to, by, reason, at: Timestamp::now() })).await?;
    look(app).await.map(Answer)
}
