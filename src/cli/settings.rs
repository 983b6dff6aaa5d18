//! A stage's settings and where each came from: the command line, a configuration file, or the default. A file's keys
//! are the options' names, with `_` or `-`; they are put before the command line's own options, which win.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue};
use clap::parser::ArgMatches;
use clap::{Arg, ArgAction, Command};

use super::estimate::Estimate;
use super::usual::{NOTHING, Stage, Usual, usual};
use crate::error::{Error, Result, nearest};
use crate::files::read_plain;
use crate::train::checkpoint::identity::IGNORED;

/// One effective setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(super) name: String,
    pub(super) value: String,
    /// The command line, the file and the line in it, the stage before, or the default.
    pub(super) origin: String,
    /// Whether `value` is no value of the option but says what happens without one.
    pub(super) is_words: bool,
}

const COMMAND_LINE: &str = "command line";
const DEFAULT: &str = "default";
/// Of what `rlhf run` itself fills in.
const STAGE_BEFORE: &str = "the stage before";

/// Options that stand beside a stage's own on the lines of some commands, and whether they take a value.
pub(super) const BESIDE: [(&str, bool); 2] = [("config", true), ("memory", true)];

/// All settings of a stage, in the order of its help.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings {
    pub(super) stage: &'static str,
    pub(super) list: Vec<Setting>,
    /// Whether it is only asked what the run would take.
    pub(super) estimate: Option<Estimate>,
}

/// Keys of a file and the TOML values under them.
pub(crate) type Table = toml::Table;

/// Bytes of a configuration file at most, how deep its brackets may nest, and how much of a bad line is shown.
const FILE_BYTES_MAX: u64 = 1 << 20;
const DEPTH_MAX: usize = 64;
const EXCERPT_CHARS: usize = 80;

/// Reads a TOML file.
pub(super) fn read_file(path: &Path) -> Result<Table> {
    parse(read_plain(path, "reading the configuration", FILE_BYTES_MAX)?, path)
}

/// Reads the bytes of the TOML file `path`.
pub(crate) fn parse(bytes: Vec<u8>, path: &Path) -> Result<Table> {
    let text = String::from_utf8(bytes).map_err(|e| {
        Error::usage("config-utf8", "the configuration is not UTF-8")
            .at(path.display().to_string())
            .because(e.to_string())
            .fix("save it as UTF-8")
    })?;
    // Editors on Windows begin a file with a byte order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    check_depth(text).map_err(|line| {
        Error::usage("config-toml", "the configuration is not TOML that is read")
            .at(format!("{}:{line}", path.display()))
            .because("it nests too deeply")
            .fix("write one setting a line: name = value")
    })?;
    text.parse::<Table>().map_err(|e| {
        let line = line_at(text, e.span().map_or(0, |span| span.start));
        let excerpt = text.lines().nth(line - 1).unwrap_or_default();
        let excerpt: String = excerpt.chars().take(EXCERPT_CHARS).collect();
        Error::usage("config-toml", "the configuration is not TOML")
            .at(format!("{}:{line}", path.display()))
            .because(format!("{}; the line reads {excerpt:?}", e.message().replace('\n', "; ")))
            .fix("write one setting a line: name = value, with texts in quotes")
    })
}

/// The number of the line in which a byte stands, from 1.
fn line_at(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count()
}

/// Refuses brackets that open without closing, by the line of the last: the parser recurses over them.
fn check_depth(text: &str) -> std::result::Result<(), usize> {
    let mut depth = 0_usize;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEPTH_MAX {
            return Err(line_at(text, at));
        }
    }
    Ok(())
}

/// The line of each key of a file, by its name with `-`: of the top, and of the table of the stage, which wins.
fn lines(path: &Path, stage: &str) -> BTreeMap<String, usize> {
    let text = read_plain(path, "reading the configuration", FILE_BYTES_MAX).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let mut lines = BTreeMap::new();
    if let Ok(file) = toml::de::DeTable::parse(&text) {
        let file = file.get_ref();
        let own = file.get(stage).and_then(|value| value.get_ref().as_table());
        for name in [Some(file), own].into_iter().flatten().flat_map(|table| table.keys()) {
            lines.insert(name.get_ref().replace('_', "-"), line_at(&text, name.span().start));
        }
    }
    lines
}

