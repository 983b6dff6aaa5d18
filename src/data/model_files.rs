//! The small text files of a model's folder, read whole under a limit on their size.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::files::{check_values, read_model_file};

/// The largest configuration or template that is read, in bytes.
pub(super) const CONFIG_BYTES_MAX: u64 = 16 << 20;

/// The text of a file of folder `dir`; nothing if there is no such file.
pub(super) fn read_text(dir: &Path, name: &str) -> Result<Option<String>> {
    let Some(bytes) = read_model_file(dir, name, CONFIG_BYTES_MAX)? else { return Ok(None) };
    let text = String::from_utf8(bytes).map_err(|error| {
        let error = Error::input("config-invalid", "the file is not UTF-8").because(error.to_string());
        error.at(dir.join(name).display().to_string()).fix("get the file again, or save it as UTF-8")
    })?;
    Ok(Some(text))
}

/// The JSON object in a file of folder `dir`; an empty one if there is no such file.
pub(super) fn read_object(dir: &Path, name: &str) -> Result<Map<String, Value>> {
    let Some(text) = read_text(dir, name)? else { return Ok(Map::new()) };
    let parsed = check_values(text.as_bytes()).and_then(|()| serde_json::from_str(&text).map_err(|e| e.to_string()));
    parsed.map_err(|why| {
        let error = Error::input("config-invalid", "the file is not a JSON object").because(why);
        error.at(dir.join(name).display().to_string()).fix("get the file again from the model's source")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_broken_and_dense_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        assert_eq!(read_object(folder.path(), "a.json").unwrap(), Map::new());
        let dense = format!("{{\"a\": [{}0]}}", "0,".repeat(500_000));
        for bytes in [b"[1]".as_slice(), b"\xff", b"{", dense.as_bytes()] {
            std::fs::write(&path, bytes).unwrap();
            let error = read_object(folder.path(), "a.json").unwrap_err();
            assert_eq!(error.id(), "config-invalid");
            assert!(error.place().unwrap().ends_with("a.json"));
        }
    }
}
