//! `trestle job FILE`: one native stage in a process of its own.

use std::path::Path;
use std::process::ExitCode;

use trestle_engine::job::{Job, end_with_parent};

use crate::fail::Fail;
use crate::memory;

/// Runs a job file; messages go to standard output.
pub fn job(file: &Path) -> Result<ExitCode, Fail> {
    end_with_parent().map_err(|e| Fail::message(format!("cannot tie this process to its parent: {e}")))?;
    memory::keep();
    let job = Job::read(file)?;
    rayon::ThreadPoolBuilder::new()
        .num_threads(job.threads)
        .build_global()
        .map_err(|e| Fail::message(format!("cannot start {} threads: {e}", job.threads)))?;
    let done =
        job.run(&trestle_stages::registry(), &mut std::io::stdout()).map_err(|e| Fail::message(format!("the engine went away: {e}")))?;
    Ok(if done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
