//! A folder of images for each class.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use super::Options;
use super::samples::{Encoded, Samples};
use crate::error::{Error, Result};

/// `<path>/<class>/<image>`; classes and images in the order of their names.
pub(super) struct Folder {
    files: Vec<PathBuf>,
    labels: Vec<u32>,
    classes: Vec<String>,
    next: usize,
}

impl Folder {
    pub fn open(path: &Path, options: &Options) -> Result<Self> {
        let classes = classes(path, options)?;
        let (mut files, mut labels) = (Vec::new(), Vec::new());
        for (label, class) in classes.iter().enumerate() {
            let found = entries(&path.join(class))?;
            labels.resize(labels.len() + found.len(), label as u32);
            files.extend(found);
        }
        if files.is_empty() {
            return Err(Error::data(path, "its folders hold no images"));
        }
        Ok(Self { files, labels, classes, next: 0 })
    }
}

impl Samples for Folder {
    fn labels(&self) -> &[u32] {
        &self.labels
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn source(&self) -> &'static str {
        "folder"
    }

    fn next(&mut self, count: usize) -> Result<Vec<Encoded>> {
        let files = &self.files[self.next..(self.next + count).min(self.files.len())];
        self.next += files.len();
        let read = |file: &PathBuf| Ok(Encoded { place: file.display().to_string(), bytes: fs::read(file).map_err(Error::io(file))? });
        files.iter().map(read).collect()
    }
}

/// The class folders: as asked for, or all by name.
fn classes(path: &Path, options: &Options) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in entries(path)? {
        let name = entry.file_name().and_then(OsStr::to_str).ok_or_else(|| Error::data(&entry, "its name is not UTF-8"))?;
        if !entry.is_dir() {
            return Err(Error::data(&entry, "it is not a folder: images belong in a folder for each class"));
        }
        found.push(name.to_owned());
    }
    let Some(asked) = &options.classes else { return Ok(found) };
    if let Some(missing) = asked.iter().find(|name| !found.contains(name)) {
        return Err(Error::data(path, format!("there is no folder for the class `{missing}`")));
    }
    if let Some(extra) = found.iter().find(|name| !asked.contains(name)) {
        return Err(Error::data(path, format!("`classes` does not name the folder `{extra}`")));
    }
    Ok(asked.clone())
}

/// What a folder holds, by name, without hidden entries.
pub(super) fn entries(path: &Path) -> Result<Vec<PathBuf>> {
    let mut out = Vec::new();
    for entry in fs::read_dir(path).map_err(Error::io(path))? {
        let entry = entry.map_err(Error::io(path))?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            out.push(entry.path());
        }
    }
    out.sort();
    Ok(out)
}
