//! What a run would take, before it runs: the same numbers as in its head, without a weight being read.

use serde_json::json;

use super::{PPO, REWARD, SFT, room};

/// The lines that speak of memory and work.
fn lines(said: &str) -> Vec<&str> {
    said.lines()
        .filter(|line| ["work:", "memory:", "  micro-batch:"].iter().any(|sign| line.starts_with(sign)))
        .collect()
}

#[test]
fn an_estimate_is_what_the_run_says() {
    let room = room("qwen3_tied");
    room.run(SFT).ok();
    room.run(REWARD).ok();
    for line in [SFT, REWARD, PPO] {
        // Where the estimate reads nothing, the run's own output may be there already.
        let estimate = room.run(&format!("estimate {line} --device emulated")).ok();
        let dry = room.run(&format!("{line} --device emulated --dry-run --output-dir dry")).ok();
        let said = lines(&estimate.stderr);
        assert_eq!(said.len(), 3, "{}", estimate.stderr);
        assert_eq!(said, lines(&dry.stderr));
        assert!(estimate.stderr.contains("  gradients") || estimate.stderr.contains("policy: gradients"));
    }
    assert!(room.run(&format!("estimate {SFT}")).ok().stderr.contains("program, tokenizers and data"));
}

#[test]
fn an_estimate_reads_no_weight_and_writes_nothing() {
    let room = room("gpt2_tied");
    std::fs::remove_file(room.path("model/model.safetensors")).unwrap();
    let before = room.files(".");
    let line = "estimate sft --model-name-or-path model --dataset data.jsonl";
    let said = room.run(line).ok().stderr;
    assert!(said.contains("work: 6 optimizer steps of 8 rows"), "{said}");
    assert_eq!(room.files("."), before);
    let quiet = room.run(&format!("{line} --quiet")).ok();
    assert_eq!((quiet.stdout, quiet.stderr), (String::new(), String::new()));
}

/// The memory of a card that is not here, and of a host.
#[test]
fn memory_can_be_given() {
    let room = room("qwen3_tied");
    let line = "estimate sft --model-name-or-path model --dataset data.jsonl";
    let large = room.run(&format!("{line} --memory 24GiB")).ok().stderr;
    assert!(large.contains("of 22.8 GiB that can be used"), "{large}");
    assert!(large.contains("master weights"), "{large}");
    let small = room.run(&format!("{line} --memory 33MiB"));
    assert_eq!(small.code, Some(4), "{small:?}");
    assert!(small.stderr.contains("[memory-plan]"), "{}", small.stderr);
    let host = room.run(&format!("{line} --memory 64GiB --device cpu")).ok().stderr;
    assert!(host.contains("of 64.0 GiB that can be used") && !host.contains("warning"), "{host}");
    let host = room.run(&format!("{line} --memory 1MiB --device cpu"));
    assert_eq!(host.code, Some(4), "{host:?}");
    let wrong = room.run(&format!("{line} --memory much"));
    assert_eq!(wrong.code, Some(2), "{wrong:?}");
}

/// A run that was there before says how long the next will take.
#[test]
fn a_known_rate_gives_the_time() {
    let room = room("gpt2_tied");
    let line = "estimate sft --model-name-or-path model --dataset data.jsonl --output-dir out";
    assert!(!room.run(line).ok().stderr.contains("time: "));
    std::fs::create_dir(room.path("out")).unwrap();
    let row = |rate: f64| json!({ "stage": "sft", "step": 1, "tokens_per_second": rate });
    let other = json!({ "stage": "ppo", "step": 1, "tokens_per_second": 1e9 });
    room.rows("out/timings.jsonl", &[row(1.0), row(0.5), row(2.0), other]);
    let said = room.run(line).ok().stderr;
    assert!(said.contains(" at 1 tokens a second, the median of the last run in out"), "{said}");
}

/// On the CPU the process takes about what was planned. Tiny models are the program itself; this one is larger.
#[test]
fn the_cpu_takes_about_what_is_planned() {
    let room = room("gpt2_tied");
    room.edit("model/config.json", |config| {
        for (key, value) in [("n_embd", 384), ("n_layer", 3), ("n_head", 4), ("n_positions", 64), ("n_ctx", 64)] {
            config.insert(key.into(), json!(value));
        }
        config.insert("vocab_size".into(), json!(6000));
    });
    room.run("fresh --config model/config.json --tokenizer model --output-dir large").ok();
    let line = SFT.replace("--model-name-or-path model", "--model-name-or-path large --save-steps 0");
    let said = room.run(&line.replace("--max-steps 3", "--max-steps 2")).ok().stderr;
    let line = said.lines().find(|line| line.ends_with("were planned")).unwrap_or_else(|| panic!("{said}"));
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!((words[2], words[7]), ("MiB", "MiB"), "{line}");
    let [measured, planned] = [words[1], words[6]].map(|word| word.parse::<f64>().unwrap());
    assert!(measured > 50.0, "{line}: too small to say anything");
    assert!((0.8..1.25).contains(&(planned / measured)), "{line}");
}
