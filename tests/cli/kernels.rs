//! The commands that look at kernels: the self-test on the emulator, the list, and a model of random weights.

use std::path::Path;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::keys;
use crate::support::{Outcome, Room, prompts};

/// A part of the table that takes a second.
const SHORT: &str = "selftest --device emulated --filter pairwise_loss";

fn texts() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/ptx");
    let mut texts: Vec<(String, String)> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            (path.file_stem().unwrap().to_string_lossy().into_owned(), std::fs::read_to_string(&path).unwrap())
        })
        .collect();
    texts.sort();
    texts
}

fn sha256(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A refusal: its exit code is among `codes`, and it speaks in sentences.
fn refused(outcome: &Outcome, codes: &[i32], id: &str) {
    assert!(outcome.code.is_some_and(|code| codes.contains(&code)), "{outcome:?}");
    assert!(outcome.stderr.contains("error: ") && outcome.stderr.contains(id), "{outcome:?}");
    assert!(outcome.stderr.contains("fix: ") && !outcome.stderr.contains("panicked"), "{outcome:?}");
    assert_eq!(outcome.stdout, "", "{outcome:?}");
}

#[test]
fn the_self_test_judges_every_case() {
    let outcome = Room::new().run_on(2, SHORT).ok();
    let rows: Vec<&str> = outcome.stdout.lines().collect();
    assert_eq!(rows.len(), 2, "{outcome:?}");
    let words: Vec<&str> = rows[1].split_whitespace().collect();
    let count = words[2];
    assert_eq!(words[..4], ["pairwise_loss", "f32", count, "0"], "{outcome:?}");
    assert!(count.parse::<usize>().unwrap() >= 10, "{outcome:?}");
    assert!(words[5].parse::<f64>().unwrap() <= words[6].parse::<f64>().unwrap(), "{outcome:?}");
    for words in [format!("{count} cases on emulated"), format!("passed: all {count} cases")] {
        assert!(outcome.stderr.contains(&words), "{words}: {outcome:?}");
    }
}

#[test]
fn the_self_test_writes_a_record() {
    let outcome = Room::new().run_on(2, &format!("{SHORT} --json")).ok();
    let record: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!((&record["device"], &record["passed"]), (&"emulated".into(), &true.into()));
    assert_eq!(record["version"], env!("CARGO_PKG_VERSION"));
    assert!(record["date"].as_str().unwrap().ends_with('Z') && record["seconds"].as_f64().unwrap() > 0.0);
    let hashes = record["kernels"].as_array().unwrap().iter().map(|k| {
        assert_eq!(k["source_hash"].as_str().unwrap().len(), 64, "{k}");
        (k["name"].as_str().unwrap().to_owned(), k["text_sha256"].as_str().unwrap().to_owned())
    });
    let expected: Vec<_> = texts().into_iter().map(|(name, text)| (name, sha256(&text))).collect();
    assert_eq!(hashes.collect::<Vec<_>>(), expected);
    let cases = record["cases"].as_array().unwrap();
    assert!(cases.len() >= 10 && record["asked"] == cases.len(), "{} of {}", cases.len(), record["asked"]);
    for case in cases {
        assert_eq!(keys(case), ["bound", "dtype", "error", "kernel", "passed", "seconds", "shape", "tensor"]);
        assert!(case["error"].as_f64().unwrap() <= case["bound"].as_f64().unwrap(), "{case}");
    }
    // The table is for the person who watches.
    assert!(outcome.stderr.contains("pairwise_loss  f32"), "{outcome:?}");
}

#[test]
fn a_device_that_is_none_is_refused() {
    let room = Room::new();
    refused(&room.run("selftest --device cpu"), &[2], "selftest-on-cpu");
    refused(&room.run("selftest --device gpu7"), &[2], "device-unknown");
    refused(&room.run("selftest --device cuda:99"), &[4, 5], "device");
    refused(&room.run("selftest --device emulated --filter nothing-like-it"), &[2], "filter-matches-nothing");
}

#[test]
fn the_list_has_every_text_and_says_where_it_ran() {
    let room = Room::new();
    let all: Value = serde_json::from_str(&room.run("kernels --json").ok().stdout).unwrap();
    let (kernels, words) = (all["kernels"].as_array().unwrap(), room.run("kernels").ok().stdout);
    assert_eq!(kernels.len(), 21);
    for (kernel, (name, text)) in kernels.iter().zip(texts()) {
        assert_eq!((kernel["name"].as_str(), kernel["text_sha256"].as_str()), (Some(&*name), Some(&*sha256(&text))));
        let entries = kernel["entries"].as_array().unwrap();
        assert_eq!(entries.len(), text.matches(".visible .entry ").count(), "{name}");
        for word in entries.iter().chain([&kernel["limit"]]).map(|word| word.as_str().unwrap()) {
            assert!(!word.is_empty() && words.contains(word), "{name}: {word}");
        }
        assert!(words.contains(&format!("{name} (text {})\n", &sha256(&text)[..16])), "{name}");
    }
    let waiting = kernels.iter().filter(|kernel| kernel["hardware"].is_null()).count();
    assert_eq!(words.matches("hardware: not yet on hardware").count(), waiting);
    assert_eq!(words.matches("hardware: ").count(), 21);
}

#[test]
fn random_weights_are_a_model() {
    let room = Room::new();
    room.model("model", "llama_untied_gqa");
    room.rows("prompts.jsonl", &prompts(2));
    for name in ["a", "b"] {
        room.run(&format!("fresh --config model/config.json --tokenizer model --output-dir {name}")).ok();
    }
    assert_eq!(room.read("a/model.safetensors"), room.read("b/model.safetensors"));
    room.run("generate --model-name-or-path a --prompts prompts.jsonl --max-new-tokens 3 --output o.jsonl").ok();
    assert_eq!(room.lines("o.jsonl").len(), 2);
}
