//! What a store counts: its operations, and its ways to the database.
//!
//! The adapters count where they already know the name of the operation, so that a new operation
//! needs no line here.

use std::time::Instant;

use resurgam_metrics::{Counter, Family, Fixed, Gauge, Histogram, LATENCY, Registry, SIZES};

use resurgam_model::task::Outcome;

use crate::Error;

type Durations = Family<Fixed<1>, Histogram, fn() -> Histogram>;

/// What one store counts, from its opening to its end.
#[derive(Debug)]
pub struct Meters {
    operations: Durations,
    errors: Family<Fixed<2>, Counter>,
    events: Family<Fixed<1>, Counter>,
    /// Requests that wait for SQLite's writer.
    pub(crate) writer_queue: Gauge,
    /// Requests that shared a transaction of SQLite's writer.
    pub(crate) writer_batch: Histogram,
    /// Connections to PostgreSQL.
    pub(crate) pool: Pool,
}

/// The connections to PostgreSQL.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    pub(crate) connections: Family<Fixed<1>, Gauge>,
    pub(crate) most: Gauge,
    pub(crate) waiting: Gauge,
}

impl Default for Meters {
    fn default() -> Self {
        let latency: fn() -> Histogram = || Histogram::seconds(LATENCY);
        Self {
            operations: Durations::new_with_constructor(latency),
            errors: Family::default(),
            events: Family::default(),
            writer_queue: Gauge::default(),
            writer_batch: Histogram::sizes(SIZES),
            pool: Pool::default(),
        }
    }
}

impl Meters {
    /// Adds them to a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.add(
            "resurgam_store_operation_duration_seconds",
            "Operations on the store, with the wait for a connection or for the writer",
            &["operation"],
            self.operations.clone(),
        );
        registry.add(
            "resurgam_store_errors_total",
            "Operations on the store that failed",
            &["operation", "kind"],
            self.errors.clone(),
        );
        registry.add(
            "resurgam_task_events_total",
            "What became of tasks by way of this process: submitted, claimed, completed, failed \
             (a try), returned (a lease that ran out or whose holder is gone). Words that are \
             repeated count again",
            &["event"],
            self.events.clone(),
        );
        registry.add(
            "resurgam_sqlite_writer_queue",
            "Requests that wait for the one writer of SQLite",
            &[],
            self.writer_queue.clone(),
        );
        registry.add(
            "resurgam_sqlite_batch_requests",
            "Requests that shared one transaction of SQLite's writer",
            &[],
            self.writer_batch.clone(),
        );
        registry.add(
            "resurgam_postgres_pool_connections",
            "Connections to PostgreSQL, idle and in use",
            &["state"],
            self.pool.connections.clone(),
        );
        registry.add(
            "resurgam_postgres_pool_connections_max",
            "Connections to PostgreSQL at most; 0 when the store is another",
            &[],
            self.pool.most.clone(),
        );
        registry.add(
            "resurgam_postgres_pool_waiting",
            "Operations that wait for a connection to PostgreSQL",
            &[],
            self.pool.waiting.clone(),
        );
    }

    /// Counts what became of tasks.
    pub(crate) fn tasks(&self, event: &'static str, count: usize) {
        if count > 0 {
            let count = u64::try_from(count).unwrap_or(u64::MAX);
            self.events.get_or_create(&[("event", event)]).inc_by(count);
        }
    }

    /// Counts the words about leases that were accepted.
    pub(crate) fn words(&self, event: &'static str, outcomes: &[Outcome]) {
        let accepted = outcomes.iter().filter(|outcome| **outcome == Outcome::Accepted);
        self.tasks(event, accepted.count());
    }

    /// Counts an operation that has ended.
    pub(crate) fn operation(&self, action: &'static str, began: Instant) {
        self.operations.get_or_create(&[("operation", action)]).observe(began.elapsed());
    }

    /// Counts an error, unless it is an answer to the caller.
    pub(crate) fn error(&self, action: &'static str, error: &Error) {
        if let Some(kind) = kind(error) {
            self.errors.get_or_create(&[("operation", action), ("kind", kind)]).inc();
        }
    }

    /// Counts an operation and what it gave.
    pub(crate) fn outcome<T>(
        &self,
        action: &'static str,
        began: Instant,
        result: &crate::Result<T>,
    ) {
        self.operation(action, began);
        if let Err(error) = result {
            self.error(action, error);
        }
    }
}

/// The label of an error of the store itself.
fn kind(error: &Error) -> Option<&'static str> {
    Some(match error {
        Error::NoWritableHost(_) => "no-writable-host",
        Error::Timeout(_) => "timeout",
        Error::DiskFull(_) => "disk-full",
        Error::Closed => "closed",
        Error::Corrupt(_) => "corrupt",
        Error::NewerSchema { .. } => "newer-schema",
        Error::Settings(_) => "settings",
        Error::Sqlite { .. } | Error::Postgres { .. } => "database",
        // What else there is, is said to the caller about what it asked for.
        _ => return None,
    })
}
