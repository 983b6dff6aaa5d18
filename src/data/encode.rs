//! Rows -> token examples of a stage, with every row and token entered in the ledger. A prompt and its completion are
//! tokenised as one text; a token that begins at or after the boundary belongs to the completion.

mod seen;

use std::ops::Range;

use serde_json::Map;

use super::formats::{self, Message, Pair, SftBody, Turns};
use super::ledger::{Entry, Ledger, Mask, Reason, Stage};
use super::records::Row;
use super::template::ChatTemplate;
use super::tokenizer::Tokenizer;
use crate::error::{Error, Result};
pub(crate) use seen::{Fate, Seen, Sequence};
use seen::{Prepared, one};

/// How many bad rows one error names.
const PLACES_SHOWN: usize = 5;

/// What the loss of supervised fine-tuning learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LossOn {
    /// The completion of a prompt; of a conversation, the assistant's turns; of a plain text, all of it.
    #[default]
    Completion,
    /// The assistant's turns, those in a prompt too. Only conversations have them.
    Assistant,
    /// Every token but the first, which nothing comes before.
    All,
}

/// How rows become examples of supervised fine-tuning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SftOptions {
    /// The longest example, in tokens; longer ones are cut at the end.
    pub max_length: usize,
    /// What the loss learns.
    pub loss_on: LossOn,
    /// Whether a text without EOS gets one (training), or stays as it is written (scoring).
    pub append_eos: bool,
    /// Whether any loss of data is an error.
    pub strict: bool,
}

/// How rows become pairs of a reward model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PairOptions {
    /// The longest sequence, in tokens; a pair with a longer one is dropped.
    pub max_length: usize,
    /// Whether any loss of data is an error.
    pub strict: bool,
}

/// How rows become prompts of PPO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptOptions {
    /// How many positions the model has, in tokens.
    pub context: usize,
    /// How many of them the response needs, in tokens.
    pub response_length: usize,
    /// Whether any loss of data is an error.
    pub strict: bool,
}

impl PromptOptions {
    /// The longest prompt that leaves room for the response, in tokens. Error `response-length` if none does.
    pub(crate) fn longest(&self) -> Result<usize> {
        let Self { context, response_length, .. } = *self;
        if response_length > 0 && response_length < context {
            return Ok(context - response_length);
        }
        let what = format!("a response of {response_length} tokens leaves no room for a prompt in {context} positions");
        Err(Error::usage("response-length", what).fix("choose another response_length"))
    }
}

/// An example of supervised fine-tuning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SftExample {
    /// The tokens.
    pub ids: Vec<i32>,
    /// Whether the loss learns to predict this token from those before it; never the first.
    pub is_target: Vec<bool>,
    /// The row.
    pub place: String,
}

/// Two answers to one prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct PairExample {
    /// The tokens of the prompt and the better answer.
    pub chosen: Vec<i32>,
    /// The tokens of the prompt and the worse answer.
    pub rejected: Vec<i32>,
    /// By how much the better one should win.
    pub margin: f32,
    /// The row.
    pub place: String,
}

/// What a response is asked to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptExample {
    /// The tokens.
    pub ids: Vec<i32>,
    /// The text that they stand for, a conversation as its template writes it.
    pub text: String,
    /// The row.
    pub place: String,
}

/// The examples of a data set and what became of its rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded<T> {
    /// The examples, in the file's order.
    pub examples: Vec<T>,
    /// The account.
    pub ledger: Ledger,
}

/// Rows -> examples of supervised fine-tuning.
///
/// Errors: those of [`formats::sft_body`] and of the template, `template-missing`, `template-not-prefix`,
/// `loss-needs-conversation`, `eos-missing`, `max-length`, `dataset-nothing-left`, and with `strict`
/// `strict-row-dropped`, `strict-row-cut`, `strict-text-lost`.
pub fn encode_sft(
    rows: impl IntoIterator<Item = Result<Row>>,
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
    options: &SftOptions,
) -> Result<Encoded<SftExample>> {
    check_max_length(options.max_length)?;
    let mut encoder = Encoder::new(tokenizer, template, Stage::Sft, options.strict);
    let mut examples = Vec::new();
    for row in rows {
        let row = row?;
        let seen = encoder.sft_row(&row, options)?;
        examples.extend(encoder.enter(seen, &row)?.into_example(row.place));
    }
    let kept = examples.iter().map(|example: &SftExample| example.ids.len() as u64).sum();
    let targets = examples.iter().flat_map(|example| &example.is_target).filter(|is_target| **is_target).count();
    encoder.close(examples, kept, targets as u64)
}

