//! The three stages on the emulated GPU: the kernels that are shipped, in the launches that a card would get. SFT and
//! reward losses follow the CPU's, PPO's numbers are compared on recorded answers, and a free run raises a reward.

use std::sync::Arc;

use super::ppo::{self, Start};
use super::reward::Episode;
use super::{reward, sft};
use crate::config::{PpoConfig, RewardConfig, SftConfig, defaults};
use crate::data::encode::{PairExample, PromptExample, SftExample};
use crate::device::emulated::Emulated;
use crate::device::{Device, Gpu};
use crate::dtype::DType;
use crate::error::Result;
use crate::model::generate::{Generation, Sampling};
use crate::model::{Model, ModelConfig};
use crate::random::{Philox, Stage};
use crate::train::metrics::Journal;

const VOCABULARY: usize = 96;

/// Grouped queries, tied embeddings, a bias on queries, keys and values; two layers, head size 64.
pub(super) const QWEN2: &str = r#"{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 64, "max_position_embeddings": 64, "vocab_size": 96, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": true, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}"#;
/// Layer norms, learned positions, GELU, biases everywhere.
pub(super) const GPT2: &str = r#"{"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 64,
    "n_layer": 2, "n_head": 1, "n_positions": 64, "vocab_size": 96, "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}"#;

pub(super) fn emulated() -> Device {
    Device::parse("emulated").unwrap()
}

pub(super) fn model(device: &Device, config: &str) -> Model {
    Model::fresh(device, ModelConfig::parse(config, "a test").unwrap(), 3).unwrap()
}

pub(super) fn tokens(n: usize, row: u32) -> Vec<i32> {
    let mut stream = Philox::new(8, Stage::Init, 0, row);
    (0..n).map(|_| (stream.normal().abs() * 1000.0) as i32 % (VOCABULARY as i32 - 3) + 3).collect()
}

/// What a run wrote under `key`, step by step.
fn logged(key: &str, run: impl FnOnce(&mut Journal) -> Result<()>) -> Vec<f64> {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::new(dir.path(), true).unwrap();
    run(&mut journal).unwrap();
    let text = std::fs::read_to_string(dir.path().join("metrics.jsonl")).unwrap();
    let rows = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    rows.filter_map(|row| row[key].as_f64()).collect()
}

/// The curves agree at every step to `bound` of their first value.
fn assert_follows(what: &str, ours: &[f64], cpu: &[f64], steps: usize, bound: f64) {
    assert_eq!((ours.len(), cpu.len()), (steps, steps), "{what}");
    for (step, (a, b)) in ours.iter().zip(cpu).enumerate() {
        assert!((a - b).abs() <= bound * cpu[0].abs(), "{what} step {}: {a} on the GPU, {b} on the CPU", step + 1);
    }
}

fn sft_losses(device: &Device, config: &str, steps: usize) -> Vec<f64> {
    let row = |row: u32| {
        let ids = tokens(4 + row as usize % 7, row);
        SftExample { is_target: (0..ids.len()).map(|i| i % 4 != 1).collect(), ids, place: format!("row {row}") }
    };
    let data: Vec<SftExample> = (0..8).map(row).collect();
    let groups: Vec<Vec<usize>> = (0..8).map(|i| vec![i]).collect();
    let mut settings = defaults::<SftConfig>().unwrap();
    (settings.optimizer.per_device_train_batch_size, settings.optimizer.gradient_accumulation_steps) = (Some(4), 2);
    (settings.epochs.max_steps, settings.learning_rate, settings.run.logging_steps) = (Some(steps), 5e-3, Some(1));
    logged("loss", |journal| {
        sft::train(model(device, config), &data, &groups, &[], &settings, journal, &mut ()).map(|_| ())
    })
}

#[test]
fn sft_follows_the_cpu() {
    for (name, config) in [("qwen2", QWEN2), ("gpt2", GPT2)] {
        let cpu = sft_losses(&Device::Cpu, config, 20);
        assert!(cpu[19] < 0.6 * cpu[0], "{name}: the loss falls: {cpu:?}");
        // bf16 has 8 bits: after 20 steps the curves are still one, but for the rounding of weights and activations.
        assert_follows(name, &sft_losses(&emulated(), config, 20), &cpu, 20, 0.02);
        let exact = sft_losses(&emulated().in_f32(), config, 5);
        assert_follows(&format!("{name} in f32"), &exact, &sft_losses(&Device::Cpu, config, 5), 5, 1e-5);
    }
}

