//! What the vaults of a deployment that runs have, looked at now and then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use resurgam_backup::vault::{Proof, Vault};
use resurgam_model::ComponentName;
use resurgam_model::plan::Vault as Planned;
use resurgam_recovery::restorer::VaultStanding;
use tokio::sync::watch;

use crate::backups::{blocking, gathering, open};
use crate::failure::Failure;
use crate::plan::Loaded;

/// So often where all vaults are folders.
const FOLDERS: Duration = Duration::from_secs(5);
/// So often where one is a bucket: each look costs money.
const BUCKETS: Duration = Duration::from_secs(30);
/// How often to see whether a backup was made here.
const LOOK: Duration = Duration::from_secs(1);

/// Looks for as long as it is waited for.
pub(crate) async fn watch(loaded: &Loaded, standings: &watch::Sender<Vec<VaultStanding>>) {
    // To open one is to derive its key, which takes time and memory on purpose.
    let mut opened = BTreeMap::new();
    let vaults = &loaded.plan().backup.vaults;
    let every = if vaults.iter().all(|vault| vault.path.is_some()) { FOLDERS } else { BUCKETS };
    loop {
        let mut all = Vec::new();
        for planned in vaults {
            let looked = look(loaded, planned, &mut opened).await;
            all.push(looked.unwrap_or_else(|failure| {
                opened.remove(&planned.name);
                VaultStanding {
                    vault: planned.name.to_string(),
                    newest: None,
                    proven: None,
                    error: Some(failure.message),
                }
            }));
        }
        standings.send_replace(all);
        let made = made(loaded);
        let again = Instant::now() + every;
        while Instant::now() < again && self::made(loaded) == made {
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// When backups were last worked on here.
fn made(loaded: &Loaded) -> Option<SystemTime> {
    std::fs::metadata(gathering(&loaded.state_dir())).ok()?.modified().ok()
}

async fn look(
    loaded: &Loaded,
    planned: &Planned,
    opened: &mut BTreeMap<ComponentName, Arc<Vault>>,
) -> Result<VaultStanding, Failure> {
    let vault = match opened.get(&planned.name) {
        Some(vault) => Arc::clone(vault),
        None => open(loaded, planned).await?,
    };
    opened.insert(planned.name.clone(), Arc::clone(&vault));
    let backups = blocking(move || vault.backups()).await?;
    // The newest first.
    let newest = backups.iter().find(|backup| !matches!(backup.proof, Proof::Bad(_)));
    let proven = backups.iter().find(|backup| matches!(backup.proof, Proof::Verified(_)));
    Ok(VaultStanding {
        vault: planned.name.to_string(),
        newest: newest.map(|backup| backup.taken_at),
        proven: proven.map(|backup| backup.taken_at),
        error: None,
    })
}
