//! `rlhf run`: all three stages from one configuration file. Keys at the top are shared by the stages that know them;
//! the tables `[sft]`, `[reward]` and `[ppo]` hold each stage's own. Every stage starts from what the one before wrote.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::resume::{home, is_same};
use super::session::{dataset, refuse_existing, required, tell_report};
use super::settings::{Settings, Table, parse, read_file, resolve};
use super::usual::Stage;
use super::{ppo, reward, sft};
use crate::config::{LATEST, PpoConfig, RewardConfig, SftConfig};
use crate::error::{Error, Result, nearest};
use crate::train::metrics::Voice;

/// Options of `rlhf run`.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Input and output")]
pub(super) struct PipelineArgs {
    /// TOML file with shared keys and the tables [sft], [reward], [ppo]
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Where the stages' directories sft, reward and ppo are written [the file's output_dir]
    #[arg(long, value_name = "DIR")]
    output_dir: Option<PathBuf>,
    /// Random numbers of all stages [the file's seed]
    #[arg(long, value_parser = crate::config::seed)]
    seed: Option<u64>,
    /// Where to compute: auto, cpu, cuda, cuda:N, emulated [the file's device]
    #[arg(long)]
    device: Option<String>,
    /// Check the file and the first stage's model and data, and stop
    #[arg(long)]
    dry_run: bool,
    /// Print errors only
    #[arg(long)]
    quiet: bool,
    /// Print events for a program to read: one JSON object a line, on standard output
    #[arg(long)]
    pub(super) json: bool,
    /// Go on from a checkpoint of a stage: PATH, or without it the newest whole one; finished stages are kept
    #[arg(long, value_name = "PATH", num_args = 0..=1, default_missing_value = LATEST, help_heading = "Checkpoints")]
    resume: Option<PathBuf>,
    /// Resume although settings, data, models or the program have changed so that the result will be another
    #[arg(long, help_heading = "Checkpoints")]
    accept_changes: bool,
}

const STAGES: [&str; 3] = ["sft", "reward", "ppo"];

/// A stage's options, twice: as its command takes them, and with their origins.
type Of<T> = (T, Settings);

/// The settings of all stages.
pub(super) fn settings(args: &PipelineArgs) -> Result<[Settings; 3]> {
    let (sft, reward, ppo) = Plan::read(args)?.all()?;
    Ok([sft.1, reward.1, ppo.1])
}

/// Runs the stages one after the other.
pub(super) fn run(args: &PipelineArgs) -> Result<()> {
    let plan = Plan::read(args)?;
    let ((sft_config, sft_settings), (reward_config, reward_settings), (ppo_config, ppo_settings)) = plan.all()?;
    let stages = [
        (&sft_config.run, Some(&sft_config.eval), "sft"),
        (&reward_config.run, Some(&reward_config.eval), "reward"),
        (&ppo_config.run, None, "ppo"),
    ];
    for (config, eval, stage) in stages {
        dataset(config, eval).map_err(|e| e.at_if_unplaced(format!("[{stage}] of {}", args.config.display())))?;
        if args.resume.is_none() {
            refuse_existing(&plan.output.join(stage))?;
        }
    }
    sft::run(&sft_config, &sft_settings)?;
    if sft_config.run.dry_run {
        return Ok(());
    }
    reward::run(&reward_config, &reward_settings)?;
    ppo::run(&ppo_config, &ppo_settings)?;
    tell_report(&plan.output, Voice::of(ppo_config.run.quiet, ppo_config.run.json))
}

/// Whether the bytes of a configuration file can be followed, up to the files that it names.
pub(crate) fn check(bytes: &[u8]) -> Result<()> {
    let path = PathBuf::from("run.toml");
    let shared = parse(bytes.to_vec(), &path)?;
    let args = PipelineArgs {
        config: path,
        output_dir: None,
        seed: None,
        device: None,
        dry_run: true,
        quiet: true,
        json: false,
        resume: None,
        accept_changes: false,
    };
    let plan = Plan::build(shared, &args)?;
    plan.stage::<SftConfig>("sft", &[])?;
    plan.stage::<RewardConfig>("reward", &[])?;
    plan.stage::<PpoConfig>("ppo", &[]).map(|_| ())
}

