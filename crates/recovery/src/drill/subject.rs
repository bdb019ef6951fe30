//! The deployment under drill: a `resurgam up` of its own, or one that runs already.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use resurgam_client::Client;
use resurgam_deployment::local::Spawner;
use resurgam_model::plan::Plan;
use resurgam_model::{IncidentId, Scenario, Timestamp};
use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::process::Child;
use tokio::sync::watch;

use crate::journal::Incident;
use crate::status::{IncidentDetail, Status};
use crate::{Error, Result};

/// The file in the state folder that says where the controller is.
pub const ADDRESS_FILE: &str = "controller.json";
/// How long a command may take.
const COMMAND: Duration = Duration::from_secs(3600);
/// How long a deployment may take to be ready. A database is made and copied in it.
const READY: Duration = Duration::from_secs(90);
/// How long an orderly end may take.
const GRACE: Duration = Duration::from_secs(30);

/// Where a running controller is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// Its process.
    pub pid: u32,
    /// Its HTTP interface.
    pub url: String,
    /// The API of its platform.
    pub api: String,
}

impl Address {
    /// Of the controller that works on this state folder, if one does.
    #[must_use]
    pub fn read(state_dir: &Path) -> Option<Self> {
        let text = fs::read_to_string(state_dir.join(ADDRESS_FILE)).ok()?;
        let address: Self = serde_json::from_str(&text).ok()?;
        super::fault::Process::find(address.pid).map(|_| address)
    }

    /// Whether a guard starts the controller again when it is lost.
    #[must_use]
    pub fn is_guarded(&self) -> bool {
        let parent = parent(self.pid);
        let arguments = parent.and_then(|pid| fs::read(format!("/proc/{pid}/cmdline")).ok());
        arguments.is_some_and(|all| all.split(|byte| *byte == 0).any(|one| one == b"--guard"))
    }
}

/// The deployment under drill.
#[derive(Debug)]
pub struct Subject {
    program: PathBuf,
    plan_file: PathBuf,
    plan: Plan,
    state_dir: PathBuf,
    spawner: Spawner,
    child: Option<Child>,
    address: Address,
    api: watch::Sender<Client>,
    http: reqwest::Client,
    env: Vec<(String, String)>,
    guarded: bool,
}

impl Subject {
    /// Starts a deployment, or joins one that runs on the same state folder.
    ///
    /// `env` are additional variables for it; `guarded` has its controller started again when it is lost.
    ///
    /// # Errors
    /// When it cannot be started or ends at once.
    pub async fn start(
        program: PathBuf,
        plan_file: PathBuf,
        plan: Plan,
        state_dir: PathBuf,
        env: Vec<(String, String)>,
        guarded: bool,
    ) -> Result<Self> {
        let spawner = Spawner::new().map_err(Error::path("cannot use", "a thread"))?;
        let http = reqwest::Client::builder()
            .timeout(Duration::from_secs(5))
            .no_proxy()
            .build()
            .map_err(|error| Error::Drill(format!("cannot speak HTTP: {error}")))?;
        let running = Address::read(&state_dir);
        let unknown = Address { pid: 0, url: String::new(), api: "http://127.0.0.1:1".to_owned() };
        let address = running.clone().unwrap_or(unknown);
        let (api, _) = watch::channel(client(&address)?);
        let mut subject = Self {
            program,
            plan_file,
            plan,
            state_dir,
            spawner,
            child: None,
            address,
            api,
            http,
            env,
            guarded,
        };
        if running.is_none() {
            subject.up().await?;
        }
        Ok(subject)
    }

