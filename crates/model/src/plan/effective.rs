//! The plan in force, and where each of its values comes from.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;
use toml::{Table, Value};

use super::{Api, Plan, StoreKind, bus};
use crate::Duration;
use crate::access::AccessMode;

/// Environment variables that set a value of the plan, and the key that they set.
const VARIABLES: [(&str, &str); 6] = [
    ("DATABASE_URL", "store.url"),
    ("DATABASE_MAX_POOL_SIZE", "store.max_pool_size"),
    ("MESSAGE_BUS_TYPE", "bus.order"),
    ("KAFKA_BOOTSTRAP_SERVERS", "bus.kafka.bootstrap"),
    ("KAFKA_PASSWORD", "bus.kafka.password"),
    ("RABBITMQ_URL", "bus.rabbitmq.urls"),
];

/// The names of the environment variables that go before a plan.
pub fn variables() -> impl Iterator<Item = &'static str> {
    VARIABLES.into_iter().map(|(name, _)| name)
}

/// Settings of PostgreSQL that replication and fencing rest on. To let a plan change them would
/// be to let it switch off its own safety.
const RESERVED: [&str; 24] = [
    "archive_mode",
    "cluster_name",
    "data_checksums",
    "data_directory",
    "fsync",
    "full_page_writes",
    "hba_file",
    "hot_standby",
    "ident_file",
    "listen_addresses",
    "max_replication_slots",
    "max_wal_senders",
    "port",
    "primary_conninfo",
    "primary_slot_name",
    "recovery_target_timeline",
    "restart_after_crash",
    "synchronous_commit",
    "synchronous_standby_names",
    "unix_socket_directories",
    "unix_socket_permissions",
    "wal_level",
    "wal_log_hints",
    "zero_damaged_pages",
];

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// Built in.
    Default,
    /// The plan file.
    File,
    /// An environment variable.
    Environment(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File => f.write_str("file"),
            Self::Environment(name) => write!(f, "environment {name}"),
        }
    }
}

/// One value of the plan in force.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Setting {
    /// Its key, with dots: `postgres.lease`.
    pub key: String,
    /// Its value as TOML; a password in it is masked.
    pub value: String,
    /// Where it comes from.
    pub origin: Origin,
}

/// The plan in force.
#[derive(Clone, Debug, PartialEq)]
pub struct EffectivePlan {
    /// The values.
    pub plan: Plan,
    /// Each value with its origin, in the order of the keys.
    pub settings: Vec<Setting>,
}

/// Why a plan was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Not TOML, an unknown key, or a value of the wrong kind.
    #[error("the plan cannot be read:\n{0}")]
    Syntax(String),
    /// A value that makes no sense, or not with another one.
    #[error("the plan cannot be used: `{key}` {problem}")]
    Value {
        /// The key.
        key: String,
        /// What is wrong with it, and what to do.
        problem: String,
    },
}

pub(super) fn value_error(key: &str, problem: impl Into<String>) -> PlanError {
    PlanError::Value { key: key.to_owned(), problem: problem.into() }
}