/// Rows -> pairs of a reward model. Errors as [`encode_sft`], and those of [`formats::pair`].
pub fn encode_pairs(
    rows: impl IntoIterator<Item = Result<Row>>,
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
    options: &PairOptions,
) -> Result<Encoded<PairExample>> {
    check_max_length(options.max_length)?;
    let mut encoder = Encoder::new(tokenizer, template, Stage::Reward, options.strict);
    let mut examples = Vec::new();
    for row in rows {
        let row = row?;
        let seen = encoder.pair_row(&row, options)?;
        examples.extend(encoder.enter(seen, &row)?.into_pair(row.place));
    }
    let kept =
        examples.iter().map(|example: &PairExample| (example.chosen.len() + example.rejected.len()) as u64).sum();
    encoder.close(examples, kept, 0)
}

/// Rows -> prompts of PPO. A prompt that leaves no room for the response is an error, not a loss: errors as
/// [`encode_sft`], and `prompt-too-long`, `prompt-ends-with-assistant`, `response-length`.
pub fn encode_prompts(
    rows: impl IntoIterator<Item = Result<Row>>,
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
    options: &PromptOptions,
) -> Result<Encoded<PromptExample>> {
    let PromptOptions { context, response_length, strict } = *options;
    let longest = options.longest()?;
    let mut encoder = Encoder::new(tokenizer, template, Stage::Ppo, strict);
    let mut examples = Vec::new();
    let mut too_long: Vec<(String, usize)> = Vec::new();
    let mut count = 0;
    for row in rows {
        let row = row?;
        count += 1;
        let seen = encoder.prompt_row(&row)?;
        let example = encoder.enter(seen, &row)?.into_prompt(row.place);
        let long = example.iter().filter(|example| example.ids.len() > longest);
        too_long.extend(long.map(|example| (example.place.clone(), example.ids.len())));
        examples.extend(example);
    }
    if let Some((first, _)) = too_long.first() {
        let what = format!("{} of {} prompts are longer than {longest} tokens", too_long.len(), count);
        let shown = too_long.iter().take(PLACES_SHOWN).map(|(place, length)| format!("{place} has {length}"));
        let shown: Vec<_> = shown.collect();
        let more = if too_long.len() > PLACES_SHOWN { ", ..." } else { "" };
        let why = format!("the model has {context} positions, and the response needs {response_length}; ");
        let error = Error::input("prompt-too-long", what).at(first).because(why + &shown.join(", ") + more);
        return Err(error.fix("shorten or remove these prompts, or lower response_length"));
    }
    let kept = examples.iter().map(|example: &PromptExample| example.ids.len() as u64).sum();
    encoder.close(examples, kept, 0)
}

pub(super) fn check_max_length(max_length: usize) -> Result<()> {
    if max_length >= 2 {
        return Ok(());
    }
    Err(Error::usage("max-length", format!("max_length is {max_length}; a sequence has at least 2 tokens")))
}

/// Turns rows into examples, and keeps the account.
pub(crate) struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    template: Option<&'a ChatTemplate>,
    ledger: Ledger,
    strict: bool,
}

impl<'a> Encoder<'a> {
    pub(crate) fn new(
        tokenizer: &'a Tokenizer,
        template: Option<&'a ChatTemplate>,
        stage: Stage,
        strict: bool,
    ) -> Self {
        Self { tokenizer, template, ledger: Ledger::new(stage), strict }
    }

    /// The account of the rows so far.
    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Holds the account against the examples, which must not be none.
    fn close<T>(self, examples: Vec<T>, tokens: u64, targets: u64) -> Result<Encoded<T>> {
        let ledger = self.ledger;
        ledger.check()?;
        if (ledger.rows_kept, ledger.tokens_kept, ledger.tokens_target) != (examples.len() as u64, tokens, targets) {
            return Err(Error::failure("ledger", "the data ledger disagrees with the examples"));
        }
        if examples.is_empty() {
            let error = Error::input("dataset-nothing-left", "no row of the data set can be used");
            let error =
                error.fix("look at the reasons: fill in what is empty, and raise max_length for what is too long");
            return Err(error.because(format!("the data ledger says:\n{ledger}").replace('\n', "\n    ")));
        }
        Ok(Encoded { examples, ledger })
    }

    /// A row for supervised fine-tuning, not yet in the ledger.
    pub(crate) fn sft_row(&self, row: &Row, options: &SftOptions) -> Result<Seen> {
        let seen = formats::sft_body(row).and_then(|parsed| {
            let seen = self.see_sft(parsed.body, options)?;
            Ok(Seen { extra: parsed.extra, ..seen })
        });
        seen.map_err(|error| error.at_if_unplaced(&row.place))
    }