/// The file, taken apart.
struct Plan {
    path: PathBuf,
    output: PathBuf,
    shared: Table,
    stages: Table,
    given: Vec<OsString>,
    resume: Option<PathBuf>,
}

impl Plan {
    fn read(args: &PipelineArgs) -> Result<Self> {
        Self::build(read_file(&args.config)?, args)
    }

    /// Takes the file's keys apart.
    fn build(mut shared: Table, args: &PipelineArgs) -> Result<Self> {
        let mut stages = Table::new();
        for stage in STAGES {
            if let Some(table) = shared.remove(stage) {
                stages.insert(stage.to_owned(), table);
            }
        }
        let known = known_keys();
        for (key, value) in &shared {
            let name = key.replace('_', "-");
            if value.is_table() || !known.contains(&name) {
                let error = Error::usage("config-unknown-key", format!("`{key}` is not a setting of any stage"))
                    .at(args.config.display().to_string());
                let near = nearest(&name, known.iter().map(String::as_str).chain(STAGES));
                return Err(match near {
                    Some(near) => error.fix(format!("did you mean `{}`?", near.replace('-', "_"))),
                    None => error.fix("the stages' own settings stand in the tables [sft], [reward], [ppo]"),
                });
            }
        }
        let output = shared.remove("output_dir").or_else(|| shared.remove("output-dir"));
        let output = output.and_then(|v| v.as_str().map(PathBuf::from));
        let output = args.output_dir.clone().or(output);
        let output = required(output.as_ref(), "output-dir")?.clone();
        let mut given = Vec::new();
        let mut give = |name: &str, value: String| given.push(OsString::from(format!("--{name}={value}")));
        if let Some(seed) = args.seed {
            give("seed", seed.to_string());
        }
        if let Some(device) = &args.device {
            give("device", device.clone());
        }
        let flags = [
            ("dry-run", args.dry_run),
            ("quiet", args.quiet),
            ("json", args.json),
            ("accept-changes", args.accept_changes),
        ];
        for (name, on) in flags {
            if on {
                give(name, "true".to_owned());
            }
        }
        let resume = args.resume.clone();
        if let Some(path) = resume.as_ref().filter(|path| path.as_os_str() != LATEST) {
            Self::check_checkpoint(path, &output)?;
        }
        Ok(Self { path: args.config.clone(), output, shared, stages, given, resume })
    }

    /// The options of all stages, each of which starts from what the one before wrote.
    fn all(&self) -> Result<(Of<SftConfig>, Of<RewardConfig>, Of<PpoConfig>)> {
        let base = |name: &str| self.output.join(name).display().to_string();
        let models = [("sft_model_path", base("sft")), ("reward_model_path", base("reward"))];
        Ok((
            self.stage::<SftConfig>("sft", &[])?,
            self.stage::<RewardConfig>("reward", &[("model_name_or_path", base("sft"))])?,
            self.stage::<PpoConfig>("ppo", &models)?,
        ))
    }

    /// An error unless `path` is a checkpoint of one of the stages.
    fn check_checkpoint(path: &Path, output: &Path) -> Result<()> {
        let stage = home(path)?;
        if STAGES.iter().any(|name| is_same(&output.join(name), &stage)) {
            return Ok(());
        }
        Err(Error::usage("resume-elsewhere", "the checkpoint is not of one of the stages")
            .at(path.display().to_string())
            .because(format!("it lies in {}, and the stages in {}", stage.display(), output.display()))
            .fix("give a checkpoint of this run, or --resume alone for the newest"))
    }

