//! A set of labelled images: `data.safetensors` and `meta.json` in one folder.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::classes::{Classes, check_names, read_json, write_json};
use super::resize::{Filter, resize};
use super::stored::Images;
use crate::error::{Error, Result};

/// Name of the tensors' file in an image-set folder.
pub const FILE: &str = "data.safetensors";
/// Name of the description's file in an image-set folder.
pub const META: &str = "meta.json";

/// The range of values that images have as floats.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Normalisation {
    /// 0 to 1.
    Unit,
    /// −1 to 1: what a diffusion model works with.
    #[default]
    Signed,
}

impl Normalisation {
    /// The float of a byte.
    pub fn float(self, byte: u8) -> f32 {
        match self {
            Self::Unit => f32::from(byte) / 255.0,
            Self::Signed => f32::from(byte) / 127.5 - 1.0,
        }
    }

    /// The nearest byte of a float; values out of the range are cut, and NaN is 0.
    pub fn byte(self, float: f32) -> u8 {
        let scaled = match self {
            Self::Unit => float * 255.0,
            Self::Signed => (float + 1.0) * 127.5,
        };
        scaled.round().clamp(0.0, 255.0) as u8
    }
}

/// The description of an image set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Meta {
    /// Images.
    pub count: usize,
    /// Pixels.
    pub height: usize,
    /// Pixels.
    pub width: usize,
    /// 1 (grey) or 3 (RGB).
    pub channels: usize,
    /// Always `NHWC`.
    pub layout: String,
    /// Name of each label.
    pub classes: Vec<String>,
    /// Where the images come from, for a person to read.
    pub source: String,
    /// The seed that they were drawn or generated with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Name of each style label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub styles: Option<Vec<String>>,
}

impl Meta {
    /// Bytes of one image.
    pub fn pixels(&self) -> usize {
        self.height * self.width * self.channels
    }

    /// Complains about a size or names that make no sense.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.layout != "NHWC" {
            return Err(format!("layout is `{}`, not `NHWC`", self.layout));
        }
        if self.height == 0 || self.width == 0 || !matches!(self.channels, 1 | 3) {
            return Err(format!(
                "images of {}x{}x{} (height, width, channels): sides start at 1 and channels are 1 or 3",
                self.height, self.width, self.channels
            ));
        }
        check_names(&self.classes)
    }

    /// Of a set of this description followed by one of `other`; styles are those of this one.
    pub(super) fn joined(&self, other: &Self) -> Result<Self, String> {
        let size = |meta: &Self| (meta.height, meta.width, meta.channels);
        if size(self) != size(other) {
            return Err(format!("images of {:?} and of {:?} (height, width, channels) do not go into one set", size(self), size(other)));
        }
        if self.classes != other.classes {
            return Err(format!("sets with the classes {:?} and {:?} do not go into one", self.classes, other.classes));
        }
        let source = if self.source == other.source { self.source.clone() } else { format!("{} + {}", self.source, other.source) };
        let seed = self.seed.filter(|_| self.seed == other.seed);
        Ok(Self { count: self.count + other.count, source, seed, ..self.clone() })
    }
}

/// Labelled images of one size, channels last, 8 bits a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSet {
    /// `[n, h, w, c]`.
    pub images: Vec<u8>,
    /// `[n]`, each below `meta.classes.len()`.
    pub labels: Vec<u32>,
    /// `[n]`, each below the number of `meta.styles`.
    pub styles: Option<Vec<u32>>,
    /// Size and names.
    pub meta: Meta,
}

impl ImageSet {
    /// A set of `[n, h, w, c]` images, checked.
    ///
    /// # Errors
    /// If counts do not agree or a label has no class; the message names the index.
    pub fn new(
        images: Vec<u8>,
        labels: Vec<u32>,
        (height, width, channels): (usize, usize, usize),
        classes: Vec<String>,
        source: &str,
    ) -> Result<Self> {
        let count = labels.len();
        let source = source.to_owned();
        let meta = Meta { count, height, width, channels, layout: "NHWC".into(), classes, source, seed: None, styles: None };
        let set = Self { images, labels, styles: None, meta };
        set.check().map_err(Error::Argument)?;
        Ok(set)
    }

    /// The same set with a style for each image.
    ///
    /// # Errors
    /// If counts do not agree or a style has no name; the message names the index.
    pub fn with_styles(mut self, styles: Vec<u32>, names: Vec<String>) -> Result<Self> {
        self.styles = Some(styles);
        self.meta.styles = Some(names);
        self.check().map_err(Error::Argument)?;
        Ok(self)
    }

