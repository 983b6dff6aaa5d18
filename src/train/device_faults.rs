//! A GPU that fails under the three stages: every call of the driver in turn answers with an error. The stage must end
//! with that error and its exit code, without a panic, and all memory and all recordings must have come back.

use std::sync::Arc;

use super::emulated::{QWEN2, ppo_config, tokens};
use super::ppo::{self, Start};
use super::{reward, sft};
use crate::config::{RewardConfig, SftConfig, defaults};
use crate::data::encode::{PairExample, PromptExample, SftExample};
use crate::device::cuda::explain;
use crate::device::emulated::Emulated;
use crate::device::faulty::{Fault, Faulty, Verb};
use crate::device::{Device, Gpu};
use crate::dtype::DType;
use crate::error::{Code, Error, Result};
use crate::model::{Model, ModelConfig};
use crate::ptx::Options;
use crate::tensor::Tensor;
use crate::train::metrics::Journal;

/// A stage's run: models, two optimizer steps or more, and what else waits for the device.
type Run = fn(&Device) -> Result<()>;

const STAGES: [(&str, Run); 3] = [("sft", run_sft), ("reward", run_reward), ("ppo", run_ppo)];

/// All zeros: what computes nothing and what computes go the same way.
fn model(device: &Device) -> Result<Model> {
    Model::zeros(device, device.dtype(), ModelConfig::parse(QWEN2, "a test")?)
}

fn run_sft(device: &Device) -> Result<()> {
    let example = |row| SftExample { ids: tokens(4, row), is_target: vec![true; 4], place: format!("row {row}") };
    let data: Vec<SftExample> = (0..4).map(example).collect();
    let mut config = defaults::<SftConfig>()?;
    (config.optimizer.per_device_train_batch_size, config.optimizer.gradient_accumulation_steps) = (Some(1), 2);
    (config.epochs.max_steps, config.eval.eval_steps) = (Some(2), Some(1));
    let groups: Vec<Vec<usize>> = (0..4).map(|i| vec![i]).collect();
    let journal = &mut Journal::silent();
    sft::train(model(device)?, &data, &groups, &data[..1], &config, journal, &mut ()).map(|_| ())
}

fn run_reward(device: &Device) -> Result<()> {
    let pair = |row| PairExample {
        chosen: tokens(3, row),
        rejected: tokens(4, row + 500),
        margin: 0.0,
        place: format!("pair {row}"),
    };
    let data: Vec<PairExample> = (0..4).map(pair).collect();
    let mut config = defaults::<RewardConfig>()?;
    (config.optimizer.per_device_train_batch_size, config.optimizer.gradient_accumulation_steps) = (Some(1), 2);
    (config.epochs.max_steps, config.eval.eval_steps) = (Some(2), Some(1));
    let start = model(device)?.value_model(1)?;
    reward::train(start, &data, &data[..1], &config, &mut Journal::silent(), &mut ()).map(|_| ())
}

fn run_ppo(device: &Device) -> Result<()> {
    let mut config = ppo_config(2);
    (config.optimizer.per_device_train_batch_size, config.loss.num_mini_batches) = (Some(2), 1);
    (config.loss.num_ppo_epochs, config.rollout.total_episodes) = (1, Some(4));
    // Long enough for steps that are recorded, and for two looks of the host.
    config.rollout.response_length = 12;
    let prompt = |row| PromptExample { ids: tokens(3, row), text: String::new(), place: String::new() };
    let prompts: Vec<PromptExample> = (0..4).map(prompt).collect();
    let policy = model(device)?;
    let (value_model, mut reward) = (policy.value_model(1)?, policy.value_model(1)?);
    let start = Start { policy, value_model, reward: &mut reward, stop: &[], normalize: None, judge: None };
    ppo::train(start, &prompts, &config, &mut Journal::silent(), &mut ()).map(|_| ())
}

fn emulated() -> Emulated {
    let options = Options { races: false, initialised: false, count: false, ..Options::default() };
    Emulated::new(Options { threads: rayon::current_num_threads(), ..options })
}

/// An error as the driver of a card would answer.
fn answer(number: u32) -> Error {
    explain("using the GPU", number, "CUDA_ERROR_X", "in words")
}

