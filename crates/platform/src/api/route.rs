//! One route: which handler answers, and what the OpenAPI document says of it.
//!
//! What a handler takes and gives is told by its types ([`Takes`], [`Gives`]), so that the
//! document cannot say anything else than what the compiler saw.

use std::sync::Arc;

use axum::Json as Answer;
use axum::extract::{Path, State};
use axum::handler::Handler;
use axum::http::{Method, StatusCode};
use axum::response::{NoContent, Response};
use axum::routing::{MethodFilter, MethodRouter, on};
use resurgam_client::problem::code;
use resurgam_model::{AgentId, Role};
use schemars::{JsonSchema, Schema, SchemaGenerator};

use super::App;
use super::body::{AgentPath, Json, Parameters, PathId};
use super::openapi::Operation;
use crate::problem::Problem;

/// How a type is described.
pub(super) type Describe = fn(&mut SchemaGenerator) -> Schema;

/// An answer that is described by hand.
#[derive(Clone)]
pub(super) struct Given {
    pub(super) status: StatusCode,
    pub(super) what: &'static str,
    /// The media type and the schema of the body, if there is one.
    pub(super) body: Option<(&'static str, Describe)>,
}

/// A header of an answer.
#[derive(Clone)]
pub(super) struct Header {
    pub(super) status: StatusCode,
    pub(super) name: &'static str,
    pub(super) what: &'static str,
}

/// A route.
#[derive(Clone)]
pub(super) struct Route {
    /// In capitals.
    pub(super) method: &'static str,
    /// The path as the router writes it: `/tasks/{id}`, `/agents/{*id}`.
    pub(super) path: &'static str,
    pub(super) handlers: MethodRouter<Arc<App>>,
    /// The parts that serve it.
    pub(super) roles: &'static [Role],
    pub(super) name: String,
    pub(super) about: &'static str,
    pub(super) details: &'static str,
    pub(super) describe: fn(&mut Operation<'_>),
    pub(super) query: Option<Describe>,
    pub(super) given: Vec<Given>,
    pub(super) headers: Vec<Header>,
    pub(super) fails: Vec<&'static str>,
}

impl Route {
    fn new<H, T, A>(
        method: &'static str,
        filter: MethodFilter,
        path: &'static str,
        handler: H,
    ) -> Self
    where
        H: Handler<T, Arc<App>> + Described<A>,
        T: 'static,
    {
        Self {
            method,
            path,
            handlers: on(filter, handler),
            roles: &[Role::Api],
            name: name(std::any::type_name::<H>()),
            about: "",
            details: "",
            describe: H::describe,
            query: None,
            given: Vec::new(),
            headers: Vec::new(),
            fails: Vec::new(),
        }
    }

    /// `GET path`.
    pub(super) fn get<H, T: 'static, A>(path: &'static str, handler: H) -> Self
    where
        H: Handler<T, Arc<App>> + Described<A>,
    {
        Self::new("GET", MethodFilter::GET, path, handler)
    }

    /// `POST path`.
    pub(super) fn post<H, T: 'static, A>(path: &'static str, handler: H) -> Self
    where
        H: Handler<T, Arc<App>> + Described<A>,
    {
        Self::new("POST", MethodFilter::POST, path, handler)
    }

    /// `PUT path`.
    #[allow(dead_code, reason = "the set of methods is whole, whether used or not")]
    pub(super) fn put<H, T: 'static, A>(path: &'static str, handler: H) -> Self
    where
        H: Handler<T, Arc<App>> + Described<A>,
    {
        Self::new("PUT", MethodFilter::PUT, path, handler)
    }

    /// `DELETE path`.
    pub(super) fn delete<H, T: 'static, A>(path: &'static str, handler: H) -> Self
    where
        H: Handler<T, Arc<App>> + Described<A>,
    {
        Self::new("DELETE", MethodFilter::DELETE, path, handler)
    }

    /// What it does, in a few words without a full stop.
    pub(super) fn about(mut self, about: &'static str) -> Self {
        self.about = about;
        self
    }

    /// What a caller must know beyond that.
    pub(super) fn details(mut self, details: &'static str) -> Self {
        self.details = details;
        self
    }

    /// The parameters behind the `?`, for a handler that reads them one by one: the fields of an
    /// object.
    pub(super) fn query<T: JsonSchema>(mut self) -> Self {
        self.query = Some(T::json_schema);
        self
    }

    /// Which parts serve it, if not the API alone.
    pub(super) fn served_by(mut self, roles: &'static [Role]) -> Self {
        self.roles = roles;
        self
    }

    /// An answer with a JSON body that the handler's type does not tell.
    pub(super) fn answers<T: JsonSchema>(self, status: StatusCode, what: &'static str) -> Self {
        self.answers_as::<T>(status, "application/json", what)
    }

    /// An answer with another body.
    pub(super) fn answers_as<T: JsonSchema>(
        mut self,
        status: StatusCode,
        media_type: &'static str,
        what: &'static str,
    ) -> Self {
        let body = Some((media_type, SchemaGenerator::subschema_for::<T> as Describe));
        self.given.push(Given { status, what, body });
        self
    }

    /// An answer without a body that the handler's type does not tell.
    pub(super) fn answers_empty(mut self, status: StatusCode, what: &'static str) -> Self {
        self.given.push(Given { status, what, body: None });
        self
    }

    /// A header that answers with this status carry.
    pub(super) fn header(
        mut self,
        status: StatusCode,
        name: &'static str,
        what: &'static str,
    ) -> Self {
        self.headers.push(Header { status, name, what });
        self
    }

    /// Problems that it can give beside those that its types tell: codes of
    /// [`resurgam_client::problem::code`].
    pub(super) fn fails(mut self, codes: &[&'static str]) -> Self {
        self.fails.extend_from_slice(codes);
        self
    }
}

