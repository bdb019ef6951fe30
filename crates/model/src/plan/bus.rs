//! `[bus]`: what carries messages between agents, and what takes over when it fails.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::PlanError;
use super::effective::value_error;
use crate::Duration;
use crate::message::DEFAULT_TOPIC;

/// A kind of message bus.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum BusKind {
    /// The platform's own store; needs nothing else.
    Embedded,
    /// Apache Kafka.
    Kafka,
    /// RabbitMQ.
    RabbitMq,
}

impl BusKind {
    /// What it is called in plans, variables and commands.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Kafka => "kafka",
            Self::RabbitMq => "rabbitmq",
        }
    }
}

impl fmt::Display for BusKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why a text names no bus.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no message bus: use kafka, rabbitmq or embedded")]
pub struct UnknownBus(String);

impl FromStr for BusKind {
    type Err = UnknownBus;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Embedded, Self::Kafka, Self::RabbitMq]
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| UnknownBus(text.chars().take(60).collect()))
    }
}

/// What carries messages between agents, and what takes over when it fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bus {
    /// The buses, the preferred one first. Also `MESSAGE_BUS_TYPE`, with commas.
    pub order: Vec<BusKind>,
    /// Each broker is asked how it is so often.
    pub probe_interval: Duration,
    /// What a broker has not answered or confirmed in this time has failed.
    pub timeout: Duration,
    /// So many failures in a row and a bus is not used any more.
    pub failures: u32,
    /// A bus that is not used is tried again after this time.
    pub retry_after: Duration,
    /// A bus whose trials succeed for so long may be used again.
    pub close_after: Duration,
    /// Messages go back to a preferred bus when it was healthy for so long.
    pub return_after: Duration,
    /// How long a return waits until what went over the other bus is delivered.
    pub drain_within: Duration,
    /// A message that was rejected so often is a dead letter.
    pub max_tries: u32,
    /// How long a message is of use if its sender says nothing; without it, for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Duration>,
    /// Where Kafka is.
    pub kafka: Kafka,
    /// Where RabbitMQ is.
    pub rabbitmq: RabbitMq,
}

impl Default for Bus {
    fn default() -> Self {
        Self {
            order: vec![BusKind::Embedded],
            probe_interval: Duration::from_millis(500),
            timeout: Duration::from_secs(2),
            failures: 3,
            retry_after: Duration::from_secs(1),
            close_after: Duration::from_secs(5),
            return_after: Duration::from_secs(60),
            drain_within: Duration::from_secs(10),
            max_tries: 5,
            ttl: None,
            kafka: Kafka::default(),
            rabbitmq: RabbitMq::default(),
        }
    }
}

/// The variable with the table `[bus]` of a plan as TOML, for processes that have no plan.
pub const BUS_VARIABLE: &str = "RESURGAM_BUS";

/// Variables that say something about the bus.
const OF_THE_BUS: [&str; 4] =
    ["MESSAGE_BUS_TYPE", "KAFKA_BOOTSTRAP_SERVERS", "KAFKA_PASSWORD", "RABBITMQ_URL"];

impl Bus {
    /// What the environment says, for a process that has no plan: the table in [`BUS_VARIABLE`],
    /// and the variables that also go before a plan.
    ///
    /// # Errors
    /// When it makes no sense, or leaves it to `resurgam up` where a broker is.
    pub fn from_env(env: impl Fn(&str) -> Option<String>) -> Result<Self, PlanError> {
        let only = |name: &str| OF_THE_BUS.contains(&name).then(|| env(name)).flatten();
        let bus = super::EffectivePlan::resolve(env(BUS_VARIABLE).as_deref(), only)?.plan.bus;
        for (key, own) in
            [("bus.kafka.brokers", bus.kafka.brokers), ("bus.rabbitmq.nodes", bus.rabbitmq.nodes)]
        {
            if own > 0 {
                let problem = "is for `resurgam up`: say here where the broker is";
                return Err(value_error(key, problem));
            }
        }
        Ok(bus)
    }

    /// The table for [`BUS_VARIABLE`]. It may hold passwords.
    ///
    /// # Errors
    /// When it cannot be written as TOML.
    pub fn to_toml(&self) -> Result<String, PlanError> {
        #[derive(Serialize)]
        struct Table<'a> {
            bus: &'a Bus,
        }
        toml::to_string(&Table { bus: self }).map_err(|error| PlanError::Syntax(error.to_string()))
    }
}

