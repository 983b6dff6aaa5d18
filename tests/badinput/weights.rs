//! Weights that are missing, cut, misshapen or not finite.

use std::collections::BTreeMap;

use serde_json::json;

use super::{Case, case, generate, ppo, reward, score, sft};
use crate::support::{Room, Stored};

const WEIGHTS: &str = "model/model.safetensors";
const INDEX: &str = "model/model.safetensors.index.json";

fn edit(room: &Room, change: fn(&mut BTreeMap<String, Stored>)) {
    room.edit_weights(WEIGHTS, change);
}

fn cut(room: &Room, name: &str, keep: impl Fn(usize) -> usize) {
    let bytes = room.read(name);
    room.write(name, &bytes[..keep(bytes.len())]);
}

fn remove(room: &Room, name: &str) {
    std::fs::remove_file(room.path(name)).unwrap();
}

/// Takes one tensor away.
fn without_norm(room: &Room) {
    edit(room, |tensors| drop(tensors.remove("transformer.h.1.ln_2.weight").unwrap()));
}

/// Puts a NaN into one tensor.
fn with_nan(room: &Room) {
    edit(room, |tensors| {
        let tensor = tensors.get_mut("transformer.h.0.mlp.c_fc.weight").unwrap();
        tensor.bytes[20..24].copy_from_slice(&f32::NAN.to_le_bytes());
    });
}

/// The sharded fixture in place of the usual one.
fn sharded(room: &Room) {
    std::fs::remove_dir_all(room.path("model")).unwrap();
    room.model("model", "qwen2_untied");
}

pub(super) fn directories_without_weights() -> Vec<Case> {
    Vec::from([
        case(
            "no weights",
            |room| {
                remove(room, WEIGHTS);
                sft("")
            },
            3,
            "weights-missing",
        ),
        case(
            "only a pickle",
            |room| {
                remove(room, WEIGHTS);
                room.write("model/pytorch_model.bin", b"PK");
                sft("")
            },
            3,
            "weights-pickle",
        ),
        case(
            "only an adapter",
            |room| {
                std::fs::rename(room.path(WEIGHTS), room.path("model/adapter_model.safetensors")).unwrap();
                sft("")
            },
            3,
            "weights-missing",
        ),
    ])
}

pub(super) fn files_that_are_cut() -> Vec<Case> {
    Vec::from([
        case(
            "half of the file",
            |room| {
                cut(room, WEIGHTS, |n| n / 2);
                sft("")
            },
            3,
            "weights-truncated",
        ),
        case(
            "one byte short",
            |room| {
                cut(room, WEIGHTS, |n| n - 1);
                generate("")
            },
            3,
            "weights-truncated",
        ),
        case(
            "cut inside the header",
            |room| {
                cut(room, WEIGHTS, |_| 40);
                sft("")
            },
            3,
            "weights-truncated",
        ),
        case(
            "an empty file",
            |room| {
                cut(room, WEIGHTS, |_| 0);
                sft("")
            },
            3,
            "weights-truncated",
        ),
        case(
            "more bytes than tensors",
            |room| {
                let bytes = [room.read(WEIGHTS), vec![0; 4]].concat();
                room.write(WEIGHTS, bytes);
                sft("")
            },
            3,
            "weights-header",
        ),
    ])
}

