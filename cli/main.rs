//! The `trestle` command: reads the command line and the environment, calls the engine, prints, and exits.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is the one place that prints")]

mod args;
mod cache;
mod check;
mod clean;
mod diff;
mod explain;
mod fail;
mod github;
mod graph;
mod init;
mod job;
mod list;
mod lists;
mod lock;
mod log;
mod memory;
mod out;
mod plan;
mod project;
mod render;
mod run;
mod runs;
mod status;
mod turns;
mod verify;
mod watch;
mod words;
mod written;

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Cli, Command};
use fail::Fail;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Check(args) => check::check(&args),
        Command::List(args) => list::list(&args),
        Command::Status(args) => status::status(&args),
        Command::Runs(args) => runs::runs(&args),
        Command::Diff(args) => diff::diff(&args),
        Command::Watch(args) => watch::watch(&args),
        Command::Clean(args) => clean::clean(&args),
        Command::Lock(args) => lock::lock(&args),
        Command::Verify(args) => verify::verify(&args),
        Command::Init(args) => init::init(&args),
        Command::Run(args) => run::run(&args),
        Command::Plan(args) => afresh(&args.words, &args.source, || plan::plan(&args)),
        Command::Explain(args) => explain::explain(&args),
        Command::Graph(args) => graph::graph(&args),
        Command::Out(args) => out::out(&args),
        Command::Log(args) => log::log(&args),
        Command::Cache(command) => cache::cache(&command),
        Command::Schema => schema(),
        Command::Completions { shell } => completions(shell),
        Command::Job { file } => job::job(&file),
    };
    match result {
        Ok(ExitCode::SUCCESS) => memory::leave(),
        Ok(code) => code,
        Err(fail) => fail.print(),
    }
}

/// Calls a command, and if what an earlier run left of the pipeline turns out to be damaged, once more without it.
fn afresh(words: &[String], source: &args::Source, call: impl Fn() -> Result<ExitCode, Fail>) -> Result<ExitCode, Fail> {
    match call() {
        Err(fail) if fail.is_damaged_plan() => {
            project::Session::forget(words, source)?;
            call()
        }
        other => other,
    }
}

fn schema() -> Result<ExitCode, Fail> {
    let schema = trestle_engine::schema::pipeline(&trestle_stages::registry());
    print(&format!("{schema:#}\n"))
}

fn completions(shell: clap_complete::Shell) -> Result<ExitCode, Fail> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "trestle", &mut text);
    print(&String::from_utf8_lossy(&text))
}

/// Writes to standard output. A reader that has gone (`trestle plan | head`) is no error.
fn print(text: &str) -> Result<ExitCode, Fail> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Fail::message(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}
