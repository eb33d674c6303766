//! A model from a file of weights that others wrote.

use std::collections::BTreeSet;
use std::path::Path;

use super::layer::Spec;
use super::names::{Layout, Names};
use super::weights::File;
use super::{Arch, Config, HEAD, Model, Variant};
use crate::error::{Error, Result};
use crate::nn::Params;

/// What to make of a file.
#[derive(Debug, Clone, Default)]
pub struct Import {
    /// The architecture.
    pub arch: Arch,
    /// Whose names the file has; without, those that most of its tensors have.
    pub names: Option<Names>,
    /// Height and width of an input.
    pub size: [usize; 2],
    /// Names of the labels; without, their numbers.
    pub classes: Option<Vec<String>>,
    /// What the network does otherwise than ours; without, what the networks under these names do.
    pub variant: Option<Variant>,
}

impl Import {
    /// Reads the model.
    ///
    /// # Errors
    /// If tensors are missing, unknown, not finite or of another shape; the message names them, and the architecture that the file seems to
    /// be of.
    pub fn read(&self, file: &File) -> Result<Model> {
        let names = match self.names {
            Some(names) if !Names::of(self.arch).contains(&names) => {
                return Err(Error::argument(format!("{} is not known under the names of {}", self.arch.name(), names.name())));
            }
            Some(names) => names,
            None => Names::detect(self.arch, self.size, file)?,
        };
        let count = classes_in(self.arch, names, self.size, file)?;
        let classes = self.classes.clone().unwrap_or_else(|| (0..count).map(|i| i.to_string()).collect());
        if classes.len() != count {
            return Err(Error::data(
                file.path(),
                format!("its head has {count} classes, {} are named; `reinit_head: true` gives it a new head", classes.len()),
            ));
        }
        let variant = self.variant.unwrap_or_else(|| names.variant(self.arch));
        let config = Config::new(self.arch, 0, self.size, 3, classes)?.varied(variant)?;
        read(config, names, file)
    }
}

/// The model of `config` with the weights of `file`.
pub(super) fn read(config: Config, names: Names, file: &File) -> Result<Model> {
    let specs = config.specs();
    let specs: Vec<&Spec> = specs.iter().map(|(_, spec)| spec).collect();
    expect_names(&specs, config.arch, names, file).map_err(|e| explained(e, config.arch, [config.height, config.input_width], file))?;
    let stem = specs.iter().find(|spec| spec.shape.len() == 4).map(|spec| spec.name.clone());
    let mut params = Params::new();
    for spec in &specs {
        let theirs = found_name(spec, config.arch, names, file)
            .ok_or_else(|| Error::data(file.path(), format!("the tensor `{}` is missing", spec.name)))?;
        let (shape, values) = file.tensor(&theirs)?;
        if !fits(spec, names, &shape) {
            let wanted = their_shape(&spec.shape, names.layout());
            let message = format!("tensor `{theirs}` has the shape {shape:?}, the architecture wants {wanted:?}");
            return Err(explained(Error::data(file.path(), message), config.arch, [config.height, config.input_width], file));
        }
        let mut values = if names.layout() == Layout::Torch { reordered(&spec.shape, &values) } else { values };
        if names.bgr() && stem.as_ref() == Some(&spec.name) {
            turn_colours(&spec.shape, &mut values);
        }
        params.insert(&spec.name, &spec.shape, values)?;
    }
    Ok(Model::assembled(config, params))
}

impl Names {
    /// The names that fit the most tensors of `file`; of equal ones the first, which are ours.
    ///
    /// # Errors
    /// If nobody else writes weights of the architecture.
    pub fn detect(arch: Arch, size: [usize; 2], file: &File) -> Result<Self> {
        let specs = specs_of(arch, size, 1);
        let hits = |names: &&Self| specs.iter().filter(|spec| found_name(spec, arch, **names, file).is_some()).count();
        let best = Self::of(arch).iter().rev().max_by_key(hits);
        best.copied().ok_or_else(|| Error::argument(format!("{} is trestle's own: no other program writes its weights", arch.name())))
    }
}

fn specs_of(arch: Arch, size: [usize; 2], classes: usize) -> Vec<Spec> {
    let units = arch.units(3, size, 8, classes, Variant::default());
    units.iter().flat_map(|unit| &unit.layers).flat_map(super::Layer::specs).collect()
}

/// Classes of the head in `file`.
fn classes_in(arch: Arch, names: Names, size: [usize; 2], file: &File) -> Result<usize> {
    let units = arch.units(3, size, 8, 1, Variant::default());
    let mut head = units.iter().filter(|unit| unit.name == HEAD).flat_map(|unit| &unit.layers).flat_map(super::Layer::specs);
    let weight = head.rfind(|spec| spec.name.ends_with("weight") && spec.shape.len() > 1);
    let spec = weight.ok_or_else(|| Error::argument(format!("{arch:?} has no head")))?;
    let missing = || {
        let theirs = names.theirs(arch, &spec.name).join("` or `");
        explained(Error::data(file.path(), format!("the tensor `{theirs}` of the head is missing")), arch, size, file)
    };
    let shape = found_name(&spec, arch, names, file).and_then(|name| file.shape(&name)).ok_or_else(missing)?;
    let count = if names.layout() == Layout::Torch { shape.first() } else { shape.last() };
    count.copied().filter(|count| *count > 0).ok_or_else(missing)
}