impl EffectivePlan {
    /// Lays the file over the defaults and the environment over both.
    ///
    /// # Errors
    /// When the file is not TOML, has an unknown key, or a value that cannot be used; the error
    /// says which, and for the file on which line.
    pub fn resolve(
        file: Option<&str>,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, PlanError> {
        let text = file.unwrap_or_default();
        // The typed reading comes first: its errors point at the line.
        let from_file: Plan =
            toml::from_str(text).map_err(|error| PlanError::Syntax(error.to_string()))?;
        let written: Table =
            toml::from_str(text).map_err(|error| PlanError::Syntax(error.to_string()))?;
        let mut file_keys = BTreeMap::new();
        flatten("", &Value::Table(written), &mut file_keys);

        let mut plan = from_file;
        let mut from_env = BTreeMap::new();
        for (variable, key) in VARIABLES {
            let Some(value) = env(variable).filter(|value| !value.is_empty()) else { continue };
            match key {
                "store.url" => {
                    plan.store.url = Some(value);
                    if !file_keys.contains_key("store.kind") {
                        plan.store.kind = StoreKind::External;
                        from_env.insert("store.kind", variable);
                    }
                }
                "bus.order" => {
                    plan.bus.order = bus::read_order(&value).map_err(|error| {
                        value_error(key, format!("cannot be taken from {variable}: {error}"))
                    })?;
                }
                "bus.kafka.bootstrap" => {
                    plan.bus.kafka.bootstrap =
                        value.split(',').map(|address| address.trim().to_owned()).collect();
                }
                "bus.kafka.password" => plan.bus.kafka.password = Some(value),
                "bus.rabbitmq.urls" => plan.bus.rabbitmq.urls = vec![value],
                _ => {
                    plan.store.max_pool_size = value.parse().map_err(|_| {
                        value_error(key, format!("must be a whole number, but {variable} is not"))
                    })?;
                }
            }
            from_env.insert(key, variable);
        }
        if plan.store.kind != StoreKind::External
            && let Some(variable) = from_env.get("store.url")
        {
            return Err(value_error(
                "store.kind",
                format!(
                    "has a database of its own, but {variable} names another; unset the variable, or set store.kind = \"external\""
                ),
            ));
        }
        check(&plan)?;
        let elastic =
            ["workers.min", "workers.max"].into_iter().find(|k| file_keys.contains_key(*k));
        if let (Some(key), true) = (elastic, file_keys.contains_key("workers.replicas")) {
            return Err(value_error(
                "workers.replicas",
                format!("fixes the number, and {key} lets it vary; leave one of them out"),
            ));
        }

        let all = Table::try_from(&plan).map_err(|error| PlanError::Syntax(error.to_string()))?;
        let mut keys = BTreeMap::new();
        flatten("", &Value::Table(all), &mut keys);
        let settings = keys
            .into_iter()
            .map(|(key, value)| {
                let origin = match from_env.get(key.as_str()) {
                    Some(variable) => Origin::Environment((*variable).to_owned()),
                    None if file_keys.contains_key(&key) => Origin::File,
                    None => Origin::Default,
                };
                let value = match key.as_str() {
                    "store.url" | "bus.rabbitmq.management" => mask(&value),
                    "bus.kafka.password" => "\"***\"".to_owned(),
                    "bus.rabbitmq.urls" => mask_each(&plan.bus.rabbitmq.urls),
                    _ => value,
                };
                Setting { key, value, origin }
            })
            .collect();
        Ok(Self { plan, settings })
    }
}

/// The leaves of a table, by their dotted keys. Arrays are leaves.
fn flatten(prefix: &str, value: &Value, into: &mut BTreeMap<String, String>) {
    match value {
        Value::Table(table) => {
            for (key, value) in table {
                let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(&key, value, into);
            }
        }
        leaf => {
            into.insert(prefix.to_owned(), leaf.to_string());
        }
    }
}

/// Hides the passwords of a connection URL: the one before the hosts, and those among the
/// parameters. What is no URL may be a password as a whole.
fn mask(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return "\"***\"".to_owned() };
    let (rest, parameters) = match rest.split_once('?') {
        Some((rest, parameters)) => (rest, Some(parameters)),
        None => (rest, None),
    };
    let rest = match rest.rsplit_once('@') {
        Some((user, host)) => match user.split_once(':') {
            Some((user, _)) => format!("{user}:***@{host}"),
            None => rest.to_owned(),
        },
        None => rest.to_owned(),
    };
    let parameters = parameters.map(|parameters| {
        let hidden = |parameter: &str| match parameter.split_once('=') {
            Some((key, _)) if key.contains("password") => format!("{key}=***"),
            _ => parameter.to_owned(),
        };
        let all: Vec<_> = parameters.trim_end_matches('"').split('&').map(hidden).collect();
        format!("?{}\"", all.join("&"))
    });
    format!("{scheme}://{rest}{}", parameters.unwrap_or_default())
}

