//! The files that go in and out: Parquet, tokenizers byte for byte, saved models that are read again.

use std::sync::Arc;

use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::{Value, json};

use super::{PPO, REWARD, SFT, room, train};
use crate::support::{Room, Weights, completions};

/// Writes columns of texts as Parquet.
fn write_parquet(room: &Room, name: &str, rows: &[Value], columns: &[&str]) {
    let fields: String = columns.iter().map(|name| format!("REQUIRED BYTE_ARRAY {name} (UTF8); ")).collect();
    let schema = Arc::new(parse_message_type(&format!("message rows {{ {fields} }}")).unwrap());
    let mut bytes = Vec::new();
    let mut file = SerializedFileWriter::new(&mut bytes, schema, Arc::new(WriterProperties::new())).unwrap();
    let mut group = file.next_row_group().unwrap();
    for column in columns {
        let texts: Vec<ByteArray> = rows.iter().map(|row| ByteArray::from(row[*column].as_str().unwrap())).collect();
        let mut writer = group.next_column().unwrap().unwrap();
        writer.typed::<ByteArrayType>().write_batch(&texts, None, None).unwrap();
        writer.close().unwrap();
    }
    group.close().unwrap();
    file.close().unwrap();
    room.write(name, bytes);
}

#[test]
fn parquet_is_read_as_json_lines_are() {
    let room = room("gpt2_tied");
    train(&room);
    write_parquet(&room, "data.parquet", &room.lines("data.jsonl"), &["prompt", "completion"]);
    write_parquet(&room, "pairs.parquet", &room.lines("pairs.jsonl"), &["prompt", "chosen", "rejected"]);
    write_parquet(&room, "prompts.parquet", &room.lines("prompts.jsonl"), &["prompt"]);
    for (line, data, stage) in [(SFT, "data", "sft"), (REWARD, "pairs", "reward"), (PPO, "prompts", "ppo")] {
        room.run(&format!("{line} --dataset {data}.parquet --output-dir parquet/{stage}")).ok();
        for file in ["metrics.jsonl", "model.safetensors"] {
            assert_eq!(room.read(&format!("parquet/{stage}/{file}")), room.read(&format!("{stage}/{file}")), "{stage}");
        }
    }
    for (command, options) in [("score", "--dataset data"), ("generate --max-new-tokens 4", "--prompts prompts")] {
        for (end, output) in [("jsonl", "a.jsonl"), ("parquet", "b.jsonl")] {
            room.run(&format!("{command} --model-name-or-path sft {options}.{end} --output {output}")).ok();
        }
        assert_eq!(room.read("a.jsonl"), room.read("b.jsonl"));
    }
}

#[test]
fn rows_may_say_more_than_is_read() {
    let room = room("gpt2_tied");
    let rows = completions(12).into_iter().map(|mut row| {
        row["id"] = json!(7);
        row
    });
    let text: String = rows.map(|row| format!("{row}\r\n\r\n")).collect();
    room.write("data.jsonl", format!("\u{feff}{text}"));
    let outcome = room.run(&format!("{SFT} --output-dir more")).ok();
    assert!(outcome.stderr.contains("unused column id"), "{}", outcome.stderr);
    room.rows("data.jsonl", &completions(12));
    room.run(SFT).ok();
    assert_eq!(room.read("more/metrics.jsonl"), room.read("sft/metrics.jsonl"));
}

/// Every directory that a run writes has its source's tokenizer, and its weights under the source's names and shapes.
#[test]
fn outputs_are_laid_out_as_their_source() {
    for fixture in ["gpt2_untied", "llama_untied_gqa", "qwen2_bf16", "qwen3_untied", "llama_f16"] {
        let room = room(fixture);
        room.write("model/added_tokens.json", "{ }");
        room.write("model/notes.txt", "mine");
        room.run(SFT).ok();
        room.run(REWARD).ok();
        room.run(&format!("{PPO} --save-steps 3")).ok();
        let source = room.files("model");
        for dir in ["sft", "reward", "ppo", "ppo/value_model", "ppo/checkpoints/step-3"] {
            let files = room.files(dir);
            let copied = source.iter().filter(|(name, _)| {
                name.contains("token") || *name == "chat_template.jinja" || *name == "generation_config.json"
            });
            copied.for_each(|(name, bytes)| assert_eq!(files.get(name), Some(bytes), "{fixture}: {dir}/{name}"));
            assert!(files.contains_key("README.md") && !files.contains_key("notes.txt"), "{fixture}: {dir}");
            assert!(
                !files.keys().any(|name| [".rlhf-", ".rlhf."].iter().any(|left| name.contains(left))),
                "{fixture}: {dir}"
            );
        }
        let describe = |path: &str| {
            let weights = Weights::read(&room.path(path));
            weights.tensors.into_iter().map(|(name, t)| (name, t.dtype, t.shape)).collect::<Vec<_>>()
        };
        let model = describe("model/model.safetensors");
        assert_eq!(describe("sft/model.safetensors"), model, "{fixture}");
        assert_eq!(describe("ppo/model.safetensors"), model, "{fixture}");
        let reward = describe("reward/model.safetensors");
        let head = reward.iter().find(|(name, ..)| name == "score.weight").unwrap();
        assert_eq!((&head.1, &head.2), (&model[0].1, &vec![1, 16]), "{fixture}");
        let body = |list: &[(String, String, Vec<usize>)]| {
            let body = list.iter().filter(|(name, ..)| name != "score.weight" && name != "lm_head.weight");
            body.cloned().collect::<Vec<_>>()
        };
        assert_eq!(body(&reward), body(&model), "{fixture}");
        assert_eq!(describe("ppo/value_model/model.safetensors"), reward, "{fixture}");
    }
}

/// What was saved is what was trained: no step more from it gives the same file, and shards come out as one.
#[test]
fn saved_models_are_read_again() {
    let room = room("qwen2_untied");
    room.run(SFT).ok();
    // Too small a step to move a float: what is read is what is written.
    let still = "--learning-rate 1e-30 --max-steps 1";
    room.run(&format!("{SFT} --model-name-or-path sft --output-dir again {still}")).ok();
    assert_eq!(room.read("again/model.safetensors"), room.read("sft/model.safetensors"));
    assert_eq!(room.read("again/config.json"), room.read("sft/config.json"));
    room.run(&format!("{SFT} --output-dir first {still}")).ok();
    let first = Weights::read(&room.path("first/model.safetensors")).tensors;
    for shard in 1..=3 {
        for (name, tensor) in
            Weights::read(&room.path(&format!("model/model-0000{shard}-of-00003.safetensors"))).tensors
        {
            assert_eq!(first.get(&name), Some(&tensor), "{name}");
        }
    }
    assert!(!room.path("first/model.safetensors.index.json").exists());
}
