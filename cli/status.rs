//! `trestle status`.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use serde_json::{Value, json};
use trestle_cache::ActionRecord;
use trestle_engine::compiled::Names;
use trestle_engine::plan::{Fate, plan};

use crate::args::{Format, Source};
use crate::fail::Fail;
use crate::project::Project;
use crate::render::colour::Colour;
use crate::render::grid::{Cell, Grid};
use crate::render::words::{age, bytes, duration, reasons, waits};

/// What `status --help` ends with.
pub const EXAMPLES: &str = "Examples:
  trestle status                       all stages: cached, to run, or later (an input is not known yet)
  trestle status 'score[*]'            some, and what they need
  trestle status --format json | jq -s 'map(.bytes // 0) | add'

The columns of a cached stage: how long ago its outputs were made, how long that took, how large they are.
The others: why they have to run, or what they wait for.";

/// `status`.
#[derive(Debug, Args)]
pub struct Status {
    /// Pipeline file, then stages (with all that they need); `*` stands for anything
    #[arg(value_name = "FILE | TARGET")]
    pub words: Vec<String>,
    #[command(flatten)]
    pub source: Source,
    /// How to print
    #[arg(long, value_enum, default_value = "human")]
    pub format: Format,
}

/// Prints one line a stage and a last one with the counts.
pub fn status(args: &Status) -> Result<ExitCode, Fail> {
    let (project, targets) = Project::open(&args.words, &args.source, &trestle_stages::registry())?;
    let wanted = project.wanted(&targets)?;
    let fates = plan(&project.pipeline, &wanted, &project.cache, &project.history)?;
    project.cache.flush()?;
    let mut view = View {
        project: &project,
        names: project.pipeline.stages.iter().map(|stage| stage.name.as_str()).collect(),
        now: SystemTime::now(),
        counts: Counts::default(),
    };
    match args.format {
        Format::Human => {
            let mut grid = Grid::new();
            for (id, fate) in &fates {
                grid.push(view.row(*id, fate)?);
            }
            crate::print(&format!("{}{}\n", grid.print(), view.counts.in_words()))
        }
        Format::Json => {
            let mut text = String::new();
            for (id, fate) in &fates {
                text.push_str(&format!("{}\n", view.value(*id, fate)?));
            }
            crate::print(&format!("{text}{}\n", view.counts.value()))
        }
    }
}

#[derive(Default)]
struct Counts {
    cached: usize,
    run: usize,
    later: usize,
    bytes: u64,
}

impl Counts {
    fn in_words(&self) -> String {
        format!("{} cached ({}), {} to run, {} later", self.cached, bytes(self.bytes), self.run, self.later)
    }

    fn value(&self) -> Value {
        json!({"event": "summary", "cached": self.cached, "run": self.run, "later": self.later, "bytes": self.bytes})
    }
}

/// Stages as they are now.
struct View<'p> {
    project: &'p Project,
    names: Names,
    now: SystemTime,
    counts: Counts,
}

impl View<'_> {
    fn row(&mut self, id: usize, fate: &Fate) -> Result<Vec<Cell>, Fail> {
        let pipeline = &self.project.pipeline;
        let name = Cell::from(pipeline.stages[id].name.as_str());
        let quiet = |text: String| Cell::from(text).right().colour(Colour::Faint);
        Ok(match fate {
            Fate::Hit(record) => {
                let size = self.hit(record)?;
                let made = &record.provenance;
                let ago = format!("{} ago", age(self.since(record)));
                let took = duration(Duration::from_millis(made.duration_ms));
                vec![Cell::from("cached").colour(Colour::Good), name, quiet(ago), quiet(took), quiet(bytes(size)), Cell::default()]
            }
            Fate::Run(work) => {
                self.counts.run += 1;
                let why = Cell::from(reasons(&work.reasons));
                vec![Cell::from("to run").colour(Colour::Open), name, Cell::default(), Cell::default(), Cell::default(), why]
            }
            Fate::Later(ids) => {
                self.counts.later += 1;
                let why = Cell::from(waits(&self.names, ids)).colour(Colour::Faint);
                vec![Cell::from("later").colour(Colour::Faint), name, Cell::default(), Cell::default(), Cell::default(), why]
            }
        })
    }

    fn value(&mut self, id: usize, fate: &Fate) -> Result<Value, Fail> {
        let pipeline = &self.project.pipeline;
        let name = &pipeline.stages[id].name;
        Ok(match fate {
            Fate::Hit(record) => {
                let size = self.hit(record)?;
                let made = &record.provenance;
                json!({
                    "event": "status", "stage": name, "fate": "cached", "key": record.key.to_string(), "bytes": size,
                    "started_unix_ms": made.started_unix_ms, "seconds": made.duration_ms as f64 / 1000.0,
                    "peak_rss_kib": made.peak_rss_kib, "host": made.host, "metrics": record.metrics,
                })
            }
            Fate::Run(work) => {
                self.counts.run += 1;
                json!({"event": "status", "stage": name, "fate": "run", "key": work.key.to_string(), "reasons": work.reasons})
            }
            Fate::Later(ids) => {
                self.counts.later += 1;
                let waits: Vec<&str> = ids.iter().map(|&up| pipeline.stages[up].name.as_str()).collect();
                json!({"event": "status", "stage": name, "fate": "later", "waits": waits})
            }
        })
    }

    /// Counts a hit; gives the size of its outputs.
    fn hit(&mut self, record: &ActionRecord) -> Result<u64, Fail> {
        let mut size = 0;
        for content in record.outputs.values() {
            size += self.project.cache.size(content)?;
        }
        self.counts.cached += 1;
        self.counts.bytes += size;
        Ok(size)
    }

    /// How long ago a record was made. A clock that was set back makes nothing older than now.
    fn since(&self, record: &ActionRecord) -> Duration {
        let made = &record.provenance;
        let ended = UNIX_EPOCH + Duration::from_millis(made.started_unix_ms.saturating_add(made.duration_ms));
        self.now.duration_since(ended).unwrap_or_default()
    }
}
