//! By `clone` with shared memory: the thread that starts a process waits until that has become its program, as with `vfork`, so that what the
//! process does before, in [`become_program`], needs no copy of anything.
#![allow(unsafe_code, reason = "the standard library copies this whole process to let a child do anything of its own before its program")]

use std::ffi::{CString, OsStr, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::ptr;

use nix::libc;
use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;

use super::{Launch, NotStarted};
use crate::executor::sandbox::Domain;

/// Numbers of the stack that a child has until it is its program: 64 KiB of those that processors want stacks to begin at.
const STACK: usize = 4096;
/// No file.
const NONE: RawFd = -1;

/// All that a child needs to become its program; made before it is there, as it must not allocate.
struct Plan {
    program: *const c_char,
    words: *const *const c_char,
    env: *const *const c_char,
    folder: *const c_char,
    files: [RawFd; 3],
    /// This process.
    parent: c_int,
    /// A network namespace to enter.
    network: RawFd,
    /// Landlock's rules.
    rules: RawFd,
    /// What the child could not do, and why.
    failed: Option<(Step, c_int)>,
}

/// What a child could not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Domain,
    Other,
}

pub fn start(launch: &Launch, domain: Option<&Domain>) -> Result<Pid, NotStarted> {
    let (program, folder) = (text(&[launch.program.as_os_str()])?, text(&[launch.folder.as_os_str()])?);
    let words = launch.words.iter().map(|word| text(&[word])).collect::<io::Result<Vec<_>>>()?;
    let env = launch.env.iter().map(|(name, value)| text(&[name, OsStr::new("="), value])).collect::<io::Result<Vec<_>>>()?;
    let list = |texts: &[CString]| texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect::<Vec<_>>();
    let (words_list, env_list) = (list(&words), list(&env));
    let input = rustix::fs::open(c"/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(io::Error::from)?;
    let mut plan = Plan {
        program: program.as_ptr(),
        words: words_list.as_ptr(),
        env: env_list.as_ptr(),
        folder: folder.as_ptr(),
        // None of them is 0, 1 or 2: those are open since this program began.
        files: [input.as_raw_fd(), launch.stdout.as_raw_fd(), launch.stderr.as_raw_fd()],
        parent: rustix::process::getpid().as_raw_nonzero().get(),
        network: domain.and_then(Domain::network).map_or(NONE, |file| file.as_raw_fd()),
        rules: domain.and_then(Domain::rules).map_or(NONE, |file| file.as_raw_fd()),
        failed: None,
    };
    let pid = start_plan(&mut plan)?;
    match plan.failed {
        None => Ok(pid),
        Some((step, number)) => {
            // It has ended; what it was not told of it cannot tell.
            let _ = super::reap(pid);
            let error = io::Error::from_raw_os_error(number);
            Err(if step == Step::Domain { NotStarted::Domain(error.to_string()) } else { NotStarted::Program(error) })
        }
    }
}

/// The parts as one text for C.
fn text(parts: &[&OsStr]) -> io::Result<CString> {
    let bytes: Vec<u8> = parts.iter().flat_map(|part| part.as_bytes()).copied().collect();
    CString::new(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a word or a variable has a zero byte"))
}

/// Starts a child that carries the plan out. It is its program, or has ended, when this returns.
fn start_plan(plan: &mut Plan) -> io::Result<Pid> {
    let mut stack = Vec::<u128>::with_capacity(STACK);
    let plan: *mut Plan = plan;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the child runs on a stack of its own, of which it is handed the end, since stacks grow down on every system that we know. It has this
    // process's memory, but this thread, whose locals the plan points to, does not go on before the child has become its program or ended. Signals
    // are blocked meanwhile: a handler of this process must not run in the child, which resets them before it lets signals in.
    let pid = unsafe {
        let (mut all, mut before) = (std::mem::zeroed::<libc::sigset_t>(), std::mem::zeroed::<libc::sigset_t>());
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        let pid = libc::clone(child, stack.as_mut_ptr().add(STACK).cast::<c_void>(), flags, plan.cast::<c_void>());
        let error = io::Error::last_os_error();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut());
        if pid == -1 {
            return Err(error);
        }
        pid
    };
    Pid::from_raw(pid).ok_or_else(|| io::Error::other("a process has no number"))
}

/// What a child does: what it returns is its exit status, and nothing of this process may be waiting to be undone.
extern "C" fn child(plan: *mut c_void) -> c_int {
    let plan = plan.cast::<Plan>();
    // SAFETY: it is the plan that `start_plan` was given; whoever gave it waits.
    unsafe {
        let step = become_program(&*plan);
        (*plan).failed = Some((step, *libc::__errno_location()));
    }
    127
}

/// Becomes the program. Gives what failed, as only then it returns.
///
/// # Safety
/// The pointers of the plan are valid. Called in a process that shares its memory with another: nothing is allocated, nothing can panic.
unsafe fn become_program(plan: &Plan) -> Step {
    // SAFETY: calls of the system with what the plan has; see above.
    unsafe {
        // Whoever started it is the only one who waits for it: it ends with that thread, also when this program is killed.
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        if libc::getppid() != plan.parent {
            libc::_exit(127);
        }
        reset_signals();
        if libc::setpgid(0, 0) == -1 {
            return Step::Other;
        }
        for (number, file) in (0..).zip(plan.files) {
            if libc::dup2(file, number) == -1 {
                return Step::Other;
            }
        }
        if libc::chdir(plan.folder) == -1 {
            return Step::Other;
        }
        if plan.network != NONE && libc::setns(plan.network, libc::CLONE_NEWNET) == -1 {
            return Step::Domain;
        }
        if plan.rules != NONE
            && (libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == -1
                || libc::syscall(libc::SYS_landlock_restrict_self, plan.rules, 0) == -1)
        {
            return Step::Domain;
        }
        // Files that this program was started with may lead to anywhere. A kernel that cannot close them all at once leaves them open.
        libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0);
        libc::execve(plan.program, plan.words, plan.env);
        Step::Other
    }
}

/// Lets signals in again, with nothing of this process's own to be done on them. What was ignored when this program began stays so, but for SIGPIPE,
/// which the standard library ignores.
///
/// # Safety
/// As [`become_program`].
unsafe fn reset_signals() {
    // SAFETY: numbers without a signal are refused, and that is all.
    unsafe {
        let mut action = std::mem::zeroed::<libc::sigaction>();
        let mut default = std::mem::zeroed::<libc::sigaction>();
        default.sa_sigaction = libc::SIG_DFL;
        for signal in 1..=64 {
            if libc::sigaction(signal, ptr::null(), &raw mut action) == 0 {
                let is_kept = action.sa_sigaction == libc::SIG_DFL || (action.sa_sigaction == libc::SIG_IGN && signal != libc::SIGPIPE);
                if !is_kept {
                    libc::sigaction(signal, &raw const default, ptr::null_mut());
                }
            }
        }
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
    }
}
