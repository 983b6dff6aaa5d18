//! The small text files of a model's folder, read whole under a limit on their size.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The largest configuration or template that is read, in bytes.
pub(super) const CONFIG_BYTES_MAX: u64 = 16 << 20;

/// The bytes of a file; nothing if there is no such file. Error `file-too-large` beyond `limit`.
pub(super) fn read_bytes(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let doing = "reading the model's folder";
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(doing, path, &error)),
    };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|error| Error::io(doing, path, &error))?;
    if bytes.len() as u64 > limit {
        let error = Error::input("file-too-large", format!("the file is larger than {} MiB", limit >> 20));
        return Err(error.at(path.display().to_string()).fix("check that the folder holds a model"));
    }
    Ok(Some(bytes))
}

/// The text of a file; nothing if there is no such file.
pub(super) fn read_text(path: &Path) -> Result<Option<String>> {
    let Some(bytes) = read_bytes(path, CONFIG_BYTES_MAX)? else { return Ok(None) };
    let text = String::from_utf8(bytes).map_err(|error| {
        let error = Error::input("config-invalid", "the file is not UTF-8").because(error.to_string());
        error.at(path.display().to_string())
    })?;
    Ok(Some(text))
}

/// The JSON object in a file; an empty one if there is no such file.
pub(super) fn read_object(path: &Path) -> Result<Map<String, Value>> {
    let Some(text) = read_text(path)? else { return Ok(Map::new()) };
    serde_json::from_str(&text).map_err(|error| {
        let error = Error::input("config-invalid", "the file is not a JSON object").because(error.to_string());
        error.at(path.display().to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_broken_and_large_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        assert_eq!(read_object(&path).unwrap(), Map::new());
        for bytes in [b"[1]".as_slice(), b"\xff", b"{"] {
            std::fs::write(&path, bytes).unwrap();
            let error = read_object(&path).unwrap_err();
            assert_eq!(error.id(), "config-invalid");
            assert!(error.place().unwrap().ends_with("a.json"));
        }
        assert_eq!(read_bytes(&path, 1).unwrap().unwrap(), b"{");
        assert_eq!(read_bytes(&path, 0).unwrap_err().id(), "file-too-large");
    }
}
