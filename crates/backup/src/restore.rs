//! Puts a backup in the place of what is there.
//!
//! What is there is never removed: it is moved aside, and stays there until a person takes it away.
//! Every step looks first, so that a restore that was cut off anywhere is finished by doing it again.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use resurgam_deployment::postgres::Programs;
use resurgam_deployment::postgres::data::{Layout, give_all};

use crate::manifest::Database;
use crate::take::{clear, inspect_sqlite, make, verify_base_backup};
use crate::vault::{Backup, Vault};
use crate::{Error, Result};

/// What of a backup is restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Component {
    /// Everything.
    All,
    /// The database, with the passwords that it knows.
    Database,
    /// The checkpoints of workflows.
    State,
    /// Passwords and addresses.
    Configuration,
}

/// A text names no component.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not known; there are all, database, state and configuration")]
pub struct UnknownComponent(String);

impl FromStr for Component {
    type Err = UnknownComponent;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "all" => Ok(Self::All),
            "database" => Ok(Self::Database),
            "state" => Ok(Self::State),
            "configuration" => Ok(Self::Configuration),
            other => Err(UnknownComponent(other.chars().take(60).collect())),
        }
    }
}

impl Component {
    fn has(self, part: Self) -> bool {
        self == Self::All || self == part
    }
}

/// Where a backup is to be put.
#[derive(Clone, Debug)]
pub struct Target {
    /// The state folder. Nothing may run on it.
    pub state: PathBuf,
    /// PostgreSQL's programs, and the instance that gets the data.
    pub postgres: Option<(Programs, String)>,
}

impl Target {
    /// What would be moved aside, of what is there.
    #[must_use]
    pub fn replaced(&self, component: Component) -> Vec<PathBuf> {
        let mut paths = Vec::new();
        if component.has(Component::Database) {
            paths.push(if self.postgres.is_some() { "postgres" } else { "store" });
        }
        // The passwords go with the database that knows them.
        if component.has(Component::Configuration) || component.has(Component::Database) {
            paths.push("secrets");
        }
        if component.has(Component::State) {
            paths.push("checkpoints");
        }
        paths.into_iter().map(|name| self.state.join(name)).filter(|path| path.exists()).collect()
    }

    /// Restores a backup in place, after everything of it was checked. What was there is in the
    /// folder that is returned, none if nothing was.
    ///
    /// # Errors
    /// When the backup is of another kind of database, is damaged, or a file cannot be moved.
    /// Nothing was moved then, or doing it again finishes it.
    pub async fn restore(
        &self,
        vault: &Vault,
        backup: &Backup,
        component: Component,
    ) -> Result<Option<PathBuf>> {
        let owned = self.postgres.is_some();
        if component.has(Component::Database)
            && owned != (backup.manifest.database == Database::Postgres)
        {
            return Err(Error::Unusable(format!(
                "the backup {} is of another kind of database than the plan's store.kind; change the plan, or choose another backup",
                backup.id
            )));
        }
        let staging = self.state.join("restore").join(&backup.id);
        clear(&staging)?;
        make(&self.state.join("restore"), 0o711)?;
        make(&staging, 0o711)?;
        let content = staging.join("content");
        vault.extract(&backup.id, "", &content)?;
        if component.has(Component::Database) {
            self.check(&content, &staging, backup).await?;
        }
        // What takes the place of something else is on disk before.
        fs::File::open(&content)
            .and_then(|dir| Ok(rustix::fs::syncfs(dir)?))
            .map_err(Error::path("cannot sync", &content))?;
        let aside = self.state.join("set-aside").join(format!(
            "before-{}-{}",
            backup.id,
            resurgam_model::Timestamp::now().strftime("%Y%m%dT%H%M%SZ")
        ));
        self.put_in_place(&content, &aside, component)?;
        clear(&staging)?;
        Ok(aside.exists().then_some(aside))
    }

    async fn check(&self, content: &Path, staging: &Path, backup: &Backup) -> Result<()> {
        match &self.postgres {
            None => {
                let tables = inspect_sqlite(&content.join("database/platform.db"))?;
                if tables != backup.manifest.tables {
                    return Err(Error::Unusable(format!(
                        "the backup {} does not hold what was backed up; choose another one",
                        backup.id
                    )));
                }
                Ok(())
            }
            Some((programs, _)) => {
                let data = content.join("database/data");
                make(content, 0o711)?;
                make(&content.join("database"), 0o711)?;
                give_all(&data, programs.user.as_ref())?;
                verify_base_backup(programs, &data, &staging.join("check")).await
            }
        }
    }

    fn put_in_place(&self, content: &Path, aside: &Path, component: Component) -> Result<()> {
        if component.has(Component::Database) {
            match &self.postgres {
                None => {
                    let store = self.state.join("store");
                    self.swap(&content.join("database"), &store, aside)?;
                }
                Some((programs, instance)) => {
                    let prepared = content.join("postgres");
                    let dir = prepared.join(instance);
                    make(&prepared, 0o711)?;
                    make(&dir, 0o700)?;
                    let data = dir.join("data");
                    let source = content.join("database/data");
                    fs::rename(&source, &data).map_err(Error::path("cannot move", source))?;
                    Layout::new(dir).adopt(programs)?;
                    self.swap(&prepared, &self.state.join("postgres"), aside)?;
                }
            }
        }
        let secrets = content.join("configuration/secrets");
        if secrets.exists()
            && (component.has(Component::Configuration) || component.has(Component::Database))
        {
            self.swap(&secrets, &self.state.join("secrets"), aside)?;
        }
        if component.has(Component::Configuration) {
            let (from, to) =
                (content.join("configuration/ports.json"), self.state.join("ports.json"));
            if from.exists() && !to.exists() {
                fs::rename(&from, &to).map_err(Error::path("cannot move", from))?;
            }
        }
        let checkpoints = content.join("state/checkpoints");
        if checkpoints.exists() && component.has(Component::State) {
            self.swap(&checkpoints, &self.state.join("checkpoints"), aside)?;
        }
        fs::File::open(&self.state)
            .and_then(|dir| dir.sync_all())
            .map_err(Error::path("cannot sync", &self.state))
    }

    /// Moves what is in the place aside, and the new into the place.
    fn swap(&self, new: &Path, place: &Path, aside: &Path) -> Result<()> {
        if place.exists() {
            make(aside.parent().unwrap_or(aside), 0o700)?;
            make(aside, 0o700)?;
            let to = aside.join(place.file_name().unwrap_or_default());
            fs::rename(place, &to).map_err(Error::path("cannot put aside", place))?;
        }
        fs::rename(new, place).map_err(Error::path("cannot move to its place", new))
    }
}
