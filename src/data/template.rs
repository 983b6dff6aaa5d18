//! A model's own chat template: conversations -> text. The template is Jinja, written by strangers, so it renders on a
//! thread of its own under limits on work, output, depth, stored values and time; what it may call is what transformers
//! gives it.

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::time::{Duration, SystemTime};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Serde};
use minijinja::{AutoEscape, Environment, ErrorKind, State, UndefinedBehavior, Value as JinjaValue};
use serde_json::{Map, Value};

use super::clock::CivilTime;
use super::containment::contain;
use super::formats::Message;
use super::jinja_functions::{
    Raised, check_printed, checked_attribute, checked_value, escape, raise_exception, strftime, tojson, unknown_method,
};
use super::jinja_source::{CHECKED_ATTRIBUTE, CHECKED_VALUE, GENERATION_FILTER, rewrite};
use super::model_files::{read_object, read_text};
use super::tokenizer::Tokenizer;
use crate::error::{Error, Result};

/// The longest template, in bytes. The largest known ones have some 30 KiB.
const SOURCE_BYTES_MAX: usize = 256 << 10;

/// The work that a rendering may do beside its share of the input, in the engine's fuel: one for each instruction and
/// for every 64 bytes made. A conversation of a thousand turns needs a third of it.
const FUEL: u64 = 600_000;

/// The longest rendered conversation, in bytes.
const OUTPUT_BYTES_MAX: usize = 16 << 20;

/// In how many pieces it may be written: a list of a hundred million zeros comes one by one.
const PIECES_MAX: usize = 500_000;

/// What to do about a template that is wrong.
const CORRECT: &str = "correct the template, or take the one of the model's source";

/// How deep macros may call each other.
const RECURSION_MAX: usize = 200;

/// How long a rendering may take. It is a thousand times what the longest legitimate one takes: only a template that
/// defeats the engine's accounting gets there.
const TIME_MAX: Duration = Duration::from_secs(10);

/// The stack of the rendering thread, in bytes: the engine recurses over what `SOURCE_BYTES_MAX` can nest.
const STACK_BYTES: usize = 128 << 20;

/// The name of the variable that holds the two marks around what the model writes.
const MARKS: &str = "generation_marks";

/// A conversation as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// Which bytes the model writes, if the template says so with `{% generation %}` tags.
    pub assistant: Option<Vec<Range<usize>>>,
}

/// A model's chat template, compiled.
pub struct ChatTemplate {
    requests: Sender<Request>,
    special: Map<String, Value>,
    has_generation: bool,
    uses_clock: bool,
    now: Arc<AtomicI64>,
    place: String,
}

/// One rendering, asked of the thread that owns the engine.
struct Request {
    context: JinjaValue,
    fuel: u64,
    reply: SyncSender<Result<String>>,
}

