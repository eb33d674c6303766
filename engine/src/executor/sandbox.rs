//! What keeps a command from files that it did not declare.
//!
//! A command starts in a folder that holds its inputs and nothing else. That alone does not stop a path like `/home/me/project/data.csv`,
//! so on Linux its processes are also put under a Landlock domain that has everything but the project and the cache: the system,
//! interpreters and the user's own tools stay usable, an undeclared file of the project cannot be opened, read or written.
//!
//! A domain belongs to a thread and all that it starts, and cannot be left. So commands are started by *spawners*: a few threads that
//! enter the domain once and from then on do nothing but start processes. That costs a command one message instead of thirty system
//! calls, and needs no code between fork and exec.
//!
//! Without network, a spawner also has a network namespace of its own where the system lets it make one (as root), else Landlock forbids
//! TCP, where the kernel can do that.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};

use crate::stage::StageError;

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

/// Starts commands under a sandbox.
#[derive(Debug)]
pub struct Spawners {
    asked: Sandbox,
    closed: Vec<PathBuf>,
    open: PathBuf,
    /// With network, and without.
    pools: [OnceLock<Pool>; 2],
}

/// Spawners that entered the same domain.
#[derive(Debug)]
struct Pool {
    /// What holds for their processes, in words for the record; or why they could not enter.
    held: Result<String, String>,
    orders: Mutex<Sender<Order>>,
}

struct Order {
    command: Command,
    answer: Sender<io::Result<Child>>,
}

impl Spawners {
    /// Spawners that keep `closed` shut, but for what lies below `open`.
    pub fn new(asked: Sandbox, closed: Vec<PathBuf>, open: PathBuf) -> Self {
        Self { asked, closed, open, pools: [OnceLock::new(), OnceLock::new()] }
    }

    /// Starts a command. Gives the process and what kept it in.
    ///
    /// # Errors
    /// If the sandbox that was asked for cannot be had, or the program not be started.
    pub fn spawn(&self, mut command: Command, network: bool) -> Result<(io::Result<Child>, String), StageError> {
        if self.asked == Sandbox::Off && network {
            return Ok((command.spawn(), "folder".to_owned()));
        }
        let pool = self.pools[usize::from(!network)].get_or_init(|| self.pool(network));
        let held = match &pool.held {
            Ok(held) => held.clone(),
            Err(why) if self.asked == Sandbox::Strict || !network => {
                return Err(StageError::new(format!("the sandbox that this stage asks for cannot be had here: {why}")).help(
                    "`--sandbox auto` runs commands in folders of their own alone; `network: false` needs a kernel that can forbid it",
                ));
            }
            Err(_) => return Ok((command.spawn(), "folder".to_owned())),
        };
        let (answer, answered) = channel();
        let sent = pool.orders.lock().unwrap_or_else(PoisonError::into_inner).send(Order { command, answer });
        let gone = || io::Error::other("the thread that starts commands has ended");
        let child = sent.map_err(|_| gone()).and_then(|()| answered.recv().map_err(|_| gone())?);
        Ok((child, held))
    }

    fn pool(&self, network: bool) -> Pool {
        let (orders, inbox) = channel::<Order>();
        let inbox = Arc::new(Mutex::new(inbox));
        let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(8);
        let mut held = Err("no thread could be started".to_owned());
        for _ in 0..count {
            let (entered, result) = channel();
            let (closed, open, inbox, asked) = (self.closed.clone(), self.open.clone(), Arc::clone(&inbox), self.asked);
            let thread = std::thread::Builder::new().name("spawner".to_owned()).spawn(move || {
                let domain = enter(asked, &closed, &open, network);
                let may_serve = domain.is_ok();
                // Whoever waits for it is the only one who holds the other end.
                if entered.send(domain).is_ok() && may_serve {
                    serve(&inbox);
                }
            });
            held = thread.map_err(|e| e.to_string()).and_then(|_| result.recv().unwrap_or_else(|_| Err("a thread ended early".to_owned())));
            if held.is_err() {
                break;
            }
        }
        Pool { held, orders: Mutex::new(orders) }
    }
}

