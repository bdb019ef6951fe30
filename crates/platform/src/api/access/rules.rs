//! Which route needs which role: all of it, in one table.
//!
//! A route that is not in the table needs the role `admin`, and a test fails: every route of the
//! router must be here, and nothing else.

use axum::http::Method;
use resurgam_model::access::AccessRole;

/// What a route needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Nothing: probes must work without a token.
    Nothing,
    /// This role or a greater one.
    Role(AccessRole),
}

/// What is to be known of a route.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rule {
    pub(crate) needs: Needs,
    /// The name of the act in the audit log. Acts without one are not recorded.
    pub(crate) act: Option<&'static str>,
}

const ANYBODY: Rule = Rule { needs: Needs::Nothing, act: None };
const VIEWER: Rule = Rule { needs: Needs::Role(AccessRole::Viewer), act: None };
const AGENT: Rule = Rule { needs: Needs::Role(AccessRole::Agent), act: None };

const fn operator(act: &'static str) -> Rule {
    Rule { needs: Needs::Role(AccessRole::Operator), act: Some(act) }
}

const fn admin(act: &'static str) -> Rule {
    Rule { needs: Needs::Role(AccessRole::Admin), act: Some(act) }
}

const READ_AS_OPERATOR: Rule = Rule { needs: Needs::Role(AccessRole::Operator), act: None };

const READ_AS_ADMIN: Rule = Rule { needs: Needs::Role(AccessRole::Admin), act: None };

/// Method, path as the router writes it, and the rule.
pub(crate) const TABLE: &[(&str, &str, Rule)] = &[
    ("GET", "/health", ANYBODY),
    ("GET", "/health/ready", ANYBODY),
    ("GET", "/openapi.json", ANYBODY),
    ("GET", "/metrics", VIEWER),
    // Tasks.
    ("GET", "/tasks", VIEWER),
    ("GET", "/tasks/pending", VIEWER),
    ("GET", "/tasks/stuck", VIEWER),
    ("GET", "/pool", VIEWER),
    ("GET", "/tasks/{id}", VIEWER),
    ("POST", "/tasks", AGENT),
    ("POST", "/tasks/batch", AGENT),
    ("POST", "/tasks/claim", AGENT),
    ("GET", "/tasks/stream", AGENT),
    ("POST", "/tasks/extend", AGENT),
    ("POST", "/tasks/complete", AGENT),
    ("POST", "/tasks/fail", AGENT),
    ("POST", "/tasks/cancel", operator("task.cancel")),
    ("POST", "/tasks/requeue", operator("task.requeue")),
    ("POST", "/messages/any", AGENT),
    ("POST", "/messages/all", AGENT),
    ("GET", "/bus", VIEWER),
    ("POST", "/bus/switch", operator("bus.switch")),
    ("POST", "/bus/return", operator("bus.return")),
    ("GET", "/limits", VIEWER),
    ("GET", "/limits/{*capability}", VIEWER),
    ("PUT", "/limits/{*capability}", operator("limit.set")),
    ("DELETE", "/limits/{*capability}", operator("limit.remove")),
    ("GET", "/schedules", VIEWER),
    ("GET", "/schedules/{*name}", VIEWER),
    ("PUT", "/schedules/{*name}", operator("schedule.put")),
    ("DELETE", "/schedules/{*name}", operator("schedule.remove")),
    // Workflows. A signal may be a person's approval, so it is not for agents.
    ("GET", "/workflows", VIEWER),
    ("GET", "/workflows/{id}", VIEWER),
    ("GET", "/workflows/{id}/step", VIEWER),
    ("POST", "/workflows", AGENT),
    ("POST", "/workflows/{id}/cancel", operator("workflow.cancel")),
    ("POST", "/workflows/{id}/retry", operator("workflow.retry")),
    ("POST", "/workflows/{id}/signal", operator("workflow.signal")),
    ("GET", "/definitions", VIEWER),
    ("GET", "/definitions/{name}", VIEWER),
    ("PUT", "/definitions/{name}", operator("definition.put")),
    // Agents.
    ("GET", "/agents", VIEWER),
    ("GET", "/workers", VIEWER),
    ("GET", "/agents/{*id}", VIEWER),
    ("POST", "/agents", AGENT),
    ("POST", "/agents/heartbeat", AGENT),
    ("DELETE", "/agents/{*id}", AGENT),
    ("POST", "/agents/drain", operator("agent.drain")),
    ("POST", "/agents/resume", operator("agent.resume")),
    // Messages: the mailbox of an agent is the agent's, not a viewer's.
    ("POST", "/messages", AGENT),
    ("GET", "/mailbox", AGENT),
    ("POST", "/mailbox/acknowledge", AGENT),
    ("POST", "/mailbox/reject", AGENT),
    ("GET", "/dead-letters", READ_AS_OPERATOR),
    ("POST", "/dead-letters/{id}/resend", operator("message.resend")),
    ("DELETE", "/dead-letters/{id}", operator("message.forget")),
    // Access.
    ("GET", "/tokens", READ_AS_ADMIN),
    ("POST", "/tokens", admin("token.create")),
    ("DELETE", "/tokens/{id}", admin("token.revoke")),
    ("GET", "/audit", READ_AS_ADMIN),
];

