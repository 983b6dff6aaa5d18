//! The network, in reading order: embedding, then per layer attention and MLP on a residual stream, then a last
//! normalisation. Two families share it: GPT-2 (layer norms, biases, learned positions, GELU) and Llama with its
//! relatives Qwen2 and Qwen3 (RMS norms, rotary positions, SwiGLU). What stands after the last normalisation (a
//! language-model head, a scalar head) is in `heads.rs`.

use std::sync::{Arc, Mutex};

use super::config::{Architecture, Head, ModelConfig};
use super::params::{Id, Layout, LayoutBuilder, Part, Weights};
use crate::autograd::checkpoint;
use crate::config::Recompute;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops;
use crate::ops::append::{Continued, LayerCache, QueriesKeys};
use crate::ops::attention::{Heads, Sequences};
use crate::tensor::Tensor;

/// A normalisation: its weight, and GPT-2's bias.
#[derive(Debug, Clone, Copy)]
struct Norm {
    weight: Id,
    bias: Option<Id>,
}

/// A linear layer.
#[derive(Debug, Clone, Copy)]
struct Linear {
    weight: Id,
    bias: Option<Id>,
}

#[derive(Debug, Clone, Copy)]
struct Layer {
    attention_norm: Norm,
    qkv: Linear,
    /// Qwen3's normalisation of queries and keys, per head.
    qk_norm: Option<[Id; 2]>,
    out: Linear,
    mlp_norm: Norm,
    up: Linear,
    down: Linear,
}

/// What all layers have in common.
#[derive(Debug, Clone, Copy)]
struct Form {
    heads: Heads,
    eps: f64,
    /// SwiGLU and not GELU.
    gated: bool,
}

/// Where the network's tensors stand in the flat buffer, and the sizes that the forward pass needs.
#[derive(Debug)]
pub(crate) struct Transformer {
    embedding: Id,
    positions: Option<Id>,
    layers: Vec<Layer>,
    last_norm: Norm,
    /// The head's matrix: the embedding itself where it is tied.
    pub(crate) head: Id,
    form: Form,
    rope: Option<RopeTable>,
    layout: Arc<Layout>,
}

/// Keys and values of all layers, of sequences of up to `positions` positions.
#[derive(Debug)]
pub(crate) struct Cache {
    layers: Vec<LayerCache>,
    pub(crate) positions: usize,
}

impl Transformer {
    /// The network that `config` describes, with the head it names.
    pub(crate) fn new(config: &ModelConfig) -> Self {
        let mut names = Names::new(config);
        let (c, v) = (config.hidden_size, config.vocab_size);
        let embedding = names.matrix("embed", v, c);
        let gpt2 = config.architecture == Architecture::Gpt2;
        let positions = gpt2.then(|| names.matrix("wpe", config.max_positions, c));
        let layers = (0..config.layers).map(|i| if gpt2 { names.gpt2_layer(i) } else { names.llama_layer(i) });
        let layers = layers.collect();
        let last_norm = names.norm("last_norm", "");
        let head = match config.head {
            Head::Score => names.builder.add([Part::matrix("score.weight", 1, c)]),
            Head::Language if config.tied => embedding,
            Head::Language => names.builder.add([Part::matrix("lm_head.weight", v, c)]),
        };
        Self {
            embedding,
            positions,
            layers,
            last_norm,
            head,
            form: Form {
                heads: Heads { heads: config.heads, kv_heads: config.kv_heads, size: config.head_dim },
                eps: config.norm_eps,
                gated: !gpt2,
            },
            rope: (!gpt2).then(|| RopeTable::new(config)),
            layout: Arc::new(names.builder.build()),
        }
    }

    /// The layout of the parameters.
    pub(crate) fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// An empty cache with room for `slots` sequences of `positions` positions.
    pub(crate) fn cache(&self, like: &Tensor, slots: usize, positions: usize) -> Result<Cache> {
        let layer = || LayerCache::new(like.device(), like.dtype(), slots, positions, self.form.heads);
        let layers = self.layers.iter().map(|_| layer()).collect::<Result<_>>()?;
        Ok(Cache { layers, positions })
    }

