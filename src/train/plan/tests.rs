//! Plans against what the emulated GPU handed out in the run itself.

use std::sync::Arc;

use super::{Host, Job, MemoryPlan, Ppo, Preferences, Rows, Sft, make, on_host};
use crate::config::{PpoConfig, Recompute, RewardConfig, SftConfig, defaults};
use crate::data::encode::{PairExample, PromptExample, SftExample};
use crate::device::emulated::Emulated;
use crate::device::{Device, Gpu};
use crate::dtype::DType;
use crate::error::{Code, Error, Result};
use crate::model::config::Head;
use crate::model::{Model, ModelConfig};
use crate::ptx::Options;
use crate::train::checkpoint::{Keeper, State};
use crate::train::metrics::Journal;
use crate::train::ppo::Start;
use crate::train::reward::{Episode, Reward};
use crate::train::{ppo, reward, sft};

/// Two layers, head size 64; wide enough for activations to matter beside the parameters.
const QWEN2: &str = r#"{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 64, "max_position_embeddings": 64, "vocab_size": 96, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": true, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}"#;

fn config() -> ModelConfig {
    ModelConfig::parse(QWEN2, "a test").unwrap()
}

fn config_of(head_size: usize) -> ModelConfig {
    let text = QWEN2.replace("\"head_dim\": 64", &format!("\"head_dim\": {head_size}"));
    ModelConfig::parse(&text, "a test").unwrap()
}

/// An emulated GPU without the slow checks, which other tests make.
fn gpu(capacity: u64) -> Device {
    let options = Options { races: false, initialised: false, ..Options::default() };
    let options = Options { count: false, threads: rayon::current_num_threads(), ..options };
    Device::Gpu(Gpu::new(Arc::new(Emulated::with_capacity(options, capacity)), DType::BF16))
}

const PLENTY: u64 = 1 << 36;

fn model(device: &Device) -> Model {
    Model::fresh(device, config(), 3).unwrap()
}

fn plan(job: &impl Job) -> MemoryPlan {
    make(job, &gpu(PLENTY), PLENTY as usize).unwrap()
}

fn phase(plan: &MemoryPlan, name: &str) -> usize {
    plan.phases.iter().find(|(phase, _)| *phase == name).unwrap_or_else(|| panic!("{name} in {plan:?}")).1
}

/// Bytes of all groups whose names satisfy `chosen`.
fn groups(plan: &MemoryPlan, chosen: impl Fn(&str) -> bool) -> usize {
    plan.groups.iter().filter(|(name, _)| chosen(name)).map(|(_, bytes)| bytes).sum()
}

fn share(planned: usize, measured: usize) -> f64 {
    (planned as f64 - measured as f64).abs() / measured as f64
}

#[track_caller]
fn assert_close(what: &str, planned: usize, measured: usize) {
    assert!(share(planned, measured) <= 0.01, "{what}: {planned} bytes were planned, {measured} were taken");
}

fn example(tokens: usize) -> SftExample {
    let is_target = (0..tokens).map(|i| i > 1).collect();
    SftExample { ids: (0..tokens as i32).map(|i| 3 + i % 90).collect(), is_target, place: String::new() }
}

fn sft_config(rows: Option<usize>, steps: usize) -> SftConfig {
    let mut config = defaults::<SftConfig>().unwrap();
    (config.optimizer.per_device_train_batch_size, config.epochs.max_steps) = (rows, Some(steps));
    config
}

/// Trains on `gpu`; returns the peak of all that follows the model's birth.
fn train_sft(gpu: &Device, data: &[SftExample], eval: &[SftExample], config: &SftConfig) -> Result<usize> {
    let model = model(gpu);
    gpu.take_memory_peak()?;
    let groups: Vec<Vec<usize>> = (0..data.len()).map(|i| vec![i]).collect();
    sft::train(model, data, &groups, eval, config, &mut Journal::silent(), &mut ())?;
    gpu.take_memory_peak()
}