impl ChatTemplate {
    /// Reads the template of the model in folder `dir`: chat_template.jinja, else what tokenizer_config.json holds;
    /// nothing if the model has none. Errors: `template-invalid`, `template-without-default`, `config-invalid`.
    pub fn load(dir: &Path, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let place = |name: &str| dir.join(name).display().to_string();
        let name = "chat_template.jinja";
        if let Some(source) = read_text(dir, name)? {
            return Self::compile(&source, tokenizer.special_tokens().clone(), &place(name)).map(Some);
        }
        let name = "tokenizer_config.json";
        let place = place(name);
        let source = match read_object(dir, name)?.remove("chat_template") {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::String(source)) => source,
            Some(Value::Array(list)) => default_of(&list).map_err(|error| error.at(&place))?,
            Some(_) => {
                let what = "`chat_template` is neither a string nor a list of {name, template}";
                return Err(Error::input("template-invalid", what).at(place).fix(CORRECT));
            }
        };
        Self::compile(&source, tokenizer.special_tokens().clone(), &place).map(Some)
    }

    /// Compiles a template; `special` are the special tokens that it sees, `place` names it in errors.
    pub fn compile(source: &str, special: Map<String, Value>, place: &str) -> Result<Self> {
        if source.len() > SOURCE_BYTES_MAX {
            let what = format!("the chat template is longer than {} KiB", SOURCE_BYTES_MAX >> 10);
            return Err(Error::input("template-invalid", what).at(place).fix(CORRECT));
        }
        // Jinja reads every kind of line end as one newline.
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        let rewritten = rewrite(&source).map_err(|error| {
            let line = error.place().map_or(String::new(), |line| format!(", {line}"));
            error.at(format!("{place}{line}")).fix(CORRECT)
        })?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let now = Arc::new(AtomicI64::new(now.cast_signed()));
        let (requests, inbox) = channel();
        let (ready, outcome) = sync_channel(1);
        let thread_now = Arc::clone(&now);
        let name = place.to_string();
        std::thread::Builder::new()
            .name("chat-template".to_string())
            .stack_size(STACK_BYTES)
            .spawn(move || serve(&name, rewritten.text, &thread_now, &ready, &inbox))
            .map_err(|error| Error::io("starting the template's thread", Path::new(place), &error))?;
        wait(&outcome, TIME_MAX).map_err(|error| error.at(place))?;
        Ok(Self {
            requests,
            special,
            has_generation: rewritten.has_generation,
            uses_clock: source.contains("strftime_now"),
            now,
            place: place.to_string(),
        })
    }

    /// Renders a conversation; with `add_generation_prompt` it ends where the model's answer begins. `variables` are
    /// further names that the template may ask for.
    ///
    /// Errors: `template-raised` (the template refuses the conversation), `template-failed`, `template-too-much-work`,
    /// `template-output-too-large`, `template-timeout`.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        variables: &Map<String, Value>,
    ) -> Result<Rendered> {
        let as_object = |message: &Message| serde_json::json!({"role": message.role, "content": message.content});
        let messages: Vec<_> = messages.iter().map(as_object).collect();
        self.render_values(&messages, add_generation_prompt, variables)
    }

    /// As [`render`](Self::render), for messages with further keys; keys that are null are left out, as in
    /// transformers.
    pub fn render_values(
        &self,
        messages: &[Value],
        add_generation_prompt: bool,
        variables: &Map<String, Value>,
    ) -> Result<Rendered> {
        let messages: Vec<_> = messages.iter().map(without_nulls).collect();
        let mut context = self.special.clone();
        context.insert("tools".into(), Value::Null);
        context.insert("documents".into(), Value::Null);
        context.extend(variables.iter().map(|(name, value)| (name.clone(), value.clone())));
        context.insert("add_generation_prompt".into(), add_generation_prompt.into());
        context.insert("messages".into(), messages.into());
        let input_bytes = Value::from(context.clone()).to_string();
        let marks = if self.has_generation { Some(unused_marks(&input_bytes)?) } else { None };
        if let Some(marks) = marks {
            context.insert(MARKS.into(), marks.iter().collect::<String>().into());
        }
        let (reply, answer) = sync_channel(1);
        let fuel = FUEL + input_bytes.len() as u64 / 2;
        let request = Request { context: JinjaValue::from(Serde(&context)), fuel, reply };
        let stopped = |_| Error::failure("template-stopped", "the template's thread has stopped");
        self.requests.send(request).map_err(stopped)?;
        let text = wait(&answer, TIME_MAX)?;
        Ok(match marks {
            Some(marks) => take_marks(&text, marks),
            None => Rendered { text, assistant: None },
        })
    }

    /// Whether the template marks what the model writes.
    pub fn has_generation_tags(&self) -> bool {
        self.has_generation
    }

    /// Whether the template asks for the time: then its text, and every token after it, depends on the day.
    pub fn uses_clock(&self) -> bool {
        self.uses_clock
    }

    /// The time that the template is told, in seconds since 1970 (universal time): that of loading, unless set.
    pub fn now(&self) -> i64 {
        self.now.load(Ordering::Relaxed)
    }

    /// Sets the time that the template is told, so that a resumed run sees the tokens of the first.
    pub fn set_now(&self, unix_seconds: i64) {
        self.now.store(unix_seconds, Ordering::Relaxed);
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("place", &self.place).finish_non_exhaustive()
    }
}

