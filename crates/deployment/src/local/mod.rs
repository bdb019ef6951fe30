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
mod spawner;
mod supervise;

pub use ports::free_address;
pub use router::Router;
pub use spawner::Spawner;
pub use supervise::ComponentSpec;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use async_trait::async_trait;
use resurgam_model::ComponentName;
use tokio::sync::watch;

use crate::{Component, ComponentKind, Deployment, Error, Result};
use supervise::Supervised;

/// Components as child processes.
#[derive(Debug)]
pub struct LocalDeployment {
    components: BTreeMap<ComponentName, Supervised>,
    routers: BTreeMap<String, Router>,
    logs_dir: PathBuf,
    changed: watch::Sender<u64>,
}

impl LocalDeployment {
    /// A deployment without components, whose logs go to `logs_dir`.
    #[must_use]
    pub fn new(logs_dir: PathBuf) -> Self {
        let (changed, _) = watch::channel(0);
        Self { components: BTreeMap::new(), routers: BTreeMap::new(), logs_dir, changed }
    }

    /// Adds a component and starts it.
    ///
    /// # Errors
    /// When its log file cannot be opened.
    pub fn add(&mut self, spec: ComponentSpec, spawner: &Spawner) -> Result<()> {
        let log = logs::path(&self.logs_dir, &spec.name);
        logs::prepare(&log)?;
        let name = spec.name.clone();
        let supervised = Supervised::start(spec, log, spawner.clone(), self.changed.clone());
        self.components.insert(name, supervised);
        Ok(())
    }

    /// Adds a service: an address that stays the same wherever it is routed to.
    pub fn add_service(&mut self, name: &str, router: Router) {
        self.routers.insert(name.to_owned(), router);
    }

    /// Rings whenever a component started, ended, or was told to.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Ends every component, the databases last so that the others can say goodbye to them, and
    /// waits until all are gone.
    pub async fn shutdown(&self) {
        for databases in [false, true] {
            let these = || {
                let of_kind =
                    move |c: &&Supervised| (c.kind() == ComponentKind::Postgres) == databases;
                self.components.values().filter(of_kind)
            };
            let orders: Vec<_> = these().map(Supervised::order_stop).collect();
            for (component, order) in these().zip(orders) {
                component.carried_out(order).await;
            }
        }
    }

    fn component(&self, name: &ComponentName) -> Result<&Supervised> {
        self.components.get(name).ok_or_else(|| Error::UnknownComponent(name.clone()))
    }
}

#[async_trait]
impl Deployment for LocalDeployment {
    fn kind(&self) -> &'static str {
        "local"
    }

    async fn components(&self) -> Result<Vec<Component>> {
        Ok(self.components.values().map(Supervised::component).collect())
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

    async fn route(&self, service: &str, target: Option<SocketAddr>) -> Result<()> {
        let router =
            self.routers.get(service).ok_or_else(|| Error::UnknownService(service.to_owned()))?;
        router.route(target);
        Ok(())
    }

    async fn logs(&self, name: &ComponentName, lines: usize) -> Result<Vec<String>> {
        self.component(name)?;
        logs::tail(&logs::path(&self.logs_dir, name), lines).await
    }
}
