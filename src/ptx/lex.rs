//! Splits PTX text into tokens with their lines. Opcodes with their modifiers, registers, labels and directives are one
//! word each.

use super::error::{Error, Result};

/// A token.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token<'a> {
    /// An opcode with modifiers, a register, a label, a directive or a symbol.
    Word(&'a str),
    /// An integer literal, two's complement.
    Int(u64),
    /// `0f` and eight hexadecimal digits: the bits of an f32.
    Float(u32),
    /// `0d` and sixteen hexadecimal digits: the bits of an f64.
    Double(u64),
    /// A quoted string.
    Text(&'a str),
    /// A punctuation mark.
    Mark(char),
}

fn is_word(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$' | b'%' | b'.')
}

/// Where a word ends. `::` belongs to it (`.L2::128B`), a single colon ends a label.
fn word_end(bytes: &[u8], mut at: usize) -> usize {
    loop {
        match (bytes.get(at), bytes.get(at + 1)) {
            (Some(&c), _) if is_word(c) => at += 1,
            (Some(b':'), Some(b':')) => at += 2,
            _ => return at,
        }
    }
}

/// Tokens and the line that each stands on.
pub(super) fn tokens(text: &str) -> Result<Vec<(Token<'_>, u32)>> {
    let bytes = text.as_bytes();
    let (mut at, mut line, mut out) = (0, 1u32, Vec::with_capacity(text.len() / 4));
    while let Some(&c) = bytes.get(at) {
        let start = at;
        match c {
            b'\n' => line += 1,
            b' ' | b'\t' | b'\r' => {}
            b'/' if bytes.get(at + 1) == Some(&b'/') => {
                at += bytes[at..].iter().position(|&b| b == b'\n').unwrap_or(bytes.len() - at);
                continue;
            }
            b'/' if bytes.get(at + 1) == Some(&b'*') => {
                let end = text.get(at + 2..).and_then(|rest| rest.find("*/"));
                let end = end.ok_or_else(|| Error::syntax(line, "comment without end"))?;
                line += text[at..at + 2 + end].matches('\n').count() as u32;
                at += end + 4;
                continue;
            }
            b'"' => {
                let len = bytes[at + 1..].iter().position(|&b| b == b'"' || b == b'\n');
                let len = len.ok_or_else(|| Error::syntax(line, "string without end"))?;
                let inner = text.get(at + 1..at + 1 + len).ok_or_else(|| Error::syntax(line, "string is not UTF-8"))?;
                out.push((Token::Text(inner), line));
                at += len + 1;
            }
            _ if is_word(c) => {
                at = word_end(bytes, at);
                out.push((word(&text[start..at], line)?, line));
                continue;
            }
            _ if c.is_ascii_punctuation() => out.push((Token::Mark(c as char), line)),
            _ => return Err(Error::syntax(line, "a character that PTX does not have")),
        }
        at += 1;
    }
    Ok(out)
}

fn word(word: &str, line: u32) -> Result<Token<'_>> {
    if !word.starts_with(|c: char| c.is_ascii_digit()) {
        return Ok(Token::Word(word));
    }
    let bad = || Error::syntax(line, format!("`{word}` is not a number"));
    let radix = |digits: &str, radix| u64::from_str_radix(digits, radix).map_err(|_| bad());
    match word.get(..2) {
        Some("0f" | "0F") if word.len() == 10 => Ok(Token::Float(radix(&word[2..], 16)? as u32)),
        Some("0d" | "0D") if word.len() == 18 => Ok(Token::Double(radix(&word[2..], 16)?)),
        Some("0x" | "0X") => Ok(Token::Int(radix(word[2..].trim_end_matches('U'), 16)?)),
        Some("0b" | "0B") => Ok(Token::Int(radix(word[2..].trim_end_matches('U'), 2)?)),
        // `.version 7.1` reads as a word: no other place has a decimal point.
        _ if word.contains('.') => Ok(Token::Word(word)),
        _ => Ok(Token::Int(word.trim_end_matches('U').parse().map_err(|_| bad())?)),
    }
}
