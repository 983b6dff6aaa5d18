//! The fuzz targets' door into the crate: one function for each kind of file that comes from outside, in memory. A
//! door says whether the bytes were accepted, or which promise they break; what holds for any bytes: an answer and no
//! panic, an error with a place and a short printable text, an accepted thing that is what it says. No part of the
//! public interface.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::{Component, Path};

use serde_json::{Map, Value};

use crate::cli::usual::Stage;
use crate::cli::{pipeline, settings};
use crate::config::{PpoConfig, RewardConfig, SftConfig};
use crate::data::formats::{self, Message};
use crate::data::records::{Row, rows_in_memory};
use crate::data::template::{ChatTemplate, Rendered};
use crate::data::tokenizer::Tokenizer;
use crate::error::{Code, Error, Result};
use crate::model::ModelConfig;
use crate::model::checkpoint::safetensors::{Tensor, read_header, stored};
use crate::model::checkpoint::{Index, read_values};
use crate::model::config::{Head, StoredDtype};
use crate::train::checkpoint::manifest::{Manifest, seal};

/// Whether the bytes were accepted, or the promise that they break.
pub type Verdict = std::result::Result<bool, String>;

/// One target.
pub type Door = fn(&[u8]) -> Verdict;

/// Every target by its name.
pub const TARGETS: [(&str, Door); 9] = [
    ("safetensors", safetensors),
    ("index", index),
    ("config", config),
    ("tokenizer", tokenizer),
    ("template", template),
    ("jsonl", jsonl),
    ("parquet", parquet),
    ("run_config", run_config),
    ("manifest", manifest),
];

/// Parts of an input that is more than one file stand between bytes that no text has.
const SEPARATOR: u8 = 0xff;

/// No message is longer than this many bytes, whatever it quotes.
const MESSAGE_BYTES_MAX: usize = 12 << 10;

/// Why we refuse a weights file that the `safetensors` crate takes: where readers differ, a file may be made to show
/// each its own content, and names or shapes of any length cost memory for nothing.
const STRICTER: [&str; 4] = ["stands twice", "is not allowed", "a list of at most 8 sizes", "unknown field"];

/// A `model.safetensors`: we accept no file that the `safetensors` crate refuses, refuse none that it accepts but for
/// the reasons in `STRICTER`, and see the same tensors.
pub fn safetensors(bytes: &[u8]) -> Verdict {
    let place = "model.safetensors";
    let ours = read_header(&mut &*bytes, bytes.len() as u64, place);
    match (ours, ::safetensors::SafeTensors::deserialize(bytes)) {
        (Ok(ours), Ok(theirs)) => same_tensors(bytes, &ours, &theirs, place).map(|()| true),
        (Ok(_), Err(theirs)) => Err(format!("we accept what the library refuses: {theirs}")),
        (Err(ours), Err(_)) => refused(&ours),
        (Err(ours), Ok(_)) if STRICTER.iter().any(|reason| ours.to_string().contains(reason)) => refused(&ours),
        (Err(ours), Ok(_)) => Err(format!("the library accepts what we refuse: {ours}")),
    }
}

fn same_tensors(
    bytes: &[u8],
    ours: &BTreeMap<String, Tensor>,
    theirs: &::safetensors::SafeTensors<'_>,
    place: &str,
) -> std::result::Result<(), String> {
    promise(ours.len() == theirs.len(), || format!("{} tensors, and {} for the library", ours.len(), theirs.len()))?;
    for (name, tensor) in ours {
        let view = theirs.tensor(name).map_err(|e| format!("the library lacks {name:?}: {e}"))?;
        let data = usize::try_from(tensor.begin).ok().and_then(|begin| bytes.get(begin..)?.get(..view.data().len()));
        let is_same = format!("{:?}", view.dtype()) == tensor.dtype
            && view.shape() == tensor.shape
            && data == Some(view.data())
            && tensor.bytes == view.data().len() as u64;
        promise(is_same, || format!("{name:?} is {tensor:?}, and {view:?} for the library"))?;
        let Some(dtype) = stored(tensor.dtype) else { continue };
        let values = read_values(&mut Cursor::new(bytes), tensor, dtype, place).map_err(|e| e.to_string())?;
        let count: usize = tensor.shape.iter().product();
        promise(values.len() == count, || format!("{name:?} has {} values of {count}", values.len()))?;
    }
    Ok(())
}

