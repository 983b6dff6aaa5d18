//! The command line: one file a subcommand, each of which parses, checks, and calls one function. Options may stand in
//! a TOML file given by `--config`, under the same names; the command line wins.

#![forbid(unsafe_code)]

mod demo;
mod doctor;
#[cfg(test)]
mod faults;
mod fresh;
mod generate;
mod kernels;
pub(crate) mod pipeline;
mod ppo;
mod resume;
mod reward;
mod score;
mod selftest;
mod session;
pub(crate) mod settings;
mod sft;
mod verify;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::{PpoConfig, RewardConfig, SftConfig};
use crate::error::{Code, Result};
use crate::train::interrupt;
use crate::train::metrics::tell;
use settings::Settings;

/// Align language models with human preferences: supervised fine-tuning, reward model, PPO.
#[derive(Debug, Parser)]
#[command(name = "rlhf", version, args_override_self = true)]
#[command(
    after_help = "Without a command, `rlhf` runs `rlhf demo`.\n\nExit codes: 0 ok, 1 failure, 2 usage, 3 bad input, \
    4 resources, 5 device, 6 not finite, 7 locked, 130 and 143 stopped by a signal."
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a small decoder from scratch through all three stages on an embedded task
    Demo(demo::DemoArgs),
    /// Supervised fine-tuning on demonstrations
    #[command(after_help = examples::SFT, args_override_self = true)]
    Sft(Box<FromFile<SftConfig>>),
    /// Train a reward model on preferences
    #[command(after_help = examples::REWARD, args_override_self = true)]
    Reward(Box<FromFile<RewardConfig>>),
    /// Reinforcement learning against a reward model
    #[command(after_help = examples::PPO, args_override_self = true)]
    Ppo(Box<FromFile<PpoConfig>>),
    /// All three stages from one configuration file
    #[command(after_help = examples::RUN)]
    Run(pipeline::PipelineArgs),
    /// Answer prompts
    #[command(after_help = examples::GENERATE)]
    Generate(generate::GenerateArgs),
    /// Log-probabilities of completions, or scores of a reward model
    #[command(after_help = examples::SCORE)]
    Score(score::ScoreArgs),
    /// Hold a checkpoint or a finished run against its manifest
    #[command(after_help = examples::VERIFY)]
    Verify(verify::VerifyArgs),
    /// What this machine can compute on, as a report to paste
    #[command(after_help = examples::DOCTOR)]
    Doctor(doctor::DoctorArgs),
    /// Test every kernel on a GPU, or on the emulator, against the CPU reference
    #[command(after_help = examples::SELFTEST)]
    Selftest(selftest::SelftestArgs),
    /// List the kernels: their limits, and where each last ran on hardware
    Kernels(kernels::KernelsArgs),
    /// Write a model directory with random weights
    #[command(hide = true)]
    Fresh(fresh::FreshArgs),
}

/// A stage's options, and the file that some of them may stand in.
#[derive(Debug, clap::Args)]
struct FromFile<T: clap::Args> {
    /// TOML file with any of these options (learning_rate = 1e-5); the command line wins
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    stage: T,
}

