//! One PostgreSQL server: start it, look at it, promote it, end it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use resurgam_model::ComponentName;
use resurgam_model::database::{Epoch, Lsn};
use rustix::process::Signal;

use super::config::{Commits, Config, slot_name};
use super::contain::{self, Contained, Running, Strength};
use super::data::{Layout, evict};
use super::floors;
use super::programs::Programs;
use super::secrets::{PROBER, REPLICATOR, Secrets};
use super::sql::{Attempt, Session, identifier, literal};
use super::wire::{PrimaryState, SeenStandby, ServerState, StandbyState, Upstream};
use crate::{Error, Result};

/// Who else streams from a primary: base backups, which are no standbys yet or never will be, and
/// who reads the log for a vault.
const NO_STANDBYS: [&str; 3] = ["pg_basebackup", "resurgam_backup", "resurgam_log"];

/// How long an orderly end may take.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// What does not change while the keeper lives.
#[derive(Clone, Debug)]
pub struct Instance {
    /// Its name, by which others know it as a standby.
    pub name: ComponentName,
    /// Its folders.
    pub layout: Layout,
    /// Where it listens.
    pub address: SocketAddr,
    /// PostgreSQL's programs.
    pub programs: Programs,
    /// The passwords.
    pub secrets: Secrets,
    /// The name of the platform's database and of its owner.
    pub database: String,
    /// Settings from the plan.
    pub settings: BTreeMap<String, String>,
}

/// What the server's configuration says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Configured {
    upstream: Option<Upstream>,
    commits: Commits,
}

/// A server, running or not.
#[derive(Debug)]
pub(super) struct Server {
    instance: Instance,
    running: Option<Running>,
    session: Option<Session>,
    silent_since: Option<Instant>,
    configured: Configured,
    /// The settings from the plan, none lower than the data needs.
    settings: BTreeMap<String, String>,
    /// Set while the server may accept writes.
    reign: Option<Epoch>,
    /// In this reign roles, database and slots have been made sure of.
    furnished: bool,
    last_exit: Option<String>,
}

impl Server {
    pub(super) fn new(instance: Instance) -> Self {
        Self {
            instance,
            running: None,
            session: None,
            silent_since: None,
            configured: Configured::default(),
            settings: BTreeMap::new(),
            reign: None,
            furnished: false,
            last_exit: None,
        }
    }

    pub(super) fn instance(&self) -> &Instance {
        &self.instance
    }

    /// The reign under which it may accept writes, if it may.
    pub(super) fn reign(&self) -> Option<Epoch> {
        self.reign
    }

    pub(super) fn upstream(&self) -> Option<&Upstream> {
        self.configured.upstream.as_ref()
    }

    pub(super) fn synchronous(&self) -> Option<&ComponentName> {
        self.configured.commits.standby()
    }

    pub(super) fn last_exit(&self) -> Option<&str> {
        self.last_exit.as_deref()
    }

    /// Returns when the process has ended; never, when none runs.
    pub(super) async fn ended(&self) {
        match &self.running {
            Some(running) if running.exit().is_none() => {
                running.ended().await;
            }
            _ => std::future::pending().await,
        }
    }

    /// Starts it as a standby; it never starts as anything else.
    pub(super) async fn start(&mut self, upstream: Option<&Upstream>) -> Result<()> {
        let instance = &self.instance;
        let data = instance.layout.data();
        let evicted = evict(&data).await?;
        if evicted > 0 {
            tracing::warn!(evicted, "killed processes that worked on the data folder");
        }
        instance.layout.fence(&data, instance.programs.user.as_ref())?;
        let configured = Configured { upstream: upstream.cloned(), commits: Commits::Never };
        self.settings = floors::settings(instance).await;
        write_config(instance, &self.settings, &configured)?;
        let args: Vec<OsString> = [
            OsString::from("-D"),
            data.into_os_string(),
            OsString::from("-c"),
            OsString::from(format!("config_file={}", instance.layout.config().display())),
        ]
        .into();
        let log = File::from(
            std::io::stderr()
                .as_fd()
                .try_clone_to_owned()
                .map_err(Error::path("cannot use", "the log"))?,
        );
        let program = instance.programs.path("postgres");
        let what = Contained {
            program: &program,
            args: &args,
            user: instance.programs.user.as_ref(),
            log: &log,
        };
        let running = contain::start(what)
            .await
            .map_err(|source| Error::Spawn { program: program.display().to_string(), source })?;
        if running.strength() == Strength::Process {
            tracing::warn!(
                "no PID namespace is allowed here: the fence is weaker than the kernel's"
            );
        }
        self.running = Some(running);
        self.configured = configured;
        self.session = None;
        self.silent_since = Some(Instant::now());
        Ok(())
    }

