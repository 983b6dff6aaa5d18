//! No dead knobs: every option of every stage changes what a tiny training leaves behind, or stands in the list of
//! those that cannot, with the reason. The list is held against `--help`, so that no new option is forgotten.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::chat::talk;
use crate::support::{Room, completions, pairs, prompts};

/// What a changed option must change.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Effect {
    /// The trained weights.
    Weights,
    /// The numbers that are logged.
    Metrics,
    /// The answers to fixed prompts.
    Samples,
    /// Which files there are.
    Files,
    /// Nothing in the files, for this reason: they are the same to the byte.
    Nothing(&'static str),
    /// The data's loss becomes a refusal (exit code 3).
    Refusal,
}
use Effect::{Files, Metrics, Nothing, Refusal, Samples, Weights};

/// An option, what it must change, what stands on both lines, and what on the second alone.
type Knob = (&'static str, Effect, &'static str, &'static str);

/// Options that all stages share.
const SHARED: &[Knob] = &[
    ("dataset", Weights, "", "--dataset other.jsonl"),
    ("output-dir", Nothing("the same files lie elsewhere"), "", ""),
    ("device", Nothing("there is only the CPU, and another device is refused"), "", "--device cpu"),
    ("dtype", Nothing("the CPU computes in f32 alone, and bf16 is refused"), "", "--dtype f32"),
    ("seed", Weights, "", "--seed 7"),
    ("logging-steps", Metrics, "", "--logging-steps 2"),
    ("save-steps", Files, "", "--save-steps 1"),
    ("save-total-limit", Files, "--save-steps 1", "--save-total-limit 1"),
    ("resume", Nothing("nothing is there to go on from; tests/resume.rs goes on"), "", "--resume"),
    (
        "accept-changes",
        Nothing("it lets a run that was changed go on, which tests/resume.rs does"),
        "",
        "--accept-changes",
    ),
    ("strict", Refusal, "--dataset lossy.jsonl", "--strict"),
    ("dry-run", Files, "", "--dry-run"),
    ("quiet", Nothing("it is about the terminal"), "", "--quiet"),
    ("json", Nothing("it is about who listens"), "", "--json"),
    ("config", Weights, "", "--config settings.toml"),
    ("per-device-train-batch-size", Weights, "", "--per-device-train-batch-size 2"),
    ("gradient-accumulation-steps", Weights, "", "--gradient-accumulation-steps 2"),
    ("warmup-steps", Weights, "", "--warmup-steps 2"),
    ("lr-scheduler-type", Weights, "", "--lr-scheduler-type constant"),
    ("min-lr-ratio", Weights, "", "--min-lr-ratio 0.5"),
    ("adam-beta1", Weights, "", "--adam-beta1 0.5"),
    ("adam-beta2", Weights, "", "--adam-beta2 0.5"),
    ("adam-epsilon", Weights, "", "--adam-epsilon 1e-3"),
    ("weight-decay", Weights, "", "--weight-decay 0.5"),
    ("max-grad-norm", Weights, "", "--max-grad-norm 0.1"),
    ("learning-rate", Weights, "", "--learning-rate 2e-2"),
    ("recompute", Nothing("it is about memory, whose peaks train/recompute.rs compares"), "", "--recompute full"),
];

/// Options of the stages that learn from rows.
const ROWS: &[Knob] = &[
    ("model-name-or-path", Weights, "", "--model-name-or-path other"),
    ("eval-dataset", Metrics, "", "--eval-dataset other.jsonl"),
    ("eval-steps", Metrics, "--eval-dataset other.jsonl", "--eval-steps 1"),
    ("num-train-epochs", Weights, "", "--num-train-epochs 2"),
    ("max-steps", Weights, "", "--max-steps 2"),
    ("max-length", Weights, "", "--max-length 18"),
];

const SFT: &[Knob] = &[
    ("completion-only-loss", Weights, "", "--completion-only-loss=false"),
    (
        "assistant-only-loss",
        Weights,
        "--model-name-or-path chat --dataset dialogues.jsonl --max-length 512",
        "--assistant-only-loss",
    ),
    ("packing", Weights, "", "--packing"),
    ("num-sample-generations", Samples, "", "--num-sample-generations 1"),
    ("num-sample-prompts", Samples, "", "--num-sample-prompts 2"),
];

const REWARD: &[Knob] = &[("center-rewards-coefficient", Weights, "", "--center-rewards-coefficient 0.1")];

/// The default moves too little for anything to be clipped in three batches.
const MOVED: &str = "--learning-rate 0.02";

const PPO: &[Knob] = &[
    ("model-name-or-path", Nothing("it is another name of --sft-model-path"), "", "--model-name-or-path model"),
    ("sft-model-path", Weights, "", "--sft-model-path other"),
    ("reward-model-path", Weights, "", "--reward-model-path other-reward"),
    ("judge-model-path", Metrics, "", "--judge-model-path other-reward"),
    ("num-sample-generations", Samples, "", "--num-sample-generations 1"),
    ("num-sample-prompts", Samples, "", "--num-sample-prompts 2"),
    ("total-episodes", Weights, "", "--total-episodes 16"),
    ("response-length", Weights, "", "--response-length 5"),
    ("temperature", Weights, "", "--temperature 0.9"),
    ("top-k", Weights, "", "--top-k 3"),
    ("top-p", Weights, "", "--top-p 0.5"),
    ("missing-eos-penalty", Weights, "", "--missing-eos-penalty 2"),
    ("score-clip", Weights, "", "--score-clip 0.01"),
    ("normalize-reward", Weights, "", "--normalize-reward"),
    ("kl-coef", Weights, "", "--kl-coef 0.5"),
    ("kl-estimator", Weights, "", "--kl-estimator k3"),
    ("kl-target", Weights, "", "--kl-target 0.01"),
    ("kl-horizon", Weights, "--kl-target 0.01", "--kl-horizon 10"),
    ("gamma", Weights, "", "--gamma 0.5"),
    ("lam", Weights, "", "--lam 0.5"),
    ("whiten-rewards", Weights, "", "--whiten-rewards"),
    ("exact-logprobs", Nothing("only a GPU's library sums in other orders"), "", "--exact-logprobs"),
    ("value-learning-rate", Weights, "", "--value-learning-rate 1e-3"),
    ("num-ppo-epochs", Weights, "", "--num-ppo-epochs 1"),
    ("num-mini-batches", Weights, "", "--num-mini-batches 1"),
    ("cliprange", Weights, MOVED, "--cliprange 0.01"),
    ("cliprange-high", Weights, MOVED, "--cliprange-high 0.01"),
    ("dual-clip", Weights, MOVED, "--dual-clip 1.01"),
    ("cliprange-value", Weights, MOVED, "--cliprange-value 0.01"),
    ("vf-coef", Weights, "", "--vf-coef 1"),
    ("entropy-coef", Weights, "", "--entropy-coef 0.1"),
    ("target-kl", Weights, MOVED, "--target-kl 1e-6"),
    ("value-warmup-batches", Weights, "", "--value-warmup-batches 1"),
];

/// What a run left, without what names its settings (run.json, the model card) or its clock.
type Left = BTreeMap<String, Vec<u8>>;

/// Runs a stage, and returns what it left; its directory is free again.
fn run(room: &Room, line: &str, more: &str) -> Left {
    let outcome = room.run(&format!("{line} --output-dir out {more}")).ok();
    let is_silent = ["--quiet", "--json"].iter().any(|word| more.contains(word));
    assert_eq!(outcome.stderr.is_empty(), is_silent, "{}", outcome.stderr);
    assert_eq!(outcome.stdout.is_empty(), !more.contains("--json"), "{}", outcome.stdout);
    let mut left = room.files("out");
    left.retain(|name, _| {
        !["run.json", "manifest.json", "README.md", "timings.jsonl", "events.out.tfevents.rlhf", "report.html"]
            .iter()
            .any(|end| name.ends_with(end))
    });
    let _ = std::fs::remove_dir_all(room.path("out"));
    left
}

/// What is wrong with the effect of an option.
fn fault(room: &Room, line: &str, known: &mut BTreeMap<&'static str, Left>, knob: Knob) -> Option<String> {
    let (option, effect, both, after) = knob;
    let before = known.entry(both).or_insert_with(|| run(room, line, both)).clone();
    let fail = |what: &str| Some(format!("--{option} {what} ({after})"));
    if effect == Refusal {
        let outcome = room.run(&format!("{line} --output-dir out {both} {after}"));
        let refuses = outcome.code == Some(3) && outcome.stderr.contains("[strict-");
        let _ = std::fs::remove_dir_all(room.path("out"));
        return if refuses { None } else { fail("refuses nothing") };
    }
    let left = run(room, line, &format!("{both} {after}"));
    let differ = |end: &str| {
        let of =
            |left: &Left| left.iter().filter(|(n, _)| n.ends_with(end)).map(|(_, b)| b.clone()).collect::<Vec<_>>();
        of(&before) != of(&left)
    };
    match effect {
        Weights if !differ(".safetensors") => fail("does not change the weights"),
        Metrics if !differ("metrics.jsonl") => fail("does not change the metrics"),
        Samples if !differ("samples.jsonl") => fail("does not change the samples"),
        Files if before.keys().eq(left.keys()) => fail("does not change which files there are"),
        Nothing(reason) if before != left => fail(&format!("is not without effect, although {reason}")),
        _ => None,
    }
}

/// The long options that a command's help names.
fn options(room: &Room, command: &str) -> Vec<String> {
    let help = room.run(&format!("{command} --help")).ok().stdout;
    let named = |line: &str| {
        let option = line.trim_start().strip_prefix("-h, ").unwrap_or(line.trim_start()).strip_prefix("--")?;
        option.split([' ', '[', '=']).next().map(str::to_owned)
    };
    let options = help.lines().take_while(|line| !line.starts_with("Examples:"));
    let mut options: Vec<String> = options.filter_map(named).filter(|name| name != "help").collect();
    options.sort();
    options
}

/// Turns every knob, and holds the list of knobs against the help.
fn turn(room: &Room, line: &str, lists: &[&[Knob]]) {
    let knobs: Vec<Knob> = lists.concat();
    let mut listed: Vec<&str> = knobs.iter().map(|knob| knob.0).collect();
    listed.sort_unstable();
    let command = line.split(' ').next().unwrap();
    assert_eq!(options(room, command), listed, "the help of `rlhf {command}` and the knobs of this test");
    let mut known = BTreeMap::new();
    let faults: Vec<String> = knobs.into_iter().filter_map(|knob| fault(room, line, &mut known, knob)).collect();
    assert!(faults.is_empty(), "of `rlhf {command}`:\n{}", faults.join("\n"));
}

/// A room with two models, three steps' worth of rows, other rows, and rows that lose something.
fn room(rows: &[Value], other: &[Value], lossy: &Value) -> Room {
    let room = Room::new();
    room.model("model", "gpt2_tied");
    room.model("other", "gpt2_untied");
    room.write("settings.toml", "learning_rate = 0.007\n");
    room.rows("rows.jsonl", rows);
    room.rows("other.jsonl", other);
    room.rows("lossy.jsonl", &[rows, std::slice::from_ref(lossy)].concat());
    room
}

/// `--learning-rate` is not among the words: the configuration file must be able to give it.
const STEPS: &str = "--dataset rows.jsonl --max-length 64 --num-train-epochs 1 --per-device-train-batch-size 4 \
    --logging-steps 1";

#[test]
fn fine_tuning() {
    let lossy = json!({ "prompt": "", "completion": "" });
    let room = room(&completions(12), &completions(11), &lossy);
    room.model("chat", "llama_untied_gqa");
    let turn_of = |role: &str, content: &str| json!({ "role": role, "content": content });
    let dialogue = |i: usize| {
        let prompt = json!([turn_of("user", "a"), turn_of("assistant", "b c"), turn_of("user", "d")]);
        json!({ "prompt": prompt, "completion": [turn_of("assistant", &format!("e {i}"))] })
    };
    room.rows("dialogues.jsonl", &(0..12).map(dialogue).collect::<Vec<_>>());
    turn(&room, &format!("sft --model-name-or-path model {STEPS}"), &[SHARED, ROWS, SFT]);
}

#[test]
fn reward_models() {
    let lossy = json!({ "chosen": "x".repeat(80), "rejected": "y" });
    let room = room(&pairs(12), &pairs(11), &lossy);
    turn(&room, &format!("reward --model-name-or-path model {STEPS}"), &[SHARED, ROWS, REWARD]);
}

#[test]
fn ppo() {
    let room = room(&prompts(24), &prompts(23)[1..], &json!({ "prompt": "" }));
    room.rows("pairs.jsonl", &pairs(8));
    for (model, reward) in [("model", "reward"), ("other", "other-reward")] {
        let line = "reward --dataset pairs.jsonl --max-length 64 --learning-rate 1e-2";
        room.run(&format!("{line} --model-name-or-path {model} --output-dir {reward}")).ok();
    }
    let line = "ppo --sft-model-path model --reward-model-path reward --dataset rows.jsonl --response-length 8 \
        --per-device-train-batch-size 4 --num-mini-batches 2 --num-ppo-epochs 2 --total-episodes 24";
    turn(&room, line, &[SHARED, PPO]);
}

/// The options of the commands that train nothing: each changes the file that is written.
#[test]
fn answers_and_scores() {
    let room = room(&prompts(6), &prompts(5), &json!({}));
    room.rows("data.jsonl", &completions(6));
    let generate = "generate --model-name-or-path model --prompts rows.jsonl --max-new-tokens 8";
    let score = "score --model-name-or-path model --dataset data.jsonl";
    let answers: &[(&str, &str)] = &[
        ("model-name-or-path", "--model-name-or-path other"),
        ("prompts", "--prompts other.jsonl"),
        ("output", ""),
        ("max-new-tokens", "--max-new-tokens 5"),
        ("temperature", "--temperature 0.5"),
        ("top-k", "--top-k 3"),
        ("top-p", "--top-p 0.5"),
        ("seed", "--seed 7"),
        ("device", ""),
    ];
    let scores: &[(&str, &str)] = &[
        ("model-name-or-path", "--model-name-or-path other"),
        ("dataset", "--dataset other-data.jsonl"),
        ("output", ""),
        ("temperature", "--temperature 0.5"),
        ("device", ""),
    ];
    room.rows("other-data.jsonl", &completions(5));
    for (line, knobs) in [(generate, answers), (score, scores)] {
        let command = line.split(' ').next().unwrap();
        let mut listed: Vec<&str> = knobs.iter().map(|knob| knob.0).collect();
        listed.sort_unstable();
        assert_eq!(options(&room, command), listed, "the help of `rlhf {command}` and the knobs of this test");
        room.run(&format!("{line} --output before.jsonl")).ok();
        for (option, change) in knobs {
            room.run(&format!("{line} {change} --output after.jsonl")).ok();
            let same = room.read("before.jsonl") == room.read("after.jsonl");
            assert_eq!(same, change.is_empty(), "`rlhf {command}` --{option}");
        }
    }
}

/// The option of `rlhf report`: the page is where it says, and not where it is otherwise.
#[test]
fn reports() {
    let room = Room::new();
    assert_eq!(options(&room, "report"), ["output"]);
    std::fs::create_dir(room.path("run")).unwrap();
    room.rows("run/metrics.jsonl", &[json!({ "stage": "sft", "step": 1, "loss": 2.5 })]);
    room.run("report run --output page.html").ok();
    assert!(!room.path("run/report.html").exists());
    room.run("report run").ok();
    assert_eq!(room.read("run/report.html"), room.read("page.html"));
}

/// The options of the commands that look at data: each changes what is printed, or the exit code.
#[test]
fn looks_at_data() {
    let room = room(&completions(6), &completions(5), &json!({ "prompt": "", "completion": "" }));
    room.model("chat", "llama_untied_gqa");
    let turn_of = |role: &str, content: &str| json!({ "role": role, "content": content });
    let prompt = json!([turn_of("user", "a"), turn_of("assistant", "b c"), turn_of("user", "d")]);
    room.rows("dialogues.jsonl", &[json!({ "prompt": prompt, "completion": [turn_of("assistant", "e")] })]);
    let chat = "dialogues.jsonl --model-name-or-path chat";
    let reading: &[(&str, &str, &str)] = &[
        ("model-name-or-path", "", "--model-name-or-path chat"),
        ("stage", "", "--stage ppo"),
        ("max-length", "", "--max-length 12"),
        ("response-length", "--stage ppo", "--response-length 8"),
        ("completion-only-loss", "", "--completion-only-loss=false"),
        ("assistant-only-loss", chat, "--assistant-only-loss"),
    ];
    let check: &[(&str, &str, &str)] = &[
        ("eval-dataset", "", "--eval-dataset other.jsonl"),
        ("strict", "--eval-dataset rows.jsonl", "--strict"),
        ("json", "", "--json"),
    ];
    let preview: &[(&str, &str, &str)] = &[("rows", "", "--rows 2"), ("color", "", "--color always")];
    for (command, own) in [("data check", check), ("data preview", preview)] {
        let knobs = [reading, own].concat();
        let mut listed: Vec<&str> = knobs.iter().map(|knob| knob.0).collect();
        listed.sort_unstable();
        assert_eq!(options(&room, command), listed, "the help of `rlhf {command}` and the knobs of this test");
        for (option, both, change) in knobs {
            let both =
                if both == chat { both.to_owned() } else { format!("rows.jsonl --model-name-or-path model {both}") };
            let [before, after] = ["", change].map(|change| room.run(&format!("{command} {both} {change}")));
            assert!((before.code, &before.stdout) != (after.code, &after.stdout), "`rlhf {command}` --{option}");
        }
    }
}

/// Options of the commands that look at settings: each changes what is printed or written. A stage's own options are
/// turned above, and stand here as one of them.
#[test]
fn settings_and_estimates() {
    let room = room(&completions(6), &completions(5), &json!({}));
    let estimate = "estimate sft --model-name-or-path model --dataset rows.jsonl";
    let cases = [
        ("config show sft", "--json"),
        ("config show sft", "--config settings.toml"),
        ("config show sft", "--seed 7"),
        (estimate, "--memory 24GiB"),
        (estimate, "--config settings.toml"),
        (estimate, "--max-steps 2"),
    ];
    for (line, change) in cases {
        let said = |line: &str| {
            let outcome = room.run(line).ok();
            [outcome.stdout, outcome.stderr]
        };
        assert_ne!(said(line), said(&format!("{line} {change}")), "`rlhf {line}` {change}");
    }
    // Beside the stage's own options these commands have no others.
    let of = |line: &str| options(&room, line);
    let beside = |line: &str| of(line).into_iter().filter(|name| !of("sft").contains(name)).collect::<Vec<_>>();
    assert_eq!([beside("config show sft"), beside("estimate sft")], [vec![], vec!["memory"]]);
    assert_eq!((of("init"), of("completions")), (vec!["output".to_owned()], vec![]));
    room.run("init sft --output a.toml").ok();
    room.run("init ppo --output b.toml").ok();
    assert_ne!(room.read("a.toml"), room.read("b.toml"));
    assert_ne!(room.run("completions bash").ok().stdout, room.run("completions zsh").ok().stdout);
}

/// The options of the commands that measure: each changes what they print or write; what changes nothing has a reason.
#[test]
fn evaluations() {
    let room = room(&prompts(6), &prompts(5), &json!({}));
    for (name, fixture) in [("judge", "gpt2_reward"), ("other-judge", "qwen2_reward")] {
        room.model(name, fixture);
    }
    room.rows("data.jsonl", &completions(6));
    room.rows("pairs.jsonl", &pairs(12));
    room.rows("other-pairs.jsonl", &pairs(11));
    let win_rate = "eval win-rate --model-name-or-path model --baseline other --prompts rows.jsonl --output out.jsonl \
        --reward-model-path judge --max-new-tokens 8";
    let sampled = "--temperature 1";
    let win_rates: &[(&str, &str, &str)] = &[
        ("model-name-or-path", "", "--model-name-or-path other"),
        ("baseline", "", "--baseline model"),
        ("prompts", "", "--prompts other.jsonl"),
        ("reward-model-path", "", "--reward-model-path other-judge"),
        ("output", "", "--output beside.jsonl"),
        ("max-new-tokens", "", "--max-new-tokens 5"),
        ("temperature", "", sampled),
        ("top-k", sampled, "--top-k 3"),
        ("top-p", sampled, "--top-p 0.5"),
        ("seed", sampled, "--seed 7"),
        ("json", "", "--json"),
        // There is only the CPU; `judges` turns the other two.
        ("device", "", ""),
        ("answers", "", ""),
        ("scores", "", ""),
    ];
    let reward = "eval reward --model-name-or-path judge --dataset pairs.jsonl";
    let rewards: &[(&str, &str, &str)] = &[
        ("model-name-or-path", "", "--model-name-or-path other-judge"),
        ("dataset", "", "--dataset other-pairs.jsonl"),
        ("output", "", "--output out.jsonl"),
        ("json", "", "--json"),
        ("device", "", ""),
    ];
    let perplexity = "eval perplexity --model-name-or-path model --dataset data.jsonl";
    let perplexities: &[(&str, &str, &str)] = &[
        ("model-name-or-path", "", "--model-name-or-path other"),
        ("dataset", "", "--dataset settings.txt"),
        ("max-length", "", "--max-length 8"),
        ("stride", "--max-length 8", "--stride 7"),
        ("json", "", "--json"),
        ("device", "", ""),
    ];
    room.write("settings.txt", "learning rate");
    // What is printed, and what is written to which file.
    let left = |line: &str| {
        for file in ["out.jsonl", "beside.jsonl"] {
            let _ = std::fs::remove_file(room.path(file));
        }
        let printed = room.run(line).ok().stdout;
        (printed, ["out.jsonl", "beside.jsonl"].map(|file| std::fs::read(room.path(file)).ok()))
    };
    for (line, knobs) in [(win_rate, win_rates), (reward, rewards), (perplexity, perplexities)] {
        let command = line.split(' ').take(2).collect::<Vec<_>>().join(" ");
        let mut listed: Vec<&str> = knobs.iter().map(|knob| knob.0).collect();
        listed.sort_unstable();
        assert_eq!(options(&room, &command), listed, "the help of `rlhf {command}` and the knobs of this test");
        for (option, both, change) in knobs {
            let same = left(&format!("{line} {both}")) == left(&format!("{line} {both} {change}"));
            assert_eq!(same, change.is_empty(), "`rlhf {command}` --{option}");
        }
    }
}

/// The options that judge answers which are there: each changes what is printed, and those that would be ignored are
/// refused.
#[test]
fn judges() {
    let room = Room::new();
    let answers = |first: &str| -> Vec<Value> {
        (0..6).map(|i| json!({ "model": if i == 0 { first } else { "b" }, "baseline": "c" })).collect()
    };
    let verdicts = |first: &str| -> Vec<Value> {
        (0..6).map(|i| json!({ "index": i, "preferred": if i == 0 { first } else { "tie" } })).collect()
    };
    room.rows("answers.jsonl", &answers("a"));
    room.rows("other-answers.jsonl", &answers("another answer, of another length"));
    room.rows("scores.jsonl", &verdicts("model"));
    room.rows("other-scores.jsonl", &verdicts("baseline"));
    let judged = |answers: &str, scores: &str| {
        room.run(&format!("eval win-rate --answers {answers} --scores {scores} --json")).ok().stdout
    };
    let before = judged("answers.jsonl", "scores.jsonl");
    assert_ne!(before, judged("answers.jsonl", "other-scores.jsonl"));
    assert_ne!(before, judged("other-answers.jsonl", "scores.jsonl"));
    for more in ["--seed 7", "--temperature 0", "--device cpu", "--output a.jsonl", "--reward-model-path judge"] {
        let line = format!("eval win-rate --answers answers.jsonl --scores scores.jsonl {more}");
        assert_eq!(room.run(&line).code, Some(2), "{more}");
    }
}

#[test]
fn chat() {
    let room = Room::new();
    for (name, fixture) in [("model", "llama_untied_gqa"), ("other", "qwen3_tied")] {
        room.model(name, fixture);
    }
    let line = "chat --model-name-or-path model --max-new-tokens 12";
    let knobs: &[(&str, &str)] = &[
        ("model-name-or-path", "--model-name-or-path other"),
        ("system", "--system Be_brief."),
        ("temperature", "--temperature 3"),
        ("top-k", "--top-k 1"),
        ("top-p", "--top-p 0.1"),
        ("max-new-tokens", "--max-new-tokens 5"),
        ("seed", "--seed 7"),
        ("device", ""),
    ];
    let mut listed: Vec<&str> = knobs.iter().map(|knob| knob.0).collect();
    listed.sort_unstable();
    assert_eq!(options(&room, "chat"), listed, "the help of `rlhf chat` and the knobs of this test");
    let before = talk(&room, line, "Say one\nAnd two\n").stdout;
    for (option, change) in knobs {
        let same = before == talk(&room, &format!("{line} {change}"), "Say one\nAnd two\n").stdout;
        assert_eq!(same, change.is_empty(), "`rlhf chat` --{option}");
    }
}