    /// A row for a reward model, not yet in the ledger.
    pub(crate) fn pair_row(&self, row: &Row, options: &PairOptions) -> Result<Seen> {
        let seen = formats::pair(row).and_then(|parsed| {
            let seen = self.see_pair(parsed.body, options)?;
            Ok(Seen { extra: parsed.extra, ..seen })
        });
        seen.map_err(|error| error.at_if_unplaced(&row.place))
    }

    /// A row for PPO, not yet in the ledger.
    pub(crate) fn prompt_row(&self, row: &Row) -> Result<Seen> {
        let seen = formats::prompt(row).and_then(|parsed| {
            let seen = self.see_prompt(parsed.body)?;
            Ok(Seen { extra: parsed.extra, ..seen })
        });
        seen.map_err(|error| error.at_if_unplaced(&row.place))
    }

    /// Enters a row in the ledger, all of it at once: a row that fails half-way leaves no trace.
    pub(crate) fn enter(&mut self, seen: Seen, row: &Row) -> Result<Seen> {
        if self.strict {
            seen.refuse_loss().map_err(|error| error.at(&row.place))?;
        }
        let ledger = &mut self.ledger;
        ledger.note_extra(&seen.extra);
        for sequence in &seen.sequences {
            ledger.conversations += u64::from(sequence.is_conversation);
            ledger.conversations_without_eos += u64::from(sequence.is_conversation && sequence.lacks_eos);
            ledger.tokens_unknown += sequence.unknown as u64;
            ledger.characters_lost += sequence.lost as u64;
            ledger.tokens_straddling += sequence.straddling;
            ledger.eos_appended += u64::from(sequence.is_closed);
        }
        let masks = || seen.sequences.iter().flat_map(|sequence| &sequence.masks);
        let targets = masks().filter(|mask| mask.is_none()).count();
        let mut entry = Entry { tokens: seen.tokens(), targets, ..Entry::default() };
        match seen.fate {
            Fate::Dropped(reason) => ledger.drop_row(reason, &entry),
            Fate::Kept { cut } => {
                for mask in masks().take(entry.tokens - cut) {
                    match mask {
                        Some(mask) => *entry.kept_masked.entry(*mask).or_default() += 1,
                        None => entry.kept_targets += 1,
                    }
                }
                ledger.keep_row(&entry, cut, targets - entry.kept_targets);
                if let [chosen, rejected] = seen.sequences.as_slice() {
                    ledger.identical_pairs += u64::from(chosen.encoding.ids == rejected.encoding.ids);
                }
            }
        }
        Ok(seen)
    }

    fn see_sft(&self, body: SftBody, options: &SftOptions) -> Result<Seen> {
        let is_empty = match &body {
            SftBody::Text(text) => text.is_empty(),
            SftBody::Messages(messages) => messages.is_empty(),
            SftBody::Completion { completion, .. } => completion.is_empty(),
            SftBody::Dialogue { completion, .. } => completion.is_empty(),
        };
        if is_empty {
            return Ok(Seen::new(self.what_is_given(body)?, Fate::Dropped(Reason::Empty)));
        }
        let prepared = self.prepare(body, options.loss_on)?;
        let mut sequence = self.sequence(prepared, options.append_eos)?;
        let ends = sequence.encoding.ids.iter().zip(&sequence.masks);
        sequence.lacks_eos = !ends.into_iter().any(|(id, mask)| mask.is_none() && self.ends(*id));
        let is_empty = sequence.encoding.is_empty();
        let cut = sequence.encoding.ids.len().saturating_sub(options.max_length);
        let learns = sequence.masks.iter().take(options.max_length).any(Option::is_none);
        let fate = match (is_empty, learns) {
            (true, _) => Fate::Dropped(Reason::Empty),
            (false, false) => Fate::Dropped(Reason::NoTarget),
            (false, true) => Fate::Kept { cut },
        };
        Ok(Seen::new(vec![sequence], fate))
    }

    /// The prompt of a row without completion, whose tokens are lost with the row; nothing of it is learnt.
    fn what_is_given(&self, body: SftBody) -> Result<Vec<Sequence>> {
        let prepared = match body {
            SftBody::Completion { prompt, .. } if !prompt.is_empty() => Prepared::plain(prompt, 0),
            // A template may refuse a conversation without an answer.
            SftBody::Dialogue { prompt, .. } if !prompt.is_empty() => match self.render(&prompt, false) {
                Ok(text) => Prepared::conversation(text, Vec::new()),
                Err(_) => return Ok(Vec::new()),
            },
            _ => return Ok(Vec::new()),
        };
        let mut sequence = self.sequence(prepared, false)?;
        sequence.masks.iter_mut().for_each(|mask| *mask = Some(Mask::Given));
        Ok(vec![sequence])
    }

