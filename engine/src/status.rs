//! The states of a stage during a run: one enum, one transition function, and every count kept there.
//!
//! ```text
//!             inputs known           granted threads          ok
//!   Waiting ───────────────▶ Ready ─────────────────▶ Running ───▶ Done
//!      │                       │ hit ─────────────────────────────▶ Done
//!      │ a needed stage failed │                         │ error
//!      ▼                       ▼ interrupted             ▼
//!   Skipped                Cancelled ◀── interrupted   Failed     (a failed try that is not the last: back to Ready)
//! ```

use crate::event::Summary;

/// Where a stage is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// An input is not known yet.
    Waiting,
    /// All inputs are known; it runs as soon as there is room.
    Ready,
    /// Its job is under way.
    Running,
    /// Its outputs are known.
    Done {
        /// From the cache, nothing was executed.
        cached: bool,
    },
    /// Its job failed.
    Failed,
    /// A stage that it needs failed.
    Skipped,
    /// The run was interrupted before it was done.
    Cancelled,
}

impl Status {
    /// Whether nothing more happens to the stage.
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Waiting | Self::Ready | Self::Running)
    }

    fn may_become(self, next: Self) -> bool {
        use Status::{Cancelled, Done, Failed, Ready, Running, Skipped, Waiting};
        match (self, next) {
            (Waiting, Ready | Skipped | Cancelled)
            | (Ready, Running | Skipped | Cancelled | Failed)
            | (Running, Ready | Failed | Cancelled) => true,
            (Ready, Done { cached }) => cached,
            (Running, Done { cached }) => !cached,
            _ => false,
        }
    }
}

/// The states of all stages, and the counts that follow from them.
#[derive(Debug)]
pub struct Board {
    statuses: Vec<Status>,
    open: usize,
    summary: Summary,
}

impl Board {
    /// `n` waiting stages.
    pub fn new(n: usize) -> Self {
        Self { statuses: vec![Status::Waiting; n], open: n, summary: Summary::default() }
    }

    /// The state of a stage.
    pub fn status(&self, stage: usize) -> Status {
        self.statuses[stage]
    }

    /// Moves a stage on.
    ///
    /// # Panics
    /// On a transition that the picture above does not have: that is a mistake of the dispatcher.
    pub fn transition(&mut self, stage: usize, next: Status) {
        let now = self.statuses[stage];
        assert!(now.may_become(next), "stage {stage} cannot go from {now:?} to {next:?}");
        self.statuses[stage] = next;
        if next.is_final() {
            self.open -= 1;
        }
        match next {
            Status::Done { cached: true } => self.summary.cached += 1,
            Status::Done { cached: false } => self.summary.executed += 1,
            Status::Failed => self.summary.failed += 1,
            Status::Skipped => self.summary.skipped += 1,
            Status::Cancelled => self.summary.cancelled += 1,
            Status::Waiting | Status::Ready | Status::Running => {}
        }
    }

    /// Whether every stage is in a final state.
    pub fn is_settled(&self) -> bool {
        self.open == 0
    }

    /// The counts so far.
    pub fn summary(&self) -> Summary {
        self.summary
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_follow_from_transitions() {
        let mut board = Board::new(3);
        board.transition(0, Status::Ready);
        board.transition(0, Status::Done { cached: true });
        board.transition(1, Status::Ready);
        board.transition(1, Status::Running);
        board.transition(1, Status::Failed);
        assert!(!board.is_settled());
        board.transition(2, Status::Skipped);
        assert!(board.is_settled());
        assert_eq!(board.summary(), Summary { cached: 1, failed: 1, skipped: 1, ..Summary::default() });
    }

    #[test]
    #[should_panic(expected = "cannot go from")]
    fn nothing_leaves_a_final_state() {
        let mut board = Board::new(1);
        board.transition(0, Status::Skipped);
        board.transition(0, Status::Ready);
    }
}
