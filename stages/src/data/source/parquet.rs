//! Parquet, as the data sets of Hugging Face have it: a column `image` of `bytes` and `path`, and a column of labels.
//! <https://parquet.apache.org/docs/file-format/>; the names of classes stand in the metadata `huggingface`.

use std::fs::File;
use std::path::{Path, PathBuf};

use ::parquet::basic::Type;
use ::parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use ::parquet::data_type::{ByteArray, ByteArrayType, DataType};
use ::parquet::file::metadata::ColumnChunkMetaData;
use ::parquet::file::reader::{FileReader, SerializedFileReader};

use super::Options;
use super::samples::{Encoded, Samples};
use crate::error::{Error, Result};

/// One file, and the columns in it.
struct Shard {
    path: PathBuf,
    reader: SerializedFileReader<File>,
    image: usize,
}

/// The files of a folder by name, or one file.
pub(super) struct Tables {
    shards: Vec<Shard>,
    labels: Vec<u32>,
    classes: Vec<String>,
    /// Where the next image is: the shard and the row group.
    at: (usize, usize),
    /// The images of that row group, as far as they are not read, and how many rows were.
    open: Option<(ColumnReaderImpl<ByteArrayType>, usize, usize)>,
}

/// What `work` gives; the crate asserts things about damaged files that are not so, and a panic of its is an error of the file.
fn guarded<T>(work: impl FnOnce() -> Result<T>, path: &Path) -> Result<T> {
    // What was being read is not used any more after an error.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|_| Err(Error::data(path, "the Parquet file is damaged")))
}

/// Complains about places that no file has.
fn check_places(reader: &SerializedFileReader<File>) -> std::result::Result<(), String> {
    for (group, rows) in reader.metadata().row_groups().iter().enumerate() {
        let sound = |column: &ColumnChunkMetaData| {
            column.data_page_offset() >= 0
                && column.compressed_size() >= 0
                && column.uncompressed_size() >= 0
                && column.dictionary_page_offset().is_none_or(|at| at >= 0)
        };
        if rows.num_rows() < 0 || !rows.columns().iter().all(sound) {
            return Err(format!("row group {group} lies at a place that no file has: the Parquet file is damaged"));
        }
    }
    Ok(())
}

/// Rows of labels that are read at a time.
const ROWS: usize = 1 << 14;

impl Tables {
    pub fn open(path: &Path, options: &Options) -> Result<Self> {
        let names = if path.is_dir() { super::folder::entries(path)? } else { vec![path.to_path_buf()] };
        let names: Vec<PathBuf> = names.into_iter().filter(|name| name.extension().is_some_and(|end| end == "parquet")).collect();
        if names.is_empty() {
            return Err(Error::data(path, "it holds no `.parquet`"));
        }
        let mut tables = Self { shards: Vec::new(), labels: Vec::new(), classes: Vec::new(), at: (0, 0), open: None };
        let (mut words, mut known) = (Vec::new(), None);
        for name in names {
            let place = name.clone();
            let (shard, names) = guarded(|| tables.shard(name, options, &mut words), &place)?;
            known = known.or(names);
            tables.shards.push(shard);
        }
        if words.is_empty() {
            return Err(Error::data(path, "it has no rows"));
        }
        let classes = options.classes.clone().or(known);
        (tables.labels, tables.classes) = super::labelled(path, &words, &Options { classes, ..options.clone() })?;
        Ok(tables)
    }

    /// Opens a file and reads its labels.
    fn shard(&self, path: PathBuf, options: &Options, words: &mut Vec<String>) -> Result<(Shard, Option<Vec<String>>)> {
        let file = File::open(&path).map_err(Error::io(&path))?;
        let wrong = |e: String| Error::data(&path, e);
        let reader = SerializedFileReader::new(file).map_err(|e| wrong(e.to_string()))?;
        check_places(&reader).map_err(wrong)?;
        let label = options.label_key.as_deref().unwrap_or("label");
        let column = options.image_key.as_deref().unwrap_or("image");
        let find = |names: &[String]| {
            let columns = reader.metadata().file_metadata().schema_descr().columns();
            names.iter().find_map(|name| columns.iter().position(|column| column.path().string() == *name))
        };
        let names = || {
            let schema = reader.metadata().file_metadata().schema_descr();
            schema.columns().iter().map(|column| column.path().string()).collect::<Vec<_>>().join(", ")
        };
        let image = find(&[format!("{column}.bytes"), column.to_owned()])
            .ok_or_else(|| wrong(format!("there is no column `{column}` of images (`image_key`); its columns are {}", names())))?;
        let label = find(&[label.to_owned()])
            .ok_or_else(|| wrong(format!("there is no column `{label}` (`label_key`); its columns are {}", names())))?;
        let schema = reader.metadata().file_metadata().schema_descr();
        if schema.column(image).physical_type() != Type::BYTE_ARRAY || schema.column(image).max_rep_level() != 0 {
            return Err(wrong(format!("column `{}` holds no images as bytes", schema.column(image).path().string())));
        }
        let classes = class_names(&reader, options.label_key.as_deref().unwrap_or("label"));
        for group in 0..reader.num_row_groups() {
            let rows = reader.get_row_group(group).map_err(|e| wrong(e.to_string()))?;
            let column = rows.get_column_reader(label).map_err(|e| wrong(e.to_string()))?;
            let count = usize::try_from(rows.metadata().num_rows()).map_err(|e| wrong(e.to_string()))?;
            let before = words.len();
            read_labels(column, count, words).map_err(|e| wrong(format!("row group {group}, the labels: {e}")))?;
            if words.len() - before != count {
                return Err(wrong(format!("row group {group} has {} labels for {count} rows", words.len() - before)));
            }
        }
        Ok((Shard { path, reader, image }, classes))
    }
}

