//! Real faults on the real binary: processes that are killed at random times and at chosen system calls, a disk that is
//! full, a directory that cannot be written, two processes on one output directory, signals that come at bad times.
//! After each the run goes on to the bytes of the run that never stopped. `RLHF_KILLS` sets the number of kills (60),
//! `RLHF_BINARY` the binary.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::resume::{SFT, STAGES, assert_same, line, promised, room};
use crate::support::{Outcome, Room};

/// Saves all the time, so that most faults hit a save.
const OFTEN: &str = "--save-steps 2";

fn kills() -> usize {
    std::env::var("RLHF_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(60)
}

/// A number in 0..n that depends on `i` alone.
fn spread(i: usize, n: usize) -> usize {
    (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 24) % n.max(1)
}

/// A stage's room, the bytes of the run that never stopped, and how long that took.
struct Reference {
    name: &'static str,
    stage: &'static str,
    room: Room,
    bytes: Vec<(String, Vec<u8>)>,
    took: Duration,
}

fn references() -> Vec<Reference> {
    let of = |(name, stage): (&'static str, &'static str)| {
        let room = room();
        let began = Instant::now();
        room.run(&format!("{} {OFTEN}", line(stage, "whole"))).ok();
        let took = began.elapsed();
        let bytes = promised(&room, "whole");
        Reference { name, stage, room, bytes, took }
    };
    STAGES.into_iter().map(of).collect()
}

impl Reference {
    fn line(&self) -> String {
        format!("{} {OFTEN} --resume", line(self.stage, "out"))
    }

    /// Runs to the end, and holds what is left against the reference.
    fn finish(&self, what: &str) {
        let outcome = self.room.run(&self.line());
        assert_eq!(outcome.code, Some(0), "{} after {what}: {}", self.name, outcome.stderr);
        assert_same(&self.bytes, &promised(&self.room, "out"), &format!("{} after {what}", self.name));
        let left = self.room.files("out");
        let temporary = left.keys().find(|name| name.contains(".rlhf-tmp"));
        assert!(temporary.is_none(), "{} after {what}: {temporary:?} is left", self.name);
        std::fs::remove_dir_all(self.room.path("out")).unwrap();
    }
}

#[test]
fn killed_at_random_times() {
    let (references, kills) = (references(), kills().div_ceil(2));
    let mut hit = 0;
    for i in 0..kills {
        let reference = &references[i % 3];
        // Up to three kills before the run may end.
        for again in 0..=spread(i, 3) {
            let mut child = reference.room.command(&reference.line()).spawn().unwrap();
            std::thread::sleep(reference.took.mul_f64(spread(i * 7 + again, 1000) as f64 / 1000.0));
            child.kill().unwrap();
            hit += usize::from(!child.wait().unwrap().success());
        }
        reference.finish(&format!("kill {i}"));
    }
    println!("{hit} processes were killed at random times, and every run ended in the same bytes");
    assert!(hit * 2 > kills, "only {hit} of {kills} kills hit a process that was still running");
}

/// Calls that change a file system; the k-th one is the last that the process makes.
const CALLS: [&str; 6] = ["write", "fsync", "rename", "mkdir", "unlink", "ftruncate"];

/// Needs strace, which `.ci/run` installs.
#[cfg(target_os = "linux")]
#[test]
fn killed_at_chosen_system_calls() {
    let (references, kills) = (references(), kills().div_ceil(2));
    let traced = |reference: &Reference, options: &[&str]| {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-o", "trace.txt"]).args(options).arg("--").arg(reference.room.binary());
        strace.args(reference.line().split_whitespace()).current_dir(reference.room.path("."));
        let status = strace.env("RAYON_NUM_THREADS", "1").stdin(Stdio::null()).stderr(Stdio::null()).status();
        status.expect("strace is needed: install it (apt-get install strace)")
    };
    let mut hit = 0;
    let counts: Vec<Vec<usize>> = references
        .iter()
        .map(|reference| {
            traced(reference, &["-e", &format!("trace={}", CALLS.join(","))]);
            let text = String::from_utf8_lossy(&reference.room.read("trace.txt")).into_owned();
            reference.finish("a traced run");
            CALLS.iter().map(|call| text.lines().filter(|line| line.contains(&format!(" {call}("))).count()).collect()
        })
        .collect();
    for i in 0..kills {
        let (reference, counts) = (&references[i % 3], &counts[i % 3]);
        let made: Vec<usize> = (0..CALLS.len()).filter(|which| counts[*which] > 0).collect();
        let which = made[(i / 3) % made.len()];
        let inject = format!("inject={}:signal=KILL:when={}", CALLS[which], 1 + spread(i, counts[which]));
        hit += usize::from(!traced(reference, &["-e", &format!("trace={}", CALLS[which]), "-e", &inject]).success());
        reference.finish(&inject);
    }
    println!("{hit} processes were killed at a chosen system call, and every run ended in the same bytes");
    assert!(hit * 2 > kills, "only {hit} of {kills} kills hit");
}

/// A file may not grow beyond a few blocks: writes fail in the middle of a save, as on a disk that is full.
#[test]
fn a_full_disk_ends_a_run_that_goes_on_later() {
    for reference in references() {
        for blocks in [1, 8, 40, 90] {
            let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" {}", reference.line());
            let output = Command::new("bash")
                .args(["-c", &script])
                .arg(reference.room.binary())
                .current_dir(reference.room.path("."))
                .output()
                .unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(4), "{} with {blocks} blocks: {stderr}", reference.name);
            for text in ["[disk-full]", "where: out/", "fix: free some space"] {
                assert!(stderr.contains(text), "{} with {blocks} blocks: {stderr}", reference.name);
            }
            let left = reference.room.files("out");
            assert!(!left.keys().any(|name| name.contains(".rlhf-tmp")), "{:?}", left.keys().collect::<Vec<_>>());
        }
        reference.finish("a full disk");
    }
}

