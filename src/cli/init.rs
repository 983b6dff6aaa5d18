//! `rlhf init`: a configuration file to start from, with every key of a stage, or of all three: what it means, what it
//! takes and what it is by default. All of it is taken from the options' own definitions.

use std::path::{Path, PathBuf};

use clap::{Arg, Command};

use super::options::takes;
use super::selftest::print;
use super::usual::{Stage, Usual, usual};
use crate::config::{PpoConfig, RewardConfig, SftConfig};
use crate::disk;
use crate::error::{Error, Result};

/// Options of `rlhf init`.
#[derive(Debug, clap::Args)]
pub(super) struct InitArgs {
    /// Whose settings: those of one stage, or of all three in one file
    #[arg(default_value = "run", value_enum)]
    what: What,
    /// File to write; must not exist [sft.toml, reward.toml, ppo.toml or run.toml]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// The command that will read the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum What {
    /// Supervised fine-tuning
    Sft,
    /// A reward model
    Reward,
    /// PPO
    Ppo,
    /// All three stages, for `rlhf run`
    Run,
}

impl What {
    fn name(self) -> &'static str {
        match self {
            Self::Sft => SftConfig::NAME,
            Self::Reward => RewardConfig::NAME,
            Self::Ppo => PpoConfig::NAME,
            Self::Run => "run",
        }
    }

    fn text(self) -> String {
        match self {
            Self::Sft => stage::<SftConfig>(),
            Self::Reward => stage::<RewardConfig>(),
            Self::Ppo => stage::<PpoConfig>(),
            Self::Run => all_stages(),
        }
    }
}

/// Columns of a line.
const WIDTH: usize = 100;

/// Writes the file.
pub(super) fn run(args: &InitArgs) -> Result<()> {
    let name = args.what.name();
    let path = args.output.clone().unwrap_or_else(|| PathBuf::from(format!("{name}.toml")));
    if std::fs::symlink_metadata(&path).is_ok() {
        return Err(Error::usage("output-exists", "the file exists")
            .at(path.display().to_string())
            .because("settings that somebody chose may stand in it")
            .fix("choose another --output, or move the old one away"));
    }
    disk::write_file(&path, args.what.text().as_bytes())?;
    print(&format!("{} is written: fill in its paths, then `rlhf {name} --config {}`", show(&path), show(&path)));
    Ok(())
}

fn show(path: &Path) -> String {
    crate::error::visible(&path.display().to_string()).into_owned()
}

/// A key of a file.
#[derive(Debug, Clone, PartialEq)]
struct Key {
    name: String,
    heading: String,
    help: String,
    takes: String,
    default: String,
    /// As TOML, where the default is a value.
    value: Option<String>,
}

/// All keys of a stage.
fn keys<T: Stage>() -> Vec<Key> {
    let command = T::augment_args(Command::new(T::NAME));
    command.get_arguments().filter_map(|arg| key::<T>(&command, arg)).collect()
}

fn key<T: Stage>(command: &Command, arg: &Arg) -> Option<Key> {
    let long = arg.get_long()?;
    let default = |arg: &Arg| arg.get_default_values().first().map(|value| value.to_string_lossy().into_owned());
    let of = |name: &str| command.get_arguments().find(|arg| arg.get_long() == Some(name)).and_then(&default);
    let kind = || {
        let names = arg.get_value_names().unwrap_or_default();
        match names.first().map_or("", |name| name.as_str()) {
            "DIR" => "directory".to_owned(),
            name => name.to_lowercase(),
        }
    };
    let (value, words) = match (default(arg), usual::<T>(long)) {
        (Some(value), _) | (None, Usual::Value(value)) => (Some(value), None),
        (None, Usual::As(other)) => (of(other), Some(format!("that of {}", other.replace('-', "_")))),
        (None, Usual::Words(words)) => (None, Some(words.to_owned())),
    };
    Some(Key {
        name: long.replace('-', "_"),
        heading: arg.get_help_heading().unwrap_or("Options").to_owned(),
        help: arg.get_help().map(ToString::to_string).unwrap_or_default(),
        takes: takes(command, arg).unwrap_or_else(kind),
        default: words.or_else(|| value.clone()).unwrap_or_default(),
        value: value.map(|value| toml(&value)),
    })
}

/// A value as TOML.
fn toml(text: &str) -> String {
    let is_bare = text.parse::<bool>().is_ok() || text.parse::<f64>().is_ok_and(f64::is_finite);
    if is_bare { text.to_owned() } else { toml::Value::String(text.to_owned()).to_string() }
}

impl Key {
    /// The comment above the key: what it means, what it takes, what it is by default.
    fn comment(&self, default: &str) -> String {
        let mut lines = wrapped(&self.help);
        lines.extend(wrapped(&format!("takes: {}; {default}", self.takes)));
        lines.concat()
    }

