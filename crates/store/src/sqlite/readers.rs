//! A few connections for reading, used off the asynchronous threads.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::Semaphore;

use super::connection;
use super::fault::{Fault, during};
use crate::{Error, Meters, Result};

/// Most readings at once.
const READERS: usize = 4;

/// Opens connections as they are needed and keeps them.
pub(super) struct Readers {
    path: PathBuf,
    permits: Arc<Semaphore>,
    idle: Arc<Mutex<Vec<Connection>>>,
    meters: Arc<Meters>,
}

impl Readers {
    pub(super) fn new(path: &Path, meters: Arc<Meters>) -> Self {
        Self {
            path: path.to_owned(),
            permits: Arc::new(Semaphore::new(READERS)),
            idle: Arc::default(),
            meters,
        }
    }

    /// Runs a request on one state of the database, without waiting for the writer.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        action: &'static str,
        request: impl FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T> {
        let began = Instant::now();
        let result = self.read(action, request).await;
        self.meters.outcome(action, began, &result);
        result
    }

    async fn read<T: Send + 'static>(
        &self,
        action: &'static str,
        request: impl FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| Error::Closed)?;
        let (path, idle) = (self.path.clone(), Arc::clone(&self.idle));
        let read = move || {
            let kept = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut connection = match kept {
                Some(connection) => connection,
                None => connection::open_reader(&path)?,
            };
            let transaction = connection
                .transaction_with_behavior(TransactionBehavior::Deferred)
                .map_err(|source| during(source, action))?;
            let value = request(&transaction).map_err(|fault| fault.during(action))?;
            drop(transaction);
            // After an error the connection is closed instead, in case it was the cause.
            idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
            drop(permit);
            Ok(value)
        };
        tokio::task::spawn_blocking(read).await.map_err(|_| Error::Closed)?
    }
}
