//! One use of a connection: bounded in time, and given back only when all went well.

use std::future::Future;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use deadpool_postgres::{Object, PoolError};
use tokio::time::{Instant, timeout_at};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::PostgresStore;
use crate::error::connection_is_lost;
use crate::{Error, Result};

/// A value for a statement.
pub(super) type Param<'a> = &'a (dyn ToSql + Sync);

/// Values for a statement.
pub(super) type Params<'a> = &'a [Param<'a>];

/// A connection in use. Unless it is finished, it is closed when it is dropped: an operation
/// that failed, timed out or was given up may have left anything on it.
pub(super) struct Session<'s> {
    store: &'s PostgresStore,
    connection: Option<Object>,
    action: &'static str,
    deadline: Instant,
    timeout: Duration,
    generation: u64,
    began: std::time::Instant,
}

impl PostgresStore {
    /// Takes a connection for an operation.
    pub(super) async fn session(&self, action: &'static str) -> Result<Session<'_>> {
        self.session_within(action, self.timeout).await
    }

    /// Takes a connection for an operation that may take so long.
    pub(super) async fn session_within(
        &self,
        action: &'static str,
        timeout: Duration,
    ) -> Result<Session<'_>> {
        let began = std::time::Instant::now();
        let deadline = Instant::now() + timeout;
        let generation = self.generation.load(Ordering::Acquire);
        let error = match timeout_at(deadline, self.pool.get()).await {
            Ok(Ok(connection)) => {
                let connection = Some(connection);
                let store = self;
                return Ok(Session {
                    store,
                    connection,
                    action,
                    deadline,
                    timeout,
                    generation,
                    began,
                });
            }
            Ok(Err(PoolError::Backend(_))) => self.no_writable_host(),
            Ok(Err(PoolError::Timeout(_))) | Err(_) => {
                Error::Timeout(resurgam_model::Duration(timeout))
            }
            Ok(Err(_)) => Error::Closed,
        };
        self.meters.operation(action, began);
        self.meters.error(action, &error);
        Err(error)
    }

    /// An operation of one statement.
    pub(super) async fn query(
        &self,
        action: &'static str,
        sql: &'static str,
        params: Params<'_>,
    ) -> Result<Vec<Row>> {
        let mut tries = 0;
        loop {
            let mut session = self.session(action).await?;
            match session.query(sql, params).await {
                Ok(rows) => {
                    session.finish();
                    return Ok(rows);
                }
                // One of two that wait for each other is told to try again. Rows are locked in
                // order where that is cheap, but a long statement need not be.
                Err(error) if error.is_deadlock() && tries < 3 => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }

    fn no_writable_host(&self) -> Error {
        Error::NoWritableHost(self.refusals.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Closes the idle connections, and those in use once they come back, so that the next
    /// operation looks for the server that accepts writes.
    fn look_again(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.pool.retain(|_, _| false);
    }
}

impl Session<'_> {
    /// Runs a statement, prepared once for each connection.
    pub(super) async fn query(
        &mut self,
        sql: &'static str,
        params: Params<'_>,
    ) -> Result<Vec<Row>> {
        let Some(connection) = &self.connection else { return Err(Error::Closed) };
        let run = async {
            let statement = connection.prepare_cached(sql).await?;
            connection.query(&statement, params).await
        };
        self.bounded(run).await
    }

    /// Runs statements without values, such as `BEGIN`.
    pub(super) async fn batch(&mut self, sql: &str) -> Result<()> {
        let Some(connection) = &self.connection else { return Err(Error::Closed) };
        self.bounded(connection.batch_execute(sql)).await
    }

    /// Gives the connection back.
    pub(super) fn finish(mut self) {
        if self.generation == self.store.generation.load(Ordering::Acquire) {
            // Dropping it is giving it back.
            self.connection.take();
        }
    }

    async fn bounded<T>(
        &self,
        run: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T> {
        let error = match timeout_at(self.deadline, run).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(source)) => {
                if server_is_lost(&source) {
                    self.store.look_again();
                }
                told(self.action, source)
            }
            Err(_) => {
                // The server may be frozen. To find that out anew on each connection would cost
                // a whole timeout each.
                self.store.look_again();
                Error::Timeout(resurgam_model::Duration(self.timeout))
            }
        };
        self.store.meters.error(self.action, &error);
        Err(error)
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.store.meters.operation(self.action, self.began);
        if let Some(connection) = self.connection.take() {
            drop(Object::take(connection));
        }
    }
}

fn told(action: &'static str, source: tokio_postgres::Error) -> Error {
    match source.as_db_error() {
        Some(error) if error.code().code() == "53100" => {
            Error::DiskFull(format!("PostgreSQL could not {action}: {}", error.message()))
        }
        _ => Error::Postgres { action, source },
    }
}

/// Whether another server may be the right one now.
fn server_is_lost(error: &tokio_postgres::Error) -> bool {
    match error.code() {
        Some(code) => matches!(code.code(), "25006" | "57P01" | "57P02" | "57P03"),
        None => connection_is_lost(error),
    }
}
