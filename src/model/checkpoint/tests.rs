//! Every rule of reading and writing weights, by files made here byte by byte, against the `safetensors` crate, and on
//! the fixtures that transformers wrote.

use std::borrow::Cow;
use std::fs;

use half::{bf16, f16};
use serde_json::{Value, json};

use super::*;
use crate::model::config::{Head, ModelConfig};

/// A file of this header and this many zero bytes.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

/// A file of f32 tensors, all one-dimensional and zero.
fn zeros(tensors: &[(&str, usize)]) -> Vec<u8> {
    let mut end = 0;
    let entries: Vec<_> = tensors
        .iter()
        .map(|(name, n)| {
            end += 4 * n;
            format!("{name:?}:{{\"dtype\":\"F32\",\"shape\":[{n}],\"data_offsets\":[{},{end}]}}", end - 4 * n)
        })
        .collect();
    file(&format!("{{{}}}", entries.join(",")), end)
}

/// A model directory with these files.
fn dir(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

fn open(bytes: &[u8]) -> Result<Weights> {
    Weights::open(dir(&[(SINGLE, bytes)]).path())
}

fn error_of(bytes: &[u8]) -> Error {
    let error = open(bytes).unwrap_err();
    assert_eq!(error.code(), Code::Input);
    assert!(error.place().is_some_and(|place| place.ends_with(SINGLE)), "{error}");
    error
}

fn config() -> ModelConfig {
    let text = r#"{"architectures": ["GPT2LMHeadModel"], "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16,
        "vocab_size": 10, "bos_token_id": 1, "eos_token_id": [2, 3]}"#;
    ModelConfig::parse(text, "config.json").unwrap()
}

fn spec(name: &str, shape: &[usize]) -> TensorSpec {
    TensorSpec { name: name.to_owned(), shape: shape.to_vec() }
}

/// Deterministic values of every size, signs and subnormals among them.
fn some_values(n: usize) -> Vec<f32> {
    let mut state = 12345_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state as f32 / u32::MAX as f32 - 0.5) * 2.0_f32.powi((state >> 7) as i32 % 30 - 20)
    };
    (0..n).map(|_| next()).collect()
}

fn save(dir: &Path, tensors: &[(TensorSpec, Vec<f32>)], dtype: StoredDtype, shard_bytes_max: u64) -> Result<()> {
    let specs: Vec<_> = tensors.iter().map(|(spec, _)| spec.clone()).collect();
    let config = config();
    let files =
        ModelFiles { config: &config, head: Head::Language, dtype, source: None, card: "# card\n", shard_bytes_max };
    save_model(dir, &files, &specs, &mut |wanted| {
        Ok(Cow::Borrowed(&*tensors.iter().find(|(spec, _)| spec == wanted).unwrap().1))
    })
}

fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn every_dtype_survives_a_round_trip() {
    let values = some_values(300_000);
    let tensors = [(spec("b", &[300, 1000]), values.clone()), (spec("a", &[3]), vec![1.0, -2.5, 0.0])];
    for (dtype, tag) in [(StoredDtype::F32, "F32"), (StoredDtype::BF16, "BF16"), (StoredDtype::F16, "F16")] {
        let out = dir(&[]);
        save(out.path(), &tensors, dtype, SHARD_BYTES_MAX).unwrap();
        assert_eq!(names_in(out.path()), ["README.md", "config.json", "generation_config.json", SINGLE]);
        let weights = Weights::open(out.path()).unwrap();
        assert_eq!(weights.names().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!((weights.stored_dtype(), weights.dtype("b").unwrap()), (dtype, tag));
        assert_eq!(weights.shape("b").unwrap(), [300, 1000]);
        let expected: Vec<f32> = match dtype {
            StoredDtype::F32 => values.clone(),
            StoredDtype::BF16 => values.iter().map(|v| bf16::from_f32(*v).to_f32()).collect(),
            StoredDtype::F16 => values.iter().map(|v| f16::from_f32(*v).to_f32()).collect(),
        };
        assert_eq!(weights.read_f32("b", &[300, 1000]).unwrap(), expected);
        assert_eq!(weights.read_f32("a", &[3]).unwrap(), [1.0, -2.5, 0.0]);
    }
}

#[test]
fn rounding_is_to_nearest_even_and_widening_exact() {
    let mut bytes = Vec::new();
    let ties = [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0];
    assert_eq!(safetensors::narrow(StoredDtype::BF16, &ties, &mut bytes), None);
    let mut values = Vec::new();
    safetensors::widen(StoredDtype::BF16, &bytes, &mut values);
    assert_eq!(values, [1.0, 1.0 + 4.0 / 256.0]);
    for dtype in [StoredDtype::BF16, StoredDtype::F16] {
        let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let (mut wide, mut back) = (Vec::new(), Vec::new());
        safetensors::widen(dtype, &all, &mut wide);
        safetensors::narrow(dtype, &wide, &mut back);
        let differ = all.chunks(2).zip(back.chunks(2)).zip(&wide).filter(|((a, b), v)| a != b && !v.is_nan()).count();
        assert_eq!(differ, 0);
    }
}

#[test]
fn the_bytes_are_those_of_the_reference_writer() {
    let tensors = [(spec("b.x", &[2, 2]), vec![1.0, 2.0, 3.0, 4.0]), (spec("a\"é", &[3]), vec![-1.0, 0.5, 9.0])];
    let out = dir(&[]);
    save(out.path(), &tensors, StoredDtype::F32, SHARD_BYTES_MAX).unwrap();
    let bytes: Vec<Vec<u8>> = tensors.iter().map(|(_, v)| v.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let views = tensors.iter().zip(&bytes).map(|((spec, _), data)| {
        let view = ::safetensors::tensor::TensorView::new(::safetensors::Dtype::F32, spec.shape.clone(), data).unwrap();
        (spec.name.clone(), view)
    });
    let metadata = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let reference = ::safetensors::serialize(views, Some(metadata)).unwrap();
    assert_eq!(fs::read(out.path().join(SINGLE)).unwrap(), reference);
}

#[test]
fn shards_have_an_index_and_replace_older_weights() {
    let tensors: Vec<_> = (0..5).map(|i| (spec(&format!("t{i}"), &[10]), vec![i as f32; 10])).collect();
    let out = dir(&[]);
    save(out.path(), &tensors, StoredDtype::F32, SHARD_BYTES_MAX).unwrap();
    save(out.path(), &tensors, StoredDtype::F32, 100).unwrap();
    let shards =
        ["model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors"];
    let others = ["README.md", "config.json", "generation_config.json"];
    assert_eq!(names_in(out.path()), [&others[..], &shards, &[INDEX]].concat());
    let index: Value = serde_json::from_slice(&fs::read(out.path().join(INDEX)).unwrap()).unwrap();
    assert_eq!(index["metadata"]["total_size"], 200);
    assert_eq!(index["weight_map"]["t4"], shards[2]);
    let weights = Weights::open(out.path()).unwrap();
    assert!(weights.notes().is_empty());
    for (spec, values) in &tensors {
        assert_eq!(&weights.read_f32(&spec.name, &[10]).unwrap(), values);
    }
    let first = fs::read(out.path().join(shards[0])).unwrap();
    save(out.path(), &tensors, StoredDtype::F32, 100).unwrap();
    assert_eq!(fs::read(out.path().join(shards[0])).unwrap(), first, "equal input, equal bytes");
    save(out.path(), &tensors, StoredDtype::F32, 1).unwrap();
    assert_eq!(names_in(out.path()).len(), 3 + 5 + 1);
    save(out.path(), &[], StoredDtype::F32, 1).unwrap();
    assert_eq!(names_in(out.path()), [&others[..], &[SINGLE]].concat());
    assert_eq!(Weights::open(out.path()).unwrap().stored_dtype(), StoredDtype::F32);
}

#[test]
fn files_of_the_source_are_copied_byte_for_byte() {
    let odd: &[u8] = b"{ \"b\": 1,\r\n \"a\":\xff }";
    let source = dir(&[
        ("tokenizer.json", odd),
        ("chat_template.jinja", b"x"),
        ("generation_config.json", b"{}"),
        ("evil.py", b"x"),
    ]);
    let (out, config) = (dir(&[]), config());
    let files = ModelFiles {
        config: &config,
        head: Head::Score,
        dtype: StoredDtype::BF16,
        source: Some(source.path()),
        card: "# card\n",
        shard_bytes_max: SHARD_BYTES_MAX,
    };
    save_model(out.path(), &files, &[], &mut |_| Ok(Cow::Borrowed(&[]))).unwrap();
    let expected =
        ["README.md", "chat_template.jinja", "config.json", "generation_config.json", SINGLE, "tokenizer.json"];
    assert_eq!(names_in(out.path()), expected);
    for name in ["tokenizer.json", "generation_config.json"] {
        assert_eq!(fs::read(out.path().join(name)).unwrap(), fs::read(source.path().join(name)).unwrap());
    }
    let saved = ModelConfig::load(out.path()).unwrap();
    assert_eq!((saved.head, saved.pad_token_id), (Head::Score, Some(2)));
    let fresh = dir(&[]);
    save(fresh.path(), &[], StoredDtype::F32, 1).unwrap();
    let generation: Value =
        serde_json::from_slice(&fs::read(fresh.path().join("generation_config.json")).unwrap()).unwrap();
    assert_eq!(generation, json!({ "_from_model_config": true, "bos_token_id": 1, "eos_token_id": [2, 3] }));
}

#[test]
fn what_must_not_be_saved_is_refused() {
    let try_save = |values: Vec<f32>, dtype| {
        let out = dir(&[]);
        let error = save(out.path(), &[(spec("w", &[values.len()]), values)], dtype, SHARD_BYTES_MAX).unwrap_err();
        assert!(names_in(out.path()).is_empty(), "nothing is left");
        error
    };
    for dtype in [StoredDtype::F32, StoredDtype::BF16, StoredDtype::F16] {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = vec![0.0; 600_000];
            values[555_555] = bad;
            let error = try_save(values, dtype);
            assert_eq!((error.id(), error.code()), ("save-not-finite", Code::NonFinite));
            assert!(error.to_string().contains("\"w\" is not finite at flat index 555555"), "{error}");
        }
    }
    let error = try_save(vec![0.0, 65_520.0], StoredDtype::F16);
    assert_eq!((error.id(), error.code()), ("save-overflow", Code::NonFinite));
    assert_eq!(try_save(vec![f32::MAX], StoredDtype::BF16).id(), "save-overflow");
    let out = dir(&[]);
    let twice = [(spec("w", &[1]), vec![0.0]), (spec("w", &[1]), vec![1.0])];
    assert_eq!(save(out.path(), &twice, StoredDtype::F32, 9).unwrap_err().id(), "save-tensor");
    for shape in [&[2][..], &[usize::MAX, 2], &[usize::MAX / 2]] {
        let wrong = [(spec("w", shape), vec![0.0])];
        assert_eq!(save(out.path(), &wrong, StoredDtype::F32, 9).unwrap_err().id(), "save-tensor");
    }
    let gone = out.path().join("gone");
    assert_eq!(save(&gone, &[], StoredDtype::F32, 9).unwrap_err().id(), "file-missing");
}

#[test]
fn a_cut_file_is_truncated_wherever_it_is_cut() {
    let whole = zeros(&[("a", 5), ("b", 7)]);
    open(&whole).unwrap();
    for length in 0..whole.len() {
        let error = error_of(&whole[..length]);
        assert_eq!(error.id(), "weights-truncated", "cut to {length}: {error}");
    }
    let root = dir(&[(SINGLE, &whole)]);
    let weights = Weights::open(root.path()).unwrap();
    fs::OpenOptions::new().write(true).open(root.path().join(SINGLE)).unwrap().set_len(140).unwrap();
    assert_eq!(weights.read_f32("b", &[7]).unwrap_err().id(), "weights-truncated");
}

#[test]
fn a_header_is_not_believed() {
    let one = |entry: &str, data| file(&format!("{{\"a\":{entry}}}"), data);
    let a = r#""a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    let huge = u64::MAX / 2 + 1;
    for (bytes, why) in [
        (u64::MAX.to_le_bytes().to_vec(), "claims"),
        ([(1_u64 << 42).to_le_bytes().to_vec(), vec![b'{'; 100]].concat(), "claims"),
        (file("[]", 0), "begin with {"),
        (file(" {}", 0), "begin with {"),
        (file("{\"a\":1}", 0), "invalid type"),
        (file("{}x", 0), "trailing"),
        (file("{}", 4), "belong to no tensor"),
        (file(&format!("{{{a},{a}}}"), 4), "stands twice"),
        (file(&format!("{{{a},\"__metadata__\":{{\"x\":\"1\",\"x\":\"2\"}}}}"), 4), "stands twice"),
        (file(&format!("{{{a},\"__metadata__\":{{}},\"__metadata__\":{{}}}}"), 4), "not allowed"),
        (file(&format!("{{{a},\"__metadata__\":{{\"x\":1}}}}"), 4), "invalid type"),
        (file(&format!("{{{a},\"b\":{{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}}}"), 4), "overlaps"),
        (file(&format!("{{{a},\"b\":{{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[8,12]}}}}"), 12), "hole"),
        (one(r#"{"dtype":"F32","shape":[1],"data_offsets":[4,8]}"#, 8), "hole"),
        (one(r#"{"dtype":"F32","shape":[1],"data_offsets":[4,0]}"#, 4), "ends before"),
        (one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,4]}"#, 4), "does not fill"),
        (one(r#"{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}"#, 4), "invalid value"),
        (one(r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}"#, 4), "unknown field"),
        (one(r#"{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}"#, 4), "duplicate field"),
        (one(r#"{"dtype":"F32","shape":[1]}"#, 4), "missing field"),
        (one(r#"{"dtype":"F33","shape":[1],"data_offsets":[0,4]}"#, 4), "unknown"),
        (one(r#"{"dtype":"F4","shape":[3],"data_offsets":[0,1]}"#, 1), "does not fill"),
        (one(&format!(r#"{{"dtype":"F32","shape":[{huge},{huge},0],"data_offsets":[0,0]}}"#), 0), "does not fill"),
        (
            one(&format!(r#"{{"dtype":"U8","shape":[{}],"data_offsets":[0,{}]}}"#, u64::MAX, u64::MAX), 0),
            "does not fill",
        ),
        (one(r#"{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]}"#, 4), "invalid length"),
        (file(&format!("{{\"{}\":{{\"dtype\":\"F32\"", "n".repeat(2000)), 0), "not allowed"),
        (file("{\"\":0}", 0), "not allowed"),
    ] {
        let error = error_of(&bytes);
        assert_eq!(error.id(), "weights-header", "{error}");
        assert!(error.to_string().contains(why), "{why}: {error}");
    }
    let bad_text = [(6_u64.to_le_bytes()).to_vec(), b"{\"\xff\":1".to_vec()].concat();
    assert_eq!(error_of(&bad_text[..14]).id(), "weights-header");
    let evil = format!(r#"{{"dtype":"F32","\u001b[31m{}":1}}"#, "x".repeat(100_000));
    let text = error_of(&one(&evil, 0)).to_string();
    assert!(!text.contains('\u{1b}') && text.len() < 1000, "neither the terminal nor the log belongs to the file");
    let terabytes = one(r#"{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}"#, 4);
    assert_eq!(error_of(&terabytes).id(), "weights-truncated", "and no memory was taken for it");
    let far = one(r#"{"dtype":"U8","shape":[0],"data_offsets":[18446744073709551615,18446744073709551615]}"#, 0);
    assert_eq!(error_of(&far).id(), "weights-header");
}

#[test]
fn odd_but_valid_headers_are_read() {
    let empty = concat!(
        r#"{"z":{"dtype":"F32","shape":[0,3],"data_offsets":[4,4]},"#,
        r#""a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}   "#
    );
    let weights = open(&file(empty, 4)).unwrap();
    assert_eq!(weights.read_f32("a", &[]).unwrap(), [0.0]);
    assert!(weights.read_f32("z", &[0, 3]).unwrap().is_empty());
    assert_eq!(open(&file("{}", 0)).unwrap().names().count(), 0);
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let header = concat!(
        r#"{"wte.weight":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"#,
        r#""i":{"dtype":"I64","shape":[1],"data_offsets":[24,32]}}"#
    );
    let mut bytes = file(header, 32);
    let weights = open(&bytes).unwrap();
    let error = weights.read_f32("wpe.weight", &[2, 3]).unwrap_err();
    assert_eq!((error.id(), error.code()), ("weights-missing-tensor", Code::Input));
    assert!(error.to_string().contains("the nearest name is \"wte.weight\""), "{error}");
    assert_eq!(weights.dtype("none").unwrap_err().id(), "weights-missing-tensor");
    for shape in [&[3, 2][..], &[6], &[2, 3, 1]] {
        let error = weights.read_f32("wte.weight", shape).unwrap_err();
        assert_eq!((error.id(), error.code()), ("weights-shape", Code::Input));
    }
    let error = weights.read_f32("i", &[1]).unwrap_err();
    assert_eq!((error.id(), error.code()), ("weights-dtype", Code::Input));
    let at = bytes.len() - 32 + 4 * 4;
    for bad in [f32::NAN, f32::INFINITY] {
        bytes[at..at + 4].copy_from_slice(&bad.to_le_bytes());
        let error = open(&bytes).unwrap().read_f32("wte.weight", &[2, 3]).unwrap_err();
        assert_eq!((error.id(), error.code()), ("weights-not-finite", Code::Input));
        assert!(error.to_string().contains("\"wte.weight\" is not finite at flat index 4"), "{error}");
    }
}

#[test]
fn prefixes_buffers_and_unused_names() {
    let weights = open(&zeros(&[
        ("h.0.attn.bias", 4),
        ("h.0.attn.c_attn.bias", 4),
        ("h.0.attn.masked_bias", 1),
        ("model.norm.weight", 1),
        ("rotary_emb.inv_freq", 1),
        ("wte.weight", 1),
    ]))
    .unwrap();
    assert_eq!(weights.names().collect::<Vec<_>>(), ["h.0.attn.c_attn.bias", "model.norm.weight", "wte.weight"]);
    assert_eq!(weights.skipped(), ["h.0.attn.bias", "h.0.attn.masked_bias", "rotary_emb.inv_freq"]);
    for name in ["wte.weight", "transformer.wte.weight", "norm.weight", "model.norm.weight"] {
        assert!(weights.contains(name), "{name}");
        weights.read_f32(name, &[1]).unwrap();
    }
    assert!(!weights.contains("h.0.attn.bias"));
    assert_eq!(
        weights.unused_names(&["transformer.wte.weight", "none"]),
        ["h.0.attn.c_attn.bias", "model.norm.weight"]
    );
    assert!(weights.unused_names(&["wte.weight", "norm.weight", "transformer.h.0.attn.c_attn.bias"]).is_empty());
}

#[test]
fn the_frequent_dtype_is_the_stored_one() {
    let header = |tags: &[&str]| {
        let entry =
            |(i, tag): (usize, &&str)| format!("\"t{i}\":{{\"dtype\":\"{tag}\",\"shape\":[0],\"data_offsets\":[0,0]}}");
        format!("{{{}}}", tags.iter().enumerate().map(entry).collect::<Vec<_>>().join(","))
    };
    let dtype = |tags: &[&str]| open(&file(&header(tags), 0)).unwrap().stored_dtype();
    assert_eq!(dtype(&["BF16", "BF16", "F32"]), StoredDtype::BF16);
    assert_eq!(dtype(&["F16", "F32"]), StoredDtype::F32);
    assert_eq!(dtype(&["F16", "I64", "I64"]), StoredDtype::F16);
}

#[test]
fn directories_without_safetensors_say_what_to_do() {
    let id = |files: &[(&str, &[u8])]| {
        let error = Weights::open(dir(files).path()).unwrap_err();
        assert_eq!(error.code(), Code::Input);
        (error.id(), error.to_string())
    };
    let (pickle, text) = id(&[("config.json", b""), ("pytorch_model.bin", b"")]);
    assert!(pickle == "weights-pickle" && text.contains("save_pretrained"), "{text}");
    assert_eq!(id(&[("consolidated.00.pth", b"")]).0, "weights-pickle");
    assert_eq!(id(&[]).0, "weights-missing");
    let (missing, text) = id(&[("adapter_model.safetensors", b"")]);
    assert!(missing == "weights-missing" && text.contains("adapter"), "{text}");
    assert!(id(&[("consolidated.safetensors", b"")]).1.contains("rename it"));
    let root = dir(&[("a", b"")]);
    assert_eq!(Weights::open(&root.path().join("a")).unwrap_err().id(), "model-not-directory");
    assert_eq!(Weights::open(&root.path().join("b")).unwrap_err().id(), "file-missing");
    assert_eq!(Weights::open_file(&root.path().join("b")).unwrap_err().id(), "file-missing");
}

#[test]
fn an_index_may_name_only_plain_files_of_the_directory() {
    let shard = zeros(&[("a", 1)]);
    for name in [
        "../model.safetensors",
        "/etc/passwd",
        "sub/a.safetensors",
        "..",
        "",
        ".hidden.safetensors",
        "a.bin",
        "C:\\a.safetensors",
        "a\\b.safetensors",
        "./a.safetensors",
        "a\0.safetensors",
        "a\u{1b}[31m.safetensors",
        "a/.safetensors",
    ] {
        let index = json!({ "weight_map": { "a": name } }).to_string();
        let root = dir(&[(INDEX, index.as_bytes()), ("a.safetensors", &shard), ("a.bin", &shard)]);
        let error = Weights::open(root.path()).unwrap_err();
        assert_eq!((error.id(), error.code()), ("weights-shard-name", Code::Input), "{name:?}");
    }
}

#[cfg(unix)]
#[test]
fn a_shard_may_not_be_a_link_out() {
    let shard = zeros(&[("a", 1)]);
    let outside = dir(&[("secret.safetensors", &shard)]);
    let root = dir(&[(INDEX, br#"{"weight_map":{"a":"a.safetensors"}}"#), ("b.safetensors", &shard)]);
    let link = root.path().join("a.safetensors");
    std::os::unix::fs::symlink(outside.path().join("secret.safetensors"), &link).unwrap();
    assert_eq!(Weights::open(root.path()).unwrap_err().id(), "model-link");
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink("b.safetensors", &link).unwrap();
    Weights::open(root.path()).unwrap();
    fs::remove_file(&link).unwrap();
    fs::create_dir(&link).unwrap();
    assert_eq!(Weights::open(root.path()).unwrap_err().id(), "model-file");
}

#[test]
fn index_and_shards_must_agree() {
    let (a, b) = (zeros(&[("a", 1)]), zeros(&[("b", 2), ("h.0.attn.bias", 1)]));
    let open = |index: &str| {
        let root = dir(&[(INDEX, index.as_bytes()), ("a.safetensors", &a), ("b.safetensors", &b)]);
        Weights::open(root.path())
    };
    let good = r#"{"metadata":{"total_size":16.0},"weight_map":{"a":"a.safetensors","b":"b.safetensors"}}"#;
    let weights = open(good).unwrap();
    assert!(weights.notes().is_empty(), "{:?}", weights.notes());
    assert_eq!(weights.read_f32("b", &[2]).unwrap(), [0.0, 0.0]);
    assert_eq!(open(&good.replace("16.0", "17")).unwrap().notes().len(), 1);
    let maps = [
        r#"{"a":"a.safetensors"}"#,
        r#"{"a":"a.safetensors","a":"b.safetensors"}"#,
        "{}",
        "[]",
        r#"{"a":1}"#,
        r#"{"a":"b.safetensors","b":"b.safetensors"}"#,
        r#"{"a":"a.safetensors","b":"b.safetensors","c":"a.safetensors"}"#,
        r#"{"a":"a.safetensors","b":"none.safetensors"}"#,
        r#"{"b":"a.safetensors"}"#,
    ];
    let mut errors: Vec<Error> = Vec::new();
    for (i, map) in maps.iter().enumerate() {
        match open(&format!("{{\"weight_map\":{map}}}")) {
            Err(error) => errors.push(error),
            Ok(_) => assert_eq!(i, 0, "{map} is a smaller model"),
        }
    }
    errors
        .extend([open("{}"), open("{"), open("[]"), open(r#"{"metadata":3,"weight_map":{}}"#)].map(|e| e.unwrap_err()));
    assert_eq!(errors.len(), maps.len() - 1 + 4);
    assert!(errors.iter().all(|error| error.id() == "weights-index" && error.code() == Code::Input), "{errors:?}");
    let both = dir(&[(INDEX, good.as_bytes()), (SINGLE, &a)]);
    let weights = Weights::open(both.path()).unwrap();
    assert_eq!((weights.names().count(), weights.notes().len()), (1, 1));
    let many: String = (0..1001).map(|i| format!("\"{i}\":\"{i}.safetensors\",")).collect();
    let error = open(&format!("{{\"weight_map\":{{{}}}}}", many.trim_end_matches(','))).unwrap_err();
    assert!(error.to_string().contains("1001 shards"), "{error}");
}

#[test]
fn random_damage_never_panics() {
    let whole = zeros(&[("a", 5), ("b", 7)]);
    let mut state = 1_u64;
    let mut next = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut agreed = 0;
    for _ in 0..20_000 {
        let mut bytes = whole.clone();
        for _ in 0..=next(3) {
            let at = next(bytes.len());
            bytes[at] = next(256) as u8;
        }
        let mut reader = bytes.as_slice();
        let ours = safetensors::read_header(&mut reader, bytes.len() as u64, "x");
        let theirs = ::safetensors::SafeTensors::deserialize(&bytes);
        assert!(ours.is_err() || theirs.is_ok(), "we accept no file that the library refuses");
        agreed += usize::from(ours.is_ok() == theirs.is_ok());
    }
    assert!(agreed > 19_000, "{agreed}");
}

#[test]
fn fixtures_of_transformers_load_and_are_saved_again() {
    let Ok(models) = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/models")) else {
        println!("skipped: no fixtures");
        return;
    };
    for model in models {
        let path = model.unwrap().path();
        let (config, weights) = (ModelConfig::load(&path).unwrap(), Weights::open(&path).unwrap());
        assert!(weights.notes().is_empty() && weights.skipped().is_empty(), "{}", path.display());
        let specs: Vec<_> = weights.names().map(|name| spec(name, weights.shape(name).unwrap())).collect();
        let read: usize = specs.iter().map(|s| weights.read_f32(&s.name, &s.shape).unwrap().len()).sum();
        assert_eq!(read, config.parameters(), "{}", path.display());
        let (out, dtype) = (dir(&[]), weights.stored_dtype());
        assert_eq!(
            Some(dtype.name()),
            config.raw.get("dtype").or(config.raw.get("torch_dtype")).and_then(Value::as_str)
        );
        let files = ModelFiles {
            config: &config,
            head: config.head,
            dtype,
            source: Some(&path),
            card: "",
            shard_bytes_max: if path.join(INDEX).exists() { 10_000 } else { SHARD_BYTES_MAX },
        };
        save_model(out.path(), &files, &specs, &mut |s| weights.read_f32(&s.name, &s.shape).map(Cow::Owned)).unwrap();
        let again = Weights::open(out.path()).unwrap();
        for spec in &specs {
            let bits = |w: &Weights| {
                w.read_f32(&spec.name, &spec.shape).unwrap().iter().map(|v| v.to_bits()).collect::<Vec<_>>()
            };
            assert_eq!(bits(&again), bits(&weights), "{}", path.display());
        }
        // Python writes 1e-05 for 1e-5, so this one is equal as JSON.
        let json = |dir: &Path| serde_json::from_slice::<Value>(&fs::read(dir.join("config.json")).unwrap()).unwrap();
        assert_eq!(json(out.path()).to_string(), json(&path).to_string(), "{}", path.display());
        for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json", SINGLE]
        {
            let same = fs::read(out.path().join(name)).ok() == fs::read(path.join(name)).ok();
            assert!(same, "{} of {} is saved as it was", name, path.display());
        }
        Weights::open_file(&path.join("expected.safetensors")).unwrap();
    }
}
