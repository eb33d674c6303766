//! Loops over parts of tensors on all threads.
//!
//! A step of a training is hundreds of loops of some hundred microseconds, one after the other, with all threads wanted for each. A pool for tasks of any kind,
//! such as rayon's, lets a thread sleep that finds nothing to do for some microseconds, and waking it takes longer than some loops do. So a process
//! that trains has a [`Team`]: threads that stay awake for a while between loops, and take parts of a loop from its end while the one that
//! began it takes them from its beginning, so that each mostly has what it had in its cache. Loops are still written with
//! rayon's iterators, which know how to be cut; [`Parallel::run`] and [`Parallel::gather`] take the place of `for_each` and of `map` with `collect`.
//! Where there is no team, rayon carries them out. What is computed does not depend on how it is cut.
#![allow(unsafe_code, reason = "threads borrow a loop of another for as long as that waits for them, which no type can say")]

use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use rayon::iter::plumbing::{Producer, ProducerCallback};
use rayon::prelude::*;

/// Parts of a loop for each thread: the more, the shorter the last ones wait for each other.
const PARTS: usize = 16;
/// How long a thread without work stays awake.
const AWAKE: Duration = Duration::from_micros(500);

static TEAM: OnceLock<&Team> = OnceLock::new();

thread_local! {
    /// Whether this thread is in a loop of the team: one within that is its own.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Loops over all items of an iterator.
pub trait Parallel: IndexedParallelIterator {
    /// Calls `each` with every item, on all threads.
    fn run(self, each: impl Fn(Self::Item) + Send + Sync) {
        match TEAM.get() {
            None => self.for_each(each),
            Some(team) => run_on(team, self, each),
        }
    }

    /// What `make` makes of every item, in their order; on all threads.
    fn gather<R: Send>(self, make: impl Fn(Self::Item) -> R + Send + Sync) -> Vec<R> {
        let mut made: Vec<Option<R>> = Vec::new();
        made.resize_with(self.len(), || None);
        self.zip(made.par_iter_mut()).run(|(item, place)| *place = Some(make(item)));
        made.into_iter().flatten().collect()
    }
}

impl<I: IndexedParallelIterator> Parallel for I {}

/// Items of a part, at most `most` of them, where every thread is to have as many parts as the others. What it says depends on the number of threads, so it is for loops whose
/// items have nothing to do with each other.
pub fn fair(items: usize, most: usize) -> usize {
    let threads = TEAM.get().map_or_else(rayon::current_num_threads, |team| team.members().len() + 1);
    fair_among(threads, items, most)
}

fn fair_among(threads: usize, items: usize, most: usize) -> usize {
    let rounds = items.div_ceil(most * threads).max(1);
    items.div_ceil(rounds * threads).max(1)
}

/// Gives this process `threads` - 1 threads that help whoever begins a loop, once. With one thread loops are carried out as they stand.
///
/// # Errors
/// If the threads cannot be started.
pub fn form_team(threads: usize) -> std::io::Result<()> {
    if TEAM.get().is_none() {
        let team = Team::form(threads)?;
        // Another thread that was quicker has formed the same.
        let _ = TEAM.set(team);
    }
    Ok(())
}

/// A thread that helps with loops.
#[derive(Debug)]
struct Member {
    thread: Thread,
    asleep: Arc<AtomicBool>,
}

/// The threads of a process that share its loops.
#[derive(Debug, Default)]
struct Team {
    members: OnceLock<Vec<Member>>,
    /// Somebody's loop is under way.
    busy: AtomicBool,
    gate: Gate,
    left: Left,
    /// Written while the gate is closed and nobody is inside, read by those inside.
    body: UnsafeCell<Option<Body>>,
    panicked: AtomicBool,
}

// SAFETY: `body` is the one field that needs care; the gate gives it.
unsafe impl Sync for Team {}
// SAFETY: as above.
unsafe impl Send for Team {}

/// The body of a loop, called with the number of a part.
#[derive(Debug, Clone, Copy)]
struct Body(*const (dyn Fn(usize) + Sync));

/// Lets threads into a loop: its number, whether it is open, and how many are inside.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Gate(AtomicU64);

const OPEN: u64 = 1 << 20;
const INSIDE_MASK: u64 = OPEN - 1;

/// Parts that nobody took, from the first to before the last.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Left(AtomicU64);

impl Left {
    fn set(&self, parts: u32) {
        self.0.store(u64::from(parts), Ordering::Relaxed);
    }

    /// One from the front or the back.
    fn take(&self, front: bool) -> Option<usize> {
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            let (from, to) = (left >> 32, left & u64::from(u32::MAX));
            (from < to).then(|| if front { left + (1 << 32) } else { left - 1 })
        });
        taken.ok().map(|left| if front { left >> 32 } else { (left & u64::from(u32::MAX)) - 1 } as usize)
    }
}