/// A `model.safetensors.index.json`: the shards that it may name are plain files of the directory.
pub fn index(bytes: &[u8]) -> Verdict {
    let Ok(text) = std::str::from_utf8(bytes) else { return Ok(false) };
    let dir = Path::new("model");
    let index = match Index::parse(text, dir) {
        Ok(index) => index,
        Err(error) => return refused(&error),
    };
    let shards = match index.shards(dir) {
        Ok(shards) => shards,
        Err(error) => return refused(&error),
    };
    for shard in shards {
        let path = dir.join(shard);
        let stays = path.parent() == Some(dir) && path.file_name().is_some_and(|name| name == shard);
        promise(stays, || format!("the shard {shard:?} leaves the directory"))?;
    }
    Ok(true)
}

/// A `config.json`, and a `generation_config.json` behind the separator: what is accepted survives writing and reading,
/// under both heads.
pub fn config(bytes: &[u8]) -> Verdict {
    let (text, generation) = two(bytes);
    let (Ok(text), Ok(generation)) = (std::str::from_utf8(text), std::str::from_utf8(generation)) else {
        return Ok(false);
    };
    let generation = if generation.is_empty() { "{}" } else { generation };
    let config = match ModelConfig::parse_with(text, generation, "config.json") {
        Ok(config) => config,
        Err(error) => return refused(&error),
    };
    promise(config.parameters() > 0, || "a model without parameters".to_owned())?;
    for head in [Head::Language, Head::Score] {
        let written = config.to_json(head, StoredDtype::BF16);
        let again = ModelConfig::parse(&written.to_string(), "config.json").map_err(|e| format!("{written}: {e}"))?;
        promise(again.head == head, || format!("the head {head:?} has become {:?}", again.head))?;
        let twice = again.to_json(head, StoredDtype::BF16);
        promise(twice == written, || format!("{written} has become {twice}"))?;
        // The rest of the fields is the source's alone: what it is remarked on, and what a second file says.
        let again = ModelConfig {
            head: config.head,
            notes: config.notes.clone(),
            raw: config.raw.clone(),
            bos_token_id: config.bos_token_id,
            eos_token_ids: config.eos_token_ids.clone(),
            pad_token_id: config.pad_token_id,
            ..again
        };
        promise(again == config, || format!("{config:?} has become {again:?}"))?;
    }
    Ok(true)
}

/// A `tokenizer.json`, and behind separators a `tokenizer_config.json` and a text to encode.
pub fn tokenizer(bytes: &[u8]) -> Verdict {
    let (file, rest) = two(bytes);
    let (config, text) = two(rest);
    let config: Map<String, Value> = serde_json::from_slice(config).unwrap_or_default();
    let tokenizer = match Tokenizer::build(Path::new("model"), file, &config, &Map::new()) {
        Ok(tokenizer) => tokenizer,
        Err(error) => return refused(&error),
    };
    let text = String::from_utf8_lossy(text);
    let text = if text.is_empty() { "Say 3: word é\n\u{1F600} " } else { &*text };
    for add_special in [false, true] {
        let encoding = match tokenizer.encode(text, add_special) {
            Ok(encoding) => encoding,
            Err(error) => return refused_anywhere(&error),
        };
        let count = encoding.ids.len();
        let is_whole = encoding.offsets.len() == count && encoding.is_added.len() == count;
        promise(is_whole, || format!("the parts differ in length: {encoding:?}"))?;
        let is_known = |id: &i32| usize::try_from(*id).is_ok_and(|id| id < tokenizer.vocab_size());
        promise(encoding.ids.iter().all(is_known), || format!("an id beyond the vocabulary: {encoding:?}"))?;
        let is_inside = |(start, end): &(usize, usize)| start <= end && *end <= text.len();
        promise(encoding.offsets.iter().all(is_inside), || format!("a token outside {text:?}: {encoding:?}"))?;
        if let Err(error) = tokenizer.decode(&encoding.ids, add_special) {
            refused_anywhere(&error)?;
        }
    }
    Ok(true)
}