/// A list of connection URLs as TOML, without their passwords.
fn mask_each(urls: &[String]) -> String {
    let masked: Vec<_> =
        urls.iter().map(|url| mask(&Value::String(url.clone()).to_string())).collect();
    format!("[{}]", masked.join(", "))
}

/// What other machines reach asks who comes, and lets nobody listen.
fn check_access(api: &Api) -> Result<(), PlanError> {
    if api.tls_cert.is_some() != api.tls_key.is_some() {
        let why = "go together: give both, or neither";
        return Err(value_error("api.tls_cert and api.tls_key", why));
    }
    if api.tls_client_ca.is_some() && api.tls_cert.is_none() {
        let why = "is for TLS only: give api.tls_cert and api.tls_key as well";
        return Err(value_error("api.tls_client_ca", why));
    }
    let host = api.host;
    if host.is_loopback() {
        return Ok(());
    }
    if api.access == AccessMode::Open {
        return Err(value_error(
            "api.host",
            format!(
                "is {host}; without access control only a loopback address is safe: set \
                 api.access = \"tokens\""
            ),
        ));
    }
    if api.tls_cert.is_none() && !api.insecure_plaintext {
        return Err(value_error(
            "api.host",
            format!(
                "is {host}, and without TLS others can read the tokens: set api.tls_cert and \
                 api.tls_key, or api.insecure_plaintext = true behind a proxy that speaks TLS"
            ),
        ));
    }
    Ok(())
}

