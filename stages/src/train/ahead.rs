//! Batches made ahead of the training, on threads of their own.

use std::sync::mpsc::{Receiver, sync_channel};

use super::batch::{Batch, Maker};
use super::draws::Draws;
use crate::error::{Error, Result};

/// Batches that wait for the training.
const WAITING: usize = 2;

/// Where the training takes its batches from.
pub enum Batches<'a> {
    /// Made when they are wanted.
    Now(Box<dyn FnMut() -> Result<Batch> + 'a>),
    /// Made ahead.
    Ahead(Receiver<Result<Batch>>),
}

impl Batches<'_> {
    /// The next batch.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn next(&mut self) -> Result<Batch> {
        match self {
            Self::Now(make) => make(),
            Self::Ahead(made) => made.recv().unwrap_or_else(|_| Err(Error::argument("the thread that makes batches ended"))),
        }
    }
}

/// Calls `train` with the batches that `draws` draws, made ahead by as many threads as rayon has; with one thread each is made when it is wanted.
/// The batches are the same.
///
/// # Errors
/// Those of `train`, or if threads cannot be had.
pub fn with_batches<R>(maker: &Maker<'_>, mut draws: Draws, train: impl FnOnce(Batches<'_>) -> Result<R>) -> Result<R> {
    let threads = rayon::current_num_threads();
    if threads == 1 {
        return train(Batches::Now(Box::new(move || maker.make(&draws.draw()))));
    }
    // Not the pool of the kernels: they would wait for all images of a batch that its threads have begun.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(|e| Error::argument(format!("cannot start threads: {e}")))?;
    std::thread::scope(|scope| {
        let (made, batches) = sync_channel(WAITING);
        // It ends when nobody takes its batches any more.
        scope.spawn(move || while made.send(pool.install(|| maker.make(&draws.draw()))).is_ok() {});
        train(Batches::Ahead(batches))
    })
}
