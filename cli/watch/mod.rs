//! `trestle watch`: a `trestle run` after every change of what it reads.
//!
//! Each run is a process of its own, in a process group of its own, so that one Ctrl-C reaches it exactly once. Events of the file
//! system only wake this one up: what changed is found by looking at the files, so that nothing is missed that changes during a run,
//! and nothing runs because of a file that the pipeline does not read.

mod sources;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use clap::Args;
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use serde_json::json;
use tokio::process::Command;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{Instant, sleep, timeout};

use crate::args::{Format, Run};
use crate::fail::Fail;
use crate::project;
use crate::words;
use sources::{Look, Sources, in_words};

/// A change is over when nothing more has come for this long: editors write a file in several steps.
const QUIET: Duration = Duration::from_millis(100);
/// But it is over after this long.
const LONGEST: Duration = Duration::from_secs(2);

/// What `watch --help` ends with.
pub const EXAMPLES: &str = "Examples:
  trestle watch                         run, and run again when the pipeline or a file that it reads changes
  trestle watch 'score[*]' -j 2         takes the targets and options of `trestle run`
  trestle watch --poll 2                look every two seconds, where the file system sends no events (NFS)

Ctrl-C ends it; during a run the first Ctrl-C ends the run, too. A mistake in the pipeline file is shown, and the next change tried.";

/// `watch`.
#[derive(Debug, Args)]
pub struct Watch {
    #[command(flatten)]
    pub run: Run,
    /// Look for changes every so many seconds instead of waiting for events
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub poll: Option<Duration>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|e| format!("{e}"))?;
    if !(0.05..=86_400.0).contains(&seconds) {
        return Err("0.05 to 86400 seconds".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// Runs until it is interrupted.
pub fn watch(args: &Watch) -> Result<ExitCode, Fail> {
    let (file, _) = words::split(&args.run.words, &args.run.source)?;
    let file = std::path::absolute(&file).map_err(|e| Fail::message(format!("cannot find {}: {e}", file.display())))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Fail::message(format!("cannot start the runtime: {e}")))?;
    runtime.block_on(async { Watching::begin(args, file)?.go_on().await })
}

/// Why a wait ended.
enum Woken {
    Changed(Vec<String>),
    Interrupted,
}

struct Watching<'a> {
    args: &'a Watch,
    file: PathBuf,
    here: PathBuf,
    sources: Sources,
    /// As it was before the last run.
    seen: Look,
    ears: Option<Ears>,
    interrupts: [Signal; 2],
}

impl<'a> Watching<'a> {
    fn begin(args: &'a Watch, file: PathBuf) -> Result<Self, Fail> {
        let listen = |kind| signal(kind).map_err(|e| Fail::message(format!("cannot listen for Ctrl-C: {e}")));
        let here = std::env::current_dir().map_err(|e| Fail::message(format!("cannot find the current folder: {e}")))?;
        let ears = if args.poll.is_none() { Some(Ears::open()?) } else { None };
        let interrupts = [listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?];
        Ok(Self { args, file, here, sources: Sources::default(), seen: Look::default(), ears, interrupts })
    }

    async fn go_on(mut self) -> Result<ExitCode, Fail> {
        loop {
            self.listen()?;
            self.seen = self.sources.look();
            if self.run().await? {
                return Ok(ExitCode::from(130));
            }
            self.say_waiting()?;
            match self.change().await {
                Woken::Interrupted => return Ok(ExitCode::SUCCESS),
                Woken::Changed(changes) => self.say_changed(&changes)?,
            }
        }
    }

    /// What the pipeline reads, as it is now; mistakes in it are the run's to tell.
    fn sources_now(&self) -> Sources {
        match project::read(&self.args.run.words, &self.args.run.source, &trestle_stages::registry()) {
            Ok((pipeline, ..)) => Sources::of(&self.file, Some(&pipeline)),
            Err(_) => Sources::of(&self.file, None).and(&self.sources),
        }
    }

    /// Listens to what the pipeline reads.
    fn listen(&mut self) -> Result<(), Fail> {
        self.sources = self.sources_now();
        match &mut self.ears {
            Some(ears) => ears.listen(&self.sources.folders()),
            None => Ok(()),
        }
    }

