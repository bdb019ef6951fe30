//! Real object stores for tests, which check signatures and leave nothing behind.

use std::fs;
use std::io::{self, BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use resurgam_deployment::local::free_address;

use crate::place::Place;

/// The bucket, or container, that there is.
pub const BUCKET: &str = "backups";

/// A server of an object store. It does not survive the test process.
#[derive(Debug)]
pub struct ObjectStore {
    /// How a plan names it: the keys of a vault that say where it is.
    pub plan: String,
    /// The variables with the credentials for it.
    pub env: Vec<(&'static str, String)>,
    /// Where it listens.
    pub address: SocketAddr,
    server: Child,
    _place: Place,
}

impl Drop for ObjectStore {
    fn drop(&mut self) {
        // What it has started goes with its folder.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// What the servers say once they are there.
fn said(text: &str, key: &str) -> io::Result<String> {
    let wrong = || io::Error::other(format!("the object store does not start: {text:?}"));
    let (_, rest) = text.split_once(&format!("\"{key}\":")).ok_or_else(wrong)?;
    Ok(rest.split('"').nth(1).ok_or_else(wrong)?.to_owned())
}

fn home() -> io::Result<PathBuf> {
    if let Some(home) = std::env::var_os("OBJECT_STORES_HOME") {
        return Ok(home.into());
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/install-object-stores");
    let output = Command::new(script).stderr(Stdio::inherit()).output()?;
    let home = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if output.status.success() && !home.is_empty() {
        return Ok(home.into());
    }
    Err(io::Error::other("the object stores could not be installed; see above"))
}

impl ObjectStore {
    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.server.id()
    }

    /// Amazon S3's protocol.
    ///
    /// # Errors
    /// When it does not start.
    pub fn s3() -> io::Result<Self> {
        let home = home()?;
        let address = free()?;
        let mut command = Command::new(home.join("python/bin/python"));
        command.arg(home.join("s3.py")).arg(address.port().to_string()).arg(BUCKET);
        let (place, server, text) = start(command)?;
        let plan = format!("url = 's3://{BUCKET}/dr'\nendpoint = 'http://{address}'\n");
        let env = vec![
            ("AWS_ACCESS_KEY_ID", said(&text, "key")?),
            ("AWS_SECRET_ACCESS_KEY", said(&text, "secret")?),
        ];
        Ok(Self { plan, env, address, server, _place: place })
    }

    /// Azure Blob Storage's protocol.
    ///
    /// # Errors
    /// When it does not start.
    pub fn azure() -> io::Result<Self> {
        let home = home()?;
        let address = free()?;
        let mut command = Command::new("node");
        command.arg(home.join("azure.mjs")).arg(address.port().to_string()).arg(BUCKET);
        let (place, server, text) = start(command)?;
        let account = said(&text, "account")?;
        let plan = format!(
            "url = 'az://{BUCKET}/dr'\nendpoint = 'http://{address}/{account}'\naccount = '{account}'\n"
        );
        let env = vec![("AZURE_STORAGE_ACCOUNT_KEY", said(&text, "key")?)];
        Ok(Self { plan, env, address, server, _place: place })
    }
}

fn free() -> io::Result<SocketAddr> {
    free_address(Ipv4Addr::LOCALHOST.into(), 0).map_err(io::Error::other)
}

/// Starts a server, whose last argument is a folder of its own, and waits for what it says once it is
/// there.
fn start(mut command: Command) -> io::Result<(Place, Child, String)> {
    let place = Place::new("resurgam-object-store-")?;
    command.arg(place.folder.join("data"));
    let mut child = place.spawn_to_talk("server", command)?;
    let mut text = String::new();
    if let Some(out) = child.stdout.take() {
        BufReader::new(out).read_line(&mut text)?;
    }
    if text.is_empty() {
        let log = fs::read_to_string(place.log("server")).unwrap_or_default();
        return Err(io::Error::other(format!("the object store does not start: {log}")));
    }
    Ok((place, child, text))
}
