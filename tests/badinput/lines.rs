//! Lines of JSON that are no examples: encodings, escapes, nesting, columns that are missing, null, doubled, dense or
//! meant for a terminal, and messages that are no messages.

use serde_json::{Value, json};

use super::{Case, case, generate, ppo, reward, score, sft};
use crate::support::Room;

/// The data set of sft as these bytes.
fn bytes<T: AsRef<[u8]> + Send + Sync>(bytes: T) -> impl Fn(&Room) -> String + Send + Sync + use<T> {
    move |room| {
        room.write("data.jsonl", &bytes);
        sft("")
    }
}

/// Good rows, and this one as the third.
fn row(row: Value) -> impl Fn(&Room) -> String + Send + Sync + use<> {
    move |room| {
        let mut rows = room.lines("data.jsonl");
        rows[2] = row.clone();
        room.rows("data.jsonl", &rows);
        sft("")
    }
}

fn pair(row: Value) -> impl Fn(&Room) -> String + Send + Sync + use<> {
    move |room| {
        let mut rows = room.lines("pairs.jsonl");
        rows[2] = row.clone();
        room.rows("pairs.jsonl", &rows);
        reward("")
    }
}

fn prompt(row: Value) -> impl Fn(&Room) -> String + Send + Sync + use<> {
    move |room| {
        let mut rows = room.lines("prompts.jsonl");
        rows[2] = row.clone();
        room.rows("prompts.jsonl", &rows);
        ppo(room, "")
    }
}

pub(super) fn files_of_another_format() -> Vec<Case> {
    Vec::from([
        case("gzip", bytes(b"\x1f\x8b\x08\x00rest"), 3, "dataset-kind"),
        case(
            "gzip, by the name of JSON Lines, generate",
            |room| {
                room.write("prompts.jsonl", b"\x1f\x8b\x08\x00rest");
                generate("")
            },
            3,
            "dataset-kind",
        ),
        case("zstd", bytes(b"\x28\xb5\x2f\xfdrest"), 3, "dataset-kind"),
        case("a zip archive", bytes(b"PK\x03\x04rest"), 3, "dataset-kind"),
        case("an Arrow file", bytes(b"ARROW1\0\0"), 3, "dataset-kind"),
        case("UTF-16", bytes(b"\xff\xfe{\0}\0"), 3, "dataset-kind"),
        case("a JSON array", bytes("[{\"prompt\": \"a\", \"completion\": \"b\"}]"), 3, "dataset-not-an-object"),
        case("a pretty JSON array", bytes("[\n  {\n    \"prompt\": \"a\"\n  }\n]\n"), 3, "dataset-invalid-json"),
        case("a byte order mark and nothing", bytes("\u{feff}"), 3, "dataset-empty"),
        case(
            "a byte order mark in the middle",
            bytes("{\"text\": \"a\"}\n\u{feff}{\"text\": \"b\"}\n"),
            3,
            "dataset-invalid-json",
        ),
        case("Latin-1", bytes(b"{\"prompt\": \"caf\xe9\", \"completion\": \"b\"}"), 3, "dataset-invalid-utf8"),
        case("a surrogate in UTF-8", bytes(b"{\"text\": \"\xed\xa0\x80\"}"), 3, "dataset-invalid-utf8"),
        case(
            "lines that end in a carriage return only",
            bytes("{\"text\": \"a\"}\r{\"text\": \"b\"}\r"),
            3,
            "dataset-invalid-json",
        ),
        case("a Python dictionary", bytes("{'text': 'a'}"), 3, "dataset-invalid-json"),
        case("a page of HTML", bytes("<!DOCTYPE html><html>"), 3, "dataset-invalid-json"),
    ])
}

