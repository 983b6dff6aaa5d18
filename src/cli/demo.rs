//! `rlhf demo`: the embedded job. Needs nothing but this binary.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::resume::{claim, home, is_asked};
use super::session::{arithmetic, tell_report};
use crate::config::{LATEST, SaveArgs};
use crate::device::Device;
use crate::error::Result;
use crate::train::checkpoint::identity::Identity;
use crate::train::demo::{self, COMPARISON, DemoOptions};
use crate::train::metrics::Voice;

/// Options of `rlhf demo`.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Input and output")]
pub(super) struct DemoArgs {
    /// Where everything is written; must not exist, or be empty [rlhf-demo, rlhf-demo-2, ...]
    #[arg(long, value_name = "DIR")]
    output_dir: Option<PathBuf>,
    /// Decides every random number
    #[arg(long, default_value_t = 1, value_parser = crate::config::seed)]
    seed: u64,
    /// A smoke test of a few seconds: everything happens, nothing is learned well
    #[arg(long)]
    quick: bool,
    /// Where to compute: auto, cpu, cuda, cuda:N (the N-th GPU, from 0), emulated
    #[arg(long, default_value = "auto")]
    device: String,
    /// Print errors only
    #[arg(long)]
    quiet: bool,
    /// Print events for a program to read: one JSON object a line, on standard output
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    save: SaveArgs,
}

impl DemoArgs {
    /// What `rlhf` alone means.
    pub(super) fn usual() -> Result<Self> {
        crate::config::defaults::<Self>()
    }
}

/// Runs the job and prints what came of it.
pub(super) fn run(args: &DemoArgs) -> Result<()> {
    let device = Device::parse(&args.device)?;
    let dir = place(args)?;
    let _lock = claim(&dir, is_asked(&args.save))?;
    let settings = [("seed", args.seed.to_string()), ("quick", args.quick.to_string())];
    let identity = Identity {
        program: Identity::of_program()?,
        arithmetic: arithmetic(&device),
        settings: settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        ..Identity::default()
    };
    let (voice, save) = (Voice::of(args.quiet, args.json), args.save.clone());
    let summary = demo::run(&DemoOptions { seed: args.seed, quick: args.quick, device, voice, save, identity }, &dir)?;
    tell_report(&dir, voice)?;
    voice.event("summary", summary.clone());
    if voice == Voice::Lines {
        // As `train::metrics::tell`: a reader that has gone away is no failure.
        let _ = writeln!(std::io::stdout(), "{}", tell(&summary, &dir));
    }
    Ok(())
}

/// The output directory: the one that is given, the one of the checkpoint, of rlhf-demo, rlhf-demo-2, ... the last to
/// go on in, or the first that does not exist.
fn place(args: &DemoArgs) -> Result<PathBuf> {
    if let Some(dir) = &args.output_dir {
        return Ok(dir.clone());
    }
    if let Some(path) = args.save.resume.as_ref().filter(|path| path.as_os_str() != LATEST) {
        let stage = home(path)?;
        return Ok(stage.parent().map_or_else(|| stage.clone(), Path::to_path_buf));
    }
    let name = |n: u32| PathBuf::from(if n == 1 { "rlhf-demo".to_owned() } else { format!("rlhf-demo-{n}") });
    let taken = (1..).map(name).take_while(|path| path.exists()).count() as u32;
    Ok(name(if is_asked(&args.save) { taken.max(1) } else { taken + 1 }))
}

/// The summary in words.
fn tell(summary: &Map<String, Value>, dir: &Path) -> String {
    let get = |name: &str| summary.get(name).and_then(Value::as_f64).unwrap_or(f64::NAN);
    let share = |name: &str| format!("{:.0} %", 100.0 * get(name));
    let part = |model: &str, name: &str| summary[model].get(name).and_then(Value::as_f64).unwrap_or(f64::NAN);
    let mut lines = vec![
        String::new(),
        "What happened, measured by a judge that neither the reward model nor PPO ever saw:".to_owned(),
        String::new(),
        format!("{:<34}{:>14}{:>10}{:>10}", "", "demonstrations", "SFT", "PPO"),
        format!(
            "{:<34}{:>14.3}{:>10.3}{:>10.3}",
            "  judge's score, 0 to 1",
            get("gold_demonstrations"),
            get("gold_sft"),
            get("gold_ppo")
        ),
    ];
    for (name, words) in [
        ("right", "  did what was asked"),
        ("courtesy", "  courteous"),
        ("brevity", "  brief"),
        ("ending", "  ended properly"),
        ("rude", "  rude"),
    ] {
        let percent = |model| format!("{:.0} %", 100.0 * part(model, name));
        lines.push(format!("{words:<34}{:>14}{:>10}{:>10}", "", percent("components_sft"), percent("components_ppo")));
    }
    lines.extend([
        String::new(),
        format!(
            "  PPO's answer is preferred over SFT's in {} of held-out prompts ({} with greedy decoding).",
            share("win_rate"),
            share("win_rate_greedy")
        ),
        format!("  The reward model orders {} of held-out pairs as the judge does.", share("reward_accuracy")),
        format!(
            "  PPO moved {:.2} nats an answer away from SFT; {} of its answers ended by themselves, {} are different.",
            get("kl"),
            share("eos_share"),
            share("distinct_share")
        ),
    ]);
    lines.extend(examples(dir));
    let seconds = summary.get("seconds").cloned().unwrap_or(json!({}));
    lines.extend([String::new(), format!("  Seconds by stage: {seconds}. Everything is in {}:", dir.display())]);
    lines.push(
        "  report.html (open it in a browser), sft/ reward/ ppo/ (models that transformers loads), summary.json, \
         metrics.jsonl, samples.jsonl, comparison.jsonl"
            .to_owned(),
    );
    lines.push(format!(
        "  Try: rlhf generate --model-name-or-path {0}/ppo --prompts {0}/prompts.jsonl --output answers.jsonl",
        dir.display()
    ));
    lines.join("\n")
}

/// A few prompts with both models' answers.
fn examples(dir: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(dir.join(COMPARISON)).unwrap_or_default();
    let rows = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut lines = vec![
        String::new(),
        "  Some held-out prompts, answered before and after PPO (the judge's score behind):".to_owned(),
    ];
    let differ = rows.filter(|row| row["baseline"] != row["model"]);
    for row in differ.take(4) {
        let word = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
        let score = |name: &str| row[name].as_f64().unwrap_or(f64::NAN);
        lines.push(format!("    {}", word("prompt")));
        lines.push(format!("      SFT  {} ({:.2})", word("baseline"), score("judge_baseline")));
        lines.push(format!("      PPO  {} ({:.2})", word("model"), score("judge_model")));
    }
    lines
}
