//! `--recompute` changes how much memory a step takes and not one bit of what it computes: the three stages on the CPU
//! and on the emulated GPU, and the peaks of one forward and backward pass.

use std::sync::Arc;

use super::emulated::{GPT2, QWEN2, emulated, even_tokens, model, ppo_config, tokens};
use super::{ppo, reward, sft};
use crate::config::{Recompute, RewardConfig, SftConfig, defaults};
use crate::data::encode::{PairExample, SftExample};
use crate::device::emulated::Emulated;
use crate::device::{Device, Gpu};
use crate::dtype::DType;
use crate::model::Model;
use crate::model::heads::Packed;
use crate::model::params::Grads;
use crate::objective::losses::Objective;
use crate::train::metrics::Journal;

const MODES: [Recompute; 3] = [Recompute::None, Recompute::Cheap, Recompute::Full];

/// QWEN2 with norms of queries and keys, and without the biases.
fn qwen3() -> String {
    QWEN2.replace("Qwen2", "Qwen3").replace("qwen2", "qwen3")
}

fn devices() -> [Device; 3] {
    [Device::Cpu, emulated(), emulated().in_f32()]
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// `run` leaves the same in all modes.
fn assert_same<T: PartialEq>(what: &str, run: impl Fn(Recompute) -> T) {
    let [none, cheap, full] = MODES.map(run);
    assert!(none == cheap, "{what}: cheap differs from none");
    assert!(none == full, "{what}: full differs from none");
}

fn rows(n: u32) -> Vec<Vec<i32>> {
    (0..n).map(|row| tokens(4 + row as usize % 7, row)).collect()
}

/// The loss and all gradients of two micro-batches, of which the second is added to the first.
fn gradients(model: &Model, recompute: Recompute) -> Vec<u32> {
    let grads = Grads::new(&model.params).unwrap();
    let weights = model.trained(&grads).unwrap().recomputing(recompute);
    let mut losses = Vec::new();
    for rows in rows(6).chunks(3) {
        let packed = Packed::new(model, rows.iter().map(|row| &row[..])).unwrap();
        let (at, targets) = packed.targets(|_, _| true);
        let hidden = model.hidden(&weights, &packed).unwrap();
        let objective = Objective::Likelihood { scale: 1.0 / targets.len() as f64 };
        let loss = model.head_loss(&weights, &hidden, [&at, &targets], 1.0, &objective).unwrap();
        losses.push(loss.value().unwrap() as f32);
        drop(hidden);
        loss.root.backward().unwrap();
    }
    grads.check_complete().unwrap();
    bits(&[losses, grads.flat.to_f32().unwrap()].concat())
}

#[test]
fn losses_and_gradients_keep_their_bits() {
    for (name, config) in [("qwen2", QWEN2), ("qwen3", &qwen3()), ("gpt2", GPT2)] {
        for device in devices() {
            let model = model(&device, config);
            assert_same(&format!("{name} on {device:?}"), |mode| gradients(&model, mode));
        }
    }
}

fn journal() -> (tempfile::TempDir, Journal) {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::new(dir.path(), true).unwrap();
    (dir, journal)
}

#[test]
fn fine_tuning_keeps_its_bits() {
    let example =
        |ids: Vec<i32>| SftExample { is_target: vec![true; ids.len()], ids, place: "a row of a test".to_owned() };
    let data: Vec<SftExample> = rows(8).into_iter().map(example).collect();
    let groups: Vec<Vec<usize>> = (0..8).map(|i| vec![i]).collect();
    let mut config = defaults::<SftConfig>().unwrap();
    (config.optimizer.per_device_train_batch_size, config.optimizer.gradient_accumulation_steps) = (Some(2), 2);
    (config.epochs.max_steps, config.learning_rate) = (Some(2), 5e-3);
    for device in devices() {
        assert_same(&format!("{device:?}"), |mode| {
            let mut config = config.clone();
            config.optimizer.recompute = mode;
            let ((_dir, mut journal), start) = (journal(), model(&device, QWEN2));
            let left = sft::train(start, &data, &groups, &[], &config, &mut journal, &mut ()).unwrap();
            bits(&left.params.masters().to_f32().unwrap())
        });
    }
}

#[test]
fn a_reward_model_keeps_its_bits() {
    let pair = |row: u32| PairExample {
        chosen: [&tokens(3 + row as usize % 5, row)[..], &[7]].concat(),
        rejected: [&tokens(5, row + 500)[..], &[9]].concat(),
        margin: 0.1,
        place: format!("pair {row}"),
    };
    let data: Vec<PairExample> = (0..4).map(pair).collect();
    let mut config = defaults::<RewardConfig>().unwrap();
    (config.optimizer.per_device_train_batch_size, config.epochs.max_steps) = (Some(4), Some(2));
    for device in devices() {
        assert_same(&format!("{device:?}"), |mode| {
            let mut config = config.clone();
            config.optimizer.recompute = mode;
            let ((_dir, mut journal), start) = (journal(), model(&device, QWEN2).value_model(1).unwrap());
            let left = reward::train(start, &data, &[], &config, &mut journal, &mut ()).unwrap();
            bits(&left.params.masters().to_f32().unwrap())
        });
    }
}

/// The second batch's numbers stand on the policy and the value model that the first left.
#[test]
fn ppo_keeps_its_bits() {
    let queries: Vec<Vec<i32>> = (0..16).map(|row| tokens(2 + row as usize % 4, row)).collect();
    for device in devices() {
        assert_same(&format!("{device:?}"), |mode| {
            let mut config = ppo_config(2);
            config.optimizer.recompute = mode;
            let batches = ppo::replay(model(&device, QWEN2), &queries, &config, 2, None, &mut even_tokens).unwrap();
            let number = |x: &f64| x.to_bits();
            batches.iter().map(|b| b.numbers.iter().map(|(_, x)| number(x)).collect()).collect::<Vec<Vec<u64>>>()
        });
    }
}

/// The most bytes that a forward and backward pass holds beyond what stood before, in a model of six layers.
fn peak(config: &str, recompute: Recompute) -> i64 {
    let options = crate::ptx::Options { races: false, initialised: false, count: false, ..Default::default() };
    let device = Device::Gpu(Gpu::new(Arc::new(Emulated::new(options)), DType::BF16));
    let config = config.replace("layers\": 2", "layers\": 6").replace("n_layer\": 2", "n_layer\": 6");
    let model = model(&device, &config);
    let grads = Grads::new(&model.params).unwrap();
    let packed = Packed::new(&model, [&tokens(60, 1)[..], &tokens(60, 2)]).unwrap();
    let weights = model.trained(&grads).unwrap().recomputing(recompute);
    device.take_memory_peak().unwrap();
    let before = device.take_memory_peak().unwrap();
    let hidden = model.hidden(&weights, &packed).unwrap();
    let objective = Objective::Likelihood { scale: 0.5 };
    let loss = model.head_loss(&weights, &hidden, [&[0, 5], &[7, 9]], 1.0, &objective).unwrap();
    drop(hidden);
    loss.root.backward().unwrap();
    device.take_memory_peak().unwrap() as i64 - before as i64
}

/// Bytes that the modes save, from the table in `model/transformer.rs`: over five layers at least (the sixth is where
/// the peak stands, and may hold what it computes again), in bf16, for 120 tokens.
#[test]
fn peaks_fall_by_what_is_not_kept() {
    let (c, tokens) = (64, 120);
    // R and Q of the table, the width of `up`, and F.
    for (name, config, [r, q, up, f]) in [
        ("qwen2", QWEN2, [256, 128, 256, 128]),
        ("qwen3", &qwen3(), [512, 128, 256, 128]),
        ("gpt2", GPT2, [192, 64, 256, 256]),
    ] {
        let [none, cheap, full] = MODES.map(|mode| peak(config, mode));
        println!("{name}: {none} none, {cheap} cheap, {full} full");
        let saved = |elements: i64| 5 * 2 * tokens * elements;
        assert!(none - cheap >= saved(2 * c + f), "{name}: {none} without, {cheap} with cheap recomputation");
        let (layer, kept) = (4 * c + r + q + up + f, 2 * c);
        // The layer that runs again holds its gradients beside its activations, so that one layer more is not saved.
        assert!(none - full >= saved(layer - kept) - 2 * tokens * layer, "{name}: {none} without, {full} with full");
        assert!(full < cheap, "{name}: {cheap} cheap, {full} full");
    }
}
