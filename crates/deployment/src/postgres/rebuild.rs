//! Makes a standby out of data that went its own way, or out of nothing.

use std::ffi::OsString;
use std::fs::File;
use std::path::Path;
use std::time::Duration;

use resurgam_model::database::Lsn;

use super::config::{conninfo, superuser_conninfo};
use super::contain::{self, Contained};
use super::data::{evict, evict_users, give};
use super::floors;
use super::history::{self, Kinship, Lineage};
use super::secrets::{REPLICATOR, SUPERUSER};
use super::server::Instance;
use super::sql::{Attempt, Session};
use super::wire::Upstream;
use crate::{Error, Result};

/// Longest output of a program that is shown.
const OUTPUT_SHOWN: usize = 600;

/// Makes a new, empty database cluster.
pub(super) async fn initialise(instance: &Instance) -> Result<()> {
    let layout = &instance.layout;
    let user = instance.programs.user.as_ref();
    let (incoming, data) = (layout.incoming(), layout.data());
    clear(&incoming).await?;
    let password = incoming.with_extension("password");
    layout.write(&password, &instance.secrets.superuser, 0o600, user)?;
    let args = [
        "--username",
        SUPERUSER,
        "--auth=scram-sha-256",
        "--encoding=UTF8",
        "--locale=C.UTF-8",
        "--data-checksums",
        "--pgdata",
    ];
    let mut args: Vec<OsString> = args.map(OsString::from).into();
    args.extend([incoming.clone().into(), "--pwfile".into(), password.clone().into()]);
    let made = run(instance, "initdb", &args).await;
    let _ = std::fs::remove_file(&password);
    made?;
    // The first start is one as a standby, and must not have less than the log says. Only a start of
    // another kind tells the log of less.
    let mut args: Vec<OsString> = vec!["--single".into(), "-D".into(), incoming.clone().into()];
    let settings = floors::as_arguments(&instance.settings);
    for setting in ["wal_level=replica".to_owned()].into_iter().chain(settings) {
        args.extend(["-c".into(), setting.into()]);
    }
    args.push("template1".into());
    run(instance, "postgres", &args).await?;
    layout.fence(&incoming, user)?;
    std::fs::rename(&incoming, &data).map_err(Error::path("cannot move to its place", &data))
}

/// Copies the primary.
pub(super) async fn base_backup(instance: &Instance, upstream: &Upstream) -> Result<()> {
    let layout = &instance.layout;
    let user = instance.programs.user.as_ref();
    let incoming = layout.incoming();
    evict_users(&incoming).await?;
    clear(&incoming).await?;
    let from = conninfo(upstream.address, REPLICATOR, &layout.passfile(), "pg_basebackup");
    let args = ["--checkpoint=fast", "--wal-method=stream", "--dbname", &from, "--pgdata"];
    let mut args: Vec<OsString> = args.map(OsString::from).into();
    args.push(incoming.clone().into());
    run(instance, "pg_basebackup", &args).await?;
    layout.fence(&incoming, user)
}

/// Puts a finished copy in the place of the data, and the data aside. No server runs on it.
pub(super) async fn take_over_copy(instance: &Instance) -> Result<()> {
    let layout = &instance.layout;
    let (incoming, data, replaced) = (layout.incoming(), layout.data(), layout.replaced());
    evict(&data).await?;
    if data.exists() {
        clear(&replaced).await?;
        std::fs::rename(&data, &replaced).map_err(Error::path("cannot put aside", &data))?;
    }
    std::fs::rename(&incoming, &data).map_err(Error::path("cannot move to its place", &data))?;
    layout.end_branch()?;
    layout.end_rewind()
}

/// Takes back what the primary never had. The server is stopped, and was stopped in order.
pub(super) async fn rewind(instance: &Instance, upstream: &Upstream) -> Result<()> {
    // pg_rewind reads the timeline from the last checkpoint (before PostgreSQL 16), and the
    // promotion may be younger than that.
    session(instance, upstream).await?.run_long("make a checkpoint", "CHECKPOINT").await?;
    let layout = &instance.layout;
    layout.begin_rewind()?;
    let data = layout.data();
    let from = superuser_conninfo(upstream.address, &layout.passfile(), "pg_rewind");
    let args = ["--no-ensure-shutdown", "--source-server", &from, "--target-pgdata"];
    let mut args: Vec<OsString> = args.map(OsString::from).into();
    args.push(data.clone().into());
    run(instance, "pg_rewind", &args).await?;
    layout.fence(&data, instance.programs.user.as_ref())?;
    layout.end_branch()?;
    layout.end_rewind()
}

