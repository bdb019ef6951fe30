//! `resurgam up`: the platform and its recovery controller.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use resurgam_backup::log::ship::Standings;
use resurgam_client::Client;
use resurgam_deployment::local::{ComponentSpec, LocalDeployment, Router, Spawner, free_address};
use resurgam_deployment::postgres::{Programs, Secrets};
use resurgam_deployment::{ComponentKind, Deployment};
use resurgam_model::ComponentName;
use resurgam_model::access::AccessMode;
use resurgam_model::plan::{BUS_VARIABLE, Drills, Plan, StoreKind};
use resurgam_platform::Secret;
use resurgam_platform::access::WORKER;
use resurgam_recovery::controller::{Controller, Parts};
use resurgam_recovery::drill::subject::{ADDRESS_FILE, Address};
use resurgam_recovery::journal::Journal;
use resurgam_recovery::postgres::{Authority, SERVICE};
use resurgam_recovery::restorer::{SharedRestorer, VaultStanding};
use resurgam_recovery::runbook::faults::{self, Fault};
use resurgam_recovery::scaling::POOL;
use resurgam_recovery::server;
use rustix::fs::{FlockOperation, flock};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::access::INTERNAL;
use super::api::TOKEN as TOKEN_VARIABLE;
use crate::backups::base;
use crate::calendar::Calendar;
use crate::cli::UpArgs;
use crate::commands::guard;
use crate::commands::instance::TOKEN;
use crate::failure::{Failure, code};
use crate::output;
use crate::plan::Loaded;
use crate::restorer::FromVaults;
use crate::shutdown;
use crate::{backups, brokers, shipping, vaults};

/// The database, the roles' prefix and the state folder are the plan's; the rest of the names
/// are those of the written procedure.
struct Names<'a>(&'a Plan);

impl Names<'_> {
    fn of(&self, role: &str) -> Result<ComponentName, Failure> {
        Ok(ComponentName::new(format!("{}-{role}", self.0.deployment.name))?)
    }
}

pub(crate) async fn run(args: UpArgs) -> Result<u8, Failure> {
    let shutdown = shutdown::requested();
    let loaded = Loaded::read(args.plan.as_deref())?;
    let mut plan = loaded.plan().clone();
    let files = &mut plan.api;
    for file in [&mut files.tls_cert, &mut files.tls_key, &mut files.tls_client_ca] {
        *file = file.as_deref().map(|file| loaded.path(file));
    }
    let state = loaded.state_dir();
    make_dir(&state, 0o711)?;
    let _lock = lock(&state)?;
    // Both hold lines of logs, which are nobody else's business.
    make_dir(&state.join("logs"), 0o700)?;
    let journal_file = state.join("journal.db");
    File::options().create(true).append(true).mode(0o600).open(&journal_file)?;
    let journal = Journal::open(&journal_file)?;
    let fault = fault(&plan)?;
    let mut up = Up::new(plan, base(&loaded), state, journal.clone()).await?;
    let after_crash = !journal.begin_run()?;
    if let Err(failure) = up.add_all().await {
        // What did not start did not stop either: there is nothing to recover from next time.
        up.deployment.shutdown().await;
        if !after_crash {
            journal.end_run()?;
        }
        return Err(failure);
    }
    let standings = Arc::new(Standings::default());
    let restorer = up.postgres.is_some().then(|| {
        let (loaded, standings) = (loaded.clone(), Arc::clone(&standings));
        Arc::new(FromVaults { loaded, standings }) as SharedRestorer
    });
    let (vaults, seen) = watch::channel(Vec::new());
    let controller = up.controller(journal.clone(), restorer, seen, fault, after_crash)?;
    let address = Address {
        pid: std::process::id(),
        url: up.controller_url.clone(),
        api: up.api_url.clone(),
    };
    let address_file = up.state.join(ADDRESS_FILE);
    write_whole(&address_file, &serde_json::to_vec(&address)?)?;
    output::note(&format!(
        "{} is coming up: the API at {}, the controller at {}; state in {}",
        up.plan.deployment.name,
        up.public_url,
        up.controller_url,
        up.state.display()
    ));

    let backing_up = backups::schedule(&loaded, up.client(&up.api_url)?, &standings);
    let shipping = shipping::ship_log(&loaded, &standings);
    let looking = vaults::watch(&loaded, &vaults);
    let calendar = Calendar::new(&loaded, Arc::clone(&controller), up.spawner.clone())?;
    let serving =
        server::serve(up.listener, Arc::clone(&controller), up.token, std::future::pending());
    let outcome = tokio::select! {
        result = Arc::clone(&controller).run() => result.map_err(Failure::from),
        result = serving => result.map_err(Failure::from),
        () = backing_up => Ok(()),
        () = shipping => Ok(()),
        () = looking => Ok(()),
        () = calendar.run() => Ok(()),
        () = shutdown => Ok(()),
    };
    // Nothing is recovered any more, so what ends now ends on purpose.
    output::note("ending");
    calendar.end().await;
    let _ = fs::remove_file(&address_file);
    up.deployment.shutdown().await;
    outcome?;
    journal.end_run()?;
    Ok(code::OK)
}