/// The names in the metadata of Hugging Face's `datasets`.
fn class_names(reader: &SerializedFileReader<File>, label: &str) -> Option<Vec<String>> {
    let metadata = reader.metadata().file_metadata().key_value_metadata()?;
    let text = metadata.iter().find(|entry| entry.key == "huggingface")?.value.as_ref()?;
    let json: serde_json::Value = serde_json::from_str(text).ok()?;
    let names = json.get("info")?.get("features")?.get(label)?.get("names")?.as_array()?;
    names.iter().map(|name| name.as_str().map(str::to_owned)).collect()
}

/// Labels as texts; a row without is an error.
fn read_labels(column: ColumnReader, rows: usize, words: &mut Vec<String>) -> Result<(), String> {
    fn all<T: DataType>(
        mut reader: ColumnReaderImpl<T>,
        rows: usize,
        mut word: impl FnMut(&T::T) -> Result<(), String>,
    ) -> Result<(), String> {
        let mut read = 0;
        while read < rows {
            let (mut values, mut levels) = (Vec::new(), Vec::new());
            let (records, found, _) =
                reader.read_records(ROWS.min(rows - read), Some(&mut levels), None, &mut values).map_err(|e| e.to_string())?;
            if records != found {
                return Err(format!("among the rows {read} to {} one has none", read + records));
            }
            if records == 0 {
                return Ok(());
            }
            values.iter().try_for_each(&mut word)?;
            read += records;
        }
        Ok(())
    }
    match column {
        ColumnReader::Int32ColumnReader(reader) => all(reader, rows, |v| {
            words.push(v.to_string());
            Ok(())
        }),
        ColumnReader::Int64ColumnReader(reader) => all(reader, rows, |v| {
            words.push(v.to_string());
            Ok(())
        }),
        ColumnReader::ByteArrayColumnReader(reader) => all(reader, rows, |v| {
            words.push(v.as_utf8().map_err(|e| e.to_string())?.to_owned());
            Ok(())
        }),
        _ => Err("they are neither whole numbers nor texts".into()),
    }
}

impl Samples for Tables {
    fn labels(&self) -> &[u32] {
        &self.labels
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn source(&self) -> &'static str {
        "parquet"
    }

    fn next(&mut self, count: usize) -> Result<Vec<Encoded>> {
        let path = self.shards.get(self.at.0).map(|shard| shard.path.clone()).unwrap_or_default();
        guarded(|| self.advance(count), &path)
    }
}

impl Tables {
    /// The next `count` images.
    fn advance(&mut self, count: usize) -> Result<Vec<Encoded>> {
        let mut out = Vec::new();
        while out.len() < count {
            let Some(shard) = self.shards.get(self.at.0) else { break };
            let wrong = |e: String| Error::data(&shard.path, format!("row group {}: {e}", self.at.1));
            if self.at.1 == shard.reader.num_row_groups() {
                self.at = (self.at.0 + 1, 0);
                continue;
            }
            if self.open.is_none() {
                let rows = shard.reader.get_row_group(self.at.1).map_err(|e| wrong(e.to_string()))?;
                let ColumnReader::ByteArrayColumnReader(column) = rows.get_column_reader(shard.image).map_err(|e| wrong(e.to_string()))?
                else {
                    return Err(wrong("the images are no bytes".into()));
                };
                self.open = Some((column, 0, rows.metadata().num_rows().max(0) as usize));
            }
            let Some((column, read, rows)) = &mut self.open else { continue };
            let (mut values, mut levels) = (Vec::<ByteArray>::new(), Vec::new());
            let wanted = (count - out.len()).min(*rows - *read);
            let (records, found, _) =
                column.read_records(wanted, Some(&mut levels), None, &mut values).map_err(|e| wrong(e.to_string()))?;
            if records != found {
                return Err(wrong(format!(
                    "among the rows {read} to {} one has no image in it; a path alone is not followed",
                    *read + records
                )));
            }
            for (i, value) in values.iter().enumerate() {
                let place = format!("row {} of row group {} of {}", *read + i, self.at.1, shard.path.display());
                out.push(Encoded { place, bytes: value.data().to_vec() });
            }
            *read += records;
            if records < wanted {
                return Err(wrong(format!("it ends after {read} of {rows} rows")));
            }
            if read == rows {
                (self.open, self.at.1) = (None, self.at.1 + 1);
            }
        }
        Ok(out)
    }
}
