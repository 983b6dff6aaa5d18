//! Every hyperparameter, with its unit, its default and where the default comes from. The same structs are the command
//! line's options and the keys of a `--config` file, so there is one list of names: TRL's.
//!
//! Sources of defaults: "TRL" is TRL 1.16 (PPO: 1.12, the last release that had it), "HF" is transformers' trainer,
//! "N+" is Huang et al., "The N+ implementation details of RLHF with PPO", 2024.

#![forbid(unsafe_code)]

use std::path::PathBuf;

use crate::error::{Error, Result};

/// What happens after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum SchedulerType {
    /// Straight down to the minimum at the last step.
    Linear,
    /// Half a cosine down to the minimum.
    Cosine,
    /// Stays; a warm-up is followed all the same.
    Constant,
}

/// How the KL of a sampled token is estimated, with d = logprob - ref_logprob (Schulman,
/// "Approximating KL divergence", 2020).
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum KlEstimator {
    /// d
    K1,
    /// d^2 / 2
    K2,
    /// exp(-d) - 1 + d
    K3,
}

/// Floats that weights and activations are computed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ComputeDType {
    /// The device's best: f32 on the CPU.
    Auto,
    /// 32-bit floats.
    F32,
    /// bfloat16 with 32-bit accumulation; not on the CPU.
    Bf16,
}

/// What the forward pass keeps for the backward pass. All three give the same bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, clap::ValueEnum)]
pub enum Recompute {
    /// Everything that backward needs is kept
    #[default]
    None,
    /// Norms and activation functions run again, and no product does: about two thirds of the activations' memory
    Cheap,
    /// Each layer runs again, and its input alone is kept: least memory, for one more forward pass
    Full,
}

/// Where a run reads, where it writes, and how it talks.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Input and output")]
pub struct RunArgs {
    /// Directory with config.json, model.safetensors (or shards with an index) and tokenizer.json
    #[arg(long, value_name = "DIR")]
    pub model_name_or_path: Option<PathBuf>,
    /// Training data, JSONL or Parquet, in TRL's columns
    #[arg(long, value_name = "FILE")]
    pub dataset: Option<PathBuf>,
    /// Where everything is written; must not exist, or be empty, unless a run is resumed there
    #[arg(long, value_name = "DIR")]
    pub output_dir: Option<PathBuf>,
    /// Where to compute: auto, cpu, cuda, cuda:N (the N-th GPU, from 0), emulated (the GPU's kernels, on the CPU)
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    pub device: String,
    /// Floats to compute in; auto is f32 on the CPU and bf16 on a GPU
    #[arg(long, default_value = "auto", value_enum)]
    pub dtype: ComputeDType,
    /// Random numbers of this run [HF: 42]
    #[arg(long, default_value_t = 42, value_parser = seed)]
    pub seed: u64,
    /// Optimizer steps (PPO: batches) between two rows of metrics.jsonl [TRL: 10; PPO 1]
    #[arg(long, value_parser = at_least_one())]
    pub logging_steps: Option<usize>,
    /// When the state is saved, and what the run goes on from.
    #[command(flatten)]
    pub save: SaveArgs,
    /// Make any loss of data (a dropped row, a cut token) an error that names the row
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(default_value_t = false, action = clap::ArgAction::Set, help_heading = "Input and output")]
    pub strict: bool,
    /// Print what would be done, and stop
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(default_value_t = false, action = clap::ArgAction::Set, help_heading = "Input and output")]
    pub dry_run: bool,
    /// Print errors only
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(default_value_t = false, action = clap::ArgAction::Set, help_heading = "Input and output")]
    pub quiet: bool,
    /// Print events for a program to read: one JSON object a line, on standard output
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(default_value_t = false, action = clap::ArgAction::Set)]
    pub json: bool,
}

/// When the state of a run is saved, and what it goes on from.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Checkpoints")]
pub struct SaveArgs {
    /// Optimizer steps (PPO: batches) between two checkpoints; 0 saves none but when the run is interrupted; auto is
    /// every five minutes, and rarer where saving would take more than about 1 % of the time [TRL: 500]
    #[arg(long, default_value = "auto", value_name = "STEPS", value_parser = save_steps)]
    pub save_steps: SaveSteps,
    /// Checkpoints that are kept, the newest ones; 0 keeps all [TRL: all]
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = count)]
    pub save_total_limit: usize,
    /// Go on from a checkpoint: PATH, or without it the newest whole one in the output directory; from the start if
    /// there is none
    #[arg(long, value_name = "PATH", num_args = 0..=1, default_missing_value = LATEST)]
    pub resume: Option<PathBuf>,
    /// Resume although settings, data, models or the program have changed so that the result will be another
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(default_value_t = false, action = clap::ArgAction::Set)]
    pub accept_changes: bool,
}

