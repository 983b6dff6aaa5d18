//! Autoregressive sampling with a cache of keys and values: prompts in packed prefills, then a token a row and step. A
//! decode step reads all that changes from the device's memory; a GPU records it once for each size of a batch, and the
//! host looks at what was drawn every few steps. The log-probability of each token comes from the routine that training
//! uses.

use super::Model;
use super::params::Weights;
use super::slots::{Flight, Policy, SlotUse, Slots};
use super::transformer::Cache;
use crate::device::Device;
use crate::device::graph::Turns;
use crate::error::{Code, Error, Result};
use crate::ops;
use crate::ops::advance::{Read, Rows, Rule, Start};
use crate::ops::append::Continued;
pub(crate) use crate::ops::sample::Sampling;
use crate::random::Stage;
use crate::tensor::Tensor;

/// How responses are drawn.
#[derive(Debug, Clone)]
pub(crate) struct Generation<'a> {
    pub(crate) sampling: Sampling,
    /// Tokens of a response at most, the stop token included.
    pub(crate) max_new_tokens: usize,
    /// Tokens that end a response.
    pub(crate) stop: &'a [i32],
    pub(crate) seed: u64,
    pub(crate) stage: Stage,
    /// The training step, or 0: one of the counters of the random numbers.
    pub(crate) step: u32,
    /// The number of the first row, so that a row draws the same numbers however rows are grouped.
    pub(crate) first_row: u32,
    /// Rows that decode at once at most; as many as the cache has room for where nothing is said.
    pub(crate) slots: Option<usize>,
}

/// What a generation gave.
#[derive(Debug)]
pub(crate) struct Generated {
    /// One a prompt.
    pub(crate) responses: Vec<Response>,
    pub(crate) slots: SlotUse,
}

/// One row's answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Response {
    /// The sampled tokens, the stop token included.
    pub(crate) tokens: Vec<i32>,
    /// Of each token under the temperature-scaled policy, truncation left out; at temperature 0, of temperature 1.
    pub(crate) logprobs: Vec<f32>,
    /// Whether it ended with a stop token.
    pub(crate) stopped: bool,
}

/// Cached positions, over all rows, that are alive at once: on the CPU, and on a GPU.
const CACHED_POSITIONS: [usize; 2] = [1 << 16, 1 << 17];
/// Decode steps of a GPU between two looks of the host.
const STEPS: usize = 8;

fn policy(device: &Device, longest: usize, slots: Option<usize>) -> Policy {
    let slots = |positions: usize| (positions / longest).min(slots.unwrap_or(usize::MAX)).max(1);
    match device.is_cpu() {
        true => Policy { slots: slots(CACHED_POSITIONS[0]), steps: 1, buckets: false },
        false => Policy { slots: slots(CACHED_POSITIONS[1]), steps: STEPS, buckets: true },
    }
}

impl Model {
    /// A response to each prompt; none may be empty.
    pub(crate) fn generate(
        &self,
        weights: &Weights,
        prompts: &[&[i32]],
        options: &Generation<'_>,
    ) -> Result<Generated> {
        let longest = self.check_prompts(prompts, options)?;
        let responses = vec![Response::default(); prompts.len()];
        if options.max_new_tokens == 0 || prompts.is_empty() {
            return Ok(Generated { responses, slots: SlotUse::default() });
        }
        if let Device::Gpu(_) = self.device() {
            return Generator::new(self, weights, prompts, options, longest)?.run();
        }
        // A decode step of a small model is too short for several cores; several generations at once are not.
        let most = policy(self.device(), longest, options.slots).slots;
        let groups = ops::groups(prompts, |first, group| {
            // Together they have the slots that one generation would have.
            let slots = Some((most * group.len() / prompts.len()).max(1));
            let options = Generation { first_row: options.first_row + first as u32, slots, ..options.clone() };
            Generator::new(self, weights, group, &options, longest)?.run()
        });
        let mut all = Generated { responses: Vec::with_capacity(prompts.len()), slots: SlotUse::default() };
        for group in groups {
            let Generated { responses, slots } = group?;
            all.responses.extend(responses);
            all.slots.useful += slots.useful;
            all.slots.computed += slots.computed;
        }
        Ok(all)
    }

