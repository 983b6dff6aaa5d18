//! The stages and commands as a user runs them, end to end on tiny models: what they read, write, print and repeat.

use serde_json::{Value, json};

use crate::support::{Room, completions, conversations, pairs, prompts};

pub(crate) mod answers;
mod doctor;
mod emulated;
mod estimate;
mod files;
mod kernels;
mod repeat;
mod settings;

/// `rlhf sft` of `model` on `data.jsonl`, short and logged at every step.
const SFT: &str = "sft --model-name-or-path model --dataset data.jsonl --output-dir sft --max-length 64 \
    --logging-steps 1 --max-steps 3 --learning-rate 1e-2 --per-device-train-batch-size 4";
/// `rlhf reward` from what that wrote.
const REWARD: &str = "reward --model-name-or-path sft --dataset pairs.jsonl --output-dir reward --max-length 64 \
    --logging-steps 1 --max-steps 3 --learning-rate 1e-2 --per-device-train-batch-size 4";
/// `rlhf ppo` with both.
const PPO: &str = "ppo --sft-model-path sft --reward-model-path reward --dataset prompts.jsonl --output-dir ppo \
    --response-length 8 --per-device-train-batch-size 4 --num-mini-batches 2 --num-ppo-epochs 2 --total-episodes 24 \
    --learning-rate 1e-3";

/// A room with a copy of a fixture and with data of every kind.
fn room(fixture: &str) -> Room {
    let room = Room::new();
    room.model("model", fixture);
    room.rows("data.jsonl", &completions(12));
    room.rows("pairs.jsonl", &pairs(12));
    room.rows("prompts.jsonl", &prompts(12));
    room
}

fn number(row: &Value, name: &str) -> f64 {
    row[name].as_f64().unwrap_or_else(|| panic!("{name} is {} in {row}", row[name]))
}