    /// A `trestle run`; whether it was interrupted.
    async fn run(&mut self) -> Result<bool, Fail> {
        let program = std::env::current_exe().map_err(|e| Fail::message(format!("cannot find this program: {e}")))?;
        let mut child = Command::new(program)
            .arg("run")
            .args(passed(std::env::args_os().skip(2)))
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| Fail::message(format!("cannot start a run: {e}")))?;
        let group = child.id();
        let mut is_interrupted = false;
        let ended = |e: std::io::Error| Fail::message(format!("cannot wait for the run: {e}"));
        loop {
            let [interrupt, terminate] = &mut self.interrupts;
            let signal = tokio::select! {
                status = child.wait() => return Ok(is_interrupted || was_interrupted(status.map_err(ended)?)),
                _ = interrupt.recv() => rustix::process::Signal::INT,
                _ = terminate.recv() => rustix::process::Signal::TERM,
            };
            is_interrupted = true;
            if let Some(pid) = group.and_then(|id| rustix::process::Pid::from_raw(id.cast_signed())) {
                // A run that is just gone needs no signal.
                let _ = rustix::process::kill_process(pid, signal);
            }
        }
    }

    /// Waits until a file that counts is not as it was before the last run.
    async fn change(&mut self) -> Woken {
        loop {
            // The pipeline may read other files by now, such as one more that a pattern fits.
            let changes = self.seen.changes(&self.sources_now().look(), &self.here);
            if !changes.is_empty() {
                return Woken::Changed(changes);
            }
            let [interrupt, terminate] = &mut self.interrupts;
            let news = async {
                match (&mut self.ears, self.args.poll) {
                    (Some(ears), _) => ears.hear().await,
                    (None, poll) => sleep(poll.unwrap_or(LONGEST)).await,
                }
            };
            tokio::select! {
                () = news => {}
                _ = interrupt.recv() => return Woken::Interrupted,
                _ = terminate.recv() => return Woken::Interrupted,
            }
        }
    }

    fn say_waiting(&self) -> Result<(), Fail> {
        let count = self.sources.len();
        let files = if count == 1 { "1 file".to_owned() } else { format!("{count} files and folders") };
        self.say(&format!("watching {files}; Ctrl-C ends it"), &json!({"event": "watching", "sources": count}))
    }

    fn say_changed(&self, changes: &[String]) -> Result<(), Fail> {
        self.say(&format!("\nchanged: {}", in_words(changes)), &json!({"event": "changed", "sources": changes}))
    }

    fn say(&self, human: &str, value: &serde_json::Value) -> Result<(), Fail> {
        let line = match self.args.run.format {
            Format::Human => format!("{human}\n"),
            Format::Json => format!("{value}\n"),
        };
        crate::print(&line).map(drop)
    }
}

fn was_interrupted(status: ExitStatus) -> bool {
    status.code() == Some(130)
}

/// The words after `watch` without those that `run` does not know.
fn passed(words: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut is_value = false;
    words
        .filter(|word| {
            if std::mem::take(&mut is_value) {
                return false;
            }
            is_value = word == "--poll";
            !is_value && !word.to_string_lossy().starts_with("--poll=")
        })
        .collect()
}

/// Events of the file system.
struct Ears {
    watcher: RecommendedWatcher,
    events: UnboundedReceiver<()>,
    folders: BTreeMap<PathBuf, bool>,
}

impl Ears {
    fn open() -> Result<Self, Fail> {
        let (sender, events) = unbounded_channel();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Our own looking is an access. An error means that events were lost: look.
            if !event.is_ok_and(|event| matches!(event.kind, EventKind::Access(_))) {
                // Nobody listens only at the end.
                let _ = sender.send(());
            }
        });
        Ok(Self { watcher: watcher.map_err(|e| cannot_listen(None, &e))?, events, folders: BTreeMap::new() })
    }

    /// Listens to these folders and no others.
    fn listen(&mut self, folders: &BTreeMap<PathBuf, bool>) -> Result<(), Fail> {
        for (folder, _) in self.folders.iter().filter(|(folder, deep)| folders.get(*folder) != Some(deep)) {
            // A folder that is gone is no longer listened to anyway.
            let _ = self.watcher.unwatch(folder);
        }
        for (folder, deep) in folders {
            let mode = if *deep { RecursiveMode::Recursive } else { RecursiveMode::NonRecursive };
            // A folder that was replaced has to be listened to anew, and asking twice does no harm.
            self.watcher.watch(folder, mode).map_err(|e| cannot_listen(Some(folder), &e))?;
        }
        self.folders.clone_from(folders);
        Ok(())
    }

    /// Waits for something, and then until it is quiet.
    async fn hear(&mut self) {
        if self.events.recv().await.is_none() {
            // The watcher lives as long as this does.
            return std::future::pending().await;
        }
        let start = Instant::now();
        while start.elapsed() < LONGEST && matches!(timeout(QUIET, self.events.recv()).await, Ok(Some(()))) {}
    }
}

fn cannot_listen(folder: Option<&Path>, error: &notify::Error) -> Fail {
    let place = folder.map(|folder| format!(" in {}", folder.display())).unwrap_or_default();
    Fail::with_help(
        format!("cannot listen for changes{place}: {error}"),
        "`--poll 2` looks every two seconds instead; on Linux, `sysctl fs.inotify.max_user_watches` says how many folders can be listened to",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_gets_all_words_but_ours() {
        let words = ["a.yaml", "--poll", "2", "-j", "1", "--poll=3", "x"].map(OsString::from);
        assert_eq!(passed(words.into_iter()), ["a.yaml", "-j", "1", "x"].map(OsString::from));
    }
}
