//! Text <-> token ids, by the model's own tokenizer.json. The special tokens come from the files beside it, as
//! transformers reads them. There is never a substitute for a missing tokenizer, and truncation, padding and dropout
//! that the file asks for are not applied behind the caller's back.

use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::{AddedToken, ModelWrapper};

use super::containment::contain;
use super::model_files::read_object;
use crate::error::{Error, Result};
use crate::files::{check_density, read_model_file};

/// The largest tokenizer.json that is read, in bytes; the largest known one has 33 MiB.
const TOKENIZER_BYTES_MAX: u64 = 512 << 20;

/// The file that holds it.
const TOKENIZER: &str = "tokenizer.json";

/// JSON values that it may have, and one more for every so many bytes: the library keeps the whole document as values,
/// and those with the most have a token or a merge of two every 14 bytes.
const VALUES_FREE: u64 = 250_000;
const BYTES_PER_VALUE: u64 = 8;

/// How many times longer a text may become on its way to tokens or back. Known files write three bytes for a space.
const GROWTH_MAX: f64 = 64.0;

/// The longest regular expression in it, in bytes; the longest known ones have some hundreds.
const PATTERN_BYTES_MAX: usize = 16 << 10;

/// The names under which the special tokens stand in the files, and under which a template sees them.
const SPECIAL_NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A text as tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoding {
    /// The ids.
    pub ids: Vec<i32>,
    /// Where each token begins and ends in the text, in bytes. Whitespace belongs to the token that holds it.
    pub offsets: Vec<(usize, usize)>,
    /// Whether the tokenizer added the token (a BOS or EOS that does not stand in the text).
    pub is_added: Vec<bool>,
}

/// A model's tokenizer.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special: Map<String, Value>,
    eos_id: Option<i32>,
    eos_ids: Vec<i32>,
    bos_id: Option<i32>,
    unk_id: Option<i32>,
    /// BOS and EOS that tokenizer_config.json asks for, in place of what tokenizer.json says.
    ends: Option<(Option<i32>, Option<i32>)>,
    vocab_size: usize,
    /// Of the added tokens, whether they are special.
    added: std::collections::HashMap<u32, bool>,
    notes: Vec<String>,
}

impl Tokenizer {
    /// Reads the tokenizer of the model in folder `dir`.
    ///
    /// Errors: `tokenizer-missing`, `tokenizer-invalid`, `tokenizer-dropout`, `tokenizer-inconsistent`,
    /// `special-token-unknown`, `config-invalid`.
    pub fn load(dir: &Path) -> Result<Self> {
        let missing = || {
            let error =
                Error::input("tokenizer-missing", "the model has no tokenizer.json").at(dir.display().to_string());
            error.because("text cannot be turned into this model's tokens, and no other tokenizer fits it").fix(
                "copy tokenizer.json from the model's source; for an old model, transformers writes one: \
                 AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)",
            )
        };
        let bytes = read_model_file(dir, TOKENIZER, TOKENIZER_BYTES_MAX)?.ok_or_else(missing)?;
        let config = read_object(dir, "tokenizer_config.json")?;
        let map = read_object(dir, "special_tokens_map.json")?;
        let mut tokenizer = Self::build(dir, &bytes, &config, &map)?;
        tokenizer.resolve_eos(dir)?;
        Ok(tokenizer)
    }

    /// The tokenizer of the files' content; `dir` only names places.
    pub(crate) fn build(
        dir: &Path,
        bytes: &[u8],
        config: &Map<String, Value>,
        map: &Map<String, Value>,
    ) -> Result<Self> {
        let mut tokenizer = Self {
            inner: parse(bytes).map_err(|error| error.at(dir.join(TOKENIZER).display().to_string()))?,
            special: special_tokens(config, map),
            eos_id: None,
            eos_ids: Vec::new(),
            bos_id: None,
            unk_id: None,
            ends: None,
            vocab_size: 0,
            added: std::collections::HashMap::new(),
            notes: Vec::new(),
        };
        let at_config = |error: Error| error.at(dir.join("tokenizer_config.json").display().to_string());
        tokenizer.add_tokens(config).map_err(at_config)?;
        tokenizer.count_tokens().map_err(|error| error.at(dir.join(TOKENIZER).display().to_string()))?;
        tokenizer.resolve_special(config).map_err(at_config)?;
        Ok(tokenizer)
    }

