//! The stages on `--device emulated`: the kernels that a card would run.

use super::{PPO, REWARD, SFT, number, room};

#[test]
fn the_stages_run_and_repeat_on_the_emulated_gpu() {
    let room = room("qwen3_tied");
    for end in ["", "-again"] {
        for (line, stage) in [(SFT, "sft"), (REWARD, "reward"), (PPO, "ppo")] {
            room.run(&format!("{line} --device emulated --output-dir {stage}{end}")).ok();
            for file in ["metrics.jsonl", "model.safetensors"] {
                let (first, this) = (format!("{stage}/{file}"), format!("{stage}{end}/{file}"));
                assert!(room.read(&first) == room.read(&this), "{this}");
            }
        }
        let line = "generate --device emulated --model-name-or-path ppo --prompts prompts.jsonl --max-new-tokens 8";
        room.run(&format!("{line} --output answers{end}.jsonl")).ok();
        assert_eq!(room.read("answers.jsonl"), room.read(&format!("answers{end}.jsonl")));
    }
    // The trainer's log-probabilities were the rollout's to the bit, or the run would have stopped.
    assert!(room.lines("ppo/metrics.jsonl").iter().all(|row| number(row, "logp_diff/max") == 0.0));
    assert_eq!(room.json("sft/run.json")["settings"]["device"]["value"], "emulated");
}

#[test]
fn a_device_computes_in_the_floats_that_are_asked_for() {
    let room = room("qwen3_tied");
    let losses = |more: &str, name: &str| {
        room.run(&format!("{SFT} --output-dir {name} {more}")).ok();
        room.lines(&format!("{name}/metrics.jsonl")).iter().map(|row| number(row, "loss")).collect::<Vec<_>>()
    };
    let (cpu, f32) = (losses("--device cpu", "c"), losses("--device emulated --dtype f32", "f"));
    let bf16 = losses("--device emulated --dtype bf16", "b");
    let apart = |a: &[f64]| a.iter().zip(&cpu).map(|(a, b)| (a - b).abs() / b).fold(0.0, f64::max);
    assert!(apart(&f32) < 1e-5, "{f32:?} {cpu:?}");
    assert!(apart(&bf16) > 1e-5 && apart(&bf16) < 2e-2, "{bf16:?} {cpu:?}");
}

#[test]
fn sizes_that_no_kernel_serves_are_refused_before_the_run() {
    let room = room("llama_tied");
    let outcome = room.run(&format!("{SFT} --device emulated"));
    assert_eq!(outcome.code, Some(3), "{}", outcome.stderr);
    for words in ["[model-beyond-kernels]", "a head size of 4", "fix: use `--device cpu`"] {
        assert!(outcome.stderr.contains(words), "{}", outcome.stderr);
    }
}
