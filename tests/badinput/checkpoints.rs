//! Checkpoints that are cut, forged, swapped or of another run: what `rlhf verify` and `--resume` say of them.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{Case, case, reward, room, sft};
use crate::support::{Room, completions};

const STEP: &str = "out/checkpoints/step-4";
const VERIFY: &str = "verify out/checkpoints/step-4";
const OPTIONS: &str =
    "--max-steps 6 --logging-steps 1 --save-steps 2 --save-total-limit 0 --per-device-train-batch-size 2";

/// What a run of six steps leaves that stopped after its fourth.
fn stopped(room: &Room) {
    static FILES: OnceLock<BTreeMap<String, Vec<u8>>> = OnceLock::new();
    let files = FILES.get_or_init(|| {
        let room = self::room();
        room.run(&sft(OPTIONS)).ok();
        room.files("out")
    });
    for (name, bytes) in files.iter().filter(|(name, _)| !name.contains("step-6")) {
        if name.contains("checkpoints/")
            || ["run.json", "metrics.jsonl", "timings.jsonl", "samples.jsonl", "events.out.tfevents.rlhf"]
                .contains(&name.as_str())
        {
            let path = room.path("out").join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
    }
}

/// The run, to go on from its newest checkpoint.
fn resume(more: &str) -> String {
    sft(&format!("{OPTIONS} --resume {more}"))
}

/// A checkpoint of which a file is changed, and what is asked about it.
fn file(
    name: &'static str,
    line: fn() -> String,
    change: fn(&mut Vec<u8>),
) -> impl Fn(&Room) -> String + Send + Sync + use<> {
    move |room| {
        stopped(room);
        let name = format!("{STEP}/{name}");
        let mut bytes = room.read(&name);
        change(&mut bytes);
        room.write(&name, bytes);
        line()
    }
}

fn verify() -> String {
    VERIFY.to_owned()
}

/// The checkpoint alone, so that nothing else can be resumed from.
fn from_it() -> String {
    resume("").replace("--resume", "--resume out/checkpoints/step-4")
}

/// Writes a manifest whose checksum holds.
fn sign(room: &Room, dir: &str, text: &str) {
    let hash: String = Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect();
    room.write(&format!("{dir}/manifest.json"), format!("{text},\n  \"checksum\": \"{hash}\"\n}}\n"));
}

/// Changes a manifest and its checksum, as one who means harm would.
fn forge(room: &Room, change: impl FnOnce(&mut Map<String, Value>)) {
    let Value::Object(mut map) = room.json(&format!("{STEP}/manifest.json")) else { panic!("no object") };
    map.remove("checksum");
    change(&mut map);
    let text = serde_json::to_string_pretty(&Value::Object(map)).unwrap();
    sign(room, STEP, text.strip_suffix("\n}").unwrap());
}

fn forged(line: fn() -> String, change: fn(&mut Map<String, Value>)) -> impl Fn(&Room) -> String + Send + Sync + use<> {
    move |room| {
        stopped(room);
        forge(room, change);
        line()
    }
}

/// Changes the tensors of a file and lists it as it then is.
fn tensors(
    change: fn(&mut BTreeMap<String, crate::support::Stored>),
) -> impl Fn(&Room) -> String + Send + Sync + use<> {
    move |room| {
        stopped(room);
        let name = format!("{STEP}/training.safetensors");
        room.edit_weights(&name, change);
        let bytes = room.read(&name);
        let hash: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        forge(room, |map| {
            let files = map["files"].as_array_mut().unwrap();
            let file = files.iter_mut().find(|file| file["name"] == "training.safetensors").unwrap();
            file["pieces"] = json!([{ "name": "file", "bytes": bytes.len(), "sha256": hash }]);
        });
        from_it()
    }
}

pub(super) fn manifests_that_do_not_hold() -> Vec<Case> {
    let id = "manifest-damaged";
    let manifest = |change: fn(&mut Vec<u8>)| file("manifest.json", verify, change);
    Vec::from([
        case(
            "no manifest",
            |room| {
                stopped(room);
                std::fs::remove_file(room.path(STEP).join("manifest.json")).unwrap();
                verify()
            },
            3,
            "manifest-missing",
        ),
        case(
            "no manifest, resume",
            |room| {
                stopped(room);
                std::fs::remove_file(room.path(STEP).join("manifest.json")).unwrap();
                from_it()
            },
            3,
            "manifest-missing",
        ),
        case("half of it", manifest(|bytes| bytes.truncate(bytes.len() / 2)), 3, id),
        case("one byte short", manifest(|bytes| bytes.truncate(bytes.len() - 1)), 3, id),
        case("nothing", manifest(Vec::clear), 3, id),
        case("one bit", manifest(|bytes| bytes[40] ^= 1), 3, id),
        case(
            "one bit of the checksum",
            manifest(|bytes| {
                let at = bytes.len() - 10;
                bytes[at] ^= 1;
            }),
            3,
            id,
        ),
        case("bytes that are no text", manifest(|bytes| bytes[40] = 0xff), 3, id),
        case("text behind the end", manifest(|bytes| bytes.push(b' ')), 3, id),
        case("another JSON", manifest(|bytes| *bytes = b"{}".to_vec()), 3, id),
        case(
            "a newest checkpoint that is broken, and no other",
            |room| {
                stopped(room);
                for step in [2, 4] {
                    room.write(&format!("out/checkpoints/step-{step}/manifest.json"), "");
                }
                resume("")
            },
            3,
            id,
        ),
        case(
            "a directory in its place",
            |room| {
                stopped(room);
                std::fs::remove_file(room.path(STEP).join("manifest.json")).unwrap();
                std::fs::create_dir(room.path(STEP).join("manifest.json")).unwrap();
                verify()
            },
            3,
            "manifest-kind",
        ),
        case(
            "a terabyte of it",
            |room| {
                stopped(room);
                std::fs::File::create(room.path(STEP).join("manifest.json")).unwrap().set_len(1 << 40).unwrap();
                verify()
            },
            3,
            "manifest-kind",
        ),
    ])
}

pub(super) fn manifests_that_lie() -> Vec<Case> {
    let id = "manifest-damaged";
    let signed = |text: String| {
        move |room: &Room| {
            stopped(room);
            sign(room, STEP, &text);
            verify()
        }
    };
    let named = |change: fn(&mut Map<String, Value>)| forged(verify, change);
    Vec::from([
        case("another version", named(|map| map["format"] = json!(2)), 3, "manifest-version"),
        case("no version", named(|map| drop(map.remove("format"))), 3, "manifest-version"),
        case("a version that is a text", named(|map| map["format"] = json!("1")), 3, "manifest-version"),
        case("no JSON, signed", signed("{]".into()), 3, id),
        case("nesting, signed", signed(format!("{{\"a\": {}", "[".repeat(100_000))), 3, id),
        case(
            "a million zeros, signed",
            signed(format!("{{\"format\": 1, \"x\": [{}0]", "0,".repeat(1_000_000))),
            3,
            id,
        ),
        case("an unknown key", named(|map| drop(map.insert("extra".into(), json!(1)))), 3, id),
        case("a missing key", named(|map| drop(map.remove("identity"))), 3, id),
        case("an unknown kind", named(|map| map["kind"] = json!("virus")), 3, id),
        case("files that are a number", named(|map| map["files"] = json!(3)), 3, id),
        case("a path upward", named(|map| map["files"][0]["name"] = json!("../../../data.jsonl")), 3, id),
        case("a path from the root", named(|map| map["files"][0]["name"] = json!("/etc/passwd")), 3, id),
        case("a path through itself", named(|map| map["files"][0]["name"] = json!("./config.json")), 3, id),
        case("no name", named(|map| map["files"][0]["name"] = json!("")), 3, id),
        case("a name that moves the cursor", named(|map| map["files"][0]["name"] = json!("\u{1b}[2J")), 3, id),
        case("a file twice", named(|map| map["files"][1] = map["files"][0].clone()), 3, id),
        case("a size below 0", named(|map| map["files"][0]["pieces"][0]["bytes"] = json!(-1)), 3, id),
        case(
            "a size beyond all disks",
            named(|map| map["files"][0]["pieces"][0]["bytes"] = json!(u64::MAX)),
            3,
            "manifest-file-size",
        ),
        case(
            "sizes whose sum begins anew",
            named(|map| {
                let piece = json!({ "name": "file", "bytes": u64::MAX, "sha256": "" });
                map["files"][0]["pieces"].as_array_mut().unwrap().extend([piece.clone(), piece]);
            }),
            3,
            "manifest-file-size",
        ),
        case("no files", named(|map| map["files"] = json!([])), 3, "manifest-extra-file"),
        case(
            "another hash",
            named(|map| map["files"][0]["pieces"][0]["sha256"] = json!("00")),
            3,
            "manifest-file-damaged",
        ),
        case(
            "a file that is not there",
            named(|map| {
                let file = json!({ "name": "ghost", "pieces": [{ "name": "file", "bytes": 0, "sha256": "" }] });
                map["files"].as_array_mut().unwrap().push(file);
            }),
            3,
            "manifest-file-missing",
        ),
    ])
}

pub(super) fn files_that_do_not_match_their_manifest() -> Vec<Case> {
    let damaged = "manifest-file-damaged";
    let flip = |bytes: &mut Vec<u8>| *bytes.last_mut().unwrap() ^= 1;
    let changed = |change: fn(&Room)| {
        move |room: &Room| {
            stopped(room);
            change(room);
            verify()
        }
    };
    Vec::from([
        case("a bit of a moment", file("training.safetensors", verify, flip), 3, damaged),
        case("a bit of a moment, resume", file("training.safetensors", from_it, flip), 3, damaged),
        case("a bit of a header", file("training.safetensors", verify, |bytes| bytes[20] ^= 1), 3, damaged),
        case("a bit of a header's length", file("training.safetensors", verify, |bytes| bytes[7] ^= 0x80), 3, damaged),
        case("a bit of a weight", file("model.safetensors", from_it, flip), 3, damaged),
        case("a bit of the configuration", file("config.json", verify, |bytes| bytes[5] ^= 1), 3, damaged),
        case("a bit of the tokenizer", file("tokenizer.json", verify, |bytes| bytes[50] ^= 1), 3, damaged),
        case("a byte too many", file("config.json", verify, |bytes| bytes.push(b'\n')), 3, "manifest-file-size"),
        case(
            "a byte too few",
            file("training.safetensors", from_it, |bytes| bytes.truncate(bytes.len() - 1)),
            3,
            "manifest-file-size",
        ),
        case("no bytes", file("model.safetensors", verify, Vec::clear), 3, "manifest-file-size"),
        case(
            "a file too many",
            changed(|room| room.write(&format!("{STEP}/notes.txt"), "mine")),
            3,
            "manifest-extra-file",
        ),
        case(
            "a directory too many",
            changed(|room| std::fs::create_dir(room.path(STEP).join("sub")).unwrap()),
            3,
            "manifest-extra-file",
        ),
        case(
            "a file too few",
            changed(|room| std::fs::remove_file(room.path(STEP).join("tokenizer.json")).unwrap()),
            3,
            "manifest-file-missing",
        ),
        case(
            "a directory for a file",
            changed(|room| {
                std::fs::remove_file(room.path(STEP).join("tokenizer.json")).unwrap();
                std::fs::create_dir(room.path(STEP).join("tokenizer.json")).unwrap();
            }),
            3,
            "manifest-file-kind",
        ),
        #[cfg(unix)]
        case(
            "a link to a file of the same content",
            changed(|room| {
                std::fs::rename(room.path(STEP).join("tokenizer.json"), room.path("tokenizer.json")).unwrap();
                std::os::unix::fs::symlink("../../../tokenizer.json", room.path(STEP).join("tokenizer.json")).unwrap();
            }),
            3,
            "manifest-file-kind",
        ),
        case(
            "the moments of another step",
            changed(|room| {
                let name = "training.safetensors";
                room.write(&format!("{STEP}/{name}"), room.read(&format!("out/checkpoints/step-2/{name}")));
            }),
            3,
            damaged,
        ),
        case(
            "the manifest of another step",
            changed(|room| {
                room.write(&format!("{STEP}/manifest.json"), room.read("out/checkpoints/step-2/manifest.json"));
            }),
            3,
            damaged,
        ),
        case(
            "a result whose weights changed",
            |room| {
                room.run(&sft("--max-steps 1")).ok();
                let mut bytes = room.read("out/model.safetensors");
                *bytes.last_mut().unwrap() ^= 1;
                room.write("out/model.safetensors", bytes);
                "verify out".into()
            },
            3,
            damaged,
        ),
        case(
            "a result whose weights changed, resume",
            |room| {
                room.run(&sft("--max-steps 1")).ok();
                std::fs::remove_file(room.path("out/model.safetensors")).unwrap();
                sft("--max-steps 1 --resume")
            },
            3,
            "manifest-file-missing",
        ),
    ])
}

pub(super) fn states_of_another_run() -> Vec<Case> {
    let resumed = |change: fn(&mut Map<String, Value>)| forged(from_it, change);
    Vec::from([
        case(
            "a tensor too many",
            tensors(|all| {
                let tensor = all.values().next().unwrap().clone();
                all.insert("policy/weights/ghost".into(), tensor);
            }),
            3,
            "checkpoint-tensors",
        ),
        case("a tensor too few", tensors(|all| drop(all.pop_first())), 3, "weights-missing-tensor"),
        case(
            "a tensor of another shape",
            tensors(|all| all.values_mut().find(|t| t.shape.len() == 2).unwrap().shape.reverse()),
            3,
            "weights-shape",
        ),
        case(
            "a tensor of whole numbers",
            tensors(|all| all.values_mut().next().unwrap().dtype = "I32".into()),
            3,
            "weights-dtype",
        ),
        case(
            "a moment that is NaN",
            tensors(|all| {
                let tensor = all.iter_mut().find(|(name, _)| name.contains("moment")).unwrap().1;
                tensor.bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
            }),
            3,
            "weights-not-finite",
        ),
        case("no tensors", tensors(BTreeMap::clear), 3, "weights-missing-tensor"),
        case("another stage", resumed(|map| map["stage"] = json!("reward")), 3, "checkpoint-stage"),
        case("no state", resumed(|map| map["state"] = Value::Null), 3, "checkpoint-kind"),
        case("a result for a checkpoint", resumed(|map| map["kind"] = json!("result")), 3, "checkpoint-kind"),
        case(
            "the steps of another optimizer",
            resumed(|map| map["state"]["optimizer_steps"] = json!([["value_model", 4]])),
            3,
            "checkpoint-tensors",
        ),
        case(
            "numbers that are a text",
            resumed(|map| map["state"]["numbers"] = json!("none")),
            3,
            "checkpoint-numbers",
        ),
        case("more steps than the run has", resumed(|map| map["step"] = json!(1_u64 << 60)), 3, "checkpoint-step"),
        case(
            "metrics that are longer than the file",
            resumed(|map| map["state"]["journal"]["files"][0]["bytes"] = json!(1_u64 << 50)),
            3,
            "output-shorter",
        ),
        case(
            "metrics that were edited",
            |room| {
                stopped(room);
                let mut bytes = room.read("out/metrics.jsonl");
                bytes[3] ^= 1;
                room.write("out/metrics.jsonl", bytes);
                resume("")
            },
            3,
            "output-changed",
        ),
        case(
            "metrics that are gone",
            |room| {
                stopped(room);
                std::fs::remove_file(room.path("out/metrics.jsonl")).unwrap();
                resume("")
            },
            3,
            "file-missing",
        ),
        case(
            "the checkpoint of a reward model",
            |room| {
                let more = "--max-steps 2 --save-steps 1 --save-total-limit 0 --output-dir other";
                room.run(&reward(more)).ok();
                std::fs::create_dir_all(room.path("out/checkpoints")).unwrap();
                std::fs::rename(room.path("other/checkpoints/step-1"), room.path("out/checkpoints/step-1")).unwrap();
                std::fs::rename(room.path("other/run.json"), room.path("out/run.json")).unwrap();
                resume("")
            },
            2,
            "resume-impossible",
        ),
    ])
}

pub(super) fn places_of_no_checkpoint() -> Vec<Case> {
    let at = |path: &'static str| {
        move |room: &Room| {
            stopped(room);
            resume("").replace("--resume", &format!("--resume {path}"))
        }
    };
    Vec::from([
        case("no such directory", at("out/checkpoints/step-3"), 3, "file-missing"),
        case("a model directory", at("model"), 2, "resume-path"),
        case("a file", at("data.jsonl"), 2, "resume-path"),
        case("the output directory", at("out"), 2, "resume-path"),
        case("the directory of checkpoints", at("out/checkpoints"), 2, "resume-path"),
        case("a file of a checkpoint", at("out/checkpoints/step-4/config.json"), 2, "resume-path"),
        case(
            "a checkpoint of another output directory",
            |room| {
                stopped(room);
                from_it().replace("--output-dir out ", "--output-dir elsewhere ")
            },
            2,
            "resume-elsewhere",
        ),
        case(
            "an output directory of someone else",
            |room| {
                std::fs::create_dir(room.path("out")).unwrap();
                room.write("out/notes.txt", "mine");
                resume("")
            },
            2,
            "output-exists",
        ),
        case(
            "a step that is a file",
            |room| {
                std::fs::create_dir_all(room.path("out/checkpoints")).unwrap();
                room.write("out/run.json", "{}");
                room.write("out/checkpoints/step-9", "");
                resume("")
            },
            3,
            "file-kind",
        ),
        case("verify of nothing", |_| "verify nowhere".into(), 3, "file-missing"),
        case("verify of a model", |_| "verify model".into(), 3, "manifest-missing"),
        case("verify of a file", |_| "verify data.jsonl".into(), 3, "file-kind"),
        case("verify without a directory", |_| "verify".into(), 2, ""),
    ])
}

pub(super) fn runs_that_changed() -> Vec<Case> {
    let with = |change: fn(&Room) -> String| {
        move |room: &Room| {
            stopped(room);
            change(room)
        }
    };
    Vec::from([
        case("another learning rate", with(|_| resume("--learning-rate 1e-3")), 2, "resume-changed"),
        case("another seed", with(|_| resume("--seed 7")), 2, "resume-impossible"),
        case(
            "other data",
            with(|room| {
                room.rows("data.jsonl", &completions(9));
                resume("")
            }),
            2,
            "resume-impossible",
        ),
        case(
            "another tokenizer",
            with(|room| {
                room.edit("model/tokenizer_config.json", |file| drop(file.insert("model_max_length".into(), json!(7))));
                resume("")
            }),
            2,
            "resume-changed",
        ),
        case(
            "another model",
            with(|room| {
                std::fs::remove_dir_all(room.path("model")).unwrap();
                room.model("model", "llama_tied");
                resume("")
            }),
            2,
            "resume-changed",
        ),
    ])
}
