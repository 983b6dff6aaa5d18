//! The embedded job: a small decoder from scratch through supervised fine-tuning, reward model and PPO on the task of
//! `data/demo.rs`, and what became of it, measured by the task's judge, whom neither reward model nor PPO ever sees.

mod course;

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use super::checkpoint::Keeper;
use super::checkpoint::identity::Identity;
use super::metrics::{Journal, Voice, number};
use super::ppo::{self, Start};
use super::reward::{Episode, Reward};
use super::samples::Sampler;
use super::{reward, sft};
use crate::config::{PpoConfig, RewardConfig, SaveArgs, SchedulerType, SftConfig, defaults};
use crate::data::demo::tokenizer::{self, IDS, VOCABULARY};
use crate::data::demo::{Request, Task, demonstration, judge, mixture_preference, preference};
use crate::data::encode::{PairExample, PromptExample, SftExample};
use crate::device::Device;
use crate::disk;
use crate::error::{Error, Result};
use crate::model::config::LlamaShape;
use crate::model::generate::{Generation, Sampling};
use crate::model::{Model, ModelConfig};
use crate::objective::calibration::describe;
use crate::random::{Philox, Stage};

use course::{Course, PPO, REWARD, SFT, SUMMARY};

/// How much of everything.
#[derive(Debug, Clone, Copy)]
struct Plan {
    demonstrations: usize,
    pairs: usize,
    held_out_pairs: usize,
    ppo_batches: usize,
    held_out_prompts: usize,
    layers: usize,
}

/// Steps of the reward model between two looks at held-out pairs.
const EVAL_STEPS: usize = 50;
/// The file with both models' answers to the held-out prompts.
pub(crate) const COMPARISON: &str = "comparison.jsonl";
/// The file beside the reward model that says how good it is.
const QUALITY: &str = "quality.json";

impl Plan {
    /// What each stage has, for `run.json`.
    fn rows(self) -> Value {
        let (held_out, prompts) = (self.held_out_pairs, self.ppo_batches * EPISODES);
        json!({ "sft": self.demonstrations, "reward": self.pairs, "reward_held_out": held_out, "ppo": prompts })
    }
}

/// What the bars of the demo are held by.
const FULL: Plan = Plan {
    demonstrations: 60_000,
    pairs: 24_000,
    held_out_pairs: 800,
    ppo_batches: 36,
    held_out_prompts: 340,
    layers: 5,
};

/// A smoke test: everything happens, nothing is learned well.
const QUICK: Plan =
    Plan { demonstrations: 4_000, pairs: 1_000, held_out_pairs: 100, ppo_batches: 2, held_out_prompts: 64, layers: 3 };

/// Temperature of rollouts and of sampled answers.
const TEMPERATURE: f64 = 0.7;
/// Tokens of an answer at most.
const RESPONSE_LENGTH: usize = 40;
/// Episodes of a batch, in minibatches of 64.
const EPISODES: usize = 256;
/// Share of preference labels that are turned around, as human labels would be.
const FLIPPED: f64 = 0.10;

/// What the job is asked to do.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// Decides every random number.
    pub seed: u64,
    /// A smoke test instead of the real thing.
    pub quick: bool,
    /// Where to compute.
    pub device: Device,
    /// How it speaks.
    pub(crate) voice: Voice,
    /// When checkpoints are written, and how many are kept.
    pub(crate) save: SaveArgs,
    /// What is recorded of the program and the machine.
    pub(crate) identity: Identity,
}

/// Requests in tokens, and the tokenizer that made them.
#[derive(Clone)]
struct Codec {
    tokenizer: Tokenizer,
}

impl Codec {
    fn encode(&self, text: &str) -> Result<Vec<i32>> {
        let encoding = self.tokenizer.encode_fast(text, false);
        let encoding = encoding.map_err(|e| Error::failure("tokenizer-encode", e.to_string()))?;
        Ok(encoding.get_ids().iter().map(|id| *id as i32).collect())
    }

