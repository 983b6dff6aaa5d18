//! Data files -> rows of named JSON values. JSON Lines is read here, Parquet in `parquet.rs`; both give the same rows,
//! each with the place that error messages name. Nothing here knows what a column means.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde_json::{Map, Value};

use super::parquet;
use crate::error::{Error, Result};

/// The longest line that is read, in bytes. Longer ones are not data but a file without line ends.
const LINE_BYTES_MAX: usize = 64 << 20;

/// How much of a bad line an error shows, in characters.
const EXCERPT_CHARS: usize = 80;

/// One example as it stands in the file.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Where it stands: `train.jsonl:12` (the line, from 1) or `train.parquet: row 12` (from 1).
    pub place: String,
    /// Its columns, in the file's order.
    pub fields: Map<String, Value>,
}

/// Reads a whole data set: JSON Lines, or Parquet if the file begins with Parquet's magic or is named so.
///
/// Errors: `dataset-empty`, `dataset-invalid-utf8`, `dataset-invalid-json`, `dataset-not-an-object`,
/// `dataset-line-too-long`, `parquet-*`, and those of reading a file.
pub fn read_rows(path: &Path) -> Result<Vec<Row>> {
    let doing = "reading the data set";
    let mut file = File::open(path).map_err(|error| Error::io(doing, path, &error))?;
    if file.metadata().is_ok_and(|data| data.is_dir()) {
        let error = Error::input("dataset-directory", "the data set is a directory");
        return Err(error.at(path.display().to_string()).fix("name one .jsonl or .parquet file"));
    }
    let mut magic = Vec::new();
    file.by_ref().take(4).read_to_end(&mut magic).map_err(|error| Error::io(doing, path, &error))?;
    let named_so = path.extension().is_some_and(|name| name.eq_ignore_ascii_case("parquet"));
    let rows = if magic == parquet::MAGIC || named_so {
        parquet::read_rows(file, path)?
    } else {
        read_lines(BufReader::new(magic.chain(file)), path)?
    };
    if rows.is_empty() {
        let error = Error::input("dataset-empty", "the data set has no rows").at(path.display().to_string());
        return Err(error.fix("check that this is the file you meant"));
    }
    Ok(rows)
}

/// Reads JSON Lines: one object a line, blank lines allowed.
fn read_lines(mut reader: impl BufRead, path: &Path) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        let limit = LINE_BYTES_MAX as u64 + 1;
        let read = reader.by_ref().take(limit).read_until(b'\n', &mut line);
        if read.map_err(|error| Error::io("reading the data set", path, &error))? == 0 {
            break;
        }
        let place = format!("{}:{number}", path.display());
        if let Some(fields) = parse_line(&line, number == 1).map_err(|error| error.at(&place))? {
            rows.push(Row { place, fields });
        }
    }
    Ok(rows)
}

/// The object on one line, or nothing if the line is blank.
fn parse_line(line: &[u8], is_first: bool) -> Result<Option<Map<String, Value>>> {
    if line.len() > LINE_BYTES_MAX {
        let what = format!("the line is longer than {} MiB", LINE_BYTES_MAX >> 20);
        return Err(Error::input("dataset-line-too-long", what).fix("write one JSON object a line (JSON Lines)"));
    }
    // Editors on Windows begin a file with a byte order mark, which JSON does not allow.
    let line = if is_first { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line) } else { line };
    let text = std::str::from_utf8(line).map_err(|error| {
        let error = Error::input("dataset-invalid-utf8", format!("byte {} is not UTF-8", error.valid_up_to() + 1));
        error.because(format!("the line reads {}", excerpt(&String::from_utf8_lossy(line)))).fix("save it as UTF-8")
    })?;
    if text.trim().is_empty() {
        return Ok(None);
    }
    let not_json = |error: serde_json::Error| {
        // The parser sees one line, so its own "at line 1 column 7" would point to the wrong one.
        let reason = error.to_string();
        let reason = reason.split(" at line ").next().unwrap_or_default();
        let reason = format!("{reason}, column {}; the line reads {}", error.column(), excerpt(text));
        let error = Error::input("dataset-invalid-json", "the line is not valid JSON").because(reason);
        error.fix("write one JSON object a line (JSON Lines); `jq -c .` does that to a pretty-printed file")
    };
    match serde_json::from_str(text.trim_end()).map_err(not_json)? {
        Value::Object(fields) => Ok(Some(fields)),
        other => {
            let what = format!("the line is {}, not a JSON object", kind_of(&other));
            let error = Error::input("dataset-not-an-object", what).because(format!("it reads {}", excerpt(text)));
            Err(error.fix("write one JSON object a line (JSON Lines); `jq -c '.[]'` does that to a JSON array"))
        }
    }
}

/// What a value is, for error messages.
pub(crate) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The beginning of a text, in quotes and with control characters made visible.
fn excerpt(text: &str) -> String {
    let text = text.trim_end();
    let mut shown: String = text.chars().take(EXCERPT_CHARS).collect();
    if shown.len() < text.len() {
        shown.push_str("...");
    }
    format!("{shown:?}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn write(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        (folder, path)
    }

    fn error_of(bytes: &[u8]) -> Error {
        let (_folder, path) = write("a.jsonl", bytes);
        read_rows(&path).unwrap_err()
    }

    #[test]
    fn lines_blank_lines_and_a_byte_order_mark() {
        let (_folder, path) =
            write("a.jsonl", b"\xef\xbb\xbf{\"text\": \"one\"}\r\n\n  \n{\"text\": \"\xc3\xa4\", \"n\": 2}");
        let rows = read_rows(&path).unwrap();
        assert_eq!(rows.len(), 2);
        assert!(rows[0].place.ends_with("a.jsonl:1") && rows[1].place.ends_with("a.jsonl:4"));
        assert_eq!(rows[1].fields["text"], "ä");
        assert_eq!(rows[1].fields["n"], 2);
    }

    #[test]
    fn every_bad_line_has_its_error_and_place() {
        let line_2 = |rest: &[u8]| error_of(&[b"{}\n".as_slice(), rest].concat());
        for (rest, id) in [
            (b"{\"a\": }".as_slice(), "dataset-invalid-json"),
            (b"{\"a\": \"\\ud800\"}", "dataset-invalid-json"),
            (b"{", "dataset-invalid-json"),
            (b"[1]", "dataset-not-an-object"),
            (b"3", "dataset-not-an-object"),
            (b"{\"a\": \"\xff\"}", "dataset-invalid-utf8"),
            ("[".repeat(100_000).as_bytes(), "dataset-invalid-json"),
        ] {
            let error = line_2(rest);
            assert_eq!(error.id(), id, "{error}");
            assert!(error.place().unwrap().ends_with("a.jsonl:2"), "{error}");
            assert!(error.to_string().len() < 800, "{error}");
        }
        assert!(line_2(b"{\"a\": }").to_string().contains("column 7"));
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let mut endless = BufReader::new(std::io::repeat(b' '));
        let error = read_lines(&mut endless, Path::new("zero")).unwrap_err();
        assert_eq!((error.id(), error.place()), ("dataset-line-too-long", Some("zero:1")));
    }

    #[test]
    fn nothing_to_read_is_an_error() {
        assert_eq!(error_of(b"").id(), "dataset-empty");
        assert_eq!(error_of(b"\n \n").id(), "dataset-empty");
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read_rows(folder.path()).unwrap_err().id(), "dataset-directory");
        assert_eq!(read_rows(&folder.path().join("none.jsonl")).unwrap_err().id(), "file-missing");
    }
}
