//! The witness of the fence: tries to write on the former primary in every way that fate and
//! orchestrators have, and keeps the answers.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use resurgam_deployment::postgres::contain::{self, Contained};
use resurgam_deployment::postgres::data::Layout;
use resurgam_deployment::postgres::secrets::PROBER;
use resurgam_deployment::postgres::{Programs, Secrets};
use tokio::task::JoinSet;
use tokio_postgres::{Client, Config, NoTls};

use crate::postgres::probe::describe;
use crate::{Error, Result};

/// The write that nobody may accept.
const WRITE: &str = "UPDATE resurgam_probe.beat SET value = value + 1000000 WHERE id = 1";
/// How long an attempt may take.
const ATTEMPT: Duration = Duration::from_millis(400);
/// The pause between attempts.
const PAUSE: Duration = Duration::from_millis(40);
/// So often the server is started by force.
const STARTS: u32 = 200;

/// What was seen.
#[derive(Debug, Default)]
struct Seen {
    refusals: BTreeMap<String, u64>,
    accepted: Vec<String>,
    /// Servers started by force: how many milliseconds after the fault, and how they ended.
    started: Vec<(u128, String)>,
}

/// A witness over one former primary. Dropping it ends its attempts and its servers.
#[derive(Debug)]
pub struct Witness {
    address: SocketAddr,
    secrets: Secrets,
    programs: Programs,
    layout: Layout,
    seen: Arc<Mutex<Seen>>,
    attempts: JoinSet<()>,
    /// Connections from before the fault.
    early: Vec<Client>,
    log: File,
}

impl Witness {
    /// Connects to the instance while it is still primary.
    ///
    /// # Errors
    /// When the instance cannot be used, or does not accept a write yet.
    pub async fn new(
        state_dir: &Path,
        instance: &str,
        address: SocketAddr,
        programs: Programs,
    ) -> Result<Self> {
        let secrets = Secrets::load(&state_dir.join("secrets/postgres.json"))?;
        let log_path = state_dir.join("logs/forced-start.log");
        let log = File::create(&log_path).map_err(Error::path("cannot write", &log_path))?;
        let mut early = Vec::new();
        for _ in 0..2 {
            let client = connect(address, &secrets).await.map_err(Error::Drill)?;
            early.push(client);
        }
        Ok(Self {
            address,
            secrets,
            programs,
            layout: Layout::new(state_dir.join("postgres").join(instance)),
            seen: Arc::default(),
            attempts: JoinSet::new(),
            early,
            log,
        })
    }

    /// Begins to write: over the connections from before the fault, and over new ones, again
    /// and again. To be called when the fault has taken hold.
    pub fn begin(&mut self) {
        for (number, client) in (1..).zip(std::mem::take(&mut self.early)) {
            let seen = Arc::clone(&self.seen);
            self.attempts.spawn(async move {
                let how = format!("connection {number} from before the fault");
                // Without a limit: a frozen server may answer when it wakes.
                let answer = client.simple_query(WRITE).await.map(|_| ());
                note(&seen, &how, answer.map_err(|error| describe(&error)));
            });
        }
        let (seen, address, secrets) = (Arc::clone(&self.seen), self.address, self.secrets.clone());
        self.attempts.spawn(async move {
            loop {
                note(&seen, "new connections", write(address, &secrets).await);
                tokio::time::sleep(PAUSE).await;
            }
        });
    }

    /// Starts the server on the former primary's data without its keeper, with the
    /// configuration with which it was primary, and again whenever it ends: as an orchestrator
    /// would that knows nothing of epochs. To be called when the fault has taken hold.
    pub fn keep_starting(&mut self) {
        let program = self.programs.path("postgres");
        let (data, config) = (self.layout.data(), self.layout.config());
        let user = self.programs.user.clone();
        let (seen, log) = (Arc::clone(&self.seen), self.log.try_clone());
        self.attempts.spawn(async move {
            let args: Vec<OsString> = vec![
                "-D".into(),
                data.into(),
                "-c".into(),
                format!("config_file={}", config.display()).into(),
            ];
            let Ok(log) = log else { return };
            let begin = Instant::now();
            for _ in 0..STARTS {
                let what =
                    Contained { program: &program, args: &args, user: user.as_ref(), log: &log };
                let after = begin.elapsed().as_millis();
                let running = match contain::start(what).await {
                    Ok(running) => running,
                    Err(error) => {
                        tracing::error!(%error, "start the former primary by force");
                        return;
                    }
                };
                // Dropped, and the server with it, when the attempts end.
                let exit = running.ended().await;
                if let Ok(mut seen) = seen.lock() {
                    seen.started.push((after, exit.to_string()));
                }
                tokio::time::sleep(PAUSE * 4).await;
            }
        });
    }

    /// Ends the attempts. Says whether a write was accepted, and what the answers were.
    pub async fn end(mut self) -> (bool, Vec<String>) {
        self.attempts.shutdown().await;
        let seen = std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner));
        let split = !seen.accepted.is_empty();
        let accepted = seen.accepted.into_iter().map(|how| format!("ACCEPTED A WRITE: {how}"));
        let refused = seen.refusals.into_iter().map(|(how, times)| format!("{how} ({times}x)"));
        let started = starts(&seen.started);
        (split, accepted.chain(refused).chain(started).collect())
    }
}

/// The forced starts in one line for each way in which they ended.
fn starts(all: &[(u128, String)]) -> Vec<String> {
    let mut ways: BTreeMap<&str, Vec<u128>> = BTreeMap::new();
    for (after, exit) in all {
        ways.entry(exit).or_default().push(*after);
    }
    ways.iter()
        .filter_map(|(exit, times)| {
            let (first, last) = (times.iter().min()?, times.iter().max()?);
            Some(format!(
                "started by force {}x, {first} to {last} ms after the fault: ended with {exit}",
                times.len()
            ))
        })
        .collect()
}

fn note(seen: &Mutex<Seen>, how: &str, outcome: std::result::Result<(), String>) {
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    match outcome {
        Ok(()) => seen.accepted.push(how.to_owned()),
        Err(why) => *seen.refusals.entry(format!("{how}: {why}")).or_default() += 1,
    }
}

async fn connect(address: SocketAddr, secrets: &Secrets) -> std::result::Result<Client, String> {
    let mut config = Config::new();
    config
        .host(address.ip().to_string())
        .port(address.port())
        .user(PROBER)
        .password(&secrets.prober)
        .dbname("postgres")
        .application_name("resurgam drill");
    match tokio::time::timeout(ATTEMPT, config.connect(NoTls)).await {
        Ok(Ok((client, connection))) => {
            tokio::spawn(connection);
            Ok(client)
        }
        Ok(Err(error)) => Err(describe(&error)),
        Err(_) => Err("no answer".to_owned()),
    }
}

async fn write(address: SocketAddr, secrets: &Secrets) -> std::result::Result<(), String> {
    let client = connect(address, secrets).await?;
    match tokio::time::timeout(ATTEMPT, client.simple_query(WRITE)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(describe(&error)),
        Err(_) => Err("no answer".to_owned()),
    }
}