fn reward_losses(device: &Device, steps: usize) -> Vec<f64> {
    let pair = |row: u32| PairExample {
        chosen: [&tokens(3 + row as usize % 5, row)[..], &[7]].concat(),
        rejected: [&tokens(5, row + 500)[..], &[9]].concat(),
        margin: 0.1,
        place: format!("pair {row}"),
    };
    let data: Vec<PairExample> = (0..8).map(pair).collect();
    let mut settings = defaults::<RewardConfig>().unwrap();
    (settings.optimizer.per_device_train_batch_size, settings.center_rewards_coefficient) = (Some(8), 0.01);
    (settings.epochs.max_steps, settings.learning_rate, settings.run.logging_steps) = (Some(steps), 2e-3, Some(1));
    let start = model(device, QWEN2).value_model(1).unwrap();
    logged("loss", |journal| reward::train(start, &data, &[], &settings, journal, &mut ()).map(|_| ()))
}

#[test]
fn reward_training_follows_the_cpu() {
    let cpu = reward_losses(&Device::Cpu, 10);
    assert!(cpu[9] < 0.7 * cpu[0], "the loss falls: {cpu:?}");
    assert_follows("reward", &reward_losses(&emulated(), 10), &cpu, 10, 0.03);
    assert_follows("reward in f32", &reward_losses(&emulated().in_f32(), 10), &cpu, 10, 1e-4);
}

