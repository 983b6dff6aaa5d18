//! Settings that do not exist or contradict each other, models in the wrong role, output that cannot be written, and
//! numbers that run away.

use super::{Case, case, generate, ppo, reward, room, score, sft};
use crate::support::Room;

/// A configuration file, and `rlhf sft` with it.
fn with_file(room: &Room, text: impl AsRef<[u8]>) -> String {
    room.write("a.toml", text);
    sft("--config a.toml")
}

/// A configuration of all stages, with `text` behind it.
fn pipeline(room: &Room, text: &str) -> String {
    let shared = "model_name_or_path = \"model\"\noutput_dir = \"out\"\nmax_length = 64\n";
    let stages =
        "[sft]\ndataset = \"data.jsonl\"\n[reward]\ndataset = \"pairs.jsonl\"\n[ppo]\ndataset = \"prompts.jsonl\"\n";
    room.write("run.toml", format!("{shared}{stages}{text}"));
    "run --config run.toml".to_owned()
}

pub(super) fn files_of_settings() -> Vec<Case> {
    Vec::from([
        case("a typing error", |room| with_file(room, "learning_rat = 1e-4\n"), 2, "config-unknown-key"),
        case("a key of another stage", |room| with_file(room, "kl_coef = 0.1\n"), 2, "config-unknown-key"),
        case("a word for a number", |room| with_file(room, "learning_rate = \"fast\"\n"), 2, "config-value"),
        case("a list for a number", |room| with_file(room, "max_length = [64]\n"), 2, "config-value"),
        case("a number for a switch", |room| with_file(room, "packing = 3\n"), 2, "config-value"),
        case("not a number", |room| with_file(room, "learning_rate = nan\n"), 2, "config-value"),
        case("bad TOML", |room| with_file(room, "max_length = 64\nseed =\n"), 2, "config-toml"),
        case("bad TOML at the start of a line", |room| with_file(room, "max_length = 64\n= 3\n"), 2, "config-toml"),
        case("a key twice", |room| with_file(room, "seed = 1\nseed = 2\n"), 2, "config-toml"),
        case("not UTF-8", |room| with_file(room, b"seed = \"\xff\"\n"), 2, "config-utf8"),
        case("no such file", |_| sft("--config none.toml"), 3, "file-missing"),
        case("a directory", |_| sft("--config model"), 3, "file-kind"),
    ])
}

pub(super) fn files_that_are_no_settings() -> Vec<Case> {
    let text = |text: &'static str| move |room: &Room| with_file(room, text);
    let value = "config-value";
    Vec::from([
        case("an empty key", text("\"\" = 1\n"), 2, "config-unknown-key"),
        case("a key that moves the cursor", text("\"\\u001b[2J\" = 1\n"), 2, "config-unknown-key"),
        case("a key that looks like another", text("learning_rаte = 1\n"), 2, "config-toml"),
        case("a key as a flag", text("--seed = 1\n"), 2, "config-unknown-key"),
        case("a colon for an equals sign", text("seed: 1\n"), 2, "config-toml"),
        case("JSON", text("{\"seed\": 1}\n"), 2, "config-toml"),
        case("a zero byte", text("seed = 1\0\n"), 2, "config-toml"),
        case("a text that is not closed", text("\n\ndataset = \"data.jsonl\n"), 2, "config-toml"),
        case("a table of another stage", text("[ppo]\nkl_coef = 1\n"), 2, "config-unknown-key"),
        case("a table for a value", text("[learning_rate]\nvalue = 1\n"), 2, value),
        case("a date for a number", text("seed = 2020-01-01\n"), 2, value),
        case("a number for a text", text("lr_scheduler_type = 3\n"), 2, value),
        case("an unknown schedule", text("lr_scheduler_type = \"linaer\"\n"), 2, value),
        case("a seed below 0", text("seed = -1\n"), 2, value),
        case("a seed beyond 64 bits", text("seed = 18446744073709551616\n"), 2, "config-toml"),
        case("a seed that is a fraction", text("seed = 1.5\n"), 2, value),
        case("infinity", text("learning_rate = inf\n"), 2, value),
        case("a rate below 0", text("learning_rate = -1e-5\n"), 2, value),
        case("a rate that is 0 as f32", text("learning_rate = 1e-300\n"), 2, value),
        case("a share above 1", text("min_lr_ratio = 1.5\n"), 2, value),
        case("steps beyond all numbers", text("max_steps = 9223372036854775807\n"), 2, value),
        case("a switch that is a text", text("packing = \"maybe\"\n"), 2, value),
        case("a value that moves the cursor", text("seed = \"\\u001b[2J\"\n"), 2, value),
        case("a value of two lines", text("seed = \"1\\n2\"\n"), 2, value),
        case("the same key in two spellings", text("max_length = 8\nmax-length = 9\n"), 2, value),
        case("nesting", |room| with_file(room, format!("seed = {}", "[".repeat(100_000))), 2, "config-toml"),
        case("nesting of tables", |room| with_file(room, format!("a{} = 1\n", ".a".repeat(100_000))), 2, "config-toml"),
        case("a name of a file that is a pickle", |_| sft("--config model/model.safetensors"), 2, "config-utf8"),
    ])
}