/// A chat template, and behind the separator a JSON list of messages.
pub fn template(bytes: &[u8]) -> Verdict {
    let (source, messages) = two(bytes);
    let Ok(source) = std::str::from_utf8(source) else { return Ok(false) };
    let special = Map::from_iter([("bos_token", "<s>"), ("eos_token", "</s>")].map(|(k, v)| (k.to_owned(), v.into())));
    let template = match ChatTemplate::compile(source, special, "chat_template.jinja") {
        Ok(template) => template,
        Err(error) => return refused(&error),
    };
    let message = |role: &str, content: &str| Message { role: role.to_owned(), content: content.to_owned() };
    let usual = [message("user", "Say 3"), message("assistant", " Three.\u{e9}"), message("user", "<s>And?")];
    let rendered = match serde_json::from_slice::<Vec<Value>>(messages) {
        Ok(messages) => template.render_values(&messages, false, &Map::new()),
        Err(_) => template.render(&usual, true, &Map::new()),
    };
    match rendered {
        Ok(rendered) => spans_are_sound(&rendered).map(|()| true),
        Err(error) if error.id() == "template-timeout" => Err(format!("a hang: {error}")),
        Err(error) => refused_anywhere(&error),
    }
}

fn spans_are_sound(rendered: &Rendered) -> std::result::Result<(), String> {
    let mut end = 0;
    for span in rendered.assistant.iter().flatten() {
        let is_sound = span.start >= end && rendered.text.get(span.clone()).is_some();
        promise(is_sound, || format!("the span {span:?} is not one of {:?}", rendered.text))?;
        end = span.end;
    }
    Ok(())
}

/// A JSON Lines file: rows that survive writing and reading, each taken for every stage.
pub fn jsonl(bytes: &[u8]) -> Verdict {
    let path = Path::new("data.jsonl");
    let read = |bytes: &[u8]| rows_in_memory(bytes.to_vec(), path).and_then(Iterator::collect::<Result<Vec<_>>>);
    let rows = match read(bytes) {
        Ok(rows) => rows,
        Err(error) => return refused(&error),
    };
    let text: String = rows.iter().map(|row| format!("{}\n", Value::Object(row.fields.clone()))).collect();
    let again = read(text.as_bytes()).map_err(|error| format!("{text}: {error}"))?;
    let is_same = rows.iter().map(|row| &row.fields).eq(again.iter().map(|row| &row.fields));
    promise(is_same, || format!("{rows:?} has become {again:?}"))?;
    rows.iter().try_for_each(each_stage).map(|()| true)
}

/// A Parquet file, whose rows are taken for every stage.
pub fn parquet(bytes: &[u8]) -> Verdict {
    let rows = match rows_in_memory(bytes.to_vec(), Path::new("data.parquet")) {
        Ok(rows) => rows,
        Err(error) => return refused(&error),
    };
    for row in rows {
        match row {
            Ok(row) => each_stage(&row)?,
            Err(error) => return refused(&error),
        }
    }
    Ok(true)
}

fn each_stage(row: &Row) -> std::result::Result<(), String> {
    let stages = [
        formats::sft_body(row).map(|parsed| parsed.extra),
        formats::pair(row).map(|parsed| parsed.extra),
        formats::prompt(row).map(|parsed| parsed.extra),
    ];
    for stage in stages {
        match stage {
            Ok(extra) => promise(extra.is_sorted(), || format!("columns out of order: {extra:?}"))?,
            Err(error) => refused(&error).map(|_| ())?,
        }
    }
    Ok(())
}