#[cfg(unix)]
#[test]
fn a_directory_that_cannot_be_written_is_named_at_once() {
    let room = room();
    std::fs::create_dir(room.path("shut")).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o555);
    std::fs::set_permissions(room.path("shut"), mode).unwrap();
    // Whoever may write anywhere finds one that nobody can write to.
    let is_root = std::fs::write(room.path("shut/probe"), "").is_ok();
    let place = if is_root { "/sys/rlhf" } else { "shut/out" };
    let outcome = room.run(&line(SFT, place));
    assert_eq!(outcome.code, Some(4), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("[file-permission]") && outcome.stderr.contains(place), "{}", outcome.stderr);
}

#[test]
fn one_process_owns_an_output_directory() {
    let reference = &references()[0];
    let room = &reference.room;
    let mut first = room.command(&format!("{} --max-steps 100000", line(SFT, "out"))).spawn().unwrap();
    while !room.path("out/metrics.jsonl").exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    for more in ["", "--resume"] {
        let second = room.run(&format!("{} {more}", line(SFT, "out")));
        assert_eq!(second.code, Some(7), "{}", second.stderr);
        let owner = format!("process {} on host", first.id());
        assert!(second.stderr.contains(&owner) && second.stderr.contains("[output-locked]"), "{}", second.stderr);
    }
    first.kill().unwrap();
    first.wait().unwrap();
    let third = room.run(&reference.line());
    assert!(third.stderr.contains("took over the output directory from process"), "{}", third.stderr);
    assert_same(&reference.bytes, &promised(room, "out"), "a lock that was taken over");
}

/// The answer of a child that was sent signals.
fn outcome(line: &str, child: std::process::Child) -> Outcome {
    let output = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Outcome {
        line: line.to_owned(),
        code: output.status.code(),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    }
}

#[test]
fn signals_at_bad_times() {
    let mut codes = std::collections::BTreeMap::new();
    for (number, reference) in references().iter().enumerate() {
        for i in 0..8 {
            // Every step is saved, so that signals come during saves.
            let line = reference.line().replace(OFTEN, "--save-steps 1");
            let child = reference.room.command(&line).spawn().unwrap();
            std::thread::sleep(reference.took.mul_f64(spread(i * 11 + number, 1000) as f64 / 800.0));
            let (name, code) = [("INT", 130), ("TERM", 143)][i % 2];
            let running = child.id();
            for _ in 0..1 + i % 3 {
                // It may be over by now; then there is nobody to hear it.
                let _ = Command::new("kill")
                    .args([&format!("-{name}"), &running.to_string()])
                    .stderr(Stdio::null())
                    .status();
            }
            let outcome = outcome(&line, child);
            // None: it came before the program's first line.
            let expected = [Some(code), Some(0), None];
            assert!(expected.contains(&outcome.code), "{name}: {:?} {}", outcome.code, outcome.stderr);
            *codes.entry(outcome.code).or_insert(0) += 1;
            reference.finish(&format!("{} times {name}", 1 + i % 3));
        }
    }
    println!("exit codes: {codes:?}");
    assert!(codes.contains_key(&Some(130)) && codes.contains_key(&Some(143)), "{codes:?}");
}
