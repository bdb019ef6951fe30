//! The store in PostgreSQL, for a platform on several machines.
//!
//! Every operation is one transaction and bounded in time. Rows are always locked in the same
//! order, agents before limits before tasks before mailboxes and each kind by its id, so that two
//! operations rarely wait for each other; if they do, one is repeated.

mod access;
mod advance;
mod bell;
mod bus;
mod changes;
mod checkpoints;
mod claim;
mod claim_limited;
mod connect;
mod ends;
mod failing;
mod figures;
mod finish;
mod letters;
mod limits;
mod lookup;
mod messages;
mod migrations;
#[cfg(test)]
mod plan_tests;
mod registering;
mod registry;
#[cfg(test)]
mod scale_tests;
mod schedules;
mod session;
mod submit;
mod supervision;
mod take_back;
mod task_rows;
mod tasks;
mod tidy;
mod workflow_rows;
mod workflows;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use async_trait::async_trait;
use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod};
use tokio_postgres::Row;
use tokio_postgres::types::FromSql;

use self::connect::{Host, Race};
use crate::bell::Mails;
use crate::workflows::{Definitions, Moved};
use crate::{Admin, Check, Error, Meters, Result, Wakes};

/// How to reach the servers and how long to wait for them.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// `postgresql://user:password@host1:5432,host2:5433/name`. Name all servers: the one that
    /// accepts writes is found.
    pub url: String,
    /// Most connections at once, beside one for notifications.
    pub max_pool_size: u32,
    /// The name under which the server shows them.
    pub application_name: String,
    /// The longest that any operation may take, waiting for a connection included.
    pub timeout: Duration,
}

/// Without the URL, which may hold a password.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts = connect::hosts(self).map(|hosts| connect::names(&hosts));
        f.debug_struct("Settings")
            .field("hosts", &hosts.as_deref().unwrap_or("(unreadable)"))
            .field("max_pool_size", &self.max_pool_size)
            .field("application_name", &self.application_name)
            .field("timeout", &self.timeout)
            .finish()
    }
}

/// A store in a PostgreSQL database.
pub struct PostgresStore {
    pool: Pool,
    timeout: Duration,
    hosts: Arc<[Host]>,
    /// Why the last attempt to connect found no server.
    refusals: connect::Refusals,
    /// Grows when connections made so far must not be used again.
    generation: AtomicU64,
    meters: Meters,
    /// Who is told of tasks that become ready.
    bells: Arc<bell::Bells>,
    /// Workflows to which something happened in this process.
    moved: Moved,
    definitions: Definitions,
}

impl PostgresStore {
    /// Prepares the store. Connects only when it is used, so that it can be made while no server
    /// is up.
    ///
    /// # Errors
    /// When the settings cannot be used.
    pub fn connect(settings: &Settings) -> Result<Self> {
        if settings.timeout.is_zero() {
            return Err(Error::Settings("the timeout must be longer than nothing".to_owned()));
        }
        let hosts: Arc<[Host]> = connect::hosts(settings)?.into();
        let refusals = connect::Refusals::default();
        let race = Race {
            hosts: Arc::clone(&hosts),
            // Leaves time to tell which host refused and why before the operation times out.
            timeout: settings.timeout.mul_f64(0.75),
            refusals: Arc::clone(&refusals),
        };
        let config = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        // The race goes by its own list of hosts; the pool only hands this on to it.
        let manager = Manager::from_connect(tokio_postgres::Config::new(), race, config);
        let pool = Pool::builder(manager)
            .max_size(usize::try_from(settings.max_pool_size.max(1)).unwrap_or(usize::MAX))
            .build()
            .map_err(|error| Error::Settings(error.to_string()))?;
        let timeout = settings.timeout;
        let bells = bell::Bells::new(Arc::clone(&hosts), timeout);
        Ok(Self {
            pool,
            timeout,
            hosts,
            refusals,
            generation: AtomicU64::new(0),
            meters: Meters::default(),
            bells,
            moved: Moved::default(),
            definitions: Definitions::default(),
        })
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts = connect::names(&self.hosts);
        f.debug_struct("PostgresStore").field("hosts", &hosts).finish_non_exhaustive()
    }
}

#[async_trait]
impl Admin for PostgresStore {
    async fn migrate(&self) -> Result<()> {
        migrations::migrate(self).await
    }

    async fn check(&self) -> Result<Check> {
        let write = "INSERT INTO checks (one, times, at) VALUES (1, 1, clock_timestamp())
             ON CONFLICT (one) DO UPDATE SET times = checks.times + 1, at = excluded.at
             RETURNING times";
        let written = self.query("write the check", write, &[]).await?;
        let read = "SELECT times, (extract(epoch FROM at) * 1000000)::bigint AS at,
                 coalesce(host(inet_server_addr()) || ':' || inet_server_port(),
                          'the socket in ' || current_setting('unix_socket_directories'))
                 || ' database ' || current_database() AS location
             FROM checks";
        let found = self.query("read the check back", read, &[]).await?;
        let (Some(written), Some(found)) = (written.first(), found.first()) else {
            return Err(Error::Corrupt("what the check wrote cannot be read back".to_owned()));
        };
        if get::<i64>(found, "times")? < get::<i64>(written, "times")? {
            return Err(Error::Corrupt("what the check wrote cannot be read back".to_owned()));
        }
        Ok(Check { at: crate::column::time(get(found, "at")?)?, location: get(found, "location")? })
    }

    fn moved(&self) -> &Moved {
        &self.moved
    }

    fn wakes(&self) -> Wakes {
        self.listen()
    }

    fn mails(&self) -> Mails {
        self.listen_to_mail()
    }

    fn kind(&self) -> &'static str {
        "postgres"
    }
}

/// A column of a row, or what is wrong with it.
fn get<'r, T: FromSql<'r>>(row: &'r Row, column: &str) -> Result<T> {
    row.try_get(column).map_err(|error| Error::Corrupt(format!("{column}: {error}")))
}