pub(super) fn files_of_all_stages() -> Vec<Case> {
    Vec::from([
        case(
            "a misspelt key at the top",
            |room| {
                let line = pipeline(room, "");
                room.write("run.toml", "outputdir = \"a\"\n");
                line
            },
            2,
            "config-unknown-key",
        ),
        case("a misspelt key of a stage", |room| pipeline(room, "kl_coeff = 1\n"), 2, "config-unknown-key"),
        case(
            "a stage that is no table",
            |room| {
                room.write("run.toml", "output_dir = \"out\"\nsft = 3\n");
                "run --config run.toml".into()
            },
            2,
            "config-value",
        ),
        case("a stage with its own output", |room| pipeline(room, "output_dir = \"x\"\n"), 2, "config-value"),
    ])
}

pub(super) fn stages_that_lack_something() -> Vec<Case> {
    Vec::from([
        case(
            "a stage without data",
            |room| {
                room.write(
                    "run.toml",
                    "output_dir = \"out\"\nmodel_name_or_path = \"model\"\n[sft]\ndataset = \"data.jsonl\"\n",
                );
                "run --config run.toml".into()
            },
            2,
            "option-missing",
        ),
        case(
            "data of a later stage that is not there",
            |room| {
                std::fs::remove_file(room.path("prompts.jsonl")).unwrap();
                pipeline(room, "")
            },
            3,
            "file-missing",
        ),
        case(
            "no output directory",
            |room| {
                room.write("run.toml", "seed = 1\n");
                "run --config run.toml".into()
            },
            2,
            "option-missing",
        ),
    ])
}

pub(super) fn words_on_the_command_line() -> Vec<Case> {
    Vec::from([
        case("no such command", |_| "sfft".into(), 2, ""),
        case("a typing error", |_| sft("--learning-rat 1e-4"), 2, ""),
        case("held-out data of PPO", |room| ppo(room, "--eval-steps 2"), 2, ""),
        case("a word for a number", |_| sft("--max-length long"), 2, ""),
        case("a learning rate that is not a number", |_| sft("--learning-rate nan"), 2, ""),
        case("no batch", |_| sft("--per-device-train-batch-size 0"), 2, ""),
        case("a greedy PPO", |room| ppo(room, "--temperature 0"), 2, ""),
        case("a temperature of nearly 0", |_| generate("--temperature 1e-300"), 2, ""),
        case("an epsilon that is 0 as f32", |_| sft("--adam-epsilon 1e-300"), 2, ""),
        case("a dual clip below 1", |room| ppo(room, "--dual-clip 0.5"), 2, ""),
        case("no penalty", |room| ppo(room, "--missing-eos-penalty nan"), 2, ""),
        case(
            "a batch beyond all numbers",
            |room| ppo(room, "--per-device-train-batch-size 999999999999 --gradient-accumulation-steps 999999999999"),
            3,
            "dataset-smaller-than-batch",
        ),
        case("a number of a GPU that is none", |_| sft("--device cuda:x"), 2, "device-unknown"),
        case("a device that is none", |_| generate("--device tpu"), 2, "device-unknown"),
        case("bf16 on the CPU", |_| reward("--dtype bf16"), 2, "dtype-unavailable"),
    ])
}

pub(super) fn options_that_are_missing_or_at_odds() -> Vec<Case> {
    Vec::from([
        case("no model", |_| "sft --dataset data.jsonl --output-dir out".into(), 2, "option-missing"),
        case("no data", |_| "sft --model-name-or-path model --output-dir out".into(), 2, "option-missing"),
        case("no output", |_| "sft --model-name-or-path model --dataset data.jsonl".into(), 2, "option-missing"),
        case(
            "no reward model",
            |_| "ppo --sft-model-path model --dataset prompts.jsonl --output-dir out".into(),
            2,
            "option-missing",
        ),
        case("two policies", |room| ppo(room, "--model-name-or-path other"), 2, "model-twice"),
        case("evaluations of nothing", |_| sft("--eval-steps 2"), 2, "eval-without-data"),
        case("two losses", |_| sft("--assistant-only-loss --completion-only-loss"), 2, "loss-ambiguous"),
        case("assistant turns of plain rows", |_| sft("--assistant-only-loss"), 2, "loss-needs-conversation"),
    ])
}

pub(super) fn models_in_the_wrong_role() -> Vec<Case> {
    Vec::from([
        case("a reward model as policy", |room| ppo(room, "--sft-model-path reward"), 3, "not-a-language-model"),
        case("a policy as reward model", |room| ppo(room, "--reward-model-path model"), 3, "not-a-reward-model"),
        case(
            "a reward model for sft",
            |room| {
                room.model("reward", "gpt2_reward");
                sft("--model-name-or-path reward")
            },
            3,
            "not-a-language-model",
        ),
        case(
            "a reward model that is to speak",
            |room| {
                room.model("reward", "gpt2_reward");
                generate("--model-name-or-path reward")
            },
            3,
            "not-a-language-model",
        ),
        case("a reward model without statistics", |room| ppo(room, "--normalize-reward"), 3, "reward-statistics"),
    ])
}