    fn check(&self) -> Result<(), String> {
        let meta = &self.meta;
        meta.check()?;
        if self.labels.len() != meta.count {
            return Err(format!("{} labels for {} images", self.labels.len(), meta.count));
        }
        if self.images.len() != meta.count * self.pixels() {
            return Err(format!("{} bytes for {} images of {} bytes each", self.images.len(), meta.count, self.pixels()));
        }
        check_labels("label", &self.labels, &meta.classes)?;
        match (&self.styles, &meta.styles) {
            (None, None) => Ok(()),
            (Some(styles), _) if styles.len() != meta.count => Err(format!("{} styles for {} images", styles.len(), meta.count)),
            (Some(styles), Some(names)) => check_labels("style", styles, names),
            (Some(_), None) => Err("there are styles without names".into()),
            (None, Some(_)) => Err("there are names of styles without styles".into()),
        }
    }

    /// Reads an image-set folder.
    ///
    /// # Errors
    /// If a file is missing or its content does not agree with the other; the message names file and index.
    pub fn read(dir: &Path) -> Result<Self> {
        let meta: Meta = read_json(&dir.join(META))?;
        let path = dir.join(FILE);
        let bytes = fs::read(&path).map_err(Error::io(&path))?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|e| Error::data(&path, e))?;
        let images = bytes_of(&path, &tensors, "images", &[meta.count, meta.height, meta.width, meta.channels])?;
        let labels = u32s_of(&path, &tensors, "labels", meta.count)?;
        let styles = match meta.styles {
            Some(_) => Some(u32s_of(&path, &tensors, "styles", meta.count)?),
            None => None,
        };
        let set = Self { images, labels, styles, meta };
        set.check().map_err(|message| Error::data(&path, message))?;
        Ok(set)
    }

    /// Writes an image-set folder; the same set always gives the same bytes.
    ///
    /// # Errors
    /// If the set is not consistent or the files cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        self.check().map_err(|message| Error::data(dir, message))?;
        fs::create_dir_all(dir).map_err(Error::io(dir))?;
        let path = dir.join(FILE);
        let meta = &self.meta;
        let labels = to_bytes(&self.labels);
        let styles = self.styles.as_deref().map(to_bytes);
        let mut tensors = BTreeMap::new();
        let wrong = |e| Error::data(&path, e);
        tensors.insert(
            "images",
            TensorView::new(Dtype::U8, vec![meta.count, meta.height, meta.width, meta.channels], &self.images).map_err(wrong)?,
        );
        tensors.insert("labels", TensorView::new(Dtype::U32, vec![meta.count], &labels).map_err(wrong)?);
        if let Some(styles) = &styles {
            tensors.insert("styles", TensorView::new(Dtype::U32, vec![meta.count], styles).map_err(wrong)?);
        }
        let bytes = safetensors::serialize(tensors, None).map_err(wrong)?;
        fs::write(&path, bytes).map_err(Error::io(&path))?;
        write_json(&dir.join(META), meta)
    }

    /// How many images there are.
    pub fn len(&self) -> usize {
        self.meta.count
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.meta.count == 0
    }

    /// Bytes of one image.
    pub fn pixels(&self) -> usize {
        self.meta.pixels()
    }

    /// The bytes `[h, w, c]` of image `index`.
    pub fn image(&self, index: usize) -> &[u8] {
        &self.images[index * self.pixels()..(index + 1) * self.pixels()]
    }

    /// The classes.
    pub fn classes(&self) -> Classes {
        Classes::new(self.meta.classes.clone())
    }

    /// How many images each class has.
    pub fn class_counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.meta.classes.len()];
        self.labels.iter().for_each(|&label| counts[label as usize] += 1);
        counts
    }

    /// The labels at `indices` as `[n]`.
    ///
    /// # Errors
    /// If an index is out of range.
    pub fn labels_at(&self, indices: &[usize]) -> Result<Tensor> {
        self.check_indices(indices)?;
        let labels: Vec<u32> = indices.iter().map(|&i| self.labels[i]).collect();
        Ok(Tensor::from_vec(labels, indices.len(), &Device::Cpu)?)
    }

    /// The images at `indices`, in that order.
    ///
    /// # Errors
    /// If an index is out of range.
    pub fn subset(&self, indices: &[usize]) -> Result<Self> {
        self.check_indices(indices)?;
        let images = indices.iter().flat_map(|&i| self.image(i)).copied().collect();
        let labels = indices.iter().map(|&i| self.labels[i]).collect();
        let styles = self.styles.as_ref().map(|styles| indices.iter().map(|&i| styles[i]).collect());
        Ok(Self { images, labels, styles, meta: Meta { count: indices.len(), ..self.meta.clone() } })
    }

    /// This set followed by `other`; styles are kept where both have the same.
    ///
    /// # Errors
    /// If sizes or classes differ.
    pub fn concat(&self, other: &Self) -> Result<Self> {
        let (a, b) = (&self.meta, &other.meta);
        let joined = a.joined(b).map_err(Error::Argument)?;
        let styles = match (&self.styles, &other.styles) {
            (Some(x), Some(y)) if a.styles == b.styles => Some([x.as_slice(), y].concat()),
            _ => None,
        };
        let names = if styles.is_some() { a.styles.clone() } else { None };
        let meta = Meta { styles: names, ..joined };
        Ok(Self {
            images: [self.images.as_slice(), &other.images].concat(),
            labels: [self.labels.as_slice(), &other.labels].concat(),
            styles,
            meta,
        })
    }

    /// The same images in another size.
    ///
    /// # Errors
    /// If a side is 0.
    pub fn resized(&self, height: usize, width: usize, filter: Filter) -> Result<Self> {
        if height == 0 || width == 0 {
            return Err(Error::argument(format!("images cannot be resized to {height}x{width}")));
        }
        if (height, width) == (self.meta.height, self.meta.width) {
            return Ok(self.clone());
        }
        let old = (self.meta.height, self.meta.width, self.meta.channels);
        let images = (0..self.len()).flat_map(|i| resize(self.image(i), old, (height, width), filter)).collect();
        Ok(Self { images, labels: self.labels.clone(), styles: self.styles.clone(), meta: Meta { height, width, ..self.meta.clone() } })
    }

    /// The same images in grey (1 channel: ITU-R BT.601 luma) or RGB (3 channels: the grey thrice).
    ///
    /// # Errors
    /// If `channels` is neither 1 nor 3.
    pub fn with_channels(&self, channels: usize) -> Result<Self> {
        let images = match (self.meta.channels, channels) {
            (a, b) if a == b => return Ok(self.clone()),
            (3, 1) => self.images.chunks_exact(3).map(luma).collect(),
            (1, 3) => self.images.iter().flat_map(|&grey| [grey; 3]).collect(),
            _ => return Err(Error::argument(format!("images have 1 or 3 channels, not {channels}"))),
        };
        Ok(Self { images, labels: self.labels.clone(), styles: self.styles.clone(), meta: Meta { channels, ..self.meta.clone() } })
    }
}

