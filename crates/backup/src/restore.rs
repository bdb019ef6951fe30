//! Puts a backup in the place of what is there.
//!
//! What is there is never removed: it is moved aside, and stays there until a person takes it away.
//! Every step looks first, so that a restore that was cut off anywhere is finished by doing it again.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::{fmt, fs};

use resurgam_deployment::postgres::data::{Layout, give_all};
use resurgam_deployment::postgres::{Programs, Secrets};
use resurgam_model::Timestamp;

use crate::log::replay::{Reached, Target as ReplayTarget, Way, replay, size_of};
use crate::log::store::LogStore;
use crate::manifest::Database;
use crate::take::{clear, inspect_sqlite, make, verify_base_backup};
use crate::vault::{Backup, Proof, Vault};
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
    /// Whether this part is in it.
    #[must_use]
    pub fn has(self, part: Self) -> bool {
        self == Self::All || self == part
    }
}

/// What is restored: a backup, and the log that brings its database further.
#[derive(Clone, Debug)]
pub struct Point {
    /// The backup.
    pub backup: Backup,
    /// The log, of PostgreSQL whose log is in the vault.
    pub replay: Option<Replay>,
}

/// How a restored database is brought to its moment.
#[derive(Clone, Debug)]
pub struct Replay {
    /// The log.
    pub store: LogStore,
    /// The part of it; none if only the backup itself is wanted.
    pub way: Option<Way>,
    /// The moment.
    pub target: ReplayTarget,
}

/// Which moment is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// That of a backup, as it was taken.
    Backup(String),
    /// The last one that can be had.
    Latest,
    /// This one.
    At(Timestamp),
}

impl Point {
    /// How a wish comes true, by a vault's backups, the newest first, and its log; along the newest
    /// timeline, if none is named. The newest backup from which one gets there is taken, for it is
    /// the quickest.
    ///
    /// # Errors
    /// When the vault has no way to that moment.
    pub fn choose(
        vault: &Vault,
        backups: &[Backup],
        wish: &Wish,
        timeline: Option<u32>,
    ) -> Result<Self> {
        let good = |backup: &&Backup| !matches!(backup.proof, Proof::Bad(_));
        let no = |reason: String| {
            let (vault, action) = (vault.name().to_owned(), "give that");
            Err(Error::Vault { vault, action, reason })
        };
        if backups.is_empty() {
            return no("it has no backup; take one with: resurgam backup run".to_owned());
        }
        match wish {
            Wish::Backup(id) => match backups.iter().find(|backup| backup.id == *id) {
                Some(backup) => Self::of(vault, backup, ReplayTarget::Backup, timeline),
                None => no(format!("it has no backup {id}")),
            },
            Wish::Latest => {
                let mut these = backups.iter().filter(good);
                let Some(newest) = these.next() else {
                    return no("it has no backup that is not known to be bad".to_owned());
                };
                let first = Self::of(vault, newest, ReplayTarget::End, timeline)?;
                // One that was taken before a restore to an earlier moment leads nowhere.
                let system = |backup: &Backup| backup.manifest.log.clone().map(|log| log.system);
                if first.replay.as_ref().is_some_and(|replay| replay.way.is_none()) {
                    for backup in these.filter(|backup| system(backup) == system(newest)) {
                        let point = Self::of(vault, backup, ReplayTarget::End, timeline)?;
                        if point.replay.as_ref().is_some_and(|replay| replay.way.is_some()) {
                            return Ok(point);
                        }
                    }
                }
                Ok(first)
            }
            Wish::At(at) => {
                let before =
                    |backup: &&Backup| backup.manifest.whole_at.unwrap_or(backup.taken_at) <= *at;
                for backup in backups.iter().filter(good).filter(before) {
                    let point = Self::of(vault, backup, ReplayTarget::Time(*at), timeline)?;
                    if point.replay.as_ref().is_some_and(|replay| replay.way.is_some()) {
                        return Ok(point);
                    }
                }
                no(format!(
                    "it has no backup from before {at} with a log that goes on from it; see: resurgam backup list"
                ))
            }
        }
    }