/// What `--resume` means without a path.
pub(crate) const LATEST: &str = "latest";

/// When a checkpoint is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaveSteps {
    /// By the clock.
    Auto,
    /// After every so many steps; 0 is never.
    Every(usize),
}

fn save_steps(text: &str) -> std::result::Result<SaveSteps, String> {
    match text {
        "auto" => Ok(SaveSteps::Auto),
        _ => text.parse().map(SaveSteps::Every).map_err(|_| "a number of steps or `auto` is needed".to_owned()),
    }
}

impl RunArgs {
    /// Whether the row of step number `step` (from 1) of `total` is written, every `usual` steps where nothing is said.
    pub(crate) fn logs(&self, step: usize, total: usize, usual: usize) -> bool {
        step.is_multiple_of(self.logging_steps.unwrap_or(usual)) || step == total
    }
}

/// Answers to fixed prompts during the run.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Samples")]
pub struct SampleArgs {
    /// Times in a run that a few fixed prompts are answered into samples.jsonl, the first before any step; 0: never
    /// [TRL: 10]
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub num_sample_generations: usize,
    /// How many prompts that are; they come from the data set (held-out rows where there are some)
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = at_least_one())]
    pub num_sample_prompts: usize,
}

/// Held-out data; PPO has none, because its prompts have no answers to compare with.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Evaluation")]
pub struct EvalArgs {
    /// Held-out data of the same kind
    #[arg(long, value_name = "FILE")]
    pub eval_dataset: Option<PathBuf>,
    /// Optimizer steps between two evaluations; without it only at the end
    #[arg(long, value_parser = at_least_one())]
    pub eval_steps: Option<usize>,
}

impl EvalArgs {
    /// Whether step number `step` (from 1) of `total` is followed by an evaluation.
    pub(crate) fn due(&self, step: usize, total: usize) -> bool {
        self.eval_steps.is_some_and(|n| step.is_multiple_of(n)) || step == total
    }
}

/// The optimizer and its batches; the learning rate and the epochs stand with each stage.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Optimization")]
pub struct OptimizerArgs {
    /// Rows (pairs, episodes) in one forward and backward pass [TRL: 8; on a GPU an optimizer step of 8 rows is cut
    /// into passes that fit]
    #[arg(long, value_parser = at_least_one())]
    pub per_device_train_batch_size: Option<usize>,
    /// Passes whose gradients are summed into one optimizer step [TRL: 1]
    #[arg(long, default_value_t = 1, value_parser = at_least_one())]
    pub gradient_accumulation_steps: usize,
    /// Steps over which the learning rate rises from 0 [HF: 0]
    #[arg(long, default_value_t = 0, value_parser = count)]
    pub warmup_steps: usize,
    /// What the learning rate does after the warm-up [HF: linear]
    #[arg(long, default_value = "linear", value_enum)]
    pub lr_scheduler_type: SchedulerType,
    /// The learning rate at the end, as a share of its peak [HF: 0]
    #[arg(long, default_value_t = 0.0, value_parser = share)]
    pub min_lr_ratio: f64,
    /// AdamW's decay of the first moment [HF: 0.9]
    #[arg(long, default_value_t = 0.9, value_parser = decay)]
    pub adam_beta1: f64,
    /// AdamW's decay of the second moment [HF: 0.999]
    #[arg(long, default_value_t = 0.999, value_parser = decay)]
    pub adam_beta2: f64,
    /// AdamW's epsilon [HF: 1e-8; PPO 1e-5, N+]
    #[arg(long, value_parser = positive)]
    pub adam_epsilon: Option<f64>,
    /// Decoupled weight decay of matrices; biases and norms are spared [HF: 0]
    #[arg(long, default_value_t = 0.0, value_parser = not_negative)]
    pub weight_decay: f64,
    /// The gradient's global norm is scaled down to this; 0 turns clipping off [HF: 1.0]
    #[arg(long, default_value_t = 1.0, value_parser = not_negative)]
    pub max_grad_norm: f64,
    /// What is computed again in the backward pass, to save memory; the results are the same to the bit
    #[arg(long, default_value = "none", value_enum)]
    pub recompute: Recompute,
    /// Rows in one pass where the memory plan has chosen them; they cut an optimizer step and do not change it.
    #[arg(skip)]
    pub micro_batch: Option<usize>,
}

