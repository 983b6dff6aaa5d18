//! One key of a good config.json changed: sizes, numbers, names and switches that no model has.

use serde_json::{Value, json};

use super::{Case, case, score, sft};
use crate::support::Room;

/// A fixture with `key` of its config.json set to `value`.
fn with(fixture: &'static str, key: &'static str, value: Value) -> impl Fn(&Room) -> String + Send + Sync + use<> {
    move |room| {
        std::fs::remove_dir_all(room.path("model")).unwrap();
        room.model("model", fixture);
        // What stands there wins, and hides what is wrong here.
        let _ = std::fs::remove_file(room.path("model/generation_config.json"));
        room.edit("model/config.json", |config| drop(config.insert(key.to_owned(), value.clone())));
        if fixture.ends_with("reward") { score("") } else { sft("") }
    }
}

/// A fixture without `key`.
fn without(fixture: &'static str, key: &'static str) -> impl Fn(&Room) -> String + Send + Sync + use<> {
    with(fixture, key, Value::Null)
}

/// Another text as config.json.
fn text<T: AsRef<[u8]> + Send + Sync>(bytes: T) -> impl Fn(&Room) -> String + Send + Sync + use<T> {
    move |room| {
        room.write("model/config.json", &bytes);
        sft("")
    }
}

pub(super) fn configurations_that_are_no_json() -> Vec<Case> {
    Vec::from([
        case("nothing", text(""), 3, "config-json"),
        case("a list", text("[]"), 3, "config-json"),
        case("a byte order mark", text("\u{feff}{}"), 3, "config-json"),
        case("UTF-16", text(b"\xff\xfe{\0}\0"), 3, "config-json"),
        case("bytes that are no text", text(b"{\"a\": \"\xc3\x28\"}"), 3, "config-json"),
        case("a zero byte", text(b"{\"a\": \"\0\"}"), 3, "config-json"),
        case("half a surrogate", text("{\"model_type\": \"\\ud800\"}"), 3, "config-json"),
        case("nesting", text("[".repeat(100_000)), 3, "config-json"),
        case("nesting of objects", text("{\"a\":".repeat(100_000)), 3, "config-json"),
        case("half a million numbers", text(format!("{{\"a\": [{}0]}}", "0,".repeat(500_000))), 3, "config-json"),
        case("text behind the end", text("{} {}"), 3, "config-json"),
        case("a key twice, deep inside", text("{\"a\": [{\"b\": {\"c\": 1, \"c\": 2}}]}"), 3, "config-json"),
        case("a number beyond all numbers", text("{\"rope_theta\": 1e999}"), 3, "config-json"),
        case("NaN", text("{\"rope_theta\": NaN}"), 3, "config-json"),
        case("a comment", text("{} // fine"), 3, "config-json"),
        case("an escape sequence for the terminal", text("{\"\u{1b}[2J\": 1, \"\u{1b}[2J\": 2}"), 3, "config-json"),
    ])
}