    /// The ids of `text`. With `add_special`, the tokenizer adds what it adds to every text (a BOS, for many models);
    /// a BOS that already stands in the text is not written twice.
    ///
    /// Errors: `tokenizer-failed`, `token-out-of-vocabulary`.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Encoding> {
        let adds_inside = add_special && self.ends.is_none();
        let encoding = contained("encoding", || self.inner.encode(text, adds_inside))?;
        let ids = encoding.get_ids().iter().map(|id| self.checked_id(*id)).collect::<Result<Vec<_>>>()?;
        let is_added = encoding.get_special_tokens_mask().iter().map(|mask| *mask == 1).collect();
        let mut encoding = Encoding { ids, offsets: encoding.get_offsets().to_vec(), is_added };
        if let (true, Some((bos, eos))) = (add_special, self.ends) {
            encoding.add_ends(bos, eos);
        }
        encoding.place_added(text.len());
        encoding.drop_second_bos(self.bos_id);
        Ok(encoding)
    }

    /// The text of `ids`. Errors: `tokenizer-failed`, `token-out-of-vocabulary`.
    pub fn decode(&self, ids: &[i32], skip_special: bool) -> Result<String> {
        let known = |id: &i32| u32::try_from(*id).map_err(|_| self.outside(i64::from(*id)));
        let ids = ids.iter().map(known).collect::<Result<Vec<_>>>()?;
        contained("decoding", || self.inner.decode(&ids, skip_special))
    }

    /// The id of a token, if there is such a token.
    pub fn token_to_id(&self, token: &str) -> Option<i32> {
        self.inner.token_to_id(token).and_then(|id| i32::try_from(id).ok())
    }

    /// The token with an id, if there is one.
    pub fn id_to_token(&self, id: i32) -> Option<String> {
        self.inner.id_to_token(u32::try_from(id).ok()?)
    }

    /// The largest id and one.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The EOS that ends a text that has none: the tokenizer's, else the model's first.
    pub fn eos_token_id(&self) -> Option<i32> {
        self.eos_id
    }

    /// Every id that ends a response: those of generation_config.json, else of config.json, and the tokenizer's own.
    pub fn eos_token_ids(&self) -> &[i32] {
        &self.eos_ids
    }

    /// The id of the BOS token, if the model has one.
    pub fn bos_token_id(&self) -> Option<i32> {
        self.bos_id
    }

    /// The id that stands for what the tokenizer does not know, if there is one.
    pub fn unk_token_id(&self) -> Option<i32> {
        self.unk_id
    }

    /// The id of the padding token, if the model has one.
    pub fn pad_token_id(&self) -> Option<i32> {
        self.special.get("pad_token").and_then(Value::as_str).and_then(|token| self.token_to_id(token))
    }

    /// Whether a token is special: it stands for no text of its own.
    pub(crate) fn is_special(&self, id: i32) -> bool {
        let known = u32::try_from(id).ok().and_then(|id| self.added.get(&id));
        known.copied().unwrap_or(false)
    }

    /// The special tokens by name (`bos_token`, `eos_token`, ...), those that are set: a template's variables.
    pub fn special_tokens(&self) -> &Map<String, Value> {
        &self.special
    }

    /// Remarks that the user should see: settings of the model's files that disagree.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Checks that the model has a row for every id that can come out. Error `vocabulary-too-small`.
    pub fn check_vocabulary(&self, model_vocab_size: usize) -> Result<()> {
        if self.vocab_size <= model_vocab_size {
            return Ok(());
        }
        let id = i32::try_from(self.vocab_size).unwrap_or(i32::MAX) - 1;
        let token = self.id_to_token(id).unwrap_or_default();
        let what = format!("the tokenizer can emit token {token:?} with id {id}, but the model has {model_vocab_size}");
        let error = Error::input("vocabulary-too-small", what + " rows in its embedding");
        Err(error.fix("use the tokenizer that belongs to the model, or enlarge the model's embedding"))
    }

    fn checked_id(&self, id: u32) -> Result<i32> {
        let inside = i32::try_from(id).ok().filter(|_| (id as usize) < self.vocab_size);
        inside.ok_or_else(|| self.outside(i64::from(id)))
    }

    fn outside(&self, id: i64) -> Error {
        let what = format!("token id {id} is outside the vocabulary of {}", self.vocab_size);
        Error::input("token-out-of-vocabulary", what).fix("take tokenizer.json from the model's source again")
    }

    /// Adds the tokens that only tokenizer_config.json knows, as transformers does.
    fn add_tokens(&mut self, config: &Map<String, Value>) -> Result<()> {
        let listed = config.get("added_tokens_decoder").and_then(Value::as_object);
        let mut tokens = Vec::new();
        for (id, token) in listed.into_iter().flatten() {
            let wrong = || {
                Error::input("tokenizer-inconsistent", format!("added_tokens_decoder[{id:?}] is not a token"))
                    .fix("take both files from the same source")
            };
            let id: u32 = id.parse().map_err(|_| wrong())?;
            let token = added_token(token).ok_or_else(wrong)?;
            tokens.push((id, token));
        }
        tokens.sort_by_key(|(id, _)| *id);
        let known = self.inner.get_added_tokens_decoder();
        let is_new = |(id, token): &&(u32, AddedToken)| known.get(id).is_none_or(|old| old.content != token.content);
        let new: Vec<_> = tokens.iter().filter(is_new).map(|(_, token)| token.clone()).collect();
        contained("adding tokens", || self.inner.add_tokens(new))?;
        let wrong = tokens.iter().find(|(id, token)| self.inner.token_to_id(&token.content) != Some(*id));
        wrong.map_or(Ok(()), |(id, token)| {
            let found = self.inner.token_to_id(&token.content);
            let found = found.map_or("unknown".to_string(), |id| id.to_string());
            let what = format!("token {:?} has id {id} here and is {found} in tokenizer.json", token.content);
            let error = Error::input("tokenizer-inconsistent", what);
            Err(error.fix("take both files from the same source"))
        })
    }

    fn count_tokens(&mut self) -> Result<()> {
        let vocabulary = self.inner.get_vocab(true);
        let added = self.inner.get_added_tokens_decoder();
        self.added = added.iter().map(|(id, token)| (*id, token.special)).collect();
        self.vocab_size = vocabulary.values().max().map_or(0, |id| *id as usize + 1);
        i32::try_from(self.vocab_size).map_err(|_| {
            let error = Error::input("tokenizer-invalid", "a token has an id that does not fit 31 bits");
            error.fix("take tokenizer.json from the model's source again")
        })?;
        Ok(())
    }

    fn resolve_special(&mut self, config: &Map<String, Value>) -> Result<()> {
        let mut ids = [None; 3];
        for (name, slot) in ["bos_token", "eos_token", "unk_token"].iter().zip(&mut ids) {
            if let Some(token) = self.special.get(*name).and_then(Value::as_str) {
                let id = self.token_to_id(token);
                *slot = Some(id.ok_or_else(|| {
                    let error = Error::input("special-token-unknown", format!("`{name}` {token:?} is no token"));
                    error.fix("take tokenizer.json and tokenizer_config.json from the same source")
                })?);
            }
        }
        [self.bos_id, self.eos_id, self.unk_id] = ids;
        let asks = |name| config.get(name).map(|value| value.as_bool().unwrap_or(false));
        let (bos, eos) = (asks("add_bos_token"), asks("add_eos_token"));
        if bos.is_some() || eos.is_some() {
            let pick = |asked: Option<bool>, id: Option<i32>| if asked == Some(true) { id } else { None };
            self.ends = Some((pick(bos, self.bos_id), pick(eos, self.eos_id)));
        }
        Ok(())
    }

    /// A model's configurations may name several EOS; the one that the tokenizer knows ends texts in training.
    fn resolve_eos(&mut self, dir: &Path) -> Result<()> {
        for name in ["generation_config.json", "config.json"] {
            let listed = match read_object(dir, name)?.remove("eos_token_id") {
                None | Some(Value::Null) => continue,
                Some(Value::Array(ids)) => ids,
                Some(id) => vec![id],
            };
            let id_of = |id: &Value| id.as_i64().and_then(|id| i32::try_from(id).ok());
            let ids: Option<Vec<i32>> = listed.iter().map(id_of).collect();
            let ids = ids.filter(|ids| ids.iter().all(|id| *id >= 0)).ok_or_else(|| {
                let error = Error::input("config-invalid", "`eos_token_id` is not an id or a list of ids");
                error.at(dir.join(name).display().to_string()).fix("write one id, or a list of ids")
            })?;
            match (self.eos_id, self.special.get("eos_token")) {
                (Some(id), Some(token)) if !ids.contains(&id) => self.notes.push(format!(
                    "the tokenizer's eos_token {token} ({id}) is not among the eos_token_id {ids:?} of {name}; all of \
                     them end a response"
                )),
                _ => {}
            }
            self.eos_ids = ids;
            break;
        }
        if let Some(id) = self.eos_id.filter(|id| !self.eos_ids.contains(id)) {
            self.eos_ids.push(id);
        }
        self.eos_id = self.eos_id.or(self.eos_ids.first().copied());
        Ok(())
    }
}

