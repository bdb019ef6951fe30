//! Two instances, each with a keeper in a process of its own.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use resurgam_deployment::local::free_address;
use resurgam_deployment::postgres::contain::Strength;
use resurgam_deployment::postgres::data::Layout;
use resurgam_deployment::postgres::server::Instance;
use resurgam_deployment::postgres::wire::{Order, PrimaryState, Renewal, ServerState, Upstream};
use resurgam_deployment::postgres::{Programs, Secrets, keeper};
use resurgam_model::ComponentName;
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio_postgres::{Client, NoTls};

use crate::controller::{Controller, TOKEN};
use crate::processes::{Process, dead, descendants, folder, within};
use crate::roles::{Role, told};

/// Long enough for a machine that is busy with other tests.
pub(crate) const LONG_LEASE: Duration = Duration::from_secs(20);

const NAME: &str = "RESURGAM_TEST_NAME";
const DIR: &str = "RESURGAM_TEST_DIR";
const ADDRESS: &str = "RESURGAM_TEST_ADDRESS";
const CONTROLLER: &str = "RESURGAM_TEST_CONTROLLER";
const SECRETS: &str = "RESURGAM_TEST_SECRETS";

/// The role: a keeper, until it is asked to end.
pub(crate) async fn keep() {
    let settings = [("fsync", "off"), ("shared_buffers", "16MB"), ("log_checkpoints", "off")];
    let settings = settings.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let instance = Instance {
        name: ComponentName::new(told(NAME)).unwrap(),
        layout: Layout::new(PathBuf::from(told(DIR))),
        address: told(ADDRESS).parse().unwrap(),
        programs: Programs::find(None).unwrap(),
        secrets: Secrets::load(Path::new(&told(SECRETS))).unwrap(),
        database: "platform".to_owned(),
        settings: BTreeMap::from(settings),
    };
    let controller = keeper::Controller { url: told(CONTROLLER), token: TOKEN.to_owned() };
    let mut terminate = signal(SignalKind::terminate()).unwrap();
    let shutdown = async { terminate.recv().await.unwrap_or_default() };
    keeper::run(instance, controller, shutdown).await.unwrap();
}

/// An instance and its keeper, when it has one.
pub(crate) struct Node {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    pub(crate) layout: Layout,
    pub(crate) dir: PathBuf,
    controller: Controller,
    secrets_file: PathBuf,
    secrets: Secrets,
    role: Option<Role>,
}

/// Two instances and their controller.
pub(crate) struct Pair {
    pub(crate) a: Node,
    pub(crate) b: Node,
    pub(crate) controller: Controller,
    folder: tempfile::TempDir,
}

impl Pair {
    /// Nothing runs yet.
    pub(crate) async fn new() -> Self {
        let folder = folder();
        let controller = Controller::start().await;
        let secrets_file = folder.path().join("secrets.json");
        let secrets = Secrets::load_or_create(&secrets_file).unwrap();
        let node = |name| {
            let dir = folder.path().join(name);
            Node {
                name,
                address: free_address("127.0.0.1".parse().unwrap(), 0).unwrap(),
                layout: Layout::new(dir.clone()),
                dir,
                controller: controller.clone(),
                secrets_file: secrets_file.clone(),
                secrets: secrets.clone(),
                role: None,
            }
        };
        let (a, b) = (node("postgres-0"), node("postgres-1"));
        Self { a, b, controller, folder }
    }

    /// One primary without a standby.
    pub(crate) async fn alone(lease: Duration) -> Self {
        let mut pair = Self::new().await;
        pair.a.be_primary(1, lease, true, false);
        pair.a.start().await;
        pair.a.reigns(1).await;
        pair
    }

