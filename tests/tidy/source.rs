//! A Rust file as the checks read it: words, strings and comments, functions, what is compiled for tests only, and the
//! paths that the code names.

use std::collections::HashMap;

use super::File;

/// What begins an item that a `#[cfg(test)]` may stand before.
const ITEMS: &[&str] = &["mod", "fn", "use", "impl", "const", "struct"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Word,
    /// A string or a character, never code.
    Literal,
    Comment,
    /// Everything else: a bracket, `::`, a number, a lifetime.
    Sign,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Token<'a> {
    pub(super) kind: Kind,
    pub(super) text: &'a str,
    /// The line that it starts in.
    pub(super) line: usize,
}

pub(super) fn in_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

pub(super) fn lex(text: &str) -> Vec<Token<'_>> {
    let (mut tokens, mut at, mut line) = (Vec::new(), 0, 1);
    while let Some(first) = text[at..].chars().next() {
        let (kind, length) = next_token(&text[at..], first);
        let text = &text[at..at + length];
        if !first.is_whitespace() {
            tokens.push(Token { kind, text, line });
        }
        line += text.matches('\n').count();
        at += length;
    }
    tokens
}

/// The kind and the bytes of the token that `rest` begins with.
fn next_token(rest: &str, first: char) -> (Kind, usize) {
    let word = rest.find(|c| !in_word(c)).unwrap_or(rest.len());
    let (prefix, body) = rest.split_at(word);
    let hashes = body.bytes().take_while(|b| *b == b'#').count();
    let mut after = rest.chars().skip(1);
    match (prefix, first) {
        _ if rest.starts_with("//") => (Kind::Comment, rest.find('\n').unwrap_or(rest.len())),
        _ if rest.starts_with("/*") => (Kind::Comment, block_comment(rest)),
        ("" | "b" | "c", _) if body.starts_with('"') => (Kind::Literal, word + quoted(body, '"')),
        ("b", _) if body.starts_with('\'') => (Kind::Literal, word + quoted(body, '\'')),
        ("r" | "br" | "cr", _) if body[hashes..].starts_with('"') => {
            let (start, end) = (hashes + 1, format!("\"{}", "#".repeat(hashes)));
            (Kind::Literal, word + body[start..].find(&end).map_or(body.len(), |at| start + at + end.len()))
        }
        (_, '\'') => match (after.next(), after.next()) {
            (Some('\\'), _) | (_, Some('\'')) => (Kind::Literal, quoted(rest, '\'')),
            _ => (Kind::Sign, 1 + rest[1..].find(|c| !in_word(c)).unwrap_or(rest.len() - 1)),
        },
        ("", _) => (Kind::Sign, if rest.starts_with("::") { 2 } else { first.len_utf8() }),
        _ => (if first.is_ascii_digit() { Kind::Sign } else { Kind::Word }, word),
    }
}

/// The bytes of a comment, which may hold comments.
fn block_comment(rest: &str) -> usize {
    let (bytes, mut at) = (rest.as_bytes(), 2);
    while at < bytes.len() && !bytes[at..].starts_with(b"*/") {
        at += if bytes[at..].starts_with(b"/*") { block_comment(&rest[at..]) } else { 1 };
    }
    bytes.len().min(at + 2)
}

/// The bytes of a literal from its opening to its closing quote; a backslash hides what follows it.
fn quoted(rest: &str, quote: char) -> usize {
    let mut hidden = true;
    for (at, c) in rest.char_indices() {
        if !hidden && c == quote {
            return at + 1;
        }
        hidden = !hidden && c == '\\';
    }
    rest.len()
}

pub(super) struct Source<'a> {
    pub(super) path: &'a str,
    pub(super) tokens: Vec<Token<'a>>,
    /// The comment that begins in a line.
    pub(super) comments: HashMap<usize, &'a str>,
    /// The first and last token of each function with a body.
    pub(super) functions: Vec<(usize, usize)>,
    /// For each token, whether it is compiled for tests only.
    pub(super) tests: Vec<bool>,
}

/// The Rust files among `files`. A file that another one declares for tests only is test code, and so are its children.
pub(super) fn sources(files: &[File]) -> Vec<Source<'_>> {
    let rust = files.iter().filter(|(path, _)| path.ends_with(".rs"));
    let mut all: Vec<Source<'_>> = rust.map(|(path, text)| Source::new(path, text)).collect();
    let test_modules: Vec<String> = all.iter_mut().flat_map(Source::mark_tests).collect();
    for source in &mut all {
        let stem = source.path.trim_end_matches(".rs").trim_end_matches("/mod");
        if test_modules.iter().any(|m| stem == m || stem.starts_with(&format!("{m}/"))) {
            source.tests.fill(true);
        }
    }
    all
}

