//! Keeps the structure of the crate true: reads its source and fails on what the house rules refuse. Every check is a
//! function from files to violations, so that the same function is shown to find a seeded one. A violation that stays
//! has a row in [`EXCEPTIONS`] with its reason, and a row that excuses nothing fails as well. The lexer knows enough of
//! Rust that words in strings and comments are never taken for code; it knows no macros and no types.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use Rule::{Architecture, Dependency, FileLength, FunctionLength, Header, Layer, LineWidth, Mark, MachinePath};
use Rule::{Name, Panic, Place, Unsafe, Write};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    Layer,
    FunctionLength,
    FileLength,
    LineWidth,
    Unsafe,
    Write,
    Panic,
    Header,
    Name,
    Place,
    MachinePath,
    Mark,
    Dependency,
    Architecture,
}

/// What may stay, and why: the rule, the place (a file, or `file::function`), the reason.
const EXCEPTIONS: &[(Rule, &str, &str)] = &[
    (Panic, "src/cpu/matmul.rs::gemm", "the unsafe call below it relies on what it asserts"),
    (Header, "src/lib.rs", "the crate's front page: the bird's-eye view, one step, an example"),
    (Place, "src/cpu/math.rs", "scalar functions that the operations share"),
    (Place, "src/cpu/parallel.rs", "how rows are cut into chunks: no operation"),
    (Place, "src/cpu/pool.rs", "host buffers that are used again: no operation"),
    (Dependency, "src/cli/mod.rs: rayon", "the host thread joins the pool once, instead of at each parallel loop"),
];

/// A room, and the rooms below it that it may name; `a::b` is that item alone, `floor` stands for [`FLOOR`]. Model and
/// objective never see a launch, hence `device::Device`; only `ops` and what stands beside it know that there is a CPU.
const LAYERS: &[(&str, &[&str])] = &[
    ("main", &["cli"]),
    (
        "cli",
        &["train", "data", "model", "objective", "optim", "report", "selftest", "ops", "tensor", "device", "floor"],
    ),
    (
        "train",
        &["data", "model", "objective", "optim", "report", "ops", "autograd", "tensor", "device::Device", "floor"],
    ),
    ("data", &["floor"]),
    ("report", &["floor"]),
    ("model", &["ops", "autograd", "tensor", "device::Device", "floor"]),
    ("objective", &["ops", "autograd", "tensor", "device::Device", "floor"]),
    ("optim", &["ops", "autograd", "tensor", "device::Device", "floor"]),
    ("selftest", &["ops", "autograd", "tensor", "cpu", "device", "floor"]),
    ("ops", &["autograd", "tensor", "cpu", "device", "floor"]),
    ("autograd", &["tensor", "cpu", "device", "floor"]),
    // The other half of a tensor is its origin on the tape: the two know each other.
    ("tensor", &["autograd::Origin", "cpu::pool", "device", "floor"]),
    ("device", &["ptx", "floor"]),
    ("cpu", &["config", "error"]),
    ("ptx", &[]),
    ("config", &["error", "dtype"]),
    ("disk", &["error"]),
    ("shape", &["error", "dtype"]),
    ("dtype", &["error"]),
    ("random", &["error"]),
    ("error", &[]),
];
const FLOOR: &[&str] = &["config", "error", "shape", "dtype", "disk", "random"];

const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 700;
const LINE_CHARS_MAX: usize = 120;
const HEADER_LINES_MAX: usize = 8;

/// Dependencies that are named in one place only, and the paths that begin like it. Spelled so that they are not here.
const DEPENDENCIES: &[(&str, &[&str])] = &[
    (concat!("cud", "arc"), &["src/device/cuda"]),
    (concat!("ge", "mm"), &["src/cpu/matmul.rs"]),
    (concat!("ray", "on"), &["src/cpu/", "src/ptx/"]),
];

/// Operations whose kernel has the name that the field gives to it.
const KERNELS: &[(&str, &str)] = &[("matmul", "gemm")];

/// Where an unfinished thought is left behind, and where a path of one machine begins.
const MARKS: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
const MACHINE_PATHS: &[&str] = &["home", "root", "work", "Users", "mnt", "workspace"];
const VAGUE_NAMES: &[&str] = &["util", "utils", "helper", "helpers", "manager", "managers", "common", "misc"];

