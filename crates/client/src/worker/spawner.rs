//! Starts programs that never outlive this process.
//!
//! Linux can kill a child when its parent dies, but the parent that it watches is the *thread*
//! that started the child. Threads of an async runtime come and go; so one thread of its own
//! starts all programs, and lives as long as its [`Spawner`].

use std::io;
use std::process::Stdio;
use std::sync::mpsc;

use rustix::process::{Pid, Signal};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// A thread that starts programs. Those still running when it is dropped are killed.
pub(super) struct Spawner {
    jobs: mpsc::Sender<Job>,
}

struct Job {
    command: Command,
    runtime: Handle,
    reply: oneshot::Sender<io::Result<Program>>,
}

impl Spawner {
    pub(super) fn new() -> io::Result<Self> {
        let (jobs, inbox) = mpsc::channel::<Job>();
        std::thread::Builder::new().name("spawner".to_owned()).spawn(move || {
            for Job { command, runtime, reply } in inbox {
                let _entered = runtime.enter();
                // If nobody waits any more, the program is killed right here.
                let _ = reply.send(Program::start(command));
            }
        })?;
        Ok(Self { jobs })
    }

    /// Starts a program with pipes for its output and errors, in a process group of its
    /// own.
    pub(super) async fn start(&self, command: Command) -> io::Result<Program> {
        let gone = || io::Error::other("the thread that starts programs has ended");
        let (reply, answer) = oneshot::channel();
        let job = Job { command, runtime: Handle::current(), reply };
        self.jobs.send(job).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// A running program. Dropping it kills the program's whole group.
pub(super) struct Program {
    child: Child,
    group: Group,
}

impl Program {
    fn start(mut command: Command) -> io::Result<Self> {
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
        die_with_parent(&mut command);
        let child = command.spawn()?;
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let group = pid.ok_or_else(|| io::Error::other("the program has no process id"))?;
        Ok(Self { child, group: Group(group) })
    }

    /// Its pipes, the first time.
    pub(super) fn pipes(&mut self) -> (Option<ChildStdout>, Option<ChildStderr>) {
        (self.child.stdout.take(), self.child.stderr.take())
    }

    /// The group, for killing it while somebody waits for the program.
    pub(super) fn group(&self) -> Group {
        self.group
    }

    /// Waits for the program to end, then ends what it left behind in its group.
    pub(super) async fn wait(&mut self) -> io::Result<std::process::ExitStatus> {
        let status = self.child.wait().await;
        self.group.kill();
        status
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Once waited for, the group was killed already, and its number may be somebody else's.
        if self.child.id().is_some() {
            self.group.kill();
        }
    }
}

/// A process group.
#[derive(Clone, Copy)]
pub(super) struct Group(Pid);

impl Group {
    /// Kills all that is in it. That there is nothing in it any more is no error.
    pub(super) fn kill(self) {
        if let Err(error) = rustix::process::kill_process_group(self.0, Signal::KILL)
            && error != rustix::io::Errno::SRCH
        {
            tracing::warn!(%error, group = self.0.as_raw_pid(), "cannot kill a process group");
        }
    }
}

#[cfg(target_os = "linux")]
#[allow(
    unsafe_code,
    reason = "what a child does between fork and exec can be said in no other way"
)]
fn die_with_parent(command: &mut Command) {
    let parent = rustix::process::getpid();
    // SAFETY: the closure makes two system calls and allocates nothing, so that it is safe to
    // run in the child of a process with several threads.
    unsafe {
        command.pre_exec(move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died before the line above.
            if rustix::process::getppid() == Some(parent) {
                Ok(())
            } else {
                Err(io::Error::from_raw_os_error(rustix::io::Errno::SRCH.raw_os_error()))
            }
        });
    }
}

#[cfg(not(target_os = "linux"))]
fn die_with_parent(_: &mut Command) {}