impl Team {
    /// A team of `threads`, the one that begins a loop among them. It stays as long as the process.
    fn form(threads: usize) -> std::io::Result<&'static Self> {
        let team: &Self = Box::leak(Box::default());
        let start = |_| {
            let asleep = Arc::new(AtomicBool::new(false));
            let sleeps = Arc::clone(&asleep);
            let started = std::thread::Builder::new().name("kernels".to_owned()).spawn(move || team.serve(&sleeps))?;
            Ok(Member { thread: started.thread().clone(), asleep })
        };
        let members = (1..threads).map(start).collect::<std::io::Result<Vec<_>>>()?;
        // It is set once, here.
        let _ = team.members.set(members);
        Ok(team)
    }

    fn members(&self) -> &[Member] {
        self.members.get().map_or(&[], Vec::as_slice)
    }

    /// Calls `body` with the numbers below `parts`, on all threads.
    fn share(&self, parts: u32, body: &(dyn Fn(usize) + Sync)) {
        let is_alone = self.members().is_empty() || parts < 2 || INSIDE.get();
        if is_alone || self.busy.swap(true, Ordering::Acquire) {
            return (0..parts as usize).for_each(body);
        }
        self.panicked.store(false, Ordering::Relaxed);
        self.left.set(parts);
        // SAFETY: `busy` keeps other loops away, and the gate is closed with nobody inside. What the pointer leads to outlives the call, and `End`
        // lets nobody be inside after it, also when `body` panics here.
        unsafe {
            *self.body.get() = Some(Body(std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const (dyn Fn(usize) + Sync)>(body)))
        };
        let number = (self.gate.0.load(Ordering::Relaxed) >> 21) + 1;
        self.gate.0.store(number << 21 | OPEN, Ordering::SeqCst);
        let end = End(self);
        for member in self.members() {
            if member.asleep.load(Ordering::SeqCst) {
                member.thread.unpark();
            }
        }
        INSIDE.set(true);
        while let Some(part) = self.left.take(true) {
            body(part);
        }
        drop(end);
        assert!(!self.panicked.swap(false, Ordering::Relaxed), "a part of a loop panicked on another thread");
    }

    /// Takes part in loops for ever.
    fn serve(&self, asleep: &AtomicBool) {
        INSIDE.set(true);
        let (mut seen, mut idle) = (0, Instant::now());
        loop {
            let gate = self.gate.0.load(Ordering::Acquire);
            if gate & OPEN != 0 && gate >> 21 != seen {
                if self.gate.0.compare_exchange(gate, gate + 1, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                    seen = gate >> 21;
                    // SAFETY: this thread is inside, so the loop that wrote it waits.
                    let body = unsafe { *self.body.get() };
                    let work = || {
                        // SAFETY: as above.
                        while let (Some(Body(body)), Some(part)) = (body, self.left.take(false)) {
                            unsafe { (*body)(part) };
                        }
                    };
                    if catch_unwind(AssertUnwindSafe(work)).is_err() {
                        self.panicked.store(true, Ordering::Relaxed);
                    }
                    self.gate.0.fetch_sub(1, Ordering::Release);
                    idle = Instant::now();
                }
                continue;
            }
            if idle.elapsed() < AWAKE {
                spin();
                continue;
            }
            asleep.store(true, Ordering::SeqCst);
            let gate = self.gate.0.load(Ordering::SeqCst);
            if gate & OPEN == 0 || gate >> 21 == seen {
                std::thread::park();
            }
            asleep.store(false, Ordering::SeqCst);
            idle = Instant::now();
        }
    }
}

/// A moment's wait, in which whoever has something to do may have this processor.
fn spin() {
    for _ in 0..64 {
        std::hint::spin_loop();
    }
    std::thread::yield_now();
}

/// The end of a loop: nobody comes in any more, and those inside are waited for.
struct End<'t>(&'t Team);

