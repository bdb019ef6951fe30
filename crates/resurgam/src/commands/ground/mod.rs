//! Where drills take place: a temporary deployment, one that somebody has, or a copy of that.

mod copy;
mod turn;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use resurgam_deployment::brokers::{KafkaPrograms, RabbitPrograms};
use resurgam_model::bus::BusKind;
use resurgam_model::plan::{Drills, EffectivePlan, Plan, StoreKind, variables};
use resurgam_model::report::DrillReport;
use resurgam_model::{Scenario, Timestamp};
use resurgam_recovery::disk::Space;
use resurgam_recovery::drill::subject::Address;
use resurgam_recovery::drill::{Subject, fill, history};
use tempfile::TempDir;

use crate::failure::Failure;
use crate::output;
use crate::plan::Loaded;

/// So much of the disk may be taken by others while a drill fills it.
const MARGIN_MB: u64 = 1000;
/// The file with the password of the vault in a temporary folder.
const PASSWORD: &str = "vault-password";
/// That vault, in words of a plan.
const VAULT: &str = "name = \"drill\"\npath = \"vault\"\npassword_file = \"vault-password\"\n";

pub(crate) use self::turn::{Turn, abort};

/// Where a drill takes place.
pub(crate) struct Ground {
    plan: Plan,
    plan_file: PathBuf,
    state_dir: PathBuf,
    temporary: Option<TempDir>,
    /// The state folder of the deployment that it is a copy of.
    of: Option<PathBuf>,
}

impl Ground {
    /// A temporary folder with a plan in it.
    pub(crate) fn temporary(plan_text: &str) -> Result<Self, Failure> {
        let dir = folder()?;
        let plan_file = dir.path().join("resurgam.toml");
        std::fs::write(&plan_file, plan_text)?;
        let plan = EffectivePlan::resolve(Some(plan_text), |_| None)?.plan;
        let state_dir = dir.path().join(&plan.deployment.state_dir);
        Ok(Self { plan, plan_file, state_dir, temporary: Some(dir), of: None })
    }

    /// The deployment of somebody's plan, if that allows drills.
    pub(crate) fn of_plan(file: &Path) -> Result<Self, Failure> {
        let loaded = Loaded::read(Some(file))?;
        let plan = loaded.plan().clone();
        if plan.deployment.drills != Drills::Allowed {
            return Err(Failure::refused(format!(
                "the plan {} does not allow drills; if this deployment may be broken on purpose, set deployment.drills = \"allowed\" in it",
                file.display()
            )));
        }
        let built_in = plan.workers.exec.is_empty();
        if !built_in || !plan.workers.capabilities.iter().any(|c| c.as_str() == "sha256") {
            return Err(Failure::refused(
                "a drill's load needs workers with the built-in sha256; drill without --plan, or with a plan that has them",
            ));
        }
        open_to_drills(&plan)?;
        let state_dir = loaded.state_dir();
        let plan_file = loaded.file.unwrap_or_else(|| file.to_owned());
        Ok(Self { plan, plan_file, state_dir, temporary: None, of: None })
    }

    /// Whether this scenario can be drilled on it.
    pub(crate) fn fits(&self, scenario: Scenario) -> Result<(), Failure> {
        let folder = self.state_dir.ancestors().find(|dir| dir.is_dir());
        let folder = folder.unwrap_or(Path::new("/"));
        fits_plan(&self.plan, &self.plan_file, folder, scenario)?;
        let running = Address::read(&self.state_dir);
        if scenario == Scenario::Controller && running.is_some_and(|address| !address.is_guarded())
        {
            return Err(Failure::refused(
                "nobody would start the controller again: end it, and start it with: resurgam up --guard",
            ));
        }
        if matches!(scenario, Scenario::FullStop | Scenario::FullCluster)
            && Address::read(&self.state_dir).is_some()
        {
            return Err(Failure::refused(format!(
                "{scenario} would end a deployment that somebody else started, and who alone can start it again; end it first, and the drill starts it itself, or drill a copy with --copy"
            )));
        }
        Ok(())
    }
    /// Whose history it belongs to; none of a temporary deployment that is nobody's copy.
    fn remembers(&self) -> Option<&Path> {
        match (&self.of, &self.temporary) {
            (Some(of), _) => Some(of),
            (None, Some(_)) => None,
            (None, None) => Some(&self.state_dir),
        }
    }