    fn of(
        vault: &Vault,
        backup: &Backup,
        target: ReplayTarget,
        timeline: Option<u32>,
    ) -> Result<Self> {
        let backup = backup.clone();
        let Some(range) = backup.manifest.log.clone() else {
            return Ok(Self { backup, replay: None });
        };
        if !vault.logs()?.contains(&range.system) {
            return Ok(Self { backup, replay: None });
        }
        let store = vault.log(&range.system, size_of(&range)?)?;
        let way = match target {
            ReplayTarget::Backup => None,
            ReplayTarget::End | ReplayTarget::Time(_) => store.way(&range, timeline)?.way(),
        };
        // Without a way on, there is the backup.
        let target = match way {
            None if target == ReplayTarget::End => ReplayTarget::Backup,
            _ => target,
        };
        Ok(Self { backup, replay: Some(Replay { store, way, target }) })
    }

    /// Up to when the vault has all that was acknowledged for it, as far as is known.
    ///
    /// # Errors
    /// When the vault cannot be read.
    pub fn whole_until(&self) -> Result<Timestamp> {
        let own = self.backup.taken_at;
        let Some(Replay { store, way: Some(way), .. }) = &self.replay else { return Ok(own) };
        let reached = store
            .as_of()?
            .filter(|as_of| as_of.timeline == way.lineage.timeline() && way.chain.end >= as_of.end);
        // How late its end was is not known otherwise.
        let at_least = self.backup.manifest.whole_at.unwrap_or(own);
        Ok(reached.map_or(at_least, |as_of| as_of.at.max(own)))
    }

    /// The database is brought further than the backup.
    #[must_use]
    pub fn goes_on(&self) -> bool {
        self.moves_on(Component::Database)
    }

