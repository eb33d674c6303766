//! `trestle verify`: do stages give the same again?

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use trestle_cache::{ActionRecord, Cache, Content, Digest, How};
use trestle_engine::compiled::Compiled;
use trestle_engine::event::{Event, Failure, Summary};
use trestle_engine::executor::Executor;
use trestle_engine::pipeline::{Origin, Pipeline, Stage, StageId};
use trestle_engine::plan::{Fate, Planner, plan};
use trestle_engine::run::run as run_pipeline;
use trestle_engine::target::matching;

use crate::args::{Format, SandboxMode, Source};
use crate::fail::{FAILED, Fail};
use crate::project::Project;
use crate::render::words::{self, count, duration};
use crate::run::{interruptible, local, options, runtime};

/// What `verify --help` ends with.
pub const EXAMPLES: &str = "Examples:
  trestle verify                   all cached stages
  trestle verify train 'score[*]'  some; what they read is taken from the cache
  trestle verify -j 1              with another number of threads than before

A stage with `pure: false` is allowed to give something else. The cache stays as it is.
Exit codes: 0 the same, 1 a stage gave something else or failed, 2 the pipeline or the command line is wrong.";

/// `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Pipeline file, then stages; `*` stands for anything
    #[arg(value_name = "FILE | STAGE")]
    pub words: Vec<String>,
    #[command(flatten)]
    pub source: Source,
    /// Threads to use at a time [default: all of the machine]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub jobs: Option<u16>,
    /// What keeps commands from files that they did not declare
    #[arg(long, value_enum, default_value = "auto", env = "TRESTLE_SANDBOX")]
    pub sandbox: SandboxMode,
    /// How to print
    #[arg(long, value_enum, default_value = "human")]
    pub format: Format,
}

/// Runs cached stages again, each with the inputs that it had, and compares.
pub fn verify(args: &VerifyArgs) -> Result<ExitCode, Fail> {
    let (project, patterns) = Project::open(&args.words, &args.source, &trestle_stages::registry())?;
    let wanted = project.wanted(&patterns)?;
    let _held = project.cache.share()?;
    let fates = plan(&project.pipeline, &wanted, &project.cache, &project.history)?;
    let mut records = BTreeMap::new();
    let mut open = Vec::new();
    let mut meant = vec![patterns.is_empty(); project.pipeline.stages.len()];
    for pattern in &patterns {
        matching(&project.pipeline, pattern)?.into_iter().for_each(|id| meant[id] = true);
    }
    let is_meant = |id: StageId| meant[id];
    for (id, fate) in fates {
        match fate {
            Fate::Hit(record) => drop(records.insert(id, *record)),
            _ if is_meant(id) => open.push(project.pipeline.stages[id].name.clone()),
            _ => {}
        }
    }
    if !patterns.is_empty() && !open.is_empty() {
        return Err(Fail::with_help(
            format!("not cached, so there is nothing to compare with: {}", open.join(", ")),
            "`trestle run` first; `trestle verify` without a stage passes by what is not cached",
        ));
    }
    let meant: Vec<StageId> = records.keys().copied().filter(|&id| is_meant(id)).collect();
    let scratch = project.cache.tmp_dir("verify")?;
    let again = Again::prepare(&project, &records, &meant, &scratch).and_then(|again| again.run(args));
    // What cannot be removed now is swept by a later run.
    let _ = std::fs::remove_dir_all(&scratch);
    let (failures, outcomes, summary) = again?;
    let results: Vec<Verdict> = meant
        .iter()
        .enumerate()
        .map(|(place, id)| {
            let stage = &project.pipeline.stages[*id];
            Verdict::of(stage, &records[id], outcomes[place].as_ref(), failures.get(&stage.name))
        })
        .collect();
    say(&results, open.len(), args.format)?;
    let is_good = |verdict: &Verdict| matches!(verdict.kind, Kind::Same | Kind::Allowed);
    Ok(match () {
        () if summary.cancelled > 0 => ExitCode::from(130),
        () if results.iter().all(is_good) => ExitCode::SUCCESS,
        () => ExitCode::from(FAILED),
    })
}

/// The stages once more, in a cache that knows nothing, with files in place of what other stages gave.
struct Again {
    pipeline: Pipeline,
    cache: PathBuf,
    root: PathBuf,
}

/// Failures by stage, records in the order of the stages, and the counts.
type Outcomes = (BTreeMap<String, Failure>, Vec<Option<ActionRecord>>, Summary);

impl Again {
    fn prepare(project: &Project, records: &BTreeMap<StageId, ActionRecord>, meant: &[StageId], scratch: &Path) -> Result<Self, Fail> {
        let mut places: BTreeMap<(StageId, Arc<str>), PathBuf> = BTreeMap::new();
        let mut stages = Vec::new();
        for &id in meant {
            let mut stage = project.pipeline.stages[id].clone();
            for bound in stage.inputs.iter_mut().flat_map(|slot| &mut slot.values) {
                let Origin::Output { stage: from, output } = &bound.origin else { continue };
                let key = (*from, output.clone());
                let path = match places.get(&key) {
                    Some(path) => path.clone(),
                    None => {
                        let path = scratch.join("inputs").join(places.len().to_string());
                        // A stage whose record was found read from stages whose records were found.
                        if let Some(content) = records.get(from).and_then(|record| record.outputs.get(&**output)) {
                            project.cache.materialize(content, &path, How::Link)?;
                        }
                        places.insert(key, path.clone());
                        path
                    }
                };
                bound.origin = Origin::File { written: path.display().to_string().into(), path: path.into() };
            }
            stages.push(stage);
        }
        let pipeline = Pipeline { stages, ..(*project.pipeline).clone() };
        Ok(Self { pipeline, cache: scratch.join("cache"), root: project.pipeline.root.clone() })
    }

