//! Bad input: one named case each, run through the real binary. Every case must end at once with its exit code and a
//! message that names its error, its place and its cause; nothing panics, and no model is left behind.

// A table of cases is one function.
#![allow(clippy::too_many_lines)]

use std::time::{Duration, Instant};

use crate::support::{Room, completions, pairs, prompts};

mod data;
mod model;
mod settings;
mod weights;

/// One bad input.
struct Case {
    name: &'static str,
    /// Makes the room bad, and returns the command line.
    make: fn(&Room) -> String,
    /// The exit code.
    code: i32,
    /// The error's name; empty where the command line's parser speaks.
    id: &'static str,
    /// What the message must say.
    says: &'static [&'static str],
}

const fn case(
    name: &'static str,
    make: fn(&Room) -> String,
    code: i32,
    id: &'static str,
    says: &'static [&'static str],
) -> Case {
    Case { name, make, code, id, says }
}

/// Refusals come before any work.
const QUICK: Duration = Duration::from_secs(20);

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

/// Runs all cases, and fails with what was wrong about which.
fn check(cases: &[Case]) {
    let faults: Vec<String> = cases.iter().filter_map(|case| Some((case, fault(case)?))).map(report).collect();
    assert!(faults.is_empty(), "{} of {} cases:\n\n{}", faults.len(), cases.len(), faults.join("\n\n"));
}

fn report((case, fault): (&Case, String)) -> String {
    format!("{}: {fault}", case.name)
}

/// What is wrong with the answer to a case.
fn fault(case: &Case) -> Option<String> {
    let room = room();
    let line = (case.make)(&room);
    let started = Instant::now();
    let outcome = room.run(&line);
    let text = &outcome.stderr;
    let fail = |what: String| Some(format!("{what}\n  {}\n{text}", outcome.line));
    if outcome.code != Some(case.code) {
        return fail(format!("exit code {:?}, not {}", outcome.code, case.code));
    }
    if text.contains("panicked") || text.contains("stack backtrace") {
        return fail("a panic".into());
    }
    let mark = if case.id.is_empty() { "error: ".to_owned() } else { format!(" [{}]\n", case.id) };
    if let Some(absent) = std::iter::once(mark.as_str()).chain(case.says.iter().copied()).find(|s| !text.contains(s)) {
        return fail(format!("it does not say {absent:?}"));
    }
    if started.elapsed() > QUICK {
        return fail(format!("it took {:?}", started.elapsed()));
    }
    let left: Vec<String> = room.files("out").into_keys().collect();
    let is_model = |name: &String| name.ends_with("config.json") || name.ends_with(".safetensors");
    if left.iter().any(|name| is_model(name) || name.ends_with(".rlhf-tmp")) || room.path("out.jsonl").exists() {
        return fail(format!("something is left behind: {left:?}"));
    }
    None
}
