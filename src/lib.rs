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
//! [`Model`] reads and writes Hugging Face directories; [`train::sft::train`], [`train::reward::train`] and
//! [`train::ppo::train`] are the three loops; [`Reward`] is what PPO asks for scores: a reward model, or any function.
//!
//! ```no_run
//! use rlhf::data::encode::PromptExample;
//! use rlhf::train::ppo::{self, Start};
//! use rlhf::train::reward::Episode;
//! use rlhf::{Device, Model, config};
//!
//! # fn main() -> rlhf::Result<()> {
//! let policy = Model::load(&Device::Cpu, "my-model".as_ref())?;
//! let value_model = policy.value_model(42)?;
//! let prompts = vec![PromptExample { ids: vec![1, 2, 3], text: String::new(), place: "here".into() }; 8];
//! // The user's own reward: short answers are good.
//! let mut short = |episodes: &[Episode<'_>]| Ok(episodes.iter().map(|e| -(e.response.len() as f32)).collect());
//! let start = Start { policy, value_model, reward: &mut short, stop: &[0], normalize: None };
//! let config = config::defaults::<config::PpoConfig>()?;
//! let finish = ppo::train(start, &prompts, &config, &mut rlhf::Journal::silent(), &mut ())?;
//! finish.policy.save("aligned".as_ref(), "a model card")?;
//! # Ok(())
//! # }
//! ```

mod autograd;
#[doc(hidden)]
pub mod bench;
pub mod cli;
pub mod config;
mod cpu;
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
mod selftest;
mod tensor;
pub mod train;

pub use device::Device;
pub use error::{Code, Error, Result};
pub use model::Model;
pub use train::metrics::Journal;
pub use train::reward::Reward;
