//! How a command reaches the database.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use resurgam_store::{Settings, SharedStore};

use crate::failure::Failure;

/// How long one operation on PostgreSQL may take. A server that does not answer is left for
/// another connection after so long; callers wait longer than that.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(5);

/// The options of commands that use the database. Flatten them into the command's own arguments.
#[derive(Clone, Debug, Args)]
pub(crate) struct StoreArgs {
    /// A SQLite file.
    #[arg(long, value_name = "FILE")]
    pub(crate) sqlite: Option<PathBuf>,
    /// Connections to PostgreSQL at most.
    #[arg(long, env = "DATABASE_MAX_POOL_SIZE", default_value_t = POOL, value_parser = pool)]
    pub(crate) pool: u32,
}

/// Connections to PostgreSQL unless something else is said.
const POOL: u32 = 8;

/// An empty variable says nothing, as everywhere else.
fn pool(text: &str) -> Result<u32, String> {
    if text.is_empty() {
        return Ok(POOL);
    }
    text.parse().map_err(|_| "write a whole number of connections".to_owned())
}

impl StoreArgs {
    /// The store, which PostgreSQL shows under the name `who`. A server need not be up.
    ///
    /// # Errors
    /// Wrong usage, when no database was named or the settings cannot be used.
    pub(crate) fn open(self, who: &str) -> Result<SharedStore, Failure> {
        let url = std::env::var("DATABASE_URL").ok().filter(|url| !url.is_empty());
        let settings = match (self.sqlite, url) {
            (Some(path), _) => Settings::Sqlite { path },
            (None, Some(url)) => Settings::Postgres(resurgam_store::postgres::Settings {
                url,
                max_pool_size: self.pool,
                application_name: format!("resurgam {who}"),
                timeout: DATABASE_TIMEOUT,
            }),
            (None, None) => {
                return Err(Failure::usage(
                    "no database was named: set DATABASE_URL, or give --sqlite FILE",
                ));
            }
        };
        Ok(resurgam_store::open(&settings)?)
    }
}