impl Encoding {
    /// Puts a BOS before and an EOS behind.
    fn add_ends(&mut self, bos: Option<i32>, eos: Option<i32>) {
        if let Some(bos) = bos {
            self.ids.insert(0, bos);
            self.offsets.insert(0, (0, 0));
            self.is_added.insert(0, true);
        }
        if let Some(eos) = eos {
            self.ids.push(eos);
            self.offsets.push((0, 0));
            self.is_added.push(true);
        }
    }

    /// Tokens that were added have no offsets; those behind the text get its end, so that offsets ascend.
    fn place_added(&mut self, end: usize) {
        let behind = self.is_added.iter().rev().take_while(|is_added| **is_added).count();
        if behind < self.ids.len() {
            let first = self.ids.len() - behind;
            self.offsets.iter_mut().skip(first).for_each(|place| *place = (end, end));
        }
    }

    /// A text that was rendered before it came to us begins with its own BOS.
    fn drop_second_bos(&mut self, bos: Option<i32>) {
        let is_double = self.ids.len() > 1 && bos.is_some() && self.ids.iter().take(2).all(|id| Some(*id) == bos);
        if is_double && self.is_added.first() == Some(&true) {
            self.ids.remove(0);
            self.offsets.remove(0);
            self.is_added.remove(0);
        }
    }