    /// At its default, which is a comment.
    fn at_default(&self) -> String {
        let value = self.value.as_deref().map(|value| format!(" {value}")).unwrap_or_default();
        format!("{}#{} ={value}\n\n", self.comment(&format!("default: {}", self.default)), self.name)
    }

    /// To be filled in.
    fn needed(&self, place: &str) -> String {
        format!("{}{} = {}\n\n", self.comment("needed"), self.name, toml(place))
    }
}

/// Comment lines.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::from("#")];
    for word in text.split_whitespace() {
        let full = lines.last().is_some_and(|line| line.len() + 1 + word.len() > WIDTH);
        if full {
            lines.push(String::from("#"));
        }
        if let Some(line) = lines.last_mut() {
            line.push(' ');
            line.push_str(word);
        }
    }
    lines.into_iter().map(|line| line + "\n").collect()
}

/// Keys at their defaults, under the headings that the help has.
fn groups(keys: &[Key]) -> String {
    let mut text = String::new();
    let mut headings: Vec<&str> = Vec::new();
    for key in keys {
        if !headings.contains(&key.heading.as_str()) {
            headings.push(&key.heading);
        }
    }
    for heading in headings {
        text.push_str(&format!("# ---- {heading} ----\n\n"));
        text.extend(keys.iter().filter(|key| key.heading == heading).map(Key::at_default));
    }
    text
}

/// The needed keys with their places, and all others.
fn split<T: Stage>(keys: Vec<Key>) -> (String, Vec<Key>) {
    let place = |key: &Key| T::REQUIRED.iter().find(|(name, _)| name.replace('-', "_") == key.name).map(|(_, p)| *p);
    let needed = keys.iter().filter_map(|key| place(key).map(|place| key.needed(place))).collect();
    (needed, keys.into_iter().filter(|key| place(key).is_none()).collect())
}

const HEAD: &str = "A key behind `#` is at its default: remove the `#` to change it. Options on the command line win.";

/// How a file begins.
fn head(purpose: &str) -> String {
    [wrapped(purpose), wrapped(HEAD)].concat().concat() + "\n"
}

/// The file of one stage.
fn stage<T: Stage>() -> String {
    let name = T::NAME;
    let (needed, rest) = split::<T>(keys::<T>());
    let head = head(&format!("Settings of `rlhf {name}`, to be given with --config."));
    format!("{head}{needed}{}", groups(&rest))
}

/// The file of `rlhf run`: at the top what stages share, each in the same meaning and with the same default; in the
/// tables what is a stage's own.
fn all_stages() -> String {
    let all = [keys::<SftConfig>(), keys::<RewardConfig>(), keys::<PpoConfig>()];
    let is_shared = |key: &Key| {
        let same: Vec<&Key> = all.iter().flatten().filter(|other| other.name == key.name).collect();
        same.len() > 1 && same.iter().all(|other| *other == key) && !key.name.ends_with("dataset")
    };
    let mut top: Vec<Key> = Vec::new();
    for key in all.iter().flatten().filter(|key| is_shared(key)) {
        if top.iter().all(|other| other.name != key.name) {
            top.push(key.clone());
        }
    }
    let mut needed = String::new();
    for (name, place) in [("model_name_or_path", "path/to/model"), ("output_dir", "out")] {
        needed.extend(top.iter().find(|key| key.name == name).map(|key| key.needed(place)));
        top.retain(|key| key.name != name);
    }
    let [sft, reward, ppo] = all.map(|keys| keys.into_iter().filter(|key| !is_shared_name(&top, key)).collect());
    let tables = [table::<SftConfig>(sft), table::<RewardConfig>(reward), table::<PpoConfig>(ppo)];
    let head = head(
        "Settings of `rlhf run`, to be given with --config. Keys at the top are shared by the stages that know them, \
         and the tables hold each stage's own, which win. Each stage starts from what the one before wrote.",
    );
    format!("{head}{needed}{}{}", groups(&top), tables.concat())
}

/// Whether a key stands at the top: one of `top`, or one that is needed there.
fn is_shared_name(top: &[Key], key: &Key) -> bool {
    ["model_name_or_path", "output_dir"].contains(&key.name.as_str()) || top.iter().any(|other| other.name == key.name)
}

/// A stage's own part of the file of `rlhf run`, in which the stages before have written the models.
fn table<T: Stage>(mut keys: Vec<Key>) -> String {
    for key in keys.iter_mut().filter(|key| key.name.ends_with("_model_path")) {
        key.default = "what the stage before wrote".to_owned();
    }
    let is_model = |key: &Key| key.name.ends_with("_model_path");
    let (models, keys): (Vec<Key>, Vec<Key>) = keys.into_iter().partition(is_model);
    let (needed, rest) = split::<T>(keys);
    format!("[{}]\n\n{needed}{}", T::NAME, groups(&[models, rest].concat()))
}

#[cfg(test)]
#[path = "init_tests.rs"]
mod tests;