    /// Hidden states [N, C] after the last normalisation, of packed ids [N] (i32).
    pub(crate) fn hidden(&self, weights: &Weights, ids: &Tensor, sequences: &Sequences) -> Result<Tensor> {
        let (pass, stream) = self.begin(weights, ids, sequences, sequences.end)?;
        let mut residual = vec![stream];
        for layer in &self.layers {
            residual = if pass.weights.recompute == Recompute::Full {
                let (pass, layer) = (pass.clone(), *layer);
                checkpoint(&residual.iter().collect::<Vec<_>>(), move |residual| {
                    pass.trained(&layer, residual.to_vec())
                })?
            } else {
                pass.trained(layer, residual)?
            };
        }
        pass.residual_norm(residual, self.last_norm).map(|(_, normed)| normed)
    }

    /// The same for tokens that continue what the cache holds. No gradient.
    pub(crate) fn hidden_cached(
        &self,
        weights: &Weights,
        ids: &Tensor,
        rows: &Continued,
        cache: &Cache,
    ) -> Result<Tensor> {
        let (pass, stream) = self.begin(weights, ids, &rows.sequences, cache.positions)?;
        let mut residual = vec![stream];
        for (layer, cache) in self.layers.iter().zip(&cache.layers) {
            residual =
                pass.layer(layer, residual, |qkv, before| cache.attention(qkv, before, rows, self.form.heads))?;
        }
        pass.residual_norm(residual, self.last_norm).map(|(_, normed)| normed)
    }

    /// What the layers share, with angles for `reach` positions, and the stream [N, C] into the first of them.
    fn begin(&self, weights: &Weights, ids: &Tensor, sequences: &Sequences, reach: usize) -> Result<(Pass, Tensor)> {
        let mut stream = ops::embedding::embedding(weights.get(self.embedding), ids)?; // [N, C]
        if let Some(positions) = self.positions {
            let learned = ops::embedding::embedding(weights.get(positions), &sequences.positions)?;
            stream = ops::elementwise::add(&stream, &learned)?;
        }
        let table = self.rope.as_ref().map(|rope| rope.reaching(&stream, reach)).transpose()?;
        Ok((Pass { weights: weights.clone(), form: self.form, table, sequences: sequences.clone() }, stream))
    }
}

/// What the layers of one forward pass share.
///
/// What a layer keeps for backward, in elements a token (Q = NH HD queries, R = (NH + 2 NKV) HD queries, keys, values):
///
/// | kept                        | none      | cheap     | full             |
/// |-----------------------------|-----------|-----------|------------------|
/// | streams into the two norms  | 2 C       | 2 C       | its input, 2 C   |
/// | outputs of the norms        | 2 C       |           |                  |
/// | qkv, with Qwen3 before too  | R or 2 R  | R or 2 R  |                  |
/// | output of attention         | Q         | Q         |                  |
/// | up (gated: gate and up)     | F or 2 F  | F or 2 F  |                  |
/// | activation                  | F         |           |                  |
///
/// Besides, f32 statistics: one or two numbers a norm, one a head. What rotates, adds or reshapes keeps nothing. `full`
/// holds one layer's `none` beside it while that layer runs.
#[derive(Debug, Clone)]
struct Pass {
    weights: Weights,
    form: Form,
    /// Rotary positions: cosines and sines.
    table: Option<Tensor>,
    sequences: Sequences,
}

impl Pass {
    /// One layer as training runs it.
    fn trained(&self, layer: &Layer, residual: Vec<Tensor>) -> Result<Vec<Tensor>> {
        let (sequences, heads) = (&self.sequences, self.form.heads);
        self.layer(layer, residual, |qkv, before| {
            ops::attention::attention(&before.apply(qkv, &sequences.positions, heads)?, sequences, heads)
        })
    }