/// What writes to the file system, as the ends of paths; `*` stands for any ending.
const WRITERS: &[&str] = &[
    "std::fs::write",
    "std::fs::create_dir*",
    "std::fs::remove_*",
    "std::fs::rename",
    "std::fs::copy",
    "std::fs::set_permissions",
    "std::fs::hard_link",
    "std::fs::soft_link",
    "std::fs::DirBuilder*",
    "std::fs::OpenOptions*",
    "std::fs::File::create*",
    "std::fs::File::options",
    "std::fs::*",
    "std::os::unix::fs::symlink",
    "std::os::windows::fs::symlink_*",
    "safetensors::serialize_to_file",
];

// ---- The tree ----

/// A file of the repository: its path from the root, with slashes, and its text.
type File = (String, String);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every source file, read once.
fn files() -> &'static [File] {
    static FILES: OnceLock<Vec<File>> = OnceLock::new();
    FILES.get_or_init(|| {
        let mut found = Vec::new();
        for room in ["src", "kernels", "tests", "benches", ".ci"] {
            gather(room, &mut found);
        }
        for name in ["Cargo.toml", "README.md", "CHANGELOG.md"] {
            found.extend(fs::read_to_string(root().join(name)).ok().map(|text| (name.to_owned(), text)));
        }
        found.sort();
        found
    })
}

fn gather(dir: &str, found: &mut Vec<File>) {
    for entry in fs::read_dir(root().join(dir)).into_iter().flatten().flatten() {
        let path = format!("{dir}/{}", entry.file_name().to_string_lossy());
        let extension = path.rsplit_once('.').map_or("", |(_, extension)| extension);
        if fs::metadata(entry.path()).is_ok_and(|m| m.is_dir()) {
            gather(&path, found);
        } else if ["rs", "cu", "cuh", "ptx", "py", "sh", "toml"].contains(&extension) || dir == ".ci" {
            let text = fs::read_to_string(entry.path());
            assert!(text.is_ok(), "{path} is not text: {text:?}");
            found.extend(text.ok().map(|text| (path, text)));
        }
    }
}

// ---- The lexer ----

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Word,
    Lifetime,
    Literal,
    Comment,
    Sign,
}

/// A piece of the text, and the line it starts in.
#[derive(Debug, Clone, Copy)]
struct Token<'a> {
    kind: Kind,
    text: &'a str,
    line: usize,
}

fn in_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn lex(text: &str) -> Vec<Token<'_>> {
    let (mut tokens, mut at, mut line) = (Vec::new(), 0, 1);
    while let Some(c) = text[at..].chars().next() {
        let (kind, length) = next_token(&text[at..], c);
        let piece = &text[at..at + length];
        if !c.is_whitespace() {
            tokens.push(Token { kind, text: piece, line });
        }
        line += piece.matches('\n').count();
        at += length;
    }
    tokens
}

/// The kind and the bytes of the token that `rest`, which begins with `c`, begins with.
fn next_token(rest: &str, c: char) -> (Kind, usize) {
    let word = rest.find(|c| !in_word(c)).unwrap_or(rest.len());
    match c {
        '/' if rest.starts_with("//") => (Kind::Comment, rest.find('\n').unwrap_or(rest.len())),
        '/' if rest.starts_with("/*") => (Kind::Comment, block_comment(rest)),
        '"' => (Kind::Literal, quoted(rest, '"')),
        '\'' => character_or_lifetime(rest),
        _ if c.is_ascii_digit() => (Kind::Literal, number(rest)),
        _ if in_word(c) => match (&rest[..word], rest[word..].chars().next()) {
            ("b" | "c", Some('"')) => (Kind::Literal, word + quoted(&rest[word..], '"')),
            ("b", Some('\'')) => (Kind::Literal, word + quoted(&rest[word..], '\'')),
            ("r" | "br" | "cr", Some('"' | '#')) => raw(rest, word),
            _ => (Kind::Word, word),
        },
        ':' if rest.starts_with("::") => (Kind::Sign, 2),
        _ => (Kind::Sign, c.len_utf8()),
    }
}

fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        let step = rest.as_bytes().get(at..at + 2).unwrap_or_default();
        match step {
            b"/*" => depth += 1,
            b"*/" => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            break;
        }
    }
    at
}

