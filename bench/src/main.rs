//! Measures trestle beside other build systems: the same graph, the same machine, the same run.
//!
//! `cargo run --release -p trestle-bench -- --help`; `docs/benchmarks.md` says what is measured and how.
// A program for the terminal.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod check;
mod dag;
mod goals;
mod hash;
mod machine;
mod measure;
mod mersenne;
mod phases;
mod report;
mod results;
mod tools;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Parser;

use dag::Shape;
use hash::Amounts;
use machine::Machine;
use phases::Settings;
use results::Results;
use tools::{PEERS, Phase, Tool};

/// Measures trestle beside other build systems.
#[derive(Debug, Parser)]
struct Args {
    /// The binary that is judged.
    #[arg(long, default_value = "target/release/trestle")]
    trestle: PathBuf,
    /// Shapes of graphs.
    #[arg(long, value_delimiter = ',', default_value = "wide,chain,layered")]
    shapes: Vec<Shape>,
    /// Numbers of stages; multiples of ten.
    #[arg(long, value_delimiter = ',', default_value = "100,1000,10000,100000")]
    sizes: Vec<usize>,
    /// Peers that it is compared with, where they are installed.
    #[arg(long, value_delimiter = ',', default_value = "ninja,n2,make,snakemake,dvc")]
    peers: Vec<String>,
    /// Where a peer (or b3sum) is, if not in PATH; repeatable.
    #[arg(long, value_name = "NAME=PATH")]
    peer_path: Vec<String>,
    /// What is measured.
    #[arg(long, value_delimiter = ',', default_value = "full,noop,plan,leaf,mid,hash,git-status")]
    phases: Vec<Phase>,
    /// Rounds; runs below a second get three times as many.
    #[arg(long, default_value_t = 5)]
    repeat: usize,
    /// Seconds that one run may take; who has spent as many in a phase is not repeated.
    #[arg(long, default_value_t = 300.0)]
    limit: f64,
    /// Stages at a time for all tools [default: what each takes by itself; for make the number of processors].
    #[arg(long)]
    jobs: Option<usize>,
    /// Another way to call `trestle run`, measured as a further tool in full runs; repeatable
    /// [default: `sandbox-off=--sandbox off` where the binary has that option].
    #[arg(long, value_name = "NAME=ARGUMENTS", allow_hyphen_values = true)]
    trestle_args: Vec<String>,
    /// Where the figures go, as JSON.
    #[arg(long, default_value = "results.json")]
    out: PathBuf,
    /// Folder for the projects [default: a new one in the folder for temporary files].
    #[arg(long)]
    work: Option<PathBuf>,
    /// Leave the projects there at the end.
    #[arg(long)]
    keep: bool,
    /// Size of the one large file, MiB.
    #[arg(long, default_value_t = 4096)]
    hash_mib: u64,
    /// Number of files of 100 KiB.
    #[arg(long, default_value_t = 10_000)]
    hash_files: usize,
    /// Number of unchanged files beside `git status`.
    #[arg(long, default_value_t = 100_000)]
    status_files: usize,
}

