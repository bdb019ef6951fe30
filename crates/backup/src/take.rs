//! Gathers a recovery point in a folder, and makes sure that it is one.
//!
//! ```text
//! database/platform.db            SQLite, or
//! database/data/                  a base backup of PostgreSQL with the log that it needs
//! state/checkpoints/              the checkpoints of workflows
//! configuration/resurgam.toml     the plan
//! configuration/secrets/          passwords of the database; the vault encrypts everything
//! configuration/ports.json        addresses
//! ```

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use resurgam_deployment::postgres::contain::{self, Contained};
use resurgam_deployment::postgres::programs::check_reachable;
use resurgam_deployment::postgres::secrets::REPLICATOR;
use resurgam_deployment::postgres::{Programs, Secrets};
use resurgam_model::Timestamp;
use resurgam_model::database::Lsn;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::log::segment::Size;
use crate::manifest::{Database, FORMAT, LogRange, Manifest, Table};
use crate::{Error, Result};

/// A bound against programs that hang, not against large databases.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// So much of what a program said is shown.
const OUTPUT_SHOWN: usize = 600;

/// What is backed up.
#[derive(Clone, Debug)]
pub struct Source {
    /// The name of the deployment.
    pub deployment: String,
    /// Its state folder.
    pub state: PathBuf,
    /// Its plan, if it has a file.
    pub plan: Option<PathBuf>,
    /// Its owned PostgreSQL; SQLite if none.
    pub postgres: Option<Server>,
}

/// An owned PostgreSQL.
#[derive(Clone, Debug)]
pub struct Server {
    /// PostgreSQL's programs.
    pub programs: Programs,
    /// Where whoever reigns can be reached.
    pub service: SocketAddr,
    /// The passwords.
    pub secrets: Secrets,
}

/// A name for a new backup. Sorts by time.
#[must_use]
pub fn new_id(now: Timestamp) -> String {
    let random = uuid::Uuid::new_v4().simple().to_string();
    format!("{}-{}", now.strftime("%Y%m%dT%H%M%SZ"), random.get(..4).unwrap_or_default())
}

/// Gathers a recovery point in `into`, which is made anew.
///
/// # Errors
/// When anything is missing or not whole. Nothing may be kept of the folder then.
pub async fn gather(source: &Source, reason: &str, into: &Path) -> Result<Manifest> {
    clear(into)?;
    make(into, 0o711)?;
    let taken_at = Timestamp::now();
    let database = into.join("database");
    make(&database, 0o700)?;
    let mut manifest = Manifest {
        format: FORMAT,
        deployment: source.deployment.clone(),
        taken_at,
        reason: reason.to_owned(),
        program: env!("CARGO_PKG_VERSION").to_owned(),
        ..Manifest::default()
    };
    match &source.postgres {
        Some(server) => {
            base_backup(server, into, &database).await?;
            manifest.log = Some(log_range(&database.join("data"))?);
            manifest.database = Database::Postgres;
            manifest.version = server.programs.version.to_string();
        }
        None => {
            let (from, to) = (source.state.join("store/platform.db"), database.join("platform.db"));
            let copied = tokio::task::spawn_blocking(move || copy_sqlite(&from, &to)).await;
            manifest.tables = copied.map_err(|error| Error::Unusable(error.to_string()))??;
            manifest.database = Database::Sqlite;
            rusqlite::version().clone_into(&mut manifest.version);
        }
    }
    manifest.whole_at = Some(Timestamp::now());
    let configuration = into.join("configuration");
    make(&configuration, 0o700)?;
    if let Some(plan) = &source.plan {
        copy_file(plan, &configuration.join("resurgam.toml"))?;
    }
    copy_file(&source.state.join("ports.json"), &configuration.join("ports.json"))?;
    copy_folder(&source.state.join("secrets"), &configuration.join("secrets"))?;
    let state = into.join("state");
    make(&state, 0o700)?;
    copy_folder(&source.state.join("checkpoints"), &state.join("checkpoints"))?;
    Ok(manifest)
}

