//! Rows -> typed examples of a stage. Columns have TRL's names, each in a standard form (a string) and a conversational
//! form (a list of messages). What a row cannot give is an error that names the row; columns that no stage reads are
//! returned by name, so that the ledger can count them.

use serde_json::{Map, Value};

use super::records::{Row, kind_of};
use crate::error::{Error, Result, nearest};

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, or what the model's template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// A text in its standard or its conversational form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turns {
    /// The standard form.
    Text(String),
    /// The conversational form.
    Messages(Vec<Message>),
}

/// What a row teaches in supervised fine-tuning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SftBody {
    /// Language modelling, column `text`.
    Text(String),
    /// A conversation, column `messages`.
    Messages(Vec<Message>),
    /// Columns `prompt` and `completion`, both strings.
    Completion {
        /// What is given.
        prompt: String,
        /// What is to be learnt.
        completion: String,
    },
    /// Columns `prompt` and `completion`, both lists of messages.
    Dialogue {
        /// What is given.
        prompt: Vec<Message>,
        /// What is to be learnt.
        completion: Vec<Message>,
    },
}

/// A row of a pair: two continuations of one prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// What both continue: column `prompt`, or what both begin with.
    pub prompt: Turns,
    /// The better continuation.
    pub chosen: Turns,
    /// The worse one.
    pub rejected: Turns,
    /// By how much the better one should win; 0 without a column `margin`.
    pub margin: f32,
}

/// An example and the columns of its row that it does not use.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed<T> {
    /// The example.
    pub body: T,
    /// Names of unused columns; `messages[].name` is a key of a message.
    pub extra: Vec<String>,
}

/// A row for supervised fine-tuning. Errors: `dataset-columns`, `dataset-column-type`, `dataset-message`.
pub fn sft_body(row: &Row) -> Result<Parsed<SftBody>> {
    let mut columns = Columns::of(row);
    // TRL's order: a prompt with a completion, then a conversation, then plain text.
    let body = if columns.has("prompt") && columns.has("completion") {
        match (columns.turns("prompt")?, columns.turns("completion")?) {
            (Turns::Text(prompt), Turns::Text(completion)) => SftBody::Completion { prompt, completion },
            (Turns::Messages(prompt), Turns::Messages(completion)) => SftBody::Dialogue { prompt, completion },
            _ => return Err(columns.mixed("prompt", "completion")),
        }
    } else if columns.has("messages") {
        SftBody::Messages(columns.messages("messages")?)
    } else if columns.has("text") {
        SftBody::Text(columns.text("text")?)
    } else {
        let needed = "`prompt` and `completion`, or `messages`, or `text`";
        return Err(columns.lacking("supervised fine-tuning", needed, &["prompt", "completion", "messages", "text"]));
    };
    Ok(columns.done(body))
}

/// A row for reward-model training. Errors as [`sft_body`], and `dataset-margin`.
pub fn pair(row: &Row) -> Result<Parsed<Pair>> {
    let mut columns = Columns::of(row);
    if !columns.has("chosen") || !columns.has("rejected") {
        let needed = "`chosen` and `rejected`, with or without `prompt` and `margin`";
        return Err(columns.lacking("a reward model", needed, &["chosen", "rejected", "prompt", "margin"]));
    }
    let (chosen, rejected) = (columns.turns("chosen")?, columns.turns("rejected")?);
    let margin = columns.margin()?;
    // As in TRL: a prompt in the other form than the answers only repeats what both answers begin with.
    let is_same_form = match columns.row.fields.get("prompt") {
        Some(Value::String(_)) => matches!(chosen, Turns::Text(_)),
        Some(Value::Array(_)) => matches!(chosen, Turns::Messages(_)),
        Some(Value::Null) | None => false,
        Some(_) => true,
    };
    let explicit = if is_same_form { Some(columns.turns("prompt")?) } else { None };
    let body = match (explicit, chosen, rejected) {
        (Some(prompt), chosen, rejected) if chosen.is_text() == rejected.is_text() => {
            Pair { prompt, chosen, rejected, margin }
        }
        (None, Turns::Text(chosen), Turns::Text(rejected)) => {
            let (prompt, chosen, rejected) = split_texts(&chosen, &rejected);
            let [prompt, chosen, rejected] = [prompt, chosen, rejected].map(|part| Turns::Text(part.to_string()));
            Pair { prompt, chosen, rejected, margin }
        }
        (None, Turns::Messages(chosen), Turns::Messages(rejected)) => {
            let most = chosen.len().min(rejected.len()).saturating_sub(1);
            let same = chosen.iter().zip(&rejected).take(most).take_while(|(a, b)| a == b).count();
            let ((prompt, chosen), (_, rejected)) = (chosen.split_at(same), rejected.split_at(same));
            let parts = [prompt, chosen, rejected].map(|part| Turns::Messages(part.to_vec()));
            let [prompt, chosen, rejected] = parts;
            Pair { prompt, chosen, rejected, margin }
        }
        _ => return Err(columns.mixed("chosen", "rejected")),
    };
    Ok(columns.done(body))
}