/// TRL's rows in one pass.
pub(crate) const ROWS_PER_PASS: usize = 8;

impl OptimizerArgs {
    /// Rows of one optimizer step.
    pub(crate) fn rows_per_step(&self) -> usize {
        let rows = self.per_device_train_batch_size.unwrap_or(ROWS_PER_PASS);
        rows.saturating_mul(self.gradient_accumulation_steps)
    }

    /// Rows of one forward and backward pass.
    pub(crate) fn rows_per_pass(&self) -> usize {
        self.micro_batch.or(self.per_device_train_batch_size).unwrap_or(ROWS_PER_PASS)
    }
}

/// How long to train over a fixed set of rows.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Length of training")]
pub struct EpochArgs {
    /// Passes over the data [TRL: 3; reward 1]
    #[arg(long, value_parser = positive)]
    pub num_train_epochs: Option<f64>,
    /// Optimizer steps, whatever the epochs
    #[arg(long, value_parser = at_least_one())]
    pub max_steps: Option<usize>,
    /// Tokens of a row at most; longer ones are cut (sft) or dropped (reward), and counted [TRL: 1024, or the model's
    /// positions where they are fewer]
    #[arg(long, value_parser = at_least_one())]
    pub max_length: Option<usize>,
}

impl EpochArgs {
    /// Tokens of a row at most, for a model of `positions` positions.
    ///
    /// # Errors
    /// `context-exceeded` where more are asked for than the model has.
    pub(crate) fn max_length(&self, positions: usize) -> Result<usize> {
        match self.max_length {
            None => Ok(positions.min(1024)),
            Some(length) if length <= positions => Ok(length),
            Some(length) => {
                let what = format!("--max-length {length} is more than the model's {positions} positions");
                Err(Error::usage("context-exceeded", what).fix(format!("use --max-length {positions} or less")))
            }
        }
    }

    /// Optimizer steps over `rows` rows at `rows_per_step`, a last smaller batch of each epoch included.
    pub(crate) fn total_steps(&self, rows: usize, rows_per_step: usize, epochs: f64) -> usize {
        let per_epoch = rows.div_ceil(rows_per_step);
        let epochs = self.num_train_epochs.unwrap_or(epochs);
        self.max_steps.unwrap_or_else(|| (per_epoch as f64 * epochs).ceil() as usize)
    }
}

/// Supervised fine-tuning.
#[derive(Debug, Clone, clap::Args)]
pub struct SftConfig {
    /// Model, data, output, device and seed.
    #[command(flatten)]
    pub run: RunArgs,
    /// Held-out data, and when it is looked at.
    #[command(flatten)]
    pub eval: EvalArgs,
    /// Batch, schedule and AdamW.
    #[command(flatten)]
    pub optimizer: OptimizerArgs,
    /// How long to train, and the longest row.
    #[command(flatten)]
    pub epochs: EpochArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub samples: SampleArgs,
    /// Peak learning rate [TRL: 2e-5]
    #[arg(long, default_value_t = 2e-5, value_parser = positive, help_heading = "Optimization")]
    pub learning_rate: f64,
    /// Loss on the completion only; the default for prompt-completion data (TRL)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(help_heading = "Data and loss")]
    pub completion_only_loss: Option<bool>,
    /// Loss on the assistant's turns only, for conversations [TRL: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(default_value_t = false, action = clap::ArgAction::Set, help_heading = "Data and loss")]
    pub assistant_only_loss: bool,
    /// Put several examples into one row of max_length, attention kept inside each [TRL: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(default_value_t = false, action = clap::ArgAction::Set, help_heading = "Data and loss")]
    pub packing: bool,
}

