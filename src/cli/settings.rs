//! A stage's settings and where each came from: the command line, a configuration file, or the default. A file's keys
//! are the options' names, with `_` or `-`; they are put before the command line's own options, which win.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Args, Command};

use crate::error::{Error, Result, nearest};

/// One effective setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) name: String,
    pub(super) value: String,
    pub(super) origin: &'static str,
}

/// All settings of a stage, in the order of its help.
#[derive(Debug, Clone, Default)]
pub(super) struct Settings {
    pub(super) stage: &'static str,
    pub(super) list: Vec<Setting>,
}

/// Keys of a file and the TOML values under them.
pub(super) type Table = toml::Table;

/// Bytes of a configuration file at most.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Reads a TOML file.
pub(super) fn read_file(path: &Path) -> Result<Table> {
    let doing = "reading the configuration";
    let size = std::fs::metadata(path).map_err(|e| Error::io(doing, path, &e))?.len();
    if size > FILE_BYTES_MAX {
        return Err(
            Error::input("config-too-large", format!("a configuration of {size} bytes")).at(path.display().to_string())
        );
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io(doing, path, &e))?;
    let place = || path.display().to_string();
    let text = String::from_utf8(bytes).map_err(|e| {
        Error::usage("config-utf8", "the configuration is not UTF-8").at(place()).because(e.to_string())
    })?;
    text.parse::<Table>().map_err(|e| {
        let line = 1 + e.span().map_or(0, |span| text.bytes().take(span.start).filter(|b| *b == b'\n').count());
        Error::usage("config-toml", "the configuration is not TOML")
            .at(format!("{}:{line}", place()))
            .because(e.message().to_owned())
    })
}

/// The options of `T` from `tables` (earlier ones give way to later ones) and then `given`, the command line's own.
pub(super) fn resolve<T: Args>(
    stage: &'static str,
    tables: &[(Option<PathBuf>, Table)],
    given: Vec<OsString>,
) -> Result<(T, Settings)> {
    let command = T::augment_args(Command::new(stage).args_override_self(true));
    let command = command.arg(clap::Arg::new("config").long("config"));
    let mut args = vec![OsString::from(stage)];
    let mut in_file = Vec::new();
    for (path, table) in tables {
        for (key, value) in table {
            let option = option(&command, key, path.as_deref())?;
            in_file.push(option.clone());
            args.extend(words(&option, value, path.as_deref())?);
        }
    }
    let own: Vec<OsString> = given.clone();
    args.extend(given);
    let matches = command.clone().try_get_matches_from(args).map_err(|e| wrong_value(&e, tables))?;
    let parsed = T::from_arg_matches(&matches).map_err(|e| wrong_value(&e, tables))?;
    let list = command
        .get_arguments()
        .filter(|arg| arg.get_id() != "config")
        .filter_map(|arg| {
            let name = arg.get_long()?;
            let values = matches.get_raw(arg.get_id().as_str())?;
            let value = values.map(|v| v.to_string_lossy()).collect::<Vec<_>>().join(" ");
            let flag = format!("--{name}");
            let on_line =
                own.iter().any(|a| a.to_str().is_some_and(|a| a == flag || a.starts_with(&format!("{flag}="))));
            let origin = match (on_line, in_file.iter().any(|f| f == name)) {
                (true, _) => "command line",
                (false, true) => "file",
                (false, false) => "default",
            };
            Some(Setting { name: name.to_owned(), value, origin })
        })
        .collect();
    Ok((parsed, Settings { stage, list }))
}

/// The long name of the option that `key` means.
fn option(command: &Command, key: &str, path: Option<&Path>) -> Result<String> {
    let name = key.replace('_', "-");
    let known = || command.get_arguments().filter_map(clap::Arg::get_long).filter(|n| *n != "config");
    if known().any(|n| n == name) {
        return Ok(name);
    }
    let error = Error::usage("config-unknown-key", format!("`{key}` is not a setting of {}", command.get_name()));
    let error = path.map_or(error.clone(), |p| error.at(p.display().to_string()));
    Err(match nearest(&name, known()) {
        Some(near) => error.fix(format!("did you mean `{}`?", near.replace('-', "_"))),
        None => error.fix(format!("`rlhf {} --help` lists all settings", command.get_name())),
    })
}

