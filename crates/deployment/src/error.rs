//! What can go wrong where the platform runs.

use std::path::PathBuf;

use resurgam_model::ComponentName;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The deployment has no such component.
    #[error("the deployment has no component {0}")]
    UnknownComponent(ComponentName),
    /// The deployment has no such service.
    #[error("the deployment has no service {0:?}")]
    UnknownService(String),
    /// A process could not be started.
    #[error("{program} could not be started")]
    Spawn {
        /// The program.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// A file or folder could not be used.
    #[error("{action} {}", path.display())]
    Path {
        /// What was being done, such as "cannot create".
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// An address could not be listened on.
    #[error("cannot listen on {address}; free the port or choose another")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Programs of others that are needed are missing or too old.
    #[error("{0}")]
    Programs(String),
    /// One of them failed.
    #[error("{program} failed ({status}): {output}")]
    Program {
        /// Which.
        program: String,
        /// How it ended.
        status: String,
        /// The end of what it printed.
        output: String,
    },
    /// PostgreSQL refused, or the connection broke.
    #[error("PostgreSQL failed to {action}")]
    Postgres {
        /// What was being done.
        action: &'static str,
        /// Why it failed.
        source: tokio_postgres::Error,
    },
    /// Something did not happen in time.
    #[error("{0}")]
    Timeout(String),
    /// The state on disk is not what it must be.
    #[error("{0}")]
    State(String),
}

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
