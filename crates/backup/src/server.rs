//! A PostgreSQL server on restored data, for as long as something is looked at or replayed.

use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use resurgam_deployment::postgres::Programs;
use resurgam_deployment::postgres::contain::{self, Contained, Running};
use resurgam_deployment::postgres::data::give;
use rustix::process::Signal;
use tokio_postgres::{Client, NoTls};

use crate::{Error, Result};

/// So long a server may take to replay its log.
const PATIENCE: Duration = Duration::from_secs(12 * 3600);
/// So long it may take to end.
const GRACE: Duration = Duration::from_secs(600);
/// How often it is asked whether it is there.
const LOOK: Duration = Duration::from_millis(50);
/// So many lines of its log are shown.
const LINES: usize = 5;

/// A server that is reachable from this machine by password only.
#[derive(Debug)]
pub(crate) struct Server {
    running: Running,
    address: SocketAddr,
    log: PathBuf,
}

impl Server {
    /// Starts it on the data, with these settings besides its own. Its files lie in `dir`.
    pub(crate) async fn start(
        programs: &Programs,
        data: &Path,
        dir: &Path,
        settings: &[String],
    ) -> Result<Self> {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let address = TcpListener::bind(any)
            .and_then(|listener| listener.local_addr())
            .map_err(Error::path("cannot find a free port for", dir))?;
        let (config, hba) = (dir.join("scratch.conf"), dir.join("scratch_hba.conf"));
        fs::write(&hba, "host all all 127.0.0.1/32 scram-sha-256\n")
            .and_then(|()| fs::write(&config, ""))
            .map_err(Error::path("cannot write", dir))?;
        for file in [&config, &hba] {
            give(file, 0o600, programs.user.as_ref())?;
        }
        let mut args: Vec<OsString> = vec!["-D".into(), data.into()];
        let own = [
            format!("config_file={}", config.display()),
            format!("hba_file={}", hba.display()),
            format!("port={}", address.port()),
            "listen_addresses=127.0.0.1".to_owned(),
            "unix_socket_directories=".to_owned(),
            "synchronous_standby_names=".to_owned(),
            "default_transaction_read_only=off".to_owned(),
            // Its messages are read.
            "lc_messages=C".to_owned(),
        ];
        for setting in own.iter().chain(settings) {
            args.extend(["-c".into(), setting.into()]);
        }
        let log = dir.join("scratch.log");
        let file = fs::File::create(&log).map_err(Error::path("cannot write", &log))?;
        let program = programs.path("postgres");
        let what =
            Contained { program: &program, args: &args, user: programs.user.as_ref(), log: &file };
        let running = contain::start(what).await.map_err(Error::path("cannot run", &program))?;
        Ok(Self { running, address, log })
    }

    /// How it is reached. There is a password in it.
    pub(crate) fn url(&self, user: &str, password: &str, database: &str) -> String {
        format!("postgresql://{user}:{password}@{}/{database}", self.address)
    }

    /// Waits until it lets somebody in, which it does once its log is replayed.
    pub(crate) async fn connect(
        &self,
        user: &str,
        password: &str,
        database: &str,
    ) -> Result<Client> {
        let url = self.url(user, password, database);
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.running.exit() {
                let text = self.log();
                let tail: Vec<_> = text.lines().rev().take(LINES).collect();
                let output = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
                let program = "postgres on the restored data".to_owned();
                return Err(Error::Program { program, how: status.to_string(), output });
            }
            match tokio_postgres::connect(&url, NoTls).await {
                Ok((client, connection)) => {
                    // Ends with the client.
                    tokio::spawn(connection);
                    return Ok(client);
                }
                Err(source) if Instant::now() > until => {
                    return Err(Error::Postgres { action: "be reached in time", source });
                }
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// What it said.
    pub(crate) fn log(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Ends it by a signal, and waits.
    pub(crate) async fn stop(&self, signal: Signal) {
        self.running.stop(signal, GRACE).await;
    }
}
