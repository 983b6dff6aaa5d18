//! `rlhf doctor` on the machine that runs the tests, whatever that machine has.

use serde_json::Value;

use super::keys;
use crate::support::{Room, completions};

#[test]
fn the_report_comes_in_words_and_as_json() {
    let room = Room::new();
    let words = room.run("doctor").ok();
    let outcome = room.run("doctor --json").ok();
    assert_eq!((words.stderr, outcome.stderr), (String::new(), String::new()));
    let report: Value = serde_json::from_str(&outcome.stdout).unwrap();
    for label in ["rlhf ", "system ", "memory ", "driver ", "cuBLASLt ", "kernels ", "emulator ", "devices "] {
        assert!(words.stdout.lines().any(|line| line.starts_with(label)), "{label}: {}", words.stdout);
    }
    assert_eq!(report["rlhf"], env!("CARGO_PKG_VERSION"));
    let devices = report["devices"].as_array().unwrap();
    let emulates = report["emulator"]["errors"].as_array().unwrap().is_empty();
    assert_eq!((&devices[0], devices.contains(&"emulated".into())), (&"cpu".into(), emulates), "{report}");
    let kernels = report["kernels"].as_array().unwrap();
    assert!(kernels.iter().any(|kernel| kernel["name"] == "token_logprobs"), "{report}");
    assert_eq!(keys(&kernels[0]), ["name", "ptx", "sha256", "target"]);
    // Either there is a driver, or a sentence says what to do.
    if report["driver"].is_null() {
        let error = report["driver_error"].as_str().unwrap();
        assert!(error.contains("\n  fix: ") && words.stdout.contains("fix: "), "{error}");
        assert_eq!(report["gpus"].as_array().unwrap().len(), 0);
    }
    assert!(report["cublaslt"]["path"].is_string() || report["cublaslt"]["fix"].is_string(), "{report}");
    assert!(room.files(".").is_empty());
}

#[test]
fn the_library_can_be_switched_off_or_named() {
    let room = Room::new();
    room.write("none.so", "not a library");
    for (value, says) in [("off", "switched off"), ("none.so", "[cublaslt-refused]")] {
        let output = room.command("doctor").env("RLHF_CUBLASLT", value).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.contains(says), "{text}");
    }
}

#[test]
fn a_gpu_that_is_not_there_ends_with_5() {
    let room = Room::new();
    room.model("model", "gpt2_tied");
    room.rows("data.jsonl", &completions(4));
    let line = "sft --model-name-or-path model --dataset data.jsonl --output-dir out --device cuda:4095";
    let outcome = room.run(line);
    assert_eq!(outcome.code, Some(5), "{}", outcome.stderr);
    for says in ["[cuda-", "\n  why: ", "\n  fix: ", "`--device cpu`"] {
        assert!(outcome.stderr.contains(says), "{}", outcome.stderr);
    }
    assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
}
