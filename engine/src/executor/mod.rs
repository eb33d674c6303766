//! Where jobs run. [`Local`] starts processes on this machine; a cluster's scheduler would be another [`Executor`].

mod cancel;
mod direct;
mod process;
mod sandbox;
mod start;
mod strays;

pub use cancel::Cancel;
pub use sandbox::Sandbox;
pub use strays::end_below;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::job::Message;
use crate::pipeline::DEFAULT_SHELL;
use crate::stage::{Progress, StageError};
use process::{End, Limits, Stream, supervise};
use sandbox::Domains;
use start::Launch;

/// The variable that says which GPUs a process may use.
pub const VISIBLE_GPUS: &str = "CUDA_VISIBLE_DEVICES";

/// Its value for these.
pub fn visible(gpus: &[u32]) -> String {
    gpus.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

/// What is to be run: a native stage's job file, or a command.
#[derive(Debug, Clone)]
pub enum Task {
    /// `trestle job FILE`.
    Native {
        /// The job file.
        job: PathBuf,
        /// The GPUs that it may use.
        gpus: Vec<u32>,
    },
    /// A shell with a script.
    Command {
        /// The words before the script.
        shell: Arc<[String]>,
        /// The script.
        script: String,
        /// Its whole environment.
        env: BTreeMap<String, String>,
        /// Where it starts, below the work folder.
        workdir: String,
        /// The file that takes its standard output; the log does if there is none.
        stdout: Option<PathBuf>,
        /// Whether it may use the network.
        network: bool,
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
    /// After this long it is ended, and has failed.
    pub timeout: Option<Duration>,
    /// Also say every line that it prints.
    pub verbose: bool,
}

/// What a running task says.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    /// How far it is.
    Progress(Progress),
    /// A line that it printed, if the order asked for them, or a note of a native stage.
    Line(String),
}

/// What a task that ended well reported.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// Metrics by name.
    pub metrics: BTreeMap<String, f64>,
    /// Highest resident memory in KiB, if known.
    pub peak_rss_kib: Option<u64>,
    /// Processor time of all its processes, if known.
    pub cpu: Option<Duration>,
    /// What kept it from undeclared files.
    pub sandbox: String,
}

/// Why a task did not end well.
#[derive(Debug, Clone)]
pub enum Ended {
    /// It failed.
    Failed(StageError),
    /// It was ended because the run was interrupted.
    Cancelled,
}

/// Something that can run tasks.
pub trait Executor: Send + Sync {
    /// Runs one task to its end, or to an early one if `cancel` asks for it. Called from a thread that may wait.
    ///
    /// # Errors
    /// Why it did not end well.
    fn execute(&self, order: &Order, say: &mut dyn FnMut(Said), cancel: &Cancel) -> Result<Outcome, Ended>;
}

/// Processes on this machine, each in a process group of its own.
#[derive(Debug)]
pub struct Local {
    program: Vec<OsString>,
    env: BTreeMap<String, String>,
    grace: Duration,
    domains: Domains,
    /// Where programs were found, by name and search path.
    found: Mutex<BTreeMap<(String, String), Option<PathBuf>>>,
}

impl Local {
    /// `program` are the words that start this program, for `… job FILE`; `env` the variables that native stages get, which do not depend on
    /// them; `grace` how long a process has to end after SIGTERM. Commands are kept from the folders `closed`, but for what lies below `rooms`.
    pub fn new(
        program: Vec<OsString>,
        env: BTreeMap<String, String>,
        grace: Duration,
        sandbox: Sandbox,
        closed: Vec<PathBuf>,
        rooms: PathBuf,
    ) -> Self {
        strays::adopt();
        Self { program, env, grace, domains: Domains::new(sandbox, closed, rooms), found: Mutex::default() }
    }
}

impl Executor for Local {
    fn execute(&self, order: &Order, say: &mut dyn FnMut(Said), cancel: &Cancel) -> Result<Outcome, Ended> {
        let limits = Limits { cancel, deadline: order.timeout.map(|timeout| Instant::now() + timeout), grace: self.grace };
        match &order.task {
            Task::Native { job, gpus } => self.native(order, (job, gpus), say, &limits),
            Task::Command { .. } => self.command(order, say, &limits),
        }
    }
}

