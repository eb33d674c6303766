//! Processes that left the group of the stage that started them, as daemons do.
//!
//! This program asks the kernel to be the parent of every orphan below it. Orphans come to its first thread, which starts nothing itself, so
//! the children of that thread are orphans and nothing else. A command's environment has its own folder as `TMPDIR`: that tells whose they are.

#[cfg(target_os = "linux")]
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

/// How often orphans of orphans are looked for.
#[cfg(target_os = "linux")]
const ROUNDS: usize = 100;

/// Becomes the parent of orphans, where the system has that.
pub fn adopt() {
    #[cfg(target_os = "linux")]
    {
        // Without it they go to the system's first process, as they do elsewhere.
        let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    }
}

/// Ends all orphans that have `mark` in their environment, with those that this makes orphans in turn.
#[cfg(target_os = "linux")]
pub fn end(mark: &str) {
    for _ in 0..ROUNDS {
        let orphans = orphans();
        let mut ended = false;
        for pid in orphans {
            if is_marked(pid, mark) {
                // It may have ended by itself just now.
                let _ = kill_process(pid, Signal::KILL);
                let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED);
                ended = true;
            } else {
                // One that has ended waits for nobody else.
                let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
            }
        }
        if !ended {
            return;
        }
    }
}

#[cfg(not(target_os = "linux"))]
pub fn end(_mark: &str) {}

#[cfg(target_os = "linux")]
fn orphans() -> Vec<Pid> {
    let own = std::process::id();
    let text = std::fs::read_to_string(format!("/proc/self/task/{own}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|word| Pid::from_raw(word.parse().ok()?)).collect()
}

#[cfg(target_os = "linux")]
fn is_marked(pid: Pid, mark: &str) -> bool {
    let environment = std::fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())).unwrap_or_default();
    environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
}