/// A row for PPO. Errors as [`sft_body`].
pub fn prompt(row: &Row) -> Result<Parsed<Turns>> {
    let mut columns = Columns::of(row);
    if !columns.has("prompt") {
        return Err(columns.lacking("PPO", "`prompt`", &["prompt"]));
    }
    let body = columns.turns("prompt")?;
    Ok(columns.done(body))
}

/// The longest common beginning and the two ends, none of which is empty where a text is not: the prompt stops before
/// the last character of the shorter text, and leaves a space before the difference to the answers, as TRL does.
fn split_texts<'a>(chosen: &'a str, rejected: &'a str) -> (&'a str, &'a str, &'a str) {
    let most = chosen.chars().count().min(rejected.chars().count()).saturating_sub(1);
    let same = chosen.chars().zip(rejected.chars()).take(most).take_while(|(a, b)| a == b);
    let length = same.map(|(letter, _)| letter.len_utf8()).sum();
    let (prompt, _) = chosen.split_at(length);
    let length = prompt.strip_suffix(' ').map_or(length, str::len);
    let ((prompt, chosen), (_, rejected)) = (chosen.split_at(length), rejected.split_at(length));
    (prompt, chosen, rejected)
}

impl Turns {
    fn is_text(&self) -> bool {
        matches!(self, Self::Text(_))
    }
}

/// How many of a row's columns an error names, and how much of a name.
const NAMES_SHOWN: usize = 20;
const NAME_CHARS: usize = 60;

/// The columns of a row, and which of them were read.
struct Columns<'a> {
    row: &'a Row,
    used: Vec<&'static str>,
    extra: Vec<String>,
}

impl<'a> Columns<'a> {
    fn of(row: &'a Row) -> Self {
        Self { row, used: Vec::new(), extra: Vec::new() }
    }

    /// Whether the column is there; null counts as absent, as Parquet has it.
    fn has(&self, name: &str) -> bool {
        self.row.fields.get(name).is_some_and(|value| !value.is_null())
    }

