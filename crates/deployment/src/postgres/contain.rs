//! Runs a server, or another program, so that it, and everything it started, dies with this process.
//!
//! The server becomes the first process of a new PID namespace. When that first process dies,
//! the kernel kills every other process of the namespace before anything else can happen; and
//! the first process is killed by the kernel when the thread that made it ends, which it does
//! at the latest when this process dies. No process has to run for that: it works as well on
//! stopped ones.
//!
//! As root the namespace is made directly, otherwise inside a user namespace, which most
//! distributions allow. Where neither is allowed the server is an ordinary child: its main
//! process still dies with this one, but a backend in the midst of a statement may finish it.
//! [`Strength`] tells which it is, and recovery relies on no more than that.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::programs::User;

/// What is sure to have happened when the keeper of a server is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strength {
    /// Every process of the server is dead: the kernel sees to it.
    Kernel,
    /// The server's main process is dead; others may finish what they are at.
    Process,
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Contained<'a> {
    /// The program.
    pub program: &'a Path,
    /// Its arguments, without its name.
    pub args: &'a [OsString],
    /// As whom; none to stay who we are.
    pub user: Option<&'a User>,
    /// Where its output goes.
    pub log: &'a File,
}

/// A server that runs, or has ended.
#[derive(Debug)]
pub struct Running {
    pid: i32,
    exit: watch::Receiver<Option<ExitStatus>>,
    strength: Strength,
}

