//! `rlhf generate` and `rlhf score`, held against what transformers computed and against each other.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::{keys, number, room};
use crate::support::{Room, Weights, fixtures, prompts};

const LANGUAGE: [&str; 15] = [
    "gpt2_tied",
    "gpt2_untied",
    "llama_tied",
    "llama_untied_gqa",
    "qwen2_tied",
    "qwen2_untied",
    "qwen3_tied",
    "qwen3_untied",
    "gpt2_bf16",
    "llama_bf16",
    "qwen2_bf16",
    "qwen3_bf16",
    "gpt2_f16",
    "llama_f16",
    "qwen2_f16",
];

/// The tokens of all fixtures, which have one tokenizer.
pub(crate) fn vocabulary() -> HashMap<i32, String> {
    let bytes = std::fs::read(fixtures().join("gpt2_tied/tokenizer.json")).unwrap();
    let file: Value = serde_json::from_slice(&bytes).unwrap();
    let tokens = file["model"]["vocab"].as_object().unwrap();
    tokens.iter().map(|(token, id)| (id.as_i64().unwrap() as i32, token.clone())).collect()
}

/// The text of tokens; none if one of them stands for no text.
pub(crate) fn text_of(vocabulary: &HashMap<i32, String>, ids: &[i32]) -> Option<String> {
    ids.iter().map(|id| vocabulary.get(id).map(String::as_str)).collect()
}

pub(crate) fn ints(value: &Value) -> Vec<i32> {
    value.as_array().unwrap().iter().map(|id| id.as_i64().unwrap() as i32).collect()
}

pub(crate) fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

pub(crate) fn expected(fixture: &str) -> Weights {
    Weights::read(&fixtures().join(fixture).join("expected.safetensors"))
}

/// The sequences of a fixture that a text can stand for, each with its number and its first token's place.
pub(crate) fn sequences(fixture: &str, weights: &Weights) -> Vec<(usize, usize, Vec<i32>, String)> {
    let (ids, bounds, vocabulary) = (weights.ints("input_ids"), weights.ints("cu_seqlens"), vocabulary());
    let spans = bounds.windows(2).map(|w| w[0] as usize..w[1] as usize).enumerate();
    let found = spans.filter_map(|(number, span)| {
        let text = text_of(&vocabulary, &ids[span.clone()])?;
        Some((number, span.start, ids[span].to_vec(), text))
    });
    let found: Vec<_> = found.filter(|(_, _, ids, _)| ids.len() > 1).collect();
    assert!(found.len() <= bounds.len(), "{fixture}");
    found
}

/// How each text is tokenised, its first token left out.
pub(crate) fn tokens_of(room: &Room, texts: &[&str]) -> Vec<Vec<i32>> {
    room.rows("texts.jsonl", &texts.iter().map(|text| json!({ "text": text })).collect::<Vec<_>>());
    room.run("score --model-name-or-path model --dataset texts.jsonl --output tokens.jsonl").ok();
    room.lines("tokens.jsonl").iter().map(|row| ints(&row["tokens"])).collect()
}

#[test]
fn greedy_answers_are_those_of_transformers() {
    let vocabulary = vocabulary();
    let mut compared = 0;
    for fixture in LANGUAGE {
        let (room, expected) = (room(fixture), expected(fixture));
        let prompt = expected.ints("greedy_prompt");
        let Some(text) = text_of(&vocabulary, &prompt) else { continue };
        if tokens_of(&room, &[&text]) != [&prompt[1..]] {
            continue;
        }
        room.rows("prompts.jsonl", &[json!({ "prompt": text })]);
        let line = "generate --model-name-or-path model --prompts prompts.jsonl --output out.jsonl --temperature 0 \
                    --max-new-tokens 32";
        room.run(line).ok();
        let row = &room.lines("out.jsonl")[0];
        let stop: Vec<i32> = match &room.json("model/generation_config.json")["eos_token_id"] {
            Value::Array(ids) => ids.iter().map(|id| id.as_i64().unwrap() as i32).collect(),
            id => vec![id.as_i64().unwrap() as i32],
        };
        // Transformers' reference goes on behind the end.
        let mut greedy = expected.ints("greedy_ids");
        let end = greedy.iter().position(|id| stop.contains(id));
        greedy.truncate(end.map_or(32, |end| end + 1));
        assert_eq!(ints(&row["tokens"]), greedy, "{fixture}");
        assert_eq!(row["finish_reason"], if end.is_some() { "stop" } else { "length" }, "{fixture}");
        assert_eq!(row["prompt"], json!(text), "{fixture}");
        compared += 1;
    }
    assert!(compared >= 10, "only {compared} prompts can be written as text");
}

#[test]
fn log_probabilities_are_those_of_transformers() {
    let mut compared = 0;
    for fixture in LANGUAGE {
        let (room, expected) = (room(fixture), expected(fixture));
        let sequences = sequences(fixture, &expected);
        let rows: Vec<Value> = sequences.iter().map(|s| json!({ "prompt": "", "completion": s.3 })).collect();
        room.rows("texts.jsonl", &rows);
        for (temperature, name) in [("1", "logprobs_t1"), ("0.7", "logprobs_t07")] {
            let line = "score --model-name-or-path model --dataset texts.jsonl --output out.jsonl";
            room.run(&format!("{line} --temperature {temperature}")).ok();
            let (found, wanted) = (room.lines("out.jsonl"), expected.floats(name));
            assert_eq!(found.len(), sequences.len());
            for (row, (number, start, ids, _)) in found.iter().zip(&sequences) {
                assert_eq!(keys(row), ["index", "logprobs", "sum_logprob", "tokens"]);
                // Each sequence before has one target less than tokens.
                let wanted = &wanted[start - number..][..ids.len() - 1];
                if ints(&row["tokens"]) != ids[1..] {
                    continue;
                }
                let logprobs = floats(&row["logprobs"]);
                for (ours, theirs) in logprobs.iter().zip(wanted) {
                    assert!((ours - f64::from(*theirs)).abs() < 5e-5, "{fixture}: {ours} and {theirs}");
                }
                assert_eq!(logprobs.len(), wanted.len());
                assert!((logprobs.iter().sum::<f64>() - row["sum_logprob"].as_f64().unwrap()).abs() < 1e-9);
                compared += 1;
            }
        }
    }
    assert!(compared >= 40, "only {compared} sequences can be written as text");
}

