//! Reads and writes `config.json` of GPT-2, Llama, Qwen2 and Qwen3, in both generations of its keys. A closed list of
//! keys is read; one that would change what the model computes, and that we do not follow, is refused by name. The
//! source's keys are kept in their order for saving. Defaults are those of transformers' configuration classes.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::{Error, Result, nearest};
use source::{Keys, read_json, shortened, strict_object};

mod source;
#[cfg(test)]
mod tests;

pub(crate) use crate::files::model_file;
pub(crate) use source::{printable, quoted, read_text};

/// Beyond these sizes a file is broken or hostile: no published model of these families comes near.
const HIDDEN_MAX: usize = 1 << 16;
const LAYERS_MAX: usize = 1 << 10;
const HEADS_MAX: usize = 1 << 10;
const HEAD_DIM_MAX: usize = 1 << 10;
const INTERMEDIATE_MAX: usize = 1 << 20;
const VOCAB_MAX: usize = 1 << 24;
const POSITIONS_MAX: usize = 1 << 24;
const PARAMETERS_MAX: u128 = 1 << 40;

/// What to do about a model that is not followed, and about one that contradicts itself.
const ANOTHER: &str = "use a model that GPT-2, Llama, Qwen2 or Qwen3 describes without this setting";
const AGAIN: &str = "take config.json from the model's source";

/// A family of decoders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Learned positions, LayerNorm, GELU, biases everywhere; linear weights are stored `[in, out]`.
    Gpt2,
    /// RoPE, RMSNorm, SwiGLU.
    Llama,
    /// Llama with biases on q, k and v.
    Qwen2,
    /// Llama with RMSNorm on each head's q and k.
    Qwen3,
}

const ARCHITECTURES: [Architecture; 4] =
    [Architecture::Gpt2, Architecture::Llama, Architecture::Qwen2, Architecture::Qwen3];

impl Architecture {
    /// The name under `model_type`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt2",
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    /// The name of the transformers class under `architectures`.
    pub fn class(self, head: Head) -> &'static str {
        match (self, head) {
            (Self::Gpt2, Head::Language) => "GPT2LMHeadModel",
            (Self::Gpt2, Head::Score) => "GPT2ForSequenceClassification",
            (Self::Llama, Head::Language) => "LlamaForCausalLM",
            (Self::Llama, Head::Score) => "LlamaForSequenceClassification",
            (Self::Qwen2, Head::Language) => "Qwen2ForCausalLM",
            (Self::Qwen2, Head::Score) => "Qwen2ForSequenceClassification",
            (Self::Qwen3, Head::Language) => "Qwen3ForCausalLM",
            (Self::Qwen3, Head::Score) => "Qwen3ForSequenceClassification",
        }
    }
}

/// What stands on top of the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// A distribution over the vocabulary.
    Language,
    /// One number per sequence: a reward or value model.
    Score,
}

/// The float formats that weights are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StoredDtype {
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    BF16,
    /// IEEE single precision.
    F32,
}

impl StoredDtype {
    /// The name in `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
            Self::F32 => "float32",
        }
    }
}

/// Llama 3's stretching of the RoPE wavelengths (`rope_type` "llama3").
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeScaling {
    /// By how much long wavelengths are stretched, at least 1.
    pub factor: f64,
    /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are stretched in full.
    pub low_freq_factor: f64,
    /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are left alone.
    pub high_freq_factor: f64,
    /// The context in tokens before stretching.
    pub original_max_position_embeddings: usize,
}