/// Their name of a tensor, if `file` has it.
fn found_name(spec: &Spec, arch: Arch, names: Names, file: &File) -> Option<String> {
    names.theirs(arch, &spec.name).into_iter().find(|name| file.shape(name).is_some())
}

/// Complains about all tensors that are missing or too many.
fn expect_names(specs: &[&Spec], arch: Arch, names: Names, file: &File) -> Result<()> {
    let missing: Vec<String> = specs
        .iter()
        .filter(|spec| found_name(spec, arch, names, file).is_none())
        .filter_map(|spec| names.theirs(arch, &spec.name).into_iter().next())
        .collect();
    let known: BTreeSet<String> = specs.iter().flat_map(|spec| names.theirs(arch, &spec.name)).collect();
    // How many batches PyTorch has seen is nothing that we need.
    let extra: Vec<&str> = file.names().filter(|name| !name.ends_with("num_batches_tracked") && !known.contains(*name)).collect();
    let list = |names: &[&str]| {
        let more = if names.len() > 3 { format!(" and {} more", names.len() - 3) } else { String::new() };
        format!("`{}`{more}", names.iter().take(3).copied().collect::<Vec<_>>().join("`, `"))
    };
    let missing: Vec<&str> = missing.iter().map(String::as_str).collect();
    match (missing.is_empty(), extra.is_empty()) {
        (true, true) => Ok(()),
        (false, true) => Err(Error::data(file.path(), format!("{} of the architecture are missing", list(&missing)))),
        (true, false) => Err(Error::data(file.path(), format!("{} are not part of the architecture", list(&extra)))),
        (false, false) => {
            let message = format!("{} of the architecture are missing, and {} are not part of it", list(&missing), list(&extra));
            Err(Error::data(file.path(), message))
        }
    }
}

/// The error with the architecture that the file seems to be of.
fn explained(error: Error, arch: Arch, size: [usize; 2], file: &File) -> Error {
    let Error::Data { path, message } = error else { return error };
    let fits_all = |other: Arch, names: Names| {
        let specs = specs_of(other, size, 1);
        let body = specs.iter().filter(|spec| !is_head(other, &spec.name));
        body.clone().count() > 0
            && body.clone().all(|spec| {
                let found = found_name(spec, other, names, file).and_then(|name| file.shape(&name));
                found.is_some_and(|shape| spec.name == "pos_embed" || fits(spec, names, shape))
            })
            && body.count() + 4 >= file.names().filter(|name| !name.ends_with("num_batches_tracked")).count()
    };
    let found = Arch::ALL.iter().find(|other| **other != arch && Names::of(**other).iter().any(|names| fits_all(**other, *names)));
    match found {
        Some(other) => Error::data(&path, format!("{message}; its tensors are those of `{}`", other.name())),
        None => Error::data(&path, message),
    }
}

fn is_head(arch: Arch, name: &str) -> bool {
    let units = arch.units(3, [224, 224], 8, 1, Variant::default());
    let head = units.iter().filter(|unit| unit.name == HEAD);
    head.flat_map(|unit| &unit.layers).flat_map(super::Layer::specs).any(|spec| spec.name == name)
}

/// The shape that others have for one of ours.
fn their_shape(ours: &[usize], layout: Layout) -> Vec<usize> {
    match (ours, layout) {
        (&[kh, kw, c, o], Layout::Torch) => vec![o, c, kh, kw],
        (&[inputs, outputs], Layout::Torch) => vec![outputs, inputs],
        _ => ours.to_vec(),
    }
}

/// Whether a tensor has the right shape; ones are left out, since a factor a channel may stand as `[c, 1, 1]` and a linear layer as a
/// 1×1 convolution.
fn fits(spec: &Spec, names: Names, shape: &[usize]) -> bool {
    let plain = |shape: &[usize]| shape.iter().copied().filter(|n| *n != 1).collect::<Vec<_>>();
    let wanted = their_shape(&spec.shape, names.layout());
    shape == wanted || (shape.len() != wanted.len() && plain(shape) == plain(&wanted))
}

/// PyTorch's values in our order; `shape` is ours.
fn reordered(shape: &[usize], values: &[f32]) -> Vec<f32> {
    let (o, [places, c]) = match *shape {
        [kh, kw, c, o] => (o, [kh * kw, c]),
        // A linear layer is a kernel of one place.
        [inputs, outputs] => (outputs, [1, inputs]),
        _ => return values.to_vec(),
    };
    // [o][c][place] to [place][c][o].
    let mut out = Vec::with_capacity(values.len());
    for place in 0..places {
        for channel in 0..c {
            out.extend((0..o).map(|kernel| values[(kernel * c + channel) * places + place]));
        }
    }
    out
}

/// Lets kernels `[kh, kw, 3, o]` that take blue first take red first.
fn turn_colours(shape: &[usize], values: &mut [f32]) {
    let &[_, _, 3, o] = shape else { return };
    for place in values.chunks_exact_mut(3 * o) {
        let (red, rest) = place.split_at_mut(o);
        red.swap_with_slice(&mut rest[o..]);
    }
}

impl Model {
    /// The weights of a file (safetensors, `.pth`) under torchvision's or timm's names, for the model of `config`.
    ///
    /// # Errors
    /// As [`Import::read`].
    pub fn from_pytorch(config: Config, path: &Path) -> Result<Self> {
        let file = File::open(path, None)?;
        let names = Names::detect(config.arch, [config.height, config.input_width], &file)?;
        read(config, names, &file)
    }
}
