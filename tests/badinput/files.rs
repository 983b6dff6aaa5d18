//! Files that are not what they should be: pipes, devices, directories, links that lead elsewhere, and files that are
//! far too large. Every command must say so at once, and neither wait, nor read without end, nor follow.

use std::os::unix::fs::symlink;
use std::process::Command;

use super::{Case, case, generate, ppo, reward, score, sft};
use crate::support::{Room, conversations};

/// Puts a named pipe that nobody writes to in the place of a file.
fn pipe(room: &Room, name: &str) {
    let path = room.path(name);
    let _ = std::fs::remove_file(&path);
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// Puts a link in the place of a file.
fn link(room: &Room, to: &str, name: &str) {
    let path = room.path(name);
    let _ = std::fs::remove_file(&path);
    symlink(to, path).unwrap();
}

/// Moves a file out of the model's directory and leaves a link to it.
fn moved(room: &Room, name: &str) {
    std::fs::rename(room.path(&format!("model/{name}")), room.path(name)).unwrap();
    link(room, &format!("../{name}"), &format!("model/{name}"));
}

/// Makes a file of that size, of zeros that take no room on the disk.
fn vast(room: &Room, name: &str, bytes: u64) {
    std::fs::File::create(room.path(name)).unwrap().set_len(bytes).unwrap();
}

fn directory(room: &Room, name: &str) {
    let _ = std::fs::remove_file(room.path(name));
    std::fs::create_dir(room.path(name)).unwrap();
}

/// The files of a model: what stands there in the place of each, and the error's name.
pub(super) fn pipes_and_directories_in_a_model() -> Vec<Case> {
    let mut cases = Vec::new();
    for (pipe_case, directory_case, file) in [
        ("a pipe as config.json", "a directory as config.json", "config.json"),
        ("a pipe as generation_config.json", "a directory as generation_config.json", "generation_config.json"),
        ("a pipe as tokenizer.json", "a directory as tokenizer.json", "tokenizer.json"),
        ("a pipe as tokenizer_config.json", "a directory as tokenizer_config.json", "tokenizer_config.json"),
        ("a pipe as special_tokens_map.json", "a directory as special_tokens_map.json", "special_tokens_map.json"),
        ("a pipe as the template", "a directory as the template", "chat_template.jinja"),
        ("a pipe as the weights", "a directory as the weights", "model.safetensors"),
        ("a pipe as the index", "a directory as the index", "model.safetensors.index.json"),
    ] {
        let name = format!("model/{file}");
        let other = name.clone();
        let make = move |room: &Room| {
            pipe(room, &name);
            sft("")
        };
        cases.push(case(pipe_case, make, 3, "model-file"));
        let make = move |room: &Room| {
            directory(room, &other);
            score("")
        };
        cases.push(case(directory_case, make, 3, "model-file"));
    }
    cases
}

pub(super) fn links_out_of_a_model() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, file) in [
        ("config.json", "config.json"),
        ("generation_config.json", "generation_config.json"),
        ("tokenizer_config.json", "tokenizer_config.json"),
        ("the weights", "model.safetensors"),
    ] {
        let make = move |room: &Room| {
            moved(room, file);
            generate("")
        };
        cases.push(case(name, make, 3, "model-link"));
    }
    let to = |to: &'static str, name: &'static str| {
        move |room: &Room| {
            link(room, to, &format!("model/{name}"));
            sft("")
        }
    };
    cases.push(case("to a secret", to("/etc/passwd", "chat_template.jinja"), 3, "model-link"));
    cases.push(case("to a device", to("/dev/zero", "tokenizer.json"), 3, "model-link"));
    cases.push(case("to itself", to("tokenizer.json", "tokenizer.json"), 4, "file-io"));
    cases.push(case("to nowhere", to("nowhere.json", "tokenizer.json"), 3, "file-missing"));
    cases.push(case(
        "a shard",
        |room| {
            std::fs::remove_dir_all(room.path("model")).unwrap();
            room.model("model", "qwen2_untied");
            moved(room, "model-00002-of-00003.safetensors");
            sft("")
        },
        3,
        "model-link",
    ));
    cases.push(case(
        "from a place like a cache, to a secret",
        |room| {
            std::fs::create_dir_all(room.path("hub/snapshots")).unwrap();
            std::fs::rename(room.path("model"), room.path("hub/snapshots/1")).unwrap();
            symlink("/etc", room.path("hub/blobs")).unwrap();
            link(room, "../../blobs/passwd", "hub/snapshots/1/chat_template.jinja");
            sft("--model-name-or-path hub/snapshots/1")
        },
        3,
        "model-link",
    ));
    cases
}

