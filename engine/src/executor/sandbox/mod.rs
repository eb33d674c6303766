//! What keeps a command from files that it did not declare.
//!
//! A command starts in a folder that holds its inputs and nothing else. That alone does not stop a path like `/home/me/project/data.csv`,
//! so on Linux its processes are also put under a Landlock domain that has everything but the project and the cache: the system,
//! interpreters and the user's own tools stay usable, an undeclared file of the project cannot be opened, read or written. It takes a rule for
//! every file beside the project and beside the folders above it, so it is begun as soon as a source turns out to have another stat.
//!
//! A domain belongs to a thread and all that it starts, and cannot be left. So commands are started by *spawners*: a few threads that
//! enter the domain once and from then on do nothing but start processes. That costs a command one message instead of thirty system
//! calls, and needs no code between fork and exec.
//!
//! Without network, a spawner also has a network namespace of its own where the system lets it make one (as root), else Landlock forbids
//! TCP, where the kernel can do that.

#[cfg(target_os = "linux")]
mod beside;
#[cfg(target_os = "linux")]
mod domain;
#[cfg(not(target_os = "linux"))]
#[path = "elsewhere.rs"]
mod domain;

use std::io;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicUsize, Ordering};
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

/// Spawners that entered the same domain. There is one more whenever an order comes while all that there are have one.
#[derive(Debug)]
struct Pool {
    /// What they entered, once the first one has; or why it could not.
    domain: Arc<OnceLock<Result<Domain, String>>>,
    orders: Mutex<Sender<Order>>,
    inbox: Arc<Mutex<Receiver<Order>>>,
    spawners: AtomicUsize,
    /// Orders without an answer.
    open: AtomicUsize,
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

    /// Begins what the first command would have to wait for.
    pub fn begin(&self, network: bool) {
        if self.asked != Sandbox::Off || !network {
            self.pool(network);
        }
    }

    /// Starts a command. Gives the process and what kept it in.
    ///
    /// # Errors
    /// If the sandbox that was asked for cannot be had, or the program not be started.
    pub fn spawn(&self, mut command: Command, network: bool) -> Result<(io::Result<Child>, String), StageError> {
        if self.asked == Sandbox::Off && network {
            return Ok((command.spawn(), "folder".to_owned()));
        }
        let pool = self.pool(network);
        match pool.domain.wait() {
            Ok(domain) => Ok((pool.order(domain, command), domain.held())),
            Err(why) if self.asked == Sandbox::Strict || !network => Err(StageError::new(format!(
                "the sandbox that this stage asks for cannot be had here: {why}"
            ))
            .help("`--sandbox auto` runs commands in folders of their own alone; `network: false` needs a kernel that can forbid it")),
            Err(_) => Ok((command.spawn(), "folder".to_owned())),
        }
    }

    fn pool(&self, network: bool) -> &Pool {
        self.pools[usize::from(!network)].get_or_init(|| {
            let (asked, closed, open) = (self.asked, self.closed.clone(), self.open.clone());
            Pool::begin(move || Domain::enter_new(asked, &closed, &open, network))
        })
    }
}

impl Pool {
    /// Starts the spawner that makes the domain and enters it first.
    fn begin(enter: impl FnOnce() -> Result<Domain, String> + Send + 'static) -> Self {
        let (orders, inbox) = channel::<Order>();
        let (domain, inbox) = (Arc::new(OnceLock::new()), Arc::new(Mutex::new(inbox)));
        let (entered, theirs) = (Arc::clone(&domain), Arc::clone(&inbox));
        let started = spawner(move || {
            // Whatever happens to this thread, nobody waits for it in vain.
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(enter));
            let outcome = outcome.unwrap_or_else(|_| Err("a thread ended early".to_owned()));
            if entered.get_or_init(|| outcome).is_ok() {
                serve(&theirs);
            }
        });
        if let Err(error) = started {
            domain.get_or_init(|| Err(error.to_string()));
        }
        Self { domain, orders: Mutex::new(orders), inbox, spawners: AtomicUsize::new(1), open: AtomicUsize::new(0) }
    }

    /// Has a command started by one of the spawners.
    fn order(&self, domain: &Domain, command: Command) -> io::Result<Child> {
        if self.open.fetch_add(1, Ordering::Relaxed) >= self.spawners.load(Ordering::Relaxed) {
            self.grow(domain);
        }
        let (answer, answered) = channel();
        let sent = self.orders.lock().unwrap_or_else(PoisonError::into_inner).send(Order { command, answer });
        let gone = || io::Error::other("the thread that starts commands has ended");
        let child = sent.map_err(|_| gone()).and_then(|()| answered.recv().map_err(|_| gone())?);
        self.open.fetch_sub(1, Ordering::Relaxed);
        child
    }

    /// Starts one more spawner, up to one for each processor. One that cannot enter leaves the work to the others.
    fn grow(&self, domain: &Domain) {
        let most = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(8);
        if self.spawners.fetch_add(1, Ordering::Relaxed) >= most {
            self.spawners.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let Ok(domain) = domain.try_clone() else { return };
        let inbox = Arc::clone(&self.inbox);
        let _ = spawner(move || {
            if domain.enter().is_ok() {
                serve(&inbox)
            }
        });
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