/// The bytes of a literal from its opening to its closing quote; a backslash hides what follows it.
fn quoted(rest: &str, quote: char) -> usize {
    let mut hidden = true;
    for (at, c) in rest.char_indices() {
        match c {
            _ if hidden => hidden = false,
            '\\' => hidden = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// A raw string ends at a quote and as many `#` as it began with; without a quote it is a raw word (`r#type`).
fn raw(rest: &str, prefix: usize) -> (Kind, usize) {
    let hashes = rest[prefix..].bytes().take_while(|b| *b == b'#').count();
    let body = prefix + hashes + 1;
    if rest.as_bytes().get(body - 1) != Some(&b'"') {
        let word = rest[body - 1..].find(|c| !in_word(c)).unwrap_or(rest.len() - body + 1);
        return (Kind::Word, body - 1 + word);
    }
    let end = format!("\"{}", "#".repeat(hashes));
    (Kind::Literal, rest[body..].find(&end).map_or(rest.len(), |at| body + at + end.len()))
}

fn character_or_lifetime(rest: &str) -> (Kind, usize) {
    let mut chars = rest.chars().skip(1);
    match (chars.next(), chars.next()) {
        (Some('\\'), _) | (Some(_), Some('\'')) => (Kind::Literal, quoted(rest, '\'')),
        _ => (Kind::Lifetime, 1 + rest[1..].find(|c| !in_word(c)).unwrap_or(rest.len() - 1)),
    }
}

/// `1..2` and `x.0.max(1)` are not fractions; the sign of an exponent is left to itself.
fn number(rest: &str) -> usize {
    let end = rest.find(|c| !in_word(c)).unwrap_or(rest.len());
    let fraction = rest[end..].strip_prefix('.').filter(|r| r.starts_with(|c: char| c.is_ascii_digit()));
    fraction.map_or(end, |r| end + 1 + r.find(|c| !in_word(c)).unwrap_or(r.len()))
}

// ---- A Rust file ----

struct Function<'a> {
    name: &'a str,
    /// The tokens from `fn` to the closing brace.
    range: std::ops::RangeInclusive<usize>,
}

/// A path that the code names, from the crate's root or from another crate, with its first token.
struct Named<'a> {
    at: usize,
    names: Vec<&'a str>,
    import: bool,
    /// What an import is called here.
    alias: &'a str,
}

struct Source<'a> {
    path: &'a str,
    text: &'a str,
    tokens: Vec<Token<'a>>,
    comments: Vec<Token<'a>>,
    functions: Vec<Function<'a>>,
    /// For each token: whether it is compiled for tests only.
    tests: Vec<bool>,
}

