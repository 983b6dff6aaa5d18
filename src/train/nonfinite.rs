//! NaN and infinity put into every place that a step reads or makes: weights, moments, gradients, rewards, and each
//! tensor that is born in a step. Either the step ends with exit code 6 and a name, and has changed nothing, to the
//! bit; or nobody reads the number, and the step's result is that of a clean one, to the bit. There is no third end.

use std::sync::Arc;

use super::emulated::{GPT2, QWEN2, emulated, even_tokens, tokens};
use super::ppo::{self, Learners, Start};
use super::reward::{self, Episode, Reward};
use super::rollout::{Cast, Rollout};
use super::{Learner, sft};
use crate::config::{KlEstimator, OptimizerArgs, PpoConfig, Recompute, RewardConfig, SftConfig, defaults};
use crate::data::encode::{PairExample, PromptExample, SftExample};
use crate::device::emulated::Emulated;
use crate::device::faulty::{Fault, Faulty, Verb};
use crate::device::{Device, Gpu};
use crate::dtype::DType;
use crate::error::{Code, Error, Result};
use crate::model::{Model, ModelConfig};
use crate::objective::rewards::Shaping;
use crate::tensor::births;
use crate::train::metrics::Journal;

const BAD: [f32; 2] = [f32::NAN, f32::INFINITY];

/// The models of the emulator's tests in a size that suits thousands of steps.
fn small(config: &str) -> String {
    let wide = [": 64,", ": 128,", "_heads\": 2", "\"n_head\": 1"];
    let narrow = [": 8,", ": 12,", "_heads\": 2", "\"n_head\": 2"];
    let config = wide.iter().zip(narrow).fold(config.to_owned(), |text, (from, to)| text.replace(from, to));
    config.replace("\"head_dim\": 8", "\"head_dim\": 4").replace("_positions\": 8", "_positions\": 64")
}

fn qwen3() -> String {
    small(QWEN2)
        .replace("Qwen2", "Qwen3")
        .replace("qwen2", "qwen3")
        .replace("embeddings\": true", "embeddings\": false")
}

fn fresh(device: &Device, config: &str) -> Model {
    Model::fresh(device, ModelConfig::parse(config, "a test").unwrap(), 3).unwrap()
}

/// One optimizer step of a stage, ready to be taken.
trait Step {
    fn learners(&self) -> Vec<&Learner>;

    /// Takes it; all numbers that it gave, in words.
    fn take(&mut self) -> Result<String>;

    /// Parameters, moments and counts, to the bit.
    fn state(&self) -> Vec<u32> {
        self.learners().into_iter().flat_map(state).collect()
    }
}

fn state(learner: &Learner) -> Vec<u32> {
    let [m, v] = learner.optimizer.moments();
    let params = &learner.model.params;
    let buffers = [&params.flat, params.masters(), m, v];
    let bits = buffers.into_iter().flat_map(|t| t.to_f32().unwrap()).map(f32::to_bits);
    bits.chain([learner.optimizer.steps() as u32]).collect()
}

/// Two rows a pass, two passes.
fn batches(optimizer: &mut OptimizerArgs) {
    (optimizer.per_device_train_batch_size, optimizer.gradient_accumulation_steps) = (Some(2), 2);
}

struct Sft {
    learner: Learner,
    data: Vec<SftExample>,
}

fn sft_data() -> Vec<SftExample> {
    let example = |row: u32| {
        let ids = tokens(3 + row as usize % 3, row);
        SftExample { is_target: (0..ids.len()).map(|i| i != 2).collect(), ids, place: format!("row {row}") }
    };
    (0..4).map(example).collect()
}

impl Sft {
    fn new(model: Model, recompute: Recompute) -> Self {
        let args = OptimizerArgs { recompute, ..defaults::<SftConfig>().unwrap().optimizer };
        Self { learner: Learner::new(model, &args, 1e-8, 1e-2, 4).unwrap(), data: sft_data() }
    }
}

impl Step for Sft {
    fn learners(&self) -> Vec<&Learner> {
        vec![&self.learner]
    }

    fn take(&mut self) -> Result<String> {
        let batch: Vec<Vec<&SftExample>> = self.data.iter().map(|example| vec![example]).collect();
        Ok(format!("{:?}", sft::update(&mut self.learner, &batch, 2, 1e-2)?))
    }
}

