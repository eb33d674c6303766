//! `trestle lock`, and `run --locked`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};
use trestle_cache::{ActionRecord, Cache};
use trestle_engine::event::Event;
use trestle_engine::lock::{Deviation, Lock, Locked, check, merge, other_outputs};
use trestle_engine::plan::{Fate, plan};

use crate::args::{Report, Source};
use crate::fail::Fail;
use crate::github::{Annotation, Level};
use crate::project::{Project, Session};
use crate::render::words;

/// Most stages that an error names.
const NAMED: usize = 8;

/// What `lock --help` ends with.
pub const EXAMPLES: &str = "Examples:
  trestle lock                   write trestle.lock beside trestle.yaml: what each stage gave
  trestle lock --check           which stages are not what the lock says; executes nothing, needs no outputs
  trestle run --locked           run, and fail where a stage would not be what the lock says

Stages of two branches merge one by one if git knows how (once in .gitattributes, once for each clone):
  echo '*.lock merge=trestle-lock' >> .gitattributes
  git config merge.trestle-lock.driver 'trestle lock --merge %O %A %B'

Exit codes: 0 as locked, 1 not as locked or a merge with conflicts, 2 the pipeline or the lock cannot be read.";

/// `lock`.
#[derive(Debug, Args)]
pub struct LockArgs {
    /// Pipeline file; the lock has its name with `.lock`
    #[arg(value_name = "FILE")]
    pub words: Vec<String>,
    #[command(flatten)]
    pub source: Source,
    /// Compare with the lock instead of writing it
    #[arg(long)]
    pub check: bool,
    /// Merge three versions of a lock, stage by stage, into the second: git's merge driver
    #[arg(long, num_args = 3, value_names = ["BASE", "OURS", "THEIRS"], conflicts_with_all = ["check", "words"])]
    pub merge: Option<Vec<PathBuf>>,
    /// How to print what `--check` finds
    #[arg(long, value_enum, default_value = "human")]
    pub format: Report,
}

/// Writes, checks or merges a lock.
pub fn lock(args: &LockArgs) -> Result<ExitCode, Fail> {
    if let Some([base, ours, theirs]) = args.merge.as_deref() {
        return merge_files(base, ours, theirs);
    }
    let whole = |words: &[String]| match words.first() {
        Some(word) => Err(Fail::with_help(format!("`{word}` is not a pipeline file"), "a lock is of a whole pipeline")),
        None => Ok(()),
    };
    if args.check {
        let (session, words) = Session::open(&args.words, &args.source)?;
        whole(&words)?;
        compare(&session, args.format)
    } else {
        let (project, words) = Project::open(&args.words, &args.source, &trestle_stages::registry())?;
        whole(&words)?;
        write(&project)
    }
}

/// Where the lock of a pipeline file is.
fn path(file: &Path) -> PathBuf {
    file.with_extension("lock")
}

fn write(project: &Project) -> Result<ExitCode, Fail> {
    let pipeline = &project.pipeline;
    let fates = plan(pipeline, &vec![true; pipeline.stages.len()], &project.cache, &project.history)?;
    project.cache.flush()?;
    let mut lock = Lock::default();
    let mut missing = Vec::new();
    for (id, fate) in fates {
        let name = pipeline.stages[id].name.clone();
        match fate {
            Fate::Hit(record) => drop(lock.stages.insert(name, locked(*record))),
            Fate::Run(_) | Fate::Later(_) => missing.push(name),
        }
    }
    if !missing.is_empty() {
        return Err(Fail::with_help(
            format!("{} without outputs to lock: {}", words::count(missing.len(), "stage"), some(&missing)),
            "`trestle run` first; `trestle status` says why they are not cached",
        ));
    }
    let path = path(&project.file);
    let text = lock.to_string();
    let before = fs::read_to_string(&path).ok();
    let count = lock.stages.len();
    if before.as_ref() == Some(&text) {
        return crate::print(&format!("{} is up to date: {}\n", path.display(), words::count(count, "stage")));
    }
    // Whole or not at all: it is under version control, but a torn one would be a nuisance.
    let temporary = path.with_extension("lock.new");
    let failed = |e: std::io::Error| Fail::message(format!("cannot write {}: {e}", path.display()));
    fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, &path)).map_err(failed)?;
    let changed = before.and_then(|text| Lock::parse(&text).ok()).map(|before| changed(&before, &lock)).unwrap_or(count);
    crate::print(&format!("wrote {}: {}, {changed} new or changed\n", path.display(), words::count(count, "stage")))
}

fn locked(record: ActionRecord) -> Locked {
    Locked { key: record.key, outputs: record.outputs }
}

fn changed(before: &Lock, now: &Lock) -> usize {
    now.stages.iter().filter(|(name, stage)| before.stages.get(*name) != Some(*stage)).count()
}

/// The first few names.
fn some(names: &[String]) -> String {
    let shown = names.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > NAMED { format!("{shown}, …") } else { shown }
}

/// The lock in a file.
pub fn read(path: &Path) -> Result<Lock, Fail> {
    let text = fs::read_to_string(path)
        .map_err(|e| Fail::with_help(format!("cannot read the lock {}: {e}", path.display()), "`trestle lock` writes it"))?;
    Ok(Lock::parse(&text)?)
}

