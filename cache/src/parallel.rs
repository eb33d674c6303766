//! Work on many things by all threads, and on a few by the one that is there.

use rayon::prelude::*;

/// What `each` makes of every item, in their order; by all threads from `many` items on. The threads of a process that has not started them yet
/// take half a millisecond to do so, which for a few items is more than the work.
pub fn map<T: Sync, R: Send>(items: &[T], many: usize, each: impl Fn(&T) -> R + Send + Sync) -> Vec<R> {
    if items.len() < many { items.iter().map(each).collect() } else { items.par_iter().map(each).collect() }
}

/// The first of what `each` makes of the items, in their order, if it makes something of one; by all threads from `many` items on.
pub fn find_first<T: Sync, R: Send>(items: &[T], many: usize, each: impl Fn(&T) -> Option<R> + Send + Sync) -> Option<R> {
    if items.len() < many { items.iter().find_map(each) } else { items.par_iter().find_map_first(each) }
}
