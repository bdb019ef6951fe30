//! `/tasks`: hand in, look at, claim, and say what became of them.

use axum::Json as Answer;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use resurgam_client::problem::code;
use resurgam_client::wire::{
    ClaimRequest, Completions, ExtendRequest, Failures, Leases, Outcomes, Pending, PendingQuery,
    TaskBatch, TaskList, TaskWait,
};
use resurgam_model::TaskId;
use resurgam_model::task::{
    Completion, Failure, Lease, NewTask, Outcome, Submitted, Task, TaskQuery,
};
use resurgam_store::Counted;
use tokio::time::Instant;

use super::access::{Caller, Own};
use super::body::{Json, Parameters, PathId};
use super::route::Route;
use super::{App, Shared, check, observe};
use crate::claims::claim_until;
use crate::problem::Problem;

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::get("/tasks", list).about("Tasks in the order in which they were handed in"),
        Route::post("/tasks", submit)
            .about("Hands in one task")
            .answers::<Submitted>(StatusCode::CREATED, "A new task")
            .answers::<Submitted>(StatusCode::OK, "The key was known: this is the earlier task")
            .header(StatusCode::CREATED, "location", "The path of the task")
            .header(StatusCode::OK, "location", "The path of the task"),
        Route::post("/tasks/batch", submit_batch).about("Hands in tasks, all of them or none"),
        Route::get("/tasks/pending", pending).about("Counts, as a whole and by capability"),
        Route::post("/tasks/claim", claim)
            .about("Takes leases on tasks, waiting for one if asked to")
            .details(
                "The agent must be registered under this `instance`. One that drains or is \
                 unhealthy is given nothing, but may wait until that is over.",
            )
            .fails(&[code::UNKNOWN_AGENT]),
        Route::post("/tasks/extend", extend).about("Lets leases last longer"),
        Route::post("/tasks/complete", complete).about("Ends tasks with their results").details(
            "The `reply_to` of each gets a `task.completed` message in the same transaction. \
                 An expired lease that nobody has taken back yet still counts.",
        ),
        Route::post("/tasks/fail", fail).about("Ends tries that failed").details(
            "A task goes back to the queue after the wait of its retry policy. With `\"retry\": false`, or when \
                 its tries are used up, it is dead, and its `reply_to` gets a `task.dead` message.",
        ),
        Route::get("/tasks/{id}", one)
            .about("One task, waiting until it is over if asked to")
            .fails(&[code::NOT_FOUND]),
    ]
}