    /// The tokens before an answer.
    fn query(&self, prompt: &str) -> Result<Vec<i32>> {
        let [_, _, user, assistant] = IDS;
        Ok([&[user][..], &self.encode(prompt)?, &[assistant]].concat())
    }

    /// An answer and its end.
    fn answer(&self, text: &str) -> Result<Vec<i32>> {
        Ok([self.encode(text)?, vec![IDS[0]]].concat())
    }

    fn decode(&self, tokens: &[i32], skip_special: bool) -> Result<String> {
        let tokens: Vec<u32> = tokens.iter().map(|t| *t as u32).collect();
        self.tokenizer.decode(&tokens, skip_special).map_err(|e| Error::failure("tokenizer-decode", e.to_string()))
    }
}

/// Runs the three stages, writes everything into `dir`, and returns what `summary.json` says. With `--resume` what an
/// earlier run finished there is read, and the stage in which it stopped goes on.
///
/// # Errors
/// Input and output errors; a number that is not finite; a run that is stopped by a signal.
pub fn run(options: &DemoOptions, dir: &Path) -> Result<Map<String, Value>> {
    let mut course = Course::find(options, dir)?;
    if let Some(summary) = course.summary()? {
        return Ok(summary);
    }
    let plan = if options.quick { QUICK } else { FULL };
    let mut journal = course.begin(plan.rows())?;
    let journal = &mut journal;
    let task = Task::new();
    let (demonstrations, gold_demonstrations) = demonstrations(&task, plan.demonstrations, options.seed);
    let texts: Vec<String> = demonstrations.iter().flat_map(|(p, a)| [p.clone(), a.clone()]).collect();
    let codec = Codec { tokenizer: tokenizer::train(&texts)? };

    let sft_model = match course.read(SFT)? {
        Some(model) => model,
        None => {
            let model = supervised(options, plan, &codec, &demonstrations, journal, &mut course.keeper(SFT, &codec))?;
            course.finish(SFT, &model, &codec, &Map::new(), journal)?
        }
    };
    let pairs = encode_pairs(&codec, &held_out_pairs(&task, plan, options.seed))?;
    let quality = |model: &Model| Ok::<_, Error>(describe(&reward::evaluate(model, &pairs)?));
    let accuracy = |quality: &Value| Map::from_iter([("reward_accuracy".to_owned(), quality["accuracy"].clone())]);
    let reward_model = match course.read(REWARD)? {
        Some(model) => model,
        None => {
            let keeper = &mut course.keeper(REWARD, &codec);
            let data = training_pairs(options, plan, &codec, &task)?;
            let model = reward_stage(options, [&data, &pairs], &sft_model, journal, keeper)?;
            course.finish(REWARD, &model, &codec, &accuracy(&quality(&model)?), journal)?
        }
    };
    let models = [&sft_model, &reward_model];
    let (policy, kl) = reinforce(options, plan, &codec, &task, models, journal, &mut course.keeper(PPO, &codec))?;

    let judged = Judged::compare(options, plan, &codec, &task, &sft_model, &policy)?;
    let mut summary = Map::new();
    summary.insert("seed".into(), json!(options.seed));
    summary.insert("quick".into(), json!(options.quick));
    let quality = quality(&reward_model)?;
    summary.extend(accuracy(&quality));
    summary.insert("gold_demonstrations".into(), number(gold_demonstrations));
    judged.describe(&mut summary);
    summary.insert("kl".into(), number(kl));
    let seconds = journal.seconds().iter().map(|(stage, s)| (stage.clone(), json!((s * 10.0).round() / 10.0)));
    summary.insert("seconds".into(), Value::Object(seconds.collect()));
    disk::write_file(&dir.join(SUMMARY), format!("{:#}\n", Value::Object(summary.clone())).as_bytes())?;
    disk::write_file(&dir.join(REWARD.0).join(QUALITY), format!("{quality:#}\n").as_bytes())?;
    judged.write(dir, &reward_model, &codec)?;
    course.finish(PPO, &policy, &codec, &summary, journal)?;
    Ok(summary)
}