struct Preferences {
    learner: Learner,
    data: Vec<PairExample>,
    config: RewardConfig,
}

impl Preferences {
    fn new(model: Model) -> Self {
        let mut config = defaults::<RewardConfig>().unwrap();
        batches(&mut config.optimizer);
        let pair = |row: u32| PairExample {
            chosen: tokens(3, row),
            rejected: tokens(4, row + 500),
            margin: 0.1,
            place: format!("pair {row}"),
        };
        let learner = Learner::new(model, &config.optimizer, 1e-8, 1e-2, 4).unwrap();
        Self { learner, data: (0..4).map(pair).collect(), config }
    }
}

impl Step for Preferences {
    fn learners(&self) -> Vec<&Learner> {
        vec![&self.learner]
    }

    fn take(&mut self) -> Result<String> {
        let (batch, mut sums) = (self.data.iter().collect::<Vec<_>>(), reward::Sums::default());
        let norm = reward::update(&mut self.learner, &batch, &self.config, 1e-2, &mut sums)?;
        Ok(format!("{norm:?} {sums:?}"))
    }
}

/// A batch of PPO with one optimizer step of both models.
struct Ppo {
    learners: Learners,
    ref_policy: Model,
    reward: Model,
    shaping: Shaping,
    config: PpoConfig,
}

impl Ppo {
    fn new(policy: &Model, reward: &Model) -> Self {
        let mut config = defaults::<PpoConfig>().unwrap();
        batches(&mut config.optimizer);
        (config.loss.num_ppo_epochs, config.loss.num_mini_batches) = (1, 1);
        (config.rollout.response_length, config.loss.entropy_coef) = (3, 0.01);
        let models = [policy, reward].map(|model| model.duplicate().unwrap());
        let [policy, value_model] = models;
        let (ref_policy, reward) = (ppo::reference(&policy).unwrap(), value_model.duplicate().unwrap());
        let learners = Learners::new(policy, value_model, &config, 4).unwrap();
        Self { learners, ref_policy, reward, shaping: Shaping::default(), config }
    }

    fn queries() -> Vec<Vec<i32>> {
        (0..4).map(|row| tokens(2 + row as usize % 2, row)).collect()
    }

    fn collect(&mut self, reward: Option<&mut dyn Reward>) -> Result<Rollout> {
        let mut cast = Cast {
            policy: &self.learners.policy.model,
            ref_policy: &self.ref_policy,
            value_model: &self.learners.value.model,
            reward: match reward {
                Some(reward) => reward,
                None => &mut self.reward,
            },
            judge: None,
            stop: &[2],
            shaping: self.shaping,
        };
        Rollout::collect(&mut cast, Self::queries(), &self.config, 0.05, 0)
    }

    fn update(&mut self, rollout: &Rollout) -> Result<String> {
        ppo::update(&mut self.learners, rollout, &self.config, 0).map(|updated| format!("{updated:?}"))
    }
}

impl Step for Ppo {
    fn learners(&self) -> Vec<&Learner> {
        vec![&self.learners.policy, &self.learners.value]
    }

    fn take(&mut self) -> Result<String> {
        let rollout = self.collect(None)?;
        let updated = self.update(&rollout)?;
        Ok(format!("{updated} {:?} {:?} {:?}", rollout.responses, rollout.scores, rollout.advantages))
    }
}

type Make<'a> = &'a (dyn Fn() -> Box<dyn Step> + Sync);

/// A clean step's numbers, and the state after it.
type Clean = (String, Vec<u32>);

fn clean(make: Make<'_>) -> Clean {
    let mut step = make();
    let before = step.state();
    let numbers = step.take().unwrap();
    assert!(step.state() != before, "positive control: a clean step moves the parameters");
    (numbers, step.state())
}

/// How a step ended in which something was wrong.
enum End {
    /// With this error, and nothing has changed.
    Refused(Error),
    /// As a clean step: nobody has read what was wrong.
    Dead,
    /// In another way.
    Third(String),
}

fn end(step: &mut dyn Step, clean: &Clean) -> End {
    let before = step.state();
    match step.take() {
        Err(error) if error.code() != Code::NonFinite || error.place().is_none_or(str::is_empty) => {
            End::Third(format!("another error: {error}"))
        }
        Err(error) if step.state() != before => End::Third(format!("the state has changed before {error}")),
        Err(error) => End::Refused(error),
        Ok(numbers) if numbers != clean.0 => End::Third(format!("nobody said that the numbers are others: {numbers}")),
        Ok(_) if step.state() != clean.1 => End::Third("nobody said that the parameters are others".to_owned()),
        Ok(_) => End::Dead,
    }
}