    /// The history as it is before a drill that may lose it; none where none is kept.
    pub(crate) fn history(&self) -> Result<Option<Vec<u8>>, Failure> {
        let Some(state_dir) = self.remembers() else { return Ok(None) };
        match std::fs::read(history::file(state_dir)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Some(Vec::new())),
            Err(error) => Err(Failure::new(format!(
                "cannot read {}: {error}",
                history::file(state_dir).display()
            ))),
        }
    }

    /// Adds the report to the history. A drill that takes the state folder away takes no history.
    pub(crate) fn remember(
        &self,
        before: &[u8],
        report: Option<&DrillReport>,
    ) -> Result<(), Failure> {
        let Some(state_dir) = self.remembers() else { return Ok(()) };
        let file = history::file(state_dir);
        let failed = |error| Failure::new(format!("cannot write {}: {error}", file.display()));
        if !before.is_empty() && state_dir.is_dir() && !file.exists() {
            std::fs::write(&file, before).map_err(failed)?;
        }
        match report {
            Some(report) => history::append(state_dir, report).map_err(failed),
            None => Ok(()),
        }
    }

    /// Starts it, or joins it where it runs. What a drill of the controller needs is a guard.
    pub(crate) async fn start(&self, guarded: bool) -> Result<Subject, Failure> {
        // The temporary plan is complete: what the caller's environment says is not for it.
        let env = match &self.temporary {
            Some(_) => variables().map(|name| (name.to_owned(), String::new())).collect(),
            None => Vec::new(),
        };
        let program = std::env::current_exe()?;
        let (plan_file, plan) = (self.plan_file.clone(), self.plan.clone());
        let state_dir = self.state_dir.clone();
        let subject = Subject::start(program, plan_file, plan, state_dir, env, guarded).await?;
        // What is broken already is not broken further.
        if !subject.is_own()
            && let Some(open) = subject.status().await?.incidents.first()
        {
            return Err(Failure::refused(format!(
                "the incident {} ({}) is open there; drill when it is closed: resurgam incident watch {}",
                open.id, open.scenario, open.id
            )));
        }
        Ok(subject)
    }

    /// Ends whatever is left of a deployment of our own, and removes its folder, or says where
    /// it is. A deployment of somebody's plan is left alone.
    pub(crate) async fn clear(self, keep: bool) -> Result<(), Failure> {
        let Some(dir) = self.temporary else { return Ok(()) };
        resurgam_recovery::drill::fault::clear(dir.path()).await?;
        if keep {
            output::note(&format!("kept {}", dir.keep().display()));
            return Ok(());
        }
        Ok(dir.close()?)
    }
}

/// Whether a deployment of this plan, in this folder, has what the scenario is about.
pub(crate) fn fits_plan(
    plan: &Plan,
    file: &Path,
    folder: &Path,
    scenario: Scenario,
) -> Result<(), Failure> {
    if scenario == Scenario::DiskFilling {
        fill::needed(folder, plan.disk.min_free_mb)?;
    }
    if scenario.is_of_postgres() && plan.store.kind != StoreKind::Postgres {
        return Err(Failure::usage(format!(
            "the plan {} runs no PostgreSQL of its own; set store.kind = \"postgres\" to drill {scenario}",
            file.display()
        )));
    }
    fits_brokers(plan, scenario)?;
    let restores = matches!(
        scenario,
        Scenario::FullCluster | Scenario::PostgresRestore | Scenario::DatabaseCorruption
    );
    if restores && plan.backup.vaults.is_empty() {
        return Err(Failure::usage(format!(
            "the plan {} has no vault; {scenario} restores from one, so add it under [[backup.vaults]]",
            file.display()
        )));
    }
    Ok(())
}

