//! Makes a standby out of data that went its own way, or out of nothing.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use resurgam_model::database::Lsn;

use super::config::{conninfo, superuser_conninfo};
use super::data::{evict, give};
use super::history::{self, Kinship};
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
    let mut command = instance.programs.command("initdb");
    command
        .arg("--pgdata")
        .arg(&incoming)
        .args(["--username", SUPERUSER, "--auth", "scram-sha-256", "--encoding", "UTF8"])
        .args(["--locale", "C.UTF-8", "--data-checksums", "--pwfile"])
        .arg(&password);
    let made = run(instance, command).await;
    let _ = std::fs::remove_file(&password);
    made?;
    layout.fence(&incoming, user)?;
    std::fs::rename(&incoming, &data).map_err(Error::path("cannot move to its place", &data))
}

/// Copies the primary.
pub(super) async fn base_backup(instance: &Instance, upstream: &Upstream) -> Result<()> {
    let layout = &instance.layout;
    let user = instance.programs.user.as_ref();
    let incoming = layout.incoming();
    clear(&incoming).await?;
    let from = conninfo(upstream.address, REPLICATOR, &layout.passfile(), "pg_basebackup");
    let mut command = instance.programs.command("pg_basebackup");
    command.arg("--pgdata").arg(&incoming).args([
        "--checkpoint",
        "fast",
        "--wal-method",
        "stream",
        "--dbname",
        &from,
    ]);
    run(instance, command).await?;
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
    layout.end_rewind()
}

/// Takes back what the primary never had. The server is stopped, and was stopped in order.
pub(super) async fn rewind(instance: &Instance, upstream: &Upstream) -> Result<()> {
    // pg_rewind reads the timeline from the last checkpoint (before PostgreSQL 16), and the
    // promotion may be younger than that.
    session(instance, upstream).await?.run_long("make a checkpoint", "CHECKPOINT").await?;
    let layout = &instance.layout;
    let data = layout.data();
    let from = superuser_conninfo(upstream.address, &layout.passfile(), "pg_rewind");
    let mut command = instance.programs.command("pg_rewind");
    command.arg("--target-pgdata").arg(&data).args([
        "--no-ensure-shutdown",
        "--source-server",
        &from,
    ]);
    run(instance, command).await?;
    layout.fence(&data, instance.programs.user.as_ref())
}

/// Whether data that has reached `position` on `timeline` can go on with the upstream's.
pub(super) async fn kinship(
    instance: &Instance,
    upstream: &Upstream,
    timeline: u32,
    position: Lsn,
) -> Result<Kinship> {
    let session = session(instance, upstream).await?;
    let action = "tell its history";
    let sql = "SELECT t, CASE WHEN t = 1 THEN '' ELSE
                 pg_read_file('pg_wal/' || lpad(upper(to_hex(t)), 8, '0') || '.history') END
               FROM (SELECT ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int AS t) x";
    let row = session
        .row(action, sql)
        .await?
        .ok_or_else(|| Error::State("the primary told no history".to_owned()))?;
    let primary_timeline = row.get::<_, i32>(0).unsigned_abs();
    let text: String = row.get(1);
    Ok(history::compare(timeline, position, primary_timeline, &text))
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

/// Runs a program to its end. It is killed when nobody waits for it any more, and when this
/// process dies.
async fn run(instance: &Instance, mut command: Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let spawn = |source| Error::Spawn { program: program.clone(), source };
    let output = instance.spawner.spawn(command).await.map_err(spawn)?.wait_with_output();
    // A day: a bound against a program that hangs, not against large databases.
    let output = tokio::time::timeout(Duration::from_secs(24 * 3600), output)
        .await
        .map_err(|_| Error::Timeout(format!("{program} did not end")))?
        .map_err(spawn)?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let tail: String = {
        let skip = text.chars().count().saturating_sub(OUTPUT_SHOWN);
        text.trim().chars().skip(skip).collect()
    };
    Err(Error::Program { program, status: output.status.to_string(), output: tail })
}

/// Gives the instance's folder to the user of the server, in case it was made by another.
pub(super) fn claim_folder(instance: &Instance) -> Result<()> {
    let data = instance.layout.data();
    if data.exists() { give(&data, 0o700, instance.programs.user.as_ref()) } else { Ok(()) }
}
