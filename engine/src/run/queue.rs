//! Which stages are still to be done, and in which order those that are ready start.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::compiled::Compiled;
use crate::pipeline::StageId;

/// The part of the graph that is no hit, its stages numbered through in topological order.
#[derive(Debug)]
pub struct Open {
    ids: Vec<StageId>,
    /// Readers of all stages one after the other, and where each stage's begin.
    readers: Vec<u32>,
    starts: Vec<u32>,
    /// Milliseconds of the longest way from each stage to the end, itself included, as far as that is known.
    heights: Vec<u64>,
    waits: Vec<u32>,
}

impl Open {
    /// The graph of the stages `ids`, which are in topological order.
    pub fn new(compiled: &Compiled, ids: Vec<StageId>, expected_ms: impl Fn(StageId) -> u32) -> Self {
        let mut place = vec![u32::MAX; compiled.len()];
        ids.iter().zip(0..).for_each(|(&id, open)| place[id] = open);
        let upstream = |id: StageId| compiled.upstream(id).into_iter().map(|up| place[up]).filter(|&open| open != u32::MAX);
        let mut counts = vec![0u32; ids.len() + 1];
        let mut waits = vec![0u32; ids.len()];
        for (open, &id) in ids.iter().enumerate() {
            for up in upstream(id) {
                counts[up as usize + 1] += 1;
                waits[open] += 1;
            }
        }
        let mut starts = counts;
        (1..starts.len()).for_each(|i| starts[i] += starts[i - 1]);
        let mut next = starts.clone();
        let mut readers = vec![0; starts.last().copied().unwrap_or(0) as usize];
        let mut heights = vec![0u64; ids.len()];
        for (open, &id) in ids.iter().enumerate() {
            for up in upstream(id) {
                readers[next[up as usize] as usize] = u32::try_from(open).unwrap_or(u32::MAX);
                next[up as usize] += 1;
            }
        }
        for open in (0..ids.len()).rev() {
            let below = readers[starts[open] as usize..starts[open + 1] as usize].iter().map(|&reader| heights[reader as usize]).max();
            heights[open] = below.unwrap_or(0) + u64::from(expected_ms(ids[open]).max(1));
        }
        Self { ids, readers, starts, heights, waits }
    }

    /// How many stages there are.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Where a stage is in the pipeline.
    pub fn id(&self, open: usize) -> StageId {
        self.ids[open]
    }

    /// The stages that read from one.
    pub fn readers(&self, open: usize) -> &[u32] {
        &self.readers[self.starts[open] as usize..self.starts[open + 1] as usize]
    }

    /// How many stages each waits for.
    pub fn waits(&self) -> Vec<u32> {
        self.waits.clone()
    }

    /// Milliseconds of the longest way from a stage to the end.
    pub fn height(&self, open: usize) -> u64 {
        self.heights[open]
    }
}

/// A stage that is ready. The greatest starts first: by priority, then by height, then by its place in the pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    priority: i32,
    height: u64,
    order: Reverse<usize>,
    pub open: usize,
}

/// Stages that are ready.
#[derive(Debug, Default)]
pub struct Queue {
    heap: BinaryHeap<Entry>,
}

impl Queue {
    /// One more.
    pub fn push(&mut self, open: usize, priority: i32, height: u64) {
        self.heap.push(Entry { priority, height, order: Reverse(open), open });
    }

    /// One that could not start yet.
    pub fn put_back(&mut self, entry: Entry) {
        self.heap.push(entry);
    }

    /// The next one.
    pub fn pop(&mut self) -> Option<Entry> {
        self.heap.pop()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.heap.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priority_then_the_longest_way_then_the_order_of_the_file() {
        let mut queue = Queue::default();
        for (open, priority, height) in [(0, 0, 5), (1, 0, 9), (2, 1, 1), (3, 0, 9)] {
            queue.push(open, priority, height);
        }
        let order: Vec<usize> = std::iter::from_fn(|| queue.pop()).map(|entry| entry.open).collect();
        assert_eq!(order, [2, 1, 3, 0]);
    }
}
