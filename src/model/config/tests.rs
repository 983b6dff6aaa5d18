//! Every rule of the configuration, by small texts made here, and the fixtures that transformers wrote.

use super::*;
use crate::error::Code;

fn llama() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 1000,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "eos_token_id": [7, 8, 7],
        "torch_dtype": "bfloat16"
    })
}

fn gpt2() -> Value {
    json!({
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4,
        "n_positions": 128, "vocab_size": 1000, "eos_token_id": 50256
    })
}

fn qwen(class: &str, model_type: &str) -> Value {
    with(&llama(), &[("architectures", json!([class])), ("model_type", json!(model_type))])
}

fn with(base: &Value, changes: &[(&str, Value)]) -> Value {
    let mut value = base.clone();
    let map = value.as_object_mut().unwrap();
    for (key, change) in changes {
        map.insert((*key).to_owned(), change.clone());
    }
    value
}

fn without(base: &Value, key: &str) -> Value {
    let mut value = base.clone();
    value.as_object_mut().unwrap().shift_remove(key).unwrap();
    value
}

fn parse(value: &Value) -> Result<ModelConfig> {
    ModelConfig::parse(&value.to_string(), "config.json")
}

#[test]
fn llama_of_transformers_4() {
    let config = parse(&llama()).unwrap();
    assert_eq!((config.architecture, config.head), (Architecture::Llama, Head::Language));
    assert_eq!((config.heads, config.kv_heads, config.head_dim, config.layers), (4, 2, 16, 2));
    assert_eq!((config.norm_eps, config.rope_theta, config.rope_scaling), (1e-5, 500_000.0, None));
    assert_eq!(config.eos_token_ids, [7, 8]);
    assert!(!config.tied && !config.qkv_bias && !config.output_bias && !config.mlp_bias && !config.qk_norm);
    assert!(config.notes.is_empty(), "{:?}", config.notes);
    let biased = parse(&with(&llama(), &[("attention_bias", json!(true)), ("mlp_bias", json!(true))])).unwrap();
    assert!(biased.qkv_bias && biased.output_bias && biased.mlp_bias);
    assert_eq!(parse(&without(&llama(), "num_key_value_heads")).unwrap().kv_heads, 4);
    assert_eq!(parse(&without(&llama(), "rms_norm_eps")).unwrap().norm_eps, 1e-6);
    assert_eq!(parse(&without(&llama(), "rope_theta")).unwrap().rope_theta, 10_000.0);
}

