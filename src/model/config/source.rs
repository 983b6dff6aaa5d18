//! What comes from a model directory: its files, which no link may lead away from, JSON without repeated keys, and
//! typed access to the keys of an object. It knows keys, not models.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::error::{Error, Result};

/// A configuration has a few hundred keys at most; this leaves room for large label maps.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// Typed access to the keys of one JSON object; null counts as absent. Errors name the place and the key.
pub(super) struct Keys<'a> {
    pub(super) map: &'a Map<String, Value>,
    pub(super) place: &'a str,
}

impl<'a> Keys<'a> {
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn wrong(&self, key: &str, wanted: &str) -> Error {
        let found = self.map.get(key).map(|value| quoted(&value.to_string())).unwrap_or_default();
        Error::input("config-value", format!("`{key}` must be {wanted}; it is {found}")).at(self.place)
    }

    pub(super) fn missing(&self, key: &str) -> Error {
        Error::input("config-missing-key", format!("the configuration lacks `{key}`")).at(self.place)
    }

    /// An integer in a range.
    pub(super) fn count(&self, key: &str, range: RangeInclusive<usize>) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let count = value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| range.contains(n));
        let wanted = || format!("an integer from {} to {}", range.start(), range.end());
        count.map(Some).ok_or_else(|| self.wrong(key, &wanted()))
    }

    /// An integer of at least 1 that must be there.
    pub(super) fn required(&self, key: &str, max: usize) -> Result<usize> {
        self.count(key, 1..=max)?.ok_or_else(|| self.missing(key))
    }

    /// A finite number above 0.
    pub(super) fn positive(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_f64().filter(|x| x.is_finite() && *x > 0.0);
        number.map(Some).ok_or_else(|| self.wrong(key, "a number above 0"))
    }

    /// A norm's epsilon: between 0 and 1, both excluded.
    pub(super) fn epsilon(&self, key: &str, default: f64) -> Result<f64> {
        let epsilon = self.positive(key)?.unwrap_or(default);
        if epsilon < 1.0 { Ok(epsilon) } else { Err(self.wrong(key, "below 1")) }
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.wrong(key, "true or false"))
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.wrong(key, "a text"))
    }

    /// One token id or a list of them, without those outside the vocabulary, which are noted.
    pub(super) fn token_ids(&self, key: &str, vocab_size: usize, notes: &mut Vec<String>) -> Result<Vec<i32>> {
        let values = match self.get(key) {
            None => return Ok(Vec::new()),
            Some(Value::Array(list)) => list.as_slice(),
            Some(one) => std::slice::from_ref(one),
        };
        let mut ids = Vec::new();
        for value in values {
            let id = value.as_i64().ok_or_else(|| self.wrong(key, "a token id or a list of them"))?;
            match i32::try_from(id) {
                Ok(small) if usize::try_from(id).is_ok_and(|id| id < vocab_size) => {
                    if !ids.contains(&small) {
                        ids.push(small);
                    }
                }
                _ => notes.push(format!("`{key}` = {id} is outside the vocabulary of {vocab_size} and is ignored")),
            }
        }
        Ok(ids)
    }
}

/// Text from outside for a message: at most 80 characters, control characters escaped.
pub(crate) fn quoted(text: &str) -> String {
    format!("{:?}", shortened(text))
}

pub(super) fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(80).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// A parser's message, which may repeat what it read: at most 200 characters, and none that a terminal would obey.
pub(crate) fn printable(text: &str) -> String {
    let mut line = String::new();
    for c in text.chars().take(200) {
        match c {
            '"' | '\'' => line.push(c),
            c => line.extend(c.escape_debug()),
        }
    }
    line
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
            .because(format!("it leads to {}", quoted(&target.display().to_string())))
            .fix("put the file itself into the directory"));
    }
    // A pipe or a device would block or never end.
    if !target.is_file() {
        return Err(Error::input("model-file", "a file of the model is not a plain file").at(place()));
    }
    Ok(Some(target))
}

/// The text of a file of a model directory, at most `bytes_max` long; none if it is not there.
pub(crate) fn read_text(dir: &Path, name: &str, bytes_max: u64) -> Result<Option<String>> {
    let Some(path) = model_file(dir, name)? else { return Ok(None) };
    let failed = |e: std::io::Error| Error::io("reading a file of the model", &dir.join(name), &e);
    let mut bytes = Vec::new();
    File::open(&path).map_err(failed)?.take(bytes_max + 1).read_to_end(&mut bytes).map_err(failed)?;
    let bad = |what: String| Error::input("config-json", what).at(dir.join(name).display().to_string());
    if bytes.len() as u64 > bytes_max {
        return Err(bad(format!("the file is larger than {bytes_max} bytes")));
    }
    String::from_utf8(bytes).map(Some).map_err(|e| bad(format!("the file is not UTF-8: {e}")))
}

/// A JSON object of a model directory; none if the file is not there.
pub(super) fn read_json(dir: &Path, name: &str) -> Result<Option<Map<String, Value>>> {
    let Some(text) = read_text(dir, name, CONFIG_BYTES_MAX)? else { return Ok(None) };
    strict_object(&text, &dir.join(name).display().to_string()).map(Some)
}

/// Parses a JSON object. A key that stands twice is refused, because readers differ on which one counts.
pub(super) fn strict_object(text: &str, place: &str) -> Result<Map<String, Value>> {
    let bad =
        |why: String| Error::input("config-json", "the configuration is not a JSON object").at(place).because(why);
    match serde_json::from_str(text) {
        Ok(Strict(Value::Object(map))) => Ok(map),
        Ok(_) => Err(bad("it is another kind of value".to_owned())),
        Err(error) => Err(bad(printable(&error.to_string()))),
    }
}

/// A JSON value without repeated keys.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> std::result::Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> std::result::Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(serde::de::Error::custom(format!("the key {} stands twice", quoted(&key))));
            }
            let Strict(value) = entries.next_value()?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}