    /// What a stage goes on from: its own checkpoint where one is named, else the newest.
    fn resume(&self, stage: &str) -> Option<OsString> {
        let path = self.resume.as_ref()?;
        let is_own = home(path).is_ok_and(|home| is_same(&home, &self.output.join(stage)));
        let path = if is_own { path.as_path() } else { Path::new(LATEST) };
        let mut option = OsString::from("--resume=");
        option.push(path);
        Some(option)
    }

    /// A stage's options: the models that earlier stages wrote, the shared keys that this stage knows, its own table,
    /// the command line.
    fn stage<T: Stage>(&self, stage: &'static str, models: &[(&str, String)]) -> Result<(T, Settings)> {
        let names = long_names::<T>();
        let mut first = Table::new();
        for (key, value) in models {
            first.insert((*key).to_owned(), toml::Value::String(value.clone()));
        }
        let skip = |key: &str| stage != "sft" && key.replace('-', "_") == "model_name_or_path";
        let shared: Table = self
            .shared
            .iter()
            .filter(|(key, _)| names.contains(&key.replace('_', "-")) && !skip(key))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let own = match self.stages.get(stage) {
            None => Table::new(),
            Some(toml::Value::Table(table)) => table.clone(),
            Some(_) => {
                let error = Error::usage("config-value", format!("`{stage}` must be a table"));
                let error = error.fix(format!("write [{stage}] on a line, and its settings below"));
                return Err(error.at(self.path.display().to_string()));
            }
        };
        if own.keys().any(|key| key.replace('-', "_") == "output_dir") {
            return Err(Error::usage("config-value", "a stage has no `output_dir` of its own")
                .at(format!("[{stage}] of {}", self.path.display()))
                .because(format!("it writes to {}", self.output.join(stage).display()))
                .fix("set `output_dir` at the top of the file"));
        }
        let mut given = self.given.clone();
        given.push(OsString::from(format!("--output-dir={}", self.output.join(stage).display())));
        given.extend(self.resume(stage));
        let path = |table| (Some(self.path.clone()), table);
        resolve::<T>(stage, &[(None, first), path(shared), path(own)], given)
    }
}

fn long_names<T: clap::Args>() -> Vec<String> {
    let command = T::augment_args(clap::Command::new("stage"));
    command.get_arguments().filter_map(|a| a.get_long().map(str::to_owned)).collect()
}

fn known_keys() -> Vec<String> {
    [long_names::<SftConfig>(), long_names::<RewardConfig>(), long_names::<PpoConfig>()].concat()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn same(a: Option<&PathBuf>, b: &Path) -> bool {
        a.is_some_and(|a| a == b)
    }

    #[test]
    fn stages_start_from_what_the_one_before_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.toml");
        let text =
            "output_dir = \"out\"\nmodel_name_or_path = \"base\"\nseed = 3\nmax_length = 9\n[reward]\nseed = 4\n";
        std::fs::write(&path, text).unwrap();
        let args = PipelineArgs {
            config: path,
            output_dir: None,
            seed: None,
            device: None,
            dry_run: false,
            quiet: true,
            json: false,
            resume: None,
            accept_changes: false,
        };
        let plan = Plan::read(&args).unwrap();
        let (sft, _) = plan.stage::<SftConfig>("sft", &[]).unwrap();
        assert!(same(sft.run.model_name_or_path.as_ref(), Path::new("base")));
        assert_eq!((sft.run.seed, sft.epochs.max_length), (3, Some(9)));
        let (reward, _) = plan.stage::<RewardConfig>("reward", &[("model_name_or_path", "out/sft".into())]).unwrap();
        assert!(same(reward.run.model_name_or_path.as_ref(), Path::new("out/sft")));
        assert!(same(reward.run.output_dir.as_ref(), Path::new("out/reward")));
        assert_eq!(reward.run.seed, 4);
        assert!(plan.stage::<PpoConfig>("ppo", &[]).is_ok(), "max_length is not PPO's, and shared keys may be others'");
    }
}
