//! Checkpoints: all that a training needs to go on as if it had never stopped.
//!
//! A file is its checksum and then safetensors: weights (`model/`), the optimiser's memory (`optimiser/I/`), the average (`ema/`), the best
//! weights so far (`best/`), the rows of the log, and a JSON text of what else there is. It is written beside its place and then renamed, so that a
//! half-written one has no name. One that is not whole, or of another training, is refused: a checkpoint saves time, and never
//! changes what comes out.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use super::held_out::Best;
use super::log::{Epoch, Log, Row, Score};
use super::training::Trainer;
use crate::error::{Error, Result};
use crate::model::Config;
use crate::nn::Params;
use crate::nn::ema::Ema;
use crate::nn::optim::Memory;

/// Opens a file; raise the version whenever the layout changes.
const MAGIC: &[u8] = b"trestle checkpoint v1\n";
/// The file in the folder.
const FILE: &str = "training";
/// How often one is written if nothing else is asked for.
const USUAL: Duration = Duration::from_secs(5 * 60);

/// When checkpoints are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Every {
    /// After so many steps; 0 is never.
    Steps(usize),
    /// After so much time.
    Time(Duration),
}

impl Every {
    /// The param `checkpoint_every`: steps, or without it five minutes.
    pub fn of(steps: Option<usize>) -> Self {
        steps.map_or(Self::Time(USUAL), Self::Steps)
    }
}

/// Where and when checkpoints of a training are written.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    folder: PathBuf,
    every: Every,
}

/// What is not a tensor.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    config: Config,
    /// All figures of the training, its seed, and the instruction set: other kernels round otherwise.
    training: String,
    optimiser_steps: i32,
    ema_steps: Option<u32>,
    /// Loss (its bits) and epochs since then.
    best: Option<(u64, usize)>,
}

/// A checkpoint that was read and found whole.
struct Saved {
    state: State,
    tensors: BTreeMap<String, Vec<f32>>,
    log: Log,
}

impl Checkpoints {
    /// In this folder, which need not exist yet.
    pub fn new(folder: &Path, every: Every) -> Self {
        Self { folder: folder.to_owned(), every }
    }

    /// Whether one is due after a step, given when the last one was written.
    pub(super) fn is_due(&self, step: usize, last: Instant) -> bool {
        match self.every {
            Every::Steps(steps) => steps > 0 && step.is_multiple_of(steps),
            Every::Time(time) => last.elapsed() >= time,
        }
    }

    /// Writes one.
    ///
    /// # Errors
    /// If it cannot be written; the last one is still there then.
    pub(super) fn write(&self, trainer: &Trainer<'_>) -> Result<()> {
        let bytes = encode(trainer)?;
        fs::create_dir_all(&self.folder).map_err(Error::io(&self.folder))?;
        let (path, temporary) = (self.path(), self.folder.join(format!("{FILE}.tmp")));
        let mut file = File::create(&temporary).map_err(Error::io(&temporary))?;
        let whole = file.write_all(MAGIC).and_then(|()| file.write_all(blake3::hash(&bytes).as_bytes()));
        whole.and_then(|()| file.write_all(&bytes)).and_then(|()| file.sync_all()).map_err(Error::io(&temporary))?;
        fs::rename(&temporary, &path).map_err(Error::io(&path))?;
        File::open(&self.folder).and_then(|folder| folder.sync_all()).map_err(Error::io(&self.folder))
    }

    /// Brings a training that has not begun to where the last checkpoint was written. Says whether there was one.
    ///
    /// # Errors
    /// If it is damaged or of another training; nothing of it was used then.
    pub(super) fn resume(&self, trainer: &mut Trainer<'_>) -> Result<bool> {
        let path = self.path();
        let bytes = match fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            other => other.map_err(Error::io(&path))?,
        };
        let saved = decode(&bytes).map_err(|message| Error::data(&path, message))?;
        restore(saved, trainer).map_err(|e| Error::data(&path, e))?;
        Ok(true)
    }

    fn path(&self) -> PathBuf {
        self.folder.join(FILE)
    }
}