/// Everything while it is put together.
struct Up {
    plan: Plan,
    /// The folder where relative paths of the plan start.
    base: PathBuf,
    state: PathBuf,
    program: PathBuf,
    journal: Journal,
    deployment: Arc<LocalDeployment>,
    spawner: Spawner,
    listener: TcpListener,
    controller_url: String,
    token: String,
    ports: Ports,
    postgres: Option<(Arc<Authority>, Secrets, SocketAddr)>,
    /// The API for the parts on this machine.
    api_url: String,
    /// The API for everybody else.
    public_url: String,
    /// What the parts show each other, when access is controlled.
    internal: Option<Secret>,
    roles: Vec<(ComponentName, Client)>,
}

impl Up {
    async fn new(
        plan: Plan,
        base: PathBuf,
        state: PathBuf,
        journal: Journal,
    ) -> Result<Self, Failure> {
        let deployment = Arc::new(LocalDeployment::new(state.join("logs")));
        let spawner = Spawner::new()?;
        let mut ports = Ports::read(&state);
        let host = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let address = ports.address(host, "controller", plan.deployment.controller_port)?;
        let listener = TcpListener::bind(address).await.map_err(|error| {
            Failure::new(format!("the controller cannot listen on {address}: {error}"))
        })?;
        let controller_url = format!("http://{address}");
        // Made anew at each start, and given to the parts in their environment alone.
        let internal = match plan.api.access {
            AccessMode::Open => None,
            AccessMode::Tokens => Some(Secret::generate()?),
        };
        Ok(Self {
            program: std::env::current_exe()?,
            token: uuid::Uuid::new_v4().simple().to_string(),
            plan,
            base,
            state,
            journal,
            deployment,
            spawner,
            listener,
            controller_url,
            ports,
            postgres: None,
            api_url: String::new(),
            public_url: String::new(),
            internal,
            roles: Vec::new(),
        })
    }

    async fn add_all(&mut self) -> Result<(), Failure> {
        self.add_postgres().await?;
        self.add_brokers()?;
        self.add_roles()
    }