/// A checked `config.json`. Sizes are counts (of units, layers, heads, tokens); the fields describe the source and
/// are meant to be read: [`ModelConfig::to_json`] writes the source's keys, and of these fields only `pad_token_id`
/// (under a score head).
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The family.
    pub architecture: Architecture,
    /// The head that the source has, or that was put in its place.
    pub head: Head,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of decoder layers.
    pub layers: usize,
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head; even where RoPE turns pairs. `heads * head_dim` may differ from `hidden_size`.
    pub head_dim: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest sequence in tokens: the size of the position table of GPT-2, what the model was made for elsewhere.
    pub max_positions: usize,
    /// The epsilon of every norm.
    pub norm_eps: f64,
    /// Base of the RoPE wavelengths; without meaning for GPT-2.
    pub rope_theta: f64,
    /// Llama 3's scaling, if the model has it.
    pub rope_scaling: Option<RopeScaling>,
    /// The language head is the embedding.
    pub tied: bool,
    /// q, k and v have biases.
    pub qkv_bias: bool,
    /// The attention's output projection has a bias.
    pub output_bias: bool,
    /// The MLP's projections have biases.
    pub mlp_bias: bool,
    /// Each head's q and k are normalised (Qwen3).
    pub qk_norm: bool,
    /// Begins a text.
    pub bos_token_id: Option<i32>,
    /// Any of these ends a text: `generation_config.json` before `config.json`; all are below `vocab_size`.
    pub eos_token_ids: Vec<i32>,
    /// Fills batches elsewhere; `config.json` before `generation_config.json`.
    pub pad_token_id: Option<i32>,
    /// What the user should know: settings that are legal and not followed.
    pub notes: Vec<String>,
    /// The source's keys in their order, for saving.
    pub(crate) raw: Map<String, Value>,
}

/// The sizes of a fresh small Llama; the units are those of [`ModelConfig`].
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaShape {
    /// Width of the residual stream; a multiple of `heads`.
    pub hidden_size: usize,
    /// Number of decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest sequence in tokens.
    pub max_positions: usize,
    /// The language head is the embedding.
    pub tied: bool,
    /// Begins a text.
    pub bos_token_id: Option<i32>,
    /// Ends a text.
    pub eos_token_id: i32,
    /// Fills batches elsewhere.
    pub pad_token_id: Option<i32>,
}

impl ModelConfig {
    /// Reads `config.json` and, if it is there, `generation_config.json` of a model directory.
    ///
    /// # Errors
    /// `file-missing`, `model-link` for a link that leaves the directory, and those of [`ModelConfig::parse`].
    pub fn load(dir: &Path) -> Result<Self> {
        let config = read_json(dir, "config.json")?.ok_or_else(|| {
            Error::input("file-missing", "the model directory has no config.json")
                .at(dir.display().to_string())
                .fix("give the directory that holds config.json and model.safetensors")
        })?;
        let generation = read_json(dir, "generation_config.json")?.unwrap_or_default();
        Self::build(config, &dir.join("config.json").display().to_string(), &generation)
    }

    /// Reads the text of a `config.json`; `place` names it in errors.
    ///
    /// # Errors
    /// `config-json` (not a JSON object, a key twice), `config-missing-key`, `config-value` (type, range,
    /// contradiction), `config-size`, `config-architecture`, `config-labels`, `config-quantized`, `config-activation`,
    /// `config-sliding-window`, `config-unsupported`, `rope-unsupported`; all are bad input.
    pub fn parse(text: &str, place: &str) -> Result<Self> {
        Self::build(strict_object(text, place)?, place, &Map::new())
    }

    /// The same with the text of a `generation_config.json`.
    pub(crate) fn parse_with(text: &str, generation: &str, place: &str) -> Result<Self> {
        Self::build(strict_object(text, place)?, place, &strict_object(generation, "generation_config.json")?)
    }

    /// A fresh Llama, with a complete `config.json` that transformers loads: RoPE base 10000, norm epsilon 1e-5.
    ///
    /// # Errors
    /// Those of [`ModelConfig::parse`], for sizes that do not fit together.
    pub fn new_llama(shape: &LlamaShape) -> Result<Self> {
        let keys = json!({
            "architectures": [Architecture::Llama.class(Head::Language)],
            "attention_bias": false,
            "attention_dropout": 0.0,
            "bos_token_id": shape.bos_token_id,
            "eos_token_id": shape.eos_token_id,
            "head_dim": shape.hidden_size.checked_div(shape.heads),
            "hidden_act": "silu",
            "hidden_size": shape.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": shape.intermediate_size,
            "max_position_embeddings": shape.max_positions,
            "mlp_bias": false,
            "model_type": Architecture::Llama.model_type(),
            "num_attention_heads": shape.heads,
            "num_hidden_layers": shape.layers,
            "num_key_value_heads": shape.kv_heads,
            "pad_token_id": shape.pad_token_id,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-5,
            "rope_scaling": null,
            "rope_theta": 10000.0,
            "tie_word_embeddings": shape.tied,
            "torch_dtype": StoredDtype::F32.name(),
            "use_cache": true,
            "vocab_size": shape.vocab_size,
        });
        let Value::Object(raw) = keys else {
            return Err(Error::failure("config-json", "a configuration is an object"));
        };
        Self::build(raw, "the new model", &Map::new())
    }

