//! Bad input: named cases, each run through the real binary. What it answers (exit code, error, place, cause, cure) is
//! committed as golden text and compared to the byte; nothing panics, takes a second of computing or much memory, and
//! no model is left behind. `RLHF_BLESS=1` writes the golden text anew.

// A table of cases is one function.
#![allow(clippy::too_many_lines)]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::{Room, completions, pairs, prompts};

mod checkpoints;
mod config;
mod data;
#[cfg(unix)]
mod files;
mod lines;
mod measure;
mod model;
mod parquet;
mod settings;
mod tokens;
mod weights;

use measure::{Answer, Limits};

/// One bad input.
struct Case {
    name: &'static str,
    /// The exit code.
    code: i32,
    /// The error's name; empty where the command line's parser speaks.
    id: &'static str,
    /// Makes the room bad, and returns the command line.
    make: Box<dyn Fn(&Room) -> String + Send + Sync>,
}

fn case(
    name: &'static str,
    make: impl Fn(&Room) -> String + Send + Sync + 'static,
    code: i32,
    id: &'static str,
) -> Case {
    Case { name, code, id, make: Box::new(make) }
}

/// Refusals come before any work: the most that one may compute, and the most that it may take of a busy machine.
const CPU_MAX: Duration = Duration::from_secs(1);
const QUICK: Duration = Duration::from_secs(60);

/// The golden text, and the comment at its head.
const GOLDEN: &str = "tests/badinput/golden.txt";
const HEAD: &str = "What the binary answers to each bad input of tests/badinput. Written by RLHF_BLESS=1 cargo test \
                    badinput.\n\n";

macro_rules! corpus {
    ($($module:ident: $($theme:ident)+;)+) => {
        /// All cases, under the theme that each belongs to.
        fn corpus() -> Vec<(String, Case)> {
            let mut all = Vec::new();
            $($(
                let theme = stringify!($theme).replace('_', " ");
                all.extend($module::$theme().into_iter().map(|case| (format!("{theme}: {}", case.name), case)));
            )+)+
            all
        }
    };
}

corpus! {
    data: files_that_are_no_data_set lines_that_are_no_row rows_of_another_kind values_of_another_kind
        rows_of_which_nothing_is_left rows_that_are_too_long rows_that_strict_refuses;
    model: directories_that_hold_no_model configurations_that_are_not_followed options_that_are_not_followed
        configurations_that_make_no_sense tokenizers_that_do_not_fit tokenizers_that_do_not_fit_each_other
        models_that_never_end templates_that_do_not_render;
    settings: files_of_settings files_that_are_no_settings files_of_all_stages stages_that_lack_something
        words_on_the_command_line options_that_are_missing_or_at_odds models_in_the_wrong_role
        output_that_cannot_be_written
        output_files_that_cannot_be_written numbers_that_run_away;
    weights: directories_without_weights files_that_are_cut headers_that_lie tensors_that_are_missing
        tensors_that_cannot_be_used shards_that_do_not_belong_together
        headers_of_no_file indices_of_no_model;
    lines: files_of_another_format lines_that_do_not_parse columns_of_no_example messages_of_no_conversation;
    parquet: parquet_that_is_broken parquet_that_is_not_read parquet_that_expands;
    config: configurations_that_are_no_json sizes_of_no_model numbers_of_no_model names_of_no_model;
    tokens: tokenizers_that_do_not_parse tokenizers_that_contradict_the_model templates_that_are_not_valid
        templates_that_never_end templates_that_reach_out;
    files: pipes_and_directories_in_a_model links_out_of_a_model data_that_is_no_file files_that_are_too_large;
    checkpoints: manifests_that_do_not_hold manifests_that_lie files_that_do_not_match_their_manifest
        states_of_another_run places_of_no_checkpoint runs_that_changed;
}

/// A room with a good model and good data of every kind.
fn room() -> Room {
    let room = Room::new();
    room.model("model", "gpt2_tied");
    room.rows("data.jsonl", &completions(8));
    room.rows("pairs.jsonl", &pairs(8));
    room.rows("prompts.jsonl", &prompts(8));
    room
}

/// `rlhf sft` of that room, with further options, which win.
fn sft(more: &str) -> String {
    format!("sft --model-name-or-path model --dataset data.jsonl --output-dir out --max-length 64 {more}")
}

fn reward(more: &str) -> String {
    format!("reward --model-name-or-path model --dataset pairs.jsonl --output-dir out --max-length 64 {more}")
}

/// `rlhf ppo`; the reward model is in `reward`.
fn ppo(room: &Room, more: &str) -> String {
    room.model("reward", "gpt2_reward");
    format!(
        "ppo --sft-model-path model --reward-model-path reward --dataset prompts.jsonl --output-dir out \
         --response-length 8 {more}"
    )
}

fn generate(more: &str) -> String {
    format!("generate --model-name-or-path model --prompts prompts.jsonl --output out.jsonl --max-new-tokens 8 {more}")
}

fn score(more: &str) -> String {
    format!("score --model-name-or-path model --dataset data.jsonl --output out.jsonl {more}")
}

/// What one case came to: its paragraph of the golden text, and what is wrong with it beside its words.
struct Finding {
    paragraph: String,
    faults: Vec<String>,
}