    /// A response to one prompt, the bits of [`Model::generate`], whose tokens are handed to `take` as they come: one
    /// by one on the CPU, a few at a time from a GPU. The response ends early where `take` says false.
    ///
    /// # Errors
    /// Those of [`Model::generate`], and of `take`.
    pub(crate) fn stream(
        &self,
        weights: &Weights,
        prompt: &[i32],
        options: &Generation<'_>,
        take: &mut dyn FnMut(&[i32]) -> Result<bool>,
    ) -> Result<Response> {
        let prompts = [prompt];
        let longest = self.check_prompts(&prompts, options)?;
        if options.max_new_tokens == 0 {
            return Ok(Response::default());
        }
        let mut generator = Generator::new(self, weights, &prompts, options, longest)?;
        let mut given = 0;
        while generator.advance()? {
            let tokens = &generator.responses[0].tokens;
            if !take(&tokens[std::mem::replace(&mut given, tokens.len())..])? {
                break;
            }
        }
        Ok(generator.responses.swap_remove(0))
    }

    /// The positions that the longest of these prompts needs with its response.
    fn check_prompts(&self, prompts: &[&[i32]], options: &Generation<'_>) -> Result<usize> {
        let longest = prompts.iter().map(|p| p.len()).max().unwrap_or(0) + options.max_new_tokens;
        if longest > self.config().max_positions {
            return Err(Error::new(Code::Input, "context-exceeded", "a prompt with its response passes the context")
                .because(format!("{longest} tokens are asked for, the model has {}", self.config().max_positions))
                .fix("shorten the prompts, or ask for fewer new tokens"));
        }
        if prompts.iter().any(|p| p.is_empty()) {
            return Err(Error::input("prompt-empty", "a prompt has no token"));
        }
        Ok(longest)
    }

    /// The cache that [`Model::generate`] takes for `rows` prompts, the longest of which needs `longest` positions.
    pub(crate) fn response_cache(&self, rows: usize, longest: usize) -> Result<Cache> {
        let slots = policy(self.device(), longest, None).slots.min(rows);
        self.network.cache(&self.params.flat, slots, longest)
    }
}

/// Rows that decode together.
struct Batch {
    rows: Rows,
    turns: Turns,
    /// The row of each slot.
    row_of: Vec<usize>,
}

/// A generation under way.
struct Generator<'a> {
    model: &'a Model,
    weights: &'a Weights,
    prompts: &'a [&'a [i32]],
    options: &'a Generation<'a>,
    rule: Rule,
    cache: Cache,
    slots: Slots,
    responses: Vec<Response>,
    /// The batch of the last decode steps, if it is still the one to go on with.
    batch: Option<Batch>,
}

