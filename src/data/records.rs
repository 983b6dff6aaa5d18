//! Data files -> rows of named JSON values. JSON Lines is read here, Parquet in `parquet.rs`; both give the same rows,
//! each with the place that error messages name. Nothing here knows what a column means.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::parquet;
use crate::error::{Error, Result};
use crate::files::{check_values, open_plain, strict};

/// The longest line that is read, in bytes. Longer ones are not data but a file without line ends.
const LINE_BYTES_MAX: usize = 16 << 20;

/// How much of a bad line an error shows, in characters.
const EXCERPT_CHARS: usize = 80;

/// How files begin that are often taken for data sets, what they are, and what to do about them.
const FOREIGN: [(&[u8], &str, &str); 8] = [
    (b"\x1f\x8b", "compressed (gzip)", "unpack it with `gunzip`"),
    (b"\x28\xb5\x2f\xfd", "compressed (zstd)", "unpack it with `unzstd`"),
    (b"BZh", "compressed (bzip2)", "unpack it with `bunzip2`"),
    (b"\xfd7zXZ", "compressed (xz)", "unpack it with `unxz`"),
    (b"PK\x03\x04", "a zip archive", "unpack it with `unzip`"),
    (b"ARROW1", "an Arrow file", "save it as Parquet or JSON Lines"),
    (b"\xff\xfe", "text in UTF-16", "save it as UTF-8"),
    (b"\xfe\xff", "text in UTF-16", "save it as UTF-8"),
];

/// One example as it stands in the file.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Where it stands: `train.jsonl:12` (the line, from 1) or `train.parquet: row 12` (from 1).
    pub place: String,
    /// Its columns, in the file's order.
    pub fields: Map<String, Value>,
}

/// The rows of a data set, one after the other, so that none but the one at hand is in memory. Each may be an error;
/// after one there are no more.
pub struct Rows {
    place: String,
    source: Option<Source>,
    is_empty: bool,
    /// Whether a bad line ends the reading.
    stops: bool,
}

impl Rows {
    /// The same rows, with those behind a bad line too: for who looks for every fault at once. What cannot be stepped
    /// over (a damaged Parquet file, a line without end, a failing disk) still ends the reading.
    pub(crate) fn past_bad_lines(self) -> Self {
        Self { stops: false, ..self }
    }
}

enum Source {
    Lines(Lines),
    Parquet(parquet::Rows),
}

impl std::fmt::Debug for Rows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rows").field("place", &self.place).finish_non_exhaustive()
    }
}

/// Opens a data set: JSON Lines, or Parquet if the file begins with Parquet's magic or is named so.
///
/// Errors, here or with the row that has them: `dataset-empty`, `dataset-kind`, `dataset-invalid-utf8`,
/// `dataset-invalid-json`, `dataset-not-an-object`, `dataset-line-too-long`, `parquet-*`, and those of reading a file.
pub fn open_rows(path: &Path) -> Result<Rows> {
    let doing = "reading the data set";
    if path.is_dir() {
        let error = Error::input("dataset-directory", "the data set is a directory");
        return Err(error.at(path.display().to_string()).fix("name one .jsonl or .parquet file"));
    }
    let (mut file, _) = open_plain(path, doing)?;
    let mut magic = Vec::new();
    file.by_ref().take(8).read_to_end(&mut magic).map_err(|error| Error::io(doing, path, &error))?;
    let source = if is_parquet(&magic, path)? {
        Source::Parquet(parquet::Rows::open(file, path)?)
    } else {
        Source::lines(BufReader::new(std::io::Cursor::new(magic).chain(file)), path)
    };
    Ok(Rows { place: path.display().to_string(), source: Some(source), is_empty: true, stops: true })
}

/// The same for a file that is in memory.
pub(crate) fn rows_in_memory(bytes: Vec<u8>, path: &Path) -> Result<Rows> {
    let source = if is_parquet(&bytes, path)? {
        Source::Parquet(parquet::Rows::in_memory(bytes, path)?)
    } else {
        Source::lines(std::io::Cursor::new(bytes), path)
    };
    Ok(Rows { place: path.display().to_string(), source: Some(source), is_empty: true, stops: true })
}

