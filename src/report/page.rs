//! The page: its text, styles and scripts lie beside this file and are put together here, with the data as JSON. All
//! that came from outside is in that JSON, in which nothing ends a script; the scripts put it into the page as text.
//! A content security policy names the hashes of what may run, so that nothing else does, and nothing is fetched.

use serde_json::json;
use sha2::{Digest, Sha256};

use super::run::Run;
use crate::error::{Error, Result};

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
/// In the order in which they run.
const SCRIPTS: [&str; 6] = [
    include_str!("elements.js"),
    include_str!("charts.js"),
    include_str!("curves.js"),
    include_str!("samples.js"),
    include_str!("record.js"),
    include_str!("page.js"),
];

/// The page of these runs.
///
/// # Errors
/// `report-page`, a bug of ours.
pub(super) fn render(runs: &[Run]) -> Result<String> {
    let data = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "runs": runs.iter().map(Run::to_json).collect::<Vec<_>>(),
    });
    let script = format!("\"use strict\";\n(() => {{\n{}}})();\n", SCRIPTS.join("\n"));
    let policy = format!(
        "default-src 'none'; style-src '{}'; script-src '{}'; img-src data:; base-uri 'none'; form-action 'none'",
        hash(STYLE),
        hash(&script)
    );
    fill(PAGE, &[("policy", &policy), ("style", STYLE), ("data", &escape(&data.to_string())), ("script", &script)])
}

/// Puts the parts in place of their `{{name}}`, from left to right, so that no part is read for places itself.
fn fill(page: &str, parts: &[(&str, &str)]) -> Result<String> {
    let mut filled = String::with_capacity(page.len() + parts.iter().map(|part| part.1.len()).sum::<usize>());
    let mut rest = page;
    for (name, text) in parts {
        let Some((before, after)) = rest.split_once(&format!("{{{{{name}}}}}")) else {
            return Err(Error::failure("report-page", format!("the page has no place for its {name}")));
        };
        filled.extend([before, text]);
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

/// JSON that may stand in a script element: what could end it, or begin a comment in it, can only stand in texts, and
/// is written there as its code. So are the line ends that old readers take for the end of a string.
fn escape(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len() + json.len() / 16);
    for c in json.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => escaped.push_str(&format!("\\u{:04x}", c as u32)),
            c => escaped.push(c),
        }
    }
    escaped
}

/// The source expression of an inline text in a content security policy.
fn hash(text: &str) -> String {
    format!("sha256-{}", base64(&Sha256::digest(text.as_bytes())))
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let digit = ALPHABET[(word >> (18 - 6 * i) & 63) as usize];
            text.push(if i <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_the_data_ends_the_script() {
        let text = json!({ "</script>": "<!--\u{2028}&amp;\u{2029}" }).to_string();
        let escaped = escape(&text);
        assert!(!escaped.contains(['<', '>', '&', '\u{2028}', '\u{2029}']), "{escaped}");
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&escaped).unwrap(),
            serde_json::from_str::<serde_json::Value>(&text).unwrap()
        );
    }

    #[test]
    fn base64_as_in_the_rfc() {
        for (text, expected) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(text.as_bytes()), expected);
        }
    }

    #[test]
    fn a_part_is_not_read_for_places() {
        assert_eq!(fill("a{{x}}b{{y}}c", &[("x", "{{y}}"), ("y", "2")]).unwrap(), "a{{y}}b2c");
        assert_eq!(fill("a", &[("x", "")]).unwrap_err().id(), "report-page");
    }
}
