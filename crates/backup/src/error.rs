//! What can go wrong with backups.

use std::path::PathBuf;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The password could not be had. The text does not hold it.
    #[error("the password of the vault {vault} cannot be had: {reason}")]
    Password {
        /// Which vault.
        vault: String,
        /// Why, and what to do.
        reason: String,
    },
    /// The password is not that of any key of the vault.
    #[error(
        "the password does not open the vault {vault}; was its key changed? An older password may still be in escrow"
    )]
    WrongPassword {
        /// Which vault.
        vault: String,
    },
    /// There is no vault at that place.
    #[error("there is no vault at {place}; make it with: resurgam vault init {vault}")]
    NoVault {
        /// Which.
        vault: String,
        /// Where it should be.
        place: String,
    },
    /// The credentials for a vault's object store could not be had. The text does not hold them.
    #[error("the credentials for the vault {vault} cannot be had: {reason}")]
    Credentials {
        /// Which vault.
        vault: String,
        /// Why, and what to do.
        reason: String,
    },
    /// An object store refused something, or did not answer.
    #[error("{place} cannot {action}: {reason}")]
    Store {
        /// What was being done.
        action: &'static str,
        /// The part of a bucket.
        place: String,
        /// Why it failed.
        reason: String,
    },
    /// The vault could not be used.
    #[error("the vault {vault} cannot {action}: {reason}")]
    Vault {
        /// Which vault.
        vault: String,
        /// What was being done.
        action: &'static str,
        /// Why it failed.
        reason: String,
    },
    /// Somebody else works on the vault or takes a backup.
    #[error("{what}; wait until it has ended")]
    Busy {
        /// Who does what.
        what: String,
    },
    /// What was to be backed up is not as it must be.
    #[error("{0}")]
    Unusable(String),
    /// Damage was found. Nothing else makes a backup bad.
    #[error("{what} is damaged: {how}")]
    Damaged {
        /// What.
        what: String,
        /// What was found.
        how: String,
    },
    /// The log ends before the moment that was asked for.
    #[error(
        "the log in the vault ends before {wanted}{}; name an earlier moment, or restore all of it with --latest", .last.as_ref().map(|last| format!(": the last transaction in it was at {last}")).unwrap_or_default()
    )]
    Unreached {
        /// The moment.
        wanted: resurgam_model::Timestamp,
        /// When the last transaction in it was, in PostgreSQL's words.
        last: Option<String>,
    },
    /// What was to be backed up is damaged.
    #[error("the database is damaged on its disk, so it was not backed up: {how}")]
    DamagedSource {
        /// What was found.
        how: String,
    },
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
    /// SQLite failed.
    #[error("the SQLite database {} cannot {action}", path.display())]
    Sqlite {
        /// Which.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// Why it failed.
        source: rusqlite::Error,
    },
    /// PostgreSQL refused something.
    #[error("the restored PostgreSQL cannot {action}")]
    Postgres {
        /// What was being done.
        action: &'static str,
        /// Why it failed.
        source: tokio_postgres::Error,
    },
    /// A program of PostgreSQL failed.
    #[error("{program} failed ({how}): {output}")]
    Program {
        /// Which.
        program: String,
        /// How it ended.
        how: String,
        /// The end of what it said.
        output: String,
    },
    /// Something about the deployment.
    #[error(transparent)]
    Deployment(#[from] resurgam_deployment::Error),
}

/// What calls for backups return.
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
