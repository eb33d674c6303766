//! Where jobs run. [`Local`] starts processes on this machine; a cluster's scheduler would be another [`Executor`].

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};

use crate::job::Message;
use crate::stage::{Progress, StageError};

/// What is to be run: a native stage's job file, or a command.
#[derive(Debug, Clone)]
pub enum Task {
    /// `trestle job FILE`.
    Native {
        /// The job file.
        job: PathBuf,
    },
    /// A shell with a script.
    Command {
        /// The words before the script.
        shell: Vec<String>,
        /// The script.
        script: String,
        /// Its whole environment.
        env: BTreeMap<String, String>,
    },
}

/// One task with its surroundings.
#[derive(Debug, Clone)]
pub struct Order {
    /// What to run.
    pub task: Task,
    /// The folder in which it runs.
    pub work: PathBuf,
    /// Threads that it may use.
    pub threads: usize,
    /// File that takes all it prints.
    pub log: PathBuf,
}

/// What a task that ended well reported.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// Metrics by name.
    pub metrics: BTreeMap<String, f64>,
    /// Highest resident memory in KiB, if known.
    pub peak_rss_kib: Option<u64>,
}

/// Why a task did not end well.
#[derive(Debug, Clone)]
pub enum Ended {
    /// It failed.
    Failed(StageError),
    /// It was ended because the run was interrupted.
    Cancelled,
}

/// A future that an [`Executor`] returns.
pub type Execution<'a> = Pin<Box<dyn Future<Output = Result<Outcome, Ended>> + Send + 'a>>;

/// Something that can run tasks.
pub trait Executor: Send + Sync {
    /// Runs one task to its end; `cancel` turning true ends it early.
    fn execute<'a>(&'a self, order: &'a Order, progress: mpsc::UnboundedSender<Progress>, cancel: watch::Receiver<bool>) -> Execution<'a>;
}

/// Processes on this machine, each in a process group of its own.
#[derive(Debug, Clone)]
pub struct Local {
    /// The words that start this program, for `… job FILE`.
    pub program: Vec<OsString>,
    /// Variables that native stages get; they do not depend on them.
    pub env: BTreeMap<String, String>,
    /// How long a process has to end after SIGTERM.
    pub grace: Duration,
}

impl Executor for Local {
    fn execute<'a>(&'a self, order: &'a Order, progress: mpsc::UnboundedSender<Progress>, cancel: watch::Receiver<bool>) -> Execution<'a> {
        Box::pin(async move {
            match &order.task {
                Task::Native { job } => self.native(order, job, progress, cancel).await,
                Task::Command { shell, script, env } => self.command(order, shell, script, env, cancel).await,
            }
        })
    }
}

