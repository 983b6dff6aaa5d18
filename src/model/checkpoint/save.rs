//! Writes a model directory that transformers, vLLM and llama.cpp load: weights under sorted names in one dtype,
//! sharded with an index above a size, the source's tokenizer files byte for byte. `config.json` goes first and comes
//! last, so a directory that was not finished is not taken for a model. Equal input gives equal bytes.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::super::config::{Head, ModelConfig, StoredDtype, model_file, quoted};
use super::safetensors::{narrow, width, write_header};
use super::{INDEX, shard_name, weights_files};
use crate::disk;
use crate::error::{Code, Error, Result};

/// The usual size of a shard in bytes.
pub const SHARD_BYTES_MAX: u64 = 5_000_000_000;
/// Values converted at a time.
const PIECE_VALUES: usize = 1 << 18;
/// What a tokenizer may consist of.
const TOKENIZER_FILES: [&str; 12] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
];

/// A tensor to save.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// The name in the file.
    pub name: String,
    /// The sizes of its dimensions.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// The number of values.
    fn values(&self) -> Option<u64> {
        self.shape.iter().try_fold(1_u64, |product, size| product.checked_mul(u64::try_from(*size).ok()?))
    }
}

/// What a model directory holds besides its weights.
#[derive(Debug, Clone, Copy)]
pub struct ModelFiles<'a> {
    /// The configuration of the source, or a fresh one.
    pub config: &'a ModelConfig,
    /// The head that is saved.
    pub head: Head,
    /// The dtype that the weights are rounded to.
    pub dtype: StoredDtype,
    /// Where the tokenizer files and `generation_config.json` are copied from; none where the caller writes them.
    pub source: Option<&'a Path>,
    /// The text of `README.md`.
    pub card: &'a str,
    /// The most bytes of weights in one file, except that a tensor is never split: [`SHARD_BYTES_MAX`] is usual.
    pub shard_bytes_max: u64,
}

/// Saves a model into the existing directory `dir`. `values` gives each tensor's values, once, in the order of the
/// names. Weights files of an earlier model there are removed.
///
/// # Errors
/// `save-not-finite` and `save-overflow` (exit code 6) naming tensor and index; `save-tensor` (failure) when a name
/// stands twice or values do not fit their shape; those of `values`; input and output errors.
pub fn save_model<'v>(
    dir: &Path,
    files: &ModelFiles<'_>,
    tensors: &[TensorSpec],
    values: &mut dyn FnMut(&TensorSpec) -> Result<Cow<'v, [f32]>>,
) -> Result<()> {
    let shards = shards(tensors, files.dtype, files.shard_bytes_max)?;
    disk::remove_file(&dir.join("config.json"))?;
    for stale in weights_files(dir)? {
        disk::remove_file(&stale)?;
    }
    let (mut map, mut total) = (Map::new(), 0);
    for (i, shard) in shards.iter().enumerate() {
        let name = shard_name(i + 1, shards.len());
        write_safetensors(&dir.join(&name), shard, files.dtype, values)?;
        for spec in shard {
            map.insert(spec.name.clone(), name.as_str().into());
            total += bytes(spec, files.dtype)?;
        }
    }
    if shards.len() > 1 {
        write_json(&dir.join(INDEX), &json!({ "metadata": { "total_size": total }, "weight_map": map }))?;
    }
    for name in TOKENIZER_FILES {
        copy_from(files.source, name, dir)?;
    }
    if !copy_from(files.source, "generation_config.json", dir)? && files.head == Head::Language {
        write_json(&dir.join("generation_config.json"), &generation(files.config))?;
    }
    disk::write_file(&dir.join("README.md"), files.card.as_bytes())?;
    write_json(&dir.join("config.json"), &files.config.to_json(files.head, files.dtype))
}

/// Writes one safetensors file with its tensors sorted by name; `values` gives each tensor's values in that order.
///
/// # Errors
/// As [`save_model`].
pub fn write_safetensors<'v, S: AsRef<TensorSpec>>(
    path: &Path,
    tensors: &[S],
    dtype: StoredDtype,
    values: &mut dyn FnMut(&TensorSpec) -> Result<Cow<'v, [f32]>>,
) -> Result<()> {
    let tensors = sorted(tensors)?;
    let sizes = tensors.iter().map(|spec| bytes(spec, dtype)).collect::<Result<Vec<_>>>()?;
    let entries = tensors.iter().zip(&sizes).map(|(spec, size)| (spec.name.as_str(), spec.shape.as_slice(), *size));
    let header = write_header(entries, dtype);
    disk::write_file_with(path, |writer| {
        writer.write(&header)?;
        let mut piece = Vec::new();
        for spec in &tensors {
            let values = values(spec)?;
            if Some(values.len() as u64) != spec.values() {
                let what = format!("{} values for {} of shape {:?}", values.len(), quoted(&spec.name), spec.shape);
                return Err(Error::failure("save-tensor", what));
            }
            for (i, part) in values.chunks(PIECE_VALUES).enumerate() {
                piece.clear();
                if let Some(bad) = narrow(dtype, part, &mut piece) {
                    return Err(not_finite(spec, i * PIECE_VALUES + bad, part.get(bad), dtype, path));
                }
                writer.write(&piece)?;
            }
        }
        Ok(())
    })
}

impl AsRef<TensorSpec> for TensorSpec {
    fn as_ref(&self) -> &TensorSpec {
        self
    }
}

