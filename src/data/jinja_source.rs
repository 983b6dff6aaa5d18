//! Chat templates -> templates that the engine can run safely. Two things are rewritten, in tags only and without
//! moving a line: `{% generation %}` becomes a filter block that marks the text it encloses; what `{% set %}` stores
//! goes through a check, because a namespace that held itself, or lists that double in a loop, would overflow the
//! stack or run for ever, which the engine's fuel does not see.

use crate::error::{Error, Result};

/// The filter that marks the text inside generation tags.
pub(super) const GENERATION_FILTER: &str = "generation_span";

/// The function through which values go that a variable is set to.
pub(super) const CHECKED_VALUE: &str = "checked_value";

/// The function through which values go that an attribute of a namespace is set to.
pub(super) const CHECKED_ATTRIBUTE: &str = "checked_attribute";

/// A template's source, rewritten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    /// What the engine compiles.
    pub(super) text: String,
    /// Whether the template says which parts the model writes.
    pub(super) has_generation: bool,
}

/// Rewrites a template. Error `template-invalid` if a tag or a comment is not closed.
pub(super) fn rewrite(source: &str) -> Result<Source> {
    let mut text = String::with_capacity(source.len() + source.len() / 4);
    let mut has_generation = false;
    let mut rest = source;
    let mut is_raw = false;
    while let Some(open) = rest.find('{') {
        let (before, from) = rest.split_at(open);
        text.push_str(before);
        let unclosed = |what: &str| {
            let line = source.strip_suffix(from).map_or(1, |before| before.lines().count().max(1));
            Error::input("template-invalid", format!("a {what} is not closed")).at(format!("line {line}"))
        };
        let length = match from.as_bytes().get(1) {
            Some(b'%') if is_raw => end_of_raw(from).unwrap_or(1),
            Some(b'#') if !is_raw => {
                from.get(2..).and_then(|rest| rest.find("#}")).ok_or_else(|| unclosed("comment"))? + 4
            }
            Some(b'{') if !is_raw => tag_length(from).ok_or_else(|| unclosed("{{ }}"))?,
            Some(b'%') => tag_length(from).ok_or_else(|| unclosed("{% %}"))?,
            // A lone bracket; in raw text, every one that does not end it.
            _ => 1,
        };
        let (piece, after) = from.split_at(length);
        match Tag::of(piece) {
            Some(tag) => {
                is_raw = tag.word == "raw";
                has_generation |= tag.word == "generation";
                tag.write(&mut text);
            }
            None => text.push_str(piece),
        }
        rest = after;
    }
    text.push_str(rest);
    Ok(Source { text, has_generation })
}

/// The length of the `{% endraw %}` that begins `text`, if one does. Nothing else is a tag in raw text.
fn end_of_raw(text: &str) -> Option<usize> {
    let inside = text.strip_prefix("{%")?.trim_start_matches(['-', '+']).trim_start();
    let rest = inside.strip_prefix("endraw")?.trim_start();
    let rest = rest.strip_prefix(['-', '+']).unwrap_or(rest).strip_prefix("%}")?;
    Some(text.len() - rest.len())
}

/// The length of the tag that begins `text`, its end included: strings and brackets inside are stepped over.
fn tag_length(text: &str) -> Option<usize> {
    let end = if text.starts_with("{%") { b'%' } else { b'}' };
    let mut scan = Scan { bytes: text.as_bytes(), at: 2, depth: 0 };
    while let Some(byte) = scan.bytes.get(scan.at) {
        let is_end = *byte == end && scan.bytes.get(scan.at + 1) == Some(&b'}');
        if scan.depth == 0 && is_end {
            return Some(scan.at + 2);
        }
        scan.step();
    }
    None
}

/// A position in the inside of a tag.
struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
    depth: usize,
}

impl Scan<'_> {
    /// Steps over one byte, or over a whole string.
    fn step(&mut self) {
        match self.bytes.get(self.at) {
            Some(quote @ (b'"' | b'\'')) => {
                self.at += 1;
                while let Some(byte) = self.bytes.get(self.at).filter(|byte| *byte != quote) {
                    self.at += if *byte == b'\\' { 2 } else { 1 };
                }
            }
            Some(b'(' | b'[' | b'{') => self.depth += 1,
            Some(b')' | b']' | b'}') => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        self.at += 1;
    }
}