/// Copies a SQLite database that is in use, and checks the copy. All of it is copied in one step,
/// which in WAL mode holds nobody up; in several it would begin anew at each write.
fn copy_sqlite(from: &Path, to: &Path) -> Result<BTreeMap<String, Table>> {
    let failed = |action| {
        let path = from.to_owned();
        move |source| Error::Sqlite { path, action, source }
    };
    let source = Connection::open_with_flags(from, OpenFlags::SQLITE_OPEN_READ_WRITE)
        .map_err(failed("be opened"))?;
    source.busy_timeout(Duration::from_secs(30)).map_err(failed("be opened"))?;
    let mut copy = Connection::open(to).map_err(failed("be copied"))?;
    let backup = rusqlite::backup::Backup::new(&source, &mut copy).map_err(failed("be copied"))?;
    match backup.step(-1).map_err(failed("be copied"))? {
        rusqlite::backup::StepResult::Done => {}
        other => return Err(Error::Unusable(format!("SQLite did not copy all of it: {other:?}"))),
    }
    drop(backup);
    copy.close().map_err(|(_, source)| failed("be copied")(source))?;
    fs::File::open(to).and_then(|file| file.sync_all()).map_err(Error::path("cannot sync", to))?;
    inspect_sqlite(to)
}

/// Checks a SQLite file that nobody writes to, and counts what is in it.
///
/// # Errors
/// When it is damaged: [`Error::Damaged`].
pub(crate) fn inspect_sqlite(file: &Path) -> Result<BTreeMap<String, Table>> {
    let damaged =
        |how| Error::Damaged { what: format!("the SQLite database {}", file.display()), how };
    let failed = |action| {
        move |source: rusqlite::Error| match source.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                damaged(source.to_string())
            }
            _ => Error::Sqlite { path: file.to_owned(), action, source },
        }
    };
    let uri = format!("file:{}?immutable=1", percent(file));
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let open = Connection::open_with_flags(uri, flags).map_err(failed("be opened"))?;
    let found: Vec<String> = open
        .prepare("PRAGMA integrity_check(10)")
        .and_then(|mut check| check.query_map([], |row| row.get(0))?.collect())
        .map_err(failed("be checked"))?;
    if found != ["ok"] {
        return Err(damaged(found.join("; ")));
    }
    let names: Vec<String> = open
        .prepare("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name")
        .and_then(|mut tables| tables.query_map([], |row| row.get(0))?.collect())
        .map_err(failed("be read"))?;
    names
        .into_iter()
        .map(|name| {
            let table = count(&open, &name).map_err(failed("be read"))?;
            Ok((name, table))
        })
        .collect()
}

/// A path as a part of a URI.
fn percent(path: &Path) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte);
    path.as_os_str()
        .as_encoded_bytes()
        .iter()
        .map(
            |byte| {
                if plain(*byte) { char::from(*byte).to_string() } else { format!("%{byte:02X}") }
            },
        )
        .collect()
}

/// Rows are hashed one by one and the hashes added up, so that their order does not matter.
fn count(open: &Connection, name: &str) -> rusqlite::Result<Table> {
    let mut select = open.prepare(&format!("SELECT * FROM \"{}\"", name.replace('"', "\"\"")))?;
    let columns = select.column_count();
    let mut rows = select.query([])?;
    let (mut number, mut sum) = (0_u64, 0_u128);
    while let Some(row) = rows.next()? {
        let mut hasher = Sha256::new();
        for column in 0..columns {
            let (kind, bytes): (u8, std::borrow::Cow<'_, [u8]>) = match row.get_ref(column)? {
                ValueRef::Null => (0, (&[][..]).into()),
                ValueRef::Integer(number) => (1, number.to_be_bytes().to_vec().into()),
                ValueRef::Real(number) => (2, number.to_be_bytes().to_vec().into()),
                ValueRef::Text(text) => (3, text.into()),
                ValueRef::Blob(blob) => (4, blob.into()),
            };
            hasher.update([kind]);
            hasher.update((bytes.len() as u64).to_be_bytes());
            hasher.update(&bytes);
        }
        let hash: [u8; 32] = hasher.finalize().into();
        let half = hash.first_chunk::<16>().copied().unwrap_or_default();
        sum = sum.wrapping_add(u128::from_be_bytes(half));
        number += 1;
    }
    Ok(Table { rows: number, checksum: format!("{sum:032x}") })
}

