//! A conversation: what was said, as the model's template writes it; an answer to it, handed out character by
//! character; and what is forgotten where it outgrows the context.

use serde_json::{Value, json};

use crate::data::encode::{PromptOptions, encode_prompts};
use crate::data::records::Row;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::model::generate::{Generation, Sampling};
use crate::model::params::Weights;
use crate::random::Stage;
use crate::train::pretrained::Pretrained;

/// Someone who speaks, and what is said.
type Message = (&'static str, String);

/// A conversation under way.
pub(super) struct Talk<'a> {
    loaded: &'a Pretrained,
    weights: Weights,
    stop: Vec<i32>,
    pub(super) sampling: Sampling,
    max_new_tokens: usize,
    seed: u64,
    /// Answers that were begun, so that each draws other numbers.
    answers: u32,
    system: Option<String>,
    messages: Vec<Message>,
}

/// What is to be said of an answer.
pub(super) struct Answer {
    pub(super) tokens: usize,
    /// Whether it ended by itself.
    pub(super) stopped: bool,
    /// Messages that were forgotten for it.
    pub(super) dropped: usize,
}

impl<'a> Talk<'a> {
    pub(super) fn new(loaded: &'a Pretrained, sampling: Sampling, max_new_tokens: usize, seed: u64) -> Result<Self> {
        let (weights, stop) = (loaded.model.frozen()?, loaded.stop_tokens()?);
        let (system, messages) = (None, Vec::new());
        Ok(Self { loaded, weights, stop, sampling, max_new_tokens, seed, answers: 0, system, messages })
    }

    /// Sets or takes away the system message.
    ///
    /// # Errors
    /// `template-missing` where the model knows no roles.
    pub(super) fn set_system(&mut self, text: Option<String>) -> Result<()> {
        if text.is_some() && self.loaded.template.is_none() {
            return Err(Error::usage("template-missing", "a model without a chat template has no system message")
                .fix("leave it out, or put a chat_template.jinja into the model's directory"));
        }
        self.system = text;
        Ok(())
    }

    /// Forgets what was said; the system message stays.
    pub(super) fn reset(&mut self) {
        self.messages.clear();
    }

    /// Answers `text`. Whole characters are handed to `show` as they come; the answer ends early where it says false.
    ///
    /// # Errors
    /// A message that does not fit, or that the template refuses; those of `show`. The message is forgotten then.
    pub(super) fn answer(&mut self, text: String, show: &mut dyn FnMut(&str) -> Result<bool>) -> Result<Answer> {
        let before = self.messages.clone();
        if self.loaded.template.is_none() {
            self.messages.clear();
        }
        self.messages.push(("user", text));
        self.said(show).inspect_err(|_| self.messages = before)
    }

    fn said(&mut self, show: &mut dyn FnMut(&str) -> Result<bool>) -> Result<Answer> {
        let (prompt, dropped) = self.fit()?;
        let room = self.loaded.model.config().max_positions - prompt.len();
        let options = Generation {
            sampling: self.sampling,
            max_new_tokens: self.max_new_tokens.min(room),
            stop: &self.stop,
            seed: self.seed,
            stage: Stage::Generate,
            step: 0,
            first_row: self.answers,
            slots: None,
        };
        self.answers += 1;
        let mut text = Text::new(&self.loaded.tokenizer);
        let mut take = |tokens: &[i32]| {
            let piece = text.add(tokens)?;
            show(&piece)
        };
        let response = self.loaded.model.stream(&self.weights, &prompt, &options, &mut take)?;
        show(&text.rest()?)?;
        let said = self.loaded.tokenizer.decode(&response.tokens, true)?;
        self.messages.push(("assistant", said));
        Ok(Answer { tokens: response.tokens.len(), stopped: response.stopped, dropped })
    }

    /// The conversation in tokens, its oldest turns dropped until there is room for an answer; and how many messages
    /// were dropped.
    fn fit(&mut self) -> Result<(Vec<i32>, usize)> {
        let context = self.loaded.model.config().max_positions;
        // An answer may be asked to be longer than half of what the model can see.
        let room = self.max_new_tokens.min(context / 2).max(1);
        let mut dropped = 0;
        loop {
            let prompt = self.prompt()?;
            if prompt.len() + room <= context {
                return Ok((prompt, dropped));
            }
            if self.messages.len() < 3 {
                let what = format!("the message has {} tokens, and leaves no room for an answer", prompt.len());
                let why = format!("the model has {context} positions, and {room} are kept for the answer");
                return Err(Error::input("prompt-too-long", what).because(why).fix("say it shorter"));
            }
            self.messages.drain(..2);
            dropped += 2;
        }
    }

    /// The conversation in tokens, up to where the model's answer begins.
    fn prompt(&self) -> Result<Vec<i32>> {
        let prompt = match (&self.loaded.template, self.messages.last()) {
            (None, Some((_, text))) => json!(text),
            _ => {
                let system = self.system.iter().map(|text| ("system", text));
                let turns = system.chain(self.messages.iter().map(|(role, text)| (*role, text)));
                turns.map(|(role, text)| json!({ "role": role, "content": text })).collect::<Value>()
            }
        };
        let row =
            Row { place: "the conversation".to_owned(), fields: [("prompt".to_owned(), prompt)].into_iter().collect() };
        // What fits is decided by the caller, which can forget something.
        let options = PromptOptions { context: usize::MAX, response_length: 1, strict: false };
        let template = self.loaded.template.as_ref();
        let prompts = encode_prompts([Ok(row)], &self.loaded.tokenizer, template, &options)?.examples;
        let empty = || Error::input("prompt-empty", "the message has no token").fix("say something else");
        prompts.into_iter().next().map(|prompt| prompt.ids).ok_or_else(empty)
    }
}