    /// The database will be of a later moment than the files of the backup.
    fn moves_on(&self, component: Component) -> bool {
        let later = |replay: &Replay| replay.target != ReplayTarget::Backup;
        component.has(Component::Database) && self.replay.as_ref().is_some_and(later)
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
    pub fn replaced(&self, point: &Point, component: Component) -> Vec<PathBuf> {
        let mut paths = Vec::new();
        if component.has(Component::Database) {
            paths.push(if self.postgres.is_some() { "postgres" } else { "store" });
        }
        // The passwords go with the database that knows them.
        if component.has(Component::Configuration) || component.has(Component::Database) {
            paths.push("secrets");
        }
        if component.has(Component::State) || point.moves_on(component) {
            paths.push("checkpoints");
        }
        paths.into_iter().map(|name| self.state.join(name)).filter(|path| path.exists()).collect()
    }

    /// Restores a backup beside the state, brings it to its moment, and checks everything. Nothing
    /// that is there is touched.
    ///
    /// # Errors
    /// When the backup is of another kind of database, it or the log is damaged, or the log does not
    /// reach the moment.
    pub async fn prepare(
        &self,
        vault: &Vault,
        point: &Point,
        component: Component,
    ) -> Result<Prepared> {
        let backup = &point.backup;
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
        let log = point.replay.as_ref().filter(|_| component.has(Component::Database));
        let reached = match (log, &self.postgres) {
            (Some(log), Some((programs, _))) => {
                let range = backup.manifest.log.as_ref().ok_or_else(|| {
                    Error::Unusable(format!(
                        "the backup {} does not say where in the log it lies",
                        backup.id
                    ))
                })?;
                let secrets = Secrets::load(&content.join("configuration/secrets/postgres.json"))?;
                let data = content.join("database/data");
                let log = (&log.store, log.way.as_ref(), log.target);
                Some(replay(programs, &data, &staging, log, range, &secrets).await?)
            }
            _ => None,
        };
        // What takes the place of something else is on disk before.
        fs::File::open(&content)
            .and_then(|dir| Ok(rustix::fs::syncfs(dir)?))
            .map_err(Error::path("cannot sync", &content))?;
        // As fine as it gets: two restores within a second must not share a folder.
        let now = resurgam_model::Timestamp::now().strftime("%Y%m%dT%H%M%S%.6fZ");
        let aside = self.state.join("set-aside").join(format!("before-{}-{now}", backup.id));
        let fresh_checkpoints = point.moves_on(component);
        Ok(Prepared { staging, content, aside, component, reached, fresh_checkpoints })
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
        let Prepared { staging, content, aside, component, .. } = prepared;
        let put_aside = |name: &str| {
            let place = self.state.join(name);
            before(&format!("aside-{name}"));
            if place.exists() {
                make(aside.parent().unwrap_or(aside), 0o700)?;
                make(aside, 0o700)?;
                fs::rename(&place, aside.join(name))
                    .map_err(Error::path("cannot put aside", &place))?;
            }
            Ok::<_, Error>(place)
        };
        let swap = |new: &Path, name: &str| {
            let place = put_aside(name)?;
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
        if prepared.fresh_checkpoints {
            // The database knows them, and better: they are written anew when it is up.
            put_aside("checkpoints")?;
        } else if checkpoints.exists() && component.has(Component::State) {
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

/// The file in a data folder that says for what it was restored.
const MARK: &str = "resurgam.restored";

impl Target {
    /// Puts the prepared database in the place of an instance's data, while everything else goes on.
    /// The instance must be at rest. What is there moves aside; the folder with it is returned.
    /// `mark` says for what it is done.
    ///
    /// # Errors
    /// When a file cannot be moved, or the backup knows other passwords than the deployment.
    pub fn put_instance(&self, prepared: &Prepared, mark: &str) -> Result<Option<PathBuf>> {
        let Some((programs, instance)) = &self.postgres else {
            return Err(Error::Unusable("the plan has no PostgreSQL of its own".to_owned()));
        };
        let Prepared { staging, content, aside, .. } = prepared;
        let read = |path: &Path| Secrets::load(path);
        let theirs = read(&content.join("configuration/secrets/postgres.json"))?;
        if theirs != read(&self.state.join("secrets/postgres.json"))? {
            return Err(Error::Unusable(
                "the backup knows other passwords than the deployment; end it, and restore by hand with: resurgam restore --latest".to_owned(),
            ));
        }
        // Fenced before it is in its place, where somebody might start it.
        let beside = Layout::new(content.join("instance"));
        make(&content.join("instance"), 0o711)?;
        let source = content.join("database/data");
        fs::rename(&source, beside.data()).map_err(Error::path("cannot move", source))?;
        let file = beside.data().join(MARK);
        fs::write(&file, mark).map_err(Error::path("cannot write", file))?;
        beside.adopt(programs)?;
        let dir = self.state.join("postgres").join(instance);
        make(&dir, 0o700)?;
        let place = Layout::new(dir.clone());
        let data = place.data();
        let mut moved = None;
        if data.exists() {
            make(aside.parent().unwrap_or(aside), 0o700)?;
            make(aside, 0o700)?;
            fs::rename(&data, aside.join("data"))
                .map_err(Error::path("cannot put aside", &data))?;
            moved = Some(aside.clone());
        }
        fs::rename(beside.data(), &data).map_err(Error::path("cannot move to its place", &data))?;
        place.adopt(programs)?;
        fs::File::open(&dir)
            .and_then(|dir| dir.sync_all())
            .map_err(Error::path("cannot sync", &dir))?;
        clear(staging)?;
        Ok(moved)
    }

    /// Moves the data of the instance aside, so that it has none. The instance must be at rest. The
    /// folder with it is returned, none if it had none.
    ///
    /// # Errors
    /// When it cannot be moved.
    pub fn set_aside(&self, why: &str) -> Result<Option<PathBuf>> {
        let Some((_, instance)) = &self.postgres else { return Ok(None) };
        let data = Layout::new(self.state.join("postgres").join(instance)).data();
        if !data.exists() {
            return Ok(None);
        }
        let now = Timestamp::now().strftime("%Y%m%dT%H%M%S%.6fZ");
        let aside = self.state.join("set-aside").join(format!("{why}-{instance}-{now}"));
        make(aside.parent().unwrap_or(&aside), 0o700)?;
        make(&aside, 0o700)?;
        fs::rename(&data, aside.join("data")).map_err(Error::path("cannot put aside", &data))?;
        Ok(Some(aside))
    }

    /// Whether the instance has data that were restored for this.
    #[must_use]
    pub fn is_restored(&self, mark: &str) -> bool {
        let Some((_, instance)) = &self.postgres else { return false };
        let data = Layout::new(self.state.join("postgres").join(instance)).data();
        fs::read_to_string(data.join(MARK)).is_ok_and(|text| text == mark)
    }
}

/// A backup that lies beside the state, whole and checked.
#[derive(Clone, Debug)]
pub struct Prepared {
    staging: PathBuf,
    content: PathBuf,
    aside: PathBuf,
    component: Component,
    reached: Option<Reached>,
    fresh_checkpoints: bool,
}

impl Prepared {
    /// Where the replay of the log ended, if there was one.
    #[must_use]
    pub fn reached(&self) -> Option<&Reached> {
        self.reached.as_ref()
    }
}
