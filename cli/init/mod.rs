//! `trestle init`.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use crate::fail::Fail;

/// What is written, by its path below the folder.
const FILES: [(&str, &str); 2] = [("trestle.yaml", include_str!("trestle.yaml")), ("data/text.txt", include_str!("text.txt"))];
/// What git is to pass by.
const IGNORED: &str = ".trestle/";

/// What `init --help` ends with.
pub const EXAMPLES: &str = "Examples:
  trestle init          in this folder
  trestle init words    in a new folder";

/// `init`.
#[derive(Debug, Args)]
pub struct Init {
    /// Folder of the pipeline; it is made if it is not there
    #[arg(default_value = ".")]
    pub dir: PathBuf,
}

/// Writes a first pipeline that runs; replaces nothing.
pub fn init(args: &Init) -> Result<ExitCode, Fail> {
    let taken: Vec<&str> = FILES.iter().map(|(name, _)| *name).filter(|name| fs::symlink_metadata(args.dir.join(name)).is_ok()).collect();
    if !taken.is_empty() {
        return Err(Fail::with_help(
            format!("{} has a {} already; nothing was written", args.dir.display(), taken.join(" and a ")),
            "name another folder: `trestle init <DIR>`",
        ));
    }
    let mut text = String::new();
    for (name, contents) in FILES {
        write_new(&args.dir.join(name), contents)?;
        text.push_str(&format!("wrote {}\n", args.dir.join(name).display()));
    }
    let ignore = args.dir.join(".gitignore");
    if add_line(&ignore, IGNORED)? {
        text.push_str(&format!("added `{IGNORED}` to {}\n", ignore.display()));
    }
    text.push_str(&format!("\nnext: {}trestle run\n", change_folder(&args.dir)));
    crate::print(&text)
}

fn change_folder(dir: &Path) -> String {
    if dir == Path::new(".") { String::new() } else { format!("cd {} && ", words(dir)) }
}

/// A path that a shell reads as one word.
fn words(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = text.chars().all(|c| c.is_alphanumeric() || "/._-".contains(c));
    if plain { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

fn write_new(path: &Path, contents: &str) -> Result<(), Fail> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|e| Fail::message(format!("cannot create {}: {e}", folder.display())))?;
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(|e| Fail::message(format!("cannot create {}: {e}", path.display())))?;
    file.write_all(contents.as_bytes()).map_err(|e| Fail::message(format!("cannot write {}: {e}", path.display())))
}

/// Adds a line to the end of a file that does not have it; says whether it did.
fn add_line(path: &Path, line: &str) -> Result<bool, Fail> {
    let text = match fs::read_to_string(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        other => other.map_err(|e| Fail::message(format!("cannot read {}: {e}", path.display())))?,
    };
    let bare = |line: &str| line.trim().trim_matches('/').to_owned();
    if text.lines().any(|other| bare(other) == bare(line)) {
        return Ok(false);
    }
    let gap = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .map_err(|e| Fail::message(format!("cannot open {}: {e}", path.display())))?;
    writeln!(file, "{gap}{line}").map_err(|e| Fail::message(format!("cannot write {}: {e}", path.display())))?;
    Ok(true)
}
