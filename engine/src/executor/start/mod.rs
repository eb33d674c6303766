//! Starting a process: in its folder, without input, leading a process group, with nothing of this process but what it is given.
//!
//! On Linux a process is started by code of ours in place of the standard library's, so that what it must do to itself before it becomes its
//! program, as to enter a [`Domain`](super::sandbox::Domain), costs no more than that: whoever starts it waits as for `vfork`, and nothing of
//! this process is copied.

#[cfg(target_os = "linux")]
#[path = "linux.rs"]
mod system;
#[cfg(not(target_os = "linux"))]
#[path = "elsewhere.rs"]
mod system;

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::Pid;

use super::sandbox::Domain;

/// What is to be started.
#[derive(Debug)]
pub struct Launch {
    /// The program's file.
    pub program: PathBuf,
    /// Its words, with its name as the first.
    pub words: Vec<OsString>,
    /// Its whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// Where it starts.
    pub folder: PathBuf,
    /// Where it prints to.
    pub stdout: OwnedFd,
    /// Where it prints errors to.
    pub stderr: OwnedFd,
}

/// Why nothing was started.
#[derive(Debug)]
pub enum NotStarted {
    /// It could not be put under its domain.
    Domain(String),
    /// Anything else; most often there is no such program.
    Program(io::Error),
}

impl From<io::Error> for NotStarted {
    fn from(error: io::Error) -> Self {
        Self::Program(error)
    }
}

impl From<NotStarted> for io::Error {
    fn from(why: NotStarted) -> Self {
        match why {
            NotStarted::Domain(why) => Self::other(why),
            NotStarted::Program(error) => error,
        }
    }
}

/// How a process ended, and what it took with the children that it waited for.
#[derive(Debug)]
pub struct Reaped {
    pub status: ExitStatus,
    /// Processor time.
    pub cpu: Duration,
    /// Highest resident memory of any of them, in KiB.
    pub peak_rss_kib: u64,
}

impl Launch {
    /// Starts it, under a domain if there is one. It is the caller's to [`reap`].
    ///
    /// # Errors
    /// If it could not become its program.
    pub fn start(&self, domain: Option<&Domain>) -> Result<Pid, NotStarted> {
        system::start(self, domain)
    }
}

/// Waits for the end of a child of this process.
///
/// # Errors
/// If there is no such child.
#[allow(unsafe_code, reason = "no crate waits for a number and tells what the process took")]
pub fn reap(pid: Pid) -> io::Result<Reaped> {
    use std::os::unix::process::ExitStatusExt;

    use nix::libc;

    let (mut status, mut usage) = (0, std::mem::MaybeUninit::<libc::rusage>::zeroed());
    loop {
        // SAFETY: both places are ours and live as long as the call.
        if unsafe { libc::wait4(pid.as_raw_nonzero().get(), &raw mut status, 0, usage.as_mut_ptr()) } != -1 {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    // SAFETY: the call wrote it, and all zeros would be one too.
    let usage = unsafe { usage.assume_init() };
    let time = |time: libc::timeval| {
        Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0)) + Duration::from_micros(u64::try_from(time.tv_usec).unwrap_or(0))
    };
    let peak = u64::try_from(usage.ru_maxrss).unwrap_or(0);
    // macOS counts bytes.
    let peak_rss_kib = if cfg!(target_os = "macos") { peak >> 10 } else { peak };
    Ok(Reaped { status: ExitStatus::from_raw(status), cpu: time(usage.ru_utime) + time(usage.ru_stime), peak_rss_kib })
}