impl Local {
    fn native(
        &self,
        order: &Order,
        (job, gpus): (&Path, &[u32]),
        say: &mut dyn FnMut(Said),
        limits: &Limits<'_>,
    ) -> Result<Outcome, Ended> {
        let program = self.program.first().ok_or_else(|| failed("no program to run jobs with"))?;
        let mut env: Vec<_> = self.env.iter().map(|(name, value)| (name.into(), value.into())).collect();
        env.push(("RAYON_NUM_THREADS".into(), order.threads.to_string().into()));
        if !gpus.is_empty() {
            env.push((VISIBLE_GPUS.into(), visible(gpus).into()));
        }
        let (output, (protocol, theirs)) = (Output::to_log(order)?, pipe()?);
        let launch = Launch {
            program: program.into(),
            words: self.program.iter().cloned().chain(["job".into(), job.into()]).collect(),
            env,
            folder: order.work.clone(),
            stdout: theirs,
            stderr: output.handle()?,
        };
        let child = launch.start(None).map_err(|why| not_started("this program", &why.into()))?;
        let (mut log, mut notes) = (output.sink(), output.sink());
        // The child has its own ends of the pipes now; as long as there are others, the pipes have no end.
        drop(launch);
        drop(output.write);
        let mut heard = Heard::default();
        let say = std::cell::RefCell::new(say);
        let mut messages = |line: &str| {
            if let Some(said) = heard.line(line) {
                if let Said::Line(note) = &said {
                    notes(note);
                }
                (say.borrow_mut())(said);
            }
        };
        let mut lines = |line: &str| {
            log(line);
            (say.borrow_mut())(Said::Line(line.to_owned()));
        };
        let mut streams = vec![Stream::new(protocol, &mut messages).map_err(unwatched)?];
        if let Some(read) = output.read {
            streams.push(Stream::new(read, &mut lines).map_err(unwatched)?);
        }
        let ended = supervise(child, limits, None, &mut streams).map_err(unwatched)?;
        drop(streams);
        came_to_its_end(&ended, order)?;
        let outcome = heard.conclude(ended.status)?;
        Ok(Outcome { cpu: Some(ended.cpu), sandbox: "native".to_owned(), ..outcome })
    }

    fn command(&self, order: &Order, say: &mut dyn FnMut(Said), limits: &Limits<'_>) -> Result<Outcome, Ended> {
        let Task::Command { network, env, .. } = &order.task else { return Err(failed("this is no command")) };
        let output = Output::to_log(order)?;
        let (launch, name) = self.prepare(order, &output)?;
        let mut log = output.sink();
        let mark = env.get("TMPDIR").map(|folder| format!("TMPDIR={folder}"));
        let (child, sandbox) = self.domains.start(&launch, *network).map_err(Ended::Failed)?;
        let child = child.map_err(|e| not_started(&format!("`{name}`"), &e))?;
        let mut lines = |line: &str| {
            log(line);
            say(Said::Line(line.to_owned()));
        };
        drop(launch);
        drop(output.write);
        let mut streams = Vec::new();
        if let Some(read) = output.read {
            streams.push(Stream::new(read, &mut lines).map_err(unwatched)?);
        }
        let ended = supervise(child, limits, mark.as_deref(), &mut streams).map_err(unwatched)?;
        came_to_its_end(&ended, order)?;
        if !ended.status.success() {
            return Err(failed(format!("the command {}", describe(ended.status))));
        }
        Ok(Outcome { peak_rss_kib: ended.peak_rss_kib, cpu: Some(ended.cpu), sandbox, ..Outcome::default() })
    }

    /// The command as a process to start, and what it is called in messages.
    fn prepare(&self, order: &Order, output: &Output) -> Result<(Launch, String), Ended> {
        let Task::Command { shell, script, env, workdir, stdout, .. } = &order.task else { return Err(failed("this is no command")) };
        let folder = order.work.join(workdir);
        let simple = if **shell == DEFAULT_SHELL { direct::parse(script) } else { None };
        let simple = simple.and_then(|direct| Some((self.find(direct.program, env)?, direct)));
        let mut target = stdout.clone();
        let (program, words): (PathBuf, Vec<OsString>) = match simple {
            Some((path, direct)) => {
                target = direct.stdout.map(|written| folder.join(written)).or(target);
                (path, std::iter::once(direct.program).chain(direct.arguments).map(OsString::from).collect())
            }
            None => {
                let name = shell.first().ok_or_else(|| failed("`shell` is empty"))?;
                let path = if name.contains('/') { Some(PathBuf::from(name)) } else { self.find(name, env) };
                let path = path.ok_or_else(|| not_started(&format!("`{name}`"), &std::io::Error::from_raw_os_error(nix::libc::ENOENT)))?;
                let words = shell[1..].iter().chain([script]).map(OsString::from);
                (path.clone(), std::iter::once(path.into()).chain(words).collect())
            }
        };
        let stdout = match target {
            Some(path) => File::create(&path).map_err(|e| failed(format!("cannot write {}: {e}", path.display())))?.into(),
            None => output.handle()?,
        };
        let name = words.first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let env = env.iter().map(|(name, value)| (name.into(), value.into())).collect();
        Ok((Launch { program, words, env, folder, stdout, stderr: output.handle()? }, name))
    }

