//! Data sets that are empty, broken, of another kind, too long or too short.

use serde_json::{Value, json};

use super::{case, check, generate, ppo, reward, score, sft};
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

#[test]
fn files_that_are_no_data_set() {
    check(&[
        case("no such file", |_| sft("--dataset none.jsonl"), 3, "file-missing", &["where: none.jsonl\n"]),
        case("no such held-out file", |_| sft("--eval-dataset none.jsonl"), 3, "file-missing", &["none.jsonl"]),
        case("a directory", |_| sft("--dataset model"), 3, "dataset-directory", &["where: model\n"]),
        case(
            "an empty file",
            |room| {
                room.write("data.jsonl", "");
                sft("")
            },
            3,
            "dataset-empty",
            &["where: data.jsonl\n"],
        ),
        case(
            "blank lines, ppo",
            |room| {
                room.write("prompts.jsonl", "\n\n");
                ppo(room, "")
            },
            3,
            "dataset-empty",
            &["where: prompts.jsonl\n"],
        ),
        case(
            "a Parquet file cut in half",
            |room| {
                room.write("data.parquet", b"PAR1\x15\x04\x15\x00");
                sft("--dataset data.parquet")
            },
            3,
            "parquet-damaged",
            &["where: data.parquet\n"],
        ),
        case(
            "a CSV file",
            |room| {
                room.write("data.csv", "prompt,completion\na,b\n");
                sft("--dataset data.csv")
            },
            3,
            "dataset-invalid-json",
            &["where: data.csv:1\n"],
        ),
    ]);
}

#[test]
fn lines_that_are_no_row() {
    check(&[
        case(
            "invalid JSON",
            |room| {
                third(room, "data.jsonl", "{\"prompt\": \"a\", \"completion\": }");
                sft("")
            },
            3,
            "dataset-invalid-json",
            &["where: data.jsonl:3\n", "column 31"],
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
            &["where: held.jsonl:3\n"],
        ),
        case(
            "invalid UTF-8",
            |room| {
                third(room, "data.jsonl", b"{\"prompt\": \"\xff\"}");
                sft("")
            },
            3,
            "dataset-invalid-utf8",
            &["where: data.jsonl:3\n", "byte 13"],
        ),
        case(
            "a list",
            |room| {
                third(room, "prompts.jsonl", "[1, 2]");
                generate("")
            },
            3,
            "dataset-not-an-object",
            &["where: prompts.jsonl:3\n"],
        ),
        case(
            "JSON without end",
            |room| {
                third(room, "data.jsonl", "[".repeat(200_000));
                score("")
            },
            3,
            "dataset-invalid-json",
            &["where: data.jsonl:3\n"],
        ),
    ]);
}

#[test]
fn rows_of_another_kind() {
    check(&[
        case(
            "sft without a completion",
            |room| {
                third_row(room, "data.jsonl", &json!({ "prompt": "a", "completions": "b" }));
                sft("")
            },
            3,
            "dataset-columns",
            &["where: data.jsonl:3\n", "rename `completions` to `completion`"],
        ),
        case(
            "reward without a pair",
            |_| reward("--dataset data.jsonl"),
            3,
            "dataset-columns",
            &["where: data.jsonl:1\n", "`chosen` and `rejected`"],
        ),
        case(
            "ppo without a prompt",
            |room| {
                ppo(room, "--dataset pairs2.jsonl").replace("pairs2", {
                    room.rows("texts.jsonl", &[json!({ "text": "a" })]);
                    "texts"
                })
            },
            3,
            "dataset-columns",
            &["where: texts.jsonl:1\n", "`prompt`"],
        ),
        case(
            "a number as a text",
            |room| {
                third_row(room, "data.jsonl", &json!({ "prompt": "a", "completion": 3 }));
                sft("")
            },
            3,
            "dataset-column-type",
            &["where: data.jsonl:3\n", "`completion` is a number"],
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
            &["where: data.jsonl:3\n"],
        ),
        case(
            "a turn without a role",
            |room| {
                third_row(room, "data.jsonl", &json!({ "messages": [{ "from": "human", "value": "a" }] }));
                sft("")
            },
            3,
            "dataset-message",
            &["where: data.jsonl:3\n", "`messages[0].role`"],
        ),
        case(
            "a margin that is a word",
            |room| {
                third_row(room, "pairs.jsonl", &json!({ "chosen": "a", "rejected": "b", "margin": "much" }));
                reward("")
            },
            3,
            "dataset-margin",
            &["where: pairs.jsonl:3\n", "much"],
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
            &["where: prompts.jsonl:3\n"],
        ),
    ]);
}