    /// The `config.json` to save with weights of `dtype` under `head`: the source's keys in their order, with
    /// `architectures`, the dtype, the label maps (of one label) and `pad_token_id` (a score head needs one: the first
    /// EOS where there is none) brought in line. Keys that point at files or code which are not saved are left out.
    pub fn to_json(&self, head: Head, dtype: StoredDtype) -> Value {
        let mut map = self.raw.clone();
        let sorted = map.keys().is_sorted();
        for gone in ["auto_map", "_attn_implementation", "attn_implementation", "_attn_implementation_internal"] {
            map.shift_remove(gone);
        }
        map.insert("architectures".into(), json!([self.architecture.class(head)]));
        map.insert("model_type".into(), self.architecture.model_type().into());
        // Releases before 4.56 read only `torch_dtype`, later ones read both: only a source that uses the new key gets
        // it.
        let dtype_keys = ["torch_dtype", "dtype"].into_iter().filter(|key| map.contains_key(*key)).collect::<Vec<_>>();
        for key in if dtype_keys.is_empty() { vec!["torch_dtype"] } else { dtype_keys } {
            map.insert(key.into(), dtype.name().into());
        }
        if head == Head::Score {
            map.shift_remove("num_labels");
            map.insert("id2label".into(), json!({ "0": "LABEL_0" }));
            map.insert("label2id".into(), json!({ "LABEL_0": 0 }));
            if let Some(pad) = self.pad_token_id.or(self.eos_token_ids.first().copied()) {
                map.insert("pad_token_id".into(), pad.into());
            }
        } else if self.raw.get("architectures") == Some(&json!([self.architecture.class(Head::Score)])) {
            for gone in ["num_labels", "id2label", "label2id", "problem_type"] {
                map.shift_remove(gone);
            }
        }
        if sorted {
            map.sort_keys();
        }
        Value::Object(map)
    }

    /// The number of weights under `self.head`; a tied embedding counts once.
    pub fn parameters(&self) -> usize {
        usize::try_from(self.parameters_wide()).unwrap_or(usize::MAX)
    }

    /// [`ModelConfig::parameters`] in a type that cannot overflow within the limits on each size.
    fn parameters_wide(&self) -> u128 {
        let [hidden, heads, kv, dim, inner, vocab] =
            [self.hidden_size, self.heads, self.kv_heads, self.head_dim, self.intermediate_size, self.vocab_size]
                .map(|size| size as u128);
        let gpt2 = self.architecture == Architecture::Gpt2;
        let (matrices, norm, table) =
            if gpt2 { (2, 2 * hidden, self.max_positions as u128 * hidden) } else { (3, hidden, 0) };
        let attention = hidden * dim * (2 * heads + 2 * kv)
            + u128::from(self.qkv_bias) * dim * (heads + 2 * kv)
            + u128::from(self.output_bias) * hidden
            + u128::from(self.qk_norm) * 2 * dim;
        let mlp = matrices * hidden * inner + u128::from(self.mlp_bias) * ((matrices - 1) * inner + hidden);
        let head = match self.head {
            Head::Score => hidden,
            Head::Language if self.tied => 0,
            Head::Language => vocab * hidden,
        };
        vocab * hidden + table + self.layers as u128 * (attention + mlp + 2 * norm) + norm + head
    }

