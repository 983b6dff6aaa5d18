//! Parquet files -> rows of JSON values, through the row reader of the `parquet` crate. That reader allocates by what
//! the file declares, so `parquet_limits.rs` checks every declared size first; its panics are contained.

use std::fs::File;
use std::path::Path;

use parquet::column::reader::ColumnReader;
use parquet::data_type::{ByteArray, DataType, FixedLenByteArray};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row as Record};
use serde_json::{Map, Number, Value};

use super::containment::contain;
use super::parquet_limits::{Budget, VALUE_BYTES, check_footer, check_pages};
use super::records::Row;
use crate::error::{Error, Result};

/// The first four bytes of a Parquet file.
pub(super) const MAGIC: &[u8] = b"PAR1";

/// Reads all rows; a null is an absent column.
pub(super) fn read_rows(file: File, path: &Path) -> Result<Vec<Row>> {
    let outcome = contain(|| decode(file, path));
    let outcome = outcome.unwrap_or_else(|panic| Err(damaged(format!("the decoder stopped: {panic}"))));
    outcome.map_err(|error| error.at_if_unplaced(path.display().to_string()))
}

/// A file that is not what its format says.
pub(super) fn damaged(why: impl Into<String>) -> Error {
    let error = Error::input("parquet-damaged", "the Parquet file cannot be read").because(why);
    error.fix("write or download the file again, or save it as JSON Lines")
}

fn from_decoder(error: ParquetError) -> Error {
    // Some messages quote the data they choked on, byte by byte.
    let reason: String = error.to_string().chars().take(200).collect();
    damaged(reason)
}

fn decode(file: File, path: &Path) -> Result<Vec<Row>> {
    let size = file.metadata().map_err(|error| Error::io("reading the data set", path, &error))?.len();
    check_footer(&file, size)?;
    let walked = file.try_clone().map_err(|error| Error::io("reading the data set", path, &error))?;
    let reader = SerializedFileReader::new(file).map_err(from_decoder)?;
    let mut budget = Budget::for_file(size);
    for group in reader.metadata().row_groups() {
        for column in group.columns() {
            check_pages(&walked, size, column, &mut budget)?;
        }
    }
    measure_lists(&reader, size)?;
    let mut budget = Budget::for_file(size);
    let mut rows = Vec::new();
    for (index, record) in reader.get_row_iter(None).map_err(from_decoder)?.enumerate() {
        let place = format!("{}: row {}", path.display(), index + 1);
        let record = record.map_err(|error| from_decoder(error).at(&place))?;
        let fields = object_of(record, &mut budget).map_err(|error| error.at(&place))?;
        rows.push(Row { place, fields });
    }
    Ok(rows)
}

/// Adds up what the columns inside lists expand to, without copying it. One row can hold a million references to one
/// long string of a dictionary, and the row reader would copy it a million times before we see the row.
fn measure_lists(reader: &SerializedFileReader<File>, size: u64) -> Result<()> {
    let mut budget = Budget::for_file(size);
    for group in 0..reader.num_row_groups() {
        let group = reader.get_row_group(group).map_err(from_decoder)?;
        for (index, column) in group.metadata().columns().iter().enumerate() {
            if column.column_descr().max_rep_level() == 0 {
                continue;
            }
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
