//! What comes from a model directory: its texts, JSON without repeated keys, and typed access to the keys of an object.
//! It knows keys, not models.

use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::files::{check_values, read_model_file, strict};

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
        let found = self.map.get(key).map(|value| shortened(&value.to_string())).unwrap_or_default();
        Error::input("config-value", format!("`{key}` must be {wanted}; it is {}", printable(&found)))
            .at(self.place)
            .fix("take the file from the model's source")
    }

    pub(super) fn missing(&self, key: &str) -> Error {
        Error::input("config-missing-key", format!("the configuration lacks `{key}`"))
            .at(self.place)
            .fix("take config.json from the model's source")
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

    /// A number above 0; computing in f32, it must be neither 0 nor infinite there.
    pub(super) fn positive(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_f64().filter(|x| (*x as f32).is_normal() && *x > 0.0);
        number.map(Some).ok_or_else(|| self.wrong(key, "a number above 0 that a 32-bit float holds"))
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

/// The text of a file of a model directory, at most `bytes_max` long; none if it is not there.
pub(crate) fn read_text(dir: &Path, name: &str, bytes_max: u64) -> Result<Option<String>> {
    let Some(bytes) = read_model_file(dir, name, bytes_max)? else { return Ok(None) };
    String::from_utf8(bytes).map(Some).map_err(|e| {
        Error::input("config-json", "the file is not UTF-8")
            .at(dir.join(name).display().to_string())
            .because(e.to_string())
            .fix("get the file again, or save it as UTF-8")
    })
}

/// A JSON object of a model directory; none if the file is not there.
pub(super) fn read_json(dir: &Path, name: &str) -> Result<Option<Map<String, Value>>> {
    let Some(text) = read_text(dir, name, CONFIG_BYTES_MAX)? else { return Ok(None) };
    strict_object(&text, &dir.join(name).display().to_string()).map(Some)
}

/// Parses a JSON object. A key that stands twice is refused, because readers differ on which one counts.
pub(super) fn strict_object(text: &str, place: &str) -> Result<Map<String, Value>> {
    let bad = |why: String| {
        Error::input("config-json", "the configuration is not a JSON object")
            .at(place)
            .because(why)
            .fix("get the file again from the model's source")
    };
    check_values(text.as_bytes()).map_err(bad)?;
    match strict(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(bad("it is another kind of value".to_owned())),
        Err(error) => Err(bad(printable(&error.to_string()))),
    }
}
