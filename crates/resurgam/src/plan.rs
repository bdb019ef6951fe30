//! Finds and reads the plan.

use std::path::{Path, PathBuf};

use resurgam_model::plan::{EffectivePlan, Plan};

use crate::failure::Failure;

/// The file that is taken without being named.
const DEFAULT: &str = "resurgam.toml";

/// The plan in force and the folder from which its relative paths start.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    pub(crate) effective: EffectivePlan,
    pub(crate) file: Option<PathBuf>,
    base: PathBuf,
}

impl Loaded {
    /// Reads the named file, or the default one if there is one, or none.
    pub(crate) fn read(file: Option<&Path>) -> Result<Self, Failure> {
        let file = match file {
            Some(file) => Some(file.to_owned()),
            None => Some(PathBuf::from(DEFAULT)).filter(|file| file.exists()),
        };
        let text = match &file {
            None => None,
            Some(file) => Some(std::fs::read_to_string(file).map_err(|error| {
                Failure::usage(format!(
                    "the plan {} cannot be read: {error}; name another with --plan, or leave it out to run embedded",
                    file.display()
                ))
            })?),
        };
        let effective = EffectivePlan::resolve(text.as_deref(), |name| std::env::var(name).ok())
            .map_err(|error| match &file {
                Some(file) => Failure::usage(format!("{}: {error}", file.display())),
                None => Failure::usage(error.to_string()),
            })?;
        let parent = file.as_deref().and_then(Path::parent).map(Path::to_owned);
        let base = parent.filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| ".".into());
        let base = std::path::absolute(&base).map_err(|error| {
            Failure::usage(format!("{} cannot be used: {error}", base.display()))
        })?;
        Ok(Self { effective, file, base })
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.effective.plan
    }

    /// Has every vault opened with the password in this file, in place of the plan's own ways to one.
    pub(crate) fn with_password(&mut self, file: &Path) -> Result<(), Failure> {
        let file = std::path::absolute(file)?;
        for vault in &mut self.effective.plan.backup.vaults {
            vault.password_file = Some(file.clone());
            vault.password_env = None;
            vault.password_command = Vec::new();
        }
        Ok(())
    }

    /// A path of the plan, which starts at the plan file's folder unless it is absolute.
    pub(crate) fn path(&self, path: &Path) -> PathBuf {
        self.base.join(path)
    }

    /// Where everything that lasts is kept.
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.base.join(&self.plan().deployment.state_dir)
    }
}
