//! The OpenAPI 3.1 document of the HTTP interface, made from the routes themselves.
//!
//! It is served at `GET /openapi.json` by every process, whatever its part, and kept in
//! `docs/openapi.json`. It always tells of all routes; `x-roles` says which parts serve one, and
//! `x-access` which role its callers need.
//!
//! # How to document a route
//! A route is one entry in the list `routes()` of its module, and the router is built from these
//! lists alone. So a route without an entry does not exist, and one with an entry is documented.
//!
//! ```ignore
//! Route::get("/tasks/{id}", one).about("One task").fails(&[code::NOT_FOUND]),
//! Route::post("/tasks/complete", complete).about("Ends tasks with their results"),
//! ```
//!
//! The handler's types tell the rest: [`Json`](super::body::Json) is the body,
//! [`Parameters`](super::body::Parameters) are those behind the `?`,
//! [`PathId`](super::body::PathId) is what stands in braces in the path (in order),
//! `axum::Json` is the answer with 200, `NoContent` is 204, and each brings the problems that it
//! can give. A handler that gives a `Response` or a `StatusCode` says its answers by hand:
//!
//! ```ignore
//! Route::post("/tasks", submit)
//!     .about("Hands in one task")
//!     .answers::<Submitted>(StatusCode::CREATED, "A new task")
//!     .answers::<Submitted>(StatusCode::OK, "The key was known: this is the earlier task")
//!     .header(StatusCode::CREATED, "location", "The path of the task"),
//! ```
//!
//! - `.served_by(&[Role::Api, Role::Registry])`: which parts serve it; `api` alone by default.
//! - `.fails(&[code::UNKNOWN_AGENT])`: further problems. A new code is one line in the list in
//!   `resurgam_client::problem::code`.
//! - `.details("…")`: what a caller must know beyond `about`.
//! - `.query::<T>()`: the parameters behind the `?` when the handler reads them one by one.
//! - `.answers_as::<String>(StatusCode::OK, "text/plain", "…")`: a body that is not JSON.
//!
//! Types that go over the wire derive [`schemars::JsonSchema`] beside serde's traits; their
//! comments become the descriptions, serde's attributes count (`default`, `rename`, `flatten`,
//! `deny_unknown_fields`, …). What serde does not know is said on the field, and must be what the
//! code checks, because the document is tested against the server with random requests:
//!
//! - a moment: `#[schemars(with = "Moment")]` or `with = "Option<Moment>"` (`model::schema`);
//! - numbers: `#[schemars(range(min = 1, max = 256))]`;
//! - short texts: `#[schemars(with = "Text")]`, or `Key` for those that must not be empty;
//! - lists and other texts: `#[schemars(length(max = 1000))]`;
//! - lengths of time: their bounds in the comment.
//!
//! When the document has changed, renew the file and look at what git shows:
//! `UPDATE_DOCS=1 cargo test -p resurgam-platform openapi`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use resurgam_client::problem::{MEDIA_TYPE, Problem, code};
use resurgam_model::Role;
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::access::rules::{Needs, rule_of};
use super::middleware::needs_no_store;
use super::route::{Describe, Given, Route};

const SCHEMAS: &str = "/components/schemas";

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::get("/openapi.json", openapi)
            .about("This document")
            .served_by(&Role::ALL)
            .answers::<Map<String, Value>>(StatusCode::OK, "OpenAPI 3.1"),
    ]
}

async fn openapi() -> Response {
    static TEXT: LazyLock<String> = LazyLock::new(|| text(&super::routes()));
    ([(header::CONTENT_TYPE, "application/json")], TEXT.as_str()).into_response()
}

/// The document as text.
fn text(routes: &[Route]) -> String {
    // `{:#}` of a JSON value is the form for people.
    format!("{:#}\n", document(routes))
}

/// What is being said of one route.
pub(super) struct Operation<'a> {
    requests: &'a mut SchemaGenerator,
    answers: &'a mut SchemaGenerator,
    /// The names in the path that are not described yet.
    names: Vec<String>,
    parameters: Vec<Value>,
    body: Option<Value>,
    responses: BTreeMap<u16, Map<String, Value>>,
    problems: BTreeSet<&'static str>,
}

