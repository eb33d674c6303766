//! Processes that left the group of the stage that started them, as daemons do.
//!
//! This program asks the kernel to be the parent of every orphan below it, so that none gets away. A command's environment has its own folder as
//! `TMPDIR`: that tells whose a process is. Numbers of processes are given out in turn, so only those from the command's own up to the last
//! one given need to be looked at, and after a command that started nothing those are few.

#[cfg(target_os = "linux")]
use std::time::Duration;

#[cfg(target_os = "linux")]
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

/// How often it is looked for those that were started meanwhile.
#[cfg(target_os = "linux")]
const ROUNDS: usize = 100;
/// How often a process without environment is looked at again.
#[cfg(target_os = "linux")]
const BECOMING: usize = 40;
/// From so many new processes on it is quicker to look at all that there are.
#[cfg(target_os = "linux")]
const MANY: i32 = 1000;

/// Becomes the parent of orphans, where the system has that.
pub fn adopt() {
    #[cfg(target_os = "linux")]
    {
        // Without it they go to the system's first process, as they do elsewhere.
        let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    }
}

/// Ends all processes that were started after `leader` and have `mark` in their environment, with those that they start meanwhile.
#[cfg(target_os = "linux")]
pub fn end(leader: Pid, mark: &str) {
    let first = leader.as_raw_nonzero().get();
    for _ in 0..ROUNDS {
        // Where numbers began anew, or many were given out, all that there are is less.
        let marked: Vec<Pid> = match last_number() {
            Some(last) if (first..first.saturating_add(MANY)).contains(&last) => {
                (first + 1..=last).filter_map(Pid::from_raw).filter(|pid| is_marked(*pid, mark)).collect()
            }
            _ => all().filter(|pid| *pid != leader && is_marked(*pid, mark)).collect(),
        };
        for pid in &marked {
            // It may have ended by itself just now, and may be another's child.
            let _ = kill_process(*pid, Signal::KILL);
            let _ = waitid(WaitId::Pid(*pid), WaitIdOptions::EXITED);
        }
        if marked.is_empty() {
            return;
        }
    }
}

#[cfg(not(target_os = "linux"))]
pub fn end(_leader: rustix::process::Pid, _mark: &str) {}

/// Ends every process of this user whose `TMPDIR` is below a folder, with those that they start meanwhile: what a run that was killed left
/// at work. Waits until they are no more, which may take a while, since what is killed still ends what it asked the kernel for, such as the
/// making of a file; but no longer than a hundred looks.
pub fn end_below(folder: &std::path::Path) {
    #[cfg(target_os = "linux")]
    for _ in 0..ROUNDS {
        let found: Vec<Pid> = all().filter(|pid| works_below(*pid, folder)).collect();
        if found.is_empty() {
            return;
        }
        for pid in found {
            let _ = kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    #[cfg(not(target_os = "linux"))]
    let _ = folder;
}

#[cfg(target_os = "linux")]
fn works_below(pid: Pid, folder: &std::path::Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let environment = environment(pid);
    let mut variables = environment.split(|byte| *byte == 0).filter_map(|variable| variable.strip_prefix(b"TMPDIR="));
    variables.any(|tmp| std::path::Path::new(std::ffi::OsStr::from_bytes(tmp)).starts_with(folder))
}

/// The number that was given to a process last.
#[cfg(target_os = "linux")]
fn last_number() -> Option<i32> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next_back()?.parse().ok()
}

/// All processes.
#[cfg(target_os = "linux")]
fn all() -> impl Iterator<Item = Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
}

#[cfg(target_os = "linux")]
fn is_marked(pid: Pid, mark: &str) -> bool {
    environment(pid).split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
}

/// The environment of a process, empty if there is no such process. One that is just becoming another program has none for a moment, and
/// one whose first thread has ended shows it by those that go on.
#[cfg(target_os = "linux")]
fn environment(pid: Pid) -> Vec<u8> {
    let number = pid.as_raw_nonzero();
    for _ in 0..BECOMING {
        let environment = std::fs::read(format!("/proc/{number}/environ")).unwrap_or_default();
        // What has ended and what is the kernel's own has no program.
        if !environment.is_empty() {
            return environment;
        }
        if std::fs::read_link(format!("/proc/{number}/exe")).is_err() {
            let threads = std::fs::read_dir(format!("/proc/{number}/task")).into_iter().flatten().flatten();
            let mut of_threads = threads.filter_map(|thread| std::fs::read(thread.path().join("environ")).ok());
            return of_threads.find(|environment| !environment.is_empty()).unwrap_or_default();
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    Vec::new()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Shells that start others as fast as they can, each of which leaves a file.
    #[test]
    fn nothing_is_left_at_work_below_a_folder() {
        for _ in 0..20 {
            let dir = tempfile::tempdir().unwrap();
            let folder = dir.path().join("work");
            std::fs::create_dir(&folder).unwrap();
            let script = "for i in $(seq 2000); do sh -c 'echo > \"$TMPDIR/$$\"' & echo > \"$TMPDIR/$i\"; done";
            let mut shells: Vec<_> =
                (0..2).map(|_| std::process::Command::new("sh").args(["-c", script]).env("TMPDIR", &folder).spawn().unwrap()).collect();
            std::thread::sleep(Duration::from_millis(20));
            end_below(dir.path());
            std::fs::remove_dir_all(&folder).unwrap();
            for shell in &mut shells {
                shell.wait().unwrap();
            }
            assert!(!folder.exists());
        }
    }
}
