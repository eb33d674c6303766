//! One child process with all that it starts: watched to its end, hastened if need be, and nothing of it left behind.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use super::cancel::Cancel;
use super::start::{Reaped, reap};

/// Longest line that a job may print; more is cut into several.
const MAX_LINE: usize = 1 << 20;
/// How often a system without pidfds is asked whether the child has ended.
const INTERVAL: Duration = Duration::from_millis(5);

/// How a process came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By itself.
    Itself,
    /// It ran out of time.
    TimedOut,
    /// The run was told to end.
    Cancelled,
}

/// What is known of a process that has ended.
#[derive(Debug)]
pub struct Ended {
    pub how: End,
    pub status: ExitStatus,
    /// Processor time of it and of the children that it waited for.
    pub cpu: Duration,
    /// Highest resident memory of any of them, in KiB, if it says anything: see [`own_peak`].
    pub peak_rss_kib: Option<u64>,
}

/// What may end a process before its time.
pub struct Limits<'c> {
    pub cancel: &'c Cancel,
    pub deadline: Option<Instant>,
    /// How long it has between SIGTERM and SIGKILL.
    pub grace: Duration,
}

/// Something that a child prints to, read a line at a time.
pub struct Stream<'s> {
    lines: Lines,
    sink: &'s mut dyn FnMut(&str),
}

impl<'s> Stream<'s> {
    /// Lines from the reading end of a pipe.
    pub fn new(pipe: OwnedFd, sink: &'s mut dyn FnMut(&str)) -> io::Result<Self> {
        rustix::fs::fcntl_setfl(pipe.as_fd(), rustix::fs::OFlags::NONBLOCK)?;
        Ok(Self { lines: Lines { pipe: File::from(pipe), rest: Vec::new(), closed: false }, sink })
    }

    fn drain(&mut self) -> io::Result<()> {
        self.lines.drain(self.sink)
    }
}

/// Waits for the end of a child that leads a process group, and listens to what it prints to `streams`.
///
/// What lingers of its group is ended with it, before its number can belong to anybody else; so is what left the group, if it has `mark` in its
/// environment.
pub fn supervise(group: Pid, limits: &Limits<'_>, mark: Option<&str>, streams: &mut [Stream<'_>]) -> io::Result<Ended> {
    let before = own_peak();
    let how = watch(group, limits, streams)?;
    // An error means that nothing of the group is left.
    let _ = kill_process_group(group, Signal::KILL);
    if let Some(mark) = mark {
        super::strays::end(group, mark);
    }
    for stream in streams {
        stream.drain()?;
        stream.lines.end(stream.sink);
    }
    let Reaped { status, cpu, peak_rss_kib } = reap(group)?;
    Ok(Ended { how, status, cpu, peak_rss_kib: Some(peak_rss_kib).filter(|peak| *peak > before) })
}

/// This process's own highest resident memory in KiB. A child starts as a copy of it, and the kernel counts that in its figure too, so a smaller
/// figure of a child is not the child's own.
fn own_peak() -> u64 {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF);
    usage.map_or(u64::MAX, |usage| usage.max_rss().unsigned_abs())
}

/// Returns when the child has ended and was not yet waited for.
fn watch(group: Pid, limits: &Limits<'_>, streams: &mut [Stream<'_>]) -> io::Result<End> {
    let exit = exit_fd(group);
    let mut how = End::Itself;
    let mut kill_at: Option<Instant> = None;
    let mut killed = false;
    loop {
        let next = match (how, kill_at) {
            (End::Itself, _) => limits.deadline,
            (_, at) => at.filter(|_| !killed),
        };
        let mut fds = Vec::with_capacity(5);
        // Once the end was asked for, only the call to end now is of interest; calls from outside are heard to the last.
        if !killed {
            let asked = if how == End::Itself { limits.cancel.end_fd() } else { limits.cancel.kill_fd() };
            fds.push(PollFd::from_borrowed_fd(asked, PollFlags::IN));
        }
        let calls = fds.len();
        fds.push(PollFd::from_borrowed_fd(limits.cancel.calls_fd(), PollFlags::IN));
        let ended = fds.len();
        fds.extend(exit.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
        let pipe = fds.len();
        fds.extend(streams.iter().filter(|stream| !stream.lines.closed).map(|stream| PollFd::new(&stream.lines.pipe, PollFlags::IN)));
        let wait = next.map(|at| at.saturating_duration_since(Instant::now()));
        let wait = if exit.is_some() { wait } else { Some(wait.map_or(INTERVAL, |wait| wait.min(INTERVAL))) };
        let timeout = wait.map(|wait| Timespec { tv_sec: wait.as_secs().cast_signed(), tv_nsec: i64::from(wait.subsec_nanos()) });
        match poll(&mut fds, timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        let ready = |at: usize| fds.get(at).is_some_and(|fd| !fd.revents().is_empty());
        let (told, has_lines) = (!killed && ready(0), (pipe..fds.len()).any(ready));
        // What a call asks for is readable at the next turn.
        let is_called = ready(calls);
        let may_have_ended = exit.is_none() || ready(ended);
        drop(fds);
        if is_called {
            limits.cancel.hear();
        }
        if has_lines {
            streams.iter_mut().try_for_each(Stream::drain)?;
        }
        if may_have_ended && has_ended(group)? {
            return Ok(how);
        }
        let late = next.is_some_and(|at| Instant::now() >= at);
        if how == End::Itself && (told || late) {
            how = if told { End::Cancelled } else { End::TimedOut };
            kill_at = Some(Instant::now() + limits.grace);
            signal(group, Signal::TERM);
        } else if how != End::Itself && !killed && (told || late) {
            killed = true;
            signal(group, Signal::KILL);
        }
    }
}

fn signal(group: Pid, signal: Signal) {
    // The group is there: its leader was not waited for.
    let _ = kill_process_group(group, signal);
    // A stopped process would take no notice of anything but SIGKILL.
    let _ = kill_process_group(group, Signal::CONT);
}

/// Something that becomes readable when the child ends, where the system has that.
fn exit_fd(child: Pid) -> Option<OwnedFd> {
    #[cfg(target_os = "linux")]
    return rustix::process::pidfd_open(child, rustix::process::PidfdFlags::empty()).ok();
    #[cfg(not(target_os = "linux"))]
    return None;
}

/// Whether the child has ended. It is not waited for, so its number stays its own.
fn has_ended(child: Pid) -> io::Result<bool> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    Ok(waitid(WaitId::Pid(child), options)?.is_some())
}

/// Lines from a pipe that is read as far as it goes without waiting.
struct Lines {
    pipe: File,
    rest: Vec<u8>,
    closed: bool,
}

impl Lines {
    fn drain(&mut self, lines: &mut dyn FnMut(&str)) -> io::Result<()> {
        let mut buffer = [0; 16 << 10];
        while !self.closed {
            match self.pipe.read(&mut buffer) {
                Ok(0) => self.closed = true,
                Ok(count) => self.take(&buffer[..count], lines),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn take(&mut self, mut bytes: &[u8], lines: &mut dyn FnMut(&str)) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.rest.extend(&bytes[..end]);
            self.end(lines);
            bytes = &bytes[end + 1..];
        }
        self.rest.extend(bytes);
        if self.rest.len() > MAX_LINE {
            self.end(lines);
        }
    }

    /// Gives what was read of a line as a line.
    fn end(&mut self, lines: &mut dyn FnMut(&str)) {
        if !self.rest.is_empty() {
            lines(&String::from_utf8_lossy(&self.rest));
            self.rest.clear();
        }
    }
}
