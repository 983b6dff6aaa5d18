//! `rlhf fresh`: a model directory with random weights, for measurements of models that nobody has to download. It is
//! left out of the help.

use std::path::PathBuf;

use super::resume::claim;
use crate::data::tokenizer::Tokenizer;
use crate::device::Device;
use crate::disk;
use crate::error::Result;
use crate::files::read_plain;
use crate::model::{Model, ModelConfig};

/// The largest config.json, in bytes.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// Options of `rlhf fresh`.
#[derive(Debug, clap::Args)]
pub(super) struct FreshArgs {
    /// The model's config.json
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// A model directory whose tokenizer it gets; the vocabulary of the configuration may be larger
    #[arg(long, value_name = "DIR")]
    tokenizer: PathBuf,
    /// Where it is written; must not exist, or be empty
    #[arg(long, value_name = "DIR")]
    output_dir: PathBuf,
    /// Decides every weight
    #[arg(long, default_value_t = 1, value_parser = crate::config::seed)]
    seed: u64,
}

/// Writes the directory.
pub(super) fn run(args: &FreshArgs) -> Result<()> {
    let place = args.config.display().to_string();
    let text = read_plain(&args.config, "reading the configuration", CONFIG_BYTES_MAX)?;
    let text = String::from_utf8_lossy(&text);
    let config = ModelConfig::parse(&text, &place)?;
    Tokenizer::load(&args.tokenizer)?.check_vocabulary(config.vocab_size).map_err(|e| e.at_if_unplaced(place))?;
    let _lock = claim(&args.output_dir, false)?;
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        let from = args.tokenizer.join(name);
        if from.exists() {
            disk::copy_file(&from, &args.output_dir.join(name))?;
        }
    }
    let model = Model::fresh(&Device::Cpu, config, args.seed)?;
    model.save(&args.output_dir, "Random weights: this model knows nothing.\n")
}
