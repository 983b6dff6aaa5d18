//! The weights of a Hugging Face model directory: one `model.safetensors`, or shards with an index. All headers are
//! read and checked when the directory is opened; a tensor's bytes are read when it is asked for, from the file that
//! was checked. Nothing is ever made up: a tensor that is missing, misshapen or not finite is an error. Saving is in
//! [`save_model`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::config::{StoredDtype, model_file, printable, quoted, read_text};
use crate::error::{Code, Error, Result, nearest};
use safetensors::{Tensor, UniqueMap};

pub(crate) mod safetensors;
mod save;
#[cfg(test)]
mod tests;

pub use save::{ModelFiles, SHARD_BYTES_MAX, TensorSpec, save_model, write_safetensors};
pub(crate) use save::{check_copied, saved_files, source_files};

/// The name of the weights in one file.
const SINGLE: &str = "model.safetensors";
/// The name of the list of shards.
const INDEX: &str = "model.safetensors.index.json";
/// About 30 000 tensors; the deepest model of these families has half of that.
const INDEX_BYTES_MAX: u64 = 4 << 20;
/// All shards stay open; more than this would run into the limit on open files.
const SHARDS_MAX: usize = 1000;
/// Bytes read at a time; a multiple of every element's width.
const PIECE_BYTES: usize = 1 << 20;
/// Buffers that older versions of transformers saved; they hold no weights.
const BUFFERS: [&str; 3] = [".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq"];
/// Models saved without their head lack the prefix, and the other way round.
const PREFIXES: [&str; 2] = ["transformer.", "model."];

/// The open weights of a model. Names of GPT-2 and of other decoders may be asked for with or without the prefix
/// `transformer.` or `model.`.
#[derive(Debug)]
pub struct Weights {
    place: String,
    files: Vec<WeightsFile>,
    tensors: BTreeMap<String, (usize, Tensor)>,
    skipped: Vec<String>,
    notes: Vec<String>,
}

/// One open safetensors file.
#[derive(Debug)]
struct WeightsFile {
    place: String,
    /// Reading moves the file's position, so two readers must take turns.
    file: Mutex<File>,
}

impl Weights {
    /// Opens the weights of a model directory and checks every header.
    ///
    /// # Errors
    /// `weights-missing` without safetensors files, or `weights-pickle` where there are PyTorch files only;
    /// `weights-truncated`; `weights-header`; `weights-index` when index and shards disagree; `weights-shard-name` when
    /// the index names a path; `model-link`, `model-file`, `model-not-directory`; input and output errors.
    pub fn open(dir: &Path) -> Result<Self> {
        let index = read_index(dir)?;
        if let Some(path) = model_file(dir, SINGLE)? {
            // Messages name the file as the user does, not where a cache keeps it.
            let mut weights = Self::open_as(&path, dir.join(SINGLE).display().to_string())?;
            weights.place = dir.display().to_string();
            if index.is_some() {
                weights.notes.push(format!("{SINGLE} is used, and the shards of {INDEX} are not"));
            }
            return Ok(weights);
        }
        match index {
            Some(index) => Self::open_shards(dir, index),
            None => Err(no_weights(dir)),
        }
    }

    /// Opens a single safetensors file.
    ///
    /// # Errors
    /// `weights-truncated`, `weights-header`; input and output errors.
    pub fn open_file(path: &Path) -> Result<Self> {
        Self::open_as(path, path.display().to_string())
    }

    fn open_as(path: &Path, place: String) -> Result<Self> {
        let (file, tensors) = open_header(path, &place)?;
        let mut weights = Self { place, files: vec![file], ..Self::empty() };
        for (name, tensor) in tensors {
            weights.keep(name, 0, tensor);
        }
        Ok(weights)
    }

    fn empty() -> Self {
        Self { place: String::new(), files: vec![], tensors: BTreeMap::new(), skipped: vec![], notes: vec![] }
    }

    /// Opens the shards of an index; each tensor must be in exactly the shard that the index names.
    fn open_shards(dir: &Path, index: Index) -> Result<Self> {
        let bad = |why: String| disagreement(dir, why);
        let shards = index.shards(dir)?;
        let mut weights = Self { place: dir.display().to_string(), ..Self::empty() };
        let mut bytes = 0.0;
        for (number, shard) in shards.into_iter().enumerate() {
            let Some(path) = model_file(dir, shard)? else {
                return Err(bad(format!("the shard {} is not there", quoted(shard))));
            };
            let (file, tensors) = open_header(&path, &dir.join(shard).display().to_string())?;
            weights.files.push(file);
            for (name, tensor) in tensors {
                if !is_buffer(&name) && index.weight_map.0.get(&name).map(String::as_str) != Some(shard) {
                    return Err(bad(format!("{} is in {}, and not there in the index", quoted(&name), quoted(shard))));
                }
                bytes += tensor.bytes as f64;
                weights.keep(name, number, tensor);
            }
        }
        let absent = |name: &&String| !weights.tensors.contains_key(*name) && !is_buffer(name);
        if let Some(name) = index.weight_map.0.keys().find(absent) {
            return Err(bad(format!("{} is in the index and in no shard", quoted(name))));
        }
        // Published indices are often off (tied weights counted twice), and nothing depends on the sum.
        if let Some(total) = index.metadata.and_then(|m| m.total_size).filter(|total| *total != bytes) {
            weights.notes.push(format!("the index speaks of {total} bytes of weights; the shards have {bytes}"));
        }
        Ok(weights)
    }