    /// Whether no token stands for anything in the text.
    pub(super) fn is_empty(&self) -> bool {
        self.is_added.iter().all(|is_added| *is_added)
    }

    /// Drops what the tokenizer added behind the text: a response follows there.
    pub(super) fn open_end(&mut self) {
        while self.is_added.last() == Some(&true) && self.is_added.contains(&false) {
            self.ids.pop();
            self.offsets.pop();
            self.is_added.pop();
        }
    }

    /// How many characters of `text`, whitespace aside, no token stands for. Tokenizers without bytes or an unknown
    /// token drop what they do not know in silence.
    pub(super) fn lost_characters(&self, text: &str) -> usize {
        let lost = |from: usize, to: usize| {
            text.get(from..to).map_or(0, |gap| gap.chars().filter(|letter| !letter.is_whitespace()).count())
        };
        let mut reached = 0;
        let mut count = 0;
        for (start, end) in &self.offsets {
            count += if *start > reached { lost(reached, *start) } else { 0 };
            reached = reached.max(*end);
        }
        count + lost(reached, text.len())
    }
}

/// Runs a call into the tokenizers library, whose panics and errors become ours.
fn contained<T>(doing: &str, work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    let failed = |why: String| {
        let error = Error::input("tokenizer-failed", format!("{doing} failed in the tokenizer")).because(why);
        error.fix("take tokenizer.json from the model's source again")
    };
    match contain(work) {
        Ok(outcome) => outcome.map_err(|error| failed(error.to_string())),
        Err(panic) => Err(failed(panic)),
    }
}

fn parse(bytes: &[u8]) -> Result<tokenizers::Tokenizer> {
    let invalid = |why: String| {
        let error = Error::input("tokenizer-invalid", "tokenizer.json cannot be read").because(why);
        error.fix("copy the file from the model's source again")
    };
    check_density(bytes, VALUES_FREE, BYTES_PER_VALUE).map_err(invalid)?;
    check_patterns(bytes).map_err(invalid)?;
    let parsed = contain(|| tokenizers::Tokenizer::from_bytes(bytes)).map_err(invalid)?;
    let mut inner = parsed.map_err(|error| invalid(error.to_string()))?;
    if let ModelWrapper::BPE(model) = inner.get_model()
        && model.dropout.is_some_and(|share| share != 0.0)
    {
        let error = Error::input("tokenizer-dropout", "tokenizer.json asks for BPE dropout, which is random");
        return Err(error.fix("set `dropout` in its `model` to null"));
    }
    check_growth(&inner).map_err(invalid)?;
    // A saved limit of 512 tokens would cut every text to 512 without a word.
    inner.with_truncation(None).map_err(|error| invalid(error.to_string()))?;
    inner.with_padding(None);
    if let Some(mut processor) = inner.get_post_processor().cloned() {
        keep_whitespace(&mut processor);
        inner.with_post_processor(Some(processor));
    }
    Ok(inner)
}