/// Where Kafka is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Kafka {
    /// Some of its brokers, each `host:port`; they name the others.
    pub bootstrap: Vec<String>,
    /// So many brokers are run by `resurgam up` itself, from 1 to 5, instead.
    pub brokers: u16,
    /// The folder of the Kafka that it runs; without it `KAFKA_HOME`, or the usual places.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub home: Option<PathBuf>,
    /// The topic that carries all messages.
    pub topic: String,
    /// Whether to speak TLS.
    pub tls: bool,
    /// Certificates (PEM) of those who may vouch for the brokers, instead of the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// The name of the user, if they ask who we are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// The password. Also `KAFKA_PASSWORD`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    /// How the password is shown: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.
    pub mechanism: String,
}

impl Default for Kafka {
    fn default() -> Self {
        Self {
            bootstrap: Vec::new(),
            brokers: 0,
            home: None,
            topic: DEFAULT_TOPIC.to_owned(),
            tls: false,
            ca: None,
            username: None,
            password: None,
            mechanism: "SCRAM-SHA-512".to_owned(),
        }
    }
}

/// Where RabbitMQ is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RabbitMq {
    /// Its nodes, each `amqp://user:password@host:port/vhost`; the first that answers is used.
    /// Also `RABBITMQ_URL`, for one.
    pub urls: Vec<String>,
    /// Whether `resurgam up` runs a node itself, instead: 0 or 1.
    pub nodes: u16,
    /// The folder of the RabbitMQ that it runs; without it the usual places.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub home: Option<PathBuf>,
    /// What the names of the queues begin with.
    pub queue: String,
    /// Whether the queues have copies on several nodes; sensible for clusters.
    pub quorum: bool,
    /// Its management API, `http://user:password@host:15672`; it tells of alarms before they
    /// stop us.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub management: Option<String>,
}

impl Default for RabbitMq {
    fn default() -> Self {
        Self {
            urls: Vec::new(),
            nodes: 0,
            home: None,
            queue: DEFAULT_TOPIC.to_owned(),
            quorum: false,
            management: None,
        }
    }
}

/// Reads the list of `MESSAGE_BUS_TYPE`.
pub(super) fn read_order(text: &str) -> Result<Vec<BusKind>, UnknownBus> {
    text.split(',').map(|name| name.trim().parse()).collect()
}

pub(super) fn check(bus: &Bus) -> Result<(), PlanError> {
    check_order(bus)?;
    for (key, count) in [("bus.failures", bus.failures), ("bus.max_tries", bus.max_tries)] {
        if !(1..=1000).contains(&count) {
            return Err(value_error(key, format!("is {count}; it must be from 1 to 1000")));
        }
    }
    let hour = Duration::from_secs(3600);
    let year = Duration::from_secs(8760 * 3600);
    for (key, value, min, max) in [
        ("bus.probe_interval", Some(bus.probe_interval), Duration::from_millis(50), hour),
        ("bus.timeout", Some(bus.timeout), Duration::from_millis(100), hour),
        ("bus.retry_after", Some(bus.retry_after), Duration::from_millis(100), hour),
        ("bus.close_after", Some(bus.close_after), Duration::from_millis(100), hour),
        ("bus.return_after", Some(bus.return_after), Duration::from_millis(100), hour),
        ("bus.drain_within", Some(bus.drain_within), Duration::from_millis(100), hour),
        ("bus.ttl", bus.ttl, Duration::from_secs(1), year),
    ] {
        if let Some(value) = value.filter(|value| !(min..=max).contains(value)) {
            let problem = format!("is {value}; it must be from {min} to {max}");
            return Err(value_error(key, problem));
        }
    }
    if bus.return_after < bus.close_after {
        let problem = format!(
            "is {}, less than bus.close_after = {}: a bus must count as healthy before messages \
             go back to it",
            bus.return_after, bus.close_after
        );
        return Err(value_error("bus.return_after", problem));
    }
    check_kafka(&bus.kafka)?;
    check_rabbitmq(&bus.rabbitmq)
}