/// A configuration file, of `rlhf run` and of each stage: what is accepted for a stage says the same when its settings
/// are given as options.
pub fn run_config(bytes: &[u8]) -> Verdict {
    let path = Path::new("run.toml");
    let mut accepted = match pipeline::check(bytes) {
        Ok(()) => true,
        Err(error) => refused_anywhere(&error)?,
    };
    if let Ok(table) = settings::parse(bytes.to_vec(), path) {
        accepted |= stage::<SftConfig>("sft", &table)?;
        accepted |= stage::<RewardConfig>("reward", &table)?;
        accepted |= stage::<PpoConfig>("ppo", &table)?;
    }
    Ok(accepted)
}

fn stage<T: Stage>(name: &'static str, table: &settings::Table) -> Verdict {
    let files = [(Some("run.toml".into()), table.clone())];
    let settings = match settings::resolve::<T>(name, &files, Vec::new()) {
        Ok((_, settings)) => settings,
        Err(error) => return refused(&error),
    };
    promise(!settings.describe().is_empty(), || "settings that say nothing".to_owned())?;
    let first = settings.to_map();
    let as_options = first.iter().map(|(name, value)| format!("--{name}={value}").into());
    let (_, again) = settings::resolve::<T>(name, &[], as_options.collect()).map_err(|error| error.to_string())?;
    let again = again.to_map();
    promise(again == first, || format!("{first:?} has become {again:?}"))?;
    Ok(true)
}

/// A checkpoint's `manifest.json`, as it is and with the checksum put right: what is accepted survives writing and
/// reading, and lists files of its directory.
pub fn manifest(bytes: &[u8]) -> Verdict {
    let as_it_is = one_manifest(bytes)?;
    let Ok(text) = std::str::from_utf8(bytes) else { return Ok(false) };
    Ok(one_manifest(seal(text).as_bytes())? || as_it_is)
}

fn one_manifest(bytes: &[u8]) -> Verdict {
    let path = Path::new("step-1/manifest.json");
    let manifest = match Manifest::parse(bytes, path) {
        Ok(manifest) => manifest,
        Err(error) => return refused(&error),
    };
    let written = manifest.text().map_err(|error| error.to_string())?;
    let again = Manifest::parse(written.as_bytes(), path).map_err(|error| format!("{written}: {error}"))?;
    promise(again == manifest, || format!("{manifest:?} has become {again:?}"))?;
    for name in manifest.names() {
        let stays = !name.is_empty() && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
        promise(stays, || format!("the file {name:?} leaves the directory"))?;
    }
    let [files, pieces] = manifest.counts();
    promise(files == manifest.names().count() && (files > 0 || pieces == 0), || "files that do not count".to_owned())?;
    // A sum that does not overflow, whatever the sizes are.
    let _ = manifest.bytes();
    Ok(true)
}

/// The two parts of an input; the second is empty where there is no separator.
fn two(bytes: &[u8]) -> (&[u8], &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == SEPARATOR);
    (parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
}

/// The verdict on a refusal, which must name its place.
fn refused(error: &Error) -> Verdict {
    promise(error.place().is_some(), || format!("no place: {error}"))?;
    refused_anywhere(error)
}

/// The verdict on a refusal: it blames the input, and its text is short and harmless to a terminal.
fn refused_anywhere(error: &Error) -> Verdict {
    let text = error.to_string();
    let blames_input = matches!(error.code(), Code::Input | Code::Usage);
    promise(blames_input, || format!("the input is to blame, and this says otherwise: {text}"))?;
    promise(text.len() <= MESSAGE_BYTES_MAX, || format!("a message of {} bytes", text.len()))?;
    promise(!text.chars().any(|c| c.is_control() && c != '\n'), || {
        format!("a message that a terminal obeys: {text:?}")
    })?;
    Ok(false)
}

fn promise(holds: bool, broken: impl FnOnce() -> String) -> std::result::Result<(), String> {
    if holds { Ok(()) } else { Err(broken()) }
}