    /// Starts `resurgam up` and waits until it says where it is.
    async fn up(&mut self) -> Result<()> {
        let log_path = self.state_dir.join("logs/up.log");
        let dir = self.state_dir.join("logs");
        fs::create_dir_all(&dir).map_err(Error::path("cannot create", &dir))?;
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log_path)
            .map_err(Error::path("cannot write", &log_path))?;
        let errors = log.try_clone().map_err(Error::path("cannot write", &log_path))?;
        let mut command = std::process::Command::new(&self.program);
        command
            .arg("up")
            .args(self.guarded.then_some("--guard"))
            .arg("--plan")
            .arg(&self.plan_file)
            .envs(self.env.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors);
        let child = self.spawner.spawn(command).await;
        let mut child = child.map_err(Error::path("cannot run", &self.program))?;
        let deadline = Instant::now() + READY;
        loop {
            if let Ok(Some(exit)) = child.try_wait() {
                let text = fs::read_to_string(&log_path).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                let tail = lines.get(lines.len().saturating_sub(5)..).unwrap_or_default();
                return Err(Error::Drill(format!(
                    "the deployment ended at once ({exit}):\n{}",
                    tail.join("\n")
                )));
            }
            let address = Address::read(&self.state_dir);
            // A guard is the parent of the controller.
            let fits = |address: &Address| {
                let whose = if self.guarded { parent(address.pid) } else { Some(address.pid) };
                whose == child.id()
            };
            if let Some(address) = address.filter(fits) {
                self.api.send_replace(client(&address)?);
                self.address = address;
                self.child = Some(child);
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Error::Timeout("the controller did not come up".to_owned()));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The plan in force.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Where everything that lasts is.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// The API as it is at each moment.
    #[must_use]
    pub fn api(&self) -> watch::Receiver<Client> {
        self.api.subscribe()
    }

    /// Whether the drill has started it, and so may end it and start it again.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.child.is_some()
    }

    /// The process of its controller, if it runs.
    #[must_use]
    pub fn controller(&self) -> Option<super::fault::Process> {
        super::fault::Process::find(self.address.pid)
    }

    /// Waits until another controller than before works on it.
    ///
    /// # Errors
    /// When none does within `patience`.
    pub async fn next_controller(&mut self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let address = Address::read(&self.state_dir);
            if let Some(address) = address.filter(|address| address.pid != self.address.pid) {
                self.api.send_replace(client(&address)?);
                self.address = address;
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Error::Timeout("no guard has started another controller".to_owned()));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let url = format!("{}{path}", self.address.url);
        let answer = async { self.http.get(&url).send().await?.error_for_status()?.json().await };
        answer.await.map_err(|error: reqwest::Error| {
            Error::Drill(format!("the controller did not answer at {url}: {error}"))
        })
    }

    /// How the deployment is.
    ///
    /// # Errors
    /// When the controller does not answer.
    pub async fn status(&self) -> Result<Status> {
        self.get("/v1/status").await
    }

    /// Waits until everything is up, redundancy included, and no incident is open.
    ///
    /// # Errors
    /// When that takes too long; says what is missing.
    pub async fn ready(&self) -> Result<Status> {
        let (status, _) = self.ready_within(READY, Duration::ZERO).await?;
        Ok(status)
    }

