//! `rlhf config show`: what a run's settings would be, and where each comes from: the command line, a line of the
//! configuration file, or its default.

use std::ffi::OsString;

use serde_json::{Map, Value};

use super::pipeline::{self, PipelineArgs};
use super::selftest::print;
use super::settings::Settings;
use super::usual::Stage;
use super::{FromFile, examples, with_file};
use crate::config::{PpoConfig, RewardConfig, SftConfig};
use crate::error::{Result, visible};

/// Options of `rlhf config`.
#[derive(Debug, clap::Args)]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, clap::Subcommand)]
enum ConfigCommand {
    /// Print the effective settings of a run and where each comes from
    #[command(after_help = examples::SHOW)]
    Show(ShowArgs),
}

#[derive(Debug, clap::Args)]
struct ShowArgs {
    #[command(subcommand)]
    stage: Shown,
}

#[derive(Debug, clap::Subcommand)]
enum Shown {
    /// Settings of supervised fine-tuning
    #[command(after_help = examples::SHOW_SFT, args_override_self = true)]
    Sft(Box<FromFile<SftConfig>>),
    /// Settings of reward-model training
    #[command(after_help = examples::SHOW_REWARD, args_override_self = true)]
    Reward(Box<FromFile<RewardConfig>>),
    /// Settings of PPO
    #[command(after_help = examples::SHOW_PPO, args_override_self = true)]
    Ppo(Box<FromFile<PpoConfig>>),
    /// Settings of all three stages of a file
    #[command(after_help = examples::SHOW_RUN)]
    Run(PipelineArgs),
}

/// Words of `rlhf config show sft`.
const WORDS: usize = 4;

/// Prints what was asked for; `args` is the whole command line.
pub(super) fn run(options: &ConfigArgs, args: &[OsString]) -> Result<()> {
    let ConfigCommand::Show(ShowArgs { stage }) = &options.command;
    match stage {
        Shown::Sft(of) => show_stage(of, args),
        Shown::Reward(of) => show_stage(of, args),
        Shown::Ppo(of) => show_stage(of, args),
        Shown::Run(of) => {
            show(&pipeline::settings(of)?, of.json);
            Ok(())
        }
    }
}

fn show_stage<T: Stage>(of: &FromFile<T>, args: &[OsString]) -> Result<()> {
    let (_, settings) = with_file::<T>(of.config.as_deref(), &args[WORDS.min(args.len())..])?;
    let json = settings.list.iter().any(|s| s.name == "json" && s.value == "true");
    show(&[settings], json);
    Ok(())
}

fn show(stages: &[Settings], json: bool) {
    if json {
        let all: Map<String, Value> = stages.iter().map(|s| (s.stage.to_owned(), s.to_json())).collect();
        return print(&format!("{:#}", Value::Object(all)));
    }
    let tables: Vec<String> = stages.iter().map(|s| format!("{}\n{}", s.stage, s.table())).collect();
    print(&visible(&tables.join("\n")));
}
