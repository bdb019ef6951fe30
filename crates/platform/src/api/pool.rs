//! `/pool` and `/tasks/stuck`: what a supervisor has to know.
//!
//! Both are computed from the store for each request, within a bounded number of rows. Nothing is
//! kept between two, so that any process can answer, and answers the same.

use std::collections::BTreeMap;

use axum::Json as Answer;
use axum::extract::State;
use resurgam_client::wire::{PoolReport, StuckList};
use resurgam_model::pool::required;
use resurgam_model::stuck::{FLOOR, StuckTask, stuck};
use resurgam_model::{Capability, Duration, Role};
use schemars::JsonSchema;

use super::body::Parameters;
use super::route::Route;
use super::{App, Shared};
use crate::problem::Problem;

/// What came within this time tells the rate.
const WINDOW: Duration = Duration::from_secs(30);
/// What waits is to be done within this time, unless the caller says otherwise.
const DRAIN_WITHIN: Duration = Duration::from_secs(30);
/// So many capabilities can be asked about at once.
const MOST: usize = 256;
/// So many long-running tasks are judged.
const JUDGED: u32 = 1000;

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::get("/pool", report)
            .about("How many workers the tasks of some capabilities need")
            .details(
                "`required` is rate × seconds per task ÷ places of a worker, and what is needed \
                 to have all that waits done within `drain_within`.",
            )
            .query::<PoolParameters>()
            .served_by(&Role::ALL),
        Route::get("/tasks/stuck", stuck_tasks)
            .about("Tasks that run for much longer than usual")
            .details(
                "Ten times the median of their capability, and a minute at least; an hour while \
                 fewer than five have ended lately.",
            ),
    ]
}

/// The parameters of `GET /pool`.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "describes the parameters, which are read one by one")]
struct PoolParameters {
    /// What the workers can do. Can be given several times.
    #[schemars(length(min = 1, max = 256))]
    capability: Vec<Capability>,
    /// How many tasks a worker works on at once; as those that are there by default.
    #[schemars(range(min = 1, max = 100_000))]
    concurrency: Option<u32>,
    /// What waits is to be done within this time, 100 ms at least; 30 s by default.
    drain_within: Option<Duration>,
}

async fn report(
    State(app): Shared,
    Parameters(parameters): Parameters<Vec<(String, String)>>,
) -> Result<Answer<PoolReport>, Problem> {
    let mut capabilities = Vec::new();
    let (mut concurrency, mut drain_within) = (None, DRAIN_WITHIN);
    for (name, value) in parameters {
        let wrong = |why: String| Problem::invalid_parameter(format!("{name}: {why}"));
        match name.as_str() {
            "capability" => {
                capabilities
                    .push(Capability::new(value).map_err(|error| wrong(error.to_string()))?);
            }
            "concurrency" => {
                let given = value.parse().ok().filter(|given| (1..=100_000).contains(given));
                let why = || wrong("use a whole number from 1 to 100000".to_owned());
                concurrency = Some(given.ok_or_else(why)?);
            }
            "drain_within" => {
                drain_within = value
                    .parse::<Duration>()
                    .map_err(|error| wrong(error.to_string()))
                    .and_then(|given| match given >= Duration::from_millis(100) {
                        true => Ok(given),
                        false => Err(wrong("use at least 100ms".to_owned())),
                    })?;
            }
            _ => {
                return Err(Problem::invalid_parameter(format!(
                    "there is no parameter {:?}; use capability, concurrency and drain_within",
                    name.chars().take(60).collect::<String>()
                )));
            }
        }
    }
    if capabilities.is_empty() || capabilities.len() > MOST {
        return Err(Problem::invalid_parameter(format!(
            "capability: name 1 to {MOST} capabilities, one parameter each"
        )));
    }
    let demand = app.store.demand(&capabilities, WINDOW).await?;
    // Without a word from the caller the workers are taken to be like those that are there.
    let concurrency = concurrency.unwrap_or_else(|| rounded(demand.concurrency));
    let (required, reason) = required(&demand, concurrency, drain_within);
    Ok(Answer(PoolReport {
        capabilities,
        demand,
        places: concurrency,
        drain_within,
        required,
        reason,
    }))
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "such casts are cut to the nearest number that there is"
)]
fn rounded(concurrency: f64) -> u32 {
    (concurrency.round() as u32).max(1)
}

async fn stuck_tasks(State(app): Shared) -> Result<Answer<StuckList>, Problem> {
    Ok(Answer(StuckList { tasks: find_stuck(&app).await? }))
}

/// The tasks that are stuck now.
pub(crate) async fn find_stuck(app: &App) -> resurgam_store::Result<Vec<StuckTask>> {
    let running = app.store.long_running(FLOOR, JUDGED).await?;
    if running.is_empty() {
        return Ok(Vec::new());
    }
    let usual: BTreeMap<_, _> = app.store.usual().await?.into_iter().collect();
    Ok(stuck(running, |capability| usual.get(capability).copied()))
}