/// Commands to copy: of at most 100 columns, where help is wrapped.
mod examples {
    pub(super) const SFT: &str = "Examples:\n  \
        rlhf sft --model-name-or-path ./gpt2 --dataset demos.jsonl --output-dir out/sft\n  \
        rlhf sft --config sft.toml --learning-rate 1e-5 --dry-run\n  \
        rlhf sft --model-name-or-path ./qwen --dataset chats.parquet --packing --output-dir out/sft";
    pub(super) const REWARD: &str = "Examples:\n  \
        rlhf reward --model-name-or-path out/sft --dataset preferences.jsonl --output-dir out/reward\n  \
        rlhf reward --config reward.toml --eval-dataset held_out.jsonl --eval-steps 50\n  \
        rlhf reward --config reward.toml --dataset pairs.parquet --center-rewards-coefficient 0.01";
    pub(super) const PPO: &str = "Examples:\n  \
        rlhf ppo --sft-model-path sft --reward-model-path reward --dataset prompts.jsonl --output-dir ppo\n  \
        rlhf ppo --config ppo.toml --kl-coef 0.1 --total-episodes 10000\n  \
        rlhf ppo --config ppo.toml --missing-eos-penalty 1.0 --num-mini-batches 4 --dry-run";
    pub(super) const RUN: &str = "The file has keys that all stages share at the top, and the tables [sft], [reward] \
        and [ppo] with each stage's own.\n\nExamples:\n  rlhf run --config run.toml\n  \
        rlhf run --config run.toml --dry-run\n  \
        rlhf run --config run.toml --output-dir out/second --seed 7";
    pub(super) const GENERATE: &str = "Examples:\n  \
        rlhf generate --model-name-or-path out/ppo --prompts prompts.jsonl --output answers.jsonl\n  \
        rlhf generate --model-name-or-path out/ppo --prompts p.jsonl --temperature 0 --output a.jsonl\n  \
        rlhf generate --model-name-or-path ./gpt2 --prompts p.jsonl --top-p 0.9 --output a.jsonl";
    pub(super) const SCORE: &str = "Examples:\n  \
        rlhf score --model-name-or-path out/sft --dataset completions.jsonl --output logprobs.jsonl\n  \
        rlhf score --model-name-or-path out/reward --dataset answers.jsonl --output scores.jsonl\n  \
        rlhf score --model-name-or-path ./gpt2 --dataset texts.jsonl --temperature 0.7 --output l.jsonl";
    pub(super) const VERIFY: &str = "The exit code is 0 if every byte is as it was written, and 3 if not.\n\n\
        Examples:\n  \
        rlhf verify out/sft/checkpoints/step-500\n  \
        rlhf verify out/ppo";
    pub(super) const DOCTOR: &str = "Examples:\n  rlhf doctor\n  rlhf doctor --json > machine.json";
    pub(super) const SELFTEST: &str = "The exit code is 0 if every case passes and 1 if not.\n\nExamples:\n  \
        rlhf selftest\n  \
        rlhf selftest --device cuda:1 --filter 'attention bf16'\n  \
        rlhf selftest --device emulated --json > selftest.json";
}

/// Runs the command line `args` (the program's name first); returns the exit code.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    interrupt::prepare();
    let args: Vec<OsString> = args.into_iter().collect();
    // The host thread is one of the pool's own: a step enters a few hundred parallel loops, and entering one from
    // outside the pool puts the caller to sleep and wakes it again each time.
    match rayon::scope(|_| dispatch(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let is_stop = matches!(error.code(), Code::Interrupted | Code::Terminated);
            tell(&if is_stop { error.to_string() } else { format!("error: {error}") });
            ExitCode::from(error.code() as u8)
        }
    }
}

fn dispatch(args: Vec<OsString>) -> Result<()> {
    let parsed = parse(&args)?;
    match parsed.command {
        None => demo::run(&demo::DemoArgs::usual()?),
        Some(Command::Demo(args)) => demo::run(&args),
        Some(Command::Generate(args)) => generate::run(&args),
        Some(Command::Score(args)) => score::run(&args),
        Some(Command::Verify(args)) => verify::run(&args),
        Some(Command::Doctor(args)) => doctor::run(&args),
        Some(Command::Selftest(args)) => selftest::run(&args),
        Some(Command::Kernels(args)) => kernels::run(&args),
        Some(Command::Fresh(args)) => fresh::run(&args),
        Some(Command::Run(options)) => pipeline::run(&options),
        Some(Command::Sft(file)) => {
            let (config, settings) = with_file::<SftConfig>("sft", file.config, &args)?;
            sft::run(&config, &settings).map(|_| ())
        }
        Some(Command::Reward(file)) => {
            let (config, settings) = with_file::<RewardConfig>("reward", file.config, &args)?;
            reward::run(&config, &settings).map(|_| ())
        }
        Some(Command::Ppo(file)) => {
            let (config, settings) = with_file::<PpoConfig>("ppo", file.config, &args)?;
            ppo::run(&config, &settings).map(|_| ())
        }
    }
}

/// Parses; answers `--help`, `--version` and usage errors itself, as clap words them.
fn parse(args: &[OsString]) -> Result<Cli> {
    let matches = Cli::command().try_get_matches_from(args).unwrap_or_else(|error| error.exit());
    Ok(Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit()))
}

/// The stage's options, with those of the `--config` file behind those of the command line.
fn with_file<T: clap::Args>(stage: &'static str, file: Option<PathBuf>, args: &[OsString]) -> Result<(T, Settings)> {
    let given = args.iter().skip(2).cloned().collect();
    let table = file.as_deref().map(settings::read_file).transpose()?.unwrap_or_default();
    settings::resolve::<T>(stage, &[(file, table)], given)
}
