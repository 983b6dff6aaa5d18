//! Weights that are missing, cut, misshapen or not finite.

use std::collections::BTreeMap;

use serde_json::json;

use super::{case, check, generate, ppo, reward, score, sft};
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

#[test]
fn files_that_are_not_whole() {
    check(&[
        case(
            "no weights",
            |room| {
                remove(room, WEIGHTS);
                sft("")
            },
            3,
            "weights-missing",
            &["model.safetensors", "where: model\n", "fix: "],
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
            &["pytorch_model.bin", "where: model\n", "save_pretrained"],
        ),
        case(
            "only an adapter",
            |room| {
                std::fs::rename(room.path(WEIGHTS), room.path("model/adapter_model.safetensors")).unwrap();
                sft("")
            },
            3,
            "weights-missing",
            &["adapter_model.safetensors", "merge"],
        ),
        case(
            "half of the file",
            |room| {
                cut(room, WEIGHTS, |n| n / 2);
                sft("")
            },
            3,
            "weights-truncated",
            &[WEIGHTS],
        ),
        case(
            "one byte short",
            |room| {
                cut(room, WEIGHTS, |n| n - 1);
                generate("")
            },
            3,
            "weights-truncated",
            &[WEIGHTS],
        ),
        case(
            "cut inside the header",
            |room| {
                cut(room, WEIGHTS, |_| 40);
                sft("")
            },
            3,
            "weights-truncated",
            &[WEIGHTS],
        ),
        case(
            "an empty file",
            |room| {
                cut(room, WEIGHTS, |_| 0);
                sft("")
            },
            3,
            "weights-truncated",
            &[WEIGHTS],
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
            &[WEIGHTS, "4 of"],
        ),
    ]);
}

#[test]
fn headers_that_lie() {
    check(&[
        case(
            "a header that is not JSON",
            |room| {
                room.write(WEIGHTS, [&4_u64.to_le_bytes()[..], b"{{{{"].concat());
                sft("")
            },
            3,
            "weights-header",
            &[WEIGHTS],
        ),
        case(
            "a header longer than memory",
            |room| {
                room.write(WEIGHTS, [&u64::MAX.to_le_bytes()[..], b"{}"].concat());
                sft("")
            },
            3,
            "weights-header",
            &[WEIGHTS],
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
            &[WEIGHTS, "\"a\""],
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
            &[WEIGHTS, "overlaps"],
        ),
    ]);
}

#[test]
fn tensors_that_cannot_be_used() {
    check(&[
        case(
            "a missing tensor, sft",
            |room| {
                without_norm(room);
                sft("")
            },
            3,
            "weights-missing-tensor",
            &["\"transformer.h.1.ln_2.weight\"", "where: model\n"],
        ),
        case(
            "a missing tensor, reward",
            |room| {
                without_norm(room);
                reward("")
            },
            3,
            "weights-missing-tensor",
            &["\"transformer.h.1.ln_2.weight\""],
        ),
        case(
            "a missing tensor, ppo",
            |room| {
                without_norm(room);
                ppo(room, "")
            },
            3,
            "weights-missing-tensor",
            &["\"transformer.h.1.ln_2.weight\""],
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
            &["\"score.weight\"", "where: reward\n"],
        ),
        case(
            "a wrong shape",
            |room| {
                edit(room, |tensors| tensors.get_mut("transformer.wpe.weight").unwrap().shape.swap(0, 1));
                sft("")
            },
            3,
            "weights-shape",
            &["\"transformer.wpe.weight\"", "[16, 64]", "[64, 16]", WEIGHTS],
        ),
        case(
            "weights that are integers",
            |room| {
                edit(room, |tensors| tensors.get_mut("transformer.ln_f.bias").unwrap().dtype = "I32".into());
                score("")
            },
            3,
            "weights-dtype",
            &["\"transformer.ln_f.bias\"", "I32", WEIGHTS],
        ),
        case(
            "NaN in the weights, sft",
            |room| {
                with_nan(room);
                sft("")
            },
            3,
            "weights-not-finite",
            &["\"transformer.h.0.mlp.c_fc.weight\"", "index 5", WEIGHTS],
        ),
        case(
            "NaN in the weights, ppo",
            |room| {
                with_nan(room);
                ppo(room, "")
            },
            3,
            "weights-not-finite",
            &["\"transformer.h.0.mlp.c_fc.weight\"", "index 5"],
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
            &["\"transformer.ln_f.weight\"", "index 0"],
        ),
    ]);
}

#[test]
fn shards_that_do_not_belong_together() {
    check(&[
        case(
            "a missing shard",
            |room| {
                sharded(room);
                remove(room, "model/model-00002-of-00003.safetensors");
                sft("")
            },
            3,
            "weights-index",
            &["model-00002-of-00003.safetensors", INDEX],
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
            &["model/model-00003-of-00003.safetensors"],
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
            &["\"../x.safetensors\"", INDEX],
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
            &["\"ghost\"", INDEX],
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
            &[INDEX],
        ),
    ]);
}
