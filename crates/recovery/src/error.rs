//! What can go wrong in recovery itself.

use std::path::PathBuf;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The journal could not be read or written.
    #[error("the recovery journal cannot {action}")]
    Journal {
        /// What was being done.
        action: &'static str,
        /// Why it failed.
        source: rusqlite::Error,
    },
    /// The journal's file could not be opened, or is no journal.
    #[error("the recovery journal {} cannot be opened", path.display())]
    OpenJournal {
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: rusqlite::Error,
    },
    /// The journal holds something that this program does not understand.
    #[error("the recovery journal holds something unreadable: {0}; nothing was changed")]
    Corrupt(String),
    /// A step was not in a state from which it could go on.
    #[error("step {step} of the runbook cannot go from {from} to {to}")]
    Transition {
        /// Which step.
        step: String,
        /// Its state.
        from: &'static str,
        /// The state asked for.
        to: &'static str,
    },
    /// Another controller works on the same state folder.
    #[error("another resurgam (process {pid}) works on {}; stop it first, or choose another deployment.state_dir", dir.display())]
    InUse {
        /// The folder.
        dir: PathBuf,
        /// The other one.
        pid: u32,
    },
    /// Something about the deployment.
    #[error(transparent)]
    Deployment(#[from] resurgam_deployment::Error),
    /// A file could not be used.
    #[error("{action} {}", path.display())]
    Path {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// It did not become as it must in time.
    #[error("{0}")]
    Timeout(String),
    /// The drill could not be carried out.
    #[error("{0}")]
    Drill(String),
}

/// What calls in recovery return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// For `map_err` on file operations.
    pub(crate) fn path(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Path { action, path, source }
    }
}
