//! Where a training step's time goes, by op: what a benchmark prints.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Time and calls, by way (forward or backward) and op.
pub type Times = BTreeMap<(&'static str, &'static str), (Duration, usize)>;

thread_local! {
    static TIMES: RefCell<Option<Times>> = const { RefCell::new(None) };
}

/// Counts from now on what the ops of this thread take, from nothing.
pub fn begin() {
    TIMES.with(|times| *times.borrow_mut() = Some(Times::new()));
}

/// What was counted since [`begin`]; nothing is counted any more.
pub fn end() -> Times {
    TIMES.with(|times| times.borrow_mut().take()).unwrap_or_default()
}

/// Runs `f`, and adds its time if times are counted.
pub(super) fn time<R>(way: &'static str, op: &'static str, f: impl FnOnce() -> R) -> R {
    if TIMES.with(|times| times.borrow().is_none()) {
        return f();
    }
    let start = Instant::now();
    let result = f();
    let taken = start.elapsed();
    TIMES.with(|times| {
        if let Some(times) = &mut *times.borrow_mut() {
            let (time, calls) = times.entry((way, op)).or_default();
            *time += taken;
            *calls += 1;
        }
    });
    result
}