/// Starts what is ordered until nobody can order any more.
fn serve(inbox: &Mutex<Receiver<Order>>) {
    loop {
        let order = inbox.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Order { mut command, answer }) = order else { return };
        if let Err(lost) = answer.send(command.spawn())
            && let Ok(mut child) = lost.0
        {
            // Nobody wants it any more.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Puts the calling thread, and all that it will start, under the domain. Says what holds.
#[cfg(target_os = "linux")]
fn enter(asked: Sandbox, closed: &[PathBuf], open: &Path, network: bool) -> Result<String, String> {
    use landlock::{
        ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
        RulesetStatus,
    };
    let own_network = network || nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_ok();
    let forbid_tcp = !own_network;
    if asked == Sandbox::Off && own_network {
        return Ok("folder, no network".to_owned());
    }
    let build = || -> Result<_, Box<dyn std::error::Error>> {
        let mut ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
        if asked != Sandbox::Off {
            ruleset = ruleset.handle_access(AccessFs::from_all(ABI::V3))?;
        }
        if forbid_tcp {
            ruleset = ruleset.handle_access(AccessNet::from_all(ABI::V4))?;
        }
        let mut created = ruleset.create()?;
        if asked != Sandbox::Off {
            for path in allowed(closed, open) {
                // A file that went meanwhile, or that may not be opened, is not needed.
                let (Ok(fd), Ok(meta)) = (PathFd::new(&path), std::fs::metadata(&path)) else { continue };
                let rights = if meta.is_dir() { AccessFs::from_all(ABI::V3) } else { AccessFs::from_file(ABI::V3) };
                created = created.add_rule(PathBeneath::new(fd, rights))?;
            }
        }
        Ok(created.restrict_self()?)
    };
    let status = build().map_err(|e| e.to_string())?;
    if status.ruleset != RulesetStatus::FullyEnforced {
        return Err("the kernel enforces only a part of it".to_owned());
    }
    let files = if asked == Sandbox::Off { "folder" } else { "landlock" };
    Ok(match (network, own_network) {
        (true, _) => files.to_owned(),
        (false, true) => format!("{files}, no network"),
        (false, false) => format!("{files}, no TCP"),
    })
}

#[cfg(not(target_os = "linux"))]
fn enter(_: Sandbox, _: &[PathBuf], _: &Path, _: bool) -> Result<String, String> {
    Err("only Linux has Landlock".to_owned())
}

/// Everything but the closed folders: what lies beside them and beside the folders above them. And what is open all the same.
fn allowed(closed: &[PathBuf], open: &Path) -> Vec<PathBuf> {
    let closed: Vec<PathBuf> = closed.iter().map(|path| std::fs::canonicalize(path).unwrap_or_else(|_| path.clone())).collect();
    let mut allowed = vec![open.to_owned()];
    beside(Path::new("/"), &closed, &mut allowed);
    allowed
}

fn beside(folder: &Path, closed: &[PathBuf], allowed: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        // A link is what it points to.
        let real = std::fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
        if closed.iter().any(|shut| real.starts_with(shut)) {
            continue;
        }
        if closed.iter().any(|shut| shut.starts_with(&real)) {
            // A link to a folder above a closed one is left out: what it leads to is reached by its own name.
            if real == path {
                beside(&path, closed, allowed);
            }
        } else {
            allowed.push(path);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn everything_but_the_closed_folders_is_allowed() {
        let folder = tempfile::tempdir().unwrap();
        let root = std::fs::canonicalize(folder.path()).unwrap();
        for dir in ["a/project/data", "a/other", "b"] {
            std::fs::create_dir_all(root.join(dir)).unwrap();
        }
        std::os::unix::fs::symlink(root.join("a/project"), root.join("b/link")).unwrap();
        std::os::unix::fs::symlink(root.join("a"), root.join("up")).unwrap();
        let allowed = allowed(&[root.join("a/project")], &root.join("a/project/data"));
        let here: Vec<_> = allowed.iter().filter_map(|path| Some(path.strip_prefix(&root).ok()?.to_str().unwrap().to_owned())).collect();
        assert_eq!(here.len(), 3, "{here:?}");
        for dir in ["a/project/data", "a/other", "b"] {
            assert!(here.contains(&dir.to_owned()), "{dir}");
        }
        assert!(allowed.contains(&PathBuf::from("/usr")) && !allowed.contains(&PathBuf::from("/")));
    }
}
