//! `/workflows` and `/definitions`: start, look at, tell.

use std::sync::Arc;

use axum::Json as Answer;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, NoContent, Response};
use resurgam_client::problem::code;
use resurgam_client::wire::{
    CancelWorkflow, DefinitionList, DefinitionQuery, StepQuery, WorkflowList, WorkflowSteps,
};
use resurgam_model::workflow::{
    DefinitionInfo, ItemQuery, NewSignal, StartWorkflow, StartedWorkflow, Workflow, WorkflowDetail,
    WorkflowQuery, WorkflowStepView,
};
use resurgam_model::{Capability, Payload, WorkflowId};
use resurgam_store::workflows::{Defined, NewWorkflow, Told};
use resurgam_workflow::Definition;
use resurgam_workflow::check::Problems;
use resurgam_workflow::definition::{Action, Wait};
use serde_json::Value;

use super::body::{Json, Parameters, PathId};
use super::route::Route;
use super::{App, Shared, check};
use crate::problem::Problem;

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::get("/workflows", list).about("Workflows in the order in which they were started"),
        Route::post("/workflows", start)
            .about("Starts a workflow, by the name of a definition or with a definition")
            .answers::<StartedWorkflow>(StatusCode::CREATED, "A new workflow")
            .answers::<StartedWorkflow>(StatusCode::OK, "The key was known: the earlier workflow")
            .header(StatusCode::CREATED, "location", "The path of the workflow")
            .header(StatusCode::OK, "location", "The path of the workflow")
            .fails(&[code::NOT_FOUND]),
        Route::get("/workflows/{id}", one)
            .about("One workflow with its definition and its steps")
            .details("Outputs of more than 64 KiB are left out of the steps.")
            .fails(&[code::NOT_FOUND]),
        Route::get("/workflows/{id}/step", step)
            .about("One step with its whole output, and a page of its items")
            .details("The step itself comes first, unless `after` is given.")
            .fails(&[code::NOT_FOUND]),
        Route::post("/workflows/{id}/cancel", cancel)
            .about("Has a workflow come to its end and undo what was completed")
            .fails(&[code::NOT_FOUND, code::WORKFLOW_STATE]),
        Route::post("/workflows/{id}/retry", retry)
            .about("Lets a failed or cancelled workflow go on from where it stopped")
            .fails(&[code::NOT_FOUND, code::WORKFLOW_STATE]),
        Route::post("/workflows/{id}/signal", signal)
            .about("Leaves a signal, or the answer to an approval")
            .details(
                "It stays until a step takes it. For an approval, `name` is the step and the \
                 payload an object with `approved`, and perhaps `by` and `comment`.",
            )
            .fails(&[code::NOT_FOUND, code::WORKFLOW_STATE]),
        Route::get("/definitions", definitions)
            .about("The registered definitions, all versions, in the order of their names"),
        Route::get("/definitions/{name}", definition)
            .about("One definition, the latest version unless one is named")
            .fails(&[code::NOT_FOUND]),
        Route::put("/definitions/{name}", define)
            .about("Registers a definition")
            .details("Name and version together are taken once and for all.")
            .answers::<DefinitionInfo>(StatusCode::CREATED, "It is registered")
            .answers::<DefinitionInfo>(StatusCode::OK, "The very same was registered before")
            .fails(&[code::DEFINITION_TAKEN]),
    ]
}

