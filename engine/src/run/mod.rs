//! Running a pipeline: what is no hit from the outset goes to the dispatcher, and what is still under way after it to the ending.

mod dispatcher;
mod ending;
mod queue;
mod resources;
mod room;
mod undeclared;
mod work;

pub use crate::event::Summary;
pub use ending::Ending;
pub use room::clear_shelf;
pub use work::file_name;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use trestle_cache::Cache;

use crate::compiled::{Compiled, Names};
use crate::error::Error;
use crate::event::Event;
use crate::executor::{Cancel, Executor};
use crate::pipeline::StageId;
use crate::plan::{Decision, Planner};
use dispatcher::Dispatcher;
use room::Rooms;

/// How to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Threads that may be used at a time.
    pub cpus: usize,
    /// Bytes of memory that stages may be granted at a time.
    pub memory: u64,
    /// GPUs of this machine, by number.
    pub gpus: Vec<u32>,
    /// Named pools and their sizes.
    pub pools: BTreeMap<String, u32>,
    /// Go on with what does not depend on a failed stage.
    pub keep_going: bool,
    /// Report every line that a stage prints.
    pub verbose: bool,
    /// Say of every stage that was in the cache that it was.
    pub report_cached: bool,
    /// Variables that commands get besides their declared ones, such as `PATH`.
    pub env: BTreeMap<String, String>,
    /// Name of this machine, for the records.
    pub host: String,
    /// Versions and facts for the records, such as the program's version and the instruction set.
    pub versions: BTreeMap<String, String>,
    /// Folder for the logs of failed stages.
    pub logs: PathBuf,
    /// The project.
    pub root: PathBuf,
}

/// Runs the wanted stages. What they gave is in the cache when this returns, and on disk when the ending is over, unless all of it took less than a second
/// to make: then it is left to the system ([`Cache::leave`]).
///
/// # Errors
/// If the cache or a source cannot be used; a failing stage is no error but counted in the summary.
pub async fn run(
    compiled: &Arc<Compiled>,
    planner: &mut Planner,
    wanted: &dyn Fn(StageId) -> bool,
    cache: &Arc<Cache>,
    executor: &Arc<dyn Executor>,
    options: &Options,
    cancel: &Cancel,
    events: &mut dyn FnMut(Event),
) -> Result<(Summary, Ending), Error> {
    let started = Instant::now();
    let count = (0..compiled.len()).filter(|&id| wanted(id)).count();
    events(Event::Started { pipeline: compiled.name.clone(), stages: count, cpus: options.cpus });
    let names = if options.report_cached { compiled.names()? } else { Names::default() };
    let mut open = Vec::new();
    let mut works = HashMap::new();
    let hits = planner.survey(wanted, &mut |id, decision| match decision {
        Decision::Hit(key) if options.report_cached => {
            events(Event::Cached { stage: names[id].to_owned(), key: key.to_string() });
        }
        Decision::Hit(_) => {}
        Decision::Run(work) => {
            if works.len() < dispatcher::KEPT_WORKS {
                works.insert(open.len(), work);
            }
            open.push(id);
        }
        Decision::Later(_) => open.push(id),
    })?;
    let mut summary = Summary { cached: hits, ..Summary::default() };
    let mut ending = Ending::default();
    if !open.is_empty() {
        let rooms = Arc::new(Rooms::new(cache));
        let surroundings = work::Surroundings {
            cache: Arc::clone(cache),
            executor: Arc::clone(executor),
            options: options.clone(),
            cancel: cancel.clone(),
            rooms: Arc::clone(&rooms),
        };
        let mut dispatcher = Dispatcher::new(compiled, open, works, planner, surroundings, events)?;
        let hearing = cancel.hearing();
        dispatcher.settle_all().await?;
        drop(hearing);
        let Summary { executed, cached, failed, skipped, cancelled, .. } = dispatcher.board.summary();
        summary = Summary { executed, cached: cached + hits, failed, skipped, cancelled, seconds: 0.0 };
        ending = Ending::begin(Arc::clone(cache), rooms, dispatcher.took)?;
    }
    summary.seconds = started.elapsed().as_secs_f64();
    events(Event::Summary(summary));
    Ok((summary, ending))
}