    fn keep(&mut self, name: String, file: usize, tensor: Tensor) {
        if is_buffer(&name) {
            self.skipped.push(name);
        } else {
            self.tensors.insert(name, (file, tensor));
        }
    }

    /// The names of all tensors as they are stored, sorted; buffers without weights are left out.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Every tensor of the first file in the order of their bytes: name, first byte, number of bytes.
    pub(crate) fn ranges(&self) -> Vec<(String, u64, u64)> {
        let range = |(name, (_, tensor)): (&String, &(usize, Tensor))| (name.clone(), tensor.begin, tensor.bytes);
        let mut ranges: Vec<_> = self.tensors.iter().filter(|(_, (file, _))| *file == 0).map(range).collect();
        ranges.sort_by_key(|(_, begin, _)| *begin);
        ranges
    }

    /// The buffers that were left out, such as GPT-2's causal masks.
    pub fn skipped(&self) -> &[String] {
        &self.skipped
    }

    /// What the user should know about the files.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// True if the tensor is there, under this name or with the prefix added or taken away.
    pub fn contains(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// The format's name of a tensor's dtype, such as `BF16`.
    ///
    /// # Errors
    /// `weights-missing-tensor`.
    pub fn dtype(&self, name: &str) -> Result<&'static str> {
        self.tensor(name).map(|(_, (_, tensor))| tensor.dtype)
    }

    /// A tensor's shape.
    ///
    /// # Errors
    /// `weights-missing-tensor`.
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        self.tensor(name).map(|(_, (_, tensor))| tensor.shape.as_slice())
    }

    /// The dtype of most tensors; of two that are equally frequent, the wider; f32 if there are no floats.
    pub fn stored_dtype(&self) -> StoredDtype {
        let mut counts = BTreeMap::new();
        for dtype in self.tensors.values().filter_map(|(_, tensor)| safetensors::stored(tensor.dtype)) {
            *counts.entry(dtype).or_insert(0_usize) += 1;
        }
        let most = counts.into_iter().max_by_key(|(dtype, count)| (*count, *dtype));
        most.map_or(StoredDtype::F32, |(dtype, _)| dtype)
    }

    /// The stored names that none of `used` refers to: for the caller to report.
    pub fn unused_names<S: AsRef<str>>(&self, used: &[S]) -> Vec<&str> {
        let found: BTreeSet<&str> =
            used.iter().filter_map(|name| self.find(name.as_ref())).map(|(name, _)| name).collect();
        self.names().filter(|name| !found.contains(name)).collect()
    }

    /// Reads a tensor in row-major order; bf16 and f16 are widened exactly.
    ///
    /// # Errors
    /// `weights-missing-tensor`; `weights-shape` when it is not `expected_shape`; `weights-dtype` for a dtype other
    /// than F32, BF16 and F16; `weights-not-finite` naming the first NaN or infinity; `weights-truncated` when the file
    /// has shrunk since it was opened; `memory`; input and output errors.
    pub fn read_f32(&self, name: &str, expected_shape: &[usize]) -> Result<Vec<f32>> {
        let (stored_name, file, tensor, dtype) = self.checked(name, expected_shape)?;
        let values = file.read(tensor, dtype)?;
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            let what = format!("the tensor {} is not finite at flat index {index}", quoted(stored_name));
            return Err(Error::input("weights-not-finite", what)
                .at(&file.place)
                .because("a training run would spread it to every weight")
                .fix("use an earlier checkpoint of this model"));
        }
        Ok(values)
    }

    /// Checks that a tensor can be read, without reading it.
    ///
    /// # Errors
    /// `weights-missing-tensor`, `weights-shape`, `weights-dtype`.
    pub fn check(&self, name: &str, expected_shape: &[usize]) -> Result<()> {
        self.checked(name, expected_shape).map(|_| ())
    }

    /// A tensor of this shape, in a dtype that is read: its stored name, its file, where it lies, its dtype.
    fn checked(&self, name: &str, expected_shape: &[usize]) -> Result<(&str, &WeightsFile, &Tensor, StoredDtype)> {
        let (stored_name, (number, tensor)) = self.tensor(name)?;
        let file = self.files.get(*number).ok_or_else(|| Error::failure("weights-file", "a tensor has no file"))?;
        let bad = |id, what: String| Error::input(id, what).at(&file.place);
        if tensor.shape != expected_shape {
            let what = format!("the tensor {} has shape {:?}", quoted(stored_name), tensor.shape);
            return Err(bad("weights-shape", what)
                .because(format!("config.json makes it {expected_shape:?}"))
                .fix("check that config.json and the weights are of the same model"));
        }
        let Some(dtype) = safetensors::stored(tensor.dtype) else {
            let what = format!("the tensor {} is stored as {}", quoted(stored_name), tensor.dtype);
            return Err(bad("weights-dtype", what).because("F32, BF16 and F16 are read").fix("use a model of floats"));
        };
        Ok((stored_name, file, tensor, dtype))
    }

    /// The stored name and place of a tensor: by this name, else without or with a prefix.
    fn find(&self, name: &str) -> Option<(&str, &(usize, Tensor))> {
        let shorter = PREFIXES.iter().filter_map(|prefix| name.strip_prefix(prefix)).map(str::to_owned);
        let longer = PREFIXES.iter().map(|prefix| format!("{prefix}{name}"));
        let found = std::iter::once(name.to_owned()).chain(shorter).chain(longer);
        found.filter_map(|name| self.tensors.get_key_value(&name)).map(|(name, tensor)| (name.as_str(), tensor)).next()
    }

    /// [`Weights::find`], or the error.
    fn tensor(&self, name: &str) -> Result<(&str, &(usize, Tensor))> {
        self.find(name).ok_or_else(|| {
            let near = nearest(name, self.names()).map(|n| format!("; the nearest name is {}", quoted(n)));
            Error::input("weights-missing-tensor", format!("the weights lack the tensor {}", quoted(name)))
                .at(&self.place)
                .because(format!("config.json asks for it{}", near.unwrap_or_default()))
                .fix("check that config.json and the weights are of the same model, and that the download is whole")
        })
    }
}

