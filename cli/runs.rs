//! `trestle runs`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use trestle_engine::runs::{Run, Runs as Past};

use crate::args::Format;
use crate::fail::Fail;
use crate::project;
use crate::render::colour::Colour;
use crate::render::grid::{Cell, Grid};
use crate::render::words::{date, duration};

/// What `runs --help` ends with.
pub const EXAMPLES: &str = "Examples:
  trestle runs                          all runs in this project, the newest last
  trestle runs -n 5                     the last five
  trestle runs --pipeline quickstart    of one pipeline
  trestle diff last~1 last              what was different between the last two
  trestle runs --format json | jq 'select(.failed > 0) | .id'";

/// `runs`.
#[derive(Debug, Args)]
pub struct Runs {
    /// Only this many, the newest
    #[arg(short = 'n', long, value_name = "N")]
    pub number: Option<usize>,
    /// Only runs of the pipeline of this name
    #[arg(long, value_name = "NAME")]
    pub pipeline: Option<String>,
    /// Folder of the cache [default: .trestle at the root of the project]
    #[arg(long, value_name = "DIR", env = "TRESTLE_CACHE")]
    pub cache: Option<PathBuf>,
    /// How to print
    #[arg(long, value_enum, default_value = "human")]
    pub format: Format,
}

/// Lists past runs.
pub fn runs(args: &Runs) -> Result<ExitCode, Fail> {
    let history = Past::read(&project::folder(args.cache.as_deref())?.join(project::RUNS))?;
    let is_wanted = |run: &&Run| args.pipeline.as_ref().is_none_or(|name| *name == run.header.pipeline);
    let runs: Vec<&Run> = history.runs().iter().filter(is_wanted).collect();
    let skipped = args.number.map_or(0, |number| runs.len().saturating_sub(number));
    let runs = &runs[skipped..];
    crate::print(&match args.format {
        Format::Human if runs.is_empty() => "no runs yet\n".to_owned(),
        Format::Human => human(runs),
        Format::Json => runs.iter().map(|run| format!("{}\n", value(run))).collect(),
    })
}

fn human(runs: &[&Run]) -> String {
    let are_mixed = runs.iter().any(|run| run.header.pipeline != runs[0].header.pipeline);
    let mut grid = Grid::new();
    for run in runs {
        let header = &run.header;
        let mut row = vec![Cell::from(header.id.as_str()), Cell::from(date(header.started_unix_ms)).colour(Colour::Faint)];
        if are_mixed {
            row.push(header.pipeline.as_str().into());
        }
        row.extend(result(run));
        row.push(Cell::from(header.command.join(" ")).colour(Colour::Faint));
        grid.push(row);
    }
    grid.print()
}

/// How a run ended, and how long it took.
fn result(run: &Run) -> [Cell; 2] {
    let Some(summary) = &run.summary else { return [Cell::from("did not end").colour(Colour::Bad), Cell::default()] };
    let mut parts = vec![format!("{} executed", summary.executed), format!("{} cached", summary.cached)];
    for (count, word) in [(summary.failed, "failed"), (summary.skipped, "skipped"), (summary.cancelled, "cancelled")] {
        if count > 0 {
            parts.push(format!("{count} {word}"));
        }
    }
    let is_bad = summary.failed + summary.skipped + summary.cancelled > 0;
    let counts = Cell::from(parts.join(", "));
    [if is_bad { counts.colour(Colour::Bad) } else { counts }, Cell::from(duration(Duration::from_secs_f64(summary.seconds))).right()]
}

/// A run as JSON: its header, and its counts if it ended.
pub fn value(run: &Run) -> Value {
    let header = &run.header;
    let mut value = json!({
        "id": header.id, "pipeline": header.pipeline, "started_unix_ms": header.started_unix_ms, "host": header.host,
        "program": header.program, "command": header.command, "params": header.params, "ended": run.summary.is_some(),
    });
    if let Some(summary) = &run.summary {
        value["seconds"] = summary.seconds.into();
        let counts = [
            ("executed", summary.executed),
            ("cached", summary.cached),
            ("failed", summary.failed),
            ("skipped", summary.skipped),
            ("cancelled", summary.cancelled),
        ];
        counts.into_iter().for_each(|(name, count)| value[name] = count.into());
    }
    value
}
