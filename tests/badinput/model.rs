//! Model directories whose configuration, tokenizer or chat template cannot be followed.

use serde_json::{Value, json};

use super::{Case, case, generate, ppo, score, sft};
use crate::support::{Room, conversations};

const CONFIG: &str = "model/config.json";

/// Another fixture in place of the usual model, with one key of its configuration changed.
fn with_key(room: &Room, fixture: &str, key: &str, value: Value) {
    std::fs::remove_dir_all(room.path("model")).unwrap();
    room.model("model", fixture);
    room.edit(CONFIG, |config| drop(config.insert(key.to_owned(), value)));
}

pub(super) fn directories_that_hold_no_model() -> Vec<Case> {
    Vec::from([
        case("no such directory", |_| sft("--model-name-or-path openai/gpt2"), 3, "model-missing"),
        case("a file as the model", |_| sft("--model-name-or-path data.jsonl"), 3, "model-not-directory"),
        case(
            "no config.json",
            |room| {
                std::fs::remove_file(room.path(CONFIG)).unwrap();
                sft("")
            },
            3,
            "file-missing",
        ),
        case(
            "a configuration that is not JSON",
            |room| {
                room.write(CONFIG, "{\"n_embd\": 16,");
                sft("")
            },
            3,
            "config-json",
        ),
        case(
            "a key twice",
            |room| {
                room.write(CONFIG, "{\"n_embd\": 16, \"n_embd\": 32}");
                sft("")
            },
            3,
            "config-json",
        ),
    ])
}

pub(super) fn configurations_that_are_not_followed() -> Vec<Case> {
    Vec::from([
        case(
            "an unknown architecture",
            |room| {
                with_key(room, "llama_tied", "architectures", json!(["MambaForCausalLM"]));
                sft("")
            },
            3,
            "config-architecture",
        ),
        case(
            "a misspelt architecture",
            |room| {
                with_key(room, "llama_tied", "architectures", json!(["LlamaForCasualLM"]));
                generate("")
            },
            3,
            "config-architecture",
        ),
        case(
            "a sliding window",
            |room| {
                with_key(room, "qwen2_tied", "layer_types", json!(["full_attention", "sliding_attention"]));
                room.edit(CONFIG, |config| drop(config.insert("sliding_window".into(), json!(16))));
                sft("")
            },
            3,
            "config-sliding-window",
        ),
        case(
            "an unknown rope scaling",
            |room| {
                let rope = json!({ "rope_type": "yarn", "factor": 4.0, "rope_theta": 500.0 });
                with_key(room, "qwen2_tied", "rope_parameters", rope);
                sft("")
            },
            3,
            "rope-unsupported",
        ),
    ])
}

pub(super) fn options_that_are_not_followed() -> Vec<Case> {
    Vec::from([
        case(
            "quantized weights",
            |room| {
                with_key(room, "llama_tied", "quantization_config", json!({ "bits": 4 }));
                sft("")
            },
            3,
            "config-quantized",
        ),
        case(
            "another activation",
            |room| {
                with_key(room, "gpt2_tied", "activation_function", json!("relu"));
                sft("")
            },
            3,
            "config-activation",
        ),
        case(
            "two labels",
            |room| {
                with_key(room, "gpt2_reward", "id2label", json!({ "0": "bad", "1": "good" }));
                score("")
            },
            3,
            "config-labels",
        ),
    ])
}

pub(super) fn configurations_that_make_no_sense() -> Vec<Case> {
    Vec::from([
        case(
            "a size that is a word",
            |room| {
                with_key(room, "gpt2_tied", "n_layer", json!("two"));
                sft("")
            },
            3,
            "config-value",
        ),
        case(
            "a size that is absent",
            |room| {
                with_key(room, "gpt2_tied", "n_embd", Value::Null);
                sft("")
            },
            3,
            "config-missing-key",
        ),
        case(
            "heads that do not divide the width",
            |room| {
                with_key(room, "gpt2_tied", "n_head", json!(3));
                sft("")
            },
            3,
            "config-size",
        ),
        case(
            "a terabyte of weights that are not there",
            |room| {
                with_key(room, "llama_tied", "vocab_size", json!(1 << 24));
                room.edit(CONFIG, |config| drop(config.insert("hidden_size".into(), json!(1 << 15))));
                sft("")
            },
            3,
            "weights-shape",
        ),
        case(
            "a thousand layers that are not there",
            |room| {
                with_key(room, "llama_tied", "num_hidden_layers", json!(1000));
                sft("")
            },
            3,
            "weights-missing-tensor",
        ),
    ])
}

