//! Sources whose images are decoded one by one, so that a set may be larger than the memory.

use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::Options;
use super::decode::{Decoded, decode};
use crate::data::resize::resize;
use crate::data::{Filter, ImageSet, Meta, Writer};
use crate::error::{Error, Result};

/// An image as it lies in the source.
pub(crate) struct Encoded {
    /// What a person finds it by: a file, or a file and what is in it.
    pub place: String,
    /// PNG or JPEG.
    pub bytes: Vec<u8>,
}

/// Encoded images in a fixed order, with labels that are known beforehand.
pub(crate) trait Samples {
    /// The label of each.
    fn labels(&self) -> &[u32];
    /// Their names.
    fn classes(&self) -> &[String];
    /// What it is, for `meta.json`.
    fn source(&self) -> &'static str;
    /// The next `count` images, fewer at the end.
    ///
    /// # Errors
    /// If the source is damaged; the message names file and index.
    fn next(&mut self, count: usize) -> Result<Vec<Encoded>>;
}

/// Decoded images that are held at a time.
const CHUNK: usize = 64;

/// An image in the size that was asked for.
struct Fitted {
    pixels: Vec<u8>,
    size: (usize, usize),
    grey: bool,
}

fn fitted(encoded: &Encoded, path: &Path, index: usize, options: &Options) -> Result<Fitted> {
    let Decoded { pixels, size, grey } =
        decode(&encoded.bytes, options.background).map_err(|e| Error::data(path, format!("image {index} ({}): {e}", encoded.place)))?;
    let Some(side) = options.size.filter(|side| size != (*side, *side)) else {
        return Ok(Fitted { pixels, size, grey });
    };
    let filter: Filter = options.filter;
    Ok(Fitted { pixels: resize(&pixels, (size.0, size.1, 3), (side, side), filter), size: (side, side), grey })
}

/// A part of the source: its folder, its name for errors, and which images belong to it.
pub(crate) struct Part {
    /// The image-set folder that is written.
    pub dir: PathBuf,
    /// Indices, ascending.
    pub indices: Vec<usize>,
    /// The seed that drew them.
    pub seed: Option<u64>,
}

/// Decodes all images of `samples` in their order, a few at a time, and gives each with its index to `take`; whether all are grey.
fn each(
    samples: &mut dyn Samples,
    path: &Path,
    options: &Options,
    mut take: impl FnMut(&dyn Samples, usize, Fitted) -> Result<()>,
) -> Result<bool> {
    let count = samples.labels().len();
    let (mut first, mut grey, mut index) = (None, true, 0);
    while index < count {
        let encoded = samples.next(CHUNK)?;
        if encoded.is_empty() {
            return Err(Error::data(path, format!("it has {count} labels, and ends after image {index}")));
        }
        let images: Vec<Result<Fitted>> =
            encoded.par_iter().enumerate().map(|(i, image)| fitted(image, path, index + i, options)).collect();
        for (image, Encoded { place, .. }) in images.into_iter().zip(&encoded) {
            let image = image?;
            let (size, reference) = first.get_or_insert_with(|| (image.size, place.clone()));
            if image.size != *size {
                let sizes = format!("{:?} pixels (height, width), {reference} is {size:?}", image.size);
                return Err(Error::data(path, format!("image {index} ({place}) is {sizes}: set `size`")));
            }
            grey &= image.grey;
            take(samples, index, image)?;
            index += 1;
        }
    }
    if first.is_none() { Err(Error::data(path, "it holds no images")) } else { Ok(grey) }
}

/// Writes every image of `samples` to the part that it belongs to, with no more than a few of them in memory.
pub(crate) fn write(samples: &mut dyn Samples, path: &Path, parts: &[Part], options: &Options) -> Result<()> {
    let labels = samples.labels().to_vec();
    let mut owner = vec![None; labels.len()];
    for (number, part) in parts.iter().enumerate() {
        part.indices.iter().for_each(|&i| owner[i] = Some(number));
    }
    let mut writers: Vec<Writer> = Vec::new();
    let grey = each(samples, path, options, |samples, index, image| {
        if writers.is_empty() {
            writers = start(samples, parts, &labels, image.size)?;
        }
        match owner[index].and_then(|number: usize| writers.get_mut(number)) {
            Some(writer) => writer.push(&image.pixels),
            None => Ok(()),
        }
    })?;
    let channels = options.channels.unwrap_or(if grey { 1 } else { 3 });
    writers.into_iter().try_for_each(|writer| writer.finish(channels))
}

/// All images of `samples` in memory.
pub(super) fn collect(samples: &mut dyn Samples, path: &Path, options: &Options) -> Result<ImageSet> {
    let (mut images, mut size) = (Vec::new(), (0, 0));
    let grey = each(samples, path, options, |_, _, image| {
        size = image.size;
        images.extend(image.pixels);
        Ok(())
    })?;
    let (labels, classes) = (samples.labels().to_vec(), samples.classes().to_vec());
    let set = ImageSet::new(images, labels, (size.0, size.1, 3), classes, samples.source()).map_err(|e| Error::data(path, e))?;
    set.with_channels(options.channels.unwrap_or(if grey { 1 } else { 3 }))
}

fn start(samples: &dyn Samples, parts: &[Part], labels: &[u32], (height, width): (usize, usize)) -> Result<Vec<Writer>> {
    parts
        .iter()
        .map(|part| {
            let meta = Meta {
                count: part.indices.len(),
                height,
                width,
                channels: 3,
                layout: "NHWC".into(),
                classes: samples.classes().to_vec(),
                source: samples.source().into(),
                seed: part.seed,
                styles: None,
            };
            Writer::create(&part.dir, meta, part.indices.iter().map(|&i| labels[i]).collect())
        })
        .collect()
}
