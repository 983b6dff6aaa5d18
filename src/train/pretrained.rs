//! A model directory as a trainer needs it: the model, the tokenizer that it was made with, and its chat template; and
//! files of data, read as this model reads text.

use std::path::Path;

use crate::data::encode::{
    Encoded, PairExample, PairOptions, PromptExample, PromptOptions, SftExample, SftOptions, encode_pairs,
    encode_prompts, encode_sft,
};
use crate::data::records::open_rows;
use crate::data::template::ChatTemplate;
use crate::data::tokenizer::Tokenizer;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::model::config::model_file;
use crate::model::{Model, ModelConfig};

/// A model with the tokenizer and the chat template of its directory.
///
/// The fields may be moved out one by one: a trainer takes the model, a reward of one's own reads with the tokenizer.
///
/// ```no_run
/// use rlhf::{Device, Pretrained};
///
/// # fn main() -> rlhf::Result<()> {
/// let base = Pretrained::load(&Device::parse("auto")?, "my-model")?;
/// let prompts = base.prompts("prompts.jsonl", 64)?;
/// println!("{}", prompts.ledger);
/// println!("{}", base.tokenizer.decode(&prompts.examples[0].ids, true)?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Pretrained {
    /// The network with its parameters, on the device that was asked for.
    pub model: Model,
    /// Text to tokens and back.
    pub tokenizer: Tokenizer,
    /// How a conversation becomes a text; none where the directory has no template.
    pub template: Option<ChatTemplate>,
}

impl Pretrained {
    /// Reads a Hugging Face model directory: model, tokenizer and template, and checks that they fit together.
    ///
    /// # Errors
    /// `model-missing` where there is no such directory; those of [`Tokenizer::load`], [`ChatTemplate::load`],
    /// [`Model::load`] and [`Tokenizer::check_vocabulary`].
    pub fn load(device: &Device, dir: impl AsRef<Path>) -> Result<Self> {
        Self::read(dir.as_ref(), |dir| Model::load(device, dir))
    }

    /// As [`Pretrained::load`], but of the model its shape alone, with parameters that nobody has written.
    pub(crate) fn shape(device: &Device, dir: &Path) -> Result<Self> {
        Self::read(dir, |dir| Model::zeros(device, device.dtype(), ModelConfig::load(dir)?))
    }

    fn read(dir: &Path, model: impl FnOnce(&Path) -> Result<Model>) -> Result<Self> {
        check_directory(dir)?;
        let tokenizer = Tokenizer::load(dir)?;
        let template = ChatTemplate::load(dir, &tokenizer)?;
        let model = model(dir)?;
        tokenizer
            .check_vocabulary(model.config().vocab_size)
            .map_err(|e| e.at_if_unplaced(dir.display().to_string()))?;
        Ok(Self { model, tokenizer, template })
    }

    /// Tokens that end a response: the tokenizer's, and those of the model's configuration.
    ///
    /// # Errors
    /// `eos-missing`: a model without one could never end.
    pub fn stop_tokens(&self) -> Result<Vec<i32>> {
        let mut stop = self.tokenizer.eos_token_ids().to_vec();
        stop.extend(self.model.config().eos_token_ids.iter().filter(|id| !self.tokenizer.eos_token_ids().contains(id)));
        if stop.is_empty() {
            return Err(Error::input("eos-missing", "the model has no end-of-sequence token")
                .at(self.model.source().map_or_else(String::new, |dir| dir.display().to_string()))
                .because("a response could never end by itself")
                .fix("set `eos_token_id` in generation_config.json"));
        }
        Ok(stop)
    }

    /// Demonstrations for supervised fine-tuning, from JSONL or Parquet in TRL's columns (`prompt` and `completion`,
    /// `messages`, or `text`).
    ///
    /// # Errors
    /// Those of [`open_rows`] and [`encode_sft`].
    pub fn demonstrations(&self, path: impl AsRef<Path>, options: &SftOptions) -> Result<Encoded<SftExample>> {
        at(path.as_ref(), |path| encode_sft(open_rows(path)?, &self.tokenizer, self.template.as_ref(), options))
    }

    /// Preferences for a reward model, from JSONL or Parquet in TRL's columns (`prompt`, `chosen`, `rejected`).
    ///
    /// # Errors
    /// Those of [`open_rows`] and [`encode_pairs`].
    pub fn preferences(&self, path: impl AsRef<Path>, options: &PairOptions) -> Result<Encoded<PairExample>> {
        at(path.as_ref(), |path| encode_pairs(open_rows(path)?, &self.tokenizer, self.template.as_ref(), options))
    }

    /// Prompts for PPO, from JSONL or Parquet with a `prompt` column, each of which leaves room for a response of
    /// `response_length` tokens in the model's context. Rows without text are left out; the ledger has their number.
    ///
    /// # Errors
    /// Those of [`open_rows`] and [`encode_prompts`].
    pub fn prompts(&self, path: impl AsRef<Path>, response_length: usize) -> Result<Encoded<PromptExample>> {
        let options = PromptOptions { context: self.model.config().max_positions, response_length, strict: false };
        at(path.as_ref(), |path| encode_prompts(open_rows(path)?, &self.tokenizer, self.template.as_ref(), &options))
    }
}

/// What `read` makes of a file; an error without a place is of that file.
fn at<T>(path: &Path, read: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    read(path).map_err(|e| e.at_if_unplaced(path.display().to_string()))
}

/// A name of a model that is not a directory: the commonest mistake is to give one of the Hugging Face hub.
pub(crate) fn check_directory(dir: &Path) -> Result<()> {
    if dir.exists() {
        return model_file(dir, "config.json").map(|_| ());
    }
    Err(Error::input("model-missing", "there is no such model directory")
        .at(dir.display().to_string())
        .because("a model is read from disk; nothing is downloaded")
        .fix("check the path, or download the model first (`hf download NAME --local-dir DIR`)"))
}
