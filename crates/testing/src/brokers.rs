//! Real brokers for tests, which leave nothing behind.

use std::fs;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::place::Place;
use resurgam_deployment::brokers::{KafkaNode, KafkaPrograms, Node, RabbitNode, RabbitPrograms};
use resurgam_deployment::local::free_address;
use rustix::process::{Pid, Signal, kill_process_group};

/// Longer than a server takes to start, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(120);

/// A node and the processes of it that run.
struct Running {
    name: String,
    node: Node,
    address: SocketAddr,
    server: Option<Child>,
    companion: Option<Child>,
    /// A file of settings, and lines that are added to it before each start.
    more: Option<(PathBuf, String)>,
    /// No file may become greater, in bytes: a write beyond it fails as on a full disk.
    most_bytes: Option<u64>,
}

impl Running {
    fn new(name: String, node: Node, address: SocketAddr) -> Self {
        Self { name, node, address, server: None, companion: None, more: None, most_bytes: None }
    }

    fn start(&mut self, place: &Place) -> io::Result<()> {
        self.node.prepare().map_err(io::Error::other)?;
        if let Some((file, lines)) = &self.more {
            writeln!(fs::OpenOptions::new().append(true).open(file)?, "{lines}")?;
        }
        if self.companion.is_none()
            && let Some(command) = self.node.companion()
        {
            self.companion = Some(place.spawn(&format!("{}-companion", self.name), command)?);
        }
        let command = match self.most_bytes {
            Some(bytes) => limited(&self.node.command(), bytes),
            None => self.node.command(),
        };
        self.server = Some(place.spawn(&self.name, command)?);
        Ok(())
    }