pub(super) fn output_that_cannot_be_written() -> Vec<Case> {
    Vec::from([
        case(
            "a directory with files",
            |room| {
                std::fs::create_dir(room.path("out")).unwrap();
                room.write("out/notes.txt", "mine");
                sft("")
            },
            2,
            "output-exists",
        ),
        case(
            "a directory with files, dry",
            |room| {
                std::fs::create_dir(room.path("out")).unwrap();
                room.write("out/notes.txt", "mine");
                sft("--dry-run")
            },
            2,
            "output-exists",
        ),
        case("a directory with files, demo", |_| "demo --quick --output-dir model".into(), 2, "output-exists"),
        case(
            "a stage's directory with files",
            |room| {
                std::fs::create_dir_all(room.path("out/ppo")).unwrap();
                room.write("out/ppo/notes.txt", "mine");
                pipeline(room, "")
            },
            2,
            "output-exists",
        ),
        case("a file", |_| sft("--output-dir pairs.jsonl"), 2, "output-not-directory"),
        case("a file, dry", |_| sft("--output-dir pairs.jsonl --dry-run"), 2, "output-not-directory"),
        case("below a file", |_| sft("--output-dir pairs.jsonl/out"), 3, "file-kind"),
    ])
}

pub(super) fn output_files_that_cannot_be_written() -> Vec<Case> {
    Vec::from([
        case("scores over their input", |_| score("--output data.jsonl"), 2, "output-is-input"),
        case("answers over their prompts", |_| generate("--output ./prompts.jsonl"), 2, "output-is-input"),
        case("answers over a directory", |_| generate("--output model"), 2, "output-not-file"),
        #[cfg(unix)]
        case(
            "scores over a link",
            |room| {
                std::os::unix::fs::symlink("elsewhere.jsonl", room.path("link.jsonl")).unwrap();
                score("--output link.jsonl")
            },
            2,
            "output-not-file",
        ),
        case("scores into no directory", |_| score("--output none/out.jsonl"), 3, "file-missing"),
    ])
}

pub(super) fn numbers_that_run_away() -> Vec<Case> {
    Vec::from([
        case("sft", |_| sft("--learning-rate 1e30 --per-device-train-batch-size 2"), 6, "loss-not-finite"),
        case("reward", |_| reward("--learning-rate 1e30 --per-device-train-batch-size 2"), 6, "loss-not-finite"),
        case("ppo", |room| ppo(room, "--learning-rate 1e30"), 6, "loss-not-finite"),
    ])
}

/// Two processes and one output directory: the second learns who the first is, whether or not that has written yet.
#[test]
fn a_directory_that_another_process_owns() {
    for files in [false, true] {
        let room = room();
        std::fs::create_dir(room.path("out")).unwrap();
        let path = room.path("out/.rlhf.lock");
        let owner = std::fs::File::create(&path).unwrap();
        owner.lock().unwrap();
        std::fs::write(&path, "{\"pid\": 4711, \"host\": \"elsewhere\", \"started\": 1, \"ticks\": 1}").unwrap();
        if files {
            room.write("out/metrics.jsonl", "{}\n");
        }
        let before = room.files("out");
        let outcome = room.run(&sft(""));
        assert_eq!(outcome.code, Some(7), "{}", outcome.stderr);
        for text in ["[output-locked]", "where: out\n", "process 4711", "\"elsewhere\""] {
            assert!(outcome.stderr.contains(text), "{text}: {}", outcome.stderr);
        }
        assert_eq!(room.files("out"), before);
        // The lock goes with its owner; what is left of it is taken over.
        drop(owner);
        if !files {
            room.run(&sft("--max-steps 1")).ok();
            assert!(!path.exists());
        }
    }
}

/// A real process that trains is such an owner.
#[test]
fn a_directory_in_which_a_run_goes_on() {
    let room = room();
    let mut first = room.command("demo --output-dir out").spawn().unwrap();
    let metrics = room.path("out/metrics.jsonl");
    let started = std::time::Instant::now();
    while !metrics.exists() && started.elapsed() < super::QUICK {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let outcome = room.run(&sft(""));
    first.kill().unwrap();
    first.wait().unwrap();
    assert_eq!(outcome.code, Some(7), "{}", outcome.stderr);
    assert!(outcome.stderr.contains(&format!("process {}", first.id())), "{}", outcome.stderr);
    // What the killed one left is its files, not its lock.
    let outcome = room.run(&sft(""));
    assert!(outcome.stderr.contains("[output-exists]"), "{}", outcome.stderr);
}

/// What was there before a refusal is there after it.
#[test]
fn refusals_change_nothing() {
    let room = room();
    let before = room.files(".");
    for line in
        [score("--output data.jsonl"), sft("--output-dir model"), sft("--dry-run"), sft("--output-dir pairs.jsonl")]
    {
        room.run(&line);
        assert_eq!(room.files("."), before, "{line}");
    }
}