fn check_order(bus: &Bus) -> Result<(), PlanError> {
    let order = &bus.order;
    let Some(last) = order.last() else {
        return Err(value_error("bus.order", "is empty; name at least one bus, such as embedded"));
    };
    let mut seen = BTreeSet::new();
    if let Some(twice) = order.iter().find(|kind| !seen.insert(**kind)) {
        return Err(value_error("bus.order", format!("names {twice} twice")));
    }
    if *last != BusKind::Embedded && seen.contains(&BusKind::Embedded) {
        let problem = "has embedded before another bus, which would never be used: put it last";
        return Err(value_error("bus.order", problem));
    }
    if bus.kafka.brokers > 5 {
        let problem = format!("is {}; it must be from 1 to 5", bus.kafka.brokers);
        return Err(value_error("bus.kafka.brokers", problem));
    }
    if bus.rabbitmq.nodes > 1 {
        let problem = format!("is {}; it must be 0 or 1", bus.rabbitmq.nodes);
        return Err(value_error("bus.rabbitmq.nodes", problem));
    }
    for (kind, key, outside, own_key, own, example) in [
        (
            BusKind::Kafka,
            "bus.kafka.bootstrap",
            !bus.kafka.bootstrap.is_empty(),
            "bus.kafka.brokers = 3",
            bus.kafka.brokers > 0,
            "[\"127.0.0.1:9092\"]",
        ),
        (
            BusKind::RabbitMq,
            "bus.rabbitmq.urls",
            !bus.rabbitmq.urls.is_empty(),
            "bus.rabbitmq.nodes = 1",
            bus.rabbitmq.nodes > 0,
            "[\"amqp://127.0.0.1:5672\"]",
        ),
    ] {
        if outside && own {
            let problem = format!("and {own_key} exclude each other: it runs elsewhere, or here");
            return Err(value_error(key, problem));
        }
        if seen.contains(&kind) && !outside && !own {
            let problem = format!(
                "is missing: bus.order names {kind}, so say where it is, such as {example}, or \
                 have it run here with {own_key}"
            );
            return Err(value_error(key, problem));
        }
    }
    Ok(())
}

fn check_kafka(kafka: &Kafka) -> Result<(), PlanError> {
    let is_address = |text: &str| {
        text.rsplit_once(':').is_some_and(|(host, port)| {
            let plain = |c: char| c.is_ascii_graphic() && !"/@,".contains(c);
            !host.is_empty() && host.chars().all(plain) && port.parse::<u16>().is_ok_and(|p| p > 0)
        })
    };
    if let Some(index) = kafka.bootstrap.iter().position(|text| !is_address(text)) {
        // Not repeated: who takes it for a URL may have put a password into it.
        let key = format!("bus.kafka.bootstrap[{index}]");
        return Err(value_error(&key, "is no address: write host:port, without a scheme"));
    }
    let topic = &kafka.topic;
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let fits = (1..=249).contains(&topic.len()) && topic.bytes().all(plain);
    if !fits || topic == "." || topic == ".." {
        let problem = format!("is {topic:?}; use 1 to 249 of a-z, A-Z, 0-9, '.', '_' and '-'");
        return Err(value_error("bus.kafka.topic", problem));
    }
    if kafka.username.is_some() != kafka.password.is_some() {
        let problem = "and bus.kafka.password (or KAFKA_PASSWORD) belong together: give both";
        return Err(value_error("bus.kafka.username", problem));
    }
    if !["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"].contains(&kafka.mechanism.as_str()) {
        let problem =
            format!("is {:?}; use PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512", kafka.mechanism);
        return Err(value_error("bus.kafka.mechanism", problem));
    }
    Ok(())
}

fn check_rabbitmq(rabbitmq: &RabbitMq) -> Result<(), PlanError> {
    rabbitmq.urls.iter().enumerate().try_for_each(|(index, url)| check_url(index, url))?;
    let queue = &rabbitmq.queue;
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if !(1..=200).contains(&queue.len()) || !queue.bytes().all(plain) || queue.starts_with("amq.") {
        let problem = format!(
            "is {queue:?}; use 1 to 200 of a-z, A-Z, 0-9, '.', '_' and '-', and not amq. in front"
        );
        return Err(value_error("bus.rabbitmq.queue", problem));
    }
    let is_http = |url: &String| url.starts_with("http://") || url.starts_with("https://");
    if rabbitmq.management.as_ref().is_some_and(|url| !is_http(url)) {
        let problem = "must begin with http:// or https://";
        return Err(value_error("bus.rabbitmq.management", problem));
    }
    Ok(())
}

