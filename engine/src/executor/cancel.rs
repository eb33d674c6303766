//! How a run is told to end, by whoever waits and by those that wait in the kernel.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// A request to end, shared by all that run. Each step can be asked for once and is never taken back.
#[derive(Debug, Clone)]
pub struct Cancel(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    level: AtomicU8,
    /// Readable once the request is made, so that it can be waited for beside other things.
    asked: [Signal; 2],
}

/// A pipe that becomes readable and stays so.
#[derive(Debug)]
struct Signal {
    read: OwnedFd,
    write: OwnedFd,
}

impl Signal {
    fn new() -> io::Result<Self> {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        Ok(Self { read, write })
    }

    fn raise(&self) {
        // The pipe is empty and held open at both ends here, so one byte always fits.
        let _ = rustix::io::write(&self.write, b"!");
    }
}

impl Cancel {
    /// Nothing is asked for yet.
    ///
    /// # Errors
    /// If the process has no file descriptors left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Inner { level: AtomicU8::new(0), asked: [Signal::new()?, Signal::new()?] })))
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