pub(super) async fn submit(
    State(app): Shared,
    Json(task): Json<NewTask>,
) -> Result<Response, Problem> {
    check::task("", &task, &app.settings.limits)?;
    let submitted = accept(&app, std::slice::from_ref(&task)).await?;
    let submitted = submitted.first().copied().ok_or_else(Problem::internal)?;
    let status = if submitted.created { StatusCode::CREATED } else { StatusCode::OK };
    let mut response = (status, Answer(submitted)).into_response();
    if let Ok(location) = HeaderValue::from_str(&format!("/tasks/{}", submitted.id)) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

pub(super) async fn submit_batch(
    State(app): Shared,
    Json(batch): Json<TaskBatch<Vec<NewTask>>>,
) -> Result<Answer<TaskList<Vec<Submitted>>>, Problem> {
    check::count("tasks", batch.tasks.len())?;
    for (index, task) in batch.tasks.iter().enumerate() {
        check::task(&format!("tasks[{index}]."), task, &app.settings.limits)?;
    }
    if batch.tasks.is_empty() {
        return Ok(Answer(TaskList { tasks: Vec::new() }));
    }
    Ok(Answer(TaskList { tasks: accept(&app, &batch.tasks).await? }))
}

async fn accept(app: &App, tasks: &[NewTask]) -> Result<Vec<Submitted>, Problem> {
    Ok(app.store.submit(tasks).await?)
}

pub(super) async fn list(
    State(app): Shared,
    Parameters(query): Parameters<TaskQuery>,
) -> Result<Answer<TaskList<Vec<Task>>>, Problem> {
    check::task_query(&query)?;
    Ok(Answer(TaskList { tasks: app.store.tasks(&query).await? }))
}

pub(super) async fn one(
    State(app): Shared,
    PathId(id): PathId<TaskId>,
    Parameters(TaskWait { wait }): Parameters<TaskWait>,
) -> Result<Answer<Task>, Problem> {
    let until = Instant::now() + check::wait(wait);
    loop {
        let place = app.ended.join(&[id], 1);
        let task = app.store.task(id).await?;
        let task = task.ok_or_else(|| Problem::not_found(format!("there is no task {id}")))?;
        if task.state.is_final() || Instant::now() >= until {
            return Ok(Answer(task));
        }
        tokio::select! {
            () = place.woken() => {}
            () = tokio::time::sleep_until(until) => {}
            () = app.closed() => return Ok(Answer(task)),
        }
    }
}

pub(super) async fn pending(
    State(app): Shared,
    Parameters(PendingQuery { finished }): Parameters<PendingQuery>,
) -> Result<Answer<Pending>, Problem> {
    let mut pending = Pending::default();
    let counted = if finished { Counted::All } else { Counted::Open };
    for (capability, counts) in app.store.task_counts(counted).await? {
        pending.scheduled += counts.scheduled;
        pending.ready += counts.ready;
        pending.running += counts.running;
        pending.capabilities.insert(capability, counts);
    }
    Ok(Answer(pending))
}

pub(super) async fn claim(
    State(app): Shared,
    caller: Caller,
    Json(request): Json<ClaimRequest>,
) -> Result<Answer<Leases<Vec<Lease>>>, Problem> {
    let (claim, wait) = request.split();
    check::claim(&claim)?;
    observe::this_agent(&claim.agent);
    caller.may_act_as(&claim.agent)?;
    let until = Instant::now() + check::wait(wait);
    let leases = claim_until(&*app.store, &app.claims, &claim, until, app.closed()).await?;
    Ok(Answer(Leases { leases }))
}

pub(super) async fn extend(
    State(app): Shared,
    caller: Caller,
    Json(request): Json<ExtendRequest>,
) -> Result<Answer<Outcomes<Vec<Outcome>>>, Problem> {
    check::count("leases", request.leases.len())?;
    check::lease(request.lease)?;
    request.note.iter().try_for_each(|note| check::text("note", note))?;
    let own = Own::of(&app, &caller, request.leases, |lease| *lease).await?;
    let outcomes = match &*own.items {
        [] => Vec::new(),
        leases => {
            let outcomes = app.store.extend(leases, request.lease).await?;
            if let Some(note) = &request.note {
                app.store.note(leases, note).await?;
            }
            outcomes
        }
    };
    Ok(Answer(Outcomes { outcomes: own.answer(outcomes) }))
}

pub(super) async fn complete(
    State(app): Shared,
    caller: Caller,
    Json(request): Json<Completions<Vec<Completion>>>,
) -> Result<Answer<Outcomes<Vec<Outcome>>>, Problem> {
    check::completions(&request.completions, &app.settings.limits)?;
    let own = Own::of(&app, &caller, request.completions, |done| done.lease).await?;
    if own.items.is_empty() {
        return Ok(Answer(Outcomes { outcomes: own.answer(Vec::new()) }));
    }
    let outcomes = app.store.complete(&own.items).await?;
    app.streams.ended(own.items.iter().map(|completion| completion.lease));
    // Each may have sent a message to its `reply_to`.
    app.readers.wake_all();
    ended(&app, own.items.iter().map(|done| done.lease.task));
    Ok(Answer(Outcomes { outcomes: own.answer(outcomes) }))
}

pub(super) async fn fail(
    State(app): Shared,
    caller: Caller,
    Json(mut request): Json<Failures<Vec<Failure>>>,
) -> Result<Answer<Outcomes<Vec<Outcome>>>, Problem> {
    check::failures(&mut request.failures, &app.settings.limits)?;
    let own = Own::of(&app, &caller, request.failures, |failure| failure.lease).await?;
    if own.items.is_empty() {
        return Ok(Answer(Outcomes { outcomes: own.answer(Vec::new()) }));
    }
    let outcomes = app.store.fail(&own.items).await?;
    app.streams.ended(own.items.iter().map(|failure| failure.lease));
    app.readers.wake_all();
    ended(&app, own.items.iter().map(|failure| failure.lease.task));
    Ok(Answer(Outcomes { outcomes: own.answer(outcomes) }))
}

/// Tells those who wait for these tasks to be over that they may be.
fn ended(app: &App, tasks: impl Iterator<Item = TaskId>) {
    if !app.ended.is_empty() {
        tasks.for_each(|task| app.ended.wake(&task, usize::MAX));
    }
}
