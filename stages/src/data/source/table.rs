//! CSV: one image a row.

use std::path::Path;

use csv::StringRecord;

use super::{Column, Options, Raw, byte, bytes};
use crate::error::{Error, Result};

/// Reads the file. Rows are counted from 1, as editors do, a header included.
pub(super) fn read(path: &Path, options: &Options) -> Result<Raw> {
    let bytes = bytes(path)?;
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).trim(csv::Trim::All).from_reader(bytes.as_slice());
    let mut rows = reader.records();
    let mut first = None;
    if options.header {
        first = rows.next().transpose().map_err(|e| Error::data(path, e))?;
    }
    let (mut images, mut labels, mut columns) = (Vec::new(), Vec::new(), first.as_ref().map(StringRecord::len));
    for (i, row) in rows.enumerate() {
        let line = i + 1 + usize::from(options.header);
        let row = row.map_err(|e| Error::data(path, e))?;
        let want = *columns.get_or_insert(row.len());
        if row.len() != want {
            return Err(Error::data(path, format!("row {line} has {} columns, the rows before have {want}", row.len())));
        }
        let label_at = label_column(path, &options.label_column, first.as_ref(), want)?;
        for (column, cell) in row.iter().enumerate() {
            if column == label_at {
                labels.push(label(path, line, cell, options)?);
            } else {
                images.push(pixel(path, line, column, cell, options)?);
            }
        }
    }
    let pixels = columns.filter(|_| !labels.is_empty()).ok_or_else(|| Error::data(path, "it has no rows"))? - 1;
    Ok(Raw { images, labels, size: size(path, pixels, options)?, classes: None, styles: None, source: "csv".into() })
}

fn label_column(path: &Path, asked: &Column, header: Option<&StringRecord>, columns: usize) -> Result<usize> {
    let found = match asked {
        Column::Index(i) if *i < 0 => columns.checked_sub(i.unsigned_abs() as usize),
        Column::Index(i) => Some(*i as usize).filter(|i| *i < columns),
        Column::Name(name) => header.and_then(|row| row.iter().position(|cell| cell == name)),
    };
    found.ok_or_else(|| match asked {
        Column::Index(i) => Error::data(path, format!("there is no column {i} (`label_column`): rows have {columns} columns")),
        Column::Name(name) if header.is_none() => {
            Error::data(path, format!("`label_column: {name}` needs a header: set `header: true`, or give the column's number"))
        }
        Column::Name(name) => Error::data(path, format!("the header has no column `{name}` (`label_column`)")),
    })
}

fn label(path: &Path, line: usize, cell: &str, options: &Options) -> Result<u32> {
    if let Some(at) = options.classes.as_ref().and_then(|names| names.iter().position(|name| name == cell)) {
        return Ok(at as u32);
    }
    let number = cell.parse::<f64>().ok().filter(|v| v.fract() == 0.0 && (0.0..4e9).contains(v)).map(|v| v as u32);
    let number =
        number.ok_or_else(|| Error::data(path, format!("row {line}: the label `{cell}` is neither a class nor a whole number")))?;
    match &options.classes {
        Some(names) if number as usize >= names.len() => {
            Err(Error::data(path, format!("row {line}: label {number}, yet `classes` names {}", names.len())))
        }
        _ => Ok(number),
    }
}

fn pixel(path: &Path, line: usize, column: usize, cell: &str, options: &Options) -> Result<u8> {
    let max = options.value_max.unwrap_or(255.0);
    let Ok(value) = cell.parse::<f64>() else {
        let hint = if line == 1 { "; if the first row names the columns, set `header: true`" } else { "" };
        return Err(Error::data(path, format!("row {line}, column {column}: `{cell}` is not a number{hint}")));
    };
    byte(value, max).ok_or_else(|| Error::data(path, format!("row {line}, column {column}: {value} is not in 0 to {max} (`value_max`)")))
}

fn size(path: &Path, values: usize, options: &Options) -> Result<(usize, usize, usize)> {
    let channels = |pixels: usize| [1, 3].into_iter().find(|c| pixels * c == values && pixels > 0);
    let found = match options.shape {
        Some([h, w]) => channels(h * w).map(|c| (h, w, c)),
        None => [1, 3].into_iter().filter(|&c| values.is_multiple_of(c)).find_map(|c| {
            let side = (values / c).isqrt();
            (side > 0 && side * side * c == values).then_some((side, side, c))
        }),
    };
    found.ok_or_else(|| match options.shape {
        Some([h, w]) => Error::data(path, format!("{values} values a row are no image of {h}x{w} with 1 or 3 channels (`shape`)")),
        None => Error::data(path, format!("{values} values a row are no square image: set `shape: [height, width]`")),
    })
}