    fn wait(&mut self, place: &Place) -> io::Result<()> {
        let until = Instant::now() + PATIENCE;
        while TcpStream::connect_timeout(&self.address, Duration::from_secs(1)).is_err() {
            let ended = match &mut self.server {
                Some(server) => server.try_wait()?.is_some(),
                None => true,
            };
            if ended || Instant::now() > until {
                let said = fs::read_to_string(place.log(&self.name)).unwrap_or_default();
                return Err(io::Error::other(format!("{} does not start: {said}", self.name)));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        let pid = self.server.as_ref().and_then(|server| Pid::from_raw(server.id().cast_signed()));
        let pid = pid.ok_or_else(|| io::Error::other(format!("{} does not run", self.name)))?;
        Ok(kill_process_group(pid, signal)?)
    }

    /// Stops it, and returns when none of its threads runs any more.
    fn freeze(&self) -> io::Result<()> {
        self.signal(Signal::STOP)?;
        let pid = self.server.as_ref().map_or(0, Child::id);
        let until = Instant::now() + PATIENCE;
        while !is_stopped(pid)? {
            if Instant::now() > until {
                return Err(io::Error::other(format!("{} does not stop", self.name)));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn kill(&mut self) -> io::Result<()> {
        self.signal(Signal::KILL)?;
        if let Some(mut server) = self.server.take() {
            server.wait()?;
        }
        Ok(())
    }
}

/// The command with a limit to the size of each file.
fn limited(command: &Command, bytes: u64) -> Command {
    let mut limited = Command::new("sh");
    // In blocks of 512 bytes.
    let script = format!("ulimit -f {} && exec \"$0\" \"$@\"", bytes / 512);
    limited.args(["-c", &script]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        limited.current_dir(folder);
    }
    limited
}

/// Whether all threads of a process are stopped.
fn is_stopped(pid: u32) -> io::Result<bool> {
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // One that has just ended runs no more either.
        let Ok(stat) = fs::read_to_string(thread?.path().join("stat")) else { continue };
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        if !matches!(state, Some('T' | 't' | 'Z' | 'X')) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn free() -> io::Result<SocketAddr> {
    free_address(Ipv4Addr::LOCALHOST.into(), 0).map_err(io::Error::other)
}

/// The users of a guarded broker, each with its password: one who may do everything, and one who
/// may do nothing.
pub const USERS: [(&str, &str); 2] = [("resurgam", "a-secret-word"), ("stranger", "another-word")];

/// A cluster of Kafka on the loopback address.
pub struct ScratchKafka {
    place: Place,
    nodes: Mutex<Vec<Running>>,
    addresses: Vec<SocketAddr>,
    guarded: Option<SocketAddr>,
}

impl ScratchKafka {
    /// Makes and starts a cluster of so many brokers.
    ///
    /// # Errors
    /// When Kafka is not installed or does not start; the text tells what it said.
    pub fn start(brokers: u16) -> io::Result<Self> {
        Self::make(brokers, |_, _, _| Ok(()))
    }

    /// Makes and starts a broker that can make no file greater than this, in bytes.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn with_little_space(bytes: u64) -> io::Result<Self> {
        Self::make(1, |running, _, _| {
            running.most_bytes = Some(bytes);
            Ok(())
        })
    }

    /// A broker with a second address, where it asks who comes and lets [`USERS`] do what they may.
    fn guarded_broker() -> io::Result<Self> {
        let guarded = free()?;
        let mut cluster = Self::make(1, |running, node, controller| {
            let users: String =
                USERS.iter().map(|(name, word)| format!(" user_{name}=\"{word}\"")).collect();
            let (address, module) =
                (node.address, "org.apache.kafka.common.security.plain.PlainLoginModule");
            let settings = node.dir.join("server.properties");
            let lines = [
                format!(
                    "listeners=PLAINTEXT://{address},GUARDED://{guarded},CONTROLLER://{controller}"
                ),
                format!("advertised.listeners=PLAINTEXT://{address},GUARDED://{guarded}"),
                "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,GUARDED:SASL_PLAINTEXT,\
                 CONTROLLER:PLAINTEXT"
                    .to_owned(),
                "sasl.enabled.mechanisms=PLAIN".to_owned(),
                format!("listener.name.guarded.plain.sasl.jaas.config={module} required{users};"),
                "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer"
                    .to_owned(),
                format!("super.users=User:ANONYMOUS;User:{}", USERS[0].0),
            ];
            running.more = Some((settings, lines.join("\n")));
            Ok(())
        })?;
        cluster.guarded = Some(guarded);
        Ok(cluster)
    }

    fn make(
        brokers: u16,
        change: impl Fn(&mut Running, &KafkaNode, SocketAddr) -> io::Result<()>,
    ) -> io::Result<Self> {
        let programs = KafkaPrograms::find(None).map_err(io::Error::other)?;
        let place = Place::new("resurgam-kafka-")?;
        let cluster = KafkaNode::new_cluster();
        let controllers: Vec<_> =
            (1..=brokers).map(|id| Ok((id, free()?))).collect::<io::Result<_>>()?;
        let mut nodes = Vec::new();
        let mut addresses = Vec::new();
        for (id, controller) in controllers.iter().copied() {
            let name = format!("kafka-{id}");
            let address = free()?;
            addresses.push(address);
            let node = KafkaNode {
                programs: programs.clone(),
                dir: place.folder.join(&name),
                id,
                address,
                controllers: controllers.clone(),
                cluster: cluster.clone(),
            };
            let mut running = Running::new(name, Node::Kafka(node.clone()), address);
            change(&mut running, &node, controller)?;
            running.start(&place)?;
            nodes.push(running);
        }
        nodes.iter_mut().try_for_each(|node| node.wait(&place))?;
        Ok(Self { place, nodes: Mutex::new(nodes), addresses, guarded: None })
    }

    /// The one broker that all tests of the process share, each with a topic of its own.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn shared() -> io::Result<&'static Self> {
        static SHARED: OnceLock<io::Result<ScratchKafka>> = OnceLock::new();
        let shared = SHARED.get_or_init(Self::guarded_broker);
        shared.as_ref().map_err(|error| io::Error::other(error.to_string()))
    }

    /// Where its brokers are.
    #[must_use]
    pub fn bootstrap(&self) -> Vec<String> {
        self.addresses.iter().map(ToString::to_string).collect()
    }

    /// Where the shared broker asks who comes.
    #[must_use]
    pub fn guarded(&self) -> Option<SocketAddr> {
        self.guarded
    }

    /// Lets a broker make files of any size from its next start on.
    ///
    /// # Errors
    /// When there is no such broker.
    pub fn give_space(&self, broker: usize) -> io::Result<()> {
        self.with(broker, |node, _| {
            node.most_bytes = None;
            Ok(())
        })
    }

    /// Whether a broker still runs.
    ///
    /// # Errors
    /// When it cannot be asked for.
    pub fn runs(&self, broker: usize) -> io::Result<bool> {
        let mut runs = false;
        self.with(broker, |node, _| {
            if let Some(server) = &mut node.server {
                runs = server.try_wait()?.is_none();
            }
            Ok(())
        })?;
        Ok(runs)
    }

    /// Kills a broker, counted from 0.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&self, broker: usize) -> io::Result<()> {
        self.with(broker, |node, _| node.kill())
    }

    /// Stops a broker without ending it: it answers nothing and closes nothing.
    ///
    /// # Errors
    /// When it does not run.
    pub fn freeze(&self, broker: usize) -> io::Result<()> {
        self.with(broker, |node, _| node.freeze())
    }

    /// Lets a frozen broker go on.
    ///
    /// # Errors
    /// When it does not run.
    pub fn thaw(&self, broker: usize) -> io::Result<()> {
        self.with(broker, |node, _| node.signal(Signal::CONT))
    }

    /// Starts a broker again, without waiting until it serves.
    ///
    /// # Errors
    /// When it does not start.
    pub fn resume(&self, broker: usize) -> io::Result<()> {
        self.with(broker, Running::start)
    }

    fn with(
        &self,
        broker: usize,
        act: impl FnOnce(&mut Running, &Place) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let node = nodes.get_mut(broker);
        act(node.ok_or_else(|| io::Error::other("there is no such broker"))?, &self.place)
    }
}

/// A node of RabbitMQ on the loopback address.
pub struct ScratchRabbit {
    place: Place,
    node: Mutex<Running>,
    url: String,
    management: String,
}

impl ScratchRabbit {
    /// Makes and starts a node.
    ///
    /// # Errors
    /// When RabbitMQ is not installed or does not start; the text tells what it said.
    pub fn start() -> io::Result<Self> {
        let programs = RabbitPrograms::find(None).map_err(io::Error::other)?;
        let place = Place::new("resurgam-rabbitmq-")?;
        let node = RabbitNode {
            programs,
            dir: place.folder.join("rabbitmq-0"),
            name: "rabbitmq-0".to_owned(),
            address: free()?,
            management: free()?,
            distribution: free()?.port(),
            port_mapper: free()?.port(),
            username: "resurgam".to_owned(),
            password: uuid::Uuid::new_v4().simple().to_string(),
        };
        let (url, address) = (node.url(), node.address);
        let management = node.management_url();
        let mut running = Running::new("rabbitmq-0".to_owned(), Node::RabbitMq(node), address);
        running.start(&place)?;
        running.wait(&place)?;
        Ok(Self { place, node: Mutex::new(running), url, management })
    }

    /// The node that all tests of the process share, each with a prefix of its own.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn shared() -> io::Result<&'static Self> {
        static SHARED: OnceLock<io::Result<ScratchRabbit>> = OnceLock::new();
        let shared = SHARED.get_or_init(Self::start);
        shared.as_ref().map_err(|error| io::Error::other(error.to_string()))
    }

    /// Where it is, with its password.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where its management API is, with its password.
    #[must_use]
    pub fn management(&self) -> &str {
        &self.management
    }

    /// Kills it.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&self) -> io::Result<()> {
        self.node().kill()
    }

    /// Stops it without ending it: it answers nothing and closes nothing.
    ///
    /// # Errors
    /// When it does not run.
    pub fn freeze(&self) -> io::Result<()> {
        self.node().freeze()
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// When it does not run.
    pub fn thaw(&self) -> io::Result<()> {
        self.node().signal(Signal::CONT)
    }

    /// Starts it again, without waiting until it serves.
    ///
    /// # Errors
    /// When it does not start.
    pub fn resume(&self) -> io::Result<()> {
        self.node().start(&self.place)
    }

    /// From its next start on it wants more free space on the disk than any disk has, or as little
    /// as usual.
    pub fn want_space(&self, much: bool) {
        let settings = self.place.folder.join("rabbitmq-0/rabbitmq.conf");
        let line = "disk_free_limit.absolute = 100000GB".to_owned();
        self.node().more = much.then_some((settings, line));
    }

    /// The folder with its data and its log.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.place.folder
    }

    fn node(&self) -> std::sync::MutexGuard<'_, Running> {
        self.node.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
