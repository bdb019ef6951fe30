//! Workflows as files: one for each, written anew when it has changed, and read back into a
//! store that has lost them.
//!
//! A file is whole or not there: it is written beside its place, synced, and put there by
//! renaming. It shows its workflow at one moment. Files of different workflows may be of
//! different moments; reading them back mends what follows from that.
//!
//! Crash behaviour: the next export finds out from the files themselves what they hold.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use resurgam_client::chain;
use resurgam_model::{Timestamp, WorkflowId};
use resurgam_store::SharedStore;
use resurgam_store::workflows::{Checkpoint, Restored};
use serde::Deserialize;

use crate::api::App;

/// So many are looked for at once.
const PAGE: u32 = 500;

/// A transaction that began earlier may commit a change with an earlier time for so long.
const OVERLAP: Duration = Duration::from_secs(60);

/// So often it is looked whether workflows whose files are there are forgotten.
const PRUNE_EVERY: Duration = Duration::from_secs(60);

/// How often changes are exported.
const EVERY: Duration = Duration::from_secs(1);

/// Why files could not be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that is no checkpoint.
    #[error("{}: it is not a checkpoint of a workflow: {why}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] resurgam_store::Error),
    /// The work was broken off.
    #[error("the work on files was broken off")]
    BrokenOff,
}

/// What an export did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// Files that were written.
    pub written: u64,
    /// Files of forgotten workflows that were removed.
    pub removed: u64,
}

/// What an import did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Workflows that are back.
    pub restored: u64,
    /// Workflows that were there; they were left as they are.
    pub kept: u64,
}

/// Writes the files of one folder.
#[derive(Debug)]
pub struct Exporter {
    folder: PathBuf,
    /// What the files hold.
    revisions: HashMap<WorkflowId, i64>,
    since: Timestamp,
}

/// What is read of a file to know whether it is up to date.
#[derive(Deserialize)]
struct Beginning {
    id: WorkflowId,
    revision: i64,
}

impl Exporter {
    /// Looks at the folder, or makes it.
    ///
    /// # Errors
    /// When it cannot be read or made.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        fs::create_dir_all(folder).map_err(|source| at(folder, source))?;
        let mut revisions = HashMap::new();
        for path in files(folder)? {
            let text = fs::read(&path).map_err(|source| at(&path, source))?;
            // One that cannot be read is written anew, or is not ours.
            if let Ok(Beginning { id, revision }) = serde_json::from_slice(&text)
                && path == file_of(folder, id)
            {
                revisions.insert(id, revision);
            }
        }
        Ok(Self { folder: folder.to_owned(), revisions, since: Timestamp::MIN })
    }

    /// Writes what has changed since the last time.
    ///
    /// # Errors
    /// When the store or the folder cannot be used; what was written before that stays.
    pub async fn export(&mut self, store: &SharedStore) -> Result<u64, Error> {
        let mut written = 0;
        let mut after = None;
        let mut newest = self.since;
        loop {
            let page = store.changed_workflows(self.since, after, PAGE).await?;
            for changed in &page {
                newest = newest.max(changed.changed_at);
                after = Some((changed.changed_at, changed.id));
                if self.revisions.get(&changed.id).is_some_and(|have| *have >= changed.revision) {
                    continue;
                }
                if let Some(checkpoint) = store.checkpoint(changed.id).await? {
                    let (id, revision) = (checkpoint.id, checkpoint.revision);
                    write(&self.folder, checkpoint).await?;
                    self.revisions.insert(id, revision);
                    written += 1;
                }
            }
            if page.len() < usize::try_from(PAGE).unwrap_or(usize::MAX) {
                break;
            }
        }
        if written > 0 {
            let folder = self.folder.clone();
            blocking(move || {
                File::open(&folder).and_then(|f| f.sync_all()).map_err(|source| at(&folder, source))
            })
            .await?;
        }
        if newest > Timestamp::MIN {
            self.since = newest.checked_sub(OVERLAP).unwrap_or(Timestamp::MIN);
        }
        Ok(written)
    }

    /// Removes the files of workflows that are forgotten.
    ///
    /// # Errors
    /// When the store or the folder cannot be used.
    pub async fn prune(&mut self, store: &SharedStore) -> Result<u64, Error> {
        let ids: Vec<WorkflowId> = self.revisions.keys().copied().collect();
        let mut removed = 0;
        for ids in ids.chunks(1000) {
            let known = store.known_workflows(ids).await?;
            for id in ids.iter().filter(|id| !known.contains(id)) {
                let path = file_of(&self.folder, *id);
                match fs::remove_file(&path) {
                    Err(source) if source.kind() != io::ErrorKind::NotFound => {
                        return Err(at(&path, source));
                    }
                    _ => {}
                }
                self.revisions.remove(id);
                removed += 1;
            }
        }
        Ok(removed)
    }
}