/// Prompts with demonstrations of mixed quality, and the mean of the judge over them.
fn demonstrations(task: &Task, n: usize, seed: u64) -> (Vec<(String, String)>, f64) {
    let mut rng = Philox::new(seed, Stage::Demo, 0, 0);
    let mut gold = 0.0;
    let pairs = (0..n)
        .map(|_| {
            let request = task.sample_train(&mut rng);
            let (answer, _) = demonstration(request, &mut rng);
            gold += judge(request, &answer, true).score;
            (request.prompt.clone(), answer)
        })
        .collect();
    (pairs, gold / n as f64)
}

fn supervised(
    options: &DemoOptions,
    plan: Plan,
    codec: &Codec,
    demonstrations: &[(String, String)],
    journal: &mut Journal,
    keeper: &mut dyn Keeper,
) -> Result<Model> {
    let shape = LlamaShape {
        hidden_size: 96,
        layers: plan.layers,
        heads: 4,
        kv_heads: 4,
        intermediate_size: 256,
        vocab_size: VOCABULARY,
        max_positions: 128,
        tied: true,
        bos_token_id: None,
        eos_token_id: IDS[0],
        pad_token_id: Some(IDS[1]),
    };
    let model = Model::fresh(&options.device, ModelConfig::new_llama(&shape)?, options.seed)?;
    let mut config = defaults::<SftConfig>()?;
    config.run.seed = options.seed;
    config.learning_rate = 4e-3;
    config.epochs.num_train_epochs = Some(1.0);
    let optimizer = &mut config.optimizer;
    (optimizer.per_device_train_batch_size, optimizer.warmup_steps, optimizer.min_lr_ratio) = (Some(32), 30, 0.05);
    (optimizer.lr_scheduler_type, optimizer.adam_beta2, optimizer.weight_decay) = (SchedulerType::Cosine, 0.95, 0.01);
    let example = |(i, (prompt, answer)): (usize, &(String, String))| {
        let (query, answer) = (codec.query(prompt)?, codec.answer(answer)?);
        let is_target = [vec![false; query.len()], vec![true; answer.len()]].concat();
        Ok(SftExample { ids: [query, answer].concat(), is_target, place: format!("demonstration {i}") })
    };
    let data: Vec<SftExample> = demonstrations.iter().enumerate().map(example).collect::<Result<_>>()?;
    let groups: Vec<Vec<usize>> = (0..data.len()).map(|i| vec![i]).collect();
    let positions = model.config().max_positions;
    journal.set_sampler(Sampler::of_examples(&data, positions, vec![IDS[0]], decode(codec), &config.samples)?);
    sft::train(model, &data, &groups, &[], &config, journal, keeper)
}

fn decode(codec: &Codec) -> super::samples::Decode {
    let codec = codec.clone();
    Box::new(move |tokens, skip_special| codec.decode(tokens, skip_special))
}

fn encode_pairs(codec: &Codec, pairs: &[(String, String, String)]) -> Result<Vec<PairExample>> {
    let example = |(i, (prompt, chosen, rejected)): (usize, &(String, String, String))| {
        let query = codec.query(prompt)?;
        let [chosen, rejected] = [chosen, rejected].map(|text| Ok([query.clone(), codec.answer(text)?].concat()));
        Ok(PairExample { chosen: chosen?, rejected: rejected?, margin: 0.0, place: format!("pair {i}") })
    };
    pairs.iter().enumerate().map(example).collect()
}

/// Mixture pairs on held-out prompts, labels unflipped: what the reward model's accuracy is measured on.
fn held_out_pairs(task: &Task, plan: Plan, seed: u64) -> Vec<(String, String, String)> {
    let mut rng = Philox::new(seed, Stage::Demo, 2, 0);
    let pair = |_| {
        let request = task.sample_held_out(&mut rng);
        let pair = mixture_preference(request, &mut rng);
        (pair.prompt, pair.chosen, pair.rejected)
    };
    (0..plan.held_out_pairs).map(pair).collect()
}

