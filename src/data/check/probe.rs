//! What a chat template does to conversations, found out by asking it: which turns it leaves out, and how it begins an
//! answer. A template has few kinds of answers, so each is asked for once.

use std::collections::HashMap;

use serde_json::Map;

use crate::data::encode::Sequence;
use crate::data::formats::Message;
use crate::data::template::ChatTemplate;
use crate::data::tokenizer::Tokenizer;

/// A word that no template writes by itself.
const WORD: &str = "zqxjprobe";

/// What is wrong with a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PromptFault {
    /// It is plain text, and the model was made for conversations.
    Plain,
    /// It does not end with what begins an answer.
    NotOpened,
}

/// Asks a template.
pub(super) struct Probe<'a> {
    tokenizer: &'a Tokenizer,
    template: Option<&'a ChatTemplate>,
    /// Whether a role's text is written: as the first turn or later, as the last or before.
    renders: HashMap<(String, bool, bool), bool>,
    /// Whether conversations end with what begins an answer.
    opens: Option<bool>,
    /// What stands between a user's text and an answer.
    between: Option<Option<String>>,
}

impl<'a> Probe<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, template: Option<&'a ChatTemplate>) -> Self {
        Self { tokenizer, template, renders: HashMap::new(), opens: None, between: None }
    }

    /// Whether what the template writes depends on the day.
    pub(super) fn is_dated(&self) -> bool {
        self.template.is_some_and(ChatTemplate::uses_clock)
    }

    /// The text of a conversation; none where the template refuses it.
    fn render(&self, messages: &[Message], asks: bool) -> Option<String> {
        Some(self.template?.render(messages, asks, &Map::new()).ok()?.text)
    }

    /// Whether every turn that says something is written. A turn that the template changes counts as written.
    pub(super) fn renders_all(&mut self, messages: &[Message], asks: bool) -> bool {
        let last = messages.len().saturating_sub(1);
        for (index, message) in messages.iter().enumerate().filter(|(_, message)| !message.content.trim().is_empty()) {
            let key = (message.role.clone(), index == 0, index == last);
            let is_known = self.renders.get(&key).copied();
            let renders = is_known.unwrap_or_else(|| {
                let mut messages = messages.to_vec();
                messages.iter_mut().skip(index).take(1).for_each(|message| message.content = WORD.to_owned());
                self.render(&messages, asks).is_none_or(|text| text.contains(WORD))
            });
            self.renders.insert(key, renders);
            if !renders {
                return false;
            }
        }
        true
    }

    /// What is wrong with a prompt that the template writes: an answer that follows it would first have to write its
    /// own beginning.
    pub(super) fn fault_of_conversation(&mut self, messages: &[Message]) -> Option<PromptFault> {
        let opens = self.opens.unwrap_or_else(|| {
            let answered = [messages, &[message("assistant")]].concat();
            let (Some(prompt), Some(whole)) = (self.render(messages, true), self.render(&answered, false)) else {
                return true;
            };
            // Templates that change the earlier turns, or the end of the prompt, once an answer is there: not judged.
            let rest = whole.strip_prefix(&prompt).and_then(|rest| rest.split_once(WORD));
            rest.is_none_or(|(before, _)| before.trim().is_empty() || self.render(messages, false) != Some(prompt))
        });
        self.opens = Some(opens);
        (!opens).then_some(PromptFault::NotOpened)
    }

    /// What is wrong with a prompt that is given as text, for a model with a chat template.
    pub(super) fn fault_of_text(&mut self, prompt: &Sequence) -> Option<PromptFault> {
        if self.between.is_none() {
            let rendered = self.render(&[message("user")], true);
            let between = rendered.and_then(|text| Some(text.rsplit_once(WORD)?.1.to_owned()));
            self.between = Some(between);
        }
        let Some(Some(between)) = &self.between else { return None };
        if prompt.text.ends_with(between) {
            return None;
        }
        let is_text = |(id, is_added): (&i32, &bool)| *is_added || !self.tokenizer.is_special(*id);
        let encoding = &prompt.encoding;
        let mut tokens = encoding
            .ids
            .iter()
            .zip(&encoding.is_added)
            .skip_while(|(id, _)| Some(**id) == self.tokenizer.bos_token_id());
        let is_plain = tokens.all(is_text) && !prompt.text.trim_end().ends_with(between.trim_end());
        Some(if is_plain { PromptFault::Plain } else { PromptFault::NotOpened })
    }
}

fn message(role: &str) -> Message {
    Message { role: role.to_owned(), content: WORD.to_owned() }
}
