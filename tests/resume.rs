//! Runs that are stopped by a signal and go on with `--resume`, as a user does it: the files end as those of the run
//! that never stopped. And what a run says when it is resumed with something else than it began with.

use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Outcome, Room, completions, pairs, prompts};

/// Long enough to be stopped in the middle, with a row of metrics every third step.
pub(crate) const SFT: &str = "sft --model-name-or-path model --dataset data.jsonl --output-dir OUT --max-length 64 \
    --logging-steps 3 --max-steps 60 --learning-rate 1e-2 --per-device-train-batch-size 4";
pub(crate) const REWARD: &str = "reward --model-name-or-path model --dataset pairs.jsonl --output-dir OUT \
    --max-length 64 --logging-steps 3 --max-steps 60 --learning-rate 1e-2 --per-device-train-batch-size 4";
pub(crate) const PPO: &str = "ppo --sft-model-path model --reward-model-path judge --dataset prompts.jsonl \
    --output-dir OUT --response-length 8 --per-device-train-batch-size 4 --num-mini-batches 2 --num-ppo-epochs 2 \
    --total-episodes 160 --learning-rate 1e-3 --kl-target 0.02";
pub(crate) const STAGES: [(&str, &str); 3] = [("sft", SFT), ("reward", REWARD), ("ppo", PPO)];

/// A room in memory, where syncs cost nothing, with models and data of every kind.
pub(crate) fn room() -> Room {
    let room = Room::in_memory();
    room.model("model", "gpt2_tied");
    room.model("judge", "gpt2_reward");
    room.rows("data.jsonl", &completions(12));
    room.rows("pairs.jsonl", &pairs(12));
    room.rows("prompts.jsonl", &prompts(12));
    room
}

/// The line of a stage that writes into `out`.
pub(crate) fn line(stage: &str, out: &str) -> String {
    stage.replace("OUT", out)
}

/// What a run leaves of which every byte is promised.
pub(crate) fn promised(room: &Room, out: &str) -> Vec<(String, Vec<u8>)> {
    let mut files = room.files(out);
    let ends = ["metrics.jsonl", "samples.jsonl", "comparison.jsonl", ".safetensors", "config.json", "tokenizer.json"];
    files.retain(|name, _| ends.iter().any(|end| name.ends_with(end)) && !name.contains("checkpoints/"));
    files.into_iter().collect()
}

/// Fails with the first file that differs.
#[track_caller]
pub(crate) fn assert_same(a: &[(String, Vec<u8>)], b: &[(String, Vec<u8>)], what: &str) {
    let names = |files: &[(String, Vec<u8>)]| files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(a), names(b), "{what}");
    for ((name, a), (_, b)) in a.iter().zip(b) {
        assert!(a == b, "{what}: {name} differs");
    }
}

/// Sends a signal, as `kill` does.
pub(crate) fn signal(child: &Child, name: &str) {
    let status = std::process::Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status();
    assert!(status.unwrap().success());
}

