//! `rlhf reward`: a reward model from a model directory and preference pairs.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::session::{Session, dataset, required};
use super::settings::Settings;
use crate::config::RewardConfig;
use crate::data::encode::{PairExample, PairOptions, encode_pairs};
use crate::disk;
use crate::error::Result;
use crate::model::Model;
use crate::model::card::Stage;
use crate::model::config::Head;
use crate::objective::calibration::describe;
use crate::train;

/// The file beside a reward model that holds the mean and deviation of its scores.
pub(super) const STATISTICS: &str = "reward_statistics.json";

/// The file beside a reward model that says how good it is on held-out pairs.
pub(crate) const QUALITY: &str = "quality.json";

/// Trains, and returns the directory of the result.
pub(super) fn run(config: &RewardConfig, settings: &Settings) -> Result<PathBuf> {
    let model_dir = required(config.run.model_name_or_path.as_ref(), "model-name-or-path")?;
    let dataset = dataset(&config.run, Some(&config.eval))?;
    let mut session = Session::open(&config.run, settings)?;
    if session.is_finished()? {
        return Ok(session.output);
    }
    let loaded = session.load("model", model_dir)?;
    let max_length = config.epochs.max_length(loaded.model.config().max_positions)?;
    session.settle("max-length", max_length);
    let options = PairOptions { max_length, strict: config.run.strict };
    let read = |session: &mut Session, role: &str, path: &PathBuf| {
        let rows = session.rows(path)?;
        let encoded = encode_pairs(rows, &loaded.tokenizer, loaded.template.as_ref(), &options);
        let encoded = encoded.map_err(|e| e.at_if_unplaced(path.display().to_string()))?;
        session.account(role, path, encoded)
    };
    let data = read(&mut session, "dataset", dataset)?;
    let eval = match &config.eval.eval_dataset {
        Some(path) => read(&mut session, "eval_dataset", path)?,
        None => Vec::new(),
    };
    let mut config = config.clone();
    let job = train::plan::Preferences::new(loaded.model.config(), &data, &eval, &config);
    session.plan(&job, &mut config.optimizer)?;
    let steps = train::reward::total_steps(&config, data.len());
    let Some(mut journal) = session.begin(data.len(), steps)? else { return Ok(session.output) };
    let model = with_score_head(loaded.model, config.run.seed)?;
    let model = {
        let mut keeper = session.checkpoints(Stage::Reward);
        train::reward::train(model, &data, &eval, &config, &mut journal, &mut keeper)?
    };
    session.compare_memory(&mut journal);
    let dir = session.save("", Stage::Reward, &model, &journal.results())?;
    write_statistics(&dir, &model, &data)?;
    let mut more = vec![STATISTICS];
    if !eval.is_empty() {
        let quality = describe(&train::reward::evaluate(&model, &eval)?);
        disk::write_file(&dir.join(QUALITY), format!("{quality:#}\n").as_bytes())?;
        more.push(QUALITY);
    }
    session.say(&format!("the reward model is in {}", dir.display()));
    session.finish(&more, steps)
}

/// The model, or one of its body under a fresh scalar head: then the device's memory has its own parameters no more.
fn with_score_head(model: Model, seed: u64) -> Result<Model> {
    match model.config().head {
        Head::Score => Ok(model),
        Head::Language => model.value_model(seed),
    }
}

/// Reference completions that the statistics are taken over, at most.
const REFERENCES_MAX: usize = 1024;

/// Measures the scores of chosen answers and keeps their mean and deviation for `--normalize-reward`.
fn write_statistics(dir: &Path, model: &Model, data: &[PairExample]) -> Result<()> {
    let sequences: Vec<Vec<i32>> = data.iter().take(REFERENCES_MAX).map(|p| p.chosen.clone()).collect();
    let [mean, std] = train::reward::spread(&train::reward::score(model, &sequences)?)?;
    let text = json!({ "mean": mean, "std": std, "completions": sequences.len() });
    disk::write_file(&dir.join(STATISTICS), format!("{text:#}\n").as_bytes())
}