    /// Checks everything; `generation` is `generation_config.json`, empty where there is none.
    fn build(raw: Map<String, Value>, place: &str, generation: &Map<String, Value>) -> Result<Self> {
        let keys = Keys { map: &raw, place };
        let (architecture, head) = architecture(&keys)?;
        refuse_unsupported(&keys, architecture)?;
        if head == Head::Score {
            one_label(&keys)?;
        }
        let mut config = match architecture {
            Architecture::Gpt2 => gpt2(&keys, head)?,
            _ => decoder(&keys, architecture, head)?,
        };
        config.check_sizes(place)?;
        config.notes = notes(&keys);
        let beside = place.replace("config.json", "generation_config.json");
        config.read_tokens(&keys, &Keys { map: generation, place: &beside })?;
        config.raw = raw;
        Ok(config)
    }

    /// The conditions that join several sizes.
    fn check_sizes(&self, place: &str) -> Result<()> {
        let fail = |what: String| Err(Error::input("config-size", what).at(place).fix(AGAIN));
        if !self.heads.is_multiple_of(self.kv_heads) {
            return fail(format!("{} heads do not divide into {} key-value heads", self.heads, self.kv_heads));
        }
        if self.architecture != Architecture::Gpt2 && !self.head_dim.is_multiple_of(2) {
            return fail(format!("head_dim is {}, and RoPE turns pairs", self.head_dim));
        }
        if self.parameters_wide() > PARAMETERS_MAX {
            return fail(format!("the model would have {} parameters", self.parameters_wide()));
        }
        Ok(())
    }

    /// Reads the special tokens; an id outside the vocabulary can never occur and is noted.
    fn read_tokens(&mut self, keys: &Keys<'_>, generation: &Keys<'_>) -> Result<()> {
        let mut first_of = |key: &str, order: [&Keys<'_>; 2]| -> Result<Vec<i32>> {
            let mut found = Vec::new();
            // Both must be sound: what is saved is read again without the other.
            for source in order {
                let mut notes = Vec::new();
                let ids = source.token_ids(key, self.vocab_size, &mut notes)?;
                if found.is_empty() {
                    found = ids;
                    self.notes.append(&mut notes);
                }
            }
            Ok(found)
        };
        let bos = first_of("bos_token_id", [generation, keys])?;
        let eos = first_of("eos_token_id", [generation, keys])?;
        let pad = first_of("pad_token_id", [keys, generation])?;
        self.bos_token_id = bos.first().copied();
        self.pad_token_id = pad.first().copied();
        self.eos_token_ids = eos;
        Ok(())
    }
}

/// Which family and head the configuration names.
fn architecture(keys: &Keys<'_>) -> Result<(Architecture, Head)> {
    let known = ARCHITECTURES.map(|a| [Head::Language, Head::Score].map(|head| (a.class(head), (a, head)))).concat();
    let refuse = |what: String, name: &str| {
        let names: Vec<_> = known.iter().map(|(class, _)| *class).collect();
        let near = nearest(name, names.iter().copied()).map(|n| format!("did you mean {n}? ")).unwrap_or_default();
        Err(Error::input("config-architecture", what)
            .at(keys.place)
            .because(format!("{near}known are {}", names.join(", ")))
            .fix("use a model of one of these architectures"))
    };
    let model_type = keys.text("model_type")?;
    let listed = match keys.get("architectures") {
        None => None,
        Some(Value::Array(list)) => match list.as_slice() {
            [Value::String(name)] => Some(name.as_str()),
            _ => return refuse("`architectures` must name exactly one model class".into(), ""),
        },
        Some(_) => return refuse("`architectures` is not a list".into(), ""),
    };
    let found = match (listed, model_type) {
        (Some(name), _) => known.iter().find(|(class, _)| *class == name).map(|(_, found)| *found),
        // Configurations written by hand often lack the list; such a model is a language model.
        (None, Some(name)) => ARCHITECTURES.into_iter().find(|a| a.model_type() == name).map(|a| (a, Head::Language)),
        (None, None) => return refuse("the configuration names no architecture".into(), ""),
    };
    let name = listed.or(model_type).unwrap_or_default();
    let Some((architecture, head)) = found else {
        return refuse(format!("the architecture {} is not supported", quoted(name)), &shortened(name));
    };
    match model_type {
        Some(name) if name != architecture.model_type() => {
            refuse(format!("`model_type` is {}, but the class is {}", quoted(name), architecture.class(head)), "")
        }
        _ => Ok((architecture, head)),
    }
}