    /// The same, with a patience of one's own, and only if it stays so for a `calm`: what has just
    /// been lost may not have been noticed yet. Says how long that took, without the calm.
    ///
    /// # Errors
    /// As [`Self::ready`].
    pub async fn ready_within(
        &self,
        patience: Duration,
        calm: Duration,
    ) -> Result<(Status, Duration)> {
        let begun = Instant::now();
        let deadline = begun + patience;
        let mut since = None;
        loop {
            let status = self.status().await;
            match &status {
                Ok(status) if status.ready => {
                    let since = *since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= calm {
                        return Ok((status.clone(), since - begun));
                    }
                }
                _ => since = None,
            }
            if Instant::now() > deadline {
                let state = status.map_or_else(|error| error.to_string(), |s| describe(&s));
                return Err(Error::Timeout(format!("the deployment is not ready: {state}")));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits for an incident of the scenario that was opened at or after `since`.
    ///
    /// # Errors
    /// When none is within `patience`.
    pub async fn incident(
        &self,
        scenario: Scenario,
        since: Timestamp,
        patience: Duration,
    ) -> Result<Incident> {
        let deadline = Instant::now() + patience;
        loop {
            let incidents = self.incidents().await;
            let of = |incident: &Incident| {
                incident.scenario == scenario
                    && incident.opened_at.as_millisecond() >= since.as_millisecond()
            };
            if let Ok(Some(incident)) = incidents.map(|all| all.into_iter().rfind(of)) {
                return Ok(incident);
            }
            if Instant::now() > deadline {
                return Err(Error::Timeout(format!("no incident of {scenario} was opened")));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The last incidents, the oldest of them first.
    ///
    /// # Errors
    /// When the controller does not answer.
    pub async fn incidents(&self) -> Result<Vec<Incident>> {
        self.get("/v1/incidents?limit=50").await
    }

    /// One incident with its steps.
    ///
    /// # Errors
    /// When the controller does not answer.
    pub async fn detail(&self, id: IncidentId) -> Result<IncidentDetail> {
        self.get(&format!("/v1/incidents/{id}")).await
    }

    /// Kills every process of the deployment, the controller included, and returns once all
    /// are dead. Only a deployment that the drill started itself.
    ///
    /// # Errors
    /// When it is somebody else's.
    pub async fn kill_all(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else {
            return Err(Error::Drill(
                "this deployment was started by somebody else, who alone can start it again; drill it without --plan".to_owned(),
            ));
        };
        let processes: Vec<_> = self
            .status()
            .await?
            .components
            .iter()
            .filter_map(|health| super::fault::Process::find(health.component.pid?))
            .collect();
        let ended = async {
            child.start_kill()?;
            child.wait().await
        };
        ended.await.map_err(Error::path("cannot kill", &self.program))?;
        // Its children die with it; wait until they have.
        super::fault::strike(&processes, super::FaultKind::Kill).await
    }

    /// Runs a command of this program on the deployment's plan to its end. What it says is returned.
    ///
    /// # Errors
    /// When it fails, with the end of what it said.
    pub async fn command(&self, arguments: &[&str]) -> Result<String> {
        let mut command = std::process::Command::new(&self.program);
        command
            .args(arguments)
            .arg("--plan")
            .arg(&self.plan_file)
            .envs(self.env.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = self.spawner.spawn(command).await;
        let child = child.map_err(Error::path("cannot run", &self.program))?;
        let output = tokio::time::timeout(COMMAND, child.wait_with_output()).await;
        let name = arguments.join(" ");
        let output = output.map_err(|_| Error::Timeout(format!("resurgam {name} did not end")))?;
        let output = output.map_err(Error::path("cannot run", &self.program))?;
        let told = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.success() {
            return Ok(told);
        }
        Err(Error::Drill(format!("resurgam {name} failed ({}):\n{told}", output.status)))
    }

    /// Takes the state folder away from the deployment, which is dead. It is moved beside itself,
    /// not removed: a drill in somebody's own deployment destroys nothing.
    ///
    /// # Errors
    /// When it cannot be moved.
    pub fn lose_data(&self) -> Result<PathBuf> {
        let name = self.state_dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let stamp = Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
        let lost = self.state_dir.with_file_name(format!("{name}.lost-in-drill-{stamp}"));
        fs::rename(&self.state_dir, &lost).map_err(Error::path("cannot move", &self.state_dir))?;
        Ok(lost)
    }

    /// Starts it again after [`Self::kill_all`], as an orchestrator would.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start_again(&mut self) -> Result<()> {
        self.up().await
    }

    /// Ends the deployment in order if the drill started it.
    ///
    /// # Errors
    /// When it ends with an error.
    pub async fn end(mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = kill_process(pid, Signal::TERM);
        }
        match tokio::time::timeout(GRACE, child.wait()).await {
            Ok(Ok(exit)) if exit.success() => Ok(()),
            Ok(Ok(exit)) => Err(Error::Drill(format!("the deployment ended with {exit}"))),
            Ok(Err(error)) => Err(Error::path("cannot wait for", &self.program)(error)),
            Err(_) => {
                let _ = child.kill().await;
                Err(Error::Drill("the deployment did not end in order".to_owned()))
            }
        }
    }
}

/// The process that has started another one.
fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may hold anything.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

fn client(address: &Address) -> Result<Client> {
    let mut client = Client::builder(&address.api);
    // For a deployment whose plan says access = "tokens".
    if let Ok(token) = std::env::var("RESURGAM_TOKEN")
        && !token.trim().is_empty()
    {
        client = client.token(token);
    }
    client.build().map_err(|error| Error::Drill(error.to_string()))
}

fn describe(status: &Status) -> String {
    let components = status.components.iter().map(|health| {
        let answers = match health.answers {
            Some(true) => ", answers",
            Some(false) => ", does not answer",
            None => "",
        };
        format!("{} {:?}{answers}", health.component.name, health.component.state)
    });
    let instances = status.postgres.iter().flat_map(|postgres| &postgres.instances).map(|i| {
        let observed = i.observed.as_ref();
        let word = observed.map_or("never heard", |o| o.state.word());
        let problem = observed.and_then(|o| o.problem.clone()).unwrap_or_default();
        format!("{} {word} {problem}", i.name)
    });
    components.chain(instances).collect::<Vec<_>>().join("; ")
}