/// Exports all that is to be exported into a folder, once.
///
/// # Errors
/// When the store or the folder cannot be used.
pub async fn export(store: &SharedStore, folder: &Path) -> Result<Exported, Error> {
    let mut exporter = Exporter::open(folder)?;
    let written = exporter.export(store).await?;
    let removed = exporter.prune(store).await?;
    Ok(Exported { written, removed })
}

/// Brings back the workflows of a folder. Those that are in the store are left as they are.
///
/// # Errors
/// When a file is no checkpoint, before anything is written; or when the store cannot be used.
pub async fn import(store: &SharedStore, folder: &Path) -> Result<Imported, Error> {
    let folder = folder.to_owned();
    let mut checkpoints = blocking(move || {
        let mut all = Vec::new();
        for path in files(&folder)? {
            let text = fs::read(&path).map_err(|source| at(&path, source))?;
            let checkpoint: Checkpoint = serde_json::from_slice(&text).map_err(|error| {
                Error::Unreadable { path: path.clone(), why: error.to_string() }
            })?;
            checkpoint.check().map_err(|why| Error::Unreadable { path, why })?;
            all.push(checkpoint);
        }
        Ok(all)
    })
    .await?;
    // Those who are told of an end must be there before those who tell it.
    checkpoints.sort_by_key(Checkpoint::depth);
    let mut imported = Imported::default();
    let mut restored = Vec::new();
    for checkpoint in &checkpoints {
        match store.restore(checkpoint).await? {
            Restored::Restored => {
                imported.restored += 1;
                restored.push(checkpoint.id);
            }
            Restored::Kept { revision } => {
                let workflow = checkpoint.id;
                let file = checkpoint.revision;
                tracing::info!(%workflow, revision, file, "a workflow is there and stays as it is");
                imported.kept += 1;
            }
        }
    }
    for id in restored {
        store.reconnect(id).await?;
    }
    Ok(imported)
}

/// Exports again and again; runs until dropped.
pub(crate) async fn run(app: Arc<App>, folder: PathBuf) {
    let mut exporter = None;
    let mut prune_at = tokio::time::Instant::now();
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut last_reason = String::new();
    loop {
        ticks.tick().await;
        let done = async {
            if exporter.is_none() {
                let folder = folder.clone();
                exporter = Some(blocking(move || Exporter::open(&folder)).await?);
            }
            let Some(exporter) = &mut exporter else { return Ok(()) };
            exporter.export(&app.store).await?;
            if tokio::time::Instant::now() >= prune_at {
                exporter.prune(&app.store).await?;
                prune_at = tokio::time::Instant::now() + PRUNE_EVERY;
            }
            Ok::<_, Error>(())
        }
        .await;
        match done {
            Ok(()) => last_reason.clear(),
            Err(error) => {
                let reason = chain(&error);
                if reason != last_reason {
                    tracing::warn!(reason, "cannot export workflows; trying again");
                    last_reason = reason;
                }
            }
        }
    }
}

fn at(path: &Path, source: io::Error) -> Error {
    Error::File { path: path.to_owned(), source }
}

fn file_of(folder: &Path, id: WorkflowId) -> PathBuf {
    folder.join(format!("{id}.json"))
}

fn files(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).map_err(|source| at(folder, source))? {
        let path = entry.map_err(|source| at(folder, source))?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            all.push(path);
        }
    }
    all.sort();
    Ok(all)
}

/// Writes one file beside its place, and puts it there.
async fn write(folder: &Path, checkpoint: Checkpoint) -> Result<(), Error> {
    let path = file_of(folder, checkpoint.id);
    // Another process may be writing the same one.
    let beside = folder.join(format!("{}.{}.new", checkpoint.id, std::process::id()));
    blocking(move || {
        let text = serde_json::to_vec(&checkpoint)
            .map_err(|error| Error::Unreadable { path: path.clone(), why: error.to_string() })?;
        let put = || {
            let mut file = File::create(&beside)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&beside, &path)
        };
        put().map_err(|source| at(&path, source))
    })
    .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::BrokenOff)?
}
