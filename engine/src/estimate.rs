//! How long a run will take, by how long its stages took before.
//!
//! The run is played through with the rules of the scheduler: a stage begins when all that it reads from is done and enough threads are
//! free, those with the longest way (in time) below them first. Stages without an earlier time are taken to need none, and are counted.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use crate::pipeline::{Pipeline, StageId};

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

/// Plays through a run of `stages`, each with the time that it took before if that is known, on `cpus` threads.
pub fn estimate(pipeline: &Pipeline, stages: &BTreeMap<StageId, Option<Duration>>, cpus: usize) -> Estimate {
    let cpus = cpus.max(1);
    let mut estimate = Estimate::default();
    for time in stages.values() {
        match time {
            Some(time) => {
                estimate.known += 1;
                estimate.work += *time;
            }
            None => estimate.unknown += 1,
        }
    }
    let ways = ways(pipeline, stages);
    estimate.path = ways.values().copied().max().unwrap_or_default();
    estimate.wall = play(pipeline, stages, &ways, cpus);
    estimate
}

/// For each stage the time of the longest chain that begins with it.
fn ways(pipeline: &Pipeline, stages: &BTreeMap<StageId, Option<Duration>>) -> BTreeMap<StageId, Duration> {
    let mut below: BTreeMap<StageId, Duration> = BTreeMap::new();
    let mut ways = BTreeMap::new();
    // Stages are in topological order: what reads from a stage has a higher number.
    for (&id, time) in stages.iter().rev() {
        let way = time.unwrap_or_default() + below.get(&id).copied().unwrap_or_default();
        ways.insert(id, way);
        for up in pipeline.stages[id].upstream() {
            let longest = below.entry(up).or_default();
            *longest = (*longest).max(way);
        }
    }
    ways
}

fn play(pipeline: &Pipeline, stages: &BTreeMap<StageId, Option<Duration>>, ways: &BTreeMap<StageId, Duration>, cpus: usize) -> Duration {
    let mut waiting: BTreeMap<StageId, usize> = BTreeMap::new();
    let mut readers: BTreeMap<StageId, Vec<StageId>> = BTreeMap::new();
    let mut ready = BinaryHeap::new();
    for &id in stages.keys() {
        let ups: Vec<StageId> = pipeline.stages[id].upstream().into_iter().filter(|up| stages.contains_key(up)).collect();
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
            let threads = pipeline.stages[id].threads.min.clamp(1, cpus);
            if threads > free {
                break;
            }
            ready.pop();
            free -= threads;
            running.push(Reverse((now + stages[&id].unwrap_or_default(), id, threads)));
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
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::resolve;
    use crate::stage::Registry;

    /// A chain of three beside four stages that read nothing.
    fn pipeline() -> Pipeline {
        let text = "stages:
  a: { run: 'x > {out.o}', out: { o: o } }
  b: { run: 'x {in.i} > {out.o}', in: { i: a }, out: { o: o } }
  c: { run: 'x {in.i} > {out.o}', in: { i: b }, out: { o: o } }
  s: { run: 'x ${n} > {out.o}', out: { o: o }, matrix: { n: [1, 2, 3, 4] } }
";
        resolve::pipeline(text, std::path::Path::new("/"), "p", &[], &Registry::default()).unwrap()
    }

    fn times(pipeline: &Pipeline, seconds: impl Fn(&str) -> Option<u64>) -> BTreeMap<StageId, Option<Duration>> {
        pipeline.stages.iter().enumerate().map(|(id, stage)| (id, seconds(&stage.base).map(Duration::from_secs))).collect()
    }

    fn seconds(estimate: Estimate) -> [u64; 3] {
        [estimate.wall, estimate.work, estimate.path].map(|time| time.as_secs())
    }

    #[test]
    fn the_longest_chain_goes_first() {
        let pipeline = pipeline();
        let stages = times(&pipeline, |base| Some(if base == "s" { 3 } else { 4 }));
        let on = |cpus| seconds(estimate(&pipeline, &stages, cpus));
        assert_eq!(on(1), [24, 24, 12]);
        assert_eq!(on(2), [12, 24, 12]);
        assert_eq!(on(9), [12, 24, 12]);
        assert_eq!(on(0), on(1));
    }

    #[test]
    fn what_is_not_known_or_not_to_run_takes_no_time() {
        let pipeline = pipeline();
        let mut stages = times(&pipeline, |base| (base != "b").then_some(5));
        stages.retain(|&id, _| pipeline.stages[id].base != "s");
        let estimate = estimate(&pipeline, &stages, 2);
        assert_eq!((seconds(estimate), estimate.known, estimate.unknown), ([10, 10, 10], 2, 1));
        assert_eq!(super::estimate(&pipeline, &BTreeMap::new(), 2), Estimate::default());
    }
}
