//! A vault: a restic repository, encrypted, de-duplicated and compressed, that the standard
//! `restic` program reads as well.
//!
//! The library saves a snapshot before it knows whether all of it could be read, and passes over
//! what it could not read. So a snapshot is first *pending*. Only when it was compared with what
//! was to be stored does it become *complete*, and only complete ones are backups. What is left
//! pending by a crash is removed with the next backup.
//!
//! All calls block: they read and write files, and derive keys.

mod keys;
mod log;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use resurgam_model::{Timestamp, plan};
use rustic_core::repofile::{NodeType, SnapshotFile};
use rustic_core::{
    BackupOptions, CheckOptions, ConfigOptions, Credentials, LsOptions, OpenStatus, ParentOptions,
    PathList, PruneOptions, Repository, RepositoryOptions, RusticError, SnapshotOptions,
    StringList,
};
use serde::{Deserialize, Serialize};

pub use self::keys::Key;
use self::keys::key_options;
pub use self::log::LogReport;
use crate::manifest::{Manifest, Table};
use crate::password::Password;
use crate::place::{Lock, Place};
use crate::{Error, Result};

/// The label of our snapshots.
const LABEL: &str = "resurgam";
/// Under which path the content of each snapshot lies.
const ROOT: &str = "/recovery-point";
const PENDING: &str = "pending";
const COMPLETE: &str = "complete";
const ID: &str = "id-";
const VERIFIED: &str = "verified-";
const BAD: &str = "bad";

/// A list of snapshots is read so often, with a pause between.
const TRIES: u32 = 10;
const PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

/// What is known of a backup's worth.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Proof {
    /// It was never restored.
    #[default]
    None,
    /// It was restored and checked, last at that time.
    Verified(Timestamp),
    /// It could not be restored; and why.
    Bad(String),
}

/// A backup: one recovery point of the whole deployment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Backup {
    /// By this it is named; sorts by time.
    pub id: String,
    /// When the copy of the database was begun: everything acknowledged before is in it.
    pub taken_at: Timestamp,
    /// Bytes of all that is in it.
    pub size: u64,
    /// Bytes that it added to the vault, compressed; the rest was there already.
    pub added: u64,
    /// How long it took to store, in milliseconds.
    pub took_ms: u64,
    /// Whether it was restored.
    pub proof: Proof,
    /// What is in it.
    pub manifest: Manifest,
    /// The snapshot, for the `restic` program.
    pub snapshot: String,
}

impl Backup {
    #[cfg(test)]
    pub(crate) fn of(id: &str, taken_at: Timestamp) -> Self {
        Self {
            id: id.to_owned(),
            taken_at,
            size: 0,
            added: 0,
            took_ms: 0,
            proof: Proof::None,
            manifest: Manifest::default(),
            snapshot: String::new(),
        }
    }
}

/// A vault, opened by its password, as one deployment sees it. Several may keep their backups in
/// it; each sees, proves and removes its own alone.
#[derive(Debug)]
pub struct Vault {
    name: String,
    place: Place,
    deployment: String,
    password: Password,
}

impl Vault {
    /// Makes a new vault.
    ///
    /// # Errors
    /// When there is one already, or the place cannot be used.
    pub fn init(name: &str, place: Place, deployment: &str, password: Password) -> Result<Self> {
        let vault = Self::at(name, place, deployment, password);
        if vault.place.has_vault()? {
            return Err(vault.failed("be made")(format!(
                "there is one at {} already",
                vault.place
            )));
        }
        vault.place.prepare()?;
        vault
            .backend()?
            .init(&vault.credentials(), &key_options(), &ConfigOptions::default())
            .map_err(vault.told("be made"))?;
        Ok(vault)
    }

    fn at(name: &str, place: Place, deployment: &str, password: Password) -> Self {
        let (name, deployment) = (name.to_owned(), deployment.to_owned());
        Self { name, place, deployment, password }
    }

    /// Opens a vault.
    ///
    /// # Errors
    /// When there is none, or the password is not one of its.
    pub fn open(name: &str, place: Place, deployment: &str, password: Password) -> Result<Self> {
        let vault = Self::at(name, place, deployment, password);
        vault.repository()?;
        Ok(vault)
    }

    /// The vault of a plan, for the deployment of that name.
    ///
    /// # Errors
    /// As [`Vault::open`], or when password or credentials cannot be had.
    pub fn of_plan(vault: &plan::Vault, deployment: &str, base: &Path) -> Result<Self> {
        let password = Password::of(vault, base)?;
        Self::open(vault.name.as_str(), Place::of_plan(vault, base)?, deployment, password)
    }

