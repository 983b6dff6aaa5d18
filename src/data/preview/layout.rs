//! Tokens in lines of a terminal: a sign at the edge says what becomes of a line's tokens, so that the mask is seen
//! without colour too; with colour the tokens have it as well.

use unicode_width::UnicodeWidthStr;

/// Columns of a line, the edge included.
const WIDTH: usize = 100;

/// Columns of the edge: two blanks, the sign, a blank.
const EDGE: usize = 4;

/// Ends each token.
pub(super) const END: char = '│';

/// What becomes of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Learnt,
    Masked,
    Straddling,
    Cut,
    Shared,
    Chosen,
    Rejected,
    Given,
    Opening,
}

impl State {
    /// The sign at the edge, the colour (a sequence of SGR parameters), and what both mean.
    fn look(self) -> (char, &'static str, &'static str) {
        match self {
            Self::Learnt => ('+', "32", "learnt"),
            Self::Masked => ('.', "2", "masked: the loss does not learn it"),
            Self::Straddling => ('~', "33", "masked because it straddles the boundary"),
            Self::Cut => ('-', "31;9", "cut by max_length"),
            Self::Shared => ('=', "2", "the same in both"),
            Self::Chosen => ('>', "32", "chosen, from the first difference on"),
            Self::Rejected => ('<', "31", "rejected, from the first difference on"),
            Self::Given => ('.', "2", "given"),
            Self::Opening => ('>', "36", "the generation prompt; the response follows"),
        }
    }
}

/// A token as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) state: State,
    pub(super) is_special: bool,
    pub(super) text: String,
    /// Whether the text goes on in a new line behind it.
    pub(super) breaks: bool,
}

/// Whether there is colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Paint {
    /// Plain text.
    Plain,
    /// ANSI escape sequences, all of them our own.
    Colour,
}

/// A line: its pieces, and how many columns they take.
struct Line {
    state: State,
    pieces: Vec<(String, bool)>,
    width: usize,
}

impl Paint {
    fn painted(self, text: &str, codes: &str) -> String {
        match self {
            Self::Plain => text.to_owned(),
            Self::Colour => format!("\u{1b}[{codes}m{text}\u{1b}[0m"),
        }
    }

    /// A line's tokens, and blanks up to `width` columns.
    fn line(self, line: &Line, width: usize) -> String {
        let (sign, colour, _) = line.state.look();
        let mut text = format!("  {} ", self.painted(&sign.to_string(), colour));
        for (piece, is_special) in &line.pieces {
            let (token, ended) = piece.strip_suffix(END).map_or((piece.as_str(), false), |token| (token, true));
            let codes = if *is_special { format!("{colour};1") } else { colour.to_owned() };
            text += &self.painted(token, &codes);
            if ended {
                text += &self.painted(&END.to_string(), "2");
            }
        }
        text + &" ".repeat(width.saturating_sub(EDGE + line.width))
    }

    /// Pieces under each other.
    pub(super) fn lines(self, pieces: &[Piece]) -> String {
        break_up(pieces, WIDTH - EDGE).iter().map(|line| self.line(line, 0) + "\n").collect()
    }

    /// Two lists of pieces beside each other.
    pub(super) fn columns(self, left: &[Piece], right: &[Piece]) -> String {
        let half = WIDTH / 2;
        let [left, right] = [left, right].map(|pieces| break_up(pieces, half - EDGE - 1));
        let mut text = String::new();
        for index in 0..left.len().max(right.len()) {
            let first = left.get(index).map_or_else(|| " ".repeat(half), |line| self.line(line, half));
            let second = right.get(index).map_or_else(String::new, |line| self.line(line, 0));
            text += (first + &second).trim_end();
            text.push('\n');
        }
        text
    }

    /// What the signs mean, those of the tokens last.
    pub(super) fn legend(self, states: &[State]) -> String {
        let mut text = String::from("legend:\n");
        for state in states {
            let (sign, colour, meaning) = state.look();
            text += &format!("  {} {}\n", self.painted(&sign.to_string(), colour), self.painted(meaning, colour));
        }
        text += &format!("  {END} ends a token; ⟨…⟩ is a special token, by its name, or the rest of a character\n");
        text += "  \\n, \\t, \\u{1b} are characters that a terminal would obey or hide; \\\\ is one backslash\n";
        text
    }
}

/// Pieces in lines of at most `width` columns: a new one where the state changes, behind a newline, and where the next
/// piece has no room. A piece longer than a line is broken.
fn break_up(pieces: &[Piece], width: usize) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    let mut is_broken = true;
    for piece in pieces {
        let text = format!("{}{END}", piece.text);
        let room = |line: &Line| line.width + text.width() <= width;
        is_broken |= lines.last().is_none_or(|line| line.state != piece.state || !room(line));
        for part in parts(&text, width) {
            let columns = part.width();
            match lines.last_mut().filter(|_| !is_broken) {
                Some(line) => {
                    line.pieces.push((part, piece.is_special));
                    line.width += columns;
                }
                None => {
                    let pieces = Vec::from([(part, piece.is_special)]);
                    lines.push(Line { state: piece.state, pieces, width: columns });
                }
            }
            // Another part of the same token has no room beside this one.
            is_broken = true;
        }
        is_broken = piece.breaks;
    }
    lines
}

/// A text in parts of at most `width` columns.
fn parts(text: &str, width: usize) -> Vec<String> {
    if text.width() <= width {
        return Vec::from([text.to_owned()]);
    }
    let mut parts = Vec::new();
    let mut part = String::new();
    for letter in text.chars() {
        let longer = format!("{part}{letter}");
        if longer.width() > width {
            parts.push(std::mem::take(&mut part));
            part.push(letter);
        } else {
            part = longer;
        }
    }
    parts.push(part);
    parts
}
