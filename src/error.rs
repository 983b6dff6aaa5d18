//! One error type for the whole crate: what went wrong, where, why, and how to fix it, with the exit code that the
//! command line answers with. Input never causes a panic; it causes one of these.

#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::fmt;

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// What kind of failure it is; its number is the exit code of the binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// A failure inside the program: a broken invariant, a failed identity check.
    Failure = 1,
    /// The command line or a configuration file asks for something that does not exist.
    Usage = 2,
    /// A model, data set, tokenizer or template that cannot be used as it is.
    Input = 3,
    /// Memory, disk space, permissions.
    Resources = 4,
    /// The device is missing, too old or lost.
    Device = 5,
    /// NaN or infinity where a number is needed.
    NonFinite = 6,
    /// Another process owns the output directory.
    Locked = 7,
    /// SIGINT asked the run to stop; its state is saved.
    Interrupted = 130,
    /// SIGTERM asked the run to stop; its state is saved.
    Terminated = 143,
}

/// An error that says what, where, why, and how to fix it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error(Box<Parts>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Parts {
    code: Code,
    id: &'static str,
    what: String,
    place: Option<String>,
    why: Option<String>,
    fix: Option<String>,
}

impl Error {
    /// An error of `code`, with a stable `id` such as `weights-missing-tensor`, and one sentence on what happened.
    pub fn new(code: Code, id: &'static str, what: impl Into<String>) -> Self {
        Self(Box::new(Parts { code, id, what: what.into(), place: None, why: None, fix: None }))
    }

    /// A bad model, data set, tokenizer or template.
    pub fn input(id: &'static str, what: impl Into<String>) -> Self {
        Self::new(Code::Input, id, what)
    }

    /// A command line or configuration that cannot be followed.
    pub fn usage(id: &'static str, what: impl Into<String>) -> Self {
        Self::new(Code::Usage, id, what)
    }

    /// A broken invariant of the program itself.
    pub fn failure(id: &'static str, what: impl Into<String>) -> Self {
        Self::new(Code::Failure, id, what)
    }

    /// Shapes that an operation cannot work with.
    pub fn shape(what: impl Into<String>) -> Self {
        Self::failure("shape", what)
    }

    /// A file that cannot be read, written or created: `doing` is a phrase such as "reading the configuration".
    pub fn io(doing: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        use std::io::ErrorKind;
        let (code, id, fix) = match error.kind() {
            ErrorKind::NotFound => (Code::Input, "file-missing", "check the path"),
            ErrorKind::IsADirectory | ErrorKind::NotADirectory => (Code::Input, "file-kind", "check the path"),
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
                (Code::Resources, "file-permission", "check the permissions of the file and of its directory")
            }
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                (Code::Resources, "disk-full", "free some space, or choose another output directory")
            }
            _ => (Code::Resources, "file-io", "check the disk and the path"),
        };
        Self::new(code, id, format!("{doing} failed"))
            .at(path.display().to_string())
            .because(error.to_string())
            .fix(fix)
    }

    /// Names the place: file, line, row, tensor.
    #[must_use]
    pub fn at(mut self, place: impl Into<String>) -> Self {
        self.0.place = Some(place.into());
        self
    }

    /// Names the place unless one is known already, so that a caller can add its context to an inner error.
    #[must_use]
    pub fn at_if_unplaced(self, place: impl Into<String>) -> Self {
        if self.0.place.is_some() { self } else { self.at(place) }
    }

    /// Puts a place that is more to the point before the one that is known.
    #[must_use]
    pub(crate) fn before(self, place: impl Into<String>) -> Self {
        let known = self.place().map(|known| format!(", {known}")).unwrap_or_default();
        self.at(format!("{}{known}", place.into()))
    }

    /// Puts a wider place behind the one that is known.
    #[must_use]
    pub(crate) fn behind(self, place: impl Into<String>) -> Self {
        let known = self.place().map(|known| format!("{known}, ")).unwrap_or_default();
        self.at(format!("{known}{}", place.into()))
    }

    /// Says why.
    #[must_use]
    pub fn because(mut self, why: impl Into<String>) -> Self {
        self.0.why = Some(why.into());
        self
    }

    /// Says how to fix it.
    #[must_use]
    pub fn fix(mut self, fix: impl Into<String>) -> Self {
        self.0.fix = Some(fix.into());
        self
    }

    /// The kind of failure.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// The stable name of this error, for scripts and tests.
    pub fn id(&self) -> &'static str {
        self.0.id
    }

    /// One sentence on what happened.
    pub(crate) fn what(&self) -> &str {
        &self.0.what
    }

    /// Why it happened, if that is known.
    pub(crate) fn why(&self) -> Option<&str> {
        self.0.why.as_deref()
    }

    /// How to fix it, if that is known.
    pub(crate) fn cure(&self) -> Option<&str> {
        self.0.fix.as_deref()
    }

    /// Where it happened, if a place is known.
    pub fn place(&self) -> Option<&str> {
        self.0.place.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = &self.0;
        write!(f, "{} [{}]", visible(&parts.what), parts.id)?;
        for (label, text) in [("where", &parts.place), ("why", &parts.why), ("fix", &parts.fix)] {
            if let Some(text) = text {
                write!(f, "\n  {label}: {}", visible(text))?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// A text for a terminal: characters that it would obey (escape sequences) or that would turn the line around are
/// written as their codes. Names of files, columns and tokens come from outside.
pub(crate) fn visible(text: &str) -> Cow<'_, str> {
    let obeyed =
        |c: char| c.is_control() && c != '\n' || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if !text.contains(obeyed) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if obeyed(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    Cow::Owned(shown)
}

/// The name nearest to `unknown` among `known`, if it is near enough to be a typing error.
pub(crate) fn nearest<'a>(unknown: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = unknown.len() / 3 + 1;
    known.into_iter().map(|name| (edits(unknown, name), name)).filter(|(n, _)| *n <= limit).min().map(|(_, name)| name)
}

/// Levenshtein distance, in bytes.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_all_parts() {
        let error = Error::input("row-empty", "the row is empty").at("a.jsonl:3").because("no text").fix("remove it");
        let text = error.to_string();
        assert_eq!(text, "the row is empty [row-empty]\n  where: a.jsonl:3\n  why: no text\n  fix: remove it");
        assert_eq!(error.code() as i32, 3);
    }

    #[test]
    fn nothing_from_outside_moves_the_terminal() {
        let error = Error::input("a", "column \u{1b}[2J").at("x\ry").because("one\ntwo").fix("\u{202e}ok");
        assert_eq!(error.to_string(), "column \\u{1b}[2J [a]\n  where: x\\ry\n  why: one\ntwo\n  fix: \\u{202e}ok");
    }

    #[test]
    fn typing_errors_find_their_neighbour() {
        assert_eq!(nearest("learning_rat", ["learning_rate", "seed"]), Some("learning_rate"));
        assert_eq!(nearest("zzzzzz", ["learning_rate", "seed"]), None);
    }
}