impl Operation<'_> {
    /// Its body.
    pub(super) fn body(&mut self, describe: Describe) {
        let schema = describe(self.requests);
        self.body = Some(json!({
            "required": true,
            "content": { "application/json": { "schema": schema } },
        }));
    }

    /// What stands in the next braces of the path.
    pub(super) fn path_parameter(&mut self, describe: Describe) {
        let schema = describe(self.requests);
        if self.names.is_empty() {
            return;
        }
        let name = self.names.remove(0);
        self.parameters
            .push(json!({ "name": name, "in": "path", "required": true, "schema": schema }));
    }

    /// The parameters behind the `?`: the properties of an object, which `describe` describes
    /// itself and not by a reference to it.
    pub(super) fn query(&mut self, describe: Describe) {
        let schema = describe(self.requests);
        let required = schema.get("required").and_then(Value::as_array).cloned();
        let Some(Value::Object(properties)) = schema.get("properties") else { return };
        for (name, schema) in properties {
            let mut schema = schema.clone();
            let what = schema.as_object_mut().and_then(|schema| schema.remove("description"));
            // A parameter is absent rather than null.
            without_null(&mut schema);
            let is_required =
                required.iter().flatten().any(|required| required.as_str() == Some(name));
            let mut parameter = json!({
                "name": name, "in": "query", "required": is_required, "schema": schema,
            });
            if let (Some(what), Some(parameter)) = (what, parameter.as_object_mut()) {
                parameter.insert("description".to_owned(), what);
            }
            self.parameters.push(parameter);
        }
    }

    /// An answer.
    pub(super) fn gives(&mut self, given: &Given) {
        let response = self.responses.entry(given.status.as_u16()).or_default();
        if let Some((media_type, describe)) = given.body {
            let schema = describe(self.answers);
            let content = response.entry("content").or_insert_with(|| json!({}));
            if let Some(content) = content.as_object_mut() {
                content.insert(media_type.to_owned(), json!({ "schema": schema }));
            }
        }
        let what = match given.what {
            "" => given.status.canonical_reason().unwrap_or_default(),
            what => what,
        };
        response.insert("description".to_owned(), what.into());
    }

    /// Problems.
    pub(super) fn fails(&mut self, codes: &[&'static str]) {
        self.problems.extend(codes);
    }

    /// Adds the problems to the answers, one answer for each status.
    fn describe_problems(&mut self) {
        let schema = self.answers.subschema_for::<Problem>();
        let mut by_status = BTreeMap::<u16, Vec<String>>::new();
        for (name, status, meaning) in code::ALL {
            if self.problems.contains(name) {
                by_status.entry(*status).or_default().push(format!("`{name}`: {meaning}"));
            }
        }
        for (status, meanings) in by_status {
            let response = self.responses.entry(status).or_default();
            let mut lines: Vec<String> = Vec::new();
            if let Some(Value::String(what)) = response.get("description") {
                lines.push(what.clone());
            }
            lines.extend(meanings);
            response.insert("description".to_owned(), lines.join("\n\n").into());
            let content = response.entry("content").or_insert_with(|| json!({}));
            if let Some(content) = content.as_object_mut() {
                content.insert(MEDIA_TYPE.to_owned(), json!({ "schema": schema }));
            }
        }
    }
}