#[test]
fn both_generations_of_rope_keys_agree() {
    let numbers = json!({
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192
    });
    let expected = RopeScaling {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    for name in ["type", "rope_type"] {
        let scaling = with(&numbers, &[(name, json!("llama3"))]);
        let config = parse(&with(&llama(), &[("rope_scaling", scaling)])).unwrap();
        assert_eq!((config.rope_theta, config.rope_scaling), (500_000.0, Some(expected)));
    }
    let newer = without(&without(&llama(), "rope_theta"), "torch_dtype");
    let parameters = with(&numbers, &[("rope_type", json!("llama3")), ("rope_theta", json!(5e5))]);
    let config =
        parse(&with(&newer, &[("rope_parameters", parameters.clone()), ("dtype", json!("bfloat16"))])).unwrap();
    assert_eq!((config.rope_theta, config.rope_scaling), (500_000.0, Some(expected)));
    let config = parse(&with(&newer, &[("rope_parameters", json!({ "rope_theta": 7.0 }))])).unwrap();
    assert_eq!((config.rope_theta, config.rope_scaling), (7.0, None));
    let twice = with(&llama(), &[("rope_parameters", json!({ "rope_theta": 7.0, "rope_type": "default" }))]);
    assert_eq!(parse(&twice).unwrap_err().id(), "config-value");
    let differ = [("rope_scaling", json!({ "type": "default" })), ("rope_parameters", parameters)];
    assert_eq!(parse(&with(&newer, &differ)).unwrap_err().id(), "config-value");
}

#[test]
fn other_rope_types_are_refused_by_name() {
    for kind in ["linear", "dynamic", "yarn", "longrope", "mrope", "su"] {
        for key in ["rope_scaling", "rope_parameters"] {
            let value = with(&llama(), &[(key, json!({ "type": kind, "factor": 2.0, "rope_theta": 5e5 }))]);
            let error = parse(&value).unwrap_err();
            assert_eq!(error.id(), "rope-unsupported");
            assert!(error.to_string().contains(kind), "{error}");
        }
    }
    for odd in [
        ("rope_scaling", json!({ "factor": 2.0 })),
        ("rope_scaling", json!({ "type": "linear", "rope_type": "llama3" })),
        ("rope_parameters", json!({ "full_attention": { "rope_type": "default" } })),
        ("rope_parameters", json!({ "rope_type": "default", "partial_rotary_factor": 0.5 })),
        ("partial_rotary_factor", json!(0.25)),
    ] {
        assert_eq!(parse(&with(&llama(), std::slice::from_ref(&odd))).unwrap_err().id(), "rope-unsupported", "{odd:?}");
    }
    let llama3 = |factor: f64, high: f64| {
        json!({ "type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": high,
            "original_max_position_embeddings": 64 })
    };
    let id = |scaling: Value| parse(&with(&llama(), &[("rope_scaling", scaling)])).unwrap_err().id();
    assert_eq!(id(llama3(0.5, 4.0)), "config-value");
    assert_eq!(id(llama3(2.0, 1.0)), "config-value");
    assert_eq!(id(without(&llama3(2.0, 4.0), "factor")), "config-missing-key");
}

#[test]
fn gpt2_has_its_own_keys() {
    let config = parse(&with(&gpt2(), &[("attn_pdrop", json!(0.1)), ("n_inner", Value::Null)])).unwrap();
    assert_eq!((config.architecture, config.intermediate_size, config.max_positions), (Architecture::Gpt2, 256, 128));
    assert!(config.tied && config.qkv_bias && config.output_bias && config.mlp_bias);
    assert!(config.eos_token_ids.is_empty());
    assert_eq!(config.notes.len(), 2, "dropout, and an EOS outside the vocabulary: {:?}", config.notes);
    assert_eq!(parse(&with(&gpt2(), &[("n_inner", json!(100))])).unwrap().intermediate_size, 100);
    for (key, value, id) in [
        ("activation_function", json!("gelu"), "config-activation"),
        ("scale_attn_by_inverse_layer_idx", json!(true), "config-unsupported"),
        ("reorder_and_upcast_attn", json!(true), "config-unsupported"),
        ("add_cross_attention", json!(true), "config-unsupported"),
        ("scale_attn_weights", json!(false), "config-unsupported"),
        ("n_head", json!(5), "config-size"),
    ] {
        let error = parse(&with(&gpt2(), &[(key, value)])).unwrap_err();
        assert_eq!(error.id(), id);
    }
    parse(&with(&gpt2(), &[("activation_function", json!("gelu_pytorch_tanh"))])).unwrap();
}

#[test]
fn qwen_biases_norms_and_defaults() {
    let two = parse(&qwen("Qwen2ForCausalLM", "qwen2")).unwrap();
    assert!(two.qkv_bias && !two.output_bias && !two.qk_norm && !two.tied);
    let three = parse(&qwen("Qwen3ForCausalLM", "qwen3")).unwrap();
    assert!(!three.qkv_bias && three.qk_norm);
    assert_eq!((two.head_dim, three.head_dim), (16, 128), "Qwen3's heads have 128 units unless it says otherwise");
    let lacking = without(&qwen("Qwen2ForCausalLM", "qwen2"), "num_key_value_heads");
    assert_eq!(parse(&lacking).unwrap_err().id(), "config-missing-key");
}

#[test]
fn windows_that_could_matter_are_refused() {
    let base = qwen("Qwen2ForCausalLM", "qwen2");
    let on = ("use_sliding_window", json!(true));
    let from_first = ("max_window_layers", json!(0));
    let small = ("sliding_window", json!(256));
    let error = parse(&with(&base, &[on.clone(), from_first.clone(), small.clone()])).unwrap_err();
    assert_eq!(error.id(), "config-sliding-window");
    let sliding = ("layer_types", json!(["full_attention", "sliding_attention"]));
    assert_eq!(parse(&with(&base, &[sliding.clone(), small.clone()])).unwrap_err().id(), "config-sliding-window");
    for fine in [
        vec![("use_sliding_window", json!(false)), from_first.clone(), small.clone()],
        vec![on.clone(), from_first, ("sliding_window", json!(512))],
        vec![on.clone(), ("max_window_layers", json!(2)), small.clone()],
        vec![on, small],
        vec![sliding, ("sliding_window", json!(4096))],
        vec![("layer_types", json!(["full_attention", "full_attention"]))],
    ] {
        parse(&with(&base, &fine)).unwrap();
    }
    let odd = with(&base, &[("layer_types", json!(["linear_attention"]))]);
    assert_eq!(parse(&odd).unwrap_err().id(), "config-unsupported");
}

#[test]
fn unknown_architectures_get_a_suggestion() {
    let error = parse(&with(&llama(), &[("architectures", json!(["LlamaForCausalLN"]))])).unwrap_err();
    assert_eq!((error.id(), error.code()), ("config-architecture", Code::Input));
    assert!(error.to_string().contains("did you mean LlamaForCausalLM?"), "{error}");
    assert!(error.to_string().contains("Qwen3ForSequenceClassification"), "{error}");
    for (key, value) in [
        ("architectures", json!(["MistralForCausalLM\u{1b}[31m"])),
        ("architectures", json!([])),
        ("architectures", json!(["LlamaForCausalLM", "GPT2LMHeadModel"])),
        ("architectures", json!("LlamaForCausalLM")),
        ("model_type", json!("mistral")),
    ] {
        let error = parse(&with(&llama(), &[(key, value)])).unwrap_err();
        assert_eq!(error.id(), "config-architecture");
        assert!(!error.to_string().contains('\u{1b}'), "control characters are escaped");
    }
    assert_eq!(parse(&without(&llama(), "architectures")).unwrap().head, Head::Language);
    assert_eq!(parse(&json!({ "hidden_size": 4 })).unwrap_err().id(), "config-architecture");
}

#[test]
fn a_score_head_has_one_label() {
    let base = with(&llama(), &[("architectures", json!(["LlamaForSequenceClassification"]))]);
    for fine in [("num_labels", json!(1)), ("id2label", json!({ "0": "good" }))] {
        assert_eq!(parse(&with(&base, &[fine])).unwrap().head, Head::Score);
    }
    for bad in [("num_labels", json!(2)), ("id2label", json!({ "0": "a", "1": "b" })), ("x", json!(0))] {
        assert_eq!(parse(&with(&base, &[bad])).unwrap_err().id(), "config-labels");
    }
    assert_eq!(parse(&with(&base, &[("id2label", json!([1]))])).unwrap_err().id(), "config-value");
}

#[test]
fn wrong_values_are_named() {
    let far = json!(1_u64 << 60);
    for (key, value, id) in [
        ("hidden_size", json!("64"), "config-value"),
        ("hidden_size", json!(0), "config-value"),
        ("hidden_size", json!(-4), "config-value"),
        ("hidden_size", json!(64.0), "config-value"),
        ("hidden_size", far.clone(), "config-value"),
        ("vocab_size", far.clone(), "config-value"),
        ("num_hidden_layers", far, "config-value"),
        ("hidden_size", Value::Null, "config-missing-key"),
        ("hidden_size", json!(66), "config-size"),
        ("num_key_value_heads", json!(3), "config-size"),
        ("head_dim", json!(15), "config-size"),
        ("rms_norm_eps", json!(0.0), "config-value"),
        ("rms_norm_eps", json!(2.0), "config-value"),
        ("rope_theta", json!(-1.0), "config-value"),
        ("rope_scaling", json!(2), "config-value"),
        ("layer_types", json!(2), "config-value"),
        ("tie_word_embeddings", json!("yes"), "config-value"),
        ("model_type", json!(3), "config-value"),
        ("eos_token_id", json!("</s>"), "config-value"),
        ("hidden_act", json!("gelu"), "config-activation"),
        ("quantization_config", json!({ "bits": 4 }), "config-quantized"),
        ("is_encoder_decoder", json!(true), "config-unsupported"),
        ("use_mrope", json!(true), "config-unsupported"),
    ] {
        let error = parse(&with(&llama(), &[(key, value.clone())])).unwrap_err();
        assert_eq!((error.id(), error.code()), (id, Code::Input), "{key} {value}");
        assert!(error.place().is_some_and(|place| place.starts_with("config.json")), "{error}");
    }
    let huge = [("hidden_size", 65_536), ("num_attention_heads", 512), ("num_key_value_heads", 512)];
    let more = [("num_hidden_layers", 1024), ("intermediate_size", 1 << 20), ("vocab_size", 1 << 24)];
    let changes: Vec<_> = huge.iter().chain(&more).map(|(key, n)| (*key, json!(n))).collect();
    assert_eq!(parse(&with(&llama(), &changes)).unwrap_err().id(), "config-size");
}

#[test]
fn broken_texts_are_refused() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for text in ["", "{", "[]", "3", "{\"a\": NaN}", "{\"a\": 1e999}", "{\"a\": 1, \"a\": 1}", deep.as_str()] {
        assert_eq!(ModelConfig::parse(text, "x").unwrap_err().id(), "config-json", "{text:.20}");
    }
    let twice = ModelConfig::parse("{\"b\": {\"a\\u0000\": 1, \"a\\u0000\": 2}}", "x").unwrap_err().to_string();
    assert!(twice.contains("stands twice"), "{twice}");
}