    /// What its death takes with it, as far as is known.
    pub(super) fn strength(&self) -> Option<Strength> {
        self.running.as_ref().map(Running::strength)
    }

    /// Lets it follow another server, or none, without a restart.
    pub(super) async fn follow(&mut self, upstream: Option<&Upstream>) -> Result<()> {
        self.configure(Configured { upstream: upstream.cloned(), commits: Commits::Never }).await
    }

    /// Lets commits wait for a standby, or for none.
    pub(super) async fn set_synchronous(&mut self, standby: Option<&ComponentName>) -> Result<()> {
        let upstream = self.configured.upstream.clone();
        self.configure(Configured { upstream, commits: Commits::new(standby) }).await
    }

    async fn configure(&mut self, configured: Configured) -> Result<()> {
        write_config(&self.instance, &self.settings, &configured)?;
        self.session()?.run("read its configuration again", "SELECT pg_reload_conf()").await?;
        self.configured = configured;
        Ok(())
    }

    /// Ends it in order.
    pub(super) async fn stop(&mut self) {
        self.session = None;
        if let Some(running) = self.running.take() {
            let exit = running.stop(Signal::INT, STOP_GRACE).await;
            self.last_exit = Some(format!("stopped ({exit})"));
        }
        self.reign = None;
    }

    /// Kills it at once, with all its processes.
    pub(super) async fn kill(&mut self) {
        self.session = None;
        if let Some(running) = self.running.take() {
            running.kill().await;
            self.last_exit = Some("killed by its keeper".to_owned());
            self.running = Some(running);
            if !self.clear_remains().await {
                return;
            }
            self.running = None;
        }
        self.reign = None;
    }

    /// Where the kernel does not kill a server as a whole, its backends may outlive its main
    /// process, and finish what they are at. "Stopped" is said only when they are gone too.
    async fn clear_remains(&self) -> bool {
        let weak =
            self.running.as_ref().is_some_and(|running| running.strength() == Strength::Process);
        if !weak {
            return true;
        }
        let cleared = evict(&self.instance.layout.data()).await;
        if let Err(error) = &cleared {
            tracing::error!(%error, "end what is left of the server");
        }
        cleared.is_ok()
    }

    pub(super) fn session(&self) -> Result<&Session> {
        self.session
            .as_ref()
            .ok_or_else(|| Error::State("the server takes no connections yet".to_owned()))
    }

    /// Looks how it is. Also notices when the process has ended.
    pub(super) async fn observe(&mut self) -> ServerState {
        if let Some(exit) = self.running.as_ref().and_then(Running::exit) {
            self.last_exit = Some(exit.to_string());
            if !self.clear_remains().await {
                return ServerState::Unresponsive { for_ms: 0 };
            }
            self.running = None;
            self.session = None;
            self.reign = None;
        }
        if self.running.is_none() {
            let has_data = self.instance.layout.has_data();
            return if has_data { ServerState::Stopped } else { ServerState::Absent };
        }
        if self.session.as_ref().is_none_or(Session::is_closed) {
            self.session = None;
            match Session::connect(self.instance.address, &self.instance.secrets.superuser).await {
                Attempt::Connected(session) => self.session = Some(session),
                // Before it listens it starts as well.
                Attempt::StartingUp | Attempt::NobodyThere => return ServerState::Starting,
                Attempt::NoAnswer => {}
                Attempt::Refused(error) => tracing::warn!(%error, "connect to the server"),
            }
        }
        let state = match self.session.as_ref() {
            Some(session) => look(session, self.reign, self.furnished).await,
            None => Err(Error::Timeout("no answer".to_owned())),
        };
        match state {
            Ok(state) => {
                self.silent_since = None;
                state
            }
            Err(error) => {
                tracing::debug!(%error, "look at the server");
                // A session that did not answer in time may answer later, to another question.
                self.session = None;
                let since = self.silent_since.get_or_insert_with(Instant::now);
                let for_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
                ServerState::Unresponsive { for_ms }
            }
        }
    }

