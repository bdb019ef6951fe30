//! A `resurgam serve` of our own.

use std::net::TcpListener;
use std::process::Stdio;
use std::time::Duration;

use bench_common::Failure;
use resurgam_client::Client;
use tokio::process::{Child, Command};

/// The process; it is killed with this value.
pub struct Server {
    _process: Child,
    pub url: String,
}

impl Server {
    /// All roles in one process, on a free port, once it is ready.
    pub async fn start(program: &str, database: &str) -> Result<Self, Failure> {
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let listen = format!("127.0.0.1:{port}");
        let roles = ["--role", "api", "--role", "registry", "--role", "supervisor"];
        let process = Command::new(program)
            .arg("serve")
            .args(roles)
            .args(["--listen", &listen])
            .env("DATABASE_URL", database)
            .env("RESURGAM_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("{program}: {error}"))?;
        let server = Self { _process: process, url: format!("http://{listen}") };
        let client = Client::new(&server.url)?;
        for _ in 0..500 {
            if client.ready().await.is_ok_and(|ready| ready.status == "ready") {
                return Ok(server);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err("the server did not become ready within 10 s".into())
    }
}