/// What call number `n` of `verb` may answer: memory that is full, or a card that is lost in one of these ways: ECC,
/// an illegal address, a launch that failed, and not known; a kernel that the card has no binary for.
fn fault(verb: Verb, n: usize) -> Fault {
    const LOST: [u32; 4] = [214, 700, 719, 999];
    match verb {
        Verb::Alloc if n % 3 < 2 => Fault::Once(answer(2)),
        Verb::Upload | Verb::Record if n % 3 == 2 => Fault::Once(answer(2)),
        Verb::Launch if n % 5 == 4 => Fault::Once(answer(209)),
        _ => Fault::ForGood(answer(LOST[n % LOST.len()])),
    }
}

/// Runs a stage in which one call fails, and holds it to its promise.
fn assert_fails(name: &str, run: Run, driver: Faulty, (verb, n): (Verb, usize), fault: Fault) {
    let driver = Arc::new(driver);
    let (Fault::Once(expected) | Fault::ForGood(expected)) = fault.clone() else { panic!("an error") };
    let before = driver.held();
    driver.strike(verb, n, fault);
    let result = run(&Device::Gpu(Gpu::new(driver.clone(), DType::BF16)));
    assert!(driver.struck(), "{name}: {verb:?} {n} was not called");
    let error = result.err().unwrap_or_else(|| panic!("{name}: {verb:?} {n} failed and nobody said so"));
    assert_eq!((error.code(), error.id()), (expected.code(), expected.id()), "{name}: {verb:?} {n}: {error}");
    assert!([Code::Resources, Code::Device].contains(&error.code()), "{name}: {verb:?} {n}: {error}");
    assert_eq!(driver.held(), before, "{name}: {verb:?} {n}: pieces, bytes or recordings did not come back");
}

/// How often a stage calls each verb.
fn calls(run: Run, driver: Faulty) -> Vec<(Verb, usize)> {
    let driver = Arc::new(driver);
    run(&Device::Gpu(Gpu::new(driver.clone(), DType::BF16))).unwrap();
    assert_eq!(driver.held(), [0; 3]);
    Verb::ALL.into_iter().map(|verb| (verb, driver.calls(verb))).collect()
}

#[test]
fn every_call_of_a_driver_may_fail() {
    let rehearsing = || Faulty::rehearsing(&emulated());
    let mut faults = 0;
    for (name, run) in STAGES {
        for (verb, count) in calls(run, rehearsing()) {
            assert!(count > 0 || name != "ppo", "{verb:?} is never called");
            for n in 0..count {
                assert_fails(name, run, rehearsing(), (verb, n), fault(verb, n));
                if verb == Verb::Alloc {
                    assert_fails(name, run, rehearsing(), (verb, n), Fault::Once(answer(2)));
                }
                faults += 1;
            }
        }
    }
    println!("{faults} calls");
    assert!(faults > 3000, "{faults} calls");
}

/// The same where kernels run, of some calls.
#[test]
fn calls_of_a_driver_that_computes_may_fail() {
    let computing = || Faulty::new(Arc::new(emulated()));
    for (name, run) in STAGES {
        for (verb, count) in calls(run, computing()).into_iter().filter(|(_, count)| *count > 0) {
            for n in [count / 3, count - 1] {
                assert_fails(name, run, computing(), (verb, n), fault(verb, n));
            }
        }
    }
}

/// Positive control: what is kept is seen.
#[test]
fn a_leak_is_found() {
    let driver = Arc::new(Faulty::rehearsing(&emulated()));
    let device = Device::Gpu(Gpu::new(driver.clone(), DType::BF16));
    let tensor = Tensor::zeros(&device, DType::F32, &[3]).unwrap();
    let Device::Gpu(gpu) = &device else { panic!("a GPU") };
    let recording = gpu.driver().record(&mut || Ok(())).unwrap();
    assert_eq!(driver.held(), [1, 12, 1]);
    gpu.driver().forget(recording);
    drop(tensor.duplicate().unwrap());
    std::mem::forget(tensor);
    drop(device);
    assert_eq!(driver.held(), [1, 12, 0]);
}
