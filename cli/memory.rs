//! How memory is given back.
#![allow(unsafe_code, reason = "the allocator's options are set by a call of C, and so is a process ended at once")]

use std::ffi::c_int;

/// mimalloc's `purge_delay`: milliseconds until freed memory goes back to the system, and -1 for never.
const PURGE_DELAY: c_int = 15;

/// From now on freed memory stays with this process. A training step frees and takes the same gigabyte over and over, and each time that
/// it went back to the system in between, its pages are cleared again: up to a third of a step. The peak stays what it is.
pub fn keep() {
    // SAFETY: any option can be set at any time.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
}

/// Ends this process, which succeeded, without giving back piece by piece what the system takes back as a whole.
pub fn leave() -> ! {
    // What could not be written was noticed when it was printed.
    let _ = std::io::Write::flush(&mut std::io::stdout());
    // SAFETY: nothing is left to be done: everything with an end of its own has come to it.
    unsafe { nix::libc::_exit(0) }
}