/// Where a key stands: the file, and the line if it is found there.
fn place_of(path: &Path, stage: &str, key: &str) -> String {
    in_words(path, lines(path, stage).get(&key.replace('_', "-")))
}

fn in_words(path: &Path, line: Option<&usize>) -> String {
    format!("{}{}", path.display(), line.map(|line| format!(":{line}")).unwrap_or_default())
}

/// The options of `T` from `tables` (earlier ones give way to later ones) and then `given`, the command line's own.
pub(crate) fn resolve<T: Stage>(
    stage: &'static str,
    tables: &[(Option<PathBuf>, Table)],
    given: Vec<OsString>,
) -> Result<(T, Settings)> {
    let mut command = T::augment_args(Command::new(stage).args_override_self(true));
    for (name, has_value) in BESIDE {
        let action = if has_value { ArgAction::Set } else { ArgAction::SetTrue };
        command = command.arg(Arg::new(name).long(name).action(action));
    }
    let mut args = vec![OsString::from(stage)];
    let mut origins = BTreeMap::new();
    for (path, table) in tables {
        let lines = path.as_deref().map(|path| lines(path, stage)).unwrap_or_default();
        let mut names = Vec::new();
        for (key, value) in table {
            let option = option(&command, key, path.as_deref())?;
            if names.contains(&option) {
                let error = Error::usage("config-value", format!("`{key}` stands twice, as `_` and `-` mean the same"));
                let error = error.fix("keep one of the two");
                return Err(path.as_deref().map_or(error.clone(), |path| error.at(place_of(path, stage, key))));
            }
            names.push(option.clone());
            let origin = path.as_deref().map(|path| in_words(path, lines.get(&option)));
            origins.insert(option.clone(), origin.unwrap_or_else(|| STAGE_BEFORE.to_owned()));
            args.extend(words(stage, &option, value, path.as_deref())?);
        }
    }
    for word in given.iter().filter_map(|word| word.to_str()?.strip_prefix("--")) {
        let name = word.split('=').next().unwrap_or_default();
        origins.insert(name.to_owned(), COMMAND_LINE.to_owned());
    }
    args.extend(given);
    let matches = command.clone().try_get_matches_from(args).map_err(|e| wrong_value(&e, stage, tables))?;
    let parsed = T::from_arg_matches(&matches).map_err(|e| wrong_value(&e, stage, tables))?;
    let own = command.get_arguments().filter(|arg| !BESIDE.iter().any(|(name, _)| arg.get_id() == *name));
    let list = own.filter_map(|arg| setting::<T>(arg, &matches, &mut origins)).collect();
    Ok((parsed, Settings { stage, list, estimate: None }))
}

/// What an option is, and from where.
fn setting<T: Stage>(arg: &Arg, matches: &ArgMatches, origins: &mut BTreeMap<String, String>) -> Option<Setting> {
    let name = arg.get_long()?.to_owned();
    let text = |id: &str| {
        let values = matches.get_raw(id)?;
        Some(values.map(|v| v.to_string_lossy()).collect::<Vec<_>>().join(" "))
    };
    let (value, is_words) = match (text(arg.get_id().as_str()), usual::<T>(&name)) {
        (Some(value), _) => (value, false),
        (None, Usual::Value(value)) => (value, false),
        (None, Usual::As(other)) => (text(&other.replace('-', "_")).unwrap_or_default(), false),
        (None, Usual::Words(words)) => (words.to_owned(), true),
    };
    let origin = origins.remove(&name).unwrap_or_else(|| DEFAULT.to_owned());
    Some(Setting { name, value, origin, is_words })
}

