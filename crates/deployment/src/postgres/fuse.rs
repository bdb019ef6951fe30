//! The fuse: a timer of the kernel that kills this process unless it is put off in time.
//!
//! A primary may accept writes only while its lease lasts. A check in a program cannot ensure
//! that: the program may be stopped, starved or stuck when the lease ends, while the server
//! beside it goes on. A timer in the kernel goes off whatever this process does, even while it
//! is stopped by SIGSTOP, and its signal, SIGKILL, cannot be caught, blocked or held back. The
//! server dies with this process (see [`super::contain`]), so after the end of the lease there
//! is nothing left that could write.
//!
//! The clock is `CLOCK_BOOTTIME`: it goes on while the machine sleeps.

use std::io;
use std::time::Duration;

/// A moment on the clock that fuses use: since boot, sleep included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(Duration);

impl BootTime {
    /// The present moment.
    #[must_use]
    pub fn now() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        let nanos = u32::try_from(now.tv_nsec).unwrap_or(0);
        Self(Duration::new(seconds, nanos))
    }

    /// A later moment.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }

    /// How long until then; zero when it has passed.
    #[must_use]
    pub fn left(self) -> Duration {
        self.0.saturating_sub(Self::now().0)
    }
}

/// A timer that kills this process.
#[derive(Debug)]
pub struct Fuse {
    timer: libc::timer_t,
}

// SAFETY: the kernel knows timers by number; any thread of the process may set them.
#[allow(unsafe_code, reason = "timer_t is a pointer type only in name")]
unsafe impl Send for Fuse {}
// SAFETY: as above; setting a timer is one system call.
#[allow(unsafe_code, reason = "timer_t is a pointer type only in name")]
unsafe impl Sync for Fuse {}

#[allow(unsafe_code, reason = "there is no safe binding for POSIX timers")]
impl Fuse {
    /// A fuse that is not lit.
    ///
    /// # Errors
    /// When the kernel has no timers left, or would not let one kill this process: it spares the
    /// first process of a PID namespace, such as the only process of a container.
    pub fn new() -> io::Result<Self> {
        if rustix::process::getpid().is_init() {
            return Err(io::Error::other(
                "the kernel spares process 1 of a PID namespace, so no lease could end; start it below an init, such as with docker run --init",
            ));
        }
        // SAFETY: all zeroes is a valid sigevent; its fields are set below.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = libc::SIGKILL;
        let mut timer: libc::timer_t = std::ptr::null_mut();
        // SAFETY: both pointers are valid for the call.
        let made =
            unsafe { libc::timer_create(libc::CLOCK_BOOTTIME, &raw mut event, &raw mut timer) };
        if made == 0 { Ok(Self { timer }) } else { Err(io::Error::last_os_error()) }
    }

    /// Lights the fuse, or puts it off: it burns through at `at`. A moment that has passed
    /// kills at once.
    ///
    /// # Errors
    /// When the kernel refuses; the fuse then stays as it was.
    pub fn light(&self, at: BootTime) -> io::Result<()> {
        let whole = at.0.max(Duration::from_nanos(1));
        self.set(libc::timespec {
            tv_sec: whole.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: whole.subsec_nanos().into(),
        })
    }

    /// Puts the fuse out. Only when nothing that it guards can write any more.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn put_out(&self) -> io::Result<()> {
        self.set(libc::timespec { tv_sec: 0, tv_nsec: 0 })
    }

    fn set(&self, value: libc::timespec) -> io::Result<()> {
        let never = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let spec = libc::itimerspec { it_interval: never, it_value: value };
        // SAFETY: the timer is ours, the pointer valid for the call.
        let set = unsafe {
            libc::timer_settime(
                self.timer,
                libc::TIMER_ABSTIME,
                &raw const spec,
                std::ptr::null_mut(),
            )
        };
        if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        #[allow(unsafe_code, reason = "there is no safe binding for POSIX timers")]
        // SAFETY: the timer is ours and is not used again.
        unsafe {
            libc::timer_delete(self.timer);
        }
    }
}