fn of_floats(values: &[f32]) -> (Dtype, Vec<u8>) {
    (Dtype::F32, values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

fn of_doubles(values: impl Iterator<Item = f64>) -> (Dtype, Vec<u8>) {
    (Dtype::F64, values.flat_map(f64::to_le_bytes).collect())
}

fn of_params<'a>(prefix: &'a str, params: &'a Params) -> impl Iterator<Item = Result<(String, (Dtype, Vec<u8>))>> + 'a {
    params.iter().map(move |(name, _)| Ok((format!("{prefix}/{name}"), of_floats(&params.values(name)?))))
}

fn encode(trainer: &Trainer<'_>) -> Result<Vec<u8>> {
    let mut tensors: BTreeMap<String, (Dtype, Vec<u8>)> = of_params("model", &trainer.model.params).collect::<Result<_>>()?;
    let memory = trainer.optimiser.memory()?;
    for (name, values) in &memory.values {
        tensors.extend(values.iter().enumerate().map(|(i, values)| (format!("optimiser/{i}/{name}"), of_floats(values))));
    }
    if let Some(ema) = &trainer.ema {
        tensors.extend(ema.averages()?.iter().map(|(name, values)| (format!("ema/{name}"), of_floats(values))));
    }
    if let Some(best) = &trainer.best {
        tensors.extend(of_params("best", &best.params).collect::<Result<Vec<_>>>()?);
    }
    tensors.insert("steps".to_owned(), of_doubles(trainer.log.steps.iter().flat_map(numbers_of_row)));
    tensors.insert("epochs".to_owned(), of_doubles(trainer.log.epochs.iter().flat_map(numbers_of_epoch)));
    let state = State {
        config: trainer.model.config.clone(),
        training: trainer.identity(),
        optimiser_steps: memory.steps,
        ema_steps: trainer.ema.as_ref().map(Ema::steps),
        best: trainer.best.as_ref().map(|best| (best.loss.to_bits(), best.waited)),
    };
    let json = serde_json::to_vec(&state).map_err(|e| Error::argument(e.to_string()))?;
    tensors.insert("state".to_owned(), (Dtype::U8, json));
    let wrong = |e: safetensors::SafeTensorError| Error::argument(e.to_string());
    let views = tensors.iter().map(|(name, (dtype, bytes))| {
        let size = if *dtype == Dtype::U8 {
            1
        } else if *dtype == Dtype::F32 {
            4
        } else {
            8
        };
        Ok((name, TensorView::new(*dtype, vec![bytes.len() / size], bytes).map_err(wrong)?))
    });
    safetensors::serialize(views.collect::<Result<Vec<_>>>()?, None).map_err(wrong)
}

fn decode(bytes: &[u8]) -> Result<Saved, String> {
    let damaged = || "it is damaged".to_owned();
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(damaged)?;
    let (digest, rest) = rest.split_at_checked(blake3::OUT_LEN).ok_or_else(damaged)?;
    if blake3::hash(rest).as_bytes() != digest {
        return Err(damaged());
    }
    let file = SafeTensors::deserialize(rest).map_err(|e| e.to_string())?;
    let bytes_of = |name: &str| file.tensor(name).map(|view| view.data()).map_err(|e| e.to_string());
    let doubles =
        |name: &str| Ok::<_, String>(bytes_of(name)?.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect::<Vec<f64>>());
    let state = serde_json::from_slice(bytes_of("state")?).map_err(|e| e.to_string())?;
    let log = Log {
        steps: doubles("steps")?.as_chunks().0.iter().map(row_of).collect(),
        epochs: doubles("epochs")?.as_chunks().0.iter().map(epoch_of).collect(),
    };
    let floats = |bytes: &[u8]| bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let tensors = file.tensors().into_iter().filter(|(_, view)| view.dtype() == Dtype::F32);
    Ok(Saved { state, tensors: tensors.map(|(name, view)| (name, floats(view.data()))).collect(), log })
}

/// Puts a checkpoint in place of a training's beginning, all of it or nothing.
fn restore(saved: Saved, trainer: &mut Trainer<'_>) -> Result<(), String> {
    let Saved { state, mut tensors, log } = saved;
    let (found, wanted) = (&state.config, &trainer.model.config);
    if found != wanted {
        return Err(format!("it is of another model ({}, {} classes)", found.arch.name(), found.classes.len()));
    }
    if state.training != trainer.identity() {
        return Err("it is of another training, or of a machine with other instructions".to_owned());
    }
    let words = |e: Error| e.to_string();
    let mut params_of = |prefix: &str| -> Result<Params, String> {
        let mut params = Params::new();
        for (name, var) in trainer.model.params.iter() {
            let values = tensors.remove(&format!("{prefix}/{name}")).ok_or_else(|| format!("it has no {prefix}/{name}"))?;
            params.insert(name, var.dims(), values).map_err(words)?;
        }
        params.on(&trainer.place.device).map_err(words)
    };
    let params = params_of("model")?;
    let best = match state.best {
        None => None,
        Some((loss, waited)) => Some(Best { params: params_of("best")?, loss: f64::from_bits(loss), waited }),
    };
    let ema = match (trainer.training.recipe.ema, state.ema_steps) {
        (Some(decay), Some(steps)) => {
            let averages = params_of("ema")?;
            let averages =
                averages.iter().map(|(name, _)| Ok((name.clone(), averages.values(name)?))).collect::<Result<_>>().map_err(words)?;
            Some(Ema::resumed(&params, decay, steps, averages).map_err(words)?)
        }
        _ => None,
    };
    let mut memory = Memory { steps: state.optimiser_steps, values: BTreeMap::new() };
    // In the order of their names, `optimiser/0/…` comes before `optimiser/1/…`.
    for (name, values) in tensors {
        let name = name.strip_prefix("optimiser/").and_then(|rest| rest.split_once('/')).map(|(_, name)| name.to_owned());
        memory.values.entry(name.ok_or("it has a tensor that nobody knows")?).or_insert_with(Vec::new).push(values);
    }
    let mut optimiser = trainer.training.recipe.optimiser();
    optimiser.remember(memory, &params).map_err(words)?;
    for (name, var) in trainer.model.params.iter() {
        // In place: constants and variables of the forward pass share it.
        params.get(name).and_then(|values| Ok(var.set(values)?)).map_err(words)?;
    }
    (trainer.optimiser, trainer.ema, trainer.best, trainer.log) = (optimiser, ema, best, log);
    Ok(())
}

/// What is not there is NaN; nothing that is there can be.
fn number(value: Option<f64>) -> f64 {
    value.unwrap_or(f64::NAN)
}

fn numbers_of_row(row: &Row) -> [f64; 5] {
    [row.step as f64, f64::from(row.loss), row.accuracy, row.lr, number(row.grad_norm)]
}

fn row_of(&[step, loss, accuracy, lr, grad_norm]: &[f64; 5]) -> Row {
    Row { step: step as usize, loss: loss as f32, accuracy, lr, grad_norm: Some(grad_norm).filter(|norm| !norm.is_nan()) }
}

fn numbers_of_epoch(epoch: &Epoch) -> [f64; 7] {
    let score = |of: fn(Score) -> f64| number(epoch.held_out.map(of));
    let held_out = [score(|score| score.loss), score(|score| score.accuracy)];
    [epoch.epoch as f64, epoch.step as f64, epoch.loss, epoch.accuracy, epoch.lr, held_out[0], held_out[1]]
}

fn epoch_of(&[epoch, step, loss, accuracy, lr, held_out, right]: &[f64; 7]) -> Epoch {
    let held_out = Some(Score { loss: held_out, accuracy: right }).filter(|score| !score.loss.is_nan());
    Epoch { epoch: epoch as usize, step: step as usize, loss, accuracy, lr, held_out }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_due_after_so_many_steps_or_so_much_time() {
        let due = |every, step, ago: u64| {
            let last = Instant::now().checked_sub(Duration::from_secs(ago));
            last.map(|last| Checkpoints::new(Path::new("x"), every).is_due(step, last))
        };
        assert_eq!(
            [due(Every::of(Some(3)), 6, 0), due(Every::of(Some(3)), 7, 0), due(Every::of(Some(0)), 6, 0)],
            [Some(true), Some(false), Some(false)]
        );
        let usual = Every::of(None);
        assert_eq!([due(usual, 1, 10), due(usual, 1, 301)], [Some(false), Some(true)]);
    }
}
