//! Runs that no one trained: the files of `rlhf run`, with numbers that a test can compute itself and texts that try
//! to leave the page.

use serde_json::{Value, json};

use crate::support::Room;

/// Prompts, some of them hostile.
pub(super) const PROMPTS: [&str; 5] = [
    "Name the capital of France.",
    "</script><script>window.hacked = 1</script><img src=x onerror=\"window.hacked=2\"> & 'quotes' \" <!-- {{script}}",
    "RTL \u{202e}override, bell \u{7}, nul \u{0}, \u{2028} separator, \u{200b} zero width",
    "מה שלומך? \u{1f389}\u{1f469}\u{200d}\u{1f467}",
    "__proto__ constructor toString",
];

/// Steps of PPO.
pub(super) const STEPS: usize = 60;

/// KL at a step of PPO: exactly representable, and different at each.
pub(super) fn kl(step: usize) -> f64 {
    step as f64 / 16.0
}

fn entry(value: &str, origin: &str) -> Value {
    json!({ "value": value, "origin": origin })
}

fn facts(stage: &str, rate: &str) -> Value {
    let ledger = json!({
        "stage": stage, "rows_in": 110, "rows_kept": 100, "rows_cut": 0, "rows_dropped": { "too_long": 10 },
        "tokens_in": 5000, "tokens_kept": 4000, "tokens_cut": 0, "tokens_dropped": 1000, "tokens_masked": 1000,
        "tokens_target": 3000, "extra_columns": { "<b>id</b>": 110 },
    });
    json!({
        "version": "0.1.0", "command": stage, "device": "cpu", "dataset": ledger, "model": "base <i>model</i>",
        "settings": {
            "learning-rate": entry(rate, "command line"), "dataset": entry("<data>.jsonl", "file"),
            "seed": entry("42", "default"), "max-length": entry("1024", "default"),
        },
        "memory": { "groups": { "parameters": 1_000_000, "moments": 2_000_000 }, "peaks": { "update": 5_000_000 } },
        "reproduce": {
            "command": ["rlhf", stage, "--dataset", "it's <data>.jsonl"], "threads": 2, "arithmetic": "a CPU in f32",
            "program": { "version": "0.1.0", "build": "abc" }, "inputs": { "dataset": "00ff" },
        },
    })
}

/// Writes `dir` with its three stages. `shift` moves scores, `rate` is the learning rate of all.
pub(super) fn write(room: &Room, dir: &str, rate: &str, shift: f64) {
    for stage in ["sft", "reward", "ppo"] {
        std::fs::create_dir_all(room.path(&format!("{dir}/{stage}"))).unwrap();
        room.write(&format!("{dir}/{stage}/run.json"), facts(stage, rate).to_string());
        let seconds = |i: usize| json!({ "stage": stage, "step": i, "seconds": i, "memory_peak": 1_000_000 * i });
        room.rows(&format!("{dir}/{stage}/timings.jsonl"), &(1..=STEPS).map(seconds).collect::<Vec<_>>());
    }
    let sft = |i: usize| json!({ "stage": "sft", "step": i, "loss": 3.0 - i as f64 / 32.0, "target_share": 0.5 });
    room.rows(&format!("{dir}/sft/metrics.jsonl"), &(1..=STEPS).map(sft).collect::<Vec<_>>());
    let reward = |i: usize| json!({ "stage": "reward", "step": i, "loss": 0.7, "accuracy": 0.6 + i as f64 / 256.0 });
    room.rows(&format!("{dir}/reward/metrics.jsonl"), &(1..=STEPS).map(reward).collect::<Vec<_>>());
    room.write(&format!("{dir}/reward/quality.json"), quality().to_string());
    room.rows(&format!("{dir}/ppo/metrics.jsonl"), &(1..=STEPS).map(|i| ppo(i, shift)).collect::<Vec<_>>());
    let mut samples = Vec::new();
    for step in [0, 30, STEPS] {
        for (i, prompt) in PROMPTS.iter().enumerate() {
            let score = (i as f64 - 1.5) * step as f64 / 64.0 + shift;
            let completion = format!("answer {i} of step {step} </script>");
            samples.push(json!({
                "stage": "ppo", "step": step, "prompt": prompt, "completion": completion,
                "finish_reason": "stop", "tokens": 5, "score": score,
            }));
        }
    }
    room.rows(&format!("{dir}/ppo/samples.jsonl"), &samples);
}

fn ppo(i: usize, shift: f64) -> Value {
    let t = i as f64 / STEPS as f64;
    let odd = if i == 20 { json!("NaN") } else { json!(0.9 * t) };
    json!({
        "stage": "ppo", "step": i, "objective/kl": kl(i), "objective/scores": t + shift, "policy/entropy_avg": 0.5,
        "objective/judge_scores": 0.5 + t / 4.0, "response/eos_share": 0.98, "response/length_mean": 20.0,
        "policy/clipfrac_avg": 0.1, "loss/value_avg": 0.2, "val/explained_variance": odd, "val/ratio": 1.0,
        "<img src=x onerror=window.hacked=3>": t,
    })
}

fn quality() -> Value {
    let bin = |i: i32| {
        let confidence = 0.5 + 0.04 * f64::from(i);
        json!({ "from": 0.5, "to": 0.6, "pairs": 10 * i, "confidence": confidence, "accuracy": 0.6 })
    };
    let bucket = |i: i32| json!({ "from": i, "to": i + 1, "pairs": 50, "accuracy": 0.7 });
    json!({
        "pairs": 800, "accuracy": 0.93, "accuracy_interval": [0.91, 0.95], "margin": 2.0, "min_reward": -3.0,
        "mean_reward": 0.0, "max_reward": 3.0, "calibration_error": 0.02, "reward_length_correlation": 0.1,
        "reliability": (1..10).map(bin).collect::<Vec<_>>(), "by_margin": (0..4).map(bucket).collect::<Vec<_>>(),
        "by_length": (-2..2).map(bucket).collect::<Vec<_>>(),
    })
}