pub(super) fn lines_that_do_not_parse() -> Vec<Case> {
    Vec::from([
        case("a zero byte in a text", bytes(b"{\"text\": \"a\0b\"}"), 3, "dataset-invalid-json"),
        case("a tab in a text", bytes("{\"text\": \"a\tb\"}"), 3, "dataset-invalid-json"),
        case("the first half of a surrogate", bytes("{\"text\": \"\\ud83d\"}"), 3, "dataset-invalid-json"),
        case("the second half of a surrogate", bytes("{\"text\": \"\\ude00\"}"), 3, "dataset-invalid-json"),
        case("two first halves", bytes("{\"text\": \"\\ud83d\\ud83d\"}"), 3, "dataset-invalid-json"),
        case("an escape that is cut", bytes("{\"text\": \"\\u12\"}"), 3, "dataset-invalid-json"),
        case("an unknown escape", bytes("{\"text\": \"\\x41\"}"), 3, "dataset-invalid-json"),
        case("NaN", bytes("{\"text\": NaN}"), 3, "dataset-invalid-json"),
        case("a number beyond all numbers", bytes("{\"text\": \"a\", \"n\": 1e999}"), 3, "dataset-invalid-json"),
        case("a comma too many", bytes("{\"text\": \"a\",}"), 3, "dataset-invalid-json"),
        case("two objects on a line", bytes("{\"text\": \"a\"} {\"text\": \"b\"}"), 3, "dataset-invalid-json"),
        case("a line that is cut", bytes("{\"text\": \"a\"}\n{\"text\": \"b"), 3, "dataset-invalid-json"),
        case("a column twice", bytes("{\"text\": \"good\", \"text\": \"bad\"}"), 3, "dataset-invalid-json"),
        case(
            "a role twice",
            bytes("{\"messages\": [{\"role\": \"user\", \"role\": \"assistant\", \"content\": \"a\"}]}"),
            3,
            "dataset-invalid-json",
        ),
        case(
            "nesting in a column",
            bytes(format!("{{\"text\": \"a\", \"x\": {}", "[".repeat(100_000))),
            3,
            "dataset-invalid-json",
        ),
        case("nesting of objects", bytes("{\"a\":".repeat(30_000)), 3, "dataset-invalid-json"),
        case(
            "a million zeros",
            bytes(format!("{{\"text\": \"a\", \"ids\": [{}0]}}", "0,".repeat(1_000_000))),
            3,
            "dataset-invalid-json",
        ),
        case(
            "a million empty lists",
            bytes(format!("{{\"text\": \"a\", \"ids\": [{}[]]}}", "[],".repeat(1_000_000))),
            3,
            "dataset-invalid-json",
        ),
        case(
            "a hundred thousand columns",
            bytes(format!("{{{}\"text\": 1}}", (0..100_000).map(|i| format!("\"{i}\":0,")).collect::<String>())),
            3,
            "dataset-column-type",
        ),
        case(
            "a line that is long and cut",
            bytes(format!("{{\"text\": \"{}", "a".repeat(8 << 20))),
            3,
            "dataset-invalid-json",
        ),
        case(
            "a line that is too long",
            bytes(format!("{{\"text\": \"{}\"}}", "a".repeat(17 << 20))),
            3,
            "dataset-line-too-long",
        ),
        case("a million blank lines", bytes("\n".repeat(1_000_000)), 3, "dataset-empty"),
        case("half a million empty objects", bytes("{}\n".repeat(500_000)), 3, "dataset-columns"),
        case("an escape sequence for the terminal", bytes("\u{1b}[2J\u{7}"), 3, "dataset-invalid-json"),
    ])
}

