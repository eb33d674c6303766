//! `trestle job FILE`: one native stage in a process of its own.

use std::env::var;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use trestle_engine::job::Job;
use trestle_stages::hub_file::Settings;
use trestle_stages::nn::parallel::form_team;

use crate::fail::Fail;
use crate::memory;

/// Runs a job file; messages go to standard output.
pub fn job(file: &Path) -> Result<ExitCode, Fail> {
    memory::keep();
    let job = Job::read(file)?;
    let cannot = |error: &dyn std::fmt::Display| Fail::message(format!("cannot start {} threads: {error}", job.threads));
    rayon::ThreadPoolBuilder::new().num_threads(job.threads).build_global().map_err(|e| cannot(&e))?;
    form_team(job.threads).map_err(|e| cannot(&e))?;
    trestle_stages::hub_file::configure(hub());
    let done =
        job.run(&trestle_stages::registry(), &mut std::io::stdout()).map_err(|e| Fail::message(format!("the engine went away: {e}")))?;
    Ok(if done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// How Hugging Face is reached, by the variables of its own tools.
fn hub() -> Settings {
    let text = |name: &str| var(name).ok().filter(|text| !text.is_empty());
    let home = || text("HF_HOME").map_or_else(|| PathBuf::from(text("HOME").unwrap_or_default()).join(".cache/huggingface"), PathBuf::from);
    let token = || std::fs::read_to_string(home().join("token")).ok().map(|token| token.trim().to_owned());
    let offline = text("HF_HUB_OFFLINE").is_some_and(|text| ["1", "true", "yes", "on"].contains(&text.to_lowercase().as_str()));
    Settings {
        cache: text("HF_HUB_CACHE").map_or_else(|| home().join("hub"), PathBuf::from),
        endpoint: text("HF_ENDPOINT"),
        token: text("HF_TOKEN").or_else(token),
        offline,
    }
}