    /// Its name in the plan.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn failed(&self, action: &'static str) -> impl Fn(String) -> Error + '_ {
        move |reason| Error::Vault { vault: self.name.clone(), action, reason }
    }

    fn told(&self, action: &'static str) -> impl Fn(Box<RusticError>) -> Error + '_ {
        move |error| {
            if error.is_incorrect_password() {
                return Error::WrongPassword { vault: self.name.clone() };
            }
            let text = error.display_log();
            let reason = text.strip_prefix("Error: ").unwrap_or(&text).to_owned();
            Error::Vault { vault: self.name.clone(), action, reason }
        }
    }

    fn credentials(&self) -> Credentials {
        Credentials::password(self.password.expose())
    }

    fn backend(&self) -> Result<Repository<()>> {
        let backends = self.place.backends().map_err(self.told("be opened"))?;
        // Without a cache elsewhere, which would outlive the vault.
        let options = RepositoryOptions::default().no_cache(true);
        Repository::new(&options, &backends).map_err(self.told("be opened"))
    }

    fn repository(&self) -> Result<Repository<OpenStatus>> {
        if !self.place.has_vault()? {
            let (vault, place) = (self.name.clone(), self.place.to_string());
            return Err(Error::NoVault { vault, place });
        }
        self.backend()?.open(&self.credentials()).map_err(self.told("be opened"))
    }

    /// All snapshots. Somebody else may remove one between its listing and its reading; then the
    /// list is read anew.
    fn snapshots(&self, repository: &Repository<OpenStatus>) -> Result<Vec<SnapshotFile>> {
        let mut tries = 0;
        loop {
            tries += 1;
            match repository.get_all_snapshots() {
                Ok(snapshots) => return Ok(snapshots),
                Err(error) if tries == TRIES => return Err(self.told("be read")(error)),
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }

    fn lock(&self) -> Result<Lock> {
        self.place.lock(&self.name)
    }

    /// The backups, the newest first.
    ///
    /// # Errors
    /// When the vault cannot be read.
    pub fn backups(&self) -> Result<Vec<Backup>> {
        let snapshots = self.snapshots(&self.repository()?)?;
        let mut found: BTreeMap<String, Backup> = BTreeMap::new();
        for backup in snapshots.iter().filter(|s| self.is_ours(s)).filter_map(read) {
            // A crash between the two halves of a change leaves both. The one that says more wins.
            let known = found.get(&backup.id).is_some_and(|known| known.proof != Proof::None);
            if !known {
                found.insert(backup.id.clone(), backup);
            }
        }
        let mut backups: Vec<_> = found.into_values().collect();
        backups.sort_by(|a, b| b.taken_at.cmp(&a.taken_at).then_with(|| b.id.cmp(&a.id)));
        Ok(backups)
    }

    /// Stores the content of a folder as a backup.
    ///
    /// # Errors
    /// When any file could not be read, or the vault not be written. There is no backup then.
    pub fn store(&self, content: &Path, id: &str, manifest: &Manifest) -> Result<Backup> {
        let _lock = self.lock()?;
        let repository = self.repository()?;
        let read = self.told("be read");
        let stale: Vec<_> = self
            .snapshots(&repository)?
            .into_iter()
            .filter(|snapshot| {
                let ours = snapshot.label == LABEL && snapshot.hostname == self.deployment;
                ours && snapshot.tags.contains(PENDING)
            })
            .map(|snapshot| snapshot.id)
            .collect();
        let write = self.told("be written");
        repository.delete_snapshots(&stale).map_err(&write)?;

        let (files, bytes) = measure(content)?;
        let mut options = SnapshotOptions::default();
        options.label = Some(LABEL.to_owned());
        options.description = serde_json::to_string(manifest).ok();
        options.host = Some(self.deployment.clone());
        let snapshot = options
            .add_tags(&format!("{PENDING},{ID}{id}"))
            .and_then(|options| options.to_snapshot())
            .map_err(&write)?;
        let repository = repository.to_indexed_ids().map_err(&read)?;
        let mut how = BackupOptions::default();
        how.as_path = Some(PathBuf::from(ROOT));
        how.parent_opts = ParentOptions::default();
        how.no_scan = true;
        let source = PathList::from_string(&content.display().to_string()).map_err(&write)?;
        let mut stored = repository.backup(&how, &source, snapshot).map_err(&write)?;
        let pending = stored.id;
        let summary = stored.summary.clone().unwrap_or_default();
        if (summary.total_files_processed, summary.total_bytes_processed) != (files, bytes) {
            repository.delete_snapshots(&[pending]).map_err(&write)?;
            return Err(self.failed("be written")(format!(
                "{} files with {} bytes were stored of {files} with {bytes}; nothing was kept",
                summary.total_files_processed, summary.total_bytes_processed
            )));
        }
        replace(&mut stored, &[PENDING], &[COMPLETE.to_owned()]);
        repository.save_snapshots(vec![stored]).map_err(&write)?;
        repository.delete_snapshots(&[pending]).map_err(&write)?;
        let backups = self.backups()?;
        backups.into_iter().find(|backup| backup.id == id).ok_or_else(|| {
            self.failed("be written")("the backup is not there after it was stored".to_owned())
        })
    }

    /// Writes down what a verification has found; with `tables` also what is in the database, if
    /// that was not known yet.
    ///
    /// # Errors
    /// When there is no such backup, or the vault cannot be written.
    pub fn prove(
        &self,
        id: &str,
        proof: &Proof,
        tables: Option<&BTreeMap<String, Table>>,
    ) -> Result<()> {
        let _lock = self.lock()?;
        let repository = self.repository()?;
        let snapshots = self.snapshots(&repository)?;
        let old: Vec<_> =
            snapshots.into_iter().filter(|s| self.is_ours(s) && has_id(s, id)).collect();
        let Some(mut new) = old.first().cloned() else { return Err(self.no_backup(id)) };
        let before: Vec<String> = new
            .tags
            .iter()
            .filter(|tag| tag.starts_with(VERIFIED) || *tag == BAD)
            .cloned()
            .collect();
        let before: Vec<_> = before.iter().map(String::as_str).collect();
        let now = match proof {
            Proof::None => Vec::new(),
            Proof::Verified(at) => vec![format!("{VERIFIED}{}", at.as_millisecond())],
            Proof::Bad(_) => vec![BAD.to_owned()],
        };
        replace(&mut new, &before, &now);
        if let Some(mut manifest) = manifest(&new) {
            manifest.bad = match proof {
                Proof::Bad(why) => Some(why.clone()),
                Proof::None | Proof::Verified(_) => None,
            };
            if let Some(tables) = tables.filter(|_| manifest.tables.is_empty()) {
                manifest.tables.clone_from(tables);
            }
            new.description = serde_json::to_string(&manifest).ok();
        }
        let write = self.told("be written");
        repository.save_snapshots(vec![new]).map_err(&write)?;
        let ids: Vec<_> = old.iter().map(|snapshot| snapshot.id).collect();
        repository.delete_snapshots(&ids).map_err(&write)
    }

    fn is_ours(&self, snapshot: &SnapshotFile) -> bool {
        is_backup(snapshot) && snapshot.hostname == self.deployment
    }

    fn no_backup(&self, id: &str) -> Error {
        self.failed("find it")(format!("it has no backup {id}; see: resurgam backup list"))
    }

    /// Restores what lies below a path of a backup, or all of it, into a folder that is empty or
    /// not there. It is not synced to disk: that is for who needs it.
    ///
    /// # Errors
    /// When there is no such backup, or what it needs is damaged or missing.
    pub fn extract(&self, id: &str, below: &str, into: &Path) -> Result<()> {
        std::fs::create_dir_all(into).map_err(Error::path("cannot create", into))?;
        let mut entries = std::fs::read_dir(into).map_err(Error::path("cannot read", into))?;
        if entries.next().is_some() {
            return Err(Error::Unusable(format!(
                "{} is not empty; name a folder that is not there yet",
                into.display()
            )));
        }
        let read = self.told("be read");
        let repository = self.repository()?;
        let snapshots = self.snapshots(&repository)?;
        let snapshot = snapshots.into_iter().find(|s| self.is_ours(s) && has_id(s, id));
        let snapshot = snapshot.ok_or_else(|| self.no_backup(id))?;
        let repository = repository.to_indexed().map_err(&read)?;
        let below = match below {
            "" => ROOT.to_owned(),
            below => format!("{ROOT}/{below}"),
        };
        let node = repository.node_from_snapshot_and_path(&snapshot, &below).map_err(&read)?;
        // The library's own restore ends the whole program when it meets damage; its dump of one
        // file says so.
        for entry in repository.ls(&node, &LsOptions::default()).map_err(&read)? {
            let (name, node) = entry.map_err(&read)?;
            let inside =
                name.components().all(|part| matches!(part, std::path::Component::Normal(_)));
            if !inside {
                return Err(self.failed("be read")(format!("{} leads elsewhere", name.display())));
            }
            let path = into.join(name);
            match node.node_type {
                NodeType::Dir => {
                    std::fs::create_dir_all(&path).map_err(Error::path("cannot create", &path))?;
                    private(&path, 0o700)?;
                }
                NodeType::File => {
                    if let Some(folder) = path.parent() {
                        std::fs::create_dir_all(folder)
                            .map_err(Error::path("cannot create", folder))?;
                    }
                    let mut file =
                        File::create_new(&path).map_err(Error::path("cannot create", &path))?;
                    private(&path, 0o600)?;
                    repository.dump(&node, &mut file).map_err(&read)?;
                }
                _ => {
                    return Err(self.failed("be read")(format!(
                        "{} is neither a file nor a folder",
                        path.display()
                    )));
                }
            }
        }
        Ok(())
    }

    /// Looks for damage: in the structure, and with `data` in every byte. Each finding is a
    /// sentence; none when all is well.
    ///
    /// # Errors
    /// When the vault cannot be opened at all.
    pub fn check(&self, data: bool) -> Result<Vec<String>> {
        let mut options = CheckOptions::default();
        options.read_data = data;
        let found = match self.repository()?.check(options) {
            Ok(found) => found,
            Err(error) => return Ok(vec![self.told("be checked")(error).to_string()]),
        };
        if found.is_ok().is_ok() {
            return Ok(Vec::new());
        }
        Ok(found.0.iter().map(|(_, finding)| finding.to_string()).collect())
    }

    /// Removes backups, and then what no other backup needs. Data that may still be in use by
    /// somebody who has just read the index is only marked, and removed by a later call, a day on.
    ///
    /// # Errors
    /// When the vault cannot be written. What was not removed is complete.
    pub fn remove(&self, ids: &[String]) -> Result<()> {
        let _lock = self.lock()?;
        let write = self.told("be pruned");
        let repository = self.repository()?;
        let snapshots = self.snapshots(&repository)?;
        let gone: Vec<_> = snapshots
            .iter()
            .filter(|s| self.is_ours(s) && ids.iter().any(|id| has_id(s, id)))
            .map(|snapshot| snapshot.id)
            .collect();
        repository.delete_snapshots(&gone).map_err(&write)?;
        let options = PruneOptions::default();
        let plan = repository.prune_plan(&options).map_err(&write)?;
        repository.prune(&options, plan).map_err(&write)
    }
}

/// What comes out of a vault is for its owner alone: there are passwords in it.
fn private(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(Error::path("cannot set the mode of", path))
}

fn is_backup(snapshot: &SnapshotFile) -> bool {
    snapshot.label == LABEL && snapshot.tags.contains(COMPLETE)
}

fn has_id(snapshot: &SnapshotFile, id: &str) -> bool {
    snapshot.tags.contains(&format!("{ID}{id}"))
}

fn manifest(snapshot: &SnapshotFile) -> Option<Manifest> {
    serde_json::from_str(snapshot.description.as_deref()?).ok()
}

fn read(snapshot: &SnapshotFile) -> Option<Backup> {
    if !is_backup(snapshot) {
        return None;
    }
    let tagged = |prefix| snapshot.tags.iter().find_map(|tag: &String| tag.strip_prefix(prefix));
    let manifest = manifest(snapshot)?;
    let verified = tagged(VERIFIED).and_then(|at| at.parse().ok());
    let verified = verified.and_then(|at| Timestamp::from_millisecond(at).ok());
    let proof = match (snapshot.tags.contains(BAD), verified) {
        (true, _) => Proof::Bad(manifest.bad.clone().unwrap_or_default()),
        (false, Some(at)) => Proof::Verified(at),
        (false, None) => Proof::None,
    };
    let summary = snapshot.summary.clone().unwrap_or_default();
    Some(Backup {
        id: tagged(ID)?.to_owned(),
        taken_at: manifest.taken_at,
        size: summary.total_bytes_processed,
        added: summary.data_added_packed,
        took_ms: std::time::Duration::try_from_secs_f64(summary.backup_duration.max(0.0))
            .map_or(0, |took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
        proof,
        manifest,
        snapshot: snapshot.id.to_string(),
    })
}

/// Takes tags away and puts others in their place.
fn replace(snapshot: &mut SnapshotFile, old: &[&str], new: &[String]) {
    let list = |tags: Vec<String>| {
        let mut list = StringList::default();
        tags.into_iter().for_each(|tag| list.add(tag));
        vec![list]
    };
    if !old.is_empty() {
        snapshot.remove_tags(&list(old.iter().map(|tag| (*tag).to_owned()).collect()));
    }
    if !new.is_empty() {
        snapshot.add_tags(list(new.to_vec()));
    }
}

/// The number of files below a folder, and their bytes.
pub(crate) fn measure(dir: &Path) -> Result<(u64, u64)> {
    let (mut files, mut bytes) = (0, 0);
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(Error::path("cannot read", &folder))? {
            let entry = entry.map_err(Error::path("cannot read", &folder))?;
            let meta = entry.metadata().map_err(Error::path("cannot read", entry.path()))?;
            if meta.is_dir() {
                folders.push(entry.path());
            } else if meta.is_file() {
                files += 1;
                bytes += meta.len();
            } else {
                return Err(Error::Unusable(format!(
                    "{} is neither a file nor a folder; backups have no place for it",
                    entry.path().display()
                )));
            }
        }
    }
    Ok((files, bytes))
}
