//! The training of the classifiers.
//!
//! ```text
//! recipe   all figures, checked        schedule   the learning rate of each step
//! draws    which images, how mixed ──▶ batch      their pixels, augmented ──▶ ahead   on threads of their own
//! training the loop                    held_out   early stopping              log     a row a step and an epoch
//! start    the model that it begins with          checkpoint   what a killed stage goes on from
//! ```
//!
//! Every purpose has its own random stream, and every image of a step its own within that: what is drawn for one thing never shifts another.

mod ahead;
mod augment;
mod batch;
mod checkpoint;
mod draws;
mod held_out;
mod log;
mod mix;
mod params;
mod recipe;
mod schedule;
mod start;
mod training;

use trestle_engine::stage::{Context, OutPort, Progress, StageError, Threads};

pub use augment::{Augment, Jitter, RandAugment, ResizedCrop};
pub use checkpoint::{Checkpoints, Every};
pub use draws::Source;
pub use held_out::hold_out;
pub use log::{Epoch, Log, Row, Score};
pub(crate) use params::{UNKEYED, training_params};
pub use recipe::{EarlyStopping, Length, Norms, Optimiser, Recipe};
pub use schedule::Shape;
pub(crate) use start::{Parts, Start, features};
pub use training::{Given, Said, Training, argmax};

use crate::error::Result;
use crate::formats;
use crate::model::Model;

/// Trains `model` on the sources (the first sets the length of an epoch); calls `report(row, steps)` after each step.
///
/// # Errors
/// Those of [`Training::run`].
pub fn train(model: &mut Model, sources: &[Source<'_>], recipe: &Recipe, seed: u64, mut report: impl FnMut(Row, usize)) -> Result<Log> {
    Training::new(sources, recipe, seed).run(model, |said| match said {
        Said::Step(row, steps) => report(row, steps),
        Said::Note(_) => {}
    })
}

/// Threads that training a small model can use.
pub const THREADS: Threads = Threads { min: 1, max: 4 };

/// What a training stage gives; `doc` says which model.
pub(crate) fn outputs(doc: &'static str) -> Vec<OutPort> {
    let steps = "Loss, accuracy and learning rate of each step";
    let epochs = "The same for each epoch, and loss and accuracy on the held-out images";
    vec![
        OutPort { name: "model", format: formats::MODEL, path: "model", doc },
        OutPort { name: "metrics", format: formats::METRICS, path: "metrics.csv", doc: steps },
        OutPort { name: "epochs", format: formats::METRICS, path: "epochs.csv", doc: epochs },
    ]
}

/// Trains, reports progress, and writes the outputs.
///
/// # Errors
/// Those of [`Training::run`], or if an output cannot be written.
pub(crate) fn run(training: Training<'_>, every: Every, mut model: Model, cx: &mut Context<'_>) -> Result<(), StageError> {
    let checkpoints = cx.kept().map(|folder| Checkpoints::new(folder, every));
    let training = Training { checkpoints: checkpoints.as_ref(), ..training };
    let log = training.run(&mut model, |said| match said {
        Said::Note(text) => cx.note(&text),
        Said::Step(row, steps) => {
            cx.progress(Progress { step: row.step as u64, total: steps as u64, loss: Some(f64::from(row.loss)), note: None });
        }
    })?;
    model.write(cx.output("model")?)?;
    log.write_steps(cx.output("metrics")?)?;
    log.write_epochs(cx.output("epochs")?)?;
    if let Some(row) = log.steps.last() {
        cx.metric("loss", f64::from(row.loss));
        cx.metric("accuracy", row.accuracy);
    }
    let scores = log.epochs.iter().filter_map(|epoch| epoch.held_out);
    // Those of the weights that are given.
    if let Some(score) = scores.reduce(|best, score| if score.loss < best.loss { score } else { best }) {
        cx.metric("held_out_loss", score.loss);
        cx.metric("held_out_accuracy", score.accuracy);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