/// A reward that anyone can learn: the share of even tokens.
pub(super) fn even_tokens(episodes: &[Episode<'_>]) -> Result<Vec<f32>> {
    let share = |e: &Episode<'_>| e.response.iter().filter(|t| **t % 2 == 0).count() as f32 / e.response.len() as f32;
    Ok(episodes.iter().map(share).collect())
}

pub(super) fn ppo_config(batches: usize) -> PpoConfig {
    let mut config = defaults::<PpoConfig>().unwrap();
    (config.optimizer.per_device_train_batch_size, config.loss.num_mini_batches) = (Some(8), 2);
    (config.loss.learning_rate, config.rollout.kl_coef, config.loss.entropy_coef) = (5e-3, 0.01, 0.01);
    (config.rollout.response_length, config.rollout.total_episodes) = (6, Some(batches * config.batch_size()));
    (config.loss.num_ppo_epochs, config.run.logging_steps) = (2, Some(1));
    config
}

/// Three batches of PPO on a CPU and on a device, with the CPU's answers for both: every number of the update agrees.
#[test]
fn ppo_agrees_on_recorded_answers() {
    let queries: Vec<Vec<i32>> = (0..16).map(|row| tokens(2 + row as usize % 4, row)).collect();
    let recorded =
        ppo::replay(model(&Device::Cpu, QWEN2), &queries, &ppo_config(3), 3, None, &mut even_tokens).unwrap();
    // After three batches of eight optimizer steps, weights that were rounded to 8 bits are this far apart.
    for (device, bound) in [(emulated(), 0.1f64), (emulated().in_f32(), 1e-3)] {
        let start = model(&device, QWEN2);
        let ours = ppo::replay(start, &queries, &ppo_config(3), 3, Some(&recorded), &mut even_tokens).unwrap();
        for (batch, (ours, cpu)) in ours.iter().zip(&recorded).enumerate() {
            for ((name, a), (_, b)) in ours.numbers.iter().zip(&cpu.numbers) {
                // Clipped terms are counted: one that stands at the border falls to either side.
                let bound = if name.contains("clipfrac") { bound.max(0.02) * 4.0 } else { bound };
                assert!((a - b).abs() <= bound * b.abs().max(0.2), "batch {batch} {name}: {a} on {device:?}, CPU {b}");
            }
        }
    }
}

#[test]
fn a_plain_reward_rises_on_the_emulated_gpu() {
    let mut config = ppo_config(16);
    config.loss.num_ppo_epochs = 4;
    let prompt = |row| PromptExample { ids: tokens(3, row), text: String::new(), place: String::new() };
    let prompts: Vec<PromptExample> = (0..16).map(prompt).collect();
    let policy = model(&emulated(), QWEN2);
    let value_model = policy.value_model(1).unwrap();
    let scores = logged("objective/scores", |journal| {
        let start = Start { policy, value_model, reward: &mut even_tokens, stop: &[2], normalize: None, judge: None };
        ppo::train(start, &prompts, &config, journal, &mut ()).map(|_| ())
    });
    assert_eq!(scores.len(), 16);
    let mean = |s: &[f64]| s.iter().sum::<f64>() / s.len() as f64;
    assert!(mean(&scores[13..]) > mean(&scores[..3]) + 0.15, "{scores:?}");
}

/// The log-probabilities that a rollout stores are, to the bit, those of the training forward for the same tokens:
/// other lengths, other neighbours, one token at a time or all at once.
fn assert_on_policy(device: &Device, slots: Option<usize>) {
    // At least 10,000 tokens; 100,000 if asked for.
    let rows = if std::env::var_os("RLHF_SLOW").is_some() { 4000 } else { 400 };
    let policy = model(device, QWEN2);
    let queries: Vec<Vec<i32>> = (0..rows).map(|row| tokens(2 + row as usize % 7, row)).collect();
    let prompts: Vec<&[i32]> = queries.iter().map(|q| &q[..]).collect();
    let generation = Generation {
        sampling: Sampling { temperature: 0.9, top_k: 0, top_p: 1.0 },
        max_new_tokens: 54,
        stop: &[3, 40],
        seed: 5,
        stage: Stage::Rollout,
        step: 0,
        first_row: 0,
        slots,
    };
    let responses = policy.generate(&policy.frozen().unwrap(), &prompts, &generation).unwrap().responses;
    let stored: Vec<f32> = responses.iter().flat_map(|r| r.logprobs.iter().copied()).collect();
    let lengths: std::collections::BTreeSet<usize> = responses.iter().map(|r| r.tokens.len()).collect();
    assert!(stored.len() >= 25 * rows as usize && lengths.len() > 30, "{} tokens, lengths {lengths:?}", stored.len());
    let sequences: Vec<Vec<i32>> = queries.iter().zip(&responses).map(|(q, r)| [&q[..], &r.tokens].concat()).collect();
    let starts: Vec<usize> = queries.iter().map(Vec::len).collect();
    let trained = super::rollout::response_logprobs(&policy, &sequences, &starts, 0.9).unwrap();
    let differ = stored.iter().zip(&trained).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    assert_eq!(differ, 0, "of {} log-probabilities on {device:?}", stored.len());
    // Positive control: another model's are others.
    let other = Model::fresh(device, ModelConfig::parse(QWEN2, "a test").unwrap(), 4).unwrap();
    let others = super::rollout::response_logprobs(&other, &sequences[..4], &starts[..4], 0.9).unwrap();
    assert!(others.iter().zip(&stored).all(|(a, b)| a != b));
}

#[test]
fn a_rollout_is_on_policy_to_the_bit_on_the_cpu() {
    assert_on_policy(&Device::Cpu, None);
}

#[test]
fn a_rollout_is_on_policy_to_the_bit_on_the_emulated_gpu() {
    // Prompts wait for slots, batches shrink and grow again.
    assert_on_policy(&emulated(), Some(70));
}

/// The largest `logp_diff` of a batch of PPO on a GPU with a library, whose sums depend on the number of rows.
fn logp_diff_with_a_library(exact: bool) -> f64 {
    let options = crate::ptx::Options { races: false, initialised: false, count: false, ..Default::default() };
    let device = Device::Gpu(Gpu::new(Arc::new(Emulated::with_library(options)), DType::F32)).exact(exact);
    assert_eq!(device.is_row_invariant(), exact);
    let policy = model(&device, QWEN2);
    let value_model = policy.value_model(1).unwrap();
    let prompt = |row| PromptExample { ids: tokens(3, row), text: String::new(), place: String::new() };
    let diffs = logged("logp_diff/max", |journal| {
        let start = Start { policy, value_model, reward: &mut even_tokens, stop: &[2], normalize: None, judge: None };
        let prompts: Vec<PromptExample> = (0..16).map(prompt).collect();
        ppo::train(start, &prompts, &ppo_config(1), journal, &mut ()).map(|_| ())
    });
    diffs[0]
}

#[test]
fn an_exact_device_keeps_forward_products_from_a_library() {
    assert_eq!(logp_diff_with_a_library(true), 0.0);
    let diff = logp_diff_with_a_library(false);
    assert!(diff > 0.0 && diff < 1e-4, "{diff}");
}

/// Launches, uploads and downloads of a run.
fn counted(run: impl FnOnce(&Device)) -> [i64; 3] {
    let options = crate::ptx::Options { races: false, initialised: false, ..Default::default() };
    let driver = Arc::new(Emulated::new(options));
    run(&Device::Gpu(Gpu::new(driver.clone(), DType::BF16)));
    let copies = driver.take_copies();
    [driver.take_launched().len(), copies.uploads, copies.downloads].map(|n| n as i64)
}

/// One batch of PPO in `epochs` optimizer steps of both models.
fn ppo_steps(device: &Device, epochs: usize) {
    let mut config = ppo_config(1);
    (config.optimizer.per_device_train_batch_size, config.optimizer.gradient_accumulation_steps) = (Some(4), 2);
    (config.loss.num_mini_batches, config.loss.num_ppo_epochs, config.rollout.total_episodes) = (1, epochs, Some(8));
    let prompt = |row| PromptExample { ids: tokens(3, row), text: String::new(), place: String::new() };
    let prompts: Vec<PromptExample> = (0..8).map(prompt).collect();
    let policy = model(device, QWEN2);
    let value_model = policy.value_model(1).unwrap();
    let start = Start { policy, value_model, reward: &mut even_tokens, stop: &[2], normalize: None, judge: None };
    ppo::train(start, &prompts, &config, &mut Journal::silent(), &mut ()).map(|_| ()).unwrap();
}

/// What one more step of each stage and eight more decoded tokens a row cost a GPU's host: a launch or a wait more
/// fails here. The model has two layers; a micro-batch has four rows, a step of SFT and PPO two micro-batches, of the
/// reward model one of eight pairs, a decode step three rows. A step waits for the device once.
#[test]
fn a_step_and_a_token_cost_what_they_cost() {
    let sft = |steps| counted(|device| drop(sft_losses(device, QWEN2, steps)));
    let decode = |config: &str, tokens: usize| {
        counted(|device| {
            let model = model(device, config);
            let generation = Generation {
                sampling: Sampling { temperature: 1.0, top_k: 0, top_p: 1.0 },
                max_new_tokens: tokens,
                stop: &[],
                seed: 5,
                stage: Stage::Rollout,
                step: 0,
                first_row: 0,
                slots: None,
            };
            let prompts: [&[i32]; 3] = [&[4, 5], &[6], &[7, 8, 9]];
            model.generate(&model.frozen().unwrap(), &prompts, &generation).unwrap();
        })
    };
    let more = |a: [i64; 3], b: [i64; 3]| [0, 1, 2].map(|i| b[i] - a[i]);
    let reward = |steps| counted(|device| drop(reward_losses(device, steps)));
    let ppo = |epochs| counted(|device| ppo_steps(device, epochs));
    assert_eq!(more(sft(1), sft(2)), [141, 24, 1], "launches, uploads and downloads of an SFT step");
    assert_eq!(more(reward(1), reward(2)), [71, 12, 1], "launches, uploads and downloads of a reward step");
    assert_eq!(more(ppo(1), ppo(2)), [280, 46, 1], "launches, uploads and downloads of a step of PPO");
    // Nine launches a layer and six around them a step, of which the host knows nothing; then it looks once, at the
    // tokens and at their log-probabilities.
    let qwen3 = QWEN2.replace("Qwen2", "Qwen3").replace("qwen2", "qwen3");
    // GPT-2 has learned positions: two launches more around the layers.
    for (config, others) in [(QWEN2, 6), (&qwen3, 6), (GPT2, 8)] {
        let cost = more(decode(config, 9), decode(config, 17));
        assert_eq!(cost, [8 * (9 * 2 + others), 0, 2], "launches, uploads and downloads of eight steps: {config}");
    }
}
