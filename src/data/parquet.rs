//! Parquet files -> rows of JSON values, through the row reader of the `parquet` crate. That reader allocates by what
//! the file declares, so `parquet_limits.rs` checks every declared size first; its panics are contained.

use std::fs::File;
use std::path::Path;

use parquet::column::reader::ColumnReader;
use parquet::data_type::{ByteArray, DataType, FixedLenByteArray};
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row as Record};
use serde_json::{Map, Number, Value};

use super::containment::contain;
use super::parquet_limits::{Budget, VALUE_BYTES, check_footer, check_held, check_pages};
use super::records::Row;
use crate::error::{Error, Result};

/// The first four bytes of a Parquet file.
pub(super) const MAGIC: &[u8] = b"PAR1";

/// The rows of a file; a null is an absent column.
pub(super) struct Rows {
    place: String,
    records: RowIter<'static>,
    budget: Budget,
    number: u64,
}

impl Rows {
    /// Opens a file and checks what it declares and expands to.
    pub(super) fn open(file: File, path: &Path) -> Result<Self> {
        let again = file.try_clone().map_err(|error| Error::io("reading the data set", path, &error))?;
        Self::of(file, &again, path)
    }

    /// The same for a file that is in memory.
    pub(super) fn in_memory(bytes: Vec<u8>, path: &Path) -> Result<Self> {
        let bytes = bytes::Bytes::from(bytes);
        Self::of(bytes.clone(), &bytes, path)
    }

    /// Reads from `source`, of which `again` is a second handle.
    fn of<R: ChunkReader + 'static>(source: R, again: &R, path: &Path) -> Result<Self> {
        let place = path.display().to_string();
        let outcome = contained(|| open(source, again)).map_err(|error| {
            let column = error.place().map_or(String::new(), |column| format!(": {column}"));
            error.at(format!("{place}{column}"))
        })?;
        let (records, budget) = outcome;
        Ok(Self { place, records, budget, number: 0 })
    }

    pub(super) fn next_row(&mut self) -> Result<Option<Row>> {
        self.number += 1;
        let place = format!("{}: row {}", self.place, self.number);
        let (records, budget) = (&mut self.records, &mut self.budget);
        let fields = contained(|| match records.next() {
            None => Ok(None),
            Some(record) => object_of(record.map_err(from_decoder)?, budget).map(Some),
        });
        let fields = fields.map_err(|error| error.at(&place))?;
        Ok(fields.map(|fields| Row { place, fields }))
    }
}

/// Runs the decoder, whose panics become errors.
fn contained<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    contain(work).unwrap_or_else(|panic| Err(damaged(format!("the decoder stopped: {panic}"))))
}

/// A file that is not what its format says.
pub(super) fn damaged(why: impl Into<String>) -> Error {
    let error = Error::input("parquet-damaged", "the Parquet file cannot be read").because(why);
    error.fix("write or download the file again, or save it as JSON Lines")
}

fn from_decoder(error: ParquetError) -> Error {
    // Some messages quote the data they choked on, byte by byte.
    let reason = error.to_string();
    if reason.contains("Utf8Error") {
        return damaged("a text in it is not UTF-8");
    }
    damaged(reason.trim_start_matches("Parquet error: ").chars().take(200).collect::<String>())
}

fn open<R: ChunkReader + 'static>(source: R, again: &R) -> Result<(RowIter<'static>, Budget)> {
    let size = source.len();
    check_footer(again, size)?;
    let reader = SerializedFileReader::new(source).map_err(from_decoder)?;
    let mut budget = Budget::for_file(size);
    for group in reader.metadata().row_groups() {
        // The decoder holds a page of every column at once.
        let mut held = 0;
        for column in group.columns() {
            held += check_pages(again, size, column, &mut budget)?;
        }
        check_held(held, size)?;
    }
    measure_texts(&reader, size)?;
    Ok((RowIter::from_file_into(Box::new(reader)), Budget::for_file(size)))
}