/// The template named `default`; a list of one is that one.
fn default_of(list: &[Value]) -> Result<String> {
    let named = |entry: &&Value| entry.get("name").and_then(Value::as_str) == Some("default");
    let chosen = list.iter().find(named).or(if let [only] = list { Some(only) } else { None });
    let source = chosen.and_then(|entry| entry.get("template")).and_then(Value::as_str);
    source.map(str::to_string).ok_or_else(|| {
        let error = Error::input("template-without-default", "none of the chat templates is named `default`");
        error.fix("put the one to use into chat_template.jinja")
    })
}

fn without_nulls(message: &Value) -> Value {
    match message {
        Value::Object(fields) => {
            let kept = fields.iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(name, value)| (name.clone(), value.clone())).collect())
        }
        other => other.clone(),
    }
}

/// Two characters that the input does not hold. Unicode sets U+FDD0 to U+FDEF aside for such internal use.
fn unused_marks(input: &str) -> Result<[char; 2]> {
    let pairs = (0xFDD0..0xFDF0_u32).step_by(2);
    let pairs = pairs.filter_map(|code| Some([char::from_u32(code)?, char::from_u32(code + 1)?]));
    let mut unused = pairs.filter(|pair| !input.contains(pair.as_slice()));
    unused.next().ok_or_else(|| Error::input("template-failed", "the text uses all characters from U+FDD0 to U+FDEF"))
}

/// Takes the marks out and keeps where they stood.
fn take_marks(text: &str, [open, close]: [char; 2]) -> Rendered {
    let (mut plain, mut spans) = (String::with_capacity(text.len()), Vec::new());
    let mut start = None;
    for letter in text.chars() {
        if letter == open {
            start = Some(plain.len());
        } else if letter == close {
            spans.extend(start.take().map(|start| start..plain.len()));
        } else {
            plain.push(letter);
        }
    }
    Rendered { text: plain, assistant: Some(spans) }
}

/// Waits for the rendering thread.
fn wait<T>(answer: &Receiver<Result<T>>, limit: Duration) -> Result<T> {
    answer.recv_timeout(limit).unwrap_or_else(|error| {
        Err(match error {
            RecvTimeoutError::Timeout => {
                let what = format!("the chat template takes longer than {} seconds", limit.as_secs());
                Error::input("template-timeout", what).fix("check the template: no honest one takes so long")
            }
            RecvTimeoutError::Disconnected => Error::failure("template-stopped", "the template's thread has stopped"),
        })
    })
}

/// The rendering thread: it compiles the template under the name that the engine's messages quote, says how that went,
/// and renders until nobody asks any more.
fn serve(name: &str, source: String, now: &Arc<AtomicI64>, ready: &SyncSender<Result<()>>, inbox: &Receiver<Request>) {
    let mut engine = engine(now);
    let compiled = contain(|| engine.add_template_owned(name.to_string(), source));
    let compiled = compiled.unwrap_or_else(|panic| Err(minijinja::Error::new(ErrorKind::SyntaxError, panic)));
    let is_compiled = compiled.is_ok();
    let invalid = |error: minijinja::Error| {
        let error = Error::input("template-invalid", "the chat template is not valid Jinja").because(shorten(&error));
        error.fix(CORRECT)
    };
    // A failure to answer means that the asker is gone.
    let is_wanted = ready.send(compiled.map_err(invalid)).is_ok();
    if !is_compiled || !is_wanted {
        return;
    }
    for request in inbox {
        engine.set_fuel(Some(request.fuel));
        let text = contain(|| render_one(&engine, name, request.context));
        let failed =
            |panic| Err(Error::input("template-failed", "the chat template failed").because(panic).fix(CORRECT));
        if request.reply.send(text.unwrap_or_else(failed)).is_err() {
            return;
        }
    }
}

