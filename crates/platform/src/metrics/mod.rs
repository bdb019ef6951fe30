//! The figures of one process of the platform.

mod bus;

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use resurgam_metrics::{
    Computed, Counter, Family, Format, Gauge, Histogram, LATENCY, MOST_CAPABILITIES, Named, OTHER,
    Registry, build_info, process, traces,
};
use resurgam_store::{Meters, Queue, SharedStore, Snapshot};
use tokio::sync::watch;

/// The store is asked at most so often.
const EVERY: Duration = Duration::from_secs(1);
/// A scrape waits so long for the store, and tells what was known before if it does not answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// All figures of a process.
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) http: Http,
    stock: Arc<Stock>,
}

/// What is counted of requests.
#[derive(Debug)]
pub(crate) struct Http {
    requests: Family<Named<3>, Counter>,
    durations: Family<Named<2>, Histogram, fn() -> Histogram>,
    long_polls: Family<Named<1>, Histogram, fn() -> Histogram>,
    pub(crate) in_flight: Gauge,
}

impl Default for Http {
    fn default() -> Self {
        let latency: fn() -> Histogram = || Histogram::seconds(LATENCY);
        Self {
            requests: Family::default(),
            durations: Family::new_with_constructor(latency),
            long_polls: Family::new_with_constructor(latency),
            in_flight: Gauge::default(),
        }
    }
}

impl Http {
    fn register(&self, registry: &mut Registry) {
        registry.add(
            "resurgam_http_requests_total",
            "Requests, by the class of their status; gone when the caller did not wait for it",
            &["method", "route", "status"],
            self.requests.clone(),
        );
        registry.add(
            "resurgam_http_request_duration_seconds",
            "How long requests took that did not ask to wait",
            &["method", "route"],
            self.durations.clone(),
        );
        registry.add(
            "resurgam_http_long_poll_duration_seconds",
            "How long requests took that asked to wait for something to come",
            &["route"],
            self.long_polls.clone(),
        );
        registry.add(
            "resurgam_http_requests_in_flight",
            "Requests that are being answered, those that wait too",
            &[],
            self.in_flight.clone(),
        );
    }

    /// Counts a request that is over, and whether it waited. Without a status its caller left.
    pub(crate) fn count(
        &self,
        method: &'static str,
        route: Cow<'static, str>,
        end: Option<(StatusCode, bool)>,
        took: Duration,
    ) {
        let class = match end.map(|(status, _)| status.as_u16() / 100) {
            Some(1) => "1xx",
            Some(2) => "2xx",
            Some(3) => "3xx",
            Some(4) => "4xx",
            Some(_) => "5xx",
            None => "gone",
        };
        let method = Cow::Borrowed(method);
        match end {
            Some((_, true)) => {
                self.long_polls.get_or_create(&[("route", route.clone())]).observe(took);
            }
            Some((_, false)) => {
                let labels = [("method", method.clone()), ("route", route.clone())];
                self.durations.get_or_create(&labels).observe(took);
            }
            None => {}
        }
        let labels = [("method", method), ("route", route), ("status", Cow::Borrowed(class))];
        self.requests.get_or_create(&labels).inc();
    }
}

impl Metrics {
    /// Counts nothing yet.
    pub(crate) fn new(store: &Meters) -> Self {
        let mut registry = Registry::default();
        build_info(&mut registry, env!("CARGO_PKG_VERSION"), "platform");
        let http = Http::default();
        http.register(&mut registry);
        store.register(&mut registry);
        let stock = Arc::new(Stock::default());
        stock.register(&mut registry);
        traces().register(&mut registry);
        process(&mut registry);
        Self { registry, http, stock }
    }

    /// What there is to know now, waiting a little for the store.
    pub(crate) async fn scrape(&self, store: &SharedStore, format: Format) -> String {
        // Brings the gauges up to date.
        let _ = store.meters();
        Stock::refresh(&self.stock, store).await;
        self.registry.encode(format)
    }
}

/// The metrics of the platform, for its documentation.
#[must_use]
pub fn catalogue() -> Registry {
    Metrics::new(&Meters::default()).registry
}

/// How things stand in the store, as they were when it was last asked.
#[derive(Default)]
struct Stock {
    known: Mutex<Known>,
    asking: watch::Sender<bool>,
}

#[derive(Default)]
struct Known {
    snapshot: Snapshot,
    buses: bus::Buses,
    /// When the store was last asked.
    asked: Option<Instant>,
    /// When it last answered.
    answered: Option<Instant>,
    /// It did not answer when it was last asked.
    failed: bool,
}