/// Adds up what the columns of texts expand to, without copying it. A dictionary of one long string can stand for
/// millions of values, and one row can hold a million references to it, which the row reader would copy before we see
/// the row.
fn measure_texts<R: ChunkReader + 'static>(reader: &SerializedFileReader<R>, size: u64) -> Result<()> {
    let mut budget = Budget::for_file(size);
    for group in 0..reader.num_row_groups() {
        let group = reader.get_row_group(group).map_err(from_decoder)?;
        for index in 0..group.metadata().num_columns() {
            match group.get_column_reader(index).map_err(from_decoder)? {
                ColumnReader::ByteArrayColumnReader(column) => measure(column, ByteArray::len, &mut budget)?,
                ColumnReader::FixedLenByteArrayColumnReader(column) => {
                    measure(column, |value: &FixedLenByteArray| value.len(), &mut budget)?;
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn measure<T: DataType>(
    mut column: parquet::column::reader::ColumnReaderImpl<T>,
    length: impl Fn(&T::T) -> usize,
    budget: &mut Budget,
) -> Result<()> {
    let (mut values, mut definitions, mut repetitions) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        values.clear();
        definitions.clear();
        repetitions.clear();
        let read = column.read_records(256, Some(&mut definitions), Some(&mut repetitions), &mut values);
        let (records, _, levels) = read.map_err(from_decoder)?;
        if records == 0 && levels == 0 {
            return Ok(());
        }
        values.iter().try_for_each(|value| budget.spend(length(value) as u64 + VALUE_BYTES))?;
    }
}

fn object_of(record: Record, budget: &mut Budget) -> Result<Map<String, Value>> {
    let mut fields = Map::new();
    // A row costs something even without columns: the number of rows is only a number in the footer.
    budget.spend(VALUE_BYTES)?;
    for (name, field) in record.into_columns() {
        if let Some(value) = value_of(field, budget)? {
            fields.insert(name, value);
        }
    }
    Ok(fields)
}

/// The JSON value of a field; nothing for null.
fn value_of(field: Field, budget: &mut Budget) -> Result<Option<Value>> {
    budget.spend(VALUE_BYTES)?;
    Ok(Some(match field {
        Field::Null => return Ok(None),
        Field::Bool(value) => value.into(),
        Field::Byte(value) => value.into(),
        Field::Short(value) => value.into(),
        Field::Int(value) => value.into(),
        Field::Long(value) => value.into(),
        Field::UByte(value) => value.into(),
        Field::UShort(value) => value.into(),
        Field::UInt(value) => value.into(),
        Field::ULong(value) => value.into(),
        Field::Float16(value) => number(value.to_f64()),
        Field::Float(value) => number(f64::from(value)),
        Field::Double(value) => number(value),
        Field::Str(text) => {
            budget.spend(text.len() as u64)?;
            text.into()
        }
        Field::Bytes(bytes) => {
            budget.spend(bytes.len() as u64)?;
            // Old writers store text without saying that it is text; an image is left as a remark.
            match bytes.as_utf8() {
                Ok(text) => text.into(),
                Err(_) => serde_json::json!({ "bytes": bytes.len() }),
            }
        }
        Field::Group(record) => object_of(record, budget)?.into(),
        Field::ListInternal(list) => {
            let elements = list.elements().iter().cloned();
            let values = elements.map(|element| Ok(value_of(element, budget)?.unwrap_or(Value::Null)));
            values.collect::<Result<Vec<_>>>()?.into()
        }
        Field::MapInternal(map) => {
            let mut fields = Map::new();
            for (key, value) in map.entries() {
                let name = match key {
                    Field::Str(name) => name.clone(),
                    other => other.to_string(),
                };
                if let Some(value) = value_of(value.clone(), budget)? {
                    fields.insert(name, value);
                }
            }
            fields.into()
        }
        // Dates, times and decimals have no JSON type; no training column has them.
        other => other.to_string().into(),
    }))
}

/// JSON has no NaN and no infinity; as text they are refused where a number is needed, and not taken for null.
fn number(value: f64) -> Value {
    Number::from_f64(value).map_or_else(|| value.to_string().into(), Value::Number)
}

#[cfg(test)]
#[path = "parquet_tests.rs"]
mod tests;
