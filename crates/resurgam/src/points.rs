//! Which vault of a plan has what is wanted, and has it best.

use std::sync::Arc;

use resurgam_backup::restore::{Point, Wish};
use resurgam_backup::vault::{Backup, Vault};
use resurgam_model::{ComponentName, Timestamp};

use crate::backups::{blocking, open, planned};
use crate::failure::Failure;
use crate::plan::Loaded;

/// What was looked for.
pub(crate) struct Found {
    pub(crate) vault: Arc<Vault>,
    pub(crate) point: Point,
    /// Up to when the vault has all for it that was acknowledged.
    pub(crate) until: Timestamp,
}

/// What is wished of a vault that has these backups.
type Wishing<'a> = &'a (dyn Fn(&Vault, &[Backup]) -> Result<Wish, Failure> + Sync);

/// Looks into the vaults of the plan, or the named one. Of several that have it the one is taken that
/// is whole up to the latest moment: positions in the log do not tell, for a restore to an earlier
/// moment takes them back. Also why others do not have it: one vault may be gone with what was lost;
/// that is why there are several.
pub(crate) async fn look(
    loaded: &Loaded,
    vault: Option<&ComponentName>,
    wish: Wishing<'_>,
    timeline: Option<u32>,
) -> Result<(Option<Found>, Vec<(String, Failure)>), Failure> {
    let (mut best, mut without) = (None::<Found>, Vec::new());
    for planned in planned(loaded, vault)? {
        let found = async {
            let vault = open(loaded, planned).await?;
            let opened = Arc::clone(&vault);
            let all = blocking(move || opened.backups()).await?;
            let wish = wish(&vault, &all)?;
            blocking(move || {
                let point = Point::choose(&vault, &all, &wish, timeline)?;
                let until = point.whole_until()?;
                Ok(Found { vault, point, until })
            })
            .await
        };
        match found.await {
            Ok(found) if best.as_ref().is_none_or(|best| found.until > best.until) => {
                best = Some(found);
            }
            Ok(_) => {}
            Err(failure) => without.push((planned.name.to_string(), failure)),
        }
    }
    Ok((best, without))
}