    /// The instances of an owned PostgreSQL, with a service in front.
    async fn add_postgres(&mut self) -> Result<(), Failure> {
        if self.plan.store.kind != StoreKind::Postgres {
            return Ok(());
        }
        let programs = Programs::find(self.plan.postgres.bin_dir.as_deref())?;
        let secrets_file = self.state.join("secrets/postgres.json");
        make_dir(&self.state.join("secrets"), 0o700)?;
        let secrets = Secrets::load_or_create(&secrets_file)?;
        make_dir(&self.state.join("postgres"), 0o711)?;
        let host = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let mut members = BTreeMap::new();
        for name in self.plan.postgres.instances() {
            members.insert(name.clone(), self.ports.address(host, name.as_str(), 0)?);
        }
        let router = Router::listen(self.ports.address(host, SERVICE, 0)?).await?;
        let service = router.address();
        self.deployment.add_service(SERVICE, router);
        let authority =
            Authority::new(self.journal.clone(), members.clone(), self.plan.postgres.lease)?;
        for (name, address) in members {
            let dir = self.state.join("postgres").join(name.as_str());
            let mut args = vec![
                "instance".to_owned(),
                format!("--name={name}"),
                format!("--dir={}", dir.display()),
                format!("--address={address}"),
                format!("--controller={}", self.controller_url),
                format!("--database={}", self.plan.deployment.name),
                format!("--secrets={}", secrets_file.display()),
                format!("--bin-dir={}", programs.bin_dir.display()),
            ];
            args.extend(
                self.plan.postgres.settings.iter().map(|(k, v)| format!("--setting={k}={v}")),
            );
            let env = vec![(TOKEN.to_owned(), self.token.clone())];
            self.add(name, ComponentKind::Postgres, args, env, Some(address))?;
        }
        self.postgres = Some((Arc::new(authority), secrets, service));
        Ok(())
    }

    /// The brokers that this deployment runs itself.
    fn add_brokers(&mut self) -> Result<(), Failure> {
        let host = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let address = |ports: &mut Ports, purpose: &str| ports.address(host, purpose, 0);
        for (name, kind, node) in brokers::own(&mut self.plan.bus, &self.state, |purpose| {
            address(&mut self.ports, purpose)
        })? {
            let args = vec!["broker".to_owned(), format!("--node={}", node.file.display())];
            self.add(name, kind, args, Vec::new(), Some(node.address))?;
        }
        Ok(())
    }

