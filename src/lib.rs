//! Aligns language models with human preferences: supervised fine-tuning (SFT), reward-model training, then PPO.
//!
//! # Bird's-eye view
//!
//! ```text
//! cli -> train -> { data, model, objective, optim } -> ops -> { autograd -> tensor -> device -> ptx, cpu }
//! ```
//!
//! Data enters at the top of a trainer and leaves at its bottom. [`data`] turns files into rows of tokens; [`model`]
//! turns tokens into log-probabilities, values and scores; `objective` is the mathematics of RLHF, without state and
//! without models; `optim` moves the parameters; [`train`] holds the loops, one file each. Below them `ops` has one
//! file an operation, whose arithmetic is specified in `cpu` in plain loops and done on a GPU by `kernels/*.cu`,
//! through one of two drivers in `device`: CUDA, or the emulator of [`ptx`].
//!
//! # One PPO step
//!
//! queries -> responses -> logprobs, ref_logprobs, values -> scores -> rewards -> advantages, returns -> loss ->
//! gradients -> parameters. [`train::ppo`] is that list; a reader's way to the arithmetic of attention is `cli/ppo.rs`,
//! `train/ppo.rs`, `model/transformer.rs`, `ops/attention.rs`, and there `kernels/attention.cu` or `cpu/attention.rs`.
//!
//! # As a library
//!
//! [`Pretrained`] is a Hugging Face directory, read: a [`Model`] with its tokenizer and chat template, which turn files
//! into examples. [`train::sft::train`], [`train::reward::train`] and [`train::ppo::train`] are the three loops; their
//! settings are those of the command line ([`config`]). [`Reward`] is what PPO asks for scores: a reward model, or any
//! function. Errors are values of one type, [`Error`], with a stable id; nothing panics on bad input.
//!
//! The three stages:
//!
//! ```no_run
//! use rlhf::config::{PpoConfig, RewardConfig, SftConfig, defaults};
//! use rlhf::data::encode::{LossOn, PairOptions, SftOptions};
//! use rlhf::train::{ppo, reward, sft};
//! use rlhf::{Device, Journal, Pretrained};
//!
//! # fn main() -> rlhf::Result<()> {
//! // Data enters: text becomes tokens, with the model's own tokenizer and template.
//! let base = Pretrained::load(&Device::parse("auto")?, "base")?;
//! let options = SftOptions { max_length: 512, loss_on: LossOn::Completion, append_eos: true, strict: true };
//! let demonstrations = base.demonstrations("demonstrations.jsonl", &options)?.examples;
//! let options = PairOptions { max_length: 512, strict: true };
//! let preferences = base.preferences("preferences.jsonl", &options)?.examples;
//! let mut ppo_config = defaults::<PpoConfig>()?;
//! ppo_config.rollout.response_length = 64; // tokens
//! let prompts = base.prompts("prompts.jsonl", ppo_config.rollout.response_length)?.examples;
//! let stop = base.stop_tokens()?;
//! let mut journal = Journal::new("out".as_ref(), false)?; // metrics.jsonl in a directory that is there
//!
//! // 1. Supervised fine-tuning: what answers look like. Each row of a batch holds one example.
//! let rows: Vec<Vec<usize>> = (0..demonstrations.len()).map(|i| vec![i]).collect();
//! let sft_config = defaults::<SftConfig>()?;
//! let policy = sft::train(base.model, &demonstrations, &rows, &[], &sft_config, &mut journal, &mut ())?;
//!
//! // 2. The reward model: which of two answers people prefer. It starts as the policy's body under a scalar head.
//! let reward_config = defaults::<RewardConfig>()?;
//! let start = policy.value_model(reward_config.run.seed)?;
//! let mut reward_model = reward::train(start, &preferences, &[], &reward_config, &mut journal, &mut ())?;
//!
//! // 3. PPO: answers that score well, near to where the policy began.
//! let value_model = reward_model.duplicate()?;
//! let start = ppo::Start::new(policy, value_model, &mut reward_model, &stop);
//! let finish = ppo::train(start, &prompts, &ppo_config, &mut journal, &mut ())?;
//! finish.policy.save("out".as_ref(), "An aligned model.")?; // transformers loads it
//! # Ok(())
//! # }
//! ```
//!
//! # A reward of your own
//!
//! The whole of `tests/examples/custom_reward.rs`; what a reward sees is in [`Reward`] and [`train::reward::Episode`].
//!
#![doc = concat!("````no_run\n", include_str!("../tests/examples/custom_reward.rs"), "````")]
//!
//! # A kernel of your own
//!
//! [`custom`] is the door for an operation with a CPU form, PTX and a backward rule, and has a whole example too.

mod autograd;
#[doc(hidden)]
pub mod bench;
pub mod cli;
pub mod config;
mod cpu;
/// A kernel and an operation of your own, in one file: PTX that is launched on the emulator and on a GPU, a reference
/// for the CPU, and a backward rule on the tape.
///
/// A [`Source`](custom::Source) is a PTX text, a [`Launch`](custom::Launch) runs one of its kernels on
/// [`Tensor`](custom::Tensor)s of f32, and [`record`](custom::record) makes of that an operation that gradients flow
/// through. Write the plain loops first, then the PTX, and hold one against the other on `emulated`, which tells every
/// access outside a tensor, every element that is read and was not written, and every output that is not written in
/// full. A card checks none of this: it runs only what [`Source::for_cuda`](custom::Source::for_cuda), which is unsafe,
/// says you answer for.
///
/// Such an operation cannot be plugged into the architectures that [`Model`] knows, and the trainers do not call it: it
/// is for computations on tensors of your own, such as a loss, a head or a score that a [`Reward`] computes.
///
/// The whole of `tests/examples/custom_kernel.rs`:
#[doc = concat!("````no_run\n", include_str!("../tests/examples/custom_kernel.rs"), "````")]
pub mod custom;
pub mod data;
mod device;
mod disk;
mod dtype;
mod error;
mod files;
#[doc(hidden)]
pub mod fuzz;
pub mod model;
mod objective;
mod ops;
mod optim;
pub mod ptx;
mod random;
mod report;
mod selftest;
mod tensor;
pub mod train;
#[doc = include_str!("tutorial.md")]
pub mod tutorial {}

pub use device::{Device, Gpu};
pub use error::{Code, Error, Result};
pub use model::Model;
pub use train::metrics::Journal;
pub use train::pretrained::Pretrained;
pub use train::reward::Reward;
