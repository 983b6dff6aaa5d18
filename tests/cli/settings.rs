//! Settings as a user meets them: written by `rlhf init`, read back by `--config`, shown by `rlhf config show`.

use serde_json::{Map, Value, json};

use crate::support::{Room, completions};

/// What `rlhf config show` prints of a stage.
fn shown(room: &Room, stage: &str, options: &str) -> Map<String, Value> {
    let text = room.run(&format!("config show {options} --json")).ok().stdout;
    let all: Value = serde_json::from_str(&text).unwrap();
    all[stage].as_object().unwrap_or_else(|| panic!("{stage} in {text}")).clone()
}

fn values(settings: &Map<String, Value>) -> Vec<(&str, &Value)> {
    settings.iter().map(|(name, setting)| (&name[..], &setting["value"])).collect()
}

fn text(room: &Room, file: &str) -> String {
    String::from_utf8(room.read(file)).unwrap()
}

/// The file with every default that is a value made a setting.
fn uncommented(text: &str) -> String {
    let is_setting = |line: &&str| {
        let key = line.strip_prefix('#').and_then(|line| line.split_once(" = "));
        key.is_some_and(|(key, _)| {
            key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_' || byte.is_ascii_digit())
        })
    };
    let line = |line: &str| if is_setting(&line) { line[1..].to_owned() } else { line.to_owned() };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// Settings that the written files give a place to.
const PLACES: [&str; 5] = ["model-name-or-path", "sft-model-path", "reward-model-path", "dataset", "output-dir"];

#[test]
fn a_written_file_is_the_defaults() {
    let room = Room::new();
    for stage in ["sft", "reward", "ppo"] {
        room.run(&format!("init {stage}")).ok();
        let (file, written) = (format!("{stage}.toml"), text(&room, &format!("{stage}.toml")));
        let defaults = shown(&room, stage, stage);
        let read = shown(&room, stage, &format!("{stage} --config {file}"));
        for (name, setting) in &read {
            let default = &defaults[name];
            let key = name.replace('-', "_");
            if setting != default {
                assert!(PLACES.contains(&&name[..]), "{stage}: {name} is {setting}, by default {default}");
                let line: usize =
                    setting["origin"].as_str().unwrap().strip_prefix(&format!("{file}:")).unwrap().parse().unwrap();
                assert!(written.lines().nth(line - 1).unwrap().starts_with(&format!("{key} = ")), "{name}: {setting}");
            }
            let is_written = written.lines().any(|line| line.trim_start_matches('#').starts_with(&format!("{key} =")));
            assert!(is_written, "{stage}: {key} is not in the file");
        }
        assert_eq!(read.len(), defaults.len());
        // Every default that is written, made a setting, is the same value.
        room.write("all.toml", uncommented(&written));
        let all = shown(&room, stage, &format!("{stage} --config all.toml"));
        assert_eq!(values(&all), values(&read), "{stage}");
        let from_file = all.values().filter(|s| s["origin"].as_str().unwrap().starts_with("all.toml:")).count();
        assert!(from_file > 20, "{from_file} settings of {stage} are in the file");
        // A control: another value in the file is another setting.
        room.write("all.toml", uncommented(&written).replace("seed = 42", "seed = 43"));
        assert_eq!(shown(&room, stage, &format!("{stage} --config all.toml"))["seed"]["value"], "43");
    }
}

#[test]
fn a_written_file_of_a_run_is_the_defaults() {
    let room = Room::new();
    let said = room.run("init").ok().stdout;
    assert!(said.contains("rlhf run --config run.toml"), "{said}");
    let written = text(&room, "run.toml");
    for content in [written.clone(), uncommented(&written)] {
        room.write("run.toml", content);
        for stage in ["sft", "reward", "ppo"] {
            let (defaults, read) = (shown(&room, stage, stage), shown(&room, stage, "run --config run.toml"));
            let differ: Vec<&String> =
                read.keys().filter(|name| read[*name]["value"] != defaults[*name]["value"]).collect();
            assert!(differ.iter().all(|name| PLACES.contains(&&name[..])), "{stage}: {differ:?}");
            assert_eq!(read["output-dir"]["value"], format!("out/{stage}"));
        }
    }
    let reward = shown(&room, "reward", "run --config run.toml");
    assert_eq!(reward["model-name-or-path"], json!({ "value": "out/sft", "origin": "the stage before" }));
}

#[test]
fn init_replaces_nothing() {
    let room = Room::new();
    room.write("sft.toml", "mine");
    let refused = room.run("init sft");
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.stderr.contains("[output-exists]"), "{}", refused.stderr);
    assert_eq!(text(&room, "sft.toml"), "mine");
    room.run("init sft --output other.toml").ok();
    room.run("init reward").ok();
    assert!(text(&room, "other.toml").contains("#packing = false"));
    assert!(text(&room, "reward.toml").contains("#center_rewards_coefficient = 0"));
}

