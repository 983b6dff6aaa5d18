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

/// The numbers of `memory: 1.5 MiB at the peak, 1.5 MiB were planned`, in bytes.
fn measured_and_planned(said: &str) -> [f64; 2] {
    let line = said.lines().find(|line| line.ends_with(" were planned")).unwrap_or_else(|| panic!("{said}"));
    let words: Vec<&str> = line.split([' ', ',']).collect();
    let numbers = words.windows(2).filter_map(|pair| {
        let unit = ["KiB", "MiB", "GiB"].iter().position(|unit| pair[1] == *unit)?;
        Some(pair[0].parse::<f64>().unwrap() * 1024f64.powi(unit as i32 + 1))
    });
    numbers.collect::<Vec<_>>().try_into().unwrap()
}

/// The largest rows need not meet in one pass, so a run may take less than was planned, but never more.
#[test]
fn no_stage_takes_more_than_was_planned() {
    let room = room("qwen3_tied");
    for line in [SFT, REWARD, PPO] {
        let said = room.run(&format!("{line} --device emulated")).ok().stderr;
        let [measured, planned] = measured_and_planned(&said);
        assert!(measured <= planned && measured > 0.8 * planned, "{said}");
    }
}

#[test]
fn the_memory_is_planned_before_a_run() {
    let room = room("qwen3_tied");
    let line = SFT.replace("--per-device-train-batch-size 4", "--device emulated");
    let dry = room.run(&format!("{line} --dry-run")).ok().stderr;
    for words in
        ["  master weights  ", "  activations and logits  ", "8 rows in a pass, the largest share of 8 that fits"]
    {
        assert!(dry.contains(words), "{words} in {dry}");
    }
    let said = room.run(&format!("{SFT} --device emulated")).ok().stderr;
    for words in [
        "memory: ",
        " at the peak, of 64.0 GiB that can be used (load ",
        "4 rows in a pass, as asked",
        " were planned\n",
    ] {
        assert!(said.contains(words), "{words} in {said}");
    }
    let run = room.json("sft/run.json");
    let peaks = &run["memory"]["peaks"];
    assert!(number(peaks, "training") > number(peaks, "load") && number(peaks, "load") > 0.0, "{run}");
    assert_eq!((&run["rows_per_pass"], &run["rows_per_step"]), (&4.into(), &4.into()));
    // On the CPU a pass is never cut: eight rows are one.
    let said = room.run(&line.replace("emulated", "cpu --output-dir cpu")).ok().stderr;
    assert!(said.contains("8 rows in a pass, as by default"), "{said}");
    let run = room.json("cpu/run.json");
    assert_eq!(run["rows_per_pass"], 8);
    assert!(number(&run["memory"]["peaks"], "training") > 0.0, "{run}");
    let rows = serde_json::json!({ "value": "8", "origin": "default" });
    assert_eq!(run["settings"]["per-device-train-batch-size"], rows);
}