    /// One layer. `residual` is the stream [N, C], and what the layer before it adds, if there was one: the sum is left
    /// to the norm that follows.
    fn layer(
        &self,
        layer: &Layer,
        residual: Vec<Tensor>,
        attention: impl Fn(&Tensor, &QueriesKeys<'_>) -> Result<Tensor>,
    ) -> Result<Vec<Tensor>> {
        let (stream, normed) = self.residual_norm(residual, layer.attention_norm)?;
        let qkv = self.linear(&normed, layer.qkv)?; // [N, (NH + 2 NKV) HD]
        let norms = layer.qk_norm.map(|norms| (norms.map(|id| self.weights.get(id)), self.form.eps));
        let mixed = attention(&qkv, &QueriesKeys { norms, table: self.table.as_ref() })?; // [N, NH HD]
        let attended = self.linear(&mixed, layer.out)?;
        let (stream, normed) = self.residual_norm(vec![stream, attended], layer.mlp_norm)?;
        let active = self.activation(self.linear(&normed, layer.up)?)?;
        Ok(vec![stream, self.linear(&active, layer.down)?])
    }

    /// The sum of the residual parts, and its normalisation.
    fn residual_norm(&self, residual: Vec<Tensor>, norm: Norm) -> Result<(Tensor, Tensor)> {
        let (stream, normed) = match &residual[..] {
            [stream, delta] => self.add_norm(stream, delta, norm)?,
            [stream] => (stream.clone(), self.norm(stream, norm)?),
            _ => return Err(Error::failure("residual", "the residual stream has one part or two")),
        };
        let (pass, saved) = (self.clone(), stream.detach());
        let normed = self.recomputed(normed, move || pass.norm(&saved, norm));
        Ok((stream, normed))
    }

    fn norm(&self, x: &Tensor, norm: Norm) -> Result<Tensor> {
        let weight = self.weights.get(norm.weight);
        match norm.bias {
            None => ops::rms_norm::rms_norm(x, weight, self.form.eps),
            Some(bias) => ops::layer_norm::layer_norm(x, [weight, self.weights.get(bias)], self.form.eps),
        }
    }

    fn add_norm(&self, stream: &Tensor, delta: &Tensor, norm: Norm) -> Result<(Tensor, Tensor)> {
        let (weight, eps) = (self.weights.get(norm.weight), self.form.eps);
        match norm.bias {
            None => ops::rms_norm::add_rms_norm(stream, delta, weight, eps),
            Some(bias) => ops::layer_norm::add_layer_norm(stream, delta, [weight, self.weights.get(bias)], eps),
        }
    }

    /// [N, F] from [N, 2 F], or from [N, F] where nothing gates.
    fn activation(&self, up: Tensor) -> Result<Tensor> {
        let function = if self.form.gated { ops::swiglu::swiglu } else { ops::gelu::gelu };
        let (active, saved) = (function(&up)?, up.detach());
        Ok(self.recomputed(active, move || function(&saved)))
    }

    /// `tensor` with its recipe, where norms and activations are not kept.
    fn recomputed(&self, tensor: Tensor, recipe: impl Fn() -> Result<Tensor> + Send + Sync + 'static) -> Tensor {
        if self.weights.recompute == Recompute::Cheap { tensor.again(recipe) } else { tensor }
    }

    fn linear(&self, x: &Tensor, layer: Linear) -> Result<Tensor> {
        let bias = layer.bias.map(|bias| self.weights.get(bias));
        ops::matmul::linear(x, self.weights.get(layer.weight), bias)
    }
}

/// Adds the layers' tensors to the layout under the checkpoint's names.
struct Names<'a> {
    config: &'a ModelConfig,
    builder: LayoutBuilder,
}

impl<'a> Names<'a> {
    fn new(config: &'a ModelConfig) -> Self {
        Self { config, builder: LayoutBuilder::default() }
    }

    fn gpt2(&self) -> bool {
        self.config.architecture == Architecture::Gpt2
    }

    /// The checkpoint's name for a tensor outside the layers.
    fn matrix(&mut self, role: &str, out: usize, inp: usize) -> Id {
        let name = match role {
            "embed" if self.gpt2() => "transformer.wte.weight".to_owned(),
            "embed" => "model.embed_tokens.weight".to_owned(),
            _ => format!("transformer.{role}.weight"),
        };
        self.builder.add([Part::matrix(name, out, inp)])
    }

    fn norm(&mut self, role: &str, prefix: &str) -> Norm {
        let c = self.config.hidden_size;
        let name = match role {
            "last_norm" if self.gpt2() => "transformer.ln_f".to_owned(),
            "last_norm" => "model.norm".to_owned(),
            _ => format!("{prefix}.{role}"),
        };
        Norm {
            weight: self.builder.add([Part::vector(format!("{name}.weight"), c)]),
            bias: self.gpt2().then(|| self.builder.add([Part::vector(format!("{name}.bias"), c)])),
        }
    }

    /// Linear layers that read the same input, as one.
    fn linear(&mut self, names: &[(String, usize)], inp: usize, bias: bool, transposed: bool) -> Linear {
        let matrix = |(name, out): &(String, usize)| {
            let part = Part::matrix(format!("{name}.weight"), *out, inp);
            if transposed { part.transposed() } else { part }
        };
        let vector = |(name, out): &(String, usize)| Part::vector(format!("{name}.bias"), *out);
        Linear {
            weight: self.builder.add(names.iter().map(matrix)),
            bias: bias.then(|| self.builder.add(names.iter().map(vector))),
        }
    }

