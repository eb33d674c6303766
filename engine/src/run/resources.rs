//! What running stages share: threads, memory, GPUs and named pools. Nothing is granted twice.

use std::collections::{BTreeMap, BTreeSet};

use super::Options;
use crate::pipeline::Stage;
use crate::stage::StageError;

/// What is free.
#[derive(Debug)]
pub struct Resources {
    cpus: usize,
    memory: u64,
    gpus: usize,
    pools: BTreeMap<String, u32>,
    free_cpus: usize,
    free_memory: u64,
    free_gpus: BTreeSet<u32>,
    free_pools: BTreeMap<String, u32>,
}

/// What a stage holds while it runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grant {
    pub threads: usize,
    pub memory: u64,
    pub gpus: Vec<u32>,
    pub pools: BTreeMap<String, u32>,
}

/// What a stage cannot start without.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needs {
    threads: usize,
    memory: u64,
    gpus: usize,
    pools: BTreeMap<String, u32>,
}

impl Resources {
    /// All of it is free.
    pub fn new(options: &Options) -> Self {
        let (cpus, memory) = (options.cpus.max(1), options.memory);
        Self {
            cpus,
            memory,
            gpus: options.gpus.len(),
            pools: options.pools.clone(),
            free_cpus: cpus,
            free_memory: memory,
            free_gpus: options.gpus.iter().copied().collect(),
            free_pools: options.pools.clone(),
        }
    }

    /// Whether anything could start at all.
    pub fn has_threads(&self) -> bool {
        self.free_cpus > 0
    }

    /// What a stage gets now, of the threads a fair share among `ready` stages; or what it needs, if that is not free.
    ///
    /// # Errors
    /// If it asks for more than there is at all.
    pub fn grant(&mut self, stage: &Stage, ready: usize) -> Result<Result<Grant, Needs>, StageError> {
        let needs = self.needs(stage)?;
        if !self.fits(&needs) {
            return Ok(Err(needs));
        }
        let Needs { threads: least, memory, gpus, pools } = needs;
        let fair = self.free_cpus / ready.max(1);
        let threads = fair.clamp(least, stage.threads.max.max(least)).min(self.free_cpus);
        let gpus: Vec<u32> = self.free_gpus.iter().take(gpus).copied().collect();
        self.free_cpus -= threads;
        self.free_memory -= memory;
        self.free_gpus.retain(|gpu| !gpus.contains(gpu));
        for (pool, wanted) in &pools {
            self.free_pools.entry(pool.clone()).and_modify(|free| *free -= wanted);
        }
        Ok(Ok(Grant { threads, memory, gpus, pools }))
    }

    fn needs(&self, stage: &Stage) -> Result<Needs, StageError> {
        let settings = &stage.settings;
        let gpus = settings.gpus as usize;
        if gpus > self.gpus {
            let message = format!("it needs {gpus} GPU(s), and this machine has {}", self.gpus);
            return Err(StageError::new(message).help("run it where they are, or lower `resources.gpus`"));
        }
        for (pool, wanted) in &settings.pools {
            let size = self.pools.get(pool).copied().unwrap_or(0);
            if *wanted > size {
                return Err(StageError::new(format!("it needs {wanted} of the pool `{pool}`, which has {size}")));
            }
        }
        // More than the machine has, of what is only a share of it, means: alone.
        let threads = stage.threads.min.clamp(1, self.cpus);
        Ok(Needs { threads, memory: settings.memory.min(self.memory), gpus, pools: settings.pools.clone() })
    }

    /// Whether all of this is free.
    pub fn fits(&self, needs: &Needs) -> bool {
        needs.threads <= self.free_cpus
            && needs.memory <= self.free_memory
            && needs.gpus <= self.free_gpus.len()
            && needs.pools.iter().all(|(pool, wanted)| self.free_pools.get(pool).is_some_and(|free| wanted <= free))
    }

    /// Takes back what a stage held.
    pub fn give_back(&mut self, grant: Grant) {
        self.free_cpus += grant.threads;
        self.free_memory += grant.memory;
        self.free_gpus.extend(grant.gpus);
        for (pool, units) in grant.pools {
            self.free_pools.entry(pool).and_modify(|free| *free += units);
        }
    }
}