async fn start(State(app): Shared, Json(start): Json<StartWorkflow>) -> Result<Response, Problem> {
    check::payload("input", &start.input, &app.settings.limits)?;
    if let Some(key) = &start.idempotency_key {
        check::key("idempotency_key", key)?;
    }
    let definition = match (start.name, start.definition) {
        (Some(name), None) => named(&app, &name, start.version).await?,
        (None, Some(definition)) => {
            if start.version.is_some() {
                let what = "version goes with a name; the definition has its own";
                return Err(Problem::invalid_field(what));
            }
            Arc::new(read(definition, &app)?)
        }
        _ => {
            let what = "give either the name of a definition or a definition";
            return Err(Problem::invalid_field(what));
        }
    };
    let input = value(&start.input)?;
    let input = definition.check_input(input).map_err(|problems| refused(&problems))?;
    let input = Payload::from_json(input.to_string()).map_err(|_| Problem::internal())?;
    let new = NewWorkflow { definition, input, idempotency_key: start.idempotency_key };
    let started = app.store.start_workflow(&new).await?;
    let status = if started.created { StatusCode::CREATED } else { StatusCode::OK };
    let mut response = (status, Answer(started)).into_response();
    if let Ok(location) = HeaderValue::from_str(&format!("/workflows/{}", started.id)) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// The definition of that name.
async fn named(app: &App, name: &str, version: Option<u32>) -> Result<Arc<Definition>, Problem> {
    check::key("name", name)?;
    let found = app.store.definition(name, version).await?;
    let Some(json) = found.and_then(|found| found.definition) else {
        let version = version.map(|version| format!(" in version {version}")).unwrap_or_default();
        return Err(Problem::not_found(format!(
            "there is no definition {name}{version}; register it with PUT /definitions/{name}"
        )));
    };
    // What was registered was checked then, perhaps by another version of the program.
    Definition::from_json(value(&json)?).map(Arc::new).map_err(|problems| refused(&problems))
}

fn read(definition: Value, app: &App) -> Result<Definition, Problem> {
    let size = definition.to_string().len();
    check::size("definition", size, &app.settings.limits)?;
    Definition::from_json(definition).map_err(|problems| refused(&problems))
}

fn value(payload: &Payload) -> Result<Value, Problem> {
    serde_json::from_str(payload.json())
        .map_err(|error| Problem::invalid_field(format!("it is nested too deeply: {error}")))
}

fn refused(problems: &Problems) -> Problem {
    Problem::invalid_field(problems.to_string())
}

async fn list(
    State(app): Shared,
    Parameters(query): Parameters<WorkflowQuery>,
) -> Result<Answer<WorkflowList<Vec<Workflow>>>, Problem> {
    check::parameter("name", query.name.as_deref())?;
    Ok(Answer(WorkflowList { workflows: app.store.workflows(&query).await? }))
}

async fn one(
    State(app): Shared,
    PathId(id): PathId<WorkflowId>,
) -> Result<Answer<WorkflowDetail>, Problem> {
    app.store.workflow(id).await?.map(Answer).ok_or_else(|| unknown(id))
}

async fn step(
    State(app): Shared,
    PathId(id): PathId<WorkflowId>,
    Parameters(query): Parameters<StepQuery>,
) -> Result<Answer<WorkflowSteps<Vec<WorkflowStepView>>>, Problem> {
    check::parameter("step", Some(&query.step))?;
    let items = ItemQuery { after: query.after, limit: query.limit };
    let steps = app.store.workflow_step(id, &query.step, &items).await?;
    if steps.is_empty() {
        let detail = app.store.workflow(id).await?.ok_or_else(|| unknown(id))?;
        let definition = Definition::from_json(value(&detail.definition)?);
        let known = definition
            .is_ok_and(|definition| definition.steps.iter().any(|s| s.id.as_str() == query.step));
        if !known {
            let what = format!("workflow {id} has no step {}", query.step);
            return Err(Problem::not_found(what));
        }
    }
    Ok(Answer(WorkflowSteps { steps }))
}

async fn cancel(
    State(app): Shared,
    PathId(id): PathId<WorkflowId>,
    Json(request): Json<CancelWorkflow>,
) -> Result<NoContent, Problem> {
    let reason = request.reason.as_deref().unwrap_or("it was cancelled");
    check::text("reason", reason)?;
    told(id, app.store.cancel_workflow(id, reason).await?, "it is over")
}

async fn retry(State(app): Shared, PathId(id): PathId<WorkflowId>) -> Result<NoContent, Problem> {
    let why = "only a failed or cancelled one can be retried";
    told(id, app.store.retry_workflow(id).await?, why)
}

async fn signal(
    State(app): Shared,
    PathId(id): PathId<WorkflowId>,
    Json(signal): Json<NewSignal>,
) -> Result<NoContent, Problem> {
    check::key("name", &signal.name)?;
    if let Some(id) = &signal.id {
        check::key("id", id)?;
    }
    check::payload("payload", &signal.payload, &app.settings.limits)?;
    let detail = app.store.workflow(id).await?.ok_or_else(|| unknown(id))?;
    let definition =
        Definition::from_json(value(&detail.definition)?).map_err(|problems| refused(&problems))?;
    let name = signal.name.as_str();
    if !definition.signals().contains(name) {
        let known: Vec<_> = definition.signals().into_iter().collect();
        let known = match known.as_slice() {
            [] => "none".to_owned(),
            known => known.join(", "),
        };
        return Err(Problem::invalid_field(format!(
            "name: no step of this workflow waits for {name:?}; it waits for {known}"
        )));
    }
    let approval = definition.steps.iter().any(|step| {
        step.signal() == Some(name) && matches!(step.action, Action::Wait(Wait::Approval { .. }))
    });
    if approval && value(&signal.payload)?.get("approved").and_then(Value::as_bool).is_none() {
        return Err(Problem::invalid_field(format!(
            "payload: {name} is an approval; give an object with \"approved\": true or false"
        )));
    }
    told(id, app.store.signal_workflow(id, &signal).await?, "it is over")
}

fn told(id: WorkflowId, told: Told, why: &str) -> Result<NoContent, Problem> {
    match told {
        Told::Accepted => Ok(NoContent),
        Told::Unknown => Err(unknown(id)),
        Told::Refused => Err(Problem::workflow_state(format!("workflow {id}: {why}"))),
    }
}

fn unknown(id: WorkflowId) -> Problem {
    Problem::not_found(format!("there is no workflow {id}"))
}

async fn definitions(
    State(app): Shared,
    Parameters(query): Parameters<DefinitionQuery>,
) -> Result<Answer<DefinitionList<Vec<DefinitionInfo>>>, Problem> {
    let after = match (&query.after, query.after_version) {
        (None, None) => None,
        (Some(name), version) => Some((name.as_str(), version.unwrap_or(u32::MAX))),
        (None, Some(_)) => {
            return Err(Problem::invalid_parameter("after_version goes with after"));
        }
    };
    Ok(Answer(DefinitionList { definitions: app.store.definitions(after, query.limit).await? }))
}

async fn definition(
    State(app): Shared,
    PathId(name): PathId<Capability>,
    Parameters(query): Parameters<resurgam_client::wire::VersionQuery>,
) -> Result<Answer<DefinitionInfo>, Problem> {
    let found = app.store.definition(name.as_str(), query.version).await?;
    found.map(Answer).ok_or_else(|| {
        let version = query.version.map(|v| format!(" in version {v}")).unwrap_or_default();
        Problem::not_found(format!("there is no definition {name}{version}"))
    })
}

async fn define(
    State(app): Shared,
    PathId(name): PathId<Capability>,
    Json(body): Json<Value>,
) -> Result<Response, Problem> {
    let definition = read(body, &app)?;
    if definition.name != name.as_str() {
        return Err(Problem::invalid_field(format!(
            "name: the definition is called {:?}, but the path names {name}",
            definition.name
        )));
    }
    let defined = app.store.define(&definition).await?;
    let status = match defined {
        Defined::Created => StatusCode::CREATED,
        Defined::Same => StatusCode::OK,
        Defined::Taken => {
            let version = definition.version;
            return Err(Problem::definition_taken(format!(
                "another definition is registered as {name} in version {version}; give this one \
                 a version of its own"
            )));
        }
    };
    let info = app.store.definition(name.as_str(), Some(definition.version)).await?;
    let info = info.ok_or_else(Problem::internal)?;
    Ok((status, Answer(DefinitionInfo { definition: None, ..info })).into_response())
}
