//! A folder for servers, which goes with the test.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// Waits until its input ends, which it does when the test process is gone, however it went; then
/// kills what runs and deletes the folder.
const CLEANER: &str = r#"
read -r _
for file in "$1"/*.pid; do
    pid=$(cat "$file") && kill -KILL "-$pid"
done 2>/dev/null
tries=0
until rm -rf "$1" 2>/dev/null || [ "$tries" -ge 50 ]; do sleep 0.1; tries=$((tries + 1)); done
"#;

/// A folder and the processes in it. They do not survive the test process.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) folder: PathBuf,
    cleaner: Child,
}

impl Place {
    pub(crate) fn new(prefix: &str) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix(prefix).tempdir()?.keep();
        let cleaner = Command::new("sh")
            .args(["-c", CLEANER, "cleaner"])
            .arg(&folder)
            .stdin(Stdio::piped())
            // An interrupt from the keyboard is for the tests, not for what cleans up after them.
            .process_group(0)
            .spawn()?;
        Ok(Self { folder, cleaner })
    }

    /// Starts a process in a group of its own, with its output in a file.
    pub(crate) fn spawn(&self, name: &str, mut command: Command) -> io::Result<Child> {
        let log = self.new_log(name)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?);
        self.start(name, command, log)
    }

    /// The same for one that is spoken to: only its errors are in the file.
    pub(crate) fn spawn_to_talk(&self, name: &str, mut command: Command) -> io::Result<Child> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        self.start(name, command, self.new_log(name)?)
    }

    fn start(&self, name: &str, mut command: Command, errors: fs::File) -> io::Result<Child> {
        let child = command.stderr(errors).process_group(0).spawn()?;
        fs::write(self.folder.join(format!("{name}.pid")), child.id().to_string())?;
        Ok(child)
    }

    fn new_log(&self, name: &str) -> io::Result<fs::File> {
        fs::File::create(self.log(name))
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.log"))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.cleaner.stdin.take());
        let _ = self.cleaner.wait();
    }
}