/// The Rust files among `files`. A file that another one includes for tests only is test code, and so are its children.
fn sources(files: &[File]) -> Vec<Source<'_>> {
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
    fn new(path: &'a str, text: &'a str) -> Self {
        let (comments, tokens): (Vec<_>, Vec<_>) = lex(text).into_iter().partition(|t| t.kind == Kind::Comment);
        let tests = vec![false; tokens.len()];
        let mut source = Self { path, text, tokens, comments, functions: Vec::new(), tests };
        source.functions = (0..source.tokens.len()).filter_map(|at| source.function(at)).collect();
        source
    }

    /// The text of a token; nothing beyond the end, and nothing for a literal, which is never code.
    fn word(&self, at: usize) -> &'a str {
        self.tokens.get(at).filter(|t| t.kind != Kind::Literal).map_or("", |t| t.text)
    }

    fn is_word(&self, at: usize) -> bool {
        self.tokens.get(at).is_some_and(|t| t.kind == Kind::Word)
    }

    fn line(&self, at: usize) -> usize {
        self.tokens.get(at).map_or(0, |t| t.line)
    }

    /// The bracket that closes the one at `open`.
    fn matching(&self, open: usize) -> usize {
        let mut depth = 0_usize;
        for at in open..self.tokens.len() {
            match self.word(at) {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" if depth <= 1 => return at,
                ")" | "]" | "}" => depth -= 1,
                _ => {}
            }
        }
        self.tokens.len().saturating_sub(1)
    }

    /// The function with a body that begins at `at`; `fn(u8)` is a type.
    fn function(&self, at: usize) -> Option<Function<'a>> {
        if self.word(at) != "fn" || !(self.is_word(at + 1) || self.word(at + 1) == "$") {
            return None;
        }
        let name = if self.is_word(at + 1) { self.word(at + 1) } else { self.word(at + 2) };
        let mut end = at + 1;
        loop {
            match self.word(end) {
                "{" => return Some(Function { name, range: at..=self.matching(end) }),
                "(" | "[" => end = self.matching(end),
                ";" | "}" => return None,
                _ if end >= self.tokens.len() => return None,
                _ => {}
            }
            end += 1;
        }
    }

    /// The innermost function around a token.
    fn function_around(&self, at: usize) -> Option<&Function<'a>> {
        self.functions.iter().rev().find(|f| f.range.contains(&at))
    }

    /// The last token of the item, statement or variant that begins at `at`.
    fn item_end(&self, mut at: usize) -> usize {
        let (mut import, mut item) = (false, false);
        while at < self.tokens.len() {
            match self.word(at) {
                ";" => return at,
                "," if !item => return at,
                "{" if !import => return self.matching(at),
                "(" | "[" | "{" => at = self.matching(at),
                ")" | "]" | "}" => return at.saturating_sub(1),
                "use" => (import, item) = (true, true),
                "fn" | "mod" | "impl" | "struct" | "enum" | "trait" | "const" | "static" | "type" | "let" => item = true,
                _ => {}
            }
            at += 1;
        }
        at
    }

    /// Marks what stands under `#[test]` or `#[cfg(test)]`; returns the stems of the files that such modules lie in.
    fn mark_tests(&mut self) -> Vec<String> {
        let (mut modules, mut at) = (Vec::new(), 0);
        while at < self.tokens.len() {
            let (start, mut test, mut file) = (at, false, None);
            while self.word(at) == "#" {
                let open = at + 1 + usize::from(self.word(at + 1) == "!");
                if self.word(open) != "[" {
                    break;
                }
                let close = self.matching(open);
                let has = |word| (open..close).any(|i| self.word(i) == word);
                let cfg_test = self.word(open + 1) == "cfg" && has("test") && !has("not");
                if cfg_test && open == at + 2 {
                    self.tests.fill(true);
                    return modules;
                }
                test |= cfg_test || (self.word(open + 1) == "test" && open + 2 == close);
                if self.word(open + 1) == "path" {
                    file = self.tokens.get(open + 3).map(|t| t.text.trim_matches('"'));
                }
                at = close + 1;
            }
            if test {
                modules.extend(self.test_module(at, file));
                at = self.item_end(at);
                let end = self.tests.len().min(at + 1);
                self.tests[start..end].fill(true);
            }
            at += usize::from(test || at == start);
        }
        modules
    }

    /// The stem of the file of the module that is declared at `at`, if one is.
    fn test_module(&self, at: usize, file: Option<&str>) -> Option<String> {
        let declared = (at..self.item_end(at)).find(|i| self.word(*i) == "mod")?;
        if self.word(declared + 2) != ";" {
            return None;
        }
        let (dir, name) = self.path.rsplit_once('/').unwrap_or(("", self.path));
        if let Some(file) = file {
            return Some(format!("{dir}/{}", file.trim_end_matches(".rs")));
        }
        let dir = if ["mod.rs", "lib.rs", "main.rs"].contains(&name) { dir } else { self.path.trim_end_matches(".rs") };
        Some(format!("{dir}/{}", self.word(declared + 1)))
    }

    /// The module that a token stands in, from the crate's root.
    fn module(&self, at: usize) -> Vec<&'a str> {
        let stem = self.path.trim_start_matches("src/").trim_end_matches(".rs");
        let of_file = stem.split('/').filter(|name| !["mod", "lib", "main"].contains(name));
        let inline = (0..at).filter(|i| {
            self.word(*i) == "mod" && self.word(i + 2) == "{" && self.matching(i + 2) > at && self.is_word(i + 1)
        });
        ["crate"].into_iter().chain(of_file).chain(inline.map(|i| self.word(i + 1))).collect()
    }

    /// The path `names` from the root: `self`, `super` and what was imported under another name are written out.
    fn resolve(&self, at: usize, names: &[&'a str], aliases: &HashMap<&'a str, Vec<&'a str>>) -> Vec<&'a str> {
        let Some((first, rest)) = names.split_first() else { return Vec::new() };
        let mut base = match *first {
            "rlhf" if self.path == "src/main.rs" => vec!["crate"],
            "self" | "super" => self.module(at),
            name => aliases.get(name).cloned().unwrap_or_else(|| vec![name]),
        };
        let ups = names.iter().take_while(|n| ["self", "super"].contains(n)).filter(|n| **n == "super").count();
        base.truncate(base.len().saturating_sub(ups).max(1));
        base.extend(rest.iter().skip_while(|n| ["self", "super"].contains(n)));
        base
    }

    /// The leaves of the import whose tree begins at `at`, as they are written; returns the token after it.
    fn import(&self, mut at: usize, prefix: &[&'a str], leaves: &mut Vec<Named<'a>>) -> usize {
        let (start, mut names) = (at, prefix.to_vec());
        loop {
            match self.word(at) {
                "{" => {
                    let close = self.matching(at);
                    at += 1;
                    while at < close {
                        at = self.import(at, &names, leaves);
                    }
                    return close + 1;
                }
                "::" => {}
                name if name == "*" || self.is_word(at) => names.push(name),
                _ => return at + 1,
            }
            at += 1;
            if !names.is_empty() && self.word(at) != "::" && self.word(at - 1) != "::" {
                break;
            }
        }
        if names.last() == Some(&"self") && names.len() > 1 {
            names.pop();
        }
        let mut alias = names.last().copied().unwrap_or_default();
        if self.word(at) == "as" {
            alias = self.word(at + 1);
            at += 2;
        }
        leaves.push(Named { at: start, names, import: true, alias });
        at
    }

    /// Every path that the code outside tests names.
    fn named(&self) -> Vec<Named<'a>> {
        let (mut found, mut aliases, mut inside) = (Vec::new(), HashMap::new(), vec![false; self.tokens.len()]);
        for at in (0..self.tokens.len()).filter(|i| self.word(*i) == "use" && self.word(i + 1) != "<") {
            let mut leaves = Vec::new();
            self.import(at + 1, &[], &mut leaves);
            let end = self.item_end(at);
            inside[at..=end.min(self.tokens.len() - 1)].fill(true);
            for mut leaf in leaves.into_iter().filter(|_| !self.tests[at]) {
                leaf.names = self.resolve(leaf.at, &leaf.names, &aliases);
                aliases.insert(leaf.alias, leaf.names.clone());
                found.push(leaf);
            }
        }
        let mut at = 0;
        while at < self.tokens.len() {
            let start = at;
            let begins = self.is_word(at) && self.word(at + 1) == "::" && !(at > 0 && self.is_word_path(at - 1));
            at += 1;
            if !begins || inside[start] || self.tests[start] {
                continue;
            }
            let mut names = vec![self.word(start)];
            while self.word(at) == "::" && self.is_word(at + 1) {
                names.push(self.word(at + 1));
                at += 2;
            }
            let names = self.resolve(start, &names, &aliases);
            found.push(Named { at: start, names, import: false, alias: "" });
        }
        found
    }

    /// Whether a `::` goes on with a path, rather than beginning one (`::std::fs`).
    fn is_word_path(&self, at: usize) -> bool {
        self.word(at) == "::" && at > 0 && (self.is_word(at - 1) || self.word(at - 1) == ">")
    }

    fn violation(&self, rule: Rule, at: usize, what: &str) -> Violation {
        Violation { rule, key: self.path.to_owned(), text: format!("{}:{}: {what}", self.path, self.line(at)) }
    }
}

// ---- The checks ----

#[derive(Debug)]
struct Violation {
    rule: Rule,
    /// What an exception names: a file, or `file::function`.
    key: String,
    text: String,
}

/// An upward or sideways import.
fn layering(sources: &[Source<'_>]) -> Vec<Violation> {
    let mut found = Vec::new();
    for source in sources.iter().filter(|s| s.path.starts_with("src/") && s.path != "src/lib.rs") {
        let room = source.path.split('/').nth(1).unwrap_or_default().trim_end_matches(".rs");
        let Some((_, below)) = LAYERS.iter().find(|(name, _)| *name == room) else {
            found.push(source.violation(Layer, 0, &format!("the room `{room}` has no row in LAYERS")));
            continue;
        };
        let floor: &[&str] = if below.contains(&"floor") { FLOOR } else { &[] };
        for path in source.named() {
            let Some(("crate", names)) = path.names.split_first().map(|(first, rest)| (*first, rest)) else { continue };
            let allowed = below.iter().chain(floor).any(|item| {
                let item: Vec<&str> = item.split("::").collect();
                // The import of a room of which an item is allowed is judged where the room is used.
                names.starts_with(&item) || (path.import && !names.is_empty() && item.starts_with(names))
            });
            if !allowed && names.first() != Some(&room) {
                let what = format!("`{}`: {room} may name only {below:?}", path.names.join("::"));
                found.push(source.violation(Layer, path.at, &what));
            }
        }
    }
    found
}

/// Functions, files and lines that are too long.
fn limits(files: &[File]) -> Vec<Violation> {
    let mut found = Vec::new();
    for source in sources(files) {
        for function in &source.functions {
            let lines = source.line(*function.range.end()) + 1 - source.line(*function.range.start());
            if lines > FUNCTION_LINES_MAX {
                let what = format!("`{}` has {lines} lines, the limit is {FUNCTION_LINES_MAX}", function.name);
                let mut violation = source.violation(FunctionLength, *function.range.start(), &what);
                violation.key = format!("{}::{}", source.path, function.name);
                found.push(violation);
            }
        }
    }
    for (path, text) in files.iter().filter(|(path, _)| [".rs", ".cu", ".cuh"].iter().any(|e| path.ends_with(e))) {
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX {
            let text = format!("{path}: {lines} lines, the limit is {FILE_LINES_MAX}");
            found.push(Violation { rule: FileLength, key: path.clone(), text });
        }
        for (number, line) in text.lines().enumerate().filter(|(_, line)| line.chars().count() > LINE_CHARS_MAX) {
            let text = format!("{path}:{}: {} characters", number + 1, line.chars().count());
            found.push(Violation { rule: LineWidth, key: path.clone(), text });
        }
    }
    found
}

/// Unsafe code in the wrong place, or without its argument.
fn unsafe_code(sources: &[Source<'_>]) -> Vec<Violation> {
    let mut found = Vec::new();
    for source in sources {
        for at in (0..source.tokens.len()).filter(|at| source.word(*at) == "unsafe") {
            let function = source.function_around(at).map_or("", |f| f.name);
            if !source.path.starts_with("src/device/cuda") && (source.path, function) != ("src/cpu/matmul.rs", "gemm") {
                found.push(source.violation(Unsafe, at, "unsafe code belongs to device/cuda and cpu/matmul.rs's gemm"));
            }
            let start = (0..at).rev().find(|i| [";", "{", "}"].contains(&source.word(*i))).map_or(0, |i| i + 1);
            let argued = [at, start].iter().any(|i| comment_above(source, *i).contains("// SAFETY: "));
            if ["{", "impl"].contains(&source.word(at + 1)) && !argued {
                found.push(source.violation(Unsafe, at, "no `// SAFETY:` comment stands before it"));
            }
        }
    }
    found
}

/// The run of comments that ends in the line above a token.
fn comment_above(source: &Source<'_>, at: usize) -> String {
    let (mut line, mut run) = (source.line(at), String::new());
    for comment in source.comments.iter().rev().skip_while(|c| c.line >= source.line(at)) {
        if comment.line + 1 != line {
            break;
        }
        line = comment.line;
        run = format!("{}\n{run}", comment.text);
    }
    run
}

/// Writes to the file system outside the one room that does them right.
fn writes(sources: &[Source<'_>]) -> Vec<Violation> {
    let mut found = Vec::new();
    for source in sources.iter().filter(|s| s.path.starts_with("src/") && s.path != "src/disk.rs") {
        for path in source.named() {
            let name = path.names.join("::");
            let writer = WRITERS.iter().find(|writer| match writer.strip_suffix('*') {
                Some("std::fs::") => name == **writer,
                Some(begin) => name.starts_with(begin),
                None => name == **writer,
            });
            if writer.is_some() {
                found.push(source.violation(Write, path.at, &format!("`{name}`: only disk.rs writes")));
            }
        }
    }
    found
}

/// Code that ends the process instead of returning an error. `debug_assert!` is not in the user's binary, and an
/// assertion outside functions is evaluated by the compiler.
fn panics(sources: &[Source<'_>]) -> Vec<Violation> {
    let macros = ["panic", "todo", "unimplemented", "unreachable", "dbg", "assert", "assert_eq", "assert_ne"];
    let methods = ["unwrap", "expect", "unwrap_err", "expect_err"];
    let mut found = Vec::new();
    for source in sources.iter().filter(|s| s.path.starts_with("src/")) {
        for at in (0..source.tokens.len()).filter(|at| !source.tests[*at]) {
            let (before, word, after) = (source.word(at.wrapping_sub(1)), source.word(at), source.word(at + 1));
            let method = methods.contains(&word) && (before == "." && after == "(" || before == "::");
            let function = source.function_around(at);
            if method || (macros.contains(&word) && after == "!" && (function.is_some() || !word.starts_with("assert"))) {
                let mut violation = source.violation(Panic, at, &format!("`{word}` ends the process"));
                violation.key = format!("{}::{}", source.path, function.map_or("", |f| f.name));
                found.push(violation);
            }
        }
    }
    found
}

/// Files that do not say what they are for, in a few lines, or whose name says nothing.
fn headers_and_names(files: &[File]) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut add = |rule, path: &String, what: String| {
        found.push(Violation { rule, key: path.clone(), text: format!("{path}: {what}") });
    };
    for (path, text) in files {
        let header = text.lines().take_while(|line| line.starts_with("//!")).count();
        if path.starts_with("src/") && path.ends_with(".rs") && !(1..=HEADER_LINES_MAX).contains(&header) {
            add(Header, path, format!("it opens with {header} lines of `//!`, not 1 to {HEADER_LINES_MAX}"));
        }
        let parts = path.split('/').map(|part| part.split('.').next().unwrap_or_default());
        for part in parts.filter(|part| VAGUE_NAMES.contains(part) && path != "kernels/common.cuh") {
            add(Name, path, format!("`{part}` does not say what is in it"));
        }
    }
    found
}

/// Operations that lack one of their places, and files there that belong to no operation.
fn places(files: &[File]) -> Vec<Violation> {
    let stems = |dir: &str, extension: &str, but: &[&str]| -> Vec<String> {
        let names = files.iter().filter_map(|(path, _)| path.strip_prefix(dir)?.strip_suffix(extension));
        names.filter(|name| !name.contains('/') && !but.contains(name)).map(str::to_owned).collect()
    };
    let operations = stems("src/ops/", ".rs", &["mod", "gradients"]);
    let kernel = |op: &str| KERNELS.iter().find(|(name, _)| *name == op).map_or(op, |(_, kernel)| *kernel).to_owned();
    let mut rooms = vec![("src/cpu/", ".rs", stems("src/cpu/", ".rs", &["mod"]), operations.clone())];
    let selftest = files.iter().filter(|(path, _)| path.starts_with("src/selftest/"));
    let rows = selftest.clone().flat_map(|(_, text)| lex(text)).filter(|t| t.kind != Kind::Comment);
    let rows: Vec<&str> = rows.map(|t| t.text.trim_matches('"')).collect();
    if files.iter().any(|(path, _)| path.starts_with("kernels/")) {
        let wanted = operations.iter().map(|op| kernel(op)).collect();
        rooms.push(("kernels/", ".cu", stems("kernels/", ".cu", &[]), wanted));
    } else {
        println!("tidy: skipped: kernels/ is not there, so no operation was asked for its kernel");
    }
    let mut found = Vec::new();
    let mut add = |key: String, what: &str| {
        found.push(Violation { rule: Place, text: format!("{key}: {what}"), key });
    };
    for (dir, extension, present, wanted) in rooms {
        for name in wanted.iter().filter(|name| !present.contains(name)) {
            add(format!("{dir}{name}{extension}"), "an operation in src/ops/ has no such file");
        }
        for name in present.iter().filter(|name| !wanted.contains(name)) {
            add(format!("{dir}{name}{extension}"), "no operation in src/ops/ has this name");
        }
    }
    if rows.is_empty() {
        println!("tidy: skipped: src/selftest/ is not there, so no operation was asked for its row");
        return found;
    }
    for op in operations.iter().filter(|op| !rows.iter().any(|row| row.starts_with(*op) || **row == kernel(op))) {
        add(format!("src/selftest/: {op}"), "an operation in src/ops/ has no row here");
    }
    found
}

/// Paths of one machine, and marks of unfinished work.
fn leftovers(files: &[File]) -> Vec<Violation> {
    let mut found = Vec::new();
    for (path, text) in files {
        for (number, line) in text.lines().enumerate() {
            let mut add = |rule, what: &str| {
                found.push(Violation { rule, key: path.clone(), text: format!("{path}:{}: {what}", number + 1) });
            };
            for mark in MARKS.iter().filter(|mark| has_word(line, mark)) {
                add(Mark, mark);
            }
            for dir in MACHINE_PATHS.iter().map(|dir| format!("/{dir}/")) {
                let before = |at: usize| line[..at].chars().next_back();
                let mut places = line.match_indices(&dir).map(|(at, _)| before(at));
                if places.any(|c| c.is_none_or(|c| !in_word(c) && !"./~-})".contains(c))) {
                    add(MachinePath, &format!("a path of one machine: {dir}"));
                }
            }
        }
    }
    found
}

fn has_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let (before, after) = (text[..at].chars().next_back(), text[at + word.len()..].chars().next());
        !before.is_some_and(in_word) && !after.is_some_and(in_word)
    })
}

/// Dependencies that are named outside their room, as a path or, for the first of them, in any way.
fn dependencies(sources: &[Source<'_>]) -> Vec<Violation> {
    let mut found = Vec::new();
    for source in sources.iter().filter(|s| s.path.starts_with("src/")) {
        let paths = source.named();
        for (number, (name, rooms)) in DEPENDENCIES.iter().enumerate() {
            if rooms.iter().any(|room| source.path.starts_with(room)) {
                continue;
            }
            let said = (number == 0 && has_word(source.text, name)).then_some(0);
            if let Some(at) = paths.iter().find(|p| p.names.first() == Some(name)).map(|p| p.at).or(said) {
                let mut violation = source.violation(Dependency, at, &format!("only {rooms:?} may name {name}"));
                violation.key = format!("{}: {name}", source.path);
                found.push(violation);
            }
        }
    }
    found
}

/// Rooms of src that the README's section Architecture does not name.
fn architecture(readme: &str, files: &[File]) -> Vec<Violation> {
    let level = |line: &str| line.bytes().take_while(|b| *b == b'#').count();
    let mut lines = readme.lines().skip_while(|line| level(line) == 0 || !line.contains("Architecture"));
    let depth = lines.next().map_or(0, level);
    let mut fenced = false;
    let section = lines.take_while(|line| {
        fenced ^= line.trim_start().starts_with("```");
        fenced || level(line) == 0 || level(line) > depth
    });
    let section = section.collect::<Vec<_>>().join("\n");
    let dirs = files.iter().filter_map(|(path, _)| path.strip_prefix("src/")?.split_once('/'));
    let mut dirs: Vec<&str> = dirs.map(|(dir, _)| dir).collect();
    dirs.dedup();
    let missing = dirs.into_iter().filter(|dir| !has_word(&section, dir) || !section.contains(&format!("{dir}/")));
    let text = |dir| format!("README.md: its section Architecture does not name src/{dir}/");
    missing.map(|dir| Violation { rule: Architecture, key: dir.to_owned(), text: text(dir) }).collect()
}

// ---- The judgement ----

/// What remains of `found` under `exceptions`, and the exceptions to `rules` that excuse nothing.
fn judged(rules: &[Rule], found: &[Violation], exceptions: &[(Rule, &str, &str)]) -> Vec<String> {
    let excuses = |e: &(Rule, &str, &str), v: &Violation| e.0 == v.rule && e.1 == v.key && !e.2.is_empty();
    let remaining = found.iter().filter(|v| !exceptions.iter().any(|e| excuses(e, v)));
    let stale = exceptions.iter().filter(|e| rules.contains(&e.0) && !found.iter().any(|v| excuses(e, v)));
    let remaining = remaining.map(|v| format!("{:?}: {}", v.rule, v.text));
    remaining.chain(stale.map(|e| format!("{:?}: {}: the exception is no longer needed", e.0, e.1))).collect()
}

fn hold(rules: &[Rule], found: &[Violation]) {
    assert!(found.iter().all(|v| rules.contains(&v.rule)), "a rule that is not judged here");
    let remaining = judged(rules, found, EXCEPTIONS);
    assert!(remaining.is_empty(), "{} violations:\n{}", remaining.len(), remaining.join("\n"));
}