fn check(plan: &Plan) -> Result<(), PlanError> {
    let name = &plan.deployment.name;
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let starts = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
    if !starts || name.len() > 40 || !name.bytes().all(plain) {
        return Err(value_error(
            "deployment.name",
            format!("is {name:?}; use 1 to 40 of a-z, 0-9 and '-', beginning with a letter"),
        ));
    }
    check_access(&plan.api)?;
    let range = 1..=64 * 1024 * 1024;
    if !range.contains(&plan.api.max_payload_bytes) {
        return Err(value_error("api.max_payload_bytes", "must be from 1 to 67108864 (64 MiB)"));
    }
    if plan.workers.capabilities.is_empty() {
        return Err(value_error("workers.capabilities", "must name at least one capability"));
    }
    if plan.workers.exec.is_empty()
        && let Some(unknown) = plan.workers.capabilities.iter().find(|c| c.as_str() != "sha256")
    {
        return Err(value_error(
            "workers.exec",
            format!("is missing: no handler for {unknown} is built in, so name the program"),
        ));
    }
    match (plan.workers.min, plan.workers.max) {
        (None, None) => {}
        (Some(min), Some(max)) if (1..=max).contains(&min) && max <= 1000 => {}
        (Some(min), Some(max)) => {
            let problem = format!("is {max}; it must be from workers.min = {min} to 1000");
            let key = if min == 0 { "workers.min" } else { "workers.max" };
            let zero = || "is 0; it must be at least 1".to_owned();
            return Err(value_error(key, if min == 0 { zero() } else { problem }));
        }
        (Some(_), None) => return Err(value_error("workers.max", "is missing beside workers.min")),
        (None, Some(_)) => return Err(value_error("workers.min", "is missing beside workers.max")),
    }
    for (key, count, max) in [
        ("workers.replicas", u32::from(plan.workers.replicas), 1000),
        ("workers.concurrency", plan.workers.concurrency, 1000),
        ("store.max_pool_size", plan.store.max_pool_size, 10_000),
        ("detection.failures", plan.detection.failures, 1000),
        ("detection.successes", plan.detection.successes, 1000),
        ("approval.required", plan.approval.required, 100),
    ] {
        if count == 0 || count > max {
            return Err(value_error(key, format!("is {count}; it must be from 1 to {max}")));
        }
    }
    for (scenario, approval) in &plan.approvals {
        if !(1..=100).contains(&approval.required) {
            let problem = format!("is {}; it must be from 1 to 100", approval.required);
            return Err(value_error(&format!("approvals.{scenario}.required"), problem));
        }
    }
    plan.backup.check().map_err(|(key, problem)| value_error(&key, problem))?;
    let mut names = BTreeSet::new();
    for channel in &plan.notify {
        if !names.insert(&channel.name) {
            return Err(value_error("notify", format!("has {} twice", channel.name)));
        }
        channel.check().map_err(|(key, problem)| value_error(&key, problem))?;
    }
    plan.check_calendar().map_err(|(key, problem)| value_error(&key, problem))?;
    plan.postgres.connections.check().map_err(|(key, problem)| value_error(&key, problem))?;
    if plan.postgres.standbys > 8 {
        return Err(value_error("postgres.standbys", "must be from 0 to 8"));
    }
    let mut instances = plan.postgres.instances();
    if plan.store.kind == StoreKind::Postgres && !instances.any(|n| n == plan.postgres.preferred) {
        let last = crate::ComponentName::instance(plan.postgres.standbys);
        return Err(value_error(
            "postgres.preferred",
            format!(
                "is {}; with postgres.standbys = {} there are postgres-0 to {last}",
                plan.postgres.preferred, plan.postgres.standbys
            ),
        ));
    }
    for (key, value, min) in [
        ("workers.lease", plan.workers.lease, Duration::from_millis(100)),
        ("workers.drain_within", plan.workers.drain_within, Duration::from_secs(1)),
        ("workers.shrink_after", plan.workers.shrink_after, Duration::from_secs(1)),
        ("postgres.lease", plan.postgres.lease, Duration::from_millis(500)),
        ("postgres.degrade_after", plan.postgres.degrade_after, Duration::from_millis(500)),
        ("detection.interval", plan.detection.interval, Duration::from_millis(20)),
        ("detection.timeout", plan.detection.timeout, Duration::from_millis(50)),
    ] {
        if value < min || value > Duration::from_secs(3600) {
            return Err(value_error(key, format!("is {value}; it must be from {min} to 1h")));
        }
    }
    bus::check(&plan.bus)?;
    for key in plan.postgres.settings.keys() {
        let lower = key.to_ascii_lowercase();
        if RESERVED.contains(&lower.as_str()) {
            return Err(value_error(
                &format!("postgres.settings.{key}"),
                "cannot be set: replication and fencing rest on it",
            ));
        }
        if !key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.') {
            return Err(value_error(&format!("postgres.settings.{key}"), "is no setting's name"));
        }
        if lower == "superuser_reserved_connections"
            && plan.postgres.settings.get(key).is_none_or(|text| !seats(text))
        {
            return Err(value_error(
                &format!("postgres.settings.{key}"),
                "must be a number of at least 3: keeper, controller and a person need a connection when there is none left for others",
            ));
        }
    }
    match (plan.store.kind, &plan.store.url) {
        (StoreKind::External, None) => Err(value_error(
            "store.url",
            "is missing: `store.kind = \"external\"` needs it, here or as DATABASE_URL",
        )),
        (StoreKind::Sqlite | StoreKind::Postgres, Some(_)) => Err(value_error(
            "store.url",
            "is only for `store.kind = \"external\"`; the other kinds have a database of their own",
        )),
        _ => Ok(()),
    }
}