pub(super) fn sizes_of_no_model() -> Vec<Case> {
    Vec::from([
        case("no width", with("llama_tied", "hidden_size", json!(0)), 3, "config-value"),
        case("a negative width", with("llama_tied", "hidden_size", json!(-16)), 3, "config-value"),
        case("a width of one and a half", with("llama_tied", "hidden_size", json!(16.5)), 3, "config-value"),
        case("a width as a text", with("llama_tied", "hidden_size", json!("16")), 3, "config-value"),
        case("a width of 2^63", with("llama_tied", "hidden_size", json!(1_u64 << 63)), 3, "config-value"),
        case("a width beyond 64 bits", with("llama_tied", "hidden_size", json!(1e300)), 3, "config-value"),
        case("a width that is a list", with("llama_tied", "hidden_size", json!([16])), 3, "config-value"),
        case("no layers", with("qwen2_tied", "num_hidden_layers", json!(0)), 3, "config-value"),
        case("a million layers", with("qwen2_tied", "num_hidden_layers", json!(1_000_000)), 3, "config-value"),
        case("no heads", with("qwen3_tied", "num_attention_heads", json!(0)), 3, "config-value"),
        case("an odd head", with("qwen3_tied", "head_dim", json!(5)), 3, "config-size"),
        case("key heads that do not divide", with("llama_tied", "num_key_value_heads", json!(3)), 3, "config-size"),
        case("more key heads than heads", with("llama_tied", "num_key_value_heads", json!(8)), 3, "config-size"),
        case("no key heads in Qwen", without("qwen2_tied", "intermediate_size"), 3, "config-missing-key"),
        case("no vocabulary", with("gpt2_tied", "vocab_size", json!(0)), 3, "config-value"),
        case("a vocabulary of 2^40", with("gpt2_tied", "vocab_size", json!(1_u64 << 40)), 3, "config-value"),
        case("a vocabulary that is short", with("gpt2_tied", "vocab_size", json!(100)), 3, "weights-shape"),
        case("no positions", with("gpt2_tied", "n_positions", json!(0)), 3, "config-value"),
        case(
            "positions without end",
            with("llama_tied", "max_position_embeddings", json!(u64::MAX)),
            3,
            "config-value",
        ),
        case("more positions than weights", with("gpt2_tied", "n_positions", json!(128)), 3, "weights-shape"),
        case(
            "a trillion parameters",
            |room| {
                let line = with("llama_tied", "num_hidden_layers", json!(1024))(room);
                room.edit("model/config.json", |config| {
                    for (key, size) in [("hidden_size", 1 << 16), ("intermediate_size", 1 << 20), ("head_dim", 1 << 10)]
                    {
                        config.insert(key.into(), size.into());
                    }
                });
                line
            },
            3,
            "config-size",
        ),
        case("a wider model than its weights", with("gpt2_tied", "n_embd", json!(32)), 3, "weights-shape"),
        case("another inner width", with("gpt2_tied", "n_inner", json!(48)), 3, "weights-shape"),
    ])
}

pub(super) fn numbers_of_no_model() -> Vec<Case> {
    Vec::from([
        case("an epsilon of 0", with("llama_tied", "rms_norm_eps", json!(0)), 3, "config-value"),
        case("a negative epsilon", with("llama_tied", "rms_norm_eps", json!(-1e-6)), 3, "config-value"),
        case("an epsilon of 1", with("gpt2_tied", "layer_norm_epsilon", json!(1)), 3, "config-value"),
        case("an epsilon as a text", with("gpt2_tied", "layer_norm_epsilon", json!("1e-5")), 3, "config-value"),
        case("an epsilon that is 0 as f32", with("gpt2_tied", "layer_norm_epsilon", json!(1e-60)), 3, "config-value"),
        case("a RoPE base of 0", with("llama_tied", "rope_theta", json!(0)), 3, "config-value"),
        case("a RoPE base beyond f32", with("llama_tied", "rope_theta", json!(1e300)), 3, "config-value"),
        case("a RoPE that is a number", with("llama_tied", "rope_scaling", json!(3)), 3, "config-value"),
        case(
            "a RoPE without a type",
            with("llama_tied", "rope_scaling", json!({ "factor": 2 })),
            3,
            "rope-unsupported",
        ),
        case(
            "a RoPE of two types",
            with("llama_tied", "rope_scaling", json!({ "type": "default", "rope_type": "llama3" })),
            3,
            "rope-unsupported",
        ),
        case(
            "a RoPE that lacks numbers",
            with("llama_tied", "rope_scaling", json!({ "rope_type": "llama3" })),
            3,
            "config-missing-key",
        ),
        case(
            "a RoPE that shrinks",
            with(
                "llama_tied",
                "rope_scaling",
                json!({ "rope_type": "llama3", "factor": 0.5, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 64 }),
            ),
            3,
            "config-value",
        ),
        case(
            "two RoPEs that differ",
            with("llama_tied", "rope_parameters", json!({ "rope_type": "default", "rope_theta": 7 })),
            3,
            "config-value",
        ),
        case("half a rotation", with("llama_tied", "partial_rotary_factor", json!(0.5)), 3, "rope-unsupported"),
        case("a switch that is a number", with("llama_tied", "tie_word_embeddings", json!(1)), 3, "config-value"),
        case("a bias that is a text", with("llama_tied", "attention_bias", json!("no")), 3, "config-value"),
        case("a token that is a text", with("llama_tied", "bos_token_id", json!("<s>")), 3, "config-value"),
        case("an end that is a text", with("llama_tied", "eos_token_id", json!("</s>")), 3, "config-invalid"),
        case("an end below 0", with("llama_tied", "eos_token_id", json!(-1)), 3, "config-invalid"),
    ])
}