fn compare(session: &Session, format: Report) -> Result<ExitCode, Fail> {
    let path = path(session.file());
    let lock = read(&path)?;
    let deviations = check(&session.compiled, &|_| true, &lock, &session.cache)?;
    session.cache.flush()?;
    let mut text = String::new();
    for (stage, deviation) in &deviations {
        let lines = in_words(deviation, &session.cache)?;
        text.push_str(&match format {
            Report::Human => format!("{stage}: {}\n", lines.join("; ")),
            Report::Json => format!("{}\n", value(stage, deviation, &lines)),
            Report::Github => {
                let (title, message) = (format!("{stage} is not as locked"), lines.join("\n"));
                format!("{}\n", Annotation { level: Level::Error, place: None, title: &title, message: &message })
            }
        });
    }
    let (count, stages) = (deviations.len(), session.compiled.len());
    match format {
        Report::Human if count == 0 => text.push_str(&format!("ok: {} as locked\n", words::count(stages, "stage"))),
        Report::Human => text.push_str(&format!("not what {} says: {count} of {}\n", path.display(), words::count(stages, "stage"))),
        Report::Json => text.push_str(&format!("{}\n", json!({"event": "checked", "stages": stages, "deviations": count}))),
        Report::Github => {}
    }
    crate::print(&text)?;
    Ok(if count == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn value(stage: &str, deviation: &Deviation, lines: &[String]) -> Value {
    let mut value = json!({"event": "deviation", "stage": stage, "why": lines});
    if let Deviation::Key { locked, now, .. } = deviation {
        value["locked"] = json!(locked.to_string());
        value["key"] = json!(now.to_string());
    }
    value
}

/// How a stage deviates, one thing a line.
fn in_words(deviation: &Deviation, cache: &Cache) -> Result<Vec<String>, Fail> {
    Ok(match deviation {
        Deviation::New => vec!["the lock does not have it".to_owned()],
        Deviation::Gone => vec!["the pipeline does not have it any more".to_owned()],
        Deviation::Outputs { names } => {
            vec![format!("under the same key the cache has other outputs than the lock: {}", some(names))]
        }
        Deviation::Key { locked, now, manifest } => match cache.record(locked)? {
            Some(record) => record.manifest.diff(manifest).iter().map(words::change).collect(),
            None => vec![format!("its key would be {} and is locked as {}", now.short(), locked.short())],
        },
    })
}

fn merge_files(base: &Path, ours: &Path, theirs: &Path) -> Result<ExitCode, Fail> {
    let (text, is_clean) = merge(&read(base)?, &read(ours)?, &read(theirs)?);
    fs::write(ours, text).map_err(|e| Fail::message(format!("cannot write {}: {e}", ours.display())))?;
    Ok(if is_clean { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Holds a run to a lock.
pub struct Held {
    lock: Lock,
    /// The first stage that turned out otherwise, and how.
    broken: Option<String>,
}

impl Held {
    /// Reads the lock of a project; fails if a wanted stage would not be what it says.
    pub fn begin(session: &Session, wanted: &dyn Fn(usize) -> bool) -> Result<Self, Fail> {
        let path = path(session.file());
        let lock = read(&path)?;
        let is_gone = |deviation: &Deviation| *deviation == Deviation::Gone;
        let is_all = (0..session.compiled.len()).all(wanted);
        let deviations = check(&session.compiled, wanted, &lock, &session.cache)?;
        let lines: Vec<String> = deviations
            .iter()
            .filter(|(_, deviation)| is_all || !is_gone(deviation))
            .map(|(stage, deviation)| Ok(format!("{stage}: {}", in_words(deviation, &session.cache)?.join("; "))))
            .collect::<Result<_, Fail>>()?;
        if lines.is_empty() {
            return Ok(Self { lock, broken: None });
        }
        let more = if lines.len() > NAMED { format!("\n… and {} more", lines.len() - NAMED) } else { String::new() };
        Err(Fail::Locked(format!(
            "{} not what {} says; nothing was run\n{}{more}",
            words::count(lines.len(), "stage"),
            path.display(),
            lines[..lines.len().min(NAMED)].join("\n")
        )))
    }

    /// Looks at an event; false if the run is to end, because a stage gave something else.
    pub fn allows(&mut self, event: &Event, cache: &Cache) -> bool {
        if self.broken.is_none()
            && let Event::Cached { stage, key } | Event::Done { stage, key, .. } = event
        {
            self.broken = self.complaint(stage, key, cache);
        }
        self.broken.is_none()
    }

    fn complaint(&self, stage: &str, key: &str, cache: &Cache) -> Option<String> {
        let Some(locked) = self.lock.stages.get(stage) else { return Some(format!("`{stage}` is not in the lock")) };
        if locked.key.to_string() != key {
            return Some(format!("`{stage}` has another key than the lock says"));
        }
        let outputs = cache.record(&locked.key).ok().flatten().map_or_else(BTreeMap::new, |record| record.outputs);
        let names = other_outputs(locked, &outputs);
        (!names.is_empty()).then(|| format!("`{stage}` gave other outputs than the lock says: {}", some(&names)))
    }

    /// The complaint that ended the run.
    ///
    /// # Errors
    /// There is one.
    pub fn end(self) -> Result<(), Fail> {
        match self.broken {
            None => Ok(()),
            Some(complaint) => Err(Fail::Locked(format!("{complaint}; the run was ended"))),
        }
    }
}