impl Stock {
    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the store unless that was done just now, and waits a little for the answer. A slow
    /// answer comes in all the same, for the next scrape.
    async fn refresh(this: &Arc<Self>, store: &SharedStore) {
        let recent = this.known().asked.is_some_and(|asked| asked.elapsed() < EVERY);
        let begins =
            !recent && this.asking.send_if_modified(|asking| !std::mem::replace(asking, true));
        if begins {
            this.known().asked = Some(Instant::now());
            let (stock, store) = (Arc::clone(this), Arc::clone(store));
            tokio::spawn(async move {
                let answer = Asking(stock);
                let figures = ask(&store).await;
                let mut known = answer.0.known();
                known.failed = figures.is_err();
                if let Ok((snapshot, buses)) = figures {
                    (known.snapshot, known.buses) = (snapshot, buses);
                    known.answered = Some(Instant::now());
                }
                drop(known);
            });
        }
        let mut asking = this.asking.subscribe();
        // Without an answer in time, what was known before is told.
        let _ = tokio::time::timeout(PATIENCE, asking.wait_for(|asking| !asking)).await;
    }

    fn register(self: &Arc<Self>, registry: &mut Registry) {
        let stock = Arc::clone(self);
        registry.add(
            "resurgam_tasks",
            "Tasks that are not completed or cancelled",
            &["capability", "state"],
            Computed::gauges(move || depths(&stock.known().snapshot.queues)),
        );
        let stock = Arc::clone(self);
        registry.add(
            "resurgam_task_oldest_ready_seconds",
            "For how long the oldest task that can be claimed could have been claimed",
            &["capability"],
            Computed::gauges(move || oldest(&stock.known().snapshot.queues)),
        );
        let stock = Arc::clone(self);
        let agents = move || {
            let known = stock.known();
            let agents = known.snapshot.agents.iter();
            agents.map(|(state, n)| ([("state", Cow::Owned(state.clone()))], number(*n))).collect()
        };
        registry.add("resurgam_agents", "Agents", &["state"], Computed::gauges(agents));
        bus::register(self, registry);
        let stock = Arc::clone(self);
        registry.add(
            "resurgam_stock_stale",
            "1 when the store did not answer, so that what it knows is old or missing: tasks, \
             agents, buses, outbox and dead letters",
            &[],
            Computed::gauge(move || Some(f64::from(u8::from(stock.is_stale())))),
        );
        let stock = Arc::clone(self);
        registry.add(
            "resurgam_stock_age_seconds",
            "How long ago the store told of tasks, agents, buses, outbox and dead letters",
            &[],
            Computed::gauge(move || Some(stock.known().answered?.elapsed().as_secs_f64())),
        );
    }

    fn is_stale(&self) -> bool {
        let asking = *self.asking.borrow();
        let known = self.known();
        known.failed || known.answered.is_none() || asking
    }
}

async fn ask(store: &SharedStore) -> resurgam_store::Result<(Snapshot, bus::Buses)> {
    Ok((store.figures().await?, bus::Buses::ask(store).await?))
}

/// While this is there, the store is being asked.
struct Asking(Arc<Stock>);

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.asking.send_replace(false);
    }
}

#[allow(clippy::cast_precision_loss, reason = "figures are floating point numbers")]
fn number(number: u64) -> f64 {
    number as f64
}

/// The longest queues one by one, the others together.
fn depths(queues: &[Queue]) -> Vec<(Named<2>, f64)> {
    let (few, rest) = fold(queues);
    let rest = rest.map(|rest| (Cow::Borrowed(OTHER), rest));
    let all = few
        .iter()
        .map(|queue| (named(queue), [queue.ready, queue.scheduled, queue.running, queue.dead]));
    let mut depths = Vec::new();
    for (capability, numbers) in all.chain(rest) {
        for (state, n) in ["ready", "scheduled", "running", "dead"].into_iter().zip(numbers) {
            let labels = [("capability", capability.clone()), ("state", Cow::Borrowed(state))];
            depths.push((labels, number(n)));
        }
    }
    depths
}

fn oldest(queues: &[Queue]) -> Vec<(Named<1>, f64)> {
    let mut oldest: Vec<_> =
        queues.iter().filter_map(|queue| Some((queue, queue.oldest_ready?))).collect();
    oldest.sort_by_key(|(_, age)| std::cmp::Reverse(*age));
    oldest.truncate(MOST_CAPABILITIES);
    oldest
        .into_iter()
        .map(|(queue, age)| ([("capability", named(queue))], age.as_secs_f64()))
        .collect()
}

fn named(queue: &Queue) -> Cow<'static, str> {
    Cow::Owned(queue.capability.as_str().to_owned())
}