/// Never repeats the URL, which may hold a password.
fn check_url(index: usize, url: &str) -> Result<(), PlanError> {
    let key = format!("bus.rabbitmq.urls[{index}]");
    let rest = url.strip_prefix("amqp://").or_else(|| url.strip_prefix("amqps://"));
    let Some(rest) = rest else {
        return Err(value_error(&key, "must begin with amqp:// or amqps://"));
    };
    let (authority, after) = match rest.find(['/', '?', '#']) {
        Some(end) => rest.split_at(end),
        None => (rest, ""),
    };
    // Such a password would end where the reader of the URL does not expect it, and be shown.
    if after.contains('@') || authority.matches('@').count() > 1 {
        let problem = "has an @ behind the host; write @, /, ? and # in a name or a password as \
                       %40, %2F, %3F and %23";
        return Err(value_error(&key, problem));
    }
    if authority.rsplit('@').next().is_none_or(str::is_empty) {
        return Err(value_error(&key, "names no host"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::EffectivePlan;
    use super::*;

    fn shown(effective: &EffectivePlan, key: &str) -> (String, String) {
        let setting = effective.settings.iter().find(|s| s.key == key).unwrap();
        (setting.value.clone(), setting.origin.to_string())
    }

    const BOTH: &str = "[bus.kafka]\nbootstrap = ['a:9092', '[::1]:9093']\n\
                        username = 'me'\npassword = 'secret'\n\
                        [bus.rabbitmq]\nurls = ['amqp://me:secret@b:5672/x?heartbeat=5']\n\
                        management = 'http://me:secret@b:15672'\n";

    #[test]
    fn the_variable_gives_the_order_and_goes_before_the_file() {
        let env =
            |name: &str| (name == "MESSAGE_BUS_TYPE").then(|| "kafka, rabbitmq,embedded".into());
        let text = format!("[bus]\norder = ['rabbitmq']\nmax_tries = 7\n{BOTH}");
        let effective = EffectivePlan::resolve(Some(&text), env).unwrap();
        let order = [BusKind::Kafka, BusKind::RabbitMq, BusKind::Embedded];
        assert_eq!(effective.plan.bus.order, order);
        assert_eq!(shown(&effective, "bus.order").1, "environment MESSAGE_BUS_TYPE");
        assert_eq!(shown(&effective, "bus.max_tries"), ("7".into(), "file".into()));
        assert_eq!(shown(&effective, "bus.failures"), ("3".into(), "default".into()));
    }

    #[test]
    fn an_empty_variable_is_none_and_an_unknown_bus_is_named() {
        let resolve = |value: &'static str| {
            EffectivePlan::resolve(None, move |name| {
                (name == "MESSAGE_BUS_TYPE").then(|| value.to_owned())
            })
        };
        assert_eq!(resolve("").unwrap().plan.bus, Bus::default());
        for (value, expected) in [
            ("kafak", "kafak"),
            ("embedded,", "\"\""),
            ("embedded,embedded", "twice"),
            ("kafka", "bus.kafka.bootstrap"),
            ("rabbitmq", "bus.rabbitmq.urls"),
        ] {
            let error = resolve(value).unwrap_err().to_string();
            assert!(error.contains(expected), "{value:?}: {error}");
        }
    }

    #[test]
    fn no_password_is_shown() {
        let effective = EffectivePlan::resolve(Some(BOTH), |_| None).unwrap();
        let (urls, origin) = shown(&effective, "bus.rabbitmq.urls");
        assert_eq!(urls, "[\"amqp://me:***@b:5672/x?heartbeat=5\"]");
        assert_eq!(origin, "file");
        assert_eq!(shown(&effective, "bus.kafka.password").0, "\"***\"");
        assert_eq!(shown(&effective, "bus.rabbitmq.management").0, "\"http://me:***@b:15672\"");
    }

    #[test]
    fn secrets_may_come_from_the_environment() {
        let env = |name: &str| match name {
            "KAFKA_PASSWORD" => Some("secret".to_owned()),
            "RABBITMQ_URL" => Some("amqp://me:secret@a".to_owned()),
            _ => None,
        };
        let text = "[bus.kafka]\nusername = 'me'";
        let effective = EffectivePlan::resolve(Some(text), env).unwrap();
        assert_eq!(effective.plan.bus.kafka.password.as_deref(), Some("secret"));
        assert_eq!(effective.plan.bus.rabbitmq.urls, ["amqp://me:secret@a"]);
        let (password, origin) = shown(&effective, "bus.kafka.password");
        assert_eq!((password.as_str(), origin.as_str()), ("\"***\"", "environment KAFKA_PASSWORD"));
    }

    #[test]
    fn a_process_without_a_plan_is_told_by_its_environment() {
        let mut bus = EffectivePlan::resolve(Some(BOTH), |_| None).unwrap().plan.bus;
        bus.order = vec![BusKind::Kafka, BusKind::RabbitMq];
        let table = bus.to_toml().unwrap();
        let env = |name: &str| match name {
            BUS_VARIABLE => Some(table.clone()),
            "DATABASE_URL" => Some("not for it".to_owned()),
            _ => None,
        };
        assert_eq!(Bus::from_env(env).unwrap(), bus);
        let own =
            |name: &str| (name == BUS_VARIABLE).then(|| "[bus.kafka]\nbrokers = 3".to_owned());
        assert!(Bus::from_env(own).unwrap_err().to_string().contains("bus.kafka.brokers"));
        assert_eq!(Bus::from_env(|_| None).unwrap(), Bus::default());
    }

    #[test]
    fn errors_name_the_place_and_hold_no_password() {
        for (text, expected) in [
            ("[bus]\nordre = ['kafka']", "ordre"),
            ("[bus]\norder = ['kafka']", "bus.kafka.brokers = 3"),
            ("[bus.kafka]\nbrokers = 3\nbootstrap = ['a:1']", "exclude each other"),
            ("[bus.kafka]\nbrokers = 6", "bus.kafka.brokers"),
            ("[bus.kafka]\npassword = 'secret'", "bus.kafka.username"),
            ("[bus.kafka]\nmechanism = 'LOUD'", "SCRAM-SHA-512"),
            ("[bus.rabbitmq]\nnodes = 2", "0 or 1"),
            ("[bus.rabbitmq]\nqueue = 'amq.x'", "bus.rabbitmq.queue"),
            ("[bus.rabbitmq]\nmanagement = 'me:secret@a'", "bus.rabbitmq.management"),
            ("[bus]\norder = []", "bus.order"),
            ("[bus]\norder = ['pigeon']", "pigeon"),
            ("[bus]\norder = ['embedded', 'kafka']", "put it last"),
            ("[bus]\nfailures = 0", "bus.failures"),
            ("[bus]\nmax_tries = 1001", "bus.max_tries"),
            ("[bus]\nttl = '10ms'", "bus.ttl"),
            ("[bus]\ntimeout = '2h'", "bus.timeout"),
            ("[bus]\nreturn_after = '1s'", "bus.close_after"),
            ("[bus.kafka]\nbootstrap = ['kafka://me:secret@a:1']", "bus.kafka.bootstrap[0]"),
            ("[bus.kafka]\nbootstrap = ['a:1', 'a']", "bus.kafka.bootstrap[1]"),
            ("[bus.kafka]\nbootstrap = ['a:0']", "bus.kafka.bootstrap[0]"),
            ("[bus.kafka]\ntopic = 'a b'", "bus.kafka.topic"),
            ("[bus.rabbitmq]\nurl = 'amqp://a'", "urls"),
            ("[bus.rabbitmq]\nurls = ['http://me:secret@a']", "amqp://"),
            ("[bus.rabbitmq]\nurls = ['amqp://me:secret@']", "names no host"),
            ("[bus.rabbitmq]\nurls = ['amqp://me:secret?@a']", "%3F"),
            ("[bus.rabbitmq]\nurls = ['amqp://me:secret@x@a']", "%40"),
        ] {
            let error = EffectivePlan::resolve(Some(text), |_| None).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
            assert!(!error.contains("secret"), "{text:?}: {error}");
        }
    }
}