impl<'a> Source<'a> {
    pub(super) fn new(path: &'a str, text: &'a str) -> Self {
        let (comments, tokens): (Vec<_>, Vec<_>) = lex(text).into_iter().partition(|t| t.kind == Kind::Comment);
        let comments = comments.into_iter().map(|comment| (comment.line, comment.text)).collect();
        let mut source = Self { path, tests: vec![false; tokens.len()], tokens, comments, functions: Vec::new() };
        // `fn(u8)` is a type.
        let starts = (0..source.tokens.len()).filter(|at| source.has(*at, "fn") && !source.has(at + 1, "("));
        source.functions =
            starts.map(|at| (at, source.item_end(at))).filter(|(_, end)| source.has(*end, "}")).collect();
        source
    }

    /// The text of a token; nothing for a literal and beyond the end.
    pub(super) fn word(&self, at: usize) -> &'a str {
        self.tokens.get(at).filter(|t| t.kind != Kind::Literal).map_or("", |t| t.text)
    }

    pub(super) fn is_word(&self, at: usize) -> bool {
        self.tokens.get(at).is_some_and(|t| t.kind == Kind::Word)
    }

    pub(super) fn has(&self, at: usize, words: &str) -> bool {
        words.split(' ').enumerate().all(|(i, word)| self.word(at + i) == word)
    }

    /// The bracket that closes the one at `open`.
    fn matching(&self, open: usize) -> usize {
        let (opens, closes) = (["(", "[", "{"], [")", "]", "}"]);
        let mut depth = 0;
        let balanced = |at: &usize| {
            depth += i32::from(opens.contains(&self.word(*at))) - i32::from(closes.contains(&self.word(*at)));
            depth <= 0
        };
        (open..self.tokens.len()).find(balanced).unwrap_or(self.tokens.len().saturating_sub(1))
    }

    /// The end of the item at `at`: the brace that closes its body, or a semicolon.
    fn item_end(&self, mut at: usize) -> usize {
        while at < self.tokens.len() {
            match self.word(at) {
                "{" => return self.matching(at),
                ";" | "}" => return at.saturating_sub(usize::from(self.word(at) == "}")),
                "(" | "[" => at = self.matching(at) + 1,
                _ => at += 1,
            }
        }
        self.tokens.len().saturating_sub(1)
    }

    /// The name of the innermost function around a token.
    pub(super) fn function(&self, at: usize) -> Option<&'a str> {
        let around = self.functions.iter().rev().find(|(first, last)| (*first..=*last).contains(&at));
        around.map(|(first, _)| self.word(first + 1))
    }

    /// Marks the items under `#[cfg(test)]`, and returns the files that modules among them lie in, without `.rs`.
    fn mark_tests(&mut self) -> Vec<String> {
        let mut modules = Vec::new();
        let is_item = |at: usize| (at..self.item_end(at)).any(|at| ITEMS.contains(&self.word(at)));
        let test_only = |at: &usize| self.has(*at, "# [ cfg ( test ) ]") && is_item(*at);
        for start in (0..self.tokens.len()).filter(test_only).collect::<Vec<_>>() {
            let end = self.item_end(start);
            self.tests[start..=end].fill(true);
            if self.word(end) == ";" && self.has(end - 2, "mod") {
                let (dir, name) = self.path.rsplit_once('/').unwrap_or(("", self.path));
                let root = ["mod.rs", "lib.rs", "main.rs"].contains(&name);
                let own = if root { dir } else { self.path.trim_end_matches(".rs") };
                let literal = |at: usize| self.tokens[at + 2].text.trim_matches('"').trim_end_matches(".rs");
                let file = (start..end).find(|at| self.has(*at, "path =")).map(literal);
                modules.push(file.map_or(format!("{own}/{}", self.word(end - 1)), |file| format!("{dir}/{file}")));
            }
        }
        modules
    }

    /// The module that a token stands in.
    fn module(&self, at: usize) -> Vec<&'a str> {
        let stem = self.path.trim_start_matches("src/").trim_end_matches(".rs");
        let file = stem.split('/').filter(|name| !["mod", "lib", "main"].contains(name));
        let around = |i: &usize| self.word(*i) == "mod" && self.word(i + 2) == "{" && self.matching(i + 2) > at;
        ["crate"].into_iter().chain(file).chain((0..at).filter(around).map(|i| self.word(i + 1))).collect()
    }

    /// `names` from the root: `self`, `super` and imported names are written out.
    fn resolve(&self, at: usize, names: &[&'a str], aliases: &HashMap<&'a str, Vec<&'a str>>) -> Vec<&'a str> {
        let relative = names.iter().take_while(|name| ["self", "super"].contains(*name)).count();
        let mut path = match names[0] {
            "self" | "super" => self.module(at),
            "rlhf" if self.path == "src/main.rs" => vec!["crate"],
            name => aliases.get(name).cloned().unwrap_or(vec![name]),
        };
        let ups = names[..relative].iter().filter(|name| **name == "super").count();
        path.truncate(path.len().saturating_sub(ups).max(1));
        path.extend(&names[relative.max(1)..]);
        path
    }

    /// Collects the leaves of the path or tree at `at`, each with the name that it is imported under; returns its end.
    fn leaves(&self, mut at: usize, mut names: Vec<&'a str>, found: &mut Vec<(Vec<&'a str>, &'a str)>) -> usize {
        loop {
            match self.word(at) {
                "{" => {
                    let close = self.matching(at);
                    while at < close {
                        at = self.leaves(at + 1, names.clone(), found);
                    }
                    return close + 1;
                }
                "self" if !names.is_empty() && self.word(at + 1) != "::" => {}
                name if name == "*" || self.is_word(at) => names.push(name),
                "::" => at -= 1,
                _ => return at,
            }
            if self.word(at + 1) != "::" || self.word(at + 2) == "<" {
                break;
            }
            at += 2;
        }
        let end = at + 2 * usize::from(self.has(at + 1, "as"));
        let alias = if end > at { self.word(end) } else { names.last().copied().unwrap_or_default() };
        found.push((names, alias));
        end + 1
    }

    /// Every path that the code outside tests names, from the root of this crate or of another: the token it begins
    /// at, its names, and whether it is imported. An import is taken to hold in the whole file.
    pub(super) fn named(&self) -> Vec<(usize, Vec<&'a str>, bool)> {
        let (mut found, mut aliases) = (Vec::new(), HashMap::new());
        for imports in [true, false] {
            let mut at = 0;
            while at < self.tokens.len() {
                let (start, mut leaves) = (at, Vec::new());
                let import = self.has(at, "use") && !self.has(at + 1, "<");
                let path = import || self.is_word(at) && self.has(at + 1, "::");
                at = if path { self.leaves(at + usize::from(import), Vec::new(), &mut leaves) } else { at + 1 };
                for (names, alias) in leaves.into_iter().filter(|_| import == imports && !self.tests[start]) {
                    let names = self.resolve(start, &names, &aliases);
                    aliases.extend(import.then(|| (alias, names.clone())));
                    found.push((start, names, import));
                }
            }
        }
        found
    }
}

#[test]
fn the_lexer_knows_strings_comments_and_lifetimes() {
    for (text, expected) in [
        (r#"a "b \" c" d"#, "a d"),
        (r##"a r#"b " c"# d r"e\" f br"g" b"h" c"i" j"##, "a d f j"),
        ("a /* b /* c */ d */ e // f\ng /**/ h", "a e g h"),
        (r"a 'b' '\'' '\u{63}' 'c: d b'\\' e '\\' f '(' '“' g", "a d e f g"),
        ("a<'b>(1.0e5, 0x_ff, 1..c) ü::d", "a c ü d"),
        ("a /* \"b", "a"),
    ] {
        let words: Vec<_> = lex(text).into_iter().filter(|t| t.kind == Kind::Word).map(|t| t.text).collect();
        assert_eq!(words.join(" "), expected, "{text}");
    }
    assert_eq!(lex("a\n/* \n */ b \"\n\" c").iter().map(|t| t.line).collect::<Vec<_>>(), [1, 2, 3, 3, 4]);
}

#[test]
fn paths_are_written_out() {
    for (path, text, expected) in [
        ("src/a/b.rs", "use crate::{c::{self as d, e::*}, f}; d::h::<i::J>();", "c c::e::* f c::h i::J"),
        ("src/a/b.rs", "mod k { use super::super::c; } fn d() -> impl E + use<'g> { super::super::h::i }", "a::c h::i"),
        ("src/a.rs", "mod k { use super::super::c; } use self::l as m; m::n(); use o; o::p()", "c a::l o a::l::n o::p"),
    ] {
        let named = Source::new(path, text).named();
        let named: Vec<_> = named.iter().map(|path| path.1.join("::").replace("crate::", "")).collect();
        assert_eq!(named.join(" "), expected, "{text}");
    }
}