impl<'a> Generator<'a> {
    fn new(
        model: &'a Model,
        weights: &'a Weights,
        prompts: &'a [&'a [i32]],
        options: &'a Generation<'a>,
        longest: usize,
    ) -> Result<Self> {
        let lengths = prompts.iter().map(|p| p.len()).collect();
        let slots = Slots::new(policy(model.device(), longest, options.slots), lengths, options.max_new_tokens);
        let rule = Rule {
            stop: Tensor::new(model.device(), &[options.stop.len()], options.stop.to_vec())?,
            most: options.max_new_tokens,
            seed: options.seed,
            stage: options.stage,
            step: options.step,
        };
        let cache = model.network.cache(&model.params.flat, slots.slots(), longest)?;
        let responses = vec![Response::default(); prompts.len()];
        Ok(Self { model, weights, prompts, options, rule, cache, slots, responses, batch: None })
    }

    fn run(mut self) -> Result<Generated> {
        while self.advance()? {}
        Ok(Generated { responses: self.responses, slots: self.slots.used() })
    }

    /// Reads the prompts whose turn it is, or decodes; says whether there was anything to do.
    fn advance(&mut self) -> Result<bool> {
        let admitted = self.slots.admit();
        if !admitted.is_empty() {
            self.prefill(&admitted)?;
        } else if self.slots.flying().is_empty() {
            return Ok(false);
        } else {
            self.decode()?;
        }
        Ok(true)
    }

    /// Reads the prompts of these flights and draws the first token of each.
    fn prefill(&mut self, admitted: &[Flight]) -> Result<()> {
        // Its memory is free for the prompts; what comes after them is another batch.
        self.batch = None;
        let (device, network) = (self.model.device(), &self.model.network);
        let prompts: Vec<&[i32]> = admitted.iter().map(|f| self.prompts[f.prompt]).collect();
        let lengths: Vec<usize> = prompts.iter().map(|p| p.len()).collect();
        let slots: Vec<usize> = admitted.iter().map(|f| f.slot).collect();
        let continued = Continued::new(device, &slots, &lengths, &vec![0; lengths.len()])?;
        let ids: Vec<i32> = prompts.concat();
        let ids = Tensor::new(device, &[ids.len()], ids)?;
        let hidden = network.hidden_cached(self.weights, &ids, &continued, &self.cache)?;
        let last: Vec<i32> = continued.sequences.offsets.iter().skip(1).map(|end| *end as i32 - 1).collect();
        let hidden = ops::embedding::gather_rows(&hidden, &Tensor::new(device, &[last.len()], last)?)?; // [admitted, C]
        let starts: Vec<Start> = admitted.iter().map(|f| self.start(f)).collect();
        let rows = Rows::new(device, &starts, 1, &self.rule)?;
        self.draw(&hidden, &rows)?;
        let read = rows.read()?;
        let (options, responses) = (self.options, &mut self.responses);
        self.slots.look(0, 0, |flight| match slots.iter().position(|slot| *slot == flight.slot) {
            Some(row) => keep(&mut responses[flight.prompt], flight, options, (&rows, &read, row), 1),
            None => Ok((0, false)),
        })
    }

    /// Some tokens of all rows in flight.
    fn decode(&mut self) -> Result<()> {
        let (size, steps) = (self.slots.rows(), self.slots.steps());
        let mut batch = match self.batch.take() {
            Some(batch) if batch.rows.len() == size => batch,
            _ => self.assemble(size)?,
        };
        let Batch { rows, turns, row_of } = &mut batch;
        for _ in 0..steps {
            turns.take(&mut || self.step(rows))?;
        }
        let read = rows.read()?;
        let (options, responses) = (self.options, &mut self.responses);
        self.slots.look(size, steps, |flight| {
            keep(&mut responses[flight.prompt], flight, options, (rows, &read, row_of[flight.slot]), steps)
        })?;
        self.batch = Some(batch);
        Ok(())
    }

    /// A batch of `size` rows: all in flight, and idle ones in slots that nobody uses.
    fn assemble(&self, size: usize) -> Result<Batch> {
        let flying = self.slots.flying();
        let mut row_of = vec![0; self.slots.slots()];
        flying.iter().enumerate().for_each(|(row, f)| row_of[f.slot] = row);
        let idle = |slot: &usize| Start { id: 0, position: 0, slot: *slot, count: 0, number: 0, finished: true };
        let idle = self.slots.free().iter().take(size - flying.len()).map(idle);
        let starts: Vec<Start> = flying.iter().map(|f| self.start(f)).chain(idle).collect();
        let device = self.model.device();
        Ok(Batch { rows: Rows::new(device, &starts, STEPS, &self.rule)?, turns: Turns::new(device), row_of })
    }

    /// Where a flight stands.
    fn start(&self, flight: &Flight) -> Start {
        Start {
            id: self.responses[flight.prompt].tokens.last().copied().unwrap_or_default(),
            position: self.prompts[flight.prompt].len() + flight.count.saturating_sub(1),
            slot: flight.slot,
            count: flight.count,
            number: self.options.first_row + flight.prompt as u32,
            finished: false,
        }
    }

    /// One more token a row; the same launches every time.
    fn step(&self, rows: &Rows) -> Result<()> {
        let continued = Continued::one_each(&rows.slots, &rows.positions, self.cache.positions);
        let hidden = self.model.network.hidden_cached(self.weights, &rows.ids, &continued, &self.cache)?; // [rows, C]
        self.draw(&hidden, rows)
    }

    /// Draws each row's token from the hidden state [rows, C] of its last one.
    fn draw(&self, hidden: &Tensor, rows: &Rows) -> Result<()> {
        let sampling = &self.options.sampling;
        let logits = ops::token_logprobs::logits(hidden, self.weights.get(self.model.network.head))?; // [rows, V]
        let drawn = ops::sample::sample(&logits, &rows.uniforms, sampling)?;
        let temperature = if sampling.temperature == 0.0 { 1.0 } else { sampling.temperature };
        let logprobs = ops::token_logprobs::of_logits(&logits, &drawn.tokens, temperature)?;
        ops::advance::advance(rows, &drawn, &logprobs, &self.rule)
    }
}

/// Adds what a row drew in up to `steps` steps to its response: how many tokens these are, and whether it is over.
fn keep(
    response: &mut Response,
    flight: &Flight,
    options: &Generation<'_>,
    (rows, read, row): (&Rows, &Read, usize),
    steps: usize,
) -> Result<(usize, bool)> {
    for n in 1..=steps {
        let (token, logprob) = rows.draw(read, row, response.tokens.len());
        if token < 0 {
            let place = [options.first_row as usize + flight.prompt, response.tokens.len()];
            return Err(Error::new(Code::NonFinite, "logits-not-finite", "a logit is not a finite number")
                .at(format!("prompt {} of the batch, response token {}, token id {}", place[0], place[1], -1 - token))
                .fix("the weights or activations have overflowed: check the model, lower the learning rate"));
        }
        response.tokens.push(token);
        response.logprobs.push(logprob);
        response.stopped = options.stop.contains(&token);
        if response.stopped || response.tokens.len() == options.max_new_tokens {
            return Ok((n, true));
        }
    }
    Ok((steps, false))
}
