//! What transformers adds to Jinja for chat templates: `raise_exception`, `strftime_now`, and a `tojson` that writes
//! what Python's json.dumps(ensure_ascii=False) writes, and a few of Python's string methods; and the checks that
//! bound what a template stores.

use std::fmt::Write;

use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

use super::clock::CivilTime;

/// How deep a stored or printed value may nest.
const DEPTH_MAX: usize = 64;

/// How many parts a stored or printed value may have, shared parts counted as often as they are reached.
const PARTS_MAX: usize = 1 << 17;

/// The longest JSON text, in bytes.
const JSON_BYTES_MAX: usize = 16 << 20;

/// The template's own refusal, by `raise_exception`.
#[derive(Debug)]
pub(super) struct Raised(pub(super) String);

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// `raise_exception(message)`: ends the rendering.
pub(super) fn raise_exception(message: &str) -> Result<Value, Error> {
    let error = Error::new(ErrorKind::InvalidOperation, "the template refuses the conversation");
    Err(error.with_source(Raised(message.to_string())))
}

/// `strftime_now(format)` at a fixed time.
pub(super) fn strftime(now: CivilTime, format: &str) -> Result<String, Error> {
    now.format(format).map_err(|what| Error::new(ErrorKind::InvalidOperation, what))
}

/// Passes a value on if it is small enough to be walked over: what a variable may be set to.
pub(super) fn checked_value(value: Value) -> Result<Value, Error> {
    walk(&value, 0, &mut PARTS_MAX.clone(), &|_| true)?;
    Ok(value)
}

/// An error for a value that is too large to be printed: a list repeated a hundred million times is only two numbers
/// until it is written.
pub(super) fn check_printed(value: &Value) -> Result<(), Error> {
    walk(value, 0, &mut PARTS_MAX.clone(), &|_| true)
}

/// Passes a value on if it is small and holds no namespace: what an attribute of a namespace may be set to. Namespaces
/// are all that a template can change, so without this rule, and only without it, a value could contain itself.
pub(super) fn checked_attribute(value: Value) -> Result<Value, Error> {
    let is_namespace = |value: &Value| value.as_object().is_some_and(|object| object.type_name().contains("Namespace"));
    walk(&value, 0, &mut PARTS_MAX.clone(), &|value| !is_namespace(value))?;
    Ok(value)
}

/// Visits a value and all its parts, a shared part as often as it is reached.
fn walk(value: &Value, depth: usize, left: &mut usize, is_allowed: &dyn Fn(&Value) -> bool) -> Result<(), Error> {
    if depth > DEPTH_MAX {
        return Err(invalid("a value nests too deeply"));
    }
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable) {
        return Ok(());
    }
    if !is_allowed(value) {
        return Err(invalid("a namespace cannot be stored in a namespace"));
    }
    let is_map = value.kind() == ValueKind::Map;
    for item in value.try_iter()? {
        *left = left.checked_sub(1).ok_or_else(|| invalid("a value has too many parts"))?;
        let inner = if is_map { value.get_item(&item)? } else { item };
        walk(&inner, depth + 1, left, is_allowed)?;
    }
    Ok(())
}

/// The filter `escape`, which writes quotes as Python's markupsafe does.
pub(super) fn escape(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    text.replace('\'', "&#39;").replace('"', "&#34;")
}

/// Methods of Python's strings that the engine's own table lacks.
pub(super) fn unknown_method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let argument = args.first().and_then(Value::as_str);
    let (Some(text), Some(part), 1) = (value.as_str(), argument, args.len()) else {
        return minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args);
    };
    let three = |parts: Option<(&str, &str)>, otherwise: [&str; 3]| {
        let parts = parts.map_or(otherwise, |(before, after)| [before, part, after]);
        Value::from(parts.map(Value::from).to_vec())
    };
    Ok(match method {
        "removeprefix" => text.strip_prefix(part).unwrap_or(text).into(),
        "removesuffix" => text.strip_suffix(part).unwrap_or(text).into(),
        "partition" => three(text.split_once(part), [text, "", ""]),
        "rpartition" => three(text.rsplit_once(part), ["", "", text]),
        "index" => {
            let found = text.find(part).ok_or_else(|| invalid("substring not found"))?;
            text.get(..found).map_or(0, |before| before.chars().count()).into()
        }
        _ => return minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
    })
}

