//! `trestle log`.

use std::process::ExitCode;

use trestle_engine::plan::{Fate, given};

use crate::args::Log;
use crate::fail::Fail;
use crate::project::Project;

/// Prints what a stage printed when it last ran: here, or wherever its record was made.
pub fn log(args: &Log) -> Result<ExitCode, Fail> {
    let (project, words) = Project::open(&args.words, &args.source, &trestle_stages::registry())?;
    let [word] = words.as_slice() else {
        return Err(Fail::with_help("`log` takes one stage", "for example `trestle log table`"));
    };
    let id = project.stage(word)?;
    let name = project.pipeline.stages[id].name.clone();
    let path = project.logs().join(format!("{}.log", trestle_engine::run::file_name(&name)));
    if let Ok(text) = std::fs::read(&path) {
        return crate::print(&String::from_utf8_lossy(&text));
    }
    let wanted = project.wanted(std::slice::from_ref(&name))?;
    let fates = given(&project.pipeline, &wanted, &project.cache, &project.history)?;
    let record = fates.into_iter().find_map(|(other, fate)| match fate {
        Fate::Hit(record) if other == id => Some(record),
        _ => None,
    });
    match record {
        Some(record) => match record.provenance.log {
            Some(log) => crate::print(&String::from_utf8_lossy(&project.cache.read_blob(&log)?)),
            None => Ok(ExitCode::SUCCESS),
        },
        None => Err(Fail::with_help(format!("`{name}` has not run yet"), "run it first")),
    }
}