impl Drop for End<'_> {
    fn drop(&mut self) {
        let Self(team) = self;
        INSIDE.set(false);
        // Where `body` panicked, what is left is not begun.
        team.left.set(0);
        team.gate.0.fetch_and(!OPEN, Ordering::AcqRel);
        let mut rounds = 0u32;
        while team.gate.0.load(Ordering::Acquire) & INSIDE_MASK != 0 {
            // The last part mostly takes no longer than this.
            if rounds < 10_000 {
                std::hint::spin_loop();
            } else {
                spin();
            }
            rounds = rounds.saturating_add(1);
        }
        team.busy.store(false, Ordering::Release);
    }
}

fn run_on<I: IndexedParallelIterator>(team: &Team, items: I, each: impl Fn(I::Item) + Send + Sync) {
    let len = items.len();
    items.with_producer(Cut { team, len, each });
}

/// Cuts what an iterator gives into parts for a team.
struct Cut<'t, F> {
    team: &'t Team,
    len: usize,
    each: F,
}

impl<T, F: Fn(T) + Send + Sync> ProducerCallback<T> for Cut<'_, F> {
    type Output = ();

    fn callback<P: Producer<Item = T>>(self, producer: P) {
        let Self { team, len, each } = self;
        let threads = team.members().len() + 1;
        let parts = (len / producer.min_len().max(1)).clamp(1, PARTS * threads);
        if parts == 1 || threads == 1 || INSIDE.get() {
            return producer.into_iter().for_each(each);
        }
        let mut list = Vec::with_capacity(parts);
        let mut rest = producer;
        for part in 0..parts - 1 {
            let (this, behind) = rest.split_at(len * (part + 1) / parts - len * part / parts);
            list.push(Mutex::new(Some(this)));
            rest = behind;
        }
        list.push(Mutex::new(Some(rest)));
        team.share(parts as u32, &|part| {
            let taken = list[part].lock().unwrap_or_else(PoisonError::into_inner).take();
            taken.into_iter().for_each(|part| part.into_iter().for_each(&each));
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn every_item_is_seen_once_however_long_the_loop_and_the_pause() {
        for threads in 1..=4 {
            let team = Team::form(threads).unwrap();
            for round in 0..400 {
                let mut items = vec![0usize; round % 97];
                run_on(team, items.par_iter_mut().enumerate(), |(i, item)| *item += i + round);
                assert!(items.iter().enumerate().all(|(i, item)| *item == i + round), "{threads} threads, round {round}");
                if round % 50 == 0 {
                    // Long enough to fall asleep.
                    std::thread::sleep(4 * AWAKE);
                }
            }
        }
    }

    #[test]
    fn threads_get_as_many_parts_as_each_other() {
        for threads in 1..=4 {
            for (items, most) in [(0, 5), (1, 5), (32, 36), (128, 48), (392, 60), (576, 512), (4160, 216)] {
                let part = fair_among(threads, items, most);
                assert!((1..=most).contains(&part), "{items} in parts of {part} for {threads}");
                let parts = items.div_ceil(part);
                // The last ones may be missing where parts are small.
                assert!(
                    items < threads * threads || parts.next_multiple_of(threads) - parts <= threads / 2,
                    "{items} in {parts} parts for {threads}"
                );
            }
        }
    }

    #[test]
    fn a_loop_within_a_loop_is_carried_out_by_its_thread() {
        let team = Team::form(3).unwrap();
        let count = AtomicUsize::new(0);
        run_on(team, (0..50).into_par_iter(), |_| {
            let here = std::thread::current().id();
            run_on(team, (0..20).into_par_iter(), |_| {
                assert_eq!(std::thread::current().id(), here);
                count.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(count.into_inner(), 1000);
    }

    fn is_carried_out(team: &Team) {
        let count = AtomicUsize::new(0);
        run_on(team, (0..64).into_par_iter(), |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 64);
    }

    #[test]
    fn loops_of_two_threads_at_once_are_both_carried_out() {
        let team = Team::form(2).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        is_carried_out(team);
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_of_any_part_reaches_whoever_began_the_loop_and_the_team_goes_on() {
        let team = Team::form(2).unwrap();
        // The first part is the beginner's, the last mostly the other's.
        for bad in [0, 31, 63] {
            let loop_with_panic = || run_on(team, (0..64).into_par_iter(), |i| assert_ne!(i, bad));
            assert!(catch_unwind(AssertUnwindSafe(loop_with_panic)).is_err());
            is_carried_out(team);
        }
    }

    #[test]
    fn what_is_gathered_is_in_order() {
        let made = (0..1000usize).into_par_iter().gather(|i| i * i);
        assert!(made.iter().enumerate().all(|(i, square)| *square == i * i));
    }
}