#[test]
fn settings_that_are_not_followed_are_noted() {
    let notes = |changes: &[(&str, Value)]| parse(&with(&llama(), changes)).unwrap().notes;
    assert!(notes(&[("attention_dropout", json!(0.1))]).concat().contains("\"attention_dropout\" 0.1"));
    assert!(notes(&[("auto_map", json!({ "AutoModel": "a.B" }))]).concat().contains("never run"));
    assert!(notes(&[("_attn_implementation", json!("evil/kernel"))]).concat().contains("is ignored"));
    assert!(notes(&[("pretraining_tp", json!(2))]).concat().contains("pretraining_tp"));
    assert!(notes(&[("pad_token_id", json!(-1))]).concat().contains("outside the vocabulary"));
}

#[test]
fn a_directory_is_read_with_its_generation_config() {
    let dir = tempfile::tempdir().unwrap();
    let load = || ModelConfig::load(dir.path());
    assert_eq!(load().unwrap_err().id(), "file-missing");
    assert_eq!(ModelConfig::load(&dir.path().join("none")).unwrap_err().id(), "file-missing");
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("config.json", &with(&llama(), &[("pad_token_id", json!(3)), ("bos_token_id", json!(1))]).to_string());
    assert_eq!(load().unwrap().eos_token_ids, [7, 8]);
    write("generation_config.json", r#"{"eos_token_id": 9, "pad_token_id": 4}"#);
    let config = load().unwrap();
    assert_eq!((config.eos_token_ids, config.pad_token_id, config.bos_token_id), (vec![9], Some(3), Some(1)));
    write("generation_config.json", r#"{"eos_token_id": null}"#);
    assert_eq!(load().unwrap().eos_token_ids, [7, 8]);
    write("generation_config.json", "{");
    assert_eq!(load().unwrap_err().id(), "config-json");
    write("generation_config.json", &" ".repeat(CONFIG_BYTES_MAX as usize + 1));
    assert_eq!(load().unwrap_err().id(), "file-too-large");
    std::fs::write(dir.path().join("config.json"), [0xff, 0xfe]).unwrap();
    assert_eq!(load().unwrap_err().id(), "config-json");
}

/// The smallest limit that [`source::read_text`] is given.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

#[cfg(unix)]
#[test]
fn links_may_not_leave_the_directory() {
    use std::os::unix::fs::symlink;
    let root = tempfile::tempdir().unwrap();
    let cache = root.path().join("models--a--b");
    let dir = cache.join("snapshots/0123");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::create_dir_all(cache.join("blobs")).unwrap();
    std::fs::write(cache.join("blobs/x"), llama().to_string()).unwrap();
    symlink("../../blobs/x", dir.join("config.json")).unwrap();
    ModelConfig::load(&dir).unwrap();
    std::fs::write(root.path().join("secret"), "{}").unwrap();
    symlink("../../../secret", dir.join("generation_config.json")).unwrap();
    assert_eq!(ModelConfig::load(&dir).unwrap_err().id(), "model-link");
    std::fs::remove_file(dir.join("generation_config.json")).unwrap();
    std::fs::create_dir(dir.join("generation_config.json")).unwrap();
    assert_eq!(ModelConfig::load(&dir).unwrap_err().id(), "model-file");
    symlink("nowhere", dir.join("dangling")).unwrap();
    assert_eq!(model_file(&dir, "dangling").unwrap_err().id(), "file-missing");
    assert_eq!(model_file(&dir, "none").unwrap(), None);
}

#[test]
fn saving_keeps_keys_and_order() {
    let source = with(&llama(), &[("zeta", json!({ "b": [1, null], "a": 2.5 })), ("alpha", json!("kept"))]);
    let saved = parse(&source).unwrap().to_json(Head::Language, StoredDtype::F32);
    assert_eq!(saved, with(&source, &[("torch_dtype", json!("float32"))]));
    let order: Vec<_> = saved.as_object().unwrap().keys().collect();
    assert_eq!(order, source.as_object().unwrap().keys().collect::<Vec<_>>());
    let newer = with(&without(&llama(), "torch_dtype"), &[("dtype", json!("auto"))]);
    let saved = parse(&newer).unwrap().to_json(Head::Language, StoredDtype::F16);
    assert_eq!((saved.get("dtype"), saved.get("torch_dtype")), (Some(&json!("float16")), None));
    let none = parse(&without(&llama(), "torch_dtype")).unwrap().to_json(Head::Language, StoredDtype::BF16);
    assert_eq!(none.get("torch_dtype"), Some(&json!("bfloat16")));
    let code = with(&llama(), &[("auto_map", json!({ "AutoModel": "a.B" })), ("_attn_implementation", json!("x"))]);
    assert_eq!(parse(&code).unwrap().to_json(Head::Language, StoredDtype::BF16), llama());
}

#[test]
fn changing_the_head_changes_its_keys() {
    let mut source = with(&llama(), &[("pad_token_id", Value::Null)]);
    source.as_object_mut().unwrap().sort_keys();
    let language = parse(&source).unwrap();
    let saved = language.to_json(Head::Score, StoredDtype::F32);
    assert_eq!(saved["architectures"], json!(["LlamaForSequenceClassification"]));
    assert_eq!((&saved["id2label"], &saved["label2id"]), (&json!({ "0": "LABEL_0" }), &json!({ "LABEL_0": 0 })));
    assert_eq!(saved["pad_token_id"], json!(7), "the first EOS");
    assert!(saved.as_object().unwrap().keys().is_sorted(), "a sorted source stays sorted");
    let score = parse(&saved).unwrap();
    assert_eq!((score.head, score.pad_token_id), (Head::Score, Some(7)));
    let back = score.to_json(Head::Language, StoredDtype::BF16);
    assert_eq!(back, with(&source, &[("pad_token_id", json!(7))]));
    let mut padded = language;
    padded.pad_token_id = Some(5);
    assert_eq!(padded.to_json(Head::Score, StoredDtype::F32)["pad_token_id"], json!(5));
    assert_eq!(padded.to_json(Head::Language, StoredDtype::F32)["pad_token_id"], Value::Null, "the source's");
}

#[test]
fn a_fresh_llama_is_complete() {
    let shape = LlamaShape {
        hidden_size: 96,
        layers: 5,
        heads: 4,
        kv_heads: 4,
        intermediate_size: 256,
        vocab_size: 512,
        max_positions: 256,
        tied: true,
        bos_token_id: None,
        eos_token_id: 1,
        pad_token_id: Some(0),
    };
    let config = ModelConfig::new_llama(&shape).unwrap();
    assert_eq!(config.parameters(), 603_168);
    assert_eq!(parse(&config.to_json(Head::Language, StoredDtype::F32)).unwrap(), config);
    assert_eq!((config.eos_token_ids.as_slice(), config.pad_token_id, config.tied), ([1].as_slice(), Some(0), true));
    for bad in [LlamaShape { heads: 5, kv_heads: 5, ..shape.clone() }, LlamaShape { heads: 0, ..shape }] {
        assert!(ModelConfig::new_llama(&bad).is_err());
    }
}

#[test]
fn fixtures_of_transformers_load() {
    let Ok(models) = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/models")) else {
        println!("skipped: no fixtures");
        return;
    };
    for model in models {
        let path = model.unwrap().path();
        let config = ModelConfig::load(&path).unwrap_or_else(|error| panic!("{error}"));
        let source: Value = serde_json::from_slice(&std::fs::read(path.join("config.json")).unwrap()).unwrap();
        let dtype = source.get("dtype").or(source.get("torch_dtype")).unwrap().as_str().unwrap();
        let stored = [StoredDtype::F16, StoredDtype::BF16, StoredDtype::F32].into_iter().find(|d| d.name() == dtype);
        assert_eq!(config.to_json(config.head, stored.unwrap()), source, "{}", path.display());
    }
}
