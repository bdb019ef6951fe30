//! A broker of Kafka in KRaft mode, which is one of the controllers as well.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::{make_dir, on_path, write_private};
use crate::{Error, Result};

/// Kafka 4 needs this Java.
const OLDEST_JAVA: u32 = 17;

/// Where Kafka is looked for when neither the plan nor `KAFKA_HOME` says.
const USUAL: [&str; 4] = ["/opt/kafka", "/usr/local/kafka", "/usr/share/kafka", "/usr/lib/kafka"];

/// More than a local cluster needs; the default of a gigabyte for each is too much for a laptop.
const HEAP: [&str; 2] = ["-Xms128m", "-Xmx384m"];

/// Brokers of one's own share a small machine with all else: what a compiler that works harder would
/// gain later, it takes from everybody for the first minutes.
const LIGHT: [&str; 2] = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"];

/// Kafka's jars and the Java to run them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KafkaPrograms {
    /// The folder that holds `libs`.
    pub home: PathBuf,
    /// The program `java`.
    pub java: PathBuf,
}

impl KafkaPrograms {
    /// Finds them: in `home` if given, else by `KAFKA_HOME`, else in the usual folders.
    ///
    /// # Errors
    /// When Kafka or a Java that is new enough is missing.
    pub fn find(home: Option<&Path>) -> Result<Self> {
        let named =
            home.map(Path::to_owned).or_else(|| Some(std::env::var_os("KAFKA_HOME")?.into()));
        let home = match named {
            Some(home) if has_kafka(&home) => home,
            Some(home) => {
                return Err(Error::Programs(format!(
                    "{} holds no Kafka: there is no libs/kafka_*.jar in it; set bus.kafka.home in the plan or KAFKA_HOME to the folder of an unpacked Kafka 4",
                    home.display()
                )));
            }
            None => USUAL.iter().map(PathBuf::from).find(|home| has_kafka(home)).ok_or_else(|| {
                Error::Programs(format!(
                    "Kafka was not found in {}; unpack Kafka 4 there, or set bus.kafka.home in the plan or KAFKA_HOME to its folder",
                    USUAL.join(", ")
                ))
            })?,
        };
        let by_home =
            std::env::var_os("JAVA_HOME").map(|home| PathBuf::from(home).join("bin/java"));
        let java = by_home.filter(|java| java.is_file()).or_else(|| on_path("java"));
        let missing = || {
            Error::Programs(format!(
                "Kafka needs Java {OLDEST_JAVA} or later, and there is none on PATH or in JAVA_HOME; install it (Debian: apt-get install openjdk-17-jre-headless)"
            ))
        };
        let java = java.ok_or_else(missing)?;
        match java_version(&java) {
            Some(version) if version < OLDEST_JAVA => Err(Error::Programs(format!(
                "Kafka needs Java {OLDEST_JAVA} or later, and {} is Java {version}",
                java.display()
            ))),
            Some(_) => Ok(Self { home, java }),
            None => Err(missing()),
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.java);
        command.args(LIGHT).arg("-cp").arg(self.home.join("libs/*"));
        command
    }
}

fn has_kafka(home: &Path) -> bool {
    let Ok(jars) = std::fs::read_dir(home.join("libs")) else { return false };
    jars.flatten().any(|jar| {
        let name = jar.file_name();
        name.to_str().is_some_and(|name| name.starts_with("kafka_") && name.ends_with(".jar"))
    })
}

/// `openjdk version "17.0.1"` of what `java -version` prints to its error output.
fn java_version(java: &Path) -> Option<u32> {
    let output = Command::new(java).arg("-version").stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stderr);
    // Options from the environment are told of first.
    let version = text.split_once(" version \"")?.1.split('"').next()?;
    // Before 9 it was 1.8.
    version.split(['.', '-', '+']).find(|part| *part != "1")?.parse().ok()
}

/// A broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KafkaNode {
    /// What runs it.
    pub programs: KafkaPrograms,
    /// Its folder.
    pub dir: PathBuf,
    /// Its number, from 1.
    pub id: u16,
    /// Where clients connect.
    pub address: SocketAddr,
    /// Where the controllers of all brokers speak with each other, this one's too, by number.
    pub controllers: Vec<(u16, SocketAddr)>,
    /// The cluster, 22 characters of base64 as Kafka's own tools make them.
    pub cluster: String,
}

impl KafkaNode {
    /// An id for a new cluster.
    #[must_use]
    pub fn new_cluster() -> String {
        // Kafka takes 16 bytes of base64; hexadecimal digits are such characters, too.
        let id = uuid::Uuid::new_v4().simple().to_string();
        id.chars().take(21).chain(['A']).collect()
    }

    fn temporary(&self) -> PathBuf {
        self.dir.join("tmp")
    }

