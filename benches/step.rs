//! Tokens, pairs and episodes a second of one step of each stage, on a small GPT-2 and a small Llama: the Rust side of
//! `benches/peers/compare.py`. Criterion reports the time of one step; its throughput is the rate.

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rlhf::config::{PpoConfig, RewardConfig, SftConfig, defaults};
use rlhf::data::encode::{PairExample, PromptExample, SftExample};
use rlhf::model::ModelConfig;
use rlhf::train::ppo::{self, Start};
use rlhf::train::{reward, sft};
use rlhf::{Device, Journal, Model, Result};

const VOCABULARY: usize = 512;
const TOKENS: usize = 128;
const ROWS: usize = 8;
const EPISODES: usize = 32;
const QUERY: usize = 32;
const RESPONSE: usize = 64;

const GPT2: &str = r#"{"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 128, "n_layer": 4,
    "n_head": 4, "n_positions": 256, "vocab_size": 512, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}"#;
const LLAMA: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128,
    "intermediate_size": 344, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4,
    "max_position_embeddings": 256, "vocab_size": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": true, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}"#;

fn main_group(criterion: &mut Criterion) {
    for (name, config) in [("gpt2", GPT2), ("llama", LLAMA)] {
        // A configuration of this file is known to be good; a failure here is worth a stop.
        let model = || -> Result<Model> { Model::fresh(&Device::Cpu, ModelConfig::parse(config, name)?, 1) };
        bench(criterion, name, "sft", (ROWS * TOKENS) as u64, &|steps| time_sft(model()?, steps));
        bench(criterion, name, "reward", ROWS as u64, &|steps| time_reward(model()?, steps));
        bench(criterion, name, "ppo", EPISODES as u64, &|steps| time_ppo(model()?, steps));
    }
}

fn bench(
    criterion: &mut Criterion,
    model: &str,
    task: &str,
    units: u64,
    time: &(dyn Fn(usize) -> Result<Duration> + Sync),
) {
    let mut group = criterion.benchmark_group(task);
    group.throughput(Throughput::Elements(units));
    group.sample_size(10).measurement_time(Duration::from_secs(8)).warm_up_time(Duration::from_secs(2));
    group.bench_function(BenchmarkId::from_parameter(model), |bencher| {
        // Inside the pool of threads, as the binary runs.
        bencher.iter_custom(|steps| rayon::scope(|_| time(steps as usize)).unwrap_or_else(|e| fail(&e)));
    });
    group.finish();
}

fn fail(error: &rlhf::Error) -> Duration {
    eprintln!("error: {error}");
    std::process::exit(1)
}

/// Token ids that look random and are the same every time.
fn tokens(n: usize, row: usize) -> Vec<i32> {
    (0..n).map(|i| ((i * 7919 + row * 104_729 + 13) * 48_271 % 65_537 % VOCABULARY) as i32).collect()
}

fn time_sft(model: Model, steps: usize) -> Result<Duration> {
    let mut config = defaults::<SftConfig>()?;
    config.optimizer.per_device_train_batch_size = ROWS;
    config.epochs.max_steps = Some(steps);
    let data: Vec<SftExample> = (0..64)
        .map(|row| SftExample { ids: tokens(TOKENS, row), is_target: vec![true; TOKENS], place: String::new() })
        .collect();
    let groups: Vec<Vec<usize>> = (0..data.len()).map(|i| vec![i]).collect();
    let start = Instant::now();
    sft::train(model, &data, &groups, &[], &config, &mut Journal::silent(), &mut |_, _| Ok(()))?;
    Ok(start.elapsed())
}

fn time_reward(model: Model, steps: usize) -> Result<Duration> {
    let mut config = defaults::<RewardConfig>()?;
    config.optimizer.per_device_train_batch_size = ROWS;
    config.epochs.max_steps = Some(steps);
    let pair = |row: usize| PairExample {
        chosen: tokens(TOKENS, 2 * row),
        rejected: tokens(TOKENS, 2 * row + 1),
        margin: 0.0,
        place: String::new(),
    };
    let data: Vec<PairExample> = (0..64).map(pair).collect();
    let model = model.value_model(1)?;
    let start = Instant::now();
    reward::train(model, &data, &[], &config, &mut Journal::silent(), &mut |_, _| Ok(()))?;
    Ok(start.elapsed())
}

fn time_ppo(model: Model, batches: usize) -> Result<Duration> {
    let mut config = defaults::<PpoConfig>()?;
    config.optimizer.per_device_train_batch_size = EPISODES;
    config.rollout.total_episodes = Some(batches * EPISODES);
    config.rollout.response_length = RESPONSE;
    let prompt = |row: usize| PromptExample { ids: tokens(QUERY, row), text: String::new(), place: String::new() };
    let prompts: Vec<PromptExample> = (0..EPISODES).map(prompt).collect();
    let (value_model, mut reward) = (model.value_model(1)?, model.value_model(2)?);
    let start = Start { policy: model, value_model, reward: &mut reward, stop: &[], normalize: None };
    let clock = Instant::now();
    ppo::train(start, &prompts, &config, &mut Journal::silent(), &mut |_, _| Ok(()))?;
    Ok(clock.elapsed())
}

criterion_group!(benches, main_group);
criterion_main!(benches);
