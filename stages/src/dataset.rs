//! The stage `dataset`: labelled images from a file or folder, split into a part to learn from and a part to judge by.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use trestle_engine::stage::{Arity, Context, Format, InPort, OutPort, ParamError, Stage, StageError, Threads};

use crate::data::source::{self, Column, Opened, Options, Part, SourceFormat};
use crate::data::split::{Share, limit, split_labels};
use crate::data::{Classes, Filter, ImageSet};
use crate::error::Result;
use crate::formats::{CLASSES, IMAGE_SET};

/// Reads labelled images and splits them.
pub struct Dataset;

/// Parameters of `dataset`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Params {
    /// Format of the source; `auto` goes by its name.
    pub format: SourceFormat,
    /// Name of each label, for example `[zero, one]`; without, the source's own names, or the labels as numbers.
    pub classes: Option<Vec<String>>,
    /// Side in pixels that images are resized to; without, they stay as they are.
    pub size: Option<usize>,
    /// How they are resized.
    pub filter: Filter,
    /// 1 (grey) or 3 (RGB); without, as in the source.
    pub channels: Option<usize>,
    /// Value in the source that stands for white; without, 255.
    pub value_max: Option<f64>,
    /// CSV: number of the column with the label, from 0 or from the end (−1), or its name in the header.
    pub label_column: Column,
    /// CSV: whether the first row names the columns.
    pub header: bool,
    /// CSV: height and width of images that are not square.
    pub shape: Option<[usize; 2]>,
    /// Parquet: the column of images, without `image`; WebDataset: the extension of images, without jpg, jpeg and png.
    pub image_key: Option<String>,
    /// Parquet: the column of labels, without `label`; WebDataset: the extension of labels, without `cls`, or `json.FIELD`.
    pub label_key: Option<String>,
    /// Colour (red, green, blue) behind transparent images, such as `[255, 255, 255]`; without, transparent ones are refused.
    pub background: Option<[u8; 3]>,
    /// Images of each class that go into `train`; the rest goes into `test`. Without `shots` and `test_fraction`, all go into `train`.
    pub shots: Option<usize>,
    /// Fraction of each class that goes into `test`, instead of `shots`.
    pub test_fraction: Option<f64>,
    /// At most that many images in `test`, drawn at random.
    pub limit_test: Option<usize>,
    /// Seed of the draw.
    pub seed: u64,
}

impl Params {
    fn share(&self) -> Share {
        match (self.shots, self.test_fraction) {
            (Some(shots), _) => Share::Shots(shots),
            (None, Some(fraction)) => Share::AllBut(fraction),
            (None, None) => Share::All,
        }
    }

    fn options(&self) -> Options {
        Options {
            format: self.format,
            classes: self.classes.clone(),
            size: self.size,
            filter: self.filter,
            channels: self.channels,
            value_max: self.value_max,
            label_column: self.label_column.clone(),
            header: self.header,
            shape: self.shape,
            image_key: self.image_key.clone(),
            label_key: self.label_key.clone(),
            background: self.background,
        }
    }
}

/// The part of `set` at `indices`, with the seed that drew it.
fn part(set: &ImageSet, indices: &[usize], seed: u64) -> Result<ImageSet> {
    let mut part = set.subset(indices)?;
    part.meta.seed = Some(seed);
    Ok(part)
}

impl Stage for Dataset {
    const KIND: &'static str = "dataset";
    // 2: pictures are turned as EXIF asks, and transparent ones need a background.
    const VERSION: u32 = 2;
    const ABOUT: &'static str =
        "Labelled images from an image folder, WebDataset, Parquet, safetensors, IDX or CSV, split into train and test";
    type Params = Params;

    fn inputs() -> Vec<InPort> {
        vec![
            InPort { name: "source", format: Format::ANY, arity: Arity::One, doc: "a file or folder of labelled images" },
            InPort {
                name: "labels",
                format: Format::ANY,
                arity: Arity::Optional,
                doc: "the file of labels that belongs to an IDX file of images",
            },
        ]
    }