pub(super) fn data_that_is_no_file() -> Vec<Case> {
    let at = |name: &'static str, make: fn(&Room, &str), line: fn(&Room) -> String| {
        move |room: &Room| {
            make(room, name);
            line(room)
        }
    };
    Vec::from([
        case("a pipe, sft", at("data.jsonl", pipe, |_| sft("")), 3, "file-kind"),
        case("a pipe, reward", at("pairs.jsonl", pipe, |_| reward("")), 3, "file-kind"),
        case("a pipe, ppo", at("prompts.jsonl", pipe, |room| ppo(room, "")), 3, "file-kind"),
        case("a pipe, generate", at("prompts.jsonl", pipe, |_| generate("")), 3, "file-kind"),
        case("a pipe, score", at("data.jsonl", pipe, |_| score("")), 3, "file-kind"),
        case("a pipe, held out", at("held.jsonl", pipe, |_| sft("--eval-dataset held.jsonl")), 3, "file-kind"),
        case("a device without end", |_| sft("--dataset /dev/zero"), 3, "file-kind"),
        case("a device without content", |_| sft("--dataset /dev/null"), 3, "file-kind"),
        case("the standard input", |_| score("--dataset /dev/stdin"), 3, "file-kind"),
        case(
            "a link to nowhere",
            |room| {
                link(room, "nowhere", "data.jsonl");
                sft("")
            },
            3,
            "file-missing",
        ),
        case(
            "a link to itself",
            |room| {
                link(room, "data.jsonl", "data.jsonl");
                sft("")
            },
            4,
            "file-io",
        ),
        case("a name that is too long", |_| sft(&format!("--dataset {}", "a".repeat(300))), 4, "file-io"),
        case("a path through a file", |_| sft("--dataset pairs.jsonl/data.jsonl"), 3, "file-kind"),
        case(
            "a pipe of settings",
            |room| {
                pipe(room, "a.toml");
                sft("--config a.toml")
            },
            3,
            "file-kind",
        ),
        case("a device of settings", |_| sft("--config /dev/zero"), 3, "file-kind"),
        case(
            "a pipe of settings of all stages",
            |room| {
                pipe(room, "run.toml");
                "run --config run.toml".into()
            },
            3,
            "file-kind",
        ),
        case(
            "a pipe of statistics",
            |room| {
                let line = ppo(room, "--normalize-reward");
                pipe(room, "reward/reward_statistics.json");
                line
            },
            3,
            "model-file",
        ),
        case(
            "a pipe as the configuration of a fresh model",
            |room| {
                pipe(room, "a.json");
                "fresh --config a.json --tokenizer model --output-dir out".into()
            },
            3,
            "file-kind",
        ),
    ])
}

pub(super) fn files_that_are_too_large() -> Vec<Case> {
    let of = |name: &'static str, bytes: u64, line: fn(&str) -> String, more: &'static str| {
        move |room: &Room| {
            vast(room, name, bytes);
            line(more)
        }
    };
    Vec::from([
        case("a configuration", of("model/config.json", 2 << 20, sft, ""), 3, "file-too-large"),
        case("a terabyte of configuration", of("model/config.json", 1 << 40, sft, ""), 3, "file-too-large"),
        case("a terabyte of tokenizer", of("model/tokenizer.json", 1 << 40, sft, ""), 3, "file-too-large"),
        case("a tokenizer's configuration", of("model/tokenizer_config.json", 1 << 40, sft, ""), 3, "file-too-large"),
        case("a template", of("model/chat_template.jinja", 1 << 40, sft, ""), 3, "file-too-large"),
        case("an index", of("model/model.safetensors.index.json", 1 << 40, sft, ""), 3, "file-too-large"),
        case("weights of zeros", of("model/model.safetensors", 1 << 40, sft, ""), 3, "weights-header"),
        case("a line of a gigabyte", of("data.jsonl", 1 << 30, sft, ""), 3, "dataset-line-too-long"),
        case("a terabyte of Parquet", of("data.parquet", 1 << 40, sft, "--dataset data.parquet"), 3, "parquet-damaged"),
        case("settings", of("a.toml", 1 << 40, sft, "--config a.toml"), 3, "file-too-large"),
    ])
}

/// Links inside the directory, and from a snapshot of the Hugging Face cache to its blobs, are what users have.
#[test]
fn links_of_a_cache_are_followed() {
    let room = super::room();
    room.model("hub/snapshots/1", "gpt2_tied");
    std::fs::create_dir(room.path("hub/blobs")).unwrap();
    for (number, entry) in std::fs::read_dir(room.path("hub/snapshots/1")).unwrap().enumerate() {
        let path = entry.unwrap().path();
        std::fs::rename(&path, room.path(&format!("hub/blobs/{number}"))).unwrap();
        symlink(format!("../../blobs/{number}"), path).unwrap();
    }
    room.rows("chats.jsonl", &conversations(4));
    room.write("hub/snapshots/1/template", "{% for m in messages %}{{ m.content }}<|endoftext|>{% endfor %}");
    symlink("template", room.path("hub/snapshots/1/chat_template.jinja")).unwrap();
    symlink("chats.jsonl", room.path("link.jsonl")).unwrap();
    room.run("generate --model-name-or-path hub/snapshots/1 --prompts prompts.jsonl --output a --max-new-tokens 4")
        .ok();
    room.run(
        "sft --model-name-or-path hub/snapshots/1 --dataset link.jsonl --output-dir out --completion-only-loss=false \
              --max-steps 1",
    )
    .ok();
}
