//! How long a run will take, by how long its stages took before.
//!
//! The run is played through with the rules of the scheduler: a stage begins when all that it reads from is done and enough threads are
//! free, those with the longest way (in time) below them first. Stages without an earlier time are taken to need none, and are counted.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use crate::pipeline::StageId;

/// What a run is expected to take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Estimate {
    /// From begin to end.
    pub wall: Duration,
    /// All stages one after the other.
    pub work: Duration,
    /// The longest chain of stages: no number of threads makes the run shorter.
    pub path: Duration,
    /// Stages to run whose time is known.
    pub known: usize,
    /// Stages to run that have not run before.
    pub unknown: usize,
}

/// A stage that is to run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Todo {
    /// What it took before, if that is known.
    pub time: Option<Duration>,
    /// Threads that it needs at least.
    pub threads: usize,
    /// Stages that it reads from.
    pub upstream: Vec<StageId>,
}

/// Plays through a run of these stages, which are numbered in topological order, on `cpus` threads.
pub fn estimate(stages: &BTreeMap<StageId, Todo>, cpus: usize) -> Estimate {
    let cpus = cpus.max(1);
    let mut estimate = Estimate::default();
    for stage in stages.values() {
        match &stage.time {
            Some(time) => {
                estimate.known += 1;
                estimate.work += *time;
            }
            None => estimate.unknown += 1,
        }
    }
    let ways = ways(stages);
    estimate.path = ways.values().copied().max().unwrap_or_default();
    estimate.wall = play(stages, &ways, cpus);
    estimate
}

/// For each stage the time of the longest chain that begins with it.
fn ways(stages: &BTreeMap<StageId, Todo>) -> BTreeMap<StageId, Duration> {
    let mut below: BTreeMap<StageId, Duration> = BTreeMap::new();
    let mut ways = BTreeMap::new();
    // Stages are in topological order: what reads from a stage has a higher number.
    for (&id, stage) in stages.iter().rev() {
        let way = stage.time.unwrap_or_default() + below.get(&id).copied().unwrap_or_default();
        ways.insert(id, way);
        for &up in &stage.upstream {
            let longest = below.entry(up).or_default();
            *longest = (*longest).max(way);
        }
    }
    ways
}

fn play(stages: &BTreeMap<StageId, Todo>, ways: &BTreeMap<StageId, Duration>, cpus: usize) -> Duration {
    let mut waiting: BTreeMap<StageId, usize> = BTreeMap::new();
    let mut readers: BTreeMap<StageId, Vec<StageId>> = BTreeMap::new();
    let mut ready = BinaryHeap::new();
    for (&id, stage) in stages {
        let ups: Vec<StageId> = stage.upstream.iter().copied().filter(|up| stages.contains_key(up)).collect();
        if ups.is_empty() {
            ready.push((ways[&id], Reverse(id)));
        }
        waiting.insert(id, ups.len());
        ups.into_iter().for_each(|up| readers.entry(up).or_default().push(id));
    }
    let (mut now, mut free) = (Duration::ZERO, cpus);
    let mut running: BinaryHeap<Reverse<(Duration, StageId, usize)>> = BinaryHeap::new();
    loop {
        while let Some(&(_, Reverse(id))) = ready.peek() {
            let threads = stages[&id].threads.clamp(1, cpus);
            if threads > free {
                break;
            }
            ready.pop();
            free -= threads;
            running.push(Reverse((now + stages[&id].time.unwrap_or_default(), id, threads)));
        }
        let Some(Reverse((end, id, threads))) = running.pop() else { return now };
        now = end;
        free += threads;
        for reader in readers.remove(&id).unwrap_or_default() {
            if let Some(count) = waiting.get_mut(&reader) {
                *count -= 1;
                if *count == 0 {
                    ready.push((ways[&reader], Reverse(reader)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn todo(seconds: Option<u64>, upstream: &[StageId]) -> Todo {
        Todo { time: seconds.map(Duration::from_secs), threads: 1, upstream: upstream.to_vec() }
    }

    /// A chain of three beside four stages that read nothing.
    fn stages() -> BTreeMap<StageId, Todo> {
        let chain = [todo(Some(4), &[]), todo(Some(4), &[0]), todo(Some(4), &[1])];
        chain.into_iter().chain((0..4).map(|_| todo(Some(3), &[]))).enumerate().collect()
    }

    fn seconds(estimate: Estimate) -> [u64; 3] {
        [estimate.wall, estimate.work, estimate.path].map(|time| time.as_secs())
    }

    #[test]
    fn the_longest_chain_goes_first() {
        let on = |cpus| seconds(estimate(&stages(), cpus));
        assert_eq!(on(1), [24, 24, 12]);
        assert_eq!(on(2), [12, 24, 12]);
        assert_eq!(on(9), [12, 24, 12]);
        assert_eq!(on(0), on(1));
    }

    #[test]
    fn what_needs_all_threads_runs_alone() {
        let mut stages = stages();
        stages.values_mut().for_each(|stage| stage.threads = 8);
        assert_eq!(seconds(estimate(&stages, 4)), [24, 24, 12]);
    }

    #[test]
    fn what_is_not_known_or_not_to_run_takes_no_time() {
        let stages = BTreeMap::from([(0, todo(Some(5), &[])), (1, todo(None, &[0])), (2, todo(Some(5), &[1, 9]))]);
        let estimate = estimate(&stages, 2);
        assert_eq!((seconds(estimate), estimate.known, estimate.unknown), ([10, 10, 10], 2, 1));
        assert_eq!(super::estimate(&BTreeMap::new(), 2), Estimate::default());
    }
}