fn render_one(engine: &Environment, name: &str, context: JinjaValue) -> Result<String> {
    let mut output = Output { bytes: Vec::new(), pieces: 0, is_full: false };
    let template = engine.get_template(name).map_err(|error| from_engine(&error))?;
    match template.render_captured_to(context, &mut output) {
        Ok(_) => {
            String::from_utf8(output.bytes).map_err(|_| Error::failure("template-failed", "the text is not UTF-8"))
        }
        Err(_) if output.is_full => {
            let what =
                format!("the chat template writes more than {} MiB, or {PIECES_MAX} pieces", OUTPUT_BYTES_MAX >> 20);
            Err(Error::input("template-output-too-large", what).fix("check the template and the conversation"))
        }
        Err(error) => Err(from_engine(&error)),
    }
}

/// The rendered bytes, up to a limit.
struct Output {
    bytes: Vec<u8>,
    pieces: usize,
    is_full: bool,
}

impl std::io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.pieces += 1;
        self.is_full |= self.bytes.len() + bytes.len() > OUTPUT_BYTES_MAX || self.pieces > PIECES_MAX;
        if self.is_full {
            return Err(std::io::Error::other("too much output"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The engine as transformers sets Jinja up.
fn engine(now: &Arc<AtomicI64>) -> Environment<'static> {
    let mut engine = Environment::new();
    if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        engine.set_syntax(syntax);
    }
    engine.set_auto_escape_callback(|_| AutoEscape::None);
    engine.set_undefined_behavior(UndefinedBehavior::Lenient);
    engine.set_debug(false);
    engine.set_recursion_limit(RECURSION_MAX);
    engine.set_fuel(Some(FUEL));
    engine.set_unknown_method_callback(unknown_method);
    engine.set_formatter(|output, state, value| {
        check_printed(value)?;
        minijinja::escape_formatter(output, state, value)
    });
    engine.add_function("raise_exception", |message: String| raise_exception(&message));
    let now = Arc::clone(now);
    let time = move |format: String| strftime(CivilTime::from_unix(now.load(Ordering::Relaxed)), &format);
    engine.add_function("strftime_now", time);
    engine.add_function(CHECKED_VALUE, checked_value);
    engine.add_function(CHECKED_ATTRIBUTE, checked_attribute);
    engine.add_filter("tojson", |value: JinjaValue, positional: Rest<JinjaValue>, named: Kwargs| {
        tojson(&value, &positional, &named)
    });
    engine.add_filter("e", |text: String| escape(&text));
    engine.add_filter("escape", |text: String| escape(&text));
    engine.add_filter(GENERATION_FILTER, |state: &State, text: String| {
        let marks = state.lookup(MARKS).unwrap_or_default();
        let mut marks = marks.as_str().unwrap_or_default().chars();
        marks.next().into_iter().chain(text.chars()).chain(marks.next_back()).collect::<String>()
    });
    engine
}

fn from_engine(error: &minijinja::Error) -> Error {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = source {
        if let Some(Raised(message)) = inner.downcast_ref() {
            let message: String = message.chars().take(400).collect();
            let error = Error::input("template-raised", "the model's chat template refuses the conversation");
            return error.because(message).fix("bring the conversation into the form that the template asks for");
        }
        source = inner.source();
    }
    if error.kind() == ErrorKind::OutOfFuel {
        let error = Error::input("template-too-much-work", "the chat template does not come to an end");
        return error
            .because(format!("it used up its {FUEL} units of work"))
            .fix("check the template for endless loops");
    }
    Error::input("template-failed", "the chat template failed on the conversation").because(shorten(error)).fix(CORRECT)
}

/// The engine's message, which may quote values of any length.
fn shorten(error: &minijinja::Error) -> String {
    error.to_string().chars().take(400).collect()
}

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;
