//! By the standard library.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use rustix::process::Pid;

use super::{Launch, NotStarted};
use crate::executor::sandbox::Domain;

pub fn start(launch: &Launch, _: Option<&Domain>) -> Result<Pid, NotStarted> {
    let mut command = Command::new(&launch.program);
    if let Some((name, arguments)) = launch.words.split_first() {
        command.arg0(name).args(arguments);
    }
    command.env_clear().envs(launch.env.iter().map(|(name, value)| (name, value)));
    command.current_dir(&launch.folder).stdin(Stdio::null()).process_group(0);
    command.stdout(launch.stdout.try_clone()?).stderr(launch.stderr.try_clone()?);
    // The handle is let go without a wait: whoever has the number waits.
    Ok(Pid::from_child(&command.spawn()?))
}
