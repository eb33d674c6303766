//! How a run is told to end, by whoever waits and by those that wait in the kernel.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};

/// A request to end, shared by all that run. Each step can be asked for once and is never taken back.
#[derive(Debug, Clone)]
pub struct Cancel(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    level: AtomicU8,
    /// Readable once the request is made, so that it can be waited for beside other things.
    asked: [Signal; 2],
    calls: Calls,
}

/// Calls to end from outside, such as Ctrl-C.
#[derive(Debug)]
struct Calls {
    /// Has a byte for each.
    pipe: OwnedFd,
    heard: AtomicUsize,
    /// Set while nobody hears them.
    unheard: Arc<AtomicBool>,
    at_kill: fn(),
}

/// As long as it lives, somebody hears calls to end.
#[derive(Debug)]
pub struct Hearing(Arc<AtomicBool>);

impl Drop for Hearing {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A pipe that becomes readable and stays so.
#[derive(Debug)]
struct Signal {
    read: OwnedFd,
    write: OwnedFd,
}

impl Signal {
    fn new() -> io::Result<Self> {
        let (read, write) = io::pipe()?;
        Ok(Self { read: read.into(), write: write.into() })
    }

    fn raise(&self) {
        // The pipe is empty and held open at both ends here, so one byte always fits.
        let _ = rustix::io::write(&self.write, b"!");
    }
}

impl Cancel {
    /// Nothing is asked for yet. Each byte of `calls` is a call to end: the first asks for the end, the second ends everything now and does `at_kill`. They are heard by whoever
    /// waits for a process, and by whoever asks whether the end was asked for, so that no thread is needed that only listens. `unheard` is set whenever
    /// nobody does: then whoever makes the calls is to end the process.
    ///
    /// # Errors
    /// If the process has no file descriptors left.
    pub fn new(calls: OwnedFd, unheard: Arc<AtomicBool>, at_kill: fn()) -> io::Result<Self> {
        rustix::fs::fcntl_setfl(&calls, rustix::fs::OFlags::NONBLOCK)?;
        unheard.store(true, Ordering::SeqCst);
        let calls = Calls { pipe: calls, heard: AtomicUsize::new(0), unheard, at_kill };
        Ok(Self(Arc::new(Inner { level: AtomicU8::new(0), asked: [Signal::new()?, Signal::new()?], calls })))
    }

    /// Says that calls are heard from now on.
    pub fn hearing(&self) -> Hearing {
        let unheard = &self.0.calls.unheard;
        unheard.store(false, Ordering::SeqCst);
        Hearing(Arc::clone(unheard))
    }

    /// Hears the calls that there are.
    pub fn hear(&self) {
        let calls = &self.0.calls;
        let mut bytes = [0; 16];
        // Nothing there is an error too.
        while let Ok(count @ 1..) = rustix::io::read(&calls.pipe, &mut bytes) {
            for _ in 0..count {
                match calls.heard.fetch_add(1, Ordering::SeqCst) {
                    0 => self.end(),
                    1 => {
                        self.kill();
                        (calls.at_kill)();
                    }
                    _ => {}
                }
            }
        }
    }

    /// Readable while there are calls to hear.
    pub fn calls_fd(&self) -> BorrowedFd<'_> {
        self.0.calls.pipe.as_fd()
    }

    /// Asks everything to end: SIGTERM, and SIGKILL after the grace time.
    pub fn end(&self) {
        if self.0.level.fetch_max(1, Ordering::SeqCst) < 1 {
            self.0.asked[0].raise();
        }
    }

    /// Ends everything now: SIGKILL.
    pub fn kill(&self) {
        self.end();
        if self.0.level.fetch_max(2, Ordering::SeqCst) < 2 {
            self.0.asked[1].raise();
        }
    }

    /// Whether the end was asked for.
    pub fn is_asked(&self) -> bool {
        self.hear();
        self.0.level.load(Ordering::SeqCst) > 0
    }

    /// Readable once the end is asked for.
    pub fn end_fd(&self) -> BorrowedFd<'_> {
        self.0.asked[0].read.as_fd()
    }

    /// Readable once the end is to come now.
    pub fn kill_fd(&self) -> BorrowedFd<'_> {
        self.0.asked[1].read.as_fd()
    }
}
