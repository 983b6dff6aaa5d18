//! Keeps the structure of the crate true: reads its sources and fails on what the house rules refuse. Every test
//! shows first that its check finds what it is seeded with. What stays although a rule refuses it has a row in
//! [`EXCEPTIONS`]; a row that excuses nothing fails too. The reader knows words, strings and comments, but no types.

mod source;

use std::collections::BTreeSet;
use std::{fs, path::Path, sync::OnceLock};

use source::{Source, in_word, sources};

/// What may stay: the rule, the place (a file, `file::function` inside a function, or a `folder/`), the reason.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("panic", "src/cpu/matmul.rs::gemm", "the unsafe call below relies on what is asserted"),
    ("long header", "src/lib.rs", "the front page of the documentation: bird's-eye view, dataflow, example"),
    ("function length", "tests/badinput/", "tables of cases"),
    ("line width", "tests/badinput/", "bad input in strings"),
    ("line width", "src/ptx/", "instructions in strings"),
    ("line width", "tests/ptx/", "instructions in strings"),
    ("places", "src/cpu/math.rs", "scalar functions that operations share"),
    ("places", "src/cpu/parallel.rs", "how rows are cut into chunks; no operation"),
    ("places", "src/cpu/pool.rs", "host buffers that are used again; no operation"),
];

/// Rooms, and what they may name beside themselves: rooms, single items of rooms, or the FLOOR. Between `cli` and
/// `ops` nobody sees a launch, hence `device::Device`, nor that there is a CPU.
const LAYERS: &[(&str, &str)] = &[
    ("main", "cli"),
    ("cli bench", "train data model objective optim report selftest ops autograd tensor device cpu ptx FLOOR"),
    ("fuzz", "cli train data model FLOOR"),
    ("train", "data model objective optim report ops autograd tensor device::Device FLOOR"),
    ("data report", "FLOOR"),
    ("model", "ops autograd tensor device::Device device::graph::Turns FLOOR"),
    ("objective optim", "ops autograd tensor device::Device FLOOR"),
    ("selftest", "ops autograd tensor cpu device ptx FLOOR"),
    ("custom", "autograd tensor device FLOOR"),
    ("ops", "autograd tensor cpu device FLOOR"),
    ("autograd", "tensor cpu device FLOOR"),
    // The other half of a tensor is its origin on the tape: these two know each other.
    ("tensor", "autograd::Origin cpu::pool device FLOOR"),
    ("device", "ptx FLOOR"),
    ("cpu", "config error random"),
    ("config shape", "error dtype"),
    ("disk dtype files random", "error"),
    ("ptx error", ""),
];
const FLOOR: &str = "config error shape dtype disk files random";

/// What writes to the file system; a `*` stands for any ending of a name, and alone for itself.
const WRITERS: &str = "std::fs::* std::fs::write std::fs::create_dir* std::fs::remove_* std::fs::rename std::fs::copy \
    std::fs::set_permissions std::fs::hard_link std::fs::soft_link std::fs::DirBuilder* std::fs::OpenOptions* \
    std::fs::File::create* std::fs::File::options std::os::unix::fs::symlink std::os::windows::fs::symlink_* \
    safetensors::serialize_to_file";

/// Words that no file may contain but those whose path begins like this (`-`: none). A dot keeps them out of this file.
const WORDS: &[(&str, &str, &str)] = &[
    ("unfinished", "TO.DO FIX.ME XX.X", "-"),
    ("machine path", "/home./ /root./ /work./ /workspace./ /Users./ /mnt./", "-"),
    ("cuda binding", "cud.arc", "src/device/cuda"),
];
const VAGUE_NAMES: &[&str] = &["util", "utils", "helper", "helpers", "manager", "managers", "common", "misc"];
const PANICS: &[&str] = &["panic", "todo", "unimplemented", "unreachable", "dbg", "assert", "assert_eq", "assert_ne"];
const UNWRAPS: &[&str] = &["unwrap", "expect", "unwrap_err", "expect_err"];

