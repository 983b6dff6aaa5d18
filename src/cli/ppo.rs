//! `rlhf ppo`: the policy of one model directory against the reward model of another.

use std::path::{Path, PathBuf};

use super::reward::STATISTICS;
use super::session::{Session, dataset, required};
use super::settings::Settings;
use crate::config::PpoConfig;
use crate::data::encode::{PromptOptions, encode_prompts};
use crate::error::{Error, Result};
use crate::files::read_model_file;
use crate::model::Model;
use crate::model::card::Stage;
use crate::model::config::Head;
use crate::train;
use crate::train::ppo::Start;
use crate::train::pretrained::Pretrained;
use crate::train::reward::Reward;
use crate::train::samples::Sampler;

/// Trains, and returns the directory of the result.
pub(super) fn run(config: &PpoConfig, settings: &Settings) -> Result<PathBuf> {
    let policy_dir = policy_dir(config)?;
    let reward_dir = required(config.models.reward_model_path.as_ref(), "reward-model-path")?;
    let dataset = dataset(&config.run, None)?;
    let mut session = Session::open(&config.run, settings)?;
    if session.is_finished()? {
        return Ok(session.output);
    }
    session.device = session.device.exact(config.rollout.exact_logprobs);
    let loaded = session.load("sft_model", policy_dir)?;
    let mut scorer = |role, dir: &Path| {
        let read = session.load(role, dir)?;
        check_heads([&loaded, &read].map(|l| l.model.config().head), [policy_dir, dir])?;
        check_same_tokens(&loaded, &read, dir).map(|()| read.model)
    };
    let mut reward = scorer("reward_model", reward_dir)?;
    let mut judge = config.models.judge_model_path.as_ref().map(|dir| scorer("judge_model", dir)).transpose()?;
    let rollout = &config.rollout;
    let models = [&loaded.model, &reward].into_iter().chain(&judge);
    let context = models.map(|model| model.config().max_positions).min().unwrap_or_default();
    let options = PromptOptions { context, response_length: rollout.response_length, strict: config.run.strict };
    let at_dataset = |e: Error| e.at_if_unplaced(dataset.display().to_string());
    let rows = session.rows(dataset)?;
    let encoded = encode_prompts(rows, &loaded.tokenizer, loaded.template.as_ref(), &options).map_err(at_dataset)?;
    let prompts = session.account("dataset", dataset, encoded)?;
    let stop = loaded.stop_tokens()?;
    let normalize = if rollout.normalize_reward { Some(read_statistics(reward_dir)?) } else { None };
    if normalize.is_some() {
        session.made_from("reward_model/statistics", &reward_dir.join(STATISTICS))?;
    }
    train::ppo::check_prompts(&prompts, config.batch_size()).map_err(at_dataset)?;
    session.say(&format!(
        "{} batches of {} episodes, {} optimizer steps each",
        train::ppo::total_batches(config, prompts.len()),
        config.batch_size(),
        config.loss.num_ppo_epochs * config.loss.num_mini_batches
    ));
    let mut config = config.clone();
    let models = [loaded.model.config(), reward.config()];
    let job = train::plan::Ppo::new(models, judge.as_ref().map(Model::config), &prompts, &config);
    session.plan(&job, &mut config.optimizer)?;
    let steps = train::ppo::total_batches(&config, prompts.len());
    let Some(mut journal) = session.begin(prompts.len(), steps)? else { return Ok(session.output) };
    let value_model = reward.duplicate()?;
    // It is trained no more.
    for scorer in std::iter::once(&mut reward).chain(&mut judge) {
        scorer.params.drop_masters();
    }
    if let Some([_, std]) = normalize {
        value_model.scale_head(1.0 / std)?;
    }
    let tokenizer = loaded.tokenizer;
    let decode = Box::new(move |ids: &[i32], skip_special| tokenizer.decode(ids, skip_special));
    let sizes = [config.batch_size(), config.rollout.response_length];
    journal.set_sampler(Sampler::of_prompts(&prompts, sizes, stop.clone(), decode, &config.samples));
    let judge = judge.as_mut().map(|judge| judge as &mut dyn Reward);
    let start = Start { policy: loaded.model, value_model, reward: &mut reward, stop: &stop, normalize, judge };
    let finish = {
        let mut keeper = session.checkpoints(Stage::Ppo);
        train::ppo::train(start, &prompts, &config, &mut journal, &mut keeper)?
    };
    session.compare_memory(&mut journal);
    session.save("value_model", Stage::Ppo, &finish.value_model, &[])?;
    let dir = session.save("", Stage::Ppo, &finish.policy, &journal.results())?;
    session.say(&format!("the policy is in {}", dir.display()));
    session.finish(&[], steps)
}

