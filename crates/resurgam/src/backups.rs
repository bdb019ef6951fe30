//! Backups of the deployment that a plan describes: taken, proven, and on schedule.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use resurgam_backup::Error;
use resurgam_backup::log::segment::Segment;
use resurgam_backup::log::ship::Standings;
use resurgam_backup::log::store::LogStore;
use resurgam_backup::retention::{Verdict, decide};
use resurgam_backup::scratch::{self, Found, Location};
use resurgam_backup::take::{Server, Source, gather, new_id};
use resurgam_backup::vault::{Backup, Proof, Vault};
use resurgam_client::Client;
use resurgam_deployment::local::{ComponentSpec, LocalDeployment, Spawner, free_address};
use resurgam_deployment::postgres::{Programs, Secrets};
use resurgam_deployment::{ComponentKind, Deployment};
use resurgam_model::plan::StoreKind;
use resurgam_model::{ComponentName, Scenario, Timestamp, plan};
use resurgam_recovery::journal::Journal;
use resurgam_recovery::journal::orders::{Order, Ordered};
use rustix::fs::{FlockOperation, flock};

use crate::commands::journal::who;
use crate::commands::up::make_dir;
use crate::failure::Failure;
use crate::plan::Loaded;

/// So long the platform may take to become ready on a restored database.
const READY: Duration = Duration::from_secs(60);
/// So long a backup waits for another one to end.
const TURN: Duration = Duration::from_secs(3600);
/// So often the clock is looked at while a backup is waited for.
const CLOCK: Duration = Duration::from_secs(60);
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// After a scheduled backup that failed, the next try comes so soon, and later and later up to an hour:
/// where one vault of several is full, each try gives the others another backup.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(300);
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);
/// So long after a backup the next one is taken for a gap in the log at the earliest.
const PAUSE_AFTER_BACKUP: Duration = Duration::from_secs(30);

/// The vaults of the plan, or the one of that name.
pub(crate) fn planned<'a>(
    loaded: &'a Loaded,
    name: Option<&ComponentName>,
) -> Result<Vec<&'a plan::Vault>, Failure> {
    let all = &loaded.plan().backup.vaults;
    if all.is_empty() {
        return Err(Failure::usage(
            "the plan has no vault; add one:\n\n  [[backup.vaults]]\n  name = \"here\"\n  path = \"/srv/vault\"\n  password_file = \"/etc/resurgam/vault-password\"\n",
        ));
    }
    let these: Vec<_> =
        all.iter().filter(|vault| name.is_none_or(|name| vault.name == *name)).collect();
    if these.is_empty() {
        let names: Vec<_> = all.iter().map(|vault| vault.name.to_string()).collect();
        return Err(Failure::usage(format!(
            "the plan has no vault of that name; there are {}",
            names.join(", ")
        )));
    }
    Ok(these)
}

/// Does something that blocks, such as reading a vault.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> resurgam_backup::Result<T> + Send + 'static,
) -> Result<T, Failure> {
    Ok(tokio::task::spawn_blocking(work).await??)
}

/// Opens a vault of the plan.
pub(crate) async fn open(loaded: &Loaded, vault: &plan::Vault) -> Result<Arc<Vault>, Failure> {
    let (vault, base) = (vault.clone(), base(loaded));
    let deployment = loaded.plan().deployment.name.clone();
    Ok(Arc::new(blocking(move || Vault::of_plan(&vault, &deployment, &base)).await?))
}

/// Opens the vaults of the plan, or the named one. Also why others could not be opened: what one can
/// do for the rest is not to wait for them.
///
/// # Errors
/// When none can be opened: the last reason.
pub(crate) async fn open_all(
    loaded: &Loaded,
    name: Option<&ComponentName>,
) -> Result<(Vec<Arc<Vault>>, Vec<Failure>), Failure> {
    let (mut vaults, mut away) = (Vec::new(), Vec::new());
    for vault in planned(loaded, name)? {
        match open(loaded, vault).await {
            Ok(vault) => vaults.push(vault),
            Err(failure) => away.push(failure),
        }
    }
    match away.pop() {
        Some(last) if vaults.is_empty() => Err(last),
        last => {
            away.extend(last);
            Ok((vaults, away))
        }
    }
}