pub(super) fn tokenizers_that_do_not_fit() -> Vec<Case> {
    Vec::from([
        case(
            "no tokenizer",
            |room| {
                std::fs::remove_file(room.path("model/tokenizer.json")).unwrap();
                sft("")
            },
            3,
            "tokenizer-missing",
        ),
        case(
            "a broken tokenizer",
            |room| {
                room.write("model/tokenizer.json", "{\"version\": \"1.0\"");
                sft("")
            },
            3,
            "tokenizer-invalid",
        ),
        case(
            "a vocabulary smaller than a token id",
            |room| {
                room.edit("model/tokenizer.json", |file| file["model"]["vocab"]["zzz"] = json!(500));
                sft("")
            },
            3,
            "vocabulary-too-small",
        ),
        case(
            "a special token that is no token",
            |room| {
                room.edit("model/tokenizer_config.json", |file| drop(file.insert("eos_token".into(), json!("<eos>"))));
                sft("")
            },
            3,
            "special-token-unknown",
        ),
        #[cfg(unix)]
        case(
            "a tokenizer that lies elsewhere",
            |room| {
                std::fs::rename(room.path("model/tokenizer.json"), room.path("tokenizer.json")).unwrap();
                std::os::unix::fs::symlink("../tokenizer.json", room.path("model/tokenizer.json")).unwrap();
                sft("")
            },
            3,
            "model-link",
        ),
    ])
}

pub(super) fn tokenizers_that_do_not_fit_each_other() -> Vec<Case> {
    Vec::from([
        case(
            "reward model and policy with other tokens",
            |room| {
                let line = ppo(room, "");
                room.edit("reward/tokenizer.json", |file| {
                    let vocabulary = file["model"]["vocab"].as_object_mut().unwrap();
                    let (a, b) = (vocabulary["y"].clone(), vocabulary["z"].clone());
                    (vocabulary["y"], vocabulary["z"]) = (b, a);
                });
                line
            },
            3,
            "tokenizer-mismatch",
        ),
        case(
            "a policy with more tokens than the reward model",
            |room| {
                with_key(room, "qwen2_tied", "use_cache", json!(true));
                ppo(room, "")
            },
            3,
            "vocabulary-too-small",
        ),
    ])
}

/// Takes every end-of-sequence token away.
fn without_eos(room: &Room) {
    for name in ["model/config.json", "model/generation_config.json"] {
        room.edit(name, |file| drop(file.remove("eos_token_id")));
    }
    room.edit("model/tokenizer_config.json", |file| drop(file.remove("eos_token")));
}

pub(super) fn models_that_never_end() -> Vec<Case> {
    Vec::from([
        case(
            "no eos, sft",
            |room| {
                without_eos(room);
                sft("")
            },
            3,
            "eos-missing",
        ),
        case(
            "no eos, ppo",
            |room| {
                without_eos(room);
                ppo(room, "")
            },
            3,
            "eos-missing",
        ),
        case(
            "no eos, generate",
            |room| {
                without_eos(room);
                generate("")
            },
            3,
            "eos-missing",
        ),
    ])
}

/// Conversations, and a model with this template.
fn chat(room: &Room, template: &str) -> String {
    room.write("model/chat_template.jinja", template);
    room.rows("data.jsonl", &conversations(4));
    sft("")
}

pub(super) fn templates_that_do_not_render() -> Vec<Case> {
    Vec::from([
        case(
            "no template",
            |room| {
                room.rows("data.jsonl", &conversations(4));
                sft("")
            },
            3,
            "template-missing",
        ),
        case("a template that is not Jinja", |room| chat(room, "{% for %}"), 3, "template-invalid"),
        case(
            "a template that raises",
            |room| chat(room, "{{ raise_exception('only cats may speak') }}"),
            3,
            "template-raised",
        ),
        case(
            "a template that does not end",
            |room| {
                chat(
                    room,
                    "{% for a in range(9999) %}{% for b in range(9999) %}{% set c = a %}{% endfor %}{% endfor %}",
                )
            },
            3,
            "template-too-much-work",
        ),
        case(
            "a template that calls itself without end",
            |room| chat(room, "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}"),
            3,
            "template-failed",
        ),
        case(
            "a template that hides the turns",
            |room| chat(room, "{% for m in messages | reverse %}{{ m.content }}<|endoftext|>{% endfor %}"),
            3,
            "template-not-prefix",
        ),
    ])
}
