//! A folder of images for each class.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Options, Raw};
use crate::data::resize::resize;
use crate::error::{Error, Result};

/// One decoded image, RGB.
struct Decoded {
    pixels: Vec<u8>,
    size: (usize, usize),
    grey: bool,
}

/// Reads `<path>/<class>/<image>`; classes and images in the order of their names. Transparency is not looked at.
pub(super) fn read(path: &Path, options: &Options) -> Result<Raw> {
    let classes = classes(path, options)?;
    let (mut images, mut labels, mut grey) = (Vec::new(), Vec::new(), true);
    let mut first: Option<(PathBuf, (usize, usize))> = None;
    for (label, class) in classes.iter().enumerate() {
        for file in entries(&path.join(class))? {
            let image = fitted(decode(&file)?, options);
            let (reference, size) = first.get_or_insert_with(|| (file.clone(), image.size));
            if *size != image.size {
                let message = format!("it is {:?} pixels (height, width), {} is {size:?}: set `size`", image.size, reference.display());
                return Err(Error::data(&file, message));
            }
            grey &= image.grey;
            images.extend(image.pixels);
            labels.push(label as u32);
        }
    }
    let Some((_, (height, width))) = first else {
        return Err(Error::data(path, "its folders hold no images"));
    };
    let mut channels = 3;
    if grey {
        images = images.into_iter().step_by(3).collect();
        channels = 1;
    }
    Ok(Raw { images, labels, size: (height, width, channels), classes: Some(classes), styles: None, source: "folder".into() })
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
fn entries(path: &Path) -> Result<Vec<PathBuf>> {
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

fn decode(path: &Path) -> Result<Decoded> {
    let bytes = fs::read(path).map_err(Error::io(path))?;
    let image = image::load_from_memory(&bytes).map_err(|e| Error::data(path, format!("no readable PNG or JPEG: {e}")))?;
    let rgb = image.to_rgb8();
    let size = (rgb.height() as usize, rgb.width() as usize);
    let pixels = rgb.into_raw();
    let grey = pixels.as_chunks::<3>().0.iter().all(|[r, g, b]| r == g && g == b);
    Ok(Decoded { pixels, size, grey })
}

/// The image in the size that was asked for: here, since files may differ in size.
fn fitted(image: Decoded, options: &Options) -> Decoded {
    let Some(side) = options.size else { return image };
    if image.size == (side, side) {
        return image;
    }
    let pixels = resize(&image.pixels, (image.size.0, image.size.1, 3), (side, side), options.filter);
    Decoded { pixels, size: (side, side), grey: image.grey }
}