fn sft_job<'a>(model: &'a ModelConfig, data: &[SftExample], eval: &[SftExample], config: &SftConfig) -> Sft<'a> {
    let groups: Vec<Vec<usize>> = (0..data.len()).map(|i| vec![i]).collect();
    Sft::new(model, data, &groups, eval, config)
}

#[test]
fn fine_tuning_takes_what_is_planned() {
    let (shape, data, config) = (config(), vec![example(40); 8], sft_config(Some(4), 2));
    let planned = plan(&sft_job(&shape, &data, &[], &config));
    let gpu = gpu(PLENTY);
    let measured = train_sft(&gpu, &data, &[], &config).unwrap();
    assert_close("training", phase(&planned, "training"), measured);
    assert_eq!(groups(&planned, |_| true), phase(&planned, "training"), "{planned:?}");
    assert_close(
        "load",
        phase(&planned, "load"),
        6 * Model::zeros(&gpu, DType::BF16, shape.clone()).unwrap().params.flat.len(),
    );
    // Positive control: the plan of a smaller pass is another.
    let other = plan(&sft_job(&shape, &data, &[], &sft_config(Some(3), 2)));
    assert!(share(phase(&other, "training"), measured) > 0.05, "{other:?}");
    // Without masters and with wider activations.
    let wide = gpu.clone().in_f32();
    let planned_wide = make(&sft_job(&shape, &data, &[], &config), &wide, PLENTY as usize).unwrap();
    assert_close("training in f32", planned_wide.peak(), train_sft(&wide, &data, &[], &config).unwrap());
    assert!(share(planned_wide.peak(), measured) > 0.05, "{planned_wide:?}");
    // An evaluation that is larger than the training.
    let (data, eval) = (vec![example(5); 8], vec![example(60); 4]);
    let planned = plan(&sft_job(&shape, &data, &eval, &config));
    assert!(phase(&planned, "evaluation") > phase(&planned, "training"), "{planned:?}");
    assert_close("evaluation", phase(&planned, "evaluation"), train_sft(&gpu, &data, &eval, &config).unwrap());
}

fn pair(tokens: usize) -> PairExample {
    let ids = |from: usize| (0..tokens).map(|i| (from + i % 90) as i32).collect();
    PairExample { chosen: ids(3), rejected: ids(4), margin: 0.0, place: String::new() }
}

#[test]
fn a_reward_model_takes_what_is_planned() {
    let mut settings = defaults::<RewardConfig>().unwrap();
    (settings.optimizer.per_device_train_batch_size, settings.epochs.max_steps) = (Some(4), Some(2));
    let (shape, data) = (config(), vec![pair(30); 8]);
    let train = |data: &[PairExample], eval: &[PairExample], settings: &RewardConfig| {
        let gpu = gpu(PLENTY);
        let start = model(&gpu).value_model(1).unwrap();
        let load = gpu.take_memory_peak().unwrap();
        reward::train(start, data, eval, settings, &mut Journal::silent(), &mut ()).unwrap();
        [load, gpu.take_memory_peak().unwrap()]
    };
    let planned = plan(&Preferences::new(&shape, &data, &[], &settings));
    let [load, measured] = train(&data, &[], &settings);
    assert_close("load", phase(&planned, "load"), load);
    assert_close("training", phase(&planned, "training"), measured);
    assert_eq!(groups(&planned, |_| true), phase(&planned, "training"), "{planned:?}");
    let eval = vec![pair(60); 12];
    let planned = plan(&Preferences::new(&shape, &[pair(3)], &eval, &settings));
    assert!(phase(&planned, "evaluation") > phase(&planned, "training"), "{planned:?}");
    assert_close("evaluation", phase(&planned, "evaluation"), train(&[pair(3)], &eval, &settings)[1]);
    // Positive control: the plan of a smaller pass is another.
    settings.optimizer.per_device_train_batch_size = Some(3);
    let other = plan(&Preferences::new(&shape, &data, &[], &settings));
    assert!(share(phase(&other, "training"), measured) > 0.05, "{other:?}");
}