/// PostgreSQL's programs, if the plan has a PostgreSQL of its own.
pub(crate) fn programs(loaded: &Loaded) -> Result<Option<Programs>, Failure> {
    let plan = loaded.plan();
    match plan.store.kind {
        StoreKind::Sqlite => Ok(None),
        StoreKind::Postgres => Ok(Some(Programs::find(plan.postgres.bin_dir.as_deref())?)),
        StoreKind::External => Err(Failure::refused(
            "the plan's PostgreSQL is run by somebody else (store.kind = \"external\"): it is to be backed up where it runs",
        )),
    }
}

/// The plan's own PostgreSQL, if it has one that was started before.
pub(crate) fn server(loaded: &Loaded) -> Result<Option<Server>, Failure> {
    let Some(programs) = programs(loaded)? else { return Ok(None) };
    let state = loaded.state_dir();
    let text = std::fs::read_to_string(state.join("ports.json")).unwrap_or_default();
    let ports: std::collections::BTreeMap<String, u16> =
        serde_json::from_str(&text).unwrap_or_default();
    let port = ports.get(resurgam_recovery::postgres::SERVICE).copied();
    let port = port.ok_or_else(|| {
        Failure::new(
            "it is not known where the database can be reached; start it with: resurgam up",
        )
    })?;
    Ok(Some(Server {
        programs,
        service: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port),
        secrets: Secrets::load(&state.join("secrets/postgres.json"))?,
    }))
}

/// What of the deployment is backed up.
fn source(loaded: &Loaded) -> Result<Source, Failure> {
    let plan = loaded.plan();
    let state = loaded.state_dir();
    let postgres = server(loaded)?;
    Ok(Source {
        deployment: plan.deployment.name.clone(),
        plan: loaded.file.as_deref().map(std::path::absolute).transpose()?,
        state,
        postgres,
    })
}

/// Where backups are made, in the state folder.
pub(crate) fn gathering(state: &Path) -> PathBuf {
    state.join("backup")
}

/// One at a time on a state folder: backups and verifications. Waits for its turn, which ends with
/// the process.
async fn turn(state: &Path, say: &(dyn Fn(&str) + Sync)) -> Result<File, Failure> {
    let path = state.join("backup.lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path)?;
    let until = tokio::time::Instant::now() + TURN;
    let mut told = false;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let what = format!("another backup or verification works on {}", state.display());
                if tokio::time::Instant::now() > until {
                    return Err(Error::Busy { what }.into());
                }
                if !told {
                    say(&format!("waiting: {what}"));
                    told = true;
                }
                tokio::time::sleep(LOOK).await;
            }
            Err(error) => return Err(std::io::Error::from(error).into()),
        }
    }
}

/// Takes a backup and stores it in the vaults. All of them get the same, and those that can get it do
/// whatever becomes of the others.
pub(crate) async fn take(
    loaded: &Loaded,
    vaults: &[Arc<Vault>],
    reason: &str,
    say: &(dyn Fn(&str) + Sync),
) -> Result<Taken, Failure> {
    let source = source(loaded)?;
    if !source.state.exists() {
        return Err(Failure::new(format!(
            "there is nothing to back up: {} is not there",
            source.state.display()
        )));
    }
    let _turn = turn(&source.state, say).await?;
    let folder = gathering(&source.state);
    make_dir(&folder, 0o711)?;
    let id = new_id(Timestamp::now());
    let content = folder.join("content");
    say("copying and checking the database, checkpoints and configuration");
    let manifest = match gather(&source, reason, &content).await {
        Ok(manifest) => manifest,
        Err(error) => {
            let _ = std::fs::remove_dir_all(&content);
            if let Error::DamagedSource { how } = &error {
                report_damage(&source.state, how)?;
                say("the controller was told of it; see: resurgam incident list");
            }
            return Err(error.into());
        }
    };
    let mut taken = Taken { stored: Vec::new(), failed: Vec::new() };
    for vault in vaults {
        say(&format!("storing {id} in the vault {}", vault.name()));
        let (to, content) = (Arc::clone(vault), content.clone());
        let (id, manifest) = (id.clone(), manifest.clone());
        match blocking(move || to.store(&content, &id, &manifest)).await {
            Ok(backup) => taken.stored.push((Arc::clone(vault), backup)),
            // The others get it all the same.
            Err(failure) => taken.failed.push(failure),
        }
    }
    std::fs::remove_dir_all(&content)?;
    Ok(taken)
}