/// Tokens that become a text piece by piece. A character may take several tokens: it is handed out when it is whole.
struct Text<'a> {
    tokenizer: &'a Tokenizer,
    /// Those that are not handed out yet, behind those that were handed out last: what a token stands for depends on
    /// the ones before it (a space at the beginning of a text is not written by some tokenizers).
    tokens: Vec<i32>,
    /// How many of them are handed out.
    given: usize,
}

/// What a decoder writes for bytes that are no character, or not yet one.
const REPLACEMENT: char = '\u{fffd}';

impl<'a> Text<'a> {
    fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, tokens: Vec::new(), given: 0 }
    }

    /// What the text grows by with these tokens, as far as its characters are whole.
    fn add(&mut self, tokens: &[i32]) -> Result<String> {
        tokens.iter().map(|token| self.add_one(*token)).collect()
    }

    fn add_one(&mut self, token: i32) -> Result<String> {
        self.tokens.push(token);
        let (before, all) = self.decoded()?;
        if all.ends_with(REPLACEMENT) {
            return Ok(String::new());
        }
        // Only what is more can be shown, even by a decoder that would now write anew what was handed out.
        let grown = all.strip_prefix(&*before).map(str::to_owned);
        let grown = grown.unwrap_or_else(|| all.chars().skip(before.chars().count()).collect());
        if !grown.is_empty() {
            self.tokens.drain(..self.given);
            self.given = self.tokens.len();
        }
        Ok(grown)
    }

    /// What is left at the end, whole or not.
    fn rest(&mut self) -> Result<String> {
        let (before, all) = self.decoded()?;
        Ok(all.strip_prefix(&*before).unwrap_or_default().to_owned())
    }

    /// The text of what is handed out and kept, and of all that is kept.
    fn decoded(&self) -> Result<(String, String)> {
        let before = self.tokenizer.decode(&self.tokens[..self.given], true)?;
        Ok((before, self.tokenizer.decode(&self.tokens, true)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// A tokenizer of these tokens under this decoder.
    fn tokenizer(tokens: &[&str], decoder: Value) -> Tokenizer {
        let vocabulary: serde_json::Map<String, Value> =
            tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), json!(id))).collect();
        let model = json!({ "type": "BPE", "vocab": vocabulary, "merges": [] });
        let file = json!({ "version": "1.0", "added_tokens": [], "decoder": decoder, "model": model });
        let empty = serde_json::Map::new();
        Tokenizer::build(Path::new(""), file.to_string().as_bytes(), &empty, &empty).unwrap()
    }

    /// What is handed out for these tokens, one by one, and at the end.
    fn pieces(tokenizer: &Tokenizer, ids: &[i32]) -> Vec<String> {
        let mut text = Text::new(tokenizer);
        let mut pieces: Vec<String> = ids.iter().map(|id| text.add(&[*id]).unwrap()).collect();
        pieces.push(text.rest().unwrap());
        assert_eq!(pieces.concat(), tokenizer.decode(ids, true).unwrap(), "{ids:?}");
        pieces
    }

    /// Bytes as GPT-2 writes them: C3 A9 is an e with an accent, F0 9F 98 80 a face.
    #[test]
    fn characters_are_handed_out_whole() {
        let bytes = ["a", "\u{c3}", "\u{a9}", "\u{f0}", "\u{141}", "\u{13a}", "\u{122}"];
        let byte_level =
            json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false });
        let tokenizer = tokenizer(&bytes, byte_level);
        assert_eq!(pieces(&tokenizer, &[0, 1, 2, 0]), ["a", "", "\u{e9}", "a", ""]);
        assert_eq!(pieces(&tokenizer, &[3, 4, 5, 6]), ["", "", "", "\u{1f600}", ""]);
        // Bytes that never become a character are shown as such, once that is known.
        assert_eq!(pieces(&tokenizer, &[0, 1]), ["a", "", "\u{fffd}"]);
        assert_eq!(pieces(&tokenizer, &[3, 4, 0]), ["", "", "\u{fffd}a", ""]);
        let mut text = Text::new(&tokenizer);
        let groups = [&[0, 1][..], &[2, 0, 3, 4], &[5, 6]].map(|group| text.add(group).unwrap());
        assert_eq!(groups, ["a", "\u{e9}a", "\u{1f600}"]);
    }

    /// A decoder that takes away the first space of a text takes away none in its middle.
    #[test]
    fn spaces_between_words_stay() {
        let metaspace =
            json!({ "type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true });
        let tokenizer = tokenizer(&["\u{2581}a", "\u{2581}b", "c"], metaspace);
        assert_eq!(pieces(&tokenizer, &[0, 1, 2, 0]), ["a", " b", "c", " a", ""]);
    }
}
