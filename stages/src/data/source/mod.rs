//! Reading labelled images in the formats that data sets come in.

mod decode;
mod folder;
mod idx;
mod parquet;
mod samples;
mod table;
mod tar;
mod tensors;

use std::fs;
use std::io::Read;
use std::path::Path;

use flate2::read::MultiGzDecoder;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::parquet::Tables;
use super::{FILE, Filter, ImageSet, META};
use crate::error::{Error, Result};

/// The format of a source.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SourceFormat {
    /// By the name: `.safetensors`, `.csv`, `.csv.gz`, `.tar`, `.parquet`, names with `idx`, and folders (of shards, if one lies in it).
    #[default]
    Auto,
    /// A file with `images` (u8, `[n, h, w]` or `[n, h, w, c]`), `labels` and, if it likes, `styles`.
    Safetensors,
    /// The files of MNIST: images here, labels in the input `labels`; compressed with gzip or not.
    Idx,
    /// A folder with a folder of PNG and JPEG images for each class.
    Folder,
    /// One image a row: its pixels, row by row, and its label; compressed with gzip or not.
    Csv,
    /// The folder that another stage wrote.
    ImageSet,
    /// WebDataset: a tar file or a folder of them. In it, files of one name are a sample: an image and its label (`7.jpg`, `7.cls`).
    Webdataset,
    /// Parquet files with images, as Hugging Face's data sets have them: a file or a folder of them.
    Parquet,
}

/// Which column of a CSV file holds the label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Column {
    /// Counted from 0, or from the end if negative: −1 is the last.
    Index(i64),
    /// Its name in the header.
    Name(String),
}

impl Default for Column {
    fn default() -> Self {
        Self::Index(-1)
    }
}

/// How to read a source.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Its format.
    pub format: SourceFormat,
    /// Name of each label; without, the source's own names, or the labels as decimal numbers.
    pub classes: Option<Vec<String>>,
    /// Side in pixels to resize to.
    pub size: Option<usize>,
    /// How to resize.
    pub filter: Filter,
    /// 1 or 3; without, as in the source.
    pub channels: Option<usize>,
    /// The value in the source that becomes 255; without, 255.
    pub value_max: Option<f64>,
    /// CSV: the column with the label.
    pub label_column: Column,
    /// CSV: whether the first row names the columns.
    pub header: bool,
    /// CSV: height and width; without, images are square.
    pub shape: Option<[usize; 2]>,
    /// Parquet: the column of images, without `image`; WebDataset: the extension of images, without jpg, jpeg and png.
    pub image_key: Option<String>,
    /// Parquet: the column of labels, without `label`; WebDataset: the extension of labels, without `cls`, or `json.FIELD`.
    pub label_key: Option<String>,
    /// Colour behind transparent images.
    pub background: Option<[u8; 3]>,
}

pub(crate) use samples::{Part, Samples, write};

/// What a reader finds in a source.
struct Raw {
    /// `[n, h, w, c]`.
    images: Vec<u8>,
    labels: Vec<u32>,
    size: (usize, usize, usize),
    classes: Option<Vec<String>>,
    styles: Option<(Vec<u32>, Vec<String>)>,
    source: String,
}

/// An opened source.
pub(crate) enum Opened {
    /// All of it, in memory.
    Set(ImageSet),
    /// Images that are decoded one by one.
    Samples(Box<dyn Samples>),
}

/// Opens a source; `labels` is the second file of IDX.
///
/// # Errors
/// If something cannot be read or does not fit; the message names the file and the row or index.
pub(crate) fn open(path: &Path, labels: Option<&Path>, options: &Options) -> Result<Opened> {
    let format = detect(path, options.format)?;
    if labels.is_some() && format != SourceFormat::Idx {
        return Err(Error::argument(format!("the input `labels` belongs to IDX files, and {} is not one", path.display())));
    }
    let set = match format {
        SourceFormat::Folder => return Ok(Opened::Samples(Box::new(folder::Folder::open(path, options)?))),
        SourceFormat::Webdataset => return Ok(Opened::Samples(Box::new(tar::Shards::open(path, options)?))),
        SourceFormat::Parquet => return Ok(Opened::Samples(Box::new(Tables::open(path, options)?))),
        SourceFormat::ImageSet => named(ImageSet::read(path)?, path, options)?,
        SourceFormat::Safetensors => set(path, tensors::read(path, options)?, options)?,
        SourceFormat::Csv => set(path, table::read(path, options)?, options)?,
        SourceFormat::Idx => {
            let labels = labels.ok_or_else(|| Error::data(path, "an IDX file of images needs its labels: connect the input `labels`"))?;
            set(path, idx::read(path, labels, options)?, options)?
        }
        // `detect` never returns it.
        SourceFormat::Auto => return Err(Error::data(path, "the format is not known")),
    };
    let set = match options.channels {
        Some(channels) => set.with_channels(channels)?,
        None => set,
    };
    Ok(Opened::Set(match options.size {
        Some(side) => set.resized(side, side, options.filter)?,
        None => set,
    }))
}

/// Reads a source into memory.
///
/// # Errors
/// As [`open`].
pub fn read(path: &Path, labels: Option<&Path>, options: &Options) -> Result<ImageSet> {
    match open(path, labels, options)? {
        Opened::Set(set) => Ok(set),
        Opened::Samples(mut samples) => samples::collect(samples.as_mut(), path, options),
    }
}

