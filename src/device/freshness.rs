//! Whether the committed PTX is that of the committed sources: recomputes the hash that `kernels/generate.py` writes
//! into a text's first line, from the constants of that script. (That the compiler makes these very bytes of them needs
//! the compiler: `.ci/run` asks it.)

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::kernel::SOURCES;

/// A source file: its name and its bytes.
type File = (String, Vec<u8>);

/// What enters the hash beside the sources.
struct Settings {
    options: String,
    wheel: String,
    version: String,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The strings in the line of `generate.py` that assigns `name`.
fn constant(script: &str, name: &str) -> Vec<String> {
    let mut values = script.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(" = "));
    let value = values.next().unwrap_or_else(|| panic!("generate.py has no {name}"));
    value.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

fn settings() -> Settings {
    let script = fs::read_to_string(root().join("kernels/generate.py")).unwrap();
    let [wheel, version] = ["NVRTC_WHEEL", "PTX_VERSION"].map(|name| constant(&script, name).concat());
    let settings = Settings { options: constant(&script, "OPTIONS").join(" "), wheel, version };
    assert!(settings.options.starts_with("--gpu-architecture=") && settings.wheel.contains("=="));
    settings
}

/// The file and the headers that it includes, each once, in the order of inclusion.
fn collect(path: &Path, found: &mut Vec<File>) {
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    if found.iter().any(|file| file.0 == name) {
        return;
    }
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    found.push((name, text.clone().into_bytes()));
    for line in text.lines() {
        if let Some(header) = line.strip_prefix("#include \"").and_then(|rest| rest.split('"').next()) {
            collect(&path.with_file_name(header), found);
        }
    }
}

fn hash(settings: &Settings, files: &[File]) -> String {
    let mut digest = Sha256::new();
    digest.update(format!("{} {} {}\n", settings.options, settings.wheel, settings.version));
    for (name, bytes) in files {
        digest.update(format!("{name} {}\n", bytes.len()));
        digest.update(bytes);
    }
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What is wrong with a text, given its sources.
fn faults(text: &str, settings: &Settings, files: &[File]) -> Vec<String> {
    let mut faults = Vec::new();
    let first = format!("// sha256 {}", hash(settings, files));
    if text.lines().next() != Some(&first) {
        faults.push("its sources or the compiler's options changed; run kernels/generate.py".to_owned());
    }
    for line in [format!(".version {}", settings.version), ".target sm_80".to_owned()] {
        if !text.lines().any(|l| l == line) {
            faults.push(format!("no line `{line}`"));
        }
    }
    let named: Vec<&str> = text.lines().filter(|line| line.trim_start().starts_with(".file")).collect();
    if named.is_empty() {
        faults.push("no `.file`: compiled without line numbers".to_owned());
    }
    faults.extend(named.iter().filter(|line| line.contains(['/', '\\'])).map(|line| format!("a folder in `{line}`")));
    faults
}

/// The stems of the files in `folder` whose names end in `end`.
fn stems(folder: &str, end: &str) -> BTreeSet<String> {
    let names = fs::read_dir(root().join(folder)).unwrap().map(|e| e.unwrap().file_name());
    names.filter_map(|name| Some(name.to_str()?.strip_suffix(end)?.to_owned())).collect()
}

#[test]
fn every_text_is_that_of_its_sources() {
    let settings = settings();
    let listed: BTreeSet<String> = SOURCES.iter().map(|s| s.name.to_owned()).collect();
    assert_eq!(listed.len(), SOURCES.len(), "a name stands twice in SOURCES");
    assert_eq!(stems("kernels", ".cu"), listed, "kernels/*.cu and SOURCES");
    assert_eq!(stems("kernels/ptx", ".ptx"), listed, "kernels/ptx and SOURCES");
    assert_eq!(stems("tests/ptx", ".cu"), stems("tests/ptx", ".ptx"));
    let mut bad = Vec::new();
    let test_texts = stems("tests/ptx", ".ptx").into_iter().map(|name| {
        let text = fs::read_to_string(root().join(format!("tests/ptx/{name}.ptx"))).unwrap();
        (format!("tests/ptx/{name}.cu"), text)
    });
    let shipped = SOURCES.iter().map(|s| (format!("kernels/{}.cu", s.name), s.text.to_owned()));
    for (path, text) in shipped.chain(test_texts) {
        let mut files = Vec::new();
        collect(&root().join(&path), &mut files);
        bad.extend(faults(&text, &settings, &files).into_iter().map(|fault| format!("the PTX of {path}: {fault}")));
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

/// The control: a changed byte, name, option or version is noticed, and so is a text from another folder or version.
#[test]
fn a_stale_text_is_noticed() {
    let source = SOURCES.iter().find(|s| s.name == "gemm").unwrap();
    let mut files = Vec::new();
    collect(&root().join("kernels/gemm.cu"), &mut files);
    assert!(files.len() > 1, "gemm.cu has headers");
    let stale = |text: &str, change: fn(&mut Settings, &mut Vec<File>)| {
        let (mut settings, mut files) = (settings(), files.clone());
        change(&mut settings, &mut files);
        faults(text, &settings, &files).len()
    };
    assert_eq!(stale(source.text, |_, _| ()), 0);
    assert_eq!(stale(source.text, |_, files| files[0].1[0] ^= 1), 1);
    assert_eq!(stale(source.text, |_, files| files.last_mut().unwrap().1.push(b'\n')), 1);
    assert_eq!(stale(source.text, |_, files| files[1].0.push('h')), 1);
    assert_eq!(stale(source.text, |settings, _| settings.options.push_str(" -G")), 1);
    assert_eq!(stale(source.text, |settings, _| settings.wheel.push('1')), 1);
    assert_eq!(stale(source.text, |settings, _| settings.version = "8.8".to_owned()), 2);
    assert_eq!(stale(&source.text.replace("\"gemm.cu\"", "\"a/gemm.cu\""), |_, _| ()), 1);
    assert_eq!(stale(&source.text.replace(".target sm_80", ".target sm_90"), |_, _| ()), 1);
    assert_eq!(stale(&source.text.replace(".file", "//file"), |_, _| ()), 1);
}