    fn see_pair(&self, pair: Pair, options: &PairOptions) -> Result<Seen> {
        let Pair { prompt, chosen, rejected, margin } = pair;
        let mut sides = Vec::new();
        for answer in [chosen, rejected] {
            let prepared = self.join(&prompt, answer)?;
            if !prepared.text.is_empty() {
                let sequence = self.sequence(prepared, true)?;
                sides.push(sequence.without_token_loss());
            }
        }
        let is_empty = sides.len() < 2 || sides.iter().any(|side| side.encoding.is_empty());
        let is_long = sides.iter().any(|side| side.encoding.ids.len() > options.max_length);
        let fate = match (is_empty, is_long) {
            (true, _) => Fate::Dropped(Reason::Empty),
            (false, true) => Fate::Dropped(Reason::TooLong),
            (false, false) => Fate::Kept { cut: 0 },
        };
        Ok(Seen { margin, ..Seen::new(sides, fate) })
    }

    fn see_prompt(&self, prompt: Turns) -> Result<Seen> {
        let prepared = match prompt {
            Turns::Text(text) => Prepared::plain(text, 0),
            Turns::Messages(messages) if messages.is_empty() => Prepared::plain(String::new(), 0),
            Turns::Messages(messages) => {
                if messages.last().is_some_and(|message| message.role == "assistant") {
                    let error = Error::input("prompt-ends-with-assistant", "the prompt ends with an assistant's turn");
                    return Err(error.fix("end it with the turn that the response answers"));
                }
                Prepared::conversation(self.render(&messages, true)?, Vec::new())
            }
        };
        let mut sequence = self.sequence(prepared, false)?;
        sequence.encoding.open_end();
        sequence.masks.truncate(sequence.encoding.ids.len());
        let is_empty = sequence.encoding.is_empty();
        let fate = if is_empty { Fate::Dropped(Reason::Empty) } else { Fate::Kept { cut: 0 } };
        Ok(Seen::new(vec![sequence.without_token_loss()], fate))
    }

    /// The text of a row, and which of it is learnt.
    fn prepare(&self, body: SftBody, loss_on: LossOn) -> Result<Prepared> {
        let is_plain = matches!(body, SftBody::Text(_) | SftBody::Completion { .. });
        if is_plain && loss_on == LossOn::Assistant {
            let error = Error::usage("loss-needs-conversation", "only conversations have assistant turns to learn");
            return Err(error.fix("turn assistant_only_loss off, or give the rows as messages"));
        }
        match body {
            SftBody::Text(text) => Ok(Prepared::plain(text, 0)),
            SftBody::Completion { prompt, completion } => {
                let from = if loss_on == LossOn::All { 0 } else { prompt.len() };
                Ok(Prepared::plain(prompt + &completion, from))
            }
            SftBody::Messages(messages) => self.prepare_turns(&messages, loss_on == LossOn::All),
            SftBody::Dialogue { mut prompt, mut completion } => {
                let turns = prompt.len();
                prompt.append(&mut completion);
                if loss_on == LossOn::Completion && turns > 0 {
                    return self.prepare_answer(&prompt, turns);
                }
                self.prepare_turns(&prompt, loss_on == LossOn::All)
            }
        }
    }

    /// A conversation whose turns from the given one on are learnt, whoever speaks; where the prompt is not how the
    /// whole begins, the assistant's turns among them, if the template marks those.
    fn prepare_answer(&self, messages: &[Message], from: usize) -> Result<Prepared> {
        let rendered = self.template()?.render(messages, false, &Map::new())?;
        let (asked, _) = messages.split_at(from);
        let prompt = self.render(asked, true)?;
        if rendered.text.starts_with(&prompt) {
            let learnt = one(prompt.len()..rendered.text.len());
            return Ok(Prepared::conversation(rendered.text, learnt));
        }
        let answers = |turns: &[Message]| turns.iter().filter(|message| message.role == "assistant").count();
        let spans = rendered.assistant.filter(|spans| spans.len() == answers(messages));
        let mut learnt = spans.ok_or_else(|| not_prefix(from))?;
        Ok(Prepared::conversation(rendered.text, learnt.split_off(answers(asked))))
    }

