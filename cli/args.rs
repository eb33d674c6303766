//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

const ABOUT: &str = "A pipeline engine for experiments that people can believe and repeat.

A YAML file names stages; every stage's output is cached under a key made of all that can change it,
so that a repeated run executes only what changed.";

const EXAMPLES: &str = "Examples:
  trestle run pipelines/quickstart.yaml              run everything that changed
  trestle run pipelines/quickstart.yaml table -j 2   only what `table` needs, on two threads
  trestle run --set shots=10                         the same with another param (file: trestle.yaml)
  trestle plan pipelines/quickstart.yaml             what would run, and why
  trestle explain 'adapt[seed=1]'                    which ingredient changed, old and new
  trestle out table --to results/                    a copy of a stage's outputs

Exit codes: 0 done, 1 a stage failed, 2 the pipeline or the command line is wrong, 130 interrupted.";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(name = "trestle", version, about = ABOUT, after_help = EXAMPLES, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do. The options of one are made when it is called: those of all would take a third of a millisecond.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub enum Command {
    /// Write a first pipeline that runs
    #[command(after_help = crate::init::EXAMPLES)]
    Init(crate::init::Init),
    /// Find the mistakes of a pipeline file; execute nothing
    #[command(after_help = crate::check::EXAMPLES)]
    Check(crate::check::Check),
    /// List the stages: what each does and reads
    #[command(after_help = crate::list::EXAMPLES)]
    List(crate::list::List),
    /// Say which stages are cached, since when and how large, and which are to run
    #[command(after_help = crate::status::EXAMPLES)]
    Status(crate::status::Status),
    /// List past runs
    #[command(after_help = crate::runs::EXAMPLES)]
    Runs(crate::runs::Runs),
    /// Compare two past runs: params, keys, metrics and times, and why a stage differs
    #[command(after_help = crate::diff::EXAMPLES)]
    Diff(crate::diff::Diff),
    /// Write down what each stage gave, in a small file for version control; or compare with it
    #[command(after_help = crate::lock::EXAMPLES)]
    Lock(crate::lock::LockArgs),
    /// Run cached stages again in a scratch place and compare what they give
    #[command(after_help = crate::verify::EXAMPLES)]
    Verify(crate::verify::VerifyArgs),
    /// Run, and run again on every change
    #[command(after_help = crate::watch::EXAMPLES)]
    Watch(crate::watch::Watch),
    /// Remove logs, copies and leftovers; with --cache, everything
    #[command(after_help = crate::clean::EXAMPLES)]
    Clean(crate::clean::Clean),
    /// Run what changed
    #[command(after_help = "Examples:
  trestle run                                        trestle.yaml in this folder
  trestle run pipelines/quickstart.yaml 'score[*]'   all expansions of a stage, and what they need
  trestle run --set optim.lr=0.1 --keep-going
  trestle run --format json | tail -n 1              the summary for a script")]
    Run(Run),
    /// Show what would run, why, and about how long it takes; execute nothing
    #[command(after_help = crate::plan::EXAMPLES)]
    Plan(Plan),
    /// Show why a stage would run: which ingredient changed, old and new
    Explain(Explain),
    /// Draw the graph of stages
    Graph(Graph),
    /// Say where a stage's output is, or copy it
    #[command(after_help = "Examples:
  trestle out table                  paths of all outputs of `table`
  trestle out table csv              the path of one
  trestle out table --to results/    copies of them")]
    Out(Out),
    /// Print what a stage printed when it last ran
    Log(Log),
    /// Look after the cache: make room, find damage
    #[command(subcommand)]
    Cache(CacheCommand),
    /// Print the JSON Schema of pipeline files, for editors
    Schema,
    /// Print completions for a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Run one job file (the engine calls this for itself)
    #[command(hide = true)]
    Job {
        /// The job file
        file: PathBuf,
    },
}

/// Where the pipeline is and with which values.
#[derive(Debug, Clone, Args)]
pub struct Source {
    /// Pipeline file [default: trestle.yaml]; it may also stand first among the words
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Give a declared param another value; repeatable, dotted paths reach inside
    #[arg(long = "set", value_name = "NAME=VALUE")]
    pub set: Vec<String>,
    /// Lay a file of params (a map) over the declared ones; repeatable
    #[arg(long = "params", value_name = "FILE")]
    pub params: Vec<PathBuf>,
    /// Use the params of one of the pipeline's profiles
    #[arg(long, value_name = "NAME")]
    pub profile: Option<String>,
    /// Folder of the cache [default: .trestle at the root of the project]
    #[arg(long, value_name = "DIR", env = "TRESTLE_CACHE")]
    pub cache: Option<PathBuf>,
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Human,
    /// One JSON value a line
    Json,
}

/// How to print what a CI run can show beside the code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Report {
    /// For people
    Human,
    /// One JSON value a line
    Json,
    /// Annotations of a GitHub Actions run
    Github,
}