/// What the reward model learns from: some labels are wrong.
fn training_pairs(options: &DemoOptions, plan: Plan, codec: &Codec, task: &Task) -> Result<Vec<PairExample>> {
    let mut rng = Philox::new(options.seed, Stage::Demo, 1, 0);
    let draw = |_| {
        let request = task.sample_train(&mut rng);
        let pair = preference(request, &mut rng, FLIPPED);
        (pair.prompt, pair.chosen, pair.rejected)
    };
    let pairs: Vec<_> = (0..plan.pairs).map(draw).collect();
    encode_pairs(codec, &pairs)
}

fn reward_stage(
    options: &DemoOptions,
    [data, held_out]: [&[PairExample]; 2],
    sft_model: &Model,
    journal: &mut Journal,
    keeper: &mut dyn Keeper,
) -> Result<Model> {
    let width = sft_model.config().hidden_size as f64;
    let model = sft_model.with_score_head(options.seed, 0.3 / (width + 1.0).sqrt())?;
    let mut config = defaults::<RewardConfig>()?;
    config.run.seed = options.seed;
    config.learning_rate = 1.5e-3;
    config.center_rewards_coefficient = 0.001;
    config.eval.eval_steps = Some(EVAL_STEPS);
    let optimizer = &mut config.optimizer;
    (optimizer.per_device_train_batch_size, optimizer.warmup_steps) = (Some(48), 20);
    (optimizer.lr_scheduler_type, optimizer.adam_beta2, optimizer.weight_decay) = (SchedulerType::Cosine, 0.95, 0.01);
    reward::train(model, data, held_out, &config, journal, keeper)
}

fn reinforce(
    options: &DemoOptions,
    plan: Plan,
    codec: &Codec,
    task: &Task,
    [sft_model, reward_model]: [&Model; 2],
    journal: &mut Journal,
    keeper: &mut dyn Keeper,
) -> Result<(Model, f64)> {
    let mut config = defaults::<PpoConfig>()?;
    config.run.seed = options.seed;
    (config.optimizer.per_device_train_batch_size, config.loss.num_mini_batches) = (Some(64), EPISODES / 64);
    (config.optimizer.min_lr_ratio, config.optimizer.adam_beta2) = (0.1, 0.95);
    config.optimizer.adam_epsilon = Some(1e-8);
    (config.loss.learning_rate, config.loss.value_learning_rate) = (4e-4, Some(1e-3));
    (config.loss.num_ppo_epochs, config.loss.vf_coef) = (2, 1.0);
    let rollout = &mut config.rollout;
    (rollout.response_length, rollout.temperature, rollout.kl_coef) = (RESPONSE_LENGTH, TEMPERATURE, 0.16);
    rollout.missing_eos_penalty = Some(1.5);
    let episodes = plan.ppo_batches * config.batch_size();
    config.rollout.total_episodes = Some(episodes);
    let mut rng = Philox::new(options.seed, Stage::Demo, 3, 0);
    let drawn: Vec<&Request> = (0..episodes).map(|_| task.sample_train(&mut rng)).collect();
    let prompt = |(i, request): (usize, &&Request)| {
        let text = request.prompt.clone();
        Ok(PromptExample { ids: codec.query(&text)?, text, place: format!("prompt {i}") })
    };
    let prompts: Vec<PromptExample> = drawn.iter().enumerate().map(prompt).collect::<Result<_>>()?;
    let requests = prompts.iter().map(|prompt| prompt.ids.clone()).zip(drawn).collect();
    let normalize = spread(options, sft_model, reward_model, &prompts[..config.batch_size()])?;
    let value_model = reward_model.duplicate()?;
    value_model.scale_head(1.0 / normalize[1])?;
    let mut reward = reward_model.duplicate()?;
    let sizes = [config.batch_size(), RESPONSE_LENGTH];
    journal.set_sampler(Sampler::of_prompts(&prompts, sizes, vec![IDS[0]], decode(codec), &config.samples));
    let start = Start {
        policy: sft_model.duplicate()?,
        value_model,
        reward: &mut reward,
        stop: &IDS[..1],
        normalize: Some(normalize),
        judge: Some(&mut Bystander { codec, requests: &requests }),
    };
    let finish = ppo::train(start, &prompts, &config, journal, keeper)?;
    Ok((finish.policy, finish.kl))
}

