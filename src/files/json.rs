//! JSON from outside. It is counted before it is parsed, because a value takes two bytes in the file and hundreds in
//! memory; and a key that stands twice is refused, because readers differ on which one counts.

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// JSON values that any document may hold, and one more for every so many bytes of it. A parsed value takes up to some
/// 200 bytes while the list that it stands in grows.
const VALUES_FREE: u64 = 150_000;
const BYTES_PER_VALUE: u64 = 64;

/// Parses a document in which no key stands twice.
pub(crate) fn strict(text: &str) -> serde_json::Result<Value> {
    serde_json::from_str(text).map(|Strict(value)| value)
}

/// Says why a JSON document must not be parsed: it has so many values that they would take far more memory than it
/// does. What is not JSON is left to the parser.
pub(crate) fn check_values(json: &[u8]) -> std::result::Result<(), String> {
    check_density(json, VALUES_FREE, BYTES_PER_VALUE)
}

/// [`check_values`] with these numbers of values: for any document, and by its bytes.
pub(crate) fn check_density(json: &[u8], free: u64, bytes_per_value: u64) -> std::result::Result<(), String> {
    let most = free + json.len() as u64 / bytes_per_value;
    // Every value but the first follows a comma or an opening bracket.
    if json.len() as u64 <= most {
        return Ok(());
    }
    let (mut count, mut in_text, mut is_escaped) = (1_u64, false, false);
    for byte in json {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = in_text,
            b'"' => in_text = !in_text,
            b',' | b'[' | b'{' if !in_text => count += 1,
            _ => {}
        }
    }
    if count <= most {
        return Ok(());
    }
    Err(format!("it holds {count} JSON values in {} bytes; at most {most} are read", json.len()))
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
                return Err(serde::de::Error::custom(format!(
                    "the key {:?} stands twice",
                    key.chars().take(80).collect::<String>()
                )));
            }
            let Strict(value) = entries.next_value()?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_outside_texts() {
        let list = |n: usize| format!("[{}]", vec!["0"; n].join(","));
        assert!(check_density(list(100).as_bytes(), 101, u64::MAX).is_ok());
        assert!(check_density(list(101).as_bytes(), 101, u64::MAX).is_err());
        assert!(check_density(list(101).as_bytes(), 1, 2).is_ok());
        let text = format!(r#"["{}\\", "\"{}"]"#, ",".repeat(100), "[".repeat(100));
        assert!(check_density(text.as_bytes(), 3, u64::MAX).is_ok());
        assert!(check_density(text.as_bytes(), 2, u64::MAX).is_err());
    }
}