    /// A conversation of which all is learnt, or the assistant's turns.
    fn prepare_turns(&self, messages: &[Message], all: bool) -> Result<Prepared> {
        let rendered = self.template()?.render(messages, false, &Map::new())?;
        let learnt = if all {
            one(0..rendered.text.len())
        } else if let Some(spans) = rendered.assistant {
            spans
        } else {
            self.assistant_spans(messages, &rendered.text)?
        };
        Ok(Prepared::conversation(rendered.text, learnt))
    }

    /// Where the assistant's turns stand in a text whose template does not say so: a turn is what the conversation up
    /// to it adds to the conversation before it and the generation prompt.
    fn assistant_spans(&self, messages: &[Message], text: &str) -> Result<Vec<Range<usize>>> {
        let mut spans = Vec::new();
        for (index, _) in messages.iter().enumerate().filter(|(_, message)| message.role == "assistant") {
            let (before, _) = messages.split_at(index);
            let (with, after) = messages.split_at(index + 1);
            let with = if after.is_empty() { text.to_string() } else { self.render(with, false)? };
            let opening = self.render(before, true);
            // Many templates cannot render no turn at all; then the first turn begins with the text.
            let before = if before.is_empty() { opening.unwrap_or_default() } else { opening? };
            if !with.starts_with(&before) || !text.starts_with(&with) {
                return Err(not_prefix(index));
            }
            spans.push(before.len()..with.len());
        }
        Ok(spans)
    }

    /// A prompt with one of its answers.
    fn join(&self, prompt: &Turns, answer: Turns) -> Result<Prepared> {
        match (prompt, answer) {
            (Turns::Messages(prompt), Turns::Messages(mut answer)) => {
                let mut messages = prompt.clone();
                messages.append(&mut answer);
                if messages.is_empty() {
                    return Ok(Prepared::plain(String::new(), 0));
                }
                Ok(Prepared::conversation(self.render(&messages, false)?, Vec::new()))
            }
            (Turns::Text(prompt), Turns::Text(answer)) => Ok(Prepared::plain(format!("{prompt}{answer}"), 0)),
            _ => Err(Error::input("dataset-column-type", "prompt and answer are in different forms")),
        }
    }

    fn template(&self) -> Result<&'a ChatTemplate> {
        self.template.ok_or_else(|| {
            let error =
                Error::input("template-missing", "the data set has conversations and the model no chat template");
            error.fix("put a chat_template.jinja into the model's folder, or give the rows as strings")
        })
    }

    fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        Ok(self.template()?.render(messages, add_generation_prompt, &Map::new())?.text)
    }

    fn ends(&self, id: i32) -> bool {
        self.tokenizer.eos_token_ids().contains(&id)
    }

    /// The tokens of a text; with `close`, one that no template wrote gets an EOS at its end.
    fn sequence(&self, prepared: Prepared, close: bool) -> Result<Sequence> {
        let mut encoding = self.tokenizer.encode(&prepared.text, !prepared.is_conversation)?;
        let unknown = encoding.ids.iter().filter(|id| Some(**id) == self.tokenizer.unk_token_id()).count();
        let lost = encoding.lost_characters(&prepared.text);
        let straddling = prepared.count_straddling(&encoding.offsets);
        let is_closed = encoding.ids.last().is_some_and(|id| self.ends(*id));
        let is_closed = close && !prepared.is_conversation && !is_closed;
        if is_closed {
            let eos = self.tokenizer.eos_token_id().ok_or_else(|| {
                let error = Error::input("eos-missing", "the model has no EOS token, so no answer would ever end");
                error.fix("set `eos_token` in tokenizer_config.json, or `eos_token_id` in generation_config.json")
            })?;
            let end = prepared.text.len();
            encoding.ids.push(eos);
            encoding.offsets.push((end, end));
            encoding.is_added.push(true);
        }
        let masks = prepared.masks(&encoding);
        let lacks_eos = !encoding.ids.iter().any(|id| self.ends(*id));
        let Prepared { text, is_conversation, .. } = prepared;
        Ok(Sequence { text, encoding, masks, is_conversation, lacks_eos, unknown, lost, straddling, is_closed })
    }
}

fn not_prefix(turn: usize) -> Error {
    let what = format!("the chat template does not show where turn {} begins and ends", turn + 1);
    let why = "rendered up to that turn, the conversation is not how the whole one begins, and the template has no \
               {% generation %} tags";
    Error::input("template-not-prefix", what).because(why).fix(
        "put {% generation %} and {% endgeneration %} around the assistant's text in the template, or learn all tokens",
    )
}

#[cfg(test)]
#[path = "encode_tests.rs"]
mod tests;