/// The judge, who looks on while PPO trains and teaches it nothing: only that shows when the policy begins to exploit
/// the reward model.
struct Bystander<'a> {
    codec: &'a Codec,
    requests: &'a HashMap<Vec<i32>, &'a Request>,
}

impl Reward for Bystander<'_> {
    fn scores(&mut self, episodes: &[Episode<'_>]) -> Result<Vec<f32>> {
        let score = |episode: &Episode<'_>| {
            let text = self.codec.decode(episode.response, true)?;
            let stopped = episode.response.last() == Some(&IDS[0]);
            let request = self.requests.get(episode.query);
            Ok(request.map_or(0.0, |request| judge(request, &text, stopped).score as f32))
        };
        episodes.iter().map(score).collect()
    }
}

/// Mean and deviation of the reward model's scores on what the policy answers before PPO.
fn spread(options: &DemoOptions, policy: &Model, reward: &Model, prompts: &[PromptExample]) -> Result<[f64; 2]> {
    let queries: Vec<&[i32]> = prompts.iter().map(|p| &p.ids[..]).collect();
    let responses = policy.generate(&policy.frozen()?, &queries, &generation(options, TEMPERATURE, 2))?.responses;
    let sequences: Vec<Vec<i32>> = queries.iter().zip(&responses).map(|(q, r)| [q, &r.tokens[..]].concat()).collect();
    reward::spread(&reward::score(reward, &sequences)?)
}

fn generation(options: &DemoOptions, temperature: f64, step: u32) -> Generation<'static> {
    Generation {
        sampling: Sampling { temperature, top_k: 0, top_p: 1.0 },
        max_new_tokens: RESPONSE_LENGTH,
        stop: const { &[IDS[0]] },
        seed: options.seed,
        stage: Stage::Generate,
        step,
        first_row: 0,
        slots: None,
    }
}

/// One model's answers to the held-out prompts, and what the judge says of them.
struct Answers {
    texts: Vec<String>,
    judgements: Vec<crate::data::demo::Judgement>,
    stopped: usize,
}

impl Answers {
    fn of(model: &Model, codec: &Codec, requests: &[&Request], generation: &Generation<'_>) -> Result<Self> {
        let queries: Vec<Vec<i32>> = requests.iter().map(|r| codec.query(&r.prompt)).collect::<Result<_>>()?;
        let prompts: Vec<&[i32]> = queries.iter().map(|q| &q[..]).collect();
        let responses = model.generate(&model.frozen()?, &prompts, generation)?.responses;
        let texts: Vec<String> = responses.iter().map(|r| codec.decode(&r.tokens, true)).collect::<Result<_>>()?;
        let judged = requests.iter().zip(&texts).zip(&responses);
        let judgements = judged.map(|((request, text), response)| judge(request, text, response.stopped)).collect();
        Ok(Self { texts, judgements, stopped: responses.iter().filter(|r| r.stopped).count() })
    }

    fn mean(&self, component: impl Fn(&crate::data::demo::Judgement) -> f64) -> f64 {
        self.judgements.iter().map(component).sum::<f64>() / self.judgements.len() as f64
    }

    fn components(&self) -> Value {
        json!({
            "right": number(self.mean(|j| j.right)),
            "brevity": number(self.mean(|j| j.brevity)),
            "courtesy": number(self.mean(|j| j.courtesy)),
            "ending": number(self.mean(|j| j.ending)),
            "rude": number(self.mean(|j| j.rude)),
        })
    }

    fn distinct(&self) -> f64 {
        let distinct: std::collections::HashSet<&String> = self.texts.iter().collect();
        distinct.len() as f64 / self.texts.len() as f64
    }
}

/// SFT beside PPO on the same held-out prompts.
struct Judged {
    requests: Vec<Request>,
    sft: [Answers; 2],
    ppo: [Answers; 2],
}

