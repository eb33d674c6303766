//! What is known of a training: a row a step, and a row an epoch.

use std::path::Path;

use crate::error::Result;
use crate::metrics::Metrics;

/// One step, as metrics.csv has it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Row {
    /// From 1.
    pub step: usize,
    /// Mean cross-entropy of the step's images.
    pub loss: f32,
    /// Share of them whose likeliest class is that of its target, before the step.
    pub accuracy: f64,
    /// Learning rate.
    pub lr: f64,
    /// Norm of all gradients together before it was clipped; without clipping it is not computed.
    pub grad_norm: Option<f64>,
}

/// How well held-out images are told apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// Mean cross-entropy.
    pub loss: f64,
    /// Share of the images whose likeliest class is theirs.
    pub accuracy: f64,
}

/// One epoch, as epochs.csv has it: means over its steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Epoch {
    /// Passes over the data so far; an epoch that was broken off counts.
    pub epoch: usize,
    /// Its last step.
    pub step: usize,
    /// Mean over its steps.
    pub loss: f64,
    /// Mean over its steps.
    pub accuracy: f64,
    /// Of its last step.
    pub lr: f64,
    /// After it, if images were held out.
    pub held_out: Option<Score>,
}

/// All rows of a training.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Log {
    /// One a step.
    pub steps: Vec<Row>,
    /// One an epoch.
    pub epochs: Vec<Epoch>,
}

impl Log {
    /// Closes an epoch with all steps since the last one.
    pub(super) fn close(&mut self, epoch: usize, held_out: Option<Score>) {
        let from = self.epochs.last().map_or(0, |epoch| epoch.step);
        let (rows, Some(last)) = (&self.steps[from..], self.steps.last()) else { return };
        let mean = |of: fn(&Row) -> f64| rows.iter().map(of).sum::<f64>() / rows.len() as f64;
        let (loss, accuracy) = (mean(|row| f64::from(row.loss)), mean(|row| row.accuracy));
        self.epochs.push(Epoch { epoch, step: last.step, loss, accuracy, lr: last.lr, held_out });
    }

    /// Writes metrics.csv: `step,loss,accuracy,lr`, and `grad_norm` where gradients were clipped.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_steps(&self, path: &Path) -> Result<()> {
        let clipped = self.steps.iter().any(|row| row.grad_norm.is_some());
        let names = ["loss", "accuracy", "lr", "grad_norm"];
        let mut metrics = Metrics::new(if clipped { &names } else { &names[..3] });
        for row in &self.steps {
            let mut figures = vec![f64::from(row.loss), row.accuracy, row.lr];
            figures.extend(row.grad_norm);
            metrics.push(row.step, &figures);
        }
        metrics.write(path)
    }

    /// Writes epochs.csv: `epoch,step,loss,accuracy,lr`, and `held_out_loss,held_out_accuracy` where images were held out.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_epochs(&self, path: &Path) -> Result<()> {
        let names = ["step", "loss", "accuracy", "lr", "held_out_loss", "held_out_accuracy"];
        let held_out = self.epochs.iter().any(|epoch| epoch.held_out.is_some());
        let mut metrics = Metrics::by("epoch", if held_out { &names } else { &names[..4] });
        for row in &self.epochs {
            let mut figures = vec![row.step as f64, row.loss, row.accuracy, row.lr];
            figures.extend(row.held_out.iter().flat_map(|score| [score.loss, score.accuracy]));
            metrics.push(row.epoch, &figures);
        }
        metrics.write(path)
    }
}