/// Labels as numbers with their names: texts are looked up among the classes, numbers are themselves. Without classes the texts, if they are not
/// numbers, are the classes in their order.
fn labelled(path: &Path, words: &[String], options: &Options) -> Result<(Vec<u32>, Vec<String>)> {
    let parsed: Vec<Option<u32>> = words.iter().map(|word| word.parse().ok()).collect();
    let classes = match &options.classes {
        Some(classes) => classes.clone(),
        None if parsed.iter().all(Option::is_some) => numbers(&parsed.iter().flatten().copied().collect::<Vec<_>>()),
        None => words.iter().collect::<std::collections::BTreeSet<_>>().into_iter().cloned().collect(),
    };
    let places: std::collections::BTreeMap<&str, u32> = classes.iter().enumerate().map(|(i, name)| (name.as_str(), i as u32)).collect();
    let named = options.classes.is_some() || parsed.iter().all(Option::is_some);
    let label = |(i, word): (usize, &String)| {
        let number = places.get(word.as_str()).copied().or(parsed[i].filter(|_| named));
        let number =
            number.ok_or_else(|| Error::data(path, format!("the label `{word}` of image {i} is neither a class nor a whole number")))?;
        if number as usize >= classes.len() {
            return Err(Error::data(path, format!("image {i} has label {number}, yet there are {} classes", classes.len())));
        }
        Ok(number)
    };
    let labels = words.iter().enumerate().map(label).collect::<Result<Vec<u32>>>()?;
    Ok((labels, classes))
}

fn detect(path: &Path, asked: SourceFormat) -> Result<SourceFormat> {
    if asked != SourceFormat::Auto {
        return Ok(asked);
    }
    if path.is_dir() {
        let is_set = path.join(META).is_file() && path.join(FILE).is_file();
        let holds =
            |end: &str| -> Result<bool> { Ok(folder::entries(path)?.iter().any(|file| file.extension().is_some_and(|e| e == end))) };
        return Ok(match () {
            () if is_set => SourceFormat::ImageSet,
            () if holds("tar")? => SourceFormat::Webdataset,
            () if holds("parquet")? => SourceFormat::Parquet,
            () => SourceFormat::Folder,
        });
    }
    let name = path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    let plain = name.strip_suffix(".gz").unwrap_or(&name);
    if plain.ends_with(".safetensors") {
        Ok(SourceFormat::Safetensors)
    } else if plain.ends_with(".csv") {
        Ok(SourceFormat::Csv)
    } else if name.ends_with(".tar") {
        Ok(SourceFormat::Webdataset)
    } else if name.ends_with(".parquet") {
        Ok(SourceFormat::Parquet)
    } else if plain.contains("idx") {
        Ok(SourceFormat::Idx)
    } else {
        Err(Error::data(path, "the name does not tell the format: set `format` to safetensors, idx, folder, csv, webdataset or parquet"))
    }
}

fn set(path: &Path, raw: Raw, options: &Options) -> Result<ImageSet> {
    let classes = options.classes.clone().or(raw.classes).unwrap_or_else(|| numbers(&raw.labels));
    let wrong = |e: Error| Error::data(path, e);
    let set = ImageSet::new(raw.images, raw.labels, raw.size, classes, &raw.source).map_err(wrong)?;
    match raw.styles {
        Some((styles, names)) => set.with_styles(styles, names).map_err(wrong),
        None => Ok(set),
    }
}

/// The same set with the class names that were asked for.
fn named(mut set: ImageSet, path: &Path, options: &Options) -> Result<ImageSet> {
    let Some(classes) = &options.classes else { return Ok(set) };
    if classes.len() != set.meta.classes.len() {
        return Err(Error::data(path, format!("it has {} classes, and `classes` names {}", set.meta.classes.len(), classes.len())));
    }
    set.meta.classes = classes.clone();
    Ok(set)
}

/// `0`, `1`, … up to the highest label.
fn numbers(labels: &[u32]) -> Vec<String> {
    let count = labels.iter().max().map_or(0, |&max| max as usize + 1);
    (0..count).map(|label| label.to_string()).collect()
}

/// A value of the source as a byte; `None` if it is not in `0..=max`.
fn byte(value: f64, max: f64) -> Option<u8> {
    // NaN is in no range.
    (0.0..=max).contains(&value).then(|| (value * 255.0 / max).round() as u8)
}

/// Scales bytes whose largest value is not 255.
fn scaled(path: &Path, bytes: Vec<u8>, pixels: usize, options: &Options) -> Result<Vec<u8>> {
    let Some(max) = options.value_max else { return Ok(bytes) };
    let table: Vec<Option<u8>> = (0..=255).map(|value| byte(f64::from(value), max)).collect();
    let scale = |(i, &value): (usize, &u8)| {
        table[value as usize]
            .ok_or_else(|| Error::data(path, format!("image {} has the value {value}, above `value_max` {max}", i / pixels.max(1))))
    };
    bytes.iter().enumerate().map(scale).collect()
}

/// The bytes of a file, unpacked if it begins as gzip does.
fn bytes(path: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(path).map_err(Error::io(path))?;
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return Ok(bytes);
    }
    let mut out = Vec::new();
    MultiGzDecoder::new(bytes.as_slice()).read_to_end(&mut out).map_err(|e| Error::data(path, format!("gzip: {e}")))?;
    Ok(out)
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod stream_tests;
