//! What a run is made from, and what it means for a run that is resumed if that is no longer the same: nothing, another
//! result, or that it cannot go on. Files are told by their content, not by their name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::manifest::{Job, hash, hex};
use crate::error::{Error, Result};

/// What a run is made from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    /// The program's version, and the SHA-256 of its file.
    pub(crate) program: BTreeMap<String, String>,
    /// What computes, and in which floats.
    pub(crate) arithmetic: String,
    /// Options by name, as they were given or are by default.
    pub(crate) settings: BTreeMap<String, String>,
    /// Data and models: the SHA-256 of their content.
    pub(crate) inputs: BTreeMap<String, String>,
    /// Numbers that the settings and the data gave.
    pub(crate) numbers: BTreeMap<String, u64>,
}

/// What a difference means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Effect {
    /// The result is that of the run that never stopped.
    Harmless,
    /// The run can go on to another result.
    Result,
    /// The run cannot go on.
    Impossible,
}

/// Something that is not as it was when the checkpoint was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) effect: Effect,
    text: String,
}

/// Options that decide no weight, and why; all others do.
const HARMLESS: &[(&str, &str)] = &[
    ("output-dir", "the same files lie elsewhere"),
    ("model-name-or-path", "its files are compared"),
    ("sft-model-path", "its files are compared"),
    ("reward-model-path", "its files are compared"),
    ("dataset", "its content is compared"),
    ("eval-dataset", "nothing is learnt from it"),
    ("eval-steps", "nothing is learnt from evaluations"),
    ("device", "what computes is compared"),
    ("dtype", "what computes is compared"),
    ("logging-steps", "later rows of metrics.jsonl stand for other steps"),
    ("save-steps", "what is saved does not change what is learnt"),
    ("save-total-limit", "what is kept does not change what is learnt"),
    ("strict", "it refuses data and changes none"),
    ("num-sample-generations", "nothing is learnt from samples"),
    ("num-sample-prompts", "nothing is learnt from samples"),
    ("judge-model-path", "nothing is learnt from a judge"),
    ("recompute", "the results are the same to the bit"),
];
/// Options about this start of the program alone.
pub(crate) const IGNORED: [&str; 6] = ["resume", "accept-changes", "dry-run", "quiet", "json", "config"];
/// Options that the place in the data is counted by.
const IMPOSSIBLE: &[(&str, &str)] = &[
    ("per-device-train-batch-size", "a step's number would mean other rows"),
    ("gradient-accumulation-steps", "a step's number would mean other rows"),
    ("num-mini-batches", "a step's number would mean other prompts"),
    ("seed", "the order of the rows would be another: some would be visited twice, others never"),
];
/// Inputs whose change decides no weight from a checkpoint on.
const HARMLESS_INPUTS: &[(&str, &str)] = &[
    ("eval_dataset", "nothing is learnt from it"),
    ("judge_model/weights", "nothing is learnt from a judge"),
    ("model/weights", "all weights are in the checkpoint"),
];

/// What a missing value is called.
const NONE: &str = "none";