/// Copies the primary, and has PostgreSQL itself check the copy against its manifest.
async fn base_backup(server: &Server, folder: &Path, database: &Path) -> Result<()> {
    let user = server.programs.user.as_ref();
    let passfile = folder.with_extension("passfile");
    let line = format!("*:*:*:{REPLICATOR}:{}\n", server.secrets.replicator);
    fs::write(&passfile, "").map_err(Error::path("cannot write", &passfile))?;
    fs::set_permissions(&passfile, fs::Permissions::from_mode(0o600))
        .and_then(|()| fs::write(&passfile, line))
        .map_err(Error::path("cannot write", &passfile))?;
    if let Some(user) = user {
        for path in [database, &passfile] {
            chown(path, Some(user.uid), Some(user.gid))
                .map_err(Error::path("cannot give away", path))?;
        }
    }
    check_reachable(database, user)?;
    let quoted = passfile.display().to_string().replace('\\', "\\\\").replace('\'', "\\'");
    let from = format!(
        "host='{}' port={} user={REPLICATOR} passfile='{quoted}' application_name=resurgam_backup connect_timeout=10",
        server.service.ip(),
        server.service.port()
    );
    let data = database.join("data");
    let mut args: Vec<OsString> =
        ["--checkpoint=fast", "--wal-method=stream", "--no-sync", "--dbname", &from, "--pgdata"]
            .map(OsString::from)
            .into();
    args.push(data.clone().into());
    let copied = run(&server.programs, "pg_basebackup", &args, folder).await;
    let _ = fs::remove_file(&passfile);
    match copied {
        // It checks every page that it copies.
        Err(Error::Program { output, .. }) if output.contains("checksum error occurred") => {
            return Err(Error::DamagedSource { how: output });
        }
        other => other?,
    }
    verify_base_backup(&server.programs, &data, folder).await
}

/// Which part of the log a base backup needs, by what PostgreSQL wrote beside it.
fn log_range(data: &Path) -> Result<LogRange> {
    /// `backup_manifest`, as far as it is needed.
    #[derive(Deserialize)]
    struct Written {
        #[serde(rename = "WAL-Ranges")]
        ranges: Vec<Range>,
    }
    #[derive(Deserialize)]
    struct Range {
        #[serde(rename = "Timeline")]
        timeline: u32,
        #[serde(rename = "Start-LSN")]
        start: Lsn,
        #[serde(rename = "End-LSN")]
        end: Lsn,
    }
    let odd = |path: &Path, how: String| Error::Damaged { what: path.display().to_string(), how };
    let path = data.join("backup_manifest");
    let text = fs::read(&path).map_err(Error::path("cannot read", &path))?;
    let written: Written =
        serde_json::from_slice(&text).map_err(|error| odd(&path, error.to_string()))?;
    // Of a copy that was taken from a primary there is one.
    let range = written.ranges.into_iter().next_back();
    let range = range.ok_or_else(|| odd(&path, "it names no part of the log".to_owned()))?;
    // The first field of the control file, in every version and in the machine's own order.
    let path = data.join("global/pg_control");
    let control = fs::read(&path).map_err(Error::path("cannot read", &path))?;
    let system = control.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes));
    let system = system.ok_or_else(|| odd(&path, "it is too short".to_owned()))?;
    let folder = data.join("pg_wal");
    let mut largest = 0;
    for entry in fs::read_dir(&folder).map_err(Error::path("cannot read", &folder))? {
        let meta = entry.and_then(|entry| entry.metadata());
        let meta = meta.map_err(Error::path("cannot read", &folder))?;
        largest = largest.max(if meta.is_file() { meta.len() } else { 0 });
    }
    let size = Size::new(largest)
        .ok_or_else(|| odd(&folder, format!("no segment has {largest} bytes")))?;
    Ok(LogRange {
        system: system.to_string(),
        timeline: range.timeline,
        start: range.start,
        end: range.end,
        segment_bytes: size.bytes(),
    })
}

