//! What keeps a command from files that it did not declare.
//!
//! A command starts in a folder that holds its inputs and nothing else. That alone does not stop a path like `/home/me/project/data.csv`,
//! so on Linux its processes are also put under a Landlock domain that has everything but the project and the cache: the system,
//! interpreters and the user's own tools stay usable, an undeclared file of the project cannot be opened, read or written. It takes a rule for
//! every file beside the project and beside the folders above it, so these are made once, when the first command is started.
//!
//! A domain belongs to a thread and all that it starts, and cannot be left. So a process enters it between its start and its program, which
//! takes two calls of the system (see [`start`](super::start)).
//!
//! Without network, it also enters a network namespace where the system lets one be made (as root), else Landlock forbids TCP, where the
//! kernel can do that.

#[cfg(target_os = "linux")]
mod beside;
#[cfg(target_os = "linux")]
mod domain;
#[cfg(not(target_os = "linux"))]
#[path = "elsewhere.rs"]
mod domain;

use std::io;
use std::path::PathBuf;
use std::sync::OnceLock;

use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use super::start::{Launch, NotStarted};
use crate::stage::StageError;
pub use domain::Domain;

/// How much is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sandbox {
    /// Landlock, or commands do not run.
    Strict,
    /// Landlock where the kernel has it, else the folder alone.
    #[default]
    Auto,
    /// The folder alone.
    Off,
}

/// The domains of a run.
#[derive(Debug)]
pub struct Domains {
    asked: Sandbox,
    closed: Vec<PathBuf>,
    open: PathBuf,
    /// With network, and without; or why there is none.
    made: [OnceLock<Result<Domain, String>>; 2],
}

impl Domains {
    /// Domains that keep `closed` shut, but for what lies below `open`.
    pub fn new(asked: Sandbox, closed: Vec<PathBuf>, open: PathBuf) -> Self {
        Self { asked, closed, open, made: [OnceLock::new(), OnceLock::new()] }
    }

    /// Starts a command. Gives the process, or why its program did not start, and what keeps it in.
    ///
    /// # Errors
    /// If the sandbox that was asked for cannot be had.
    pub fn start(&self, launch: &Launch, network: bool) -> Result<(io::Result<Pid>, String), StageError> {
        let without = || launch.start(None).map_err(io::Error::from);
        if self.asked == Sandbox::Off && network {
            return Ok((without(), "folder".to_owned()));
        }
        let domain = self.made[usize::from(!network)].get_or_init(|| Domain::make(self.asked, &self.closed, &self.open, network));
        let why = match domain.as_ref().map(|domain| (domain, launch.start(Some(domain)))) {
            Ok((domain, Ok(process))) => return Ok((Ok(process), domain.held())),
            Ok((domain, Err(NotStarted::Program(error)))) => return Ok((Err(error), domain.held())),
            Ok((_, Err(NotStarted::Domain(why)))) => why,
            Err(why) => why.clone(),
        };
        if self.asked == Sandbox::Strict || !network {
            return Err(StageError::new(format!("the sandbox that this stage asks for cannot be had here: {why}"))
                .help("`--sandbox auto` runs commands in folders of their own alone; `network: false` needs a kernel that can forbid it"));
        }
        Ok((without(), "folder".to_owned()))
    }
}