fn ppo_config(rows: Option<usize>, response_length: usize) -> PpoConfig {
    let mut config = defaults::<PpoConfig>().unwrap();
    config.optimizer.per_device_train_batch_size = rows;
    (config.rollout.response_length, config.loss.num_ppo_epochs) = (response_length, 1);
    config
}

fn prompts(n: usize) -> Vec<PromptExample> {
    let ids: Vec<i32> = (3..11).collect();
    vec![PromptExample { ids, text: String::new(), place: String::new() }; n]
}

/// A reward model that notes the peak since somebody asked last: that of the rollout.
struct Watched {
    model: Model,
    rollout: usize,
}

impl Reward for Watched {
    fn scores(&mut self, episodes: &[Episode<'_>]) -> Result<Vec<f32>> {
        let scores = self.model.scores(episodes);
        self.rollout = self.model.device().take_memory_peak()?;
        scores
    }
}

/// Notes the peak after each batch.
struct Peaks<'a> {
    gpu: &'a Device,
    last: usize,
}

impl Keeper for Peaks<'_> {
    fn after(&mut self, _step: usize, _total: usize, _state: &mut State<'_>) -> Result<()> {
        self.last = self.gpu.take_memory_peak()?;
        Ok(())
    }
}

/// Trains two batches on `gpu`; returns the peaks of loading, rollout and training. No answer ends before its time.
fn train_ppo(gpu: &Device, config: &PpoConfig) -> Result<[usize; 3]> {
    let batches = 2;
    let config = PpoConfig {
        rollout: crate::config::RolloutArgs {
            total_episodes: Some(batches * config.batch_size()),
            ..config.rollout.clone()
        },
        ..config.clone()
    };
    let (policy, mut reward_model) = (model(gpu), model(gpu).value_model(1)?);
    gpu.take_memory_peak()?;
    let value_model = reward_model.duplicate()?;
    reward_model.params.drop_masters();
    drop(ppo::reference(&policy)?);
    let load = gpu.take_memory_peak()?;
    let mut watched = Watched { model: reward_model, rollout: 0 };
    let start = Start { policy, value_model, reward: &mut watched, stop: &[], normalize: None, judge: None };
    let mut peaks = Peaks { gpu, last: 0 };
    ppo::train(start, &prompts(config.batch_size()), &config, &mut Journal::silent(), &mut peaks)?;
    Ok([load, watched.rollout, peaks.last])
}

fn with_head(head: Head) -> ModelConfig {
    ModelConfig { head, ..config() }
}

#[test]
fn ppo_takes_what_is_planned() {
    let shapes = [with_head(Head::Language), with_head(Head::Score)];
    let models = [&shapes[0], &shapes[1]];
    let job = |rows, length| {
        let config = ppo_config(Some(rows), length);
        plan(&Ppo::new(models, None, &prompts(config.batch_size()), &config))
    };
    let gpu = gpu(PLENTY);
    let (planned, other) = (job(4, 12), job(3, 12));
    let [load, rollout, training] = train_ppo(&gpu, &ppo_config(Some(4), 12)).unwrap();
    for (name, measured) in [("load", load), ("rollout", rollout), ("training", training)] {
        assert_close(name, phase(&planned, name), measured);
    }
    // Positive controls: another micro-batch, another response.
    assert!(share(phase(&other, "training"), training) > 0.02, "{other:?}");
    assert!(share(phase(&job(4, 40), "rollout"), rollout) > 0.02, "{planned:?}");
}

