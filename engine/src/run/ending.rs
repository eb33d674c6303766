//! What is still under way when the last stage is done.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use trestle_cache::Cache;

use super::room::Rooms;
use super::work::WORTH_A_SYNC;
use crate::error::Error;

/// The folders that stages worked in are put away, and what was stored is brought to disk.
#[must_use = "what was stored may not be on disk yet"]
#[derive(Debug, Default)]
pub struct Ending(Option<JoinHandle<Result<(), trestle_cache::Error>>>);

impl Ending {
    /// Begins it after stages that took so long in all. What is not worth a wait for the disk is left to the system at once.
    ///
    /// # Errors
    /// If what was stored can neither be left nor brought to disk.
    pub(super) fn begin(cache: Arc<Cache>, rooms: Arc<Rooms>, took: Duration) -> Result<Self, Error> {
        if took < WORTH_A_SYNC {
            rooms.close(&cache);
            cache.leave()?;
            return Ok(Self(None));
        }
        Ok(Self(Some(tokio::task::spawn_blocking(move || {
            // First: what changes folders while the disk is written to has to wait for it.
            rooms.close(&cache);
            cache.sync()
        }))))
    }

    /// Returns when it is over.
    ///
    /// # Errors
    /// If what was stored cannot be brought to disk.
    pub async fn wait(self) -> Result<(), Error> {
        match self.0 {
            None => Ok(()),
            Some(task) => Ok(task.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?),
        }
    }
}
