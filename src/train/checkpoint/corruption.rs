//! Damage to a checkpoint: every bit of its manifest, of its headers and of its small files, and random bits of its
//! tensors. All of it is found before anything is loaded, and the file and the tensor are named.

use std::path::Path;

use super::tests::{Run, at};
use super::*;
use crate::device::Device;
use crate::error::Code;
use crate::random::{Philox, Stage};

/// A checkpoint of a tiny run, and the files in it.
fn checkpoint(dir: &Path) -> (PathBuf, Vec<(String, Vec<u8>)>) {
    Run { stage: "sft", device: &Device::Cpu, steps: 1 }.go(dir, None, 1);
    let path = at(dir, 1);
    let file = |name: String| (name.clone(), std::fs::read(path.join(name)).unwrap());
    let files = file_names(&path).unwrap().into_iter().map(file).collect();
    (path, files)
}

/// The bytes of a safetensors header, its length included.
fn header_bytes(bytes: &[u8]) -> usize {
    let length = bytes.first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
    8 + length as usize
}

/// Flips a bit, reads the checkpoint, and puts the bit back. What must be said stands in `says`.
fn flip(path: &Path, name: &str, bytes: &mut [u8], bit: usize, says: &str) {
    bytes[bit / 8] ^= 1 << (bit % 8);
    std::fs::write(path.join(name), &*bytes).unwrap();
    let found = Found::read(path);
    bytes[bit / 8] ^= 1 << (bit % 8);
    let Err(error) = found else { panic!("bit {bit} of {name} is turned, and nobody says so") };
    let text = error.to_string();
    assert_eq!(error.code(), Code::Input, "bit {bit} of {name}: {text}");
    assert!(text.contains(name) && text.contains(says), "bit {bit} of {name}: {text}");
}

#[test]
fn every_bit_of_manifest_and_headers_counts() {
    let dir = tempfile::tempdir().unwrap();
    let (path, files) = checkpoint(dir.path());
    Found::read(&path).unwrap();
    let mut flipped = 0;
    for (name, mut bytes) in files {
        let (end, says) = match name.as_str() {
            manifest::NAME => (bytes.len(), "[manifest-"),
            name if name.ends_with(".safetensors") => (header_bytes(&bytes), "the header"),
            _ => (bytes.len(), "the file of"),
        };
        (0..end * 8).for_each(|bit| flip(&path, &name, &mut bytes, bit, says));
        flipped += end * 8;
        std::fs::write(path.join(&name), bytes).unwrap();
    }
    Found::read(&path).unwrap();
    println!("{flipped} bits of manifest, headers and small files were turned one by one, and all were noticed");
    assert!(flipped > 50_000, "{flipped}");
}

/// The tensor of a safetensors file that the byte `at` belongs to.
fn tensor_at(path: &Path, at: u64) -> String {
    let ranges = Weights::open_file(path).unwrap().ranges();
    ranges.into_iter().find(|(_, begin, bytes)| (*begin..begin + bytes).contains(&at)).unwrap().0
}

#[test]
fn random_bits_of_tensors_count() {
    let dir = tempfile::tempdir().unwrap();
    let (path, files) = checkpoint(dir.path());
    let mut files: Vec<(String, Vec<u8>)> =
        files.into_iter().filter(|(name, _)| name.ends_with(".safetensors")).collect();
    let mut stream = Philox::new(9, Stage::Init, 0, 0);
    let mut draw = |n: usize| (stream.normal().abs() * 1e9) as usize % n;
    for _ in 0..10_000 {
        let which = draw(files.len());
        let (name, bytes) = &mut files[which];
        let start = header_bytes(bytes);
        let bit = start * 8 + draw((bytes.len() - start) * 8);
        std::fs::write(path.join(&*name), &*bytes).unwrap();
        let tensor = tensor_at(&path.join(&*name), bit as u64 / 8);
        flip(&path, name, bytes, bit, &format!("the tensor {tensor:?}"));
        std::fs::write(path.join(&*name), &*bytes).unwrap();
    }
    Found::read(&path).unwrap();
    println!("10000 random bits of tensors were turned one by one, and all were noticed");
}

#[test]
fn missing_further_and_foreign_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let (path, files) = checkpoint(dir.path());
    let refused = |what: &str| {
        let error = Found::read(&path).unwrap_err();
        assert!(error.to_string().contains(what), "{what}: {error}");
        error.id()
    };
    for (name, bytes) in &files {
        let gone = path.join(name);
        std::fs::remove_file(&gone).unwrap();
        assert_eq!(refused(if name == manifest::NAME { "manifest" } else { name }).split('-').next(), Some("manifest"));
        std::fs::write(&gone, &bytes[..bytes.len() - 1]).unwrap();
        refused(name);
        std::fs::write(&gone, [bytes, &b" "[..]].concat()).unwrap();
        refused(name);
        std::fs::write(&gone, bytes).unwrap();
    }
    std::fs::write(path.join("more.bin"), "x").unwrap();
    assert_eq!(refused("more.bin"), "manifest-extra-file");
    std::fs::remove_file(path.join("more.bin")).unwrap();
    // The weights of one state and the moments of another.
    let other = tempfile::tempdir().unwrap();
    Run { stage: "sft", device: &Device::Cpu, steps: 2 }.go(other.path(), None, 2);
    std::fs::copy(at(other.path(), 2).join(TENSORS), path.join(TENSORS)).unwrap();
    assert_eq!(refused("the tensor"), "manifest-file-damaged");
}