/// Reward-model training.
#[derive(Debug, Clone, clap::Args)]
pub struct RewardConfig {
    /// Model, data, output, device and seed.
    #[command(flatten)]
    pub run: RunArgs,
    /// Held-out data, and when it is looked at.
    #[command(flatten)]
    pub eval: EvalArgs,
    /// Batch, schedule and AdamW.
    #[command(flatten)]
    pub optimizer: OptimizerArgs,
    /// How long to train, and the longest row.
    #[command(flatten)]
    pub epochs: EpochArgs,
    /// Peak learning rate [TRL: 1e-4]
    #[arg(long, default_value_t = 1e-4, value_parser = positive, help_heading = "Optimization")]
    pub learning_rate: f64,
    /// Weight of (chosen + rejected)^2, which keeps scores near 0; 0.01 is usual [TRL: off]
    #[arg(long, default_value_t = 0.0, value_parser = not_negative, help_heading = "Data and loss")]
    pub center_rewards_coefficient: f64,
}

/// Proximal policy optimization.
#[derive(Debug, Clone, clap::Args)]
pub struct PpoConfig {
    /// Model, data, output, device and seed.
    #[command(flatten)]
    pub run: RunArgs,
    /// Batch, schedule and AdamW.
    #[command(flatten)]
    pub optimizer: OptimizerArgs,
    /// What PPO starts from.
    #[command(flatten)]
    pub models: PpoModelArgs,
    /// How answers are sampled, scored and credited.
    #[command(flatten)]
    pub rollout: RolloutArgs,
    /// The update: epochs, minibatches, clipping.
    #[command(flatten)]
    pub loss: PpoLossArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub samples: SampleArgs,
}

/// The models that PPO starts from.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Models")]
pub struct PpoModelArgs {
    /// The policy to start from, and the reference it is held to; --model-name-or-path means the same
    #[arg(long, value_name = "DIR")]
    pub sft_model_path: Option<PathBuf>,
    /// The reward model; the value model starts from it
    #[arg(long, value_name = "DIR")]
    pub reward_model_path: Option<PathBuf>,
    /// A second reward model, which scores the answers too and teaches nothing: its scores fall where the policy
    /// exploits the first
    #[arg(long, value_name = "DIR")]
    pub judge_model_path: Option<PathBuf>,
}

/// What is sampled and how it is scored.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Rollout and rewards")]
pub struct RolloutArgs {
    /// Episodes in all; without it one pass over the prompts (TRL)
    #[arg(long, value_parser = at_least_one())]
    pub total_episodes: Option<usize>,
    /// Tokens of a response at most [TRL: 53]
    #[arg(long, default_value_t = 53, value_parser = at_least_one())]
    pub response_length: usize,
    /// Divides the logits in rollout, reference and update alike; above 0 [TRL: 0.7]
    #[arg(long, default_value_t = 0.7, value_parser = temperature)]
    pub temperature: f64,
    /// Sample among the k most likely tokens; 0 means all [TRL: 0]
    #[arg(long, default_value_t = 0, value_parser = count)]
    pub top_k: usize,
    /// Sample among the most likely tokens that hold this much probability [TRL: 1]
    #[arg(long, default_value_t = 1.0, value_parser = share)]
    pub top_p: f64,
    /// Subtracted from the score of a response without EOS [TRL: none]
    #[arg(long, value_parser = not_negative)]
    pub missing_eos_penalty: Option<f64>,
    /// Scores are cut to plus and minus this [TRL: none]
    #[arg(long, value_parser = positive)]
    pub score_clip: Option<f64>,
    /// Shift and scale scores by the mean and deviation that the reward model had on reference completions [N+: shift]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(default_value_t = false, action = clap::ArgAction::Set)]
    pub normalize_reward: bool,
    /// Price of each nat of KL to the reference [TRL: 0.05]
    #[arg(long, default_value_t = 0.05, value_parser = not_negative)]
    pub kl_coef: f64,
    /// Estimator of a token's KL [TRL: k1]
    #[arg(long, default_value = "k1", value_enum)]
    pub kl_estimator: KlEstimator,
    /// Let kl_coef follow this KL per episode, in nats (off)
    #[arg(long, value_parser = positive)]
    pub kl_target: Option<f64>,
    /// Episodes over which kl_coef follows kl_target [Ziegler et al., 2019: 10000]
    #[arg(long, default_value_t = 10_000.0, value_parser = positive)]
    pub kl_horizon: f64,
    /// Discount of later rewards [TRL: 1]
    #[arg(long, default_value_t = 1.0, value_parser = share)]
    pub gamma: f64,
    /// Lambda of generalised advantage estimation [TRL: 0.95]
    #[arg(long, default_value_t = 0.95, value_parser = share)]
    pub lam: f64,
    /// Scale rewards to unit variance, their mean kept [TRL: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(default_value_t = false, action = clap::ArgAction::Set)]
    pub whiten_rewards: bool,
    /// Multiply without a GPU's library in forward passes, so that the rollout's log-probabilities are the trainer's to
    /// the bit, as they are on the CPU and without cuBLASLt anyhow (off: they differ by rounding)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(default_value_t = false, action = clap::ArgAction::Set)]
    pub exact_logprobs: bool,
}

