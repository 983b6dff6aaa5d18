//! The files of a run: JSON Lines, one object after the other, and JSON. A file that is not there is no error. A last
//! line that a killed process left unfinished is left out, and that is told.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::files::{check_values, open_plain, read_plain, strict};

/// The longest line that is read, in bytes.
const LINE_BYTES_MAX: u64 = 16 << 20;
/// The largest JSON file: settings and summaries are a few kilobytes.
const JSON_BYTES_MAX: u64 = 4 << 20;
/// How much of a bad line an error shows, in characters.
const EXCERPT_CHARS: usize = 80;

const DOING: &str = "reading a run's files";

/// Gives each line's object to `take`, in order; whether the last one is unfinished. Blank lines are allowed.
///
/// # Errors
/// `report-line` with file and line for what is no JSON object; input and output errors.
pub(super) fn each_line(path: &Path, mut take: impl FnMut(Map<String, Value>)) -> Result<bool> {
    if path.symlink_metadata().is_err() {
        return Ok(false);
    }
    let mut reader = BufReader::new(open_plain(path, DOING)?.0);
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        let read = reader.by_ref().take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut line);
        if read.map_err(|error| Error::io(DOING, path, &error))? == 0 {
            break;
        }
        match object(&line) {
            Ok(Some(row)) => take(row),
            Ok(None) => {}
            Err(_) if !line.ends_with(b"\n") && line.len() as u64 <= LINE_BYTES_MAX => return Ok(true),
            Err(why) => {
                return Err(Error::input("report-line", "a line is not what a run writes")
                    .at(format!("{}:{number}", path.display()))
                    .because(why)
                    .fix("remove the line, or restore the file from where it came"));
            }
        }
    }
    Ok(false)
}

/// The object on one line, none if it is blank, or why it is neither.
fn object(line: &[u8]) -> std::result::Result<Option<Map<String, Value>>, String> {
    if line.len() as u64 > LINE_BYTES_MAX {
        return Err(format!("it is longer than {} MiB", LINE_BYTES_MAX >> 20));
    }
    let text = std::str::from_utf8(line).map_err(|error| format!("byte {} is not UTF-8", error.valid_up_to() + 1))?;
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    let excerpt: String = text.chars().take(EXCERPT_CHARS).collect();
    check_values(text.as_bytes())?;
    match strict(text) {
        Ok(Value::Object(row)) => Ok(Some(row)),
        Ok(_) => Err(format!("it is no JSON object; it reads {excerpt:?}")),
        Err(error) => {
            // The parser sees one line, so its own line number would point to the wrong one.
            let reason = error.to_string();
            let reason = reason.split(" at line ").next().unwrap_or_default().to_owned();
            Err(format!("{reason}, column {}; it reads {excerpt:?}", error.column()))
        }
    }
}

/// The object in a JSON file; none if there is no such file.
///
/// # Errors
/// `report-json` for what is no JSON object; input and output errors.
pub(super) fn read_object(path: &Path) -> Result<Option<Value>> {
    if path.symlink_metadata().is_err() {
        return Ok(None);
    }
    let bytes = read_plain(path, DOING, JSON_BYTES_MAX)?;
    let refuse = |why: String| {
        Error::input("report-json", "a file is not what a run writes")
            .at(path.display().to_string())
            .because(why)
            .fix("remove the file, or restore it from where it came")
    };
    let text = String::from_utf8(bytes).map_err(|_| refuse("it is not UTF-8".to_owned()))?;
    check_values(text.as_bytes()).map_err(refuse)?;
    match strict(&text) {
        Ok(value) if value.is_object() => Ok(Some(value)),
        Ok(_) => Err(refuse("it is no JSON object".to_owned())),
        Err(error) => Err(refuse(error.to_string())),
    }
}
