//! The fuzz targets without a fuzzer: every committed input through its target's door, and a few seconds of seeded
//! mutations of them. The long hunts are cargo-fuzz's, with the same doors (`tests/fuzz`); what they found is committed
//! under `tests/fuzz/regressions`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use rlhf::fuzz::{TARGETS, Verdict};

/// No input takes a tenth of a second; one that takes this long hangs, however busy the machine is.
const LIMIT: Duration = Duration::from_secs(10);

/// How many mutations each target gets.
const MUTATIONS: [(&str, usize); 9] = [
    ("safetensors", 150_000),
    ("index", 150_000),
    ("config", 60_000),
    ("tokenizer", 4_000),
    ("template", 6_000),
    ("jsonl", 60_000),
    ("parquet", 20_000),
    ("run_config", 4_000),
    ("manifest", 20_000),
];

/// The committed inputs of a target: the names with their folder, and the bytes.
fn inputs(target: &str) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for kind in ["seeds", "regressions"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz").join(kind).join(target);
        for entry in std::fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            found.push((format!("{kind}/{target}/{name}"), std::fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

/// Whether the door accepts the bytes, or what went wrong.
fn knock(door: impl Fn(&[u8]) -> Verdict, bytes: &[u8]) -> Verdict {
    let start = Instant::now();
    let verdict = catch_unwind(AssertUnwindSafe(|| door(bytes))).unwrap_or_else(|_| Err("a panic".to_owned()));
    let took = start.elapsed();
    if took > LIMIT { Err(format!("it took {took:?}")) } else { verdict }
}

/// Mutations that were accepted and refused, or the first that broke a promise.
fn hunt(door: impl Fn(&[u8]) -> Verdict, inputs: &[Vec<u8>], count: usize) -> Result<[usize; 2], String> {
    let (mut dice, mut counts) = (Dice(1), [0, 0]);
    for _ in 0..count {
        let bytes = mutate(inputs, &mut dice);
        let accepted = knock(&door, &bytes).map_err(|why| format!("{why}\n{}", bytes.escape_ascii()))?;
        counts[usize::from(!accepted)] += 1;
    }
    Ok(counts)
}

/// A small generator: what it draws is the same on every machine.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound.max(1)
    }
}

/// One of the inputs with one to four changes: bytes set, inserted, cut out, doubled, or taken from another input.
fn mutate(inputs: &[Vec<u8>], dice: &mut Dice) -> Vec<u8> {
    const PIECES: [&[u8]; 12] = [
        b"0",
        b"-1",
        b"18446744073709551616",
        b"1e999",
        b"null",
        b"[]",
        b"{",
        b"\"",
        b"\x00",
        b"\xff",
        b"\x1b[2J",
        b"\\ud800",
    ];
    let mut bytes = inputs[dice.below(inputs.len())].clone();
    for _ in 0..=dice.below(4) {
        let from = dice.below(bytes.len() + 1);
        let to = from + dice.below((bytes.len() - from).min(32) + 1);
        match dice.below(7) {
            0 if from < bytes.len() => bytes[from] = dice.below(256) as u8,
            1 if from < bytes.len() => bytes[from] ^= 1 << dice.below(8),
            2 => drop(bytes.splice(from..to, [])),
            3 => drop(bytes.splice(from..from, bytes[from..to].to_vec())),
            4 => drop(bytes.splice(from..to, PIECES[dice.below(PIECES.len())].iter().copied())),
            5 => {
                let other = &inputs[dice.below(inputs.len())];
                let at = dice.below(other.len() + 1);
                let end = at + dice.below((other.len() - at).min(64) + 1);
                drop(bytes.splice(from..to, other[at..end].iter().copied()));
            }
            _ => bytes.truncate(from.max(bytes.len() / 2)),
        }
    }
    bytes
}

#[test]
fn committed_inputs_break_no_promise() {
    for (target, door) in TARGETS {
        let (mut accepted, mut refused) = (0, 0);
        for (name, bytes) in inputs(target) {
            match knock(door, &bytes) {
                Ok(true) => accepted += 1,
                Ok(false) => refused += 1,
                Err(why) => panic!("{name}: {why}"),
            }
        }
        println!("{target}: {accepted} inputs accepted, {refused} refused");
        assert!(accepted > 0 && refused > 0, "{target}: the inputs show one side only");
    }
}

#[test]
fn mutations_break_no_promise() {
    for (target, door) in TARGETS {
        let count = MUTATIONS.iter().find(|row| row.0 == target).unwrap_or_else(|| panic!("{target} has no row")).1;
        let seeds: Vec<_> = inputs(target).into_iter().map(|(_, bytes)| bytes).collect();
        let start = Instant::now();
        let [accepted, refused] = hunt(door, &seeds, count).unwrap_or_else(|find| panic!("{target}: {find}"));
        println!("{target}: {accepted} mutations accepted, {refused} refused, in {:?}", start.elapsed());
        assert!(accepted > count / 1000 && refused > count / 1000, "{target}: {accepted} accepted, {refused} refused");
    }
}

/// The control: doors with a trap behind them are found out by the same loop.
#[test]
fn a_broken_door_is_found() {
    let seeds: Vec<_> = inputs("config").into_iter().map(|(_, bytes)| bytes).collect();
    let is_trap = |bytes: &[u8]| bytes.windows(5).any(|word| word == b"1e999");
    let traps: [(&str, fn()); 2] = [("a panic", || panic!("the trap")), ("", || ())];
    for (find, trap) in traps {
        let door = |bytes: &[u8]| {
            if is_trap(bytes) {
                trap();
                return Err("a broken promise".to_owned());
            }
            Ok(true)
        };
        let found = hunt(door, &seeds, 20_000).unwrap_err();
        assert!(found.contains(if find.is_empty() { "a broken promise" } else { find }), "{found}");
    }
    assert_eq!(hunt(|_| Ok(false), &seeds, 10), Ok([0, 10]));
}