/// The cache is given back before training takes its activations: at no time are both there.
#[test]
fn the_cache_and_the_activations_share_memory() {
    let shapes = [with_head(Head::Language), with_head(Head::Score)];
    let config = PpoConfig {
        loss: crate::config::PpoLossArgs { num_mini_batches: 4, ..ppo_config(None, 1).loss },
        ..ppo_config(Some(4), 40)
    };
    let planned = plan(&Ppo::new([&shapes[0], &shapes[1]], None, &prompts(config.batch_size()), &config));
    let rollout = groups(&planned, |name| name.ends_with("of the rollout"));
    let training = groups(&planned, |name| name.ends_with("of the training"));
    let fixed = groups(&planned, |_| true) - rollout - training;
    assert_eq!(planned.peak(), fixed + rollout.max(training), "{planned:?}");
    let [_, ours, theirs] = train_ppo(&gpu(PLENTY), &config).unwrap();
    assert_close("the run", fixed + rollout.max(training), ours.max(theirs));
    // Positive control: both at once would be more than a rounding.
    assert!(share(fixed + rollout + training, ours.max(theirs)) > 0.05, "{planned:?}");
}

/// The value of each option in an error's cure.
fn cures(error: &Error) -> Vec<(String, usize)> {
    let text = error.to_string();
    let words: Vec<&str> = text.split_whitespace().map(|word| word.trim_end_matches([',', '.'])).collect();
    let options = words.windows(2).filter(|pair| pair[0].starts_with("--"));
    options.filter_map(|pair| Some((pair[0].to_owned(), pair[1].parse().ok()?))).collect()
}

#[test]
fn the_rows_of_a_pass_are_the_most_that_fit() {
    let (shape, data) = (config(), vec![example(40); 8]);
    let peak = |rows| plan(&sft_job(&shape, &data, &[], &sft_config(Some(rows), 1))).peak();
    let capacity = peak(4) as u64 - 1;
    let usable = capacity as usize;
    let mut config = sft_config(None, 1);
    let plan = make(&sft_job(&shape, &data, &[], &config), &gpu(capacity), usable).unwrap();
    assert_eq!((plan.micro_batch, plan.rows), (2, Rows::Fit), "{plan:?}");
    assert!(plan.summary(usable).contains("2 rows in a pass, the largest share of 8 that fits"));
    // It does fit, the next larger share does not, and the optimizer's batch is the same.
    config.optimizer.micro_batch = Some(2);
    train_sft(&gpu(capacity), &data, &[], &config).unwrap();
    config.optimizer.micro_batch = Some(4);
    assert_eq!(train_sft(&gpu(capacity), &data, &[], &config).unwrap_err().id(), "device-memory");
    assert_eq!(config.optimizer.rows_per_step(), 8);
}

#[test]
fn what_cannot_fit_is_refused_with_settings_that_do() {
    let (shape, data, config) = (config(), vec![example(40); 8], sft_config(Some(8), 1));
    let mut halves = sft_config(Some(4), 1);
    halves.optimizer.gradient_accumulation_steps = 2;
    let capacity = plan(&sft_job(&shape, &data, &[], &halves)).peak();
    let device = gpu(capacity as u64);
    let error = make(&sft_job(&shape, &data, &[], &config), &device, capacity).unwrap_err();
    assert_eq!((error.code(), error.id()), (Code::Resources, "memory-plan"));
    assert_eq!(device.take_memory_peak().unwrap(), 0, "nothing was touched");
    let cures = cures(&error);
    let [(rows, n), (steps, passes), (length, tokens)] = &cures[..] else { panic!("two settings in {error}") };
    let named = [&rows[..], &steps[..], &length[..]];
    assert_eq!(named, ["--per-device-train-batch-size", "--gradient-accumulation-steps", "--max-length"], "{error}");
    assert_eq!((*n, *passes), (4, 2), "the largest passes that fit, of the same batch");
    let mut cut = sft_config(Some(*n), 1);
    cut.optimizer.gradient_accumulation_steps = *passes;
    train_sft(&device, &data, &[], &cut).unwrap();
    train_sft(&device, &vec![example(*tokens); 8], &[], &config).unwrap();
    assert_eq!(train_sft(&device, &data, &[], &config).unwrap_err().id(), "device-memory");
    // Where one setting alone does not help, two do together.
    let mut ones = sft_config(Some(1), 1);
    ones.optimizer.gradient_accumulation_steps = 8;
    let ten = SftExample { is_target: (0..10).map(|i| i > 0).collect(), ..example(10) };
    let least = plan(&sft_job(&shape, &[ten], &[], &ones)).peak();
    let error = make(&sft_job(&shape, &data, &[], &config), &device, least).unwrap_err().to_string();
    let both = "--per-device-train-batch-size 1 --gradient-accumulation-steps 8 --max-length 10";
    assert!(error.contains(both), "{error}");
    // Where not even the parameters fit, no setting is made up.
    let none = make(&sft_job(&shape, &data, &[], &config), &device, 1 << 20).unwrap_err();
    assert!(none.to_string().contains("a GPU with more memory"), "{none}");
}