/// The name of an operation: the handler's own with its module, `tasks_submit`.
fn name(function: &str) -> String {
    let mut parts = function.rsplit("::");
    let function = parts.next().unwrap_or_default();
    format!("{}_{function}", parts.next().unwrap_or_default())
}

/// A handler whose arguments and answer can be described.
pub(super) trait Described<Arguments> {
    fn describe(operation: &mut Operation<'_>);
}

macro_rules! described {
    ($($argument:ident)*) => {
        impl<F, Fut, $($argument),*> Described<($($argument,)*)> for F
        where
            F: Fn($($argument),*) -> Fut,
            Fut: Future,
            Fut::Output: Gives,
            $($argument: Takes,)*
        {
            fn describe(operation: &mut Operation<'_>) {
                $($argument::describe(operation);)*
                Fut::Output::describe(operation);
            }
        }
    };
}

described!();
described!(A);
described!(A B);
described!(A B C);
described!(A B C D);
described!(A B C D E);
described!(A B C D E G);

/// Something that a handler takes out of a request.
pub(super) trait Takes {
    fn describe(_: &mut Operation<'_>) {}
}

impl<T> Takes for State<T> {}
impl Takes for Method {}
impl Takes for axum::http::Uri {}
impl Takes for axum::http::HeaderMap {}

impl<T: JsonSchema> Takes for Json<T> {
    fn describe(operation: &mut Operation<'_>) {
        operation.body(SchemaGenerator::subschema_for::<T>);
        operation.fails(&[
            code::MALFORMED_JSON,
            code::BODY_TIMEOUT,
            code::TOO_LARGE,
            code::UNSUPPORTED_MEDIA_TYPE,
            code::INVALID_FIELD,
        ]);
    }
}

impl<T: JsonSchema> Takes for Parameters<T> {
    fn describe(operation: &mut Operation<'_>) {
        operation.query(T::json_schema);
        operation.fails(&[code::INVALID_PARAMETER]);
    }
}

impl<T: JsonSchema> Takes for PathId<T> {
    fn describe(operation: &mut Operation<'_>) {
        operation.path_parameter(SchemaGenerator::subschema_for::<T>);
        operation.fails(&[code::INVALID_PARAMETER]);
    }
}

impl Takes for AgentPath {
    fn describe(operation: &mut Operation<'_>) {
        PathId::<AgentId>::describe(operation);
    }
}

impl Takes for Path<String> {
    fn describe(operation: &mut Operation<'_>) {
        PathId::<String>::describe(operation);
    }
}

impl Takes for Path<(String, String)> {
    fn describe(operation: &mut Operation<'_>) {
        PathId::<String>::describe(operation);
        PathId::<String>::describe(operation);
    }
}

/// Something that a handler gives.
pub(super) trait Gives {
    fn describe(operation: &mut Operation<'_>);
}

impl<T: JsonSchema> Gives for Answer<T> {
    fn describe(operation: &mut Operation<'_>) {
        let body = Some(("application/json", SchemaGenerator::subschema_for::<T> as Describe));
        operation.gives(&Given { status: StatusCode::OK, what: "", body });
    }
}

impl Gives for NoContent {
    fn describe(operation: &mut Operation<'_>) {
        operation.gives(&Given { status: StatusCode::NO_CONTENT, what: "", body: None });
    }
}

/// Whose answers the route describes by hand.
impl Gives for Response {
    fn describe(_: &mut Operation<'_>) {}
}

/// Whose answers the route describes by hand.
impl Gives for StatusCode {
    fn describe(_: &mut Operation<'_>) {}
}

/// Whose answers the route describes by hand.
impl<T> Gives for (StatusCode, T) {
    fn describe(_: &mut Operation<'_>) {}
}

impl<T: Gives> Gives for Result<T, Problem> {
    fn describe(operation: &mut Operation<'_>) {
        T::describe(operation);
        operation.fails(&[code::INTERNAL, code::STORAGE_FULL]);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn operations_are_named_after_their_handlers() {
        assert_eq!(super::name("resurgam_platform::api::tasks::submit"), "tasks_submit");
    }
}