    /// Where the program called `name` is; found once for each search path.
    fn find(&self, name: &str, env: &BTreeMap<String, String>) -> Option<PathBuf> {
        let key = (name.to_owned(), env.get("PATH").cloned().unwrap_or_default());
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.entry(key).or_insert_with(|| direct::find(name, env)).clone()
    }
}

fn failed(message: impl Into<String>) -> Ended {
    Ended::Failed(StageError::new(message))
}

fn not_started(name: &str, error: &std::io::Error) -> Ended {
    Ended::Failed(StageError::new(format!("cannot start {name}: {error}")))
}

fn unwatched(error: std::io::Error) -> Ended {
    failed(format!("cannot watch the process: {error}"))
}

fn came_to_its_end(ended: &process::Ended, order: &Order) -> Result<(), Ended> {
    match (ended.how, order.timeout) {
        (End::Itself, _) => Ok(()),
        (End::TimedOut, Some(timeout)) => {
            let error = StageError::new(format!("it did not end within its timeout of {} s and was ended", timeout.as_secs_f64()));
            Err(Ended::Failed(error.help("give it more time with `timeout:`, or find out what it waits for")))
        }
        _ => Err(Ended::Cancelled),
    }
}

/// Where a process prints to: its log, or a pipe from which the lines go to the log and to whoever wants to see them.
struct Output {
    log: File,
    read: Option<OwnedFd>,
    write: Option<OwnedFd>,
}

impl Output {
    fn to_log(order: &Order) -> Result<Self, Ended> {
        let opened = File::options().create(true).append(true).open(&order.log);
        let log = opened.map_err(|e| failed(format!("cannot open the log {}: {e}", order.log.display())))?;
        let (read, write) = if order.verbose { pipe().map(|(read, write)| (Some(read), Some(write)))? } else { (None, None) };
        Ok(Self { log, read, write })
    }

    /// For the process.
    fn handle(&self) -> Result<OwnedFd, Ended> {
        let handle = match &self.write {
            Some(pipe) => pipe.try_clone(),
            None => self.log.try_clone().map(OwnedFd::from),
        };
        handle.map_err(|e| failed(format!("cannot open the log: {e}")))
    }

    /// Writes lines to the log.
    fn sink(&self) -> impl FnMut(&str) + use<> {
        let mut log = self.log.try_clone().ok();
        move |line| {
            if let Some(log) = &mut log {
                // What cannot be written to the log was still shown.
                let _ = writeln!(log, "{line}");
            }
        }
    }
}

/// The reading and the writing end of a pipe.
fn pipe() -> Result<(OwnedFd, OwnedFd), Ended> {
    let (read, write) = std::io::pipe().map_err(|e| failed(format!("cannot make a pipe: {e}")))?;
    Ok((read.into(), write.into()))
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
    /// Takes a line in; gives what is to be said of it now.
    fn line(&mut self, line: &str) -> Option<Said> {
        match serde_json::from_str(line) {
            Ok(Message::Progress(report)) => return Some(Said::Progress(report)),
            Ok(Message::Note { text }) => return Some(Said::Line(text)),
            Ok(Message::Metric { name, value }) => drop(self.outcome.metrics.insert(name, value)),
            Ok(Message::Done { peak_rss_kib }) => {
                self.done = true;
                self.outcome.peak_rss_kib = peak_rss_kib;
            }
            Ok(Message::Error(error)) => self.error = Some(error),
            Err(_) => self.error = Some(StageError::new(format!("the stage printed a line that is not a message: {line}"))),
        }
        None
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
