//! Answers to fixed prompts, before, during and after a run, so that one sees what training does to them: numbers alone
//! do not show a policy that has found a way around its reward model. The answers are greedy, so that nothing but the
//! weights changes them. Nothing is learnt from them.

use serde_json::{Value, json};

use super::metrics::{Row, number};
use super::reward::{Episode, Reward, lent};
use crate::config::SampleArgs;
use crate::data::encode::{PromptExample, SftExample};
use crate::error::Result;
use crate::model::Model;
use crate::model::generate::{Generation, Sampling};
use crate::random::Stage;

/// Turns tokens into text; the second argument leaves special tokens out.
pub(crate) type Decode = Box<dyn Fn(&[i32], bool) -> Result<String> + Send>;

/// Tokens of an answer at most where no option says it [TRL's response_length].
const ANSWER_TOKENS: usize = 53;
/// A text without a prompt is continued from this share of it.
const CONTINUED_SHARE: usize = 4;

/// A prompt that is answered again and again.
#[derive(Debug, Clone, PartialEq)]
struct Prompt {
    ids: Vec<i32>,
    text: String,
}

/// What is answered, and when.
pub(crate) struct Sampler {
    prompts: Vec<Prompt>,
    decode: Decode,
    stop: Vec<i32>,
    /// Times in a run.
    generations: usize,
    max_new_tokens: usize,
}

/// Who scores answers, beside the model that gives them.
#[derive(Default)]
pub(crate) struct Scorers<'a> {
    pub(crate) reward: Option<&'a mut dyn Reward>,
    pub(crate) judge: Option<&'a mut dyn Reward>,
}

impl<'a> Scorers<'a> {
    /// Those of PPO.
    pub(super) fn of(reward: &'a mut dyn Reward, judge: &'a mut Option<&mut dyn Reward>) -> Self {
        Self { reward: Some(reward), judge: lent(judge) }
    }
}

/// `most` of `all` different rows, evenly over their length.
fn spread<T: PartialEq>(all: &[T], most: usize) -> Vec<&T> {
    let step = all.len().div_ceil(most.max(1)).max(1);
    let mut chosen: Vec<&T> = Vec::new();
    for row in all.iter().step_by(step).chain(all) {
        if chosen.len() < most && !chosen.contains(&row) {
            chosen.push(row);
        }
    }
    chosen
}

/// The tokens before the first one that is learnt; of a text of which all is learnt, its beginning.
pub(super) fn prompt_of(example: &SftExample) -> &[i32] {
    let first = example.is_target.iter().position(|is_target| *is_target).unwrap_or(example.ids.len());
    let end = if first > 1 { first } else { (example.ids.len() / CONTINUED_SHARE).max(1) };
    &example.ids[..end.min(example.ids.len())]
}

/// The rows whose prompts are answered: held-out ones, where there are some.
pub(crate) fn held_out<'a>(data: &'a [SftExample], eval: &'a [SftExample]) -> &'a [SftExample] {
    if eval.is_empty() { data } else { eval }
}

/// Rows of `data` whose prompts fine-tuning answers, and how many tokens an answer may have.
pub(crate) fn fine_tuning(data: &[SftExample], positions: usize, args: &SampleArgs) -> (Vec<Vec<i32>>, usize) {
    let most = if args.num_sample_generations == 0 { 0 } else { args.num_sample_prompts };
    // Looking at all prompts of a large file for the sake of a few is not worth it.
    let step = data.len().div_ceil(most.saturating_mul(64).max(1)).max(1);
    let prompts: Vec<Vec<i32>> = data.iter().step_by(step).map(|example| prompt_of(example).to_vec()).collect();
    let fits: Vec<Vec<i32>> = prompts.into_iter().filter(|ids| ids.len() < positions).collect();
    let chosen: Vec<Vec<i32>> = spread(&fits, most).into_iter().cloned().collect();
    let longest = chosen.iter().map(Vec::len).max().unwrap_or(0);
    (chosen, ANSWER_TOKENS.min(positions - longest))
}

impl Sampler {
    /// Of fine-tuning: the prompts of some rows of `data`, for a model of `positions` positions.
    ///
    /// # Errors
    /// Those of `decode`.
    pub(crate) fn of_examples(
        data: &[SftExample],
        positions: usize,
        stop: Vec<i32>,
        decode: Decode,
        args: &SampleArgs,
    ) -> Result<Option<Self>> {
        let (chosen, max_new_tokens) = fine_tuning(data, positions, args);
        let prompt = |ids: Vec<i32>| Ok(Prompt { text: decode(&ids, false)?, ids });
        let prompts: Vec<Prompt> = chosen.into_iter().map(prompt).collect::<Result<_>>()?;
        Ok(Self::new(prompts, max_new_tokens, stop, decode, args))
    }

    /// Of PPO: some of its prompts, no more than a batch has (the memory plan counts with that), with answers as long
    /// as the rollout's.
    pub(crate) fn of_prompts(
        data: &[PromptExample],
        [batch_size, response_length]: [usize; 2],
        stop: Vec<i32>,
        decode: Decode,
        args: &SampleArgs,
    ) -> Option<Self> {
        let chosen = spread(data, args.num_sample_prompts.min(batch_size));
        let prompts = chosen.into_iter().map(|row| Prompt { ids: row.ids.clone(), text: row.text.clone() }).collect();
        Self::new(prompts, response_length, stop, decode, args)
    }