/// A key and its value as words of a command line.
fn words(option: &str, value: &toml::Value, path: Option<&Path>) -> Result<Vec<OsString>> {
    let text = match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Integer(n) => n.to_string(),
        toml::Value::Float(x) => x.to_string(),
        toml::Value::Boolean(b) => b.to_string(),
        other => {
            let what = format!("`{}` is not one value but a TOML {}", option.replace('-', "_"), other.type_str());
            let error = Error::usage("config-value", what);
            return Err(path.map_or(error.clone(), |p| error.at(p.display().to_string())));
        }
    };
    Ok(vec![OsString::from(format!("--{option}={text}"))])
}

/// clap's error, which names option and value, as one of ours.
fn wrong_value(error: &clap::Error, tables: &[(Option<PathBuf>, Table)]) -> Error {
    let text = error.to_string();
    let text = text.trim_start_matches("error: ").lines().next().unwrap_or_default().to_owned();
    let files: Vec<String> = tables.iter().filter_map(|(p, _)| p.as_ref().map(|p| p.display().to_string())).collect();
    let error = Error::usage("config-value", text);
    if files.is_empty() { error } else { error.at(files.join(", ")) }
}

impl Settings {
    /// A table to read: what was chosen first, then the defaults in fewer words.
    pub(super) fn describe(&self) -> String {
        let mut lines = Vec::new();
        for setting in self.list.iter().filter(|s| s.origin != "default") {
            lines.push(format!("  {:<28} {:<24} {}", setting.name, setting.value, setting.origin));
        }
        let defaults: Vec<String> =
            self.list.iter().filter(|s| s.origin == "default").map(|s| format!("{} {}", s.name, s.value)).collect();
        lines.push(format!("  defaults: {}", defaults.join(", ")));
        lines.join("\n")
    }

    /// Adds the default of an option that has none on the command line.
    pub(super) fn complete(&mut self, name: &str, value: usize) {
        if self.list.iter().all(|s| s.name != name) {
            self.list.push(Setting { name: name.to_owned(), value: value.to_string(), origin: "default" });
        }
    }

    /// The same as JSON: name to value and origin.
    pub(super) fn to_json(&self) -> serde_json::Value {
        let entry = |s: &Setting| (s.name.clone(), serde_json::json!({ "value": s.value, "origin": s.origin }));
        serde_json::Value::Object(self.list.iter().map(entry).collect())
    }

    /// What a model card shows: the settings that were chosen, paths left out.
    pub(super) fn for_card(&self) -> Vec<(String, String)> {
        let chosen = self
            .list
            .iter()
            .filter(|s| !s.name.contains("path") && !s.name.contains("dataset") && !s.name.ends_with("dir"));
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
        let origin = |name: &str| settings.list.iter().find(|s| s.name == name).unwrap().origin;
        assert_eq!(
            (origin("learning-rate"), origin("max-length"), origin("seed")),
            ("command line", "file", "default")
        );
    }

    #[test]
    fn a_typing_error_is_named_with_its_neighbour() {
        let error = resolve::<SftConfig>("sft", &table("learning_rat = 1"), vec![]).unwrap_err();
        assert_eq!(error.id(), "config-unknown-key");
        assert!(error.to_string().contains("did you mean `learning_rate`"), "{error}");
    }

    #[test]
    fn a_wrong_value_is_named() {
        for text in ["learning_rate = \"fast\"", "learning_rate = -1", "max_length = 0", "seed = [1]", "packing = 3"] {
            let error = resolve::<SftConfig>("sft", &table(text), vec![]).unwrap_err();
            assert_eq!(error.id(), "config-value", "{text}: {error}");
        }
    }
}
