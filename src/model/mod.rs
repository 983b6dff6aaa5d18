//! Tokens to logits, values and scores: the network, its flat parameters, its heads, generation, and the Hugging Face
//! directories it is read from and written to.

#![forbid(unsafe_code)]

pub mod card;
pub mod checkpoint;
pub mod config;
#[cfg(test)]
mod fixtures;
pub(crate) mod generate;
pub(crate) mod heads;
pub(crate) mod params;
pub(crate) mod slots;
mod transformer;

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::random::{Philox, Stage};
use checkpoint::{ModelFiles, SHARD_BYTES_MAX, TensorSpec, save_model};
pub use config::ModelConfig;
use config::{Head, StoredDtype};
use params::{Grads, Params, Part, Weights};
use transformer::Transformer;

/// The widest row that the norms' kernels hold, and the largest vocabulary that the sampling kernel counts.
const HIDDEN_SIZE_MAX: usize = 8192;
const VOCABULARY_MAX: usize = 1 << 19;

/// An error naming the sizes that the GPU's kernels do not serve.
fn check_kernel_limits(config: &ModelConfig) -> Result<()> {
    let mut beyond = Vec::new();
    if !config.head_dim.is_multiple_of(8) || config.head_dim > 128 {
        beyond.push(format!("a head size of {} (multiples of 8 up to 128 are possible)", config.head_dim));
    }
    if config.hidden_size > HIDDEN_SIZE_MAX {
        beyond.push(format!("a hidden size of {} (up to {HIDDEN_SIZE_MAX})", config.hidden_size));
    }
    if config.vocab_size > VOCABULARY_MAX {
        beyond.push(format!("a vocabulary of {} (up to {VOCABULARY_MAX})", config.vocab_size));
    }
    if beyond.is_empty() {
        return Ok(());
    }
    Err(Error::input("model-beyond-kernels", "the kernels of the GPU do not serve this model's sizes")
        .because(format!("the model has {}", beyond.join(", ")))
        .fix("use `--device cpu`, which computes any size"))
}

/// A model: what it is, and its parameters.
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    network: Transformer,
    pub(crate) params: Params,
    /// Where it was read from: the place of its tokenizer files.
    source: Option<PathBuf>,
    /// What its weights are rounded to when they are saved.
    stored: StoredDtype,
    notes: Vec<String>,
}

impl Model {
    /// Reads a model directory. Masters are kept in f32, to which weights are widened; what computes has the device's
    /// float type.
    ///
    /// # Errors
    /// Those of [`ModelConfig::load`] and of [`checkpoint::Weights`]: everything that does not fit is named, and
    /// nothing is made up.
    pub fn load(device: &Device, dir: &Path) -> Result<Self> {
        let config = ModelConfig::load(dir)?;
        checkpoint::check_copied(dir)?;
        let weights = checkpoint::Weights::open(dir)?;
        let network = Transformer::new(&config);
        // Before memory is taken: a configuration can ask for any amount, and only the weights show what is there.
        for (part, _) in network.layout().parts() {
            weights.check(&part.name, &part.stored_shape())?;
        }
        let mut model = Self::of(device, device.dtype(), config, network)?;
        let mut used = Vec::new();
        model.params.fill(|part| {
            used.push(part.name.clone());
            weights.read_f32(&part.name, &part.stored_shape())
        })?;
        model.notes = [&model.config.notes, weights.notes()].concat();
        let unused: Vec<&str> = weights.unused_names(&used).into_iter().filter(|n| *n != "lm_head.weight").collect();
        if !unused.is_empty() {
            model
                .notes
                .push(format!("tensors that this architecture does not have are not read: {}", unused.join(", ")));
        }
        (model.source, model.stored) = (Some(dir.to_owned()), weights.stored_dtype());
        Ok(model)
    }

    /// Writes the model into the existing directory `dir`, in the layout and dtype of its source, with the source's
    /// tokenizer files byte for byte.
    ///
    /// # Errors
    /// A weight that is not finite or does not fit the dtype; input and output errors.
    pub fn save(&self, dir: &Path, card: &str) -> Result<()> {
        let files = ModelFiles {
            config: &self.config,
            head: self.config.head,
            dtype: self.stored,
            source: self.source.as_deref(),
            card,
            shard_bytes_max: SHARD_BYTES_MAX,
        };
        let parts: HashMap<&str, (&Part, usize)> = self.parts();
        let specs: Vec<TensorSpec> = self
            .params
            .layout()
            .parts()
            .map(|(part, _)| TensorSpec { name: part.name.clone(), shape: part.stored_shape() })
            .collect();
        save_model(dir, &files, &specs, &mut |spec| match parts.get(spec.name.as_str()) {
            Some((part, offset)) => Ok(Cow::Owned(Params::stored(self.params.masters(), part, *offset)?)),
            None => Err(Error::failure("save-tensor", format!("{} is not in the layout", spec.name))),
        })
    }