/// The keys of a row, sorted.
fn keys(row: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = row.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

/// Runs the three stages.
fn train(room: &Room) {
    for line in [SFT, REWARD, PPO] {
        room.run(line).ok();
    }
}

#[test]
fn fine_tuning_learns_and_says_so() {
    let room = room("gpt2_tied");
    let outcome = room.run(&format!("{SFT} --max-steps 30")).ok();
    let rows = room.lines("sft/metrics.jsonl");
    assert_eq!(rows.len(), 30);
    assert_eq!(
        keys(&rows[0]),
        [
            "entropy",
            "epoch",
            "grad_norm",
            "learning_rate",
            "loss",
            "mean_token_accuracy",
            "num_tokens",
            "stage",
            "step",
            "target_share"
        ]
    );
    assert!(number(&rows[29], "loss") < number(&rows[0], "loss") - 1.0, "{rows:?}");
    for text in ["command line", "defaults: ", "9344 parameters", "rows in", "learnt", "the model is in"] {
        assert!(outcome.stderr.contains(text), "{text}: {}", outcome.stderr);
    }
    assert_eq!(outcome.stdout, "");
    let quiet = room.run(&format!("{SFT} --quiet --output-dir quiet")).ok();
    assert_eq!((quiet.stdout, quiet.stderr), (String::new(), String::new()));
}

#[test]
fn conversations_are_rendered_by_the_models_own_template() {
    for fixture in ["gpt2_untied", "llama_tied", "llama_untied_gqa", "qwen2_untied", "qwen3_untied"] {
        let room = room(fixture);
        room.rows("data.jsonl", &conversations(6));
        let positions = if fixture == "gpt2_untied" { 64 } else { 512 };
        room.run(&format!("{SFT} --max-length {positions}")).ok();
        let ledger = &room.json("sft/run.json")["dataset"];
        assert_eq!(number(ledger, "conversations"), 6.0, "{fixture}: {ledger}");
        assert!(number(ledger, "tokens_target") > 0.0 && number(ledger, "tokens_masked") > 0.0, "{fixture}: {ledger}");
    }
}

/// Prompts and preferences may be conversations too.
#[test]
fn conversations_go_through_all_stages() {
    let room = room("qwen2_untied");
    let turn = |role: &str, content: String| json!({ "role": role, "content": content });
    let ask = |i: usize| turn("user", format!("Say {i}"));
    let pair = |i: usize, whole: bool| {
        let answer = |word: &str| turn("assistant", word.repeat(1 + i % 3));
        if whole {
            json!({ "chosen": [ask(i), answer("good ")], "rejected": [ask(i), answer("bad ")] })
        } else {
            json!({ "prompt": [ask(i)], "chosen": [answer("good ")], "rejected": [answer("bad ")] })
        }
    };
    room.rows("data.jsonl", &conversations(12));
    room.rows("pairs.jsonl", &(0..12).map(|i| pair(i, false)).collect::<Vec<_>>());
    room.rows("implicit.jsonl", &(0..12).map(|i| pair(i, true)).collect::<Vec<_>>());
    room.rows("prompts.jsonl", &(0..12).map(|i| json!({ "prompt": [ask(i)] })).collect::<Vec<_>>());
    room.run(&format!("{SFT} --max-length 256")).ok();
    room.run(&format!("{REWARD} --max-length 256")).ok();
    room.run(&format!("{REWARD} --max-length 256 --dataset implicit.jsonl --output-dir implicit")).ok();
    assert_eq!(room.read("implicit/model.safetensors"), room.read("reward/model.safetensors"));
    room.run(PPO).ok();
    room.run("generate --model-name-or-path ppo --prompts prompts.jsonl --max-new-tokens 5 --output a.jsonl").ok();
    let prompt = "<|im_start|>user\nSay 3<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(room.lines("a.jsonl")[3]["prompt"], prompt);
    room.rows("one.jsonl", &[json!({ "prompt": [ask(1)], "completion": [turn("assistant", "ok".into())] })]);
    room.run("score --model-name-or-path ppo --dataset one.jsonl --output s.jsonl").ok();
    // The letters, the end of the turn and a newline: what the template writes behind the prompt.
    let tokens = &room.lines("s.jsonl")[0]["tokens"];
    assert_eq!((tokens.as_array().unwrap().len(), &tokens[2], &tokens[3]), (4, &json!(2), &json!(4)), "{tokens}");
}

#[test]
fn packing_puts_examples_together() {
    let room = room("llama_tied");
    let outcome = room.run(&format!("{SFT} --packing --max-steps 2 --per-device-train-batch-size 6")).ok();
    let (packed, data) = (room.lines("sft/metrics.jsonl"), room.json("sft/run.json"));
    // Twelve short examples fit into six rows of 64 tokens: one step sees them all.
    assert_eq!(number(&packed[0], "num_tokens"), number(&data["dataset"], "tokens_kept"), "{}", outcome.stderr);
    assert_eq!(number(&packed[1], "epoch"), 2.0);
}

#[test]
fn a_dry_run_writes_nothing() {
    let room = room("gpt2_tied");
    room.run(SFT).ok();
    room.run(REWARD).ok();
    let before = room.files(".");
    for (line, output) in [(SFT, "--output-dir dry"), (REWARD, "--output-dir dry"), (PPO, "--output-dir dry")] {
        let outcome = room.run(&format!("{line} {output} --dry-run")).ok();
        assert!(outcome.stderr.contains("nothing was written to dry"), "{}", outcome.stderr);
        assert!(outcome.stderr.contains("rows in"), "{}", outcome.stderr);
    }
    assert_eq!(room.files("."), before);
    assert!(!room.path("dry").exists());
}

#[test]
fn held_out_data_is_evaluated() {
    let room = room("gpt2_tied");
    room.rows("held.jsonl", &completions(5));
    room.rows("held_pairs.jsonl", &pairs(5));
    room.run(&format!("{SFT} --eval-dataset held.jsonl --eval-steps 2")).ok();
    room.run(&format!("{REWARD} --eval-dataset held_pairs.jsonl --eval-steps 2")).ok();
    for (file, key) in [("sft/metrics.jsonl", "eval_loss"), ("reward/metrics.jsonl", "eval_accuracy")] {
        let rows = room.lines(file);
        let evaluated: Vec<f64> = rows.iter().filter(|r| r.get(key).is_some()).map(|r| number(r, "step")).collect();
        assert_eq!(evaluated, [2.0, 3.0], "{file}: at step 2 and at the end");
        assert_eq!(rows.len(), 5);
    }
}

#[test]
fn checkpoints_are_models() {
    let room = room("qwen2_untied");
    room.run(&format!("{SFT} --save-steps 1 --save-total-limit 0")).ok();
    room.run(&format!("{REWARD} --save-steps 2")).ok();
    room.run(&format!("{PPO} --save-steps 2")).ok();
    for step in [1, 2, 3] {
        room.run(&format!(
            "generate --model-name-or-path sft/checkpoints/step-{step} --prompts prompts.jsonl --output {step}.jsonl \
             --temperature 0 --max-new-tokens 6"
        ))
        .ok();
    }
    assert_ne!(room.read("1.jsonl"), room.read("3.jsonl"), "they are of different steps");
    assert_eq!(room.read("sft/checkpoints/step-3/model.safetensors"), room.read("sft/model.safetensors"));
    room.run("score --model-name-or-path reward/checkpoints/step-2 --dataset data.jsonl --output s.jsonl").ok();
    room.run("score --model-name-or-path ppo/checkpoints/step-2 --dataset data.jsonl --output p.jsonl").ok();
    let steps = |stage: &str| {
        let list = std::fs::read_dir(room.path(&format!("{stage}/checkpoints"))).unwrap();
        let mut names: Vec<String> = list.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!((steps("reward"), steps("ppo")), (vec!["step-2".to_owned()], vec!["step-2".to_owned()]));
}

#[test]
fn a_reward_model_learns_from_pairs() {
    let room = room("llama_untied_gqa");
    room.run(SFT).ok();
    room.run(&format!("{REWARD} --max-steps 30")).ok();
    let rows = room.lines("reward/metrics.jsonl");
    assert_eq!(
        keys(&rows[0]),
        [
            "accuracy",
            "epoch",
            "grad_norm",
            "learning_rate",
            "loss",
            "margin",
            "max_reward",
            "mean_reward",
            "min_reward",
            "num_tokens",
            "stage",
            "step"
        ]
    );
    assert!(number(&rows[29], "loss") < 0.2, "{:?}", rows[29]);
    assert_eq!(number(&rows[29], "accuracy"), 1.0);
    let config = room.json("reward/config.json");
    assert_eq!(config["architectures"], json!(["LlamaForSequenceClassification"]));
    assert_eq!(config["id2label"], json!({ "0": "LABEL_0" }));
    let statistics = room.json("reward/reward_statistics.json");
    assert!(number(&statistics, "std") > 0.0 && number(&statistics, "completions") == 12.0);
    // What was learnt is in the file: good answers score higher.
    let answers = ["good ", "bad "].map(|word| json!({ "prompt": "Say 3: ", "completion": word.repeat(2) }));
    room.rows("answers.jsonl", &answers);
    room.run("score --model-name-or-path reward --dataset answers.jsonl --output scores.jsonl").ok();
    let scores = room.lines("scores.jsonl");
    assert_eq!(keys(&scores[1]), ["index", "score"]);
    assert!(number(&scores[0], "score") > number(&scores[1], "score") + 1.0, "{scores:?}");
}

#[test]
fn pairs_with_an_implicit_prompt_and_with_margins() {
    let room = room("gpt2_tied");
    room.run(SFT).ok();
    room.run(REWARD).ok();
    let whole = |row: &Value| {
        let [prompt, chosen, rejected] = ["prompt", "chosen", "rejected"].map(|key| row[key].as_str().unwrap());
        json!({ "chosen": format!("{prompt}{chosen}"), "rejected": format!("{prompt}{rejected}") })
    };
    let rows = room.lines("pairs.jsonl");
    room.rows("implicit.jsonl", &rows.iter().map(whole).collect::<Vec<_>>());
    room.run(&format!("{REWARD} --dataset implicit.jsonl --output-dir implicit")).ok();
    assert_eq!(room.read("implicit/metrics.jsonl"), room.read("reward/metrics.jsonl"));
    assert_eq!(room.read("implicit/model.safetensors"), room.read("reward/model.safetensors"));
    let margins = rows.iter().enumerate().map(|(i, row)| {
        let mut row = row.clone();
        row["margin"] = json!(i % 3);
        row
    });
    room.rows("margins.jsonl", &margins.collect::<Vec<_>>());
    room.run(&format!("{REWARD} --dataset margins.jsonl --output-dir margins")).ok();
    assert_ne!(room.read("margins/model.safetensors"), room.read("reward/model.safetensors"));
    let loss = |dir: &str| number(&room.lines(&format!("{dir}/metrics.jsonl"))[0], "loss");
    assert!(loss("margins") > loss("reward"), "a margin can only make the same scores worse");
}

/// The diagnostics that the design promises of every step, and what tells one step from another.
const PPO_KEYS: [&str; 34] = [
    "episode",
    "logp_diff/max",
    "logp_diff/mean",
    "loss/policy_avg",
    "loss/value_avg",
    "lr",
    "objective/entropy",
    "objective/kl",
    "objective/kl_coef",
    "objective/non_score_reward",
    "objective/raw_scores",
    "objective/rlhf_reward",
    "objective/scores",
    "policy/approxkl_avg",
    "policy/clipfrac_avg",
    "policy/entropy_avg",
    "policy/grad_norm",
    "ppo_epochs",
    "response/distinct_2",
    "response/eos_share",
    "response/length_max",
    "response/length_mean",
    "response/length_min",
    "response/score_length_correlation",
    "response/slot_use",
    "stage",
    "step",
    "val/clipfrac_avg",
    "val/explained_variance",
    "val/num_eos_tokens",
    "val/ratio",
    "val/ratio_var",
    "value/grad_norm",
    "value_lr",
];

#[test]
fn ppo_reports_every_diagnostic() {
    for fixture in ["gpt2_tied", "llama_untied_gqa", "qwen2_untied", "qwen3_tied", "llama_bf16", "gpt2_f16"] {
        let room = room(fixture);
        train(&room);
        let rows = room.lines("ppo/metrics.jsonl");
        assert_eq!(rows.len(), 3, "24 episodes are three batches of 8");
        for (i, row) in rows.iter().enumerate() {
            assert_eq!(keys(row), PPO_KEYS, "{fixture}");
            let numbers = row.as_object().unwrap().iter().filter(|(key, _)| *key != "stage");
            numbers.for_each(|(key, x)| assert!(x.as_f64().is_some_and(f64::is_finite), "{fixture}: {key} is {x}"));
            assert_eq!((number(row, "step"), number(row, "episode")), (i as f64 + 1.0, 8.0 * (i as f64 + 1.0)));
            assert_eq!(number(row, "logp_diff/max"), 0.0, "{fixture}: the trainer is the policy that sampled");
            assert!((number(row, "val/ratio") - 1.0).abs() < 0.5, "{fixture}: {row}");
            assert!(number(row, "policy/entropy_avg") > 0.0 && number(row, "loss/value_avg") > 0.0);
        }
        assert_eq!(number(&rows[0], "objective/kl"), 0.0, "{fixture}: policy and reference begin as one");
        assert_ne!(number(&rows[2], "objective/kl"), 0.0, "{fixture}: they part");
        let identity = number(&rows[2], "objective/scores") + number(&rows[2], "objective/non_score_reward");
        assert!((identity - number(&rows[2], "objective/rlhf_reward")).abs() < 1e-9);
        for (name, class) in [("ppo", "For"), ("ppo/value_model", "ForSequenceClassification")] {
            let architecture = room.json(&format!("{name}/config.json"))["architectures"][0].to_string();
            assert!(architecture.contains(class) || architecture.contains("LMHead"), "{architecture}");
        }
    }
}

#[test]
fn three_stages_from_one_file() {
    let room = room("qwen3_tied");
    let text = "model_name_or_path = \"model\"\noutput_dir = \"all\"\nseed = 7\nper_device_train_batch_size = 4\n\
        max_length = 64\nlogging_steps = 1\nmax_steps = 2\n\
        [sft]\ndataset = \"data.jsonl\"\nlearning_rate = 1e-2\n\
        [reward]\ndataset = \"pairs.jsonl\"\nlearning-rate = 1e-2\n\
        [ppo]\ndataset = \"prompts.jsonl\"\nresponse_length = 8\ntotal_episodes = 8\nnormalize_reward = true\n";
    room.write("run.toml", text);
    room.run("run --config run.toml --dry-run").ok();
    assert!(!room.path("all").exists());
    room.run("run --config run.toml --quiet").ok();
    for (stage, steps) in [("sft", 2), ("reward", 2), ("ppo", 2)] {
        assert_eq!(room.lines(&format!("all/{stage}/metrics.jsonl")).len(), steps, "{stage}");
        let settings = &room.json(&format!("all/{stage}/run.json"))["settings"];
        assert_eq!(settings["seed"], json!({ "value": "7", "origin": "run.toml:3" }), "{stage}");
        assert_eq!(settings["per-device-train-batch-size"]["value"], "4", "{stage}");
    }
    let ppo = room.json("all/ppo/run.json");
    assert_eq!((&ppo["sft_model"], &ppo["reward_model"]), (&json!("all/sft"), &json!("all/reward")));
    // The three commands by hand do the same.
    let shared = "--seed 7 --per-device-train-batch-size 4 --logging-steps 1 --quiet";
    let by_hand = [
        "sft --model-name-or-path model --dataset data.jsonl --output-dir sft --max-length 64 --max-steps 2 \
         --learning-rate 1e-2",
        "reward --model-name-or-path sft --dataset pairs.jsonl --output-dir reward --max-length 64 --max-steps 2 \
         --learning-rate 1e-2",
        "ppo --sft-model-path sft --reward-model-path reward --dataset prompts.jsonl --output-dir ppo \
         --response-length 8 --total-episodes 8 --normalize-reward",
    ];
    for (line, stage) in by_hand.iter().zip(["sft", "reward", "ppo"]) {
        room.run(&format!("{line} {shared}")).ok();
        for file in ["metrics.jsonl", "model.safetensors"] {
            assert_eq!(room.read(&format!("{stage}/{file}")), room.read(&format!("all/{stage}/{file}")), "{stage}");
        }
    }
    room.run("run --config run.toml --output-dir other --seed 8 --quiet").ok();
    assert_eq!(room.json("other/ppo/run.json")["settings"]["seed"]["origin"], "command line");
    assert_ne!(room.read("other/ppo/metrics.jsonl"), room.read("all/ppo/metrics.jsonl"));
}

#[test]
fn the_command_line_wins_over_the_file() {
    let room = room("gpt2_tied");
    room.write(
        "sft.toml",
        "learning_rate = 1e-2\nmax-steps = 5\nmax_length = 64\ndataset = \"data.jsonl\"\npacking = true\n",
    );
    let line = "sft --config sft.toml --model-name-or-path model --output-dir out --max-steps 2 --packing=false";
    room.run(line).ok();
    let run = room.json("out/run.json");
    let expected = [
        ("learning-rate", "0.01", "sft.toml:1"),
        ("max-steps", "2", "command line"),
        ("max-length", "64", "sft.toml:3"),
        ("packing", "false", "command line"),
        ("dataset", "data.jsonl", "sft.toml:4"),
        ("seed", "42", "default"),
        ("weight-decay", "0", "default"),
    ];
    for (name, value, origin) in expected {
        assert_eq!(run["settings"][name], json!({ "value": value, "origin": origin }), "{name}");
    }
    assert_eq!((&run["command"], &run["device"]), (&json!("sft"), &json!("cpu")));
    assert_eq!(number(&room.lines("out/metrics.jsonl")[0], "step"), 2.0);
}

#[test]
fn help_has_examples() {
    let room = Room::new();
    let commands = [
        "sft",
        "reward",
        "ppo",
        "run",
        "generate",
        "score",
        "eval win-rate",
        "eval reward",
        "eval perplexity",
        "chat",
        "report",
    ];
    for command in commands {
        let help = room.run(&format!("{command} --help")).ok().stdout;
        let (_, examples) = help.split_once("Examples:\n").unwrap_or_else(|| panic!("{command}: {help}"));
        let whole = |line: &&str| {
            let line = line.trim_start().trim_start_matches("echo 'What is RLHF?' | ");
            line.starts_with(&format!("rlhf {command} "))
        };
        assert!(examples.lines().all(|line| whole(&line)), "an example is wrapped: {examples}");
        assert!(examples.lines().count() >= 2, "{examples}");
    }
    let help = room.run("--help").ok().stdout;
    assert!(help.contains("Exit codes: 0 ok") && help.contains("rlhf demo"), "{help}");
    assert!(room.run("--version").ok().stdout.starts_with("rlhf "));
}

/// A log that nobody reads any more (`2>&1 | head`) does not end a run.
#[test]
fn a_closed_pipe_is_no_reason_to_die() {
    let room = room("gpt2_tied");
    let mut child = room.command(SFT).spawn().unwrap();
    drop((child.stderr.take(), child.stdout.take()));
    assert!(child.wait().unwrap().success());
    assert!(room.path("sft/model.safetensors").exists());
}
