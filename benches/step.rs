//! Tokens, pairs and episodes a second of one step of each stage, and generated tokens a second, on a small GPT-2 and a
//! small Llama; on a GPU also on random models of the shapes of GPT-2 124M and Qwen2.5: the Rust side of
//! `benches/peers/`. Criterion reports the time of one step; its throughput is the rate. A model is made when a
//! benchmark first runs on it, so that a filter pays for what it picks. `RLHF_DEVICE` names the device, as `--device`
//! does.

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rlhf::bench::{self, in_pool, rollout};
use rlhf::config::{PpoConfig, RewardConfig, SftConfig, defaults};
use rlhf::data::encode::{PairExample, PromptExample, SftExample};
use rlhf::model::ModelConfig;
use rlhf::train::ppo::{self, Start};
use rlhf::train::{reward, sft};
use rlhf::{Device, Journal, Model, Result};

/// How large the steps are.
#[derive(Clone, Copy)]
struct Shape {
    vocabulary: usize,
    /// Rows of a supervised step, or pairs of a reward step, and the tokens of each.
    rows: usize,
    tokens: usize,
    /// Episodes of a PPO batch, how many of them are in one backward pass, and how often the batch is gone through.
    episodes: usize,
    micro_batch: usize,
    epochs: usize,
    query: usize,
    response: usize,
}

const SMALL: Shape =
    Shape { vocabulary: 512, rows: 8, tokens: 128, episodes: 32, micro_batch: 32, epochs: 4, query: 32, response: 64 };
const LARGE: Shape = Shape {
    vocabulary: 151_936,
    rows: 8,
    tokens: 1024,
    episodes: 256,
    micro_batch: 16,
    epochs: 1,
    query: 128,
    response: 384,
};
const GPT2_124M_SHAPE: Shape = Shape { vocabulary: 50_257, rows: 32, ..LARGE };

/// Decoding on a GPU: rows at once, tokens of every prompt, tokens after it; 512 is the mean context.
const DECODE_ROWS: [usize; 2] = [32, 128];
const DECODE_PROMPT: usize = 384;
const DECODE_NEW: usize = 256;

const GPT2: &str = r#"{"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 128, "n_layer": 4,
    "n_head": 4, "n_positions": 256, "vocab_size": 512, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}"#;
const LLAMA: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128,
    "intermediate_size": 344, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4,
    "max_position_embeddings": 256, "vocab_size": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": true, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}"#;

const GPT2_124M: &str = include_str!("gpt2-124m.json");
const QWEN_500M: &str = include_str!("qwen2.5-0.5b.json");
const QWEN_1500M: &str = include_str!("qwen2.5-1.5b.json");

