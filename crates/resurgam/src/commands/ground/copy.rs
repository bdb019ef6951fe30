//! A copy of somebody's deployment, restored from its last backup: drills break it, and the deployment
//! itself is left alone.

use std::path::Path;
use std::process::Stdio;

use resurgam_model::bus::BusKind;
use resurgam_model::plan::{
    Alerts, Api, Backup, Drills, EffectivePlan, Plan, StoreKind, Workers, variables,
};

use super::{Ground, VAULT, folder, open_to_drills};
use crate::failure::Failure;
use crate::output::Progress;
use crate::plan::Loaded;

/// The state folder of the copy.
const STATE: &str = "state";

impl Ground {
    /// Makes one in a temporary folder.
    pub(crate) async fn copy_of(file: &Path, progress: &Progress) -> Result<Self, Failure> {
        let loaded = Loaded::read(Some(file))?;
        allowed(&loaded)?;
        let dir = folder()?;
        let plan_file = dir.path().join("resurgam.toml");
        progress.say("restoring the last backup into a copy");
        // First with the vaults of the deployment, from which it only reads.
        let write = |plan: &Plan| -> Result<(), Failure> {
            let text = toml::to_string(plan).map_err(|error| Failure::new(error.to_string()))?;
            EffectivePlan::resolve(Some(&text), |_| None)?;
            Ok(std::fs::write(&plan_file, text)?)
        };
        write(&apart(&loaded, loaded.plan().backup.vaults.clone()))?;
        restore(&plan_file).await?;
        // It must not take the addresses of the deployment, should that be down just now.
        match std::fs::remove_file(dir.path().join(STATE).join("ports.json")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        // And from now on with one of its own.
        let own = toml::from_str(VAULT).map_err(|error| Failure::new(error.to_string()))?;
        let mut plan = apart(&loaded, Vec::new());
        plan.backup.vaults = vec![own];
        write(&plan)?;
        let state_dir = dir.path().join(STATE);
        let of = Some(loaded.state_dir());
        Ok(Self { plan, plan_file, state_dir, temporary: Some(dir), of })
    }
}

/// Whether a copy can be made, and may be broken now.
pub(super) fn allowed(loaded: &Loaded) -> Result<(), Failure> {
    if loaded.plan().store.kind == StoreKind::External {
        return Err(Failure::refused(
            "an external database is not backed up from here, so there is nothing to make a copy from",
        ));
    }
    if loaded.plan().backup.vaults.is_empty() {
        return Err(Failure::usage(
            "a copy is restored from the last backup, but the plan has no vault; add one under [[backup.vaults]]",
        ));
    }
    open_to_drills(loaded.plan())
}

/// The plan of the copy: the same database, brokers and objectives; nothing that reaches others.
fn apart(loaded: &Loaded, vaults: Vec<resurgam_model::plan::Vault>) -> Plan {
    let mut plan = loaded.plan().clone();
    plan.deployment.state_dir = STATE.into();
    plan.deployment.drills = Drills::Allowed;
    plan.deployment.controller_port = 0;
    plan.api = Api { max_payload_bytes: plan.api.max_payload_bytes, ..Api::default() };
    // What waits in the queue must not be done a second time: only what has no effect is worked on.
    let usual = Workers::default();
    plan.workers.exec = usual.exec;
    plan.workers.capabilities = usual.capabilities;
    plan.notify = Vec::new();
    plan.alerts = Alerts::default();
    plan.drills = Vec::new();
    plan.blackouts = Vec::new();
    plan.postgres.bin_dir = plan.postgres.bin_dir.map(|dir| loaded.path(&dir));
    plan.bus.kafka.home = plan.bus.kafka.home.map(|dir| loaded.path(&dir));
    plan.bus.rabbitmq.home = plan.bus.rabbitmq.home.map(|dir| loaded.path(&dir));
    // Brokers that run elsewhere carry the messages of the deployment.
    let (kafka, rabbitmq) = (plan.bus.kafka.brokers > 0, plan.bus.rabbitmq.nodes > 0);
    plan.bus.order.retain(|bus| match bus {
        BusKind::Kafka => kafka,
        BusKind::RabbitMq => rabbitmq,
        BusKind::Embedded => true,
    });
    if plan.bus.order.is_empty() {
        plan.bus.order = vec![BusKind::Embedded];
    }
    let absolute = |mut vault: resurgam_model::plan::Vault| {
        for path in [&mut vault.path, &mut vault.password_file, &mut vault.credentials_file] {
            *path = path.as_deref().map(|path| loaded.path(path));
        }
        vault
    };
    plan.backup = Backup {
        scheduled: false,
        vaults: vaults.into_iter().map(absolute).collect(),
        ..plan.backup
    };
    plan
}

/// By the command that people use.
async fn restore(plan_file: &Path) -> Result<(), Failure> {
    let mut command = tokio::process::Command::new(std::env::current_exe()?);
    command
        .args(["restore", "--latest", "--yes", "--plan"])
        .arg(plan_file)
        // What the environment says is for the deployment.
        .envs(variables().map(|name| (name, "")))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let output = command.output().await?;
    if output.status.success() {
        return Ok(());
    }
    let told = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(format!("the copy could not be restored:\n{}", told.trim())))
}
