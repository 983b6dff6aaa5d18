//! PPO against a reward of one's own: short answers that contain a word are good. From a model directory to another.
//!
//! ```text
//! cargo run --release --example custom_reward -- MODEL prompts.jsonl OUTPUT WORD
//! ```

use std::path::Path;

use rlhf::config::{PpoConfig, defaults};
use rlhf::data::tokenizer::Tokenizer;
use rlhf::train::{ppo, reward::Episode};
use rlhf::{Device, Error, Journal, Pretrained, Result, Reward};

/// A word, and what turns tokens into text.
struct ShortWith<'a>(&'a str, &'a Tokenizer);

impl Reward for ShortWith<'_> {
    fn scores(&mut self, episodes: &[Episode<'_>]) -> Result<Vec<f32>> {
        let score = |episode: &Episode<'_>| {
            let answer = self.1.decode(episode.response, true)?;
            Ok(f32::from(answer.contains(self.0)) - 0.01 * answer.len() as f32)
        };
        episodes.iter().map(score).collect()
    }
}

/// Trains the model of one directory on prompts and saves it in another.
pub fn train(model: &str, prompts: &str, output: &str, word: &str) -> Result<()> {
    let base = Pretrained::load(&Device::parse("auto")?, model)?;
    let mut config = defaults::<PpoConfig>()?;
    config.rollout.response_length = 16;
    config.loss.learning_rate = 1e-4;
    let prompts = base.prompts(prompts, config.rollout.response_length)?.examples;
    let (stop, value_model) = (base.stop_tokens()?, base.model.value_model(config.run.seed)?);
    let mut reward = ShortWith(word, &base.tokenizer);
    let start = ppo::Start::new(base.model, value_model, &mut reward, &stop);
    let finish = ppo::train(start, &prompts, &config, &mut Journal::silent(), &mut ())?;
    std::fs::create_dir_all(output).map_err(|e| Error::io("creating", Path::new(output), &e))?;
    finish.policy.save(Path::new(output), "A policy that answers shortly.")
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, prompts, output, word] = &args[..] else {
        return Err(Error::usage("arguments", "MODEL PROMPTS OUTPUT WORD are needed"));
    };
    train(model, prompts, output, word)
}