    fn read(&mut self, name: &'static str) -> &'a Value {
        self.used.push(name);
        self.row.fields.get(name).unwrap_or(&Value::Null)
    }

    fn text(&mut self, name: &'static str) -> Result<String> {
        match self.read(name) {
            Value::String(text) => Ok(text.clone()),
            other => Err(self.wrong_type(name, other, "a string")),
        }
    }

    fn messages(&mut self, name: &'static str) -> Result<Vec<Message>> {
        match self.read(name) {
            Value::Array(list) => self.list_of_messages(name, list),
            other => Err(self.wrong_type(name, other, "a list of messages {role, content}")),
        }
    }

    fn turns(&mut self, name: &'static str) -> Result<Turns> {
        match self.read(name) {
            Value::String(text) => Ok(Turns::Text(text.clone())),
            Value::Array(list) => Ok(Turns::Messages(self.list_of_messages(name, list)?)),
            other => Err(self.wrong_type(name, other, "a string or a list of messages {role, content}")),
        }
    }

    fn list_of_messages(&mut self, name: &str, list: &[Value]) -> Result<Vec<Message>> {
        let place = &self.row.place;
        let read = |(index, value): (usize, &Value)| {
            let message = message_of(value, &format!("{name}[{index}]")).map_err(|error| error.at(place))?;
            // A key that is there but null carries nothing.
            let keys = value.as_object().into_iter().flatten();
            let unread = keys.filter(|(key, value)| !matches!(key.as_str(), "role" | "content") && !value.is_null());
            self.extra.extend(unread.map(|(key, _)| format!("{name}[].{key}")));
            Ok(message)
        };
        list.iter().enumerate().map(read).collect()
    }

    fn margin(&mut self) -> Result<f32> {
        if !self.has("margin") {
            return Ok(0.0);
        }
        let value = self.read("margin");
        let margin = value.as_f64().map(|margin| margin as f32).filter(|margin| margin.is_finite());
        margin.ok_or_else(|| {
            let error = Error::input("dataset-margin", format!("`margin` is {value}, not a finite number"));
            error.at(&self.row.place).fix("give a number, or leave the column out")
        })
    }

    fn done<T>(mut self, body: T) -> Parsed<T> {
        let unread = self.row.fields.keys().filter(|name| !self.used.contains(&name.as_str()));
        self.extra.extend(unread.cloned());
        self.extra.sort_unstable();
        self.extra.dedup();
        Parsed { body, extra: self.extra }
    }

    fn wrong_type(&self, name: &str, value: &Value, needed: &str) -> Error {
        let what = format!("column `{name}` is {}, not {needed}", kind_of(value));
        Error::input("dataset-column-type", what).at(&self.row.place).fix(format!("write {needed}, or drop the row"))
    }

    fn mixed(&self, one: &str, other: &str) -> Error {
        let what = format!("one of the columns `{one}` and `{other}` is a string and the other a list of messages");
        Error::input("dataset-column-type", what).at(&self.row.place).fix("write both in the same form")
    }

    fn lacking(&self, stage: &str, needed: &str, names: &[&str]) -> Error {
        let short = |name: &String| format!("`{}`", name.chars().take(NAME_CHARS).collect::<String>());
        let found: Vec<_> = self.row.fields.keys().take(NAMES_SHOWN).map(short).collect();
        let found = if found.is_empty() { "none".to_string() } else { found.join(", ") };
        let error = Error::input("dataset-columns", format!("the row lacks the columns that {stage} needs"));
        let error = error.at(&self.row.place).because(format!("columns found: {found}; needed: {needed}"));
        error.fix(self.advice(names))
    }

    /// How to get the columns: a likely slip of the pen, or a known other format.
    fn advice(&self, names: &[&str]) -> String {
        let fields = &self.row.fields;
        if fields.contains_key("conversations") {
            return "rename `conversations` to `messages`, and in it `from` to `role` (human is user, gpt is assistant) \
                    and `value` to `content`"
                .to_string();
        }
        let missing = names.iter().copied().filter(|name| !fields.contains_key(*name));
        let guess = fields.keys().filter(|name| !names.contains(&name.as_str())).find_map(|name| {
            let near = nearest(name, missing.clone())?;
            Some(format!("rename `{name}` to `{near}`, if that is what it holds"))
        });
        if let Some(guess) = guess {
            return guess;
        }
        let null = names.iter().find(|name| fields.get(**name).is_some_and(Value::is_null));
        null.map_or_else(
            || "rename the columns".to_string(),
            |name| format!("fill `{name}`, which is null, or drop the row"),
        )
    }
}

/// One message; `name` says which, for errors.
fn message_of(value: &Value, name: &str) -> Result<Message> {
    let wrong = |what: String, fix: &str| Err(Error::input("dataset-message", what).fix(fix));
    let Value::Object(fields) = value else {
        let what = format!("`{name}` is {}, not a message", kind_of(value));
        return wrong(what, "write {\"role\": ..., \"content\": ...}");
    };
    let role = match fields.get("role") {
        Some(Value::String(role)) if !role.is_empty() => role.clone(),
        found => {
            let found = if found.is_some_and(Value::is_string) { "empty" } else { found.map_or("absent", kind_of) };
            let what = format!("`{name}.role` is {found}, not a name");
            return wrong(what, &role_advice(fields));
        }
    };
    match fields.get("content") {
        Some(Value::String(content)) => Ok(Message { role, content: content.clone() }),
        Some(Value::Array(_)) => {
            let what = format!("`{name}.content` is a list, not a string");
            wrong(what, "join the text parts into one string; images and sound are not supported")
        }
        found => {
            let what = format!("`{name}.content` is {}, not a string", found.map_or("absent", kind_of));
            wrong(what, "give every message its text (an empty string is allowed), or drop the row")
        }
    }
}

fn role_advice(fields: &Map<String, Value>) -> String {
    let is_sharegpt = fields.contains_key("from") && fields.contains_key("value");
    let advice = if is_sharegpt { "rename `from` to `role` and `value` to `content`" } else { "say who speaks" };
    format!("{advice}: system, user or assistant")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row(fields: Value) -> Row {
        let Value::Object(fields) = fields else { panic!("not an object") };
        Row { place: "a.jsonl:7".into(), fields }
    }

    fn message(role: &str, content: &str) -> Message {
        Message { role: role.into(), content: content.into() }
    }

    #[test]
    fn sft_rows_in_all_forms() {
        let parsed = sft_body(&row(json!({"text": "a", "id": 3}))).unwrap();
        assert_eq!(parsed, Parsed { body: SftBody::Text("a".into()), extra: vec!["id".into()] });
        let parsed = sft_body(&row(json!({"prompt": "q", "completion": "a", "text": "t"}))).unwrap();
        let body = SftBody::Completion { prompt: "q".into(), completion: "a".into() };
        assert_eq!(parsed, Parsed { body, extra: vec!["text".into()] });
        let turn = json!([{"role": "user", "content": "hi", "name": "Ana", "tool_calls": null}]);
        let parsed = sft_body(&row(json!({"prompt": "q", "messages": turn}))).unwrap();
        let extra = vec!["messages[].name".into(), "prompt".into()];
        assert_eq!(parsed, Parsed { body: SftBody::Messages(vec![message("user", "hi")]), extra });
        let parsed = sft_body(&row(json!({"prompt": turn, "completion": [], "text": null}))).unwrap();
        assert!(matches!(parsed.body, SftBody::Dialogue { prompt, .. } if prompt.len() == 1));
    }

    #[test]
    fn missing_columns_name_what_is_there_and_what_is_near() {
        let text = |fields, read: fn(&Row) -> Error| read(&row(fields)).to_string();
        let sft: fn(&Row) -> Error = |row| sft_body(row).unwrap_err();
        let found = text(json!({"promt": "q", "completion": "a"}), sft);
        assert!(found.contains("`promt`, `completion`") && found.contains("rename `promt` to `prompt`"), "{found}");
        assert!(found.contains("a.jsonl:7") && found.contains("[dataset-columns]"), "{found}");
        assert!(text(json!({"conversations": []}), sft).contains("rename `conversations` to `messages`"));
        assert!(text(json!({}), sft).contains("columns found: none"));
        assert!(text(json!({"prompt": "a"}), |row| pair(row).unwrap_err()).contains("`chosen` and `rejected`"));
        assert!(text(json!({"prompt": null}), |row| prompt(row).unwrap_err()).contains("fill `prompt`, which is null"));
    }

    #[test]
    fn wrong_types_are_errors() {
        for (fields, id) in [
            (json!({"text": 3}), "dataset-column-type"),
            (json!({"messages": "hi"}), "dataset-column-type"),
            (json!({"prompt": "q", "completion": []}), "dataset-column-type"),
            (json!({"messages": ["hi"]}), "dataset-message"),
            (json!({"messages": [{"content": "hi"}]}), "dataset-message"),
            (json!({"messages": [{"role": "", "content": "hi"}]}), "dataset-message"),
            (json!({"messages": [{"role": "user"}]}), "dataset-message"),
            (json!({"messages": [{"role": "user", "content": null}]}), "dataset-message"),
            (json!({"messages": [{"role": "user", "content": [{"type": "text"}]}]}), "dataset-message"),
        ] {
            let error = sft_body(&row(fields.clone())).unwrap_err();
            assert_eq!((error.id(), error.place()), (id, Some("a.jsonl:7")), "{fields}");
        }
        for margin in [json!("1"), json!(1e39), json!(true)] {
            let error = pair(&row(json!({"chosen": "a", "rejected": "b", "margin": margin}))).unwrap_err();
            assert_eq!(error.id(), "dataset-margin");
        }
    }

    #[test]
    fn pairs_with_and_without_a_prompt() {
        let text = |text: &str| Turns::Text(text.into());
        let parsed = pair(&row(json!({"prompt": "q", "chosen": "a", "rejected": "b", "margin": 2}))).unwrap();
        let body = Pair { prompt: text("q"), chosen: text("a"), rejected: text("b"), margin: 2.0 };
        assert_eq!(parsed, Parsed { body, extra: vec![] });
        for (chosen, rejected, expected) in [
            ("Q: é A: yes", "Q: é A: no", ["Q: é A:", " yes", " no"]),
            ("same", "same", ["sam", "e", "e"]),
            ("ab", "abc", ["a", "b", "bc"]),
            ("", "b", ["", "", "b"]),
        ] {
            let Pair { prompt, chosen, rejected, .. } =
                pair(&row(json!({"chosen": chosen, "rejected": rejected}))).unwrap().body;
            assert_eq!([prompt, chosen, rejected], expected.map(text));
        }
        let ask = json!({"role": "user", "content": "q"});
        let answer = |text: &str| json!({"role": "assistant", "content": text});
        let rows = row(json!({"prompt": "q", "chosen": [ask, answer("a")], "rejected": [ask, answer("b")]}));
        let parsed = pair(&rows).unwrap();
        assert_eq!(parsed.body.prompt, Turns::Messages(vec![message("user", "q")]));
        assert_eq!(parsed.body.rejected, Turns::Messages(vec![message("assistant", "b")]));
        assert_eq!(parsed.extra, ["prompt"]);
        let mixed = row(json!({"chosen": "a", "rejected": [ask]}));
        assert_eq!(pair(&mixed).unwrap_err().id(), "dataset-column-type");
    }
}