/// The whole document.
fn document(routes: &[Route]) -> Value {
    let settings =
        SchemaSettings::draft2020_12().with(|settings| settings.definitions_path = SCHEMAS.into());
    let mut settings = settings;
    settings.meta_schema = None;
    let mut requests = settings.clone().for_deserialize().into_generator();
    let mut answers = settings.for_serialize().into_generator();
    let mut paths = BTreeMap::<String, Map<String, Value>>::new();
    for route in routes {
        let operation = operation(route, &mut requests, &mut answers);
        let path = route.path.replace("{*", "{");
        let method = route.method.to_lowercase();
        paths.entry(path).or_default().insert(method, operation);
    }
    let mut document = json!({
        "openapi": "3.1.1",
        "info": {
            "title": "Resurgam",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "The platform of a fleet of agents: tasks, registry, messages",
            "description": INTRODUCTION,
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
        },
        "servers": [{ "url": "/", "description": "the process that serves this document" }],
        "security": [{}, { "bearer": [] }],
        "paths": paths,
        "components": {
            "securitySchemes": { "bearer": {
                "type": "http",
                "scheme": "bearer",
                "description": "A token made with `resurgam token create`. A server without \
                                tokens listens on loopback only and needs none.",
            } },
            "parameters": { "RequestId": {
                "name": "x-request-id",
                "in": "header",
                "required": false,
                "description": "An id by which the request can be found in the log. One that is \
                                not made of 1 to 128 visible ASCII characters is replaced.",
                "schema": { "type": "string" },
            } },
            "headers": {
                "RequestId": {
                    "description": "The id of the request: the caller's own or a new one.",
                    "required": true,
                    "schema": { "type": "string", "minLength": 1, "maxLength": 128 },
                },
                "RetryAfter": {
                    "description": "Seconds after which to try again.",
                    "required": true,
                    "schema": { "type": "integer", "minimum": 0 },
                },
            },
        },
    });
    let mut of_requests = requests.take_definitions(true);
    let of_answers = answers.take_definitions(true);
    // A type may look different in a request and in an answer.
    let differing: BTreeSet<String> = of_requests
        .iter()
        .filter(|(name, schema)| of_answers.get(*name).is_some_and(|other| other != *schema))
        .map(|(name, _)| name.clone())
        .collect();
    if let Some(Value::Object(paths)) = document.get_mut("paths") {
        for operation in paths.values_mut().filter_map(Value::as_object_mut).flatten() {
            for part in ["parameters", "requestBody"] {
                operation.1.get_mut(part).into_iter().for_each(|part| rename(part, &differing));
            }
        }
    }
    of_requests.values_mut().for_each(|schema| rename(schema, &differing));
    let mut schemas: BTreeMap<String, Value> = of_answers.into_iter().collect();
    for (name, schema) in of_requests {
        let name = if differing.contains(&name) { in_requests(&name) } else { name };
        schemas.insert(name, schema);
    }
    let mut schemas = json!(schemas);
    bound_integers(&mut schemas);
    if let Some(Value::Object(components)) = document.get_mut("components") {
        components.insert("schemas".to_owned(), schemas);
    }
    document.get_mut("paths").into_iter().for_each(bound_integers);
    document
}

fn operation(
    route: &Route,
    requests: &mut SchemaGenerator,
    answers: &mut SchemaGenerator,
) -> Value {
    let mut operation = Operation {
        requests,
        answers,
        names: names_in(route.path),
        parameters: Vec::new(),
        body: None,
        responses: BTreeMap::new(),
        problems: BTreeSet::from([code::FORBIDDEN_HOST]),
    };
    if !needs_no_store(route.path) {
        operation.fails(&[code::UNAVAILABLE, code::TIMEOUT]);
    }
    let rule = rule_of(route.method, route.path);
    operation.fails(&[code::RATE_LIMITED]);
    if let Some(Needs::Role(_)) = rule {
        operation.fails(&[code::UNAUTHENTICATED, code::FORBIDDEN]);
    }
    (route.describe)(&mut operation);
    route.query.into_iter().for_each(|describe| operation.query(describe));
    route.given.iter().for_each(|given| operation.gives(given));
    operation.fails(&route.fails);
    operation.describe_problems();
    let Operation { parameters, body, mut responses, .. } = operation;
    for (status, response) in &mut responses {
        let mut headers = Map::new();
        headers.insert("x-request-id".to_owned(), reference("headers/RequestId"));
        if *status == StatusCode::TOO_MANY_REQUESTS.as_u16()
            || (*status == StatusCode::SERVICE_UNAVAILABLE.as_u16() && !needs_no_store(route.path))
        {
            headers.insert("retry-after".to_owned(), reference("headers/RetryAfter"));
        }
        if *status == StatusCode::UNAUTHORIZED.as_u16() {
            let what = json!({ "description": "How to say who asks.", "required": true,
                               "schema": { "type": "string" } });
            headers.insert("www-authenticate".to_owned(), what);
        }
        for header in route.headers.iter().filter(|header| header.status.as_u16() == *status) {
            headers.insert(
                header.name.to_owned(),
                json!({ "description": header.what, "required": true,
                        "schema": { "type": "string" } }),
            );
        }
        response.insert("headers".to_owned(), Value::Object(headers));
    }
    let mut parameters = parameters;
    parameters.push(reference("parameters/RequestId"));
    let mut value = json!({
        "operationId": route.name,
        "summary": route.about,
        "tags": [route.path.split(['/', '.']).nth(1).unwrap_or_default()],
        "x-roles": route.roles,
        "parameters": parameters,
        "responses": responses
            .into_iter()
            .map(|(status, response)| (status.to_string(), Value::Object(response)))
            .collect::<Map<_, _>>(),
    });
    if let Some(value) = value.as_object_mut() {
        if let Some(Needs::Role(role)) = rule {
            value.insert("x-access".to_owned(), role.as_str().into());
        }
        if !route.details.is_empty() {
            value.insert("description".to_owned(), route.details.into());
        }
        if let Some(body) = body {
            value.insert("requestBody".to_owned(), body);
        }
    }
    value
}