/// Refuses what would change the model's function and is not followed.
fn refuse_unsupported(keys: &Keys<'_>, architecture: Architecture) -> Result<()> {
    let refuse = |id, what: String| Err(Error::input(id, what).at(keys.place).fix(ANOTHER));
    if keys.get("quantization_config").is_some() {
        return refuse("config-quantized", "the weights are quantized, and only float weights can be trained".into())
            .map_err(|e: Error| e.fix("use the original model in bfloat16, float16 or float32"));
    }
    let gpt2 = architecture == Architecture::Gpt2;
    let flags: &[(&str, bool)] = if gpt2 {
        &[
            ("scale_attn_by_inverse_layer_idx", true),
            ("reorder_and_upcast_attn", true),
            ("add_cross_attention", true),
            ("scale_attn_weights", false),
        ]
    } else {
        &[("use_mrope", true), ("add_cross_attention", true)]
    };
    for (key, bad) in flags.iter().chain(&[("is_encoder_decoder", true)]) {
        if keys.flag(key)? == Some(*bad) {
            return refuse("config-unsupported", format!("`{key}` = {bad} is not supported"));
        }
    }
    let (key, allowed): (_, &[&str]) =
        if gpt2 { ("activation_function", &["gelu_new", "gelu_pytorch_tanh"]) } else { ("hidden_act", &["silu"]) };
    match keys.text(key)? {
        Some(name) if !allowed.contains(&name) => {
            let what = format!("the activation {} is not supported; {} is", quoted(name), allowed.join(" or "));
            refuse("config-activation", what)
        }
        _ => Ok(()),
    }
}

/// A score head has one output; without a count transformers makes two.
fn one_label(keys: &Keys<'_>) -> Result<()> {
    let labels = match (keys.count("num_labels", 0..=1 << 20)?, keys.get("id2label")) {
        (Some(count), _) => count,
        (None, Some(Value::Object(map))) => map.len(),
        (None, Some(_)) => return Err(keys.wrong("id2label", "an object")),
        (None, None) => 2,
    };
    if labels == 1 {
        return Ok(());
    }
    Err(Error::input("config-labels", format!("the classifier has {labels} labels; a reward model has one"))
        .at(keys.place)
        .fix("use a model with num_labels = 1"))
}

/// The settings that are legal and not followed.
fn notes(keys: &Keys<'_>) -> Vec<String> {
    let mut notes = Vec::new();
    let dropouts: Vec<_> = keys
        .map
        .iter()
        .filter(|(key, _)| key.contains("dropout") || key.ends_with("_pdrop"))
        .filter_map(|(key, value)| {
            value.as_f64().filter(|rate| *rate > 0.0).map(|rate| format!("{} {rate}", quoted(key)))
        })
        .collect();
    if !dropouts.is_empty() {
        notes.push(format!("the configuration asks for dropout ({}); none is applied", dropouts.join(", ")));
    }
    if keys.get("auto_map").is_some() {
        notes.push("the configuration names code of its own (`auto_map`); it is never run".to_owned());
    }
    for key in ["_attn_implementation", "attn_implementation", "_attn_implementation_internal"] {
        if let Some(value) = keys.get(key) {
            notes.push(format!("`{key}` = {} is ignored", quoted(&value.to_string())));
        }
    }
    if keys.get("pretraining_tp").and_then(Value::as_u64).is_some_and(|n| n > 1) {
        notes.push("`pretraining_tp` above 1 changes only the order of sums; it is ignored".to_owned());
    }
    notes
}

/// The width of a head where the configuration does not say it.
fn default_head_dim(keys: &Keys<'_>, hidden_size: usize, heads: usize) -> Result<usize> {
    match hidden_size.checked_div(heads) {
        Some(size) if size * heads == hidden_size && size <= HEAD_DIM_MAX => Ok(size),
        _ => Err(Error::input("config-size", format!("a width of {hidden_size} does not split into {heads} heads"))
            .at(keys.place)
            .fix(AGAIN)),
    }
}