/// Whether a file that begins with `magic` is Parquet, or JSON Lines; `dataset-kind` for what is neither.
fn is_parquet(magic: &[u8], path: &Path) -> Result<bool> {
    if let Some((_, what, fix)) = FOREIGN.iter().find(|(start, ..)| magic.starts_with(start)) {
        let error = Error::input("dataset-kind", format!("the data set is {what}")).at(path.display().to_string());
        return Err(error.because("JSON Lines (UTF-8) and Parquet are read").fix(*fix));
    }
    let named_so = path.extension().is_some_and(|name| name.eq_ignore_ascii_case("parquet"));
    Ok(magic.starts_with(parquet::MAGIC) || named_so)
}

impl Source {
    fn lines(reader: impl BufRead + 'static, path: &Path) -> Self {
        Self::Lines(Lines { path: path.to_owned(), reader: Box::new(reader), number: 0, line: Vec::new() })
    }
}

/// Reads a whole data set. Errors as [`open_rows`].
pub fn read_rows(path: &Path) -> Result<Vec<Row>> {
    open_rows(path)?.collect()
}

impl Iterator for Rows {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Result<Row>> {
        let next = match self.source.as_mut()? {
            Source::Lines(lines) => lines.next_row(),
            Source::Parquet(rows) => rows.next_row(),
        };
        let next = next.transpose().or_else(|| {
            let error = Error::input("dataset-empty", "the data set has no rows").at(&self.place);
            self.is_empty.then(|| Err(error.fix("check that this is the file you meant")))
        });
        self.is_empty = false;
        let goes_on = match &next {
            Some(Ok(_)) => true,
            Some(Err(error)) => !self.stops && SKIPPABLE.contains(&error.id()),
            None => false,
        };
        if !goes_on {
            self.source = None;
        }
        next
    }
}

/// Errors of one line, behind which the next one begins.
const SKIPPABLE: [&str; 3] = ["dataset-invalid-json", "dataset-invalid-utf8", "dataset-not-an-object"];

/// JSON Lines: one object a line, blank lines allowed.
struct Lines {
    path: PathBuf,
    reader: Box<dyn BufRead>,
    number: u64,
    line: Vec<u8>,
}

impl Lines {
    /// The next line that is not blank.
    fn next_row(&mut self) -> Result<Option<Row>> {
        loop {
            self.line.clear();
            self.number += 1;
            let read = self.reader.by_ref().take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', &mut self.line);
            if read.map_err(|error| Error::io("reading the data set", &self.path, &error))? == 0 {
                return Ok(None);
            }
            let place = format!("{}:{}", self.path.display(), self.number);
            if let Some(fields) = parse_line(&self.line, self.number == 1).map_err(|error| error.at(&place))? {
                return Ok(Some(Row { place, fields }));
            }
        }
    }
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
    check_values(text.as_bytes()).map_err(|why| {
        let error = Error::input("dataset-invalid-json", "the line is too dense to be an example").because(why);
        error.fix("leave long lists of numbers, such as token ids, out of the data set")
    })?;
    let not_json = |error: serde_json::Error| {
        // The parser sees one line, so its own "at line 1 column 7" would point to the wrong one.
        let reason = error.to_string();
        let reason = reason.split(" at line ").next().unwrap_or_default();
        let reason = format!("{reason}, column {}; the line reads {}", error.column(), excerpt(text));
        let error = Error::input("dataset-invalid-json", "the line is not valid JSON").because(reason);
        error.fix("write one JSON object a line (JSON Lines); `jq -c .` does that to a pretty-printed file")
    };
    match strict(text.trim_end()).map_err(not_json)? {
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
        let reader: Box<dyn BufRead> = Box::new(BufReader::new(std::io::repeat(b' ')));
        let error = Lines { path: "zero".into(), reader, number: 0, line: Vec::new() }.next_row().unwrap_err();
        assert_eq!((error.id(), error.place()), ("dataset-line-too-long", Some("zero:1")));
    }

    #[test]
    fn nothing_follows_an_error_and_other_kinds_of_files_are_named() {
        let (_folder, path) = write("a.jsonl", b"{}\n3\n{}\n");
        let kinds: Vec<bool> = open_rows(&path).unwrap().map(|row| row.is_ok()).collect();
        assert_eq!(kinds, [true, false]);
        let kinds: Vec<bool> = open_rows(&path).unwrap().past_bad_lines().map(|row| row.is_ok()).collect();
        assert_eq!(kinds, [true, false, true]);
        for (start, ..) in FOREIGN {
            assert_eq!(error_of(&[start, b"rest"].concat()).id(), "dataset-kind");
        }
        assert_eq!(error_of(format!("{{\"a\": [{}0]}}", "0,".repeat(500_000)).as_bytes()).id(), "dataset-invalid-json");
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