    fn settings(&self) -> PathBuf {
        self.dir.join("server.properties")
    }

    fn properties(&self) -> Result<String> {
        let own = self.controllers.iter().find(|(id, _)| *id == self.id);
        let (_, own) = own.ok_or_else(|| {
            Error::State(format!("the broker {} is not among the controllers", self.id))
        })?;
        let voters: Vec<_> =
            self.controllers.iter().map(|(id, address)| format!("{id}@{address}")).collect();
        let copies = self.controllers.len().clamp(1, 3);
        let in_sync = if copies == 3 { 2 } else { 1 };
        let mut text = String::new();
        for (key, value) in [
            ("process.roles", "broker,controller".to_owned()),
            ("node.id", self.id.to_string()),
            ("controller.quorum.voters", voters.join(",")),
            ("controller.listener.names", "CONTROLLER".to_owned()),
            ("listeners", format!("PLAINTEXT://{},CONTROLLER://{own}", self.address)),
            ("advertised.listeners", format!("PLAINTEXT://{}", self.address)),
            (
                "listener.security.protocol.map",
                "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT".to_owned(),
            ),
            ("log.dirs", self.dir.join("data").display().to_string()),
            ("auto.create.topics.enable", "false".to_owned()),
            ("default.replication.factor", copies.to_string()),
            ("min.insync.replicas", in_sync.to_string()),
            ("offsets.topic.replication.factor", copies.to_string()),
            ("offsets.topic.num.partitions", "8".to_owned()),
            ("transaction.state.log.replication.factor", copies.to_string()),
            ("transaction.state.log.min.isr", in_sync.to_string()),
            ("share.coordinator.state.topic.replication.factor", copies.to_string()),
            ("share.coordinator.state.topic.min.isr", in_sync.to_string()),
            ("unclean.leader.election.enable", "false".to_owned()),
            ("group.initial.rebalance.delay.ms", "0".to_owned()),
            // Sooner than the nine seconds of a cluster in a data centre.
            ("broker.heartbeat.interval.ms", "500".to_owned()),
            ("broker.session.timeout.ms", "3000".to_owned()),
            ("replica.lag.time.max.ms", "5000".to_owned()),
            // What was delivered is in the store.
            ("log.retention.hours", "24".to_owned()),
            ("log.retention.bytes", "268435456".to_owned()),
            ("log.segment.bytes", "67108864".to_owned()),
        ] {
            let _ = writeln!(text, "{key}={value}");
        }
        Ok(text)
    }

    pub(super) fn prepare(&self) -> Result<()> {
        make_dir(&self.dir)?;
        let temporary = self.temporary();
        if temporary.is_dir() {
            std::fs::remove_dir_all(&temporary)
                .map_err(Error::path("cannot delete", &temporary))?;
        }
        make_dir(&temporary)?;
        write_private(&self.settings(), &self.properties()?)?;
        write_private(
            &self.dir.join("log4j2.properties"),
            "status = error\nrootLogger.level = warn\nrootLogger.appenderRef.out.ref = out\nappender.out.type = Console\nappender.out.name = out\nappender.out.layout.type = PatternLayout\nappender.out.layout.pattern = %d{yyyy-MM-dd'T'HH:mm:ss.SSS} %p %c{1} %m%n\n",
        )?;
        if self.dir.join("data/meta.properties").is_file() {
            return Ok(());
        }
        let mut format = self.programs.command();
        format
            .args(["kafka.tools.StorageTool", "format", "--ignore-formatted"])
            .args(["--cluster-id", &self.cluster, "--config"])
            .arg(self.settings())
            .stdin(Stdio::null());
        let output = format.output().map_err(|source| Error::Spawn {
            program: self.programs.java.display().to_string(),
            source,
        })?;
        if output.status.success() {
            return Ok(());
        }
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let start = said.char_indices().rev().nth(1000).map_or(0, |(at, _)| at);
        Err(Error::Program {
            program: "kafka.tools.StorageTool".to_owned(),
            status: output.status.to_string(),
            output: said.get(start..).unwrap_or_default().trim().to_owned(),
        })
    }

    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.programs.java);
        command
            .args(HEAP)
            .args(LIGHT)
            .args(["-XX:+ExitOnOutOfMemoryError", "-Djava.awt.headless=true"])
            // What it unpacks there stays when it is killed.
            .arg(format!("-Djava.io.tmpdir={}", self.temporary().display()))
            .arg(format!(
                "-Dlog4j2.configurationFile={}",
                self.dir.join("log4j2.properties").display()
            ))
            .arg("-cp")
            .arg(self.programs.home.join("libs/*"))
            .arg("kafka.Kafka")
            .arg(self.settings())
            .current_dir(&self.dir);
        command
    }
}
