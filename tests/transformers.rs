//! What `rlhf` saves is what transformers loads: models of all stages give the numbers, the greedy answers and the
//! prompts there that they give here. It needs a Python with torch and transformers (tests/fixtures/requirements.txt),
//! named by `RLHF_PYTHON`; without it nothing is compared, and that is said.

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::{Room, completions, pairs, prompts};

/// The largest differences that pass: of a log-probability in nats, and of a reward.
const LOGPROB_MAX: f64 = 5e-5;
const REWARD_MAX: f64 = 1e-4;

const SFT: &str = "--dataset data.jsonl --max-length 64 --max-steps 3 --learning-rate 1e-2 \
    --per-device-train-batch-size 4 --device cpu --quiet";
const REWARD: &str = "--dataset pairs.jsonl --max-length 64 --max-steps 3 --learning-rate 1e-2 \
    --per-device-train-batch-size 4 --device cpu --quiet";
const PPO: &str = "--dataset prompts.jsonl --response-length 8 --per-device-train-batch-size 4 --num-mini-batches 2 \
    --num-ppo-epochs 2 --total-episodes 16 --learning-rate 1e-3 --device cpu --quiet";

/// Tiny models of every architecture, bf16 weights, a long rope and three shards among them.
const FIXTURES: [&str; 6] =
    ["gpt2_tied", "llama_untied_gqa", "llama_bf16", "qwen2_untied", "qwen3_tied", "gpt2_untied"];

/// The Python of `RLHF_PYTHON`.
fn python() -> Option<PathBuf> {
    let python = std::env::var_os("RLHF_PYTHON").map(PathBuf::from);
    if python.is_none() {
        println!("skipped without RLHF_PYTHON: saved models in transformers");
    }
    python
}

/// What Python measures of the cases, in their order.
fn measure(room: &Room, python: &PathBuf, cases: &[Value]) -> Vec<Value> {
    room.write("cases.json", Value::from(cases).to_string());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/transformers/check.py");
    let mut command = Command::new(python);
    command.arg(script).arg(room.path("cases.json")).arg(room.path("measures.jsonl")).current_dir(room.path(""));
    command.env("HF_HUB_OFFLINE", "1").env("CUDA_VISIBLE_DEVICES", "").env("PYTHONDONTWRITEBYTECODE", "1");
    let output = command.output().unwrap_or_else(|e| panic!("RLHF_PYTHON, {}: {e}", python.display()));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let measures = room.lines("measures.jsonl");
    assert_eq!(measures.len(), cases.len());
    measures
}

/// What in a measure is not as it must be.
fn faults(measure: &Value) -> Vec<&'static str> {
    let number = |key: &str| measure[key].as_f64();
    // Written so that NaN is a fault.
    let above = |key: &str, max: f64| number(key).is_some_and(|x| !matches!(x.partial_cmp(&max), Some(o) if o.is_le()));
    let mut faults = Vec::new();
    let mut add = |is, what| faults.extend(Some(what).filter(|_| is));
    add(above("logprob_difference", LOGPROB_MAX), "log-probabilities");
    add(above("other_tokens", 0.0), "tokens");
    add(above("other_prompts", 0.0), "prompts");
    add(above("other_answers", 0.0), "answers");
    add(above("reward_difference", REWARD_MAX), "rewards");
    let is_empty = |key: &str| number(key) == Some(0.0);
    let says_something = ["logprobs", "rewards"].iter().any(|key| number(key).is_some());
    add(!says_something || ["logprobs", "answers", "rewards"].iter().any(|key| is_empty(key)), "nothing compared");
    faults
}

/// Scores and answers with a saved model; what is to be measured of it.
fn case(room: &Room, model: &str, head: &str, texts: &str, prompts: &str) -> Value {
    let name = model.replace('/', "-");
    let path = |name: &str| room.path(name).display().to_string();
    let scored = format!("{name}.scored.jsonl");
    let line = format!("score --model-name-or-path {model} --dataset {texts} --output {scored} --device cpu");
    room.run(&line).ok();
    // The fixtures' tokenizer has no byte-level steps, which AutoTokenizer gives to every Qwen2.
    let tokenizer = if model.starts_with("qwen2") { "file" } else { "auto" };
    let mut case = json!({ "model": path(model), "tokenizer": tokenizer, "head": head });
    case["texts"] = json!(path(texts));
    case["scored"] = json!(path(&scored));
    if head == "language" {
        let answers = format!("{name}.answers.jsonl");
        let line = format!("generate --model-name-or-path {model} --prompts {prompts} --output {answers}");
        room.run(&format!("{line} --temperature 0 --max-new-tokens 16 --device cpu")).ok();
        case["prompts"] = json!(path(prompts));
        case["answers"] = json!(path(&answers));
    }
    case
}

/// Texts to score and prompts to answer, with conversations where the model has a template.
fn material(has_template: bool) -> [Vec<Value>; 2] {
    let turn = |role: &str, content: &str| json!({ "role": role, "content": content });
    let (mut texts, mut questions) = (completions(4), prompts(4));
    texts.push(json!({ "text": "A text of its own, with 12 numbers." }));
    if has_template {
        let ask = [turn("user", " 12 "), turn("assistant", "b"), turn("user", "c?\n")];
        texts.push(json!({ "messages": [turn("user", "Say 1"), turn("assistant", "one")] }));
        questions.push(json!({ "prompt": ask }));
    }
    [texts, questions]
}