impl Local {
    async fn native(
        &self,
        order: &Order,
        job: &std::path::Path,
        progress: mpsc::UnboundedSender<Progress>,
        cancel: watch::Receiver<bool>,
    ) -> Result<Outcome, Ended> {
        let (program, arguments) = self.program.split_first().ok_or_else(|| failed("no program to run jobs with"))?;
        let mut command = Command::new(program);
        command.args(arguments).arg("job").arg(job);
        command.env_clear().envs(&self.env).env("RAYON_NUM_THREADS", order.threads.to_string());
        let log = open_log(order)?;
        command.stdout(Stdio::piped()).stderr(log);
        let mut child = spawn(command, order, "this program")?;
        let stdout = child.stdout.take();
        let listen = async {
            let mut heard = Heard::default();
            if let Some(stdout) = stdout {
                let mut lines = BufReader::new(stdout).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    heard.line(&line, &progress);
                }
            }
            heard
        };
        let (status, heard) = tokio::join!(self.wait(child, cancel), listen);
        heard.conclude(status?)
    }

    async fn command(
        &self,
        order: &Order,
        shell: &[String],
        script: &str,
        env: &BTreeMap<String, String>,
        cancel: watch::Receiver<bool>,
    ) -> Result<Outcome, Ended> {
        let (program, arguments) = shell.split_first().ok_or_else(|| failed("`shell` is empty"))?;
        let mut command = Command::new(program);
        command.args(arguments).arg(script).env_clear().envs(env);
        let log = open_log(order)?;
        let also = log.try_clone().map_err(|e| failed(format!("cannot open the log: {e}")))?;
        command.stdout(log).stderr(also);
        let child = spawn(command, order, program)?;
        let status = self.wait(child, cancel).await?;
        if status.success() { Ok(Outcome::default()) } else { Err(failed(format!("the command {}", describe(status)))) }
    }

    /// Waits for the end of a child, hastening it if the run is interrupted. What lingers of its process group is ended with it.
    async fn wait(&self, mut child: Child, mut cancel: watch::Receiver<bool>) -> Result<std::process::ExitStatus, Ended> {
        let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let signal = |signal| group.map(|group| kill_process_group(group, signal));
        let ended = tokio::select! {
            status = child.wait() => Ok(status),
            () = cancelled(&mut cancel) => Err(()),
        };
        let result = match ended {
            Ok(status) => status.map_err(|e| failed(format!("cannot wait for the process: {e}"))),
            Err(()) => {
                signal(Signal::TERM);
                if tokio::time::timeout(self.grace, child.wait()).await.is_err() {
                    signal(Signal::KILL);
                    // The group was told to end; an error here leaves nothing else to try.
                    let _ = child.wait().await;
                }
                Err(Ended::Cancelled)
            }
        };
        signal(Signal::KILL);
        result
    }
}

async fn cancelled(cancel: &mut watch::Receiver<bool>) {
    if cancel.wait_for(|cancelled| *cancelled).await.is_err() {
        // Nobody can interrupt this run any more.
        std::future::pending::<()>().await;
    }
}

fn failed(message: impl Into<String>) -> Ended {
    Ended::Failed(StageError::new(message))
}

fn open_log(order: &Order) -> Result<File, Ended> {
    File::options()
        .create(true)
        .append(true)
        .open(&order.log)
        .map_err(|e| failed(format!("cannot open the log {}: {e}", order.log.display())))
}

fn spawn(mut command: Command, order: &Order, name: &str) -> Result<Child, Ended> {
    command.current_dir(&order.work).stdin(Stdio::null()).process_group(0).kill_on_drop(true);
    command.spawn().map_err(|e| failed(format!("cannot start {name}: {e}")))
}

fn describe(status: std::process::ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with status {code}"),
        (None, Some(9)) => "was killed (signal 9); the system does this when memory runs out".to_owned(),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended in an unknown way".to_owned(),
    }
}

/// What a job said.
#[derive(Default)]
struct Heard {
    outcome: Outcome,
    done: bool,
    error: Option<StageError>,
}

impl Heard {
    fn line(&mut self, line: &str, progress: &mpsc::UnboundedSender<Progress>) {
        match serde_json::from_str(line) {
            // A receiver that is gone no longer wants progress.
            Ok(Message::Progress(report)) => drop(progress.send(report)),
            Ok(Message::Metric { name, value }) => drop(self.outcome.metrics.insert(name, value)),
            Ok(Message::Done { peak_rss_kib }) => {
                self.done = true;
                self.outcome.peak_rss_kib = peak_rss_kib;
            }
            Ok(Message::Error(error)) => self.error = Some(error),
            Err(_) => self.error = Some(StageError::new(format!("the stage printed a line that is not a message: {line}"))),
        }
    }

    /// Only a job that says that it is done, and then ends well, is done.
    fn conclude(self, status: std::process::ExitStatus) -> Result<Outcome, Ended> {
        match self.error {
            Some(error) => Err(Ended::Failed(error)),
            None if status.success() && self.done => Ok(self.outcome),
            None => Err(failed(format!("the stage's process {}", describe(status)))),
        }
    }
}