impl Running {
    /// Its process id as seen from here.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.unsigned_abs()
    }

    /// What its death takes with it.
    #[must_use]
    pub fn strength(&self) -> Strength {
        self.strength
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn exit(&self) -> Option<ExitStatus> {
        *self.exit.borrow()
    }

    /// Waits until it has ended, every process of its namespace included.
    pub async fn ended(&self) -> ExitStatus {
        let mut exit = self.exit.clone();
        let ended = exit.wait_for(Option::is_some).await.ok().and_then(|exit| *exit);
        // The thread that waits never ends without a word; if it did, the server died with it.
        ended.unwrap_or_else(|| ExitStatus::from_raw(libc::SIGKILL))
    }

    /// Sends a signal. Nothing happens when it has ended.
    pub fn signal(&self, signal: Signal) {
        if self.exit().is_none()
            && let Some(pid) = Pid::from_raw(self.pid)
        {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// Ends it: by `signal` in order, by SIGKILL after `grace`.
    pub async fn stop(&self, signal: Signal, grace: Duration) -> ExitStatus {
        self.signal(signal);
        match tokio::time::timeout(grace, self.ended()).await {
            Ok(exit) => exit,
            Err(_) => self.kill().await,
        }
    }

    /// Kills it, and with it all its processes.
    pub async fn kill(&self) -> ExitStatus {
        self.signal(Signal::KILL);
        self.ended().await
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// The child's word that it dies with us from now on. No error has this number.
static READY: i32 = 0;

/// Starts it.
///
/// # Errors
/// When the program cannot be run.
pub async fn start(what: Contained<'_>) -> io::Result<Running> {
    let prepared = Prepared::new(&what)?;
    let (started, answer) = tokio::sync::oneshot::channel();
    // The child dies with the thread that makes it, so the thread stays until the child ends.
    std::thread::Builder::new().name("server-parent".to_owned()).spawn(move || {
        let root = rustix::process::geteuid().is_root();
        let contained =
            if root { libc::CLONE_NEWPID } else { libc::CLONE_NEWPID | libc::CLONE_NEWUSER };
        let result = match prepared.spawn(contained) {
            Err(error) if refused(&error) => prepared.spawn(0).map(|pid| (pid, Strength::Process)),
            other => other.map(|pid| (pid, Strength::Kernel)),
        };
        match result {
            Ok((pid, strength)) => {
                let (exited, exit) = watch::channel(None);
                // Where nobody waits for the answer any more the handle is dropped, which kills.
                let _ = started.send(Ok(Running { pid, exit, strength }));
                exited.send_replace(Some(wait(pid)));
            }
            Err(error) => {
                let _ = started.send(Err(error));
            }
        }
    })?;
    answer.await.map_err(io::Error::other)?
}

/// The kernel, or the rules of the container around us, do not allow the namespace.
fn refused(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EPERM | libc::EINVAL | libc::ENOSPC | libc::ENOSYS | libc::EACCES)
    )
}

/// All that the child needs, made before the fork: after it nothing may be allocated.
struct Prepared {
    program: CString,
    args: Vec<CString>,
    env: Vec<CString>,
    user: Option<(u32, u32)>,
    log: OwnedFd,
    null: OwnedFd,
    /// Lines for the maps of a user namespace, in which we stay who we are.
    uid_map: String,
    gid_map: String,
}

fn c_string(text: &OsStr) -> io::Result<CString> {
    CString::new(text.as_bytes()).map_err(io::Error::other)
}

impl Prepared {
    fn new(what: &Contained<'_>) -> io::Result<Self> {
        let program = c_string(what.program.as_os_str())?;
        let mut args = vec![program.clone()];
        for arg in what.args {
            args.push(c_string(arg)?);
        }
        let env = [c"PATH=/usr/local/bin:/usr/bin:/bin", c"LC_ALL=C.UTF-8"];
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        Ok(Self {
            program,
            args,
            env: env.into_iter().map(CString::from).collect(),
            user: what.user.map(|user| (user.uid, user.gid)),
            log: what.log.try_clone()?.into(),
            null: File::open("/dev/null")?.into(),
            uid_map: format!("{0} {0} 1", uid.as_raw()),
            gid_map: format!("{0} {0} 1", gid.as_raw()),
        })
    }

    /// Makes the child and waits until it has become the program.
    fn spawn(&self, flags: libc::c_int) -> io::Result<i32> {
        let pointers = |list: &[CString]| {
            let ends = std::iter::once(std::ptr::null());
            list.iter().map(|text| text.as_ptr()).chain(ends).collect::<Vec<_>>()
        };
        let (args, env) = (pointers(&self.args), pointers(&self.env));
        // The child tells on `told` that its death signal is set, and waits for a byte on `go`:
        // if we die before the signal is set, it reads the end instead and leaves. `told` closes
        // when the program takes over; another word on it is an error.
        let (go, mut say_go) = io::pipe()?;
        let (mut told, tell) = io::pipe()?;
        let (go_fd, tell_fd) = (go.as_raw_fd(), tell.as_raw_fd());
        let say_go_fd = say_go.as_raw_fd();

        #[allow(unsafe_code, reason = "a namespace for the child alone needs the clone call")]
        // SAFETY: without CLONE_VM this is a fork. The child calls only functions that are safe
        // after a fork, on memory that was made before it, and ends in execve or _exit.
        let pid = unsafe {
            let none: libc::c_long = 0;
            let flags = libc::c_long::from(flags | libc::SIGCHLD);
            let pid = libc::syscall(libc::SYS_clone, flags, none, none, none, none);
            if pid == 0 {
                libc::close(say_go_fd);
                let error = self.become_program(flags, go_fd, tell_fd, &args, &env);
                libc::write(tell_fd, (&raw const error).cast(), size_of::<i32>());
                libc::_exit(127);
            }
            pid
        };
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        let pid = i32::try_from(pid).map_err(io::Error::other)?;
        drop((go, tell));
        let mut word = || {
            let mut word = [0_u8; size_of::<i32>()];
            told.read_exact(&mut word).ok().map(|()| i32::from_ne_bytes(word))
        };
        let mut error = word();
        if error == Some(READY) {
            let _ = say_go.write_all(&[1]);
            error = word();
        }
        match error {
            None => Ok(pid),
            Some(error) => {
                wait(pid);
                Err(io::Error::from_raw_os_error(error))
            }
        }
    }

    /// Runs in the child. Returns the error number of the call that failed.
    #[allow(unsafe_code, reason = "between fork and exec only system calls are allowed")]
    unsafe fn become_program(
        &self,
        flags: libc::c_long,
        go: RawFd,
        tell: RawFd,
        args: &[*const libc::c_char],
        env: &[*const libc::c_char],
    ) -> i32 {
        // SAFETY: see `spawn`; every pointer is to memory made before the fork.
        unsafe {
            let errno = || *libc::__errno_location();
            if flags & libc::c_long::from(libc::CLONE_NEWUSER) != 0 {
                let files = [
                    (c"/proc/self/setgroups", "deny"),
                    (c"/proc/self/uid_map", &self.uid_map),
                    (c"/proc/self/gid_map", &self.gid_map),
                ];
                for (path, text) in files {
                    let file = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
                    if file < 0 || libc::write(file, text.as_ptr().cast(), text.len()) < 0 {
                        return errno();
                    }
                    libc::close(file);
                }
            }
            if let Some((uid, gid)) = self.user
                && (libc::setgroups(0, std::ptr::null()) < 0
                    || libc::setgid(gid) < 0
                    || libc::setuid(uid) < 0)
            {
                return errno();
            }
            // After the change of user, which would clear it.
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) < 0 {
                return errno();
            }
            libc::write(tell, (&raw const READY).cast(), size_of::<i32>());
            let mut byte = 0_u8;
            if libc::read(go, (&raw mut byte).cast(), 1) != 1 {
                return libc::ESRCH;
            }
            libc::setpgid(0, 0);
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            // Where we are may be out of the user's reach.
            libc::chdir(c"/".as_ptr());
            let (null, log) = (self.null.as_raw_fd(), self.log.as_raw_fd());
            if libc::dup2(null, 0) < 0 || libc::dup2(log, 1) < 0 || libc::dup2(log, 2) < 0 {
                return errno();
            }
            // What we were given by whoever started us is not for the program. Older kernels do
            // not know the call; nothing depends on it.
            libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
            libc::execve(self.program.as_ptr(), args.as_ptr(), env.as_ptr());
            errno()
        }
    }
}

/// Waits for the child to end.
fn wait(pid: i32) -> ExitStatus {
    let mut status = 0;
    loop {
        #[allow(unsafe_code, reason = "a child made by clone has no handle in the library")]
        // SAFETY: the pointer is valid for the call, and the child is ours.
        let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
        if waited == pid {
            return ExitStatus::from_raw(status);
        }
        if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            // Somebody else has waited for it: it is dead all the same.
            return ExitStatus::from_raw(libc::SIGKILL);
        }
    }
}