fn main_group(criterion: &mut Criterion) {
    // A configuration of this file is known to be good; a failure here is worth a stop.
    if let Err(error) = bench::device().and_then(|device| run(criterion, &device)) {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn run(criterion: &mut Criterion, device: &Device) -> Result<()> {
    println!("steps on {}", bench::describe(device));
    if device.name() == "emulated" {
        println!("skipped: everything, because an emulated GPU's times say nothing about one");
        return Ok(());
    }
    for (name, config) in [("gpt2", GPT2), ("llama", LLAMA)] {
        let mut models = Models::new(device, name, config)?;
        stages(criterion, &mut models, name, SMALL)?;
        generation(criterion, &mut models, name, SMALL)?;
    }
    if *device == Device::Cpu {
        println!("skipped: the models of GPT-2 124M's and Qwen2.5's shapes, because the device is not a GPU");
        return Ok(());
    }
    for (name, config, shape) in [("gpt2-124m", GPT2_124M, GPT2_124M_SHAPE), ("qwen2.5-1.5b", QWEN_1500M, LARGE)] {
        supervised(criterion, &mut Models::new(device, name, config)?, name, shape)?;
    }
    let mut models = Models::new(device, "qwen2.5-0.5b", QWEN_500M)?;
    decoding(criterion, &mut models, "qwen2.5-0.5b", LARGE)?;
    stages(criterion, &mut models, "qwen2.5-0.5b", LARGE)
}

/// A policy, and a value and a reward model of its shape, made when they are asked for.
struct Models {
    device: Device,
    config: ModelConfig,
    policy: Option<Model>,
    value: Option<Model>,
    reward: Option<Model>,
}

impl Models {
    fn new(device: &Device, name: &str, config: &str) -> Result<Self> {
        let config = ModelConfig::parse(config, name)?;
        Ok(Self { device: device.clone(), config, policy: None, value: None, reward: None })
    }

    /// The policy, which a loop consumes and gives back.
    fn take_policy(&mut self) -> Result<Model> {
        self.policy.take().map_or_else(|| Model::fresh(&self.device, self.config.clone(), 1), Ok)
    }

    fn take_reward(&mut self) -> Result<Model> {
        self.reward.take().map_or_else(|| self.scored(1), Ok)
    }

    fn take_value(&mut self) -> Result<Model> {
        self.value.take().map_or_else(|| self.scored(2), Ok)
    }

    fn scored(&mut self, seed: u64) -> Result<Model> {
        let policy = self.take_policy()?;
        let scored = policy.value_model(seed);
        self.policy = Some(policy);
        scored
    }
}

fn supervised(criterion: &mut Criterion, models: &mut Models, name: &str, shape: Shape) -> Result<()> {
    let tokens = (shape.rows * shape.tokens) as u64;
    bench(criterion, models, ["sft", name], tokens, &mut |models, steps| time_sft(models, shape, steps))
}

/// The rates of all three stages.
fn stages(criterion: &mut Criterion, models: &mut Models, name: &str, shape: Shape) -> Result<()> {
    let (rows, episodes) = (shape.rows as u64, shape.episodes as u64);
    supervised(criterion, models, name, shape)?;
    bench(criterion, models, ["reward", name], rows, &mut |models, steps| time_reward(models, shape, steps))?;
    bench(criterion, models, ["ppo", name], episodes, &mut |models, steps| time_ppo(models, shape, steps))
}

/// Tokens a second of a batch of prompts of mixed lengths, from half to one and a half times the query's.
fn generation(criterion: &mut Criterion, models: &mut Models, name: &str, shape: Shape) -> Result<()> {
    let length = |row| shape.query / 2 + row * shape.query / shape.episodes;
    let prompts: Vec<_> = (0..shape.episodes).map(|row| tokens(length(row), row, shape.vocabulary)).collect();
    let made = (shape.episodes * shape.response) as u64;
    bench(criterion, models, ["generate", name], made, &mut |models, calls| {
        time_generate(models, &prompts, shape.response, calls)
    })
}

/// Whole answers to long prompts, and their first token alone: the difference is the decoding.
fn decoding(criterion: &mut Criterion, models: &mut Models, name: &str, shape: Shape) -> Result<()> {
    for rows in DECODE_ROWS {
        let prompts: Vec<_> = (0..rows).map(|row| tokens(DECODE_PROMPT, row, shape.vocabulary)).collect();
        for (task, new) in [("prefill", 1), ("generate", DECODE_NEW)] {
            bench(
                criterion,
                models,
                [task, &format!("{name} B {rows}")],
                (rows * new) as u64,
                &mut |models, calls| time_generate(models, &prompts, new, calls),
            )?;
        }
    }
    Ok(())
}

/// Takes so many steps and says how long they took.
type Time<'a> = &'a mut (dyn FnMut(&mut Models, usize) -> Result<Duration> + Send);

fn bench(
    criterion: &mut Criterion,
    models: &mut Models,
    [task, model]: [&str; 2],
    units: u64,
    time: Time<'_>,
) -> Result<()> {
    let mut group = criterion.benchmark_group(task);
    group.throughput(Throughput::Elements(units));
    group.sample_size(10).measurement_time(Duration::from_secs(8)).warm_up_time(Duration::from_secs(2));
    let (device, mut failed) = (models.device.clone(), None);
    group.bench_function(BenchmarkId::from_parameter(model), |bencher| {
        bencher.iter_custom(|steps| match (&failed, in_pool(&device, || time(models, steps as usize))) {
            (None, Ok(duration)) => duration,
            (_, result) => {
                failed = failed.take().or(result.err());
                Duration::from_secs(1)
            }
        });
    });
    group.finish();
    failed.map_or(Ok(()), Err)
}

/// Token ids that look random and are the same every time.
fn tokens(n: usize, row: usize, vocabulary: usize) -> Vec<i32> {
    (0..n).map(|i| ((i * 7919 + row * 104_729 + 13) * 48_271 % 65_537 % vocabulary) as i32).collect()
}

fn time_sft(models: &mut Models, shape: Shape, steps: usize) -> Result<Duration> {
    let mut config = defaults::<SftConfig>()?;
    config.optimizer.per_device_train_batch_size = Some(shape.rows);
    config.epochs.max_steps = Some(steps);
    let n = shape.tokens;
    let row =
        |row| SftExample { ids: tokens(n, row, shape.vocabulary), is_target: vec![true; n], place: String::new() };
    let data: Vec<SftExample> = (0..64).map(row).collect();
    let groups: Vec<Vec<usize>> = (0..data.len()).map(|i| vec![i]).collect();
    let model = models.take_policy()?;
    let start = Instant::now();
    let trained = sft::train(model, &data, &groups, &[], &config, &mut Journal::silent(), &mut ())?;
    let elapsed = start.elapsed();
    models.policy = Some(trained);
    Ok(elapsed)
}

fn time_reward(models: &mut Models, shape: Shape, steps: usize) -> Result<Duration> {
    let mut config = defaults::<RewardConfig>()?;
    config.optimizer.per_device_train_batch_size = Some(shape.rows);
    config.epochs.max_steps = Some(steps);
    let pair = |row: usize| PairExample {
        chosen: tokens(shape.tokens, 2 * row, shape.vocabulary),
        rejected: tokens(shape.tokens, 2 * row + 1, shape.vocabulary),
        margin: 0.0,
        place: String::new(),
    };
    let data: Vec<PairExample> = (0..64).map(pair).collect();
    let model = models.take_reward()?;
    let start = Instant::now();
    let trained = reward::train(model, &data, &[], &config, &mut Journal::silent(), &mut ())?;
    let elapsed = start.elapsed();
    models.reward = Some(trained);
    Ok(elapsed)
}

fn time_generate(models: &mut Models, prompts: &[Vec<i32>], new: usize, calls: usize) -> Result<Duration> {
    let (prompts, model) = (prompts.iter().map(|p| &p[..]).collect::<Vec<_>>(), models.take_policy()?);
    let start = Instant::now();
    (0..calls).try_for_each(|_| rollout(&model, &prompts, new).map(|_| ()))?;
    let elapsed = start.elapsed();
    models.policy = Some(model);
    Ok(elapsed)
}

fn time_ppo(models: &mut Models, shape: Shape, batches: usize) -> Result<Duration> {
    let mut config = defaults::<PpoConfig>()?;
    config.optimizer.per_device_train_batch_size = Some(shape.micro_batch);
    config.optimizer.gradient_accumulation_steps = shape.episodes / shape.micro_batch;
    config.loss.num_ppo_epochs = shape.epochs;
    config.rollout.total_episodes = Some(batches * shape.episodes);
    config.rollout.response_length = shape.response;
    let prompt = |row: usize| PromptExample {
        ids: tokens(shape.query, row, shape.vocabulary),
        text: String::new(),
        place: String::new(),
    };
    let prompts: Vec<PromptExample> = (0..shape.episodes).map(prompt).collect();
    // The policy last: the others are made from it.
    let (mut reward, value_model) = (models.take_reward()?, models.take_value()?);
    let start = Start::new(models.take_policy()?, value_model, &mut reward, &[]);
    let clock = Instant::now();
    let finish = ppo::train(start, &prompts, &config, &mut Journal::silent(), &mut ())?;
    let elapsed = clock.elapsed();
    (models.policy, models.value, models.reward) = (Some(finish.policy), Some(finish.value_model), Some(reward));
    Ok(elapsed)
}

criterion_group!(benches, main_group);
criterion_main!(benches);