/// The error for a value that must not be saved.
fn not_finite(spec: &TensorSpec, index: usize, value: Option<&f32>, dtype: StoredDtype, path: &Path) -> Error {
    let place = path.display().to_string();
    let name = quoted(&spec.name);
    match value {
        Some(value) if value.is_finite() => {
            let what = format!("the tensor {name} has {value:e} at flat index {index}, too large for {}", dtype.name());
            Error::new(Code::NonFinite, "save-overflow", what).at(place).fix("save the model in another dtype")
        }
        _ => {
            let what = format!("the tensor {name} is not finite at flat index {index}");
            Error::new(Code::NonFinite, "save-not-finite", what).at(place).because("a broken model is not saved")
        }
    }
}

/// The tensors by name, each of which may stand once.
fn sorted<S: AsRef<TensorSpec>>(tensors: &[S]) -> Result<Vec<&TensorSpec>> {
    let mut sorted: Vec<&TensorSpec> = tensors.iter().map(AsRef::as_ref).collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    match sorted.windows(2).find(|pair| matches!(pair, [a, b] if a.name == b.name)).and_then(<[_]>::first) {
        Some(twice) => Err(Error::failure("save-tensor", format!("the tensor {} stands twice", quoted(&twice.name)))),
        None => Ok(sorted),
    }
}

/// The size of a tensor in the file.
fn bytes(spec: &TensorSpec, dtype: StoredDtype) -> Result<u64> {
    let bytes = spec.values().and_then(|values| values.checked_mul(width(dtype)));
    bytes.ok_or_else(|| Error::failure("save-tensor", format!("the shape {:?} is too large", spec.shape)))
}

/// Fills shards in the order of the names; there is always one, even without tensors.
fn shards(tensors: &[TensorSpec], dtype: StoredDtype, bytes_max: u64) -> Result<Vec<Vec<&TensorSpec>>> {
    let (mut full, mut open, mut open_bytes) = (Vec::new(), Vec::new(), 0_u64);
    for spec in sorted(tensors)? {
        let size = bytes(spec, dtype)?;
        if !open.is_empty() && open_bytes.saturating_add(size) > bytes_max {
            full.push(std::mem::take(&mut open));
            open_bytes = 0;
        }
        open.push(spec);
        open_bytes = open_bytes.saturating_add(size);
    }
    full.push(open);
    Ok(full)
}

/// Files by name, with their paths.
pub(crate) type NamedFiles = Vec<(String, PathBuf)>;

/// The files that the model in `dir` is read from, by what they decide.
///
/// # Errors
/// `model-link`, `model-file`; input and output errors.
pub(crate) fn source_files(dir: &Path) -> Result<[(&'static str, NamedFiles); 3]> {
    let present = |names: &[&str]| -> Result<NamedFiles> {
        let found = names.iter().map(|name| Ok(model_file(dir, name)?.map(|path| ((*name).to_owned(), path))));
        found.filter_map(Result::transpose).collect()
    };
    let mut weights: NamedFiles = weights_files(dir)?
        .into_iter()
        .map(|path| (path.file_name().unwrap_or_default().to_string_lossy().into_owned(), path))
        .collect();
    weights.sort();
    let tokenizer: Vec<&str> = TOKENIZER_FILES.into_iter().chain(["generation_config.json"]).collect();
    Ok([("config", present(&["config.json"])?), ("tokenizer", present(&tokenizer)?), ("weights", weights)])
}

/// The names of the files that [`save_model`] wrote into `dir`.
///
/// # Errors
/// Input and output errors.
pub(crate) fn saved_files(dir: &Path) -> Result<Vec<String>> {
    let files = source_files(dir)?.into_iter().flat_map(|(_, files)| files).map(|(name, _)| name);
    Ok(files.chain(["README.md".to_owned()]).collect())
}

/// Checks that what [`save_model`] copies from `source` can be copied: better known before a training run than after
/// it.
///
/// # Errors
/// `model-link`, `model-file`; input and output errors.
pub(crate) fn check_copied(source: &Path) -> Result<()> {
    let mut names = TOKENIZER_FILES.iter().chain(&["generation_config.json"]);
    names.try_for_each(|name| model_file(source, name).map(|_| ()))
}

/// Copies a file of the source, if it has it.
fn copy_from(source: Option<&Path>, name: &str, dir: &Path) -> Result<bool> {
    let Some(from) = source.map(|source| model_file(source, name)).transpose()?.flatten() else { return Ok(false) };
    disk::copy_file(&from, &dir.join(name))?;
    Ok(true)
}

/// The `generation_config.json` that the special tokens make.
fn generation(config: &ModelConfig) -> Value {
    let eos = match config.eos_token_ids.as_slice() {
        [] => Value::Null,
        [one] => json!(one),
        many => json!(many),
    };
    let mut map = Map::new();
    map.insert("_from_model_config".to_owned(), true.into());
    let ids = [
        ("bos_token_id", json!(config.bos_token_id)),
        ("eos_token_id", eos),
        ("pad_token_id", json!(config.pad_token_id)),
    ];
    map.extend(ids.into_iter().filter(|(_, id)| !id.is_null()).map(|(key, id)| (key.to_owned(), id)));
    Value::Object(map)
}

/// Writes JSON as transformers does: indented by two, with a line feed at the end.
fn write_json(path: &Path, value: &Value) -> Result<()> {
    disk::write_file(path, format!("{value:#}\n").as_bytes())
}