    /// API, registry, supervisor and workers.
    fn add_roles(&mut self) -> Result<(), Failure> {
        let (mut database, mut env) = (Vec::new(), Vec::new());
        match (&self.postgres, self.plan.store.kind) {
            (Some((_, secrets, service)), _) => {
                // The password is hexadecimal and the name checked: nothing needs escaping.
                let name = &self.plan.deployment.name;
                let password = &secrets.platform;
                let url = format!("postgresql://{name}:{password}@{service}/{name}");
                env.push(("DATABASE_URL".to_owned(), url));
            }
            (None, StoreKind::External) => {
                let url = self.plan.store.url.clone().unwrap_or_default();
                env.push(("DATABASE_URL".to_owned(), url));
            }
            (None, _) => {
                make_dir(&self.state.join("store"), 0o700)?;
                let file = self.state.join("store/platform.db");
                database.push(format!("--sqlite={}", file.display()));
            }
        }
        let bus = self.plan.bus.to_toml().map_err(|error| Failure::new(error.to_string()))?;
        env.push((BUS_VARIABLE.to_owned(), bus));
        database.push(format!("--pool={}", self.plan.store.max_pool_size));
        database.push(format!("--max-payload={}", self.plan.api.max_payload_bytes));

        let names = Names(&self.plan);
        let api_plan = self.plan.api.clone();
        // Only the API is for other machines, and what is here speaks to it without TLS.
        let host = if api_plan.host.is_loopback() {
            api_plan.host
        } else {
            IpAddr::V4(Ipv4Addr::LOCALHOST)
        };
        let apart = host != api_plan.host || api_plan.tls_cert.is_some();
        let (api, supervisor) = (names.of("api")?, names.of("supervisor")?);
        let registry = ComponentName::new("agent-registry")?;
        let public_address = self.ports.address(api_plan.host, "api", api_plan.port)?;
        let api_address = match apart {
            true => self.ports.address(host, "api-internal", 0)?,
            false => public_address,
        };
        let registry_address = self.ports.address(host, "registry", 0)?;
        let supervisor_address = self.ports.address(host, "supervisor", 0)?;
        self.ports.write(&self.state)?;
        let registry_url = format!("http://{registry_address}");
        self.api_url = format!("http://{api_address}");
        let scheme = if api_plan.tls_cert.is_some() { "https" } else { "http" };
        self.public_url = format!("{scheme}://{public_address}");
        database.push(format!("--access={}", api_plan.access));
        let mut worker_env = Vec::new();
        if let Some(internal) = &self.internal {
            env.push((INTERNAL.to_owned(), internal.expose().to_owned()));
            worker_env
                .push((TOKEN_VARIABLE.to_owned(), internal.derived(WORKER).expose().to_owned()));
        }

        let serve = |role: &str, address: SocketAddr| {
            let own = ["serve".to_owned(), format!("--role={role}"), format!("--listen={address}")];
            own.into_iter().chain(database.iter().cloned()).collect::<Vec<_>>()
        };
        let mut api_args = serve("api", public_address);
        api_args.extend(access_args(&api_plan));
        if apart {
            api_args.push(format!("--internal-listen={api_address}"));
        }
        api_args.push(format!("--registry={registry_url}"));
        let mut supervisor_args = serve("supervisor", supervisor_address);
        let checkpoints = self.state.join("checkpoints");
        supervisor_args.push(format!("--checkpoints={}", checkpoints.display()));
        for (name, kind, args, address) in [
            (
                registry,
                ComponentKind::Registry,
                serve("registry", registry_address),
                registry_address,
            ),
            (supervisor, ComponentKind::Supervisor, supervisor_args, supervisor_address),
            (api, ComponentKind::Api, api_args, api_address),
        ] {
            self.roles.push((name.clone(), self.client(&format!("http://{address}"))?));
            self.add(name, kind, args, env.clone(), Some(address))?;
        }
        let workers = &self.plan.workers;
        let mut args = vec![
            "worker".to_owned(),
            format!("--api={}", self.api_url),
            format!("--concurrency={}", workers.concurrency),
            format!("--lease={}", workers.lease),
        ];
        args.extend(workers.capabilities.iter().map(|c| format!("--capability={c}")));
        if !workers.exec.is_empty() {
            args.push("--exec".to_owned());
            args.extend(workers.exec.iter().cloned());
        }
        let spec = ComponentSpec {
            name: ComponentName::new(POOL)?,
            kind: ComponentKind::Worker,
            program: self.program.clone(),
            args,
            env: worker_env,
            address: None,
        };
        Ok(self.deployment.add_pool(spec, workers.bounds().0, &self.spawner)?)
    }

    /// A client of one of the parts, which knows it.
    fn client(&self, url: &str) -> Result<Client, Failure> {
        let client = Client::builder(url);
        Ok(match &self.internal {
            Some(internal) => client.token(internal.expose()),
            None => client,
        }
        .build()?)
    }

    fn add(
        &mut self,
        name: ComponentName,
        kind: ComponentKind,
        args: Vec<String>,
        env: Vec<(String, String)>,
        address: Option<SocketAddr>,
    ) -> Result<(), Failure> {
        let program = self.program.clone();
        let spec = ComponentSpec { name, kind, program, args, env, address };
        Ok(self.deployment.add(spec, &self.spawner)?)
    }

    fn controller(
        &self,
        journal: Journal,
        restorer: Option<SharedRestorer>,
        vaults: watch::Receiver<Vec<VaultStanding>>,
        fault: Option<Fault>,
        after_crash: bool,
    ) -> Result<Arc<Controller>, Failure> {
        let deployment: Arc<dyn Deployment> = Arc::clone(&self.deployment) as _;
        Ok(Arc::new(Controller::new(Parts {
            name: ComponentName::new(self.plan.deployment.name.clone())?,
            plan: self.plan.clone(),
            base: self.base.clone(),
            journal,
            deployment,
            process_news: self.deployment.changes(),
            api: self.client(&self.api_url)?,
            roles: self.roles.clone(),
            postgres: self.postgres.clone(),
            restorer,
            vaults,
            state_dir: self.state.clone(),
            fault,
            after_crash,
            lost: std::env::var(guard::FOUND).ok().filter(|_| after_crash),
        })))
    }
}