/// The update of policy and value model.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "PPO loss")]
pub struct PpoLossArgs {
    /// Peak learning rate of the policy [TRL: 3e-6]
    #[arg(long, default_value_t = 3e-6, value_parser = positive)]
    pub learning_rate: f64,
    /// Peak learning rate of the value model; without it the policy's [TRL: one optimizer]
    #[arg(long, value_parser = positive)]
    pub value_learning_rate: Option<f64>,
    /// Passes over each batch of episodes [TRL: 4]
    #[arg(long, default_value_t = 4, value_parser = at_least_one())]
    pub num_ppo_epochs: usize,
    /// Optimizer steps a pass; the batch is per_device_train_batch_size x gradient_accumulation_steps x this [TRL: 1]
    #[arg(long, default_value_t = 1, value_parser = at_least_one())]
    pub num_mini_batches: usize,
    /// The ratio is clipped to 1 plus and minus this [TRL: 0.2]
    #[arg(long, default_value_t = 0.2, value_parser = share)]
    pub cliprange: f64,
    /// Upper clip range, where it differs from cliprange [off; DAPO: 0.28]
    #[arg(long, value_parser = not_negative)]
    pub cliprange_high: Option<f64>,
    /// Where an advantage is negative, the loss is at most this times its size; above 1 [off; verl: 3]
    #[arg(long, value_parser = above_one)]
    pub dual_clip: Option<f64>,
    /// Values move at most this far from the rollout's [TRL: 0.2]
    #[arg(long, default_value_t = 0.2, value_parser = positive)]
    pub cliprange_value: f64,
    /// Weight of the value loss [TRL: 0.1]
    #[arg(long, default_value_t = 0.1, value_parser = not_negative)]
    pub vf_coef: f64,
    /// Weight of the entropy bonus (off)
    #[arg(long, default_value_t = 0.0, value_parser = not_negative)]
    pub entropy_coef: f64,
    /// Stop a batch's epochs when the approximate KL passes this (off)
    #[arg(long, value_parser = positive)]
    pub target_kl: Option<f64>,
    /// PPO batches at the start in which only the value model learns (0)
    #[arg(long, default_value_t = 0, value_parser = count)]
    pub value_warmup_batches: usize,
}

impl PpoConfig {
    /// Episodes of one rollout.
    pub(crate) fn batch_size(&self) -> usize {
        self.optimizer.rows_per_step().saturating_mul(self.loss.num_mini_batches)
    }
}

// What a parser refuses, it says as "WHAT is needed": help, `rlhf init` and errors all take their words from there.

/// Of things that are counted; far above any run, and a product of a few of them is still a number.
const COUNT_MAX: u64 = 1 << 40;

fn whole(text: &str, least: u64, most: u64) -> std::result::Result<u64, String> {
    match text.parse::<u64>() {
        Ok(n) if n > most => Err(format!("a whole number of at most {most} is needed")),
        Ok(n) if n >= least => Ok(n),
        _ => Err(format!("a whole number of at least {least} is needed")),
    }
}

pub(crate) fn at_least_one() -> fn(&str) -> std::result::Result<usize, String> {
    |text| whole(text, 1, COUNT_MAX).map(|n| n as usize)
}

pub(crate) fn count(text: &str) -> std::result::Result<usize, String> {
    whole(text, 0, COUNT_MAX).map(|n| n as usize)
}

pub(crate) fn seed(text: &str) -> std::result::Result<u64, String> {
    whole(text, 0, u64::MAX)
}