#[test]
fn scores_are_those_of_transformers() {
    let mut compared = 0;
    for fixture in ["gpt2_reward", "llama_reward", "qwen2_reward", "qwen3_reward", "qwen2_reward_bf16"] {
        let (room, expected) = (room("llama_tied"), expected(fixture));
        room.model("reward", fixture);
        let sequences = sequences(fixture, &expected);
        let tokens = tokens_of(&room, &sequences.iter().map(|s| &s.3[..]).collect::<Vec<_>>());
        room.run("score --model-name-or-path reward --dataset texts.jsonl --output scores.jsonl").ok();
        let wanted = expected.floats("scores");
        for ((row, tokens), (number, _, ids, _)) in room.lines("scores.jsonl").iter().zip(tokens).zip(&sequences) {
            if tokens == ids[1..] {
                let ours = super::number(row, "score");
                assert!((ours - f64::from(wanted[*number])).abs() < 5e-5, "{fixture}: {ours} and {}", wanted[*number]);
                compared += 1;
            }
        }
    }
    assert!(compared >= 20, "only {compared} sequences can be written as text");
}

#[test]
fn answers_are_sampled_and_can_be_repeated() {
    let room = room("qwen2_tied");
    room.rows("prompts.jsonl", &prompts(70));
    let generate = |more: &str| {
        let line = "generate --model-name-or-path model --prompts prompts.jsonl --max-new-tokens 12 --output out.jsonl";
        room.run(&format!("{line} {more}")).ok();
        room.lines("out.jsonl")
    };
    let rows = generate("--temperature 0.9 --seed 3");
    assert_eq!(rows.len(), 70);
    for (i, row) in rows.iter().enumerate() {
        assert_eq!(keys(row), ["completion", "finish_reason", "index", "logprobs", "prompt", "tokens"]);
        assert_eq!(number(row, "index"), i as f64);
        let (tokens, logprobs) = (ints(&row["tokens"]), floats(&row["logprobs"]));
        assert_eq!(tokens.len(), logprobs.len());
        assert!(logprobs.iter().all(|l| *l <= 0.0 && l.is_finite()));
        let ended = tokens.last().is_some_and(|id| [0, 2].contains(id));
        assert_eq!(row["finish_reason"], if ended { "stop" } else { "length" });
        assert!(ended || tokens.len() == 12, "{row}");
    }
    assert!(rows.iter().any(|r| r["finish_reason"] == "stop") && rows.iter().any(|r| r["finish_reason"] == "length"));
    assert_eq!(generate("--temperature 0.9 --seed 3"), rows);
    assert_ne!(generate("--temperature 0.9 --seed 4"), rows);
    // The same prompt in another row draws other numbers; a greedy answer does not depend on the seed.
    room.rows("prompts.jsonl", &vec![json!({ "prompt": "Say" }); 2]);
    let rows = generate("--temperature 0.9");
    assert_ne!(rows[0]["tokens"], rows[1]["tokens"]);
    assert_eq!(generate("--temperature 0 --seed 1"), generate("--temperature 0 --seed 2"));
    assert_eq!(generate("--top-k 1")[0]["tokens"], generate("--temperature 0")[0]["tokens"]);
}

/// What generation says of its tokens through a cache is what scoring says of them in one pass, to the bit.
#[test]
fn scoring_agrees_with_generation() {
    for fixture in ["gpt2_tied", "llama_untied_gqa", "qwen2_tied", "qwen3_untied", "llama_bf16"] {
        let room = room(fixture);
        room.rows("prompts.jsonl", &prompts(20));
        let generate =
            "generate --model-name-or-path model --prompts prompts.jsonl --max-new-tokens 16 --temperature 0.7";
        room.run(&format!("{generate} --output generated.jsonl")).ok();
        let generated = room.lines("generated.jsonl");
        let rows = generated.iter().filter(|row| row["completion"] != "");
        let rows: Vec<Value> =
            rows.map(|r| json!({ "prompt": r["prompt"], "completion": r["completion"], "of": r["index"] })).collect();
        room.rows("rows.jsonl", &rows);
        room.run("score --model-name-or-path model --dataset rows.jsonl --temperature 0.7 --output scored.jsonl").ok();
        let mut compared = 0;
        for (row, scored) in rows.iter().zip(room.lines("scored.jsonl")) {
            let generated = &generated[number(row, "of") as usize];
            let (tokens, mut drawn) = (ints(&scored["tokens"]), ints(&generated["tokens"]));
            drawn.truncate(tokens.len());
            // Special tokens have no text, and some drawn tokens would be merged when they are read again.
            if tokens == drawn {
                let logprobs = floats(&generated["logprobs"]);
                assert_eq!(floats(&scored["logprobs"]), logprobs[..tokens.len()], "{fixture}: {generated}");
                compared += 1;
            }
        }
        assert!(compared >= 10, "{fixture}: only {compared} answers can be read again");
    }
}