#[test]
fn rows_of_which_nothing_is_left() {
    check(&[
        case(
            "rows without text",
            |room| {
                room.rows("data.jsonl", &vec![json!({ "prompt": "", "completion": "" }); 4]);
                sft("")
            },
            3,
            "dataset-nothing-left",
            &["where: data.jsonl\n", "dropped: empty"],
        ),
        case(
            "rows of which all is masked",
            |_| sft("--max-length 4"),
            3,
            "dataset-nothing-left",
            &["where: data.jsonl\n", "dropped: nothing to learn"],
        ),
        case(
            "pairs that are all too long",
            |_| reward("--max-length 4"),
            3,
            "dataset-nothing-left",
            &["where: pairs.jsonl\n", "dropped: too long"],
        ),
        case(
            "prompts without text",
            |room| {
                room.rows("prompts.jsonl", &vec![json!({ "prompt": "" }); 8]);
                ppo(room, "")
            },
            3,
            "dataset-nothing-left",
            &["where: prompts.jsonl\n", "dropped: empty"],
        ),
        case(
            "fewer rows than a PPO batch",
            |room| ppo(room, "--per-device-train-batch-size 3 --num-mini-batches 3"),
            3,
            "dataset-smaller-than-batch",
            &["where: prompts.jsonl\n", "8 prompts", "9 episodes"],
        ),
    ]);
}

#[test]
fn rows_that_are_too_long() {
    check(&[
        case(
            "prompt and response beyond the context, ppo",
            |room| {
                third_row(room, "prompts.jsonl", &json!({ "prompt": "x".repeat(60) }));
                ppo(room, "--per-device-train-batch-size 3")
            },
            3,
            "prompt-too-long",
            &["where: prompts.jsonl:3\n", "64 positions", "60"],
        ),
        case(
            "prompt and response beyond the context, generate",
            |_| generate("--max-new-tokens 60"),
            3,
            "prompt-too-long",
            &["where: prompts.jsonl:1\n", "8 of 8 prompts"],
        ),
        case(
            "a response longer than the context",
            |room| ppo(room, "--response-length 64"),
            2,
            "response-length",
            &["64 positions"],
        ),
        case(
            "max-length beyond the context, sft",
            |_| sft("--max-length 65"),
            2,
            "context-exceeded",
            &["64 positions"],
        ),
        case("max-length beyond the context, reward", |_| reward("--max-length 65"), 2, "context-exceeded", &["64"]),
        case(
            "a row beyond the context, score",
            |room| {
                third_row(room, "data.jsonl", &json!({ "prompt": "a", "completion": "x".repeat(80) }));
                score("")
            },
            3,
            "strict-row-cut",
            &["where: data.jsonl:3\n", "81 tokens", "every row gets its line"],
        ),
        case(
            "a row without text, generate",
            |room| {
                third_row(room, "prompts.jsonl", &json!({ "prompt": "" }));
                generate("")
            },
            3,
            "strict-row-dropped",
            &["where: prompts.jsonl:3\n", "every row gets its line"],
        ),
    ]);
}

#[test]
fn rows_that_strict_refuses() {
    check(&[
        case(
            "a row that would be cut",
            |_| sft("--strict --max-length 14"),
            3,
            "strict-row-cut",
            &["where: data.jsonl:2\n", "--strict"],
        ),
        case(
            "a row that would be masked",
            |_| sft("--strict --max-length 4"),
            3,
            "strict-row-dropped",
            &["where: data.jsonl:1\n", "nothing to learn"],
        ),
        case(
            "a row without text",
            |room| {
                third_row(room, "data.jsonl", &json!({ "text": "" }));
                sft("--strict=true")
            },
            3,
            "strict-row-dropped",
            &["where: data.jsonl:3\n", "empty"],
        ),
        case(
            "a pair that is too long",
            |_| reward("--strict --max-length 20"),
            3,
            "strict-row-dropped",
            &["where: pairs.jsonl:3\n", "too long"],
        ),
        case(
            "a prompt without text",
            |room| {
                third_row(room, "prompts.jsonl", &json!({ "prompt": "" }));
                ppo(room, "--strict --per-device-train-batch-size 2")
            },
            3,
            "strict-row-dropped",
            &["where: prompts.jsonl:3\n"],
        ),
    ]);
}
