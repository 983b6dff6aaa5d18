//! Tokens to logits, values and scores: the network, its flat parameters, its heads, generation, and the Hugging Face
//! directories it is read from and written to.

pub mod config;
pub(crate) mod generate;
pub(crate) mod heads;
pub(crate) mod params;
mod transformer;

use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::random::{Philox, Stage};
pub use config::ModelConfig;
use config::{Architecture, Head};
use params::{Grads, Params, Part, Weights};
use transformer::Transformer;

/// A model: what it is, and its parameters.
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    network: Transformer,
    pub(crate) params: Params,
}

impl Model {
    /// A model of `config` whose parameters are all zero.
    fn zeros(device: &Device, dtype: DType, config: ModelConfig) -> Self {
        let network = Transformer::new(&config);
        let params = Params::zeros(device, dtype, network.layout().clone());
        Self { config, network, params }
    }

    /// A fresh model. Matrices are normal with deviation 1/sqrt(inputs), those that write into the residual stream
    /// smaller by sqrt(2 layers), embeddings 0.02; norms are 1 and biases 0.
    ///
    /// # Errors
    /// None but a broken layout.
    pub fn fresh(device: &Device, config: ModelConfig, seed: u64) -> Result<Self> {
        let residual = (2.0 * config.layers as f64).sqrt();
        let hidden = config.hidden_size as f64;
        let mut model = Self::zeros(device, DType::F32, config);
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
        let mut model = Self::zeros(self.device(), self.params.flat.dtype(), config);
        let mut stream = Philox::new(seed, Stage::Init, 0, 0);
        let source: std::collections::HashMap<&str, (&Part, usize)> =
            self.params.layout().parts().map(|(part, offset)| (part.name.as_str(), (part, offset))).collect();
        model.params.fill(|part| match source.get(part.name.as_str()) {
            Some((part, offset)) => Params::stored(&self.params.flat, part, *offset),
            None => Ok((0..part.shape.iter().product()).map(|_| (stream.normal() * head_std) as f32).collect()),
        })?;
        Ok(model)
    }

    /// Multiplies the scalar head, so that a value model starts in the unit of normalised rewards.
    ///
    /// # Errors
    /// None but a broken layout.
    pub(crate) fn scale_head(&self, factor: f64) -> Result<()> {
        let weights = self.params.frozen()?;
        for w in weights.get(self.network.head).write::<f32>().iter_mut() {
            *w *= factor as f32;
        }
        Ok(())
    }

    /// A copy with its own parameters.
    ///
    /// # Errors
    /// None but a broken layout.
    pub(crate) fn duplicate(&self) -> Result<Self> {
        let network = Transformer::new(&self.config);
        Ok(Self { config: self.config.clone(), network, params: self.params.duplicate()? })
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

    /// Whether rotary or learned positions are used, in words for errors.
    pub(crate) fn is_gpt2(&self) -> bool {
        self.config.architecture == Architecture::Gpt2
    }
}
