//! `trestle clean`.

use std::fs;
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use trestle_cache::Cache;

use crate::fail::Fail;
use crate::project;
use crate::render::words::bytes;

/// What can be made again, or is of no use any more.
const DISPOSABLE: [&str; 2] = ["logs", "out"];
/// How the file `format` of any version of a cache begins.
const CACHE_MARK: &str = "trestle cache ";

/// What `clean --help` ends with.
pub const EXAMPLES: &str = "Examples:
  trestle clean               logs, copies that `trestle out` laid out, leftovers of killed runs
  trestle clean --runs        also the account of past runs
  trestle clean --cache       the whole cache, after a question: the next run executes everything
  trestle clean --cache --yes without the question, for scripts
  trestle clean --dry-run     only say what would be removed

Without `--cache`, no output of a stage is lost: the next run executes nothing more than it would have.";

/// `clean`.
#[derive(Debug, Args)]
pub struct Clean {
    /// Also remove the account of past runs
    #[arg(long)]
    pub runs: bool,
    /// Remove the whole cache
    #[arg(long = "cache")]
    pub all: bool,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// Only say what would be removed
    #[arg(long)]
    pub dry_run: bool,
    /// Folder of the cache [default: .trestle at the root of the project]
    #[arg(long = "cache-dir", value_name = "DIR", env = "TRESTLE_CACHE")]
    pub folder: Option<PathBuf>,
}

/// Removes what can be spared.
pub fn clean(args: &Clean) -> Result<ExitCode, Fail> {
    let folder = project::folder(args.folder.as_deref())?;
    if !folder.exists() {
        return crate::print("nothing to remove\n");
    }
    if !fs::read_to_string(folder.join("format")).is_ok_and(|text| text.starts_with(CACHE_MARK)) {
        return Err(Fail::with_help(format!("{} is not a cache of trestle", folder.display()), "nothing was removed"));
    }
    if args.all { whole(args, &folder) } else { parts(args, &folder) }
}

fn parts(args: &Clean, folder: &Path) -> Result<ExitCode, Fail> {
    let cache = Cache::open(folder)?;
    let _held = project::alone(&cache)?;
    let mut text = String::new();
    let names = DISPOSABLE.iter().copied().chain(args.runs.then_some(project::RUNS));
    for path in names.map(|name| folder.join(name)).filter(|path| path.exists()) {
        let size = size(&path)?;
        if !args.dry_run {
            remove(&path)?;
        }
        text.push_str(&format!("{} {} ({})\n", removed(args.dry_run), path.display(), bytes(size)));
    }
    if !args.dry_run {
        let count = cache.sweep_tmp(&mut |folder| trestle_engine::executor::end_below(folder))?;
        if count > 0 {
            text.push_str(&format!("removed {count} leftover{} of killed runs\n", if count == 1 { "" } else { "s" }));
        }
    }
    crate::print(if text.is_empty() { "nothing to remove\n" } else { &text })
}

fn whole(args: &Clean, folder: &Path) -> Result<ExitCode, Fail> {
    // A cache of another version cannot be opened, and no run of ours can be using it.
    let cache = Cache::open(folder).ok();
    let _held = cache.as_ref().map(project::alone).transpose()?;
    let size = bytes(size(folder)?);
    if !args.dry_run && !args.yes && !agreed(&format!("Remove {} ({size})? Every stage will run again. [y/N] ", folder.display()))? {
        return crate::print("nothing was removed\n");
    }
    if !args.dry_run {
        remove(folder)?;
    }
    crate::print(&format!("{} {} ({size})\n", removed(args.dry_run), folder.display()))
}

fn removed(is_dry: bool) -> &'static str {
    if is_dry { "would remove" } else { "removed" }
}

/// Asks in a terminal; elsewhere nobody could answer.
fn agreed(question: &str) -> Result<bool, Fail> {
    if !std::io::stdin().is_terminal() {
        return Err(Fail::with_help("`clean --cache` asks before it removes anything, and nobody can answer here", "add `--yes`"));
    }
    let failed = |e: std::io::Error| Fail::message(format!("cannot ask: {e}"));
    let mut out = std::io::stdout();
    out.write_all(question.as_bytes()).and_then(|()| out.flush()).map_err(failed)?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(failed)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn remove(path: &Path) -> Result<(), Fail> {
    fs::remove_dir_all(path).map_err(|e| Fail::message(format!("cannot remove {}: {e}", path.display())))
}

/// Bytes of all files below a folder. Links are not followed.
fn size(folder: &Path) -> Result<u64, Fail> {
    let cannot = |path: &Path| {
        let path = path.to_owned();
        move |e: std::io::Error| Fail::message(format!("cannot read {}: {e}", path.display()))
    };
    let (mut total, mut open) = (0, vec![folder.to_owned()]);
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).map_err(cannot(&folder))? {
            let entry = entry.map_err(cannot(&folder))?;
            let meta = entry.metadata().map_err(cannot(&entry.path()))?;
            if meta.is_dir() { open.push(entry.path()) } else { total += meta.len() }
        }
    }
    Ok(total)
}
