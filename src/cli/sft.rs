//! `rlhf sft`: supervised fine-tuning of a model directory on a data set.

use std::path::PathBuf;

use super::session::{Session, dataset, required};
use super::settings::Settings;
use crate::config::SftConfig;
use crate::data::encode::{LossOn, SftOptions, encode_sft};
use crate::data::packing::pack;
use crate::error::{Error, Result};
use crate::model::card::Stage;
use crate::model::config::Head;
use crate::train;
use crate::train::samples::{Sampler, held_out};

/// Trains, and returns the directory of the result.
pub(super) fn run(config: &SftConfig, settings: &Settings) -> Result<PathBuf> {
    let model_dir = required(config.run.model_name_or_path.as_ref(), "model-name-or-path")?;
    let dataset = dataset(&config.run, Some(&config.eval))?;
    let loss_on = loss_on(config.assistant_only_loss, config.completion_only_loss)?;
    let mut session = Session::open(&config.run, settings)?;
    if session.is_finished()? {
        return Ok(session.output);
    }
    let loaded = session.load("model", model_dir)?;
    if loaded.model.config().head != Head::Language {
        return Err(Error::input("not-a-language-model", "supervised fine-tuning needs a language-model head")
            .at(model_dir.display().to_string())
            .because("this model has a score head (…ForSequenceClassification)")
            .fix("give a language model (…ForCausalLM or …LMHeadModel)"));
    }
    let max_length = config.epochs.max_length(loaded.model.config().max_positions)?;
    session.settle("max-length", max_length);
    let options = SftOptions { max_length, loss_on, append_eos: true, strict: config.run.strict };
    let read = |session: &mut Session, role: &str, path: &PathBuf| {
        let rows = session.rows(path)?;
        let encoded = encode_sft(rows, &loaded.tokenizer, loaded.template.as_ref(), &options);
        let encoded = encoded.map_err(|e| e.at_if_unplaced(path.display().to_string()))?;
        session.account(role, path, encoded)
    };
    let data = read(&mut session, "dataset", dataset)?;
    let eval = match &config.eval.eval_dataset {
        Some(path) => read(&mut session, "eval_dataset", path)?,
        None => Vec::new(),
    };
    let lengths: Vec<usize> = data.iter().map(|e| e.ids.len()).collect();
    let groups = if config.packing { pack(&lengths, max_length)? } else { (0..data.len()).map(|i| vec![i]).collect() };
    let mut config = config.clone();
    let job = train::plan::Sft::new(loaded.model.config(), &data, &groups, &eval, &config);
    session.plan(&job, &mut config.optimizer)?;
    let steps = train::sft::total_steps(&config, groups.len());
    let Some(mut journal) = session.begin(groups.len(), steps)? else { return Ok(session.output) };
    let stop = loaded.stop_tokens().unwrap_or_default();
    let tokenizer = loaded.tokenizer;
    let decode = Box::new(move |ids: &[i32], skip_special| tokenizer.decode(ids, skip_special));
    let (rows, positions) = (held_out(&data, &eval), loaded.model.config().max_positions);
    journal.set_sampler(Sampler::of_examples(rows, positions, stop, decode, &config.samples)?);
    let model = {
        let mut keeper = session.checkpoints(Stage::Sft);
        train::sft::train(loaded.model, &data, &groups, &eval, &config, &mut journal, &mut keeper)?
    };
    session.compare_memory(&mut journal);
    let dir = session.save("", Stage::Sft, &model, &journal.results())?;
    session.say(&format!("the model is in {}", dir.display()));
    session.finish(&[], steps)
}

/// What the two options for the loss mean together.
pub(super) fn loss_on(assistant_only: bool, completion_only: Option<bool>) -> Result<LossOn> {
    match (assistant_only, completion_only) {
        (true, Some(_)) => {
            Err(Error::usage("loss-ambiguous", "--assistant-only-loss and --completion-only-loss exclude each other")
                .fix("give one of them"))
        }
        (true, None) => Ok(LossOn::Assistant),
        (false, None | Some(true)) => Ok(LossOn::Completion),
        (false, Some(false)) => Ok(LossOn::All),
    }
}