/// GPT-2's sizes.
fn gpt2(keys: &Keys<'_>, head: Head) -> Result<ModelConfig> {
    let hidden_size = keys.required("n_embd", HIDDEN_MAX)?;
    let heads = keys.required("n_head", HEADS_MAX)?;
    Ok(ModelConfig {
        architecture: Architecture::Gpt2,
        head,
        hidden_size,
        layers: keys.required("n_layer", LAYERS_MAX)?,
        heads,
        kv_heads: heads,
        head_dim: default_head_dim(keys, hidden_size, heads)?,
        intermediate_size: keys.count("n_inner", 1..=INTERMEDIATE_MAX)?.unwrap_or(4 * hidden_size),
        vocab_size: keys.required("vocab_size", VOCAB_MAX)?,
        max_positions: keys.required("n_positions", POSITIONS_MAX)?,
        norm_eps: keys.epsilon("layer_norm_epsilon", 1e-5)?,
        rope_theta: 10_000.0,
        rope_scaling: None,
        tied: keys.flag("tie_word_embeddings")?.unwrap_or(true),
        qkv_bias: true,
        output_bias: true,
        mlp_bias: true,
        qk_norm: false,
        bos_token_id: None,
        eos_token_ids: Vec::new(),
        pad_token_id: None,
        notes: Vec::new(),
        raw: Map::new(),
    })
}

/// The sizes of Llama, Qwen2 and Qwen3.
fn decoder(keys: &Keys<'_>, architecture: Architecture, head: Head) -> Result<ModelConfig> {
    let hidden_size = keys.required("hidden_size", HIDDEN_MAX)?;
    let layers = keys.required("num_hidden_layers", LAYERS_MAX)?;
    let heads = keys.required("num_attention_heads", HEADS_MAX)?;
    let max_positions = keys.required("max_position_embeddings", POSITIONS_MAX)?;
    let qwen = architecture != Architecture::Llama;
    // A written null means "as many as heads"; an absent key means that only for Llama, and 32 for the others.
    let kv_heads = match keys.count("num_key_value_heads", 1..=HEADS_MAX)? {
        None if qwen && !keys.map.contains_key("num_key_value_heads") => {
            return Err(keys.missing("num_key_value_heads"));
        }
        count => count.unwrap_or(heads),
    };
    let head_dim = match keys.count("head_dim", 1..=HEAD_DIM_MAX)? {
        Some(size) => size,
        None if architecture == Architecture::Qwen3 && !keys.map.contains_key("head_dim") => 128,
        None => default_head_dim(keys, hidden_size, heads)?,
    };
    refuse_sliding_window(keys, layers, max_positions)?;
    let (rope_theta, rope_scaling) = rope(keys)?;
    let attention_bias = keys.flag("attention_bias")?.unwrap_or(false);
    let qwen2 = architecture == Architecture::Qwen2;
    Ok(ModelConfig {
        architecture,
        head,
        hidden_size,
        layers,
        heads,
        kv_heads,
        head_dim,
        intermediate_size: keys.required("intermediate_size", INTERMEDIATE_MAX)?,
        vocab_size: keys.required("vocab_size", VOCAB_MAX)?,
        max_positions,
        norm_eps: keys.epsilon("rms_norm_eps", 1e-6)?,
        rope_theta,
        rope_scaling,
        tied: keys.flag("tie_word_embeddings")?.unwrap_or(false),
        qkv_bias: qwen2 || attention_bias,
        output_bias: !qwen2 && attention_bias,
        mlp_bias: !qwen && keys.flag("mlp_bias")?.unwrap_or(false),
        qk_norm: architecture == Architecture::Qwen3,
        bos_token_id: None,
        eos_token_ids: Vec::new(),
        pad_token_id: None,
        notes: Vec::new(),
        raw: Map::new(),
    })
}