pub(super) fn headers_that_lie() -> Vec<Case> {
    Vec::from([
        case(
            "a header that is not JSON",
            |room| {
                room.write(WEIGHTS, [&4_u64.to_le_bytes()[..], b"{{{{"].concat());
                sft("")
            },
            3,
            "weights-header",
        ),
        case(
            "a header longer than memory",
            |room| {
                room.write(WEIGHTS, [&u64::MAX.to_le_bytes()[..], b"{}"].concat());
                sft("")
            },
            3,
            "weights-header",
        ),
        case(
            "a tensor that claims to be huge",
            |room| {
                let header =
                    json!({ "a": { "dtype": "F32", "shape": [1_u64 << 62, 1 << 10], "data_offsets": [0, 8] } });
                let header = header.to_string();
                room.write(WEIGHTS, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 8]].concat());
                sft("")
            },
            3,
            "weights-header",
        ),
        case(
            "tensors that overlap",
            |room| {
                let entry = json!({ "dtype": "F32", "shape": [2], "data_offsets": [0, 8] });
                let header = json!({ "a": entry, "b": entry }).to_string();
                room.write(WEIGHTS, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 8]].concat());
                sft("")
            },
            3,
            "weights-header",
        ),
    ])
}

pub(super) fn tensors_that_are_missing() -> Vec<Case> {
    Vec::from([
        case(
            "a missing tensor, sft",
            |room| {
                without_norm(room);
                sft("")
            },
            3,
            "weights-missing-tensor",
        ),
        case(
            "a missing tensor, reward",
            |room| {
                without_norm(room);
                reward("")
            },
            3,
            "weights-missing-tensor",
        ),
        case(
            "a missing tensor, ppo",
            |room| {
                without_norm(room);
                ppo(room, "")
            },
            3,
            "weights-missing-tensor",
        ),
        case(
            "a missing score head",
            |room| {
                let line = ppo(room, "");
                room.edit_weights("reward/model.safetensors", |tensors| drop(tensors.remove("score.weight").unwrap()));
                line
            },
            3,
            "weights-missing-tensor",
        ),
    ])
}

pub(super) fn tensors_that_cannot_be_used() -> Vec<Case> {
    Vec::from([
        case(
            "a wrong shape",
            |room| {
                edit(room, |tensors| tensors.get_mut("transformer.wpe.weight").unwrap().shape.swap(0, 1));
                sft("")
            },
            3,
            "weights-shape",
        ),
        case(
            "weights that are integers",
            |room| {
                edit(room, |tensors| tensors.get_mut("transformer.ln_f.bias").unwrap().dtype = "I32".into());
                score("")
            },
            3,
            "weights-dtype",
        ),
        case(
            "NaN in the weights, sft",
            |room| {
                with_nan(room);
                sft("")
            },
            3,
            "weights-not-finite",
        ),
        case(
            "NaN in the weights, ppo",
            |room| {
                with_nan(room);
                ppo(room, "")
            },
            3,
            "weights-not-finite",
        ),
        case(
            "infinity in bf16 weights",
            |room| {
                room.model("model", "gpt2_bf16");
                edit(room, |tensors| {
                    tensors.get_mut("transformer.ln_f.weight").unwrap().bytes[..2].copy_from_slice(&[0x80, 0x7f]);
                });
                generate("")
            },
            3,
            "weights-not-finite",
        ),
    ])
}

pub(super) fn shards_that_do_not_belong_together() -> Vec<Case> {
    Vec::from([
        case(
            "a missing shard",
            |room| {
                sharded(room);
                remove(room, "model/model-00002-of-00003.safetensors");
                sft("")
            },
            3,
            "weights-index",
        ),
        case(
            "a truncated shard",
            |room| {
                sharded(room);
                cut(room, "model/model-00003-of-00003.safetensors", |n| n - 100);
                sft("")
            },
            3,
            "weights-truncated",
        ),
        case(
            "a path as the name of a shard",
            |room| {
                sharded(room);
                std::fs::copy(room.path("model/model-00001-of-00003.safetensors"), room.path("x.safetensors")).unwrap();
                room.edit(INDEX, |index| {
                    for shard in index["weight_map"].as_object_mut().unwrap().values_mut() {
                        *shard = "../x.safetensors".into();
                    }
                });
                sft("")
            },
            3,
            "weights-shard-name",
        ),
        case(
            "a tensor that is in no shard",
            |room| {
                sharded(room);
                room.edit(INDEX, |index| index["weight_map"]["ghost"] = "model-00001-of-00003.safetensors".into());
                sft("")
            },
            3,
            "weights-index",
        ),
        case(
            "an index that is not JSON",
            |room| {
                sharded(room);
                room.write(INDEX, "{\"weight_map\": ");
                sft("")
            },
            3,
            "weights-index",
        ),
    ])
}

