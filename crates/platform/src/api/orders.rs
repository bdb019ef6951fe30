//! `/tasks/cancel` and `/tasks/requeue`: what people order about tasks.

use axum::Json as Answer;
use axum::extract::State;
use resurgam_client::wire::{Changed, Ordered, TaskFilter, TaskOrder};
use resurgam_model::TaskId;
use resurgam_model::task::{Change, TaskQuery, TaskState};

use super::body::Json;
use super::check::MAX_ITEMS;
use super::route::Route;
use super::{App, Shared, check};
use crate::problem::Problem;

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::post("/tasks/cancel", cancel).about("Takes back tasks that are not over").details(
            "Also those under a lease: their holders learn of it at their next word. The \
                 `reply_to` of each gets a `task.cancelled` message. Give `tasks`, or a `filter`, \
                 of which up to 1000 tasks are cancelled; `more` says whether to ask again.",
        ),
        Route::post("/tasks/requeue", requeue)
            .about("Makes dead or cancelled tasks ready again, with all their tries")
            .details(
                "Tasks of workflows stay as they are. Give `tasks`, or a `filter`, of which up to \
                 1000 tasks are requeued; `more` says whether to ask again.",
            ),
    ]
}

/// The states that an order by filter is about when the filter names none.
const OPEN: [TaskState; 3] = [TaskState::Scheduled, TaskState::Ready, TaskState::Running];
const OVER: [TaskState; 2] = [TaskState::Dead, TaskState::Cancelled];

async fn cancel(
    State(app): Shared,
    Json(order): Json<TaskOrder>,
) -> Result<Answer<Ordered>, Problem> {
    let reason = order.reason.clone().unwrap_or_else(|| "cancelled by order".to_owned());
    check::text("reason", &reason)?;
    let (tasks, more) = chosen(&app, &order, &OPEN).await?;
    let changes = match &*tasks {
        [] => Vec::new(),
        tasks => app.store.cancel(tasks, &reason).await?,
    };
    app.readers.wake_all();
    Ok(Answer(ordered(&app, &tasks, changes, more)))
}

async fn requeue(
    State(app): Shared,
    Json(order): Json<TaskOrder>,
) -> Result<Answer<Ordered>, Problem> {
    if order.reason.is_some() {
        return Err(Problem::invalid_field("reason: requeueing needs none; leave it out"));
    }
    let (tasks, more) = chosen(&app, &order, &OVER).await?;
    let changes = match &*tasks {
        [] => Vec::new(),
        tasks => app.store.requeue(tasks).await?,
    };
    Ok(Answer(ordered(&app, &tasks, changes, more)))
}

/// The tasks that an order is about, and whether there may be more.
async fn chosen(
    app: &App,
    order: &TaskOrder,
    states: &[TaskState],
) -> Result<(Vec<TaskId>, bool), Problem> {
    let filter = match (&*order.tasks, &order.filter) {
        (tasks, None) => {
            check::count("tasks", tasks.len())?;
            return Ok((tasks.to_vec(), false));
        }
        ([], Some(filter)) => filter,
        (_, Some(_)) => {
            return Err(Problem::invalid_field("give either tasks or a filter, not both"));
        }
    };
    if *filter == TaskFilter::default() {
        return Err(Problem::invalid_field(
            "filter: name at least one of state, capability, key and tag; all tasks at once is \
             more than anybody means",
        ));
    }
    check::filter(filter)?;
    let TaskFilter { state, capability, key, tag } = filter.clone();
    let states = match state {
        Some(state) if states.contains(&state) => vec![state],
        Some(state) => {
            let can: Vec<_> = states.iter().map(|state| state.as_str()).collect();
            return Err(Problem::invalid_field(format!(
                "filter.state is {}; this can be done to tasks that are {}",
                state.as_str(),
                can.join(" or ")
            )));
        }
        None => states.to_vec(),
    };
    let mut tasks = Vec::new();
    for state in states {
        let limit = MAX_ITEMS.saturating_sub(tasks.len());
        if limit == 0 {
            break;
        }
        let query = TaskQuery {
            state: Some(state),
            capability: capability.clone(),
            key: key.clone(),
            tag: tag.clone(),
            after: None,
            limit: u32::try_from(limit).unwrap_or(u32::MAX),
        };
        tasks.extend(app.store.tasks(&query).await?.into_iter().map(|task| task.id));
    }
    let more = tasks.len() >= MAX_ITEMS;
    Ok((tasks, more))
}

fn ordered(app: &App, tasks: &[TaskId], changes: Vec<Change>, more: bool) -> Ordered {
    let tasks: Vec<_> =
        tasks.iter().zip(changes).map(|(task, change)| Changed { task: *task, change }).collect();
    for changed in tasks.iter().filter(|changed| changed.change == Change::Changed) {
        app.ended.wake(&changed.task, usize::MAX);
    }
    Ordered { tasks, more }
}