/// Where the selftest's table is.
const CASES: &str = "src/selftest/cases/";

/// Operations whose kernel has the name that the field gives to it.
const KERNELS: &[(&str, &str)] = &[("matmul", "gemm")];

const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 700;
const LINE_CHARS_MAX: usize = 120;
const HEADER_LINES_MAX: usize = 8;

/// A file of the repository: its path from the root, and its text.
type File = (String, String);

const ROOMS: [&str; 8] = ["src", "kernels", "tests", "benches", ".ci", "Cargo.toml", "README.md", "CHANGELOG.md"];
const SOURCES: [&str; 9] = [".rs", ".cu", ".cuh", ".ptx", ".py", ".sh", ".toml", ".md", ".ci/run"];

/// Every source file, read once.
fn files() -> &'static [File] {
    static FILES: OnceLock<Vec<File>> = OnceLock::new();
    FILES.get_or_init(|| {
        let (mut found, mut paths) = (Vec::new(), ROOMS.map(str::to_owned).to_vec());
        while let Some(path) = paths.pop() {
            let place = Path::new(env!("CARGO_MANIFEST_DIR")).join(&path);
            if let Ok(entries) = fs::read_dir(&place) {
                paths.extend(entries.flatten().map(|e| format!("{path}/{}", e.file_name().to_string_lossy())));
            } else if place.exists() && SOURCES.iter().any(|end| path.ends_with(end)) {
                let text = fs::read_to_string(&place);
                assert!(text.is_ok(), "{path}: {text:?}");
                found.extend(text.map(|text| (path, text)));
            }
        }
        found.sort();
        found
    })
}