impl Judged {
    /// Answers of both models, sampled and greedy.
    fn compare(
        options: &DemoOptions,
        plan: Plan,
        codec: &Codec,
        task: &Task,
        sft: &Model,
        policy: &Model,
    ) -> Result<Self> {
        let mut rng = Philox::new(options.seed, Stage::Demo, 4, 0);
        let requests: Vec<&Request> = (0..plan.held_out_prompts).map(|_| task.sample_held_out(&mut rng)).collect();
        let answers =
            |model, temperature, step| Answers::of(model, codec, &requests, &generation(options, temperature, step));
        Ok(Self {
            sft: [answers(sft, TEMPERATURE, 0)?, answers(sft, 0.0, 0)?],
            ppo: [answers(policy, TEMPERATURE, 1)?, answers(policy, 0.0, 1)?],
            requests: requests.into_iter().cloned().collect(),
        })
    }

    /// How often the judge prefers PPO's answer; ties count half.
    fn win_rate(&self, mode: usize) -> f64 {
        let pairs = self.ppo[mode].judgements.iter().zip(&self.sft[mode].judgements);
        let wins: f64 = pairs
            .map(|(p, s)| 0.5 + 0.5 * (p.score - s.score).partial_cmp(&0.0).map_or(0.0, |o| f64::from(o as i8)))
            .sum();
        wins / self.requests.len() as f64
    }

    /// comparison.jsonl: every held-out prompt with both models' sampled answers, the reward model's scores and the
    /// judge's; prompts.jsonl: the prompts alone, as `rlhf generate` takes them.
    fn write(&self, dir: &Path, reward_model: &Model, codec: &Codec) -> Result<()> {
        let rewards = |answers: &Answers| {
            let sequence = |(request, text): (&Request, &String)| {
                Ok([codec.query(&request.prompt)?, codec.answer(text)?].concat())
            };
            let sequences: Vec<Vec<i32>> =
                self.requests.iter().zip(&answers.texts).map(sequence).collect::<Result<_>>()?;
            reward::score(reward_model, &sequences)
        };
        let [sft_rewards, ppo_rewards] = [rewards(&self.sft[0])?, rewards(&self.ppo[0])?];
        let (mut samples, mut prompts) = (String::new(), String::new());
        for (i, request) in self.requests.iter().enumerate() {
            let row = json!({
                "prompt": request.prompt,
                "baseline": self.sft[0].texts[i],
                "model": self.ppo[0].texts[i],
                "score_baseline": sft_rewards[i],
                "score_model": ppo_rewards[i],
                "judge_baseline": self.sft[0].judgements[i].score,
                "judge_model": self.ppo[0].judgements[i].score,
            });
            samples.push_str(&format!("{row}\n"));
            let message = json!({ "prompt": [{ "role": "user", "content": request.prompt }] });
            prompts.push_str(&format!("{message}\n"));
        }
        disk::write_file(&dir.join(COMPARISON), samples.as_bytes())?;
        disk::write_file(&dir.join("prompts.jsonl"), prompts.as_bytes())
    }

    fn describe(&self, summary: &mut Map<String, Value>) {
        let ([sft, sft_greedy], [ppo, ppo_greedy]) = (&self.sft, &self.ppo);
        let mut put = |name: &str, value| summary.insert(name.into(), value);
        put("gold_sft", number(sft.mean(|j| j.score)));
        put("gold_ppo", number(ppo.mean(|j| j.score)));
        put("gold_sft_greedy", number(sft_greedy.mean(|j| j.score)));
        put("gold_ppo_greedy", number(ppo_greedy.mean(|j| j.score)));
        put("components_sft", sft.components());
        put("components_ppo", ppo.components());
        put("components_sft_greedy", sft_greedy.components());
        put("components_ppo_greedy", ppo_greedy.components());
        put("win_rate", number(self.win_rate(0)));
        put("win_rate_greedy", number(self.win_rate(1)));
        put("eos_share", number(ppo.stopped as f64 / self.requests.len() as f64));
        put("distinct_share", number(ppo.distinct()));
        put("distinct_share_sft", number(sft.distinct()));
    }
}