/// The three stages on a fixture, and the cases of what they saved.
fn trained(room: &Room, fixture: &str) -> Vec<Value> {
    let at = |stage: &str| format!("{fixture}-{stage}");
    room.model(&at("base"), fixture);
    let config = room.json(&format!("{}/tokenizer_config.json", at("base")));
    let has_template =
        config["chat_template"].is_string() || room.path(&at("base")).join("chat_template.jinja").exists();
    let [texts, questions] = material(has_template);
    room.rows(&at("texts.jsonl"), &texts);
    room.rows(&at("prompts.jsonl"), &questions);
    let [base, sft, reward, ppo] = ["base", "sft", "reward", "ppo"].map(at);
    room.run(&format!("sft --model-name-or-path {base} --output-dir {sft} {SFT}")).ok();
    room.run(&format!("reward --model-name-or-path {sft} --output-dir {reward} {REWARD}")).ok();
    room.run(&format!("ppo --sft-model-path {sft} --reward-model-path {reward} --output-dir {ppo} {PPO}")).ok();
    let of = |model: &str, head| case(room, model, head, &at("texts.jsonl"), &at("prompts.jsonl"));
    let value_model = format!("{ppo}/value_model");
    vec![of(&sft, "language"), of(&reward, "score"), of(&ppo, "language"), of(&value_model, "score")]
}

/// The embedded job, and the cases of what it saved.
fn demo(room: &Room) -> Vec<Value> {
    let mut command = room.command("demo --quick --output-dir demo --device cpu --quiet");
    let output = command.env_remove("RAYON_NUM_THREADS").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let asked = room.lines("demo/prompts.jsonl");
    let questions: Vec<Value> = asked.iter().take(8).map(|row| json!({ "prompt": row["prompt"] })).collect();
    assert_eq!(questions.len(), 8);
    let answer = |row: &Value| {
        let mut messages = row["prompt"].as_array().unwrap().clone();
        messages.push(json!({ "role": "assistant", "content": "Certainly, it is cold." }));
        json!({ "messages": messages })
    };
    room.rows("demo-texts.jsonl", &questions.iter().map(answer).collect::<Vec<_>>());
    room.rows("demo-prompts.jsonl", &questions);
    let of = |stage: &str, head| case(room, &format!("demo/{stage}"), head, "demo-texts.jsonl", "demo-prompts.jsonl");
    vec![of("sft", "language"), of("reward", "score"), of("ppo", "language")]
}

/// The cases again, with one number of what `rlhf` wrote changed in each, and what must then be found.
fn doctored(room: &Room, language: &Value, reward: &Value) -> Vec<(Value, Vec<&'static str>)> {
    let change = |case: &Value, file: &str, what: &'static str, change: &dyn Fn(&mut Value)| {
        let mut rows = room.lines(case[file].as_str().unwrap());
        change(&mut rows[0]);
        let name = format!("doctored-{what}.jsonl");
        room.rows(&name, &rows);
        let mut case = case.clone();
        case[file] = json!(room.path(&name).display().to_string());
        (case, vec![what])
    };
    let add = |value: &mut Value, by: f64| *value = json!(value.as_f64().unwrap() + by);
    vec![
        change(language, "scored", "log-probabilities", &|row| add(&mut row["logprobs"][0], 1e-4)),
        change(language, "scored", "tokens", &|row| row["tokens"][0] = json!(row["tokens"][0].as_i64().unwrap() ^ 1)),
        change(language, "answers", "prompts", &|row| row["prompt"] = json!("other")),
        change(language, "answers", "answers", &|row| row["tokens"][0] = json!(row["tokens"][0].as_i64().unwrap() ^ 1)),
        change(reward, "scored", "rewards", &|row| add(&mut row["score"], 2e-4)),
    ]
}

#[test]
fn what_is_wrong_in_a_measure_is_found() {
    let good = json!({ "logprobs": 3, "logprob_difference": 5e-5, "other_tokens": 0, "answers": 1, "other_prompts": 0,
        "other_answers": 0 });
    assert!(faults(&good).is_empty());
    for (key, value) in [("logprobs", json!(0)), ("answers", json!(0)), ("logprob_difference", json!(6e-5))] {
        let mut bad = good.clone();
        bad[key] = value;
        assert_eq!(faults(&bad).len(), 1, "{bad}");
    }
    assert_eq!(faults(&json!({})), ["nothing compared"]);
    assert_eq!(faults(&json!({ "rewards": 1, "reward_difference": 2e-4 })), ["rewards"]);
}

#[test]
fn saved_models_are_what_transformers_loads() {
    let Some(python) = python() else { return };
    let room = Room::new();
    room.rows("data.jsonl", &completions(12));
    room.rows("pairs.jsonl", &pairs(12));
    room.rows("prompts.jsonl", &prompts(12));
    let mut cases = demo(&room);
    cases.extend(FIXTURES.iter().flat_map(|fixture| trained(&room, fixture)));
    let (wrong, wanted): (Vec<Value>, Vec<_>) = doctored(&room, &cases[3], &cases[4]).into_iter().unzip();
    let measures = measure(&room, &python, &[cases.clone(), wrong].concat());
    let (measures, of_wrong) = measures.split_at(cases.len());
    for (case, measure) in cases.iter().zip(measures) {
        println!("{} {measure}", case["model"]);
        assert!(faults(measure).is_empty(), "{}: {:?} in {measure}", case["model"], faults(measure));
    }
    for (measure, wanted) in of_wrong.iter().zip(wanted) {
        assert_eq!(faults(measure), wanted, "{measure}");
    }
}
