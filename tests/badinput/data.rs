//! Data sets that are empty, broken, of another kind, too long or too short.

use serde_json::{Value, json};

use super::{Case, case, generate, ppo, reward, score, sft};
use crate::support::{Room, completions};

/// Good rows with a bad third line.
fn third(room: &Room, name: &str, line: impl AsRef<[u8]>) {
    let good = room.read(name);
    let two: Vec<&[u8]> = good.split_inclusive(|b| *b == b'\n').take(2).collect();
    room.write(name, [&two.concat(), line.as_ref(), b"\n"].concat());
}

fn third_row(room: &Room, name: &str, row: &Value) {
    third(room, name, row.to_string());
}

pub(super) fn files_that_are_no_data_set() -> Vec<Case> {
    Vec::from([
        case("no such file", |_| sft("--dataset none.jsonl"), 3, "file-missing"),
        case("no such held-out file", |_| sft("--eval-dataset none.jsonl"), 3, "file-missing"),
        case("a directory", |_| sft("--dataset model"), 3, "dataset-directory"),
        case(
            "an empty file",
            |room| {
                room.write("data.jsonl", "");
                sft("")
            },
            3,
            "dataset-empty",
        ),
        case(
            "blank lines, ppo",
            |room| {
                room.write("prompts.jsonl", "\n\n");
                ppo(room, "")
            },
            3,
            "dataset-empty",
        ),
        case(
            "a Parquet file cut in half",
            |room| {
                room.write("data.parquet", b"PAR1\x15\x04\x15\x00");
                sft("--dataset data.parquet")
            },
            3,
            "parquet-damaged",
        ),
        case(
            "a CSV file",
            |room| {
                room.write("data.csv", "prompt,completion\na,b\n");
                sft("--dataset data.csv")
            },
            3,
            "dataset-invalid-json",
        ),
    ])
}

pub(super) fn lines_that_are_no_row() -> Vec<Case> {
    Vec::from([
        case(
            "invalid JSON",
            |room| {
                third(room, "data.jsonl", "{\"prompt\": \"a\", \"completion\": }");
                sft("")
            },
            3,
            "dataset-invalid-json",
        ),
        case(
            "invalid JSON in the held-out data",
            |room| {
                room.rows("held.jsonl", &completions(4));
                third(room, "held.jsonl", "{");
                sft("--eval-dataset held.jsonl")
            },
            3,
            "dataset-invalid-json",
        ),
        case(
            "invalid UTF-8",
            |room| {
                third(room, "data.jsonl", b"{\"prompt\": \"\xff\"}");
                sft("")
            },
            3,
            "dataset-invalid-utf8",
        ),
        case(
            "a list",
            |room| {
                third(room, "prompts.jsonl", "[1, 2]");
                generate("")
            },
            3,
            "dataset-not-an-object",
        ),
        case(
            "JSON without end",
            |room| {
                third(room, "data.jsonl", "[".repeat(200_000));
                score("")
            },
            3,
            "dataset-invalid-json",
        ),
    ])
}

pub(super) fn rows_of_another_kind() -> Vec<Case> {
    Vec::from([
        case(
            "sft without a completion",
            |room| {
                third_row(room, "data.jsonl", &json!({ "prompt": "a", "completions": "b" }));
                sft("")
            },
            3,
            "dataset-columns",
        ),
        case("reward without a pair", |_| reward("--dataset data.jsonl"), 3, "dataset-columns"),
        case(
            "ppo without a prompt",
            |room| {
                room.rows("texts.jsonl", &[json!({ "text": "a" })]);
                ppo(room, "--dataset texts.jsonl")
            },
            3,
            "dataset-columns",
        ),
    ])
}