/// Has PostgreSQL check a base backup: every file against its checksum, and that the log is whole.
pub(crate) async fn verify_base_backup(
    programs: &Programs,
    data: &Path,
    folder: &Path,
) -> Result<()> {
    let args = ["--quiet".into(), data.into()];
    match run(programs, "pg_verifybackup", &args, folder).await {
        // Anything else, such as its being killed, says nothing about the backup.
        Err(Error::Program { how, output, .. }) if how == "exit status: 1" => {
            Err(Error::Damaged { what: "the base backup".to_owned(), how: output })
        }
        other => other,
    }
}

/// Runs a program of PostgreSQL to its end; it does not outlive this process. What it says goes
/// into a file beside `folder`.
async fn run(programs: &Programs, name: &str, args: &[OsString], folder: &Path) -> Result<()> {
    let program = programs.path(name);
    if !program.is_file() {
        let text = format!(
            "{} has no {name}; install PostgreSQL's server programs, or set postgres.bin_dir in the plan",
            programs.bin_dir.display()
        );
        return Err(resurgam_deployment::Error::Programs(text).into());
    }
    let output = folder.with_extension("output");
    let log = fs::File::create(&output).map_err(Error::path("cannot write", &output))?;
    let what = Contained { program: &program, args, user: programs.user.as_ref(), log: &log };
    let running = contain::start(what).await.map_err(Error::path("cannot run", &program))?;
    let ended = tokio::time::timeout(LONGEST, running.ended()).await;
    let text = String::from_utf8_lossy(&fs::read(&output).unwrap_or_default()).trim().to_owned();
    let _ = fs::remove_file(&output);
    let skip = text.chars().count().saturating_sub(OUTPUT_SHOWN);
    let failed = |how: String| Error::Program {
        program: name.to_owned(),
        how,
        output: text.chars().skip(skip).collect(),
    };
    match ended {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(failed(status.to_string())),
        Err(_) => Err(failed("it did not end".to_owned())),
    }
}

pub(crate) fn clear(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Error::path("cannot remove", dir)(error))
        }
        _ => Ok(()),
    }
}

pub(crate) fn make(dir: &Path, mode: u32) -> Result<()> {
    fs::create_dir_all(dir)
        .and_then(|()| fs::set_permissions(dir, fs::Permissions::from_mode(mode)))
        .map_err(Error::path("cannot create", dir))
}

/// One that is not there is none.
fn copy_file(from: &Path, to: &Path) -> Result<()> {
    match fs::copy(from, to) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Error::path("cannot copy", from)(error))
        }
        _ => Ok(()),
    }
}

/// Copies files and folders. What goes away meanwhile is left out: it was finished with.
pub(crate) fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    let entries = match fs::read_dir(from) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(Error::path("cannot read", from))?,
    };
    make(to, 0o700)?;
    for entry in entries {
        let entry = entry.map_err(Error::path("cannot read", from))?;
        let kind = entry.file_type().map_err(Error::path("cannot read", entry.path()))?;
        let target = to.join(entry.file_name());
        if kind.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else if kind.is_file() {
            copy_file(&entry.path(), &target)?;
        }
    }
    Ok(())
}