/// Enough connections stay for those who help.
fn seats(text: &str) -> bool {
    text.trim().parse::<u32>().is_ok_and(|seats| seats >= 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(text: &str) -> Result<EffectivePlan, PlanError> {
        EffectivePlan::resolve(Some(text), |_| None)
    }

    #[test]
    fn without_a_file_everything_is_default_and_embedded() {
        let effective = EffectivePlan::resolve(None, |_| None).unwrap();
        assert_eq!(effective.plan, Plan::default());
        assert_eq!(effective.plan.store.kind, StoreKind::Sqlite);
        assert!(effective.settings.iter().all(|s| s.origin == Origin::Default));
    }

    #[test]
    fn origins_follow_the_precedence() {
        let env = |name: &str| match name {
            "DATABASE_URL" => Some("postgresql://me:secret@a,b/db".to_owned()),
            _ => None,
        };
        let text = "[workers]\nreplicas = 5\n[objectives.worker-pool]\nrto = '1m'\nrpo = '0s'\n";
        let effective = EffectivePlan::resolve(Some(text), env).unwrap();
        let origin = |key: &str| {
            let setting = effective.settings.iter().find(|s| s.key == key).unwrap();
            (setting.value.clone(), setting.origin.to_string())
        };
        assert_eq!(origin("workers.replicas"), ("5".into(), "file".into()));
        assert_eq!(origin("workers.concurrency"), ("4".into(), "default".into()));
        let (url, from) = origin("store.url");
        assert!(!url.contains("secret"), "{url}");
        assert_eq!(from, "environment DATABASE_URL");
        assert_eq!(effective.plan.store.kind, StoreKind::External);
        assert_eq!(effective.plan.objectives(Scenario::WorkerPool).rto, Duration::from_secs(60));
    }

    use crate::Scenario;

    #[test]
    fn no_password_is_shown_wherever_it_stands_in_the_url() {
        for url in [
            "postgresql://me:secret@a,b/db",
            "postgresql://me@a/db?application_name=x&password=secret",
            "postgresql://me:secret@a/db?sslmode=prefer&sslpassword=secret",
            "host=a password=secret",
        ] {
            let env = |name: &str| (name == "DATABASE_URL").then(|| url.to_owned());
            let effective = EffectivePlan::resolve(None, env).unwrap();
            let shown = effective.settings.iter().find(|s| s.key == "store.url").unwrap();
            assert!(!shown.value.contains("secret"), "{}", shown.value);
        }
    }

    #[test]
    fn a_database_of_its_own_and_another_one_do_not_go_together() {
        let env = |name: &str| (name == "DATABASE_URL").then(|| "postgresql://a/db".to_owned());
        let text = Some("[store]\nkind = 'postgres'");
        let error = EffectivePlan::resolve(text, env).unwrap_err().to_string();
        assert!(error.contains("DATABASE_URL"), "{error}");
    }

    #[test]
    fn errors_name_the_place() {
        for (text, expected) in [
            ("[workers]\nreplicsa = 5", "replicsa"),
            ("[workers]\nreplicas = 0", "workers.replicas"),
            ("[workers]\nreplicas = 2\nmin = 1\nmax = 2", "workers.min"),
            ("[workers]\nmin = 1", "workers.max"),
            ("[workers]\nmax = 1", "workers.min"),
            ("[workers]\nmin = 0\nmax = 1", "at least 1"),
            ("[workers]\nmin = 3\nmax = 2", "workers.max"),
            ("[workers]\nshrink_after = '10ms'", "workers.shrink_after"),
            ("[workers]\ncapabilities = ['translate']", "workers.exec"),
            ("[api]\nhost = '0.0.0.0'", "loopback"),
            ("[api]\nhost = '0.0.0.0'\naccess = 'tokens'", "api.tls_cert"),
            ("[api]\ntls_cert = 'a'", "api.tls_key"),
            ("[api]\ntls_client_ca = 'a'", "api.tls_client_ca"),
            ("[api]\naccess = 'some'", "tokens"),
            ("[postgres]\nlease = 'soon'", "15m"),
            ("[postgres.settings]\nfsync = 'off'", "postgres.settings.fsync"),
            ("[objectives.postgres-primry]\nrto = '1m'\nrpo = '1m'", "postgres-primry"),
            ("[store]\nkind = 'external'", "DATABASE_URL"),
            ("[deployment]\nname = '../x'", "deployment.name"),
            ("= 3", "line 1"),
        ] {
            let error = resolve(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }
}