/// Every tensor of a step in turn is born with a bad element: how many are found and how many are dead, and the other
/// ends with the source file of the birth.
fn every_birth(value: f64, make: Make<'_>) -> ([usize; 2], Vec<(&'static str, String)>) {
    // Births are counted on one thread, and on it everything happens.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(|| {
        let clean = clean(make);
        let (_, births, _) = births::with(usize::MAX, value, || make().take().unwrap());
        let (mut counts, mut others) = ([0, 0], Vec::new());
        for birth in 0..births {
            let mut step = make();
            let (end, _, file) = births::with(birth, value, || end(&mut *step, &clean));
            match end {
                End::Refused(_) => counts[0] += 1,
                End::Dead => counts[1] += 1,
                End::Third(what) => others.push((file, format!("birth {birth}: {what}"))),
            }
        }
        (counts, others)
    })
}

/// A step of each stage with each architecture, by name.
fn each_stage(work: &mut dyn FnMut(&str, Make<'_>)) {
    for (name, config) in [("qwen2", small(QWEN2)), ("qwen3", qwen3()), ("gpt2", small(GPT2))] {
        let model = fresh(&Device::Cpu, &config);
        let scored = model.value_model(1).unwrap();
        for recompute in [Recompute::None, Recompute::Cheap, Recompute::Full] {
            let make = || -> Box<dyn Step> { Box::new(Sft::new(model.duplicate().unwrap(), recompute)) };
            work(&format!("sft {name} {recompute:?}"), &make);
        }
        let make = || -> Box<dyn Step> { Box::new(Preferences::new(scored.duplicate().unwrap())) };
        work(&format!("reward {name}"), &make);
        work(&format!("ppo {name}"), &|| Box::new(Ppo::new(&model, &scored)));
    }
}

#[test]
fn a_nan_in_any_tensor_of_a_step_is_found_or_dead() {
    let mut all = 0;
    each_stage(&mut |name, make| {
        let ([found, dead], others) = every_birth(f64::NAN, make);
        assert!(others.is_empty(), "{name}: {others:?}");
        // Dead are buffers that are written over, positions that no row reaches, numbers that are only told.
        assert!(found >= 3 * dead, "{name}: {found} found, {dead} dead");
        println!("{name}: {found} found, {dead} dead");
        all += found + dead;
    });
    assert!(all > 3000, "{all} tensors");
}

/// Positive control: a finite number in a wrong place is what nobody notices, and is seen here.
#[test]
fn another_end_is_seen() {
    let model = fresh(&Device::Cpu, &small(QWEN2));
    let make = || -> Box<dyn Step> { Box::new(Sft::new(model.duplicate().unwrap(), Recompute::None)) };
    let ([found, dead], others) = every_birth(0.5, &make);
    assert!(found == 0 && others.len() > 2 * dead, "{found} found, {dead} dead, {} others", others.len());
}

/// Where an infinity may end in other finite numbers, because to add or to weigh it gives one. None of these is the
/// outcome of a computation on finite numbers that goes on in silence.
const ABSORBED: &[&str] = &[
    // The saved logsumexp, read again in backward as exp(score - lse): infinite by itself only after an infinite score,
    // which makes the forward's output NaN.
    "src/ops/attention.rs",
    // A key of infinity whose products are all -inf is a token that nobody attends to. Backward multiplies it with 0,
    // which is NaN; it escapes only where the forward alone has it: in a rollout, and in a segment that runs again.
    "src/ops/matmul.rs",
];

#[test]
fn an_infinity_in_any_tensor_of_a_step_is_found_or_dead_or_absorbed() {
    each_stage(&mut |name, make| {
        let ([found, dead], others) = every_birth(f64::INFINITY, make);
        let unknown: Vec<_> = others.iter().filter(|(file, _)| !ABSORBED.contains(file)).collect();
        assert!(unknown.is_empty(), "{name}: {unknown:?}");
        assert!(found >= 3 * dead && found >= 20 * others.len(), "{name}: {found} found, {dead} dead, {others:?}");
        println!("{name}: {found} found, {dead} dead, {} absorbed", others.len());
    });
}

/// Makes one element of a parameter bad: one that every step reads. `token` is the row of an embedding that is meant.
fn spoil(model: &Model, name: &str, token: i32, value: f32) {
    let (part, offset) = model.params.layout().parts().find(|(part, _)| part.name == name).unwrap();
    let embeds = ["embed_tokens", "wte"].iter().any(|embedding| name.contains(embedding));
    let element = if embeds { token as usize * part.shape[1] } else { 0 };
    for flat in [&model.params.flat, model.params.masters()] {
        flat.view(offset + element, &[1]).unwrap().set(&[value]).unwrap();
    }
}

fn names(model: &Model) -> Vec<String> {
    model.params.layout().parts().map(|(part, _)| part.name.clone()).collect()
}

/// Holds a refused step to its promise: the parameter and the rows are named.
fn assert_blames(what: &str, step: &mut dyn Step, clean: &Clean, words: &[&str]) {
    match end(step, clean) {
        End::Refused(error) => {
            let place = error.place().unwrap_or_default();
            assert!(words.iter().all(|word| place.contains(word)), "{what}: {words:?} in {place}");
            assert!(error.to_string().contains("parameter itself is not finite"), "{what}: {error}");
        }
        End::Dead => panic!("{what}: nobody has read it"),
        End::Third(end) => panic!("{what}: {end}"),
    }
}

#[test]
fn a_parameter_that_is_not_finite_is_named_as_the_cause() {
    let mut sites = 0;
    let nothing = (String::new(), Vec::new());
    for config in [small(QWEN2), qwen3(), small(GPT2)] {
        let model = fresh(&Device::Cpu, &config);
        let scored = model.value_model(1).unwrap();
        for (value, name) in BAD.into_iter().flat_map(|value| names(&model).into_iter().map(move |name| (value, name)))
        {
            let mut step = Sft::new(model.duplicate().unwrap(), Recompute::None);
            spoil(&step.learner.model, &name, step.data[0].ids[0], value);
            assert_blames(&format!("sft {name} {value}"), &mut step, &nothing, &[&name, "among row"]);
            sites += 1;
        }
        for (value, name) in BAD.into_iter().flat_map(|value| names(&scored).into_iter().map(move |name| (value, name)))
        {
            let mut step = Preferences::new(scored.duplicate().unwrap());
            spoil(&step.learner.model, &name, step.data[0].chosen[0], value);
            assert_blames(&format!("reward {name} {value}"), &mut step, &nothing, &[&name, "among pair"]);
            sites += 1;
            for role in ["policy", "reference model", "value model", "reward model"] {
                let mut step = Ppo::new(&model, &scored);
                let spoiled = match role {
                    "policy" => &step.learners.policy.model,
                    "reference model" => &step.ref_policy,
                    "value model" => &step.learners.value.model,
                    _ => &step.reward,
                };
                if !names(spoiled).contains(&name) {
                    continue;
                }
                spoil(spoiled, &name, Ppo::queries()[0][0], value);
                let words = [&format!("{role}: {name}"), "of the batch"];
                assert_blames(&format!("ppo {role} {name} {value}"), &mut step, &nothing, &words);
                sites += 1;
            }
        }
    }
    assert!(sites >= 400, "{sites} sites");
}

#[test]
fn a_gradient_that_is_not_finite_is_named() {
    for config in [small(QWEN2), qwen3(), small(GPT2)] {
        let model = fresh(&Device::Cpu, &config);
        for (value, name) in BAD.into_iter().flat_map(|value| names(&model).into_iter().map(move |name| (value, name)))
        {
            let mut step = Sft::new(model.duplicate().unwrap(), Recompute::None);
            let before = step.state();
            let _ = step.learner.begin().unwrap();
            step.learner.grads.poison(&name, value);
            let clip = step.learner.clip().unwrap();
            let error = step.learner.check(&clip.state.to_f64().unwrap()).unwrap_err();
            assert_eq!((error.id(), error.place()), ("gradient-not-finite", Some(&*name)));
            step.learner.update(1e-2, &clip).unwrap();
            let last = before.len() - 1;
            assert!(step.state()[..last] == before[..last], "{name}: the kernel's own guard");
        }
    }
}

/// A batch of PPO that is refused: by whom, and that both models are as they were.
fn assert_refused(step: &Ppo, before: &[u32], error: &Error, id: &str, place: &str) {
    assert_eq!((error.code(), error.id()), (Code::NonFinite, id), "{error}");
    assert!(error.place().is_some_and(|at| at.contains(place)), "{place}: {error}");
    assert!(!error.to_string().contains("parameter itself"), "{error}");
    assert!(step.state() == before, "the state has changed: {error}");
}

fn ppo() -> (Ppo, Vec<u32>) {
    let model = fresh(&Device::Cpu, &qwen3());
    let step = Ppo::new(&model, &model.value_model(1).unwrap());
    let before = step.state();
    (step, before)
}

#[test]
fn a_score_that_is_not_finite_is_named() {
    for (value, episode) in [(f32::NAN, 0), (f32::INFINITY, 3), (f32::NEG_INFINITY, 2)] {
        let (mut step, before) = ppo();
        let mut reward = |episodes: &[Episode<'_>]| {
            let mut scores = even_tokens(episodes)?;
            scores[episode] = value;
            Ok(scores)
        };
        let error = step.collect(Some(&mut reward)).err().unwrap();
        assert_refused(&step, &before, &error, "score-not-finite", &format!("episode {episode} of the batch"));
    }
    // Neither does what rewards are normalised with take one for a number.
    let error = reward::spread(&[0.5, f32::NAN]).unwrap_err();
    assert_eq!((error.id(), error.place()), ("score-not-finite", Some("answer 1")));
    // A score that is finite, but not after it was shaped.
    let (mut step, before) = ppo();
    step.shaping.normalize = Some([0.0, 1e-8]);
    let mut large = |episodes: &[Episode<'_>]| Ok(vec![1e35; episodes.len()]);
    let error = step.collect(Some(&mut large)).err().unwrap();
    assert_refused(&step, &before, &error, "score-not-finite", "episode 0 of the batch");
}

type Column = fn(&mut Rollout) -> &mut Vec<f32>;

#[test]
fn a_number_of_a_rollout_that_is_not_finite_is_named() {
    let columns: [(&str, Column); 4] = [
        ("logprobs", |r| &mut r.logprobs),
        ("values", |r| &mut r.values),
        ("advantages", |r| &mut r.advantages),
        ("returns", |r| &mut r.returns),
    ];
    for (value, (name, column)) in BAD.into_iter().flat_map(|value| columns.map(|column| (value, column))) {
        let (mut step, before) = ppo();
        let mut rollout = step.collect(None).unwrap();
        let last = column(&mut rollout).len() - 1;
        column(&mut rollout)[last] = value;
        let error = step.update(&rollout).unwrap_err();
        assert_refused(&step, &before, &error, "loss-not-finite", "3");
        assert!(error.place().is_some_and(|place| place.starts_with("episodes [")), "{name} {value}: {error}");
    }
}

/// What follows from these answers, of which a test has changed the log-probabilities.
fn of_answers(step: &mut Ppo, change: fn(&mut Vec<f32>)) -> Result<Rollout> {
    let mut responses = step.collect(None)?.responses;
    change(&mut responses[1].logprobs);
    let mut cast = Cast {
        policy: &step.learners.policy.model,
        ref_policy: &step.ref_policy,
        value_model: &step.learners.value.model,
        reward: &mut step.reward,
        judge: None,
        stop: &[2],
        shaping: step.shaping,
    };
    Rollout::of(&mut cast, Ppo::queries(), responses, &step.config, 0.05)
}

#[test]
fn a_rollout_is_refused_where_its_first_bad_number_is() {
    let (mut step, before) = ppo();
    let error = of_answers(&mut step, |logprobs| logprobs[2] = f32::NAN).err().unwrap();
    assert_refused(
        &step,
        &before,
        &error,
        "rollout-not-finite",
        "logprobs of episode 1 of the batch, response token 2",
    );
    // All that goes in is finite, but exp(200) is not.
    step.config.rollout.kl_estimator = KlEstimator::K3;
    let error = of_answers(&mut step, |logprobs| logprobs[2] = -200.0).err().unwrap();
    assert_refused(&step, &before, &error, "rollout-not-finite", "returns of episode 1 of the batch, response token");
}

#[test]
fn one_model_does_not_move_where_the_other_is_refused() {
    let (mut step, before) = ppo();
    let rollout = step.collect(None).unwrap();
    step.config.loss.vf_coef = 3e38;
    let error = step.update(&rollout).unwrap_err();
    assert_refused(&step, &before, &error, "gradient-not-finite", "value model: ");
    let (mut step, before) = ppo();
    let mut rollout = step.collect(None).unwrap();
    rollout.advantages.iter_mut().for_each(|a| *a *= 1e25);
    let error = step.update(&rollout).unwrap_err();
    assert_refused(&step, &before, &error, "gradient-not-finite", "policy: the sum of all squares, episodes [");
}

#[test]
fn finite_numbers_that_overflow_are_named_by_their_rows() {
    let model = fresh(&Device::Cpu, &qwen3());
    let nothing = (String::new(), Vec::new());
    let fill = |model: &Model, name: &str, value: f32| {
        let (part, offset) = model.params.layout().parts().find(|(part, _)| part.name.contains(name)).unwrap();
        let view = model.params.flat.view(offset, &part.shape).unwrap();
        view.set(&vec![value; part.shape.iter().product()]).unwrap();
    };
    let refused = |step: &mut dyn Step| match end(step, &nothing) {
        End::Refused(error) => error,
        End::Dead => panic!("it was not read"),
        End::Third(end) => panic!("{end}"),
    };
    for (name, value) in [("layers.0.mlp.gate_proj", 1e38), ("layers.1.self_attn.k_proj", 3e38), ("lm_head", 3e38)] {
        let mut step = Sft::new(model.duplicate().unwrap(), Recompute::None);
        fill(&step.learner.model, name, value);
        let error = refused(&mut step);
        assert_eq!((error.id(), error.place()), ("loss-not-finite", Some("among row 0 ... row 1")), "{name}");
        let mut step = Ppo::new(&model, &model.value_model(1).unwrap());
        fill(&step.learners.policy.model, name, value);
        let error = refused(&mut step);
        assert!(error.place().is_some_and(|place| place.contains("of the batch, response token")), "{name}: {error}");
    }
    for value in BAD {
        let mut step = Preferences::new(model.value_model(1).unwrap());
        step.data[3].margin = value;
        let error = refused(&mut step);
        assert_eq!((error.id(), error.place()), ("loss-not-finite", Some("among pair 2 ... pair 3")));
    }
}

/// No step reads the moments before it moves the parameters by them. What is not finite in them, which no step makes of
/// finite gradients, is in the parameter then: it is not saved, and the next step names it.
#[test]
fn a_moment_that_is_not_finite_does_not_get_further_than_a_parameter() {
    let name = "model.layers.0.self_attn.q_proj.weight";
    for (value, moment) in BAD.into_iter().flat_map(|value| [(value, 0), (value, 1)]) {
        let mut step = Sft::new(fresh(&Device::Cpu, &qwen3()), Recompute::None);
        let offset = step.learner.model.params.layout().parts().find(|(part, _)| part.name == name).unwrap().1;
        step.learner.optimizer.moments()[moment].view(offset, &[1]).unwrap().set(&[value]).unwrap();
        step.take().unwrap();
        if (value, moment) == (f32::INFINITY, 1) {
            // m / sqrt(v) is 0: this weight stands still, and the moment stays in the checkpoint that is not written.
            continue;
        }
        let dir = tempfile::tempdir().unwrap();
        let refused = step.learner.model.save(dir.path(), "").unwrap_err();
        assert_eq!((refused.code(), refused.id()), (Code::NonFinite, "save-not-finite"));
        assert_blames(&format!("{value} in moment {moment}"), &mut step, &(String::new(), Vec::new()), &[name]);
    }
}

/// The loops put stage and step before the place.
#[test]
fn a_loop_names_stage_and_step() {
    let model = fresh(&Device::Cpu, &qwen3());
    let mut data = sft_data();
    // The other rows do not have this token.
    data[2].ids[0] = 1;
    let mut config = defaults::<SftConfig>().unwrap();
    (config.optimizer.per_device_train_batch_size, config.epochs.max_steps) = (Some(1), Some(4));
    let order = super::permutation(4, config.run.seed, crate::random::Stage::Shuffle, 0);
    let expected = order.iter().position(|row| *row == 2).unwrap() + 1;
    let broken = model.duplicate().unwrap();
    spoil(&broken, "model.embed_tokens.weight", 1, f32::NAN);
    let (groups, journal) = ((0..4).map(|i| vec![i]).collect::<Vec<_>>(), &mut Journal::silent());
    let error = sft::train(broken, &data, &groups, &[], &config, journal, &mut ()).unwrap_err();
    let place = format!("sft step {expected}, model.embed_tokens.weight, among row 2 ... row 2");
    assert_eq!(error.place(), Some(&*place), "{error}");

    let mut config = defaults::<PpoConfig>().unwrap();
    batches(&mut config.optimizer);
    (config.loss.num_mini_batches, config.rollout.total_episodes) = (1, Some(12));
    config.rollout.response_length = 3;
    let prompt = |row| PromptExample { ids: tokens(3, row), text: String::new(), place: format!("prompt {row}") };
    let prompts: Vec<PromptExample> = (0..4).map(prompt).collect();
    let mut batch = 0;
    let mut reward = |episodes: &[Episode<'_>]| {
        batch += 1;
        Ok(vec![if batch == 2 { f32::NAN } else { 0.5 }; episodes.len()])
    };
    let value_model = model.value_model(1).unwrap();
    let start = Start { policy: model, value_model, reward: &mut reward, stop: &[2], normalize: None, judge: None };
    let error = ppo::train(start, &prompts, &config, &mut Journal::silent(), &mut ()).unwrap_err();
    assert_eq!(error.place(), Some("ppo step 2, episode 0 of the batch"), "{error}");
}

/// The same on the emulated GPU, of some parameters and of some outputs of kernels.
#[test]
fn a_nan_on_the_emulated_gpu_is_found_or_dead() {
    let nothing = (String::new(), Vec::new());
    let model = fresh(&emulated(), QWEN2);
    for name in ["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"] {
        let mut step = Sft::new(model.duplicate().unwrap(), Recompute::None);
        spoil(&step.learner.model, name, step.data[0].ids[0], f32::NAN);
        assert_blames(name, &mut step, &nothing, &[name, "among row"]);
        let mut step = Sft::new(model.duplicate().unwrap(), Recompute::None);
        let before = step.state();
        let _ = step.learner.begin().unwrap();
        step.learner.grads.poison(name, f32::INFINITY);
        let clip = step.learner.clip().unwrap();
        let error = step.learner.check(&clip.state.to_f64().unwrap()).unwrap_err();
        assert_eq!((error.id(), error.place()), ("gradient-not-finite", Some(name)));
        step.learner.update(1e-2, &clip).unwrap();
        assert!(step.state()[..before.len() - 1] == before[..before.len() - 1], "{name}: the kernel's own guard");
    }
    let options = crate::ptx::Options { races: false, initialised: false, count: false, ..Default::default() };
    let options = crate::ptx::Options { threads: rayon::current_num_threads(), ..options };
    let driver = Arc::new(Faulty::new(Arc::new(Emulated::new(options))));
    let model = fresh(&Device::Gpu(Gpu::new(driver.clone(), DType::BF16)), QWEN2);
    let scored = model.value_model(1).unwrap();
    let stages: [(&str, usize, Make<'_>); 3] = [
        ("sft", 12, &|| Box::new(Sft::new(model.duplicate().unwrap(), Recompute::None))),
        ("reward", 10, &|| Box::new(Preferences::new(scored.duplicate().unwrap()))),
        ("ppo", 16, &|| Box::new(Ppo::new(&model, &scored))),
    ];
    for (name, samples, make) in stages {
        let clean = clean(make);
        let mut step = make();
        driver.strike(Verb::Launch, usize::MAX, Fault::Poison);
        step.take().unwrap();
        let launches = driver.calls(Verb::Launch);
        let mut found = 0;
        for sample in 0..samples {
            // Some launches write tokens, or a part of what they are given: these are left alone.
            let (mut step, launch) = (make(), launches * (2 * sample + 1) / (2 * samples));
            driver.strike(Verb::Launch, launch, Fault::Poison);
            match end(&mut *step, &clean) {
                End::Refused(_) => found += 1,
                End::Dead => {}
                End::Third(end) => panic!("{name}, launch {launch} of {launches}: {end}"),
            }
        }
        println!("{name}: {found} of {samples} found");
        assert!(found * 2 >= samples, "{name}: {found} of {samples}");
    }
}