/// Whether data that has reached `position` on `timeline` can go on with the upstream's. To be
/// asked before it has streamed from the upstream.
pub(super) async fn kinship(
    instance: &Instance,
    upstream: &Upstream,
    timeline: u32,
    position: Lsn,
) -> Result<Kinship> {
    let session = session(instance, upstream).await?;
    let action = "tell its history";
    let sql = "SELECT t, CASE WHEN t = 1 THEN '' ELSE
                 pg_read_file('pg_wal/' || lpad(upper(to_hex(t)), 8, '0') || '.history') END,
                 pg_current_wal_flush_lsn()::text,
                 (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size')
               FROM (SELECT ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int AS t) x";
    let missing = || Error::State("the primary told no history".to_owned());
    let row = session.row(action, sql).await?.ok_or_else(missing)?;
    let primary = Lineage {
        timeline: row.get::<_, i32>(0).unsigned_abs(),
        position: row.get::<_, String>(2).parse().map_err(|_| missing())?,
        history: row.get(1),
    };
    let size = row.get::<_, i64>(3).unsigned_abs();
    // Both may have begun a timeline of the same number, at the same place even. So the log
    // itself is compared, just before the point up to which both have the same by name.
    let mut proven = false;
    for piece in history::pieces(timeline, position, &primary, size) {
        let file = instance.layout.data().join("pg_wal").join(&piece.file);
        let Some(ours) = history::read(&file, &piece) else { continue };
        let sql = format!(
            "SELECT pg_read_binary_file('pg_wal/{}', {}, {}, true)",
            piece.file, piece.offset, piece.length
        );
        let row = session.row("show its log", &sql).await?;
        let theirs = row.and_then(|row| row.get::<_, Option<Vec<u8>>>(0));
        match theirs {
            Some(theirs) if theirs != ours => return Ok(Kinship::Namesake),
            // On a timeline that the server may not know of yet, right after it was rewound.
            Some(_) => proven |= piece.reaches_position,
            None => {}
        }
    }
    if proven {
        return Ok(Kinship::Fits);
    }
    Ok(history::compare(timeline, position, &primary))
}

async fn session(instance: &Instance, upstream: &Upstream) -> Result<Session> {
    match Session::connect(upstream.address, &instance.secrets.superuser).await {
        Attempt::Connected(session) => Ok(session),
        Attempt::Refused(error) => Err(error),
        Attempt::StartingUp | Attempt::NobodyThere | Attempt::NoAnswer => Err(Error::State(
            format!("{} at {} takes no connections", upstream.name, upstream.address),
        )),
    }
}

/// Removes what data was put aside: its successor has proved itself.
pub(super) async fn forget_replaced(instance: &Instance) -> Result<()> {
    clear(&instance.layout.replaced()).await
}

async fn clear(dir: &Path) -> Result<()> {
    let result = tokio::fs::remove_dir_all(dir).await;
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::path("cannot remove", dir)(error))
        }
        _ => Ok(()),
    }
}

/// Runs a program to its end. It and all that it started are killed when nobody waits for it any
/// more, and when this process dies: `pg_basebackup` has a child that would go on writing.
async fn run(instance: &Instance, name: &str, args: &[OsString]) -> Result<()> {
    let output = instance.layout.output();
    let log = File::create(&output).map_err(Error::path("cannot write", &output))?;
    let program = instance.programs.path(name);
    let user = instance.programs.user.as_ref();
    let what = Contained { program: &program, args, user, log: &log };
    let program = program.display().to_string();
    let running = contain::start(what)
        .await
        .map_err(|source| Error::Spawn { program: program.clone(), source })?;
    // A day: a bound against a program that hangs, not against large databases.
    let status = tokio::time::timeout(Duration::from_secs(24 * 3600), running.ended())
        .await
        .map_err(|_| Error::Timeout(format!("{program} did not end")))?;
    if status.success() {
        return Ok(());
    }
    let text = std::fs::read(&output).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let text = text.trim();
    let skip = text.chars().count().saturating_sub(OUTPUT_SHOWN);
    let tail = text.chars().skip(skip).collect();
    Err(Error::Program { program, status: status.to_string(), output: tail })
}

/// Gives the instance's folder to the user of the server, in case it was made by another.
pub(super) fn claim_folder(instance: &Instance) -> Result<()> {
    let data = instance.layout.data();
    if data.exists() { give(&data, 0o700, instance.programs.user.as_ref()) } else { Ok(()) }
}