/// The long name of the option that `key` means.
fn option(command: &Command, key: &str, path: Option<&Path>) -> Result<String> {
    let name = key.replace('_', "-");
    let known =
        || command.get_arguments().filter_map(Arg::get_long).filter(|n| !BESIDE.iter().any(|(name, _)| name == n));
    if known().any(|n| n == name) {
        return Ok(name);
    }
    let error = Error::usage("config-unknown-key", format!("`{key}` is not a setting of {}", command.get_name()));
    let error = path.map_or(error.clone(), |p| error.at(place_of(p, command.get_name(), key)));
    Err(match nearest(&name, known()) {
        Some(near) => error.fix(format!("did you mean `{}`?", near.replace('-', "_"))),
        None => error.fix(format!("`rlhf {} --help` lists all settings", command.get_name())),
    })
}

/// A key and its value as words of a command line.
fn words(stage: &str, option: &str, value: &toml::Value, path: Option<&Path>) -> Result<Vec<OsString>> {
    let text = match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Integer(n) => n.to_string(),
        toml::Value::Float(x) => x.to_string(),
        toml::Value::Boolean(b) => b.to_string(),
        other => {
            let key = option.replace('-', "_");
            let what = format!("`{key}` is not one value but a TOML {}", other.type_str());
            let error = Error::usage("config-value", what).fix(format!("write {key} = and one value"));
            return Err(path.map_or(error.clone(), |p| error.at(place_of(p, stage, &key))));
        }
    };
    Ok(vec![OsString::from(format!("--{option}={text}"))])
}

/// clap's error about a value of a file, as one of ours: it names the key, the line, the value, and what is allowed.
fn wrong_value(error: &clap::Error, stage: &str, tables: &[(Option<PathBuf>, Table)]) -> Error {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(list)) => Some(list.join(", ")),
        _ => None,
    };
    let whole = error.to_string();
    let whole = whole.trim_start_matches("error: ").lines().next().unwrap_or_default().to_owned();
    let argument = text(ContextKind::InvalidArg);
    let name = argument.as_deref().and_then(|arg| arg.strip_prefix("--")?.split(['=', ' ', '[']).next());
    let (Some(name), Some(value)) = (name, text(ContextKind::InvalidValue)) else {
        return Error::usage("config-value", whole).fix(format!("`rlhf {stage} --help` lists all settings"));
    };
    let key = name.replace('-', "_");
    let shown: String = value.chars().take(EXCERPT_CHARS).collect();
    let error_here = Error::usage("config-value", format!("`{key}` cannot be {shown:?}"));
    let why = std::error::Error::source(error).map(ToString::to_string);
    let why = why.or_else(|| text(ContextKind::ValidValue).map(|list| format!("possible are {list}")));
    let error_here = error_here.because(why.unwrap_or(whole)).fix(format!("`rlhf {stage} --help` says what it takes"));
    let has_key = |table: &Table| table.keys().any(|k| k.replace('_', "-") == name);
    let path = tables.iter().rev().find(|(path, table)| path.is_some() && has_key(table)).and_then(|(p, _)| p.as_ref());
    path.map_or(error_here.clone(), |path| error_here.at(place_of(path, stage, &key)))
}

impl Setting {
    fn line(&self) -> String {
        format!("  {:<28} {:<24} {}", self.name, self.value, self.origin)
    }
}

impl Settings {
    /// A table to read: what was chosen first, then the defaults in fewer words.
    pub(crate) fn describe(&self) -> String {
        let (defaults, chosen): (Vec<&Setting>, Vec<&Setting>) = self.list.iter().partition(|s| s.origin == DEFAULT);
        let mut lines: Vec<String> = chosen.into_iter().map(Setting::line).collect();
        let brief = |s: &Setting| match s.is_words {
            true => format!("{} ({})", s.name, s.value),
            false => format!("{} {}", s.name, s.value),
        };
        let defaults = defaults.into_iter().filter(|s| s.value != NOTHING).map(brief).collect::<Vec<_>>();
        lines.push(format!("  defaults: {}", defaults.join(", ")));
        lines.join("\n")
    }