/// How the API is told to let in whom the plan says.
fn access_args(plan: &resurgam_model::plan::Api) -> Vec<String> {
    let files = [
        ("--tls-cert", &plan.tls_cert),
        ("--tls-key", &plan.tls_key),
        ("--tls-client-ca", &plan.tls_client_ca),
    ];
    let file = |(option, file): (&str, &Option<PathBuf>)| {
        file.as_ref().map(|file| format!("{option}={}", file.display()))
    };
    let mut args: Vec<_> = files.into_iter().filter_map(file).collect();
    if plan.insecure_plaintext {
        args.push("--insecure-plaintext".to_owned());
    }
    args.extend(plan.rate_limit.map(|limit| format!("--rate-limit={limit}")));
    args
}

/// A fault in the recovery itself: only where drills are allowed.
pub(crate) fn fault(plan: &Plan) -> Result<Option<Fault>, Failure> {
    match std::env::var(faults::VARIABLE) {
        Ok(text) if !text.is_empty() => {
            if plan.deployment.drills != Drills::Allowed {
                return Err(Failure::refused(format!(
                    "{} is set, but the plan does not say deployment.drills = \"allowed\"",
                    faults::VARIABLE
                )));
            }
            Ok(Some(text.parse::<Fault>().map_err(|error| Failure::usage(error.to_string()))?))
        }
        _ => Ok(None),
    }
}

pub(crate) fn make_dir(dir: &Path, mode: u32) -> Result<(), Failure> {
    fs::create_dir_all(dir)
        .and_then(|()| fs::set_permissions(dir, fs::Permissions::from_mode(mode)))
        .map_err(|error| {
            Failure::new(format!(
                "the folder {} cannot be used: {error}; choose another with deployment.state_dir",
                dir.display()
            ))
        })
}

/// One controller per state folder. The lock goes with the process.
pub(crate) fn lock(state: &Path) -> Result<File, Failure> {
    let path = state.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let pid = Address::read(state).map_or(0, |address| address.pid);
            Err(resurgam_recovery::Error::InUse { dir: state.to_owned(), pid }.into())
        }
        Err(error) => Err(std::io::Error::from(error).into()),
    }
}

/// Writes a file: complete or not at all.
fn write_whole(path: &Path, content: &[u8]) -> Result<(), Failure> {
    let temporary = path.with_extension("new");
    fs::write(&temporary, content)?;
    Ok(fs::rename(&temporary, path)?)
}

/// Ports by purpose, kept so that addresses stay the same when the deployment is started again.
#[derive(Debug, Default)]
struct Ports {
    kept: BTreeMap<String, u16>,
}

impl Ports {
    const FILE: &'static str = "ports.json";

    /// Unreadable ones are forgotten: they are only a convenience.
    fn read(state: &Path) -> Self {
        let text = fs::read_to_string(state.join(Self::FILE)).unwrap_or_default();
        Self { kept: serde_json::from_str(&text).unwrap_or_default() }
    }

    fn write(&self, state: &Path) -> Result<(), Failure> {
        write_whole(&state.join(Self::FILE), &serde_json::to_vec(&self.kept)?)
    }

    /// The wanted port, which must be free; else the kept one if it is free; else any.
    fn address(&mut self, host: IpAddr, purpose: &str, wanted: u16) -> Result<SocketAddr, Failure> {
        if wanted != 0 {
            return Ok(free_address(host, wanted)?);
        }
        let kept = self.kept.get(purpose).and_then(|port| free_address(host, *port).ok());
        let address = match kept {
            Some(address) => address,
            None => free_address(host, 0)?,
        };
        self.kept.insert(purpose.to_owned(), address.port());
        Ok(address)
    }
}