    /// A primary and a standby that streams.
    pub(crate) async fn streaming() -> Self {
        let mut pair = Self::alone(LONG_LEASE).await;
        pair.b.follow(&pair.a, 1);
        pair.b.start().await;
        pair.b.streams_from(&pair.a).await;
        pair
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in [&self.a, &self.b] {
                let log = std::fs::read_to_string(node.log()).unwrap_or_default();
                let lines: Vec<_> = log.lines().collect();
                let tail = lines[lines.len().saturating_sub(60)..].join("\n");
                eprintln!("--- {} said {:?}", node.name, self.controller.said(node.name));
                eprintln!("had the problems {:#?}", self.controller.problems(node.name));
                eprintln!("{tail}\n---");
            }
        }
        // The folder is removed next: its users must be dead by then.
        let kill = |node: &mut Node| node.role.take().map(|role| (descendants_of(&role), role));
        let killed = [kill(&mut self.a), kill(&mut self.b)];
        let mut family = Vec::new();
        for (processes, role) in killed.into_iter().flatten() {
            family.extend(processes);
            drop(role);
        }
        let until = std::time::Instant::now() + Duration::from_secs(10);
        while family.iter().any(|process| process.is_alive()) {
            if std::time::Instant::now() > until {
                eprintln!("something in {} does not die", self.folder.path().display());
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn descendants_of(role: &Role) -> Vec<Process> {
    let Some(keeper) = role.child.id() else { return Vec::new() };
    descendants(keeper).into_iter().chain(Process::of(keeper)).collect()
}

impl Node {
    pub(crate) fn component(&self) -> ComponentName {
        ComponentName::new(self.name).unwrap()
    }

    fn log(&self) -> PathBuf {
        self.dir.with_extension("log")
    }

    /// Starts its keeper.
    pub(crate) async fn start(&mut self) {
        assert!(self.role.is_none(), "it has a keeper");
        self.controller.forget(self.name);
        let told = [
            (NAME, self.name.to_owned()),
            (DIR, self.dir.display().to_string()),
            (ADDRESS, self.address.to_string()),
            (CONTROLLER, format!("http://{}", self.controller.address)),
            (SECRETS, self.secrets_file.display().to_string()),
        ];
        self.role = Some(Role::start("keeper", &self.log(), &told).await);
    }

    pub(crate) fn keeper(&self) -> Process {
        self.role.as_ref().expect("it has a keeper").process()
    }

    /// Keeper, server and all that they started.
    pub(crate) fn family(&self) -> Vec<Process> {
        self.role.as_ref().map(descendants_of).unwrap_or_default()
    }

    /// The server's main process.
    pub(crate) fn server(&self) -> Process {
        let is_server = |process: &&Process| {
            let command = std::fs::read(format!("/proc/{}/cmdline", process.pid()));
            command.is_ok_and(|text| {
                let text = String::from_utf8_lossy(&text);
                text.split('\0').next().is_some_and(|it| it.ends_with("/postgres"))
            })
        };
        let keeper = self.keeper().pid();
        let family = descendants(keeper);
        *family.iter().find(is_server).expect("it has a server")
    }

    /// Kills the keeper and waits until nothing of it is left.
    pub(crate) async fn kill(&mut self) {
        let family = self.family();
        let mut role = self.role.take().expect("it has a keeper");
        role.child.kill().await.unwrap();
        dead(10, "the keeper takes everything along", &family).await;
    }

    /// Asks the keeper to end.
    pub(crate) async fn end(&mut self) {
        let family = self.family();
        self.keeper().signal(Signal::TERM);
        let mut role = self.role.take().expect("it has a keeper");
        let ended = tokio::time::timeout(Duration::from_secs(20), role.child.wait()).await;
        assert!(ended.expect("it ends").unwrap().success());
        dead(10, "everything ends with the keeper", &family).await;
    }

    /// Forgets a keeper that is dead.
    pub(crate) fn bury(&mut self) {
        let role = self.role.take().expect("it had a keeper");
        assert!(role.child.id().and_then(Process::of).is_none(), "it is alive");
    }

    pub(crate) fn be_primary(&self, epoch: i64, lease: Duration, create: bool, wait: bool) -> u64 {
        let other = if self.name == "postgres-0" { "postgres-1" } else { "postgres-0" };
        let other = ComponentName::new(other).unwrap();
        let synchronous = wait.then(|| other.clone());
        let order = Order::Primary { create, standbys: vec![other], synchronous };
        self.controller.order(self.name, epoch, lease, order)
    }

    pub(crate) fn follow(&self, primary: &Self, epoch: i64) -> u64 {
        let upstream = Upstream { name: primary.component(), address: primary.address };
        self.controller.order(self.name, epoch, LONG_LEASE, Order::Standby { upstream })
    }

    pub(crate) fn stop(&self, epoch: i64) -> u64 {
        self.controller.order(self.name, epoch, LONG_LEASE, Order::Stopped)
    }

    pub(crate) fn state(&self) -> ServerState {
        self.controller.state(self.name)
    }

    /// Waits until its keeper says something.
    pub(crate) async fn says(&self, what: &str, so: impl Fn(&Renewal) -> bool) -> Renewal {
        let said = || self.controller.said(self.name).filter(|said| so(said));
        within(60, &format!("{} says: {what}", self.name), async || said().is_some()).await;
        said().or_else(|| self.controller.said(self.name)).unwrap()
    }

    pub(crate) fn primary(said: &Renewal) -> Option<&PrimaryState> {
        match &said.observed.state {
            ServerState::Primary(primary) => Some(primary),
            _ => None,
        }
    }

    /// Waits until it reigns and has all that is needed.
    pub(crate) async fn reigns(&self, epoch: i64) {
        self.says("it reigns", |said| {
            Self::primary(said).is_some_and(|it| it.epoch.0 == epoch && it.furnished)
        })
        .await;
    }

    pub(crate) async fn streams_from(&self, primary: &Self) {
        let port = primary.address.port();
        self.says("it streams", |said| match &said.observed.state {
            ServerState::Standby(standby) => standby.streaming_from == Some(port),
            _ => false,
        })
        .await;
    }

    /// Whether the kernel kills its servers as a whole here.
    pub(crate) fn is_strong(&self) -> bool {
        self.controller.said(self.name).is_some_and(|said| said.fence == Strength::Kernel)
    }

    /// A connection as superuser.
    pub(crate) async fn connect(
        &self,
        database: &str,
    ) -> Result<Client, Box<dyn std::error::Error>> {
        let (user, password) = match database {
            "platform" => ("platform", &self.secrets.platform),
            _ => ("postgres", &self.secrets.superuser),
        };
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.address.port()).dbname(database);
        config.user(user).password(password);
        let (client, connection) =
            tokio::time::timeout(Duration::from_secs(10), config.connect(NoTls)).await??;
        tokio::spawn(connection);
        Ok(client)
    }

    /// Runs statements as the platform.
    pub(crate) async fn run(&self, sql: &str) {
        let client = self.connect("platform").await.unwrap();
        let ran = tokio::time::timeout(Duration::from_secs(20), client.batch_execute(sql)).await;
        ran.expect("an answer").unwrap();
    }

    /// The rows of the table `t`.
    pub(crate) async fn rows(&self) -> Vec<i32> {
        let client = self.connect("platform").await.unwrap();
        let rows = client.query("SELECT n FROM t ORDER BY n", &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// Waits until the table `t` holds exactly these.
    pub(crate) async fn holds(&self, expected: &[i32]) {
        let what = format!("{} holds {expected:?}", self.name);
        within(20, &what, async || {
            let Ok(client) = self.connect("platform").await else { return false };
            let Ok(rows) = client.query("SELECT n FROM t ORDER BY n", &[]).await else {
                return false;
            };
            rows.iter().map(|row| row.get::<_, i32>(0)).eq(expected.iter().copied())
        })
        .await;
    }
}
