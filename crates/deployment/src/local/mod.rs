//! The deployment on this machine: child processes of `resurgam up`.
//!
//! # Guarantees
//! - Each component is one process in its own process group, with its output in a file of its
//!   own, started again with growing pauses when it ends.
//! - Nothing is left behind: when this process dies, in whatever way, the kernel kills every
//!   child (`PR_SET_PDEATHSIG`), and children do the same for theirs.
//! - Ports are free ones, kept for as long as the deployment runs.

mod logs;
mod ports;
mod router;
pub(crate) mod spawner;
mod supervise;

pub use ports::free_address;
pub use router::Router;
pub use spawner::Spawner;
pub use supervise::ComponentSpec;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use resurgam_model::ComponentName;
use tokio::sync::watch;

use crate::{Component, Deployment, Error, Result};
use supervise::Supervised;

type Components = Arc<Mutex<BTreeMap<ComponentName, Arc<Supervised>>>>;

/// Components that are alike, numbered from 0.
#[derive(Debug)]
struct Pool {
    /// All but the name, which is also appended to the arguments as `--name`.
    spec: ComponentSpec,
    spawner: Spawner,
}

impl Pool {
    fn name(&self, number: u16) -> Result<ComponentName> {
        let name = format!("{}-{number}", self.spec.name);
        ComponentName::new(name).map_err(|_| Error::UnknownComponent(self.spec.name.clone()))
    }

    /// The number of a component of this pool.
    fn number(&self, component: &ComponentName) -> Option<u16> {
        let rest = component.as_str().strip_prefix(self.spec.name.as_str())?;
        rest.strip_prefix('-')?.parse().ok()
    }

    fn spec(&self, name: ComponentName) -> ComponentSpec {
        let mut spec = ComponentSpec { name, ..self.spec.clone() };
        // Behind the subcommand, since what follows `--exec` belongs to the program.
        let place = spec.args.len().min(1);
        spec.args.insert(place, format!("--name={}", spec.name));
        spec
    }
}

/// Components as child processes.
#[derive(Debug)]
pub struct LocalDeployment {
    components: Components,
    pools: Mutex<BTreeMap<ComponentName, Pool>>,
    routers: Mutex<BTreeMap<String, Router>>,
    logs_dir: PathBuf,
    changed: watch::Sender<u64>,
}

impl LocalDeployment {
    /// A deployment without components, whose logs go to `logs_dir`.
    #[must_use]
    pub fn new(logs_dir: PathBuf) -> Self {
        let (changed, _) = watch::channel(0);
        Self {
            components: Arc::default(),
            pools: Mutex::default(),
            routers: Mutex::default(),
            logs_dir,
            changed,
        }
    }

    /// Adds a component and starts it.
    ///
    /// # Errors
    /// When its log file cannot be opened.
    pub fn add(&self, spec: ComponentSpec, spawner: &Spawner) -> Result<()> {
        let log = logs::path(&self.logs_dir, &spec.name);
        logs::prepare(&log)?;
        let name = spec.name.clone();
        let supervised = Supervised::start(spec, log, spawner.clone(), self.changed.clone());
        lock(&self.components).insert(name, Arc::new(supervised));
        Ok(())
    }

    /// Adds a pool of components that are alike, with this many of them. Their names are that of
    /// the pool with a number, which they are also told with `--name` as their second argument.
    ///
    /// # Errors
    /// When a log file cannot be opened.
    pub fn add_pool(&self, spec: ComponentSpec, size: u16, spawner: &Spawner) -> Result<()> {
        let name = spec.name.clone();
        lock(&self.pools).insert(name.clone(), Pool { spec, spawner: spawner.clone() });
        self.resize(&name, size)
    }

    fn resize(&self, pool: &ComponentName, size: u16) -> Result<()> {
        let pools = lock(&self.pools);
        let pool = pools.get(pool).ok_or_else(|| Error::UnknownComponent(pool.clone()))?;
        for number in 0..size {
            let name = pool.name(number)?;
            let present = lock(&self.components).get(&name).cloned();
            match present {
                Some(component) => component.order_run(),
                None => self.add(pool.spec(name), &pool.spawner)?,
            }
        }
        let surplus: Vec<_> = lock(&self.components)
            .iter()
            .filter(|(name, _)| pool.number(name).is_some_and(|number| number >= size))
            .map(|(name, component)| (name.clone(), Arc::clone(component)))
            .collect();
        for (name, component) in surplus {
            let order = component.order_drain();
            let carried_out = component.carried_out(order);
            // Held only weakly, so that dropping the deployment still ends every process.
            let (all, this) = (Arc::downgrade(&self.components), Arc::downgrade(&component));
            let changed = self.changed.clone();
            tokio::spawn(async move {
                carried_out.await;
                let (Some(all), Some(this)) = (all.upgrade(), this.upgrade()) else { return };
                let mut components = lock(&all);
                // Unless it is wanted again: an order to run is one more.
                if this.is_ended(order)
                    && components.get(&name).is_some_and(|present| Arc::ptr_eq(present, &this))
                {
                    components.remove(&name);
                    changed.send_modify(|count| *count += 1);
                }
            });
        }
        Ok(())
    }

    /// Adds a service: an address that stays the same wherever it is routed to.
    pub fn add_service(&self, name: &str, router: Router) {
        lock(&self.routers).insert(name.to_owned(), router);
    }

    /// Rings whenever a component started, ended, or was told to.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Ends every component, those that keep data last so that the others can say goodbye to
    /// them, and waits until all are gone.
    pub async fn shutdown(&self) {
        for databases in [false, true] {
            let these: Vec<_> = lock(&self.components)
                .values()
                .filter(|component| (component.kind().keeps_data()) == databases)
                .cloned()
                .collect();
            let orders: Vec<_> = these.iter().map(|component| component.order_stop()).collect();
            for (component, order) in these.iter().zip(orders) {
                component.carried_out(order).await;
            }
        }
    }

    fn component(&self, name: &ComponentName) -> Result<Arc<Supervised>> {
        let found = lock(&self.components).get(name).cloned();
        found.ok_or_else(|| Error::UnknownComponent(name.clone()))
    }
}

/// The maps stay whole whatever happens to a thread that held them.
fn lock<T>(map: &Mutex<T>) -> MutexGuard<'_, T> {
    map.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl Deployment for LocalDeployment {
    fn kind(&self) -> &'static str {
        "local"
    }

    async fn components(&self) -> Result<Vec<Component>> {
        Ok(lock(&self.components).values().map(|component| component.component()).collect())
    }

    async fn restart(&self, name: &ComponentName) -> Result<()> {
        self.component(name)?.restart().await;
        Ok(())
    }

    async fn stop(&self, name: &ComponentName) -> Result<()> {
        self.component(name)?.stop().await;
        Ok(())
    }

    async fn start(&self, name: &ComponentName) -> Result<()> {
        self.component(name)?.start_again().await;
        Ok(())
    }

    async fn scale(&self, pool: &ComponentName, size: u16) -> Result<()> {
        self.resize(pool, size)
    }

    async fn route(&self, service: &str, target: Option<SocketAddr>) -> Result<()> {
        let routers = lock(&self.routers);
        let router =
            routers.get(service).ok_or_else(|| Error::UnknownService(service.to_owned()))?;
        router.route(target);
        Ok(())
    }

    async fn logs(&self, name: &ComponentName, lines: usize) -> Result<Vec<String>> {
        self.component(name)?;
        logs::tail(&logs::path(&self.logs_dir, name), lines).await
    }
}
