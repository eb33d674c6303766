//! Image sets that stay on disk: written image by image, and read by index.

use std::fmt::Debug;
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use super::image_set::{FILE, ImageSet, META, Meta, Normalisation, check_labels, luma};
use super::{check_names, read_json, write_json};
use crate::error::{Error, Result};

/// Labelled images of one size by index: in memory ([`ImageSet`]), on disk ([`Stored`]), or a view of such ([`View`](super::View)).
pub trait Images: Debug + Send + Sync {
    /// Size and names.
    fn meta(&self) -> &Meta;
    /// The label of each image.
    fn labels(&self) -> &[u32];
    /// The bytes `[h, w, c]` of image `index` into `out`, which has just that length.
    ///
    /// # Errors
    /// If there is no such image, or it cannot be read.
    fn copy(&self, index: usize, out: &mut [u8]) -> Result<()>;
    /// Bytes of one image.
    fn pixels(&self) -> usize {
        self.meta().pixels()
    }
    /// How many images there are.
    fn len(&self) -> usize {
        self.meta().count
    }
    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The images at `indices` as `[n, h, w, c]` floats.
    ///
    /// # Errors
    /// If an index is out of range, or an image cannot be read.
    fn to_f32(&self, indices: &[usize], normalisation: Normalisation) -> Result<Tensor> {
        let table: Vec<f32> = (0..=255).map(|byte| normalisation.float(byte)).collect();
        let mut floats = Vec::with_capacity(indices.len() * self.pixels());
        let mut image = vec![0; self.pixels()];
        for &index in indices {
            self.copy(index, &mut image)?;
            floats.extend(image.iter().map(|&byte| table[byte as usize]));
        }
        let Meta { height, width, channels, .. } = self.meta();
        Ok(Tensor::from_vec(floats, (indices.len(), *height, *width, *channels), &Device::Cpu)?)
    }
    /// Complains about the first index that is out of range.
    ///
    /// # Errors
    /// If there is one.
    fn check_indices(&self, indices: &[usize]) -> Result<()> {
        match indices.iter().find(|&&i| i >= self.len()) {
            Some(i) => Err(Error::argument(format!("image {i} of a set of {}", self.len()))),
            None => Ok(()),
        }
    }
}

impl Images for ImageSet {
    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn labels(&self) -> &[u32] {
        &self.labels
    }

    fn copy(&self, index: usize, out: &mut [u8]) -> Result<()> {
        expect(index, &self.meta, out)?;
        out.copy_from_slice(self.image(index));
        Ok(())
    }
}

/// Complains unless there is such an image, and `out` has its length.
pub(super) fn expect(index: usize, meta: &Meta, out: &[u8]) -> Result<()> {
    if index >= meta.count {
        return Err(Error::argument(format!("image {index} of a set of {}", meta.count)));
    }
    if out.len() != meta.pixels() {
        return Err(Error::argument(format!("an image of {} bytes into {}", meta.pixels(), out.len())));
    }
    Ok(())
}

/// An image-set folder whose images are read when they are asked for: what is held are the labels. The system keeps what was read lately as
/// long as there is memory for it.
#[derive(Debug)]
pub struct Stored {
    path: PathBuf,
    file: File,
    /// Where the images begin.
    start: u64,
    labels: Vec<u32>,
    meta: Meta,
}

impl Stored {
    /// Opens an image-set folder.
    ///
    /// # Errors
    /// If a file is missing, or its content does not agree with the other; the message names file and index.
    pub fn open(dir: &Path) -> Result<Self> {
        let meta: Meta = read_json(&dir.join(META))?;
        let path = dir.join(FILE);
        let file = File::open(&path).map_err(Error::io(&path))?;
        let wrong = |message: String| Error::data(&path, message);
        let mut head = [0; 8];
        file.read_exact_at(&mut head, 0).map_err(|_| wrong("it ends within its header".into()))?;
        let head = u64::from_le_bytes(head);
        let length = file.metadata().map_err(Error::io(&path))?.len();
        if head > length.saturating_sub(8) {
            return Err(wrong("it ends within its header".into()));
        }
        let mut text = vec![0; head as usize];
        file.read_exact_at(&mut text, 8).map_err(Error::io(&path))?;
        let header: Metadata = serde_json::from_slice(&text).map_err(|e| wrong(format!("its header: {e}")))?;
        let body = 8 + head;
        if body + header.data_len() as u64 != length {
            return Err(wrong(format!("it has {length} bytes, its header tells of {}", body + header.data_len() as u64)));
        }
        let find = |name: &str, dtype: Dtype, shape: &[usize]| {
            let info = header.info(name).filter(|info| info.dtype == dtype && info.shape == shape);
            info.map(|info| info.data_offsets).ok_or_else(|| wrong(format!("`{name}` is not {dtype:?} {shape:?} as its meta.json says")))
        };
        let images = find("images", Dtype::U8, &[meta.count, meta.height, meta.width, meta.channels])?;
        let (from, to) = find("labels", Dtype::U32, &[meta.count])?;
        let mut bytes = vec![0; to - from];
        file.read_exact_at(&mut bytes, body + from as u64).map_err(Error::io(&path))?;
        let labels: Vec<u32> = bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        meta.check().and_then(|()| check_labels("label", &labels, &meta.classes)).map_err(wrong)?;
        Ok(Self { start: body + images.0 as u64, path, file, labels, meta })
    }
}

impl Images for Stored {
    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn labels(&self) -> &[u32] {
        &self.labels
    }

