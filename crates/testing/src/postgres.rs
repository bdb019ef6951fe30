//! A real PostgreSQL server for tests, which leaves nothing behind.

use std::env;
use std::fs;
use std::io::{self, Read as _};
use std::net::Ipv4Addr;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use resurgam_deployment::local::free_address;
use tokio_postgres::NoTls;

/// Waits until its input ends, which it does when the test process is gone, however it went; then
/// stops the server and deletes its folder. A frozen server is woken up first.
const CLEANER: &str = r#"
read -r _
pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null)
if [ -n "$pid" ]; then
    kill -CONT "$pid"
    kill -QUIT "$pid"
    tries=0
    while kill -0 "$pid" && [ "$tries" -lt 50 ]; do sleep 0.1; tries=$((tries + 1)); done
    kill -KILL "$pid"
fi 2>/dev/null
rm -rf "$1"
"#;

/// A server with a folder of its own, listening on the loopback address. Whoever may connect may
/// do everything. It does not survive the test process, and its folder does not survive it.
#[derive(Debug)]
pub struct ScratchPostgres {
    programs: PathBuf,
    folder: PathBuf,
    port: u16,
    owner: Option<(u32, u32)>,
    cleaner: Child,
    databases: AtomicU32,
}

impl ScratchPostgres {
    /// Makes and starts a server of one's own: for tests that stop it.
    ///
    /// # Errors
    /// When PostgreSQL is not installed or does not start; the text tells what it said.
    pub fn start() -> io::Result<Self> {
        let programs = programs()?;
        // PostgreSQL refuses to run as root.
        let owner = if rustix::process::geteuid().is_root() { Some(other_user()?) } else { None };
        let folder = tempfile::Builder::new().prefix("resurgam-pg-").tempdir()?.keep();
        let cleaner = Command::new("sh")
            .args(["-c", CLEANER, "cleaner"])
            .arg(&folder)
            .stdin(Stdio::piped())
            // An interrupt from the keyboard is for the tests, not for what cleans up after them.
            .process_group(0)
            .spawn()?;
        if let Some((user, group)) = owner {
            chown(&folder, Some(user), Some(group))?;
        }
        let port = free_address(Ipv4Addr::LOCALHOST.into(), 0).map_err(io::Error::other)?.port();
        let databases = AtomicU32::new(0);
        let server = Self { programs, folder, port, owner, cleaner, databases };
        let settings = ["--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C"];
        server.run("initdb", |initdb| initdb.args(settings).arg("--no-sync"))?;
        server.resume()?;
        Ok(server)
    }

    /// The server that all tests of the process share, each with a database of its own.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn shared() -> io::Result<&'static Self> {
        static SHARED: OnceLock<io::Result<ScratchPostgres>> = OnceLock::new();
        let shared = SHARED.get_or_init(Self::start);
        shared.as_ref().map_err(|error| io::Error::other(error.to_string()))
    }

    /// `127.0.0.1:port`.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The URL of a database.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgresql://postgres@{}/{database}", self.address())
    }

    /// Makes an empty database and answers its name.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn create_database(&self) -> io::Result<String> {
        let name = format!("scratch_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.execute("postgres", &format!("CREATE DATABASE {name}")).await?;
        Ok(name)
    }

    /// Runs statements as the superuser.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn execute(&self, database: &str, sql: &str) -> io::Result<()> {
        let (client, connection) =
            tokio_postgres::connect(&self.url(database), NoTls).await.map_err(io::Error::other)?;
        let connection = tokio::spawn(connection);
        let done = client.batch_execute(sql).await.map_err(io::Error::other);
        drop(client);
        let _ = connection.await;
        done
    }

    /// Stops the server at once, as a crash would.
    ///
    /// # Errors
    /// When it does not stop.
    pub fn stop(&self) -> io::Result<()> {
        self.run("pg_ctl", |pg_ctl| pg_ctl.args(["stop", "--mode=immediate", "--wait", "--silent"]))
    }

    /// Starts the server again, and waits until it accepts connections.
    ///
    /// # Errors
    /// When it does not start.
    pub fn resume(&self) -> io::Result<()> {
        let options = format!(
            "-c listen_addresses=127.0.0.1 -c port={} -c unix_socket_directories={} -c fsync=off \
             -c max_connections=200 -c dynamic_shared_memory_type=mmap",
            self.port,
            self.folder.display(),
        );
        let log = self.folder.join("log");
        let started = self.run("pg_ctl", |pg_ctl| {
            pg_ctl.args(["start", "--wait", "--silent", "--options", &options, "--log"]).arg(&log)
        });
        started.map_err(|error| {
            let mut text = error.to_string();
            let _ = fs::File::open(&log).and_then(|mut log| log.read_to_string(&mut text));
            io::Error::other(text)
        })
    }

    fn run(
        &self,
        program: &str,
        arguments: impl FnOnce(&mut Command) -> &mut Command,
    ) -> io::Result<()> {
        let mut command = Command::new(self.programs.join(program));
        let said = self.folder.join("said");
        command
            .arg("--pgdata")
            .arg(self.folder.join("data"))
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            // Not pipes: the server would inherit them, and waiting for their end would last as
            // long as the server.
            .stdout(Stdio::null())
            .stderr(fs::File::create(&said)?);
        if let Some((user, group)) = self.owner {
            command.uid(user).gid(group);
        }
        if arguments(&mut command).status()?.success() {
            return Ok(());
        }
        Err(io::Error::other(format!("{program} failed: {}", fs::read_to_string(said)?)))
    }
}

impl Drop for ScratchPostgres {
    fn drop(&mut self) {
        drop(self.cleaner.stdin.take());
        let _ = self.cleaner.wait();
    }
}

/// The folder with the server's programs.
fn programs() -> io::Result<PathBuf> {
    let complete =
        |folder: &Path| ["initdb", "pg_ctl", "postgres"].iter().all(|p| folder.join(p).exists());
    let on_path = env::var_os("PATH").unwrap_or_default();
    let told = Command::new("pg_config").arg("--bindir").output().ok();
    let told = told.and_then(|output| String::from_utf8(output.stdout).ok());
    let mut packaged: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .map(|versions| versions.flatten().map(|version| version.path().join("bin")).collect())
        .unwrap_or_default();
    packaged.sort();
    env::split_paths(&on_path)
        .chain(told.map(|folder| PathBuf::from(folder.trim())))
        .chain(packaged.into_iter().rev())
        .find(|folder| complete(folder))
        .ok_or_else(|| io::Error::other("PostgreSQL is not installed: no initdb was found"))
}

/// The user and group under which the server runs when the tests run as root.
fn other_user() -> io::Result<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd")?;
    let find = |name: &str| {
        let mut fields = users
            .lines()
            .map(|line| line.split(':'))
            .find_map(|mut fields| (fields.next() == Some(name)).then_some(fields))?;
        let user = fields.nth(1)?.parse().ok()?;
        Some((user, fields.next()?.parse().ok()?))
    };
    ["postgres", "nobody"]
        .into_iter()
        .find_map(find)
        .ok_or_else(|| io::Error::other("there is no user postgres or nobody to run the server"))
}