fn main() -> ExitCode {
    let done = match std::env::args().nth(1).as_deref() {
        Some(measure::STARTER) => measure::starter().map(|figures| println!("{figures}")),
        _ => bench(&Args::parse()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}

fn bench(args: &Args) -> Result<(), String> {
    let work = args.work.clone().unwrap_or_else(|| std::env::temp_dir().join(format!("trestle-bench-{}", std::process::id())));
    std::fs::create_dir_all(&work).map_err(|e| format!("{}: {e}", work.display()))?;
    let work = work.canonicalize().map_err(|e| format!("{}: {e}", work.display()))?;
    let (tools, mut absent) = tools(args, &installed(&args.trestle, &work)?)?;
    let settings =
        Settings { work: work.clone(), phases: args.phases.clone(), repeat: args.repeat.max(1), limit: args.limit, keep: args.keep };
    let mut results = Results {
        arguments: std::env::args().skip(1).collect(),
        machine: Machine::here(&work),
        tools: tools.iter().map(|tool| (tool.name.clone(), tool.version.clone())).collect(),
        absent: Vec::new(),
        rows: Vec::new(),
    };
    results.absent.append(&mut absent);
    let measured = graphs(args, &settings, &tools, &mut results).and_then(|()| sources(args, &settings, &tools[0], &mut results));
    results.machine.load_after = machine::load();
    let written = results.write(&args.out);
    let removed = if args.keep { Ok(()) } else { tools::remove(&work).map_err(|e| format!("{}: {e}", work.display())) };
    measured.and(written).and(removed)?;
    print!("{}", report::markdown(&results));
    Ok(())
}

/// A copy of the binary, as an installed one is. The linker writes its file in no order, and then every start takes a quarter of a millisecond longer: the
/// system keeps such a file in small pages.
fn installed(trestle: &Path, work: &Path) -> Result<PathBuf, String> {
    let copy = work.join("bin").join("trestle");
    let cannot =
        |e: std::io::Error| format!("{}: {e}; build it with `cargo build --release` or name another with --trestle", trestle.display());
    std::fs::create_dir_all(work.join("bin")).and_then(|()| std::fs::copy(trestle, &copy)).map_err(cannot)?;
    Ok(copy)
}

/// All tools that are here, trestle first, and who is not.
fn tools(args: &Args, trestle: &Path) -> Result<(Vec<Tool>, Vec<String>), String> {
    let mut tools = vec![Tool::trestle(trestle, None, Vec::new(), args.jobs)?];
    let mut absent = Vec::new();
    for variant in &args.trestle_args {
        let (name, words) = variant.split_once('=').ok_or_else(|| format!("`--trestle-args {variant}`: write NAME=ARGUMENTS"))?;
        tools.push(Tool::trestle(trestle, Some(name), words.split_whitespace().map(str::to_owned).collect(), args.jobs)?);
    }
    if args.trestle_args.is_empty() {
        if has_sandbox(trestle) {
            tools.push(Tool::trestle(trestle, Some("sandbox-off"), ["--sandbox", "off"].map(str::to_owned).to_vec(), args.jobs)?);
        } else {
            absent.push("trestle sandbox-off: this binary has no `--sandbox`".to_owned());
        }
    }
    for name in args.peers.iter().filter(|name| !name.is_empty()) {
        match Tool::peer(name, path_of(args, name)?.as_deref(), args.jobs) {
            Ok(tool) => tools.push(tool),
            Err(why) if PEERS.contains(&name.as_str()) => absent.push(format!("{name}: {why}")),
            Err(why) => return Err(why),
        }
    }
    Ok((tools, absent))
}

fn has_sandbox(trestle: &Path) -> bool {
    let help = Command::new(trestle).args(["run", "--help"]).output();
    help.is_ok_and(|help| String::from_utf8_lossy(&help.stdout).contains("--sandbox"))
}

/// What `--peer-path` says of a tool.
fn path_of(args: &Args, name: &str) -> Result<Option<PathBuf>, String> {
    for entry in &args.peer_path {
        let (key, path) = entry.split_once('=').ok_or_else(|| format!("`--peer-path {entry}`: write NAME=PATH"))?;
        if key == name {
            return Path::new(path).canonicalize().map(Some).map_err(|e| format!("{path}: {e}"));
        }
    }
    Ok(None)
}

fn graphs(args: &Args, settings: &Settings, tools: &[Tool], results: &mut Results) -> Result<(), String> {
    if args.phases.iter().all(|phase| matches!(phase, Phase::Hash | Phase::GitStatus)) {
        return Ok(());
    }
    for shape in &args.shapes {
        // A larger graph takes longer still.
        let mut too_slow: Vec<String> = Vec::new();
        for &n in &args.sizes {
            let left: Vec<&Tool> = tools.iter().filter(|tool| !too_slow.contains(&tool.name)).collect();
            let (rows, outs) = phases::graph(settings, &left, *shape, n)?;
            let ended = |row: &&results::Row| row.invalid.as_deref().is_some_and(|why| why.starts_with("ended after"));
            too_slow.extend(rows.iter().filter(ended).map(|row| row.tool.clone()));
            for row in &rows {
                eprintln!(
                    "{} {n} {:?} {}: {}",
                    shape.name(),
                    row.phase,
                    row.tool,
                    row.invalid.clone().unwrap_or(report::seconds(row.wall))
                );
            }
            results.rows.extend(rows);
            if !settings.phases.contains(&Phase::Full) {
                results.absent.extend(outs);
            }
            results.write(&args.out)?;
        }
        for name in too_slow {
            results.absent.push(format!("{name}: larger {} graphs than the one where it took too long", shape.name()));
        }
    }
    Ok(())
}

fn sources(args: &Args, settings: &Settings, trestle: &Tool, results: &mut Results) -> Result<(), String> {
    let amounts = Amounts { large: args.hash_mib << 20, files: args.hash_files, each: 100 << 10, tracked: args.status_files };
    if args.phases.contains(&Phase::Hash) {
        let b3sum = path_of(args, "b3sum")?.map_or_else(|| "b3sum".to_owned(), |path| path.display().to_string());
        match tools::version(&b3sum) {
            Ok(version) => {
                results.tools.push(("b3sum".to_owned(), version));
                results.rows.extend(hash::first(settings, trestle, &b3sum, &amounts)?);
            }
            Err(why) => results.absent.push(format!("hashing: {why}")),
        }
    }
    if args.phases.contains(&Phase::GitStatus) {
        match tools::version("git") {
            Ok(version) => {
                results.tools.push(("git".to_owned(), version));
                results.rows.extend(hash::unchanged(settings, trestle, &amounts)?);
            }
            Err(why) => results.absent.push(format!("unchanged files: {why}")),
        }
    }
    results.write(&args.out)
}