#[test]
fn settings_are_shown_with_their_origin() {
    let room = Room::new();
    room.write("a.toml", "# a comment\nlearning_rate = 1e-3\n\nmax-length = 7\n");
    let sft = shown(&room, "sft", "sft --config a.toml --max-length 9 --strict");
    let cases = [
        ("learning-rate", "0.001", "a.toml:2"),
        ("max-length", "9", "command line"),
        ("strict", "true", "command line"),
        ("seed", "42", "default"),
        // These have no default value among clap's.
        ("adam-epsilon", "0.00000001", "default"),
        ("logging-steps", "10", "default"),
        ("num-train-epochs", "3", "default"),
        ("per-device-train-batch-size", "8", "default"),
        ("eval-steps", "only at the end", "default"),
        ("eval-dataset", "none", "default"),
    ];
    for (name, value, origin) in cases {
        assert_eq!(sft[name], json!({ "value": value, "origin": origin }), "{name}");
    }
    let ppo = shown(&room, "ppo", "ppo --learning-rate 1e-5 --cliprange 0.3");
    for (name, value) in [("value-learning-rate", "1e-5"), ("cliprange-high", "0.3"), ("adam-epsilon", "0.00001")] {
        assert_eq!(ppo[name], json!({ "value": value, "origin": "default" }), "{name}");
    }
    assert_eq!((&ppo["logging-steps"]["value"], &ppo["kl-target"]["value"]), (&json!("1"), &json!("off")));
    let table = room.run("config show sft --config a.toml").ok().stdout;
    assert!(table.lines().any(|line| line.split_whitespace().eq(["learning-rate", "0.001", "a.toml:2"])), "{table}");
    let wrong = room.run("config show sft --config a.toml --learning-rate -1");
    assert_eq!(wrong.code, Some(2), "{wrong:?}");
    room.write("a.toml", "learning_rat = 1");
    let wrong = room.run("config show sft --config a.toml");
    assert!(wrong.stderr.contains("did you mean `learning_rate`"), "{}", wrong.stderr);
}

/// A run says and keeps what `rlhf config show` shows, and what the model made of it.
#[test]
fn a_run_keeps_every_setting() {
    let room = Room::new();
    room.model("model", "gpt2_tied");
    room.rows("data.jsonl", &completions(8));
    let options = "--model-name-or-path model --dataset data.jsonl --max-steps 1 --output-dir out";
    let said = room.run(&format!("sft {options}")).ok().stderr;
    let kept = room.json("out/run.json")["settings"].as_object().unwrap().clone();
    let mut expected = shown(&room, "sft", &format!("sft {options}"));
    let length = expected.insert("max-length".into(), json!({ "value": "64", "origin": "default" })).unwrap();
    assert_eq!(length["value"], "1024, or the model's positions where they are fewer");
    // It asked for the one thing that the run was not asked for.
    expected.insert("json".into(), json!({ "value": "false", "origin": "default" }));
    assert_eq!(kept, expected);
    for words in ["adam-epsilon 0.00000001", "num-train-epochs 3", "eval-steps (only at the end)", "logging-steps 10"] {
        assert!(said.contains(words), "{words} in {said}");
    }
}

/// An option that is given as it is by default changes nothing.
#[test]
fn defaults_that_are_shown_are_what_is_done() {
    let room = Room::new();
    room.model("model", "gpt2_tied");
    room.rows("data.jsonl", &completions(12));
    let options = "sft --model-name-or-path model --dataset data.jsonl --learning-rate 1e-2";
    room.run(&format!("{options} --output-dir a")).ok();
    let given =
        "--adam-epsilon 1e-8 --num-train-epochs 3 --per-device-train-batch-size 8 --max-length 64 --logging-steps 10";
    room.run(&format!("{options} {given} --output-dir b")).ok();
    for file in ["model.safetensors", "metrics.jsonl"] {
        assert_eq!(room.read(&format!("a/{file}")), room.read(&format!("b/{file}")), "{file}");
    }
}

#[test]
fn shells_take_the_completions() {
    let room = Room::new();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = room.run(&format!("completions {shell}")).ok().stdout;
        for word in ["learning-rate", "selftest", "estimate"] {
            assert!(script.contains(word), "{word} for {shell}");
        }
        room.write(shell, script);
    }
    let checked = |file: &str| std::process::Command::new("bash").arg("-n").arg(room.path(file)).output();
    match checked("bash") {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
        Err(why) => return println!("bash is not here, so its script was not tried: {why}"),
    }
    room.write("broken", "if then");
    assert!(!checked("broken").unwrap().status.success());
}