/// `run`.
#[derive(Debug, Args)]
pub struct Run {
    /// Pipeline file, then stages to run (with all that they need); `*` stands for anything
    #[arg(value_name = "FILE | TARGET")]
    pub words: Vec<String>,
    #[command(flatten)]
    pub source: Source,
    /// Threads to use at a time [default: all of the machine]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub jobs: Option<u16>,
    /// After a failure go on with what does not depend on it
    #[arg(short, long)]
    pub keep_going: bool,
    /// Fail where a stage would not be what the lock says (see `trestle lock`)
    #[arg(long)]
    pub locked: bool,
    /// Also print annotations: why stages run, and what failed
    #[arg(long, conflicts_with = "format")]
    pub ci: bool,
    /// Show every line that stages print
    #[arg(short, long)]
    pub verbose: bool,
    /// What keeps commands from files that they did not declare
    #[arg(long, value_enum, default_value = "auto", env = "TRESTLE_SANDBOX")]
    pub sandbox: SandboxMode,
    /// How to print
    #[arg(long, value_enum, default_value = "human")]
    pub format: Format,
}

/// See [`trestle_engine::executor::Sandbox`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SandboxMode {
    /// Landlock, or commands do not run
    Strict,
    /// Landlock where the kernel has it, else a folder of its own alone
    Auto,
    /// A folder of its own alone
    Off,
}

impl From<SandboxMode> for trestle_engine::executor::Sandbox {
    fn from(mode: SandboxMode) -> Self {
        match mode {
            SandboxMode::Strict => Self::Strict,
            SandboxMode::Auto => Self::Auto,
            SandboxMode::Off => Self::Off,
        }
    }
}

/// `plan`.
#[derive(Debug, Args)]
pub struct Plan {
    /// Pipeline file, then stages to plan for
    #[arg(value_name = "FILE | TARGET")]
    pub words: Vec<String>,
    #[command(flatten)]
    pub source: Source,
    /// Threads to reckon the time with [default: all of the machine]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub jobs: Option<u16>,
    /// How to print
    #[arg(long, value_enum, default_value = "human")]
    pub format: Report,
}

/// `cache`.
#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// Make room: remove what no pipeline used in its last run, the oldest first
    #[command(after_help = "Examples:
  trestle cache gc --dry-run                       what no record names any more
  trestle cache gc --max-age 30d --max-size 20GiB

What some pipeline of this cache had in its last run always stays; `--keep trestle.lock` also keeps what a lock names.")]
    Gc(Gc),
    /// Read everything again and say what is damaged
    #[command(after_help = "Examples:
  trestle cache verify              exit code 1 if something is damaged
  trestle cache verify --repair     and remove it, so that the stages that made it run again")]
    Verify(Verify),
}

/// `cache gc`.
#[derive(Debug, Args)]
pub struct Gc {
    /// Remove until at most this much is left, such as 20GiB
    #[arg(long, value_name = "SIZE")]
    pub max_size: Option<String>,
    /// Remove what was made longer ago than this, such as 30d
    #[arg(long, value_name = "AGE")]
    pub max_age: Option<String>,
    /// Also keep what this lock names (see `trestle lock`); repeatable
    #[arg(long, value_name = "LOCK")]
    pub keep: Vec<PathBuf>,
    /// Only say what would go
    #[arg(long)]
    pub dry_run: bool,
    /// Folder of the cache [default: .trestle of the project in which this is called]
    #[arg(long, value_name = "DIR", env = "TRESTLE_CACHE")]
    pub cache: Option<PathBuf>,
    /// How to print
    #[arg(long, value_enum, default_value = "human")]
    pub format: Format,
}

/// `cache verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// Remove what is damaged
    #[arg(long)]
    pub repair: bool,
    /// Folder of the cache [default: .trestle of the project in which this is called]
    #[arg(long, value_name = "DIR", env = "TRESTLE_CACHE")]
    pub cache: Option<PathBuf>,
    /// How to print
    #[arg(long, value_enum, default_value = "human")]
    pub format: Format,
}

/// `explain`.
#[derive(Debug, Args)]
pub struct Explain {
    /// The stage, or the pipeline file and then the stage
    #[arg(value_name = "FILE | STAGE", required = true)]
    pub words: Vec<String>,
    #[command(flatten)]
    pub source: Source,
    /// How to print
    #[arg(long, value_enum, default_value = "human")]
    pub format: Format,
}

/// `graph`.
#[derive(Debug, Args)]
pub struct Graph {
    /// Pipeline file, then stages to draw (with all that they need)
    #[arg(value_name = "FILE | TARGET")]
    pub words: Vec<String>,
    #[command(flatten)]
    pub source: Source,
    /// How to draw
    #[arg(long, value_enum, default_value = "dot")]
    pub format: GraphFormat,
    /// Draw a stage with a matrix as one box
    #[arg(long)]
    pub collapse: bool,
}

/// A way to draw a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum GraphFormat {
    /// Graphviz
    Dot,
    /// Mermaid, for Markdown pages
    Mermaid,
    /// A picture
    Svg,
}

/// `out`.
#[derive(Debug, Args)]
pub struct Out {
    /// The stage, then the output's name if only one is wanted; the pipeline file may stand first
    #[arg(value_name = "FILE | STAGE | NAME", required = true)]
    pub words: Vec<String>,
    #[command(flatten)]
    pub source: Source,
    /// Copy into this folder
    #[arg(long, value_name = "DIR")]
    pub to: Option<PathBuf>,
}

/// `log`.
#[derive(Debug, Args)]
pub struct Log {
    /// The stage, or the pipeline file and then the stage
    #[arg(value_name = "FILE | STAGE", required = true)]
    pub words: Vec<String>,
    #[command(flatten)]
    pub source: Source,
}
