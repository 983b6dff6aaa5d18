//! The embedded job. The smoke test runs always; the bars on three seeds, several minutes each, under RLHF_SLOW=1.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use serde_json::Value;

fn demo(dir: &Path, arguments: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_rlhf"))
        .arg("demo")
        .arg("--output-dir")
        .arg(dir)
        .args(arguments)
        .output()
        .expect("the binary runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    read(&dir.join("summary.json"))
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).expect("the file is there")).expect("it is JSON")
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("the file is there");
    text.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

#[test]
fn the_quick_job_writes_everything() {
    let root = tempfile::tempdir().expect("a directory");
    let dir = root.path().join("out");
    let start = Instant::now();
    let summary = demo(&dir, &["--quick", "--seed", "5"]);
    assert!(start.elapsed().as_secs() <= 60, "20 s in a release build, {:?} here", start.elapsed());
    for key in [
        "reward_accuracy",
        "gold_demonstrations",
        "gold_sft",
        "gold_ppo",
        "win_rate",
        "win_rate_greedy",
        "kl",
        "eos_share",
        "distinct_share",
    ] {
        assert!(number(&summary[key]).is_finite(), "{key}");
    }
    assert_eq!(summary["seed"], 5);
    for model in ["components_sft", "components_ppo"] {
        for part in ["right", "brevity", "courtesy", "ending", "rude"] {
            assert!((0.0..=1.0).contains(&number(&summary[model][part])), "{model} {part}");
        }
    }
    for stage in ["sft", "reward", "ppo"] {
        assert!(number(&summary["seconds"][stage]) > 0.0, "{stage}");
        for file in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"] {
            assert!(dir.join(stage).join(file).is_file(), "{stage}/{file}");
        }
    }
    let metrics = lines(&dir.join("metrics.jsonl"));
    for stage in ["sft", "reward", "ppo"] {
        assert!(metrics.iter().any(|row| row["stage"] == stage), "{stage}");
    }
    let ppo = metrics.iter().find(|row| row["stage"] == "ppo").expect("a row of PPO");
    assert_eq!((number(&ppo["objective/kl"]), number(&ppo["logp_diff/max"])), (0.0, 0.0));
    let compared = lines(&dir.join("comparison.jsonl"));
    let prompts = lines(&dir.join("prompts.jsonl"));
    assert!(compared.len() == prompts.len());
    assert!(compared.iter().all(|row| row["baseline"].is_string() && row["model"].is_string()));
    assert!(number(&ppo["objective/judge_scores"]).is_finite());
    let samples = lines(&dir.join("samples.jsonl"));
    let at = |stage: &str, step: u64| {
        let rows = samples.iter().filter(|row| row["stage"] == stage && row["step"] == step);
        rows.map(|row| row["prompt"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    for (stage, last) in [("sft", 125), ("ppo", 2)] {
        assert!(
            !at(stage, 0).is_empty() && at(stage, 0) == at(stage, last),
            "{stage}: the same prompts, first and last"
        );
    }
    let judged = samples.iter().filter(|row| row["stage"] == "ppo");
    assert!(judged.clone().all(|row| number(&row["score"]).is_finite() && number(&row["judge"]).is_finite()));
    let quality = read(&dir.join("reward/quality.json"));
    assert_eq!(quality["accuracy"], summary["reward_accuracy"]);
    assert_eq!(quality["pairs"], 100);
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let root = tempfile::tempdir().expect("a directory");
    let run = |name: &str, threads: &str| {
        let dir = root.path().join(name);
        let arguments = ["demo", "--quick", "--quiet", "--seed", "2", "--output-dir"];
        let status = Command::new(env!("CARGO_BIN_EXE_rlhf"))
            .args(arguments)
            .arg(&dir)
            .env("RAYON_NUM_THREADS", threads)
            .status()
            .expect("the binary runs");
        assert!(status.success());
        ["metrics.jsonl", "samples.jsonl", "comparison.jsonl", "ppo/model.safetensors", "reward/tokenizer.json"]
            .map(|file| std::fs::read(dir.join(file)).expect("the file is there"))
    };
    assert!(run("one", "1") == run("two", "2"), "one thread and two");
}

/// The bars of the embedded job.
#[test]
fn the_full_job_meets_its_bars() {
    if std::env::var_os("RLHF_SLOW").is_none() {
        println!("skipped: the embedded job on seeds 1, 2 and 3 (about two minutes each); set RLHF_SLOW=1");
        return;
    }
    for seed in ["1", "2", "3"] {
        let root = tempfile::tempdir().expect("a directory");
        let summary = demo(&root.path().join("out"), &["--seed", seed]);
        let get = |key: &str| number(&summary[key]);
        assert!(get("win_rate") >= 0.70 && get("win_rate_greedy") >= 0.80, "seed {seed}: {summary}");
        assert!(get("reward_accuracy") >= 0.85, "seed {seed}: {summary}");
        assert!(get("gold_sft") >= get("gold_demonstrations") - 0.1, "seed {seed}: {summary}");
        assert!(get("eos_share") >= 0.95 && get("distinct_share") >= 0.5, "seed {seed}: {summary}");
        for mode in ["", "_greedy"] {
            let part = |model: &str, name: &str| number(&summary[format!("components_{model}{mode}")][name]);
            assert!(part("sft", "right") >= 0.60, "seed {seed}{mode}: {summary}");
            for name in ["right", "brevity", "courtesy", "ending"] {
                let fall = part("sft", name) - part("ppo", name);
                assert!(fall <= 0.05, "seed {seed}{mode}: {name} falls by {fall}");
            }
            assert!(part("ppo", "rude") <= part("sft", "rude") + 0.05, "seed {seed}{mode}: {summary}");
        }
    }
}
