//! PostgreSQL's own programs: where they are, how old, and as whom to run them.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The oldest version that is supported.
pub const OLDEST: u32 = 15;

/// Folders of distributions, searched when neither `PATH` nor `pg_config` helps.
const PACKAGED: [&str; 3] = ["/usr/lib/postgresql", "/usr", "/opt/postgresql"];

/// Those that are used.
const NEEDED: [&str; 5] = ["postgres", "initdb", "pg_basebackup", "pg_controldata", "pg_rewind"];

/// A user that is not root: PostgreSQL refuses to run as root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Its name.
    pub name: String,
    /// Its number.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// PostgreSQL's programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Programs {
    /// Their folder.
    pub bin_dir: PathBuf,
    /// The major version, such as 15.
    pub version: u32,
    /// As whom to run them; none to stay who we are.
    pub user: Option<User>,
}

impl Programs {
    /// Finds them: in `bin_dir` if given, else on `PATH`, by `pg_config`, or in the folders of
    /// distributions, where the newest version wins.
    ///
    /// # Errors
    /// When there are none, some are missing, they are too old, or we are root and there is no
    /// other user to run them as.
    pub fn find(bin_dir: Option<&Path>) -> Result<Self> {
        let bin_dir = match bin_dir {
            Some(dir) => dir.to_owned(),
            None => search().ok_or_else(|| {
                Error::Programs(format!(
                    "PostgreSQL's programs were not found on PATH, by pg_config or below {}; install PostgreSQL {OLDEST} or later (Debian: apt-get install postgresql) or set postgres.bin_dir in the plan",
                    PACKAGED.join(", ")
                ))
            })?,
        };
        for name in NEEDED {
            if !bin_dir.join(name).is_file() {
                return Err(Error::Programs(format!(
                    "{} has no {name}; install PostgreSQL's server programs {OLDEST} or later, or set postgres.bin_dir in the plan to their folder",
                    bin_dir.display()
                )));
            }
        }
        let version = version(&bin_dir.join("postgres"))?;
        if version < OLDEST {
            return Err(Error::Programs(format!(
                "PostgreSQL {version} in {} is too old; install {OLDEST} or later, or set postgres.bin_dir in the plan to a newer one",
                bin_dir.display()
            )));
        }
        Ok(Self { bin_dir, version, user: unprivileged_user()? })
    }

    /// The path of one program.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.bin_dir.join(name)
    }
}

/// The folder of a program that really holds the server, through any symbolic links.
fn server_dir(program: &Path) -> Option<PathBuf> {
    let real = program.canonicalize().ok()?;
    let dir = real.parent()?;
    NEEDED.iter().all(|name| dir.join(name).is_file()).then(|| dir.to_owned())
}

fn search() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path)
        .flat_map(|dir| [dir.join("postgres"), dir.join("initdb")])
        .find_map(|program| server_dir(&program));
    if on_path.is_some() {
        return on_path;
    }
    let by_config = Command::new("pg_config").arg("--bindir").output().ok().and_then(|output| {
        let dir = String::from_utf8(output.stdout).ok()?;
        server_dir(&Path::new(dir.trim()).join("postgres"))
    });
    if by_config.is_some() {
        return by_config;
    }
    let mut packaged: Vec<(u32, PathBuf)> = PACKAGED
        .iter()
        .filter_map(|base| std::fs::read_dir(base).ok())
        .flatten()
        .flatten()
        .filter_map(|entry| {
            // 15 in Debian's folder, pgsql-15 in Red Hat's.
            let name = entry.file_name();
            let name = name.to_str()?;
            let number = name.strip_prefix("pgsql-").unwrap_or(name);
            let major = number.split('.').next()?.parse().ok()?;
            Some((major, server_dir(&entry.path().join("bin/postgres"))?))
        })
        .collect();
    packaged.sort();
    packaged.pop().map(|(_, dir)| dir)
}

fn version(postgres: &Path) -> Result<u32> {
    let output = Command::new(postgres).arg("--version").output();
    let text = output
        .map_err(|source| Error::Spawn { program: postgres.display().to_string(), source })?
        .stdout;
    let text = String::from_utf8_lossy(&text);
    parse_version(&text).ok_or_else(|| {
        Error::Programs(format!(
            "{} --version printed {:?}, which names no version",
            postgres.display(),
            text.trim()
        ))
    })
}

/// The major version in `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
fn parse_version(text: &str) -> Option<u32> {
    let number = text.split_once("(PostgreSQL)")?.1.trim_start();
    let digits: String = number.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// None when we are not root.
fn unprivileged_user() -> Result<Option<User>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let passwd = std::fs::read_to_string("/etc/passwd")
        .map_err(Error::path("cannot read", "/etc/passwd"))?;
    let user = ["postgres", "nobody"].iter().find_map(|name| find_user(&passwd, name));
    user.map(Some).ok_or_else(|| {
        Error::Programs(
            "PostgreSQL does not run as root, and this machine has no user postgres or nobody; run resurgam as another user".to_owned(),
        )
    })
}

fn find_user(passwd: &str, name: &str) -> Option<User> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next()? != name {
            return None;
        }
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(User { name: name.to_owned(), uid, gid })
    })
}

/// Checks that the user can reach the folder: each folder above it must let others through.
///
/// # Errors
/// Names the first folder that does not.
pub fn check_reachable(dir: &Path, user: Option<&User>) -> Result<()> {
    let Some(user) = user else { return Ok(()) };
    for above in dir.ancestors() {
        let Ok(meta) = std::fs::metadata(above) else { continue };
        let mode = meta.mode();
        let passes = if meta.uid() == user.uid {
            mode & 0o100 != 0
        } else if meta.gid() == user.gid {
            mode & 0o010 != 0
        } else {
            mode & 0o001 != 0
        };
        if !passes {
            return Err(Error::State(format!(
                "user {}, as whom PostgreSQL runs, cannot pass through {}; choose a state folder elsewhere (deployment.state_dir), or allow it with: chmod o+x {}",
                user.name,
                above.display(),
                above.display()
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_releases_betas_and_packages_are_read() {
        for (text, version) in [
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n", Some(15)),
            ("postgres (PostgreSQL) 18beta2\n", Some(18)),
            ("postgres (PostgreSQL) 9.6.24\n", Some(9)),
            ("something else", None),
        ] {
            assert_eq!(parse_version(text), version, "{text}");
        }
    }

    #[test]
    fn users_are_found_by_their_whole_name() {
        let passwd =
            "root:x:0:0::/root:/bin/sh\npostgres2:x:5:5::/:/x\npostgres:x:101:104:P,,,:/v:/b\n";
        let user = find_user(passwd, "postgres").unwrap();
        assert_eq!((user.uid, user.gid), (101, 104));
        assert_eq!(find_user(passwd, "nobody"), None);
    }

    #[test]
    fn a_folder_without_programs_is_refused_with_advice() {
        let error = Programs::find(Some(Path::new("/nonexistent"))).unwrap_err().to_string();
        assert!(error.contains("postgres.bin_dir"), "{error}");
    }
}