    /// What a standby has replayed, once that is all that lies on its disk.
    pub(super) async fn replayed_all(&self) -> Result<Option<Lsn>> {
        // It waits for more only when it has come to the end.
        let sql = "SELECT pg_last_wal_replay_lsn()::text FROM pg_stat_activity
                   WHERE backend_type = 'startup'
                     AND wait_event IN ('RecoveryWalStream', 'RecoveryRetrieveRetryInterval')";
        let row = self.session()?.row("say what it has replayed", sql).await?;
        row.and_then(|row| row.get::<_, Option<String>>(0)).map(|text| lsn(&text)).transpose()
    }

    /// Makes it a primary. The caller holds the lease of `epoch`.
    pub(super) async fn promote(
        &mut self,
        epoch: Epoch,
        synchronous: Option<&ComponentName>,
    ) -> Result<()> {
        // Whom commits wait for is settled before there can be a commit (see `Commits::Never`),
        // and the reign is on disk before it begins: it is one life of a server, whoever
        // restarts it.
        self.set_synchronous(synchronous).await?;
        self.instance.layout.begin_reign(epoch)?;
        self.reign = Some(epoch);
        self.furnished = false;
        let session = self.session()?;
        session.run("be promoted", "SELECT pg_promote(false)").await?;
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let row = session.row("say whether it recovers", "SELECT pg_is_in_recovery()").await?;
            if row.is_some_and(|row| !row.get::<_, bool>(0)) {
                break;
            }
            if Instant::now() > deadline {
                return Err(Error::Timeout("the promotion did not end within 60 s".to_owned()));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.keep_fenced()
    }

    /// PostgreSQL takes the mark of a standby away when it is promoted. With it back, the next
    /// start is one as a standby again, whoever starts it.
    pub(super) fn keep_fenced(&self) -> Result<()> {
        let data = self.instance.layout.data();
        self.instance.layout.mark_standby(&data, self.instance.programs.user.as_ref())
    }

    /// Goes on as primary in a later epoch, without having been anything else in between.
    pub(super) fn adopt(&mut self, epoch: Epoch) -> Result<()> {
        self.instance.layout.begin_reign(epoch)?;
        self.reign = Some(epoch);
        Ok(())
    }

    pub(super) fn furnished(&self) -> bool {
        self.furnished
    }

    /// Makes what clients and standbys need. Harmless when it is there.
    pub(super) async fn furnish(&mut self, standbys: &[ComponentName]) -> Result<()> {
        self.keep_slots(standbys).await?;
        self.ensure_objects().await?;
        self.furnished = true;
        Ok(())
    }

    /// Keeps the write-ahead log that the standbys need.
    async fn keep_slots(&self, standbys: &[ComponentName]) -> Result<()> {
        let session = self.session()?;
        for standby in standbys {
            let slot = literal(&slot_name(standby));
            let sql = format!(
                "SELECT pg_create_physical_replication_slot({slot}, true) WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = {slot})"
            );
            session.row("make a replication slot", &sql).await?;
        }
        Ok(())
    }

    /// Roles and database of the platform.
    async fn ensure_objects(&self) -> Result<()> {
        let session = self.session()?;
        let secrets = &self.instance.secrets;
        let owner = &self.instance.database;
        let roles = [
            (REPLICATOR, "LOGIN REPLICATION", &secrets.replicator),
            (PROBER, "LOGIN", &secrets.prober),
            (owner.as_str(), "LOGIN", &secrets.platform),
        ];
        for (role, rights, password) in roles {
            let exists = format!("SELECT FROM pg_roles WHERE rolname = {}", literal(role));
            if session.row("look for a role", &exists).await?.is_none() {
                let (role, password) = (identifier(role), literal(password));
                let sql = format!("CREATE ROLE {role} {rights} PASSWORD {password}");
                session.run("make a role", &sql).await?;
            }
        }
        let exists = format!("SELECT FROM pg_database WHERE datname = {}", literal(owner));
        if session.row("look for the database", &exists).await?.is_none() {
            let name = identifier(owner);
            session
                .run_long("make the database", &format!("CREATE DATABASE {name} OWNER {name}"))
                .await?;
        }
        let probe = identifier(PROBER);
        session
            .run(
                "make the probe's table",
                &format!(
                    "CREATE SCHEMA IF NOT EXISTS {probe} AUTHORIZATION {probe};
                     CREATE TABLE IF NOT EXISTS {probe}.beat (id int PRIMARY KEY, value bigint NOT NULL, at timestamptz NOT NULL DEFAULT now());
                     ALTER TABLE {probe}.beat OWNER TO {probe};
                     INSERT INTO {probe}.beat (id, value) VALUES (1, 0) ON CONFLICT DO NOTHING"
                ),
            )
            .await
    }
}

fn write_config(
    instance: &Instance,
    settings: &BTreeMap<String, String>,
    configured: &Configured,
) -> Result<()> {
    let (hba, passfile) = (instance.layout.hba(), instance.layout.passfile());
    let text = Config {
        name: &instance.name,
        address: instance.address,
        hba_file: &hba,
        passfile: &passfile,
        settings,
        upstream: configured.upstream.as_ref(),
        commits: &configured.commits,
    }
    .render();
    let user = instance.programs.user.as_ref();
    instance.layout.write(&instance.layout.config(), &text, 0o600, user)
}

async fn look(session: &Session, reign: Option<Epoch>, furnished: bool) -> Result<ServerState> {
    let action = "say how it is";
    let missing = || Error::State("the server gave no row where there must be one".to_owned());
    let standby = session
        .row(
            action,
            "SELECT coalesce(pg_last_wal_receive_lsn(), '0/0')::text,
                    coalesce(pg_last_wal_replay_lsn(), '0/0')::text,
                    coalesce(w.received_tli, greatest(c.timeline_id, r.min_recovery_end_timeline)),
                    CASE WHEN w.status = 'streaming' THEN w.sender_port END,
                    (extract(epoch FROM clock_timestamp() - w.last_msg_receipt_time) * 1000)::bigint
             FROM pg_control_checkpoint() c CROSS JOIN pg_control_recovery() r
             LEFT JOIN pg_stat_wal_receiver w ON true
             WHERE pg_is_in_recovery()",
        )
        .await?;
    if let Some(row) = standby {
        let (received, replayed): (Lsn, Lsn) = (lsn(row.get(0))?, lsn(row.get(1))?);
        return Ok(ServerState::Standby(StandbyState {
            timeline: number(row.get(2)),
            // After a restart the first counts from the start of a segment.
            received: received.max(replayed),
            replayed,
            streaming_from: row.get::<_, Option<i32>>(3).and_then(|port| port.try_into().ok()),
            silent_ms: row.get::<_, Option<i64>>(4).map(|ms| ms.max(0).unsigned_abs()),
        }));
    }
    let primary = session
        .row(
            action,
            "SELECT pg_current_wal_flush_lsn()::text,
                    pg_walfile_name(pg_current_wal_lsn()),
                    current_setting('synchronous_standby_names')",
        )
        .await?
        .ok_or_else(missing)?;
    let standbys = session
        .rows(
            action,
            "SELECT application_name, state = 'streaming', sync_state = 'sync',
                    coalesce(flush_lsn, '0/0')::text, (extract(epoch FROM flush_lag) * 1000)::bigint
             FROM pg_stat_replication ORDER BY application_name",
        )
        .await?;
    let standbys = standbys
        .iter()
        .filter(|row| !NO_STANDBYS.contains(&row.get(0)))
        .map(|row| {
            Ok(SeenStandby {
                name: row.get(0),
                streaming: row.get::<_, Option<bool>>(1).unwrap_or(false),
                synchronous: row.get::<_, Option<bool>>(2).unwrap_or(false),
                flushed: lsn(row.get(3))?,
                lag_ms: row.get::<_, Option<i64>>(4).map(|ms| ms.max(0).unsigned_abs()),
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let file: String = primary.get(1);
    let timeline = file.get(..8).and_then(|hex| u32::from_str_radix(hex, 16).ok());
    let names: String = primary.get(2);
    let synchronous = names.split('"').nth(1).and_then(|name| ComponentName::new(name).ok());
    Ok(ServerState::Primary(PrimaryState {
        // A primary without a reign does not happen; if it did, epoch 0 is never the current one.
        epoch: reign.unwrap_or_default(),
        furnished,
        timeline: timeline.unwrap_or(0),
        flushed: lsn(primary.get(0))?,
        synchronous,
        standbys,
    }))
}

fn lsn(text: &str) -> Result<Lsn> {
    text.parse().map_err(|error| Error::State(format!("the server's position: {error}")))
}

fn number(timeline: i32) -> u32 {
    timeline.unsigned_abs()
}
