//! Starts child processes that the kernel kills when this process dies.
//!
//! `PR_SET_PDEATHSIG` follows the *thread* that made the child: if that thread ends, the child
//! is killed although the process lives on. The threads of an asynchronous runtime come and go,
//! so one thread that never ends makes all children.

use std::io;
use std::os::unix::process::CommandExt;
use std::sync::mpsc;

use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use tokio::process::{Child, Command};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

struct Request {
    command: std::process::Command,
    reply: oneshot::Sender<io::Result<Child>>,
}

/// A handle to the thread that starts children. Cheap to clone; the thread ends, and with it
/// every child, when the last handle is dropped.
#[derive(Clone, Debug)]
pub struct Spawner {
    requests: mpsc::Sender<Request>,
}

impl Spawner {
    /// Starts the thread. Call it within a runtime.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn new() -> io::Result<Self> {
        let (requests, inbox) = mpsc::channel::<Request>();
        let runtime = Handle::current();
        std::thread::Builder::new().name("spawner".to_owned()).spawn(move || {
            let _context = runtime.enter();
            for Request { command, reply } in inbox {
                // Whoever asked may be gone; then the child ends with the handle.
                let _ = reply.send(spawn(command));
            }
        })?;
        Ok(Self { requests })
    }

    /// Starts a child in a process group of its own. It is killed when the returned handle is
    /// dropped.
    ///
    /// # Errors
    /// When the program cannot be run.
    pub async fn spawn(&self, command: std::process::Command) -> io::Result<Child> {
        let (reply, answer) = oneshot::channel();
        let gone = || io::Error::other("the spawning thread has ended");
        self.requests.send(Request { command, reply }).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

fn spawn(mut command: std::process::Command) -> io::Result<Child> {
    command.process_group(0);
    die_with_parent(&mut command);
    Command::from(command).kill_on_drop(true).spawn()
}

/// Has the kernel kill the child when the thread that starts it ends.
#[allow(unsafe_code, reason = "only a closure run between fork and exec can set the death signal")]
pub(crate) fn die_with_parent(command: &mut std::process::Command) {
    let parent = rustix::process::getpid();
    // SAFETY: the closure makes two system calls and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died before the line above took effect.
            if getppid() != Some(parent) {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
}