pub(super) fn names_of_no_model() -> Vec<Case> {
    let code = json!({ "AutoModelForCausalLM": "modeling_evil.EvilForCausalLM" });
    Vec::from([
        case("no architecture", with("llama_tied", "architectures", json!([])), 3, "config-architecture"),
        case(
            "two architectures",
            with("llama_tied", "architectures", json!(["LlamaForCausalLM", "GPT2LMHeadModel"])),
            3,
            "config-architecture",
        ),
        case(
            "an architecture as a text",
            with("llama_tied", "architectures", json!("LlamaForCausalLM")),
            3,
            "config-architecture",
        ),
        case(
            "an architecture that is null",
            with("llama_tied", "architectures", json!([null])),
            3,
            "config-architecture",
        ),
        case("a type of another class", with("llama_tied", "model_type", json!("qwen2")), 3, "config-architecture"),
        case("a type that is a number", with("llama_tied", "model_type", json!(3)), 3, "config-value"),
        case(
            "an architecture of its own code",
            move |room| {
                let line = with("llama_tied", "auto_map", code.clone())(room);
                room.edit("model/config.json", |config| {
                    drop(config.insert("architectures".into(), json!(["EvilForCausalLM"])))
                });
                line
            },
            3,
            "config-architecture",
        ),
        case(
            "a name that moves the cursor",
            with("llama_tied", "architectures", json!(["\u{1b}[2J\u{202e}X"])),
            3,
            "config-architecture",
        ),
        case(
            "a name without end",
            with("llama_tied", "architectures", json!(["x".repeat(100_000)])),
            3,
            "config-architecture",
        ),
        case("an encoder and decoder", with("llama_tied", "is_encoder_decoder", json!(true)), 3, "config-unsupported"),
        case("cross attention", with("gpt2_tied", "add_cross_attention", json!(true)), 3, "config-unsupported"),
        case(
            "attention that is not scaled",
            with("gpt2_tied", "scale_attn_weights", json!(false)),
            3,
            "config-unsupported",
        ),
        case(
            "layers of an unknown kind",
            with("qwen2_tied", "layer_types", json!(["linear_attention"])),
            3,
            "config-unsupported",
        ),
        case("layers that are a text", with("qwen2_tied", "layer_types", json!("full_attention")), 3, "config-value"),
        case(
            "a window that is a text",
            |room: &Room| {
                let line = with("qwen2_tied", "use_sliding_window", json!("yes"))(room);
                room.edit("model/config.json", |config| drop(config.remove("layer_types")));
                line
            },
            3,
            "config-value",
        ),
        case("labels that are a list", with("gpt2_reward", "id2label", json!(["good"])), 3, "config-value"),
        case("no labels", with("gpt2_reward", "num_labels", json!(0)), 3, "config-labels"),
        case("minus one label", with("gpt2_reward", "num_labels", json!(-1)), 3, "config-value"),
        case("another activation in Llama", with("llama_tied", "hidden_act", json!("gelu")), 3, "config-activation"),
        case("an activation that is a list", with("llama_tied", "hidden_act", json!(["silu"])), 3, "config-value"),
    ])
}