/// Luma of an RGB pixel, in integers: the same on every machine.
pub(super) fn luma(rgb: &[u8]) -> u8 {
    let [r, g, b] = [0, 1, 2].map(|k| u32::from(rgb[k]));
    ((299 * r + 587 * g + 114 * b + 500) / 1000) as u8
}

pub(super) fn check_labels(what: &str, labels: &[u32], names: &[String]) -> Result<(), String> {
    match labels.iter().position(|&label| label as usize >= names.len()) {
        Some(i) => {
            Err(format!("image {i} has {what} {}, yet there are {} names (0 to {})", labels[i], names.len(), names.len().saturating_sub(1)))
        }
        None => Ok(()),
    }
}

fn to_bytes(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn bytes_of(path: &Path, tensors: &SafeTensors<'_>, name: &str, shape: &[usize]) -> Result<Vec<u8>> {
    let view = tensors.tensor(name).map_err(|e| Error::data(path, e))?;
    if view.dtype() != Dtype::U8 || view.shape() != shape {
        return Err(Error::data(
            path,
            format!("`{name}` is {:?} {:?}, not U8 {shape:?} as its meta.json says", view.dtype(), view.shape()),
        ));
    }
    Ok(view.data().to_vec())
}

fn u32s_of(path: &Path, tensors: &SafeTensors<'_>, name: &str, count: usize) -> Result<Vec<u32>> {
    let view = tensors.tensor(name).map_err(|e| Error::data(path, e))?;
    if view.dtype() != Dtype::U32 || view.shape() != [count] {
        return Err(Error::data(path, format!("`{name}` is {:?} {:?}, not U32 [{count}]", view.dtype(), view.shape())));
    }
    Ok(view.data().as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn names(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("class {i}")).collect()
    }

    fn sample() -> ImageSet {
        let images = (0..3 * 2 * 2).map(|i| i * 20).collect();
        ImageSet::new(images, vec![0, 2, 1], (2, 2, 1), names(3), "test").unwrap()
    }

    #[test]
    fn a_set_survives_a_folder_and_its_bytes_are_fixed() {
        let dir = tempfile::tempdir().unwrap();
        let set = sample().with_styles(vec![1, 0, 1], vec!["crisp".into(), "soft".into()]).unwrap();
        let read = |name: &str| {
            set.write(&dir.path().join(name)).unwrap();
            let dir = dir.path().join(name);
            assert_eq!(ImageSet::read(&dir).unwrap(), set);
            (fs::read(dir.join(FILE)).unwrap(), fs::read(dir.join(META)).unwrap())
        };
        assert_eq!(read("a"), read("b"));
    }

    #[test]
    fn what_does_not_agree_is_refused_with_the_index() {
        let refuse =
            |images: usize, labels: Vec<u32>, size| ImageSet::new(vec![0; images], labels, size, names(3), "test").unwrap_err().to_string();
        assert!(refuse(12, vec![0, 3, 1], (2, 2, 1)).contains("image 1 has label 3, yet there are 3 names (0 to 2)"));
        assert!(refuse(11, vec![0, 1, 1], (2, 2, 1)).contains("11 bytes for 3 images of 4 bytes each"));
        assert!(refuse(24, vec![0, 1, 1], (2, 2, 2)).contains("channels are 1 or 3"));
        assert!(refuse(0, vec![], (0, 2, 1)).contains("sides start at 1"));
        let error = sample().with_styles(vec![0, 0, 1], vec!["crisp".into()]).unwrap_err().to_string();
        assert!(error.contains("image 2 has style 1"), "{error}");
    }

    #[test]
    fn damaged_folders_are_refused_with_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        sample().write(dir).unwrap();
        let meta = fs::read_to_string(dir.join(META)).unwrap();
        fs::write(dir.join(META), meta.replace("\"count\": 3", "\"count\": 4")).unwrap();
        let message = ImageSet::read(dir).unwrap_err().to_string();
        assert!(message.contains(FILE) && message.contains("[3, 2, 2, 1], not U8 [4, 2, 2, 1]"), "{message}");
        fs::write(dir.join(META), meta.replace("\"class 2\"", "\"class 1\"")).unwrap();
        assert!(ImageSet::read(dir).unwrap_err().to_string().contains("classes 1 and 2 are both called"));
        fs::write(dir.join(META), &meta).unwrap();
        let bytes = fs::read(dir.join(FILE)).unwrap();
        fs::write(dir.join(FILE), &bytes[..bytes.len() - 1]).unwrap();
        assert!(ImageSet::read(dir).unwrap_err().to_string().contains(FILE));
    }

    #[test]
    fn floats_follow_the_indices() {
        let set = sample();
        let unit = set.to_f32(&[2, 0], Normalisation::Unit).unwrap();
        assert_eq!(unit.dims(), [2, 2, 2, 1]);
        let values = unit.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values[0], 160.0 / 255.0);
        assert_eq!(values[5], 20.0 / 255.0);
        assert_eq!(set.labels_at(&[2, 0]).unwrap().to_vec1::<u32>().unwrap(), [1, 0]);
        assert!(set.to_f32(&[3], Normalisation::Unit).unwrap_err().to_string().contains("image 3 of a set of 3"));
    }

    #[test]
    fn every_byte_survives_a_float() {
        for normalisation in [Normalisation::Unit, Normalisation::Signed] {
            assert!((0..=255).all(|byte| normalisation.byte(normalisation.float(byte)) == byte));
        }
        assert_eq!([-9.0, 9.0, f32::NAN].map(|x| Normalisation::Signed.byte(x)), [0, 255, 0]);
    }

    #[test]
    fn subset_and_concat_keep_images_with_their_labels() {
        let set = sample().with_styles(vec![0, 1, 0], vec!["a".into(), "b".into()]).unwrap();
        let back = set.subset(&[1]).unwrap().concat(&set.subset(&[0, 2]).unwrap()).unwrap();
        assert_eq!(back, set.subset(&[1, 0, 2]).unwrap());
        assert_eq!((back.image(0), back.labels[0], back.class_counts()), (set.image(1), 2, vec![1, 1, 1]));
        assert_eq!(set.concat(&sample()).unwrap().styles, None);
        let other = ImageSet::new(vec![0], vec![0], (1, 1, 1), names(3), "x").unwrap();
        assert!(set.concat(&other).unwrap_err().to_string().contains("do not go into one set"));
        let other = ImageSet::new(vec![0; 4], vec![0], (2, 2, 1), names(2), "x").unwrap();
        assert!(set.concat(&other).is_err());
    }

    #[test]
    fn size_and_channels_change() {
        let set = sample();
        let big = set.resized(4, 6, Filter::Bilinear).unwrap();
        assert_eq!((big.pixels(), big.images.len()), (24, 72));
        let rgb = set.with_channels(3).unwrap();
        assert_eq!(rgb.with_channels(1).unwrap(), set);
        assert!(set.resized(0, 1, Filter::Nearest).is_err() && set.with_channels(2).is_err());
        assert_eq!(luma(&[255, 0, 0]), 76);
    }
}