    fn copy(&self, index: usize, out: &mut [u8]) -> Result<()> {
        expect(index, &self.meta, out)?;
        let place = self.start + (index * out.len()) as u64;
        self.file.read_exact_at(out, place).map_err(|e| Error::data(&self.path, format!("image {index}: {e}")))
    }
}

/// Writes an image-set folder image by image, to the same bytes as [`ImageSet::write`].
pub struct Writer {
    dir: PathBuf,
    path: PathBuf,
    file: BufWriter<File>,
    meta: Meta,
    labels: Vec<u32>,
    pushed: usize,
}

/// The first bytes of the file: everything but the images.
fn head(meta: &Meta, labels: &[u32]) -> Result<Vec<u8>, String> {
    let split = 4 * meta.count;
    let images = meta.count * meta.height * meta.width * meta.channels;
    // The larger type comes first, as safetensors has it.
    let tensors = vec![
        ("labels".to_owned(), TensorInfo { dtype: Dtype::U32, shape: vec![meta.count], data_offsets: (0, split) }),
        (
            "images".to_owned(),
            TensorInfo {
                dtype: Dtype::U8,
                shape: vec![meta.count, meta.height, meta.width, meta.channels],
                data_offsets: (split, split + images),
            },
        ),
    ];
    let header = Metadata::new(None, tensors).map_err(|e| e.to_string())?;
    let mut text = serde_json::to_vec(&header).map_err(|e| e.to_string())?;
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.extend(text);
    out.extend(labels.iter().flat_map(|label| label.to_le_bytes()));
    Ok(out)
}

impl Writer {
    /// Begins a folder of images in RGB; `meta.count` of them must follow.
    ///
    /// # Errors
    /// If a label has no class, or the file cannot be written.
    pub fn create(dir: &Path, meta: Meta, labels: Vec<u32>) -> Result<Self> {
        fs::create_dir_all(dir).map_err(Error::io(dir))?;
        let path = dir.join(FILE);
        let wrong = |message: String| Error::data(&path, message);
        check_names(&meta.classes).and_then(|()| check_labels("label", &labels, &meta.classes)).map_err(wrong)?;
        if labels.len() != meta.count || meta.channels != 3 {
            return Err(wrong(format!("{} labels for {} images of {} channels", labels.len(), meta.count, meta.channels)));
        }
        let mut file = BufWriter::with_capacity(1 << 20, File::create(&path).map_err(Error::io(&path))?);
        file.write_all(&head(&meta, &labels).map_err(wrong)?).map_err(Error::io(&path))?;
        Ok(Self { dir: dir.to_path_buf(), path, file, meta, labels, pushed: 0 })
    }

    /// Adds an image `[h, w, 3]`.
    ///
    /// # Errors
    /// If it has another size, or the file cannot be written.
    pub fn push(&mut self, pixels: &[u8]) -> Result<()> {
        let want = self.meta.height * self.meta.width * 3;
        if pixels.len() != want || self.pushed == self.meta.count {
            return Err(Error::data(
                &self.path,
                format!("image {} of {} has {} bytes, not {want}", self.pushed, self.meta.count, pixels.len()),
            ));
        }
        self.pushed += 1;
        self.file.write_all(pixels).map_err(Error::io(&self.path))
    }

    /// Ends the folder with images of 3 channels, or of 1: the luma of ITU-R BT.601, which of grey is that grey.
    ///
    /// # Errors
    /// If images are missing, or the files cannot be written.
    pub fn finish(self, channels: usize) -> Result<()> {
        let Self { dir, path, file, mut meta, labels, pushed } = self;
        if pushed != meta.count {
            return Err(Error::data(&path, format!("{pushed} images of {}", meta.count)));
        }
        drop(file.into_inner().map_err(|e| Error::io(&path)(e.into_error()))?);
        match channels {
            3 => {}
            1 => {
                let start = head(&meta, &labels).map_err(|message| Error::data(&path, message))?.len();
                meta.channels = 1;
                narrow(&path, start, &head(&meta, &labels).map_err(|message| Error::data(&path, message))?)?;
            }
            _ => return Err(Error::argument(format!("images have 1 or 3 channels, not {channels}"))),
        }
        write_json(&dir.join(META), &meta)
    }
}

/// Rewrites a file of RGB, whose images begin at `start`, as one of grey with another head.
fn narrow(path: &Path, start: usize, head: &[u8]) -> Result<()> {
    let grey = path.with_extension("grey");
    let mut from = BufReader::with_capacity(3 << 19, File::open(path).map_err(Error::io(path))?);
    std::io::copy(&mut from.by_ref().take(start as u64), &mut std::io::sink()).map_err(Error::io(path))?;
    let mut to = BufWriter::with_capacity(1 << 20, File::create(&grey).map_err(Error::io(&grey))?);
    to.write_all(head).map_err(Error::io(&grey))?;
    let mut rgb = vec![0; 3 << 16];
    loop {
        let mut filled = 0;
        while filled < rgb.len() {
            match from.read(&mut rgb[filled..]).map_err(Error::io(path))? {
                0 => break,
                n => filled += n,
            }
        }
        if filled == 0 {
            break;
        }
        let bytes: Vec<u8> = rgb[..filled].chunks_exact(3).map(luma).collect();
        to.write_all(&bytes).map_err(Error::io(&grey))?;
    }
    drop(to.into_inner().map_err(|e| Error::io(&grey)(e.into_error()))?);
    fs::rename(&grey, path).map_err(Error::io(path))
}