pub(super) fn values_of_another_kind() -> Vec<Case> {
    Vec::from([
        case(
            "a number as a text",
            |room| {
                third_row(room, "data.jsonl", &json!({ "prompt": "a", "completion": 3 }));
                sft("")
            },
            3,
            "dataset-column-type",
        ),
        case(
            "a text and a conversation",
            |room| {
                let turns = json!([{ "role": "assistant", "content": "b" }]);
                third_row(room, "data.jsonl", &json!({ "prompt": "a", "completion": turns }));
                sft("")
            },
            3,
            "dataset-column-type",
        ),
        case(
            "a turn without a role",
            |room| {
                third_row(room, "data.jsonl", &json!({ "messages": [{ "from": "human", "value": "a" }] }));
                sft("")
            },
            3,
            "dataset-message",
        ),
        case(
            "a margin that is a word",
            |room| {
                third_row(room, "pairs.jsonl", &json!({ "chosen": "a", "rejected": "b", "margin": "much" }));
                reward("")
            },
            3,
            "dataset-margin",
        ),
        case(
            "a prompt that an assistant ends",
            |room| {
                std::fs::remove_dir_all(room.path("model")).unwrap();
                room.model("model", "gpt2_untied");
                third_row(room, "prompts.jsonl", &json!({ "prompt": [{ "role": "assistant", "content": "a" }] }));
                ppo(room, "")
            },
            3,
            "prompt-ends-with-assistant",
        ),
    ])
}

pub(super) fn rows_of_which_nothing_is_left() -> Vec<Case> {
    Vec::from([
        case(
            "rows without text",
            |room| {
                room.rows("data.jsonl", &vec![json!({ "prompt": "", "completion": "" }); 4]);
                sft("")
            },
            3,
            "dataset-nothing-left",
        ),
        case("rows of which all is masked", |_| sft("--max-length 4"), 3, "dataset-nothing-left"),
        case("pairs that are all too long", |_| reward("--max-length 4"), 3, "dataset-nothing-left"),
        case(
            "prompts without text",
            |room| {
                room.rows("prompts.jsonl", &vec![json!({ "prompt": "" }); 8]);
                ppo(room, "")
            },
            3,
            "dataset-nothing-left",
        ),
        case(
            "fewer rows than a PPO batch",
            |room| ppo(room, "--per-device-train-batch-size 3 --num-mini-batches 3"),
            3,
            "dataset-smaller-than-batch",
        ),
    ])
}

pub(super) fn rows_that_are_too_long() -> Vec<Case> {
    Vec::from([
        case(
            "prompt and response beyond the context, ppo",
            |room| {
                third_row(room, "prompts.jsonl", &json!({ "prompt": "x".repeat(60) }));
                ppo(room, "--per-device-train-batch-size 3")
            },
            3,
            "prompt-too-long",
        ),
        case(
            "prompt and response beyond the context, generate",
            |_| generate("--max-new-tokens 60"),
            3,
            "prompt-too-long",
        ),
        case("a response longer than the context", |room| ppo(room, "--response-length 64"), 2, "response-length"),
        case("max-length beyond the context, sft", |_| sft("--max-length 65"), 2, "context-exceeded"),
        case("max-length beyond the context, reward", |_| reward("--max-length 65"), 2, "context-exceeded"),
        case(
            "a row beyond the context, score",
            |room| {
                third_row(room, "data.jsonl", &json!({ "prompt": "a", "completion": "x".repeat(80) }));
                score("")
            },
            3,
            "strict-row-cut",
        ),
        case(
            "a row without text, generate",
            |room| {
                third_row(room, "prompts.jsonl", &json!({ "prompt": "" }));
                generate("")
            },
            3,
            "strict-row-dropped",
        ),
    ])
}

pub(super) fn rows_that_strict_refuses() -> Vec<Case> {
    Vec::from([
        case("a row that would be cut", |_| sft("--strict --max-length 14"), 3, "strict-row-cut"),
        case("a row that would be masked", |_| sft("--strict --max-length 4"), 3, "strict-row-dropped"),
        case(
            "a row without text",
            |room| {
                third_row(room, "data.jsonl", &json!({ "text": "" }));
                sft("--strict=true")
            },
            3,
            "strict-row-dropped",
        ),
        case("a pair that is too long", |_| reward("--strict --max-length 20"), 3, "strict-row-dropped"),
        case(
            "a prompt without text",
            |room| {
                third_row(room, "prompts.jsonl", &json!({ "prompt": "" }));
                ppo(room, "--strict --per-device-train-batch-size 2")
            },
            3,
            "strict-row-dropped",
        ),
    ])
}