/// Starts `line`, waits until something is in `path`, and sends the signal; returns what it answered.
pub(crate) fn stop_at(room: &Room, line: &str, path: &Path, name: &str) -> Outcome {
    let mut child = room.command(line).spawn().unwrap();
    let began = Instant::now();
    while !path.metadata().is_ok_and(|metadata| metadata.is_dir() || metadata.len() > 0) {
        let waits = began.elapsed() < Duration::from_secs(120) && child.try_wait().unwrap().is_none();
        assert!(waits, "{} never came", path.display());
        std::thread::sleep(Duration::from_millis(1));
    }
    signal(&child, name);
    let output = child.wait_with_output().unwrap();
    Outcome {
        line: line.to_owned(),
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

#[test]
fn a_signal_ends_a_run_that_goes_on_later() {
    for (index, (name, stage)) in STAGES.into_iter().enumerate() {
        let room = room();
        room.run(&line(stage, "whole")).ok();
        let (signal, code) = [("INT", 130), ("TERM", 143)][index % 2];
        // Its first row of metrics says that it is in the middle.
        let first = room.path("out/timings.jsonl");
        let stopped = stop_at(&room, &format!("{} --save-steps 7", line(stage, "out")), &first, signal);
        assert_eq!(stopped.code, Some(code), "{name}: {}", stopped.stderr);
        assert!(stopped.stderr.contains("[interrupted]") && stopped.stderr.contains("--resume"), "{}", stopped.stderr);
        assert!(!room.path("out/model.safetensors").exists(), "{name} had ended before the signal came");
        let resumed = room.run(&format!("{} --save-steps 7 --resume", line(stage, "out"))).ok();
        assert!(resumed.stderr.contains("resumed from out/checkpoints/step-"), "{}", resumed.stderr);
        assert_same(&promised(&room, "whole"), &promised(&room, "out"), name);
        let over = room.run(&format!("{} --save-steps 7 --resume", line(stage, "out"))).ok();
        assert!(over.stderr.contains(&format!("{name} is finished in out: nothing is left to do")), "{}", over.stderr);
        for dir in ["out", "whole"] {
            room.run(&format!("verify {dir}")).ok();
        }
    }
}

#[test]
fn all_stages_go_on_from_one_file() {
    let room = room();
    room.write(
        "run.toml",
        "model_name_or_path = \"model\"\noutput_dir = \"out\"\nmax_length = 64\nlogging_steps = 2\nsave_steps = 4\n\
         per_device_train_batch_size = 4\n[sft]\ndataset = \"data.jsonl\"\nmax_steps = 6\nlearning_rate = 1e-2\n\
         [reward]\ndataset = \"pairs.jsonl\"\nmax_steps = 40\nlearning_rate = 1e-2\n\
         [ppo]\ndataset = \"prompts.jsonl\"\nresponse_length = 8\ntotal_episodes = 24\nlearning_rate = 1e-3\n",
    );
    room.run("run --config run.toml --output-dir whole").ok();
    let line = "run --config run.toml --resume";
    let stopped = stop_at(&room, line, &room.path("out/reward/timings.jsonl"), "TERM");
    assert_eq!(stopped.code, Some(143), "{}", stopped.stderr);
    let again = stop_at(&room, line, &room.path("out/ppo/timings.jsonl"), "INT");
    assert!(again.stderr.contains("sft is finished"), "{}", again.stderr);
    room.run(line).ok();
    assert_same(&promised(&room, "whole"), &promised(&room, "out"), "run");
    // A checkpoint of a stage is named, and the stages after it follow.
    let back = room.run(&format!("{line} out/reward/checkpoints/step-36")).ok();
    for text in ["sft is finished", "resumed from out/reward/checkpoints/step-36", "ppo is finished"] {
        assert!(back.stderr.contains(text), "{text}: {}", back.stderr);
    }
    assert_same(&promised(&room, "whole"), &promised(&room, "out"), "run, back to step 36");
    let elsewhere = room.run(&format!("{line} whole/reward/checkpoints/step-36"));
    assert_eq!(elsewhere.code, Some(2), "{}", elsewhere.stderr);
    assert!(elsewhere.stderr.contains("[resume-elsewhere]"), "{}", elsewhere.stderr);
}

#[test]
fn the_embedded_job_goes_on() {
    let room = Room::in_memory();
    room.run("demo --quick --output-dir whole").ok();
    let line = "demo --quick --save-steps 3 --output-dir out";
    for (place, signal, code) in [
        ("out/timings.jsonl", "INT", 130),
        ("out/reward/checkpoints", "TERM", 143),
        ("out/reward/manifest.json", "INT", 130),
    ] {
        let stopped = stop_at(&room, &format!("{line} --resume"), &room.path(place), signal);
        assert_eq!(stopped.code, Some(code), "{}", stopped.stderr);
    }
    let last = room.run(&format!("{line} --resume")).ok();
    // The signal came in the PPO loop, whose state was saved, or just before it.
    let resumed = ["resumed from out/ppo/checkpoints/step-", "resumed in out: sft and reward done"];
    assert!(resumed.iter().any(|text| last.stderr.contains(text)), "{}", last.stderr);
    assert_same(&promised(&room, "whole"), &promised(&room, "out"), "demo");
    let summary = |dir: &str| {
        let mut summary = room.json(&format!("{dir}/summary.json"));
        summary.as_object_mut().unwrap().remove("seconds");
        summary
    };
    assert_eq!(summary("whole"), summary("out"));
    let over = room.run(&format!("{line} --resume")).ok();
    assert!(over.stdout.contains("is preferred over SFT's"), "{}", over.stdout);
}

#[test]
fn without_a_checkpoint_a_run_begins_at_its_start() {
    let room = room();
    room.run(&line(SFT, "whole")).ok();
    let fresh = room.run(&format!("{} --resume", line(SFT, "out"))).ok();
    assert!(fresh.stderr.contains("there is no checkpoint in out: the run begins at its start"), "{}", fresh.stderr);
    assert_same(&promised(&room, "whole"), &promised(&room, "out"), "fresh");
    // What nobody of us wrote is not taken for a run.
    room.write("other.txt", "mine");
    std::fs::create_dir(room.path("mine")).unwrap();
    room.write("mine/notes.txt", "mine");
    let refused = room.run(&format!("{} --resume", line(SFT, "mine")));
    assert!(refused.code == Some(2) && refused.stderr.contains("[output-exists]"), "{}", refused.stderr);
}

/// What changed, how it must be called, and what it leads to: 0, or an exit code and an error.
type Change = (&'static str, fn(&Room), &'static str, &'static str, &'static str);

const CHANGES: &[Change] = &[
    ("logging", |_| {}, "--logging-steps 5", "harmless             --logging-steps: 5, was 3", ""),
    ("retention", |_| {}, "--save-total-limit 1", "harmless             --save-total-limit: 1, was 0", ""),
    ("spelling", |_| {}, "--learning-rate 0.01", "resumed from out/checkpoints/step-30", ""),
    ("recomputation", |_| {}, "--recompute full", "harmless             --recompute: full, was none", ""),
    ("rate", |_| {}, "--learning-rate 1e-3", "changes the result   --learning-rate: 1e-3, was 1e-2", "resume-changed"),
    ("length", |_| {}, "--max-steps 50", "changes the result   --max-steps: 50, was 60", "resume-changed"),
    ("seed", |_| {}, "--seed 7", "impossible           --seed: 7, was 42", "resume-impossible"),
    (
        "batch",
        |_| {},
        "--per-device-train-batch-size 2",
        "impossible           --per-device-train-batch-size: 2, was 4",
        "resume-impossible",
    ),
    (
        "a row",
        |room| {
            room.rows("data.jsonl", &[&completions(11)[..], &[json!({ "prompt": "x", "completion": "y" })]].concat())
        },
        "",
        "changes the result   dataset: its content is another",
        "resume-changed",
    ),
    (
        "rows",
        |room| room.rows("data.jsonl", &completions(13)),
        "",
        "impossible           rows: 13, was 12 (the place in the data is lost)",
        "resume-impossible",
    ),
    (
        "file's name",
        |room| std::fs::rename(room.path("data.jsonl"), room.path("moved.jsonl")).unwrap(),
        "--dataset moved.jsonl",
        "harmless             --dataset: moved.jsonl, was data.jsonl (its content is compared)",
        "",
    ),
    (
        "tokenizer",
        |room| {
            let text = String::from_utf8(room.read("model/tokenizer.json")).unwrap();
            room.write("model/tokenizer.json", format!("{text}\n"));
        },
        "",
        "changes the result   model/tokenizer: its content is another",
        "resume-changed",
    ),
    (
        "base weights",
        |room| room.edit_weights("model/model.safetensors", |t| t.values_mut().for_each(|t| t.bytes[0] ^= 1)),
        "",
        "harmless             model/weights: its content is another (all weights are in the checkpoint)",
        "",
    ),
    (
        "configuration",
        |room| room.edit("model/config.json", |c| drop(c.insert("layer_norm_epsilon".into(), json!(1e-3)))),
        "",
        "changes the result   model/config: its content is another",
        "resume-changed",
    ),
    (
        "program",
        |room| {
            let manifest = String::from_utf8(room.read("out/checkpoints/step-30/manifest.json")).unwrap();
            assert!(manifest.contains("\"build\": \""), "what the other tests cannot change is recorded");
        },
        "",
        "",
        "",
    ),
];

#[test]
fn what_changed_is_named() {
    let whole = room();
    whole.run(&format!("{} --save-steps 30 --save-total-limit 0", line(SFT, "out"))).ok();
    for (name, change, more, says, error) in CHANGES {
        let room = room();
        copy(&whole.path("out"), &room.path("out"));
        change(&room);
        let line = format!(
            "{} --save-steps 30 --save-total-limit 0 {more} --resume out/checkpoints/step-30",
            line(SFT, "out")
        );
        let outcome = room.run(&line);
        assert!(outcome.stderr.contains(says), "{name}: {}", outcome.stderr);
        if error.is_empty() {
            let outcome = outcome.ok();
            assert!(!outcome.stderr.contains("changes the result"), "{name}: {}", outcome.stderr);
            let weights = |room: &Room| room.read("out/model.safetensors");
            assert_eq!(weights(&room), weights(&whole), "{name}: harmless, and yet another result");
            continue;
        }
        let mark = format!("[{error}]");
        assert!(outcome.code == Some(2) && outcome.stderr.contains(&mark), "{name}: {}", outcome.stderr);
        let accepted = room.run(&format!("{line} --accept-changes"));
        assert_eq!(accepted.code, Some(if *error == "resume-changed" { 0 } else { 2 }), "{name}: {}", accepted.stderr);
    }
}

/// Another build of the program is told by its bytes.
#[cfg(target_os = "linux")]
#[test]
fn another_build_is_named() {
    let room = room();
    room.run(&format!("{} --save-steps 30", line(SFT, "out"))).ok();
    let mut bytes = std::fs::read(env!("CARGO_BIN_EXE_rlhf")).unwrap();
    bytes.extend(b"another build");
    room.write("rlhf", bytes);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(room.path("rlhf"), mode).unwrap();
    let line = format!("{} --save-steps 30 --resume out/checkpoints/step-30", line(SFT, "out"));
    let mut other = std::process::Command::new(room.path("rlhf"));
    let output = other.args(line.split_whitespace()).current_dir(room.path("")).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("changes the result   program: another build of rlhf"), "{stderr}");
    assert_eq!(output.status.code(), Some(2), "{stderr}");
}

/// Copies a directory.
pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A newer checkpoint that is damaged is passed over, and said; one that is named is an error.
#[test]
fn a_damaged_checkpoint_is_passed_over() {
    let room = room();
    room.run(&format!("{} --save-steps 25", line(SFT, "out"))).ok();
    let whole = promised(&room, "out");
    std::fs::remove_file(room.path("out/manifest.json")).unwrap();
    let file = "out/checkpoints/step-50/training.safetensors";
    let mut bytes = room.read(file);
    let last = bytes.len() - 1;
    bytes[last] ^= 4;
    room.write(file, &bytes);
    let named = room.run(&format!("{} --save-steps 25 --resume out/checkpoints/step-50", line(SFT, "out")));
    assert_eq!(named.code, Some(3), "{}", named.stderr);
    for text in
        ["the tensor \"model/weights/transformer.wte.weight\" of training.safetensors", "[manifest-file-damaged]"]
    {
        assert!(named.stderr.contains(text), "{text}: {}", named.stderr);
    }
    assert_eq!(room.run("verify out/checkpoints/step-50").code, Some(3));
    let newest = room.run(&format!("{} --save-steps 25 --resume", line(SFT, "out"))).ok();
    for text in
        ["a newer checkpoint is not used", "resumed from out/checkpoints/step-25", "removed out/checkpoints/step-50"]
    {
        assert!(newest.stderr.contains(text), "{text}: {}", newest.stderr);
    }
    assert_same(&whole, &promised(&room, "out"), "over the damaged one");
}