/// A backup that was taken.
pub(crate) struct Taken {
    /// Where it is.
    pub(crate) stored: Vec<(Arc<Vault>, Backup)>,
    /// Why it is not elsewhere.
    pub(crate) failed: Vec<Failure>,
}

/// Tells the controller that the database is damaged.
fn report_damage(state: &Path, how: &str) -> Result<(), Failure> {
    let finding = how.lines().next().unwrap_or_default();
    let finding = finding.trim_start_matches("WARNING:").trim().to_owned();
    let scenario = Scenario::DatabaseCorruption;
    let order = Order::Report { scenario, component: None, finding };
    let by = format!("a backup of {}", who());
    Journal::open(&state.join("journal.db"))?.order(&Ordered { by, order }, Timestamp::now())?;
    Ok(())
}

/// Restores a backup on trial: everything is read, the database is started and counted, and the
/// platform becomes ready on it. What was found is written into the vault.
pub(crate) async fn verify(
    loaded: &Loaded,
    vault: &Arc<Vault>,
    backup: &Backup,
    say: &(dyn Fn(&str) + Sync),
) -> Result<Proof, Failure> {
    let state = loaded.state_dir();
    make_dir(&state, 0o711)?;
    let _turn = turn(&state, say).await?;
    let dir = state.join("scratch");
    say(&format!("restoring {} on trial, and reading all of it", backup.id));
    let programs = programs(loaded)?;
    let restored = {
        let (vault, backup, dir) = (Arc::clone(vault), backup.clone(), dir.clone());
        let handle = tokio::runtime::Handle::current();
        // The vault blocks, the server waits: both in a thread of their own.
        blocking(move || {
            handle.block_on(scratch::restore(&vault, &backup, &dir, programs.as_ref()))
        })
        .await?
    };
    let (proof, tables) = match restored {
        Found::Damaged(why) => (Proof::Bad(why), None),
        Found::Whole(scratch) => {
            say("starting the platform on it");
            let ready = platform_is_ready(loaded, &scratch.database, &dir).await;
            let tables = scratch.tables.clone();
            scratch.remove().await?;
            ready?;
            (Proof::Verified(Timestamp::now()), Some(tables))
        }
    };
    let (vault, id, found) = (Arc::clone(vault), backup.id.clone(), proof.clone());
    blocking(move || vault.prove(&id, &found, tables.as_ref())).await?;
    Ok(proof)
}

/// Starts the platform on a database, on this machine only and with nobody let in, and waits until
/// it says that it works.
async fn platform_is_ready(
    loaded: &Loaded,
    database: &Location,
    dir: &Path,
) -> Result<(), Failure> {
    let address = free_address(IpAddr::V4(Ipv4Addr::LOCALHOST), 0)?;
    let mut args: Vec<String> =
        ["serve", "--role=api", "--role=registry", "--access=tokens"].map(str::to_owned).into();
    args.push(format!("--listen={address}"));
    args.push(format!("--max-payload={}", loaded.plan().api.max_payload_bytes));
    let mut env = Vec::new();
    match database {
        Location::Sqlite(file) => args.push(format!("--sqlite={}", file.display())),
        Location::Postgres(url) => env.push(("DATABASE_URL".to_owned(), url.clone())),
    }
    let logs = dir.join("logs");
    make_dir(&logs, 0o700)?;
    let deployment = LocalDeployment::new(logs);
    let spawner = Spawner::new()?;
    let name = ComponentName::new("platform-on-trial")?;
    deployment.add(
        ComponentSpec {
            name: name.clone(),
            kind: ComponentKind::Api,
            program: std::env::current_exe()?,
            args,
            env,
            address: Some(address),
        },
        &spawner,
    )?;
    let client = Client::builder(format!("http://{address}")).build()?;
    let client = client.with_timeout(resurgam_model::Duration::from_secs(2));
    let until = tokio::time::Instant::now() + READY;
    let mut ready = false;
    while !ready && tokio::time::Instant::now() < until {
        ready = client.ready().await.is_ok_and(|readiness| readiness.is_ready());
        if !ready {
            tokio::time::sleep(LOOK).await;
        }
    }
    let log = deployment.logs(&name, 10).await.unwrap_or_default();
    deployment.shutdown().await;
    if ready {
        return Ok(());
    }
    Err(Failure::new(format!(
        "the backup could be restored, but the platform did not become ready on it, so it is not proven:\n{}",
        log.join("\n")
    )))
}

