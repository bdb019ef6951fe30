//! The password of a vault: from a file, an environment variable or a program, and never shown.

use std::fmt;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use resurgam_model::plan;

use crate::{Error, Result};

/// A program that prints a password may take so long: a person may have to touch a key.
const PATIENCE: Duration = Duration::from_secs(60);

/// A password. Its debug output does not show it.
#[derive(Clone)]
pub struct Password(String);

impl Password {
    /// A new one.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// For the library, and nothing else.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    /// Of a vault, by the way that its plan names. `base` is the plan file's folder.
    ///
    /// # Errors
    /// When it cannot be had, or is empty.
    pub fn of(vault: &plan::Vault, base: &Path) -> Result<Self> {
        let no = |reason: String| Error::Password { vault: vault.name.to_string(), reason };
        let text = if let Some(file) = &vault.password_file {
            let file = base.join(file);
            std::fs::read_to_string(&file)
                .map_err(|error| no(format!("{} cannot be read: {error}", file.display())))?
        } else if let Some(name) = &vault.password_env {
            std::env::var(name)
                .map_err(|_| no(format!("the environment variable {name} is not set")))?
        } else {
            print(&vault.password_command).map_err(no)?
        };
        Self::first_line(&text).ok_or_else(|| no("it is empty".to_owned()))
    }

    /// The first line of a file.
    ///
    /// # Errors
    /// When it cannot be read, or is empty.
    pub fn from_file(vault: &str, file: &Path) -> Result<Self> {
        let no = |reason: String| Error::Password { vault: vault.to_owned(), reason };
        let text = std::fs::read_to_string(file)
            .map_err(|error| no(format!("{} cannot be read: {error}", file.display())))?;
        Self::first_line(&text).ok_or_else(|| no(format!("{} is empty", file.display())))
    }

    fn first_line(text: &str) -> Option<Self> {
        text.lines().next().filter(|line| !line.is_empty()).map(Self::new)
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(***)")
    }
}

fn print(command: &[String]) -> Result<String, String> {
    let (program, arguments) = command.split_first().ok_or("no way to it is named")?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{program} cannot be run: {error}"))?;
    let mut output = child.stdout.take();
    let reading = std::thread::spawn(move || {
        let mut text = String::new();
        // More than a password is none.
        let read = output.as_mut().map(|out| out.take(64 * 1024).read_to_string(&mut text));
        read.transpose().map(|_| text)
    });
    let until = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(10)),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("{program} did not end within {} s", PATIENCE.as_secs()));
            }
            Err(error) => return Err(format!("{program} was lost: {error}")),
        }
    };
    if !status.success() {
        return Err(format!("{program} failed: {status}"));
    }
    match reading.join() {
        Ok(Ok(text)) => Ok(text),
        _ => Err(format!("what {program} printed is no text")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vault(toml: &str) -> plan::Vault {
        let text = format!("[[backup.vaults]]\nname = 'v'\npath = 'p'\n{toml}");
        let plan: plan::Plan =
            resurgam_model::plan::EffectivePlan::resolve(Some(&text), |_| None).unwrap().plan;
        plan.backup.vaults[0].clone()
    }

    #[test]
    fn it_is_the_first_line_of_a_file_or_of_what_a_program_prints() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("key"), "open sesame\nand a remark\n").unwrap();
        let file = Password::of(&vault("password_file = 'key'"), dir.path()).unwrap();
        assert_eq!(file.expose(), "open sesame");
        let printed = vault("password_command = ['printf', 'from a program\\n']");
        assert_eq!(Password::of(&printed, dir.path()).unwrap().expose(), "from a program");
    }

    #[test]
    fn what_is_wrong_is_said_without_the_password() {
        let dir = tempfile::tempdir().unwrap();
        for (toml, word) in [
            ("password_file = 'none'", "cannot be read"),
            ("password_env = 'RESURGAM_TEST_NOT_SET'", "is not set"),
            ("password_command = ['sh', '-c', 'echo secret; exit 3']", "exit status: 3"),
            ("password_command = ['/nonexistent']", "cannot be run"),
            ("password_command = ['true']", "it is empty"),
        ] {
            let error = Password::of(&vault(toml), dir.path()).unwrap_err().to_string();
            assert!(error.contains(word) && !error.contains("secret"), "{error}");
        }
        assert_eq!(format!("{:?}", Password::new("secret")), "Password(***)");
    }
}