#[test]
fn ppo_that_cannot_fit_is_refused_with_settings_that_do() {
    let shapes = [with_head(Head::Language), with_head(Head::Score)];
    let job = |config: &PpoConfig| Ppo::new([&shapes[0], &shapes[1]], None, &prompts(config.batch_size()), config);
    let config = ppo_config(Some(8), 40);
    let mut half = ppo_config(Some(4), 40);
    half.optimizer.gradient_accumulation_steps = 2;
    let capacity = plan(&job(&half)).peak();
    let device = gpu(capacity as u64);
    let cures = cures(&make(&job(&config), &device, capacity).unwrap_err());
    let [(_, n), (_, passes), (length, tokens)] = &cures[..] else { panic!("two settings in {cures:?}") };
    assert_eq!((*n, *passes, &length[..]), (4, 2, "--response-length"));
    let mut cut = ppo_config(Some(*n), 40);
    cut.optimizer.gradient_accumulation_steps = *passes;
    train_ppo(&device, &cut).unwrap();
    train_ppo(&device, &ppo_config(Some(8), *tokens)).unwrap();
    assert_eq!(train_ppo(&device, &config).unwrap_err().id(), "device-memory");
}

/// In a deep model activations are what is large, and recomputing them is the least change.
#[test]
fn recomputing_is_named_where_it_helps() {
    let shape = ModelConfig { layers: 8, ..config() };
    let (data, config) = (vec![example(40); 8], sft_config(Some(8), 1));
    let mut light = config.clone();
    light.optimizer.recompute = Recompute::Cheap;
    let capacity = plan(&sft_job(&shape, &data, &[], &light)).peak();
    let error = make(&sft_job(&shape, &data, &[], &config), &gpu(capacity as u64), capacity).unwrap_err().to_string();
    assert!(error.contains("--gradient-accumulation-steps 2, or --recompute cheap"), "{error}");
    assert!(make(&sft_job(&shape, &data, &[], &light), &gpu(capacity as u64), capacity).is_ok());
}

