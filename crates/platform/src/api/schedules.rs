//! `/schedules`: tasks that are handed in again and again.

use axum::Json as Answer;
use axum::extract::State;
use axum::response::NoContent;
use resurgam_client::problem::code;
use resurgam_client::wire::ScheduleList;
use resurgam_model::ScheduleName;
use resurgam_model::schedule::{NewSchedule, Schedule};

use super::body::{Json, PathId};
use super::route::Route;
use super::{Shared, check};
use crate::problem::Problem;

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::get("/schedules", list).about("All schedules"),
        Route::put("/schedules/{*name}", put).about("Makes a schedule, or changes it").details(
            "It goes on with the first time after now. Each time hands in one task, however \
                 many processes there are.",
        ),
        Route::get("/schedules/{*name}", one).about("One schedule").fails(&[code::NOT_FOUND]),
        Route::delete("/schedules/{*name}", remove)
            .about("Takes a schedule away; tasks that it handed in stay")
            .fails(&[code::NOT_FOUND]),
    ]
}

fn no_schedule(name: &ScheduleName) -> Problem {
    Problem::not_found(format!("there is no schedule {name}"))
}

async fn list(State(app): Shared) -> Result<Answer<ScheduleList<Vec<Schedule>>>, Problem> {
    Ok(Answer(ScheduleList { schedules: app.store.schedules().await? }))
}

async fn put(
    State(app): Shared,
    PathId(name): PathId<ScheduleName>,
    Json(new): Json<NewSchedule>,
) -> Result<Answer<Schedule>, Problem> {
    check::schedule(&new, &app.settings.limits)?;
    Ok(Answer(app.store.put_schedule(&name, &new).await?))
}

async fn one(
    State(app): Shared,
    PathId(name): PathId<ScheduleName>,
) -> Result<Answer<Schedule>, Problem> {
    app.store.schedule(&name).await?.map(Answer).ok_or_else(|| no_schedule(&name))
}

async fn remove(
    State(app): Shared,
    PathId(name): PathId<ScheduleName>,
) -> Result<NoContent, Problem> {
    if app.store.remove_schedule(&name).await? { Ok(NoContent) } else { Err(no_schedule(&name)) }
}