    /// Every setting, one a line.
    pub(super) fn table(&self) -> String {
        self.list.iter().map(Setting::line).collect::<Vec<_>>().join("\n")
    }

    /// Puts a value in the place of words: what the data or the model made of a setting that nobody gave.
    pub(super) fn settle(&mut self, name: &str, value: usize) {
        if let Some(setting) = self.list.iter_mut().find(|s| s.name == name && s.is_words) {
            (setting.value, setting.is_words) = (value.to_string(), false);
        }
    }

    /// The same as JSON: name to value and origin.
    pub(super) fn to_json(&self) -> serde_json::Value {
        let entry = |s: &Setting| (s.name.clone(), serde_json::json!({ "value": s.value, "origin": s.origin }));
        serde_json::Value::Object(self.list.iter().map(entry).collect())
    }

    /// Option to value, where there is one.
    pub(crate) fn to_map(&self) -> BTreeMap<String, String> {
        self.list.iter().filter(|s| !s.is_words).map(|s| (s.name.clone(), s.value.clone())).collect()
    }

    /// What a model card shows: the settings that were chosen, paths left out.
    pub(super) fn for_card(&self) -> Vec<(String, String)> {
        let is_place = |name: &str| name.contains("path") || name.contains("dataset") || name.ends_with("dir");
        // A resumed run has the card of one that never stopped.
        let shown = |s: &&Setting| !s.is_words && !is_place(&s.name) && !IGNORED.contains(&s.name.as_str());
        let chosen = self.list.iter().filter(shown);
        chosen.map(|s| (s.name.clone(), s.value.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SftConfig;

    fn table(text: &str) -> Vec<(Option<PathBuf>, Table)> {
        vec![(Some(PathBuf::from("a.toml")), text.parse().unwrap())]
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let file = table("learning_rate = 1e-3\nmax-length = 7\npacking = true\nassistant_only_loss = true");
        let own = ["--learning-rate", "2e-3", "--packing=false"].map(OsString::from).to_vec();
        let (config, settings) = resolve::<SftConfig>("sft", &file, own).unwrap();
        assert_eq!((config.learning_rate, config.epochs.max_length), (2e-3, Some(7)));
        assert_eq!((config.packing, config.assistant_only_loss), (false, true));
        let origin = |name: &str| &settings.list.iter().find(|s| s.name == name).unwrap().origin[..];
        // The file is not there, so that nobody knows the line.
        assert_eq!(
            (origin("learning-rate"), origin("max-length"), origin("seed")),
            ("command line", "a.toml", "default")
        );
    }

    #[test]
    fn a_typing_error_is_named_with_its_neighbour() {
        let error = resolve::<SftConfig>("sft", &table("learning_rat = 1"), vec![]).unwrap_err();
        assert_eq!(error.id(), "config-unknown-key");
        assert!(error.to_string().contains("did you mean `learning_rate`"), "{error}");
    }

    #[test]
    fn a_key_is_found_in_its_table() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.toml");
        std::fs::write(&path, "seed = 1\n\n[sft]\n\"max-length\" = 3\n[ppo]\nseed = 2\n").unwrap();
        let line = |stage, key| place_of(&path, stage, key).rsplit("a.toml").next().map(str::to_owned);
        let found = [("ppo", "seed"), ("sft", "seed"), ("sft", "max_length"), ("sft", "none")].map(|(s, k)| line(s, k));
        assert_eq!(found, [":6", ":1", ":4", ""].map(|text| Some(text.to_owned())));
        assert_eq!(
            (check_depth(&"a = [[]]\n".repeat(99)), check_depth(&format!("\n{}", "[".repeat(65)))),
            (Ok(()), Err(2))
        );
    }

    #[test]
    fn a_wrong_value_is_named() {
        for text in ["learning_rate = \"fast\"", "learning_rate = -1", "max_length = 0", "seed = [1]", "packing = 3"] {
            let error = resolve::<SftConfig>("sft", &table(text), vec![]).unwrap_err();
            assert_eq!(error.id(), "config-value", "{text}: {error}");
        }
    }
}
