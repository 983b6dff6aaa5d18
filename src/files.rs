//! Files from outside: opened only if they are plain (a pipe would block, a device never ends), read under a limit on
//! their size, and, where they belong to a model, never through a link that leads out of its directory.

#![forbid(unsafe_code)]

mod json;

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

pub(crate) use json::{check_density, check_values, strict};

/// Opens a file, if it is plain; also its size in bytes. `doing` is a phrase such as "reading the configuration".
///
/// # Errors
/// `file-kind` for a directory, a pipe, a socket or a device; input and output errors.
pub(crate) fn open_plain(path: &Path, doing: &str) -> Result<(File, u64)> {
    let failed = |error: std::io::Error| Error::io(doing, path, &error);
    let refuse = |kind: std::fs::FileType| {
        let (kind, fix) = match kind.is_dir() {
            true => ("a directory", "give a file in it"),
            false => ("a pipe, a socket or a device", "write its content to a file, and give that"),
        };
        Error::input("file-kind", format!("{doing} failed"))
            .at(path.display().to_string())
            .because(format!("it is {kind}, not a plain file"))
            .fix(fix)
    };
    // Before it is opened, because opening a pipe waits for its writer; and after, because it may be another by then.
    let named = std::fs::metadata(path).map_err(failed)?;
    if !named.is_file() {
        return Err(refuse(named.file_type()));
    }
    let file = File::open(path).map_err(failed)?;
    let opened = file.metadata().map_err(failed)?;
    if opened.is_file() { Ok((file, opened.len())) } else { Err(refuse(opened.file_type())) }
}

/// The bytes of a plain file.
///
/// # Errors
/// Those of [`open_plain`]; `file-too-large` beyond `bytes_max`.
pub(crate) fn read_plain(path: &Path, doing: &str, bytes_max: u64) -> Result<Vec<u8>> {
    let (file, size) = open_plain(path, doing)?;
    let too_large = || {
        Error::input("file-too-large", format!("the file is larger than {} MiB", bytes_max >> 20))
            .at(path.display().to_string())
            .because(format!("{doing} takes no more"))
            .fix("check that this is the file you meant")
    };
    if size > bytes_max {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(|error| Error::io(doing, path, &error))?;
    if bytes.len() as u64 > bytes_max { Err(too_large()) } else { Ok(bytes) }
}

/// The path of a plain file of a model directory, with links resolved; none if it is not there. A link may lead only
/// to another place in the directory, or from a `snapshots` directory of the Hugging Face cache to its `blobs`.
///
/// # Errors
/// `model-not-directory`; `model-link` for a link that leaves, `model-file` for what is not a plain file; input and
/// output errors.
pub(crate) fn model_file(dir: &Path, name: &str) -> Result<Option<PathBuf>> {
    let home = dir.canonicalize().map_err(|e| Error::io("looking for the model directory", dir, &e))?;
    if !home.is_dir() {
        return Err(Error::input("model-not-directory", "the model is a file, not a directory")
            .at(dir.display().to_string())
            .fix("give the directory that holds config.json and model.safetensors"));
    }
    let path = dir.join(name);
    let place = || path.display().to_string();
    let target = match path.canonicalize() {
        Ok(target) => target,
        Err(error) if error.kind() == ErrorKind::NotFound && path.symlink_metadata().is_err() => return Ok(None),
        Err(error) => return Err(Error::io("reading the model directory", &path, &error)),
    };
    let snapshots = home.parent().filter(|parent| parent.ends_with("snapshots"));
    let blobs = snapshots.and_then(Path::parent).map(|cache| cache.join("blobs"));
    if !target.starts_with(&home) && !blobs.is_some_and(|blobs| target.starts_with(blobs)) {
        return Err(Error::input("model-link", "a file of the model is a link that leaves its directory")
            .at(place())
            .because(format!("it leads to {:?}", target.display().to_string()))
            .fix("put the file itself into the directory"));
    }
    // A pipe or a device would block or never end.
    if !target.is_file() {
        return Err(Error::input("model-file", "a file of the model is not a plain file")
            .at(place())
            .because("a directory, a pipe or a device stands in its place")
            .fix("get the model again, or put the file itself there"));
    }
    Ok(Some(target))
}

/// The bytes of a file of a model directory, at most `bytes_max`; none if it is not there.
///
/// # Errors
/// Those of [`model_file`] and [`read_plain`].
pub(crate) fn read_model_file(dir: &Path, name: &str, bytes_max: u64) -> Result<Option<Vec<u8>>> {
    let Some(path) = model_file(dir, name)? else { return Ok(None) };
    // Messages name the file as the user does, not where a cache keeps it.
    let place = dir.join(name).display().to_string();
    read_plain(&path, "reading a file of the model", bytes_max).map(Some).map_err(|error| error.at(place))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_files_of_bounded_size_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let read = |bytes_max| read_plain(&path, "reading", bytes_max);
        assert_eq!(read(9).unwrap_err().id(), "file-missing");
        std::fs::write(&path, "abc").unwrap();
        assert_eq!(read(3).unwrap(), b"abc");
        assert_eq!(read(2).unwrap_err().id(), "file-too-large");
        let error = read_plain(dir.path(), "reading", 9).unwrap_err();
        assert_eq!((error.id(), error.code() as i32), ("file-kind", 3));
        let device = Path::new("/dev/null");
        assert!(!device.exists() || read_plain(device, "reading", 9).unwrap_err().id() == "file-kind");
    }
}
