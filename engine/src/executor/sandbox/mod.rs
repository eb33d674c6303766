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

mod domain;

use std::io;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};

use crate::stage::StageError;
use domain::Domain;

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
        let held = self.first(network, &inbox);
        if let Ok(first) = &held {
            // Who is late, or cannot enter, leaves the work to the others.
            for _ in 1..std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(8) {
                let Ok(domain) = first.try_clone() else { break };
                let inbox = Arc::clone(&inbox);
                let _ = spawner(move || {
                    if domain.enter().is_ok() {
                        serve(&inbox)
                    }
                });
            }
        }
        Pool { held: held.map(|domain| domain.held()), orders: Mutex::new(orders) }
    }

    /// Starts the spawner that makes the domain and enters it first; waits until it has.
    fn first(&self, network: bool, inbox: &Arc<Mutex<Receiver<Order>>>) -> Result<Domain, String> {
        let (entered, result) = channel();
        let (closed, open, inbox, asked) = (self.closed.clone(), self.open.clone(), Arc::clone(inbox), self.asked);
        spawner(move || {
            let domain = Domain::enter_new(asked, &closed, &open, network);
            let may_serve = domain.is_ok();
            // Whoever waits for it is the only one who holds the other end.
            if entered.send(domain).is_ok() && may_serve {
                serve(&inbox);
            }
        })
        .map_err(|e| e.to_string())?;
        result.recv().unwrap_or_else(|_| Err("a thread ended early".to_owned()))
    }
}

fn spawner(body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name("spawner".to_owned()).spawn(body).map(drop)
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