/// Attention here sees the whole sequence, so a window is refused unless no sequence can reach beyond it.
fn refuse_sliding_window(keys: &Keys<'_>, layers: usize, max_positions: usize) -> Result<()> {
    let slides = match keys.get("layer_types") {
        None => {
            let first = keys.count("max_window_layers", 0..=POSITIONS_MAX)?.unwrap_or(28);
            keys.flag("use_sliding_window")?.unwrap_or(false) && first < layers
        }
        Some(Value::Array(kinds)) => {
            if let Some(odd) = kinds.iter().find(|k| !["full_attention", "sliding_attention"].iter().any(|n| *k == n)) {
                let what = format!("the layer type {} is not supported", printable(&shortened(&odd.to_string())));
                return Err(Error::input("config-unsupported", what).at(keys.place).fix(ANOTHER));
            }
            kinds.iter().any(|kind| kind == "sliding_attention")
        }
        Some(_) => return Err(keys.wrong("layer_types", "a list of names")),
    };
    let window = if slides { keys.count("sliding_window", 1..=usize::MAX)? } else { Some(max_positions) };
    if window.is_some_and(|window| window >= max_positions) {
        return Ok(());
    }
    Err(Error::input("config-sliding-window", "sliding-window attention is not supported")
        .at(keys.place)
        .because(match window {
            Some(window) => format!("the window is {window} tokens and the model takes {max_positions}"),
            None => "the configuration does not say how long the window is".to_owned(),
        })
        .fix("set max_position_embeddings to the window's size, if your sequences are that short"))
}

/// RoPE's base and scaling, from the keys of transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`).
fn rope(keys: &Keys<'_>) -> Result<(f64, Option<RopeScaling>)> {
    let mut theta = keys.positive("rope_theta")?;
    let mut scaling: Option<Option<RopeScaling>> = None;
    full_rotation(keys)?;
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(value) = keys.get(key) else { continue };
        let Value::Object(map) = value else { return Err(keys.wrong(key, "an object")) };
        let place = format!("{}: {key}", keys.place);
        let inner = Keys { map, place: &place };
        full_rotation(&inner)?;
        let found = rope_scaling(&inner, key == "rope_parameters")?;
        let inner_theta = inner.positive("rope_theta")?;
        if scaling.is_some_and(|other| other != found) || theta.is_some_and(|t| inner_theta.is_some_and(|i| i != t)) {
            return Err(Error::input("config-value", "the RoPE settings stand twice and differ")
                .at(keys.place)
                .fix("keep either rope_theta and rope_scaling, or rope_parameters"));
        }
        scaling = Some(found);
        theta = theta.or(inner_theta);
    }
    Ok((theta.unwrap_or(10_000.0), scaling.flatten()))
}

/// Refuses heads of which only a part is turned.
fn full_rotation(keys: &Keys<'_>) -> Result<()> {
    match keys.positive("partial_rotary_factor")? {
        Some(part) if part != 1.0 => {
            Err(Error::input("rope-unsupported", format!("`partial_rotary_factor` = {part} is not supported"))
                .at(keys.place)
                .fix(ANOTHER))
        }
        _ => Ok(()),
    }
}

/// One RoPE object; only in the newer one may the type be left out.
fn rope_scaling(keys: &Keys<'_>, type_optional: bool) -> Result<Option<RopeScaling>> {
    let unsupported = |what: String| {
        let error = Error::input("rope-unsupported", what).at(keys.place);
        Err(error.because("known types are default and llama3").fix(ANOTHER))
    };
    let kind = match (keys.text("rope_type")?, keys.text("type")?) {
        (Some(a), Some(b)) if a != b => return unsupported("`rope_type` and `type` differ".into()),
        (a, b) => a.or(b),
    };
    match kind {
        Some("default") => Ok(None),
        Some("llama3") => {
            let number = |key: &str| keys.positive(key)?.ok_or_else(|| keys.missing(key));
            let scaling = RopeScaling {
                factor: number("factor")?,
                low_freq_factor: number("low_freq_factor")?,
                high_freq_factor: number("high_freq_factor")?,
                original_max_position_embeddings: keys.required("original_max_position_embeddings", POSITIONS_MAX)?,
            };
            if scaling.factor < 1.0 || scaling.high_freq_factor <= scaling.low_freq_factor {
                return Err(keys.wrong("factor", "at least 1, and high_freq_factor above low_freq_factor"));
            }
            Ok(Some(scaling))
        }
        Some(name) => unsupported(format!("the RoPE type {} is not supported", quoted(name))),
        // One object per kind of layer has no type of its own either.
        None if type_optional && !keys.map.values().any(Value::is_object) => Ok(None),
        None => unsupported("the RoPE settings name no type".into()),
    }
}