/// The filter `tojson(ensure_ascii=false, indent=none, separators=none, sort_keys=false)`.
pub(super) fn tojson(value: &Value, positional: &Rest<Value>, named: &Kwargs) -> Result<String, Error> {
    let argument = |index: usize, name: &str| -> Result<Value, Error> {
        let given = named.get::<Option<Value>>(name)?;
        Ok(given.or_else(|| positional.get(index).cloned()).unwrap_or(Value::from(())))
    };
    let (ascii, indent) = (argument(0, "ensure_ascii")?, argument(1, "indent")?);
    let (separators, sort) = (argument(2, "separators")?, argument(3, "sort_keys")?);
    named.assert_all_used()?;
    let indent = match indent.as_str() {
        _ if indent.is_none() || indent.is_undefined() => None,
        Some(text) => Some(text.to_string()),
        // Python indents by nothing for a negative number.
        None => Some(" ".repeat(usize::try_from(i64::try_from(indent)?.min(64)).unwrap_or(0))),
    };
    let mut writer = JsonWriter {
        text: String::new(),
        item_separator: if indent.is_some() { "," } else { ", " }.to_string(),
        key_separator: ": ".to_string(),
        indent,
        ascii: ascii.is_true(),
        sort: sort.is_true(),
    };
    if !separators.is_none() && !separators.is_undefined() {
        let item = |index: usize| -> Result<String, Error> {
            let text = separators.get_item(&Value::from(index))?;
            text.as_str().map(str::to_string).ok_or_else(|| invalid("separators must be two strings"))
        };
        (writer.item_separator, writer.key_separator) = (item(0)?, item(1)?);
    }
    writer.value(value, 0)?;
    Ok(writer.text)
}

fn invalid(what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

struct JsonWriter {
    text: String,
    item_separator: String,
    key_separator: String,
    indent: Option<String>,
    ascii: bool,
    sort: bool,
}

impl JsonWriter {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > DEPTH_MAX || self.text.len() > JSON_BYTES_MAX {
            return Err(invalid("a value is too large or too deep for tojson"));
        }
        match value.kind() {
            ValueKind::None => self.text.push_str("null"),
            ValueKind::Bool => self.text.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.number(value)?,
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<_> = value.try_iter()?.take(JSON_BYTES_MAX).collect();
                self.items('[', ']', items, depth, |writer, item| writer.value(item, depth + 1))?;
            }
            ValueKind::Map => {
                let mut keys: Vec<_> = value.try_iter()?.take(JSON_BYTES_MAX).collect();
                if self.sort {
                    keys.sort_by_cached_key(|key| key.to_string());
                }
                self.items('{', '}', keys, depth, |writer, key| {
                    writer.key(key)?;
                    let separator = writer.key_separator.clone();
                    writer.text.push_str(&separator);
                    writer.value(&value.get_item(key)?, depth + 1)
                })?;
            }
            other => return Err(invalid(format!("a value of type {other} is not JSON serializable"))),
        }
        Ok(())
    }

    fn items(
        &mut self,
        open: char,
        close: char,
        items: Vec<Value>,
        depth: usize,
        mut write: impl FnMut(&mut Self, &Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.text.push(open);
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                let separator = self.item_separator.clone();
                self.text.push_str(&separator);
            }
            self.new_line(depth + 1);
            write(self, item)?;
        }
        if !items.is_empty() {
            self.new_line(depth);
        }
        self.text.push(close);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.text.push('\n');
            (0..depth).for_each(|_| self.text.push_str(indent));
        }
    }

    /// Python writes keys that are numbers, truth values or none as strings, and refuses others.
    fn key(&mut self, key: &Value) -> Result<(), Error> {
        if let Some(text) = key.as_str() {
            self.string(text);
            return Ok(());
        }
        if !matches!(key.kind(), ValueKind::None | ValueKind::Bool | ValueKind::Number) {
            return Err(invalid("keys must be strings, numbers, truth values or none"));
        }
        self.text.push('"');
        self.value(key, 0)?;
        self.text.push('"');
        Ok(())
    }

    fn number(&mut self, value: &Value) -> Result<(), Error> {
        if value.is_integer() {
            write!(self.text, "{value}").map_err(|error| invalid(error.to_string()))?;
        } else {
            self.text.push_str(&python_float(f64::try_from(value.clone())?));
        }
        Ok(())
    }

    fn string(&mut self, text: &str) {
        self.text.push('"');
        for letter in text.chars() {
            match letter {
                '"' => self.text.push_str("\\\""),
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                '\t' => self.text.push_str("\\t"),
                '\u{8}' => self.text.push_str("\\b"),
                '\u{c}' => self.text.push_str("\\f"),
                letter if letter < ' ' || (self.ascii && letter > '~') => {
                    for unit in letter.encode_utf16(&mut [0; 2]) {
                        self.text.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                letter => self.text.push(letter),
            }
        }
        self.text.push('"');
    }
}

/// A float as Python's repr writes it: the shortest digits that read back the same, in scientific notation below 1e-4
/// and from 1e16 on.
fn python_float(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_string();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.to_string();
    }
    let size = value.abs();
    if size == 0.0 || (1e-4..1e16).contains(&size) {
        return format!("{value:?}");
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
    format!("{digits}e{sign}{exponent:0>2}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_read_as_in_python() {
        for (value, text) in [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (-2.5e-7, "-2.5e-07"),
            (1e20, "1e+20"),
            (12_345_678.0, "12345678.0"),
            (1e16, "1e+16"),
            (9_007_199_254_740_993.0, "9007199254740992.0"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.5e300, "1.5e+300"),
            (-0.0, "-0.0"),
            (f64::INFINITY, "Infinity"),
        ] {
            assert_eq!(python_float(value), text);
        }
    }
}
