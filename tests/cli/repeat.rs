//! The same seed gives the same bytes, whatever the number of threads; another seed gives others.

use super::{PPO, REWARD, SFT, room};
use crate::support::{Room, completions, is_slow, pairs, prompts};

const FILES: [&str; 2] = ["metrics.jsonl", "model.safetensors"];

/// Batches of enough tokens that every parallel loop is cut.
fn large(fixture: &str) -> Room {
    let room = room(fixture);
    room.rows("data.jsonl", &completions(48));
    room.rows("pairs.jsonl", &pairs(48));
    room.rows("prompts.jsonl", &prompts(48));
    room
}

#[test]
fn threads_change_no_bit() {
    let fixtures: &[&str] = if is_slow("two more architectures") {
        &["gpt2_tied", "llama_untied_gqa", "qwen2_tied", "qwen3_untied"]
    } else {
        &["gpt2_tied", "qwen3_untied"]
    };
    for fixture in fixtures {
        let room = large(fixture);
        let batch = "--per-device-train-batch-size 24";
        for (threads, end) in [(1, ""), (2, "-2"), (4, "-4"), (1, "-again")] {
            let models = "--sft-model-path sft --reward-model-path reward";
            for (line, stage, more) in [
                (SFT, "sft", ""),
                (REWARD, "reward", "--model-name-or-path sft"),
                (PPO, "ppo", &format!("{models} --total-episodes 48 --num-mini-batches 1 --response-length 16")),
            ] {
                room.run_on(threads, &format!("{line} {batch} {more} --output-dir {stage}{end}")).ok();
                for file in FILES {
                    let (first, this) = (format!("{stage}/{file}"), format!("{stage}{end}/{file}"));
                    assert!(room.read(&first) == room.read(&this), "{fixture}: {this} on {threads} threads");
                }
            }
        }
        for threads in [1, 2, 4] {
            let line = "generate --model-name-or-path ppo --prompts prompts.jsonl --max-new-tokens 16 --output";
            room.run_on(threads, &format!("{line} {threads}.jsonl")).ok();
            assert_eq!(room.read("1.jsonl"), room.read(&format!("{threads}.jsonl")), "{fixture}");
        }
    }
}

/// How a batch is cut into passes changes the memory, not the result: the losses agree to rounding.
#[test]
fn accumulation_changes_only_rounding() {
    let room = large("llama_tied");
    let losses = |line: &str, name: &str| {
        room.run(line).ok();
        let rows = room.lines(&format!("{name}/metrics.jsonl"));
        rows.iter().map(|row| super::number(row, "loss")).collect::<Vec<_>>()
    };
    for (stage, line, extra) in [("s", SFT, ""), ("r", REWARD, "--model-name-or-path model")] {
        let run = |size: usize, passes: usize| {
            let name = format!("{stage}{size}");
            let cut = format!("--per-device-train-batch-size {size} --gradient-accumulation-steps {passes}");
            losses(&format!("{line} {extra} {cut} --output-dir {name}"), &name)
        };
        let whole = run(8, 1);
        for (size, passes) in [(4, 2), (1, 8)] {
            let cut = run(size, passes);
            assert_eq!(cut.len(), whole.len());
            for (a, b) in whole.iter().zip(&cut) {
                assert!((a - b).abs() < 1e-4, "{stage}: {whole:?} and {cut:?}");
            }
        }
    }
}