/// The policy to start from, which two options may name.
fn policy_dir(config: &PpoConfig) -> Result<&PathBuf> {
    match (&config.models.sft_model_path, &config.run.model_name_or_path) {
        (Some(a), Some(b)) if a != b => {
            Err(Error::usage("model-twice", "--sft-model-path and --model-name-or-path name two policies")
                .because("both mean the policy to start from")
                .fix("give one of them"))
        }
        (sft, same) => required(sft.as_ref().or(same.as_ref()), "sft-model-path"),
    }
}

fn check_heads([policy, reward]: [Head; 2], [policy_dir, reward_dir]: [&Path; 2]) -> Result<()> {
    if policy != Head::Language {
        return Err(Error::input("not-a-language-model", "the policy needs a language-model head")
            .at(policy_dir.display().to_string())
            .because("--sft-model-path is a model with a score head")
            .fix("give a language model (…ForCausalLM or …LMHeadModel)"));
    }
    if reward != Head::Score {
        return Err(Error::input("not-a-reward-model", "the reward model needs a score head")
            .at(reward_dir.display().to_string())
            .because("--reward-model-path is a language model")
            .fix("train one with `rlhf reward`, or give a …ForSequenceClassification model with one label"));
    }
    Ok(())
}

/// The reward model reads the policy's tokens as they are, so both must mean the same by them.
fn check_same_tokens(policy: &Pretrained, reward: &Pretrained, dir: &Path) -> Result<()> {
    let probe = |tokenizer: &crate::data::tokenizer::Tokenizer| {
        (0..tokenizer.vocab_size() as i32).map(|id| tokenizer.id_to_token(id)).collect::<Vec<_>>()
    };
    let rows = |loaded: &Pretrained| loaded.model.config().vocab_size;
    if rows(policy) > rows(reward) {
        // Embeddings are often longer than the vocabulary, and a policy can sample any of their rows.
        let what = format!("the policy can emit {} tokens, and the reward model knows {}", rows(policy), rows(reward));
        return Err(Error::input("vocabulary-too-small", what)
            .at(dir.display().to_string())
            .fix("train the reward model from the same base model as the policy"));
    }
    if probe(&policy.tokenizer) == probe(&reward.tokenizer) {
        return Ok(());
    }
    Err(Error::input("tokenizer-mismatch", "policy and reward model have different vocabularies")
        .at(dir.display().to_string())
        .because("the reward model reads the policy's tokens as they are")
        .fix("train the reward model from the same base model as the policy"))
}

fn read_statistics(dir: &Path) -> Result<[f64; 2]> {
    let path = dir.join(STATISTICS);
    let bad = |why: String| {
        Error::input("reward-statistics", "--normalize-reward needs the reward model's statistics")
            .at(path.display().to_string())
            .because(why)
            .fix("train the reward model with `rlhf reward`, which measures them, or leave --normalize-reward out")
    };
    let text = read_model_file(dir, STATISTICS, 1 << 16)?.ok_or_else(|| bad("there is no such file".to_owned()))?;
    let value: serde_json::Value = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
    match [&value["mean"], &value["std"]].map(serde_json::Value::as_f64) {
        [Some(mean), Some(std)] if (mean as f32).is_finite() && (std as f32).is_normal() && std > 0.0 => {
            Ok([mean, std])
        }
        _ => Err(bad("mean and a positive std are needed".to_owned())),
    }
}