pub(super) fn columns_of_no_example() -> Vec<Case> {
    Vec::from([
        case("null as a text", row(json!({ "text": null })), 3, "dataset-columns"),
        case("null as a completion", row(json!({ "prompt": "a", "completion": null })), 3, "dataset-columns"),
        case("a number as a prompt", row(json!({ "prompt": 3, "completion": "b" })), 3, "dataset-column-type"),
        case("a list of texts", row(json!({ "text": ["a", "b"] })), 3, "dataset-column-type"),
        case("an object as a text", row(json!({ "text": { "value": "a" } })), 3, "dataset-column-type"),
        case("names in capitals", row(json!({ "Prompt": "a", "Completion": "b" })), 3, "dataset-columns"),
        case(
            "names of an instruction set",
            row(json!({ "instruction": "a", "input": "", "output": "b" })),
            3,
            "dataset-columns",
        ),
        case(
            "a name that moves the cursor",
            row(json!({ "\u{1b}[31mtext": "a", "\u{202e}b": 1 })),
            3,
            "dataset-columns",
        ),
        case("a name without end", row(json!({ "x".repeat(10_000): "a" })), 3, "dataset-columns"),
        case("no name", row(json!({ "": "a" })), 3, "dataset-columns"),
        case(
            "conversations by another name",
            row(json!({ "conversations": [{ "from": "human", "value": "a" }] })),
            3,
            "dataset-columns",
        ),
        case(
            "a margin beyond f32",
            pair(json!({ "chosen": "a", "rejected": "b", "margin": 1e300 })),
            3,
            "dataset-margin",
        ),
        case(
            "a margin that is a list",
            pair(json!({ "chosen": "a", "rejected": "b", "margin": [1] })),
            3,
            "dataset-margin",
        ),
        case(
            "a margin that moves the cursor",
            pair(json!({ "chosen": "a", "rejected": "b", "margin": "\u{9b}2J" })),
            3,
            "dataset-margin",
        ),
        case(
            "a rejected answer that is a number",
            pair(json!({ "chosen": "a", "rejected": 3 })),
            3,
            "dataset-column-type",
        ),
        case("a rejected answer that is null", pair(json!({ "chosen": "a", "rejected": null })), 3, "dataset-columns"),
        case(
            "a text and a conversation",
            pair(json!({ "chosen": "a", "rejected": [{ "role": "assistant", "content": "b" }] })),
            3,
            "dataset-column-type",
        ),
        case("a prompt that is a number", prompt(json!({ "prompt": 3 })), 3, "dataset-column-type"),
        case("a prompt that is null", prompt(json!({ "prompt": null })), 3, "dataset-columns"),
        case("a misspelt prompt", prompt(json!({ "promt": "a" })), 3, "dataset-columns"),
        case(
            "a score without text",
            |room| {
                room.rows("data.jsonl", &[json!({ "answer": "a" })]);
                score("")
            },
            3,
            "dataset-columns",
        ),
        case(
            "an answer without a prompt",
            |room| {
                room.rows("prompts.jsonl", &[json!({ "query": "a" })]);
                generate("")
            },
            3,
            "dataset-columns",
        ),
    ])
}

pub(super) fn messages_of_no_conversation() -> Vec<Case> {
    let messages = |messages: Value| row(json!({ "messages": messages }));
    Vec::from([
        case("messages that are a text", messages(json!("hi")), 3, "dataset-column-type"),
        case("a message that is a text", messages(json!(["hi"])), 3, "dataset-message"),
        case("a message that is null", messages(json!([null])), 3, "dataset-message"),
        case("a role that is null", messages(json!([{ "role": null, "content": "a" }])), 3, "dataset-message"),
        case("a role that is a number", messages(json!([{ "role": 1, "content": "a" }])), 3, "dataset-message"),
        case("no role", messages(json!([{ "role": "", "content": "a" }])), 3, "dataset-message"),
        case("content that is null", messages(json!([{ "role": "user", "content": null }])), 3, "dataset-message"),
        case("content that is absent", messages(json!([{ "role": "user" }])), 3, "dataset-message"),
        case(
            "content in parts",
            messages(json!([{ "role": "user", "content": [{ "type": "text", "text": "a" }] }])),
            3,
            "dataset-message",
        ),
        case("content that is a number", messages(json!([{ "role": "user", "content": 3 }])), 3, "dataset-message"),
        case(
            "the tenth message",
            messages(Value::Array(
                (0..10)
                    .map(|i| if i == 9 { json!({ "role": "user" }) } else { json!({ "role": "user", "content": "a" }) })
                    .collect(),
            )),
            3,
            "dataset-message",
        ),
        case(
            "conversations without a template",
            messages(json!([{ "role": "user", "content": "a" }])),
            3,
            "template-missing",
        ),
    ])
}
