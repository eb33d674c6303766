//! Large files read where they lie in memory.
//!
//! A map of a file saves the copy that reading makes of it, a third of the time that hashing takes. But where a file that was mapped
//! shrinks, a look behind its new end raises SIGBUS, which ends the program. So the signal is caught, as journald (`sigbus.c`) and
//! libwayland (`wayland-shm.c`) do: the handler puts zeros where the file was and notes that it did, and what was made of them is thrown
//! away. A SIGBUS from anywhere else goes to whoever had it before.
#![allow(unsafe_code, reason = "to map a file and to catch a signal are calls of C; no crate has both")]

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering, compiler_fence};

use nix::libc;

/// What a thread has mapped. Plain values, so that the handler may look at them at any moment.
#[derive(Clone, Copy)]
struct Window {
    start: usize,
    length: usize,
    /// Zeros were put in its place.
    is_torn: bool,
}

const NOTHING: Window = Window { start: 0, length: 0, is_torn: false };

thread_local! {
    static WINDOW: Cell<Window> = const { Cell::new(NOTHING) };
}

/// Who had the signal before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();
/// Whether it has it again.
static IS_GIVEN_BACK: AtomicBool = AtomicBool::new(false);

/// What `read` makes of `length` bytes of a file from `start` on, a multiple of the size of a page. None if they cannot be mapped, or not
/// be read as a whole: then reading says why.
///
/// `read` looks on the thread that it is called on, and nowhere else: only that one's signals are caught. So it starts no work of rayon's.
///
/// As with any read, bytes that another process writes meanwhile may be seen or not.
pub fn with<T>(file: &File, start: u64, length: usize, read: impl FnOnce(&[u8]) -> T) -> Option<T> {
    let is_nested = WINDOW.get().length != 0;
    if length == 0 || is_nested || !catches() {
        return None;
    }
    let offset = libc::off_t::try_from(start).ok()?;
    // SAFETY: a new map at a place of the system's choice touches no memory that is in use.
    let map = unsafe { libc::mmap(ptr::null_mut(), length, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), offset) };
    if map == libc::MAP_FAILED {
        return None;
    }
    let window = Unmap(Window { start: map as usize, length, is_torn: false });
    WINDOW.set(window.0);
    // The handler reads what was set here, of which the compiler knows nothing.
    compiler_fence(Ordering::SeqCst);
    // SAFETY: the map has this length and is readable until `window` is dropped; for pages that have no file the handler makes good, on this
    // thread, which is where `read` looks.
    let made = read(unsafe { std::slice::from_raw_parts(map.cast::<u8>(), length) });
    compiler_fence(Ordering::SeqCst);
    let is_torn = WINDOW.get().is_torn;
    drop(window);
    (!is_torn).then_some(made)
}

/// Ends a map, also where its reader panics.
struct Unmap(Window);

impl Drop for Unmap {
    fn drop(&mut self) {
        WINDOW.set(NOTHING);
        // SAFETY: the map is this value's own, and the only borrow of it has ended.
        unsafe { libc::munmap(self.0.start as *mut c_void, self.0.length) };
    }
}

/// Sees to it that the signal is caught; false if it cannot be.
fn catches() -> bool {
    static CATCHES: OnceLock<bool> = OnceLock::new();
    let catches = *CATCHES.get_or_init(|| {
        // SAFETY: `sigaction` is plain data that zeros are a value of; the handler calls nothing that a handler may not.
        unsafe {
            let mut before: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut before) != 0 || BEFORE.set(before).is_err() {
                return false;
            }
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as libc::sighandler_t;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) == 0
        }
    });
    catches && !IS_GIVEN_BACK.load(Ordering::Relaxed)
}

/// Runs on the thread that looked. It may only use what needs no lock and no memory: a thread's plain values and system calls.
extern "C" fn handler(_: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY: the system gives a valid `info` to a handler that asked for it; it has an address if a look raised the signal.
    let (is_sent, address) = unsafe { ((*info).si_code <= 0, (*info).si_addr() as usize) };
    let window = if is_sent { NOTHING } else { WINDOW.try_with(Cell::get).unwrap_or(NOTHING) };
    if (window.start..window.start + window.length).contains(&address) {
        let (flags, at) = (libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, window.start as *mut c_void);
        // SAFETY: it replaces the window, which is this thread's own and mapped, by as many readable bytes. Only a failed call sets `errno`.
        if unsafe { libc::mmap(at, window.length, libc::PROT_READ, flags, -1, 0) } == at {
            // It was there a moment ago.
            let _ = WINDOW.try_with(|cell| cell.set(Window { is_torn: true, ..window }));
            return;
        }
    }
    // A look raises it once more, and it meets who was there before; one that another process sent is sent on.
    if let Some(before) = BEFORE.get() {
        IS_GIVEN_BACK.store(true, Ordering::Relaxed);
        // SAFETY: an action that the system gave out; `raise` may be called here.
        unsafe {
            libc::sigaction(libc::SIGBUS, before, ptr::null_mut());
            if is_sent {
                libc::raise(libc::SIGBUS);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    const SIZE: usize = 1 << 20;

    fn file(folder: &std::path::Path) -> File {
        let path = folder.join("file");
        std::fs::write(&path, vec![7; SIZE]).unwrap();
        File::options().read(true).write(true).open(path).unwrap()
    }

    #[test]
    fn a_file_that_shrinks_is_no_reason_to_die() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(folder.path());
        let sum = |bytes: &[u8]| bytes.iter().map(|&byte| usize::from(byte)).sum::<usize>();
        assert_eq!(with(&file, 0, SIZE, sum), Some(7 * SIZE));
        let mut seen = 0;
        let made = with(&file, 4096, SIZE - 4096, |bytes| {
            file.set_len(8192).unwrap();
            seen = sum(bytes);
        });
        assert_eq!((made, seen < 7 * SIZE), (None, true), "zeros are there, and not to be believed");
        assert_eq!(with(&file, 0, 8192, sum), Some(7 * 8192), "it goes on");
        assert_eq!(with(&file, 0, SIZE, sum), None);
        assert_eq!(with(&file, 1, 100, sum), None, "not at the beginning of a page");
        assert_eq!(with(&file, 0, 4096, |_| with(&file, 0, 4096, sum)), Some(None), "one in another");
    }

    #[test]
    fn threads_have_windows_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let (whole, short) = (file(folder.path()), file(tempfile::tempdir().unwrap().path()));
        short.set_len(4096).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        assert_eq!(with(&whole, 0, SIZE, |bytes| bytes[SIZE - 1]), Some(7));
                        assert_eq!(with(&short, 0, SIZE, |bytes| bytes[SIZE - 1]), None);
                    }
                });
            }
        });
    }

    /// The other half runs in a process of its own, which has to die.
    #[test]
    fn a_bus_error_of_another_ends_the_program_as_ever() {
        const DIES: &str = "TRESTLE_TEST_DIES";
        let folder = tempfile::tempdir().unwrap();
        let file = file(folder.path());
        assert_eq!(with(&file, 0, SIZE, |bytes| bytes[0]), Some(7));
        if std::env::var_os(DIES).is_some() {
            // SAFETY: a new map; the look behind the end of its file is what is tested.
            unsafe {
                let map = libc::mmap(ptr::null_mut(), SIZE, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0);
                file.set_len(0).unwrap();
                std::process::exit(i32::from(map.cast::<u8>().read_volatile()));
            }
        }
        let name = "files::mapped::tests::a_bus_error_of_another_ends_the_program_as_ever";
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        let output = again.args(["--exact", name]).env(DIES, "1").output().unwrap();
        assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{output:?}");
    }
}