/// A `{% %}` tag in its parts: `{%-`, the first word with the space before it, the rest, `-%}`.
struct Tag<'a> {
    open: &'a str,
    space: &'a str,
    word: &'a str,
    inside: &'a str,
    close: &'a str,
}

impl<'a> Tag<'a> {
    fn of(piece: &'a str) -> Option<Self> {
        let inside = piece.strip_prefix("{%")?.strip_suffix("%}")?;
        let sign = |letter: Option<char>| matches!(letter, Some('-' | '+'));
        let open = 2 + usize::from(sign(inside.chars().next()));
        let close = if inside.len() > 1 && sign(inside.chars().next_back()) { 3 } else { 2 };
        let (open, rest) = piece.split_at_checked(open)?;
        let (rest, close) = rest.split_at_checked(rest.len().checked_sub(close)?)?;
        let (space, rest) = rest.split_at(rest.len() - rest.trim_start().len());
        let length = rest.find(|letter: char| !letter.is_alphanumeric() && letter != '_').unwrap_or(rest.len());
        let (word, inside) = rest.split_at(length);
        Some(Self { open, space, word, inside, close })
    }

    fn write(&self, text: &mut String) {
        text.push_str(self.open);
        text.push_str(self.space);
        match self.word {
            "generation" => {
                text.push_str("filter ");
                text.push_str(GENERATION_FILTER);
                text.push_str(self.inside);
            }
            "endgeneration" => {
                text.push_str("endfilter");
                text.push_str(self.inside);
            }
            "set" => {
                text.push_str("set");
                self.write_set(text);
            }
            _ => {
                text.push_str(self.word);
                text.push_str(self.inside);
            }
        }
        text.push_str(self.close);
    }

    /// `set a = b` becomes `set a = checked_value((b))`; the inner brackets keep `b, c` one tuple.
    fn write_set(&self, text: &mut String) {
        let mut scan = Scan { bytes: self.inside.as_bytes(), at: 0, depth: 0 };
        while scan.bytes.get(scan.at).is_some_and(|byte| *byte != b'=' || scan.depth > 0) {
            scan.step();
        }
        match self.inside.split_at_checked(scan.at + 1) {
            Some((target, value)) if !value.trim().is_empty() => {
                text.push_str(target);
                text.push_str(if target.contains('.') { CHECKED_ATTRIBUTE } else { CHECKED_VALUE });
                text.push_str("((");
                text.push_str(value);
                text.push_str("))");
            }
            // `{% set a %}...{% endset %}` stores a string.
            _ => text.push_str(self.inside),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tags_are_rewritten() {
        let same = |text: &str| assert_eq!(rewrite(text).unwrap().text, text);
        same("{{ '{% set a = 1 %}' }}{# {% set a = 1 %} #}{% raw %}{% set a = 1 %}{{{% endraw %}{ x }");
        same("{% if a %}{%- endif -%} {%+ set a -%}x{% endset %} {{ {'a': {'b': '}}'}} }} {%%} {");
        same("{% raw %}{% it's %}{%- endraw +%}{{ 'a' }}{% set a = %}");
        same("{{ \"a\\\"%}\" }}{% for x in [1, 2] %}{{ x }}{% endfor %}");
        let becomes = |text: &str, expected: &str| assert_eq!(rewrite(text).unwrap().text, expected);
        becomes("{%- set a = 1 -%}", "{%- set a =checked_value(( 1 ))-%}");
        becomes("{% set a.b, c=x, '%}=' %}", "{% set a.b, c=checked_attribute((x, '%}=' ))%}");
        becomes("{% raw %}{% endraw %}{% set a=1%}", "{% raw %}{% endraw %}{% set a=checked_value((1))%}");
        becomes("a{%- generation %}b{% endgeneration -%}", "a{%- filter generation_span %}b{% endfilter -%}");
        assert!(rewrite("{% generation %}{% endgeneration %}").unwrap().has_generation);
        assert!(!rewrite("{% raw %}{% generation %}{% endraw %}").unwrap().has_generation);
    }

    #[test]
    fn what_is_not_closed_is_an_error() {
        for text in ["\n{{ a", "\n{% a '%}", "\n{#}"] {
            let error = rewrite(text).unwrap_err();
            assert_eq!((error.id(), error.place()), ("template-invalid", Some("line 1")), "{text:?}");
        }
    }
}
