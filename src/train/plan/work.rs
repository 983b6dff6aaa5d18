//! How much there is to do: steps, and the tokens in them, counted from the rows before the run.

use std::cmp::Reverse;

use crate::config::{PpoConfig, RewardConfig, SftConfig};
use crate::train::{ppo, reward, sft};

/// What a run does in all.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Work {
    pub(crate) steps: usize,
    /// What a step is called.
    pub(crate) step: &'static str,
    /// Rows of a step, and what a row is called.
    pub(crate) rows: usize,
    pub(crate) row: &'static str,
    /// Tokens of a step.
    pub(crate) tokens_mean: f64,
    pub(crate) tokens_most: usize,
    pub(crate) tokens_total: f64,
    /// Whether the tokens are the most that there can be: nobody knows how long answers become.
    pub(crate) is_bound: bool,
    /// What the stage's rate counts a second, and how many there are.
    pub(crate) unit: &'static str,
    pub(crate) units_total: f64,
}

impl Work {
    /// `steps` steps over rows of these lengths, `rows` at a time; an epoch may end with a smaller step.
    fn new(mut lengths: Vec<usize>, rows: usize, steps: usize) -> Self {
        let tokens: usize = lengths.iter().sum();
        let tokens_mean = tokens as f64 / lengths.len().div_ceil(rows.max(1)).max(1) as f64;
        lengths.sort_by_key(|n| Reverse(*n));
        let tokens_most = lengths.iter().take(rows).sum();
        let tokens_total = tokens_mean * steps as f64;
        Self {
            steps,
            step: "optimizer steps",
            rows,
            row: "rows",
            tokens_mean,
            tokens_most,
            tokens_total,
            is_bound: false,
            unit: "tokens",
            units_total: tokens_total,
        }
    }

    /// Of supervised fine-tuning on rows of these lengths.
    pub(super) fn sft(lengths: Vec<usize>, config: &SftConfig) -> Self {
        let steps = sft::total_steps(config, lengths.len());
        Self::new(lengths, config.optimizer.rows_per_step(), steps)
    }

    /// Of a reward model on pairs with so many tokens, both answers together.
    pub(super) fn reward(lengths: Vec<usize>, config: &RewardConfig) -> Self {
        let (pairs, rows) = (lengths.len(), config.optimizer.rows_per_step());
        let steps = reward::total_steps(config, pairs);
        let per_step = pairs as f64 / pairs.div_ceil(rows.max(1)).max(1) as f64;
        let work = Self::new(lengths, rows, steps);
        Self { row: "pairs", unit: "pairs", units_total: per_step * steps as f64, ..work }
    }

    /// Of PPO on prompts of these lengths, each answer as long as it may become.
    pub(super) fn ppo(prompts: &[usize], config: &PpoConfig) -> Self {
        let lengths = prompts.iter().map(|n| n + config.rollout.response_length).collect::<Vec<_>>();
        let (batches, batch) = (ppo::total_batches(config, prompts.len()), config.batch_size());
        let mean = lengths.iter().sum::<usize>() as f64 / lengths.len().max(1) as f64;
        let tokens_mean = mean * batch as f64;
        let units_total = (batches * batch) as f64;
        Self {
            step: "batches",
            row: "episodes",
            is_bound: true,
            unit: "episodes",
            units_total,
            tokens_mean,
            tokens_total: mean * units_total,
            ..Self::new(lengths, batch, batches)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::defaults;

    #[test]
    fn tokens_are_counted_over_whole_epochs() {
        let mut config = defaults::<SftConfig>().unwrap();
        config.optimizer.per_device_train_batch_size = Some(2);
        // Two epochs of three steps, the last of which has one row.
        config.epochs.num_train_epochs = Some(2.0);
        let work = Work::sft(vec![1, 5, 2, 7, 3], &config);
        assert_eq!((work.steps, work.rows, work.tokens_most), (6, 2, 12));
        assert_eq!((work.tokens_mean, work.tokens_total), (6.0, 36.0));
        let mut config = defaults::<RewardConfig>().unwrap();
        config.optimizer.per_device_train_batch_size = Some(2);
        let work = Work::reward(vec![1, 5, 2, 7, 3], &config);
        assert_eq!((work.steps, work.units_total), (3, 5.0));
        let mut config = defaults::<PpoConfig>().unwrap();
        config.optimizer.per_device_train_batch_size = Some(2);
        (config.rollout.response_length, config.rollout.total_episodes) = (10, Some(8));
        let work = Work::ppo(&[1, 5, 3], &config);
        assert_eq!((work.steps, work.rows, work.tokens_most, work.is_bound), (4, 2, 28, true));
        assert_eq!((work.tokens_mean, work.tokens_total, work.units_total), (26.0, 104.0, 8.0));
    }
}
