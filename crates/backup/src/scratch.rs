//! A backup restored on trial, in a folder of its own: what shows that it can be restored.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use resurgam_deployment::postgres::contain::{self, Contained, Running};
use resurgam_deployment::postgres::data::give_all;
use resurgam_deployment::postgres::secrets::SUPERUSER;
use resurgam_deployment::postgres::{Programs, Secrets};
use rustix::process::Signal;
use tokio_postgres::NoTls;

use crate::manifest::{Database, Table};
use crate::take::{clear, inspect_sqlite, make, verify_base_backup};
use crate::vault::{Backup, Vault};
use crate::{Error, Result};

/// So long a server may take to replay its log.
const PATIENCE: Duration = Duration::from_secs(30 * 60);
/// How often it is asked whether it is there.
const LOOK: Duration = Duration::from_millis(50);

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
    server: Option<Running>,
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
            server.stop(Signal::QUIT, Duration::from_secs(10)).await;
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

type Opened = (Location, BTreeMap<String, Table>, Option<Running>);

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
    let (server, address) = start(programs, &data, dir).await?;
    let url =
        |user: &str, password: &str| format!("postgresql://{user}:{password}@{address}/{name}");
    let tables = wait_and_count(&server, dir, &url(SUPERUSER, &secrets.superuser)).await?;
    Ok((Location::Postgres(url(name, &secrets.platform)), tables, Some(server)))
}

/// Starts a server on the data, reachable from this machine by password only.
async fn start(programs: &Programs, data: &Path, dir: &Path) -> Result<(Running, SocketAddr)> {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let address = TcpListener::bind(any)
        .and_then(|listener| listener.local_addr())
        .map_err(Error::path("cannot find a free port for", dir))?;
    let (config, hba) = (dir.join("scratch.conf"), dir.join("scratch_hba.conf"));
    fs::write(&hba, "host all all 127.0.0.1/32 scram-sha-256\n")
        .and_then(|()| fs::write(&config, ""))
        .map_err(Error::path("cannot write", dir))?;
    for file in [&config, &hba] {
        resurgam_deployment::postgres::data::give(file, 0o600, programs.user.as_ref())?;
    }
    let mut args: Vec<OsString> = vec!["-D".into(), data.into()];
    for setting in [
        format!("config_file={}", config.display()),
        format!("hba_file={}", hba.display()),
        format!("port={}", address.port()),
        "listen_addresses=127.0.0.1".to_owned(),
        "unix_socket_directories=".to_owned(),
        "synchronous_standby_names=".to_owned(),
        "default_transaction_read_only=off".to_owned(),
        // It is thrown away afterwards.
        "fsync=off".to_owned(),
        "full_page_writes=off".to_owned(),
        "autovacuum=off".to_owned(),
    ] {
        args.extend(["-c".into(), setting.into()]);
    }
    let path = dir.join("scratch.log");
    let log = fs::File::create(&path).map_err(Error::path("cannot write", &path))?;
    let program = programs.path("postgres");
    let what =
        Contained { program: &program, args: &args, user: programs.user.as_ref(), log: &log };
    let running = contain::start(what).await.map_err(Error::path("cannot run", &program))?;
    Ok((running, address))
}

async fn wait_and_count(
    server: &Running,
    dir: &Path,
    url: &str,
) -> Result<BTreeMap<String, Table>> {
    let until = Instant::now() + PATIENCE;
    let (client, connection) = loop {
        if let Some(status) = server.exit() {
            let log = fs::read_to_string(dir.join("scratch.log")).unwrap_or_default();
            let tail: Vec<_> = log.lines().rev().take(5).collect();
            let output = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
            let program = "postgres on the restored data".to_owned();
            return Err(Error::Program { program, how: status.to_string(), output });
        }
        match tokio_postgres::connect(url, NoTls).await {
            Ok(connected) => break connected,
            Err(source) if Instant::now() > until => {
                return Err(Error::Postgres { action: "be reached in time", source });
            }
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    };
    let connection = tokio::spawn(connection);
    let counted = count(&client).await;
    drop(client);
    let _ = connection.await;
    counted.map_err(|source| Error::Postgres { action: "be read", source })
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
