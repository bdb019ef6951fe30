//! Puts a backup in the place of what is there.
//!
//! What is there is never removed: it is moved aside, and stays there until a person takes it away.
//! Every step looks first, so that a restore that was cut off anywhere is finished by doing it again.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::{fmt, fs};

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

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::All => "all",
            Self::Database => "database",
            Self::State => "state",
            Self::Configuration => "configuration",
        })
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

    /// Restores a backup beside the state, and checks everything. Nothing that is there is touched.
    ///
    /// # Errors
    /// When the backup is of another kind of database, or is damaged.
    pub async fn prepare(
        &self,
        vault: &Vault,
        backup: &Backup,
        component: Component,
    ) -> Result<Prepared> {
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
        let now = resurgam_model::Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
        let aside = self.state.join("set-aside").join(format!("before-{}-{now}", backup.id));
        Ok(Prepared { staging, content, aside, component })
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

    /// Puts what was prepared in the place of what is there, which moves aside. The folder with it
    /// is returned, none if nothing was there. `before` hears of each deed before it is done.
    ///
    /// # Errors
    /// When a file cannot be moved. Doing all of it again, from [`Target::prepare`] on, finishes it.
    pub fn put_in_place(
        &self,
        prepared: &Prepared,
        before: &dyn Fn(&str),
    ) -> Result<Option<PathBuf>> {
        let Prepared { staging, content, aside, component } = prepared;
        let swap = |new: &Path, name: &str| {
            let place = self.state.join(name);
            before(&format!("aside-{name}"));
            if place.exists() {
                make(aside.parent().unwrap_or(aside), 0o700)?;
                make(aside, 0o700)?;
                fs::rename(&place, aside.join(name))
                    .map_err(Error::path("cannot put aside", &place))?;
            }
            before(&format!("place-{name}"));
            fs::rename(new, &place).map_err(Error::path("cannot move to its place", new))
        };
        if component.has(Component::Database) {
            match &self.postgres {
                None => swap(&content.join("database"), "store")?,
                Some((programs, instance)) => {
                    let prepared = content.join("postgres");
                    let dir = prepared.join(instance);
                    make(&prepared, 0o711)?;
                    make(&dir, 0o700)?;
                    let (source, data) = (content.join("database/data"), dir.join("data"));
                    fs::rename(&source, &data).map_err(Error::path("cannot move", source))?;
                    Layout::new(dir).adopt(programs)?;
                    swap(&prepared, "postgres")?;
                }
            }
        }
        let secrets = content.join("configuration/secrets");
        if secrets.exists()
            && (component.has(Component::Configuration) || component.has(Component::Database))
        {
            swap(&secrets, "secrets")?;
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
            swap(&checkpoints, "checkpoints")?;
        }
        fs::File::open(&self.state)
            .and_then(|dir| dir.sync_all())
            .map_err(Error::path("cannot sync", &self.state))?;
        before("clean");
        clear(staging)?;
        Ok(aside.exists().then(|| aside.clone()))
    }
}

/// A backup that lies beside the state, whole and checked.
#[derive(Clone, Debug)]
pub struct Prepared {
    staging: PathBuf,
    content: PathBuf,
    aside: PathBuf,
    component: Component,
}
