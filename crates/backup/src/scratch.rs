//! A backup restored on trial, in a folder of its own: what shows that it can be restored.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use resurgam_deployment::postgres::data::give_all;
use resurgam_deployment::postgres::secrets::SUPERUSER;
use resurgam_deployment::postgres::{Programs, Secrets};
use rustix::process::Signal;

use crate::manifest::{Database, Table};
use crate::server::Server;
use crate::take::{clear, inspect_sqlite, make, verify_base_backup};
use crate::vault::{Backup, Vault};
use crate::{Error, Result};

/// What a look at a restored backup found.
#[derive(Debug)]
pub enum Found {
    /// It is whole. The database is there, for as long as this is.
    Whole(Scratch),
    /// It is damaged; and how.
    Damaged(String),
}

/// A restored backup whose database can be used.
#[derive(Debug)]
pub struct Scratch {
    /// How the platform is told of the database.
    pub database: Location,
    /// What is in it.
    pub tables: BTreeMap<String, Table>,
    server: Option<Server>,
    dir: PathBuf,
}

/// Where a database is.
#[derive(Clone, Debug)]
pub enum Location {
    /// A file.
    Sqlite(PathBuf),
    /// A server. The URL has a password in it.
    Postgres(String),
}

impl Scratch {
    /// Ends what runs and removes the folder.
    ///
    /// # Errors
    /// When the folder cannot be removed.
    pub async fn remove(self) -> Result<()> {
        if let Some(server) = &self.server {
            server.stop(Signal::QUIT).await;
        }
        clear(&self.dir)
    }
}

/// Restores a backup into `dir`, which is made anew, and looks at all that is in it.
///
/// # Errors
/// When it could not be tried, so that nothing is known of the backup.
pub async fn restore(
    vault: &Vault,
    backup: &Backup,
    dir: &Path,
    programs: Option<&Programs>,
) -> Result<Found> {
    clear(dir)?;
    make(dir, 0o711)?;
    let content = dir.join("content");
    if let Err(error) = vault.extract(&backup.id, "", &content) {
        // Is it the vault, or the way to it?
        let findings = vault.check(true)?;
        let Some(first) = findings.first() else { return Err(error) };
        clear(dir)?;
        return Ok(Found::Damaged(format!("{error}; the vault is damaged: {first}")));
    }
    let looked = match backup.manifest.database {
        Database::Sqlite => sqlite(&content),
        Database::Postgres => postgres(&content, dir, &backup.manifest.deployment, programs).await,
    };
    let (database, tables, server) = match looked {
        Ok(found) => found,
        Err(error @ Error::Damaged { .. }) => {
            clear(dir)?;
            return Ok(Found::Damaged(error.to_string()));
        }
        Err(error) => return Err(error),
    };
    let expected = &backup.manifest.tables;
    let scratch = Scratch { database, tables, server, dir: dir.to_owned() };
    if !expected.is_empty() && *expected != scratch.tables {
        let differences = differences(expected, &scratch.tables);
        scratch.remove().await?;
        return Ok(Found::Damaged(format!("not what was backed up: {differences}")));
    }
    Ok(Found::Whole(scratch))
}

fn differences(expected: &BTreeMap<String, Table>, found: &BTreeMap<String, Table>) -> String {
    let names = expected.keys().chain(found.keys()).collect::<std::collections::BTreeSet<_>>();
    let rows =
        |table: Option<&Table>| table.map_or("none".to_owned(), |t| format!("{} rows", t.rows));
    names
        .into_iter()
        .filter(|name| expected.get(*name) != found.get(*name))
        .map(|name| {
            format!(
                "{name}: {} expected, {} found",
                rows(expected.get(name)),
                rows(found.get(name))
            )
        })
        .collect::<Vec<_>>()
        .join("; ")
}

type Opened = (Location, BTreeMap<String, Table>, Option<Server>);

fn sqlite(content: &Path) -> Result<Opened> {
    let file = content.join("database/platform.db");
    let tables = inspect_sqlite(&file)?;
    Ok((Location::Sqlite(file), tables, None))
}

async fn postgres(
    content: &Path,
    dir: &Path,
    name: &str,
    programs: Option<&Programs>,
) -> Result<Opened> {
    let found;
    let programs = match programs {
        Some(programs) => programs,
        None => {
            found = Programs::find(None)?;
            &found
        }
    };
    let data = content.join("database/data");
    let version = fs::read_to_string(data.join("PG_VERSION")).unwrap_or_default();
    if version.trim() != programs.version.to_string() {
        return Err(Error::Deployment(resurgam_deployment::Error::Programs(format!(
            "the backup is of PostgreSQL {}, and {} has {}; set postgres.bin_dir to the former",
            version.trim(),
            programs.bin_dir.display(),
            programs.version
        ))));
    }
    make(content, 0o711)?;
    make(&content.join("database"), 0o711)?;
    give_all(&data, programs.user.as_ref())?;
    verify_base_backup(programs, &data, &dir.join("check")).await?;
    // At rest the data of a primary is that of a standby too. On trial it follows nobody.
    let signal = data.join("standby.signal");
    if signal.exists() {
        fs::remove_file(&signal).map_err(Error::path("cannot remove", signal))?;
    }
    let secrets = Secrets::load(&content.join("configuration/secrets/postgres.json"))?;
    // It is thrown away afterwards.
    let settings = ["fsync=off", "full_page_writes=off", "autovacuum=off"].map(str::to_owned);
    let server = Server::start(programs, &data, dir, &settings).await?;
    let client = server.connect(SUPERUSER, &secrets.superuser, name).await?;
    let tables = count(&client).await;
    let tables = tables.map_err(|source| Error::Postgres { action: "be read", source })?;
    let url = server.url(name, &secrets.platform, name);
    Ok((Location::Postgres(url), tables, Some(server)))
}

/// Reads every row of every table.
async fn count(
    client: &tokio_postgres::Client,
) -> Result<BTreeMap<String, Table>, tokio_postgres::Error> {
    let names = client
        .query(
            "SELECT format('%I.%I', n.nspname, c.relname), n.nspname || '.' || c.relname
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')",
            &[],
        )
        .await?;
    let mut tables = BTreeMap::new();
    for row in names {
        let (quoted, name): (String, String) = (row.get(0), row.get(1));
        let sql = format!(
            "SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)::numeric), 0)::text FROM {quoted} t"
        );
        let counted = client.query_one(&sql, &[]).await?;
        let (rows, checksum): (i64, String) = (counted.get(0), counted.get(1));
        tables.insert(name, Table { rows: rows.unsigned_abs(), checksum });
    }
    Ok(tables)
}
