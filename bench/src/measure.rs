//! One command, measured: wall and CPU seconds, peak memory.
//!
//! The command is started by a copy of this program that does nothing else. A process counts the memory of the one that it was forked
//! from as its own peak until it has become another program, so that a large parent would spoil the figure.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt, parent_id};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::sys::resource::{Usage, UsageWho, getrusage};
use nix::sys::signal::{Signal, killpg};
use nix::sys::time::TimeValLike;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// The word that makes this program the starter of one command.
pub const STARTER: &str = "__measure";
/// How often memory and the limit are looked at.
const TICK: Duration = Duration::from_millis(10);
/// Between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(10);

/// What is to be measured.
#[derive(Debug, Serialize, Deserialize)]
pub struct Order {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Where it runs.
    pub folder: PathBuf,
    /// Where its output goes.
    pub log: PathBuf,
    /// Seconds after which it is ended.
    pub limit: f64,
}

/// What a command took.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Taken {
    /// Seconds from its start to its end.
    pub wall: f64,
    /// CPU seconds outside the kernel, with all processes that it waited for.
    pub user: f64,
    /// CPU seconds inside the kernel, likewise.
    pub system: f64,
    /// Peak memory of the largest process, KiB.
    pub largest_kib: u64,
    /// Peak memory of the first process, KiB; `None` for one that ended before it was looked at.
    pub main_kib: Option<u64>,
    /// How it ended, if not well.
    pub failure: Option<String>,
}

/// Measures a command.
pub fn measure(order: &Order) -> Result<Taken, String> {
    let program = std::env::current_exe().map_err(|e| format!("this program is not found: {e}"))?;
    let order = serde_json::to_string(order).map_err(|e| e.to_string())?;
    let mut starter = Command::new(program);
    starter.arg(STARTER).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).process_group(0);
    let mut starter = starter.spawn().map_err(|e| format!("the starter did not start: {e}"))?;
    // Not as an argument: a command that names 10,000 files is longer than one may be.
    let sent = starter.stdin.take().map(|mut pipe| pipe.write_all(order.as_bytes()));
    let output = starter.wait_with_output().map_err(|e| format!("the starter did not end: {e}"))?;
    sent.transpose().map_err(|e| format!("the starter took no order: {e}"))?;
    serde_json::from_slice(&output.stdout).map_err(|e| format!("the starter ended with {} and no figures: {e}", output.status))
}

/// The starter: runs the one command that standard input says, and gives the figures as JSON.
pub fn starter() -> Result<String, String> {
    let order: Order = serde_json::from_reader(std::io::stdin()).map_err(|e| format!("no order: {e}"))?;
    let taken = run(&order)?;
    serde_json::to_string(&taken).map_err(|e| e.to_string())
}

fn run(order: &Order) -> Result<Taken, String> {
    let (program, args) = order.command.split_first().ok_or("an empty command")?;
    let log = File::create(&order.log).map_err(|e| format!("{}: {e}", order.log.display()))?;
    let also = log.try_clone().map_err(|e| e.to_string())?;
    let mut command = Command::new(program);
    command.args(args).current_dir(&order.folder).envs(environment()).env_remove("TRESTLE_CACHE");
    command.stdin(Stdio::null()).stdout(log).stderr(also).process_group(0);
    let start = Instant::now();
    let mut child = command.spawn().map_err(|e| format!("{program}: {e}"))?;
    let pid = child.id();
    let (ended, watched) = channel();
    let limit = Duration::from_secs_f64(order.limit);
    let watcher = std::thread::spawn(move || watch(pid, start, limit, &watched));
    let status = wait(&mut child)?;
    let wall = start.elapsed().as_secs_f64();
    // The watcher is gone only if it panicked, which the join says.
    let _ = ended.send(());
    let (main_kib, timed_out) = watcher.join().map_err(|_| "the watcher panicked")?;
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).map_err(|e| e.to_string())?;
    let failure = if timed_out { Some(format!("ended after {} s", order.limit)) } else { failure(status) };
    Ok(taken(wall, &usage, main_kib, failure))
}

fn taken(wall: f64, usage: &Usage, main_kib: Option<u64>, failure: Option<String>) -> Taken {
    let seconds = |time: nix::sys::time::TimeVal| time.num_microseconds() as f64 / 1e6;
    let largest = usage.max_rss().unsigned_abs();
    // The unit of `ru_maxrss` is the byte on Apple's systems.
    let largest_kib = if cfg!(target_vendor = "apple") { largest / 1024 } else { largest };
    Taken { wall, user: seconds(usage.user_time()), system: seconds(usage.system_time()), largest_kib, main_kib, failure }
}

/// No colours and no progress bars, whatever the tool.
fn environment() -> [(OsString, OsString); 3] {
    [("NO_COLOR", "1"), ("TERM", "dumb"), ("LC_ALL", "C.UTF-8")].map(|(name, value)| (name.into(), value.into()))
}

fn wait(child: &mut Child) -> Result<ExitStatus, String> {
    child.wait().map_err(|e| format!("waiting failed: {e}"))
}

fn failure(status: ExitStatus) -> Option<String> {
    match (status.code(), status.signal()) {
        (Some(0), _) => None,
        (Some(code), _) => Some(format!("exit code {code}")),
        (None, Some(signal)) => Some(format!("ended by signal {signal}")),
        (None, None) => Some("ended in an unknown way".to_owned()),
    }
}

/// Looks at a process until it ended: its peak memory, and whether it had to be ended.
fn watch(pid: u32, start: Instant, limit: Duration, ended: &Receiver<()>) -> (Option<u64>, bool) {
    let parent = parent_id();
    let mut main_kib = None;
    let mut terminated: Option<Instant> = None;
    while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(TICK) {
        main_kib = peak(pid).max(main_kib);
        let over = start.elapsed() > limit || parent_id() != parent;
        match terminated {
            None if over => {
                end(pid, Signal::SIGTERM);
                terminated = Some(Instant::now());
            }
            Some(since) if since.elapsed() > GRACE => end(pid, Signal::SIGKILL),
            _ => {}
        }
    }
    (main_kib, terminated.is_some())
}

fn end(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        // The group may be gone already.
        let _ = killpg(Pid::from_raw(pid), signal);
    }
}

/// `VmHWM` of a process, KiB, where the system has it.
fn peak(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sh(script: &str, limit: f64) -> Taken {
        let folder = std::env::temp_dir();
        let log = folder.join(format!("trestle-bench-{}-{}.log", std::process::id(), script.len()));
        let order = Order { command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(), folder, log: log.clone(), limit };
        let taken = run(&order).unwrap();
        std::fs::remove_file(log).unwrap();
        taken
    }

    #[test]
    fn time_of_sleep_is_wall_and_not_cpu() {
        let taken = sh("sleep 0.2", 10.0);
        assert!(taken.wall >= 0.2 && taken.failure.is_none(), "{taken:?}");
    }

    #[test]
    fn what_runs_too_long_is_ended_with_its_children() {
        let taken = sh("sleep 30 & wait", 0.1);
        assert!(taken.wall < 5.0, "{taken:?}");
        assert_eq!(taken.failure.as_deref(), Some("ended after 0.1 s"));
    }

    #[test]
    fn a_bad_end_is_a_failure() {
        assert_eq!(sh("exit 3", 10.0).failure.as_deref(), Some("exit code 3"));
        assert_eq!(sh("kill -SEGV $$", 10.0).failure.as_deref(), Some("ended by signal 11"));
    }
}