    fn run(self, args: &VerifyArgs) -> Result<Outcomes, Fail> {
        let cache = Arc::new(Cache::open(&self.cache)?);
        let options = options(args.jobs, true, self.pipeline.pools.clone(), self.cache.join("logs"), &self.root);
        let executor: Arc<dyn Executor> = Arc::new(local(args.sandbox.into(), &options, cache.root())?);
        let compiled = Arc::new(Compiled::of(Arc::new(self.pipeline), Digest::of(b"not kept"), Vec::new()));
        let mut planner = Planner::new(Arc::clone(&compiled), Arc::clone(&cache), None, Arc::default());
        let cancel = interruptible()?;
        let mut failures = BTreeMap::new();
        let summary = runtime()?.block_on(async {
            let mut events = |event: Event| {
                if let Event::Failed { stage, mut failure } = event {
                    // The folder with the log goes with the scratch place.
                    failure.log = None;
                    failures.insert(stage, failure);
                }
            };
            let run = run_pipeline(&compiled, &mut planner, &|_| true, &cache, &executor, &options, &cancel, &mut events);
            let (summary, ending) = run.await?;
            ending.wait().await?;
            Ok::<_, trestle_engine::error::Error>(summary)
        })?;
        let record = |id| planner.key(id).map(|key| cache.record(&key)).transpose();
        let records = (0..compiled.len()).map(|id| Ok(record(id)?.flatten())).collect::<Result<_, Fail>>()?;
        Ok((failures, records, summary))
    }
}

/// How a stage came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Same,
    /// It differs, and says that it may.
    Allowed,
    Differs,
    Failed,
    /// The run was interrupted before it.
    Open,
}

struct Verdict {
    stage: String,
    kind: Kind,
    /// What differs, or why it failed.
    lines: Vec<String>,
    /// What it took, first and now.
    times: Option<[Duration; 2]>,
}

impl Verdict {
    fn of(stage: &Stage, before: &ActionRecord, now: Option<&ActionRecord>, failure: Option<&Failure>) -> Self {
        let (kind, lines) = match (now, failure) {
            (_, Some(failure)) => (Kind::Failed, vec![words::failure(&stage.name, failure)]),
            (None, None) => (Kind::Open, Vec::new()),
            (Some(now), None) => {
                let lines = differences(&before.outputs, &now.outputs);
                match (lines.is_empty(), stage.settings.pure) {
                    (true, _) => (Kind::Same, lines),
                    (_, true) => (Kind::Differs, lines),
                    (_, false) => (Kind::Allowed, lines),
                }
            }
        };
        let times = now.map(|now| [before, now].map(|record| Duration::from_millis(record.provenance.duration_ms)));
        Self { stage: stage.name.clone(), kind, lines, times }
    }

    fn word(&self) -> &'static str {
        match self.kind {
            Kind::Same => "same",
            Kind::Allowed => "allowed",
            Kind::Differs => "differs",
            Kind::Failed => "failed",
            Kind::Open => "open",
        }
    }

    fn human(&self) -> String {
        if self.kind == Kind::Failed {
            return self.lines.join("\n");
        }
        let times = self.times.map(|[before, now]| format!("  {} (was {})", duration(now), duration(before))).unwrap_or_default();
        let what = match self.kind {
            Kind::Allowed => format!("  {}; it says `pure: false`", self.lines.join("; ")),
            _ if self.lines.is_empty() => String::new(),
            _ => format!("  {}", self.lines.join("; ")),
        };
        format!("{:<7} {}{what}{times}", self.word(), self.stage)
    }
}

/// Outputs that are not the same, one a line.
fn differences(before: &BTreeMap<String, Content>, now: &BTreeMap<String, Content>) -> Vec<String> {
    let shown = |content: &Content| match content {
        Content::Blob { size, .. } => format!("{} ({})", content.short(), words::bytes(*size)),
        Content::Tree { .. } => content.short(),
    };
    let line = |(name, content): (&String, &Content)| match now.get(name) {
        Some(other) if other == content => None,
        Some(other) => Some(format!("output {name} {} → {}", shown(content), shown(other))),
        None => Some(format!("output {name} is gone")),
    };
    before.iter().filter_map(line).collect()
}

fn say(results: &[Verdict], passed_by: usize, format: Format) -> Result<(), Fail> {
    let number = |kind: Kind| results.iter().filter(|verdict| verdict.kind == kind).count();
    let kinds = [(Kind::Allowed, "allowed to differ"), (Kind::Differs, "not the same"), (Kind::Failed, "failed"), (Kind::Open, "not run")];
    let text: String = match format {
        Format::Human => {
            let lines: String = results.iter().map(|verdict| format!("{}\n", verdict.human())).collect();
            let mut parts = vec![format!("{} the same", count(number(Kind::Same), "stage"))];
            parts.extend(kinds.iter().filter(|(kind, _)| number(*kind) > 0).map(|(kind, words)| format!("{} {words}", number(*kind))));
            if passed_by > 0 {
                parts.push(format!("{passed_by} not cached and passed by"));
            }
            format!("{lines}{}\n", parts.join(", "))
        }
        Format::Json => results
            .iter()
            .map(|verdict| {
                let seconds = verdict.times.map(|times| times.map(|time| time.as_secs_f64()));
                let value = json!({
                    "event": "verified", "stage": verdict.stage, "result": verdict.word(), "why": verdict.lines, "seconds": seconds,
                });
                format!("{value}\n")
            })
            .collect(),
    };
    crate::print(&text).map(drop)
}
