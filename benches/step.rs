//! Tokens, pairs and episodes a second of one step of each stage, and sampled tokens a second, on a small GPT-2 and a
//! small Llama, on a GPU also on a random model of Qwen2.5-0.5B's shape: the Rust side of `benches/peers/compare.py`.
//! Criterion reports the time of one step; its throughput is the rate. `RLHF_DEVICE` names the device, as `--device`
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
    tokens: usize,
    rows: usize,
    episodes: usize,
    query: usize,
    response: usize,
}

const SMALL: Shape = Shape { vocabulary: 512, tokens: 128, rows: 8, episodes: 32, query: 32, response: 64 };
const LARGE: Shape = Shape { vocabulary: 151_936, tokens: 1024, rows: 8, episodes: 64, query: 128, response: 128 };

const GPT2: &str = r#"{"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 128, "n_layer": 4,
    "n_head": 4, "n_positions": 256, "vocab_size": 512, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}"#;
const LLAMA: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128,
    "intermediate_size": 344, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4,
    "max_position_embeddings": 256, "vocab_size": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": true, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}"#;

const QWEN: &str = include_str!("qwen2.5-0.5b.json");

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
    stages(criterion, device, "gpt2", GPT2, SMALL)?;
    stages(criterion, device, "llama", LLAMA, SMALL)?;
    if *device == Device::Cpu {
        println!("skipped: the model of Qwen2.5-0.5B's shape, because the device is not a GPU");
        return Ok(());
    }
    stages(criterion, device, "qwen2.5-0.5b", QWEN, LARGE)
}

/// All four rates of one model.
fn stages(criterion: &mut Criterion, device: &Device, name: &str, config: &str, shape: Shape) -> Result<()> {
    let model = Model::fresh(device, ModelConfig::parse(config, name)?, 1)?;
    let mut reward_model = Some(model.value_model(1)?);
    let mut value_model = Some(model.value_model(2)?);
    let mut policy = Some(model);
    let (rows, episodes) = (shape.rows as u64, shape.episodes as u64);
    let (tokens, answers) = (rows * shape.tokens as u64, episodes * shape.response as u64);
    let mut bench = |task, units, time: Time<'_>| bench(criterion, device, [task, name], units, time);
    bench("sft", tokens, &mut |steps| time_sft(&mut policy, shape, steps))?;
    bench("reward", rows, &mut |steps| time_reward(&mut reward_model, shape, steps))?;
    bench("rollout", answers, &mut |steps| time_rollout(&policy, shape, steps))?;
    bench("ppo", episodes, &mut |steps| time_ppo([&mut policy, &mut value_model], &mut reward_model, shape, steps))
}

/// Takes so many steps and says how long they took.
type Time<'a> = &'a mut (dyn FnMut(usize) -> Result<Duration> + Send);

fn bench(
    criterion: &mut Criterion,
    device: &Device,
    [task, model]: [&str; 2],
    units: u64,
    time: Time<'_>,
) -> Result<()> {
    let mut group = criterion.benchmark_group(task);
    group.throughput(Throughput::Elements(units));
    group.sample_size(10).measurement_time(Duration::from_secs(8)).warm_up_time(Duration::from_secs(2));
    let mut failed = None;
    group.bench_function(BenchmarkId::from_parameter(model), |bencher| {
        bencher.iter_custom(|steps| match (&failed, in_pool(device, || time(steps as usize))) {
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

/// The model, which the loop gives back.
fn taken(model: &mut Option<Model>) -> Result<Model> {
    model.take().ok_or_else(|| rlhf::Error::failure("bench", "an earlier step failed"))
}

fn time_sft(model: &mut Option<Model>, shape: Shape, steps: usize) -> Result<Duration> {
    let mut config = defaults::<SftConfig>()?;
    config.optimizer.per_device_train_batch_size = shape.rows;
    config.epochs.max_steps = Some(steps);
    let n = shape.tokens;
    let row =
        |row| SftExample { ids: tokens(n, row, shape.vocabulary), is_target: vec![true; n], place: String::new() };
    let data: Vec<SftExample> = (0..64).map(row).collect();
    let groups: Vec<Vec<usize>> = (0..data.len()).map(|i| vec![i]).collect();
    let start = Instant::now();
    let trained = sft::train(taken(model)?, &data, &groups, &[], &config, &mut Journal::silent(), &mut |_, _| Ok(()))?;
    let elapsed = start.elapsed();
    *model = Some(trained);
    Ok(elapsed)
}

fn time_reward(model: &mut Option<Model>, shape: Shape, steps: usize) -> Result<Duration> {
    let mut config = defaults::<RewardConfig>()?;
    config.optimizer.per_device_train_batch_size = shape.rows;
    config.epochs.max_steps = Some(steps);
    let pair = |row: usize| PairExample {
        chosen: tokens(shape.tokens, 2 * row, shape.vocabulary),
        rejected: tokens(shape.tokens, 2 * row + 1, shape.vocabulary),
        margin: 0.0,
        place: String::new(),
    };
    let data: Vec<PairExample> = (0..64).map(pair).collect();
    let start = Instant::now();
    let trained = reward::train(taken(model)?, &data, &[], &config, &mut Journal::silent(), &mut |_, _| Ok(()))?;
    let elapsed = start.elapsed();
    *model = Some(trained);
    Ok(elapsed)
}

fn time_rollout(model: &Option<Model>, shape: Shape, steps: usize) -> Result<Duration> {
    let queries: Vec<Vec<i32>> = (0..shape.episodes).map(|row| tokens(shape.query, row, shape.vocabulary)).collect();
    let queries: Vec<&[i32]> = queries.iter().map(|q| &q[..]).collect();
    let start = Instant::now();
    for model in model.iter().cycle().take(steps) {
        rollout(model, &queries, shape.response)?;
    }
    Ok(start.elapsed())
}

fn time_ppo(
    [policy, value_model]: [&mut Option<Model>; 2],
    reward_model: &mut Option<Model>,
    shape: Shape,
    batches: usize,
) -> Result<Duration> {
    let mut config = defaults::<PpoConfig>()?;
    config.optimizer.per_device_train_batch_size = shape.episodes;
    config.rollout.total_episodes = Some(batches * shape.episodes);
    config.rollout.response_length = shape.response;
    let prompt = |row: usize| PromptExample {
        ids: tokens(shape.query, row, shape.vocabulary),
        text: String::new(),
        place: String::new(),
    };
    let prompts: Vec<PromptExample> = (0..shape.episodes).map(prompt).collect();
    let mut reward = taken(reward_model)?;
    let start = Start {
        policy: taken(policy)?,
        value_model: taken(value_model)?,
        reward: &mut reward,
        stop: &[],
        normalize: None,
    };
    let clock = Instant::now();
    let finish = ppo::train(start, &prompts, &config, &mut Journal::silent(), &mut |_, _| Ok(()))?;
    let elapsed = clock.elapsed();
    (*policy, *value_model, *reward_model) = (Some(finish.policy), Some(finish.value_model), Some(reward));
    Ok(elapsed)
}

criterion_group!(benches, main_group);
criterion_main!(benches);