fn reference(to: &str) -> Value {
    json!({ "$ref": format!("#/components/{to}") })
}

/// What stands in braces in a path.
fn names_in(path: &str) -> Vec<String> {
    path.split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| name.trim_start_matches('*').to_owned())
        .collect()
}

/// Takes away that a value may be null.
fn without_null(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else { return };
    object.retain(|name, value| !(name == "default" && value.is_null()));
    if let Some(Value::Array(types)) = object.get_mut("type") {
        types.retain(|kind| kind.as_str() != Some("null"));
        if let [only] = types.as_slice() {
            let only = only.clone();
            object.insert("type".to_owned(), only);
        }
    }
    if let Some(Value::Array(choices)) = object.get_mut("anyOf") {
        choices.retain(|choice| choice.get("type").and_then(Value::as_str) != Some("null"));
        if let [only] = choices.as_slice() {
            let only = only.clone();
            object.remove("anyOf");
            object.extend(only.as_object().cloned().unwrap_or_default());
        }
    }
}

fn in_requests(name: &str) -> String {
    format!("{name}InRequests")
}

/// Lets references to types that look different in requests point there.
fn rename(value: &mut Value, differing: &BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            if let Some(Value::String(reference)) = object.get_mut("$ref")
                && let Some(name) = reference.strip_prefix(&format!("#{SCHEMAS}/"))
                && differing.contains(name)
            {
                *reference = format!("#{SCHEMAS}/{}", in_requests(name));
            }
            object.values_mut().for_each(|value| rename(value, differing));
        }
        Value::Array(values) => values.iter_mut().for_each(|value| rename(value, differing)),
        _ => {}
    }
}

/// Says the bounds of Rust's integers, which their formats alone do not say.
fn bound_integers(value: &mut Value) {
    match value {
        Value::Object(object) => {
            let bounds = match object.get("format").and_then(Value::as_str) {
                Some("uint16") => (json!(0), json!(u16::MAX)),
                Some("uint32") => (json!(0), json!(u32::MAX)),
                Some("uint64") => (json!(0), json!(u64::MAX)),
                Some("int32") => (json!(i32::MIN), json!(i32::MAX)),
                Some("int64") => (json!(i64::MIN), json!(i64::MAX)),
                _ => (Value::Null, Value::Null),
            };
            if !bounds.0.is_null() {
                object.entry("minimum").or_insert(bounds.0);
                object.entry("maximum").or_insert(bounds.1);
            }
            object.values_mut().for_each(bound_integers);
        }
        Value::Array(values) => values.iter_mut().for_each(bound_integers),
        _ => {}
    }
}

const INTRODUCTION: &str = "\
Bodies are JSON. A field that a request does not know is refused; clients should pass over fields \
of an answer that they do not know. Lengths of time are texts such as `250ms`, `10s` or `1h 30m`, \
moments are RFC 3339 in UTC.

An answer with success is durable. A request whose answer did not come may have taken effect. Every \
request may be repeated, as long as tasks carry an `idempotency_key` and messages an `id`.

What goes wrong is answered with a problem document (RFC 9457). Its `code` is for programs and \
stable, its `detail` is for people. Answers with 503 may be repeated after a short while.

`x-roles` says which parts of the platform serve an operation; a process may play several.";

#[cfg(test)]
mod tests;
