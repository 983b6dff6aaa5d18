//! The command line: one file a subcommand, each of which parses, checks, and calls one function. Options may stand in
//! a TOML file given by `--config`, under the same names; the command line wins.

#![forbid(unsafe_code)]

mod chat;
mod completions;
mod data;
mod demo;
mod doctor;
mod estimate;
mod eval;
#[cfg(test)]
mod faults;
mod fresh;
mod generate;
#[cfg(test)]
mod help;
mod host;
mod init;
mod kernels;
mod options;
pub(crate) mod pipeline;
mod ppo;
mod report;
mod resume;
mod reward;
mod score;
mod selftest;
mod session;
pub(crate) mod settings;
mod sft;
mod show;
pub(crate) mod usual;
mod verify;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::{PpoConfig, RewardConfig, SftConfig};
use crate::error::{Code, Result};
use crate::train::interrupt;
use crate::train::metrics::tell;
use settings::Settings;
use usual::Stage;

/// Align language models with human preferences: supervised fine-tuning, reward model, PPO.
#[derive(Debug, Parser)]
#[command(name = "rlhf", version, args_override_self = true, after_help = examples::RLHF)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a small decoder from scratch through all three stages on an embedded task
    #[command(after_help = examples::DEMO)]
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
    /// Write a configuration file with every setting, its default, its range and its meaning
    #[command(after_help = examples::INIT)]
    Init(init::InitArgs),
    /// Look at the settings that a run would have
    #[command(after_help = examples::CONFIG)]
    Config(show::ConfigArgs),
    /// What a run would take: memory, steps and tokens, without reading a weight or writing a file
    #[command(after_help = examples::ESTIMATE)]
    Estimate(estimate::EstimateArgs),
    /// Answer prompts
    #[command(after_help = examples::GENERATE)]
    Generate(generate::GenerateArgs),
    /// Log-probabilities of completions, or scores of a reward model
    #[command(after_help = examples::SCORE)]
    Score(score::ScoreArgs),
    /// Measure what came of a training: win rate, reward model, perplexity
    #[command(after_help = examples::EVAL)]
    Eval(eval::EvalCommand),
    /// Talk to a model in the terminal
    #[command(after_help = examples::CHAT, args_override_self = true)]
    Chat(chat::ChatArgs),
    /// Look at a data set before training on it
    #[command(subcommand, after_help = examples::DATA)]
    Data(data::DataCommand),
    /// Hold a checkpoint or a finished run against its manifest
    #[command(after_help = examples::VERIFY)]
    Verify(verify::VerifyArgs),
    /// One page of a run's curves, samples and alarms, or of several runs side by side
    #[command(after_help = examples::REPORT)]
    Report(report::ReportArgs),
    /// What this machine can compute on, as a report to paste
    #[command(after_help = examples::DOCTOR)]
    Doctor(doctor::DoctorArgs),
    /// Test every kernel on a GPU, or on the emulator, against the CPU reference
    #[command(after_help = examples::SELFTEST)]
    Selftest(selftest::SelftestArgs),
    /// List the kernels: their limits, and where each last ran on hardware
    #[command(after_help = examples::KERNELS)]
    Kernels(kernels::KernelsArgs),
    /// Print what a shell needs to complete commands and options
    #[command(after_help = examples::COMPLETIONS)]
    Completions(completions::CompletionsArgs),
    /// Write a model directory with random weights
    #[command(hide = true, after_help = examples::FRESH)]
    Fresh(fresh::FreshArgs),
}

/// A stage's options, and the file that some of them may stand in.
#[derive(Debug, clap::Args)]
struct FromFile<T: clap::Args> {
    /// TOML file with any of these options (learning_rate = 1e-5); the command line wins
    #[arg(long, value_name = "FILE", help_heading = "Input and output")]
    config: Option<PathBuf>,
    #[command(flatten)]
    stage: T,
}