/// Refuses steps that, one after the other, would make a text many times longer: a dozen replacements of `a` by eight
/// of them fill any memory.
fn check_growth(inner: &tokenizers::Tokenizer) -> std::result::Result<(), String> {
    let parts = [
        ("normalizer", serde_json::to_value(inner.get_normalizer())),
        ("post-processor", serde_json::to_value(inner.get_post_processor())),
        ("decoder", serde_json::to_value(inner.get_decoder())),
    ];
    for (name, steps) in parts {
        let growth = growth(&steps.map_err(|error| error.to_string())?);
        if growth > GROWTH_MAX {
            return Err(format!(
                "its {name} may make a text {growth} times longer; at most {GROWTH_MAX} times is allowed"
            ));
        }
    }
    Ok(())
}

/// How many times longer the steps in `value` may make a text, from above.
fn growth(value: &Value) -> f64 {
    let inside: f64 = match value {
        Value::Array(steps) => steps.iter().map(growth).product(),
        Value::Object(step) => step.values().map(growth).product(),
        _ => 1.0,
    };
    let bytes = |key: &str| value.get(key).and_then(Value::as_str).map_or(0, str::len) as f64;
    inside
        * match value.get("type").and_then(Value::as_str) {
            Some("Replace") => bytes("content").max(1.0),
            Some("Prepend") => bytes("prepend") + 1.0,
            Some("TemplateProcessing") => {
                let pieces = value.get("single").and_then(Value::as_array);
                let texts = pieces.into_iter().flatten().filter(|piece| piece.get("Sequence").is_some());
                (texts.count() as f64).max(1.0)
            }
            _ => 1.0,
        }
}

/// The parts of tokenizer.json that may hold regular expressions; the vocabulary is stepped over.
#[derive(serde::Deserialize, Default)]
#[serde(default)]
struct Steps {
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Value,
    decoder: Value,
}

/// Refuses regular expressions that are far longer than any that models have: compiling takes memory many times their
/// length. What is not JSON is left to the parser.
fn check_patterns(bytes: &[u8]) -> std::result::Result<(), String> {
    let steps: Steps = serde_json::from_slice(bytes).unwrap_or_default();
    let mut open = vec![&steps.normalizer, &steps.pre_tokenizer, &steps.post_processor, &steps.decoder];
    while let Some(value) = open.pop() {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(pattern)) = map.get("Regex").filter(|p| is_long(p)) {
                    return Err(format!("it has a regular expression of {} bytes", pattern.len()));
                }
                open.extend(map.values());
            }
            Value::Array(list) => open.extend(list),
            _ => {}
        }
    }
    Ok(())
}

fn is_long(pattern: &Value) -> bool {
    pattern.as_str().is_some_and(|pattern| pattern.len() > PATTERN_BYTES_MAX)
}

/// Lets offsets include the whitespace that a token holds, so that a token which straddles the end of a prompt shows.
fn keep_whitespace(processor: &mut PostProcessorWrapper) {
    match processor {
        PostProcessorWrapper::ByteLevel(inner) => inner.trim_offsets = false,
        PostProcessorWrapper::Roberta(inner) => inner.trim_offsets = false,
        PostProcessorWrapper::Sequence(inner) => {
            let mut index = 0;
            while let Some(step) = inner.get_mut(index) {
                keep_whitespace(step);
                index += 1;
            }
        }
        PostProcessorWrapper::Bert(_) | PostProcessorWrapper::Template(_) => {}
    }
}

/// The special tokens that are set, by name; a name that tokenizer_config.json sets to null is not looked up further.
fn special_tokens(config: &Map<String, Value>, map: &Map<String, Value>) -> Map<String, Value> {
    let content = |value: &Value| match value {
        Value::String(token) => Some(token.clone()),
        Value::Object(token) => token.get("content").and_then(Value::as_str).map(str::to_string),
        _ => None,
    };
    let found = |name: &str| config.get(name).or_else(|| map.get(name)).and_then(content);
    SPECIAL_NAMES.iter().filter_map(|name| Some(((*name).to_string(), found(name)?.into()))).collect()
}

fn added_token(value: &Value) -> Option<AddedToken> {
    let flag = |name: &str, default: bool| value.get(name).map_or(Some(default), Value::as_bool);
    let content = value.get("content")?.as_str()?;
    let token = AddedToken::from(content, flag("special", false)?);
    let normalized = token.normalized;
    let token = token.lstrip(flag("lstrip", false)?).rstrip(flag("rstrip", false)?);
    Some(token.single_word(flag("single_word", false)?).normalized(flag("normalized", normalized)?))
}

#[cfg(test)]
#[path = "tokenizer_tests.rs"]
mod tests;
