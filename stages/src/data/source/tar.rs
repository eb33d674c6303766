//! WebDataset: shards are tar files, a sample the members of one name up to its first dot.
//! <https://github.com/webdataset/webdataset>, "The WebDataset Format".

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ::tar::{Archive, EntryType};

use super::Options;
use super::samples::{Encoded, Samples};
use crate::error::{Error, Result};

/// Extensions of images.
const IMAGES: [&str; 3] = ["jpg", "jpeg", "png"];
/// Bytes of a block of tar.
const BLOCK: u64 = 512;
/// Longest label that is read.
const LABEL: u64 = 1 << 20;

/// Where an image lies.
struct Place {
    shard: usize,
    start: u64,
    length: u64,
    name: String,
}

/// The shards of a folder by name, or one shard.
pub(super) struct Shards {
    files: Vec<(PathBuf, File)>,
    images: Vec<Place>,
    labels: Vec<u32>,
    classes: Vec<String>,
    next: usize,
}

/// What of a sample was found.
#[derive(Default)]
struct Sample {
    image: Option<Place>,
    label: Option<String>,
}

impl Shards {
    pub fn open(path: &Path, options: &Options) -> Result<Self> {
        let names = if path.is_dir() { super::folder::entries(path)? } else { vec![path.to_path_buf()] };
        let names: Vec<PathBuf> = names.into_iter().filter(|name| name.extension().is_some_and(|end| end == "tar")).collect();
        if names.is_empty() {
            return Err(Error::data(path, "it holds no `.tar`; packed shards (`.tar.gz`) must be unpacked first"));
        }
        let mut shards = Self { files: Vec::new(), images: Vec::new(), labels: Vec::new(), classes: Vec::new(), next: 0 };
        let mut words = Vec::new();
        for name in names {
            shards.index(&name, options, &mut words)?;
        }
        if shards.images.is_empty() {
            return Err(Error::data(path, "its shards hold no samples"));
        }
        (shards.labels, shards.classes) = super::labelled(path, &words, options)?;
        Ok(shards)
    }

    /// Reads the headers of one shard.
    fn index(&mut self, path: &Path, options: &Options, words: &mut Vec<String>) -> Result<()> {
        let file = File::open(path).map_err(Error::io(path))?;
        let length = file.metadata().map_err(Error::io(path))?.len();
        let wrong = |message: String| Error::data(path, message);
        let mut archive = Archive::new(BufReader::new(File::open(path).map_err(Error::io(path))?));
        let mut samples: BTreeMap<String, Sample> = BTreeMap::new();
        let mut order = Vec::new();
        let (mut last, mut end) = (String::from("its start"), 0);
        for entry in archive.entries_with_seek().map_err(Error::io(path))? {
            let entry = entry.map_err(|e| wrong(format!("damaged behind {last}: {e}")))?;
            let name =
                String::from_utf8(entry.path_bytes().into_owned()).map_err(|_| wrong(format!("a name behind {last} is not UTF-8")))?;
            let (start, size) = (entry.raw_file_position(), entry.header().entry_size().map_err(|e| wrong(format!("`{name}`: {e}")))?);
            if start.checked_add(size).is_none_or(|end| end > length) {
                return Err(wrong(format!("it is cut: `{name}` has {size} bytes, {} are left", length.saturating_sub(start))));
            }
            last = format!("`{name}`");
            end = (start + size).next_multiple_of(BLOCK);
            match entry.header().entry_type() {
                EntryType::Regular | EntryType::Continuous => {}
                EntryType::Directory | EntryType::XGlobalHeader => continue,
                other => return Err(wrong(format!("`{name}` is no file, but {other:?}"))),
            }
            let Some((key, extension)) = split(&name) else { continue };
            let sample = samples.entry(key.clone()).or_insert_with(|| {
                order.push(key.clone());
                Sample::default()
            });
            let is_image = options.image_key.as_deref().map_or(IMAGES.contains(&extension.as_str()), |wanted| wanted == extension);
            if is_image {
                if sample.image.is_some() {
                    return Err(wrong(format!("the sample `{key}` has two images")));
                }
                sample.image = Some(Place { shard: self.files.len(), start, length: size, name });
            } else if let Some(field) = label_field(&extension, options) {
                let mut bytes = vec![0; size.min(LABEL) as usize];
                file.read_exact_at(&mut bytes, start).map_err(Error::io(path))?;
                sample.label = Some(label(&bytes, field).map_err(|e| wrong(format!("`{name}`: {e}")))?);
            }
        }
        // Without this a shard that was cut between two files would be a smaller one.
        let mut zeros = [1; BLOCK as usize];
        if file.read_exact_at(&mut zeros, end).is_err() || zeros.iter().any(|byte| *byte != 0) {
            return Err(wrong(format!("it is cut: behind {last} there is no mark of its end (a block of zeros)")));
        }
        for key in order {
            let index = self.images.len();
            match samples.remove(&key).map(|sample| (sample.image, sample.label)) {
                Some((Some(image), Some(label))) => {
                    self.images.push(image);
                    words.push(label);
                }
                Some((Some(_), None)) => {
                    let wanted = options.label_key.as_deref().unwrap_or("cls");
                    return Err(wrong(format!("sample {index} (`{key}`) has no label: no member `{wanted}` (`label_key`)")));
                }
                Some((None, Some(_))) => return Err(wrong(format!("sample {index} (`{key}`) has a label and no image"))),
                _ => {}
            }
        }
        self.files.push((path.to_path_buf(), file));
        Ok(())
    }
}

/// Key and extension of a member: the name is cut at the first dot behind the last slash. Hidden files belong to no sample.
fn split(name: &str) -> Option<(String, String)> {
    let start = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = name[start..].find('.')?;
    (dot > 0).then(|| (name[..start + dot].to_owned(), name[start + dot + 1..].to_lowercase()))
}

/// If a member has the label: which field of it, where it is JSON.
fn label_field<'a>(extension: &str, options: &'a Options) -> Option<Option<&'a str>> {
    let wanted = options.label_key.as_deref().unwrap_or("cls");
    match wanted.split_once('.') {
        Some(("json", field)) => (extension == "json").then_some(Some(field)),
        _ => (extension == wanted).then_some(None),
    }
}

fn label(bytes: &[u8], field: Option<&str>) -> Result<String, String> {
    let Some(field) = field else {
        return std::str::from_utf8(bytes).map(|text| text.trim().to_owned()).map_err(|_| "the label is not UTF-8".into());
    };
    let json: serde_json::Value = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    match json.get(field) {
        Some(serde_json::Value::String(text)) => Ok(text.clone()),
        Some(serde_json::Value::Number(number)) => Ok(number.to_string()),
        _ => Err(format!("there is no text or number `{field}`")),
    }
}

impl Samples for Shards {
    fn labels(&self) -> &[u32] {
        &self.labels
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn source(&self) -> &'static str {
        "webdataset"
    }

    fn next(&mut self, count: usize) -> Result<Vec<Encoded>> {
        let places = &self.images[self.next..(self.next + count).min(self.images.len())];
        self.next += places.len();
        let read = |place: &Place| {
            let (path, file) = &self.files[place.shard];
            let mut bytes = vec![0; place.length as usize];
            file.read_exact_at(&mut bytes, place.start).map_err(Error::io(path))?;
            Ok(Encoded { place: format!("{} of {}", place.name, path.display()), bytes })
        };
        places.iter().map(read).collect()
    }
}