/// A weights file with this header, and this many bytes behind it.
fn header(text: impl Into<String>, data: usize) -> impl Fn(&Room) -> String + Send + Sync {
    let text = text.into();
    move |room| {
        room.write(WEIGHTS, [&(text.len() as u64).to_le_bytes(), text.as_bytes(), &vec![0; data]].concat());
        sft("")
    }
}

/// A weights file with the entry of one tensor, `a`.
fn entry(entry: &serde_json::Value, data: usize) -> impl Fn(&Room) -> String + Send + Sync + use<> {
    header(json!({ "a": entry }).to_string(), data)
}

/// A weights file that begins with these bytes.
fn start(bytes: impl Into<Vec<u8>>) -> impl Fn(&Room) -> String + Send + Sync {
    let bytes = bytes.into();
    move |room| {
        room.write(WEIGHTS, &bytes);
        sft("")
    }
}

pub(super) fn headers_of_no_file() -> Vec<Case> {
    let id = "weights-header";
    let tensor = |dtype: &str, shape: serde_json::Value, from: u64, to: u64| json!({ "dtype": dtype, "shape": shape, "data_offsets": [from, to] });
    let many = (0..100_000).map(|i| format!("\"{i}\":{{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}"));
    Vec::from([
        case("seven bytes", start([0; 7]), 3, "weights-truncated"),
        case("a header of no bytes", start([0; 8]), 3, id),
        case("a header of one byte", start([&1_u64.to_le_bytes()[..], b"{"].concat()), 3, id),
        case("a header of 100 MB in a small file", start([&100_000_000_u64.to_le_bytes()[..], b"{}"].concat()), 3, id),
        case(
            "a header of 16 MB in a small file",
            start([&16_000_000_u64.to_le_bytes()[..], b"{}"].concat()),
            3,
            "weights-truncated",
        ),
        case("a pickle by the name of weights", start(b"PK\x03\x04rest of the archive".to_vec()), 3, id),
        case(
            "a text by the name of weights",
            start(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n".to_vec()),
            3,
            id,
        ),
        case("a space before the header", header(" {}", 0), 3, id),
        case("a list", header("[]", 0), 3, id),
        case("bytes that are no text", start([&8_u64.to_le_bytes()[..], b"{\"\xff\": 1}"].concat()), 3, id),
        case("a byte order mark", header("\u{feff}{}", 0), 3, id),
        case("nesting", header(format!("{{\"a\":{}", "[".repeat(100_000)), 0), 3, id),
        case("no tensors", header("{}", 0), 3, "weights-missing-tensor"),
        case("a tensor that is a number", header("{\"a\": 1}", 0), 3, id),
        case(
            "a tensor twice",
            header(
                "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
                4,
            ),
            3,
            id,
        ),
        case("metadata twice", header("{\"__metadata__\":{},\"__metadata__\":{}}", 0), 3, id),
        case("metadata that is a number", header("{\"__metadata__\": 3}", 0), 3, id),
        case("metadata of numbers", header("{\"__metadata__\": {\"a\": 3}}", 0), 3, id),
        case("no name", header(json!({ "": tensor("F32", json!([1]), 0, 4) }).to_string(), 4), 3, id),
        case(
            "a name without end",
            header(json!({ "a".repeat(5000): tensor("F32", json!([1]), 0, 4) }).to_string(), 4),
            3,
            id,
        ),
        case(
            "a name that moves the cursor",
            header(json!({ "\u{1b}[2J\u{202e}": tensor("F99", json!([1]), 0, 4) }).to_string(), 4),
            3,
            id,
        ),
        case("an unknown dtype", entry(&tensor("F128", json!([1]), 0, 16), 16), 3, id),
        case(
            "a dtype that is a number",
            entry(&json!({ "dtype": 32, "shape": [1], "data_offsets": [0, 4] }), 4),
            3,
            id,
        ),
        case(
            "an unknown key",
            entry(&json!({ "dtype": "F32", "shape": [1], "data_offsets": [0, 4], "x": 1 }), 4),
            3,
            id,
        ),
        case("no shape", entry(&json!({ "dtype": "F32", "data_offsets": [0, 4] }), 4), 3, id),
        case("no range", entry(&json!({ "dtype": "F32", "shape": [1] }), 4), 3, id),
        case("a size below 0", entry(&tensor("F32", json!([-1]), 0, 4), 4), 3, id),
        case("a size that is a fraction", entry(&tensor("F32", json!([1.5]), 0, 6), 6), 3, id),
        case("nine dimensions", entry(&tensor("F32", json!([1, 1, 1, 1, 1, 1, 1, 1, 1]), 0, 4), 4), 3, id),
        case("a million dimensions", entry(&tensor("F32", json!(vec![1; 1_000_000]), 0, 4), 4), 3, id),
        case(
            "sizes whose product begins anew",
            entry(&tensor("F32", json!([1_u64 << 32, 1_u64 << 32, 4]), 0, 16), 16),
            3,
            id,
        ),
        case(
            "a size of 0 and one of 2^63",
            entry(&tensor("F32", json!([0, 1_u64 << 63]), 0, 0), 0),
            3,
            "weights-missing-tensor",
        ),
        case("a range of three", entry(&json!({ "dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8] }), 8), 3, id),
        case("a range that runs backward", entry(&tensor("F32", json!([1]), 4, 0), 4), 3, id),
        case("a range below 0", entry(&json!({ "dtype": "F32", "shape": [1], "data_offsets": [-4, 0] }), 4), 3, id),
        case(
            "a range of a terabyte",
            entry(&tensor("F32", json!([1_u64 << 38]), 0, 1 << 40), 16),
            3,
            "weights-truncated",
        ),
        case("a range at the end of all numbers", entry(&tensor("U8", json!([4]), u64::MAX - 4, u64::MAX), 4), 3, id),
        case("a shape larger than its range", entry(&tensor("F32", json!([2]), 0, 4), 4), 3, id),
        case("a shape smaller than its range", entry(&tensor("F32", json!([1]), 0, 8), 8), 3, id),
        case("half a byte", entry(&tensor("F4", json!([1]), 0, 1), 1), 3, id),
        case("a hole at the start", entry(&tensor("F32", json!([1]), 4, 8), 8), 3, id),
        case(
            "a hole in the middle",
            header(
                json!({ "a": tensor("F32", json!([1]), 0, 4), "b": tensor("F32", json!([1]), 8, 12) }).to_string(),
                12,
            ),
            3,
            id,
        ),
        case(
            "half an overlap",
            header(
                json!({ "a": tensor("F32", json!([2]), 0, 8), "b": tensor("F32", json!([2]), 4, 12) }).to_string(),
                12,
            ),
            3,
            id,
        ),
        case("bytes of no tensor", entry(&tensor("F32", json!([1]), 0, 4), 9), 3, id),
        case(
            "a hundred thousand tensors of nothing",
            header(format!("{{{}}}", many.collect::<Vec<_>>().join(",")), 0),
            3,
            "weights-missing-tensor",
        ),
    ])
}

/// The sharded fixture with a change to its index.
fn index(
    change: fn(&mut serde_json::Map<String, serde_json::Value>),
) -> impl Fn(&Room) -> String + Send + Sync + use<> {
    move |room| {
        sharded(room);
        room.edit(INDEX, change);
        sft("")
    }
}

/// An index that names one shard.
fn shard(name: &'static str) -> impl Fn(&Room) -> String + Send + Sync + use<> {
    move |room| {
        sharded(room);
        room.edit(INDEX, |index| {
            let map = index["weight_map"].as_object_mut().unwrap();
            *map.values_mut().next().unwrap() = name.into();
        });
        sft("")
    }
}

fn index_text<T: AsRef<[u8]> + Send + Sync>(text: T) -> impl Fn(&Room) -> String + Send + Sync + use<T> {
    move |room| {
        sharded(room);
        room.write(INDEX, &text);
        sft("")
    }
}

pub(super) fn indices_of_no_model() -> Vec<Case> {
    let (id, name) = ("weights-index", "weights-shard-name");
    Vec::from([
        case("nothing", index_text(""), 3, id),
        case("a list", index_text("[]"), 3, id),
        case("no map", index_text("{\"metadata\": {}}"), 3, id),
        case("an empty map", index_text("{\"weight_map\": {}}"), 3, id),
        case("a map that is a list", index_text("{\"weight_map\": []}"), 3, id),
        case("a shard that is a number", index_text("{\"weight_map\": {\"a\": 1}}"), 3, id),
        case("a shard that is null", index_text("{\"weight_map\": {\"a\": null}}"), 3, id),
        case(
            "a tensor twice",
            index_text("{\"weight_map\": {\"a\": \"b.safetensors\", \"a\": \"c.safetensors\"}}"),
            3,
            id,
        ),
        case(
            "a size that is a text",
            index_text("{\"metadata\": {\"total_size\": \"big\"}, \"weight_map\": {}}"),
            3,
            id,
        ),
        case("bytes that are no text", index_text(b"{\"\xff\": 1}"), 3, "config-json"),
        case("nesting", index_text("[".repeat(100_000)), 3, id),
        case(
            "thousands of shards",
            index_text(format!(
                "{{\"weight_map\": {{{}}}}}",
                (0..2000).map(|i| format!("\"{i}\": \"{i}.safetensors\"")).collect::<Vec<_>>().join(",")
            )),
            3,
            id,
        ),
        case("a shard upward", shard("../model-00001-of-00003.safetensors"), 3, name),
        case("a shard far upward", shard("../../../../../../etc/passwd"), 3, name),
        case("a shard from the root", shard("/etc/passwd.safetensors"), 3, name),
        case("a shard below", shard("sub/x.safetensors"), 3, name),
        case("a shard on another drive", shard("C:\\x.safetensors"), 3, name),
        case("a shard that is hidden", shard(".x.safetensors"), 3, name),
        case("a shard that is no safetensors", shard("pytorch_model-00001.bin"), 3, name),
        case("a shard that is the directory", shard("."), 3, name),
        case("a shard without a name", shard(""), 3, name),
        case("a shard of zero bytes in its name", shard("a\u{0}.safetensors"), 3, name),
        case("a shard that moves the cursor", shard("\u{1b}[2J.safetensors"), 3, name),
        case("a shard that is not there", shard("none.safetensors"), 3, id),
        case(
            "a tensor in another shard",
            index(|index| {
                let map = index["weight_map"].as_object_mut().unwrap();
                let (first, last) = (map["model.embed_tokens.weight"].clone(), map["model.norm.weight"].clone());
                (map["model.embed_tokens.weight"], map["model.norm.weight"]) = (last, first);
            }),
            3,
            id,
        ),
        case(
            "a tensor that the index lacks",
            index(|index| drop(index["weight_map"].as_object_mut().unwrap().remove("model.norm.weight"))),
            3,
            id,
        ),
        case(
            "a shard that is a directory",
            |room| {
                sharded(room);
                remove(room, "model/model-00001-of-00003.safetensors");
                std::fs::create_dir(room.path("model/model-00001-of-00003.safetensors")).unwrap();
                sft("")
            },
            3,
            "model-file",
        ),
    ])
}
