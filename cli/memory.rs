//! How memory is taken and given back.
#![allow(unsafe_code, reason = "the allocator's options are set by a call of C, and so is a process ended at once")]

use std::ffi::{c_int, c_long};

/// mimalloc's `purge_delay`: milliseconds until freed memory goes back to the system, and -1 for never.
const PURGE_DELAY: c_int = 15;
/// mimalloc's `arena_reserve`: KiB of addresses that are taken at once.
const ARENA_RESERVE: c_int = 23;
/// What it is if nobody sets it.
const LARGE_ARENA: c_long = 1 << 20;
/// Enough for all that a run needs: a second arena would cost memory. The first pages of an arena say which of its parts are free: for a large one, a tenth of a
/// millisecond's worth of them.
#[cfg(target_os = "linux")]
const SMALL_ARENA: c_long = 1 << 18;

/// How long freed memory waits for whoever takes it again: what resolving a large pipeline needed is given back before the run begins, while shorter runs give
/// nothing back at all. mimalloc itself would wait for a second, and the peak of a run of 100,000 stages was a tenth higher.
#[cfg(target_os = "linux")]
const SHORT_WAIT: c_long = 50;

/// Called before `main`, and so before memory is first taken.
#[cfg(target_os = "linux")]
#[used]
#[unsafe(link_section = ".init_array")]
static BEGIN: extern "C" fn() = {
    extern "C" fn begin() {
        // SAFETY: any option can be set at any time.
        unsafe {
            libmimalloc_sys::mi_option_set(ARENA_RESERVE, SMALL_ARENA);
            libmimalloc_sys::mi_option_set(PURGE_DELAY, SHORT_WAIT);
        }
    }
    begin
};

/// From now on freed memory stays with this process. A training step frees and takes the same gigabyte over and over, and each time that
/// it went back to the system in between, its pages are cleared again: up to a third of a step. The peak stays what it is.
pub fn keep() {
    // SAFETY: any option can be set at any time.
    unsafe {
        libmimalloc_sys::mi_option_set(ARENA_RESERVE, LARGE_ARENA);
        libmimalloc_sys::mi_option_set(PURGE_DELAY, -1);
    }
}

/// Ends this process, which succeeded, without giving back piece by piece what the system takes back as a whole.
pub fn leave() -> ! {
    // What could not be written was noticed when it was printed.
    let _ = std::io::Write::flush(&mut std::io::stdout());
    // SAFETY: nothing is left to be done: everything with an end of its own has come to it.
    unsafe { nix::libc::_exit(0) }
}