    fn new(
        prompts: Vec<Prompt>,
        max_new_tokens: usize,
        stop: Vec<i32>,
        decode: Decode,
        args: &SampleArgs,
    ) -> Option<Self> {
        let generations = args.num_sample_generations;
        let is_needed = generations > 0 && !prompts.is_empty() && max_new_tokens > 0;
        is_needed.then_some(Self { prompts, decode, stop, generations, max_new_tokens })
    }

    /// Whether the prompts are answered when `step` of `steps` steps are done: before the first, after the last, and
    /// evenly in between.
    pub(crate) fn is_due(&self, step: usize, steps: usize) -> bool {
        step.is_multiple_of(steps.div_ceil(self.generations).max(1)) || step == steps
    }

    /// The model's answers as rows of `samples.jsonl`, with the scores of who scores them.
    ///
    /// # Errors
    /// A number that is not finite; those of the scorers.
    pub(crate) fn rows(&self, model: &Model, scorers: Scorers<'_>) -> Result<Vec<Row>> {
        let queries: Vec<&[i32]> = self.prompts.iter().map(|prompt| &prompt.ids[..]).collect();
        let options = greedy(self.max_new_tokens, &self.stop);
        let responses = model.generate(&model.frozen()?, &queries, &options)?.responses;
        let episodes: Vec<Episode<'_>> =
            queries.iter().zip(&responses).map(|(query, r)| Episode { query, response: &r.tokens }).collect();
        let [scores, judged] =
            [scorers.reward, scorers.judge].map(|who| who.map(|who| who.scores(&episodes)).transpose());
        let (scores, judged) = (scores?, judged?);
        let row = |(i, (prompt, response)): (usize, (&Prompt, &crate::model::generate::Response))| {
            let mut row = Row::new();
            row.insert("prompt".into(), json!(prompt.text));
            row.insert("completion".into(), json!((self.decode)(&response.tokens, true)?));
            row.insert("finish_reason".into(), json!(if response.stopped { "stop" } else { "length" }));
            row.insert("tokens".into(), json!(response.tokens.len()));
            let score = |all: &Option<Vec<f32>>| all.as_ref().and_then(|all| all.get(i)).map(|s| number(f64::from(*s)));
            let named = [("score", score(&scores)), ("judge", score(&judged))];
            row.extend(named.into_iter().filter_map(|(name, x): (&str, Option<Value>)| Some((name.to_owned(), x?))));
            Ok(row)
        };
        self.prompts.iter().zip(&responses).enumerate().map(row).collect()
    }
}

/// One answer a prompt, the likeliest token each time.
pub(super) fn greedy(max_new_tokens: usize, stop: &[i32]) -> Generation<'_> {
    Generation {
        sampling: Sampling { temperature: 0.0, top_k: 0, top_p: 1.0 },
        max_new_tokens,
        stop,
        seed: 0,
        stage: Stage::Generate,
        step: 0,
        first_row: 0,
        slots: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(ids: Vec<i32>, first: usize) -> SftExample {
        let is_target = (0..ids.len()).map(|i| i >= first).collect();
        SftExample { ids, is_target, place: String::new() }
    }

    #[test]
    fn a_prompt_ends_where_learning_begins() {
        assert_eq!(prompt_of(&example(vec![1, 2, 3, 4], 3)), [1, 2, 3]);
        assert_eq!(prompt_of(&example((0..9).collect(), 1)), [0, 1], "a text without a prompt");
        assert_eq!(prompt_of(&example(vec![7], 1)), [7]);
    }

    #[test]
    fn rows_are_chosen_evenly_and_once() {
        assert_eq!(spread(&[1, 2, 3, 4, 5, 6], 3), [&1, &3, &5]);
        assert_eq!(spread(&[1, 1, 1, 2, 1, 3], 3), [&1, &2, &3]);
        assert_eq!(spread(&[4], 8), [&4]);
        assert!(spread(&[1, 2], 0).is_empty());
    }

    #[test]
    fn answers_come_first_last_and_evenly() {
        let decode: Decode = Box::new(|_, _| Ok(String::new()));
        let args = |num_sample_generations| SampleArgs { num_sample_generations, num_sample_prompts: 2 };
        let rows = [PromptExample { ids: vec![1], text: String::new(), place: String::new() }];
        let sampler = Sampler::of_prompts(&rows, [8, 4], vec![0], decode, &args(3)).unwrap();
        let due = |steps| (0..=steps).filter(|step| sampler.is_due(*step, steps)).collect::<Vec<_>>();
        assert_eq!((due(9), due(10), due(2)), (vec![0, 3, 6, 9], vec![0, 4, 8, 10], vec![0, 1, 2]));
        assert!(Sampler::of_prompts(&rows, [8, 4], vec![0], Box::new(|_, _| Ok(String::new())), &args(0)).is_none());
    }
}