    fn gpt2_layer(&mut self, i: usize) -> Layer {
        let prefix = format!("transformer.h.{i}");
        let (c, f) = (self.config.hidden_size, self.config.intermediate_size);
        let mut conv = |role: &str, out, inp| self.linear(&[(format!("{prefix}.{role}"), out)], inp, true, true);
        let (qkv, out) = (conv("attn.c_attn", 3 * c, c), conv("attn.c_proj", c, c));
        let (up, down) = (conv("mlp.c_fc", f, c), conv("mlp.c_proj", c, f));
        let (attention_norm, mlp_norm) = (self.norm("ln_1", &prefix), self.norm("ln_2", &prefix));
        Layer { attention_norm, qkv, qk_norm: None, out, mlp_norm, up, down }
    }

    fn llama_layer(&mut self, i: usize) -> Layer {
        let prefix = format!("model.layers.{i}");
        let config = self.config;
        let (c, f, hd) = (config.hidden_size, config.intermediate_size, config.head_dim);
        let (q, kv) = (config.heads * hd, config.kv_heads * hd);
        let named = |role: &str, out: usize| (format!("{prefix}.{role}"), out);
        let qkv = [named("self_attn.q_proj", q), named("self_attn.k_proj", kv), named("self_attn.v_proj", kv)];
        let qkv = self.linear(&qkv, c, config.qkv_bias, false);
        let qk_norm = config.qk_norm.then(|| {
            ["q_norm", "k_norm"]
                .map(|role| self.builder.add([Part::vector(format!("{prefix}.self_attn.{role}.weight"), hd)]))
        });
        let out = self.linear(&[named("self_attn.o_proj", c)], q, config.output_bias, false);
        let gate_up = [named("mlp.gate_proj", f), named("mlp.up_proj", f)];
        let up = self.linear(&gate_up, c, config.mlp_bias, false);
        let down = self.linear(&[named("mlp.down_proj", c)], f, config.mlp_bias, false);
        let attention_norm = self.norm("input_layernorm", &prefix);
        let mlp_norm = self.norm("post_attention_layernorm", &prefix);
        Layer { attention_norm, qkv, qk_norm, out, mlp_norm, up, down }
    }
}

/// Cosines and sines by position, made as far as they are needed.
#[derive(Debug)]
struct RopeTable {
    /// Radians per position of each pair.
    frequencies: Vec<f64>,
    limit: usize,
    table: Mutex<Option<Tensor>>,
}

impl RopeTable {
    fn new(config: &ModelConfig) -> Self {
        let half = config.head_dim / 2;
        let plain = |i: usize| config.rope_theta.powf(-(i as f64) / half as f64);
        let frequencies = (0..half).map(|i| match &config.rope_scaling {
            None => plain(i),
            Some(scaling) => {
                // Llama 3's scaling: long wavelengths are stretched by `factor`, short ones stay, a ramp between.
                let frequency = plain(i);
                let turns = scaling.original_max_position_embeddings as f64 * frequency / std::f64::consts::TAU;
                let span = scaling.high_freq_factor - scaling.low_freq_factor;
                let kept = ((turns - scaling.low_freq_factor) / span).clamp(0.0, 1.0);
                frequency * (kept + (1.0 - kept) / scaling.factor)
            }
        });
        Self { frequencies: frequencies.collect(), limit: config.max_positions, table: Mutex::new(None) }
    }

    /// A table [positions, HD] that reaches `positions` positions.
    fn reaching(&self, like: &Tensor, positions: usize) -> Result<Tensor> {
        if positions > self.limit {
            return Err(Error::input("context-exceeded", format!("a sequence has more than {} tokens", self.limit))
                .because("the model's positions end there (max_position_embeddings)")
                .fix("shorten the rows, or set a smaller --max-length or --response-length"));
        }
        let dtype = if like.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let mut table = self.table.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match &*table {
            Some(t) if t.rows() >= positions && t.dtype() == dtype => Ok(t.clone()),
            _ => Ok(table.insert(self.make(like.device(), dtype, positions.next_power_of_two())?).clone()),
        }
    }

    fn make(&self, device: &Device, dtype: DType, positions: usize) -> Result<Tensor> {
        let row = |p: usize| {
            let angle = move |f: &f64| p as f64 * f;
            let cosines = self.frequencies.iter().map(move |f| angle(f).cos());
            cosines.chain(self.frequencies.iter().map(move |f| angle(f).sin()))
        };
        let values: Vec<f64> = (0..positions).flat_map(row).collect();
        Tensor::from_f64(device, dtype, &[positions, 2 * self.frequencies.len()], &values)
    }
}