/// Whether the plan lets a deployment of it, or a copy, be drilled at all.
pub(crate) fn allowed(file: &Path, copied: bool) -> Result<(), Failure> {
    match copied {
        true => copy::allowed(&Loaded::read(Some(file))?),
        false => Ground::of_plan(file).map(drop),
    }
}

/// A temporary folder, with a password for a vault in it.
fn folder() -> Result<TempDir, Failure> {
    let dir = tempfile::Builder::new().prefix("resurgam-").tempdir()?;
    // PostgreSQL runs as another user when we are root.
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711))?;
    let password = dir.path().join(PASSWORD);
    std::fs::write(&password, "")?;
    std::fs::set_permissions(&password, std::fs::Permissions::from_mode(0o600))?;
    std::fs::write(&password, uuid::Uuid::new_v4().simple().to_string())?;
    Ok(dir)
}

/// No blackout of the plan lasts at this moment.
fn open_to_drills(plan: &Plan) -> Result<(), Failure> {
    match plan.blackout(Timestamp::now()) {
        None => Ok(()),
        Some((blackout, until)) => Err(Failure::refused(format!(
            "no drill may begin before {until}: the blackout {} of the plan lasts until then",
            blackout.name
        ))),
    }
}

/// Whether the deployment runs the brokers that the scenario is about.
fn fits_brokers(plan: &Plan, scenario: Scenario) -> Result<(), Failure> {
    let bus = &plan.bus;
    let (kind, own, needed, key) = match scenario {
        Scenario::KafkaBroker => (BusKind::Kafka, bus.kafka.brokers, 3, "bus.kafka.brokers"),
        Scenario::KafkaCluster => (BusKind::Kafka, bus.kafka.brokers, 1, "bus.kafka.brokers"),
        Scenario::RabbitMq => (BusKind::RabbitMq, bus.rabbitmq.nodes, 1, "bus.rabbitmq.nodes"),
        _ => return Ok(()),
    };
    if bus.order.contains(&kind) && own >= needed {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "{scenario} needs brokers that the deployment runs itself; set {key} to {needed} or more, and name {kind} in bus.order"
    )))
}

/// The plan of a temporary deployment.
pub(crate) struct Makeshift {
    /// PostgreSQL, rather than SQLite.
    pub(crate) postgres: bool,
    /// How many standbys it has.
    pub(crate) standbys: u16,
    /// Whether commits wait for one.
    pub(crate) synchronous: bool,
    /// Kafka, and RabbitMQ for when it is lost.
    pub(crate) brokers: bool,
    /// The disk is to be filled: nearly as much is to be free as is.
    pub(crate) fills: bool,
}

impl Makeshift {
    /// In words of a plan. Programs that it needs are looked for before anything is made.
    pub(crate) fn plan(&self) -> Result<String, Failure> {
        if self.postgres {
            resurgam_deployment::postgres::Programs::find(None)?;
        }
        let mut bus = "";
        if self.brokers {
            KafkaPrograms::find(None)?;
            RabbitPrograms::find(None)?;
            bus = "\n[bus]\norder = [\"kafka\", \"rabbitmq\"]\nclose_after = \"2s\"\nreturn_after = \"5s\"\n\n[bus.kafka]\nbrokers = 3\n\n[bus.rabbitmq]\nnodes = 1\n";
        }
        // Its folder is gone soon, and how full the disk is has nothing to do with it.
        let mut min = 0;
        if self.fills {
            let space = Space::of(&std::env::temp_dir(), 0)?;
            min = (space.free / 1_000_000).saturating_sub(MARGIN_MB).max(1);
        }
        let store = if self.postgres { "postgres" } else { "sqlite" };
        Ok(format!(
            "[deployment]\ndrills = \"allowed\"\nstate_dir = \"state\"\n\n[store]\nkind = \"{store}\"\n\n[postgres]\nsynchronous = {}\nstandbys = {}\n\n[backup]\nscheduled = false\n\n[[backup.vaults]]\n{VAULT}{bus}\n[disk]\nmin_free_mb = {min}\n",
            self.synchronous, self.standbys,
        ))
    }
}