impl WeightsFile {
    /// The values of a tensor whose header was checked.
    fn read(&self, tensor: &Tensor, dtype: StoredDtype) -> Result<Vec<f32>> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        read_values(&mut *file, tensor, dtype, &self.place)
    }
}

/// The values of a tensor of `file`, whose place messages name.
pub(crate) fn read_values(
    file: &mut (impl Read + Seek),
    tensor: &Tensor,
    dtype: StoredDtype,
    place: &str,
) -> Result<Vec<f32>> {
    let reading = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => {
            safetensors::truncated(place, "it has become shorter since it was opened".to_owned())
        }
        _ => Error::io("reading the weights", place.as_ref(), &e),
    };
    let memory = |why: String| {
        Error::new(Code::Resources, "memory", "there is not enough memory for a tensor").at(place).because(why)
    };
    let count = usize::try_from(tensor.bytes / safetensors::width(dtype)).map_err(|e| memory(e.to_string()))?;
    let mut values = Vec::new();
    values.try_reserve_exact(count).map_err(|e| memory(e.to_string()))?;
    file.seek(SeekFrom::Start(tensor.begin)).map_err(reading)?;
    let mut left = usize::try_from(tensor.bytes).map_err(|e| memory(e.to_string()))?;
    let mut piece = vec![0; left.min(PIECE_BYTES)];
    while left > 0 {
        piece.truncate(left);
        file.read_exact(&mut piece).map_err(reading)?;
        safetensors::widen(dtype, &piece, &mut values);
        left -= piece.len();
    }
    Ok(values)
}

/// Opens a file and reads its header; the file stays open, so that what is read later is what was checked.
fn open_header(path: &Path, place: &str) -> Result<(WeightsFile, BTreeMap<String, Tensor>)> {
    let opening = |e: std::io::Error| Error::io("opening the weights", path, &e);
    let mut file = File::open(path).map_err(opening)?;
    let bytes = file.metadata().map_err(opening)?.len();
    let tensors = safetensors::read_header(&mut file, bytes, place)?;
    Ok((WeightsFile { place: place.to_owned(), file: Mutex::new(file) }, tensors))
}

/// The list of shards.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct Index {
    metadata: Option<IndexMetadata>,
    weight_map: UniqueMap,
}

#[derive(Debug, serde::Deserialize)]
struct IndexMetadata {
    /// Bytes; some writers make it a float.
    total_size: Option<f64>,
}

impl Index {
    /// Reads the text of the index of `dir`.
    pub(crate) fn parse(text: &str, dir: &Path) -> Result<Self> {
        serde_json::from_str(text).map_err(|error| {
            Error::input("weights-index", "the index of the weights is not valid")
                .at(dir.join(INDEX).display().to_string())
                .because(printable(&error.to_string()))
                .fix("get the file again")
        })
    }