impl Identity {
    /// The running program.
    ///
    /// # Errors
    /// Input and output errors.
    pub(crate) fn of_program() -> Result<BTreeMap<String, String>> {
        // Hashed once: what runs stays what it is, whatever becomes of the file.
        static BUILD: OnceLock<String> = OnceLock::new();
        if BUILD.get().is_none() {
            let failed = |e| Error::io("looking for the program", Path::new("rlhf"), &e);
            let _ = BUILD.set(file_hash(&std::env::current_exe().map_err(failed)?)?);
        }
        let build = BUILD.get().cloned().unwrap_or_default();
        Ok(BTreeMap::from([("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()), ("build".to_owned(), build)]))
    }

    /// For `run.json`: what it takes to do the run again.
    pub(crate) fn reproduce(&self) -> Value {
        let words: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
        json!({
            "command": words,
            "threads": std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            "arithmetic": self.arithmetic,
            "program": self.program,
            "inputs": self.inputs,
        })
    }

    /// Everything that is not as in `saved`, the gravest first.
    pub(crate) fn differences(&self, saved: &Self) -> Vec<Difference> {
        let mut found = self.of_settings(saved);
        for (name, was, is) in changed(&saved.inputs, &self.inputs) {
            let why = HARMLESS_INPUTS.iter().find(|(input, _)| *input == name).map(|(_, why)| *why);
            let text = match (was, is) {
                (Some(_), Some(_)) => format!("{name}: its content is another"),
                (was, _) => format!("{name}: {}", if was.is_some() { "it is gone" } else { "it is new" }),
            };
            let effect = if why.is_some() { Effect::Harmless } else { Effect::Result };
            found.push(Difference::new(effect, text, why));
        }
        for (name, was, is) in changed(&saved.numbers, &self.numbers) {
            let number = |n: Option<&u64>| n.map_or(NONE.to_owned(), u64::to_string);
            let (effect, why) = match name {
                "rows" => (Effect::Impossible, Some("the place in the data is lost")),
                "rows_per_pass" => (Effect::Result, Some("gradients are summed in another order")),
                _ => (Effect::Result, None),
            };
            found.push(Difference::new(effect, format!("{name}: {}, was {}", number(is), number(was)), why));
        }
        for (name, was, is) in changed(&saved.program, &self.program) {
            let text = match name {
                "build" => "program: another build of rlhf".to_owned(),
                _ => format!("program: {name} {}, was {}", is.map_or(NONE, |s| s), was.map_or(NONE, |s| s)),
            };
            found.push(Difference::new(Effect::Result, text, Some("its arithmetic may differ")));
        }
        if self.arithmetic != saved.arithmetic {
            let text = format!("arithmetic: {}, was {}", self.arithmetic, saved.arithmetic);
            found.push(Difference::new(Effect::Result, text, Some("the last bits may differ")));
        }
        found.sort_by_key(|difference| std::cmp::Reverse(difference.effect));
        found
    }

    /// The options that are not as in `saved`.
    pub(crate) fn of_settings(&self, saved: &Self) -> Vec<Difference> {
        let reason = |list: &[(&str, &'static str)], name: &str| {
            list.iter().find(|(option, _)| *option == name).map(|(_, why)| *why)
        };
        let options = changed(&saved.settings, &self.settings)
            .into_iter()
            .filter(|(name, was, is)| !IGNORED.contains(name) && !is_same_number(*was, *is));
        options
            .map(|(name, was, is)| {
                let (effect, why) = match (reason(HARMLESS, name), reason(IMPOSSIBLE, name)) {
                    (Some(why), _) => (Effect::Harmless, Some(why)),
                    (_, Some(why)) => (Effect::Impossible, Some(why)),
                    _ => (Effect::Result, None),
                };
                let text = format!("--{name}: {}, was {}", is.map_or(NONE, |s| s), was.map_or(NONE, |s| s));
                Difference::new(effect, text, why)
            })
            .collect()
    }
}

/// Whether both are one number in two spellings, such as 1e-2 and 0.01.
fn is_same_number(a: Option<&String>, b: Option<&String>) -> bool {
    let number = |text: Option<&String>| text?.parse::<f64>().ok();
    number(a).is_some_and(|a| number(b) == Some(a))
}

/// Keys that stand in one map alone, or in both with other values: before, now.
fn changed<'a, V: PartialEq>(
    was: &'a BTreeMap<String, V>,
    is: &'a BTreeMap<String, V>,
) -> Vec<(&'a str, Option<&'a V>, Option<&'a V>)> {
    let names: BTreeSet<&String> = was.keys().chain(is.keys()).collect();
    let both = names.into_iter().map(|name| (name.as_str(), was.get(name), is.get(name)));
    both.filter(|(_, was, is)| was != is).collect()
}

impl Difference {
    fn new(effect: Effect, text: String, why: Option<&str>) -> Self {
        Self { effect, text: why.map_or(text.clone(), |why| format!("{text} ({why})")) }
    }
}

/// The differences, a line each.
pub(crate) fn describe(differences: &[Difference]) -> String {
    let line = |difference: &Difference| {
        let effect = match difference.effect {
            Effect::Harmless => "harmless",
            Effect::Result => "changes the result",
            Effect::Impossible => "impossible",
        };
        format!("  {effect:<20} {}", difference.text)
    };
    differences.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// An error if the run cannot go on, or if its result would be another and nobody accepted that.
///
/// # Errors
/// `resume-impossible`, `resume-changed`.
pub(crate) fn check(differences: &[Difference], accepted: bool, place: &str) -> Result<()> {
    let of = |effect| differences.iter().filter(|d| d.effect == effect).map(|d| d.text.as_str()).collect::<Vec<_>>();
    let (impossible, changing) = (of(Effect::Impossible), of(Effect::Result));
    if !impossible.is_empty() {
        return Err(Error::usage("resume-impossible", "the run cannot be resumed with what has changed")
            .at(place)
            .because(impossible.join("; "))
            .fix("give the run's own settings and data again, or start another run"));
    }
    if !changing.is_empty() && !accepted {
        return Err(Error::usage("resume-changed", "the resumed run would not be the run that was stopped")
            .at(place)
            .because(changing.join("; "))
            .fix(
                "give the run's own settings, data and program again, or accept another result with --accept-changes",
            ));
    }
    Ok(())
}

/// The SHA-256 of a file's content.
///
/// # Errors
/// Input and output errors.
pub(crate) fn file_hash(path: &Path) -> Result<String> {
    files_hash(&[("", path)])
}

/// One SHA-256 of several files and their names; of a single file without a name, its own.
///
/// # Errors
/// Input and output errors.
pub(crate) fn files_hash(files: &[(&str, &Path)]) -> Result<String> {
    let job = |(_, path): &(&str, &Path)| {
        let bytes = std::fs::metadata(path).map_err(|e| Error::io("looking at a file", path, &e))?.len();
        Ok(Job { path: path.to_path_buf(), begin: 0, bytes })
    };
    let mut hashes = hash(&files.iter().map(job).collect::<Result<Vec<_>>>()?)?;
    if let ([("", _)], 1) = (files, hashes.len()) {
        return Ok(hashes.remove(0));
    }
    let lines: Vec<String> = files.iter().zip(&hashes).map(|((name, _), hash)| format!("{hash}  {name}\n")).collect();
    Ok(hex(&Sha256::digest(lines.concat())))
}