fn number(text: &str, holds: impl Fn(f64) -> bool, wanted: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if !x.is_finite() || !holds(x) => Err(format!("a number {wanted} is needed")),
        // It meets f32 numbers: what those take for 0 or for infinity would become a NaN there.
        Ok(x) if !(x as f32).is_finite() || (x as f32 == 0.0) != (x == 0.0) => {
            Err("a number that a 32-bit float can hold is needed".to_owned())
        }
        Ok(x) => Ok(x),
        Err(_) => Err(format!("a number {wanted} is needed")),
    }
}

/// Far below this, logits divided by the temperature leave the range of f32; what is sampled is greedy long before.
const TEMPERATURE_MIN: f64 = 1e-4;

pub(crate) fn temperature(text: &str) -> std::result::Result<f64, String> {
    number(text, |x| x >= TEMPERATURE_MIN, "above 0 (of at least 0.0001)")
}

/// A temperature, or 0 for greedy decoding.
pub(crate) fn temperature_or_greedy(text: &str) -> std::result::Result<f64, String> {
    number(text, |x| x == 0.0 || x >= TEMPERATURE_MIN, "of 0, or of at least 0.0001")
}

pub(crate) fn positive(text: &str) -> std::result::Result<f64, String> {
    number(text, |x| x > 0.0, "above 0")
}

fn above_one(text: &str) -> std::result::Result<f64, String> {
    number(text, |x| x > 1.0, "above 1")
}

pub(crate) fn not_negative(text: &str) -> std::result::Result<f64, String> {
    number(text, |x| x >= 0.0, "of at least 0")
}

pub(crate) fn share(text: &str) -> std::result::Result<f64, String> {
    number(text, |x| (0.0..=1.0).contains(&x), "from 0 to 1")
}

fn decay(text: &str) -> std::result::Result<f64, String> {
    number(text, |x| (0.0..1.0).contains(&x), "from 0 to below 1")
}

/// The defaults of a stage: what an empty command line means.
///
/// # Errors
/// None for the stages of this crate, whose options all have defaults; a test holds that.
pub fn defaults<T: clap::Args>() -> Result<T> {
    #[derive(clap::Parser)]
    struct Only<T: clap::Args> {
        #[command(flatten)]
        args: T,
    }
    use clap::Parser;
    let parsed = Only::<T>::try_parse_from(["rlhf"]);
    parsed.map(|only| only.args).map_err(|e| Error::usage("defaults", e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_has_defaults() {
        assert_eq!(defaults::<SftConfig>().unwrap().learning_rate, 2e-5);
        assert_eq!(defaults::<RewardConfig>().unwrap().learning_rate, 1e-4);
        let ppo = defaults::<PpoConfig>().unwrap();
        assert_eq!((ppo.loss.learning_rate, ppo.rollout.kl_coef, ppo.batch_size()), (3e-6, 0.05, 8));
    }

    #[test]
    fn a_micro_batch_cuts_a_step_and_does_not_change_it() {
        let of = |given, micro_batch| {
            let defaults = defaults::<SftConfig>().unwrap().optimizer;
            let accumulated = OptimizerArgs { gradient_accumulation_steps: 2, ..defaults };
            let args = OptimizerArgs { per_device_train_batch_size: given, micro_batch, ..accumulated };
            [args.rows_per_step(), args.rows_per_pass()]
        };
        assert_eq!([of(None, None), of(Some(6), None)], [[16, 8], [12, 6]]);
        assert_eq!([of(None, Some(3)), of(Some(6), Some(3))], [[16, 3], [12, 3]]);
    }

    #[test]
    fn steps_follow_epochs_and_batches() {
        let epochs = EpochArgs { num_train_epochs: None, max_steps: None, max_length: None };
        assert_eq!(epochs.total_steps(10, 4, 2.0), 6);
        assert_eq!((epochs.max_length(512).unwrap(), epochs.max_length(9999).unwrap()), (512, 1024));
        let long = EpochArgs { max_length: Some(513), ..epochs.clone() };
        assert_eq!((long.max_length(513).unwrap(), long.max_length(512).unwrap_err().id()), (513, "context-exceeded"));
        assert_eq!(EpochArgs { max_steps: Some(5), ..epochs }.total_steps(10, 4, 2.0), 5);
    }
}