/// The longest queues, in the order of their names, and what is in the others by state.
fn fold(queues: &[Queue]) -> (Vec<&Queue>, Option<[u64; 4]>) {
    let mut few: Vec<&Queue> = queues.iter().collect();
    if few.len() <= MOST_CAPABILITIES {
        return (few, None);
    }
    few.sort_by_key(|queue| {
        std::cmp::Reverse(queue.ready + queue.scheduled + queue.running + queue.dead)
    });
    let mut rest = [0; 4];
    for queue in few.split_off(MOST_CAPABILITIES) {
        let numbers = [queue.ready, queue.scheduled, queue.running, queue.dead];
        rest.iter_mut().zip(numbers).for_each(|(sum, number)| *sum += number);
    }
    few.sort_by(|a, b| a.capability.cmp(&b.capability));
    (few, Some(rest))
}

#[cfg(test)]
mod tests {
    use resurgam_model::Capability;

    use super::*;

    fn queue(name: &str, ready: u64, oldest: Option<u64>) -> Queue {
        Queue {
            capability: Capability::new(name).unwrap(),
            ready,
            scheduled: 1,
            running: 0,
            dead: 0,
            oldest_ready: oldest.map(Duration::from_secs),
        }
    }

    const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs");

    /// The document about the metrics, made from what they say of themselves.
    fn reference() -> String {
        let mut text = "# Metrics\n\nWhat `GET /metrics` tells, in the text format of Prometheus or as OpenMetrics. Made from the code by\n\
            `UPDATE_DOCS=1 cargo test -p resurgam-platform metrics`. Capabilities beyond the first hundred are told\n\
            together. [alerts.example.yml](alerts.example.yml) has rules to start from.\n\n\
            | metric | kind | labels | meaning |\n|---|---|---|---|\n"
            .to_owned();
        for entry in catalogue().entries() {
            let labels: Vec<_> = entry.labels.iter().map(|label| format!("`{label}`")).collect();
            let help = entry.help;
            let line =
                format!("| `{}` | {} | {} | {help} |\n", entry.name, entry.kind, labels.join(", "));
            text.push_str(&line);
        }
        text
    }

    #[test]
    fn the_document_about_metrics_is_up_to_date() {
        let (text, path) = (reference(), format!("{FOLDER}/metrics.md"));
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        assert!(
            std::fs::read_to_string(path).unwrap_or_default() == text,
            "docs/metrics.md is not what the code says; renew it and look at the difference:\n\n    \
             UPDATE_DOCS=1 cargo test -p resurgam-platform metrics\n"
        );
    }

    #[test]
    fn alerts_ask_for_what_there_is() {
        let rules = std::fs::read_to_string(format!("{FOLDER}/alerts.example.yml")).unwrap();
        let catalogue = catalogue();
        let mut asked = 0;
        for word in rules.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
            let name = word.strip_suffix("_bucket").unwrap_or(word);
            if name.starts_with("resurgam_") {
                assert!(catalogue.entries().iter().any(|entry| entry.name == name), "{name}");
                asked += 1;
            }
        }
        assert!(asked > 5);
    }

    #[test]
    fn the_shortest_of_many_queues_are_told_together() {
        let queues: Vec<_> = (0..MOST_CAPABILITIES as u64 + 3)
            .map(|n| queue(&format!("c{n:03}"), n, (n > 0).then_some(n)))
            .collect();
        let depths = depths(&queues);
        assert_eq!(depths.len(), (MOST_CAPABILITIES + 1) * 4);
        let of = |capability: &str, state: &str| {
            let labels = [
                ("capability", Cow::Owned(capability.to_owned())),
                ("state", Cow::Owned(state.to_owned())),
            ];
            depths.iter().find(|(found, _)| *found == labels).map(|(_, value)| *value)
        };
        assert_eq!(of("c003", "ready"), Some(3.0));
        assert_eq!(of("c002", "ready"), None);
        assert_eq!((of(OTHER, "ready"), of(OTHER, "scheduled")), (Some(3.0), Some(3.0)));
        let oldest = oldest(&queues);
        assert_eq!(oldest.len(), MOST_CAPABILITIES);
        assert_eq!(oldest[0].1, 102.0);
    }

    #[test]
    fn requests_that_wait_do_not_spoil_the_latency() {
        let http = Http::default();
        let took = Duration::from_millis(1);
        http.count("POST", "/a".into(), Some((StatusCode::OK, false)), took);
        http.count("POST", "/a".into(), Some((StatusCode::OK, true)), took);
        http.count("POST", "/a".into(), None, took);
        let route = || ("route", Cow::Borrowed("/a"));
        let labels = [("method", Cow::Borrowed("POST")), route()];
        assert_eq!(http.durations.get_or_create(&labels).count(), 1);
        assert_eq!(http.long_polls.get_or_create(&[route()]).count(), 1);
        for class in ["2xx", "gone"] {
            let labels =
                [("method", Cow::Borrowed("POST")), route(), ("status", Cow::Borrowed(class))];
            assert_eq!(
                http.requests.get_or_create(&labels).get(),
                if class == "gone" { 1 } else { 2 }
            );
        }
    }
}