/// Takes backups when the plan says so, for as long as it is waited for. A time that was missed,
/// also while nothing ran, is made up for once.
pub(crate) async fn schedule(loaded: &Loaded, platform: Client, log: &Standings) {
    let backup = &loaded.plan().backup;
    let zone = TimeZone::get(&backup.timezone).unwrap_or(TimeZone::UTC);
    if !backup.scheduled
        || backup.vaults.is_empty()
        || loaded.plan().store.kind == StoreKind::External
    {
        return std::future::pending().await;
    }
    let mut pause_after_failure = PAUSE_AFTER_FAILURE;
    loop {
        let due = match due(loaded, &zone).await {
            Ok(due) => due,
            Err(failure) => {
                tracing::error!(error = failure.message, "no scheduled backup can be taken");
                tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
                continue;
            }
        };
        let Some(due) = due else { return std::future::pending().await };
        // In short pieces, because clocks are put right. The pause is no part of the time itself.
        let due = due + jitter(backup.jitter.0);
        let mut gap = false;
        while Timestamp::now() < due && !gap {
            let left = Duration::try_from(due.duration_since(Timestamp::now()));
            let pause = tokio::time::sleep(left.unwrap_or_default().min(CLOCK));
            tokio::select! {
                () = pause => {}
                () = log.gap.notified() => gap = true,
            }
        }
        if gap {
            // Is one due for that now?
            continue;
        }
        // What is just coming up is not to be copied yet.
        while !platform.ready().await.is_ok_and(|readiness| readiness.is_ready()) {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        match scheduled(loaded).await {
            Ok(()) => pause_after_failure = PAUSE_AFTER_FAILURE,
            Err(failure) => {
                tracing::error!(
                    error = failure.message,
                    "the scheduled backup failed; it is tried again"
                );
                tokio::time::sleep(pause_after_failure).await;
                pause_after_failure = (pause_after_failure * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

/// When the next backup is due: after the oldest of the last backups of all vaults, or at once when
/// the log that comes does not go on from the last one.
async fn due(loaded: &Loaded, zone: &TimeZone) -> Result<Option<Timestamp>, Failure> {
    let mut last: Option<Timestamp> = None;
    // A vault that is away is made up for when it is back.
    for (number, vault) in open_all(loaded, None).await?.0.into_iter().enumerate() {
        let continuous = loaded.plan().backup.continuous;
        let (newest, broken) = blocking(move || {
            let backups = vault.backups()?;
            let broken = continuous && vault.log_is_broken(&backups)?;
            Ok((backups, broken))
        })
        .await?;
        let newest = newest.first().map_or(Timestamp::UNIX_EPOCH, |backup| backup.taken_at);
        if broken {
            // What a backup needs of the log is still on its way when it has just been stored.
            return Ok(Some(newest + PAUSE_AFTER_BACKUP));
        }
        last = if number == 0 { Some(newest) } else { last.min(Some(newest)) };
    }
    let now = Timestamp::now();
    // One from the future would keep the next one away.
    let after = last.unwrap_or_default().min(now);
    Ok(loaded.plan().backup.schedule.next_after(after, zone))
}

fn jitter(most: Duration) -> Duration {
    let mut bytes = [0; 4];
    if getrandom::fill(&mut bytes).is_err() {
        return Duration::ZERO;
    }
    most.mul_f64(f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX))
}

async fn scheduled(loaded: &Loaded) -> Result<(), Failure> {
    let (vaults, away) = open_all(loaded, None).await?;
    for failure in away {
        tracing::error!(error = failure.message, "a vault does not get the scheduled backup");
    }
    let say = |text: &str| tracing::info!(text, "scheduled backup");
    let Taken { stored, mut failed } = take(loaded, &vaults, "scheduled", &say).await?;
    for (vault, backup) in &stored {
        tracing::info!(
            vault = vault.name(),
            id = backup.id,
            size = backup.size,
            added = backup.added,
            "backup stored"
        );
        if loaded.plan().backup.verify {
            match verify(loaded, vault, backup, &say).await? {
                Proof::Bad(why) => {
                    tracing::error!(vault = vault.name(), id = backup.id, why, "the backup is bad");
                }
                _ => tracing::info!(vault = vault.name(), id = backup.id, "backup verified"),
            }
        }
        prune(loaded, vault).await?;
    }
    failed.pop().map_or(Ok(()), Err)
}

/// Removes what no rule keeps, and log that only that needed.
async fn prune(loaded: &Loaded, vault: &Arc<Vault>) -> Result<(), Failure> {
    let doomed = doomed(loaded, vault).await?;
    let gone: Vec<_> = doomed.gone().collect();
    if !gone.is_empty() {
        tracing::info!(
            vault = vault.name(),
            ?gone,
            "no rule keeps these backups, they are removed"
        );
    }
    doomed.remove(vault).await
}

/// What is to be removed from a vault.
pub(crate) struct Doomed {
    /// On each backup.
    pub(crate) verdicts: Vec<Verdict>,
    /// Of the logs.
    pub(crate) log: Vec<(LogStore, Vec<Segment>)>,
}

impl Doomed {
    /// The backups that go.
    pub(crate) fn gone(&self) -> impl Iterator<Item = String> + '_ {
        self.verdicts.iter().filter(|verdict| !verdict.keep).map(|verdict| verdict.id.clone())
    }

    /// Removes it. The backups first: log without a backup is of no use, a backup without its log
    /// would promise what it cannot keep.
    pub(crate) async fn remove(self, vault: &Arc<Vault>) -> Result<(), Failure> {
        let gone: Vec<_> = self.gone().collect();
        let vault = Arc::clone(vault);
        blocking(move || {
            if !gone.is_empty() {
                vault.remove(&gone)?;
            }
            self.log.iter().try_for_each(|(store, segments)| store.remove(segments))
        })
        .await
    }
}

/// What is to be removed from a vault, by the plan.
pub(crate) async fn doomed(loaded: &Loaded, vault: &Arc<Vault>) -> Result<Doomed, Failure> {
    let opened = Arc::clone(vault);
    let all = blocking(move || opened.backups()).await?;
    let plan = &loaded.plan().backup;
    let zone = TimeZone::get(&plan.timezone).unwrap_or(TimeZone::UTC);
    let now = Timestamp::now();
    let verdicts = decide(&all, plan.retention, &zone, now);
    let days = std::time::Duration::from_secs(u64::from(plan.log_days) * 86_400);
    // By the newest backup where the clock is ahead of it: it may be wrong.
    let newest = all.iter().map(|backup| backup.taken_at).max().unwrap_or(now);
    let since = newest.min(now).checked_sub(days).unwrap_or(Timestamp::MIN);
    let stays = |backup: &Backup| verdicts.iter().any(|v| v.keep && v.id == backup.id);
    let kept: Vec<_> = all.into_iter().filter(stays).collect();
    let vault = Arc::clone(vault);
    let log = blocking(move || vault.unneeded_log(&kept, since)).await?;
    Ok(Doomed { verdicts, log })
}

/// Where a plan's relative paths begin.
pub(crate) fn base(loaded: &Loaded) -> PathBuf {
    loaded.path(Path::new(""))
}