fn examine(name: &str, case: &Case, limits: &Limits) -> Finding {
    let room = room();
    let line = (case.make)(&room);
    let before = names(&room.path("out"));
    let answer = measure::run(&room, line.trim(), limits, QUICK);
    let message = answer.message(&room);
    let code = answer.code.map_or("none".to_owned(), |code| code.to_string());
    let paragraph = format!("== {name}\n$ rlhf {}\nexit {code}\n{message}", line.trim());
    let faults = faults(case, &answer, &message, &left(&room, &before));
    Finding { paragraph, faults }
}

/// The files below a directory; without their content, which may be a terabyte of zeros.
fn names(dir: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().unwrap().is_dir() {
            found.extend(names(&entry.path()));
        } else {
            found.insert(entry.path().display().to_string());
        }
    }
    found
}

/// What a refusal must not leave: a model or a part of one, that was not there before it.
fn left(room: &Room, before: &BTreeSet<String>) -> Vec<String> {
    let is_left = |name: &String| {
        [".rlhf-tmp", "config.json", ".safetensors"].iter().any(|end| name.ends_with(end)) && !before.contains(name)
    };
    let mut left: Vec<String> = names(&room.path("out")).into_iter().filter(is_left).collect();
    left.extend(room.path("out.jsonl").exists().then(|| "out.jsonl".to_owned()));
    left
}

/// What is wrong with the answer to a case, whatever its words.
fn faults(case: &Case, answer: &Answer, message: &str, left: &[String]) -> Vec<String> {
    let mut faults = answer.excess(CPU_MAX);
    if answer.code != Some(case.code) {
        faults.push(format!("exit code {:?}, not {}", answer.code, case.code));
    }
    if ["panicked", "stack backtrace", "overflowed its stack"].iter().any(|word| answer.stderr.contains(word)) {
        faults.push("a panic".to_owned());
    }
    let mark = if case.id.is_empty() { "error: ".to_owned() } else { format!(" [{}]\n", case.id) };
    if !message.contains(&mark) {
        faults.push(format!("it does not say {mark:?}"));
    }
    if message.contains(|c: char| c.is_control() && c != '\n') {
        faults.push("its message holds control characters".to_owned());
    }
    if !case.id.is_empty() && !message.contains("\n  fix: ") {
        faults.push("it does not say what to do".to_owned());
    }
    if case.code == 3 && !message.contains("\n  where: ") {
        faults.push("it does not say where".to_owned());
    }
    if !left.is_empty() {
        faults.push(format!("something is left behind: {left:?}"));
    }
    faults
}

/// Runs all cases, on as many threads as the machine has.
fn findings(corpus: &[(String, Case)], limits: &Limits) -> Vec<Finding> {
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let at = next.fetch_add(1, Ordering::Relaxed)
            && let Some((name, case)) = corpus.get(at)
        {
            let finding = examine(name, case, limits);
            found.lock().unwrap().push((at, finding));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(work);
        }
    });
    let mut found = found.into_inner().unwrap();
    found.sort_by_key(|(at, _)| *at);
    found.into_iter().map(|(_, finding)| finding).collect()
}

#[test]
fn every_bad_input_has_its_answer() {
    let corpus = corpus();
    let names: BTreeSet<&String> = corpus.iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), corpus.len(), "two cases have one name");
    let findings = findings(&corpus, &Limits::measured());
    let faults = corpus.iter().zip(&findings).filter(|(_, finding)| !finding.faults.is_empty());
    let faults: Vec<String> =
        faults.map(|(_, finding)| format!("{}\n{}", finding.faults.join("; "), finding.paragraph)).collect();
    let text = format!("{HEAD}{}", findings.iter().map(|f| f.paragraph.as_str()).collect::<Vec<_>>().join("\n"));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(GOLDEN);
    if std::env::var_os("RLHF_BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    assert!(faults.is_empty(), "{} of {} cases:\n\n{}", faults.len(), corpus.len(), faults.join("\n\n"));
    // The words of the operating system, and what it calls a file, are those of Linux.
    if cfg!(target_os = "linux") {
        let golden = std::fs::read_to_string(&path).unwrap();
        let differences = differences(&golden, &text);
        assert!(differences.is_empty(), "RLHF_BLESS=1 accepts the new words of\n{}", differences.join("\n"));
    }
}

/// The paragraphs that only one of the texts has.
fn differences(golden: &str, text: &str) -> Vec<String> {
    let paragraphs = |text: &str| text.split("\n== ").map(|p| p.trim_end().to_owned()).collect::<Vec<_>>();
    let (before, now) = (paragraphs(golden), paragraphs(text));
    let gone = before.iter().filter(|p| !now.contains(p)).map(|p| format!("- {p}\n"));
    let new = now.iter().filter(|p| !before.contains(p)).map(|p| format!("+ {p}\n"));
    let mut found: Vec<String> = gone.chain(new).collect();
    if found.is_empty() && golden != text {
        found.push("the order of the cases".to_owned());
    }
    found
}

/// A comparison that finds nothing would find nothing in a changed text either.
#[test]
fn a_changed_word_is_a_difference() {
    let text = "head\n\n== a\nexit 3\nerror: x\n\n== b\nexit 2\nerror: y\n";
    assert!(differences(text, text).is_empty());
    assert_eq!(differences(text, &text.replace("exit 2", "exit 3")).len(), 2);
    assert_eq!(differences(text, "head\n\n== b\nexit 2\nerror: y\n\n== a\nexit 3\nerror: x\n").len(), 1);
}