/// The rule, the place that an exception would name, and what to tell.
type Violation = (&'static str, String, String);

fn add(found: &mut Vec<Violation>, rule: &'static str, path: &str, line: usize, what: &str) {
    found.push((rule, path.to_owned(), format!("{rule}: {path}:{line}: {what}")));
}

fn add_token(found: &mut Vec<Violation>, rule: &'static str, source: &Source<'_>, at: usize, what: &str) {
    add(found, rule, source.path, source.tokens[at].line, what);
    if let (Some(violation), Some(function)) = (found.last_mut(), source.function(at)) {
        violation.1 = format!("{}::{function}", source.path);
    }
}

/// Imports that point upward or sideways.
fn layering(files: &[File], found: &mut Vec<Violation>) {
    for source in sources(files).iter().filter(|s| s.path.starts_with("src/") && s.path != "src/lib.rs") {
        let room = source.path.split('/').nth(1).unwrap_or_default().trim_end_matches(".rs");
        let Some((_, below)) = LAYERS.iter().find(|(rooms, _)| rooms.split(' ').any(|name| name == room)) else {
            add(found, "layering", source.path, 1, "this room has no row in LAYERS");
            continue;
        };
        let below = below.replace("FLOOR", FLOOR);
        for (at, path, import) in source.named().iter().filter(|(_, path, _)| path[0] == "crate") {
            let names = &path[1..];
            let allowed = below.split_whitespace().chain([room]).any(|item| {
                let item: Vec<&str> = item.split("::").collect();
                // The import of a room that has an allowed item is judged where the room is used.
                names.starts_with(&item) || *import && !names.is_empty() && item.starts_with(names)
            });
            if !allowed {
                let what = format!("`{}`: {room} may name only: {below}", path.join("::"));
                add_token(found, "layering", source, *at, &what);
            }
        }
    }
}

/// Functions, files and lines that are too long.
fn limits(files: &[File], found: &mut Vec<Violation>) {
    for source in &sources(files) {
        for (first, last) in &source.functions {
            let lines = source.tokens[*last].line + 1 - source.tokens[*first].line;
            if lines > FUNCTION_LINES_MAX {
                add_token(found, "function length", source, *first, &format!("{lines} lines"));
            }
        }
    }
    for (path, text) in files.iter().filter(|(path, _)| [".rs", ".cu", ".cuh"].iter().any(|end| path.ends_with(end))) {
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX {
            add(found, "file length", path, 1, &format!("{lines} lines"));
        }
        let widths = (1..).zip(text.lines().map(|line| line.chars().count()));
        for (line, width) in widths.filter(|(_, width)| *width > LINE_CHARS_MAX) {
            add(found, "line width", path, line, &format!("{width} characters"));
        }
    }
}

/// Unsafe code outside its two places, or without its argument.
fn unsafe_code(files: &[File], found: &mut Vec<Violation>) {
    for source in &sources(files) {
        for at in (0..source.tokens.len()).filter(|at| source.has(*at, "unsafe")) {
            let gemm = source.path == "src/cpu/matmul.rs" && source.function(at) == Some("gemm");
            if !gemm && !source.path.starts_with("src/device/cuda") {
                add_token(found, "unsafe", source, at, "only device/cuda and gemm in cpu/matmul.rs have it");
            }
            let start = (0..at).rev().find(|i| [";", "{", "}"].contains(&source.word(*i))).map_or(0, |i| i + 1);
            let above = |at: usize| (1..).map_while(move |up| source.comments.get(&(source.tokens[at].line - up)));
            let argued = above(at).chain(above(start)).any(|comment| comment.starts_with("// SAFETY: "));
            if ["{", "impl"].contains(&source.word(at + 1)) && !argued {
                add_token(found, "unsafe", source, at, "no `// SAFETY:` comment stands before it");
            }
        }
    }
}

/// Rooms, and parts of the two rooms that have unsafe code, whose head does not forbid it.
fn forbids(files: &[File], found: &mut Vec<Violation>) {
    for (path, text) in files {
        let Some(name) = path.strip_prefix("src/").and_then(|path| path.strip_suffix(".rs")) else { continue };
        let parts: Vec<&str> = name.split('/').collect();
        let needs = match parts[..] {
            ["lib" | "cpu" | "device"] => false,
            [_] => true,
            [room @ ("cpu" | "device"), part] => !matches!((room, part), (_, "mod") | ("cpu", "matmul") | (_, "cuda")),
            [_, part] => part == "mod",
            _ => false,
        };
        if needs && !text.lines().any(|line| line == "#![forbid(unsafe_code)]") {
            add(found, "forbid", path, 1, "`#![forbid(unsafe_code)]` does not stand at its head");
        }
    }
}

/// Writes to the file system outside the one room that does them right.
fn writes(files: &[File], found: &mut Vec<Violation>) {
    for source in sources(files).iter().filter(|s| s.path.starts_with("src/") && s.path != "src/disk/calls.rs") {
        for (at, names, _) in source.named() {
            let name = names.join("::");
            let begins = |path: &str| path.strip_suffix('*').is_some_and(|p| !p.ends_with(':') && name.starts_with(p));
            if WRITERS.split_whitespace().any(|path| name == path || begins(path)) {
                add_token(found, "writer", source, at, &format!("`{name}`: only disk/calls.rs writes"));
            }
        }
    }
}

/// Code that ends the process instead of returning an error. `debug_assert!` is not in the user's binary, and an
/// assertion outside functions is the compiler's.
fn panics(files: &[File], found: &mut Vec<Violation>) {
    for source in sources(files).iter().filter(|s| s.path.starts_with("src/")) {
        for at in (0..source.tokens.len()).filter(|at| !source.tests[*at]) {
            let (before, word, after) = (source.word(at.wrapping_sub(1)), source.word(at), source.word(at + 1));
            let unwraps = UNWRAPS.contains(&word) && (before == "." && after == "(" || before == "::");
            let runs = !word.starts_with("assert") || source.function(at).is_some();
            if unwraps || PANICS.contains(&word) && after == "!" && runs {
                add_token(found, "panic", source, at, &format!("`{word}` ends the process"));
            }
        }
    }
}

/// Files that do not say in a few lines what they are for, and names that say nothing.
fn headers(files: &[File], found: &mut Vec<Violation>) {
    for (path, text) in files {
        let lines = text.lines().take_while(|line| line.starts_with("//!")).count();
        if path.starts_with("src/") && path.ends_with(".rs") && !(1..=HEADER_LINES_MAX).contains(&lines) {
            let rule = if lines == 0 { "no header" } else { "long header" };
            add(found, rule, path, 1, &format!("{lines} lines of `//!`, not 1 to {HEADER_LINES_MAX}"));
        }
        let vague = |part: &str| VAGUE_NAMES.contains(&part.split('.').next().unwrap_or_default());
        if path != "kernels/common.cuh" && path.split('/').any(vague) {
            add(found, "name", path, 1, "the name does not say what is in it");
        }
    }
}

/// Operations that lack a place, and files in those places that belong to no operation.
fn places(files: &[File], found: &mut Vec<Violation>) {
    let stems = |dir: &str, end: &str| -> BTreeSet<String> {
        let names = files.iter().filter_map(|(path, _)| path.strip_prefix(dir)?.strip_suffix(end));
        names.filter(|name| !["mod", "gradients"].contains(name) && !name.contains('/')).map(str::to_owned).collect()
    };
    let kernel = |op: &String| KERNELS.iter().find(|(name, _)| name == op).map_or(op.clone(), |row| row.1.to_owned());
    let operations = stems("src/ops/", ".rs");
    let mut rooms = vec![("src/cpu/", ".rs", operations.clone())];
    if files.iter().any(|(path, _)| path.starts_with("kernels/")) {
        rooms.push(("kernels/", ".cu", operations.iter().map(kernel).collect()));
    }
    for (dir, end, wanted) in rooms {
        for name in wanted.symmetric_difference(&stems(dir, end)) {
            let what = if wanted.contains(name) { "is missing, src/ops/ has it" } else { "is not in src/ops/" };
            add(found, "places", &format!("{dir}{name}{end}"), 1, what);
        }
    }
    let rows = case_kernels(files);
    for name in operations.iter().map(kernel).filter(|name| !rows.is_empty() && !rows.contains(name)) {
        add(found, "places", &format!("{CASES}{name}"), 1, "no row of the table begins with Case::new(\"this name\"");
    }
}

/// The kernels that the selftest's table has rows for.
fn case_kernels(files: &[File]) -> BTreeSet<String> {
    let mut kernels = BTreeSet::new();
    let table: Vec<File> = files.iter().filter(|(path, _)| path.starts_with(CASES)).cloned().collect();
    for source in &sources(&table) {
        let names = (0..source.tokens.len()).filter(|at| source.has(*at, "Case :: new ("));
        kernels.extend(names.filter_map(|at| source.tokens.get(at + 4)).map(|t| t.text.trim_matches('"').to_owned()));
    }
    kernels
}

/// What a kernel's text may take from elsewhere: headers that lie beside it, so that it compiles without a toolkit.
fn includes(files: &[File], found: &mut Vec<Violation>) {
    let kernels = files.iter().filter(|(path, _)| path.ends_with(".cu") || path.ends_with(".cuh"));
    for (path, text) in kernels {
        for (line, text) in (1..).zip(text.lines()) {
            let Some(what) =
                text.trim_start().strip_prefix('#').and_then(|rest| rest.trim_start().strip_prefix("include"))
            else {
                continue;
            };
            let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
            let header = what.trim().strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or("/");
            if !files.iter().any(|(path, _)| *path == format!("{folder}/{header}")) || !text.starts_with("#include \"")
            {
                add(
                    found,
                    "include",
                    path,
                    line,
                    &format!("`{text}` is not `#include \"` and a header beside the file"),
                );
            }
        }
    }
}

/// Words that stand nowhere or in one place only, and paths of one machine.
fn words(files: &[File], found: &mut Vec<Violation>) {
    for (path, text) in files {
        for (line, text) in (1..).zip(text.lines()) {
            for (rule, words, _) in WORDS.iter().filter(|row| !path.starts_with(row.2)) {
                // Prose and the list of dependencies may name what we depend on.
                let applies = *rule != "cuda binding" || path.ends_with(".rs");
                if applies && words.replace('.', "").split(' ').any(|word| has_word(text, word)) {
                    add(found, rule, path, line, text);
                }
            }
        }
    }
}

/// Whether `word` stands alone in `text`; a path must begin with its slash, and may go on.
fn has_word(text: &str, word: &str) -> bool {
    let goes_on = |c: char| in_word(c) || word.starts_with('/') && "./~-})".contains(c);
    text.match_indices(word).any(|(at, _)| {
        let (before, after) = (text[..at].chars().next_back(), text[at + word.len()..].chars().next());
        !before.is_some_and(goes_on) && (word.ends_with('/') || !after.is_some_and(in_word))
    })
}

/// Directories of src that the README's section Architecture does not name.
fn architecture(files: &[File], found: &mut Vec<Violation>) {
    for (_, readme) in files.iter().filter(|(path, _)| path == "README.md") {
        let section = readme.split("\n## ").find(|section| section.starts_with("Architecture")).unwrap_or_default();
        let dirs = files.iter().filter_map(|(path, _)| path.strip_prefix("src/")?.split_once('/'));
        for dir in dirs.map(|(dir, _)| dir).collect::<BTreeSet<_>>() {
            if !has_word(section, &format!("{dir}/")) && !has_word(section, &format!("src/{dir}")) {
                add(found, "architecture", "README.md", 1, &format!("the section Architecture lacks src/{dir}/"));
            }
        }
    }
}

/// What remains of `found` under `exceptions`, and the exceptions to `rules` that excuse nothing.
fn judge(rules: &str, found: &[Violation], exceptions: &[(&str, &str, &str)]) -> Vec<String> {
    let at = |e: &str, v: &str| e == v || e.ends_with('/') && v.starts_with(e);
    let excuses = |e: &(&str, &str, &str), v: &Violation| e.0 == v.0 && at(e.1, &v.1) && !e.2.is_empty();
    let remaining = found.iter().filter(|v| !exceptions.iter().any(|e| excuses(e, v))).map(|v| v.2.clone());
    let stale = exceptions
        .iter()
        .filter(|e| rules.split(", ").any(|rule| rule == e.0))
        .filter(|e| !found.iter().any(|v| excuses(e, v)));
    remaining.chain(stale.map(|e| format!("{}: {}: no longer needs its exception", e.0, e.1))).collect()
}

/// Shows that `check` finds what is seeded, then holds the tree to `rules`. A seed is a line: the number of violations,
/// then files between `¦`, each a path and its text (`¶` breaks a line).
fn hold(rules: &str, check: fn(&[File], &mut Vec<Violation>), seeds: &str) {
    for seed in seeds.lines().map(str::trim_start).filter(|seed| !seed.is_empty()) {
        let (expected, files) = seed.split_once(' ').unwrap_or_default();
        let files = files.split(" ¦ ").map(|file| file.split_once(' ').unwrap_or((file, "")));
        let files: Vec<File> = files.map(|(path, text)| (path.to_owned(), text.replace('¶', "\n"))).collect();
        let mut found = Vec::new();
        check(&files, &mut found);
        assert_eq!(found.len().to_string(), expected, "{seed}: {found:?}");
        assert!(found.iter().all(|v| rules.split(", ").any(|rule| rule == v.0)), "{found:?} is under {rules}");
    }
    let mut found = Vec::new();
    check(files(), &mut found);
    let remaining = judge(rules, &found, EXCEPTIONS);
    assert!(remaining.is_empty(), "{} violations\n{}", remaining.len(), remaining.join("\n"));
}

fn tell_if_absent(path: &str) {
    if !files().iter().any(|file| file.0.starts_with(path)) {
        println!("skipped: {path} is not there, so nothing was compared with it");
    }
}

#[test]
fn an_exception_excuses_one_place_and_is_needed() {
    let mut found = Vec::new();
    ["x.rs", "y.rs"].iter().for_each(|path| add(&mut found, "a", path, 1, ""));
    assert_eq!(judge("a", &found, &[("a", "x.rs", "reason"), ("b", "z.rs", "reason")]), ["a: y.rs:1: "]);
    assert_eq!(judge("a, b", &found, &[("a", "x.rs", ""), ("b", "z.rs", "reason")]).len(), 4);
}

#[test]
fn imports_point_downward() {
    let seeds = "
        1 src/ops/a.rs use crate::model::Model;
        1 src/model/a.rs fn f() { crate::train::g() }
        1 src/model/a/b.rs use super::super::super::{data::Row, error::Error};
        1 src/train/a.rs use crate::device::Device; use crate::device::launch::Launch;
        1 src/tensor.rs use crate::cpu; fn f() { cpu::pool::give(1); cpu::gelu::forward(2) }
        1 src/ptx/a.rs use crate::error::Error; use super::ast; use crate::ptx::b;
        1 src/new.rs
        0 src/data/a.rs // crate::model¶use crate::{error, disk};¶#[cfg(test)] mod tests { use crate::model; }";
    hold("layering", layering, seeds);
}

#[test]
fn nothing_is_too_long() {
    let [function, file, line] =
        [(FUNCTION_LINES_MAX, "¶"), (FILE_LINES_MAX, "¶"), (LINE_CHARS_MAX, "é")].map(|(max, text)| text.repeat(max));
    let seeds = format!(
        "1 src/a.rs fn f() {{{function}}}
        0 src/a.rs trait A {{ fn f(); fn g(a: fn(u8)) {{ }}{function} }}
        1 tests/a.rs {file}¶
        1 kernels/a.cu {line}e
        0 tests/a.rs {file} ¦ src/a.rs {line}"
    );
    hold("function length, file length, line width", limits, &seeds);
}

#[test]
fn unsafe_code_is_rare_and_argued() {
    let seeds = "
        1 src/a.rs // SAFETY: none.¶unsafe { f() }
        1 src/device/cuda/a.rs // Fast.¶let a = unsafe { f() };
        0 src/device/cuda.rs // SAFETY: it is¶// valid.¶#[allow(b)]¶let a =¶  unsafe { f() };
        1 src/cpu/matmul.rs fn other() {¶// SAFETY: none.¶unsafe { f() } }
        0 src/a.rs // unsafe { }¶let a = \"unsafe\"; #![deny(unsafe_code)]";
    hold("unsafe", unsafe_code, seeds);
}

#[test]
fn what_reads_outside_bytes_forbids_unsafe_code() {
    let seeds = "
        1 src/a.rs //! A.
        1 src/a/mod.rs //! A.¶// #![forbid(unsafe_code)]
        2 src/cpu/a.rs ¦ src/device/a.rs ¦ src/cpu/mod.rs ¦ src/device/cuda.rs ¦ src/cpu/matmul.rs
        0 src/a/mod.rs //! A.¶¶#![forbid(unsafe_code)] ¦ src/a/b.rs ¦ src/lib.rs ¦ src/device/cuda/a.rs ¦ tests/a.rs";
    hold("forbid", forbids, seeds);
}

#[test]
fn one_room_writes() {
    let seeds = "
        1 src/a.rs use std::fs; fn f() { fs::write(a, b); fs::read(a) }
        2 src/a.rs use std::fs::{File, remove_file as gone}; fn f() { File::create_new(a); File::open(a) }
        1 src/a.rs use std::fs::*;
        0 src/disk/calls.rs fn f() { std::fs::rename(a, b) }
        0 src/a.rs #[cfg(test)] mod tests { fn f() { std::fs::write(a, b) } }";
    hold("writer", writes, seeds);
}

#[test]
fn errors_are_returned() {
    let seeds = "
        3 src/a.rs fn f() { a.unwrap(); b.expect(c); d.map(Option::unwrap); e.unwrap_or(0) }
        3 src/a.rs fn f() { panic!(); unreachable!(); assert!(a); debug_assert!(b) } const A: () = assert!(c);
        0 src/a.rs /// a.unwrap()¶fn f() {} #[cfg(test)] mod tests { fn f() { a.unwrap() } }
        1 src/a.rs enum A { #[cfg(test)] B, C } fn f() { a.unwrap() }
        1 src/a.rs #[cfg(test)] #[path = \"t.rs\"] mod b; fn f() { a.unwrap() } ¦ src/t.rs fn f() { a.unwrap() }
        1 src/a/mod.rs #[cfg(test)] pub mod b; ¦ src/a/b/c.rs fn f() { panic!() } ¦ src/a/c.rs fn f() { dbg!() }";
    hold("panic", panics, seeds);
}

#[test]
fn files_say_what_they_are_for() {
    let seeds = "
        1 src/a.rs use b;
        1 src/a.rs //!¶//!¶//!¶//!¶//!¶//!¶//!¶//!¶//!
        1 src/helpers/a.rs //! A.
        1 tests/common.rs
        0 kernels/common.cuh";
    hold("no header, long header, name", headers, seeds);
}

#[test]
fn an_operation_has_all_its_places() {
    tell_if_absent("kernels/");
    let seeds = "
        1 src/ops/a.rs
        2 src/cpu/a.rs ¦ kernels/a.cu
        2 src/ops/a.rs ¦ kernels/common.cuh
        1 src/ops/a.rs ¦ src/cpu/a.rs ¦ src/selftest/cases/b.rs fn f() { Case::new(\"b\", a) } // Case::new(\"a\")
        0 src/ops/matmul.rs ¦ src/cpu/matmul.rs ¦ kernels/gemm.cu ¦ src/ops/mod.rs
        0 src/ops/a.rs ¦ src/cpu/a.rs ¦ src/selftest/cases/b.rs fn f() { c.push(Case::new(¶\"a\", b)) }";
    hold("places", places, seeds);
}

#[test]
fn kernels_include_their_neighbours_only() {
    tell_if_absent("kernels/");
    let seeds = "
        1 kernels/a.cu #include <cuda.h>
        1 kernels/a.cu // A.¶#include \"b.cuh\"
        1 kernels/a.cuh #include \"../tests/b.cuh\" ¦ tests/b.cuh
        1 kernels/a.cu  # include \"b.cuh\" ¦ kernels/b.cuh
        0 kernels/a.cu #include \"b.cuh\"¶// #include <c> ¦ kernels/b.cuh";
    hold("include", includes, seeds);
}

#[test]
fn no_unfinished_work_and_no_foreign_paths() {
    let [work, dirs, binding] = [0, 1, 2].map(|i: usize| WORDS[i].1.replace('.', ""));
    let dir = dirs.split(' ').next().unwrap_or_default();
    let seeds = format!(
        "1 benches/a.py # {work}
        1 tests/a.ptx a = \"{dir}b\"
        0 src/a.rs a = ..{dir}c b{dir}c
        1 src/device/driver.rs use {binding}::driver;
        0 src/device/cuda/a.rs use {binding}::driver;"
    );
    hold("unfinished, machine path, cuda binding", words, &seeds);
}

#[test]
fn the_readme_names_every_room() {
    tell_if_absent("README.md");
    let seeds = "
        0 src/cpu/a.rs
        1 src/cpu/a.rs ¦ src/a/b.rs ¦ README.md # A¶## Architecture¶| `src/a` |¶## B¶cpu/
        2 src/cpu/a.rs ¦ src/model/a.rs ¦ src/x/a.rs ¦ README.md # A¶## Architecture¶### B¶- cpu/¶xmodel/¶## C¶x/";
    hold("architecture", architecture, seeds);
}
