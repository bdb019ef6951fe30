//! What is measured: the store directly, or the HTTP interface.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bench_common::{Failure, Order};
use resurgam_client::Client;
use resurgam_client::worker::{HandlerError, Job, Remote, Worker, handler};
use resurgam_model::agent::Registration;
use resurgam_model::task::{Claim, Completion, Lease, LeaseRef, NewTask, Outcome};
use resurgam_model::{AgentId, Capability, ClaimId, InstanceId, Payload};
use resurgam_store::{Counted, SharedStore, Wakes, postgres};
use tokio::sync::mpsc;

use crate::Settings;
use crate::server::Server;

const LEASE: resurgam_model::Duration = resurgam_model::Duration(Duration::from_secs(60));

fn capability() -> Result<Capability, Failure> {
    Ok(Capability::new("noop")?)
}

fn task(id: u64) -> Result<NewTask, Failure> {
    Ok(NewTask::new(capability()?, Payload::from_json(format!("{{\"id\":{id}}}"))?))
}

fn id_of(payload: &Payload) -> Option<u64> {
    payload.json().strip_prefix("{\"id\":")?.strip_suffix('}')?.parse().ok()
}

pub enum Target {
    Store(SharedStore),
    Http { client: Client, _server: Server },
}

impl Target {
    pub async fn open(order: &Order<Settings>) -> Result<Self, Failure> {
        let settings = match order.settings.store.as_str() {
            "postgres" => resurgam_store::Settings::Postgres(postgres::Settings {
                url: order.database.clone(),
                max_pool_size: order.settings.pool,
                application_name: "bench".to_owned(),
                timeout: Duration::from_secs(30),
            }),
            "sqlite" => resurgam_store::Settings::Sqlite { path: PathBuf::from(&order.database) },
            "http" => {
                let server = Server::start(&order.settings.resurgam, &order.database).await?;
                return Ok(Self::Http { client: Client::new(&server.url)?, _server: server });
            }
            other => return Err(format!("there is no store {other}").into()),
        };
        let store = resurgam_store::open(&settings)?;
        store.migrate().await?;
        Ok(Self::Store(store))
    }

    fn store(&self) -> Result<&SharedStore, Failure> {
        match self {
            Self::Store(store) => Ok(store),
            Self::Http { .. } => Err("over HTTP only pick-up is measured".into()),
        }
    }

    pub async fn submit(&self, ids: &[u64]) -> Result<(), Failure> {
        let tasks = ids.iter().map(|&id| task(id)).collect::<Result<Vec<_>, _>>()?;
        let submitted = match (self, tasks.as_slice()) {
            (Self::Store(store), tasks) => store.submit(tasks).await?.len(),
            (Self::Http { client, .. }, [task]) => {
                client.submit(task).await?;
                1
            }
            (Self::Http { client, .. }, tasks) => client.submit_batch(tasks).await?.len(),
        };
        if submitted == ids.len() { Ok(()) } else { Err("not all were submitted".into()) }
    }

    /// How many wait.
    pub async fn ready(&self) -> Result<u64, Failure> {
        let counts = self.store()?.task_counts(Counted::Open).await?;
        Ok(counts.iter().map(|(_, counts)| counts.ready).sum())
    }

    /// A registered agent.
    pub async fn agent(&self, number: usize) -> Result<Agent, Failure> {
        let store = Arc::clone(self.store()?);
        let id = AgentId::new(format!("bench-{number}"))?;
        let instance = InstanceId::new();
        let capabilities = vec![capability()?];
        let mut registration = Registration::new(id.clone(), instance, capabilities.clone());
        registration.capacity = 1000;
        store.register(&registration).await?;
        let claim = Claim {
            agent: id,
            instance,
            capabilities,
            max: 1,
            lease: LEASE,
            id: None,
            again: false,
        };
        Ok(Agent { wakes: store.wakes(), store, claim })
    }

    /// Starts a worker that says when its handler began.
    pub async fn handle_one_by_one(
        &self,
        settings: &Settings,
        moments: mpsc::UnboundedSender<(u64, Instant)>,
    ) -> Result<(), Failure> {
        if let Self::Http { client, .. } = self {
            let worker = Worker::new(AgentId::new("bench")?)
                .on(capability()?, handler(move |job: Job| begun(job, moments.clone())))
                .concurrency(1);
            let queue = Remote::new(client.clone());
            tokio::spawn(async move {
                let ended = worker.run(queue, std::future::pending()).await;
                eprintln!("the worker ended: {ended:?}");
                std::process::exit(1);
            });
            return Ok(());
        }
        for number in 0..settings.workers {
            let mut agent = self.agent(number).await?;
            let moments = moments.clone();
            let max = settings.claim;
            tokio::spawn(async move {
                let work = async {
                    loop {
                        let leases = agent.claim(max).await?;
                        if leases.is_empty() {
                            agent.idle().await;
                            continue;
                        }
                        let at = Instant::now();
                        for id in leases.iter().filter_map(|lease| id_of(&lease.payload)) {
                            moments.send((id, at))?;
                        }
                        agent.complete(&leases).await?;
                    }
                    #[allow(unreachable_code, reason = "gives the block its type")]
                    Ok::<(), Failure>(())
                };
                let ended = work.await;
                eprintln!("a worker ended: {ended:?}");
                std::process::exit(1);
            });
        }
        Ok(())
    }
}

/// A handler that says when it began, and does nothing else.
async fn begun(
    job: Job,
    moments: mpsc::UnboundedSender<(u64, Instant)>,
) -> Result<Payload, HandlerError> {
    let at = Instant::now();
    let id = id_of(job.payload()).ok_or_else(|| HandlerError::permanent("not of this run"))?;
    moments.send((id, at)).map_err(|error| HandlerError::retry(error.to_string()))?;
    Ok(Payload::default())
}

/// A worker in a process beside the database.
pub struct Agent {
    store: SharedStore,
    claim: Claim,
    wakes: Wakes,
}

impl Agent {
    pub async fn claim(&mut self, max: u32) -> Result<Vec<Lease>, Failure> {
        self.claim.max = max;
        // So that a claim whose answer was lost could be made again.
        self.claim.id = Some(ClaimId::new());
        Ok(self.store.claim(&self.claim).await?)
    }

    /// Waits until there may be something.
    pub async fn idle(&mut self) {
        // A word can be lost.
        let _ = tokio::time::timeout(Duration::from_millis(200), self.wakes.next()).await;
    }

    /// Completes all of them; says how many were accepted.
    pub async fn complete(&self, leases: &[Lease]) -> Result<u64, Failure> {
        let completion = |lease: &Lease| Completion {
            lease: LeaseRef { task: lease.task, token: lease.token },
            result: Payload::default(),
        };
        let completions: Vec<_> = leases.iter().map(completion).collect();
        let outcomes = self.store.complete(&completions).await?;
        let accepted = outcomes.iter().filter(|&&outcome| outcome == Outcome::Accepted).count();
        if accepted != leases.len() {
            return Err(format!("{accepted} of {} completions were accepted", leases.len()).into());
        }
        Ok(accepted as u64)
    }
}
