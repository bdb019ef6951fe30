//! The log of the plan's own PostgreSQL, on its way to the vaults.

use std::sync::Arc;

use resurgam_backup::log::ship::{self, Standings};
use resurgam_backup::vault::Vault;
use resurgam_deployment::postgres::secrets::REPLICATOR;
use resurgam_model::plan::StoreKind;

use crate::backups::{base, gathering, server};
use crate::plan::Loaded;

/// Ships the log of the plan's own PostgreSQL to its vaults, for as long as it is waited for.
pub(crate) async fn ship_log(loaded: &Loaded, standings: &Standings) {
    let backup = &loaded.plan().backup;
    let owned = loaded.plan().store.kind == StoreKind::Postgres;
    if !backup.continuous || backup.vaults.is_empty() || !owned {
        return std::future::pending().await;
    }
    let server = match server(loaded) {
        Ok(Some(server)) => server,
        Ok(None) => return std::future::pending().await,
        Err(failure) => {
            tracing::error!(error = failure.message, "the log of the database cannot be stored");
            return std::future::pending().await;
        }
    };
    let vaults = backup.vaults.iter().map(|vault| {
        let (planned, base) = (vault.clone(), base(loaded));
        let deployment = loaded.plan().deployment.name.clone();
        let open = move || Vault::of_plan(&planned, &deployment, &base).map(Arc::new);
        (vault.name.to_string(), Arc::new(open) as ship::Open)
    });
    let source = ship::Source {
        address: server.service,
        user: REPLICATOR.to_owned(),
        password: server.secrets.replicator.clone(),
        spool: loaded.state_dir().join("log"),
        backups: gathering(&loaded.state_dir()),
        vaults: vaults.collect(),
        every: backup.ship_every.0,
    };
    ship::ship(&source, standings).await;
}
