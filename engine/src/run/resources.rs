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

    /// What a stage gets now, if it fits; of the threads a fair share among `ready` stages.
    ///
    /// # Errors
    /// If it asks for more than there is at all.
    pub fn grant(&mut self, stage: &Stage, ready: usize) -> Result<Option<Grant>, StageError> {
        let settings = &stage.settings;
        if settings.gpus as usize > self.gpus {
            let message = format!("it needs {} GPU(s), and this machine has {}", settings.gpus, self.gpus);
            return Err(StageError::new(message).help("run it where they are, or lower `resources.gpus`"));
        }
        for (pool, wanted) in &settings.pools {
            let size = self.pools.get(pool).copied().unwrap_or(0);
            if *wanted > size {
                return Err(StageError::new(format!("it needs {wanted} of the pool `{pool}`, which has {size}")));
            }
        }
        // More than the machine has, of what is only a share of it, means: alone.
        let least = stage.threads.min.clamp(1, self.cpus);
        let memory = settings.memory.min(self.memory);
        let fits = least <= self.free_cpus
            && memory <= self.free_memory
            && settings.gpus as usize <= self.free_gpus.len()
            && settings.pools.iter().all(|(pool, wanted)| self.free_pools.get(pool).is_some_and(|free| wanted <= free));
        if !fits {
            return Ok(None);
        }
        let fair = self.free_cpus / ready.max(1);
        let threads = fair.clamp(least, stage.threads.max.max(least)).min(self.free_cpus);
        let gpus: Vec<u32> = self.free_gpus.iter().take(settings.gpus as usize).copied().collect();
        self.free_cpus -= threads;
        self.free_memory -= memory;
        self.free_gpus.retain(|gpu| !gpus.contains(gpu));
        for (pool, wanted) in &settings.pools {
            self.free_pools.entry(pool.clone()).and_modify(|free| *free -= wanted);
        }
        Ok(Some(Grant { threads, memory, gpus, pools: settings.pools.clone() }))
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
