//! A node of RabbitMQ.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use super::{make_dir, on_path, write_private};
use crate::{Error, Result};

/// Where packages put it. The program on `PATH` is often a script that changes the user first.
const USUAL: [&str; 3] =
    ["/usr/lib/rabbitmq/lib", "/usr/local/lib/rabbitmq/lib", "/opt/rabbitmq/lib"];

/// RabbitMQ's programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RabbitPrograms {
    /// The script that becomes the server.
    pub server: PathBuf,
    /// Erlang's own name service.
    pub port_mapper: PathBuf,
}

impl RabbitPrograms {
    /// Finds them: in `home` (the folder that holds `sbin`) if given, else where packages put
    /// them, where the newest version wins, else on `PATH`.
    ///
    /// # Errors
    /// When RabbitMQ or Erlang is missing.
    pub fn find(home: Option<&Path>) -> Result<Self> {
        let server_in = |home: &Path| {
            let server = home.join("sbin/rabbitmq-server");
            server.is_file().then_some(server)
        };
        let server = match home {
            Some(home) => server_in(home).ok_or_else(|| {
                Error::Programs(format!(
                    "{} holds no RabbitMQ: there is no sbin/rabbitmq-server in it; set bus.rabbitmq.home in the plan to the folder of a RabbitMQ",
                    home.display()
                ))
            })?,
            None => {
                let mut packaged: Vec<_> = USUAL
                    .iter()
                    .filter_map(|base| fs::read_dir(base).ok())
                    .flatten()
                    .flatten()
                    .filter_map(|entry| {
                        let name = entry.file_name();
                        let version = name.to_str()?.strip_prefix("rabbitmq_server-")?;
                        let numbers: Vec<u32> =
                            version.split('.').map_while(|part| part.parse().ok()).collect();
                        Some((numbers, server_in(&entry.path())?))
                    })
                    .collect();
                packaged.sort();
                let newest = packaged.pop().map(|(_, server)| server);
                newest.or_else(|| on_path("rabbitmq-server")).ok_or_else(|| {
                    Error::Programs(format!(
                        "RabbitMQ was not found below {} or on PATH; install it (Debian: apt-get install rabbitmq-server) or set bus.rabbitmq.home in the plan",
                        USUAL.join(", ")
                    ))
                })?
            }
        };
        let port_mapper = on_path("epmd").ok_or_else(|| {
            Error::Programs(
                "RabbitMQ needs Erlang, and its program epmd is not on PATH; install it (Debian: apt-get install erlang-base)"
                    .to_owned(),
            )
        })?;
        Ok(Self { server, port_mapper })
    }
}

/// A node. Debug output would show the password, so there is none.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RabbitNode {
    /// What runs it.
    pub programs: RabbitPrograms,
    /// Its folder.
    pub dir: PathBuf,
    /// Its name.
    pub name: String,
    /// Where clients connect.
    pub address: SocketAddr,
    /// Where its management API listens.
    pub management: SocketAddr,
    /// Where nodes connect to each other.
    pub distribution: u16,
    /// Where its port mapper listens. Each node has its own, so that nothing else of this machine
    /// is touched, and nothing is left behind.
    pub port_mapper: u16,
    /// The user that may do everything.
    pub username: String,
    /// The password: hexadecimal digits.
    pub password: String,
}

impl RabbitNode {
    /// The URL for clients, with the password.
    #[must_use]
    pub fn url(&self) -> String {
        format!("amqp://{}:{}@{}/%2f", self.username, self.password, self.address)
    }

    /// The URL of the management API, with the password.
    #[must_use]
    pub fn management_url(&self) -> String {
        format!("http://{}:{}@{}", self.username, self.password, self.management)
    }

    pub(super) fn prepare(&self) -> Result<()> {
        for part in ["data", "home", "log"] {
            make_dir(&self.dir.join(part))?;
        }
        let settings = format!(
            "listeners.tcp.1 = {}\nmanagement.tcp.ip = {}\nmanagement.tcp.port = {}\ndefault_user = {}\ndefault_pass = {}\nlog.console = true\nlog.console.level = warning\nlog.file = false\n",
            self.address,
            self.management.ip(),
            self.management.port(),
            self.username,
            self.password,
        );
        write_private(&self.dir.join("rabbitmq.conf"), &settings)?;
        write_private(&self.dir.join("enabled_plugins"), "[rabbitmq_management].\n")?;
        let cookie = self.dir.join("home/.erlang.cookie");
        if !cookie.is_file() {
            write_private(&cookie, &uuid::Uuid::new_v4().simple().to_string())?;
        }
        Ok(())
    }

    fn environment(&self, command: &mut Command) {
        command
            .env("ERL_EPMD_PORT", self.port_mapper.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("HOME", self.dir.join("home"))
            .current_dir(&self.dir);
    }

    pub(super) fn port_mapper(&self) -> Command {
        let mut command = Command::new(&self.programs.port_mapper);
        self.environment(&mut command);
        command
    }

    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.programs.server);
        self.environment(&mut command);
        command
            // The script then becomes the server instead of waiting for it.
            .env("RUNNING_UNDER_SYSTEMD", "true")
            .env_remove("NOTIFY_SOCKET")
            .env("RABBITMQ_NODENAME", format!("{}@localhost", self.name))
            .env("RABBITMQ_DIST_PORT", self.distribution.to_string())
            .env("RABBITMQ_CONFIG_FILE", self.dir.join("rabbitmq"))
            .env("RABBITMQ_CONF_ENV_FILE", self.dir.join("no-such-file"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", self.dir.join("enabled_plugins"))
            .env("RABBITMQ_FEATURE_FLAGS_FILE", self.dir.join("feature_flags"))
            .env("RABBITMQ_MNESIA_BASE", self.dir.join("data"))
            .env("RABBITMQ_LOG_BASE", self.dir.join("log"))
            .env("RABBITMQ_PID_FILE", self.dir.join("pid"))
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                // Idle threads must not spin: the machine has other work.
                "-kernel inet_dist_use_interface {127,0,0,1} +sbwt none +sbwtdcpu none +sbwtdio none",
            );
        command
    }
}