/// A model of half a billion parameters is rehearsed in no time and no memory.
#[test]
fn a_large_run_is_planned_in_seconds() {
    let text = include_str!("../../../benches/qwen2.5-0.5b.json");
    let policy = ModelConfig::parse(text, "a test").unwrap();
    let reward = ModelConfig { head: Head::Score, ..policy.clone() };
    let mut config = ppo_config(Some(8), 384);
    config.loss.num_mini_batches = 32;
    let prompt = PromptExample { ids: vec![0; 128], text: String::new(), place: String::new() };
    let started = std::time::Instant::now();
    let plan = plan(&Ppo::new([&policy, &reward], None, &vec![prompt; config.batch_size()], &config));
    println!("{}\n{}\n{:?} {:?}", plan.summary(80 << 30), plan.table(), plan.phases, started.elapsed());
    assert!(started.elapsed().as_secs() < 30, "{:?}", started.elapsed());
    // What an operation newly keeps shows here.
    let peaks = [("load", 9_880_662_528), ("rollout", 22_006_005_765), ("training", 24_703_677_476)];
    assert_eq!(plan.phases, peaks, "bytes at the peak of each phase");
    // 494 million parameters: 18 bytes each for the two that learn, 2 for the two that do not.
    let fixed = groups(&plan, |name| !name.contains(" of the "));
    assert!(share(fixed, 40 * policy.parameters()) < 0.01, "{plan:?}");
    // Keys and values of 24 layers, 2 heads of 64 in bf16, for the 256 rows of 512 positions that live at once.
    assert_eq!(groups(&plan, |name| name.starts_with("KV cache")), 24 * 2 * 2 * 64 * 2 * 256 * 512);
}

/// Of every position at which values begin to fit.
#[test]
fn the_least_change_that_fits_is_named() {
    for n in 0..9 {
        for from in 0..=n {
            let values: Vec<(String, usize)> = (0..n).map(|i| (i.to_string(), i)).collect();
            let found = super::first(values, |(_, value)| Ok(*value >= from)).unwrap();
            assert_eq!(found, (from < n).then(|| from.to_string()));
        }
    }
    assert!(super::names_again("--a 1", "--b 2 --a 3") && !super::names_again("--c 1", "--b 2 --a 3"));
}

/// On the CPU a pass is never cut: what does not fit into what is free is told with advice, and what does not fit into
/// the machine is refused.
#[test]
fn the_cpu_warns_of_what_is_not_free_and_refuses_what_is_not_there() {
    let (shape, data, config) = (config(), vec![example(40); 8], sft_config(None, 1));
    let job = sft_job(&shape, &data, &[], &config);
    let of = |taken, free, total| on_host(&job, Host { taken, free, total });
    let (plan, advice) = of(1000, usize::MAX, usize::MAX).unwrap();
    assert_eq!((plan.micro_batch, plan.rows, advice), (8, Rows::Usual, None));
    assert_eq!(of(0, usize::MAX, usize::MAX).unwrap().0.peak() + 1000, plan.peak(), "the program's own memory counts");
    assert_eq!(plan.groups.last().unwrap().1, 1000);
    let (same, advice) = of(1000, plan.peak() - 1, plan.peak()).unwrap();
    assert_eq!(same, plan);
    assert!(advice.unwrap().iter().any(|words| words.starts_with("--")), "settings that fit");
    assert_eq!(of(1000, plan.peak(), plan.peak()).unwrap().1, None);
    let error = of(1000, plan.peak() - 1, plan.peak() - 1).unwrap_err();
    assert_eq!((error.code(), error.id()), (Code::Resources, "memory-plan"));
    assert!(error.to_string().contains("the machine's memory"), "{error}");
    // Parameters, gradients and two moments in f32; sizes that no kernel serves.
    let odd = config_of(36);
    let plan = on_host(&sft_job(&odd, &data, &[], &config), Host { taken: 0, free: usize::MAX, total: usize::MAX });
    assert!(plan.is_ok(), "{plan:?}");
}

/// Rows of one and of several examples: the rehearsed ones are at least as large as any that a pass can have.
#[test]
fn the_largest_rows_bound_every_pass() {
    let rows = vec![vec![[10, 2]], vec![[7, 6], [2, 1]], vec![[4, 3]], vec![[9, 0]]];
    let largest = super::jobs::largest(rows.clone(), 2);
    assert_eq!(largest, [vec![[10, 7]], vec![[7, 3], [2, 0]]]);
    assert_eq!(super::jobs::cut(&rows, 8), [vec![[8, 2]], vec![[7, 6], [1, 0]], vec![[4, 3]], vec![[8, 0]]]);
}