/// What the table says of a route.
pub(crate) fn rule_of(method: &str, path: &str) -> Option<Needs> {
    TABLE.iter().find(|(m, p, _)| *m == method && *p == path).map(|(_, _, rule)| rule.needs)
}

/// The rule of a route. What is not in the table is for the role `admin` alone.
pub(crate) fn rule(method: &Method, path: &str) -> Rule {
    // A HEAD is answered by the handler of GET.
    let method = if method == Method::HEAD { "GET" } else { method.as_str() };
    let exactly = |path: &str| {
        TABLE.iter().find(|(m, p, _)| *m == method && *p == path).map(|(_, _, rule)| *rule)
    };
    // Agents have any name, also that of a path below /agents.
    let as_agent = || path.starts_with("/agents/").then(|| exactly("/agents/{*id}")).flatten();
    exactly(path).or_else(as_agent).unwrap_or(READ_AS_ADMIN)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn what_is_not_in_the_table_is_for_admins() {
        let role = |method: &Method, path: &str| rule(method, path).needs;
        assert_eq!(role(&Method::PATCH, "/tasks"), Needs::Role(AccessRole::Admin));
        assert_eq!(role(&Method::GET, "/nothing"), Needs::Role(AccessRole::Admin));
        assert_eq!(role(&Method::HEAD, "/tasks"), Needs::Role(AccessRole::Viewer));
        assert_eq!(role(&Method::DELETE, "/agents/heartbeat"), Needs::Role(AccessRole::Agent));
        assert_eq!(role(&Method::GET, "/health"), Needs::Nothing);
    }

    #[test]
    fn every_route_is_in_the_table_and_nothing_else() {
        let routes: BTreeSet<_> =
            crate::api::routes().iter().map(|route| (route.method, route.path)).collect();
        let table: BTreeSet<_> = TABLE.iter().map(|(method, path, _)| (*method, *path)).collect();
        let missing: Vec<_> = routes.difference(&table).collect();
        assert!(missing.is_empty(), "say in TABLE which role these need: {missing:?}");
        let gone: Vec<_> = table.difference(&routes).collect();
        assert!(gone.is_empty(), "these are in TABLE and do not exist: {gone:?}");
    }

    #[test]
    fn no_route_is_there_twice_and_what_operators_change_is_recorded() {
        for (index, (method, path, rule)) in TABLE.iter().enumerate() {
            let again = TABLE.iter().skip(index + 1).any(|(m, p, _)| (m, p) == (method, path));
            assert!(!again, "{method} {path}");
            if let Needs::Role(role) = rule.needs
                && role >= AccessRole::Operator
                && *method != "GET"
            {
                assert!(rule.act.is_some(), "{method} {path} changes things unrecorded");
            }
        }
    }
}