    fn parts(&self) -> HashMap<&str, (&Part, usize)> {
        self.params.layout().parts().map(|(part, offset)| (part.name.as_str(), (part, offset))).collect()
    }

    /// What the user should know about this model: settings that are not followed, tensors that are not read.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The directory that the model was read from.
    pub fn source(&self) -> Option<&Path> {
        self.source.as_deref()
    }

    /// A model of `config` whose parameters are all zero.
    pub(crate) fn zeros(device: &Device, dtype: DType, config: ModelConfig) -> Result<Self> {
        let network = Transformer::new(&config);
        Self::of(device, dtype, config, network)
    }

    fn of(device: &Device, dtype: DType, config: ModelConfig, network: Transformer) -> Result<Self> {
        if !device.is_cpu() {
            check_kernel_limits(&config)?;
        }
        let params = Params::zeros(device, dtype, network.layout().clone())?;
        Ok(Self { config, network, params, source: None, stored: StoredDtype::F32, notes: Vec::new() })
    }

    /// A fresh model for `config`, whose random numbers follow from `seed`. Matrices are normal with deviation
    /// 1/sqrt(inputs), those that write into the residual stream smaller by sqrt(2 layers), embeddings 0.02; norms are
    /// 1 and biases 0.
    ///
    /// # Errors
    /// None but a broken layout.
    pub fn fresh(device: &Device, config: ModelConfig, seed: u64) -> Result<Self> {
        let residual = (2.0 * config.layers as f64).sqrt();
        let hidden = config.hidden_size as f64;
        let mut model = Self::zeros(device, device.dtype(), config)?;
        let mut number = 0;
        model.params.fill(|part| {
            number += 1;
            let mut stream = Philox::new(seed, Stage::Init, 0, number);
            let n = part.shape.iter().product();
            let mut normal = |std: f64| (0..n).map(|_| (stream.normal() * std) as f32).collect();
            Ok(match part.name.as_str() {
                name if part.shape.len() == 1 => vec![if name.ends_with("bias") { 0.0 } else { 1.0 }; n],
                name if name.contains("embed") || name.contains("wte") || name.contains("wpe") => normal(0.02),
                "score.weight" => normal(1.0 / (hidden + 1.0).sqrt()),
                name => {
                    let writes = ["o_proj", "down_proj", "c_proj"].iter().any(|role| name.contains(role));
                    normal(1.0 / (part.shape[1] as f64).sqrt() / if writes { residual } else { 1.0 })
                }
            })
        })?;
        Ok(model)
    }

    /// The same body under a scalar head, fresh with deviation `head_std` (the usual value is 1/sqrt(C + 1)).
    ///
    /// # Errors
    /// None but a broken layout.
    pub(crate) fn with_score_head(&self, seed: u64, head_std: f64) -> Result<Self> {
        let mut config = self.config.clone();
        config.head = Head::Score;
        let mut model = Self::zeros(self.device(), self.params.flat.dtype(), config)?;
        let mut stream = Philox::new(seed, Stage::Init, 0, 0);
        let source = self.parts();
        model.params.fill(|part| match source.get(part.name.as_str()) {
            Some((part, offset)) => Params::stored(self.params.masters(), part, *offset),
            None => Ok((0..part.shape.iter().product()).map(|_| (stream.normal() * head_std) as f32).collect()),
        })?;
        (model.source, model.stored) = (self.source.clone(), self.stored);
        Ok(model)
    }

    /// A model with this one's body and a fresh scalar head, as reward and value models start; the head's random
    /// numbers follow from `seed`.
    ///
    /// # Errors
    /// Memory that the device has not.
    pub fn value_model(&self, seed: u64) -> Result<Self> {
        self.with_score_head(seed, 1.0 / (self.config.hidden_size as f64 + 1.0).sqrt())
    }

    /// Multiplies the scalar head, so that a value model starts in the unit of normalised rewards.
    ///
    /// # Errors
    /// None but a broken layout.
    pub(crate) fn scale_head(&self, factor: f64) -> Result<()> {
        self.params.scale(self.network.head, factor)
    }

    /// A copy with its own parameters, on the same device.
    ///
    /// # Errors
    /// Memory that the device has not.
    pub fn duplicate(&self) -> Result<Self> {
        let network = Transformer::new(&self.config);
        let params = self.params.duplicate()?;
        Ok(Self {
            config: self.config.clone(),
            network,
            params,
            source: self.source.clone(),
            stored: self.stored,
            notes: vec![],
        })
    }

    /// What the model is.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Where the model lives.
    pub fn device(&self) -> &Device {
        self.params.flat.device()
    }

    /// The parameters, without gradients.
    pub(crate) fn frozen(&self) -> Result<Weights> {
        self.params.frozen()
    }

    /// The parameters, with gradients into `grads`.
    pub(crate) fn trained(&self, grads: &Grads) -> Result<Weights> {
        self.params.trained(grads)
    }
}