    fn outputs() -> Vec<OutPort> {
        vec![
            OutPort { name: "train", format: IMAGE_SET, path: "train", doc: "images to learn from" },
            OutPort { name: "test", format: IMAGE_SET, path: "test", doc: "images to judge by: none of them is in train" },
            OutPort { name: "classes", format: CLASSES, path: "classes.json", doc: "the names of the classes" },
        ]
    }

    fn check(params: &Params) -> Vec<ParamError> {
        let mut out = Vec::new();
        let mut complain = |wrong: bool, path: &str, message: &str| {
            if wrong {
                out.push(ParamError::new(path, message));
            }
        };
        let names = params.classes.as_deref().map(crate::data::check_names);
        if let Some(Err(message)) = names {
            complain(true, "classes", &message);
        }
        complain(params.size == Some(0), "size", "images are at least 1 pixel wide");
        complain(!matches!(params.channels, None | Some(1 | 3)), "channels", "images have 1 or 3 channels");
        complain(params.value_max.is_some_and(|max| !(max > 0.0 && max.is_finite())), "value_max", "it must be above 0");
        complain(params.shape.is_some_and(|shape| shape.contains(&0)), "shape", "height and width are at least 1");
        complain(params.shots == Some(0), "shots", "draw at least 1 image a class, or leave `shots` out for all");
        complain(params.shots.is_some() && params.test_fraction.is_some(), "test_fraction", "`shots` splits already: give one of the two");
        complain(params.test_fraction.is_some_and(|f| !(0.0..=1.0).contains(&f)), "test_fraction", "it must be in 0 to 1");
        complain(params.limit_test == Some(0), "limit_test", "keep at least 1 image, or leave `limit_test` out for all");
        let splits = params.shots.is_some() || params.test_fraction.is_some();
        complain(params.limit_test.is_some() && !splits, "limit_test", "all images go into train: give `shots` or `test_fraction` too");
        complain(matches!(params.label_column, Column::Name(_)) && !params.header, "label_column", "a column's name needs `header: true`");
        out
    }

    /// Pictures are decoded by all threads; what is one file of values is read by one.
    fn threads(params: &Params) -> Threads {
        match params.format {
            SourceFormat::Auto | SourceFormat::Folder | SourceFormat::Webdataset | SourceFormat::Parquet => Threads::MANY,
            SourceFormat::Safetensors | SourceFormat::Idx | SourceFormat::Csv | SourceFormat::ImageSet => Threads::ONE,
        }
    }

    fn run(params: &Params, cx: &mut Context<'_>) -> Result<(), StageError> {
        let (path, options) = (cx.input("source")?.to_path_buf(), params.options());
        let opened = source::open(&path, cx.optional("labels"), &options)?;
        let (labels, names) = match &opened {
            Opened::Set(set) => (set.labels.as_slice(), set.meta.classes.as_slice()),
            Opened::Samples(samples) => (samples.labels(), samples.classes()),
        };
        let mut parts = split_labels(labels, names, params.share(), params.seed)?;
        if let Some(count) = params.limit_test {
            parts.test = limit(&parts.test, count, params.seed);
        }
        Classes::new(names.to_vec()).write(cx.output("classes")?)?;
        match opened {
            Opened::Set(set) => {
                part(&set, &parts.train, params.seed)?.write(cx.output("train")?)?;
                part(&set, &parts.test, params.seed)?.write(cx.output("test")?)?;
            }
            Opened::Samples(mut samples) => {
                let part = |name: &str, indices: &[usize]| {
                    Ok::<_, StageError>(Part { dir: cx.output(name)?.to_path_buf(), indices: indices.to_vec(), seed: Some(params.seed) })
                };
                let parts = [part("train", &parts.train)?, part("test", &parts.test)?];
                source::write(samples.as_mut(), &path, &parts, &options)?;
            }
        }
        cx.metric("train", parts.train.len() as f64);
        cx.metric("test", parts.test.len() as f64);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::{BTreeMap, BTreeSet};
    use std::fs;
    use std::path::{Path, PathBuf};

    use serde_json::json;
    use trestle_engine::stage::{Input, Kind, Silent};

    use super::*;
    use crate::data::{Classes, FILE, META};

    fn run(source: &Path, dir: &Path, with: &serde_json::Value) -> Result<(), StageError> {
        let inputs = [("source".to_owned(), vec![Input { path: source.to_path_buf(), labels: BTreeMap::new() }])].into();
        let outputs = Dataset::outputs().into_iter().map(|port| (port.name.to_owned(), dir.join(port.path))).collect();
        let kind = Kind::of::<Dataset>();
        let params = kind.check(with).unwrap().params;
        kind.run(&params, &mut Context::new(inputs, outputs, 1, &mut Silent))
    }

    fn optdigits() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../pipelines/data/optdigits.safetensors")
    }