/// Commands to copy: of at most 100 columns, where help is wrapped.
mod examples {
    pub(super) const RLHF: &str = "Without a command, `rlhf` runs `rlhf demo`.\n\nExamples:\n  \
        rlhf demo\n  rlhf init run --output run.toml\n  rlhf run --config run.toml --dry-run\n\n\
        Exit codes: 0 ok, 1 failure, 2 usage, 3 bad input, 4 resources, 5 device, 6 not finite, 7 locked,\n\
        130 and 143 stopped by a signal.";
    pub(super) const DEMO: &str = "Examples:\n  rlhf demo\n  rlhf demo --quick --output-dir /tmp/demo\n  \
        rlhf demo --seed 7 --device cuda";
    pub(super) const INIT: &str = "Examples:\n  rlhf init\n  rlhf init sft\n  \
        rlhf init ppo --output settings/ppo.toml";
    pub(super) const CONFIG: &str = "Examples:\n  rlhf config show sft --config sft.toml\n  \
        rlhf config show ppo --kl-coef 0.1 --json\n  rlhf config show run --config run.toml";
    pub(super) const SHOW: &str = CONFIG;
    pub(super) const SHOW_SFT: &str = "Examples:\n  rlhf config show sft\n  \
        rlhf config show sft --config sft.toml --learning-rate 1e-5\n  \
        rlhf config show sft --config sft.toml --json";
    pub(super) const SHOW_REWARD: &str = "Examples:\n  rlhf config show reward\n  \
        rlhf config show reward --config reward.toml --seed 7\n  \
        rlhf config show reward --config reward.toml --json";
    pub(super) const SHOW_PPO: &str = "Examples:\n  rlhf config show ppo\n  \
        rlhf config show ppo --config ppo.toml --num-mini-batches 4\n  \
        rlhf config show ppo --config ppo.toml --json";
    pub(super) const SHOW_RUN: &str = "Examples:\n  rlhf config show run --config run.toml\n  \
        rlhf config show run --config run.toml --seed 7\n  \
        rlhf config show run --config run.toml --json";
    pub(super) const ESTIMATE: &str = "Examples:\n  rlhf estimate sft --config sft.toml\n  \
        rlhf estimate reward --config reward.toml --per-device-train-batch-size 4\n  \
        rlhf estimate ppo --config ppo.toml --memory 24GiB";
    pub(super) const ESTIMATE_SFT: &str = "Examples:\n  \
        rlhf estimate sft --model-name-or-path ./gpt2 --dataset demos.jsonl\n  \
        rlhf estimate sft --config sft.toml --recompute full\n  \
        rlhf estimate sft --config sft.toml --memory 24GiB";
    pub(super) const ESTIMATE_REWARD: &str = "Examples:\n  \
        rlhf estimate reward --model-name-or-path out/sft --dataset preferences.jsonl\n  \
        rlhf estimate reward --config reward.toml --max-length 512\n  \
        rlhf estimate reward --config reward.toml --memory 24GiB";
    pub(super) const ESTIMATE_PPO: &str = "Examples:\n  \
        rlhf estimate ppo --sft-model-path sft --reward-model-path reward --dataset prompts.jsonl\n  \
        rlhf estimate ppo --config ppo.toml --response-length 256\n  \
        rlhf estimate ppo --config ppo.toml --memory 80GiB --num-mini-batches 4";
    pub(super) const KERNELS: &str = "Examples:\n  rlhf kernels\n  rlhf kernels --json\n  \
        rlhf kernels --json > kernels.json";
    pub(super) const COMPLETIONS: &str = "Examples:\n  \
        rlhf completions bash > ~/.local/share/bash-completion/completions/rlhf\n  \
        rlhf completions zsh > ~/.zfunc/_rlhf\n  \
        rlhf completions fish > ~/.config/fish/completions/rlhf.fish";
    pub(super) const FRESH: &str = "Examples:\n  \
        rlhf fresh --config config.json --tokenizer ./gpt2 --output-dir new\n  \
        rlhf fresh --config benches/gpt2-124m.json --tokenizer ./gpt2 --output-dir gpt2-124m\n  \
        rlhf fresh --config config.json --tokenizer ./gpt2 --output-dir other --seed 2";
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
    pub(super) const WIN_RATE: &str = "With a judge of your own: the first line writes the answers, your program \
        reads them and writes the scores, and the last line reads those.\n\nExamples:\n  \
        rlhf eval win-rate --model-name-or-path ppo --baseline sft --prompts p.jsonl --output c.jsonl\n  \
        rlhf eval win-rate --model-name-or-path ppo --baseline sft --prompts p.jsonl --reward-model-path r\n  \
        rlhf eval win-rate --answers c.jsonl --scores scores.jsonl";
    pub(super) const EVAL_REWARD: &str = "Examples:\n  \
        rlhf eval reward --model-name-or-path out/reward --dataset held_out.jsonl\n  \
        rlhf eval reward --model-name-or-path out/reward --dataset pairs.parquet --output quality.json\n  \
        rlhf eval reward --model-name-or-path out/reward --dataset held_out.jsonl --json";
    pub(super) const PERPLEXITY: &str = "Examples:\n  \
        rlhf eval perplexity --model-name-or-path out/sft --dataset book.txt\n  \
        rlhf eval perplexity --model-name-or-path out/sft --dataset held_out.jsonl --json\n  \
        rlhf eval perplexity --model-name-or-path ./gpt2 --dataset b.txt --max-length 1024 --stride 512";
    pub(super) const CHAT: &str = "In the chat, /help lists what it understands. \
        A pipe may ask, too: one message a line.\n\nExamples:\n  \
        rlhf chat --model-name-or-path out/ppo\n  \
        rlhf chat --model-name-or-path out/ppo --system 'Answer in one sentence.' --temperature 0\n  \
        rlhf chat --model-name-or-path out/ppo --seed 7 --max-new-tokens 64";
    pub(super) const DATA_CHECK: &str = "The exit code is 0 for clean data and for warnings, 3 for errors, and with \
        --strict 3 for warnings too.\n\nExamples:\n  \
        rlhf data check demos.jsonl --model-name-or-path ./gpt2\n  \
        rlhf data check pairs.jsonl --model-name-or-path ./gpt2 --eval-dataset held_out.jsonl --strict\n  \
        rlhf data check prompts.jsonl --model-name-or-path out/sft --stage ppo --response-length 128";
    pub(super) const DATA_PREVIEW: &str = "Examples:\n  \
        rlhf data preview chats.jsonl --model-name-or-path ./qwen --assistant-only-loss\n  \
        rlhf data preview pairs.parquet --model-name-or-path out/sft --rows 7,20-22\n  \
        rlhf data preview demos.jsonl --model-name-or-path ./gpt2 --color always";
    pub(super) const DATA: &str = "Examples:\n  \
        rlhf data check demos.jsonl --model-name-or-path ./gpt2\n  \
        rlhf data check pairs.jsonl --model-name-or-path out/sft --strict\n  \
        rlhf data preview demos.jsonl --model-name-or-path ./gpt2 --rows 5";
    pub(super) const EVAL: &str = "Examples:\n  \
        rlhf eval win-rate --model-name-or-path ppo --baseline sft --prompts p.jsonl --reward-model-path r\n  \
        rlhf eval reward --model-name-or-path out/reward --dataset held_out.jsonl\n  \
        rlhf eval perplexity --model-name-or-path out/sft --dataset book.txt";
    pub(super) const VERIFY: &str = "The exit code is 0 if every byte is as it was written, and 3 if not.\n\n\
        Examples:\n  \
        rlhf verify out/sft/checkpoints/step-500\n  \
        rlhf verify out/ppo\n  \
        rlhf verify rlhf-demo/ppo";
    pub(super) const REPORT: &str = "The page is one file that needs no network; open it with a double click.\n\n\
        Examples:\n  \
        rlhf report out\n  \
        rlhf report out/ppo --output ppo.html\n  \
        rlhf report first second third --output compared.html";
    pub(super) const DOCTOR: &str = "Examples:\n  rlhf doctor\n  rlhf doctor --json\n  \
        rlhf doctor --json > machine.json";
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
    // Of a command of one word.
    let given = args.get(2..).unwrap_or_default();
    match parsed.command {
        None => demo::run(&demo::DemoArgs::usual()?),
        Some(Command::Demo(args)) => demo::run(&args),
        Some(Command::Generate(args)) => generate::run(&args),
        Some(Command::Score(args)) => score::run(&args),
        Some(Command::Eval(command)) => eval::run(&command),
        Some(Command::Chat(args)) => chat::run(&args),
        Some(Command::Data(command)) => data::run(&command),
        Some(Command::Verify(args)) => verify::run(&args),
        Some(Command::Report(args)) => report::run(&args),
        Some(Command::Doctor(args)) => doctor::run(&args),
        Some(Command::Selftest(args)) => selftest::run(&args),
        Some(Command::Kernels(args)) => kernels::run(&args),
        Some(Command::Fresh(args)) => fresh::run(&args),
        Some(Command::Run(options)) => pipeline::run(&options),
        Some(Command::Init(options)) => init::run(&options),
        Some(Command::Config(options)) => show::run(&options, &args),
        Some(Command::Estimate(options)) => estimate::run(&options, &args),
        Some(Command::Completions(options)) => {
            completions::run(&options);
            Ok(())
        }
        Some(Command::Sft(file)) => {
            let (config, settings) = with_file::<SftConfig>(file.config.as_deref(), given)?;
            sft::run(&config, &settings).map(|_| ())
        }
        Some(Command::Reward(file)) => {
            let (config, settings) = with_file::<RewardConfig>(file.config.as_deref(), given)?;
            reward::run(&config, &settings).map(|_| ())
        }
        Some(Command::Ppo(file)) => {
            let (config, settings) = with_file::<PpoConfig>(file.config.as_deref(), given)?;
            ppo::run(&config, &settings).map(|_| ())
        }
    }
}

/// The whole command line, as help and completions show it.
fn command() -> clap::Command {
    options::with_ranges(Cli::command())
}

/// Parses; answers `--help`, `--version` and usage errors itself, as clap words them.
fn parse(args: &[OsString]) -> Result<Cli> {
    let asks_for_help = args.iter().any(|word| ["--help", "-h", "help"].iter().any(|help| word == help));
    let command = if asks_for_help { command() } else { Cli::command() };
    let matches = command.try_get_matches_from(args).unwrap_or_else(|error| error.exit());
    Ok(Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit()))
}

/// The stage's options: those of the `--config` file, behind those that are `given` on the command line.
fn with_file<T: Stage>(file: Option<&Path>, given: &[OsString]) -> Result<(T, Settings)> {
    let table = file.map(settings::read_file).transpose()?.unwrap_or_default();
    settings::resolve::<T>(T::NAME, &[(file.map(Path::to_path_buf), table)], given.to_vec())
}