    /// The names of the shards, each a plain file of `dir`.
    pub(crate) fn shards(&self, dir: &Path) -> Result<BTreeSet<&str>> {
        let shards: BTreeSet<&str> = self.weight_map.0.values().map(String::as_str).collect();
        if shards.is_empty() || shards.len() > SHARDS_MAX {
            return Err(disagreement(dir, format!("it names {} shards", shards.len())));
        }
        shards.iter().try_for_each(|shard| check_shard_name(dir, shard))?;
        Ok(shards)
    }
}

/// Reads the index, if there is one.
fn read_index(dir: &Path) -> Result<Option<Index>> {
    let text = read_text(dir, INDEX, INDEX_BYTES_MAX)?;
    text.map(|text| Index::parse(&text, dir)).transpose()
}

/// The error of an index that does not fit its shards.
fn disagreement(dir: &Path, why: String) -> Error {
    Error::input("weights-index", "the index and the shards disagree")
        .at(dir.join(INDEX).display().to_string())
        .because(why)
        .fix("get the index and all shards again")
}

/// A shard is a plain name in the directory: never a path, never hidden.
fn check_shard_name(dir: &Path, name: &str) -> Result<()> {
    let plain = name.ends_with(".safetensors")
        && !name.starts_with('.')
        && name.len() < 256
        && !name.contains(['/', '\\', ':'])
        && !name.contains(char::is_control)
        && Path::new(name).file_name().is_some_and(|file| file == name);
    if plain {
        return Ok(());
    }
    Err(Error::input("weights-shard-name", format!("the index names the shard {}", quoted(name)))
        .at(dir.join(INDEX).display().to_string())
        .because("a shard must be a plain .safetensors file of the model directory")
        .fix("do not use this model: its author may have tried to read other files of yours"))
}

fn is_buffer(name: &str) -> bool {
    BUFFERS.iter().any(|end| name.ends_with(end))
}

/// The error for a directory without safetensors, after what is there instead.
fn no_weights(dir: &Path) -> Error {
    let entries = std::fs::read_dir(dir).map(|list| list.take(10_000).filter_map(std::result::Result::ok).collect());
    let entries: Vec<std::fs::DirEntry> = entries.unwrap_or_default();
    let mut names: Vec<_> = entries.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let ends =
        |name: &String, list: &[&str]| Path::new(name).extension().is_some_and(|end| list.iter().any(|e| end == *e));
    if let Some(pickle) = names.iter().find(|name| ends(name, &["bin", "pt", "pth", "ckpt"])) {
        return Error::input("weights-pickle", format!("the weights are a pickle file, {}", quoted(pickle)))
            .at(dir.display().to_string())
            .because("reading a pickle can run any program, so it is never done")
            .fix(
                "if you trust it, convert it in Python: `from transformers import AutoModelForCausalLM as M; \
                 M.from_pretrained(\"OLD\").save_pretrained(\"NEW\")`, and use NEW",
            );
    }
    let error = Error::input("weights-missing", format!("the model directory has no {SINGLE} and no {INDEX}"));
    let error = error.at(dir.display().to_string());
    match names.iter().find(|name| ends(name, &["safetensors"])) {
        Some(name) if name.starts_with("adapter") => error
            .because(format!("{} is an adapter, not a model", quoted(name)))
            .fix("merge the adapter into its model first (peft: merge_and_unload)"),
        Some(name) => error.because(format!("{} has another name", quoted(name))).fix(format!("rename it to {SINGLE}")),
        None => error.fix("give the directory that holds config.json and model.safetensors"),
    }
}

/// The safetensors file of shard `number` of `count`, counted from 1.
fn shard_name(number: usize, count: usize) -> String {
    if count == 1 { SINGLE.to_owned() } else { format!("model-{number:05}-of-{count:05}.safetensors") }
}

/// True for the names that [`shard_name`] makes and for the index.
fn is_weights_name(name: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let numbers = name.strip_prefix("model-").and_then(|rest| rest.strip_suffix(".safetensors"));
    let shard = numbers.and_then(|rest| rest.split_once("-of-")).is_some_and(|(a, b)| digits(a) && digits(b));
    shard || name == SINGLE || name == INDEX
}

/// The weights files in a directory, whoever wrote them.
fn weights_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let list = std::fs::read_dir(dir).map_err(|e| Error::io("listing the directory", dir, &e))?;
    let names = list.filter_map(std::result::Result::ok).map(|entry| entry.file_name());
    Ok(names.filter(|name| name.to_str().is_some_and(is_weights_name)).map(|name| dir.join(name)).collect())
}