    #[test]
    fn a_few_shot_draw_of_the_vendored_digits() {
        let dir = tempfile::tempdir().unwrap();
        run(&optdigits(), dir.path(), &json!({"shots": 5, "seed": 3, "size": 16})).unwrap();
        let (train, test) = (ImageSet::read(&dir.path().join("train")).unwrap(), ImageSet::read(&dir.path().join("test")).unwrap());
        assert_eq!((train.class_counts(), train.len() + test.len()), (vec![5; 10], 1797));
        assert_eq!((train.meta.height, train.meta.width, train.meta.seed), (16, 16, Some(3)));
        assert_eq!(Classes::read(&dir.path().join("classes.json")).unwrap().names[9], "nine");
        // No two of the 1,797 images are equal, so a shared image would show.
        let pixels = |set: &ImageSet| (0..set.len()).map(|i| set.image(i).to_vec()).collect::<BTreeSet<_>>();
        assert_eq!(pixels(&train).len() + pixels(&test).len(), 1797);
        assert!(pixels(&train).is_disjoint(&pixels(&test)));
    }

    #[test]
    fn the_same_params_give_the_same_bytes() {
        let bytes = |with: serde_json::Value| {
            let dir = tempfile::tempdir().unwrap();
            run(&optdigits(), dir.path(), &with).unwrap();
            ["train", "test"].map(|part| [FILE, META].map(|file| fs::read(dir.path().join(part).join(file)).unwrap()))
        };
        let first = bytes(json!({"test_fraction": 0.25, "limit_test": 100, "seed": 1}));
        assert_eq!(first, bytes(json!({"test_fraction": 0.25, "limit_test": 100, "seed": 1})));
        assert_ne!(first, bytes(json!({"test_fraction": 0.25, "limit_test": 100, "seed": 2})));
    }

    #[test]
    fn without_a_split_all_is_train() {
        let dir = tempfile::tempdir().unwrap();
        run(&optdigits(), dir.path(), &json!({})).unwrap();
        assert_eq!(ImageSet::read(&dir.path().join("train")).unwrap().len(), 1797);
        assert!(ImageSet::read(&dir.path().join("test")).unwrap().is_empty());
    }

    #[test]
    fn params_without_sense_are_found_before_a_run() {
        let kind = Kind::of::<Dataset>();
        let cases = [
            (json!({"shots": 1, "test_fraction": 0.5}), "test_fraction"),
            (json!({"shots": 0}), "shots"),
            (json!({"test_fraction": 1.5}), "test_fraction"),
            (json!({"limit_test": 5}), "limit_test"),
            (json!({"size": 0}), "size"),
            (json!({"channels": 2}), "channels"),
            (json!({"value_max": 0}), "value_max"),
            (json!({"shape": [0, 4]}), "shape"),
            (json!({"classes": ["a", "a"]}), "classes"),
            (json!({"label_column": "y"}), "label_column"),
            (json!({"format": "hdf5"}), "format"),
            (json!({"shot": 1}), "shot"),
        ];
        for (with, path) in cases {
            let complaints = kind.check(&with).unwrap_err();
            assert_eq!(complaints.iter().map(|c| c.path.as_str()).collect::<Vec<_>>(), [path], "{complaints:?}");
        }
    }

    #[test]
    fn params_survive_being_written_back() {
        let kind = Kind::of::<Dataset>();
        let once = kind.check(&json!({"shots": 2, "header": true, "label_column": "y", "shape": [2, 3]})).unwrap().params;
        assert_eq!(kind.check(&once).unwrap().params, once);
        assert_eq!(once["seed"], 0);
    }
}
